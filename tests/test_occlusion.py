"""Occlusion: against the window asked about without each part, and where it is known which patches decide."""

import math
from typing import Any

import mne
import numpy as np
import pytest
import torch
from tiny_pipeline import CHANNELS, RATE, as_dict, as_raw, tiny_answerer, tiny_processor

from neurolm_hf.occlusion import answer_importance


QUESTION = {"question": "Is it high?", "candidate_answers": ["No", "Yes"]}


@pytest.fixture(scope="module")
def pipe() -> Any:
    processor = tiny_processor()
    return tiny_answerer(processor).as_pipeline(processor, device="cpu")


def log_odds_of(pipe: Any, recording: Any, answer: str, task: str = "Workload", **asked: Any) -> float:
    (window,) = pipe(recording, task=task, **asked)
    probability = window["probabilities"][answer]
    return math.log(probability / (1 - probability))


def without(seconds: float, channel: int | None = None, second: int | None = None) -> dict[str, Any]:
    """The recording of `as_dict` with a channel or a second cut out of the array."""
    given = as_dict(seconds)
    keep = [row for row in range(len(CHANNELS)) if row != channel]
    samples = [place for place in range(given["eeg"].shape[1]) if place // RATE != second]
    return given | {"eeg": given["eeg"][keep][:, samples], "ch_names": [CHANNELS[row] for row in keep]}


@pytest.mark.parametrize(("task", "names", "seconds"), [("Workload", CHANNELS, 2), ("Sleep", ["C3", "O2"], 3)])
def test_a_part_matters_as_much_as_the_answer_changes_without_it(
    pipe: Any, task: str, names: list[str], seconds: int
) -> None:
    found = answer_importance(pipe, as_dict(seconds), start=0, task=task)
    (window,) = pipe(as_dict(seconds), task=task)
    assert (found.start, found.end, found.answer) == (0, seconds, window["answer"])
    assert found.probability == pytest.approx(window["probabilities"][found.answer], abs=1e-6)
    full = log_odds_of(pipe, as_dict(seconds), found.answer, task)
    # what a call says about the same seconds, joined; it reads one second less
    fewer = {"task": task, "window_seconds": seconds - 1}
    lost = [full - log_odds_of(pipe, without(seconds, second=one), found.answer, **fewer) for one in range(seconds)]
    assert found.seconds == pytest.approx(lost, abs=1e-4)
    assert list(found.channels) == names
    assert found.channel_seconds.shape == (len(names), seconds)
    if task == "Workload":  # Sleep reads named channels, so that a call cannot go without one
        lost = [full - log_odds_of(pipe, without(2, channel=row), found.answer) for row in range(3)]
        assert list(found.channels.values()) == pytest.approx(lost, abs=1e-4)
    assert np.ptp(found.channel_seconds) > 1e-4


def test_every_part_is_taken_out_where_it_is(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every patch adds its own weight to the log-odds, the weights come back."""
    weights = torch.arange(6, dtype=torch.float64).reshape(2, 3) / 10 - 0.1  # (seconds, channels)
    (whole,) = pipe.processor.feature_extractor.cut(pipe.processor.feature_extractor.prepare(as_raw(2))[0])
    weight_of = {patch.tobytes(): float(weight) for patch, weight in zip(whole.values, weights.flatten(), strict=True)}
    batches = []

    def score(asked: Any, segments: Any) -> torch.Tensor:
        batches.append(len(segments))
        for segment in segments:
            assert np.unique(segment.time_ids).tolist() == list(range(segment.n_seconds))
        sums = [sum(weight_of[patch.tobytes()] for patch in segment.values) for segment in segments]
        return torch.tensor([[0.0, one] for one in sums], dtype=torch.float64)

    monkeypatch.setattr(pipe, "score", score)
    found = answer_importance(pipe, as_raw(2), start=0, task="Workload", batch_size=5)
    assert batches == [5, 5, 2]
    assert found.answer == "Yes"
    np.testing.assert_allclose(found.channel_seconds, weights.T)
    assert list(found.channels.values()) == pytest.approx(weights.sum(0).tolist())
    assert found.seconds == pytest.approx(weights.sum(1).tolist())


def test_a_later_window_of_several_answers(pipe: Any) -> None:
    answers = pipe(as_raw(9), task="Sleep")
    found = answer_importance(pipe, as_raw(9), start=3, task="Sleep")
    assert (found.start, found.end) == (3, 6)
    assert (found.answer, found.probability) == (
        answers[1]["answer"],
        pytest.approx(answers[1]["probabilities"][answers[1]["answer"]], abs=1e-6),
    )


def test_the_pipelines_own_arguments_hold(pipe: Any) -> None:
    fixed = pipe.model.as_pipeline(
        pipe.processor, device="cpu", window_seconds=2, prior={"No": 1e-6, "Yes": 1}, **QUESTION
    )
    found, (window,) = answer_importance(fixed, as_raw(2), start=0), fixed(as_raw(2))
    assert (found.answer, found.probability) == (window["answer"], pytest.approx(window["probabilities"]["No"]))
    plain = answer_importance(pipe, as_raw(2), start=0, **QUESTION)
    assert found.probability > plain.probability or plain.answer != "No"


def test_what_leaves_nothing_to_read_is_undefined(pipe: Any) -> None:
    one_channel = {**as_dict(2), "eeg": as_dict(2)["eeg"][:1], "ch_names": ["C3"]}
    found = answer_importance(pipe, one_channel, start=0, task="Workload")
    assert math.isnan(found.channels["C3"])
    assert found.channel_seconds[0].tolist() == pytest.approx(found.seconds)
    found = answer_importance(pipe, as_raw(1), start=0, task="Workload")
    assert math.isnan(found.seconds[0])
    assert list(found.channels.values()) == pytest.approx(found.channel_seconds[:, 0].tolist())


@pytest.mark.parametrize("start", [-1, 3, 100])
def test_a_window_outside_the_recording(pipe: Any, start: float) -> None:
    with pytest.raises(ValueError, match=rf"a window of 2 s from {start} s on does not lie within its 4 s"):
        answer_importance(pipe, as_raw(4), start=start, task="Workload")


def test_questions_without_allowed_answers_and_epochs(pipe: Any) -> None:
    with pytest.raises(ValueError, match="give candidate_answers"):
        answer_importance(pipe, as_raw(4), start=0, question="What is it?")
    epochs = mne.make_fixed_length_epochs(as_raw(4), 2, preload=True, verbose=False)
    with pytest.raises(ValueError, match="2 epochs"):
        answer_importance(pipe, epochs, start=0, task="Workload")
