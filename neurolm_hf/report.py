"""The demo's report: figures from plain arrays, the closing table, and one HTML page that holds everything.

Every `plot_*` function takes arrays and returns a matplotlib figure; nothing here reads a model or a recording, and no
global state of matplotlib is changed. `write_report` saves the figures as PNG files and as a self-contained page.
"""

import base64
import functools
import html
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, ParamSpec, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.typing import RcKeyType

P = ParamSpec("P")

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

CAPTIONS = {
    "reconstruction": "One held-out window, z-scored as the tokenizer's target is, and what the tokenizer makes of it "
    "after passing it through its codes.",
    "spectra": "Above: the amplitude spectrum the tokenizer has to predict, and its prediction. Below: the two "
    "conditions as recorded; bands are standard errors over windows.",
    "codebook_usage": "How often each code is used. A perplexity near the number of codes means even use; near one, "
    "that nearly everything falls on one code.",
    "losses": "Training losses of every stage.",
    "confusion_matrix": "Answers on held-out windows: counts, and percent of each true condition.",
    "probabilities": "The probability given to the positive answer on held-out windows, by true condition. Humps that "
    "stand apart but on one side of the threshold mean that the threshold is off, not the ranking.",
}


class Metrics(TypedDict):
    """What the demo measures on held-out subjects, as in `metrics.json`; a score that is undefined is None."""

    balanced_accuracy: float | None
    auroc: float | None
    baseline_balanced_accuracy: float | None
    baseline_auroc: float | None
    chance: float  # of the balanced accuracy: one over the number of answers
    split: dict[str, list[str]]  # part ('train', 'test', ...) -> its subjects
    counts: dict[str, dict[str, int]]  # part -> answer -> number of windows
    intervals: NotRequired[dict[str, Sequence[float]]]  # name of a score above -> low and high end, 95%, over subjects


def _drawing(plot: "Callable[P, Figure]") -> "Callable[P, Figure]":
    """Run a plot function in this report's style, and say what to install where matplotlib is missing."""

    @functools.wraps(plot)
    def styled(*args: P.args, **kwargs: P.kwargs) -> "Figure":
        try:
            import matplotlib
        except ImportError as error:
            raise ImportError('Figures need matplotlib: pip install "neurolm_hf[demo]"') from error
        with matplotlib.rc_context(STYLE):
            return plot(*args, **kwargs)

    return styled


@_drawing
def plot_reconstruction(
    signal: ArrayLike, reconstruction: ArrayLike, ch_names: Sequence[str], sampling_rate: float = 200.0
) -> "Figure":
    """Draw one window and its reconstruction, for at most four channels spread evenly over the montage.

    Args:
        signal, reconstruction: (channels, samples), z-scored.
        ch_names: names of the rows.
        sampling_rate: in Hz.
    """
    signal, reconstruction = _matrix(signal, "signal"), _matrix(reconstruction, "reconstruction")
    _same_shape(signal, reconstruction)
    if len(ch_names) != len(signal):
        raise ValueError(f"{len(ch_names)} channel names for {len(signal)} rows of signal")
    rows = np.linspace(0, len(signal) - 1, min(TRACES, len(signal))).round().astype(int)
    seconds = np.arange(signal.shape[1]) / sampling_rate

    figure, axes = _panels(len(rows), height=1.35, top=0.6, shared=True)
    for axis, row in zip(axes, rows, strict=True):
        axis.plot(seconds, signal[row], color=BLACK, linewidth=0.8, label="Signal")
        axis.plot(seconds, reconstruction[row], color=VERMILION, linewidth=1.3, label="Reconstruction")
        axis.set_title(f"{ch_names[row]} (r = {_correlation(signal[row], reconstruction[row]):.2f})")
    axes[-1].set_xlabel("Time (s)")
    axes[-1].set_xlim(0, signal.shape[1] / sampling_rate)
    figure.supylabel("Signal (z-score)", fontsize=11)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


