"""A model that is to be asked, with its adapter if it has one, and the prepared windows that it is asked about."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .configuration_neurolm import NeuroLMConfig, NeuroLMVQConfig
from .dataset_card import read_description
from .leakage import is_tuh_subject
from .modeling_neurolm import NeuroLMForCausalLM
from .prepared_set import prepared_task
from .processing_neurolm import EEGFeatureExtractor, NeuroLMProcessor
from .published_protocol import Protocol, compare_with_published
from .stages import recipe_differences
from .starting_models import is_adapter, model_type, processor_home
from .storage import load_prepared
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
    """A model to ask.

    Attributes:
        source: the folder or Hub id that it was opened from.
        model: in evaluation mode, with the adapter in it where `source` is one.
        processor: of the model.
        config: says what the model was tuned on; an adapter's own, None where it has none.
    """

    source: str
    model: Any
    processor: NeuroLMProcessor
    config: NeuroLMConfig | None

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
        if (kind := model_type(source)) != "neurolm":
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
    try:
        model.to(device)
    # PyTorch without CUDA fails an assertion
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"The model cannot be put on the device {device!r}: {error}") from error
    return Answering(source, model.eval(), processor, config)


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


def doubts_of_subjects(config: NeuroLMConfig | NeuroLMVQConfig, given: EvaluationSet) -> list[str]:
    """Which people of a set the model has been trained on, in whatever stage, or may have been.

    A subject is the same by its name in sets of the same task and in those of the Temple University; elsewhere the
    name may be another person's (see `leakage`). No subject is named, for an evaluation is published with the model.

    Args:
        config: its provenance says whom a training of this package has seen, and so does the neural tokenizer's. A
            published model may keep the names to itself.
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


def _subjects_trained_on(config: NeuroLMConfig | NeuroLMVQConfig) -> Iterator[tuple[str, str | None]]:
    """(task of the set, subject) of all trainings that a model's provenance tells of; None for names left out."""
    eeg_config: Any = getattr(config, "eeg_config", None)
    starts = [config.provenance, getattr(eeg_config, "provenance", None)]
    for provenance in filter(None, starts):
        yield from _subjects_of_stages(provenance)


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
