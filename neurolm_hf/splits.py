"""Who is trained on, who is validated on, who is tested on."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Literal

import numpy as np

from .recordings import Recording, TableRow
from .task_sections import (
    PARTS,
    CountSplit,
    FolderSplit,
    Part,
    ShareSplit,
    Split,
    SubjectSplit,
    TableLabels,
    TrialLabels,
    TrialSplit,
    check_shares,
)
from .tasks import Task


# Of a split by subject that the user asks for in place of the task's own.
SUBJECT_SHARES: Mapping[str, float] = {"train": 0.6, "validation": 0.2, "test": 0.2}


def assign_splits(
    task: Task,
    recordings: Sequence[Recording],
    *,
    rule: Literal["subject"] | None = None,
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
) -> tuple[list[Recording], list[str]]:
    """Give every recording its part by the task's rule; the same whatever the order of the recordings.

    Where a table has a column `split`, that is the split whatever the task's rule. Then, and where the split is by
    trials, the recordings keep `split=None`: each row or trial brings its own.

    Args:
        task: its split rule is applied.
        recordings: from `find_recordings`.
        rule: `subject` splits by subject instead, also where a table has a split.
        shares: of train, validation and test in a split by subject; default: the task's own, or `SUBJECT_SHARES`.
        seed: of what is drawn.

    Returns:
        The recordings in key order, and notes on what a reader of the results should know about the split.

    Raises:
        ValueError: the rule does not apply to these recordings, or `shares` to this rule; some rows of a table have a
            split and others none, or rows put the same seconds in two parts; or subjects that are to be split could
            only be guessed from file names.
    """
    recordings = sorted(recordings, key=lambda recording: recording.key)
    split = _rule(task, recordings, rule, shares)
    guessed = _guessed_subjects(task, split, recordings)
    match split:
        case FolderSplit():
            parts = _by_folder(task, split, recordings, seed)
        case CountSplit():
            parts = _by_count(task, split, recordings)
        case ShareSplit():
            parts = _by_share(split, len(recordings))
        case TrialSplit():
            of_trials = [_parts_of_trials(task, one) for one in recordings]
            return recordings, _notes(task, split, recordings, of_trials) + guessed
        case SubjectSplit():
            part_of = split_subjects([one.subject for one in recordings], shares=split.shares, seed=seed)
            parts = [part_of[one.subject] for one in recordings]
    assigned = [dataclasses.replace(one, split=part) for one, part in zip(recordings, parts, strict=True)]
    return assigned, _notes(task, split, assigned, [{part} for part in parts]) + guessed


def splits_by_table(recordings: Sequence[Recording]) -> bool:
    """Whether a table says the split of these recordings: one of its rows has a split."""
    return any(row.split for one in recordings for row in one.rows)


def split_subjects(
    subjects: Sequence[str], *, shares: Mapping[str, float] = SUBJECT_SHARES, seed: int = 0
) -> dict[str, Part]:
    """The part of each subject, the same for the same subjects whatever their order and however often each is named.

    Args:
        subjects: names, of recordings or of windows.
        shares: of train, validation and test. Every part with a share above 0 gets a subject at least.
        seed: of the shuffle.

    Raises:
        ValueError: fewer subjects than parts, or shares that are none.
    """
    check_shares(shares)
    names = sorted(set(subjects))
    wanted = [part for part in PARTS if shares.get(part, 0) > 0]
    if len(names) < len(wanted):
        raise ValueError(
            f"A split by subject into {', '.join(wanted)} needs {len(wanted)} subjects at least; there are "
            f"{len(names)}: {', '.join(names) or 'none'}. Give other shares (--split subject --split-shares 0.5 0 "
            "0.5), or add recordings."
        )
    # One subject each, then whole subjects in proportion: the part furthest below its share takes the next.
    counts = dict.fromkeys(wanted, 1)
    for _ in range(len(names) - len(wanted)):
        counts[max(wanted, key=lambda part: shares[part] * len(names) - counts[part])] += 1
    shuffled = np.random.default_rng(seed).permutation(names).tolist()
    parts = [part for part in wanted for _ in range(counts[part])]
    return dict(zip(shuffled, parts, strict=True))


def _rule(
    task: Task,
    recordings: Sequence[Recording],
    rule: Literal["subject"] | None,
    shares: Mapping[str, float] | None,
) -> Split:
    """The rule that applies: the user's, else the table's, else the task's."""
    if rule not in (None, "subject"):
        raise ValueError(
            f"rule must be 'subject' (--split subject), or None for the task's own (--split published); got {rule!r}."
        )
    if shares is not None:
        check_shares(shares, "shares (--split-shares)")
    own = task.split
    if rule is None and splits_by_table(recordings):
        own = TrialSplit("trials")
    if rule is None and not isinstance(own, SubjectSplit):
        if shares is not None:
            raise ValueError(
                "shares belong to a split by subject, which this is not: give rule='subject' too "
                "(--split subject --split-shares 0.5 0 0.5)."
            )
        return own
    if shares is None:
        shares = own.shares if isinstance(own, SubjectSplit) else SUBJECT_SHARES
    return SubjectSplit("subject", shares)


