"""The documentation: it builds without a warning, reads offline, and what it shows is run."""

import ast
import importlib.util
import json
import os
import pkgutil
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import chromium, needs_chromium
from documents import ROOT, Block, blocks_of, commands_of, program, run_command, run_python
from hub_server import TOKEN, USER, hub_server
from stage_folders import write_language_model, write_text_model, write_tokenizer, write_vq

from neurolm_hf import NeuroLMForCausalLM, NeuroLMProcessor
from neurolm_hf.evaluation_report import read_published
from neurolm_hf.recipes import StageTrainingArguments, read_recipe
from neurolm_hf.simulation import simulate_recordings
from neurolm_hf.tasks import load_task


DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
# Their blocks are held by tests of their own: test_launching, test_study, test_estimate_training; or are measurements.
HELD_ELSEWHERE = {"many-devices.md", "study.md", "scaling.md", "performance.md"}
HOLE = "\0"


def name_of(page: Path) -> str:
    return page.relative_to(DOCS).as_posix()


def runs_commands(page: Path) -> bool:
    return any(block.language == "console" for block in blocks_of(page))


# The site ----------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    # strict: links, anchors, and pages that are missing in the navigation are errors
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_there_and_needs_nothing_from_outside(site: Path) -> None:
    for page in PAGES:
        text = (site / name_of(page)).with_suffix(".html").read_text(encoding="utf-8")
        fetched = re.findall(
            r"<(?:script|img|iframe|link rel=\"?stylesheet\"?)[^>]*(?:src|href)=\"?(https?:[^\" >]+)", text
        )
        assert not fetched, (page, fetched)
        assert not re.search(r"\]\([\w./-]+\)", re.sub(r"<code.*?</code>", "", text, flags=re.S)), page


def test_links_out_of_the_pages_lead_to_files_of_the_repository(site: Path) -> None:
    text = (site / "study.html").read_text(encoding="utf-8")
    assert 'href="https://github.com/neurolm-hf/neurolm_hf/tree/main/recipes"' in text
    text = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="https://github.com/neurolm-hf/neurolm_hf/blob/main/README.md"' in text


def test_the_reference_has_docstrings_as_they_are_written(site: Path) -> None:
    text = (site / "api/processing.html").read_text(encoding="utf-8")
    report = text[text.index('id="neurolm_hf.processing_neurolm.EEGReport"') :]
    assert "steps_impossible" in report[: report.index('id="neurolm_hf.processing_neurolm.EEGWindow"')]
    assert "Fields:" not in text
    assert "[<code>" not in text


@pytest.mark.slow
@needs_chromium
def test_the_site_is_read_and_searched_from_the_disk_without_a_network(site: Path) -> None:
    """Nothing is wider than a screen or a phone, nothing is fetched, and the words of an error lead to its cure."""
    asked: list[str] = []
    with chromium() as browser:
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 844})
            page.on("request", lambda request: asked.append(request.url))
            for document in PAGES:
                page.goto((site / name_of(document)).with_suffix(".html").as_uri())
                wider = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
                assert wider <= 0, f"{document} is {wider} px wider than {width} px"
        page.set_viewport_size({"width": 1280, "height": 844})
        page.goto((site / "index.html").as_uri())
        page.wait_for_selector("[data-md-component=search-query]:visible")
        page.keyboard.press("/")
        page.keyboard.type("Subject01_2.edf: 1 channel name(s) not in NeuroLM's vocabulary: 'XYZ9'")
        first = page.wait_for_selector(".md-search-result__link")
        assert first is not None
        assert "troubleshooting.html" in (first.get_attribute("href") or "")
    assert asked
    assert not [url for url in asked if not url.startswith(("file:", "data:", "about:"))]


# What the pages say ----------------------------------------------------------------


def test_the_reference_names_what_exists() -> None:
    """mkdocstrings leaves out in silence what a list of members names wrongly."""
    for page in (DOCS / "api").glob("*.md"):
        found = re.findall(r"^::: (\S+)\n((?: +\S.*\n)?)", page.read_text(encoding="utf-8"), flags=re.M)
        for target, options in found:
            thing = pkgutil.resolve_name(target)
            members = re.search(r"(?<!_)members: \[(.*?)\]", options)
            for member in filter(None, re.split(r",\s*", members[1] if members else "")):
                assert hasattr(thing, member), f"{page.name}: {target} has no {member}"


