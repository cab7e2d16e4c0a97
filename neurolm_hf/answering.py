"""A model that is to be asked, in words or as a classifier, and the prepared windows that it is asked about."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from .collators import ClassificationCollator, row_name
from .configuration_neurolm import NeuroLMConfig
from .dataset_card import read_description
from .leakage import is_tuh_subject
from .model_folder import Kind
from .modeling_neurolm import NeuroLMForCausalLM
from .prepared_set import prepared_task
from .processing_neurolm import EEGFeatureExtractor, NeuroLMProcessor
from .published_protocol import Protocol, compare_with_published
from .scoring import classify_rows, score_rows
from .stages import recipe_differences
from .starting_models import fits_head, is_adapter, is_classifier, load_classifier, model_type, processor_home
from .storage import Row, load_prepared, window_kinds
from .task_sections import PARTS
from .tasks import Task


@dataclass(frozen=True)
class EvaluationSet:
    """The windows of one split of a prepared set.

    Attributes:
        folder, split: where they are.
        task: what is asked.
        rows: as `load_prepared` gives them.
        preparation, summary: what the set says of itself, as `read_description` gives it.
    """

    folder: str
    split: str
    task: Task
    rows: Any
    preparation: Mapping[str, Any]
    summary: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of the prepared set."""
        return str(self.summary["fingerprint"])

    @property
    def notes(self) -> list[str]:
        """What the set says about its split."""
        return list(self.summary["notes"])

    @property
    def protocol(self) -> Protocol:
        """How these windows compare with those that published figures are of."""
        return compare_with_published(self.task, self.split, len(self.rows), self.preparation, self.summary)


@dataclass(frozen=True)
class Answering:
    """A model to ask in words.

    Attributes:
        source: the folder or Hub id that it was opened from.
        model: in evaluation mode, with the adapter in it where `source` is one.
        processor: of the model.
        config: says what the model was tuned on; an adapter's own, None where it has none.
    """

    kind: ClassVar[Kind] = "answers"

    source: str
    model: Any
    processor: NeuroLMProcessor
    config: Any

    def score(self, rows: Sequence[Row], task: Task, batch_size: int) -> Iterator[torch.Tensor]:
        """Of prepared windows in turn: (answers,), whose softmax are the probabilities of the task's answers.

        Raises:
            ValueError: a window that the model cannot read.
        """
        for _, scores in score_rows(self.model, self.processor, rows, task, batch_size):
            yield scores

    def check_task(self, task: Task) -> None:
        """Any question can be asked in words; whether the answers mean anything, `doubts` says."""

    def doubts(self, given: EvaluationSet) -> list[str]:
        """Why answers about a set may mean nothing: another question, or people whom the model was trained on."""
        if self.config is None:
            return ["The model does not say which tasks it was tuned on."]
        if self.config.stage != "instruction-tuned":
            return ["The model was never instruction-tuned: its answers mean nothing."]
        found, known, task = [], self.config.tasks or [], given.task
        if not self.config.was_tuned_on(str(task.question), task.classes):
            names = ", ".join(one["name"] for one in known) or "none that it names"
            found.append(f"The model was never tuned on this question; its tasks are {names}.")
        return found + doubts_of_subjects(self.config, given)


@dataclass(frozen=True)
class Classifying(Answering):
    """A classifier, whose classes are the answers of a task; attributes as of `Answering`."""

    kind: ClassVar[Kind] = "classifier"

    def score(self, rows: Sequence[Row], task: Task, batch_size: int) -> Iterator[torch.Tensor]:
        """As of `Answering`."""
        asked = bool(reads_question(self.config, task, self.source))
        collate = ClassificationCollator(self.processor, asked, task)
        yield from classify_rows(self.model, collate, rows, batch_size)

    def check_task(self, task: Task) -> None:
        """Raises a ValueError where the head is of other classes, or was trained behind another question."""
        known = list(self.config.id2label.values())
        if not fits_head(known, self.config.problem_type, task.classes):
            raise ValueError(
                f"{self.source} is a classifier of {', '.join(known)}; {task.name} is answered by "
                f"{', '.join(task.classes)}."
            )
        reads_question(self.config, task, self.source)

    def doubts(self, given: EvaluationSet) -> list[str]:
        """Why classes may mean nothing: another task, channels or text than in training, or people who were in it."""
        provenance = self.config.provenance or {}
        data = provenance.get("data")
        tasks = {str(one.get("task")) for one in data if isinstance(one, dict)} if isinstance(data, list) else set()
        found = []
        if not tasks:
            found.append("The model does not say which tasks it was trained on.")
        elif given.task.name not in tasks:
            found.append(f"The model was never trained on {given.task.name}, but on {', '.join(sorted(tasks))}.")
        reads_text = self.processor.tokenizer is not None and self.config.classifier_pooling != "encoder_mean"
        if reads_text and reads_question(self.config, given.task, self.source) is None:
            found.append(
                "The model does not say whether it was trained with a question behind the EEG: none was asked."
            )
        # of a released LaBraM, as its conversion found them
        if untrained := set(provenance.get("untrained_channels") or ()):
            read = {name for channels, _ in window_kinds(given.rows) for name in channels}
            if names := sorted(untrained & read):
                found.append(f"No training has moved the model's rows of the channels {', '.join(names)}.")
        return found + doubts_of_subjects(self.config, given)


