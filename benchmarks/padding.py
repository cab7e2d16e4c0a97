#!/usr/bin/env python
"""What it saves to encode real patches only, instead of padding every sample as the reference does.

One neural tokenizer of full size (random weights) turns windows of the paper's six tasks into VQ tokens, unpadded and
padded to the reference's 276 patches (1024 where a window is longer), in turn, in one run. Prints seconds a window and
their ratio.
"""

import time
from dataclasses import dataclass, field

import torch
from training import TINY_VQ
from transformers import HfArgumentParser

from neurolm_hf import NeuroLMVQConfig, NeuroLMVQModel


# patches of a window: channels x seconds
TASKS = {"TUAB": 23 * 10, "TUEV": 23 * 5, "SEED": 62 * 4, "HMC": 4 * 30, "Workload": 19 * 4, "TUSL": 23 * 10}


@dataclass
class BenchmarkArguments:
    """How often to measure."""

    size: str = field(default="B", metadata={"choices": ["B", "tiny"], "help": "tiny: a test of this script."})
    repeats: int = field(default=5, metadata={"help": "Windows of each task, measured in turn."})


@torch.no_grad()
def seconds(model: NeuroLMVQModel, real: int, total: int) -> float:
    """Time to encode one window of `real` patches among `total`."""
    batch = {
        "input_values": torch.randn(1, total, 200),
        "eeg_channel_ids": torch.zeros(1, total, dtype=torch.long),
        "eeg_time_ids": torch.zeros(1, total, dtype=torch.long),
        "eeg_attention_mask": (torch.arange(total) < real).long()[None] if total > real else None,
    }
    start = time.perf_counter()
    model.encode(**batch)
    return time.perf_counter() - start


def main(arguments: BenchmarkArguments) -> None:
    """Print a line a task, and the geometric mean of the ratios."""
    changes = TINY_VQ if arguments.size == "tiny" else {"decoder_num_hidden_layers": 1}
    model = NeuroLMVQModel(NeuroLMVQConfig(**changes, alignment_vocab_size=2)).eval()
    seconds(model, 8, 8)  # warm up
    ratios = []
    print(f"{'task':<10}{'patches':>8}{'padded':>8}{'unpadded s':>12}{'padded s':>10}{'ratio':>7}")
    for task, real in TASKS.items():
        total = 276 if real <= 276 else 1024
        pairs = [(seconds(model, real, real), seconds(model, real, total)) for _ in range(arguments.repeats)]
        ours, padded = (sorted(column)[len(pairs) // 2] for column in zip(*pairs, strict=True))
        ratios.append(padded / ours)
        print(f"{task:<10}{real:>8}{total:>8}{ours:>12.3f}{padded:>10.3f}{ratios[-1]:>7.2f}")
    mean = torch.tensor(ratios).log().mean().exp()
    print(f"geometric mean of the ratios: {mean:.2f}")


if __name__ == "__main__":
    parser = HfArgumentParser(BenchmarkArguments, description=__doc__)  # type: ignore[arg-type]  # theirs is opaque
    main(*parser.parse_args_into_dataclasses())
