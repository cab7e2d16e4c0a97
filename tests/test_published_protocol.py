"""What a prepared set must say of itself before published figures may stand beside results on it."""

import copy
import dataclasses

import pytest

from neurolm_hf import EEGFeatureExtractor
from neurolm_hf import published_protocol as module
from neurolm_hf.published_protocol import compare_with_published
from neurolm_hf.tasks import load_task


WORKLOAD = load_task("Workload")


def description(windows=2088):
    """(preparation, summary) of a set like the published one."""
    files = [
        {"recording": f"{who}.edf", "subject": f"s{who}", "windows": {part: 29}, "error": None, "steps_impossible": []}
        for who, part in enumerate(("train", "validation", "test"))
    ]
    recipe = EEGFeatureExtractor(notch_frequency=50).recipe
    counts = {"train": windows - 348, "validation": 58, "test": 290}
    return {"split_rule": "published", "recipe": recipe}, {"files": files, "missing": [], "windows": counts}


def compared(preparation, summary, *, task=WORKLOAD, split="test", asked=290):
    return compare_with_published(task, split, asked, preparation, summary)


def test_the_published_set():
    found = compared(*description())
    assert found.departures == []
    assert (found.windows, found.subjects, found.published_windows) == (2088, 3, 2088)
    assert str(found).startswith("The published protocol, as far as the set can tell:")
    assert str(found).endswith("2,088 windows of 3 subjects; the publication has 2,088 windows.")
    # folders of before the split was a setting
    preparation, summary = description()
    assert compared({**preparation, "split_rule": None}, summary).departures == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda preparation, summary: preparation.update(split_rule="subject"), "split by subject"),
        (lambda preparation, summary: preparation["recipe"].update(scale=10.0), "the recipe's scale is 10.0, not 100"),
        (lambda preparation, summary: preparation["recipe"].update(notch_frequency=60), "notch_frequency is 60"),
        (lambda preparation, summary: summary["files"][1].update(error="damaged"), "1 of 3 recordings are not in"),
        (lambda preparation, summary: summary["missing"].append("d.edf"), "1 of 4 recordings are not in the set"),
        (lambda preparation, summary: summary["files"][0].update(steps_impossible=["notch"]), "left out of 1 record"),
        (lambda preparation, summary: summary["windows"].update(train=1), "another number of windows"),
    ],
)
def test_what_a_set_says_against_itself(change, words):
    preparation, summary = copy.deepcopy(description())
    change(preparation, summary)
    found = compared(preparation, summary)
    (departure,) = found.departures
    assert words in departure
    assert str(found).startswith(f"Not the published protocol: {departure}.")


def test_other_windows_or_another_task():
    given = description()
    assert "validation windows" in compared(*given, split="validation", asked=58).departures[0]
    assert compared(*given, asked=100).departures == ["100 of the 290 windows of this part are asked about"]
    for changes in ({"question": "Question: Is it?"}, {"name": "Mine"}):
        task = dataclasses.replace(WORKLOAD, **changes)
        assert "the task is not as this package declares it" in compared(*given, task=task).departures


def test_a_publication_whose_number_of_windows_is_not_known(monkeypatch):
    monkeypatch.delitem(module.PUBLISHED_WINDOWS, "Workload")
    found = compared(*description(1000))
    assert found.departures == []
    assert str(found).endswith("1,000 windows of 3 subjects; the publication's number is not known.")
    # where there is nothing to compare with, that is no news
    assert str(compared(*description(1000), split="train", asked=652)).endswith("1,000 windows of 3 subjects.")


def test_the_numbers_are_those_of_the_tasks_of_the_paper():
    assert set(module.PUBLISHED_WINDOWS) == {"TUAB", "TUEV", "SEED", "HMC", "Workload", "TUSL"}
    # 29 windows of each of two recordings of 36 people; 855 of each of 45 sessions
    assert module.PUBLISHED_WINDOWS["Workload"] == 36 * 2 * 29
    assert module.PUBLISHED_WINDOWS["SEED"] == 855 * 45