def test_messages_are_those_of_the_code() -> None:
    """Every message of the troubleshooting page occurs in the code, its dots standing for what is filled in."""
    said = [
        text for file in (*ROOT.glob("neurolm_hf/**/*.py"), *ROOT.glob("scripts/*.py")) for text in strings_of(file)
    ]
    messages = [block.code for block in blocks_of(DOCS / "troubleshooting.md") if block.language == "text"]
    assert len(messages) > 40
    for message in messages:
        parts = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
        pattern = re.compile(".*".join(parts), flags=re.S)
        assert any(pattern.search(text) for text in said), f"no such message: {message}"


def strings_of(file: Path) -> Iterator[str]:
    """The strings of a module, a hole where a value is filled in; texts that are added up count as one."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.expr) and (text := written(node)):
            yield re.sub(r"\s+", " ", text)


def written(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(written(part) or HOLE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = (written(node.left), written(node.right))
        return "".join(part or HOLE for part in parts) if any(parts) else ""
    return ""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_of_a_kind_that_is_tested(page: Path) -> None:
    languages = {block.language for block in blocks_of(page)}
    assert name_of(page) in HELD_ELSEWHERE or languages <= {"python", "console", "json", "yaml", "text"}


@pytest.mark.parametrize("page", [page for page in PAGES if name_of(page) not in HELD_ELSEWHERE], ids=name_of)
def test_json_and_yaml_are_read_by_the_code_that_they_are_for(page: Path, tmp_path: Path) -> None:
    for block in blocks_of(page):
        if block.language in ("json", "yaml"):
            read_block(block, page, tmp_path)


def read_block(block: Block, page: Path, folder: Path) -> None:
    """Reads a file of the documents, or a section of a task file, as the package reads it."""
    file = folder / (block.title or f"block.{block.language}")
    file.write_text(block.code)
    if block.language == "yaml":
        known = StageTrainingArguments.__dataclass_fields__.keys() | {"text_config", "model_config", "vq_config"}
        assert read_recipe(file).keys() <= known, block
        return
    content = json.loads(block.code)
    if isinstance(content, list):
        assert read_published(str(file))
        return
    whole = json.loads(next(one.code for one in blocks_of(DOCS / "own-task.md") if one.title == "calculating.json"))
    sections = {"source": "labels", "rule": "split", "seconds": "windows"}
    section = next((name for field, name in sections.items() if field in content), None)
    if section is not None:
        whole |= {section: content}
        # windows around events need events
        whole |= {"labels": {"source": "annotations"}} if section == "windows" else {}
        # and these sections have words of their own
        whole["answers"] = {"No": 0, "Yes": 1}
        content = whole
        file.write_text(json.dumps(whole))
    assert load_task(file).question == content["question"], (page, block)


def test_the_mask_of_the_picture_is_the_staircase() -> None:
    draw = load_script(DOCS / "draw_model.py")
    seen = draw.visible_tokens()
    blocks = np.append(np.repeat(np.arange(draw.SECONDS), draw.CHANNELS), draw.SECONDS + np.arange(draw.TEXT_TOKENS))
    np.testing.assert_array_equal(seen, blocks[:, None] >= blocks[None, :])


def load_script(path: Path):
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


# What the pages show is run ----------------------------------------------------------------


@pytest.fixture(scope="module")
def demo_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `make demo` leaves, with models that were never trained."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("demo") / "demo-output"
    simulate_recordings(folder / "recordings", subjects=4)
    parts = folder.with_name("parts")
    text = write_text_model(parts / "text", write_tokenizer(parts / "tokenizer"))
    write_language_model(folder / "base", write_vq(parts / "vq"), text)
    processor = NeuroLMProcessor.from_pretrained(folder / "base")
    processor.feature_extractor.window_seconds = 4  # as the demo's
    processor.save_pretrained(folder / "base")
    shutil.copytree(folder / "base", folder / "model")
    model = NeuroLMForCausalLM.from_pretrained(folder / "base")
    model.config.update({"stage": "instruction-tuned", "tasks": [load_task("Workload").config_entry()]})
    model.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def clone(demo_output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of the repository after `make demo`, in which a reader works, with golden checkpoints for LaBraM's."""
    for name in ("scripts", "recipes", "configs", "space"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("labram-base", "labram-finetuned", "vqnsp"):
        (tmp_path / f"{name}.pth").symlink_to(ROOT / f"tests/parity/labram/{name}.pth")
    shutil.copytree(demo_output, tmp_path / "demo-output")
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Some of what a page prints on its way.
PRINTED = {
    "quickstart.md": (
        "0 to 4 s: ",
        "Workload | Question: Is this EEG segment of high workload? | ['No', 'Yes']",
        "19 kept: FP1",
        "torch.Size([16, 76])",
        "60-64 s: ",
    ),
    "recordings.md": ("Fc5. -> FC5", "['FC5', 'T3', 'FP1', 'C3-P3', None]"),
    "classifiers.md": (
        "its features, logistic regression",
        "difference: classifier less baseline",
        "{0: 'No', 1: 'Yes'} torch.Size([16, 2])",
    ),
    "model.md": ("torch.Size([15, 76, 200])", "[SEP]Question: "),
    "own-task.md": ("{'train': 124, 'validation': 62, 'test': 62}",),
    "command-line.md": ("(16, 4, 19)",),
    "evaluation.md": ("balanced accuracy", "difference: model less head", "'roc_auc': 0.75"),
}
SHOWING = [
    pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] if runs_commands(page) else [])
    for page in PAGES
    if name_of(page) not in HELD_ELSEWHERE | {"hub.md", "space.md"}
    and {"python", "console"} & {block.language for block in blocks_of(page)}
]


