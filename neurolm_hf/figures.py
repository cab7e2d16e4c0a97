"""Figures from plain arrays: one style, one palette, and what trainings and evaluations are drawn as.

Every `plot_*` function takes arrays and returns a matplotlib figure; nothing here reads a model or a recording, and no
global state of matplotlib is changed.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

P = ParamSpec("P")
Drawn = TypeVar("Drawn")

# Okabe and Ito's palette: told apart with every common kind of colour blindness.
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
LINE_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK)
LINE_STYLES = ("-", "--", "-.", ":")

WIDTH_INCHES = 6.4  # with 11-point letters: still readable on a phone's screen
STYLE: "dict[RcKeyType, Any]" = {
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "legend.fontsize": 10,
    "figure.dpi": 160,
}

TRACES = 4
POWER_RANGE_HZ = (1.0, 45.0)  # below the notch and the low-pass edge, where the brain's rhythms are
LOG_SCALE_FROM = 30.0  # ratio of the largest to the smallest loss


def drawing(plot: Callable[P, Drawn]) -> Callable[P, Drawn]:
    """Run a plot function in this report's style, and say what to install where matplotlib is missing."""

    @functools.wraps(plot)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Drawn:
        try:
            import matplotlib
        except ImportError as error:
            raise ImportError('Figures need matplotlib: pip install "neurolm_hf[demo]"') from error
        with matplotlib.rc_context(STYLE):
            return plot(*args, **kwargs)

    return styled


@drawing
def plot_reconstruction(
    signal: ArrayLike, reconstruction: ArrayLike, ch_names: Sequence[str], sampling_rate: float = 200.0
) -> "Figure":
    """Draw one window and its reconstruction, for at most four channels spread evenly over the montage.

    Args:
        signal, reconstruction: (channels, samples), z-scored.
        ch_names: names of the rows.
        sampling_rate: in Hz.
    """
    signal, reconstruction = matrix(signal, "signal"), matrix(reconstruction, "reconstruction")
    seconds = np.arange(signal.shape[1]) / sampling_rate
    figure, axes = _pairs(seconds, ("Signal", signal), ("Reconstruction", reconstruction), ch_names)
    axes[-1].set_xlabel("Time (s)")
    axes[-1].set_xlim(0, signal.shape[1] / sampling_rate)
    figure.supylabel("Signal (z-score)", fontsize=11)
    return figure


@drawing
def plot_amplitudes(target: ArrayLike, predicted: ArrayLike, ch_names: Sequence[str]) -> "Figure":
    """Draw the amplitude spectra of a window and their prediction, for at most four channels as in a reconstruction.

    Args:
        target, predicted: (channels, bins) amplitudes, z-scored; bin i is i Hz.
        ch_names: names of the rows.
    """
    target, predicted = matrix(target, "target"), matrix(predicted, "predicted")
    hertz = np.arange(target.shape[1])
    figure, axes = _pairs(hertz, ("Target", target), ("Prediction", predicted), ch_names)
    axes[-1].set_xlabel("Frequency (Hz)")
    axes[-1].set_xlim(0, hertz[-1])
    figure.supylabel("Amplitude (z-score)", fontsize=11)
    return figure


def _pairs(
    places: NDArray, given: tuple[str, NDArray], drawn: tuple[str, NDArray], ch_names: Sequence[str]
) -> tuple["Figure", Sequence[Any]]:
    """A panel a channel with two named curves (channels, places), for at most four channels spread evenly."""
    (given_name, given_rows), (drawn_name, drawn_rows) = given, drawn
    _same_shape(given_rows, drawn_rows)
    if len(ch_names) != len(given_rows):
        raise ValueError(f"{len(ch_names)} channel names for {len(given_rows)} rows of {given_name.lower()}")
    rows = np.linspace(0, len(given_rows) - 1, min(TRACES, len(given_rows))).round().astype(int)
    figure, axes = panels(len(rows), height=1.35, top=0.6, shared=True)
    for axis, row in zip(axes, rows, strict=True):
        axis.plot(places, given_rows[row], color=BLACK, linewidth=0.8, label=given_name)
        axis.plot(places, drawn_rows[row], color=VERMILION, linewidth=1.3, label=drawn_name)
        axis.set_title(f"{label(ch_names[row])} (r = {_correlation(given_rows[row], drawn_rows[row]):.2f})")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure, axes


