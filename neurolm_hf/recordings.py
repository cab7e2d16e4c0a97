"""From a folder to the recordings in it, and whose they are."""

import csv
import io
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Literal

from .reading_neurolm import RECORDING_SUFFIXES
from .task_sections import PARTS, Part, RecordingFiles, TableLabels
from .tasks import Task


# Nihon Kohden's recordings end in .eeg, as do the data files of BrainVision headers.
_SUFFIXES = (*RECORDING_SUFFIXES, ".eeg")
# MNE opens night-1.fif with night.fif.
_FIF_PART = re.compile(r"-\d+(\.fif(?:\.gz)?)$")
_BIDS_SUBJECT = re.compile(r"(?:^|[/_])sub-([^/_.]+)")
_TUH_SUBJECT = re.compile(r"(?:^|/)([a-z]{8})_s\d+_t\d+[^/]*$")
# `$b` in it stands for the header's own stem, which needs no look inside.
_BRAINVISION_DATA = re.compile(r"^DataFile=(.+?)\s*$", re.MULTILINE | re.IGNORECASE)
# Beside the recordings of a BIDS dataset lie copies of them.
_BIDS_COPIES = ("derivatives", "sourcedata")
_TABLE_COLUMNS = ("file", "start", "end", "label")

Guess = Literal["folder", "file"]


@dataclass(frozen=True)
class TableRow:
    """A row of a user's table. `start` and `end` are `None` where the row is about the whole recording."""

    file: str
    start: float | None
    end: float | None
    label: str
    subject: str | None
    split: Part | None
    where: str


@dataclass(frozen=True)
class Recording:
    """A file and whose it is.

    Attributes:
        path: the file, or the folder of formats that are folders.
        key: its path from the input folder on, written with `/`: unique, and what recordings are sorted by.
        subject: whose it is.
        folder, label: the groups `split` and `label` of the task's pattern, as the path has them.
        rows: what a table says of it.
        split: `None` before `assign_splits`, and after it where the split is by trials or rows of a table.
        guessed_from: the name of what the subject was guessed from; `None` where a table, the task's pattern, BIDS
            or the name of a Temple University file says it.
    """

    path: Path
    key: str
    subject: str
    folder: str | None = None
    label: str | None = None
    rows: tuple[TableRow, ...] = ()
    split: Part | None = None
    guessed_from: Guess | None = None


def find_recordings(task: Task, folder: str | Path) -> list[Recording]:
    """The recordings of a task in a folder and the folders below it, in key order.

    Recordings that the task's pattern does not match are left out with a warning. Hidden files and folders are passed
    over, and so are the copies in a BIDS dataset's `derivatives` and `sourcedata`. Links to folders are followed, each
    folder once.

    Raises:
        FileNotFoundError: there is no such folder, no table where the task names one, or no recording of the task.
        ValueError: a table that cannot be read, or that names files which are not there; the message names the line.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder. Give the folder that holds the recordings.")
    if isinstance(task.labels, TableLabels):
        return _recordings_of_table(task, folder, read_table(folder / task.labels.file))
    keys = sorted(_keys(folder))
    shared = _shared_folders(keys)
    found = {key: one for key in keys if (one := _recording(task.recordings, folder, key, shared))}
    others = [key for key in keys if key not in found]
    if not found:
        seen = f"its recordings are {_some(others)}" if others else "it holds no recording"
        raise FileNotFoundError(
            f"{folder} has no recording of task {task.name}: {seen}. They must be laid out as "
            f"{task.recordings.layout}."
        )
    if others:
        warnings.warn(
            f"{folder}: {len(others)} recordings left out, not laid out as {task.recordings.layout}: {_some(others)}.",
            stacklevel=2,
        )
    return list(found.values())


def subject_of(key: str, shared: int = 0) -> tuple[str, Guess | None]:
    """Whose a recording is where the task has no pattern to say so, and what that was guessed from.

    In this order: the `sub-` entity of a BIDS name and the id in the name of a Temple University file, such as
    `aaaaaaaq_s001_t000.edf`, which are no guesses; the first folder after those that all recordings share, which say
    nothing of a subject; the file's name without suffix.

    Args:
        key: path from the input folder on.
        shared: how many folders all recordings share, from the input folder on.
    """
    if named := _BIDS_SUBJECT.search(key) or _TUH_SUBJECT.search(key):
        return named[1], None
    path = PurePosixPath(key)
    folders = path.parent.parts[shared:]
    return (folders[0], "folder") if folders else (path.name.split(".")[0], "file")


def read_table(path: Path) -> list[TableRow]:
    """The rows of a user's table: a CSV with the columns file, start, end, label and, if wanted, subject and split.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no UTF-8, no commas, missing or repeated columns, an empty table, or a row that is wrong; the
            message names the line.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: the table of labels that the task file names.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from error
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    header = list(reader.fieldnames or ())
    if missing := [name for name in _TABLE_COLUMNS if name not in header]:
        strange = next((f" {mark!r}" for mark in ";\t" if len(header) == 1 and mark in header[0]), "")
        raise ValueError(
            f"{path}, line 1: no column {', '.join(missing)}. Its header must be file,start,end,label and, if "
            "wanted, subject and split" + (f", with commas between them, not{strange}." if strange else ".")
        )
    if repeated := [name for name in (*_TABLE_COLUMNS, "subject", "split") if header.count(name) > 1]:
        raise ValueError(f"{path}, line 1: column {', '.join(repeated)} stands there more than once. Leave one.")
    rows = [_table_row(row, f"{path}, line {reader.line_num}") for row in reader]
    if not rows:
        raise ValueError(f"{path} has no rows.")
    return rows


