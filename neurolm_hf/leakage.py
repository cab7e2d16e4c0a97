"""Leakage: who and what stands in training on one side and in a test on the other, within a set or between sets."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from .dataset_card import read_description
from .task_sections import PARTS, may_share_subjects


Item = TypeVar("Item")
Grade = Literal["certain", "declared", "possible"]

# What is trained on, and what it must not have in common with.
_LEAKS = (("train", "validation"), ("train", "test"), ("validation", "test"))
# Leaks of a kind that a table names.
_NAMED_AT_MOST = 20
# Subjects and files of the Temple University corpora (TUAB, TUEV, TUSL, TUEG ...) carry the same name in all of them.
_TUH_SUBJECT = re.compile(r"(?<![a-z])aaaa[a-z]{4}(?![a-z])")
_WRITTEN_BEFORE_A_SUBJECT = re.compile(r"^(?:(?:subject|sub)[\W_]+|(?:subject|sub|s)(?=\d))")


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
        by_subject: whether its split is to keep every subject in one part; of the published ones some are not.
        recordings: by split, those that gave rows.
    """

    folder: str
    task: str
    corpus: bool
    by_subject: bool
    recordings: Mapping[str, Sequence[SourceFile]] = field(repr=False)

    @property
    def only_subject(self) -> str | None:
        """The subject of all its recordings, if these are several: then nothing tells whose they are."""
        files = [file for files in self.recordings.values() for file in files]
        subjects = {file.subject for file in files}
        return subjects.pop() if len({file.key for file in files}) > 1 == len(subjects) else None


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
        ValueError: the folder holds no finished prepared set, or some recordings are not prepared yet.
    """
    preparation, summary = read_description(folder)
    if missing := summary.get("missing"):
        raise ValueError(
            f"{folder}: {len(missing)} recordings are not prepared yet, {missing[0]} among them, and may leak too: "
            "run the other shards first."
        )
    task = preparation["task_file"]
    published = preparation["split_rule"] in (None, "published")
    sources = {entry["recording"]: entry for entry in summary["files"]}
    recordings: dict[str, list[SourceFile]] = {}
    for split in PARTS:
        pairs = sorted(_subjects_of_recordings(Path(folder) / "data" / split))
        recordings[split] = [
            SourceFile(key, subject, sources.get(key, {}).get("sha256"), sources.get(key, {}).get("bytes"))
            for key, subject in pairs
        ]
    return PreparedSet(
        folder=str(folder),
        task=preparation["task"],
        corpus=task["question"] is None,
        by_subject=not published or not may_share_subjects(task["split"]),
        recordings=recordings,
    )


def find_leaks(sets: Sequence[PreparedSet]) -> list[Leak]:
    """Every subject and every recording that is trained on in one part and evaluated in another.

    Trained on are a task's train part, its validation part against its test part, and all of a corpus. A recording is
    the same by its content, or by its name where the size agrees or the names are those of one archive; a subject is
    the same by its name, surely so within one archive: the same task, the Temple University corpora, or sets that
    share a file. Elsewhere a common name such as `S001` is a possible leak only, as is everywhere a name that differs
    in its writing (`sub-01`, `S1`), or stands before the first `_` of a file name.

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


def describe_leaks(leaks: Sequence[Leak]) -> str:
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
        for leak in members[:_NAMED_AT_MOST]:
            lines.append(f"    {leak.name}" + (f" = {leak.tested_name}" if leak.tested_name != leak.name else ""))
        if len(members) > _NAMED_AT_MOST:
            lines.append(f"    and {len(members) - _NAMED_AT_MOST} more")
    return "\n".join(lines)


def is_tuh_subject(name: str) -> bool:
    """Whether a subject is one of the Temple University corpora, who is called the same in all of them."""
    return _TUH_SUBJECT.fullmatch(name) is not None


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
        yield from ((split, other) for split in PARTS for other in ("validation", "test"))
    else:
        yield from _LEAKS


