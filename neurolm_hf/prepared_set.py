"""The folder of a prepared set: its settings, its reports, its summary.

    OUT/preparation.json            the settings; a run with others is refused
    OUT/data/SPLIT/SHARD.parquet    rows, one shard a recording and split
    OUT/reports/SHARD.json          what became of a recording, written after its shards: without it they do not count
    OUT/summary.json, README.md     made from the reports, at the end

No file holds a time, an absolute path or anything that depends on the order of work, so that the same recordings and
settings give the same bytes, however often the work was interrupted, and on however many machines it ran.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .storage import TEMPORARY, Row, ShardWriter, write_text
from .task_sections import PARTS
from .tasks import Task
from .typed_json import read_dataclass


# How the name of the file ends that is there while a recording is worked on.
BEGUN = f".json.begun{TEMPORARY}"


@dataclass(frozen=True)
class Summary:
    """What a prepared set holds, as `summary.json` says it.

    Attributes:
        files: one entry a recording, in the order of their keys: `recording`, `subject`, `sha256`, `bytes`, `hours`
            (length of the recording), `windows` (by split), `left_out` (`reason`, `windows`), `warnings`, `error`,
            `steps_impossible` (of the recipe; left out because the recording does not allow them), `dropped` (name and
            reason of each channel left out). `sha256` and `bytes` are those of all files that hold the recording.
        windows, hours, subjects: by split; hours are those of the windows, overlaps counted twice.
        missing: keys of recordings that are not prepared yet, because another shard of the run has them.
        notes: what a user of the set must know, such as a split that is not by subject.
        fingerprint: sha256 over the shards; equal sets have equal ones.
    """

    files: list[dict[str, Any]]
    windows: dict[str, int]
    hours: dict[str, float]
    subjects: dict[str, int]
    missing: list[str]
    notes: list[str]
    fingerprint: str

    @property
    def failed(self) -> list[dict[str, Any]]:
        """The entries of recordings that could not be prepared."""
        return [entry for entry in self.files if entry["error"] is not None]

    def __str__(self) -> str:
        left_out: dict[str, int] = {}
        for part in (part for entry in self.files for part in entry["left_out"]):
            left_out[part["reason"]] = left_out.get(part["reason"], 0) + part["windows"]
        lines = [f"{len(self.files)} recordings, {len(self.failed)} failed"]
        for split, windows in self.windows.items():
            hours, subjects = self.hours[split], self.subjects[split]
            lines.append(f"  {split:<12}{windows:>9} windows {hours:>9.1f} h {subjects:>6} subjects")
        if self.files and not self.windows:
            lines.append("  no window was kept")
        lines += [f"  left out    {count:>9} windows: {reason}" for reason, count in sorted(left_out.items())]
        for entry in self.failed:
            name, error = entry["recording"], entry["error"]
            lines.append(f"  failed: {error if name in error else f'{name}: {error}'}")
        warned = sum(bool(entry["warnings"]) for entry in self.files)
        lines += [f"  {warned} recordings with warnings: see summary.json"] * bool(warned)
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def prepared_task(folder: str | Path) -> Task:
    """The task of a prepared set, as it was when the set was made.

    Raises:
        FileNotFoundError: the folder holds no prepared set.
        ValueError: its `preparation.json` cannot be read.
    """
    return read_dataclass(Task, _setting(Path(folder), "task_file"), f"{folder}/preparation.json: task_file")


def prepared_recipe_id(folder: str | Path) -> str:
    """The recipe by which a prepared set was made, as `EEGFeatureExtractor.recipe_id`.

    Raises:
        FileNotFoundError: the folder holds no prepared set.
        ValueError: its `preparation.json` cannot be read.
    """
    return str(_setting(Path(folder), "recipe_id"))


def _setting(folder: Path, name: str) -> Any:
    """A value of a prepared set's `preparation.json`."""
    file = folder / "preparation.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no prepared recordings. Give the --output folder of scripts/prepare_data.py."
        )
    settings = read_object(file)
    if settings is None or name not in settings:
        raise ValueError(f"{file} is damaged, it says no {name}: prepare the recordings again.")
    return settings[name]


def shard_name(key: str) -> str:
    """The name of a recording's shards and report: readable, unique, and a file name everywhere."""
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", str(Path(key).with_suffix(""))).strip("-")[-80:]
    return f"{readable}-{text_sha256(key)[:8]}"