def read_times(start: str, extent: str, where: str, *, duration: bool = False) -> tuple[float, float]:
    """Start and end in seconds, from the text of a start and of an end or duration.

    Raises:
        ValueError: no numbers, a start below 0, or an end before the start; the message begins with `where`.
    """
    times = []
    for name, cell in (("start", start), ("duration" if duration else "end", extent)):
        try:
            times.append(float(cell))
        except ValueError:
            times.append(math.nan)
        if not math.isfinite(times[-1]):
            raise ValueError(f"{where}: {name} must be a number of seconds, got {cell!r}.")
    first, last = times[0], sum(times) if duration else times[1]
    if not 0 <= first <= last:
        raise ValueError(f"{where}: an event from {first:g} to {last:g} s; it must start at 0 or later and end after.")
    return first, last


def _table_row(row: dict[str, str | None], where: str) -> TableRow:
    cells = {name: (row.get(name) or "").strip() for name in (*_TABLE_COLUMNS, "subject", "split")}
    if None in row or not cells["file"] or not cells["label"]:
        raise ValueError(f"{where}: a row must have a file, a start, an end and a label, and no more than the header.")
    if bool(cells["start"]) != bool(cells["end"]):
        raise ValueError(f"{where}: give start and end, or neither for the whole recording.")
    path = PurePosixPath(cells["file"])
    if path.is_absolute() or ".." in path.parts:  # keys name shards
        raise ValueError(
            f"{where}: the file {cells['file']} does not lie under the input folder. Files must lie under it and be "
            "written from there on; give --input a folder further up."
        )
    start = end = None
    if cells["start"]:
        start, end = read_times(cells["start"], cells["end"], where)
    if cells["split"] not in ("", *PARTS):
        raise ValueError(f"{where}: split must be {', '.join(PARTS)} or empty; got {cells['split']!r}.")
    split = next((part for part in PARTS if part == cells["split"]), None)
    return TableRow(path.as_posix(), start, end, cells["label"], cells["subject"] or None, split, where)