def open_model(source: str, device: str = "cpu") -> Answering:
    """A NeuroLM that answers, or an adapter with the model it belongs to. No code that lies beside it is run.

    Args:
        source: folder or Hub id.
        device: where it is to run.

    Raises:
        ValueError: it is something else, or has no text tokenizer, or there is no such device.
        OSError: it cannot be read, or the model of an adapter cannot.
        ImportError: an adapter, without peft.
    """
    adapter, home = is_adapter(source), source
    if not adapter:
        kind = model_type(source)
        if kind.startswith("labram"):
            instead = (
                "scripts/pretrain_masked.py makes a LaBraM that learns its codes, scripts/finetune_classifier.py a "
                "classifier of that"
                if kind == "labram_vq"
                else "scripts/finetune_classifier.py makes a classifier of a LaBraM"
            )
            raise ValueError(
                f"{source} is a {kind}, which answers nothing in words: {instead}, scripts/evaluate_tasks.py judges "
                "it, and docs/classifiers.md reads with it."
            )
        if kind != "neurolm":
            raise ValueError(f"{source} is a {kind}, which answers nothing: give a NeuroLM, or an adapter of one.")
        for name in NeuroLMConfig.from_pretrained(source).architectures or []:
            if name != NeuroLMForCausalLM.__name__:
                raise ValueError(f"{source} is a {name}, which reads no questions: give a NeuroLMForCausalLM.")
    model: Any = NeuroLMForCausalLM.from_pretrained(source)
    if adapter:
        # one that PEFT alone has saved has neither processor nor config beside it
        home = processor_home(source, model)
    processor = _processor(home)
    if processor.tokenizer is None:
        raise ValueError(f"{home} has no text tokenizer, without which nothing can be asked.")
    config = NeuroLMConfig.from_pretrained(source) if home == source else None
    return Answering(source, _to_device(model, device), processor, config)


def open_any(source: str, task: Task, device: str = "cpu") -> Answering:
    """What `open_model` opens, or a classifier of a task's answers.

    Args:
        source: folder or Hub id; of a classifier, its adapter too.
        task: whose answers are the classes.
        device: where it is to run.

    Raises:
        ValueError, OSError, ImportError: what `open_model` and `load_classifier` refuse.
    """
    # where there is no model, the first of these says what is wrong
    kind = None if is_adapter(source) else model_type(source)
    if not is_classifier(source):
        if kind in ("neurolm_vq", "labram"):
            raise ValueError(
                f"{source} is a {kind} without a head, which answers nothing: train one with "
                "scripts/finetune_classifier.py."
            )
        return open_model(source, device)
    model: Any
    model, processor = load_classifier(source, task.classes)
    return Classifying(source, _to_device(model, device), processor, model.config)


def folder_and_split(place: str) -> tuple[str, str]:
    """A prepared set's folder and the split behind its colon, the test split without one: `prepared/hmc:train`."""
    folder, colon, split = place.rpartition(":")
    return (folder, split) if colon and split in PARTS else (place, "test")


def open_set(place: str) -> EvaluationSet:
    """Opens one split of a prepared set.

    Args:
        place: its folder; after a colon the split, which is the test split otherwise: `prepared/hmc:validation`.

    Raises:
        ValueError: nothing is asked about these windows, the split has none, or the folder is no finished set.
        FileNotFoundError: no such folder.
    """
    folder, split = folder_and_split(place)
    task = prepared_task(folder)
    if task.question is None:
        raise ValueError(
            f"{folder} is prepared for {task.name}, which asks nothing: evaluation needs a task with a question and "
            "answers, such as Workload."
        )
    rows = load_prepared(folder, split)
    return EvaluationSet(folder, split, task, rows, *read_description(folder))


