"""What all trainings share: prepared folders in, a trained model and where it comes from out."""

import json
import math
import os
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

from accelerate.utils import gather_object
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from . import __version__
from .checkpoints import WRITE_ERRORS, final_files_failed
from .collators import RecipeMismatchError
from .cpu import make_cpu_fast
from .dataset_card import read_description
from .devices import leave_together
from .feature_cache import FEATURES, FeatureCache, compute_features, precision_of
from .model_card import CARD, has_edited_card, model_card
from .modeling_neurolm import NeuroLMModel
from .prepared_set import prepared_task, read_object, to_json
from .processing_neurolm import EEGFeatureExtractor
from .resources import check_resources
from .running import locked, run_training, windows_of_a_step
from .starting_models import describe_source
from .storage import load_prepared, signal_lengths, window_kinds, write_text
from .tasks import Task
from .text import load_text_blocks, vocabulary_hash
from .training import NeuroLMTrainer
from .training_set import TrainingSet, usable_row


RESULTS = "training.json"
# Beside it, while the training runs: a line for each row that was left out, whichever process or start met it.
SKIPPED_ROWS = "skipped_rows.txt"
# One block of so many is kept from training, for the loss on text in validation; not more than so many in all.
HELD_OUT_SHARE, MOST_HELD_OUT = 20, 64
TRACEBACK = "NEUROLM_TRACEBACK"
# Options that name weights or a tokenizer to start from.
STARTING_POINTS = ("model", "vq", "text_model", "text_tokenizer")
# Options that do not decide which run this is: data are told by what they hold, a run that a bad row has stopped may
# go on without it, and features that are kept are those that are computed each time.
NOT_SETTINGS = ("train_data", "text_data", "skip_bad_rows", "skip_bad_batches", "cache_eeg_features")


