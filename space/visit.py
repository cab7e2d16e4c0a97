"""What one visitor has opened, and what can be asked about it. Nothing here knows of the page.

An opened recording is held in memory, filtered and scaled as the model reads it, and its file is needed no more.
"""

import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neurolm_hf.inspection import RecordingInfo, inspect_recording
from neurolm_hf.occlusion import AnswerImportance, window_importance
from neurolm_hf.pipeline_neurolm import Asked, EEGQuestionAnsweringPipeline
from neurolm_hf.processing_neurolm import EEGFeatureExtractor, EEGSegment, PreparedEEG, eeg_codes
from neurolm_hf.reading_neurolm import open_recording


# What a visit may hold: at 200 Hz and 4 bytes a value at most 120 MB.
MAX_SECONDS = 20 * 60
MAX_CHANNELS = 128
# MNE's filters grow with the rate.
MAX_RATE = 5000.0
MAX_CHARACTERS = 300
MAX_MAP_SECONDS = 120.0
MAX_ANSWERS = 10


@dataclass(frozen=True)
class Opened:
    """A recording that was uploaded.

    Attributes:
        info: what is in the file.
        prepared: what the model reads of it; None where it cannot, and `refusal` says why.
    """

    info: RecordingInfo
    prepared: PreparedEEG | None = None
    refusal: str = ""


