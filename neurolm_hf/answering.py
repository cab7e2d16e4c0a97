"""A model that is to be asked, with its adapter if it has one, and the prepared windows that it is asked about."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import find_adapter_config_file

from .configuration_neurolm import NeuroLMConfig
from .dataset_card import read_description
from .modeling_neurolm import NeuroLMForCausalLM
from .prepared_set import prepared_task
from .processing_neurolm import EEGFeatureExtractor, NeuroLMProcessor
from .stages import recipe_differences
from .starting_models import model_type
from .storage import load_prepared
from .task_sections import PARTS
from .tasks import Task, load_task


@dataclass(frozen=True)
class EvaluationSet:
    """The windows of one split of a prepared set.

    Attributes:
        folder, split: where they are.
        task: what is asked.
        rows: as `load_prepared` gives them.
        fingerprint: of the prepared set.
        is_published_protocol: whether these are the test windows of one of this package's tasks, by its own split.
        notes: what the set says about its split.
    """

    folder: str
    split: str
    task: Task
    rows: Any
    fingerprint: str
    is_published_protocol: bool
    notes: list[str]


@dataclass(frozen=True)
class Answering:
    """A model to ask.

    Attributes:
        source: the folder or Hub id that it was opened from.
        model: in evaluation mode, an adapter around it where `source` is one.
        processor: of the model.
        config: says what the model was tuned on; an adapter's own, None where it has none.
    """

    source: str
    model: Any
    processor: NeuroLMProcessor
    config: NeuroLMConfig | None

    def doubts(self, given: EvaluationSet) -> list[str]:
        """Why answers about a set may mean nothing: another question, or people whom the model was tuned on."""
        if self.config is None:
            return ["The model does not say which tasks it was tuned on."]
        if self.config.stage != "instruction-tuned":
            return ["The model was never instruction-tuned: its answers mean nothing."]
        found, known, task = [], self.config.tasks or [], given.task
        if not any((one["question"], tuple(one["answers"])) == (task.question, task.classes) for one in known):
            names = ", ".join(one["name"] for one in known) or "none that it names"
            found.append(f"The model was never tuned on this question; its tasks are {names}.")
        seen = _subjects_tuned_on(self.config.provenance or {}, task.name)
        if seen is None:
            found.append("The model does not name the subjects that it was tuned on: these may be among them.")
        # no name: notes of an evaluation are published with the model
        elif common := seen & {str(name) for name in given.rows["subject"]}:
            found.append(f"The model was tuned on {len(common)} of these subjects.")
        return found


def open_model(source: str, device: str = "cpu") -> Answering:
    """A NeuroLM that answers, or an adapter with the model it belongs to.

    Args:
        source: folder or Hub id.
        device: where it is to run.

    Raises:
        ValueError: it is something else, or has no text tokenizer.
        OSError: it cannot be read, or the model of an adapter cannot.
        ImportError: an adapter, without peft.
    """
    home = source
    if not _is_adapter(source):
        if (kind := model_type(source)) != "neurolm":
            raise ValueError(f"{source} is a {kind}, which answers nothing: give a NeuroLM, or an adapter of one.")
        for name in NeuroLMConfig.from_pretrained(source).architectures or []:
            if name != NeuroLMForCausalLM.__name__:
                raise ValueError(f"{source} is a {name}, which reads no questions: give a NeuroLMForCausalLM.")
        model: Any = NeuroLMForCausalLM.from_pretrained(source)
    else:
        try:
            from peft import AutoPeftModelForCausalLM
        except ImportError as error:
            raise ImportError('Adapters need peft: pip install "neurolm_hf[evaluation]"', name="peft") from error
        model = AutoPeftModelForCausalLM.from_pretrained(source)
        # an adapter that PEFT alone has saved has neither processor nor config beside it
        if Path(source).is_dir() and not (Path(source) / "processor_config.json").is_file():
            home = model.get_base_model().name_or_path
    processor = NeuroLMProcessor.from_pretrained(home)
    if processor.tokenizer is None:
        raise ValueError(f"{home} has no text tokenizer, without which nothing can be asked.")
    config = NeuroLMConfig.from_pretrained(source) if home == source else None
    return Answering(source, model.to(device).eval(), processor, config)


def open_set(place: str) -> EvaluationSet:
    """Opens one split of a prepared set.

    Args:
        place: its folder; after a colon the split, which is the test split otherwise: `prepared/hmc:validation`.

    Raises:
        ValueError: nothing is asked about these windows, the split has none, or the folder is no finished set.
        FileNotFoundError: no such folder.
    """
    folder, colon, split = place.rpartition(":")
    if not colon or split not in PARTS:
        folder, split = place, "test"
    task = prepared_task(folder)
    if task.question is None:
        raise ValueError(
            f"{folder} is prepared for {task.name}, which asks nothing: evaluation needs a task with a question and "
            "answers, such as Workload."
        )
    rows = load_prepared(folder, split)
    preparation, summary = read_description(folder)
    return EvaluationSet(
        folder=folder,
        split=split,
        task=task,
        rows=rows,
        fingerprint=summary["fingerprint"],
        is_published_protocol=split == "test"
        and preparation["split_rule"] in (None, "published")
        and _is_shipped(task),
        notes=list(summary["notes"]),
    )


def check_recipe(given: EvaluationSet, answering: Answering) -> None:
    """Windows and model must be of one recipe.

    Raises:
        ValueError: they are not; the message says in what.
    """
    preparation, _ = read_description(given.folder)
    own, extractor = EEGFeatureExtractor(**preparation["recipe"]), answering.processor.feature_extractor
    if own.recipe_id != extractor.recipe_id:
        raise ValueError(
            f"{given.folder} was prepared by another recipe than that of {answering.source}: "
            f"{recipe_differences(own, extractor)}. Prepare the recordings again, with --model {answering.source}."
        )


def _is_adapter(source: str) -> bool:
    try:
        return find_adapter_config_file(source) is not None
    except OSError:  # neither a folder nor an id, which `model_type` will say
        return False


def _subjects_tuned_on(provenance: Mapping[str, Any], task: str) -> set[str] | None:
    """Whom the training saw for a task, where a stage of this package has written the provenance.

    None where the names were left out when the model was published.
    """
    subjects: set[str] = set()
    while provenance:
        data = provenance.get("data")
        entries = [one for one in data if isinstance(one, dict)] if isinstance(data, list) else []
        entries = [one for one in entries if one.get("task") == task]
        if any("subjects" not in one for one in entries):
            return None
        subjects |= {name for one in entries for name in one["subjects"]}
        # what it was tuned on before it was tuned further
        before = provenance.get("started_from")
        provenance = (before.get("provenance") or {}) if isinstance(before, Mapping) else {}
    return subjects


def _is_shipped(task: Task) -> bool:
    """Whether a task is one of this package's, unchanged."""
    try:
        return load_task(task.name) == task
    except (ValueError, FileNotFoundError):
        return False
