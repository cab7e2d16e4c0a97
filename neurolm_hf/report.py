"""The demo's report: the closing table, and one HTML page that holds everything."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

from .page import Html, paragraph, picture, section, table, write_page


if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    sections = [
        _results_section(metrics),
        *(_figure_section(directory, name, figure) for name, figure in figures.items()),
        _split_section(metrics),
        section("Configuration", table(("Setting", "Value"), _flat(configuration))),
        section("Provenance", table(("What", "Value"), _flat(provenance))),
    ]
    return write_page(directory, title, sections)


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


# Sections of the page


def _results_section(metrics: Metrics) -> Html:
    scores = table(RESULTS_HEADER, _score_rows(metrics), numbers=True, bold=1)
    return section("Results", scores, paragraph(" ".join(_notes(metrics))))


def _split_section(metrics: Metrics) -> Html:
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
    return section("Split", table(header, rows), paragraph(verdict, kind="warning" if shared else ""))


def _figure_section(directory: str | Path, name: str, figure: "Figure") -> Html:
    heading = name.replace("_", " ").replace("-", " ").capitalize()
    caption = CAPTIONS.get(name, "")
    return section(heading, picture(directory, name, figure, f"{heading}. {caption}".strip(), caption))