@drawing
def plot_spectra(
    target: ArrayLike, predicted: ArrayLike, power: Mapping[str, ArrayLike], power_frequencies: ArrayLike
) -> "Figure":
    """Draw the tokenizer's spectral target against its prediction, and the power spectra of the conditions.

    Args:
        target, predicted: (patches, bins) amplitudes, z-scored; bin i is i Hz.
        power: condition -> (windows, frequencies), in µV²/Hz.
        power_frequencies: the frequencies of `power`, in Hz.
    """
    target, predicted = matrix(target, "target"), matrix(predicted, "predicted")
    _same_shape(target, predicted)
    figure, (amplitude_axis, power_axis) = panels(2, height=2.6, top=0.2)

    hertz = np.arange(target.shape[1])
    amplitude_axis.plot(hertz, target.mean(axis=0), color=BLACK, linewidth=1.2, label="Target")
    amplitude_axis.plot(hertz, predicted.mean(axis=0), "--", color=VERMILION, linewidth=1.6, label="Predicted")
    amplitude_axis.set(
        title=f"Amplitude spectrum, mean over {len(target):,} patches",
        xlabel="Frequency (Hz)",
        ylabel="Amplitude (z-score)",
        xlim=(0, hertz[-1]),
    )
    amplitude_axis.legend()
    _draw_power(power_axis, power, np.asarray(power_frequencies, dtype=float))
    return figure


@drawing
def plot_codebook_usage(counts: ArrayLike) -> "Figure":
    """Draw how often each code was used, most used first; the title tells the used codes and the perplexity.

    Args:
        counts: (codes,) number of patches given each code.
    """
    usage = np.sort(np.asarray(counts, dtype=float))[::-1]
    if usage.ndim != 1 or usage.sum() <= 0:
        raise ValueError("counts must be one number a code, and not all of them zero")
    used, even = int((usage > 0).sum()), usage.sum() / len(usage)

    figure, (axis,) = panels(1, height=3.2)
    axis.fill_between(np.arange(used + 1), np.append(usage[:used], usage[used - 1]), step="post", color=SKY)
    axis.axhline(even, color=VERMILION, linestyle="--", label=f"Even use ({even:,.1f} patches a code)")
    if used < len(usage):
        axis.axvspan(used, len(usage), facecolor="none", edgecolor="#bbbbbb", hatch="//", linewidth=0, label="Unused")
    axis.set_yscale("log")
    axis.set(
        title=f"{used:,} of {len(usage):,} codes used, perplexity {perplexity(usage):,.1f}",
        xlabel="Codes, most used first",
        ylabel="Patches (log scale)",
        xlim=(0, len(usage)),
        ylim=(min(0.8, even / 2), 1.5 * max(usage[0], even)),
    )
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


@drawing
def plot_losses(stages: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]]) -> "Figure":
    """Draw the losses of each training stage in a panel of its own.

    Args:
        stages: stage -> loss -> (steps, values). A panel whose losses lie far apart gets a logarithmic scale.
    """
    if not stages:
        raise ValueError("there is no stage to draw")
    figure, axes = panels(len(stages), height=2.4)
    for axis, (stage, losses) in zip(axes, stages.items(), strict=True):
        _draw_losses(axis, losses)
        axis.set(title=stage, xlabel="Step")
    return figure


@drawing
def plot_scores(rows: Sequence[tuple[str, float, Sequence[float]]], score: str, chance: float) -> "Figure":
    """Draw scores with their intervals, one below the other.

    Args:
        rows: name, score, and the low and high end of its interval.
        score: what the scores are called.
        chance: the score of guessing, drawn as a line.
    """
    if not rows:
        raise ValueError("there is no score to draw")
    figure, (axis,) = panels(1, height=0.8 + 0.32 * len(rows))
    places = range(len(rows), 0, -1)
    for place, (_, value, (low, high)) in zip(places, rows, strict=True):
        axis.plot([low, high], [place, place], color=BLUE, linewidth=2)
        axis.plot([value], [place], "o", color=BLUE)
    axis.axvline(chance, color=BLACK, linestyle=":")
    axis.set_yticks(list(places), [label(name, 40) for name, _, _ in rows])
    axis.set(xlabel=f"{score} (dotted: chance)", ylim=(0.3, len(rows) + 0.7))
    axis.locator_params(axis="x", nbins=6)
    return figure


