"""What the three stages share: prepared folders in, a trained model and where it comes from out."""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from . import __version__
from .dataset_card import read_description
from .prepared_set import prepared_task, read_object, to_json
from .processing_neurolm import EEGFeatureExtractor
from .resources import check_resources
from .running import run_training
from .storage import load_prepared, write_text
from .tasks import Task
from .text import load_text_blocks
from .training import NeuroLMTrainer
from .training_set import TrainingSet


RESULTS = "training.json"
# Options that do not decide which run this is: data are told by what they hold, and a run that a bad row has stopped
# may go on without it.
NOT_SETTINGS = ("train_data", "text_data", "skip_bad_rows", "skip_bad_batches")


@dataclass
class StageOptions:
    """Options that every stage has."""

    train_data: list[str] = field(
        metadata={"metavar": "FOLDER", "help": "Prepared sets (scripts/prepare_data.py): one, or several to mix."}
    )
    weights: list[float] | None = field(
        default=None,
        metadata={"metavar": "WEIGHT", "help": "Share of each set in an epoch; without, every window comes once."},
    )
    text_data: str | None = field(
        default=None, metadata={"metavar": "FOLDER", "help": "Prepared text (scripts/prepare_text.py) to mix in."}
    )
    text_batch_size: int = field(
        default=0, metadata={"help": "Blocks of text beside each batch of a device; 0: a quarter of the windows."}
    )
    skip_bad_rows: bool = field(
        default=False,
        metadata={"help": "Leave out windows that cannot be read, and report them, instead of stopping."},
    )
    skip_bad_batches: bool = field(
        default=False, metadata={"help": "Leave out batches whose loss is not finite, and report them."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after so many evaluations without a better one; needs --load-best-model-at-end."},
    )


@dataclass(frozen=True)
class StageData:
    """Opened prepared sets.

    Attributes:
        train, validation: the rows of each set and, where they are asked about, the task. Sets without a validation
            split are missing in `validation`.
        feature_extractor: of the recipe by which all of them were prepared.
        description: of each set, for the model's provenance.
    """

    train: list[tuple[Any, Task | None]]
    validation: list[tuple[Any, Task | None]]
    feature_extractor: EEGFeatureExtractor
    description: list[dict[str, Any]]

    @property
    def tasks(self) -> list[Task]:
        """The tasks that are asked."""
        return [task for _, task in self.train if task is not None]

    def longest_row(self) -> int:
        """Patches of the longest training window."""
        import pyarrow.compute as pc

        samples = [pc.max(pc.list_value_length(rows.data.column("signal"))).as_py() for rows, _ in self.train]
        return max(samples) // self.feature_extractor.patch_size


def open_sets(folders: Sequence[str], args: TrainingArguments, with_tasks: bool) -> StageData:
    """Opens prepared sets for a stage.

    Args:
        folders: of the sets.
        args: if it asks for evaluation, one of the sets must have a validation split.
        with_tasks: the stage asks about each window.

    Raises:
        ValueError: a folder that holds something else, a corpus where tasks are asked, sets prepared by different
            recipes, no training split, or no validation split where one is needed.
        FileNotFoundError: no such folder.
    """
    train, validation, description = [], [], []
    extractors: dict[str, EEGFeatureExtractor] = {}
    for folder in folders:
        _check_is_eeg(folder)
        preparation, summary = read_description(folder)
        task = prepared_task(folder) if with_tasks else None
        if task is not None and task.question is None:
            raise ValueError(
                f"{folder} is prepared for {task.name}, which asks nothing: instruction tuning needs a task with a "
                "question and answers, such as Workload (see scripts/prepare_data.py --help)."
            )
        extractors[folder] = EEGFeatureExtractor(**preparation["recipe"], **preparation.get("window_lengths", {}))
        train.append((load_prepared(folder, "train"), task))
        if summary["windows"].get("validation"):
            validation.append((load_prepared(folder, "validation"), task))
        description.append(_describe_set(folder, preparation, summary))
    first, extractor = next(iter(extractors.items()))
    for folder, other in extractors.items():
        if other.recipe_id != extractor.recipe_id:
            raise ValueError(
                f"{folder} and {first} were prepared by different recipes: {_differing(other, extractor)}."
            )
    if args.eval_strategy != IntervalStrategy.NO and not validation:
        raise ValueError(
            f"{', '.join(folders)}: there is no validation split to evaluate on. Prepare with --split subject, or "
            "give --eval-strategy no" + (" --load-best-model-at-end false." if args.load_best_model_at_end else ".")
        )
    return StageData(train, validation, extractor, description)


def check_recipe(data: StageData, extractor: EEGFeatureExtractor, source: str) -> None:
    """Data and model must be of one recipe.

    Raises:
        ValueError: they are not; the message says in what.
    """
    if data.feature_extractor.recipe_id != extractor.recipe_id:
        folder = data.description[0]["folder"]
        raise ValueError(
            f"{folder} was prepared by another recipe than that of {source}: "
            f"{_differing(data.feature_extractor, extractor)}. Prepare the recordings again."
        )


def open_text(
    options: StageOptions,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    most_tokens: int | None = None,
) -> dict[str, Any]:
    """The collators' arguments for text mixing; none without `--text-data`.

    Args:
        tokenizer: the model's, which must be the text's too.
        most_tokens: positions that the model has; None where it has no limit.

    Raises:
        ValueError: the folder holds no text, text of another tokenizer, or blocks longer than the model reads.
    """
    if options.text_data is None:
        return {}
    settings = read_object(Path(options.text_data) / "preparation.json") or {}
    if "block_length" not in settings:
        raise ValueError(f"{options.text_data} is no prepared text: give the --output of scripts/prepare_text.py.")
    blocks = load_text_blocks(options.text_data)
    if settings["end_of_text"] != tokenizer.eos_token_id:
        raise ValueError(
            f"{options.text_data} is text of the tokenizer {settings['tokenizer']!r}, whose end of text is "
            f"{settings['end_of_text']}; this model's is {tokenizer.eos_token_id}: prepare it with --tokenizer."
        )
    if most_tokens is not None and settings["block_length"] > most_tokens:
        raise ValueError(
            f"{options.text_data} has blocks of {settings['block_length']} tokens, but the model has {most_tokens} "
            "positions: prepare the text with a smaller --block-length."
        )
    size = options.text_batch_size or max(1, args.per_device_train_batch_size // 4)
    return {"text_blocks": blocks, "texts_per_batch": size}


def training_set(data: StageData, options: StageOptions, args: TrainingArguments) -> TrainingSet:
    """The training rows in the order of the run's seed."""
    return TrainingSet(
        data.train,
        data.feature_extractor,
        weights=options.weights,
        seed=args.seed if args.data_seed is None else args.data_seed,
        on_bad_row="skip" if options.skip_bad_rows else "raise",
    )


def validation_set(data: StageData) -> TrainingSet | None:
    """The validation rows, in an order that stays."""
    return TrainingSet(data.validation, data.feature_extractor) if data.validation else None


def early_stopping(options: StageOptions, args: TrainingArguments) -> list[TrainerCallback]:
    """HF's own early stopping, if it was asked for.

    Raises:
        ValueError: it was, without anything to judge by.
    """
    if options.early_stopping_patience is None:
        return []
    if not args.load_best_model_at_end:
        raise ValueError("--early-stopping-patience needs --load-best-model-at-end and --eval-strategy.")
    return [EarlyStoppingCallback(options.early_stopping_patience)]


def train(trainer: NeuroLMTrainer, options: StageOptions, data: StageData, longest_row: int) -> int:
    """Runs the training after a look at memory and disk.

    Args:
        longest_row: tokens of the longest row of a batch.

    Returns:
        0 when it has ended, the exit status of the signal that stopped it otherwise.
    """
    args, rows = trainer.args, len(trainer.train_dataset)  # type: ignore[arg-type]
    total = args.train_batch_size * args.world_size * args.gradient_accumulation_steps
    steps = args.max_steps if args.max_steps > 0 else math.ceil(math.ceil(rows / total) * args.num_train_epochs)
    check_resources(trainer.model, args, longest_row=longest_row, steps=steps)
    settings = {name: value for name, value in asdict(options).items() if name not in NOT_SETTINGS}
    text = None if options.text_data is None else _describe_text(options.text_data)
    stopped = run_training(trainer, {**settings, "data": data.description, "text": text})
    return 0 if stopped is None else 128 + stopped


def provenance(
    script: str, trainer: NeuroLMTrainer, data: StageData, recipe: str | None, started_from: Mapping[str, Any]
) -> dict[str, Any]:
    """Where the weights come from, as the configs keep it."""
    return {
        "made_by": f"{Path(script).name} of neurolm_hf {__version__}",
        "recipe": None if recipe is None else Path(recipe).name,
        "started_from": dict(started_from),
        "data": data.description,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
    }


def write_results(trainer: NeuroLMTrainer, source: Mapping[str, Any], tasks: Sequence[Task] = ()) -> None:
    """Writes `training.json` beside the model: its figures on the validation split, tasks, provenance, log."""
    metrics = _validation_metrics(trainer)
    rows: Any = trainer.train_dataset  # a TrainingSet, of which each process knows its own bad rows
    skipped = sorted(set(gather_object(rows.skipped)))
    if not trainer.is_world_process_zero():
        return
    results = {
        "validation": metrics,
        "best_checkpoint": trainer.state.best_model_checkpoint,
        "skipped_rows": skipped,
        "tasks": [task.config_entry() for task in tasks],
        "provenance": dict(source),
        "log": trainer.state.log_history,
    }
    output = Path(trainer.args.output_dir or ".")
    write_text(output / RESULTS, to_json(results))
    for name, value in metrics.items():
        print(f"{name:<32} {value:.4g}")
    print(f"model    {output}\nfigures  {output / RESULTS}")


def longest_text(texts: Mapping[str, Any]) -> int:
    """Tokens of a block of what `open_text` gave; 0 without text."""
    return len(texts["text_blocks"][0]["input_ids"]) if texts else 0


def exit_status(stage: Callable[[], int]) -> int:
    """The exit status of a stage; what went wrong is said in one line."""
    try:
        return stage()
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Start the same command again to go on from the last checkpoint.", file=sys.stderr)
        return 130


def _check_is_eeg(folder: str) -> None:
    if "block_length" in (read_object(Path(folder) / "preparation.json") or {}):
        raise ValueError(f"{folder} is prepared text: give it as --text-data. --train-data are prepared recordings.")


def _validation_metrics(trainer: NeuroLMTrainer) -> dict[str, float]:
    """Of the weights that are kept: those of the best step or of the last; none without evaluation."""
    args, state = trainer.args, trainer.state
    if args.eval_strategy == IntervalStrategy.NO:
        return {}
    kept = state.best_global_step if args.load_best_model_at_end else state.global_step
    known = [entry for entry in state.log_history if entry["step"] == kept and "eval_loss" in entry]
    metrics = known[-1] if known else trainer.evaluate()
    beside = ("_runtime", "_per_second")
    return {name: value for name, value in metrics.items() if name.startswith("eval_") and not name.endswith(beside)}


def _describe_set(folder: str, preparation: dict[str, Any], summary: dict[str, Any]) -> dict[str, Any]:
    trained = [entry["subject"] for entry in summary["files"] if entry["windows"].get("train")]
    return {
        "folder": Path(folder).name,
        "task": preparation["task"],
        "fingerprint": summary["fingerprint"],
        "recipe_id": preparation["recipe_id"],
        "windows": summary["windows"]["train"],
        "subjects": sorted(set(trained)),
    }


def _describe_text(folder: str) -> dict[str, Any]:
    return {"folder": Path(folder).name, **json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))}


def _differing(one: EEGFeatureExtractor, other: EEGFeatureExtractor) -> str:
    """In what two recipes differ; the mains frequency is no difference, but whether it is taken out."""
    recipes = [{**each.recipe, "notch": each.notch_frequency is not None} for each in (one, other)]
    names = [name for name in recipes[0] if name != "notch_frequency" and recipes[0][name] != recipes[1][name]]
    return "; ".join(f"{name} {recipes[0][name]} and {recipes[1][name]}" for name in names)