@dataclass(frozen=True)
class Question:
    """What is asked: one of the model's tasks, or a question with the answers that are allowed."""

    task: str | None = None
    question: str | None = None
    candidate_answers: tuple[str, ...] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """As the pipeline takes them."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Window:
    """A window of a recording that is to be asked about.

    Attributes:
        asked, extractor, recording: as `pipe.prepare` gives them.
        start, seconds: of the window; starts are whole seconds from 0 to `last_start`.
    """

    asked: Asked
    extractor: EEGFeatureExtractor
    recording: PreparedEEG
    start: int
    seconds: int
    last_start: int

    @property
    def segment(self) -> EEGSegment:
        """What the model reads."""
        rate = self.extractor.sampling_rate
        return self.extractor.segment_at(self.recording, self.start * rate, (self.start + self.seconds) * rate)


def read_recording(path: Path, extractor: EEGFeatureExtractor, unit: str | None = None) -> Opened:
    """Reads a recording into memory, within the limits above.

    Args:
        path: alone in its folder, but for its own parts.
        extractor: the model's.
        unit: of the values, where the file is wrong about it.

    Raises:
        ImportError, ValueError: it cannot be read, or is larger than is read here.
    """
    path = path.resolve()
    _check_limits(path)
    found = inspect_recording(path)
    info = replace(found, path=path.name, problems=[_of_file(problem, path) for problem in found.problems])
    try:
        with warnings.catch_warnings():  # which the report holds
            warnings.simplefilter("ignore")
            (prepared,) = extractor.prepare(path, unit=unit, unknown_channels="drop")
            extractor.window_spans(prepared)
            return Opened(info, _in_memory(prepared, path))
    except ValueError as error:
        return Opened(info, refusal=_named(str(error), path))


def read_question(task: str | None, question: str, answers: str) -> Question:
    """What a visitor has chosen or typed; the answers of an own question are lines, or parted by commas.

    Raises:
        ValueError: no question, fewer than two answers, or more than is read here.
    """
    if task is not None:
        return Question(task=task)
    if not question.strip():
        raise ValueError("Write your question, such as: Is the person asleep?")
    allowed = [part.strip() for part in answers.replace("\n", ",").split(",") if part.strip()]
    if not 2 <= len(allowed) <= MAX_ANSWERS:
        raise ValueError(f"Write 2 to {MAX_ANSWERS} answers to choose from, a line each, such as: Yes, No")
    if max(map(len, [question, *allowed])) > MAX_CHARACTERS:
        raise ValueError(f"A question and an answer have {MAX_CHARACTERS} characters at most here.")
    return Question(question=question.strip(), candidate_answers=tuple(allowed))


def find_window(
    pipe: EEGQuestionAnsweringPipeline, opened: Opened, question: Question, start: float | None = None
) -> Window:
    """The window that begins at a second, as long as the question wants it, with the channels that it is about.

    Args:
        start: in seconds, the nearest that there is is taken; None: a window in the middle that a call of the pipeline
            would ask about too.

    Raises:
        ValueError: the model cannot read the recording, or not for this question.
    """
    if opened.prepared is None:
        raise ValueError(opened.refusal)
    asked, extractor, (recording,) = pipe.prepare(opened.prepared, **question.arguments)
    spans = extractor.window_spans(recording)
    rate = extractor.sampling_rate
    seconds = (spans[0][1] - spans[0][0]) // rate
    last_start = recording.n_samples // rate - seconds
    first = spans[len(spans) // 2][0] // rate if start is None else round(start)
    return Window(asked, extractor, recording, min(max(first, 0), last_start), seconds, last_start)


def answer(pipe: EEGQuestionAnsweringPipeline, window: Window) -> dict[str, float]:
    """Each allowed answer with its probability."""
    scores = pipe.score(window.asked, [window.segment])
    return dict(zip(window.asked.question.answers, scores[0].softmax(0).tolist(), strict=True))


def tokens(pipe: EEGQuestionAnsweringPipeline, window: Window) -> NDArray[np.int64]:
    """The VQ tokens of a window, (channels, seconds)."""
    batch = window.extractor.collate([[window.segment]], return_tensors="pt")
    codes = eeg_codes(batch, pipe.model)[0, : window.segment.n_patches]
    return codes.reshape(window.seconds, -1).T.cpu().numpy()


def importance(pipe: EEGQuestionAnsweringPipeline, window: Window) -> AnswerImportance:
    """Which channels and seconds mattered for the answer: the model reads the window once for each of them.

    Raises:
        ValueError: by the time that one reading takes, all of them would take too long.
    """
    began = time.perf_counter()
    pipe.score(window.asked, [window.segment])
    channels = len(window.recording.ch_names)
    readings = channels + window.seconds + channels * window.seconds
    if (seconds := readings * (time.perf_counter() - began)) > MAX_MAP_SECONDS:
        raise ValueError(
            f"What mattered is not looked for: the model would read this window {readings} times, once without each "
            f"part of it, which takes some {seconds / 60:.0f} minutes on this machine, and others are waiting."
        )
    return window_importance(pipe, window.asked, window.extractor, window.recording, window.start)


def _check_limits(path: Path) -> None:
    raw, _ = open_recording(path)
    # a header may name other files, which were not uploaded; nothing of them has been shown
    if any(Path(name).resolve().parent != path.parent for name in raw.filenames if name is not None):
        raise ValueError(
            f"{path.name} refers to a file that was not uploaded with it. Upload a recording in one part."
        )
    rate, channels = float(raw.info["sfreq"]), len(raw.ch_names)
    seconds = raw.n_times / rate
    if seconds > MAX_SECONDS:
        raise ValueError(
            f"{path.name} is {seconds / 60:.0f} minutes long, and this page reads {MAX_SECONDS // 60} minutes at "
            "most. Cut a shorter piece out of it."
        )
    if channels > MAX_CHANNELS or rate > MAX_RATE:
        raise ValueError(
            f"{path.name} has {channels} channels at {rate:g} Hz, and this page reads {MAX_CHANNELS} channels at "
            f"{MAX_RATE:g} Hz at most. Leave channels out, or resample it."
        )


def _in_memory(prepared: PreparedEEG, path: Path) -> PreparedEEG:
    """The same recording, computed once, without its file."""
    warned = [_of_file(warning, path) for warning in prepared.report.warnings]
    report = replace(prepared.report, source=path.name, warnings=warned)
    return replace(prepared, report=report, samples=partial(_samples, prepared.values))


def _samples(values: NDArray[np.float32], start: int, stop: int) -> NDArray[np.float32]:
    return values[:, start:stop]


def _named(message: str, path: Path) -> str:
    """A message that names a file without its folder."""
    return message.replace(f"{path.parent}/", "")


def _of_file(message: str, path: Path) -> str:
    """A message for a list that stands below the name of the file."""
    said = _named(message, path).removeprefix(f"{path.name}: ")
    return said[:1].upper() + said[1:]
