"""The report: what the figures show, what the closing table says, and that the page is safe and complete in itself."""

import base64
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from neurolm_hf import report
from neurolm_hf.report import Metrics


SIGNATURE_OF_PNG = b"\x89PNG"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


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


def drawn(axis, label):
    """The y values of the line of that label."""
    return next(line for line in axis.get_lines() if line.get_label() == label).get_ydata()


def test_reconstruction_draws_four_channels_spread_over_the_montage(rng):
    signal = rng.normal(size=(7, 400))
    names = [f"C{i}" for i in range(7)]
    axes = report.plot_reconstruction(signal, signal, names).axes
    assert [axis.get_title(loc="left") for axis in axes] == [f"C{i} (r = 1.00)" for i in (0, 2, 4, 6)]
    np.testing.assert_array_equal(drawn(axes[1], "Signal"), signal[2])
    np.testing.assert_array_equal(drawn(axes[1], "Reconstruction"), signal[2])
    assert axes[-1].get_xlabel() == "Time (s)"
    assert axes[-1].get_xlim() == (0, 2)  # 400 samples at 200 Hz


def test_reconstruction_of_a_collapsed_model_has_no_correlation(rng):
    axes = report.plot_reconstruction(rng.normal(size=(1, 200)), np.zeros((1, 200)), ["CZ"]).axes
    assert axes[0].get_title(loc="left") == "CZ (r = nan)"


@pytest.mark.parametrize(
    ("shape", "names", "message"),
    [((2, 100), ["A", "B"], "differ in shape"), ((2, 200), ["A"], "1 channel names for 2 rows")],
)
def test_reconstruction_refuses_what_does_not_fit(shape, names, message):
    with pytest.raises(ValueError, match=message):
        report.plot_reconstruction(np.zeros((2, 200)), np.zeros(shape), names)


def test_spectra_are_means_in_their_units(rng):
    target, predicted = rng.normal(size=(30, 100)), rng.normal(size=(30, 100))
    frequencies = np.arange(0, 100, 0.25)
    power = {name: level * np.ones((5, frequencies.size)) for name, level in (("Rest", 10.0), ("Arithmetic", 0.1))}
    amplitude, conditions = report.plot_spectra(target, predicted, power, frequencies).axes
    np.testing.assert_allclose(drawn(amplitude, "Target"), target.mean(axis=0))
    np.testing.assert_allclose(drawn(amplitude, "Predicted"), predicted.mean(axis=0))
    np.testing.assert_allclose(drawn(conditions, "Rest (5 windows)"), 10)
    np.testing.assert_allclose(drawn(conditions, "Arithmetic (5 windows)"), -10)
    assert conditions.get_ylabel() == "Power (dB re 1 µV²/Hz)"


def test_codebook_title_counts_used_codes_and_perplexity():
    even = report.plot_codebook_usage([5] * 8 + [0] * 24)
    assert even.axes[0].get_title(loc="left") == "8 of 32 codes used, perplexity 8.0"
    collapsed = report.plot_codebook_usage([0, 700, 0, 0])
    assert collapsed.axes[0].get_title(loc="left") == "1 of 4 codes used, perplexity 1.0"
    with pytest.raises(ValueError, match="not all of them zero"):
        report.plot_codebook_usage([0, 0])


def test_losses_get_a_panel_a_stage_and_a_logarithmic_scale_only_when_far_apart():
    figure = report.plot_losses(
        {
            "Neural tokenizer": {"loss": ([0, 1], [2.0, 1.0]), "commitment_loss": ([0, 1], [0.01, 0.02])},
            "Pre-training": {"eeg_loss": ([0, 1, 2], [6.0, float("nan"), 4.0])},
            "Instruction tuning": {},
        }
    )
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["Neural tokenizer", "Pre-training", "Instruction tuning"]
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "linear", "linear"]
    figure.canvas.draw()


def test_a_loss_logged_once_can_be_seen():
    (axis,) = report.plot_losses({"Tokenizer": {"loss": ([10], [1.0])}}).axes
    assert axis.get_lines()[0].get_marker() == "o"


def test_scores_stand_below_one_another_with_their_intervals():
    rows = [("ours", 0.7, (0.6, 0.8)), ("baseline", 0.65, (0.5, 0.75))]
    (axis,) = report.plot_scores(rows, "AUROC", chance=0.5).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["ours", "baseline"]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()]
    assert lines[:2] == [([0.6, 0.8], [2, 2]), ([0.7], [2])]
    assert lines[2:4] == [([0.5, 0.75], [1, 1]), ([0.65], [1])]
    assert lines[4][0] == [0.5, 0.5]
    with pytest.raises(ValueError, match="no score"):
        report.plot_scores([], "AUROC", chance=0.5)


def test_confusion_has_counts_and_percent_of_each_row():
    axis = report.plot_confusion([[3, 1], [0, 0]], ["No", "Yes"]).axes[0]
    assert [text.get_text() for text in axis.texts] == ["3\n75 %", "1\n25 %", "0\n0 %", "0\n0 %"]
    with pytest.raises(ValueError, match="does not fit 3 answers"):
        report.plot_confusion(np.eye(2), ["A", "B", "C"])


def test_probabilities_are_split_by_truth():
    figure = report.plot_probabilities([0.1, 0.2, 0.9], [False, False, True], ("No", "Yes"), threshold=0.4)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["Truth: No (2 windows)", "Truth: Yes (1 windows)"]
    assert [sum(patch.get_height() for patch in axis.patches) for axis in figure.axes] == [2, 1]
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [0.4, 0.4]


def test_drawing_leaves_the_users_style_alone():
    before = dict(matplotlib.rcParams)
    report.plot_codebook_usage([1, 2])
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, neurolm_hf.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_matplotlib_the_error_tells_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=re.escape('pip install "neurolm_hf[demo]"')):
        report.plot_codebook_usage([1, 2])


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
    figures = {"codebook_usage": report.plot_codebook_usage([1, 2]), "extra-1": report.plot_confusion([[1]], ["No"])}
    page = write(tmp_path / "new" / "report", metrics, figures=figures)
    pictures = [base64.b64decode(data) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', page)]
    assert pictures == [(tmp_path / "new" / "report" / f"{name}.png").read_bytes() for name in figures]
    assert all(picture.startswith(SIGNATURE_OF_PNG) for picture in pictures)
    assert len(re.findall(r"\ssrc=", page)) == len(figures)
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
    # title and heading, both tables' cells, split: two parts and their subjects, header, note, warning
    assert page.count(good) == 2 + 4 + 3 + 3
    assert "<img" not in page


@pytest.mark.parametrize("name", ["../escape", "a/b", "", "-flag", "a b"])
def test_figure_names_that_are_no_file_names_are_refused(tmp_path, metrics, name):
    with pytest.raises(ValueError, match="figure names become file names"):
        write(tmp_path, metrics, figures={name: report.plot_codebook_usage([1])})
    assert not list(tmp_path.iterdir())