def open_output(output: Path, settings: dict[str, Any]) -> None:
    """Makes the folder, or sees to it that it is one of the same preparation. Takes its summary away until the end.

    Where nothing has been prepared yet and nothing is under way, other settings take the place of those that are
    there. A licence is no such setting: a run without one keeps that of an earlier run, another takes its place.

    Raises:
        ValueError: it was prepared with other settings, holds something else, or its settings cannot be read.
    """
    file = output / "preparation.json"
    names = {one.name for one in output.iterdir() if not one.name.endswith(TEMPORARY)} if output.exists() else set()
    if names and file.name not in names:
        raise ValueError(f"{output} holds other files and no preparation.json. Give an empty or a new output folder.")
    settings = json.loads(to_json(settings))
    if not file.is_file():  # another part of this preparation may write the same at this moment
        write_text(file, to_json(settings))
    there = read_object(file)
    if there is None:
        raise ValueError(f"{file} is empty or damaged. Delete {output}, or give another output folder.")
    if "licence" in there:
        settings.setdefault("licence", there["licence"])
    if there != settings:
        different = _differences(there, settings)
        if different and _holds_results(output):
            raise ValueError(
                f"{output} was prepared with other settings ({different}). Give another output folder, or the "
                "settings of the first run, or delete the folder."
            )
        write_text(file, to_json(settings))
    unlink_all([output / "summary.json", output / "README.md"])  # until the run is complete


def _holds_results(output: Path) -> bool:
    """Whether a folder holds anything worth keeping: a shard, a report without an error, or work under way."""
    if any(output.glob("data/*/*.parquet")) or any(output.glob(f"reports/.*{BEGUN}")):
        return True
    reports = map(read_report, output.glob("reports/[!.]*.json"))
    return any(report is not None and report["error"] is None for report in reports)


def read_report(file: Path) -> dict[str, Any] | None:
    """A recording's report; `None` where it is not there or is none."""
    report = read_object(file)
    return report if report is not None and "error" in report else None


def read_object(file: Path) -> dict[str, Any] | None:
    """The object in a JSON file; `None` where there is no file or nothing such in it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _differences(there: dict[str, Any], settings: dict[str, Any]) -> str:
    """What differs, by its path, such as `recipe.scale: was 100.0, is 10.0`."""
    before, now = dict(_leaves(there)), dict(_leaves(settings))
    different = [path for path in sorted(before | now) if before.get(path) != now.get(path) and path != "licence"]
    return "; ".join(f"{path}: was {before.get(path, 'absent')}, is {now.get(path, 'absent')}" for path in different)


def _leaves(content: dict[str, Any], within: str = "") -> Iterator[tuple[str, str]]:
    """(path, JSON) of every value that is no object itself."""
    for name, value in content.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{within}{name}.")
        else:
            yield f"{within}{name}", json.dumps(value, ensure_ascii=False)


def remove_leftovers(output: Path, names: set[str], mine: set[str]) -> None:
    """Removes what belongs to no recording any more, and what a killed run has left half-written.

    Args:
        output: folder of the prepared set.
        names: of the shards of all recordings.
        mine: of those that this run prepares; others may be written by another run at this moment.
    """
    for folder in [output / "reports", *(output / "data" / split for split in PARTS)]:
        if not folder.is_dir():
            continue
        for file in folder.iterdir():
            name = file.name.lstrip(".").split(".")[0]
            if name not in names or (name in mine and file.name.endswith(TEMPORARY)):
                file.unlink(missing_ok=True)
    if names == mine:
        unlink_all(output.glob(f".*{TEMPORARY}"))


# What makes a report one of this very recording, where it says it.
_IDENTITY = ("recording", "request", "sha256", "files_beside")


def new_report(key: str, subject: str) -> dict[str, Any]:
    """The report of a recording before anything is read or written."""
    return {
        "recording": key,
        "subject": subject,
        "sha256": None,
        "bytes": None,
        "hours": 0.0,
        "windows": {},
        "window_hours": {},
        "shards": {},
        "left_out": [],
        "warnings": [],
        "error": None,
    }


def report_file(output: Path, key: str) -> Path:
    """Where the report of a recording lies."""
    return output / "reports" / f"{shard_name(key)}.json"


def shard_file(output: Path, split: str, key: str) -> Path:
    """Where the rows of a recording lie that are in a split."""
    return output / "data" / split / f"{shard_name(key)}.parquet"


def is_done(output: Path, wanted: dict[str, Any]) -> bool:
    """Whether a recording has a report without an error on what `wanted`, a new report, is about, and shards as that
    report says."""
    key = wanted["recording"]
    report = read_report(report_file(output, key))
    if report is None or report["error"] is not None:
        return False
    try:
        if any(report[name] != wanted[name] for name in _IDENTITY if name in wanted):
            return False
        shards = report["shards"].items()
        return all(file_sha256(shard_file(output, split, key)) == sha256 for split, sha256 in shards)
    except (OSError, KeyError, AttributeError):
        return False


def forget(output: Path, key: str) -> None:
    """Removes a recording's report and shards."""
    unlink_all([report_file(output, key), *(shard_file(output, split, key) for split in PARTS)])


