"""The sections of a task file: where recordings are, where labels come from, where windows lie, how to split.

The attributes of each class are the fields of its JSON object; those with a default may be left out. Labels and splits
have several forms, told apart by their first field: `{"source": "path", ...}`, `{"rule": "subject", ...}`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal


Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
# At the end of a name in the map of labels, stands for any text.
ANY_TEXT = "*"

LabelMap = Mapping[str, str | None]


# Recordings ----------------------------------------------------------------


@dataclass(frozen=True)
class ChannelSkip:
    """A recording gives no windows if one of the channels used has a certain name.

    Attributes:
        channel: a regular expression; it is searched for in the channels' names as they stand in the recording, such
            as `-LE$` in `EEG FP1-LE`.
        reason: what reports say of the recordings left out.
    """

    channel: str
    reason: str

    def __post_init__(self) -> None:
        check_pattern("channel", self.channel)


@dataclass(frozen=True)
class RecordingFiles:
    """Which files are the recordings, and whose they are.

    Attributes:
        layout: what the folder looks like, for people: it stands in errors and in tables.
        pattern: a regular expression that the whole path of a recording matches from the input folder on, written with
            `/`; other recordings are left out with a warning. `(?P<subject>...)` must be there and says whose the
            recording is. `(?P<split>...)` is what the split rule `folders` goes by. `(?P<label>...)` is the label of
            the source `path`, and stands before the descriptions of the source `annotations`. There are no other named
            groups. `None` takes every file that MNE opens and guesses the subject from its path
            (`recordings.subject_of`), which the notes of the prepared set say.
        skip: recordings to leave out by the names of their channels; `None`: none.
    """

    layout: str
    pattern: str | None = None
    skip: ChannelSkip | None = None

    def __post_init__(self) -> None:
        check_pattern("pattern", self.pattern or "")
        if self.pattern is not None and "subject" not in self.groups:
            raise ValueError("pattern must have a group (?P<subject>...): a split needs to know whose a recording is.")
        if strange := self.groups - {"subject", "split", "label"}:
            raise ValueError(f"pattern must have no groups but subject, split and label; got {', '.join(strange)}.")

    @property
    def groups(self) -> set[str]:
        """Named groups of the pattern."""
        return set(re.compile(self.pattern or "").groupindex)


# Labels ----------------------------------------------------------------


@dataclass(frozen=True)
class NoLabels:
    """A corpus: nothing is asked, the whole recording is used.

    Attributes:
        source: `none`.
    """

    source: Literal["none"]


@dataclass(frozen=True)
class PathLabels:
    """One label for the whole recording: the group `label` of the pattern.

    Attributes:
        source: `path`.
        map: from each label, as it is written, to its answer, or to null for what is left out and counted. A name
            that ends in `*` stands for every label that is not named and begins so, `"*"` for all of these; a label
            that nothing stands for is an error. `None`: the labels are the answers. The other sources have the same
            map.
    """

    source: Literal["path"]
    map: LabelMap | None = None


@dataclass(frozen=True)
class SidecarLabels:
    """A table of events in a text file (UTF-8) beside each recording.

    Attributes:
        source: `sidecar`.
        file: its name, with `{stem}` for the recording's without suffix.
        delimiter: between columns; `None` for blanks and tabs.
        header_lines: lines to pass over; the last of them has the column names, if names are used.
        start, end, duration, label: columns, by name or by position from 0. Times in seconds from the recording's
            start; either `end` or `duration` is given.
        map: from labels to answers, as in `PathLabels`.
    """

    source: Literal["sidecar"]
    file: str
    delimiter: str | None
    header_lines: int
    start: int | str
    label: int | str
    end: int | str | None = None
    duration: int | str | None = None
    map: LabelMap | None = None

    def __post_init__(self) -> None:
        if "{stem}" not in self.file or set("{}") & set(self.file.replace("{stem}", "")):
            raise ValueError(f"file must have {{stem}} for the recording's name and no other {{}}; got {self.file!r}.")
        if (self.end is None) == (self.duration is None):
            raise ValueError("either end or duration must be given.")
        columns = (self.start, self.label, self.end, self.duration)
        if self.header_lines < 1 and any(isinstance(column, str) for column in columns):
            raise ValueError("header_lines must be 1 or more where columns are named.")


@dataclass(frozen=True)
class Trial:
    """Some seconds of every recording that have one label.

    Attributes:
        start, end: seconds from the recording's start; `end` is not included.
        label: as the map has it or, without a map, an answer.
        split: the part the trial is in, where the split rule is `trials`.
    """

    start: float
    end: float
    label: str
    split: Part | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"start and end must be 0 <= start < end; got {self.start:g} and {self.end:g}.")


@dataclass(frozen=True)
class TrialLabels:
    """The same trials in every recording.

    Attributes:
        source: `trials`.
        trials: one or more.
        map: from labels to answers, as in `PathLabels`.
    """

    source: Literal["trials"]
    trials: tuple[Trial, ...]
    map: LabelMap | None = None

    def __post_init__(self) -> None:
        if not self.trials:
            raise ValueError("trials must hold at least one trial.")


@dataclass(frozen=True)
class AnnotationLabels:
    """The annotations MNE finds in the recording (in a BIDS dataset: its events.tsv), by their description.

    Attributes:
        source: `annotations`.
        map: from descriptions to answers, as in `PathLabels`. Where the pattern has a group `label`, its names are
            `<group>:<description>`, such as `04:T1`: a run decides what T1 means.
    """

    source: Literal["annotations"]
    map: LabelMap | None = None


@dataclass(frozen=True)
class TableLabels:
    """One CSV (UTF-8, commas) for all recordings, with the columns file, start, end, label and, if wanted, subject and
    split.

    A row is one event. Its `file` lies under the input folder and is written from there on; only the recordings named
    in the table are used. `start` and `end` are seconds, both empty for the whole recording. `subject` says whose the
    recording is, in place of the pattern. `split` is train, validation or test; it stands in every row or in none, no
    two parts share seconds of a recording, and it is the split whatever the task's rule, unless the user asks for one
    by subject.

    Attributes:
        source: `table`.
        file: the CSV, relative to the input folder, or its full path.
        map: from labels to answers, as in `PathLabels`.
    """

    source: Literal["table"]
    file: str
    map: LabelMap | None = None


Labels = NoLabels | PathLabels | SidecarLabels | TrialLabels | AnnotationLabels | TableLabels


# Windows ----------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """Where windows lie inside what a label is about: from its start on, the remainder dropped.

    What a label is about is the whole recording for the sources `none` and `path`, an event for the others.

    Attributes:
        seconds: length of a window, in whole seconds; `None`, for whole recordings only: as many as the feature
            extractor's token budget holds.
        stride_seconds: from the start of a window to the start of the next; below `seconds` windows overlap. `None`: a
            window's length.
        last_seconds: windows are cut from only so many seconds at the end of a recording, one window's at least;
            `None`: from all of it. For whole recordings only.
        leave_out_last_seconds: so many seconds at the end of a recording are not used. For whole recordings only.
        before_seconds, after_seconds: signal before and after an event that its windows span too: 2 and 2 make a
            window of 5 s of an event of 1 s. For events only.
        wrap: where that signal would lie outside the recording, go on at its other end, as TUEV's windows do. Without
            it such windows are left out and counted.
    """

    seconds: int | None
    stride_seconds: float | None = None
    last_seconds: float | None = None
    leave_out_last_seconds: float = 0.0
    before_seconds: float = 0.0
    after_seconds: float = 0.0
    wrap: bool = False

    def __post_init__(self) -> None:
        for name in ("seconds", "stride_seconds"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, or null; got {value!r}.")
        if self.last_seconds is not None and self.last_seconds < (self.seconds or 1):
            raise ValueError(f"last_seconds must hold at least one window, or be null; got {self.last_seconds!r}.")
        for name in ("leave_out_last_seconds", "before_seconds", "after_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more; got {getattr(self, name)!r}.")


# Splits ----------------------------------------------------------------
# `by_subject`: the rule is meant to keep each subject in one part. `kind`: what it goes by, in words.


@dataclass(frozen=True)
class FolderSplit:
    """By the group `split` of the pattern.

    Attributes:
        rule: `folders`.
        folders: each value of the group, and the part it is, such as `{"train": "train", "eval": "test"}`. Any other
            value is an error.
        validation_share: share of the subjects of the train part, drawn by seed, that become the validation part: at
            least one, and never all. 0: none.
        per_label: draw that share of the subjects of each label (the pattern's group `label`) apart, so that every
            label is in the validation part. A subject with several labels may then stand in two parts.
    """

    rule: Literal["folders"]
    folders: Mapping[str, Part]
    validation_share: float = 0.0
    per_label: bool = False
    kind: ClassVar[str] = "folders"

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share must be 0 or more and below 1; got {self.validation_share!r}.")

    @property
    def by_subject(self) -> bool:
        """Whether the subjects held out for one label are so for every label."""
        return not (self.per_label and self.validation_share)


@dataclass(frozen=True)
class CountSplit:
    """By counts of recordings in name order.

    Attributes:
        rule: `counts`.
        train, validation: how many recordings each part has, one after the other; the others are the test part.
        recordings: how many there must be in all, since with fewer these counts make another split.
    """

    rule: Literal["counts"]
    train: int
    validation: int
    recordings: int
    by_subject: ClassVar[bool] = True
    kind: ClassVar[str] = "counts of files"

    def __post_init__(self) -> None:
        if not (self.train > 0 <= self.validation and self.train + self.validation < self.recordings):
            raise ValueError("train, validation and recordings must leave some to test.")


@dataclass(frozen=True)
class ShareSplit:
    """By shares of the recordings in name order. Subjects may stand in several parts.

    Attributes:
        rule: `shares`.
        shares: of train, validation and test, adding up to 1. The parts follow one another as they are given here.
    """

    rule: Literal["shares"]
    shares: Mapping[str, float]
    by_subject: ClassVar[bool] = False
    kind: ClassVar[str] = "files"

    def __post_init__(self) -> None:
        check_shares(self.shares)


@dataclass(frozen=True)
class TrialSplit:
    """By trials, inside every recording: the `split` of a trial, or of a row of the table. Subjects may stand in
    several parts.

    Attributes:
        rule: `trials`.
    """

    rule: Literal["trials"]
    by_subject: ClassVar[bool] = False
    kind: ClassVar[str] = "trials"


@dataclass(frozen=True)
class SubjectSplit:
    """By subject, drawn by seed.

    Attributes:
        rule: `subject`.
        shares: of the subjects, for train, validation and test, adding up to 1. A part that is not named is empty;
            every other gets a subject at least.
    """

    rule: Literal["subject"]
    shares: Mapping[str, float]
    by_subject: ClassVar[bool] = True
    kind: ClassVar[str] = "subject"

    def __post_init__(self) -> None:
        check_shares(self.shares)

    @property
    def parts(self) -> list[Part]:
        """The parts that are not empty."""
        return [part for part in PARTS if self.shares.get(part, 0) > 0]


Split = FolderSplit | CountSplit | ShareSplit | TrialSplit | SubjectSplit


def may_share_subjects(split: Mapping[str, Any]) -> bool:
    """Whether a split may put a subject in several parts, by its section of a task file, as in `preparation.json`."""
    drawn_per_label = bool(split.get("per_label") and split.get("validation_share"))
    return split["rule"] in ("shares", "trials") or drawn_per_label


def check_shares(shares: Mapping[str, float], name: str = "shares") -> None:
    """Shares of train, validation and test; `name` is what errors call them.

    Raises:
        ValueError: another part, a share below 0, or a sum other than 1.
    """
    if strange := [part for part in shares if part not in PARTS]:
        raise ValueError(f"{name} must be of {', '.join(PARTS)}; got {', '.join(strange)}.")
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"{name} must be 0 or more and add up to 1; got {dict(shares)}.")


def check_pattern(name: str, pattern: str) -> None:
    """A ValueError that names the field unless `pattern` is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name} must be a regular expression: {error}; got {pattern!r}.") from error
