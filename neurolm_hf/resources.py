"""Whether a training can fit, told before it starts: memory of the device, and disk for the checkpoints.

What is counted is a lower bound, so a training that is refused cannot run, and one that is not may still be too large.
"""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D
from transformers.trainer_utils import SaveStrategy

from .devices import sharding


def check_resources(
    model: nn.Module, args: TrainingArguments, *, longest_row: int, text_tokens: int = 0, steps: int
) -> None:
    """Compares what a training needs at the least with what is free.

    Sharded and offloaded models (DeepSpeed, FSDP) are checked for disk alone.

    Args:
        model: before the Trainer has moved it; with its adapters.
        longest_row: patches of the longest row, with its question; to that a batch is padded.
        text_tokens: of the texts that the model reads beside a micro-batch.
        steps: optimiser steps of the whole training.

    Raises:
        ValueError: memory or disk cannot suffice; with both figures and what to change.
    """
    if sharding(args) is None:
        _check_memory(model, args, longest_row, text_tokens)
    if args.should_save:
        _check_disk(model, args, steps)


def memory_needed(model: nn.Module, args: TrainingArguments, longest_row: int, text_tokens: int = 0) -> dict[str, int]:
    """Bytes that training takes on the device, at the least, by what they are for.

    - weights: all parameters and buffers; those that are on the device already are not counted.
    - gradients: one for each trainable parameter.
    - optimiser: two moments of a trainable parameter with AdamW (less in 8 or 4 bits), none with any other.
    - activations: inputs of the trainable matrices in the transformer layers, for one micro-batch padded to the
      longest row, and for the text beside it. Matrices of equal width in one part of a layer count once, for they may
      share their input. With activation checkpointing: the input of each layer. Attention, norms, convolutions and
      logits are left out.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    held = [*model.parameters(), *model.buffers()]
    return {
        "weights": _bytes([tensor for tensor in held if tensor.device.type != args.device.type]),
        "gradients": _bytes(trainable),
        "optimiser": _optimizer_bytes(args, trainable),
        "activations": (args.per_device_train_batch_size * longest_row + text_tokens) * _activation_bytes(model, args),
    }


def disk_needed(model: nn.Module, args: TrainingArguments, steps: int) -> tuple[int, int]:
    """(bytes of one checkpoint, how many there are at once at the most).

    A checkpoint holds the weights (those of the adapters, where there are some) and the optimiser's state, DeepSpeed's
    in float32 and with trained weights of its own. It is written before an older one is removed.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    checkpoint = _bytes(_saved_tensors(model)) + _optimizer_bytes(args, trainable)
    if args.deepspeed_plugin is not None:
        checkpoint += 4 * sum(parameter.numel() for parameter in trainable)
    count = 1  # the last step is always saved
    if args.save_strategy == SaveStrategy.STEPS:
        every = args.save_steps if args.save_steps >= 1 else math.ceil(args.save_steps * steps)
        count = math.ceil(steps / every)
    elif args.save_strategy == SaveStrategy.EPOCH and args.max_steps <= 0:
        count = math.ceil(args.num_train_epochs)
    if args.save_total_limit:
        count = min(count, args.save_total_limit + 1)
    return checkpoint, count


