"""The notebooks, run from top to bottom as a reader would after `make demo`."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from documents import ROOT


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# A demo that is small, but whose windows and people are enough to tune on.
SMALL_DEMO = ("--subjects", "8", "--tokenizer-steps", "12", "--pretraining-steps", "6", "--instruction-steps", "6")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_stored_without_outputs_and_says_what_it_needs(path: Path) -> None:
    notebook = read(path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    assert "%pip install" in cells[0].source
    assert "make demo" in cells[0].source
    assert notebook.metadata["kernelspec"]["name"] == "python3"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone after `make demo`."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("scripts", "recipes"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "notebooks").mkdir()
    subprocess.run(
        [sys.executable, "scripts/demo.py", "--output", "demo-output", *SMALL_DEMO],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = read(path)
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(clone / "notebooks")}})
    client.execute()
    text, pictures = printed(notebook)
    if path.stem == "inference":
        assert "19 kept: FP1" in text
        assert "windows, patches, samples of a patch: (16, 76, 200)" in text
        assert "of 512" in text
        assert "0 to 4 s: " in text
        assert pictures == 4
    else:
        assert "validation: 124 windows of subjects" in text
        assert "(19, 800) channels and samples" in text
        assert "balanced accuracy" in text
        assert text.count("mean probability of Yes") == 2
        assert (clone / "notebook-output/adapter/adapter_config.json").is_file()


def read(path: Path) -> Any:
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(path, as_version=4)


def printed(notebook: Any) -> tuple[str, int]:
    """All that was printed or shown as text, and the number of pictures."""
    texts, pictures = [], 0
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts.append(output.get("text", "") + data.get("text/markdown", "") + data.get("text/plain", ""))
            pictures += "image/png" in data
    return "\n".join(texts), pictures
