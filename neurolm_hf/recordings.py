"""From a folder of recordings to the labelled windows of a task."""

import logging
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from .processing_neurolm import EEGFeatureExtractor, EEGReport, PreparedEEG
from .tasks import Task


if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_WORKLOAD_FILE = re.compile(r"(?P<subject>Subject\d+)_(?P<condition>[12])\.edf", re.IGNORECASE)
_WORKLOAD_ANSWERS = {"1": "No", "2": "Yes"}  # rest, mental arithmetic


@dataclass(frozen=True)
class Recording:
    """A file, whose it is, and the answer to the task's question about all of it."""

    path: Path
    subject: str
    answer: str


class SubjectSplit(NamedTuple):
    """Subjects to train on and subjects to test on; nobody is in both."""

    train: list[str]
    test: list[str]


@dataclass(frozen=True)
class SkippedRecording:
    """A recording that gave no windows, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class LabelledWindows:
    """The windows of some recordings.

    Attributes:
        dataset: a row a window, in the order of recordings and of time. Columns: `signal` (float32, channels x
            samples, as the model reads it: filtered, resampled, divided by the recipe's scale), `channels` (vocabulary
            names), `subject`, `recording` (file name), `start` (seconds from the start of the recording), `label`
            (class index), `question`, `answer`, `recipe_id` (what the feature extractor takes as `prepared_by`).
        reports: what was found in each recording and done to it.
        skipped: the recordings left out, with the reason.
    """

    dataset: "Dataset"
    reports: list[EEGReport]
    skipped: list[SkippedRecording]


def find_workload_recordings(folder: str | Path) -> list[Recording]:
    """The recordings of the Workload task in a folder, by EEGMAT's names: `SubjectNN_1.edf` rest, `_2` arithmetic.

    Other .edf files in the folder are left out with a warning.

    Returns:
        Two recordings a subject, in name order.

    Raises:
        FileNotFoundError: there is no such folder, or no file with such a name in it.
        ValueError: a subject has one of the two recordings only.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder. Give the folder that holds the recordings.")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".edf")
    matches = [(path, _WORKLOAD_FILE.fullmatch(path.name)) for path in files]
    recordings = [
        Recording(path, match["subject"].capitalize(), _WORKLOAD_ANSWERS[match["condition"]])
        for path, match in matches
        if match
    ]
    others = [path.name for path, match in matches if not match]
    if not recordings:
        found = f"its .edf files are called {', '.join(others[:3])} ..." if others else "it holds no .edf file"
        raise FileNotFoundError(
            f"{folder} has no recording of the Workload task: {found}. They must be called SubjectNN_1.edf (rest) and "
            "SubjectNN_2.edf (mental arithmetic), as in EEGMAT."
        )
    if others:
        warnings.warn(f"{folder}: left out, not named SubjectNN_1.edf or _2.edf: {', '.join(others)}.", stacklevel=2)
    _check_pairs(folder, recordings)
    return recordings


def split_subjects(subjects: Iterable[str], *, test_share: float = 0.25, seed: int = 0) -> SubjectSplit:
    """Split by subject, the same way for the same subjects, whatever their order and however often each is named.

    Args:
        subjects: names, of recordings or of windows.
        test_share: share of the subjects to test on, rounded; at least one subject is on either side.
        seed: of the shuffle.

    Raises:
        ValueError: fewer than two subjects, or a share outside 0 to 1.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share must lie between 0 and 1, got {test_share}.")
    names = sorted(set(subjects))
    if len(names) < 2:
        raise ValueError(f"A split by subject needs two subjects at least, got {names}.")
    tested = min(max(round(test_share * len(names)), 1), len(names) - 1)
    shuffled = np.random.default_rng(seed).permutation(names).tolist()
    return SubjectSplit(train=sorted(shuffled[tested:]), test=sorted(shuffled[:tested]))


def window_recordings(
    recordings: Sequence[Recording],
    task: Task,
    feature_extractor: EEGFeatureExtractor,
    *,
    on_error: Literal["raise", "skip"] = "raise",
) -> LabelledWindows:
    """Prepare whole recordings by the feature extractor's recipe, then cut them into the windows of a task.

    Other windows than the task's are those of `dataclasses.replace(task, stride_seconds=0.5)` and the like.

    Args:
        recordings: files and their answers.
        task: with a stride; its notch must be the recipe's.
        feature_extractor: its recipe is applied, its own window settings are not.
        on_error: what to do about a recording that cannot be read or used: `raise`, or `skip` it and report it.

    Raises:
        ValueError: no recording, a task that does not fit the feature extractor, an answer that is none of the task's;
            a recording that cannot be read, has unknown channels, lacks one of the task's, or is shorter than a window
            (with `on_error="skip"`: if that leaves none). The message names the file.
        ImportError: datasets is missing.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error is 'raise' or 'skip', not {on_error!r}.")
    if not recordings:
        raise ValueError("There are no recordings to cut into windows.")
    _check_fit(task, recordings, feature_extractor)
    rows: list[dict[str, Any]] = []
    reports: list[EEGReport] = []
    skipped: list[SkippedRecording] = []
    for recording in tqdm(recordings, desc="reading recordings", unit="file"):
        try:
            prepared = _prepare(recording.path, task, feature_extractor)
            rows += _rows(recording, task, feature_extractor, prepared)
        except (ValueError, OSError) as error:
            if on_error == "raise":
                raise
            logger.warning("skipped %s: %s", recording.path, error)
            skipped.append(SkippedRecording(recording.path, str(error)))
        else:
            reports.append(prepared.report)
    if not rows:
        raise ValueError(f"None of {len(recordings)} recordings could be used. The first: {skipped[0].reason}")
    return LabelledWindows(_to_dataset(rows, task), reports, skipped)


