#!/usr/bin/env python
"""A step of each training stage at full size, our way and the reference's way of working, in one run.

Ours: the models and collators of this package, as `NeuroLMTrainer` makes a step of them. The reference's way:
`reference_style.py`, which pads everything to 1024 patches, or to 276 patches and 80 text tokens. Both start from the
same kind of random weights, read the same windows, and take the same optimiser (fused AdamW). Neither gets a text
batch with them: a block of text is timed apart, and said what it makes of the ratio. Each way runs in a process of its
own, and they take turns; a figure is the median of its repeats. A sample's time is its share of a micro-batch plus its
share of one optimiser step for the paper's number of windows on a device. "With the same products" sets a way beside
the reference's way with the same precision and library.

FLOPs are those of matrix products, convolutions and attention of the step as it is done, so more of them is more
work. Their rate is set beside the fastest of plain matrix products of the model's shapes in the same precision,
measured in the same run. Peak memory is a process's, of which `state` (weights, optimiser, libraries) was there before
the step; it is taken in a step that is not timed.
"""

import functools
import math
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import reference_style
import torch
from measuring import (
    BFLOAT16,
    GIB,
    ONEDNN,
    Held,
    count_flops,
    geometric_mean,
    machine,
    measure_memory,
    measure_seconds,
    own_process,
    print_table,
    product_rates,
)
from peft import get_peft_model
from transformers import HfArgumentParser

from neurolm_hf import NeuroLMConfig, NeuroLMForCausalLM, NeuroLMVQConfig, NeuroLMVQForPreTraining
from neurolm_hf.channels_neurolm import CHANNEL_VOCABULARY
from neurolm_hf.collators import EEGCollator, InstructionCollator, PretrainingCollator
from neurolm_hf.cpu import keep_freed_memory, leave_onednn, use_onednn
from neurolm_hf.lora import lora_config
from neurolm_hf.processing_neurolm import (
    EEGFeatureExtractor,
    NeuroLMProcessor,
    build_text_tokenizer,
    train_text_tokenizer,
)
from neurolm_hf.tasks import load_task


BPE_FOLDER = Path(__file__).resolve().parents[2] / "shared" / "gpt2"

# Sizes of a test of this script.
TINY_ROWS = 1024
TINY_VQ = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "decoder_num_hidden_layers": 1}
TINY_VQ |= {"codebook_size": 64, "codebook_dim": 16}
TINY_TEXT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": TINY_ROWS, "bos_token_id": 0, "eos_token_id": 0}


class Shape(NamedTuple):
    """A window; `name` is that of a task where there is one."""

    name: str
    channels: int
    seconds: int


class Stage(NamedTuple):
    """What is trained on.

    Attributes:
        shapes: of the windows.
        padded: patches and text tokens to which the reference pads every one of them.
        windows: of an optimiser step on one device, in the paper.
        batch: windows of a micro-batch, unless told otherwise.
        texts: blocks of 1024 text tokens beside each window, in the paper.
    """

    shapes: tuple[Shape, ...]
    padded: tuple[int, int]
    windows: int
    batch: int
    texts: float = 0.0


CORPUS = (Shape("23 x 44 s", 23, 44), Shape("19 x 20 s", 19, 20), Shape("64 x 4 s", 64, 4))
TASKS = (
    Shape("TUAB", 23, 10),
    Shape("TUEV", 23, 5),
    Shape("SEED", 62, 4),
    Shape("HMC", 4, 30),
    Shape("Workload", 19, 4),
    Shape("TUSL", 23, 10),
)
STAGES = {
    "tokenizer": Stage(CORPUS, (1024, 0), 64, 2),
    "pretraining": Stage(CORPUS, (1024, 0), 60, 2, texts=32 / 480),
    "instruction": Stage(TASKS, (276, 80), 64, 8, texts=128 / 512),
}


@dataclass(frozen=True)
class Way:
    """How a step is made.

    Attributes:
        padded: the reference's way; all others keep what they freed, as our scripts do (`neurolm_hf.cpu`).
        onednn: oneDNN multiplies float32 matrices where it is the faster one, as in our scripts.
        bf16: matrix products in bfloat16 (`torch.autocast`), weights in float32.
        cached: the frozen encoder's features come with the batch.
        lora: adapters on the language model's blocks are trained, and nothing else.
        checkpointing: activations of the layers are computed again in the backward pass.
    """

    name: str
    padded: bool = False
    onednn: bool = True
    bf16: bool = False
    cached: bool = False
    lora: bool = False
    checkpointing: bool = False


