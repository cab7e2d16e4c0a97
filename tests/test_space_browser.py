"""The Space in Chromium, as a visitor uses it, and by requests that no page would make."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from chromium import chromium, needs_chromium
from playwright.sync_api import Browser, Page, expect
from recording_files import RECORDINGS, write_edf
from tiny_pipeline import SLEEP, tiny_answerer, tiny_processor

from neurolm_hf import EEGQuestionAnsweringPipeline
from neurolm_hf.answering import open_model
from neurolm_hf.simulation import simulate_recordings


pytestmark = [pytest.mark.slow, needs_chromium]

ROOT = Path(__file__).parent.parent
PATIENCE = 60_000  # milliseconds: one of two cores may be busy


@dataclass(frozen=True)
class Server:
    """A Space that is being served: its address, and where it receives uploads."""

    url: str
    uploads: Path

    def left(self) -> list[str]:
        """What is on its disk, but for the empty files that Gradio makes beside each upload."""
        return [str(path) for path in self.uploads.rglob("*") if path.is_file() and path.stat().st_size > 0]


def serve(folder: Path, model: str) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uploads = folder / "uploads"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NEUROLM_MODEL": model, "GRADIO_TEMP_DIR": str(uploads)}
    environment |= {"GRADIO_SERVER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, ROOT / "space" / "app.py"], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try:
                requests.get(url, timeout=5)
                break
            except requests.ConnectionError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(1)
        yield Server(url, uploads)
        said = (folder / "log").read_text()
        assert "the fault is ours" not in said
        assert "UserWarning" not in said
    finally:
        server.terminate()
        server.wait(timeout=30)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    processor = tiny_processor(do_filter=True, do_notch=True, scale=10.0)
    tiny_answerer(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(model_folder: Path) -> EEGQuestionAnsweringPipeline:
    opened = open_model(str(model_folder))
    return EEGQuestionAnsweringPipeline(model=opened.model, processor=opened.processor, device="cpu")


@pytest.fixture(scope="module")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    yield from serve(tmp_path_factory.mktemp("served"), str(model_folder))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two real EDF files where they are at hand."""
    real = sorted((RECORDINGS / "eegmat").glob("Subject00_?.edf"))
    return real or simulate_recordings(tmp_path_factory.mktemp("recordings"), subjects=1)


def visit(browser: Browser, server: Server, width: int = 1200, height: int = 900) -> Page:
    page = browser.new_context(viewport={"width": width, "height": height}).new_page()
    page.set_default_timeout(PATIENCE)
    page.goto(server.url)
    page.wait_for_selector("#files input[type=file]", state="attached")
    return page


def upload(page: Page, *files: Path) -> None:
    page.set_input_files("#files input[type=file]", [str(file) for file in files])


def opens(page: Page, recording: Path) -> None:
    upload(page, recording)
    expect(page.locator("#report h2")).to_have_text(recording.name, timeout=PATIENCE)
    expect(page.locator("#traces img")).to_be_visible(timeout=PATIENCE)


def shown_probabilities(page: Page) -> dict[str, float]:
    page.wait_for_selector("#probabilities dl, #probabilities [data-testid]", state="attached")
    lines = [line for line in page.inner_text("#probabilities").splitlines() if line.strip()]
    # the likeliest answer stands above the list
    pairs = zip(lines[1::2], lines[2::2], strict=True)
    return {name: float(percent.rstrip("%")) / 100 for name, percent in pairs}


def start_of_window(page: Page) -> int:
    return int(page.input_value("#start input[type=number]"))


@pytest.mark.parametrize(("width", "height"), [(1200, 900), (390, 800)])
def test_a_recording_is_uploaded_looked_at_and_asked(
    browser: Browser, server: Server, pipe: Any, recordings: list[Path], width: int, height: int
) -> None:
    page = visit(browser, server, width, height)
    outside: list[str] = []
    page.on(
        "request", lambda r: outside.append(r.url) if not r.url.startswith((server.url, "data:", "blob:")) else None
    )
    assert "It is not a medical device" in page.inner_text("body")
    opens(page, recordings[1])
    report = page.inner_text("#report")
    assert "The model reads 19 channels: FP1, FP2, F3" in report
    assert "not EEG by its name" in report
    assert server.left() == []  # gone before anything is asked

    start = start_of_window(page)
    page.click("#later")
    page.wait_for_function(f"document.querySelector('#start input[type=number]').value == {start + 2}")
    page.focus("#start input[type=range]")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowLeft", "ArrowLeft", "ArrowRight"):
        page.keyboard.press(key)
    expect(page.locator("#traces img")).to_have_attribute(
        "alt", re.compile(f" {start + 2} to {start + 4} s being the window"), timeout=PATIENCE
    )
    page.click("#ask")
    expect(page.locator("#heading")).to_contain_text(f"{start + 2} to {start + 4} s", timeout=PATIENCE)
    shown = shown_probabilities(page)
    answers = pipe(str(recordings[1]), task="Workload")
    (wanted,) = [one for one in answers if one["start"] == start + 2]
    assert shown == pytest.approx(wanted["probabilities"], abs=0.006)  # in whole percent
    assert sum(shown.values()) == pytest.approx(1, abs=0.011)

    cells = page.locator("#tokens tbody td")
    expect(cells).to_have_count(2 * 19, timeout=PATIENCE)
    assert all(re.fullmatch(r"\d+\*?", cell) for cell in cells.all_inner_texts())
    page.wait_for_selector("#maps img")
    assert page.locator("#maps img").count() == 2
    for picture in page.locator("img.figure").all():
        assert picture.evaluate("image => image.complete && image.naturalWidth") > 500
        assert picture.get_attribute("alt")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert outside == []
    assert server.left() == []
    page.context.close()