@dataclass
class DataOptions:
    """Options that every training on prepared sets has."""

    train_data: list[str] = field(
        metadata={"metavar": "FOLDER", "help": "Prepared sets (scripts/prepare_data.py): one, or several to mix."}
    )
    weights: list[float] | None = field(
        default=None,
        metadata={"metavar": "WEIGHT", "help": "Share of each set in an epoch; without, every window comes once."},
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


@dataclass
class StageOptions(DataOptions):
    """Options of a stage, which may have text mixed in."""

    text_data: str | None = field(
        default=None, metadata={"metavar": "FOLDER", "help": "Prepared text (scripts/prepare_text.py) to mix in."}
    )
    text_batch_size: int | None = field(
        default=None,
        metadata={"help": "Blocks of text in an optimiser step, over all devices; without, a quarter of its windows."},
    )

    def __post_init__(self) -> None:
        size = self.text_batch_size
        if size is not None and size < 0:
            raise ValueError(f"--text-batch-size is 0 or more, not {size}")
        if size and self.text_data is None:
            raise ValueError(f"{size} blocks of text a step are asked for: give --text-data, or --text-batch-size 0")
        if size == 0 and self.text_data is not None:
            raise ValueError("--text-batch-size 0 mixes no text in: leave --text-data out")


@dataclass
class TextModelOptions(StageOptions):
    """Options of a stage that may start from a text model."""

    text_model: str | None = field(
        default=None, metadata={"help": "Language model: any decoder, a folder or an id of the Hub."}
    )
    text_tokenizer: str | None = field(
        default=None, metadata={"help": "Folder or id of its text tokenizer, where it is not beside the model."}
    )


@dataclass
class LanguageModelOptions(TextModelOptions):
    """Options of a stage that trains a language model behind an EEG encoder."""

    cache_eeg_features: bool = field(
        default=False,
        metadata={
            "help": "Compute the frozen encoder's features of each window once and keep them in "
            "OUTPUT_DIR/eeg_features: patches x width x 4 bytes, 0.8 MB for 256 patches of the paper's encoder."
        },
    )


@dataclass(frozen=True)
class StageData:
    """Opened prepared sets.

    Attributes:
        train, validation: the rows of each set and, where they are asked about, the task. Sets without a validation
            split are missing in `validation`, and so are rows that were left out of it.
        train_folders, validation_folders: of the sets in `train` and in `validation`.
        feature_extractor: of the recipe by which all of them were prepared, and of the model's layout.
        description: of each set, for the model's provenance.
        skipped: what is wrong with each row that was left out of `validation`.
    """

    train: list[tuple[Any, Task | None]]
    validation: list[tuple[Any, Task | None]]
    train_folders: list[str]
    validation_folders: list[str]
    feature_extractor: EEGFeatureExtractor
    description: list[dict[str, Any]]
    skipped: list[str]

    @property
    def tasks(self) -> list[Task]:
        """The tasks that are asked."""
        return [task for _, task in self.train if task is not None]

    def window_seconds(self) -> int | None:
        """Seconds of the training windows; None where not all are alike."""
        sizes = {size // len(channels) for rows, _ in self.train for channels, size in window_kinds(rows)}
        return sizes.pop() // self.feature_extractor.patch_size if len(sizes) == 1 else None

    def longest_row(self) -> int:
        """Patches of the longest training window."""
        return max(int(signal_lengths(rows).max()) for rows, _ in self.train) // self.feature_extractor.patch_size


def open_sets(
    options: DataOptions, args: TrainingArguments, with_tasks: bool, layout: Mapping[str, Any] = MappingProxyType({})
) -> StageData:
    """Opens prepared sets for a stage.

    With `skip_bad_rows` the validation rows are read once, and those that cannot be used are left out: a validation
    split has no other row in their place.

    Args:
        options: which sets, and whether bad rows are left out.
        args: if it asks for evaluation, one of the sets must have a validation split.
        with_tasks: the stage asks about each window.
        layout: how the model reads its patches where that is not NeuroLM's way, such as `LABRAM_LAYOUT`.

    Raises:
        ValueError: a folder that holds something else, a corpus where tasks are asked, sets prepared by different
            recipes, no training split, windows of channels or a length that the model does not read, no validation
            split where one is needed, or a damaged file.
        FileNotFoundError: no such folder.
    """
    folders, train, validation, description = options.train_data, [], [], []
    validation_folders: list[str] = []
    skipped: list[str] = []
    extractors: dict[str, EEGFeatureExtractor] = {}
    for folder in folders:
        _check_is_eeg(folder)
        preparation, summary = read_description(folder)
        task = prepared_task(folder) if with_tasks else None
        if task is not None and task.question is None:
            raise ValueError(
                f"{folder} is prepared for {task.name}, which asks nothing: this training needs a task with a "
                "question and answers, such as Workload (see scripts/prepare_data.py --help)."
            )
        lengths = preparation.get("window_lengths", {})
        extractors[folder] = EEGFeatureExtractor(**{**preparation["recipe"], **lengths, **layout})
        train.append((_rows(folder, "train"), task))
        if layout and not options.skip_bad_rows:
            # windows that were prepared for another model: what this one cannot read is told now, not hours later
            for place in window_kinds(train[-1][0]).values():
                usable_row(train[-1][0], place, extractors[folder], folder)
        if summary["windows"].get("validation"):
            rows = _rows(folder, "validation")
            if options.skip_bad_rows:
                rows, bad = _without_bad_rows(rows, extractors[folder], folder)
                skipped += bad
            if len(rows):
                validation.append((rows, task))
                validation_folders.append(folder)
        description.append(_describe_set(folder, preparation, summary))
    first, extractor = next(iter(extractors.items()))
    for folder, other in extractors.items():
        if other.recipe_id != extractor.recipe_id:
            raise ValueError(
                f"{folder} and {first} were prepared by different recipes: {recipe_differences(other, extractor)}."
            )
    if args.eval_strategy != IntervalStrategy.NO and not validation:
        raise ValueError(
            f"{', '.join(folders)}: there is no validation split to evaluate on. Prepare with --split subject, or "
            "give --eval-strategy no" + (" --load-best-model-at-end false." if args.load_best_model_at_end else ".")
        )
    return StageData(train, validation, list(folders), validation_folders, extractor, description, skipped)


def check_recipe(data: StageData, extractor: EEGFeatureExtractor, source: str) -> None:
    """Data and model must be of one recipe.

    Raises:
        ValueError: they are not; the message says in what.
    """
    if data.feature_extractor.recipe_id != extractor.recipe_id:
        folder = data.description[0]["folder"]
        raise ValueError(
            f"{folder} was prepared by another recipe than that of {source}: "
            f"{recipe_differences(data.feature_extractor, extractor)}. Prepare the recordings again."
        )


def recipe_differences(one: EEGFeatureExtractor, other: EEGFeatureExtractor) -> str:
    """In what two recipes differ; the mains frequency is no difference, but whether it is taken out."""
    recipes = [{**each.recipe, "notch": each.notch_frequency is not None} for each in (one, other)]
    names = [name for name in recipes[0] if name != "notch_frequency" and recipes[0][name] != recipes[1][name]]
    return "; ".join(f"{name} {recipes[0][name]} and {recipes[1][name]}" for name in names)


def open_text(
    options: StageOptions,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    most_tokens: int | None = None,
) -> dict[str, Any]:
    """The arguments of a training's collator for text mixing; none without `--text-data`.

    The last blocks are left out, for `held_out_text`.

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
    if "vocabulary" not in settings:
        raise ValueError(
            f"{options.text_data} was prepared before prepared text told its vocabulary: prepare it again, with "
            "scripts/prepare_text.py into a new folder."
        )
    blocks = load_text_blocks(options.text_data)
    if (settings["vocabulary"], settings["end_of_text"]) != (vocabulary_hash(tokenizer), tokenizer.eos_token_id):
        raise ValueError(
            f"{options.text_data} is text of the tokenizer {settings['tokenizer']!r}, whose vocabulary is not this "
            "model's: prepare it with scripts/prepare_text.py --tokenizer and the model's tokenizer."
        )
    if most_tokens is not None and settings["block_length"] > most_tokens:
        raise ValueError(
            f"{options.text_data} has blocks of {settings['block_length']} tokens, but the model has {most_tokens} "
            "positions: prepare the text with a smaller --block-length."
        )
    windows = windows_of_a_step(args)
    size = windows / 4 if options.text_batch_size is None else options.text_batch_size
    trained = len(blocks) - _held_out(len(blocks))
    return {"text_blocks": blocks.select(range(trained)), "texts_per_row": size / windows}


def held_out_text(options: StageOptions, data: StageData, texts: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a validation's collator for text that no training has seen: about one of each block.

    None without text or validation windows to go with it, or where the text is too short to hold some out.

    Args:
        texts: what `open_text` gave.
    """
    windows = sum(len(rows) for rows, _ in data.validation)
    if options.text_data is None or not texts or not windows:
        return {}
    blocks = load_text_blocks(options.text_data)
    held = _held_out(len(blocks))
    if not held:
        return {}
    # not more in a batch than training has, and one at the least
    share = max(1 / windows, min(held / windows, texts["texts_per_row"]))
    return {"text_blocks": blocks.select(range(len(blocks) - held, len(blocks))), "texts_per_row": share}


def training_set(
    data: StageData, options: DataOptions, args: TrainingArguments, features: Sequence[FeatureCache] | None = None
) -> TrainingSet:
    """The training rows in the order of the run's seed. Those that are left out are listed in the run's folder."""
    return TrainingSet(
        data.train,
        data.feature_extractor,
        weights=options.weights,
        seed=args.seed if args.data_seed is None else args.data_seed,
        on_bad_row="skip" if options.skip_bad_rows else "raise",
        names=data.train_folders,
        skipped_file=Path(args.output_dir or ".") / SKIPPED_ROWS,
        features=features,
    )


def validation_set(data: StageData, features: Sequence[FeatureCache] | None = None) -> TrainingSet | None:
    """The validation rows, in an order that stays."""
    if not data.validation:
        return None
    return TrainingSet(data.validation, data.feature_extractor, names=data.validation_folders, features=features)


def feature_caches(
    model: Any, data: StageData, options: DataOptions, args: TrainingArguments
) -> Iterator[list[FeatureCache] | None]:
    """Of the training sets and of the validation sets, if features are to be kept.

    Raises:
        ValueError: this model's features cannot be.
    """
    wanted = isinstance(options, LanguageModelOptions) and options.cache_eeg_features
    fingerprints = dict(zip(data.train_folders, [one["fingerprint"] for one in data.description], strict=True))
    folder = Path(args.output_dir or ".") / FEATURES
    for split, parts, names in (
        ("train", data.train, data.train_folders),
        ("validation", data.validation, data.validation_folders),
    ):
        yield (
            [
                FeatureCache(
                    folder,
                    rows,
                    name,
                    fingerprint=f"{split} {fingerprints[name]}",
                    feature_extractor=data.feature_extractor,
                    model=bare_language_model(model),
                    precision=precision_of(args),
                    with_codes=task is None,
                )
                for (rows, task), name in zip(parts, names, strict=True)
            ]
            if wanted
            else None
        )


def bare_language_model(model: Any) -> NeuroLMModel:
    """The language model without its heads and adapters."""
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    return whole.base_model


def optimizer_steps(args: TrainingArguments, data: StageData) -> int:
    """Optimiser steps of the whole training."""
    rows = sum(len(rows) for rows, _ in data.train)
    epoch = math.ceil(rows / windows_of_a_step(args))
    return args.max_steps if args.max_steps > 0 else math.ceil(epoch * args.num_train_epochs)


def make_trainer(
    model: Any,
    args: TrainingArguments,
    options: DataOptions,
    data: StageData,
    longest_row: int,
    text_tokens: int = 0,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    **kwargs: Any,
) -> NeuroLMTrainer:
    """The trainer of a stage. Looks at memory and disk first, while the model is where it was made.

    Args:
        longest_row: tokens of the longest row of EEG, with its question.
        text_tokens: of the texts that the model reads beside a micro-batch.
        callbacks: beside early stopping.
        kwargs: NeuroLMTrainer's: collators, processor, answer sets.

    Raises:
        ValueError: memory or disk cannot suffice, features that cannot be kept, or early stopping without anything to
            judge by.
    """
    if args.device.type == "cpu":
        make_cpu_fast()
    steps = optimizer_steps(args, data)
    train_features, validation_features = feature_caches(model, data, options, args)
    check_resources(model, args, longest_row=longest_row, text_tokens=text_tokens, steps=steps)
    return NeuroLMTrainer(
        model=model,
        args=args,
        train_dataset=training_set(data, options, args, train_features),
        eval_dataset=validation_set(data, validation_features),
        callbacks=[*early_stopping(options, args), *callbacks],
        skip_bad_batches=options.skip_bad_batches,
        **kwargs,
    )


def early_stopping(options: DataOptions, args: TrainingArguments) -> list[TrainerCallback]:
    """HF's own early stopping, if it was asked for.

    Raises:
        ValueError: it was, without anything to judge by.
    """
    if options.early_stopping_patience is None:
        return []
    if not args.load_best_model_at_end:
        raise ValueError("--early-stopping-patience needs --load-best-model-at-end and --eval-strategy.")
    return [EarlyStoppingCallback(options.early_stopping_patience)]


def train(trainer: NeuroLMTrainer, options: DataOptions, data: StageData) -> int:
    """Runs the training.

    Returns:
        0 when it has ended, the exit status of the signal that stopped it otherwise.
    """
    settings = {name: value for name, value in asdict(options).items() if name not in NOT_SETTINGS}
    starts = {name: describe_source(settings[name]) for name in STARTING_POINTS if settings.get(name) is not None}
    folder = options.text_data if isinstance(options, StageOptions) else None
    text = None if folder is None else _describe_text(folder)
    prepare = partial(_compute_features, trainer, options.skip_bad_rows)
    stopped = run_training(trainer, {**settings, **starts, "data": data.description, "text": text}, prepare)
    return 0 if stopped is None else 128 + stopped


def provenance(
    script: str, trainer: NeuroLMTrainer, data: StageData, recipe: str | None, started_from: Mapping[str, Any]
) -> dict[str, Any]:
    """Where the weights come from, as the configs and the model card keep it."""
    return {
        "made_by": f"{Path(script).name} of neurolm_hf {__version__}",
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "recipe": None if recipe is None else Path(recipe).name,
        "started_from": dict(started_from),
        "data": [
            one | _describe_recordings(folder)
            for one, folder in zip(data.description, data.train_folders, strict=True)
        ],
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
    }


def finish(
    trainer: NeuroLMTrainer,
    data: StageData,
    source: Mapping[str, Any],
    tasks: Sequence[Task] = (),
    write: Callable[[Path], None] | None = None,
) -> None:
    """Writes the model, what belongs beside it, and at last `training.json`: figures, rows left out, tasks, log.

    The model card is made of all that; one that a person has edited stays.

    Args:
        source: what `provenance` gave; the model's config has it already.
        tasks: those that the model was taught.
        write: writes more files into the folder of the run, on the main process.

    Raises:
        OSError: the files could not be written.
        ValueError: another process is at work in the folder.
    """
    metrics = _validation_metrics(trainer)
    rows: Any = trainer.train_dataset  # a TrainingSet, of which each process knows its own bad rows
    skipped = {*gather_object(rows.skipped), *data.skipped}
    output = Path(trainer.args.output_dir or ".")
    with locked(output, trainer.args.should_save):
        edited = has_edited_card(output)
        try:
            trainer.save_model()
            if not trainer.is_world_process_zero():
                return
            if write is not None:
                write(output)
            if (output / SKIPPED_ROWS).is_file():
                skipped |= set((output / SKIPPED_ROWS).read_text(encoding="utf-8").splitlines())
            results = {
                "validation": metrics,
                "best_checkpoint": trainer.state.best_model_checkpoint,
                "skipped_rows": sorted(skipped),
                "tasks": [task.config_entry() for task in tasks],
                "provenance": dict(source),
                "log": trainer.state.log_history,
            }
            write_text(output / RESULTS, to_json(results))
            if not edited:
                write_text(output / CARD, model_card(output))
        except WRITE_ERRORS as error:
            raise final_files_failed(error, output) from error
    for name, value in metrics.items():
        print(f"{name:<32} {value:.4g}")
    print(f"model    {output}\nfigures  {output / RESULTS}")


def text_tokens(texts: Mapping[str, Any], args: TrainingArguments) -> int:
    """Tokens of text that what `open_text` gave puts beside a micro-batch, on average; 0 without text."""
    if not texts:
        return 0
    return math.ceil(len(texts["text_blocks"][0]["input_ids"]) * texts["texts_per_row"] * args.train_batch_size)


def exit_status(stage: Callable[[], int]) -> int:
    """The exit status of a stage; what went wrong is said in one line.

    With `NEUROLM_TRACEBACK=1` in the environment the traceback comes before it.
    """
    try:
        status = stage()
        leave_together()
        return status
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        print(f"error: {' '.join(_message(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. Start the same command again to go on from the last checkpoint.", file=sys.stderr)
        return 130


def _compute_features(trainer: NeuroLMTrainer, skip_bad_rows: bool) -> None:
    """Those that the trainer's sets keep, if they do, on all processes."""
    sets: tuple[Any, ...] = (trainer.train_dataset, trainer.eval_dataset)
    caches = [cache for rows in sets if rows is not None for cache in rows.features or ()]
    if caches:
        compute_features(caches, bare_language_model(trainer.model), trainer.args, skip_bad_rows)
        trainer.accelerator.wait_for_everyone()


def _message(error: Exception) -> str:
    """What an error says. One of a worker of the DataLoader holds the worker's whole traceback; its end counts."""
    message = str(error)
    if "DataLoader worker process" in message.partition("\n")[0]:
        message = re.split(r"^[\w.]*(?:Error|Exception): ", message, flags=re.MULTILINE)[-1]
    return message


def _rows(folder: str, split: str) -> Any:
    """The rows of a split; a ValueError names the file that is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets.exceptions import DatasetsError

    try:
        return load_prepared(folder, split)
    except (DatasetsError, pa.ArrowException) as error:
        again = "Start its preparation again with the same command: it makes what is damaged anew."
        for file in sorted((Path(folder) / "data" / split).glob("*.parquet")):
            try:
                pq.read_table(file)
            except (OSError, pa.ArrowException) as damage:
                raise ValueError(f"{file} is damaged: {damage}. {again}") from error
        raise ValueError(f"{folder} cannot be read: {error}. {again}") from error


def _without_bad_rows(rows: Any, extractor: EEGFeatureExtractor, folder: str) -> tuple[Any, list[str]]:
    """The rows that can be used, and what is wrong with each of the others."""
    good: list[int] = []
    bad: list[str] = []
    for index in range(len(rows)):
        try:
            usable_row(rows, index, extractor, folder)
            good.append(index)
        except RecipeMismatchError:
            raise
        except ValueError as error:
            bad.append(" ".join(str(error).split()))
            warnings.warn(f"{error} The row is left out of the validation.", stacklevel=2)
    return (rows.select(good) if bad else rows), bad


def _held_out(blocks: int) -> int:
    """How many blocks of text, the last ones, no training sees."""
    return min(MOST_HELD_OUT, blocks // HELD_OUT_SHARE)


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


def describe_training_set(folder: str | Path) -> dict[str, Any]:
    """What a provenance says of a prepared set that a model was trained on.

    Raises:
        ValueError: the folder holds no finished prepared set.
    """
    return _describe_set(str(folder), *read_description(folder)) | _describe_recordings(str(folder))


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


def _describe_recordings(folder: str) -> dict[str, Any]:
    """What kind of windows a set trains on; not in the settings of a run, which the fingerprint decides."""
    preparation, summary = read_description(folder)
    return {
        "hours": summary["hours"]["train"],
        "window_seconds": preparation["task_file"]["windows"]["seconds"],
        "channels": preparation["task_file"]["channels"],
        "notch_hz": preparation["recipe"]["notch_frequency"],
        "licence": preparation.get("licence"),
    }


def _describe_text(folder: str) -> dict[str, Any]:
    return {"folder": Path(folder).name, **json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))}
