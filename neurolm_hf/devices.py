"""Many devices: what DeepSpeed and FSDP are asked for, what cannot work, and what they would do without a word.

DistributedDataParallel keeps the whole model on each process. DeepSpeed's ZeRO and FSDP share out the optimiser's
state, the gradients and (ZeRO-3, FSDP) the weights: then every process must make the same passes through the model,
and a weight is read and written with its other shares.
"""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig, unset_hf_deepspeed_config
from transformers.modeling_layers import GradientCheckpointingLayer


DEEPSPEED_NEEDED = (
    'DeepSpeed is not installed. It is built for the PyTorch that is there: pip install wheel "setuptools>=80" and '
    'then pip install --no-build-isolation "deepspeed>=0.19.8"'
)
# The optimisers that DeepSpeed's own one for the host's memory stands in for.
OFFLOADED_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")


def require_deepspeed() -> None:
    """An ImportError with the commands that install DeepSpeed, where it is missing."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ImportError(DEEPSPEED_NEEDED, name="deepspeed")


def settle_deepspeed(args: TrainingArguments) -> None:
    """Tells DeepSpeed the arguments as they are now, and has models made whole. For after the last change of `args`.

    Transformers would make models in shares from here on, which what is made of two models, or changed before it is
    trained, cannot bear.
    """
    if args.deepspeed is not None:
        from accelerate.utils import DeepSpeedPlugin

        args.hf_deepspeed_config = HfTrainerDeepSpeedConfig(args.deepspeed)
        args.hf_deepspeed_config.trainer_config_process(args)
        args.deepspeed_plugin = DeepSpeedPlugin(hf_ds_config=args.hf_deepspeed_config)
    unset_hf_deepspeed_config()


def sharding(args: TrainingArguments) -> str | None:
    """How a run's state is shared out, which decides who can go on from its checkpoints; None where nothing is."""
    plugin = args.deepspeed_plugin
    if plugin is not None:
        zero = plugin.deepspeed_config["zero_optimization"]
        offloaded = " with offload" if _is_offloaded(zero) else ""
        return f"ZeRO-{zero['stage']}{offloaded} on {args.world_size} processes"
    return "FSDP" if _asks_for_fsdp(args) else None


def shares_weights(args: TrainingArguments) -> bool:
    """Whether no process has all weights while the model is trained."""
    plugin = args.deepspeed_plugin
    return _asks_for_fsdp(args) if plugin is None else plugin.deepspeed_config["zero_optimization"]["stage"] == 3


def check_devices(trainer: Trainer, *, skips_batches: bool) -> None:
    """Refuses what would train something else than was asked for, or fail at the end.

    Args:
        trainer: before its training.
        skips_batches: batches whose loss is not finite are to be left out.

    Raises:
        ValueError: processes that would each train alone, a strategy that accelerate ignores, settings of DeepSpeed,
            FSDP or the Trainer under which the training would not be NeuroLM's; the message says what to do.
    """
    args = trainer.args
    _check_processes(args)
    _check_in_use(trainer)
    if args.use_liger_kernel:
        raise ValueError("use_liger_kernel replaces losses that NeuroLM defines itself: leave it out.")
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    if parallel is not None and (parallel.tp_size > 1 or parallel.cp_size > 1 or parallel.sp_size > 1):
        raise ValueError(
            "Rows of EEG have no more than 1024 tokens, and no pass through the model is split: leave tensor, context "
            "and sequence parallelism out, and use ZeRO-3 or FSDP where the model is too large for one device."
        )
    if args.deepspeed_plugin is not None:
        _check_deepspeed(args)
    if trainer.is_fsdp_enabled:
        _check_fsdp(trainer.accelerator.state.fsdp_plugin, skips_batches)
    if args.torch_compile and (trainer.is_fsdp_enabled or shares_weights(args)):
        raise ValueError("torch_compile has not been tried where weights are shared out: leave it out, or use ZeRO-2.")
    model: Any = trainer.model
    if any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
        raise ValueError(
            "This model was made in shares, so that what was loaded into it may be lost: call "
            "`settle_deepspeed(args)` before the model is made."
        )


def local_share(parameter: nn.Parameter) -> torch.Tensor:
    """What this process holds of a parameter: all of it, or its share."""
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    return getattr(parameter, "ds_tensor", parameter)


def gathered(parameters: Sequence[nn.Parameter]) -> AbstractContextManager:
    """Makes parameters whole that ZeRO-3 has shared out, for reading and writing; on all processes at once.

    What process 0 writes becomes everybody's.
    """
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0)


def transformer_layers(model: nn.Module) -> list[str]:
    """Class names of the transformer layers, the EEG encoder's and any decoder's: what FSDP shares out one by one."""
    layers = (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))
    return sorted({type(layer).__name__ for layer in layers})