@_drawing
def plot_spectra(
    target: ArrayLike, predicted: ArrayLike, power: Mapping[str, ArrayLike], power_frequencies: ArrayLike
) -> "Figure":
    """Draw the tokenizer's spectral target against its prediction, and the power spectra of the conditions.

    Args:
        target, predicted: (patches, bins) amplitudes, z-scored; bin i is i Hz.
        power: condition -> (windows, frequencies), in µV²/Hz.
        power_frequencies: the frequencies of `power`, in Hz.
    """
    target, predicted = _matrix(target, "target"), _matrix(predicted, "predicted")
    _same_shape(target, predicted)
    figure, (amplitude_axis, power_axis) = _panels(2, height=2.6, top=0.2)

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


@_drawing
def plot_codebook_usage(counts: ArrayLike) -> "Figure":
    """Draw how often each code was used, most used first; the title tells the used codes and the perplexity.

    Args:
        counts: (codes,) number of patches given each code.
    """
    usage = np.sort(np.asarray(counts, dtype=float))[::-1]
    if usage.ndim != 1 or usage.sum() <= 0:
        raise ValueError("counts must be one number a code, and not all of them zero")
    used, even = int((usage > 0).sum()), usage.sum() / len(usage)

    figure, (axis,) = _panels(1, height=3.2)
    axis.fill_between(np.arange(used + 1), np.append(usage[:used], usage[used - 1]), step="post", color=SKY)
    axis.axhline(even, color=VERMILION, linestyle="--", label=f"Even use ({even:,.1f} patches a code)")
    if used < len(usage):
        axis.axvspan(used, len(usage), facecolor="none", edgecolor="#bbbbbb", hatch="//", linewidth=0, label="Unused")
    axis.set_yscale("log")
    axis.set(
        title=f"{used:,} of {len(usage):,} codes used, perplexity {_perplexity(usage):,.1f}",
        xlabel="Codes, most used first",
        ylabel="Patches (log scale)",
        xlim=(0, len(usage)),
        ylim=(min(0.8, even / 2), 1.5 * max(usage[0], even)),
    )
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


@_drawing
def plot_losses(stages: Mapping[str, Mapping[str, tuple[ArrayLike, ArrayLike]]]) -> "Figure":
    """Draw the losses of each training stage in a panel of its own.

    Args:
        stages: stage -> loss -> (steps, values). A panel whose losses lie far apart gets a logarithmic scale.
    """
    if not stages:
        raise ValueError("there is no stage to draw")
    figure, axes = _panels(len(stages), height=2.4)
    for axis, (stage, losses) in zip(axes, stages.items(), strict=True):
        _draw_losses(axis, losses)
        axis.set(title=stage, xlabel="Step")
    return figure


@_drawing
def plot_scores(rows: Sequence[tuple[str, float, Sequence[float]]], score: str, chance: float) -> "Figure":
    """Draw scores with their intervals, one below the other.

    Args:
        rows: name, score, and the low and high end of its interval.
        score: what the scores are called.
        chance: the score of guessing, drawn as a line.
    """
    if not rows:
        raise ValueError("there is no score to draw")
    figure, (axis,) = _panels(1, height=0.8 + 0.32 * len(rows))
    places = range(len(rows), 0, -1)
    for place, (_, value, (low, high)) in zip(places, rows, strict=True):
        axis.plot([low, high], [place, place], color=BLUE, linewidth=2)
        axis.plot([value], [place], "o", color=BLUE)
    axis.axvline(chance, color=BLACK, linestyle=":")
    axis.set_yticks(list(places), [name for name, _, _ in rows])
    axis.set(xlabel=f"{score} (dotted: chance)", ylim=(0.3, len(rows) + 0.7))
    return figure


