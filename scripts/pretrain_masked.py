#!/usr/bin/env python
"""Pre-train a LaBraM: an encoder learns to predict the codes of the patches that it does not see.

With the paper's recipe, behind a tokenizer of scripts/train_vq.py --architecture labram:
    torchrun --nproc_per_node 8 scripts/pretrain_masked.py recipes/labram-pretrain.yaml --from-scratch --size Base \\
        --vq runs/labram-vq --train-data prepared/tueg prepared/seed --output-dir runs/labram

A small one on a laptop:
    python scripts/pretrain_masked.py recipes/labram-pretrain-cpu.yaml --from-scratch --vq runs/labram-vq \\
        --train-data prepared/mine --output-dir runs/labram

On from a trained one, on your recordings; a converted release needs its tokenizer beside it (--vq):
    python scripts/pretrain_masked.py recipes/labram-pretrain.yaml --model runs/labram --learning-rate 5e-5 \\
        --train-data prepared/mine --output-dir runs/labram-mine

In each window, one half of the patches is masked and predicted from the other, and then the other way round. Windows
have up to 256 patches and 16 seconds. A recipe is a YAML file of options; what the command line says counts more.
Stopped or killed, the same command goes on from the last checkpoint, with the same masks. At the end --output-dir
holds the model with its frozen tokenizer, ready for scripts/finetune_classifier.py, and training.json.
Exit status: 0 finished, 1 failed, 2 wrong usage, 130 or 143 stopped by a signal after saving.
"""

import sys
from dataclasses import dataclass, field

from transformers import set_seed

from neurolm_hf.collators import MaskedCollator
from neurolm_hf.configuration_labram import LABRAM_SIZES
from neurolm_hf.modeling_labram import LaBraMForMaskedEEGModeling
from neurolm_hf.processing_neurolm import LABRAM_LAYOUT, EEGFeatureExtractor, NeuroLMProcessor
from neurolm_hf.recipes import StageTrainingArguments, json_object, parse_arguments
from neurolm_hf.stages import (
    DataOptions,
    check_recipe,
    exit_status,
    finish,
    make_trainer,
    open_sets,
    provenance,
    train,
)
from neurolm_hf.starting_models import load_masked_model, new_masked_model


@dataclass
class MaskedOptions(DataOptions):
    """What is trained, and how beyond the Trainer's arguments."""

    vq: str | None = field(
        default=None,
        metadata={"help": "The trained LaBraM tokenizer whose codes are predicted (scripts/train_vq.py)."},
    )
    from_scratch: bool = field(default=False, metadata={"help": "Start from random weights, with --vq."})
    size: str | None = field(
        default=None,
        metadata={"choices": list(LABRAM_SIZES), "help": "What --from-scratch makes (default: Base)."},
    )
    labram_config: str | None = field(
        default=None,
        metadata={
            "metavar": "JSON",
            "help": "Fields of LaBraMConfig that differ from the size's, with --from-scratch.",
        },
    )
    model: str | None = field(
        default=None,
        metadata={"help": "A pre-trained LaBraM to go on from; one without its tokenizer needs --vq beside it."},
    )

    def __post_init__(self) -> None:
        self.labram_fields = json_object("labram_config", self.labram_config)
        if (self.model is None) != self.from_scratch:
            raise ValueError("give --model, a pre-trained LaBraM, or --from-scratch to start from random weights")
        if self.from_scratch and self.vq is None:
            raise ValueError("--from-scratch needs --vq, a trained LaBraM tokenizer: its codes are what is predicted")
        if self.model is not None and (self.size is not None or self.labram_fields):
            raise ValueError(
                "--model has a configuration already: leave --size and --labram-config out, or clear the recipe's "
                "with --labram-config {}"
            )


def main(arguments: list[str] | None = None) -> None:
    """Trains, or says in one line why not."""
    options, args, recipe = parse_arguments(
        MaskedOptions, __doc__ or "", sys.argv[1:] if arguments is None else arguments
    )
    sys.exit(exit_status(lambda: run(options, args, recipe)))


def run(options: MaskedOptions, args: StageTrainingArguments, recipe: str | None) -> int:
    """The stage from its data to its files. Returns the exit status."""
    data = open_sets(options, args, with_tasks=False, layout=LABRAM_LAYOUT)
    set_seed(args.seed)
    model, extractor = starting_model(options)
    check_recipe(data, extractor, options.model or str(options.vq))
    before = model.config.provenance
    collator = MaskedCollator(extractor, model.config.mask_ratio)
    trainer = make_trainer(
        model,
        args,
        options,
        data,
        data.longest_row(),
        data_collator=collator,
        processing_class=extractor,
    )
    if status := train(trainer, options, data):
        return status
    source = provenance(
        __file__, trainer, data, recipe, {"model": options.model, "vq": options.vq, "provenance": before}
    )
    model.config.provenance = source
    finish(trainer, data, source, write=NeuroLMProcessor(extractor).save_pretrained)
    return 0


def starting_model(options: MaskedOptions) -> tuple[LaBraMForMaskedEEGModeling, EEGFeatureExtractor]:
    """The model to train with the tokenizer that gives its labels, and its feature extractor."""
    if options.from_scratch:
        return new_masked_model(str(options.vq), options.labram_fields, options.size or "Base")
    return load_masked_model(str(options.model), options.vq)


if __name__ == "__main__":
    main()