def round_weights_alone(plugin: Any) -> None:
    """Has FSDP's mixed precision leave signals, counts and losses in float32, and add up gradients in it."""
    policy = plugin.mixed_precision_policy
    if policy is not None:
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=policy.param_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
        )


def leave_together() -> None:
    """Ends the connection between the processes once all are done: one that is gone takes the others with it."""
    if dist.is_available() and dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


@contextmanager
def heads_in_root(model: Any) -> Iterator[None]:
    """Has accelerate leave embeddings and heads in FSDP's group of the whole model.

    NeuroLM reads the weights of its heads without calling them, so only the whole model's pass can gather them.
    """
    for name in ("get_input_embeddings", "get_output_embeddings"):
        setattr(model, name, lambda: None)
    try:
        yield
    finally:
        for name in ("get_input_embeddings", "get_output_embeddings"):
            delattr(model, name)


def _check_processes(args: TrainingArguments) -> None:
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started != args.world_size:
        raise ValueError(
            f"{started} processes were started, but here there is {args.world_size}: each would train alone. On CPUs "
            "add --use-cpu true; with DeepSpeed on CPUs start with accelerate launch --config_file configs/zero2.yaml "
            "(not --deepspeed) and add --ddp-backend gloo."
        )


def _check_in_use(trainer: Trainer) -> None:
    """accelerate ignores FSDP and DeepSpeed without a word where it runs on CPUs by `use_cpu`."""
    kind = trainer.accelerator.distributed_type
    if _asks_for_fsdp(trainer.args) and kind != DistributedType.FSDP:
        raise ValueError(
            f"FSDP is asked for, but accelerate runs {kind.value}: it knows FSDP on GPUs alone. On CPUs use DDP or "
            "ZeRO (configs/ddp-cpu.yaml, configs/zero3.yaml)."
        )
    if _asks_for_deepspeed(trainer.args) and kind != DistributedType.DEEPSPEED:
        raise ValueError(
            f"DeepSpeed is asked for, but accelerate runs {kind.value}: leave --use-cpu out, and --bf16, which "
            "implies it without a GPU; DeepSpeed takes the CPU by itself (--ddp-backend gloo)."
        )


def _check_deepspeed(args: TrainingArguments) -> None:
    plugin: Any = args.deepspeed_plugin
    config = plugin.deepspeed_config
    zero = config["zero_optimization"]
    for section in ("optimizer", "scheduler"):
        if section in config:
            raise ValueError(
                f"The DeepSpeed file has a section {section!r}, which takes the place of the training's own (weight "
                "decay on matrices alone, its schedule): leave the section out, and set the training arguments."
            )
    if config.get("tensor_parallel", {}).get("autotp_size", 1) > 1:
        raise ValueError("DeepSpeed's tensor parallelism does not know NeuroLM's heads: leave autotp_size out.")
    if args.fp16:
        raise ValueError("With DeepSpeed train in bf16, or in float32: fp16 must be False.")
    if zero["stage"] == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
        raise ValueError(
            "ZeRO-3 would save a model without weights: set stage3_gather_16bit_weights_on_model_save to true in the "
            "DeepSpeed file."
        )
    forced = config.get("zero_force_ds_cpu_optimizer", True)
    optimizer = str(getattr(args.optim, "value", args.optim))
    if _is_offloaded(zero) and forced and optimizer not in OFFLOADED_OPTIMIZERS:
        raise ValueError(
            f"With the optimiser in the host's memory DeepSpeed takes its own Adam in place of {optimizer}: "
            "leave optim at adamw_torch, or set zero_force_ds_cpu_optimizer to false in the DeepSpeed file."
        )


def _check_fsdp(plugin: Any, skips_batches: bool) -> None:
    wrong = {
        "fsdp_version must be 2": plugin.fsdp_version != 2,
        "fsdp_state_dict_type must be FULL_STATE_DICT, or no model is saved at the end": (
            "FULL_STATE_DICT" not in str(plugin.state_dict_type)
        ),
        "fsdp_cpu_ram_efficient_loading must be false: a model made of two needs the weights of both": (
            plugin.cpu_ram_efficient_loading
        ),
        "skip_bad_batches must be off: a gradient cannot be taken back there; use DDP or ZeRO": skips_batches,
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise ValueError(f"FSDP: {message}. configs/fsdp2.yaml has settings that fit.")


def _asks_for_fsdp(args: TrainingArguments) -> bool:
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def _asks_for_deepspeed(args: TrainingArguments) -> bool:
    return args.deepspeed is not None or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def _is_offloaded(zero: dict[str, Any]) -> bool:
    return zero.get("offload_optimizer", {}).get("device", "none") != "none"
