"""Whether a prepared set is the one that published figures are of, as far as a prepared set can tell."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .processing_neurolm import EEGFeatureExtractor
from .tasks import Task, load_task


# Of all parts of a task together, as the NeuroLM paper counts them (arXiv 2409.00101).
PUBLISHED_WINDOWS = {
    "TUAB": 409455,
    "TUEV": 112491,
    "SEED": 38475,
    "HMC": 137243,
    "Workload": 2088,
    "TUSL": 245,
}


@dataclass(frozen=True)
class Protocol:
    """How the windows that are asked about compare with those of the publication.

    Attributes:
        departures: in what they differ from them, each in words. None: they are the published ones as far as the set
            can tell.
        windows, subjects: of the whole prepared set, all parts together.
        published_windows: how many the publication has; None where that is not known.
    """

    departures: list[str]
    windows: int
    subjects: int
    published_windows: int | None

    def __str__(self) -> str:
        here = f"The whole set has {self.windows:,} windows of {self.subjects} subjects"
        there = "the publication's number is not known"
        if self.published_windows is not None:
            there = f"the publication has {self.published_windows:,} windows"
        if not self.departures:
            return (
                "The published protocol, as far as the set can tell: its test windows, its split and recipe, no "
                f"recording that failed. {here}; {there}."
            )
        numbers = here if self.published_windows is None else f"{here}; {there}"
        return f"Not the published protocol: {'; '.join(self.departures)}. {numbers}."


def compare_with_published(
    task: Task, split: str, asked: int, preparation: Mapping[str, Any], summary: Mapping[str, Any]
) -> Protocol:
    """What a prepared set says of itself, held against the published preparation of its task.

    Args:
        task: of the set.
        split: the part that is asked about.
        asked: how many of its windows are.
        preparation, summary: as `read_description` gives them.
    """
    departures = []
    if not _is_shipped(task):
        departures.append("the task is not as this package declares it")
    if split != "test":
        departures.append(f"these are {split} windows, not those to test on")
    if preparation["split_rule"] not in (None, "published"):
        departures.append(f"split by {preparation['split_rule']}, not as the task is")
    departures += _of_recipe(task, preparation["recipe"], summary)
    failed = sum(entry["error"] is not None for entry in summary["files"])
    if lost := failed + len(summary["missing"]):
        departures.append(f"{lost} of {len(summary['files']) + len(summary['missing'])} recordings are not in the set")
    if asked != summary["windows"][split]:
        departures.append(f"{asked:,} of the {summary['windows'][split]:,} windows of this part are asked about")
    windows, published = sum(summary["windows"].values()), PUBLISHED_WINDOWS.get(task.name)
    if published is not None and windows != published:
        departures.append("the set has another number of windows")
    subjects = {entry["subject"] for entry in summary["files"] if entry["windows"]}
    return Protocol(departures, windows, len(subjects), published)


def _of_recipe(task: Task, recipe: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    """Where the recipe is not the paper's, or was not applied as a whole."""
    paper = EEGFeatureExtractor(notch_frequency=task.notch_hz).recipe
    found = [
        f"the recipe's {name} is {recipe.get(name)}, not {wanted}"
        for name, wanted in paper.items()
        if recipe.get(name) != wanted
    ]
    if shortened := sum(bool(entry.get("steps_impossible")) for entry in summary["files"]):
        found.append(f"steps of the recipe were left out of {shortened} recordings")
    return found


def _is_shipped(task: Task) -> bool:
    """Whether a task is one of this package's, unchanged."""
    try:
        return load_task(task.name) == task
    except (ValueError, FileNotFoundError):
        return False
