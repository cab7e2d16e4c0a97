"""From a prepared recording and its labels to the places of its windows."""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .labels import Span, label_spans
from .processing_neurolm import EEGFeatureExtractor, PreparedEEG, window_starts
from .recordings import Recording
from .task_sections import NoLabels, Part, PathLabels, Windows
from .tasks import Task


@dataclass(frozen=True)
class Window:
    """A window of a recording, its answer (`None` where nothing is asked) and the part it is in.

    `start` is a sample at the recipe's rate. Only where the task wraps may it be below 0, or the window go on past the
    recording's end: `read_window` reads those too.
    """

    start: int
    answer: str | None
    split: Part


@dataclass(frozen=True)
class LeftOut:
    """How many windows of a recording were left out for one reason."""

    reason: str
    windows: int


def select_channels(task: Task, prepared: PreparedEEG) -> PreparedEEG:
    """The task's channels in the task's order, or the recording's own without those that the task drops.

    Raises:
        ValueError: the recording lacks one of the task's channels, or keeps none.
    """
    if task.channels is not None:
        return prepared.pick(list(task.channels))
    kept = [name for name in prepared.ch_names if name not in task.drop_channels]
    if not kept:
        raise ValueError(f"{prepared.report.source}: task {task.name} drops all of its channels.")
    return prepared if len(kept) == len(prepared.ch_names) else prepared.pick(kept)


def window_length(task: Task, prepared: PreparedEEG, feature_extractor: EEGFeatureExtractor) -> int:
    """Samples of a window: the task's, or as many as the feature extractor's token budget holds, and at most the whole
    seconds of the recording.

    Raises:
        ValueError: windows of the task's length and so many channels exceed the token budget.
    """
    channels, source = len(prepared.ch_names), prepared.report.source
    seconds = task.windows.seconds
    rate = feature_extractor.sampling_rate
    if seconds is None:
        usable = int(prepared.n_samples / rate - task.windows.leave_out_last_seconds)
        return min(feature_extractor.window_length(channels, source), max(usable, 1)) * rate
    if seconds > feature_extractor.max_seconds or seconds * channels > feature_extractor.max_tokens:
        raise ValueError(
            f"{source}: windows of {seconds} s of {channels} channels exceed the feature extractor's budget of "
            f"{feature_extractor.max_tokens} tokens and {feature_extractor.max_seconds} s. Name fewer channels, or "
            f"declare shorter windows, in task {task.name}."
        )
    return seconds * rate


def place_windows(
    task: Task, recording: Recording, prepared: PreparedEEG, feature_extractor: EEGFeatureExtractor
) -> tuple[list[Window], list[LeftOut]]:
    """Where the windows of a recording lie, in the order of its labels, and what was left out.

    Inside what a label is about, windows follow one another from its start by the task's stride; the remainder is
    dropped. A label that has no window counts as one window left out. Labels past the recording's end warn, and stand
    in the report.

    Args:
        task: says where labels come from and where windows lie.
        recording: from `assign_splits`.
        prepared: the recording after the recipe and `select_channels`.
        feature_extractor: whose recipe that is.

    Raises:
        FileNotFoundError: there is no label file beside the recording.
        ValueError: a label file or label that cannot be used, windows beyond the token budget, or no split.
    """
    rate, n_samples = feature_extractor.sampling_rate, prepared.n_samples
    length = window_length(task, prepared, feature_extractor)
    spans = label_spans(task, recording, prepared.annotations, n_samples / rate)
    _warn_of_labels_past_the_end(spans, n_samples, rate, prepared)
    skip_reason = _skip_reason(task, prepared)
    windows: list[Window] = []
    left_out: Counter[str] = Counter()
    for span in spans:
        starts = _starts(task, span, n_samples, length, rate)
        if skip_reason or (span.label is not None and span.answer is None):
            left_out[skip_reason or f"labelled {span.label!r}"] += max(1, len(starts))
            continue
        if not starts:
            left_out[f"shorter than a window of {length / rate:g} s"] += 1
        part = recording.split or span.split
        if part is None:
            raise ValueError(f"{recording.path} has no split: pass the recordings through assign_splits.")
        for start in starts:
            if reason := _outside(task.windows, span, start, length, n_samples, rate):
                left_out[reason] += 1
            else:
                windows.append(Window(start, span.answer, part))
    return windows, [LeftOut(reason, count) for reason, count in left_out.items()]


def read_window(prepared: PreparedEEG, start: int, length: int) -> np.ndarray:
    """The samples of a window, float32 (channels, length), going on at the other end where it leaves the recording."""
    pieces = []
    place, missing = start % prepared.n_samples, length
    while missing:
        stop = min(place + missing, prepared.n_samples)
        pieces.append(prepared.read(place, stop))
        missing -= stop - place
        place = 0
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)


def _starts(task: Task, span: Span, n_samples: int, length: int, rate: int) -> list[int]:
    """First samples of the windows in a span, whether or not they lie inside the recording."""
    declared = task.windows
    if isinstance(task.labels, (NoLabels, PathLabels)):
        kept = n_samples if declared.last_seconds is None else round(declared.last_seconds * rate)
        first = max(0, n_samples - kept)
        end = n_samples - round(declared.leave_out_last_seconds * rate)
    else:
        first, end = _samples(span, rate)
        first -= round(declared.before_seconds * rate)
        end += round(declared.after_seconds * rate)
    stride = length if declared.stride_seconds is None else max(1, round(declared.stride_seconds * rate))
    return [first + start for start in window_starts(end - first, length, stride)]


def _samples(span: Span, rate: int) -> tuple[int, int]:
    """First sample of a span and the one after its last. Ends rounded apart could take a sample from its length."""
    first = round(span.start * rate)
    return first, first + round((span.end - span.start) * rate)


def _outside(declared: Windows, span: Span, start: int, length: int, n_samples: int, rate: int) -> str:
    """Why a window cannot be cut from the recording; empty where it can."""
    first, end = start, start + length
    if declared.wrap:  # only the event itself must lie inside
        first, end = _samples(span, rate)
    if end > n_samples:
        return "past the end of the recording"
    return "before the start of the recording" if first < 0 else ""


def _skip_reason(task: Task, prepared: PreparedEEG) -> str:
    """Why the whole recording is left out, by the names of its channels; empty where it is not."""
    skip = task.recordings.skip
    if skip is None:
        return ""
    used = [found for found, name in prepared.report.kept if name in prepared.ch_names]
    return skip.reason if any(re.search(skip.channel, name) for name in used) else ""


def _warn_of_labels_past_the_end(spans: Sequence[Span], n_samples: int, rate: int, prepared: PreparedEEG) -> None:
    end = max((span.end for span in spans), default=0.0)
    if round(end * rate) <= n_samples:
        return
    message = (
        f"{prepared.report.source}: its labels go on to {end:g} s, but the recording ends at {n_samples / rate:g} s. "
        "Do they belong together?"
    )
    prepared.report.warnings.append(message)
    warnings.warn(message, stacklevel=3)
