"""A task: what is asked about a window of EEG, and how. The only place where a prompt is written."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .processing_neurolm import SEP_TOKEN


TASK_FILES = Path(__file__).parent / "task_files"
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Task:
    """A task as its file declares it. `[SEP] question Answer: answer` follows the EEG of one window.

    Attributes:
        name: how the task is called.
        question: word for word as the model reads it, from `Question: ` on, options included.
        answers: class index of each allowed answer, 0, 1, 2 ... in this order. Lettered ones are written `(A)`.
        channels: names in the channel vocabulary, in the order in which the model reads them; `None` takes whatever
            EEG channels a recording has.
        window_seconds: length of a window.
        stride_seconds: from the start of a window to the start of the next; `None` where events place the windows.
        last_seconds: only so much of the end of a recording is cut into windows; `None` takes all of it.
        notch_hz: the mains frequency where the recordings were made.

    Raises:
        ValueError: a value that makes no task; the message names the task and the field.
    """

    name: str
    question: str
    answers: Mapping[str, int]
    channels: tuple[str, ...] | None
    window_seconds: int
    stride_seconds: float | None
    last_seconds: int | None
    notch_hz: int

    def __post_init__(self) -> None:
        self._check_wording()
        self._check_windows()
        if self.channels is not None and (not self.channels or len(set(self.channels)) < len(self.channels)):
            raise self._error("channels", "must name at least one channel, none of them twice, or be null")

    @property
    def classes(self) -> tuple[str, ...]:
        """The allowed answers; the one at position i is class i."""
        return tuple(self.answers)

    @property
    def lettered(self) -> bool:
        """Whether the answers are the letters of options given in the question."""
        return self.classes[0].startswith("(")

    def prompt(self) -> str:
        """What the model reads before it answers, after the EEG."""
        return f"{SEP_TOKEN}{self.question} Answer:" + (" (" if self.lettered else "")

    def completion(self, answer: str) -> str:
        """What the model should write after the prompt to give this answer, up to the end of text.

        Raises:
            ValueError: the answer is not one of the task's.
        """
        if answer not in self.answers:
            known = ", ".join(self.classes)
            raise ValueError(f"{answer!r} is no answer of task {self.name}; its answers are {known}.")
        return (answer.removeprefix("(") if self.lettered else f" {answer}") + f" {END_OF_TEXT}"

    def training_text(self, answer: str) -> str:
        """Prompt and completion, as the model is tuned on them.

        Raises:
            ValueError: the answer is not one of the task's.
        """
        return self.prompt() + self.completion(answer)

    def config_entry(self) -> dict[str, Any]:
        """The task as `NeuroLMConfig.tasks` keeps it."""
        return {"name": self.name, "question": self.question, "answers": list(self.classes)}

    def _check_wording(self) -> None:
        if not self.name:
            raise self._error("name", "must not be empty")
        if not self.question.startswith("Question: "):
            raise self._error("question", "must start with 'Question: ', as the prompts of NeuroLM do")
        if len(self.answers) < 2 or list(self.answers.values()) != list(range(len(self.answers))):
            raise self._error("answers", "must map two or more answers to 0, 1, 2 ... in this order")
        if any(not answer or answer != answer.strip() for answer in self.answers):
            raise self._error("answers", "must not be empty, nor begin or end with a space")
        if len({answer.startswith("(") for answer in self.answers}) > 1:
            raise self._error("answers", "must all be lettered like (A), or none")

    def _check_windows(self) -> None:
        for name in ("window_seconds", "notch_hz"):
            if getattr(self, name) <= 0:
                raise self._error(name, "must be above 0")
        if self.stride_seconds is not None and self.stride_seconds <= 0:
            raise self._error("stride_seconds", "must be above 0, or null")
        if self.last_seconds is not None and self.last_seconds < self.window_seconds:
            raise self._error("last_seconds", "must hold at least one window, or be null")

    def _error(self, field: str, rule: str) -> ValueError:
        return ValueError(f"Task {self.name or '(no name)'}: {field} {rule}; got {getattr(self, field)!r}.")


def load_task(name_or_path: str | Path) -> Task:
    """A task of this package by its name, such as `Workload`, or of your own by the path of its JSON file.

    A task file holds exactly the attributes of `Task`.

    Raises:
        ValueError: there is no task of that name, or the file is not a task; the message says which file and what.
        FileNotFoundError: there is no file at that path.
    """
    if isinstance(name_or_path, Path) or name_or_path.endswith(".json"):
        return _read_task(Path(name_or_path))
    path = TASK_FILES / f"{name_or_path.lower()}.json"
    if not path.is_file():
        known = ", ".join(sorted(_read_task(file).name for file in TASK_FILES.glob("*.json")))
        raise ValueError(f"There is no task {name_or_path!r}; there are {known}, or give the path of a .json file.")
    return _read_task(path)


_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "question": (str,),
    "answers": (dict,),
    "channels": (list, type(None)),
    "window_seconds": (int,),
    "stride_seconds": (int, float, type(None)),
    "last_seconds": (int, type(None)),
    "notch_hz": (int,),
}


def _read_task(path: Path) -> Task:
    """The task in a file; every error names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object, a task; it holds a {type(content).__name__}.")
    expected = {field.name for field in fields(Task)}
    if missing := expected - content.keys():
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}.")
    if unknown := content.keys() - expected:
        raise ValueError(f"{path} has fields that no task has: {', '.join(sorted(unknown))}.")
    for name, types in _JSON_TYPES.items():
        _check_type(path, name, content[name], types)
    channels = content.pop("channels")
    try:
        return Task(**content, channels=None if channels is None else tuple(channels))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_type(path: Path, name: str, value: object, types: tuple[type, ...]) -> None:
    """The value, and what a list or an object holds, must have the JSON type of the field."""
    if not isinstance(value, types) or isinstance(value, bool):
        wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
        raise ValueError(f"{path}: {name} must be {wanted}, got {value!r}.")
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        raise ValueError(f"{path}: {name} must hold strings only, got {value!r}.")
    if isinstance(value, dict) and not all(type(item) is int for item in value.values()):
        raise ValueError(f"{path}: {name} must map to whole numbers, got {value!r}.")
