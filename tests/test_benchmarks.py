"""Every benchmark runs from end to end, as small as it can be made, and prints its figures."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
TINY = ("--size", "tiny", "--repeats", "1")


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
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in re.findall(r"^\|.*\|$", text, re.M)]
    rules = {index for index, row in enumerate(rows) if row[0] == "---"}
    return [row for index, row in enumerate(rows) if not {index, index + 1} & rules]


@pytest.mark.parametrize(
    ("stage", "windows", "ways"),
    [
        pytest.param("tokenizer", 3, 3, marks=pytest.mark.slow),
        pytest.param("pretraining", 3, 4, marks=pytest.mark.slow),
        pytest.param("instruction", 6, 6, marks=pytest.mark.slow),
    ],
)
def test_training(stage: str, windows: int, ways: int) -> None:
    rows = table(output_of("training.py", *TINY, "--stages", stage, "--batch", "1"))
    # the reference's in three ways, padded; each of ours with a mean
    assert len(rows) == 3 + ways * (windows + 1)
    assert rows[0][:2] == ["any, padded", "reference's"]
    assert rows[0][3] == rows[0][4] == rows[0][9] == "1.00"
    assert all(float(row[2]) > 0 and float(row[7]) >= float(row[8]) for row in rows if row[2])


def test_one_way_of_training_beside_the_reference() -> None:
    rows = table(output_of("training.py", *TINY, "--stages", "pretraining", "--batch", "1", "--ways", "ours, cached"))
    assert [row[1] for row in rows] == ["reference's"] + 4 * ["ours, cached"]


def test_answers() -> None:
    rows = table(output_of("answers.py", *TINY, "--batches", "2", "--windows", "2"))
    assert [row[0] for row in rows[:6]] == [row[0] for row in rows[7:]]
    assert {row[2] for row in rows[7:]} == {"2 of 2"}
    assert all(float(row[3]) < 1e-4 for row in rows[7:])


@pytest.mark.slow
def test_growth(tmp_path: Path) -> None:
    picture = tmp_path / "growth.png"
    rows = table(output_of("growth.py", *TINY, "--picture", str(picture)))
    assert [row[0] for row in rows] == ["64", "128", "1", "2", "2", "4"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_padding() -> None:
    assert "geometric mean" in output_of("padding.py", *TINY)


def test_preprocessing() -> None:
    assert "noise, 256 Hz" in output_of("preprocessing.py", "--minutes", "1", "--channels", "2", "--repeats", "1")
