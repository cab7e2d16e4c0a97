"""The figures: what they show of the arrays that they are given."""

import re
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

from neurolm_hf import figures


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def drawn(axis, label):
    """The y values of the line of that label."""
    return next(line for line in axis.get_lines() if line.get_label() == label).get_ydata()


def test_reconstruction_draws_four_channels_spread_over_the_montage(rng):
    signal = rng.normal(size=(7, 400))
    names = [f"C{i}" for i in range(7)]
    axes = figures.plot_reconstruction(signal, signal, names).axes
    assert [axis.get_title(loc="left") for axis in axes] == [f"C{i} (r = 1.00)" for i in (0, 2, 4, 6)]
    np.testing.assert_array_equal(drawn(axes[1], "Signal"), signal[2])
    np.testing.assert_array_equal(drawn(axes[1], "Reconstruction"), signal[2])
    assert axes[-1].get_xlabel() == "Time (s)"
    assert axes[-1].get_xlim() == (0, 2)  # 400 samples at 200 Hz


def test_reconstruction_of_a_collapsed_model_has_no_correlation(rng):
    axes = figures.plot_reconstruction(rng.normal(size=(1, 200)), np.zeros((1, 200)), ["CZ"]).axes
    assert axes[0].get_title(loc="left") == "CZ (r = nan)"


@pytest.mark.parametrize(
    ("shape", "names", "message"),
    [((2, 100), ["A", "B"], "differ in shape"), ((2, 200), ["A"], "1 channel names for 2 rows")],
)
def test_reconstruction_refuses_what_does_not_fit(shape, names, message):
    with pytest.raises(ValueError, match=message):
        figures.plot_reconstruction(np.zeros((2, 200)), np.zeros(shape), names)


def test_amplitudes_are_drawn_by_channel_over_frequency(rng):
    target, predicted = rng.normal(size=(2, 7, 101))
    axes = figures.plot_amplitudes(target, predicted, [f"C{i}" for i in range(7)]).axes
    assert [axis.get_title(loc="left")[:2] for axis in axes] == ["C0", "C2", "C4", "C6"]
    np.testing.assert_array_equal(drawn(axes[2], "Target"), target[4])
    np.testing.assert_array_equal(drawn(axes[2], "Prediction"), predicted[4])
    assert axes[-1].get_xlabel() == "Frequency (Hz)"
    assert axes[-1].get_xlim() == (0, 100)
    with pytest.raises(ValueError, match="1 channel names for 7 rows of target"):
        figures.plot_amplitudes(target, predicted, ["C0"])


def test_spectra_are_means_in_their_units(rng):
    target, predicted = rng.normal(size=(30, 100)), rng.normal(size=(30, 100))
    frequencies = np.arange(0, 100, 0.25)
    power = {name: level * np.ones((5, frequencies.size)) for name, level in (("Rest", 10.0), ("Arithmetic", 0.1))}
    amplitude, conditions = figures.plot_spectra(target, predicted, power, frequencies).axes
    np.testing.assert_allclose(drawn(amplitude, "Target"), target.mean(axis=0))
    np.testing.assert_allclose(drawn(amplitude, "Predicted"), predicted.mean(axis=0))
    np.testing.assert_allclose(drawn(conditions, "Rest (5 windows)"), 10)
    np.testing.assert_allclose(drawn(conditions, "Arithmetic (5 windows)"), -10)
    assert conditions.get_ylabel() == "Power (dB re 1 µV²/Hz)"


def test_codebook_title_counts_used_codes_and_perplexity():
    even = figures.plot_codebook_usage([5] * 8 + [0] * 24)
    assert even.axes[0].get_title(loc="left") == "8 of 32 codes used, perplexity 8.0"
    collapsed = figures.plot_codebook_usage([0, 700, 0, 0])
    assert collapsed.axes[0].get_title(loc="left") == "1 of 4 codes used, perplexity 1.0"
    with pytest.raises(ValueError, match="not all of them zero"):
        figures.plot_codebook_usage([0, 0])


def test_losses_get_a_panel_a_stage_and_a_logarithmic_scale_only_when_far_apart():
    figure = figures.plot_losses(
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
    (axis,) = figures.plot_losses({"Tokenizer": {"loss": ([10], [1.0])}}).axes
    assert axis.get_lines()[0].get_marker() == "o"


def test_scores_stand_below_one_another_with_their_intervals():
    rows = [("ours", 0.7, (0.6, 0.8)), ("baseline", 0.65, (0.5, 0.75))]
    (axis,) = figures.plot_scores(rows, "AUROC", chance=0.5).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["ours", "baseline"]
    lines = [(list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()]
    assert lines[:2] == [([0.6, 0.8], [2, 2]), ([0.7], [2])]
    assert lines[2:4] == [([0.5, 0.75], [1, 1]), ([0.65], [1])]
    assert lines[4][0] == [0.5, 0.5]
    with pytest.raises(ValueError, match="no score"):
        figures.plot_scores([], "AUROC", chance=0.5)


def test_confusion_has_counts_and_percent_of_each_row():
    axis = figures.plot_confusion([[3, 1], [0, 0]], ["No", "Yes"]).axes[0]
    assert [text.get_text() for text in axis.texts] == ["3\n75 %", "1\n25 %", "0\n0 %", "0\n0 %"]
    with pytest.raises(ValueError, match="does not fit 3 answers"):
        figures.plot_confusion(np.eye(2), ["A", "B", "C"])


def test_probabilities_are_split_by_truth():
    figure = figures.plot_probabilities([0.1, 0.2, 0.9], [False, False, True], ("No", "Yes"), threshold=0.4)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["Truth: No (2 windows)", "Truth: Yes (1 windows)"]
    assert [sum(patch.get_height() for patch in axis.patches) for axis in figure.axes] == [2, 1]
    assert list(figure.axes[0].get_lines()[0].get_xdata()) == [0.4, 0.4]


def test_drawing_leaves_the_users_style_alone():
    before = dict(matplotlib.rcParams)
    figures.plot_codebook_usage([1, 2])
    assert dict(matplotlib.rcParams) == before


def test_matplotlib_is_imported_only_to_draw():
    code = "import sys, neurolm_hf.figures; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_matplotlib_the_error_tells_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=re.escape('pip install "neurolm_hf[demo]"')):
        figures.plot_codebook_usage([1, 2])