def _guessed_subjects(task: Task, split: Split, recordings: Sequence[Recording]) -> list[str]:
    """A note on subjects that are guessed; a ValueError where a split by subject would rest on names of files."""
    guessed = [one for one in recordings if one.guessed_from]
    if not guessed:
        return []
    names = sorted({one.subject for one in guessed})
    some = ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
    of_table = isinstance(task.labels, TableLabels)
    remedy = "add a column subject to the table, or " if of_table else ""
    remedy += "give the task a pattern with (?P<subject>...)"
    of_files = [one for one in guessed if one.guessed_from == "file"]
    if of_table and of_files and isinstance(split, SubjectSplit) and len(split.parts) > 1:
        raise ValueError(
            f"{of_files[0].rows[0].where}: a split by subject needs to know whose {of_files[0].key} is, and the names "
            f"of {len(of_files)} files are all there is to guess from. One person's files could be trained on and "
            f"tested on: {remedy}."
        )
    return [
        f"The subjects of {len(guessed)} recordings are guessed from folder or file names ({some}): if one person has "
        f"several, {remedy}."
    ]


def _by_folder(task: Task, split: FolderSplit, recordings: Sequence[Recording], seed: int) -> list[Part]:
    """The part of each recording's folder, some subjects of the train folder moved to the validation part."""
    parts: list[Part] = []
    subjects: dict[str, set[str]] = {}  # of the train folder, by the label they are drawn from
    for one in recordings:
        part = split.folders.get(one.folder or "")
        if part is None:
            known = ", ".join(split.folders)
            raise ValueError(f"{one.path}: folder {one.folder!r} is no part of task {task.name} ({known}).")
        if part == "train":
            subjects.setdefault(_stratum(split, one), set()).add(one.subject)
        parts.append(part)
    if not split.validation_share:
        return parts
    rng = np.random.default_rng(seed)
    held_out: set[tuple[str, str]] = set()
    for stratum, names in sorted(subjects.items()):
        count = min(max(round(len(names) * split.validation_share), 1), len(names) - 1)
        held_out |= {(stratum, name) for name in rng.permutation(sorted(names)).tolist()[:count]}
    return [
        "validation" if part == "train" and (_stratum(split, one), one.subject) in held_out else part
        for one, part in zip(recordings, parts, strict=True)
    ]


def _stratum(split: FolderSplit, recording: Recording) -> str:
    return (recording.label or "") if split.per_label else ""


def _by_count(task: Task, split: CountSplit, recordings: Sequence[Recording]) -> list[Part]:
    if len(recordings) != split.recordings:
        raise ValueError(
            f"The published split of {task.name} counts recordings in name order ({split.train} train, "
            f"{split.validation} validation, the rest test) and needs all {split.recordings}; there are "
            f"{len(recordings)}. Add the others, or split by subject: --split subject (rule='subject')."
        )
    counts = (split.train, split.validation, split.recordings - split.train - split.validation)
    return [part for part, count in zip(PARTS, counts, strict=True) for _ in range(count)]


def _by_share(split: ShareSplit, recordings: int) -> list[Part]:
    """Parts one after the other; each begins where the shares before it end, rounded down."""
    parts: list[Part] = []
    end = 0.0
    for name, share in split.shares.items():
        end += share
        # 1e-9, since sums of shares may fall a little short.
        parts += [part for part in PARTS if part == name] * (int(end * recordings + 1e-9) - len(parts))
    return parts


def _parts_of_trials(task: Task, recording: Recording) -> set[Part]:
    """The parts in which the trials of a recording are."""
    if isinstance(task.labels, TrialLabels):
        return {trial.split for trial in task.labels.trials if trial.split}
    if unsplit := next((row for row in recording.rows if row.split is None), None):
        of_task = isinstance(task.split, TrialSplit)
        other = f"task {task.name} splits by its table" if of_task else "other rows have one"
        raise ValueError(
            f"{unsplit.where}: no split, though {other}. Fill in the column split in every row, or split by subject: "
            "--split subject (rule='subject')."
        )
    _check_overlaps(recording)
    return {row.split for row in recording.rows if row.split}


def _check_overlaps(recording: Recording) -> None:
    """A ValueError where rows of a table put the same seconds in two parts."""
    last: dict[Part, TableRow] = {}  # of each part, the row that goes on longest
    for row in sorted(recording.rows, key=lambda row: row.start or 0.0):
        for part, other in last.items():
            if part != row.split and _end(other) > (row.start or 0.0):
                raise ValueError(
                    f"{row.where}: these seconds of {recording.key} are {row.split}, but those of {other.where} are "
                    f"{part}, and the two overlap. Put them in one part, or split by subject: --split subject "
                    "(rule='subject')."
                )
        if row.split and (row.split not in last or _end(row) > _end(last[row.split])):
            last[row.split] = row


def _end(row: TableRow) -> float:
    return math.inf if row.end is None else row.end


def _notes(
    task: Task,
    split: Split,
    recordings: Sequence[Recording],
    parts: Sequence[set[Part]],
) -> list[str]:
    """What a reader should know: that a table says the split, and how many subjects stand in more than one part."""
    of_subject: dict[str, set[Part]] = {}
    for recording, found in zip(recordings, parts, strict=True):
        of_subject.setdefault(recording.subject, set()).update(found)
    shared = sum(len(found) > 1 for found in of_subject.values())
    if split.by_subject and not shared:
        return []
    source = f"by {split.kind}, not by subject"
    if isinstance(split, TrialSplit) and isinstance(task.labels, TableLabels):
        source = f"the column split of {PurePath(task.labels.file).name}"
    return [
        f"The split of task {task.name} is {source}: {shared} of {len(of_subject)} subjects stand in more than one "
        "part."
    ]