@_drawing
def plot_confusion(confusion: ArrayLike, answers: Sequence[str]) -> "Figure":
    """Draw a confusion matrix with counts and percent of each row.

    Args:
        confusion: (answers, answers) counts; rows are the truth, columns the model's answers.
        answers: names of rows and columns.
    """
    counts = _matrix(confusion, "confusion")
    if counts.shape != (len(answers), len(answers)):
        raise ValueError(f"a confusion matrix of shape {counts.shape} does not fit {len(answers)} answers")
    percent = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)

    figure, (axis,) = _panels(1, height=1.2 + 0.8 * len(answers))
    axis.grid(False)
    image = axis.imshow(percent, cmap="cividis_r", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(percent):
        text = f"{counts[row, column]:,.0f}\n{value:.0f} %"
        axis.text(column, row, text, ha="center", va="center", color="white" if value > 55 else "black")
    axis.set_xticks(range(len(answers)), answers)
    axis.set_yticks(range(len(answers)), answers)
    axis.set(xlabel="The model's answer", ylabel="Truth")
    figure.colorbar(image, label="Percent of the true condition", ticks=range(0, 101, 25))
    return figure


@_drawing
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

    figure, axes = _panels(2, height=1.8, top=0.3, shared=True)
    for axis, name, group, colour in zip(axes, answers, (values[~truth], values[truth]), (BLUE, ORANGE), strict=True):
        axis.hist(group, np.linspace(0, 1, 21).tolist(), color=colour, edgecolor="white")
        axis.axvline(threshold, color=BLACK, linestyle="--", linewidth=1.2, label=f"Threshold ({threshold:.2f})")
        axis.set(title=f"Truth: {name} ({len(group):,} windows)", ylabel="Windows", xlim=(0, 1))
    axes[-1].set_xlabel(f"Probability of “{answers[1]}”")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right")
    return figure


def results_table(metrics: Metrics) -> str:
    """Write the closing table: held-out scores beside the plain baseline and chance."""
    rows = [RESULTS_HEADER, *_score_rows(metrics)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    rule = "-" * len(lines[0])
    return "\n".join([rule, lines[0], rule, *lines[1:], rule, *_notes(metrics)])


def write_report(
    directory: str | Path,
    metrics: Metrics,
    figures: "Mapping[str, Figure]",
    *,
    title: str,
    configuration: Mapping[str, object],
    provenance: Mapping[str, object],
) -> Path:
    """Save each figure as `name.png` and all of the report as `index.html`, which needs no other file.

    Args:
        directory: made when it is not there.
        metrics: the scores, the split and the number of windows.
        figures: name -> figure, in the order of the page; names are those of `CAPTIONS`, or any other file name.
        title: heading of the page, as plain text.
        configuration, provenance: anything worth a row in a table; mappings may be nested.

    Returns:
        The path of `index.html`.
    """
    if wrong := [name for name in figures if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name)]:
        raise ValueError(f"figure names become file names and may have letters, digits, - and _ only, not {wrong}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(directory / f"{name}.png")
    sections = [
        _results_section(metrics),
        *(_figure_section(name, directory / f"{name}.png") for name in figures),
        _split_section(metrics),
        _section("Configuration", _table(("Setting", "Value"), _flat(configuration))),
        _section("Provenance", _table(("What", "Value"), _flat(provenance))),
    ]
    page = directory / "index.html"
    page.write_text(PAGE.format(title=html.escape(title), style=CSS, body="\n".join(sections)), encoding="utf-8")
    return page


# Drawing


def _panels(rows: int, *, height: float, top: float = 0.0, shared: bool = False) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure  # not pyplot: no backend is chosen, no figure is kept alive

    figure = Figure(figsize=(WIDTH_INCHES, rows * height + top), layout="constrained")
    return figure, list(figure.subplots(rows, 1, squeeze=False, sharex=shared, sharey=shared)[:, 0])


def _draw_power(axis: "Axes", power: Mapping[str, ArrayLike], frequencies: NDArray[np.floating]) -> None:
    low, high = POWER_RANGE_HZ
    shown = (frequencies >= low) & (frequencies <= high)
    for number, (condition, values) in enumerate(power.items()):
        colour, style = _line(number)
        watts = _matrix(values, condition)
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
        colour, style = _line(number)
        marker = "o" if len(steps) < 10 else ""  # a single point is no line
        axis.plot(steps, values, style, color=colour, marker=marker, markersize=3, linewidth=1.4, label=name)
        seen.append(values[np.isfinite(values)])
    pooled = np.concatenate(seen) if seen else np.empty(0)
    wide = pooled.size > 0 and pooled.min() > 0 and pooled.max() / pooled.min() > LOG_SCALE_FROM
    axis.set_yscale("log" if wide else "linear")
    axis.set_ylabel("Loss (log scale)" if wide else "Loss")
    if losses:
        axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def _line(number: int) -> tuple[str, str]:
    return LINE_COLOURS[number % len(LINE_COLOURS)], LINE_STYLES[number % len(LINE_STYLES)]


def _matrix(values: ArrayLike, name: str) -> NDArray[np.floating]:
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


def _perplexity(counts: NDArray[np.floating]) -> float:
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


# Words and tables

RESULTS_HEADER = ("Held-out subjects", "NeuroLM", "Baseline", "Chance")
BASELINE = "Baseline: log band-power with logistic regression, on the same windows and split."
INTERVALS = "In brackets: 95% intervals over subjects."


def _score_rows(metrics: Metrics) -> list[tuple[str, str, str, str]]:
    intervals = metrics.get("intervals", {})
    accuracies = (
        _score(metrics["balanced_accuracy"], intervals.get("balanced_accuracy")),
        _score(metrics["baseline_balanced_accuracy"], intervals.get("baseline_balanced_accuracy")),
    )
    areas = (
        _score(metrics["auroc"], intervals.get("auroc")),
        _score(metrics["baseline_auroc"], intervals.get("baseline_auroc")),
    )
    return [("Balanced accuracy", *accuracies, _score(metrics["chance"])), ("AUROC", *areas, _score(0.5))]


def _score(value: float | None, interval: Sequence[float] | None = None) -> str:
    if value is None or math.isnan(value):
        return "n/a"
    return f"{value:.3f}" if interval is None else f"{value:.3f} [{interval[0]:.2f}, {interval[1]:.2f}]"


def _notes(metrics: Metrics) -> list[str]:
    answers, subjects = metrics["counts"]["test"], metrics["split"]["test"]
    shares = ", ".join(f"{count:,} {answer}" for answer, count in answers.items())
    tested = f"Tested on {sum(answers.values()):,} windows ({shares}) of {len(subjects):,} subjects."
    return [tested, BASELINE, *([INTERVALS] if metrics.get("intervals") else [])]


def _shared_subjects(split: Mapping[str, Sequence[str]]) -> list[str]:
    return sorted({subject for one, other in combinations(split.values(), 2) for subject in {*one} & {*other}})


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", ", ".join(map(str, value))
        else:
            yield f"{prefix}{key}", str(value)


# The page; whatever comes from outside passes through html.escape, once, here


def _results_section(metrics: Metrics) -> str:
    table = _table(RESULTS_HEADER, _score_rows(metrics), numbers=True)
    return _section("Results", f"{table}<p>{html.escape(' '.join(_notes(metrics)))}</p>")


def _split_section(metrics: Metrics) -> str:
    split, counts = metrics["split"], metrics["counts"]
    answers = list(dict.fromkeys(answer for part in counts.values() for answer in part))
    header = ("Part", *(f"Windows: {answer}" for answer in answers), "Subjects")
    rows = [
        (
            part,
            *(f"{counts.get(part, {}).get(answer, 0):,}" for answer in answers),
            f"{len(names)}: {', '.join(names)}",
        )
        for part, names in split.items()
    ]
    shared = _shared_subjects(split)
    verdict = f"In more than one part: {', '.join(shared)}." if shared else "No subject is in more than one part."
    return _section(
        "Split", f"{_table(header, rows)}<p{' class=warning' if shared else ''}>{html.escape(verdict)}</p>"
    )


def _figure_section(name: str, picture: Path) -> str:
    heading = name.replace("_", " ").replace("-", " ").capitalize()
    caption = html.escape(CAPTIONS.get(name, ""))
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    image = f'<img alt="{html.escape(heading)}" src="data:image/png;base64,{data}">'
    return _section(heading, f"<figure>{image}<figcaption>{caption}</figcaption></figure>")


def _section(heading: str, body: str) -> str:
    return f"<section><h2>{html.escape(heading)}</h2>{body}</section>"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    head = "".join(f"<th scope=col>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr><th scope=row>{html.escape(name)}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
        for name, *cells in rows
    )
    kind = " class=numbers" if numbers else ""
    return f"<div class=scroll><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


CSS = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 46rem; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; color: #1a1a1a;
  background: #fff; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
thead th { border-bottom: 2px solid #555; overflow-wrap: normal; } tbody th { font-weight: normal; }
.numbers td, .numbers thead th + th { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.numbers td:nth-child(2) { font-weight: bold; }
figure { margin: 0; } img { max-width: 100%; height: auto; } figcaption, p { color: #444; font-size: .95rem; }
.warning { color: #b03a00; font-weight: bold; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; } img { max-height: 11cm; } }
"""
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