def _check_pairs(folder: Path, recordings: list[Recording]) -> None:
    """Every subject has one recording of each condition."""
    by_subject: dict[str, list[str]] = {}
    for recording in recordings:
        by_subject.setdefault(recording.subject, []).append(recording.answer)
    incomplete = [subject for subject, answers in by_subject.items() if sorted(answers) != ["No", "Yes"]]
    if incomplete:
        raise ValueError(
            f"{folder}: every subject needs one recording at rest (_1.edf) and one of mental arithmetic (_2.edf). "
            f"Not so {', '.join(incomplete)}: add what is missing, or move these subjects elsewhere."
        )


def _check_fit(task: Task, recordings: Sequence[Recording], feature_extractor: EEGFeatureExtractor) -> None:
    """Task, answers and recipe belong together."""
    if task.stride_seconds is None:
        raise ValueError(f"Task {task.name} places its windows by events: it has no stride to cut recordings with.")
    notch = feature_extractor.notch_frequency
    if notch is not None and notch != task.notch_hz:
        raise ValueError(
            f"Task {task.name} was recorded where mains have {task.notch_hz} Hz, but the recipe notches {notch:g} Hz: "
            f"build the feature extractor with notch_frequency={task.notch_hz}."
        )
    for recording in recordings:
        if recording.answer not in task.answers:
            known = ", ".join(task.classes)
            raise ValueError(f"{recording.path}: {recording.answer!r} is no answer of task {task.name} ({known}).")


def _prepare(path: Path, task: Task, feature_extractor: EEGFeatureExtractor) -> PreparedEEG:
    """The whole recording after the recipe, with the task's channels in the task's order."""
    (prepared,) = feature_extractor.prepare(path)
    if task.channels is None:
        return prepared
    missing = [name for name in task.channels if name not in prepared.ch_names]
    if missing:
        raise ValueError(
            f"{path} lacks channels of task {task.name}: {', '.join(missing)}. It has {', '.join(prepared.ch_names)}."
        )
    order = [prepared.ch_names.index(name) for name in task.channels]
    return PreparedEEG(
        values=prepared.values[order],
        ch_names=list(task.channels),
        channel_ids=prepared.channel_ids[order],
        report=prepared.report,
        item=prepared.item,
    )


def _rows(
    recording: Recording, task: Task, feature_extractor: EEGFeatureExtractor, prepared: PreparedEEG
) -> list[dict[str, Any]]:
    """A row of the dataset for each window."""
    rate = feature_extractor.sampling_rate
    length = task.window_seconds * rate
    starts = _window_starts(prepared.values.shape[1], task, rate)
    if not starts:
        seconds = prepared.values.shape[1] / rate
        raise ValueError(f"{recording.path}: {seconds:g} s are shorter than one window of {task.window_seconds} s.")
    return [
        {
            "signal": prepared.values[:, start : start + length],
            "channels": prepared.ch_names,
            "subject": recording.subject,
            "recording": recording.path.name,
            "start": start / rate,
            "label": task.answers[recording.answer],
            "question": task.question,
            "answer": recording.answer,
            "recipe_id": feature_extractor.recipe_id,
        }
        for start in starts
    ]


def _window_starts(samples: int, task: Task, rate: int) -> list[int]:
    """First samples of the windows in the last seconds of a recording; none when it is shorter than a window."""
    assert task.stride_seconds is not None  # `_check_fit` has seen to it
    kept = samples if task.last_seconds is None else min(samples, task.last_seconds * rate)
    stride = max(1, round(task.stride_seconds * rate))
    return list(range(samples - kept, samples - task.window_seconds * rate + 1, stride))


def _to_dataset(rows: list[dict[str, Any]], task: Task) -> "Dataset":
    """The rows as a dataset. Signals are an `Array2D`: of the layouts that keep the shape, the fastest to read."""
    try:
        from datasets import Array2D, ClassLabel, Dataset, Features, List, Value
    except ImportError as error:
        raise ImportError('Windows need datasets: pip install "neurolm_hf[train]"', name="datasets") from error
    shapes = sorted({row["signal"].shape for row in rows})
    if len(shapes) > 1:
        counts = " and ".join(str(channels) for channels, _ in shapes)
        raise ValueError(f"The recordings have {counts} channels. Let task {task.name} name those to use.")
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    signals: NDArray[np.float32] = np.stack(columns["signal"])
    text = Value("string")
    features = Features(
        {
            "signal": Array2D(shape=signals.shape[1:], dtype="float32"),
            "channels": List(text),
            "subject": text,
            "recording": text,
            "start": Value("float64"),
            "label": ClassLabel(names=list(task.classes)),
            "question": text,
            "answer": text,
            "recipe_id": text,
        }
    )
    return Dataset.from_dict(columns | {"signal": signals}, features=features)
