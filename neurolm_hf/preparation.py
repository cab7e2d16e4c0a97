"""From a folder of recordings to a prepared set: one recording at a time, on any number of workers, resumable.

A recording is opened, filtered, cut into the task's windows and written as rows; its report follows. Started again, a
run passes over the recordings whose report and shards are as they should be.
"""

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mne import use_log_level
from transformers.utils.logging import tqdm

from . import __version__
from .channels_neurolm import UnknownChannels, microvolts_per, resolve_channel
from .dataset_card import write_card
from .prepared_set import (
    BEGUN,
    RecordingWriter,
    Summary,
    forget,
    is_done,
    new_report,
    open_output,
    read_report,
    remove_leftovers,
    report_file,
    shard_name,
    summarize,
    text_sha256,
    to_json,
    unlink_all,
)
from .processing_neurolm import EEGFeatureExtractor, PreparedEEG
from .reading_neurolm import open_recording
from .recordings import Recording, find_recordings
from .source_files import fingerprint
from .splits import assign_splits, splits_by_table
from .storage import NEEDED, STORAGE, TEMPORARY, Row, encode_row, write_text
from .task_sections import PARTS, FolderSplit, ShareSplit, TrialLabels, TrialSplit
from .tasks import Task
from .windows import place_windows, read_window, select_channels, window_length


class Plan(NamedTuple):
    """What is done to every recording."""

    task: Task
    feature_extractor: EEGFeatureExtractor
    unit: str | None
    unknown_channels: UnknownChannels


def prepare_dataset(
    task: Task,
    folder: str | Path,
    output: str | Path,
    *,
    feature_extractor: EEGFeatureExtractor,
    split_rule: Literal["subject"] | None = None,
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
    unit: str | None = None,
    unknown_channels: UnknownChannels | None = None,
    workers: int | None = None,
    shard: tuple[int, int] = (0, 1),
    licence: str | None = None,
) -> Summary:
    """Prepares the recordings of a folder for a task. Started again after an interruption, it goes on.

    A recording that cannot be used stops nothing: its `error` says why, and the next run tries it again.

    Args:
        task: which recordings, labels, windows and splits.
        folder: holds the recordings in the task's layout.
        output: folder of the prepared set.
        feature_extractor: its recipe is applied; its window settings hold where the task has none.
        split_rule, shares, seed: as in `assign_splits`.
        unit: of all recordings, where what the files say is wrong.
        unknown_channels: 'raise' or 'drop'; None: what the task says.
        workers: processes; None: what joblib's active `parallel_config` says, else one.
        shard: (i, n): only every n-th recording, from the i-th; the n parts may run anywhere and at any time, with the
            same output folder. Splits do not depend on it.
        licence: of the recordings, for the card; None: that of an earlier run.

    Returns:
        The summary of all that is in `output` by now.

    Raises:
        FileNotFoundError, ValueError: what `find_recordings` or `assign_splits` refuse, an unknown unit, an output
            folder of another preparation, a part that does not exist.
        ImportError: a package is missing.
        OSError: `output` cannot be written to.
    """
    index, parts = shard
    if not 0 <= index < parts:
        raise ValueError(f"A shard i/n has 0 <= i < n, got {index}/{parts}.")
    if unit is not None:
        microvolts_per(unit)  # or it would be refused recording by recording
    plan = Plan(task, feature_extractor, unit, unknown_channels or task.unknown_channels)
    folder, output = Path(folder).absolute(), Path(output).absolute()  # workers may stand elsewhere
    found, remarks = _find(task, folder)
    recordings, notes = assign_splits(task, found, rule=split_rule, shares=shares, seed=seed)
    settings = {
        **describe_plan(plan),
        "split_rule": split_rule or ("table" if splits_by_table(found) else "published"),
        "shares": None if shares is None else dict(shares),
        "seed": seed,
        **({} if licence is None else {"licence": licence}),
    }
    mine = recordings[index::parts]
    open_output(output, settings)
    remove_leftovers(output, {shard_name(one.key) for one in recordings}, {shard_name(one.key) for one in mine})
    _run(mine, output, plan, workers)
    foreseen = _foreseen_parts(task, recordings, split_rule)
    return _finish(output, recordings, foreseen, notes + remarks)


