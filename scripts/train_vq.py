#!/usr/bin/env python
"""Train a neural tokenizer, which turns each second of each channel into a code: NeuroLM's stage 1, or LaBraM's.

With the paper's recipe, from random weights, against the embeddings of GPT-2:
    torchrun --nproc_per_node 8 scripts/train_vq.py recipes/vq-paper.yaml --from-scratch --text-model gpt2 \\
        --text-data prepared/text --train-data prepared/tueg prepared/seed --output-dir runs/vq

A small one on a laptop, without text:
    python scripts/train_vq.py recipes/vq-cpu.yaml --from-scratch --train-data prepared/mine --output-dir runs/vq

LaBraM's, which predicts amplitude and phase of each patch's spectrum, by its paper:
    torchrun --nproc_per_node 8 scripts/train_vq.py recipes/labram-vq-paper.yaml --from-scratch \\
        --train-data prepared/tueg prepared/seed --output-dir runs/labram-vq

On from a trained one, on other recordings, with a lower learning rate than the recipe's:
    python scripts/train_vq.py recipes/vq-one-gpu.yaml --vq neurolm-tokenizer --learning-rate 1e-5 \\
        --train-data prepared/mine --output-dir runs/vq-mine

A recipe is a YAML file of options; what the command line says counts more. Stopped or killed, the same command goes on
from the last checkpoint. At the end --output-dir holds the tokenizer, ready for scripts/pretrain.py, LaBraM's for
scripts/pretrain_masked.py, and training.json.
Exit status: 0 finished, 1 failed, 2 wrong usage, 130 or 143 stopped by a signal after saving. An error is said in one
line; NEUROLM_TRACEBACK=1 in the environment shows where it came from, too.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, set_seed
from transformers.trainer_utils import IntervalStrategy

from neurolm_hf.collators import EEGCollator
from neurolm_hf.devices import sharding
from neurolm_hf.modeling_labram import LaBraMVQModel
from neurolm_hf.modeling_neurolm import NeuroLMVQForPreTraining, NeuroLMVQModel
from neurolm_hf.processing_neurolm import LABRAM_LAYOUT, NeuroLMProcessor
from neurolm_hf.recipes import StageTrainingArguments, json_object, parse_arguments
from neurolm_hf.running import windows_of_a_step
from neurolm_hf.stages import (
    StageData,
    TextModelOptions,
    check_recipe,
    exit_status,
    finish,
    make_trainer,
    open_sets,
    open_text,
    optimizer_steps,
    provenance,
    train,
    training_set,
    validation_set,
)
from neurolm_hf.starting_models import (
    ARCHITECTURES,
    add_text_adversary,
    architecture_of,
    load_vq,
    new_vq,
    read_text_tokenizer,
)
from neurolm_hf.text import text_vocabulary
from neurolm_hf.training import (
    AlignmentScheduleCallback,
    CodebookCallback,
    QuantizerScheduleCallback,
    standardize_features,
)
from neurolm_hf.training_set import TrainingSet
from neurolm_hf.validation import ReconstructionCallback


@dataclass
class VQOptions(TextModelOptions):
    """What is trained, and how beyond the Trainer's arguments."""

    vq: str | None = field(default=None, metadata={"help": "A trained neural tokenizer to start from."})
    from_scratch: bool = field(default=False, metadata={"help": "Start from random weights instead."})
    architecture: str | None = field(
        default=None,
        metadata={
            "choices": list(ARCHITECTURES),
            "help": "Whose tokenizer is made from scratch (default: neurolm); --vq has its own.",
        },
    )
    vq_config: str | None = field(
        default=None,
        metadata={
            "metavar": "JSON",
            "help": "Fields of NeuroLMVQConfig (LaBraMVQConfig) that differ from the paper's or from --vq's.",
        },
    )
    quantizer_warmup_steps: int = field(
        default=0, metadata={"help": "Steps without the quantiser at first, for small models."}
    )
    quantizer_bypass: float | None = field(
        default=None,
        metadata={"help": "Share of samples that go around the quantiser while training; by default the model's."},
    )
    standardize_features: bool = field(
        default=False, metadata={"help": "At the end, give the features a language model reads mean 0 and variance 1."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.vq_fields = json_object("vq_config", self.vq_config)
        if (self.vq is None) != self.from_scratch:
            raise ValueError("give --vq, a trained neural tokenizer, or --from-scratch to start from random weights")
        if (self.text_model is None) != (self.text_data is None):
            raise ValueError("the text adversary needs --text-model and --text-data: give both, or neither")
        if self.quantizer_warmup_steps < 0:
            raise ValueError(f"--quantizer-warmup-steps is 0 or more, not {self.quantizer_warmup_steps}")
        if self.quantizer_bypass is not None and not 0 <= self.quantizer_bypass < 1:
            raise ValueError(f"--quantizer-bypass is a share from 0 to below 1, not {self.quantizer_bypass}")


def main(arguments: list[str] | None = None) -> None:
    """Trains, or says in one line why not."""
    options, args, recipe = parse_arguments(VQOptions, __doc__ or "", sys.argv[1:] if arguments is None else arguments)
    sys.exit(exit_status(lambda: run(options, args, recipe)))


def run(options: VQOptions, args: StageTrainingArguments, recipe: str | None) -> int:
    """The stage from its data to its files. Returns the exit status."""
    architecture = settled_architecture(options)
    if options.standardize_features and sharding(args) == "FSDP":
        raise ValueError("--standardize-features changes whole weights, which FSDP shares out: use DDP or ZeRO.")
    layout = LABRAM_LAYOUT if architecture == "labram" else {}
    data = open_sets(options, args, with_tasks=False, layout=layout)
    keep_evaluation_out_of_warmup(options, args, data)
    set_seed(args.seed)
    model = starting_model(options, architecture, data)
    before = bare_tokenizer(model).config.provenance
    texts: dict[str, Any] = {}
    if options.text_model is not None:
        tokenizer = read_text_tokenizer(options.text_tokenizer or options.text_model)
        texts = open_text(options, args, tokenizer)
        check_embeddings(model, options, tokenizer)
    plain = EEGCollator(data.feature_extractor)
    trainer = make_trainer(
        model,
        args,
        options,
        data,
        data.longest_row(),
        callbacks=callbacks(model, options),
        data_collator=EEGCollator(data.feature_extractor, **texts),
        eval_data_collator=plain,
        processing_class=data.feature_extractor,
    )
    if (evaluation := validation_set(data)) is not None:
        folder = Path(args.output_dir or ".") / "reconstruction"
        others = trainer.callback_handler.callbacks
        trainer.add_callback(ReconstructionCallback([evaluation[0]], plain, folder, others))
    if status := train(trainer, options, data):
        return status
    if not bare_tokenizer(model).encoder.quantizer.initialized:
        raise ValueError(
            f"the codebook was never placed in {trainer.state.global_step} steps, so there are no codes: train longer."
        )
    if options.standardize_features:
        model.eval()
        rows = training_set(data, options, args)
        standardize_features(bare_tokenizer(model), batches(rows, plain, model.device))
    start = {"vq": options.vq, "text_model": options.text_model, "provenance": before}
    source = provenance(__file__, trainer, data, recipe, start)
    bare_tokenizer(model).config.provenance = model.config.provenance = source
    # the processor of all stages, so that the tokenizer opens as they do
    finish(trainer, data, source, write=NeuroLMProcessor(data.feature_extractor).save_pretrained)
    return 0


def settled_architecture(options: VQOptions) -> str:
    """Of the tokenizer that is trained: --vq's own, or what is asked for.

    Raises:
        ValueError: --vq is of another one, or an option is NeuroLM's alone.
    """
    own = None if options.vq is None else architecture_of(options.vq)
    if own is not None and options.architecture not in (None, own):
        raise ValueError(
            f"{options.vq} is a tokenizer of {own}: leave --architecture out, or give a recipe of that architecture."
        )
    architecture = own or options.architecture or "neurolm"
    if architecture == "neurolm":
        return architecture
    if options.text_model is not None:
        raise ValueError(
            "LaBraM's tokenizer has no text adversary: leave --text-model, --text-data, --text-tokenizer and "
            "--text-batch-size out."
        )
    if options.standardize_features:
        raise ValueError(
            "--standardize-features is for features that a language model reads, but of LaBraM's tokenizer only the "
            "codes are read: leave it out."
        )
    return architecture


def keep_evaluation_out_of_warmup(options: VQOptions, args: StageTrainingArguments, data: StageData) -> None:
    """While nothing is quantised there is nothing to judge: evaluations begin after the codebook's first step.

    Raises:
        ValueError: the training ends in the warm-up, or is to be evaluated before it begins.
    """
    warmup, steps = options.quantizer_warmup_steps, optimizer_steps(args, data)
    if not warmup:
        return
    if warmup >= steps:
        raise ValueError(
            f"--quantizer-warmup-steps {warmup} leaves none of the {steps} steps for the codebook: lower it, or train "
            "longer."
        )
    if args.eval_on_start:
        raise ValueError(
            "--eval-on-start judges codes that there are not yet: leave it out, or the quantiser's warm-up."
        )
    # counted in epochs where an epoch ends with an evaluation
    rows = sum(len(part) for part, _ in data.train)
    by_epochs = args.eval_strategy == IntervalStrategy.EPOCH
    epochs = math.ceil((warmup + 1) / math.ceil(rows / windows_of_a_step(args)))
    args.eval_delay = max(args.eval_delay, epochs if by_epochs else warmup + 1)


def check_embeddings(model: Any, options: VQOptions, tokenizer: Any) -> None:
    """Every token of the text must have an embedding that the adversary knows.

    Raises:
        ValueError: the tokenizer is another model's.
    """
    largest = max(*text_vocabulary(tokenizer).values(), tokenizer.eos_token_id)
    known = model.config.alignment_vocab_size
    if largest >= known:
        raise ValueError(
            f"{options.text_model} has embeddings of {known} tokens, but its tokenizer's ids go up to {largest}: give "
            "the tokenizer that belongs to it (--text-tokenizer)."
        )


def starting_model(
    options: VQOptions, architecture: str, data: StageData
) -> NeuroLMVQModel | NeuroLMVQForPreTraining | LaBraMVQModel:
    """The neural tokenizer, with its text adversary if there is text."""
    if options.from_scratch:
        vq = new_vq(data.feature_extractor, options.vq_fields, architecture)
    else:
        vq, extractor = load_vq(str(options.vq), options.vq_fields, [architecture])
        check_recipe(data, extractor, str(options.vq))
    return vq if options.text_model is None else add_text_adversary(vq, options.text_model)


def callbacks(model: Any, options: VQOptions) -> list[TrainerCallback]:
    """The codebook's, and what the options ask for."""
    made: list[TrainerCallback] = [CodebookCallback()]
    if options.text_model is not None:
        made.append(AlignmentScheduleCallback())
    own = bare_tokenizer(model).config.quantizer_bypass
    bypass = own if options.quantizer_bypass is None else options.quantizer_bypass
    if options.quantizer_warmup_steps or bypass != own or bypass:
        made.append(QuantizerScheduleCallback(options.quantizer_warmup_steps, bypass))
    return made


def bare_tokenizer(model: Any) -> Any:
    """The neural tokenizer without its adversary."""
    return getattr(model, "vq", model)


def batches(rows: TrainingSet, collator: EEGCollator, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    """Up to 256 training windows, evenly spread."""
    sample = np.linspace(0, len(rows) - 1, num=min(256, len(rows)), dtype=int)
    for part in np.array_split(sample, len(sample) // 32 + 1):
        batch = collator([rows[int(index)] for index in part])
        yield {name: value.to(device) for name, value in batch.items() if name != "rows"}


if __name__ == "__main__":
    main()