@drawing
def plot_confusion(confusion: ArrayLike, answers: Sequence[str]) -> "Figure":
    """Draw a confusion matrix with counts and percent of each row.

    Args:
        confusion: (answers, answers) counts; rows are the truth, columns the model's answers.
        answers: names of rows and columns.
    """
    counts = matrix(confusion, "confusion")
    if counts.shape != (len(answers), len(answers)):
        raise ValueError(f"a confusion matrix of shape {counts.shape} does not fit {len(answers)} answers")
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    figure, (axis,) = panels(1, height=1.2 + 0.8 * len(answers))
    axis.grid(False)
    image = axis.imshow(percent, cmap="cividis_r", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(percent):
        text = f"{counts[row, column]:,.0f}\n{value:.0f} %"
        axis.text(column, row, text, ha="center", va="center", color="white" if value > 55 else "black")
    axis.set_xticks(range(len(answers)), [label(answer) for answer in answers])
    axis.set_yticks(range(len(answers)), [label(answer) for answer in answers])
    axis.set(xlabel="The model's answer", ylabel="Truth")
    figure.colorbar(image, label="Percent of the true condition", ticks=range(0, 101, 25))
    return figure


@drawing
def plot_probabilities(
    probabilities: ArrayLike, is_positive: ArrayLike, answers: tuple[str, str], threshold: float = 0.5
) -> "Figure":
    """Draw how the probability of the positive answer is distributed in each condition.

    Args:
        probabilities: (windows,) of the positive answer.
        is_positive: (windows,) the truth.
        answers: names of the negative and of the positive answer.
        threshold: above it the answer is the positive one.
    """
    values, truth = np.asarray(probabilities, dtype=float), np.asarray(is_positive, dtype=bool)
    _same_shape(values, truth)

    figure, axes = panels(2, height=1.8, top=0.3, shared=True)
    for axis, name, group, colour in zip(axes, answers, (values[~truth], values[truth]), (BLUE, ORANGE), strict=True):
        axis.hist(group, np.linspace(0, 1, 21).tolist(), color=colour, edgecolor="white")
        axis.axvline(threshold, color=BLACK, linestyle="--", linewidth=1.2, label=f"Threshold ({threshold:.2f})")
        axis.set(title=f"Truth: {label(name)} ({len(group):,} windows)", ylabel="Windows", xlim=(0, 1))
    axes[-1].set_xlabel(f"Probability of “{label(answers[1])}”")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right")
    return figure


# Drawing --------------------------------------------------------------------------------------------


def panels(rows: int, *, height: float, top: float = 0.0, shared: bool = False) -> "tuple[Figure, list[Axes]]":
    """A figure of panels below one another, each `height` inches high, and `top` inches more for a legend."""
    from matplotlib.figure import Figure  # not pyplot: no backend is chosen, no figure is kept alive

    figure = Figure(figsize=(WIDTH_INCHES, rows * height + top), layout="constrained")
    return figure, list(figure.subplots(rows, 1, squeeze=False, sharex=shared, sharey=shared)[:, 0])


def _draw_power(axis: "Axes", power: Mapping[str, ArrayLike], frequencies: NDArray[np.floating]) -> None:
    low, high = POWER_RANGE_HZ
    shown = (frequencies >= low) & (frequencies <= high)
    for number, (condition, values) in enumerate(power.items()):
        colour, style = line_style(number)
        watts = matrix(values, condition)
        decibel = 10 * np.log10(np.maximum(watts[:, shown], np.finfo(float).tiny))
        mean, error = decibel.mean(axis=0), decibel.std(axis=0) / math.sqrt(len(decibel))
        axis.fill_between(frequencies[shown], mean - error, mean + error, color=colour, alpha=0.25, linewidth=0)
        axis.plot(frequencies[shown], mean, style, color=colour, label=f"{condition} ({len(decibel):,} windows)")
    axis.set(
        title="Power spectrum of the conditions, mean over windows",
        xlabel="Frequency (Hz)",
        ylabel="Power (dB re 1 µV²/Hz)",
        xlim=(0, high),
    )
    axis.legend()


def _draw_losses(axis: "Axes", losses: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
    seen: list[NDArray[np.floating]] = []
    for number, (name, (steps, values)) in enumerate(losses.items()):
        steps, values = np.asarray(steps, dtype=float), np.asarray(values, dtype=float)
        _same_shape(steps, values)
        colour, style = line_style(number)
        marker = "o" if len(steps) < 10 else ""  # a single point is no line
        axis.plot(steps, values, style, color=colour, marker=marker, markersize=3, linewidth=1.4, label=name)
        seen.append(values[np.isfinite(values)])
    pooled = np.concatenate(seen) if seen else np.empty(0)
    wide = pooled.size > 0 and pooled.min() > 0 and pooled.max() / pooled.min() > LOG_SCALE_FROM
    axis.set_yscale("log" if wide else "linear")
    axis.set_ylabel("Loss (log scale)" if wide else "Loss")
    if losses:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def line_style(number: int) -> tuple[str, str]:
    """Colour and dashes of the line of that number: two lines differ in more than their colour."""
    return LINE_COLOURS[number % len(LINE_COLOURS)], LINE_STYLES[number % len(LINE_STYLES)]


def label(text: str, at_most: int = 24) -> str:
    """A name from outside as a figure can show it: one line of bounded length, in which dollars are no mathematics."""
    line = " ".join(text.split())
    return (line if len(line) <= at_most else line[: at_most - 1] + "…").replace("$", r"\$")


def matrix(values: ArrayLike, name: str) -> NDArray[np.floating]:
    """Values as a matrix of floats; a ValueError with this name where they are none, or where it is empty."""
    array = np.asarray(values, dtype=float)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"{name} must be a matrix with something in it, but has the shape {array.shape}")
    return array


def _same_shape(first: NDArray[np.generic], second: NDArray[np.generic]) -> None:
    if first.shape != second.shape:
        raise ValueError(f"arrays to be drawn against each other differ in shape: {first.shape} and {second.shape}")


def _correlation(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    if first.std() == 0 or second.std() == 0:
        return math.nan
    return float(np.corrcoef(first, second)[0, 1])


def perplexity(counts: NDArray[np.floating]) -> float:
    """The number of codes that, used evenly, would be as hard to guess as these (codes,) counts."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))