REFERENCE = Way("reference's", padded=True, onednn=False)
OURS = Way("ours")
BOTH = (
    REFERENCE,
    Way("reference's, oneDNN", padded=True),
    Way("reference's, bf16", padded=True, bf16=True),
    OURS,
    Way("ours, bf16", bf16=True),
    Way("ours, checkpointing", checkpointing=True),
)
CACHED = Way("ours, cached", cached=True)
WAYS = {
    "tokenizer": BOTH,
    "pretraining": (*BOTH, CACHED),
    "instruction": (
        *BOTH,
        CACHED,
        Way("ours, LoRA", lora=True),
        Way("ours, cached, LoRA, bf16", bf16=True, cached=True, lora=True),
    ),
}
WAY_NAMES = tuple(dict.fromkeys(way.name for ways in WAYS.values() for way in ways))


@dataclass
class BenchmarkArguments:
    """What to measure."""

    stages: list[str] = field(default_factory=lambda: list(STAGES), metadata={"choices": list(STAGES)})
    size: str = field(default="B", metadata={"choices": ["B", "tiny"], "help": "tiny: a test of this script."})
    ways: list[str] = field(
        default_factory=lambda: list(WAY_NAMES), metadata={"choices": list(WAY_NAMES), "help": "All, unless told."}
    )
    repeats: int = field(default=3, metadata={"help": "How often each step is measured."})
    batch: int | None = field(default=None, metadata={"help": "Windows of a micro-batch, of every way alike."})


@dataclass
class Costs:
    """Of one window of a step.

    Attributes:
        flops: floating-point operations.
        held: memory, of a whole micro-batch.
        seconds: one a repeat.
    """

    flops: int = 0
    held: Held = field(default_factory=lambda: Held(0, 0))
    seconds: list[float] = field(default_factory=list)

    @property
    def time(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)


class Trained(NamedTuple):
    """A model in training, and what trains it."""

    model: Any
    optimizer: torch.optim.Optimizer


def main(arguments: BenchmarkArguments) -> None:
    """Print a table a stage."""
    print(f"{machine()}; NeuroLM-{arguments.size}\n")
    for name in arguments.stages:
        print_stage(name, arguments)


def print_stage(name: str, arguments: BenchmarkArguments) -> None:
    """Measure a stage, every way in turn, and print its table and geometric means."""
    stage, size = STAGES[name], arguments.size
    batch = arguments.batch or stage.batch
    ways = [way for way in WAYS[name] if way == REFERENCE or way.name in arguments.ways]
    # once padded, all windows are the same to the reference
    steps = [(way, shape) for i, shape in enumerate(stage.shapes) for way in ways if i == 0 or not way.padded]
    costs = {step: Costs() for step in steps}
    rates: dict[str, list[float]] = {}
    texts: dict[Way, list[float]] = {REFERENCE: [], OURS: []} if stage.texts and OURS in ways else {}
    with ExitStack() as stack:
        processes: dict[tuple[bool, bool], ProcessPoolExecutor] = {}
        for way, shape in steps:
            weights = (way.padded, way.lora)
            if weights not in processes:
                processes[weights] = stack.enter_context(own_process())
            asked = (name, way, shape, size)
            # the first step of a shape allocates what the others find
            costs[way, shape].flops = processes[weights].submit(flops_of_step, *asked).result()
            costs[way, shape].held = processes[weights].submit(memory_of_step, *asked, batch).result()
        for (padded, lora), process in processes.items():
            # the last memory to be measured was another step's: the first that is timed must not fetch its own
            way, shape = next(step for step in steps if (step[0].padded, step[0].lora) == (padded, lora))
            process.submit(seconds_of_step, name, way, shape, size, batch).result()
        for _ in range(arguments.repeats):
            for kind, measured in product_rates().items():
                rates.setdefault(kind, []).append(measured)
            for way, shape in steps:
                process = processes[way.padded, way.lora]
                work, update = process.submit(seconds_of_step, name, way, shape, size, batch).result()
                costs[way, shape].seconds.append(work / batch + update / stage.windows)
            for way, taken in texts.items():
                taken.append(processes[way.padded, False].submit(seconds_of_text, name, way, size).result())
    rate = {kind: statistics.median(measured) for kind, measured in rates.items()}
    print(f"### {name}, {batch} windows a micro-batch, {stage.windows} a step\n")
    print("Matrix products alone, GFLOP/s: " + ", ".join(f"{kind} {rate[kind] / 1e9:.0f}" for kind in rate) + ".\n")
    print_costs(costs, rate)
    if texts:
        print_with_text(stage.texts, costs, {way: statistics.median(taken) for way, taken in texts.items()})


def print_with_text(blocks: float, costs: dict[tuple[Way, Shape], Costs], texts: dict[Way, float]) -> None:
    """What is left of the ratio when each window brings so many blocks of text."""
    whole = {key: cost.time + blocks * texts[key[0]] for key, cost in costs.items() if key[0] in texts}
    base = next(seconds for (way, _), seconds in whole.items() if way == REFERENCE)
    ratio = geometric_mean(base / seconds for (way, _), seconds in whole.items() if way == OURS)
    print(
        f"A block of 1024 text tokens: {texts[REFERENCE]:.2f} s the reference's way, {texts[OURS]:.2f} s ours. With "
        f"the paper's {blocks:.3g} blocks a window, ours is {ratio:.2f} times as fast.\n",
        flush=True,
    )