def _find(task: Task, folder: Path) -> tuple[list[Recording], list[str]]:
    """The recordings of a folder, and what is remarked on files that are none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = find_recordings(task, folder)
    return found, [str(one.message).removeprefix(f"{folder}: ") for one in caught]


def _foreseen_parts(task: Task, recordings: Sequence[Recording], split_rule: str | None) -> set[str]:
    """The parts that the split should fill."""
    parts: set[str] = {one.split for one in recordings if one.split}
    if split_rule is not None:
        return parts  # every part with a share has a subject
    if splits_by_table(recordings):
        return parts | {row.split for one in recordings for row in one.rows if row.split}
    match task.split:
        case FolderSplit(folders=folders, validation_share=share):
            parts |= {*folders.values(), *(["validation"] if share else [])}
        case ShareSplit(shares=own):
            parts |= {part for part, share in own.items() if share}
        case TrialSplit():
            if isinstance(task.labels, TrialLabels):
                parts |= {trial.split for trial in task.labels.trials if trial.split}
    return parts


def _finish(output: Path, recordings: Sequence[Recording], foreseen: set[str], notes: Sequence[str]) -> Summary:
    """Writes the summary, and the card once every recording has its report."""
    keys = [one.key for one in recordings]
    while True:
        summary = summarize(output, keys, notes)
        if not summary.missing:
            summary.notes.extend(_empty_parts(summary, recordings, foreseen))
        write_text(output / "summary.json", to_json(asdict(summary)))
        # a part that ended meanwhile may have written its summary before ours
        if all(read_report(report_file(output, key)) is None for key in summary.missing):
            break
    if not summary.missing:
        write_card(output)
    return summary


def _empty_parts(summary: Summary, recordings: Sequence[Recording], foreseen: set[str]) -> Iterator[str]:
    """A note on every part that was foreseen and has no windows."""
    failed = {entry["recording"] for entry in summary.failed}
    for part in (part for part in PARTS if part in foreseen and part not in summary.windows):
        of_part = [one.key for one in recordings if one.split in (part, None)]  # None: its trials are split
        lost = len(failed.intersection(of_part))
        reason = f"of its {len(of_part)} recordings {lost} failed, {len(of_part) - lost} gave none"
        yield f"the {part} part has no windows: {reason if of_part else 'no recording belongs to it'}"


def describe_plan(plan: Plan) -> dict[str, Any]:
    """The plan as `preparation.json` keeps it."""
    extractor = plan.feature_extractor
    lengths = ("window_seconds", "max_tokens", "max_seconds", "pad_to_patches")  # of windows where the task has none
    return {
        "neurolm_hf": __version__,
        "task": plan.task.name,
        "task_file": asdict(plan.task),
        "recipe": extractor.recipe,
        "recipe_id": extractor.recipe_id,
        "window_lengths": {name: getattr(extractor, name) for name in lengths},
        "unit": plan.unit,
        "unknown_channels": plan.unknown_channels,
        "storage": STORAGE,
    }


def prepare_recording(recording: Recording, output: Path, plan: Plan) -> str:
    """Writes the shards and then the report of one recording, unless they are there already; gives its key.

    Raises:
        OSError: `output` cannot be written to. What is wrong with the recording goes into its report.
    """
    report = _new_report(recording, plan)
    if is_done(output, report):
        return recording.key
    forget(output, recording.key)
    mark = _mark(recording, output)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        if report["error"] is None:
            with _quiet():
                _write_shards(recording, output, plan, report)
        report["warnings"] = [_without_paths(text, recording) for text in report["warnings"]]
        write_text(report_file(output, recording.key), to_json(report))
    finally:
        mark.unlink(missing_ok=True)
    return recording.key


def _new_report(recording: Recording, plan: Plan) -> dict[str, Any]:
    """A report before anything is written: which files, and what is to be done with them."""
    report = new_report(recording.key, recording.subject) | {
        "request": text_sha256(to_json(_described(recording))),
        "files_beside": {},
        "steps_impossible": [],
        "dropped": [],
    }
    try:
        report |= fingerprint(recording.path, plan.task)
    except OSError as error:
        report["error"] = _without_paths(str(error), recording)
    return report


def _mark(recording: Recording, output: Path) -> Path:
    """The file that is there while a recording is worked on, and stays if that kills the process."""
    return output / "reports" / f".{shard_name(recording.key)}{BEGUN}"


def stored_unit(extractor: EEGFeatureExtractor) -> str:
    """Unit of a prepared value of 1.0."""
    return f"{extractor.scale:g}uV" if extractor.do_rescale and extractor.scale != 1 else "uV"


class _UnusableError(Exception):
    """A recording cannot be used; the message is for its report."""


def _write_shards(recording: Recording, output: Path, plan: Plan, report: dict[str, Any]) -> None:
    """Reads, cuts and writes one recording; fills in its report. An unusable recording leaves no shard."""
    try:
        with RecordingWriter(output, report, plan.task) as writer:
            for split, row, seconds in _rows(recording, plan, report):
                writer.add(split, row, seconds)
            writer.commit()
    except _UnusableError as error:
        report["error"] = str(error)
        report |= {"windows": {}, "window_hours": {}, "left_out": [], "steps_impossible": []}
        report["warnings"] = report["warnings"] or _notes_on_opening(recording.path)


def _notes_on_opening(path: Path) -> list[str]:
    """What is to be said about a file whose preparation failed before it gave its report.

    They are asked for again, for as warnings they could not be told from those of other threads.
    """
    try:
        return open_recording(path)[1]
    except Exception:  # then this is the error that the report has already
        return []


def _rows(recording: Recording, plan: Plan, report: dict[str, Any]) -> Iterator[tuple[str, Row, float]]:
    """(split, row, seconds) of each window in turn. Whatever goes wrong with it comes as `_UnusableError`."""
    try:
        yield from _read_rows(recording, plan, report)
    except Exception as error:
        # Readers of damaged files fail in every way there is, and one file must not stop the run. Errors of writing
        # are raised in the caller, not here.
        expected = isinstance(error, (ValueError, OSError, ImportError))
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        raise _UnusableError(_without_paths(reason, recording)) from error


def _read_rows(recording: Recording, plan: Plan, report: dict[str, Any]) -> Iterator[tuple[str, Row, float]]:
    extractor, task = plan.feature_extractor, plan.task
    rate = extractor.sampling_rate
    (prepared,) = extractor.prepare(recording.path, unit=plan.unit, unknown_channels=plan.unknown_channels)
    prepared.report.warnings.extend(_lost_duplicates(prepared))
    report["warnings"] = prepared.report.warnings  # which those about its labels will join
    report["steps_impossible"] = prepared.report.steps_impossible
    report["dropped"] = [list(one) for one in prepared.report.dropped]
    report["hours"] = prepared.n_samples / rate / 3600
    prepared = select_channels(task, prepared)
    windows, left_out = place_windows(task, recording, prepared, extractor)
    report["left_out"] = [{"reason": one.reason, "windows": one.windows} for one in left_out]
    length = window_length(task, prepared, extractor)
    for window in windows:
        row = encode_row(
            read_window(prepared, window.start, length),
            prepared.ch_names,
            sampling_rate=rate,
            unit=stored_unit(extractor),
            subject=recording.subject,
            recording=recording.key,
            start=window.start / rate,
            recipe_id=extractor.recipe_id,
            task=task,
            answer=window.answer,
        )
        yield window.split, row, length / rate


def _run(recordings: Sequence[Recording], output: Path, plan: Plan, workers: int | None) -> None:
    """Prepares recordings in parallel, by joblib's active backend, with a progress bar.

    A damaged file can kill the process that reads it. Then the recordings that were being worked on are tried one at a
    time, and those that kill again are reported.
    """
    waiting = {one.key: one for one in recordings}
    with _quiet(), tqdm(total=len(waiting), desc="preparing", unit="file") as progress:  # threads share the filter
        while waiting:
            try:
                for key in _in_parallel(list(waiting.values()), output, plan, workers):
                    del waiting[key]
                    progress.update()
            except BrokenProcessPool:
                begun = [one for one in waiting.values() if _mark(one, output).is_file()]
                if not begun:  # the workers die before they read anything
                    raise
                for one in begun:
                    _prepare_alone(one, output, plan)
                    del waiting[one.key]
                    progress.update()


def _in_parallel(recordings: Sequence[Recording], output: Path, plan: Plan, workers: int | None) -> Iterable[str]:
    """The keys of recordings as they are done."""
    try:
        from joblib import Parallel, delayed
    except ImportError as error:
        raise ImportError(NEEDED, name="joblib") from error
    try:
        parallel = Parallel(n_jobs=workers, batch_size=1, return_as="generator_unordered")
    except ValueError:  # backends of process pools, Ray's among them, give their results at the end only
        parallel = Parallel(n_jobs=workers, batch_size=1)
    keys: Iterable[str] = parallel(delayed(prepare_recording)(one, output, plan) for one in recordings)
    return keys


def _prepare_alone(recording: Recording, output: Path, plan: Plan) -> None:
    """Prepares a recording in a process of its own; if that dies, the report says so."""
    from joblib.externals.loky import ProcessPoolExecutor

    try:
        with ProcessPoolExecutor(max_workers=1) as executor:
            executor.submit(prepare_recording, recording, output, plan).result()
    except BrokenProcessPool:
        error = f"{recording.key}: the process that read it died, in the reader's own code or for want of memory"
        report = _new_report(recording, plan) | {"error": error}
        forget(output, recording.key)
        write_text(report_file(output, recording.key), to_json(report))
    unlink_all(output.rglob(f".{shard_name(recording.key)}.*{TEMPORARY}"))  # of either process


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings and MNE's remarks on the screen: those of a recording are in its report."""
    with warnings.catch_warnings(), use_log_level("ERROR"):
        warnings.simplefilter("ignore")
        yield