def test_a_task_with_channels_of_its_own_and_an_own_question(
    browser: Browser, server: Server, pipe: Any, recordings: list[Path]
) -> None:
    page = visit(browser, server)
    opens(page, recordings[0])
    page.get_by_label("Which stage?").check()
    expect(page.locator("#traces img")).to_have_attribute("alt", re.compile("of 2 channels"), timeout=PATIENCE)
    page.click("#ask")
    expect(page.locator("#heading h2")).to_have_text("Which stage?", timeout=PATIENCE)
    (wanted,) = [one for one in pipe(str(recordings[0]), task="Sleep") if one["start"] == start_of_window(page)]
    assert shown_probabilities(page) == pytest.approx(wanted["probabilities"], abs=0.006)
    assert page.locator("#tokens tbody th").all_inner_texts() == SLEEP["channels"]

    page.get_by_label("A question of my own").check()
    page.click("#ask")
    expect(page.locator("#ask-notice")).to_contain_text("Write your question", timeout=PATIENCE)
    page.get_by_label("Your question").fill("<b>Is it?")
    page.get_by_label("Answers to choose from").fill("Yes, No\nPerhaps")
    page.click("#ask")
    expect(page.locator("#heading h2")).to_have_text("<b>Is it?", timeout=PATIENCE)
    asked = {"question": "<b>Is it?", "candidate_answers": ["Yes", "No", "Perhaps"]}
    every_second = pipe(str(recordings[0]), stride_seconds=1, **asked)
    (wanted,) = [one for one in every_second if one["start"] == start_of_window(page)]
    assert shown_probabilities(page) == pytest.approx(wanted["probabilities"], abs=0.006)
    page.context.close()


def test_the_examples_open(browser: Browser, server: Server) -> None:
    page = visit(browser, server)
    page.get_by_role("button", name="Example: at rest").click()
    expect(page.locator("#report h2")).to_have_text("Subject00_1.edf", timeout=PATIENCE)
    page.get_by_role("button", name="Example: calculating").click()
    expect(page.locator("#report h2")).to_have_text("Subject00_2.edf", timeout=PATIENCE)
    expect(page.locator("#traces img")).to_be_visible(timeout=PATIENCE)
    page.context.close()


def test_what_is_no_recording_gets_a_sentence(
    browser: Browser, server: Server, recordings: list[Path], tmp_path: Path
) -> None:
    page = visit(browser, server)
    (tmp_path / "song.zip").write_bytes(b"PK\x03\x04" + bytes(99))
    (tmp_path / "song.edf").write_bytes(b"PK\x03\x04" + bytes(99))
    (tmp_path / "cut.edf").write_bytes(recordings[0].read_bytes()[:-1000])
    damaged = bytearray(recordings[0].read_bytes())
    damaged[184:192] = b"nonsense"
    (tmp_path / "damaged.edf").write_bytes(damaged)
    for name, message in (
        ("song.zip", "song.zip is of no format that this page reads."),
        ("song.edf", "song.edf is not what its name says"),
        ("cut.edf", "cut.edf is cut short: 1000 bytes fewer than its header says"),
        ("damaged.edf", "damaged.edf is not a valid EDF file: its header cannot be read"),
    ):
        upload(page, tmp_path / name)
        expect(page.locator("#upload-notice")).to_contain_text(message, timeout=PATIENCE)
        assert str(server.uploads) not in page.inner_text("body")
        assert server.left() == []
    with open(tmp_path / "large.edf", "wb") as file:
        file.truncate(51 * 2**20)
    upload(page, tmp_path / "large.edf")
    expect(page.get_by_text(re.compile(r"maximum allowed size of 50(\.0)? MB", re.IGNORECASE))).to_be_visible()
    assert server.left() == []
    # what was wrong does not stay when the next one is right
    opens(page, recordings[0])
    assert page.inner_text("#upload-notice").strip() == ""
    page.context.close()


