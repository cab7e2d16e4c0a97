"""Which channels and seconds mattered for an answer: each is taken out in turn, and the answer's odds are looked at.

Taken out means left out of what the model reads. A patch that is not there is what the model knows from recordings
with fewer channels and from shorter windows; a flat line in its place would be a signal, one that no training has
shown it. A channel is left out in all seconds, a patch is one channel in one second. Where a whole second is left out,
the seconds after it move up, for the model's seconds count without gaps: it reads a window that is a second shorter.

Parts are taken out one at a time: two channels that say the same stand in for each other, and both look unimportant.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from .pipeline_neurolm import Asked, EEGQuestionAnsweringPipeline
from .processing_neurolm import EEGFeatureExtractor, EEGSegment, PreparedEEG


# Variants of a window that are read at a time.
VARIANTS_AT_A_TIME = 32


@dataclass(frozen=True)
class AnswerImportance:
    """What mattered for the answer about one window.

    An importance is the fall of the answer's log-odds (natural logarithm, among the allowed answers) when that part is
    taken out: 0.7 halves the odds, a negative one says that the part spoke for another answer. It is NaN where nothing
    would be left to read.

    Attributes:
        start, end: of the window, in seconds of the recording.
        answer, probability: the likeliest answer when all is read.
        channels: name -> importance of the channel in all seconds.
        seconds: importance of each second in all channels, from the start of the window.
        channel_seconds: (channels, seconds) of each patch; rows as in `channels`.
    """

    start: float
    end: float
    answer: str
    probability: float
    channels: dict[str, float]
    seconds: list[float]
    channel_seconds: NDArray[np.float64]


def answer_importance(
    pipe: EEGQuestionAnsweringPipeline,
    recording: Any,
    *,
    start: float,
    task: str | None = None,
    question: str | None = None,
    candidate_answers: Sequence[str] | None = None,
    unit: str | None = None,
    batch_size: int = VARIANTS_AT_A_TIME,
) -> AnswerImportance:
    """What mattered for the answer about the window that begins at `start`.

    The model reads the window once for each channel, second and patch, in batches: of 19 channels and 4 seconds 100
    times.

    Args:
        pipe: `pipeline("eeg-question-answering")`.
        recording, task, question, candidate_answers, unit: as in a call of the pipeline; answers must be allowed ones.
        start: in seconds of the recording; the window is as long as a call would make it.
        batch_size: variants of the window that are read at a time.

    Raises:
        ValueError: no allowed answers, several epochs, a window that the recording does not hold; what a call raises.
    """
    asked, extractor, prepared = pipe.prepare(
        recording, task=task, question=question, candidate_answers=candidate_answers, unit=unit
    )
    if len(prepared) != 1:
        raise ValueError(f"There are {len(prepared)} epochs, and importance is of one: pass it alone, as an array.")
    return window_importance(pipe, asked, extractor, prepared[0], start, batch_size)


def window_importance(
    pipe: EEGQuestionAnsweringPipeline,
    asked: Asked,
    extractor: EEGFeatureExtractor,
    prepared: PreparedEEG,
    start: float,
    batch_size: int = VARIANTS_AT_A_TIME,
) -> AnswerImportance:
    """As `answer_importance`, of a recording that `pipe.prepare` has prepared: for several windows of it.

    Raises:
        ValueError: no allowed answers, or a window that the recording does not hold.
    """
    answers = asked.question.answers
    if not answers:
        raise ValueError("Importance is of an allowed answer: give candidate_answers, or a task.")
    segment = _segment(extractor, prepared, start)
    channels, seconds = len(prepared.ch_names), segment.n_seconds
    kept = list(_kept_patches(channels, seconds))
    variants = [segment, *(_with_patches(segment, keep) for keep in kept if keep.any())]
    starts = tqdm(range(0, len(variants), batch_size), desc="occlusion", unit="batch")
    scores = torch.cat([pipe.score(asked, variants[first : first + batch_size]) for first in starts])
    likeliest = int(scores[0].argmax())
    log_odds = _log_odds(scores, likeliest).numpy()
    importances = np.full(len(kept), math.nan)
    importances[[bool(keep.any()) for keep in kept]] = log_odds[0] - log_odds[1:]
    of_channels, of_seconds, of_patches = np.split(importances, [channels, channels + seconds])
    return AnswerImportance(
        start=segment.start,
        end=segment.end,
        answer=answers[likeliest],
        probability=float(scores[0].softmax(0)[likeliest]),
        channels=dict(zip(prepared.ch_names, of_channels.tolist(), strict=True)),
        seconds=of_seconds.tolist(),
        channel_seconds=of_patches.reshape(seconds, channels).T,
    )


def _segment(extractor: EEGFeatureExtractor, prepared: PreparedEEG, start: float) -> EEGSegment:
    """The window from a second on, as long as the extractor cuts it."""
    first, whole = round(start * extractor.sampling_rate), prepared.n_samples // extractor.patch_size
    length = min(extractor.window_length(len(prepared.ch_names), prepared.report.source), whole)
    stop = first + length * extractor.patch_size
    if length < 1 or first < 0 or stop > prepared.n_samples:
        raise ValueError(
            f"{prepared.report.source}: a window of {length} s from {start:g} s on does not lie within its "
            f"{prepared.n_samples / extractor.sampling_rate:g} s."
        )
    return extractor.segment_at(prepared, first, stop)


def _kept_patches(channels: int, seconds: int) -> Iterator[NDArray[np.bool_]]:
    """(patches,) of each variant, time-major: without each channel, without each second, without each patch."""
    channel, second = np.tile(np.arange(channels), seconds), np.repeat(np.arange(seconds), channels)
    yield from (channel != left_out for left_out in range(channels))
    yield from (second != left_out for left_out in range(seconds))
    yield from ~np.eye(channels * seconds, dtype=bool)


def _with_patches(segment: EEGSegment, keep: NDArray[np.bool_]) -> EEGSegment:
    """The window with some of its patches, its seconds counted again from 0."""
    return EEGSegment(
        values=segment.values[keep],
        channel_ids=segment.channel_ids[keep],
        time_ids=np.unique(segment.time_ids[keep], return_inverse=True)[1],
        recording=segment.recording,
        start=segment.start,
        end=segment.end,
    )


def _log_odds(scores: torch.Tensor, answer: int) -> torch.Tensor:
    """(variants,) of one answer against all others, from log-likelihoods (variants, answers)."""
    others = [column for column in range(scores.shape[1]) if column != answer]
    return scores[:, answer] - scores[:, others].logsumexp(dim=1)
