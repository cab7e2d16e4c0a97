"""The demo's report: what the closing table says, and that the page tells all of it."""

import base64
import re
from pathlib import Path

import pytest

from neurolm_hf import figures, report
from neurolm_hf.report import Metrics


SIGNATURE_OF_PNG = b"\x89PNG"


@pytest.fixture
def metrics() -> Metrics:
    return {
        "balanced_accuracy": 0.7972,
        "auroc": 0.8816,
        "baseline_balanced_accuracy": 0.81,
        "baseline_auroc": 0.871,
        "chance": 0.5,
        "split": {"train": ["S1", "S2", "S3"], "test": ["S4", "S5"]},
        "counts": {"train": {"No": 87, "Yes": 87}, "test": {"No": 58, "Yes": 57}},
    }


def test_results_table(metrics):
    assert report.results_table(metrics).splitlines() == [
        "--------------------------------------------",
        "Held-out subjects  NeuroLM  Baseline  Chance",
        "--------------------------------------------",
        "Balanced accuracy    0.797     0.810   0.500",
        "AUROC                0.882     0.871   0.500",
        "--------------------------------------------",
        "Tested on 115 windows (58 No, 57 Yes) of 2 subjects.",
        "Baseline: log band-power with logistic regression, on the same windows and split.",
    ]


def test_results_table_shows_intervals_and_undefined_scores(metrics):
    metrics["intervals"] = {"balanced_accuracy": (0.7, 0.9)}
    metrics["auroc"], metrics["baseline_auroc"] = None, float("nan")
    table = report.results_table(metrics)
    assert "0.797 [0.70, 0.90]" in table
    assert re.search(r"AUROC +n/a +n/a +0.500", table)
    assert table.endswith("95% intervals over subjects.")


def write(directory: Path, metrics: Metrics, **changes) -> str:
    """Write a small report with the changes given and read its page."""
    arguments = {"figures": {}, "title": "Demo", "configuration": {}, "provenance": {}, **changes}
    return report.write_report(directory, metrics, **arguments).read_text(encoding="utf-8")


def test_page_needs_no_other_file(tmp_path, metrics):
    drawn = {"codebook_usage": figures.plot_codebook_usage([1, 2]), "extra-1": figures.plot_confusion([[1]], ["No"])}
    page = write(tmp_path / "new" / "report", metrics, figures=drawn)
    pictures = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert pictures == [(tmp_path / "new" / "report" / f"{name}.png").read_bytes() for name in drawn]
    assert all(picture.startswith(SIGNATURE_OF_PNG) for picture in pictures)
    assert len(re.findall(r"\ssrc=", page)) == len(drawn)
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert report.CAPTIONS["codebook_usage"] in page


def test_page_tells_results_split_and_settings(tmp_path, metrics):
    configuration = {"training": {"steps": [1000, 300], "learning_rate": 1.5e-3}, "codes": 512}
    page = write(tmp_path, metrics, configuration=configuration, provenance={"seed": 0})
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    for words in (
        "Balanced accuracy 0.797 0.810 0.500",
        "AUROC 0.882 0.871 0.500",
        "train 87 87 3: S1, S2, S3",
        "test 58 57 2: S4, S5",
        "No subject is in more than one part.",
        "training.steps 1000, 300",
        "training.learning_rate 0.0015",
        "codes 512",
        "seed 0",
    ):
        assert words in text


def test_page_warns_of_subjects_in_two_parts(tmp_path, metrics):
    metrics["split"]["test"].append("S1")
    assert "<p class=warning>In more than one part: S1.</p>" in write(tmp_path, metrics)


def test_page_escapes_everything_from_outside(tmp_path, metrics):
    bad, good = "<img src=x onerror='a'>&{style}", "&lt;img src=x onerror=&#x27;a&#x27;&gt;&amp;{style}"
    metrics["split"] = {"test": [bad], bad: [bad]}
    metrics["counts"] = {"test": {bad: 1}}
    page = write(tmp_path, metrics, title=bad, configuration={bad: bad}, provenance={bad: [bad]})
    assert bad not in page
    # title, description and heading, both tables' cells, split: two parts and their subjects, header, note, warning
    assert page.count(good) == 3 + 4 + 3 + 3
    assert "<img" not in page


@pytest.mark.parametrize("name", ["../escape", "a/b", "", "-flag", "a b"])
def test_figure_names_that_are_no_file_names_are_refused(tmp_path, metrics, name):
    with pytest.raises(ValueError, match="figure names become file names"):
        write(tmp_path, metrics, figures={name: figures.plot_codebook_usage([1])})
    assert not list(tmp_path.iterdir())
