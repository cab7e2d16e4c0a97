#!/usr/bin/env python
"""Answers about windows at full size: scoring of all allowed answers beside the reference's way of generating one.

Ours: `neurolm_hf.scoring`, from prepared windows to the log-likelihood of every answer of the task. The reference's
way: `reference_style.py`, which pads windows to 276 patches, and writes five tokens, each by reading everything again.
Ours is timed with the processor's work, the reference's way without its loader's. Both have the same random weights.
Times are medians, taken in turn in one process, in seconds a window. Ours runs after `neurolm_hf.cpu.make_cpu_fast()`,
which a process that answers on a CPU calls once; the reference's way is timed with oneDNN's products too.

Then, whether the answers are the same. Read as the reference reads them, every answer after the unpadded window in a
pass of its own over the whole sequence in float32, windows have likelihoods from which ours may differ. (Padded, the
reference reads other features.) Random weights prefer one answer whatever they read, so the mean likelihood of each
answer is subtracted, as `scoring.calibrate` does, before the likeliest is taken.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import reference_style
import torch
from measuring import geometric_mean, machine, measure_seconds, print_table
from training import STAGES, TASKS, Shape, make_language_model, make_processor, make_rows
from transformers import HfArgumentParser

from neurolm_hf.collators import InstructionCollator
from neurolm_hf.cpu import leave_onednn, make_cpu_fast, use_onednn
from neurolm_hf.prompts import completion_ids
from neurolm_hf.scoring import answer_log_likelihoods
from neurolm_hf.tasks import load_task


NEW_TOKENS = 5


@dataclass
class BenchmarkArguments:
    """What to measure."""

    size: str = field(default="B", metadata={"choices": ["B", "tiny"], "help": "tiny: a test of this script."})
    batches: list[int] = field(
        default_factory=lambda: [1, 4], metadata={"help": "Windows that are asked about at once."}
    )
    repeats: int = field(default=3, metadata={"help": "How often each is measured."})
    windows: int = field(default=8, metadata={"help": "Windows of each task whose answers are compared."})


def main(arguments: BenchmarkArguments) -> None:
    """Print a table for each number of windows, and one of the answers."""
    print(f"{machine()}; NeuroLM-{arguments.size}\n")
    torch.set_grad_enabled(False)
    size = arguments.size
    models = {torch.float32: make_model(size), torch.bfloat16: make_model(size).to(torch.bfloat16)}
    for batch in arguments.batches:
        print(f"### Seconds an answer, {batch} window(s) at once\n")
        print_seconds(models, size, batch, arguments.repeats)
    print(f"### Answers about {arguments.windows} windows of each task\n")
    print_answers(models, size, arguments.windows)


def print_seconds(models: dict[torch.dtype, Any], size: str, batch: int, repeats: int) -> None:
    """The table for so many windows at once."""
    rows, ratios = [], []
    for shape in TASKS:
        windows = make_rows(shape, batch)
        padded = pad(windows, size)
        ways: list[Callable[[], object]] = []
        for model in models.values():
            # products in bfloat16 are oneDNN's anyway
            choices = (False, True) if model.dtype == torch.float32 else (True,)
            ways += [partial(generate, model, padded, onednn) for onednn in choices]
            ways.append(partial(score, model, windows, shape, size))
        taken = [[measure_seconds(way) / batch for way in ways] for _ in range(repeats)]
        medians = [statistics.median(column) for column in zip(*taken, strict=True)]
        theirs, theirs_onednn, ours, theirs_bf16, ours_bf16 = medians
        ratios.append([theirs / ours, theirs_onednn / ours, theirs / ours_bf16, theirs_bf16 / ours_bf16])
        rows.append([shape.name, *(f"{value:.3f}" for value in medians), *(f"{ratio:.2f}" for ratio in ratios[-1])])
    means = [f"**{geometric_mean(column):.2f}**" for column in zip(*ratios, strict=True)]
    rows.append(["**geometric mean**", *[""] * 5, *means])
    print_table(
        [
            "window",
            "reference's way",
            "with oneDNN",
            "ours",
            "reference's way, bf16",
            "ours, bf16",
            "times as fast",
            "of that with oneDNN",
            "bf16, of its float32",
            "bf16, of its bf16",
        ],
        rows,
    )
    print(flush=True)


def print_answers(models: dict[torch.dtype, Any], size: str, count: int) -> None:
    """Whether ours are those of the reference's way of reading."""
    rows = []
    for shape in TASKS:
        windows = make_rows(shape, count)
        expected = read_one_by_one(models[torch.float32], windows, shape, size)
        preference = expected.mean(0)
        answers = (expected - preference).argmax(1)
        figures = [f"{len(answers.unique())} of {expected.shape[1]}"]
        for model in models.values():
            ours = score(model, windows, shape, size)
            same = int(((ours - preference).argmax(1) == answers).sum())
            figures += [f"{same} of {count}", f"{(ours - expected).abs().max():.1e}"]
        rows.append([shape.name, *figures])
    print_table(
        ["window", "answers given", "same", "largest difference", "same, bf16", "largest difference, bf16"], rows
    )
    print(flush=True)


