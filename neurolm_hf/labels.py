"""From label files, annotations and trial tables to spans: which seconds of a recording have which answer."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .recordings import Recording, read_times
from .task_sections import (
    ANY_TEXT,
    AnnotationLabels,
    LabelMap,
    NoLabels,
    Part,
    PathLabels,
    SidecarLabels,
    TableLabels,
    TrialLabels,
)
from .tasks import Task


class Span(NamedTuple):
    """From `start` up to, not including, `end` seconds of a recording.

    `label` is the raw label (`None`: nothing is asked), `answer` what the task's map makes of it, `None` where nothing
    is asked or the map leaves it out. `split` is given where the split is by trials.
    """

    start: float
    end: float
    label: str | None = None
    answer: str | None = None
    split: Part | None = None


class _Event(NamedTuple):
    """A raw label, its seconds, and where it is written."""

    start: float
    end: float
    label: str
    where: str
    split: Part | None = None


def label_spans(
    task: Task,
    recording: Recording,
    annotations: Sequence[tuple[float, float, str]],
    n_seconds: float,
) -> list[Span]:
    """The labelled spans of a recording, in the order of their source; those left out by the map have no answer.

    Args:
        task: says where labels come from, and which answer each stands for.
        recording: from `find_recordings`.
        annotations: (onset, duration, description) in seconds from the recording's first sample.
        n_seconds: length of the recording, which a label of the whole recording spans.

    Raises:
        FileNotFoundError: there is no label file beside the recording.
        ValueError: a label file that cannot be read, or a label that the task does not know; the message names the
            file, and the line or second.
    """
    match task.labels:
        case NoLabels():
            return [Span(0.0, n_seconds)]
        case PathLabels():
            events: Iterable[_Event] = [_Event(0.0, n_seconds, recording.label or "", str(recording.path))]
        case SidecarLabels():
            events = _sidecar_events(task.labels, recording.path)
        case TrialLabels(trials=trials):
            where = f"task {task.name}"
            events = [_Event(trial.start, trial.end, trial.label, where, trial.split) for trial in trials]
        case AnnotationLabels():
            events = _annotation_events(recording, annotations)
        case TableLabels():
            events = [
                _Event(row.start or 0.0, n_seconds if row.end is None else row.end, row.label, row.where, row.split)
                for row in recording.rows
            ]
    known = task.labels.map or {answer: answer for answer in task.answers}
    spans = []
    for event in events:
        name = _name_in_map(event.label, known)
        if name is None:
            raise ValueError(
                f"{event.where}: {event.label!r} is no label of task {task.name}, which knows {', '.join(known)}. "
                "Map it to an answer in the task file, or to null to leave it out."
            )
        spans.append(Span(event.start, event.end, event.label, known[name], event.split))
    if not spans:
        raise ValueError(f"{recording.path} has no event that task {task.name} could take a label from.")
    return spans


def _name_in_map(label: str, known: LabelMap) -> str | None:
    """The name that stands for a label: its own, else the longest beginning of it that ends in `*`."""
    if label in known:
        return label
    beginnings = [name for name in known if name.endswith(ANY_TEXT) and label.startswith(name.removesuffix(ANY_TEXT))]
    return max(beginnings, key=len, default=None)


def _sidecar_events(labels: SidecarLabels, recording: Path) -> Iterator[_Event]:
    """The events in the text file beside a recording."""
    path = recording.with_name(labels.file.replace("{stem}", recording.stem))
    if not path.is_file():
        raise FileNotFoundError(f"{recording} has no labels: {path} is not there.")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: byte {error.start} is no UTF-8.") from error
    if not any(lines[labels.header_lines :]):
        raise ValueError(f"{path} holds no event: is it cut short?")
    header = _cells(lines[labels.header_lines - 1], labels) if labels.header_lines else []
    # `SidecarLabels` has seen to it that either end or duration is given: these are three.
    given = (labels.start, labels.end, labels.duration, labels.label)
    columns = [_position(name, header, f"{path}, line {labels.header_lines}") for name in given if name is not None]
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if number > labels.header_lines and line:
            yield _event(line, columns, labels, where)
        elif number <= labels.header_lines and _is_event(line, columns, labels):
            raise ValueError(
                f"{where}: an event, {line!r}, where the task's header_lines = {labels.header_lines} has a header. "
                "Is the file cut short at its start, or the number wrong?"
            )


def _event(line: str, columns: list[int], labels: SidecarLabels, where: str) -> _Event:
    cells = _cells(line, labels)
    if len(cells) <= max(columns):
        raise ValueError(f"{where}: {len(cells)} columns where {max(columns) + 1} are needed: {line!r}.")
    start, extent, label = (cells[column] for column in columns)
    return _Event(*read_times(start, extent, where, duration=labels.duration is not None), label, where)


def _is_event(line: str, columns: list[int], labels: SidecarLabels) -> bool:
    try:
        _event(line, columns, labels, "")
    except ValueError:
        return False
    return True


def _cells(line: str, labels: SidecarLabels) -> list[str]:
    return [cell.strip() for cell in line.split(labels.delimiter)]


def _position(name: int | str, header: list[str], where: str) -> int:
    """The position of a column given by name or position."""
    if isinstance(name, int):
        return name
    if name not in header:
        raise ValueError(f"{where}: no column {name!r}; its columns are {', '.join(header)}.")
    if header.count(name) > 1:
        raise ValueError(f"{where}: column {name!r} stands there more than once. Leave one, or give its position.")
    return header.index(name)


def _annotation_events(recording: Recording, annotations: Sequence[tuple[float, float, str]]) -> Iterator[_Event]:
    """The annotations as events; where the path has a label too it comes first, since it says what they mean."""
    prefix = "" if recording.label is None else f"{recording.label}:"
    for onset, duration, description in annotations:
        where = f"{recording.path}, annotation at {onset:g} s"
        yield _Event(onset, onset + duration, prefix + description.strip(), where)
