"""The sections of a task file: where recordings are, where labels come from, where windows lie, how to split."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal


Part = Literal["train", "validation", "test"]
PARTS: tuple[Part, ...] = ("train", "validation", "test")
# In the map of labels, stands for every label that is not named there.
ANY_OTHER = "*"

LabelMap = Mapping[str, str | None]


# Recordings ----------------------------------------------------------------


@dataclass(frozen=True)
class ChannelSkip:
    """A recording gives no windows if a channel used has a name, in the file, in which `channel` is found.

    `channel` is a regular expression, `reason` what is said of the recordings left out.
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
        pattern: a regular expression that the path of a recording matches from the input folder on, written with `/`.
            Its group `subject` says whose it is; the groups `split` and `label`, if there, give the split rule
            `folders` and the label sources their raw values. `None` takes every file that MNE opens, with the
            subject by `recordings.subject_of`.
        skip: recordings to leave out by the names of their channels.
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
# `map` leads from the label as it is written to the answer, or to null for what is left out and counted; "*" stands
# for all labels that are not named. Without a map the labels are the answers.


@dataclass(frozen=True)
class NoLabels:
    """A corpus: nothing is asked, the whole recording is used."""

    source: Literal["none"]


@dataclass(frozen=True)
class PathLabels:
    """One label for the whole recording: the group `label` of the pattern."""

    source: Literal["path"]
    map: LabelMap | None = None


@dataclass(frozen=True)
class SidecarLabels:
    """A table of events in a text file beside each recording.

    Attributes:
        file: its name, with `{stem}` for the recording's without suffix.
        delimiter: between columns; `None` for blanks and tabs.
        header_lines: lines to pass over; the last of them has the column names, if names are used.
        start, end, duration, label: columns, by name or by position from 0. Times in seconds; either `end` or
            `duration` is given.
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
        if "{stem}" not in self.file:
            raise ValueError(f"file must have {{stem}} for the recording's name; got {self.file!r}.")
        if (self.end is None) == (self.duration is None):
            raise ValueError("either end or duration must be given.")
        columns = (self.start, self.label, self.end, self.duration)
        if self.header_lines < 1 and any(isinstance(column, str) for column in columns):
            raise ValueError("header_lines must be 1 or more where columns are named.")


@dataclass(frozen=True)
class Trial:
    """From `start` up to, not including, `end` seconds; `split` where the split is by trials."""

    start: float
    end: float
    label: str
    split: Part | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"start and end must be 0 <= start < end; got {self.start:g} and {self.end:g}.")


@dataclass(frozen=True)
class TrialLabels:
    """The same trials in every recording."""

    source: Literal["trials"]
    trials: tuple[Trial, ...]
    map: LabelMap | None = None

    def __post_init__(self) -> None:
        if not self.trials:
            raise ValueError("trials must hold at least one trial.")


@dataclass(frozen=True)
class AnnotationLabels:
    """The annotations MNE finds in the recording (in a BIDS dataset: its events.tsv), by their description.

    Where the pattern has a group `label`, the raw label is `<group>:<description>`: a run decides what T1 means.
    """

    source: Literal["annotations"]
    map: LabelMap | None = None


@dataclass(frozen=True)
class TableLabels:
    """One CSV for all recordings, with the columns file, start, end, label and, if wanted, subject and split.

    Files are relative to the input folder; start and end are seconds, both empty for the whole recording. Only the
    recordings named in it are used.

    Attributes:
        file: the CSV, relative to the input folder, or its full path.
    """

    source: Literal["table"]
    file: str
    map: LabelMap | None = None


Labels = NoLabels | PathLabels | SidecarLabels | TrialLabels | AnnotationLabels | TableLabels


# Windows ----------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """Where windows lie inside what a label is about: from its start on, the remainder dropped.

    Attributes:
        seconds: length of a window; `None`: as many as the feature extractor's token budget holds.
        stride_seconds: from the start of a window to the start of the next; `None`: a window's length.
        last_seconds: only so much of the end of a recording is cut; `None` takes all of it.
        leave_out_last_seconds: so much of the end of a recording is not used.
        before_seconds, after_seconds: signal around an event that belongs to its window.
        wrap: where that signal would lie outside the recording, go on at its other end.
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


@dataclass(frozen=True)
class FolderSplit:
    """By the group `split` of the pattern.

    Attributes:
        folders: its values, and the part each one is.
        validation_share: share of the subjects in the train folder, drawn by seed, that are the validation part.
        per_label: draw them from the subjects of each label apart.
    """

    rule: Literal["folders"]
    folders: Mapping[str, Part]
    validation_share: float = 0.0
    per_label: bool = False
    by_subject: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 <= self.validation_share < 1:
            raise ValueError(f"validation_share must be 0 or more and below 1; got {self.validation_share!r}.")


@dataclass(frozen=True)
class CountSplit:
    """By counts of recordings in name order: `train` of them, then `validation` of them, the rest to test.

    Attributes:
        recordings: how many there must be, since with fewer these counts make another split.
    """

    rule: Literal["counts"]
    train: int
    validation: int
    recordings: int
    by_subject: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.train > 0 <= self.validation and self.train + self.validation < self.recordings):
            raise ValueError("train, validation and recordings must leave some to test.")


@dataclass(frozen=True)
class ShareSplit:
    """By shares of the recordings in name order, the parts in the order in which they are given."""

    rule: Literal["shares"]
    shares: Mapping[str, float]
    by_subject: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_shares(self.shares)


@dataclass(frozen=True)
class TrialSplit:
    """By trials, inside every recording: the `split` of a trial, or of a row of the table."""

    rule: Literal["trials"]
    by_subject: ClassVar[bool] = False


@dataclass(frozen=True)
class SubjectSplit:
    """By subject, drawn by seed."""

    rule: Literal["subject"]
    shares: Mapping[str, float]
    by_subject: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_shares(self.shares)


Split = FolderSplit | CountSplit | ShareSplit | TrialSplit | SubjectSplit


def check_shares(shares: Mapping[str, float]) -> None:
    """Shares of train, validation and test.

    Raises:
        ValueError: another part, a share below 0, or a sum other than 1.
    """
    if strange := [part for part in shares if part not in PARTS]:
        raise ValueError(f"shares must be of {', '.join(PARTS)}; got {', '.join(strange)}.")
    if any(share < 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"shares must be 0 or more and add up to 1; got {dict(shares)}.")


def check_pattern(name: str, pattern: str) -> None:
    """A ValueError that names the field unless `pattern` is a regular expression."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{name} must be a regular expression: {error}; got {pattern!r}.") from error
