"""What the reference's own scripts have prepared, taken over as a prepared set without running anything in it.

The reference (github.com/935963004/NeuroLM) writes one pickle a window, in microvolts at 200 Hz, filtered and notched
as `facts/tasks.json` says and not yet divided by 100:

    task                folders                            file             keys
    TUAB                train, val, test                   RECORDING_N.pkl  X, y
    TUEV                processed_train, _eval, _test      RECORDING-N.pkl  signal, label (from 1), offending_channel
    TUSL HMC Workload   train, eval, test                  RECORDING-N.pkl  X, y, ch_names
    pre-training        any                                RECORDING_N.pkl  X, ch_names
    SEED                one HDF5 file, a group a session: eeg (with chOrder, rsFreq), trialStart, trialEnd, label

Known by reading forks of it, whose makers bear its author's name. HMC's maker leaves windows of zeros behind each
recording; TUEV's first stage has its test windows in `processed_eval`, its second stage moves them.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from transformers.utils.logging import tqdm

from .channels_neurolm import resolve_channel
from .dataset_card import write_card
from .preparation import Plan, describe_plan, stored_unit
from .prepared_set import (
    RecordingWriter,
    Summary,
    file_sha256,
    forget,
    is_done,
    new_report,
    open_output,
    remove_leftovers,
    report_file,
    shard_name,
    summarize,
    text_sha256,
    to_json,
)
from .processing_neurolm import EEGFeatureExtractor
from .restricted_pickle import read_pickle
from .storage import encode_row, write_text
from .task_sections import NoLabels, PathLabels, Trial, TrialLabels
from .tasks import Task


RATE = 200
# Reason in `left_out` of windows that were not read; `warnings` name each of them.
REFUSED = "refused or damaged, see warnings"
ZEROS = "zero everywhere"

_SPLIT_OF_FOLDER = {
    "train": "train",
    "processed_train": "train",
    "val": "validation",
    "eval": "validation",
    "processed_eval": "validation",
    "test": "test",
    "processed_test": "test",
}
_WINDOW_FILE = re.compile(r"(?P<recording>.+)[-_](?P<index>\d+)")
# The evaluation files of TUEV are named after an event, then the subject: bckg_000_a_.edf
_TUEV_EVALUATION = re.compile(r"(?:spsw|gped|pled|eyem|artf|bckg)_(?P<subject>\d{3})_")
_SEED_LABELS = {"H": "Positive", "N": "Neutral", "S": "Negative"}
# Below this mean of absolute values a window is not in microvolts, unless nothing was connected.
_LEAST_MICROVOLTS = 1e-3


@dataclass(frozen=True)
class ReferenceRecording:
    """The windows of one recording, in one folder of pickles or one group of SEED's HDF5 file.

    Attributes:
        key: folder and recording, unique.
        subject: by the naming of the archive.
        split: its part; empty where every trial has its own.
        files: (index, pickle) of its windows in order; or (0, the HDF5 file).
    """

    key: str
    subject: str
    split: str
    files: tuple[tuple[int, Path], ...]


class ReferenceWindow(NamedTuple):
    """One window: (channels, samples) in microvolts, its channels, start in seconds or NaN, part, and answer."""

    signal: np.ndarray
    channels: list[str]
    start: float
    split: str
    answer: str | None


def import_pickles(task: Task, folder: str | Path, output: str | Path, workers: int | None = None) -> Summary:
    """Turns a folder of the reference's prepared windows into a prepared set; started again, it goes on.

    Nothing is filtered: the windows are taken as they are, divided by the recipe's scale, with the recipe by which the
    reference made them. A file that cannot be used, or asks for more than arrays, is left out and named in the
    warnings of its recording. `start` is NaN where the numbering of the windows does not say it.

    Args:
        task: one of the six, `TUEG` for the pre-training windows, or your own that was prepared in the same way.
        folder: where the reference's script wrote to.
        output: folder of the prepared set.
        workers: processes; None: what joblib's active `parallel_config` says, else one.

    Returns:
        The summary, as of `prepare_dataset`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no such windows in the folder, folders that are no train, validation and test part, a task without
            mains frequency, an output folder of another preparation.
        ImportError: a package is missing.
        OSError: `output` cannot be written to, or a file of SEED's not opened. A pickle that cannot be read goes into
            the report of its recording.
    """
    if task.notch_hz is None:
        raise ValueError(f"task {task.name} has no notch_hz, which belongs to the recipe; the pre-training's is TUEG.")
    try:
        from joblib import Parallel, delayed
    except ImportError as error:
        raise ImportError('Importing needs joblib: pip install "neurolm_hf[data]"', name="joblib") from error
    output = Path(output)
    plan = Plan(task, EEGFeatureExtractor(notch_frequency=task.notch_hz), "uV", "raise")
    recordings = find_reference_recordings(task, folder)
    names = {shard_name(recording.key) for recording in recordings}
    settings = {**describe_plan(plan), "split_rule": "published", "shares": None, "seed": 0, "from": "reference"}
    open_output(output, settings)
    remove_leftovers(output, names, names)
    jobs = (delayed(_import_recording)(recording, output, plan) for recording in recordings)
    finished = Parallel(n_jobs=workers, batch_size=1, return_as="generator_unordered")(jobs)
    for _ in tqdm(finished, total=len(recordings), desc="importing", unit="recording"):
        pass
    notes = ["Windows, filters and parts are those of the reference's prepared files; nothing was filtered here."]
    if not task.split.by_subject:
        notes.append(f"The published split of {task.name} is not by subject.")
    summary = summarize(output, [recording.key for recording in recordings], notes)
    write_text(output / "summary.json", to_json(asdict(summary)))
    write_card(output)
    return summary


def find_reference_recordings(task: Task, folder: str | Path) -> list[ReferenceRecording]:
    """The recordings whose windows a folder holds, sorted by key.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: none are there, or a part cannot be told from its folder; the message names it.
        OSError: a file of SEED's cannot be opened.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"{folder} is not there. Give the folder that the reference's script wrote.")
    if isinstance(task.labels, TrialLabels):
        return _find_sessions(folder)
    groups: dict[tuple[str, str], list[tuple[int, Path]]] = {}
    for file in sorted(folder.rglob("*.pkl")):
        match = _WINDOW_FILE.fullmatch(file.stem)
        name, index = (match["recording"], int(match["index"])) if match else (file.stem, 0)
        groups.setdefault((file.parent.relative_to(folder).as_posix(), name), []).append((index, file))
    if not groups:
        raise ValueError(f"{folder} holds no .pkl file, as the reference's scripts write them.")
    folders = {parent for parent, _ in groups}
    if "processed_eval" in folders and "processed_test" not in folders:
        raise ValueError(
            f"{folder} is the first stage of TUEV's script, whose processed_eval is the test part. Give the folder of "
            "its second stage, with processed_train, processed_eval and processed_test."
        )
    return sorted(
        (
            ReferenceRecording(
                key=name if parent == "." else f"{parent}/{name}",
                subject=_subject_of(name),
                split=_split_of(task, folder, parent),
                files=tuple(sorted(files)),
            )
            for (parent, name), files in groups.items()
        ),
        key=lambda recording: recording.key,
    )


