"""How a stage is trained: a recipe file, what the command line changes in it, and the Trainer's arguments of both."""

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available, logging

from .command_line import options_parser
from .devices import require_deepspeed, settle_deepspeed


logger = logging.get_logger(__name__)

Options = TypeVar("Options")

# Of the Trainer's hundred arguments, those that `--help` explains; all the others are taken as well.
EXPLAINED = frozenset(
    {
        "output_dir",
        "num_train_epochs",
        "max_steps",
        "per_device_train_batch_size",
        "per_device_eval_batch_size",
        "total_train_batch_size",
        "learning_rate",
        "lr_scheduler_kwargs",
        "warmup_steps",
        "weight_decay",
        "max_grad_norm",
        "bf16",
        "activation_checkpointing",
        "torch_compile",
        "seed",
        "use_cpu",
        "dataloader_num_workers",
        "logging_steps",
        "report_to",
        "eval_strategy",
        "eval_steps",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "load_best_model_at_end",
        "metric_for_best_model",
    }
)
# What NeuroLM's training settles by itself: another value would be ignored, or would end a run that is under way.
SETTLED: dict[str, tuple[Any, str]] = {
    "remove_unused_columns": (False, "the collators read the columns"),
    "train_sampling_strategy": (
        "random",
        "steps are drawn anew each epoch, and within a step windows of like length come together",
    ),
    "auto_find_batch_size": (False, "the windows of a step must stay as many; lower per_device_train_batch_size"),
    "resume_from_checkpoint": (None, "the same command goes on from its last checkpoint by itself"),
    "batch_eval_metrics": (False, "validation figures are taken over the whole split"),
    "eval_do_concat_batches": (True, "validation figures are taken over the whole split"),
}


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers: PyYAML takes `1e-4` for a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass
class StageTrainingArguments(TrainingArguments):
    """The Trainer's arguments with defaults for NeuroLM: linear warm-up and cosine, bfloat16 where the device has it.

    Raises:
        ValueError: no `output_dir`; another value of an argument in `SETTLED`; a `total_train_batch_size` that the
            devices cannot share out evenly; what TrainingArguments itself refuses.
    """

    _argument_group_name: ClassVar[str] = "options of the Trainer"

    total_train_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Windows of an optimiser step, over all devices. gradient_accumulation_steps follows from it and "
            "from per_device_train_batch_size."
        },
    )
    bf16: bool | None = field(  # type: ignore[assignment]  # None until the device has been asked
        default=None,
        metadata={
            "nargs": "?",
            "const": True,
            "help": "Mixed precision; by default where the GPU has bfloat16. Also for CPUs that have it (AVX512-BF16, "
            "AMX, ARM's), where it is off unless asked for, so that results stay the same on all of them.",
        },
    )
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Steps of linear warm-up; below 1, their share of all steps."}
    )
    logging_steps: float = field(default=10, metadata={"help": "Steps between two log entries."})
    save_total_limit: int | None = field(
        default=2,
        metadata={"help": "Checkpoints that are kept: the latest ones, and the best where it is looked for."},
    )
    # the collators read the columns, and a resumed run needs what its callbacks knew
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off."})
    restore_callback_states_from_checkpoint: bool = field(default=True, metadata={"help": "Must stay on."})

    def __post_init__(self) -> None:
        if self.output_dir is None:
            raise ValueError("give --output-dir, the folder for checkpoints and for the model at the end")
        for name, (value, reason) in SETTLED.items():
            if getattr(self, name) != value:
                raise ValueError(f"{name} must stay {json.dumps(value)}: {reason}")
        if self.bf16 is None:
            self.bf16 = not (self.use_cpu or self.fp16) and is_torch_bf16_gpu_available()
        elif self.bf16 and (self.use_cpu or not torch.accelerator.is_available()):
            # the Trainer takes bf16 for a GPU's unless it is told so
            self.use_cpu = True
            if not cpu_has_bf16():
                logger.warning("This CPU computes no bfloat16, so --bf16 is emulated: slower than without it.")
        if self.lr_scheduler_type == "cosine_with_min_lr" and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.1}
        if self.deepspeed is not None:
            require_deepspeed()
        super().__post_init__()
        self.dataloader_pin_memory &= self.device.type == "cuda"
        if self.total_train_batch_size is not None:
            self.gradient_accumulation_steps = self._accumulation(self.total_train_batch_size)
        settle_deepspeed(self)

    def _accumulation(self, total: int) -> int:
        """Micro-batches of a step of `total` windows."""
        at_once = self.train_batch_size * self.world_size
        if total < 1 or total % at_once:
            raise ValueError(
                f"total_train_batch_size {total} is no multiple of the {at_once} windows that the devices take at "
                f"once ({self.world_size} processes with {self.train_batch_size} each): change it, or "
                "per_device_train_batch_size."
            )
        if self.gradient_accumulation_steps not in (1, total // at_once):
            raise ValueError(
                f"gradient_accumulation_steps is {self.gradient_accumulation_steps}, but total_train_batch_size "
                f"{total} makes it {total // at_once}: give one of the two."
            )
        return total // at_once


def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies matrices of bfloat16."""
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def parse_arguments(
    kind: type[Options], description: str, arguments: Sequence[str]
) -> tuple[Options, StageTrainingArguments, str | None]:
    """A stage's own options and the Trainer's, from a recipe and what the command line changes in it.

    Wrong usage ends the process with status 2, `--help` with 0.

    Args:
        kind: dataclass of the stage's own options.
        description: what `--help` says first.
        arguments: of the command line: the recipe's path first, where there is one, then options.

    Returns:
        the options, the Trainer's arguments, and the recipe's path.
    """
    parser = _parser(kind, description)
    recipe = arguments[0] if arguments and not arguments[0].startswith("-") else None
    try:
        if recipe is not None:
            # of two values the last one counts, so the command line's stand after the recipe's
            arguments = [*recipe_arguments(recipe, (kind, StageTrainingArguments)), *arguments[1:]]
        options, args, unknown = parser.parse_args_into_dataclasses(
            list(arguments), return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, OSError, ImportError) as error:
        parser.error(" ".join(str(error).split()))
    if unknown:
        parser.error(f"there is no option {' '.join(unknown)}")
    return options, args, recipe


def recipe_arguments(path: str | Path, kinds: Sequence[type]) -> list[str]:
    """A recipe as arguments of a command line.

    Args:
        path: a YAML file; every key is a field of one of the `kinds`, written with underscores.
        kinds: dataclasses of options.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML mapping, or a key is unknown, stands twice or has no value; the message names file
            and key.
    """
    path = Path(path)
    known = {field.name for kind in kinds for field in fields(kind)}
    arguments: list[str] = []
    for key, value in read_recipe(path).items():
        if key not in known:
            raise ValueError(f"{path}: there is no option {key!r}; --help shows which there are.")
        if value is None:
            raise ValueError(f"{path}: {key} has no value; leave the key out to have its default.")
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{key}", *map(_as_argument, values)]
    return arguments


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The options of a recipe.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no YAML mapping, or a key stands twice.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no recipe {path}.")
    loader = _Loader(path.read_text(encoding="utf-8"))
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ValueError(f"{path} is no recipe: it must hold lines of `option: value`.")
        keys = [key.value for key, _ in node.value]
        if repeated := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"{path}: {', '.join(repeated)} stands there twice.")
        return loader.construct_mapping(node, deep=True)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}.") from error
    finally:
        loader.dispose()


def json_object(name: str, text: str | None) -> dict[str, Any]:
    """The fields that an option gives as JSON; none without it.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        content = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"{name} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} must be a JSON object, got {text}")
    return content


def _as_argument(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value)


def _parser(kind: type, description: str) -> HfArgumentParser:
    """Explains the stage's own options and the most needed of the Trainer's."""
    parser = options_parser(
        kind,
        StageTrainingArguments,
        description=description,
        usage="%(prog)s [RECIPE.yaml] --train-data FOLDER ... --output-dir FOLDER [options]",
        epilog="Other arguments of transformers.TrainingArguments are taken too, here and in recipes.\n"
        "NEUROLM_TRACEBACK=1 in the environment shows where an error came from.",
    )
    trainer_arguments = {field.name for field in fields(StageTrainingArguments)}
    for action in parser._actions:
        if action.dest in trainer_arguments - EXPLAINED:
            action.help = argparse.SUPPRESS
    return parser