def _share_a_file(one: PreparedSet, other: PreparedSet) -> bool:
    return bool(_contents(one) & _contents(other))


def _contents(prepared: PreparedSet) -> set[str]:
    return {file.sha256 for files in prepared.recordings.values() for file in files if file.sha256 is not None}


def _recordings_in_both(
    trained: PreparedSet, trained_split: str, tested: PreparedSet, tested_split: str, same_archive: bool
) -> Iterator[Leak]:
    by_content = _grouped((file.sha256, file) for file in tested.recordings[tested_split] if file.sha256 is not None)
    by_name = _grouped((file.name, file) for file in tested.recordings[tested_split])
    by_key = _grouped((file.key, file) for file in tested.recordings[tested_split])
    sides = (trained.folder, trained_split), (tested.folder, tested_split)
    within = trained.folder == tested.folder
    for file in trained.recordings[trained_split]:
        if within and file.key in by_key:
            yield Leak("recording", _certain(trained, within), file.key, file.key, *sides, "the same recording")
        elif file.sha256 in by_content:
            for other in by_content[file.sha256]:
                yield Leak("recording", "certain", file.key, other.key, *sides, "the same content")
        elif not within:
            for other in by_name.get(file.name, []):
                same_size = file.bytes is not None and file.bytes == other.bytes
                reason = "the same file name and size" if same_size else "the same file name"
                certain = same_archive or same_size or is_tuh_subject(file.subject)
                yield Leak("recording", "certain" if certain else "possible", file.key, other.key, *sides, reason)


def _grouped(pairs: Iterable[tuple[str, Item]]) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = {}
    for name, item in pairs:
        groups.setdefault(name, []).append(item)
    return groups


def _subjects_in_both(
    trained: PreparedSet, trained_split: str, tested: PreparedSet, tested_split: str, same_archive: bool
) -> Iterator[Leak]:
    within = trained.folder == tested.folder
    sides = (trained.folder, trained_split), (tested.folder, tested_split)
    seen, others = trained.recordings[trained_split], tested.recordings[tested_split]
    subjects, other_subjects = _subjects(seen), _subjects(others)
    for subject in sorted(subjects & other_subjects):
        grade = _certain(trained, within) if same_archive or is_tuh_subject(subject) else "possible"
        reason = "the same subject" if grade != "possible" else "the same name for a subject, maybe of another person"
        yield Leak("subject", grade, subject, subject, *sides, reason)
    if not within:  # in one set, names are written and derived in one way
        subjects, other_subjects = subjects | _beginnings(seen), other_subjects | _beginnings(others)
    similar = _grouped((_without_writing(subject), subject) for subject in sorted(other_subjects))
    known = {_without_writing(subject) for subject in _subjects(seen) & _subjects(others)}
    for form, names in _grouped((_without_writing(subject), subject) for subject in sorted(subjects)).items():
        if form in similar and form not in known:
            reason = "names that differ in their writing, or begin file names, maybe of another person"
            yield Leak("subject", "possible", names[0], similar[form][0], *sides, reason)


def _subjects(files: Iterable[SourceFile]) -> set[str]:
    """Subjects, and the subjects of the Temple University corpora that stand in the path of a file."""
    found = {file.subject for file in files}
    return (found | {name for file in files for name in _TUH_SUBJECT.findall(file.key)}) - {""}


def _beginnings(files: Iterable[SourceFile]) -> set[str]:
    """What stands before the first underscore of a file name, where it has a number and so may be a subject."""
    beginnings = {file.name.partition("_")[0] for file in files if "_" in file.name}
    return {text for text in beginnings if any(letter.isdigit() for letter in text)}


def _without_writing(subject: str) -> str:
    """`1` of 'S001', 'sub-01' and 'Subject 1'."""
    bare = _WRITTEN_BEFORE_A_SUBJECT.sub("", subject.casefold(), count=1) if subject else ""
    return bare.lstrip("0") or bare


def _certain(prepared: PreparedSet, within: bool) -> Grade:
    return "declared" if within and not prepared.by_subject else "certain"