def print_costs(costs: dict[tuple[Way, Shape], Costs], rate: dict[str, float]) -> None:
    """The table of a stage: a row for each way and window, and the geometric means of a way's figures."""
    padded = {way: cost for (way, _), cost in costs.items() if way.padded}
    base = padded[REFERENCE]
    rows = []
    for way in dict.fromkeys(way for way, _ in costs):
        of_way = {shape: cost for (measured, shape), cost in costs.items() if measured == way}
        faster = [base.time / cost.time for cost in of_way.values()]
        # the reference's way with products of the same precision by the same library
        alike = next((cost for one, cost in padded.items() if (one.bf16, one.onednn) == (way.bf16, way.onednn)), None)
        only = [alike.time / cost.time if alike else math.nan for cost in of_way.values()]
        smaller = [base.held.peak / cost.held.peak for cost in of_way.values()]
        reached = [cost.flops / cost.time / rate[BFLOAT16 if way.bf16 else ONEDNN] for cost in of_way.values()]
        for (shape, cost), speed, alone, share, memory in zip(
            of_way.items(), faster, only, reached, smaller, strict=True
        ):
            rows.append(
                [
                    "any, padded" if way.padded else shape.name,
                    way.name,
                    f"{1 / cost.time:.3f}",
                    f"{speed:.2f}",
                    f"{alone:.2f}" if alike else "",
                    f"{cost.flops / 1e12:.3f}",
                    f"{share:.0%}",
                    f"{cost.held.peak / GIB:.1f}",
                    f"{cost.held.before / GIB:.1f}",
                    f"{memory:.2f}",
                ]
            )
        if not way.padded:
            speed, alone, share, memory = (geometric_mean(values) for values in (faster, only, reached, smaller))
            means = [
                "",
                f"**{speed:.2f}**",
                f"**{alone:.2f}**" if alike else "",
                "",
                f"**{share:.0%}**",
                "",
                "",
                f"**{memory:.2f}**",
            ]
            rows.append(["**geometric mean**", way.name, *means])
    print_table(
        [
            "window",
            "way",
            "samples/s",
            "times as fast",
            "with the same products",
            "TFLOP a sample",
            "of the rate",
            "peak GiB",
            "of it state",
            "times less memory",
        ],
        rows,
    )
    print(flush=True)


def flops_of_step(stage: str, way: Way, shape: Shape, size: str) -> int:
    """Of one window; the step is done."""
    batch, trained = _batch(stage, way, shape, size, 1), _trained(stage, size, way)
    flops = count_flops(lambda: _loss(stage, way, trained.model, batch).backward())
    _update(stage, way, trained)
    return flops


def memory_of_step(stage: str, way: Way, shape: Shape, size: str, count: int) -> Held:
    """Of a micro-batch of so many windows, and of the optimiser's step after it."""
    batch, trained = _batch(stage, way, shape, size, count), _trained(stage, size, way)
    work = measure_memory(lambda: _loss(stage, way, trained.model, batch).backward())
    update = measure_memory(lambda: _update(stage, way, trained))
    return Held(work.before, max(work.peak, update.peak))


def seconds_of_step(stage: str, way: Way, shape: Shape, size: str, count: int) -> tuple[float, float]:
    """Of forward and backward of a micro-batch of so many windows, and of the optimiser's step after it."""
    batch, trained = _batch(stage, way, shape, size, count), _trained(stage, size, way)
    work = measure_seconds(lambda: _loss(stage, way, trained.model, batch).backward())
    return work, measure_seconds(lambda: _update(stage, way, trained))


def seconds_of_text(stage: str, way: Way, size: str) -> float:
    """Of forward and backward of a block of text."""
    trained = _trained(stage, size, way)
    ids = torch.randint(TINY_ROWS, (1, 64 if size == "tiny" else 1024))

    def step() -> None:
        given = {"input_ids": ids, "labels": ids, "use_cache": False}
        loss = reference_style.text_loss(trained.model, ids) if way.padded else trained.model(**given).loss
        loss.backward()

    seconds = measure_seconds(step)
    trained.optimizer.zero_grad()
    return seconds


@functools.cache
def make_processor(size: str) -> NeuroLMProcessor:
    """With GPT-2's tokens; where its files are not there, with tokens that split the tasks' words much alike."""
    if BPE_FOLDER.is_dir() and size == "B":
        return NeuroLMProcessor(EEGFeatureExtractor(), build_text_tokenizer(BPE_FOLDER))
    tasks = [load_task(shape.name) for shape in TASKS]
    texts = [task.training_text(answer) for task in tasks for answer in task.classes]
    return NeuroLMProcessor(EEGFeatureExtractor(), train_text_tokenizer(texts, vocab_size=TINY_ROWS))