def _subject_of(name: str) -> str:
    match = _TUEV_EVALUATION.match(name)
    return match["subject"] if match else name.split("_")[0]


def _split_of(task: Task, folder: Path, parent: str) -> str:
    if task.question is None:
        return "train"
    if parent not in _SPLIT_OF_FOLDER:
        known = ", ".join(_SPLIT_OF_FOLDER)
        raise ValueError(f"{folder / parent} holds pickles, but is no part of a set; parts are folders named {known}.")
    return _SPLIT_OF_FOLDER[parent]


def _import_recording(recording: ReferenceRecording, output: Path, plan: Plan) -> None:
    """Writes the shards and then the report of one recording, unless they are there already."""
    report = new_report(recording.key, recording.subject)
    try:
        report["sha256"] = _sha256_of(recording)
        report["bytes"] = sum(file.stat().st_size for _, file in recording.files)
    except Exception as error:  # as in `_windows`
        report["error"] = _without_folders(_reason(error), recording)
    if is_done(output, report):
        return
    forget(output, recording.key)
    if report["error"] is None:
        with RecordingWriter(output, report, plan.task) as writer:
            _write_rows(recording, plan, report, writer)
            writer.commit()
        report["hours"] = sum(report["window_hours"].values())
        if not report["shards"] and report["warnings"]:
            report["error"] = report["warnings"][0]
    write_text(report_file(output, recording.key), to_json(report))


