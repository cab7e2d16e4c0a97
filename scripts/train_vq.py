#!/usr/bin/env python
"""Stage 1: train the neural tokenizer, which turns each second of each channel into a code.

With the paper's recipe, from random weights, against the embeddings of GPT-2:
    torchrun --nproc_per_node 8 scripts/train_vq.py recipes/vq-paper.yaml --from-scratch --text-model gpt2 \\
        --text-data prepared/text --train-data prepared/tueg prepared/seed --output-dir runs/vq

A small one on a laptop, without text:
    python scripts/train_vq.py recipes/vq-cpu.yaml --from-scratch --train-data prepared/mine --output-dir runs/vq

On from a trained one, on other recordings, with a lower learning rate than the recipe's:
    python scripts/train_vq.py recipes/vq-one-gpu.yaml --vq neurolm-tokenizer --learning-rate 1e-5 \\
        --train-data prepared/mine --output-dir runs/vq-mine

A recipe is a YAML file of options; what the command line says counts more. Stopped or killed, the same command goes on
from the last checkpoint. At the end --output-dir holds the tokenizer, ready for scripts/pretrain.py, and
training.json.
Exit status: 0 finished, 1 failed, 2 wrong usage, 130 or 143 stopped by a signal after saving.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, set_seed

from neurolm_hf.collators import EEGCollator
from neurolm_hf.modeling_neurolm import NeuroLMVQForPreTraining, NeuroLMVQModel
from neurolm_hf.processing_neurolm import NeuroLMProcessor
from neurolm_hf.recipes import StageTrainingArguments, json_object, parse_arguments
from neurolm_hf.stages import (
    StageData,
    StageOptions,
    check_recipe,
    early_stopping,
    exit_status,
    open_sets,
    open_text,
    provenance,
    train,
    training_set,
    validation_set,
    write_results,
)
from neurolm_hf.starting_models import add_text_adversary, load_vq, new_vq, read_text_tokenizer
from neurolm_hf.training import (
    AlignmentScheduleCallback,
    CodebookCallback,
    NeuroLMTrainer,
    QuantizerScheduleCallback,
    standardize_features,
)
from neurolm_hf.training_set import TrainingSet
from neurolm_hf.validation import ReconstructionCallback


@dataclass
class VQOptions(StageOptions):
    """What is trained, and how beyond the Trainer's arguments."""

    vq: str | None = field(default=None, metadata={"help": "A trained neural tokenizer to start from."})
    from_scratch: bool = field(default=False, metadata={"help": "Start from random weights instead."})
    vq_config: str | None = field(
        default=None,
        metadata={"metavar": "JSON", "help": "Fields of NeuroLMVQConfig that differ from the paper's or from --vq's."},
    )
    text_model: str | None = field(
        default=None,
        metadata={"help": "Language model whose embeddings the text adversary knows; needs --text-data."},
    )
    text_tokenizer: str | None = field(
        default=None, metadata={"help": "Folder or id of its text tokenizer, where it is not beside the model."}
    )
    quantizer_warmup_steps: int = field(
        default=0, metadata={"help": "Steps without the quantiser at first, for small models."}
    )
    quantizer_bypass: float = field(
        default=0.0, metadata={"help": "Share of samples that go around the quantiser while training."}
    )
    standardize_features: bool = field(
        default=False, metadata={"help": "At the end, give the features a language model reads mean 0 and variance 1."}
    )

    def __post_init__(self) -> None:
        self.vq_fields = json_object("vq_config", self.vq_config)
        if (self.vq is None) != self.from_scratch:
            raise ValueError("give --vq, a trained neural tokenizer, or --from-scratch to start from random weights")
        if (self.text_model is None) != (self.text_data is None):
            raise ValueError("the text adversary needs --text-model and --text-data: give both, or neither")


def main(arguments: list[str] | None = None) -> None:
    """Trains, or says in one line why not."""
    options, args, recipe = parse_arguments(VQOptions, __doc__ or "", sys.argv[1:] if arguments is None else arguments)
    sys.exit(exit_status(lambda: run(options, args, recipe)))


def run(options: VQOptions, args: StageTrainingArguments, recipe: str | None) -> int:
    """The stage from its data to its files. Returns the exit status."""
    data = open_sets(options.train_data, args, with_tasks=False)
    texts: dict[str, Any] = {}
    if options.text_model is not None:
        tokenizer = read_text_tokenizer(options.text_tokenizer or options.text_model)
        texts = open_text(options, args, tokenizer)
    set_seed(args.seed)
    model = starting_model(options, data)
    evaluation = validation_set(data)
    plain = EEGCollator(data.feature_extractor)
    trainer = NeuroLMTrainer(
        model=model,
        args=args,
        train_dataset=training_set(data, options, args),
        eval_dataset=evaluation,
        data_collator=EEGCollator(data.feature_extractor, **texts),
        eval_data_collator=plain,
        processing_class=data.feature_extractor,
        callbacks=callbacks(options, args, evaluation, plain),
        skip_bad_batches=options.skip_bad_batches,
    )
    if status := train(trainer, options, data, data.longest_row()):
        return status
    if options.standardize_features:
        model.eval()
        rows = training_set(data, options, args)
        standardize_features(bare_tokenizer(model), batches(rows, plain, model.device))
    start = {"vq": options.vq, "text_model": options.text_model}
    source = provenance(__file__, trainer, data, recipe, start)
    bare_tokenizer(model).config.provenance = model.config.provenance = source
    trainer.save_model()
    if trainer.is_world_process_zero():
        NeuroLMProcessor(data.feature_extractor).save_pretrained(args.output_dir)
    write_results(trainer, source)
    return 0


def starting_model(options: VQOptions, data: StageData) -> NeuroLMVQModel | NeuroLMVQForPreTraining:
    """The neural tokenizer, with its text adversary if there is text."""
    if options.vq is None:
        vq = new_vq(data.feature_extractor, options.vq_fields)
    else:
        vq, extractor = load_vq(options.vq, options.vq_fields)
        check_recipe(data, extractor, options.vq)
    return vq if options.text_model is None else add_text_adversary(vq, options.text_model)


def callbacks(
    options: VQOptions, args: StageTrainingArguments, evaluation: TrainingSet | None, collator: EEGCollator
) -> list[TrainerCallback]:
    """The codebook's, and what the options ask for."""
    made: list[TrainerCallback] = [CodebookCallback(), *early_stopping(options, args)]
    if options.text_model is not None:
        made.append(AlignmentScheduleCallback())
    if options.quantizer_warmup_steps or options.quantizer_bypass:
        made.append(QuantizerScheduleCallback(options.quantizer_warmup_steps, options.quantizer_bypass))
    if evaluation is not None:
        made.append(ReconstructionCallback([evaluation[0]], collator, Path(args.output_dir or ".") / "reconstruction"))
    return made


def bare_tokenizer(model: Any) -> NeuroLMVQModel:
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