def make_language_model(size: str) -> NeuroLMForCausalLM:
    """NeuroLM with random weights, its codebook placed."""
    changes = {"eeg_config": TINY_VQ, "text_config": TINY_TEXT} if size == "tiny" else {}
    model = NeuroLMForCausalLM(NeuroLMConfig(eeg_token_id=make_processor(size).eeg_token_id, **changes))
    model.model.eeg_encoder.quantizer.initialized.fill_(True)
    return model


def make_rows(shape: Shape, count: int) -> list[dict[str, Any]]:
    """Prepared windows of noise and a rhythm, each its own, with the answers of their task in turn."""
    generator = np.random.default_rng(0)
    times = np.arange(200 * shape.seconds) / 200
    rows: list[dict[str, Any]] = []
    for index in range(count):
        rhythm = np.sin(2 * np.pi * generator.uniform(1, 40) * times)
        signal = generator.normal(scale=0.3, size=(shape.channels, len(times))) + generator.uniform(0, 1) * rhythm
        channels = list(CHANNEL_VOCABULARY[: shape.channels])
        rows.append({"signal": signal.astype(np.float32), "channels": channels})
        if shape in TASKS:
            task = load_task(shape.name)
            rows[-1] |= {"task": task, "answer": task.classes[index % len(task.classes)]}
    return rows


def _trained(stage: str, size: str, way: Way) -> Trained:
    """The model of this process, which trains one kind of weights only, set to this way."""
    (use_onednn if way.onednn else leave_onednn)()
    if not way.padded:
        keep_freed_memory()
    trained = _new_training(stage, size, way.lora)
    checkpointed = trained.model.vq if stage == "tokenizer" else trained.model
    getattr(checkpointed, f"activation_checkpointing_{'enable' if way.checkpointing else 'disable'}")()
    return trained


@functools.cache
def _new_training(stage: str, size: str, lora: bool) -> Trained:
    torch.manual_seed(0)
    model: Any
    if stage == "tokenizer":
        model = NeuroLMVQForPreTraining(NeuroLMVQConfig(**(TINY_VQ if size == "tiny" else {})))
        model.vq.encoder.quantizer.initialized.fill_(True)
    else:
        model = make_language_model(size)
        model = get_peft_model(model, lora_config(model)) if lora else model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Trained(model.train(), torch.optim.AdamW(parameters, lr=1e-5, fused=True))


def _batch(stage: str, way: Way, shape: Shape, size: str, count: int) -> Any:
    """What a loader's process would hand over: the padded batch of the reference, or the arguments of our model."""
    collators: dict[str, Callable[[], Callable[[Any], dict[str, Any]]]] = {
        "tokenizer": lambda: EEGCollator(EEGFeatureExtractor()),
        "pretraining": lambda: PretrainingCollator(make_processor(size)),
        "instruction": lambda: InstructionCollator(make_processor(size)),
    }
    batch = collators[stage]()(make_rows(shape, count))
    del batch["rows"]
    if way.padded:
        padded = reference_style.pad(batch, *STAGES[stage].padded)
        if stage != "tokenizer":
            return (padded,)
        return padded, reference_style.tokenizer_targets(_trained(stage, size, way).model, padded)
    if not way.cached:
        return batch
    eeg = {name: batch[name] for name in batch if name == "input_values" or name.startswith("eeg_")}
    with torch.no_grad():
        encoding = _trained(stage, size, way).model.encode_eeg(**eeg)
    del batch["input_values"]
    return {**batch, "eeg_features": encoding.features, "eeg_codes": encoding.codes}


def _loss(stage: str, way: Way, model: Any, batch: Any) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way.bf16):
        if way.padded:
            loss: torch.Tensor = getattr(reference_style, f"{stage}_loss")(model, *batch)
            return loss
        return model(**batch, num_items_in_batch=model.count_loss_items(**batch)).loss


def _update(stage: str, way: Way, trained: Trained) -> None:
    """The optimiser's step; the codebook's in the reference's way is part of the loss."""
    if stage != "tokenizer":
        torch.nn.utils.clip_grad_norm_(trained.model.parameters(), 1.0)
    trained.optimizer.step()
    if stage == "tokenizer" and not way.padded:
        trained.model.update_codebook()
    trained.optimizer.zero_grad()


if __name__ == "__main__":
    parser = HfArgumentParser(BenchmarkArguments, description=__doc__)  # type: ignore[arg-type]  # theirs is opaque
    main(*parser.parse_args_into_dataclasses())