def _described(recording: Recording) -> dict[str, Any]:
    """What else than its files makes the rows of a recording; nothing that says where they lie."""
    described = {name: value for name, value in asdict(recording).items() if name != "path"}
    described["rows"] = [{name: cell for name, cell in row.items() if name != "where"} for row in described["rows"]]
    return described


def _lost_duplicates(prepared: PreparedEEG) -> Iterator[str]:
    """A warning on each channel that is lost because several rows have its name: MNE adds -0, -1, ... to them."""
    rows: dict[str, list[str]] = {}
    for name, _ in prepared.report.dropped:
        if numbered := re.fullmatch(r"(.+)-\d+", name):
            rows.setdefault(numbered[1], []).append(name)
    for shared, names in rows.items():
        channel = resolve_channel(shared)
        if len(names) > 1 and channel is not None and channel not in prepared.ch_names:
            yield (
                f"{len(names)} rows are called {shared!r}, and all were left out, so that channel {channel} is "
                "missing: keep one of them in the file"
            )


def _without_paths(text: str, recording: Recording) -> str:
    """The text with files called by their place in the input folder, so that it reads the same wherever that lies."""
    for path in (os.path.realpath(recording.path), str(recording.path)):
        folder = path.removesuffix(recording.key)
        text = text.replace(path, recording.key)
        text = text.replace(folder, "") if folder != path else text
    return text