def _write_rows(recording: ReferenceRecording, plan: Plan, report: dict[str, Any], writer: RecordingWriter) -> None:
    """Writes the windows of one recording; says in its report which were left out."""
    task, extractor = plan.task, plan.feature_extractor
    left_out = {REFUSED: 0, ZEROS: 0}
    for window in _windows(recording, task):
        if isinstance(window, ValueError):
            left_out[REFUSED] += 1
            report["warnings"].append(_without_folders(str(window), recording))
            continue
        if not window.signal.any():
            left_out[ZEROS] += 1
            continue
        try:
            row = encode_row(
                (window.signal / extractor.scale).astype(np.float32),
                window.channels,
                sampling_rate=RATE,
                unit=stored_unit(extractor),
                subject=recording.subject,
                recording=recording.key,
                start=window.start,
                recipe_id=extractor.recipe_id,
                task=task,
                answer=window.answer,
            )
        except ValueError as error:  # too large for the storage
            left_out[REFUSED] += 1
            report["warnings"].append(str(error))
            continue
        writer.add(window.split, row, window.signal.shape[1] / RATE)
    report["left_out"] = [{"reason": reason, "windows": count} for reason, count in left_out.items() if count]


def _sha256_of(recording: ReferenceRecording) -> str:
    """Of the content of its files; of a session in a large HDF5 file, of its samples."""
    if recording.split:
        return text_sha256("\n".join(f"{file_sha256(file)} {file.name}" for _, file in recording.files))
    hashed = hashlib.sha256()
    with _open_hdf5(recording.files[0][1]) as opened:
        group = opened[recording.key.rpartition("/")[2]]
        eeg = group["eeg"]
        hashed.update(repr([*sorted(map(str, group.attrs.items())), *sorted(map(str, eeg.attrs.items()))]).encode())
        for start in range(0, eeg.shape[1], 60 * RATE):
            hashed.update(eeg[:, start : start + 60 * RATE].tobytes())
    return hashed.hexdigest()


def _without_folders(message: str, recording: ReferenceRecording) -> str:
    """A message with files by their name, so that a report reads the same wherever the folder lies."""
    return message.replace(f"{recording.files[0][1].parent}/", "")


def _windows(recording: ReferenceRecording, task: Task) -> Iterator[ReferenceWindow | ValueError]:
    """The windows of a recording in order; in place of one that cannot be used, the error that says why."""
    if isinstance(task.labels, TrialLabels):
        yield from _windows_of_session(recording, task, task.labels.trials)
        return
    for index, file in recording.files:
        try:
            yield _read_window(file, index, recording.split, task)
        except Exception as error:  # damaged and hostile files fail in every way there is, and none stops the others
            yield ValueError(_reason(error) if str(file) in str(error) else f"{file}: {_reason(error)}")


def _reason(error: Exception) -> str:
    expected = isinstance(error, (ValueError, OSError))
    return str(error) if expected else f"{type(error).__name__}: {error}"


def _read_window(file: Path, index: int, split: str, task: Task) -> ReferenceWindow:
    """The window in a pickle.

    Raises:
        ValueError: the pickle is refused, or is not a window of the task; the message names the file.
        OSError: it cannot be read.
    """
    content = read_pickle(file)
    signal = content.get("X", content.get("signal"))
    channels = content.get("ch_names", task.channels)
    if channels is None:
        raise ValueError(f"{file} has no ch_names, and task {task.name} names no channels.")
    signal, names = _check_signal(signal, list(channels), task, str(file))
    answer = None
    if task.question is not None:
        label = content.get("y")
        if label is None and "label" in content:
            label = np.asarray(content["label"]) - 1  # TUEV's own numbering
        answer = _answer(label, task, file)
    consecutive = isinstance(task.labels, (NoLabels, PathLabels)) and task.windows.last_seconds is None
    start = index * signal.shape[1] / RATE if consecutive else math.nan
    return ReferenceWindow(signal, names, start, split, answer)