def _recordings_of_table(task: Task, folder: Path, rows: list[TableRow]) -> list[Recording]:
    """The recordings that a table names, each with its rows."""
    by_key: dict[str, list[TableRow]] = {}
    for row in rows:
        by_key.setdefault(row.file, []).append(row)
    # A slip in the table, to be mended before a long run starts.
    if missing := [key for key in by_key if not (folder / key).exists()]:
        others = f", nor are others that the table names: {_some(missing[1:])}" if missing[1:] else ""
        raise ValueError(
            f"{by_key[missing[0]][0].where}: {folder / missing[0]} is not there{others}. Correct the table, or add "
            "the files."
        )
    shared = _shared_folders(by_key)
    recordings = []
    for key, own in sorted(by_key.items()):
        named = {row.subject for row in own if row.subject}
        if len(named) > 1:
            raise ValueError(f"{own[-1].where}: {key} has several subjects: {', '.join(sorted(named))}.")
        recording = _recording(task.recordings, folder, key, shared)
        if recording is None and not named:
            raise ValueError(
                f"{own[0].where}: the subject of {key} is unknown. Add a column subject, or lay the recordings out as "
                f"{task.recordings.layout}."
            )
        subject = "".join(named) or (recording.subject if recording else "")
        guessed_from = None if named or recording is None else recording.guessed_from
        recordings.append(Recording(folder / key, key, subject, rows=tuple(own), guessed_from=guessed_from))
    return recordings


def _shared_folders(keys: Iterable[str]) -> int:
    """How many folders all of these recordings lie in, from the input folder on."""
    parents = [os.path.dirname(key) for key in keys]
    return len(PurePath(os.path.commonpath(parents)).parts) if parents else 0


def _recording(files: RecordingFiles, folder: Path, key: str, shared: int) -> Recording | None:
    """The recording of that key, or `None` if it is none of the task's."""
    if files.pattern is None:
        subject, guessed_from = subject_of(key, shared)
        return Recording(folder / key, key, subject, guessed_from=guessed_from)
    match = re.fullmatch(files.pattern, key)
    if match is None:
        return None
    groups = match.groupdict()
    return Recording(folder / key, key, groups["subject"], groups.get("split"), groups.get("label"))


def _keys(folder: Path) -> Iterator[str]:
    """The paths of everything below a folder that is a recording by its suffix."""
    root = os.path.realpath(folder)
    seen = {root}
    is_bids = (folder / "dataset_description.json").is_file()
    for place, folders, files in os.walk(folder, followlinks=True):
        below = Path(place).relative_to(folder)
        hidden = _BIDS_COPIES if is_bids and below == Path() else ()
        folders[:] = [name for name in folders if not name.startswith(".") and name not in hidden]
        neighbours = {name.lower() for name in files}
        recordings = [name for name in (*folders, *files) if _is_recording(name.lower(), neighbours)]
        if any(name.lower().endswith(".eeg") for name in recordings):
            parts = _named_by_headers(Path(place), files)
            recordings = [name for name in recordings if name.lower() not in parts]
        yield from ((below / name).as_posix() for name in recordings)
        # A recording that is a folder holds no others.
        inner = sorted(name for name in folders if name not in recordings)
        folders[:] = [name for name in inner if _is_new(os.path.join(place, name), root, seen)]


def _is_new(folder: str, root: str, seen: set[str]) -> bool:
    """Whether a folder was not walked before, and is no link to one that is walked anyway; then it counts as seen."""
    real = os.path.realpath(folder)
    if real in seen or (os.path.islink(folder) and Path(real).is_relative_to(root)):
        return False
    seen.add(real)
    return True


def _named_by_headers(folder: Path, files: list[str]) -> set[str]:
    """The data files, in lower case, that the BrainVision headers of a folder name."""
    headers = [folder / name for name in files if name.lower().endswith((".vhdr", ".ahdr"))]
    texts = [header.read_text(encoding="latin-1") for header in headers if header.is_file()]
    return {name.lower() for text in texts for name in _BRAINVISION_DATA.findall(text)}


def _is_recording(name: str, neighbours: set[str]) -> bool:
    """Whether a name is that of a recording and not of a part of one; all names in lower case."""
    if name.startswith(".") or not name.endswith(_SUFFIXES):
        return False
    stem, suffix = os.path.splitext(name)
    if suffix == ".eeg":
        return neighbours.isdisjoint({f"{stem}.vhdr", f"{stem}.ahdr"})
    return not (_FIF_PART.search(name) and _FIF_PART.sub(r"\1", name) in neighbours)


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
