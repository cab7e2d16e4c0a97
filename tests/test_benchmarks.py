"""Every benchmark runs from end to end, as small as it can be made, and prints its figures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
TINY = ["--size", "tiny", "--repeats", "1"]


def output_of(script: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / script, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def table(text: str) -> list[list[str]]:
    """Cells of the lines of all Markdown tables, their headers left out."""
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in re.findall(r"^\|.*", text, re.M)]
    ruled = [index for index, row in enumerate(rows) if row[0] == "---"]
    return [row for index, row in enumerate(rows) if index not in ruled and index + 1 not in ruled]


@pytest.mark.parametrize(("stage", "ways"), [("tokenizer", 4), ("pretraining", 5), ("instruction", 7)])
def test_training(stage: str, ways: int) -> None:
    rows = table(output_of("training.py", *TINY, "--stages", stage, "--batch", "1"))
    windows = 6 if stage == "instruction" else 3
    # two ways of the reference, with one window each; a mean for each of ours
    assert len(rows) == 2 + (ways - 2) * (windows + 1)
    assert rows[0][:2] == ["any, padded", "reference's"]
    assert all(float(row[2]) > 0 and float(row[4]) >= 0 for row in rows if row[2])


def test_answers() -> None:
    rows = table(output_of("answers.py", *TINY, "--batches", "2", "--windows", "2"))
    assert [row[0] for row in rows[:6]] == [row[0] for row in rows[7:]]
    assert {row[2] for row in rows[7:]} == {"2 of 2"}
    assert all(float(row[3]) < 1e-4 for row in rows[7:])


def test_growth(tmp_path: Path) -> None:
    picture = tmp_path / "growth.png"
    rows = table(output_of("growth.py", *TINY, "--picture", str(picture)))
    assert [row[0] for row in rows] == ["64", "128", "1", "2", "2", "4"]
    assert picture.read_bytes().startswith(b"\x89PNG")
