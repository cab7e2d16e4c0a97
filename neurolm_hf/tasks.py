"""A task: what is asked about a window of EEG, and how."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .channels_neurolm import resolve_channel
from .processing_neurolm import is_lettered, write_completion, write_prompt
from .task_sections import (
    FolderSplit,
    Labels,
    NoLabels,
    PathLabels,
    RecordingFiles,
    Split,
    SubjectSplit,
    TableLabels,
    TrialLabels,
    TrialSplit,
    Windows,
)
from .typed_json import read_dataclass


TASK_FILES = Path(__file__).parent / "task_files"

Metric = Literal["pr_auc", "roc_auc", "accuracy", "balanced_accuracy", "cohen_kappa", "f1_weighted"]


@dataclass(frozen=True)
class Task:
    """A task as its file declares it. `[SEP] question Answer: answer` follows the EEG of one window.

    Attributes:
        name: how the task is called.
        question: word for word as the model reads it, from `Question: ` on, options included; `None` for a corpus of
            which nothing is asked.
        answers: class index of each allowed answer, 0, 1, 2 ... in this order. Lettered ones are written `(A)`. None
            without a question.
        metrics: what the answers are scored by.
        channels: names in the channel vocabulary, in the order in which the model reads them; `None` takes whatever
            EEG channels a recording has.
        notch_hz: the mains frequency where the recordings were made; `None`: they come from anywhere.
        recordings, labels, windows, split: the sections of `task_sections`.
        drop_channels: vocabulary names to leave out where the recording's own channels are taken.
        unknown_channels: what to do about channels that are not in the vocabulary, `raise` or `drop`.

    Raises:
        ValueError: a value that makes no task; the message names the task and the field.
    """

    name: str
    question: str | None
    answers: Mapping[str, int]
    metrics: tuple[Metric, ...]
    channels: tuple[str, ...] | None
    notch_hz: int | None
    recordings: RecordingFiles
    labels: Labels
    windows: Windows
    split: Split
    drop_channels: tuple[str, ...] = ()
    unknown_channels: Literal["raise", "drop"] = "raise"

    def __post_init__(self) -> None:
        if not self.name:
            raise self._error("name", "must not be empty")
        if self.question is None:
            self._check_corpus()
        else:
            self._check_wording(self.question)
        self._check_sections()
        if self.notch_hz is not None and self.notch_hz <= 0:
            raise self._error("notch_hz", "must be above 0, or null")
        if self.channels is not None and (not self.channels or len(set(self.channels)) < len(self.channels)):
            raise self._error("channels", "must name at least one channel, none of them twice, or be null")
        if self.channels is not None and self.drop_channels:
            raise self._error("drop_channels", "must be empty where channels are named")
        self._check_channels("channels", self.channels or ())
        self._check_channels("drop_channels", self.drop_channels)

    @property
    def classes(self) -> tuple[str, ...]:
        """The allowed answers; the one at position i is class i."""
        return tuple(self.answers)

    @property
    def lettered(self) -> bool:
        """Whether the answers are the letters of options given in the question."""
        return is_lettered(self.classes)

    def prompt(self) -> str:
        """What the model reads before it answers, after the EEG.

        Raises:
            ValueError: the task is a corpus without a question.
        """
        if self.question is None:
            raise ValueError(f"{self.name} is a corpus to pre-train on: it has no question.")
        return write_prompt(self.question, self.classes)

    def completion(self, answer: str, end_of_text: str) -> str:
        """What the model should write after the prompt to give this answer, up to the end of text.

        Args:
            answer: one of the task's.
            end_of_text: as the text tokenizer has it (`eos_token`).

        Raises:
            ValueError: the answer is not one of the task's.
        """
        if answer not in self.answers:
            known = ", ".join(self.classes)
            raise ValueError(f"{answer!r} is no answer of task {self.name}; its answers are {known}.")
        return write_completion(answer, end_of_text)

    def training_text(self, answer: str, end_of_text: str = "<|endoftext|>") -> str:
        """Prompt and completion, as the model is tuned on them; without `end_of_text`, as GPT-2 ends a text.

        Raises:
            ValueError: the answer is not one of the task's.
        """
        return self.prompt() + self.completion(answer, end_of_text)

    def shuffled(self, generator: np.random.Generator) -> tuple["Task", dict[str, str]]:
        """The task with its lettered options in a random order, and the letter that each answer has there.

        The letters stay and the options move between them, so that a model learns to read what a letter stands for.
        For training only: answers of this task are scored in the order of its file. A task without letters stays as
        it is.

        Raises:
            ValueError: the question does not end in one option for each letter.
        """
        if not self.lettered:
            return self, {answer: answer for answer in self.classes}
        options = "".join(rf"{re.escape(letter)} (.+?)([.,;]?\s*)" for letter in self.classes)
        found = re.fullmatch(f"(.*?){options}", self.question or "", flags=re.DOTALL)
        if found is None:
            raise self._error("question", f"must end in the options {' '.join(self.classes)} for them to be shuffled")
        start, *parts = found.groups()
        order = generator.permutation(len(self.classes)).tolist()
        question = start + "".join(
            f"{letter} {parts[2 * option]}{parts[2 * place + 1]}"
            for place, (letter, option) in enumerate(zip(self.classes, order, strict=True))
        )
        letters = {self.classes[option]: letter for letter, option in zip(self.classes, order, strict=True)}
        return replace(self, question=question), letters

    def config_entry(self) -> dict[str, Any]:
        """The task as `NeuroLMConfig.tasks` keeps it."""
        entry: dict[str, Any] = {"name": self.name, "question": self.question, "answers": list(self.classes)}
        entry["window_seconds"] = self.windows.seconds
        if self.channels is not None:
            entry["channels"] = list(self.channels)
        if self.drop_channels:
            entry["drop_channels"] = list(self.drop_channels)
        entry["unknown_channels"] = self.unknown_channels
        return entry

    def describe(self) -> str:
        """The task in a line: what is asked, of which windows, how it is split, and what its folder looks like."""
        asked = "a corpus to pre-train on, nothing is asked"
        if self.question is not None:
            asked = self.question.removeprefix("Question: ") + ("" if self.lettered else f" {', '.join(self.classes)}")
        seconds = (
            "as long as the token budget holds" if self.windows.seconds is None else f"of {self.windows.seconds} s"
        )
        split = f"split by {self.split.kind}" + ("" if self.split.by_subject else ", not by subject")
        if isinstance(self.split, SubjectSplit) and len(self.split.parts) == 1:
            split = f"all {self.split.parts[0]}"
        return f"{self.name}: {asked.rstrip('.')}. Windows {seconds}; {split}; folder: {self.recordings.layout}."

    def _check_corpus(self) -> None:
        for name, wanted in (("answers", {}), ("metrics", ()), ("labels", NoLabels("none"))):
            if getattr(self, name) != wanted:
                raise self._error(name, "must be empty ('none' for labels) where question is null")

    def _check_wording(self, question: str) -> None:
        if not question.startswith("Question: "):
            raise self._error("question", "must start with 'Question: ', as the prompts of NeuroLM do, or be null")
        if len(self.answers) < 2 or list(self.answers.values()) != list(range(len(self.answers))):
            raise self._error("answers", "must map two or more answers to 0, 1, 2 ... in this order")
        if any(not answer or answer != answer.strip() for answer in self.answers):
            raise self._error("answers", "must not be empty, nor begin or end with a space")
        if len({answer.startswith("(") for answer in self.answers}) > 1:
            raise self._error("answers", "must all be lettered like (A), or none")
        if isinstance(self.labels, NoLabels):
            raise self._error("labels", "must have a source other than 'none' where there is a question")
        for label, answer in (self.labels.map or {}).items():
            if answer is not None and answer not in self.answers:
                raise ValueError(f"Task {self.name}: labels must map {label!r} to an answer or null; got {answer!r}.")

    def _check_channels(self, field: str, names: tuple[str, ...]) -> None:
        for name in names:
            meant = resolve_channel(name)
            if meant == name:
                continue
            advice = f"write {meant!r}" if meant else "it is none of CHANNEL_VOCABULARY"
            raise ValueError(
                f"Task {self.name}: {field} must be names of the channel vocabulary; got {name!r}: {advice}."
            )

    def _check_sections(self) -> None:
        """What one section asks of another."""
        groups = self.recordings.groups
        if isinstance(self.labels, PathLabels) and "label" not in groups:
            raise self._error("recordings", "must have a pattern with a group (?P<label>...) for labels from the path")
        if isinstance(self.split, FolderSplit) and "split" not in groups:
            raise self._error("recordings", "must have a pattern with a group (?P<split>...) to split by folders")
        if isinstance(self.split, FolderSplit) and self.split.per_label and "label" not in groups:
            raise self._error("recordings", "must have a pattern with a group (?P<label>...) to split per label")
        if isinstance(self.split, TrialSplit):
            trials = self.labels.trials if isinstance(self.labels, TrialLabels) else ()
            if not isinstance(self.labels, TableLabels) and not (trials and all(trial.split for trial in trials)):
                raise self._error("split", "must not be by trials unless every trial, or a table, says its part")
        of_events = not isinstance(self.labels, (NoLabels, PathLabels))
        if of_events and (self.windows.last_seconds is not None or self.windows.leave_out_last_seconds):
            raise self._error("windows", "must not leave out parts of a recording whose events place the windows")
        if not of_events and (self.windows.before_seconds or self.windows.after_seconds or self.windows.wrap):
            raise self._error("windows", "must not span signal around events where labels are of whole recordings")
        if self.windows.seconds is None and of_events:
            raise self._error("windows", "must have seconds where events place them")

    def _error(self, field: str, rule: str) -> ValueError:
        return ValueError(f"Task {self.name or '(no name)'}: {field} {rule}; got {getattr(self, field)!r}.")


def load_task(name_or_path: str | Path) -> Task:
    """A task of this package by its name, such as `Workload`, or of your own by the path of its JSON file.

    A task file holds the attributes of `Task`; those with a default may be left out.

    Raises:
        ValueError: there is no task of that name, or the file is not a task; the message says which file and what.
        FileNotFoundError: there is no file at that path.
    """
    of_user = isinstance(name_or_path, Path) or name_or_path.endswith(".json")
    path = Path(name_or_path) if of_user else TASK_FILES / f"{str(name_or_path).lower()}.json"
    if path.is_file():
        return _read_task(path)
    known = ", ".join(sorted(_read_task(file).name for file in TASK_FILES.glob("*.json")))
    if of_user:
        raise FileNotFoundError(
            f"There is no task file {path}. Give the path of your task's .json file, or the name of a task: {known}."
        )
    raise ValueError(f"There is no task {name_or_path!r}; there are {known}, or give the path of a .json file.")


def _read_task(path: Path) -> Task:
    """The task in a file; every error names the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    return read_dataclass(Task, content, str(path))


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; where a key stands twice, JSON itself would silently take the last."""
    keys = [key for key, _ in pairs]
    if repeated := {key for key in keys if keys.count(key) > 1}:
        raise ValueError(f"an object has {', '.join(sorted(repeated))} twice")
    return dict(pairs)
