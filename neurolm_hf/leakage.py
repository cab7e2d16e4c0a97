"""Leakage: who and what stands in training on one side and in a test on the other, within a set or between sets."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from .dataset_card import read_description
from .storage import SPLITS


Grade = Literal["certain", "declared", "possible"]

# What is trained on, and what it must not have in common with.
_LEAKS = (("train", "validation"), ("train", "test"), ("validation", "test"))
# Subjects and files of the Temple University corpora (TUAB, TUEV, TUSL, TUEG ...) carry the same name in all of them.
_TUH_SUBJECT = re.compile(r"aaaa[a-z]{4}")


@dataclass(frozen=True)
class SourceFile:
    """A recording that gave rows: its key, whose it is, the sha256 of its file, and its size in bytes."""

    key: str
    subject: str
    sha256: str | None
    bytes: int | None

    @property
    def name(self) -> str:
        """Its file name without folder and suffix, in lower case."""
        return PurePosixPath(self.key).stem.lower()


@dataclass(frozen=True)
class PreparedSet:
    """What a prepared folder says about whom it holds.

    Attributes:
        folder: as it was given.
        task: the task's name.
        corpus: whether it is a corpus to pre-train on, of which all is trained on, whatever the split.
        by_subject: whether its split keeps every subject in one part.
        recordings: by split, those that gave rows.
    """

    folder: str
    task: str
    corpus: bool
    by_subject: bool
    recordings: Mapping[str, Sequence[SourceFile]] = field(repr=False)


@dataclass(frozen=True)
class Leak:
    """A subject or a recording on both sides.

    Attributes:
        kind: what is on both sides.
        grade: `certain`; `declared`, where a published split within one set is not by subject, which the set's notes
            say; `possible`, where sets that may have nothing to do with each other use the same name.
        name: as the training side calls it; tested_name: as the other side does.
        trained_in, tested_in: (folder, split).
        reason: what they have in common.
    """

    kind: Literal["subject", "recording"]
    grade: Grade
    name: str
    tested_name: str
    trained_in: tuple[str, str]
    tested_in: tuple[str, str]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return json.loads(json.dumps(asdict(self)))


def read_prepared_set(folder: str | Path) -> PreparedSet:
    """Whom a prepared folder holds, from the subject and recording columns of its shards and its summary.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the folder holds no finished prepared set.
    """
    preparation, summary = read_description(folder)
    task = preparation["task_file"]
    published = preparation["split_rule"] in (None, "published")
    sources = {entry["recording"]: entry for entry in summary["files"]}
    recordings = {}
    for split in SPLITS:
        pairs = sorted(_subjects_of_recordings(Path(folder) / "data" / split))
        recordings[split] = [
            SourceFile(key, subject, sources.get(key, {}).get("sha256"), sources.get(key, {}).get("bytes"))
            for key, subject in pairs
        ]
    return PreparedSet(
        folder=str(folder),
        task=preparation["task"],
        corpus=task["question"] is None,
        by_subject=not published or task["split"]["rule"] not in ("trials", "shares"),
        recordings=recordings,
    )


def find_leaks(sets: Sequence[PreparedSet]) -> list[Leak]:
    """Every subject and every recording that is trained on in one part and evaluated in another.

    Trained on are a task's train part, its validation part against its test part, and all of a corpus. A recording is
    the same by its content, or by its name where the size agrees or the names are those of one archive; a subject is
    the same by its name, surely so within one archive: the same task, the Temple University corpora, or sets that
    share a file. Elsewhere a common name such as `S001` is a possible leak only.

    Args:
        sets: from `read_prepared_set`; one is compared with itself too.

    Returns:
        The leaks, in the order of the sets, then of the splits, recordings before subjects, by name.
    """
    leaks: list[Leak] = []
    for trained in sets:
        for tested in sets:
            same_archive = trained.task == tested.task or _share_a_file(trained, tested)
            for trained_split, tested_split in _parts(trained, tested):
                leaks += _recordings_in_both(trained, trained_split, tested, tested_split, same_archive)
                leaks += _subjects_in_both(trained, trained_split, tested, tested_split, same_archive)
    return leaks


def describe_leaks(leaks: Sequence[Leak], listed: int = 20) -> str:
    """A table for people: how many of which kind between which parts, and the first names of each."""
    groups: dict[tuple[str, ...], list[Leak]] = {}
    for leak in leaks:
        groups.setdefault((leak.grade, *leak.trained_in, *leak.tested_in, leak.kind, leak.reason), []).append(leak)
    lines = []
    for (grade, *parts, kind, reason), members in groups.items():
        plural = "" if len(members) == 1 else "s"
        lines.append(
            f"{grade}: {len(members)} {kind}{plural} of {parts[0]} [{parts[1]}] in {parts[2]} [{parts[3]}], {reason}"
        )
        for leak in members[:listed]:
            lines.append(f"    {leak.name}" + (f" = {leak.tested_name}" if leak.tested_name != leak.name else ""))
        if len(members) > listed:
            lines.append(f"    and {len(members) - listed} more")
    return "\n".join(lines)


def _subjects_of_recordings(folder: Path) -> set[tuple[str, str]]:
    """(recording, subject) of the rows of a split; no other column is read."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError('comparing prepared sets needs pyarrow: pip install "neurolm_hf[data]"') from error
    columns = ["recording", "subject"]
    found: set[tuple[str, str]] = set()
    for shard in sorted(folder.glob("*.parquet")):
        pairs = pq.read_table(shard, columns=columns).group_by(columns).aggregate([])
        found.update(zip(*(pairs.column(name).to_pylist() for name in columns), strict=True))
    return found