def free_memory(device: torch.device) -> int:
    """Bytes that one process can still take: on a GPU as its driver says, else by the machine and its control groups.

    Several processes of a run on one machine share its memory.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = min([psutil.virtual_memory().available, *_control_group_free()])
    return free // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _check_memory(model: nn.Module, args: TrainingArguments, longest_row: int, text_tokens: int) -> None:
    needed, free = memory_needed(model, args, longest_row, text_tokens), free_memory(args.device)
    if sum(needed.values()) <= free:
        return
    parts = ", ".join(f"{name} {_gigabytes(size)}" for name, size in needed.items() if size)
    rows = args.per_device_train_batch_size
    text = f", {text_tokens} tokens of text beside them" if text_tokens else ""
    remedies = ["tune with LoRA, which needs gradients and optimiser for the adapters alone"]
    if not args.activation_checkpointing:
        remedies.insert(0, "set activation_checkpointing")
    if rows > 1:
        remedies.insert(0, "lower per_device_train_batch_size and raise gradient_accumulation_steps as much")
    raise ValueError(
        f"Training needs at least {_gigabytes(sum(needed.values()))} on {args.device}, and {_gigabytes(free)} are "
        f"free ({parts}; {rows} rows of {longest_row} tokens in a micro-batch{text}). To fit: "
        f"{'; or '.join(remedies)}; or use a smaller model."
    )


def _check_disk(model: nn.Module, args: TrainingArguments, steps: int) -> None:
    output_dir = Path(args.output_dir or ".").absolute()
    checkpoint, count = disk_needed(model, args, steps)
    there = sum(file.stat().st_size for file in output_dir.glob("checkpoint-*/**/*") if file.is_file())
    # the final model lies beside the checkpoints
    needed = checkpoint * count + _bytes(_saved_tensors(model)) - there
    existing = next(folder for folder in (output_dir, *output_dir.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ValueError(
            f"The checkpoints need at least {_gigabytes(needed)} more in {output_dir} ({count} at once, "
            f"{_gigabytes(checkpoint)} each, and the final model), and {_gigabytes(free)} are free there. Set "
            "save_total_limit to a smaller number, or output_dir to a larger disk."
        )


def _saved_tensors(model: nn.Module) -> list[torch.Tensor]:
    """The tensors in a saved model: all of them, or those of the adapters."""
    if getattr(model, "peft_config", None):
        return [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(model.state_dict().values())


def moment_bytes(optim: str, width: int = 4) -> int:
    """Bytes that an optimiser keeps for a trained number of `width` bytes: two moments with AdamW, none with others.

    Args:
        optim: as the Trainer calls it: `adamw_torch`, `adamw_8bit`, `sgd`.
    """
    if not optim.removeprefix("paged_").startswith("adam"):
        return 0
    return 2 if "8bit" in optim else 1 if "4bit" in optim else 2 * width


def _optimizer_bytes(args: TrainingArguments, trainable: list[Any]) -> int:
    name = args.optim.value if hasattr(args.optim, "value") else str(args.optim)
    return sum(parameter.numel() * moment_bytes(name, parameter.element_size()) for parameter in trainable)


def _activation_bytes(model: nn.Module, args: TrainingArguments) -> int:
    """Bytes that the transformer layers keep for the gradients, for one token."""
    total = 0
    for layer in model.modules():
        if not isinstance(layer, GradientCheckpointingLayer):
            continue
        inputs: dict[tuple[str, int], int] = {}
        for name, module in layer.named_modules():
            if isinstance(module, (nn.Linear, Conv1D)) and module.weight.requires_grad:
                width = module.weight.shape[1 if isinstance(module, nn.Linear) else 0]
                size = 2 if args.bf16 or args.fp16 else module.weight.element_size()
                inputs[name.partition(".")[0], width] = width * size
        if args.activation_checkpointing:
            # what enters a layer is as wide as its first matrix
            total += next(iter(inputs.values()), 0)
        else:
            total += sum(inputs.values())
    return total


def _control_group_free(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> list[int]:
    """Bytes that each limited control group (a container's, a Slurm job's; version 1 or 2) leaves this process."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    free = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        own = base / path.strip("/")
        # the limits of the groups around it hold too
        for folder in (own, *own.parents[: len(own.relative_to(base).parts)]):
            free += _group_free(folder, *names)
    return free


def _group_free(folder: Path, limit: str, usage: str, reclaimable: str) -> list[int]:
    """What one control group leaves, or nothing where it has no limit. Cached files make room when it is needed."""
    try:
        most = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        return []
    return [] if most == "max" else [max(0, int(most) - used + int(statistics.get(reclaimable, 0)))]


def _bytes(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