def test_names_in_a_file_are_not_executed(browser: Browser, server: Server, tmp_path: Path) -> None:
    page = visit(browser, server)
    called: list[str] = []
    page.on("dialog", lambda dialog: (called.append(dialog.message), dialog.dismiss()))
    names = ("EEG C3", "EEG O2", "<img src=x oner", "${alert(1)}", "{{value}}", "<script>alert(")
    opens(page, write_edf(tmp_path / "names.edf", names, seconds=40, rate=200))
    assert "${alert(1)} (unknown name), {{value}} (unknown name)" in page.inner_text("#report")
    assert page.locator("#report img, #report script").count() == 0
    assert called == []
    page.context.close()


def test_two_visitors_see_their_own(browser: Browser, server: Server, recordings: list[Path]) -> None:
    one, other = visit(browser, server), visit(browser, server)
    upload(one, recordings[0])
    upload(other, recordings[1])
    for page, recording in ((one, recordings[0]), (other, recordings[1])):
        expect(page.locator("#report h2")).to_have_text(recording.name, timeout=PATIENCE)
        expect(page.locator("#traces img")).to_be_visible(timeout=PATIENCE)
    pictures = [page.get_attribute("#traces img", "src") for page in (one, other)]
    assert pictures[0] != pictures[1]
    one.click("#ask")
    other.click("#ask")
    shown = []
    for page in (one, other):
        page.wait_for_selector("#maps img")
        shown.append(page.locator("#tokens tbody td").all_inner_texts())
    assert shown[0] != shown[1]
    one.click("#later")
    expect(one.locator("#answered")).to_be_hidden(timeout=PATIENCE)
    assert other.locator("#answered").is_visible()
    assert other.get_attribute("#traces img", "src") == pictures[1]
    one.context.close()
    other.context.close()


def replay(server: Server, body: dict[str, Any]) -> str:
    """Sends an event as a page would, and everything that comes back."""
    requests.post(f"{server.url}/gradio_api/queue/join", json=body, timeout=30).raise_for_status()
    stream = requests.get(
        f"{server.url}/gradio_api/queue/data", {"session_hash": body["session_hash"]}, stream=True, timeout=60
    )
    said = []
    for line in stream.iter_lines():
        said.append(line.decode())
        if '"process_completed"' in said[-1] or '"close_stream"' in said[-1]:
            break
    return "\n".join(said)


def events_of(page: Page, use: Callable[[], None]) -> list[dict[str, Any]]:
    """What the page sends while it is used."""
    sent: list[dict[str, Any]] = []

    def note(request: Any) -> None:
        if request.url.split("?")[0].endswith("/queue/join"):
            sent.append(json.loads(request.post_data))

    page.on("request", note)
    use()
    page.remove_listener("request", note)
    return sent


def test_a_visit_is_forgotten_when_the_page_is_closed(
    browser: Browser, server: Server, recordings: list[Path]
) -> None:
    page = visit(browser, server)
    opens(page, recordings[0])

    def ask() -> None:
        page.click("#ask")
        page.wait_for_selector("#maps img")

    (event,) = events_of(page, ask)
    event["data"][1] = 0  # a start that the slider of a new page has too
    # another session, which has opened nothing
    assert "The recording is no longer here" in replay(server, {**event, "session_hash": "another"})
    page.context.close()
    for _ in range(30):
        if forgotten := "The recording is no longer here" in replay(server, event):
            break
        time.sleep(1)
    assert forgotten


def test_forged_requests_read_nothing(browser: Browser, server: Server, recordings: list[Path]) -> None:
    page = visit(browser, server)
    (event,) = events_of(page, lambda: opens(page, recordings[0]))
    page.context.close()
    (file,) = event["data"][0]
    secret = server.uploads.parent / "secret.edf"
    secret.write_bytes(recordings[0].read_bytes())
    inside = server.uploads / "x" / ".." / ".." / "secret.edf"
    for number, path in enumerate((str(secret), str(inside), "/etc/passwd", f"{server.url}/config", file["path"])):
        forged = {**event, "data": [[{**file, "path": path}], *event["data"][1:]], "session_hash": f"forged{number}"}
        said = replay(server, forged)
        assert "The model reads" not in said
        assert "root:" not in said
    assert secret.exists()
    assert server.left() == []


def test_uploads_that_are_too_large_in_all_are_turned_away(server: Server) -> None:
    files = [("files", (f"{number}.edf", bytes(18 * 2**20))) for number in range(3)]
    answer = requests.post(f"{server.url}/gradio_api/upload", files=files, timeout=60)
    assert answer.status_code == 413
    assert answer.text.startswith("The upload has 54 MB, and this page reads 50 MB at most.")
    assert server.left() == []


def test_a_page_without_a_model_says_so(tmp_path: Path) -> None:
    for server in serve(tmp_path, ""):
        assert "This page has no model to ask." in requests.get(server.url, timeout=30).text