def make_model(size: str) -> Any:
    """Random weights for which the EEG makes a difference to the answer; the same every time."""
    torch.manual_seed(0)
    model = make_language_model(size).eval()
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.mul_(2)
    model.model.channel_embedding.weight.mul_(0.1)
    model.model.eeg_encoder.patch_embedding.projection.weight.mul_(30)
    return model


def pad(windows: list[dict[str, Any]], size: str) -> reference_style.PaddedBatch:
    """The windows and their prompt, with room for what is written."""
    processor = make_processor(size)
    batch = InstructionCollator(processor)(windows)
    # a prompt is what has no loss
    prompt = batch["labels"] == -100
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "labels"):
        batch[name] = batch[name][:, : int(prompt[0].sum())]
    return reference_style.pad(batch, *STAGES["instruction"].padded)


def generate(model: Any, padded: reference_style.PaddedBatch, onednn: bool) -> torch.Tensor:
    """The reference's way, with the products that PyTorch makes by itself, or with oneDNN's."""
    (use_onednn if onednn else leave_onednn)()
    return reference_style.generate(model, padded, NEW_TOKENS)


def score(model: Any, windows: list[dict[str, Any]], shape: Shape, size: str) -> torch.Tensor:
    """(windows, answers): our log-likelihoods, in a process made as fast as `make_cpu_fast` makes it."""
    make_cpu_fast()
    processor = make_processor(size)
    return answer_log_likelihoods(
        model,
        processor,
        [window["signal"] for window in windows],
        load_task(shape.name),
        len(windows),
        ch_names=[window["channels"] for window in windows],
        prepared_by=processor.feature_extractor.recipe_id,
    )


def read_one_by_one(model: Any, windows: list[dict[str, Any]], shape: Shape, size: str) -> torch.Tensor:
    """(windows, answers): log-likelihoods among text rows, by one pass for every window and answer."""
    processor, task = make_processor(size), load_task(shape.name)
    likelihoods = torch.zeros(len(windows), len(task.classes))
    for index, window in enumerate(windows):
        for answer in task.classes:
            batch = InstructionCollator(processor)([{**window, "answer": answer}])
            ids = completion_ids(processor.tokenizer, task, answer)
            patches = window["signal"].size // 200
            sequence = reference_style.pad(batch, patches, batch["input_ids"].shape[1] - patches)
            logits = model.lm_head(reference_style.read(model, sequence))[0, -len(ids) - 1 : -1]
            likelihoods[index, task.answers[answer]] = (
                logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum()
            )
    return likelihoods


if __name__ == "__main__":
    parser = HfArgumentParser(BenchmarkArguments, description=__doc__)  # type: ignore[arg-type]  # theirs is opaque
    main(*parser.parse_args_into_dataclasses())