def _answer(label: object, task: Task, file: Path) -> str:
    value = np.asarray(label)
    if value.size != 1 or value.dtype.kind not in "biuf" or value.item() not in range(len(task.classes)):
        raise ValueError(
            f"{file} has the label {label!r}; the classes of {task.name} are 0 to {len(task.classes) - 1}."
        )
    return task.classes[int(value.item())]


def _check_signal(signal: object, channels: Sequence[object], task: Task, where: str) -> tuple[np.ndarray, list[str]]:
    """The signal with the task's channels in the task's order, and their names.

    Raises:
        ValueError: it is no window of the task in microvolts.
    """
    if not isinstance(signal, np.ndarray) or signal.ndim != 2 or signal.dtype.kind not in "iuf":
        raise ValueError(f"{where} has no signal (X, or signal) of shape (channels, samples).")
    names = [resolve_channel(name) if isinstance(name, str) else None for name in channels]
    resolved = [name for name in names if name is not None]
    if len(resolved) < len(names) or len(set(resolved)) < len(resolved) or len(resolved) != len(signal):
        raise ValueError(
            f"{where}: {len(signal)} rows of signal do not fit the channels {', '.join(map(str, channels))}."
        )
    if task.channels is not None:
        if set(resolved) != set(task.channels):
            raise ValueError(f"{where} has the channels {', '.join(resolved)}; {task.name} has others.")
        signal = signal[[resolved.index(name) for name in task.channels]]
        resolved = list(task.channels)
    seconds = task.windows.seconds
    length = signal.shape[1]
    if length == 0 or (length % RATE if seconds is None else length != seconds * RATE):
        wanted = "whole seconds" if seconds is None else f"{seconds} s"
        raise ValueError(f"{where} has {length} samples at {RATE} Hz; {task.name} has windows of {wanted}.")
    if not np.isfinite(signal).all():
        raise ValueError(f"{where} has values that are not finite.")
    amplitude = float(np.abs(signal).mean())
    if 0 < amplitude < _LEAST_MICROVOLTS:
        raise ValueError(f"{where} has a mean amplitude of {amplitude:.2g}: not microvolts, maybe volts.")
    return signal, resolved


# SEED ----------------------------------------------------------------


def _open_hdf5(file: Path) -> Any:
    try:
        import h5py  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("SEED as the reference prepares it is an HDF5 file: pip install h5py") from error
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise OSError(f"{file} cannot be opened as HDF5: {error}. Get the file again.") from error


def _find_sessions(folder: Path) -> list[ReferenceRecording]:
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.hdf5"))
    if not files:
        raise ValueError(f"{folder} holds no .hdf5 file, as the reference's script for SEED writes it.")
    sessions = []
    for file in files:
        with _open_hdf5(file) as opened:
            names = sorted(opened)
        sessions += [ReferenceRecording(f"{file.stem}/{name}", _subject_of(name), "", ((0, file),)) for name in names]
    return sorted(sessions, key=lambda session: session.key)


def _windows_of_session(
    recording: ReferenceRecording, task: Task, declared: Sequence[Trial]
) -> Iterator[ReferenceWindow | ValueError]:
    """The windows of SEED's trials, read one by one; the part of a trial is the task's for its place."""
    (_, file), name = recording.files[0], recording.key.rpartition("/")[2]
    length = (task.windows.seconds or 1) * RATE
    try:
        with _open_hdf5(file) as opened:
            group = opened[name]
            eeg, trials = group["eeg"], group.attrs
            if int(eeg.attrs["rsFreq"]) != RATE or len(trials["label"]) != len(declared):
                raise ValueError(f"{file.name} {name} has not {len(declared)} trials at {RATE} Hz.")
            channels = [str(channel) for channel in eeg.attrs["chOrder"]]
            rows = zip(trials["trialStart"], trials["trialEnd"], trials["label"], declared, strict=True)
            for first, last, label, trial in rows:
                # the second named last belongs to the trial
                for start in range(int(first) * RATE, (int(last) + 1) * RATE - length + 1, length):
                    where = f"{file.name} {name} at {start // RATE} s"
                    signal, names = _check_signal(eeg[:, start : start + length], channels, task, where)
                    yield ReferenceWindow(signal, names, start / RATE, trial.split or "", _SEED_LABELS[str(label)])
    except Exception as error:  # as in `_windows`
        yield ValueError(f"{file.name} {name}: {_reason(error)}")
