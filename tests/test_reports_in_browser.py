"""Both reports in headless Chromium: on a desktop, on a phone and on paper, complete without network or script."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import chromium, needs_chromium
from prepared_folders import write_prepared
from recording_files import write_edf
from stage_folders import write_language_model, write_text_model, write_tokenizer, write_vq

from neurolm_hf import NeuroLMConfig
from neurolm_hf.answering import open_model
from neurolm_hf.checkpoint_report import write_checkpoint_report
from neurolm_hf.recording_report import write_recording_report
from neurolm_hf.simulation import ELECTRODES_MM
from neurolm_hf.starting_models import load_vq
from neurolm_hf.tasks import load_task


DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
REPORTS = ("recording", "checkpoint", "tokenizer")
# Reads whether a page is wider than its screen, and what becomes of its pictures, tables and headings.
LOOK = """async () => {
  const images = [...document.images];
  await Promise.all(images.map(image => image.decode()));
  const overlaps = [...document.querySelectorAll('body *')].filter(one => {
    const box = one.getBoundingClientRect();
    return box.width && !one.closest('.scroll table') && box.right > window.innerWidth + 1;
  });
  return {
    width: document.documentElement.scrollWidth,
    beyond: overlaps.map(one => one.outerHTML.slice(0, 80)),
    images: images.map(image => [image.naturalWidth, image.clientWidth, image.alt.length]),
    scrolled: [...document.querySelectorAll('.scroll')].map(one => one.scrollWidth - one.clientWidth),
    captions: document.querySelectorAll('.scroll:not([aria-label]), img:not([alt])').length,
    headings: [document.querySelectorAll('h1').length, document.querySelectorAll('h2').length],
    letters: parseFloat(getComputedStyle(document.querySelector('p')).fontSize),
    colours: [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor],
  };
}"""

pytestmark = [pytest.mark.slow, needs_chromium]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of tiny models, on files whose names are long and hostile."""
    home = tmp_path_factory.mktemp("reports")
    write_text_model(home / "text", write_tokenizer(home / "words"))
    write_vq(home / "vq")
    write_language_model(home / "tuned", home / "vq", home / "text", stage="instruction-tuned")
    config = NeuroLMConfig.from_pretrained(home / "tuned")
    config.tasks = [load_task("Workload").config_entry()]
    config.save_pretrained(home / "tuned")
    answering = open_model(str(home / "tuned"))
    names = [f"EEG {name}" for name in ELECTRODES_MM] + ["<script>x</script"]
    file = write_edf(home / f"<img src=x onerror='document.title=1'>{'long' * 30}.edf", names, seconds=60, rate=200)
    pipe: Any = answering.model.as_pipeline(answering.processor, device="cpu")
    recordings = [
        (f"{split}{i}<script>x</script>.edf", f"{split}{i}", split) for split in ("train", "test") for i in range(4)
    ]
    write_prepared(home / "set", recordings)
    return {
        "recording": write_recording_report(
            pipe, file, home / "a", task="Workload", unknown_channels="drop", tokenizer=load_vq(str(home / "vq"))[0]
        ),
        "checkpoint": write_checkpoint_report(str(home / "tuned"), str(home / "set"), home / "b"),
        "tokenizer": write_checkpoint_report(str(home / "vq"), str(home / "set"), home / "c"),
    }


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture
def look(browser: Any, pages: dict[str, Path]) -> Iterator[Any]:
    """Opens a report, and returns the page with what `LOOK` sees; nothing may have been said or asked for."""
    heard: list[str] = []
    contexts = []

    def open_page(report: str, screen: dict[str, int], **options: Any) -> tuple[Any, dict[str, Any]]:
        contexts.append(browser.new_context(viewport=screen, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: heard.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: heard.append(f"error: {error}"))
        page.on("request", lambda request: heard.append(request.url))
        page.goto(pages[report].as_uri(), wait_until="load")
        return page, page.evaluate(LOOK)

    yield open_page
    allowed = ("data:image/png;base64,", *(page.as_uri() for page in pages.values()))
    assert [one[:200] for one in heard if not one.startswith(allowed)] == []
    for context in contexts:
        context.close()


@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_page_fits_its_screen(look: Any, report: str, screen: dict[str, int]) -> None:
    page, seen = look(report, screen)
    assert seen["width"] <= screen["width"]
    assert seen["beyond"] == []
    assert seen["images"]
    for natural, shown, alt in seen["images"]:
        assert natural > 500
        assert min(screen["width"], 700) * 0.6 < shown <= screen["width"]
        assert alt > 20
    assert seen["captions"] == 0
    assert seen["headings"][0] == 1
    assert seen["headings"][1] >= 6
    assert seen["letters"] >= 14
    # tables fit too
    assert max(seen["scrolled"]) <= 0
    assert page.title().startswith(("<img src=x", "Checkpoint"))


def test_a_dark_screen_gets_a_dark_page(look: Any) -> None:
    colours = [look("recording", PHONE, color_scheme=scheme)[1]["colours"] for scheme in ("light", "dark")]
    brightness = [
        [np.mean([int(part) for part in colour.strip("rgba()").split(",")[:3]]) for colour in pair] for pair in colours
    ]
    assert brightness[0][0] < 60 < 200 < brightness[0][1]
    assert brightness[1][0] > 200 > 60 > brightness[1][1]


def test_tables_are_reached_by_keyboard_and_named(look: Any) -> None:
    page, _ = look("recording", PHONE)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('role')") == "region"
    assert page.get_by_role("region", name="15 windows of 4 s.").count() == 1
    assert page.get_by_role("heading", name="What to know first").count() == 1


@pytest.mark.parametrize("report", REPORTS)
def test_on_paper_nothing_is_cut(look: Any, report: str) -> None:
    page, _ = look(report, {"width": 680, "height": 1000}, color_scheme="dark")
    page.emulate_media(media="print")
    seen = page.evaluate(LOOK)
    assert seen["width"] <= 680
    assert seen["colours"][1] in ("rgb(255, 255, 255)", "rgba(0, 0, 0, 0)")
    # no picture is higher than a page, or it would be cut in two
    heights = page.evaluate("[...document.images].map(image => image.clientHeight)")
    assert max(heights) < 25 / 2.54 * 96
    printed = page.pdf(format="A4", margin=dict.fromkeys(("top", "bottom", "left", "right"), "15mm"))
    assert printed.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b(?!s)", printed)) <= 20