@pytest.mark.parametrize("page", SHOWING)
def test_a_page_runs_from_top_to_bottom(page: Path, clone: Path) -> None:
    printed = follow(page, clone)
    for words in PRINTED.get(name_of(page), ()):
        assert words in printed


def follow(page: Path, folder: Path) -> str:
    """Does what a page says, in a clone; returns what is printed on the way."""
    namespace: dict[str, object] = {}
    printed = ""
    for block in blocks_of(page):
        if block.title:
            (folder / block.title).write_text(block.code)
        elif block.language == "python":
            printed += run_python(block, page, namespace)
        elif block.language == "console":
            for command in commands_of(block):
                # the golden checkpoints have no GPT-2 vocabulary, and the stand-in for the Hub knows one user
                command = command.replace("--text-tokenizer gpt2", "--text-tokenizer none").replace(
                    " me/", f" {USER}/"
                )
                printed += run_command(command, folder)
    return printed


@pytest.mark.slow
def test_the_page_of_the_hub_runs_beside_a_stand_in(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the golden checkpoints for the authors' files."""
    for name in ("VQ", "NeuroLM-base"):
        shutil.copy(ROOT / f"tests/parity/{name}.pt", clone / f"{name.replace('base', 'B')}.pt")
    with hub_server(clone / "hub") as hub:
        for name, value in {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}.items():
            monkeypatch.setenv(name, value)
        printed = follow(DOCS / "hub.md", clone)
        assert "instruction-tuned ['Workload']" in printed
        assert {"config.json", "model.safetensors", "README.md"} <= hub.files(f"{USER}/neurolm-workload").keys()
    assert (clone / "neurolm-b/config.json").is_file()


@pytest.mark.slow
def test_the_space_starts_as_its_page_says(clone: Path) -> None:
    (command,) = [one for block in blocks_of(DOCS / "space.md") for one in commands_of(block)]
    setting, _, rest = command.partition(" ")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        **dict([setting.split("=")]),
        "PYTHONPATH": str(ROOT),
        "GRADIO_SERVER_PORT": str(port),
    }
    with subprocess.Popen(program(rest), cwd=clone, env=environment) as serving:
        try:
            page = wait_for(f"http://127.0.0.1:{port}/", serving)
        finally:
            serving.terminate()
    assert "Ask an EEG recording" in page


def wait_for(address: str, serving: subprocess.Popen) -> str:
    """The page at an address, as soon as the process serves it."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert serving.poll() is None, "the Space ended"
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            time.sleep(1)
    raise AssertionError(f"nothing is served at {address}")