def _parts(trained: PreparedSet, tested: PreparedSet) -> Iterator[tuple[str, str]]:
    """(split, split) of the two sets that must have nothing in common. Two corpora may share what they like."""
    if tested.corpus:
        return
    if trained.corpus:
        yield from ((split, other) for split in SPLITS for other in ("validation", "test"))
    else:
        yield from _LEAKS


def _share_a_file(one: PreparedSet, other: PreparedSet) -> bool:
    return bool(_contents(one) & _contents(other))


def _contents(prepared: PreparedSet) -> set[str]:
    return {file.sha256 for files in prepared.recordings.values() for file in files if file.sha256 is not None}


def _recordings_in_both(
    trained: PreparedSet, trained_split: str, tested: PreparedSet, tested_split: str, same_archive: bool
) -> Iterator[Leak]:
    by_content = {file.sha256: file for file in tested.recordings[tested_split] if file.sha256 is not None}
    by_name = {file.name: file for file in tested.recordings[tested_split]}
    by_key = {file.key: file for file in tested.recordings[tested_split]}
    within = trained.folder == tested.folder
    for file in trained.recordings[trained_split]:
        reason, grade = "the same recording", _certain(trained, within)
        if within and file.key in by_key:
            other = by_key[file.key]
        elif file.sha256 in by_content:
            other, reason = by_content[file.sha256], "the same content"
            grade = "certain"
        elif not within and file.name in by_name:
            other = by_name[file.name]
            same_size = file.bytes is not None and file.bytes == other.bytes
            reason = "the same file name and size" if same_size else "the same file name"
            grade = "certain" if same_archive or same_size or _is_tuh(file.subject) else "possible"
        else:
            continue
        sides = (trained.folder, trained_split), (tested.folder, tested_split)
        yield Leak("recording", grade, file.key, other.key, *sides, reason)


def _subjects_in_both(
    trained: PreparedSet, trained_split: str, tested: PreparedSet, tested_split: str, same_archive: bool
) -> Iterator[Leak]:
    within = trained.folder == tested.folder
    seen = {file.subject for file in trained.recordings[trained_split]}
    for subject in sorted(seen & {file.subject for file in tested.recordings[tested_split]} - {""}):
        grade = _certain(trained, within) if same_archive or _is_tuh(subject) else "possible"
        reason = "the same subject" if grade != "possible" else "the same name for a subject, maybe of another person"
        sides = (trained.folder, trained_split), (tested.folder, tested_split)
        yield Leak("subject", grade, subject, subject, *sides, reason)


def _certain(prepared: PreparedSet, within: bool) -> Grade:
    return "declared" if within and not prepared.by_subject else "certain"


def _is_tuh(subject: str) -> bool:
    return _TUH_SUBJECT.fullmatch(subject) is not None