class RecordingWriter:
    """Writes the rows of one recording, a shard a split, and counts them in its report.

    With `commit` the shards appear; without it, at the end of the `with` block, there are none.

    Args:
        output: folder of the prepared set.
        report: of the recording; `windows`, `window_hours` and `shards` are filled in.
        task: as in `storage.row_features`.
    """

    def __init__(self, output: Path, report: dict[str, Any], task: Task | None):
        self._output = output
        self._report = report
        self._task = task
        self._writers: dict[str, ShardWriter] = {}

    def __enter__(self) -> "RecordingWriter":
        return self

    def add(self, split: str, row: Row, seconds: float) -> None:
        """Takes a row from `storage.encode_row`, of a window of so many seconds."""
        if split not in self._writers:
            path = shard_file(self._output, split, self._report["recording"])
            self._writers[split] = ShardWriter(path, self._task)
        self._writers[split].add(row)
        counts, hours = self._report["windows"], self._report["window_hours"]
        counts[split] = counts.get(split, 0) + 1
        hours[split] = hours.get(split, 0.0) + seconds / 3600

    def commit(self) -> None:
        """Makes the shards appear."""
        for split, writer in sorted(self._writers.items()):
            writer.commit()
            self._report["shards"][split] = file_sha256(writer.path)
        self._writers.clear()

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            writer.discard()


def unlink_all(files: Iterable[Path]) -> None:
    """Removes files, whether they are there or not."""
    for file in files:
        file.unlink(missing_ok=True)


def summarize(output: Path, keys: Sequence[str], notes: Sequence[str]) -> Summary:
    """The summary of the reports that are there; recordings without one are missing.

    Args:
        output: folder of the prepared set.
        keys: of all its recordings, sorted.
        notes: to begin with.
    """
    reports, missing = [], []
    for key in keys:
        report = read_report(report_file(output, key))
        if report is None:
            missing.append(key)
        else:
            reports.append(report)
    splits = [split for split in PARTS if any(split in report["windows"] for report in reports)]
    subjects = {split: {report["subject"] for report in reports if split in report["windows"]} for split in splits}
    shards = sorted(
        f"{split}/{shard_name(report['recording'])} {digest}"
        for report in reports
        for split, digest in report["shards"].items()
    )
    notes = list(notes)
    if missing:
        notes.append(f"{len(missing)} of {len(keys)} recordings are not prepared yet, {missing[0]} among them")
    fields = ("recording", "subject", "sha256", "bytes", "hours", "windows", "left_out", "warnings", "error")
    return Summary(
        files=[
            # of windows that were filtered elsewhere nothing is known
            {name: report[name] for name in fields}
            | {name: report.get(name, []) for name in ("steps_impossible", "dropped")}
            for report in reports
        ],
        windows={split: sum(report["windows"].get(split, 0) for report in reports) for split in splits},
        hours={split: sum(report["window_hours"].get(split, 0.0) for report in reports) for split in splits},
        subjects={split: len(subjects[split]) for split in splits},
        missing=missing,
        notes=notes,
        fingerprint=text_sha256("\n".join(shards)),
    )


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """The sha256 of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def to_json(content: Any) -> str:
    """As the JSON files of a prepared set are written. Keys stay in order, for that of answers is that of classes."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
