#!/usr/bin/env python
"""How the cost of NeuroLM grows with tokens, windows and layers: seconds and peak memory.

A pre-training step (forward and backward) and the encoding of EEG, around one point: 256 tokens (64 channels, 4 s),
one window, all layers. Layers are those of the encoder and of the language model alike. Each number of layers has a
process of its own; peak memory is what the process held at most, weights included. Prints Markdown, and draws
`--picture` as well.
"""

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from measuring import GIB, machine, measure_memory, measure_seconds, own_process, print_table
from training import TINY_TEXT, TINY_VQ, Shape, make_processor, make_rows
from transformers import HfArgumentParser

from neurolm_hf import NeuroLMConfig, NeuroLMForCausalLM
from neurolm_hf.collators import PretrainingCollator
from neurolm_hf.cpu import make_cpu_fast


BLUE, ORANGE = "#0072B2", "#E69F00"
WORKS = {"pre-training step": BLUE, "encoding": ORANGE}


class Point(NamedTuple):
    """So many tokens a window, windows and layers."""

    tokens: int = 256
    windows: int = 1
    layers: int = 12


SWEEPS = {
    "tokens": [Point(tokens=count) for count in (64, 128, 256, 512, 1024)],
    "windows": [Point(windows=count) for count in (1, 2, 4, 8, 16)],
    "layers": [Point(layers=count) for count in (2, 4, 6, 8, 10, 12)],
}


@dataclass
class BenchmarkArguments:
    """What to measure."""

    size: str = field(default="B", metadata={"choices": ["B", "tiny"], "help": "tiny: a test of this script."})
    repeats: int = field(default=3, metadata={"help": "How often each point is measured; the median counts."})
    picture: Path | None = field(default=None, metadata={"help": "PNG file to draw, such as docs/growth.png."})


# point and work -> seconds, bytes
Figures = dict[tuple[Point, str], tuple[float, int]]


def main(arguments: BenchmarkArguments) -> None:
    """Measure every point once, print a table a sweep, draw the picture."""
    print(f"{machine()}; NeuroLM-{arguments.size}\n")
    sweeps = {axis: sweep[:2] if arguments.size == "tiny" else sweep for axis, sweep in SWEEPS.items()}
    points = {point for sweep in sweeps.values() for point in sweep}
    figures: Figures = {}
    for layers in sorted({point.layers for point in points}):
        with own_process() as process:
            for point in sorted(point for point in points if point.layers == layers):
                for work in WORKS:
                    asked = (work, point, arguments.size, arguments.repeats)
                    figures[point, work] = process.submit(costs_of, *asked).result()
    for axis, sweep in sweeps.items():
        rows = [[str(getattr(point, axis)), *_cells(figures, point)] for point in sweep]
        print_table([axis, *(f"{work}, {unit}" for work in WORKS for unit in ("s", "GiB"))], rows)
        print(flush=True)
    if arguments.picture is not None:
        draw(figures, sweeps, arguments.picture)


def costs_of(work: str, point: Point, size: str, repeats: int) -> tuple[float, int]:
    """Seconds (the median) and peak memory of doing the work, after a time that counts for neither."""
    make_cpu_fast()
    model = _model(size, point.layers)
    channels = min(64, point.tokens)
    shape = Shape("window", channels, point.tokens // channels)
    batch = PretrainingCollator(make_processor(size))(make_rows(shape, point.windows))
    del batch["rows"]
    eeg = {name: batch[name] for name in batch if name == "input_values" or name.startswith("eeg_")}

    def step() -> None:
        model(**batch).loss.backward()
        model.zero_grad()

    works: dict[str, Callable[[], object]] = {
        "pre-training step": step,
        "encoding": lambda: model.encode_eeg(**eeg),
    }
    works[work]()
    peak = measure_memory(works[work]).peak
    return statistics.median(measure_seconds(works[work]) for _ in range(repeats)), peak


def draw(figures: Figures, sweeps: dict[str, list[Point]], path: Path) -> None:
    """Seconds above, memory below, a column a sweep."""
    figure, axes = plt.subplots(2, len(sweeps), figsize=(9, 5), sharex="col", layout="constrained")
    for column, (axis, sweep) in zip(axes.T, sweeps.items(), strict=True):
        values = [getattr(point, axis) for point in sweep]
        for work, color in WORKS.items():
            seconds, memory = zip(*(figures[point, work] for point in sweep), strict=True)
            column[0].plot(values, seconds, "o-", color=color, label=work)
            column[1].plot(values, [peak / GIB for peak in memory], "o-", color=color)
        column[1].set_xlabel(axis)
        column[1].set_xticks(values[-3:] if axis == "tokens" else values)
        for one in column:
            one.set_ylim(bottom=0)
            one.set_xlim(left=0)
            one.grid(alpha=0.3)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak memory, GiB")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=150)


@functools.cache
def _model(size: str, layers: int) -> Any:
    torch.manual_seed(0)
    tiny = size == "tiny"
    model = NeuroLMForCausalLM(
        NeuroLMConfig(
            eeg_config={**(TINY_VQ if tiny else {}), "num_hidden_layers": layers},
            text_config={**(TINY_TEXT if tiny else {}), "n_layer": layers},
            eeg_token_id=make_processor(size).eeg_token_id,
        )
    )
    model.model.eeg_encoder.quantizer.initialized.fill_(True)
    return model.train()


def _cells(figures: Figures, point: Point) -> list[str]:
    pairs = [figures[point, work] for work in WORKS]
    return [cell for seconds, peak in pairs for cell in (f"{seconds:.2f}", f"{peak / GIB:.1f}")]


if __name__ == "__main__":
    parser = HfArgumentParser(BenchmarkArguments, description=__doc__)  # type: ignore[arg-type]  # theirs is opaque
    main(*parser.parse_args_into_dataclasses())