def doubts_of_subjects(config: Any, given: EvaluationSet) -> list[str]:
    """Which people of a set the model has been trained on, in whatever stage, or may have been.

    A subject is the same by its name in sets of the same task and in those of the Temple University; elsewhere the
    name may be another person's (see `leakage`). No subject is named, for an evaluation is published with the model.

    Args:
        config: of a model; its provenance says whom a training of this package has seen, and so does that of the
            neural tokenizer. A published model may keep the names to itself.
        given: the set.
    """
    asked, trained_on = {str(name) for name in given.rows["subject"]}, set(_subjects_trained_on(config))
    seen = {(task, name) for task, name in trained_on if name in asked}
    certain = {name for task, name in seen if task == given.task.name or is_tuh_subject(str(name))}
    others = {(task, name) for task, name in seen if name not in certain}
    doubts = []
    if certain:
        doubts.append(f"The model was trained on {len(certain)} of these subjects.")
    if others:
        tasks, names = (set(parts) for parts in zip(*others, strict=True))
        doubts.append(
            f"The model was trained on sets of {', '.join(sorted(tasks))} that share {len(names)} names of subjects "
            "with this one: they may be the same people."
        )
    if unnamed := sorted({task for task, name in trained_on if name is None}):
        doubts.append(
            f"The model does not name the subjects of {', '.join(unnamed)} that it was trained on: these may be among "
            "them."
        )
    return doubts


def check_recipe(given: EvaluationSet, answering: Answering) -> None:
    """Windows and model must be of one recipe.

    Raises:
        ValueError: they are not; the message says in what.
    """
    own, extractor = EEGFeatureExtractor(**given.preparation["recipe"]), answering.processor.feature_extractor
    if own.recipe_id != extractor.recipe_id:
        raise ValueError(
            f"{given.folder} was prepared by another recipe than that of {answering.source}: "
            f"{recipe_differences(own, extractor)}. Prepare the recordings again, with --model {answering.source}."
        )


def check_set(given: EvaluationSet, answering: Answering) -> None:
    """Whether a model can be asked about all windows of a set: one of each montage and length is read.

    Raises:
        ValueError: another recipe, a classifier of other classes, or a window that the model cannot read; the message
            names it.
    """
    check_recipe(given, answering)
    answering.check_task(given.task)
    for row in (given.rows[place] for place in window_kinds(given.rows).values()):
        try:
            next(answering.score([row], given.task, 1))
        except ValueError as error:
            where = "" if row_name(row) in str(error) else f"{row_name(row)}: "
            raise ValueError(
                f"{answering.source} cannot read all windows of {given.folder}: {where}{error} Leave this model out, "
                "or prepare windows that every model can read."
            ) from error


def reads_question(config: Any, task: Task, source: str) -> bool | None:
    """Whether a trained head reads the task's question behind the EEG; None where its config does not say.

    Args:
        config: of the classifier.
        task: what is asked.
        source: where it was opened from, for the message.

    Raises:
        ValueError: it was trained behind other texts.
    """
    known = getattr(config, "classifier_prompts", None)
    if known and task.prompt() not in known:
        texts = ", ".join(map(repr, known))
        raise ValueError(f"{source} was trained with {texts} behind the EEG, not with {task.prompt()!r}.")
    return None if known is None else bool(known)


def _to_device(model: Any, device: str) -> Any:
    """The model there, in evaluation mode."""
    try:
        model.to(device)
    # PyTorch without CUDA fails an assertion
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"The model cannot be put on the device {device!r}: {error}") from error
    return model.eval()


def _processor(home: str) -> NeuroLMProcessor:
    """The processor, and no code of a tokenizer that is none of transformers'."""
    try:
        return NeuroLMProcessor.from_pretrained(home, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{home} wants to run code of its own for its text tokenizer, which is not done here: save it again with "
            "a tokenizer of transformers."
        ) from error


def _subjects_trained_on(config: Any) -> Iterator[tuple[str, str | None]]:
    """(task of the set, subject) of all trainings that a model's provenance tells of; None for names left out."""
    # the neural tokenizer of a NeuroLM, and of a LaBraM that was trained on its codes
    tokenizers = [getattr(config, name, None) for name in ("eeg_config", "vq_config")]
    for one in filter(None, [config, *tokenizers]):
        if one.provenance:
            yield from _subjects_of_stages(one.provenance)


def _subjects_of_stages(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Of a training by a script of this package, and of those before it."""
    while provenance:
        data = provenance.get("data")
        for one in data if isinstance(data, list) else []:
            if isinstance(one, dict):
                yield from ((str(one.get("task")), name) for name in one.get("subjects", [None]))
        # what it was trained on before it was trained further
        before = provenance.get("started_from")
        provenance = (before.get("provenance") or {}) if isinstance(before, Mapping) else {}
