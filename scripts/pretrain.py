#!/usr/bin/env python
"""Stage 2: teach a language model EEG, by predicting every channel's next code (multi-channel autoregression).

With the paper's recipe, a trained tokenizer before GPT-2, text beside the EEG (--text-batch-size 0 goes without):
    torchrun --nproc_per_node 8 scripts/pretrain.py recipes/pretrain-b.yaml --vq runs/vq --text-model gpt2 \\
        --text-data prepared/text --train-data prepared/tueg prepared/seed --output-dir runs/pretrained

Another language model, a Llama or a Qwen, on one GPU, half of the windows from either set:
    python scripts/pretrain.py recipes/pretrain-one-gpu.yaml --vq runs/vq --text-model Qwen/Qwen3-0.6B \\
        --text-data prepared/qwen-text --train-data prepared/tueg prepared/mine --weights 1 1 --output-dir runs/qwen

A small one on a laptop, its language model from random weights:
    python scripts/pretrain.py recipes/pretrain-cpu.yaml --vq runs/vq --text-from-scratch gpt2 \\
        --text-tokenizer gpt2 --train-data prepared/mine --output-dir runs/pretrained

On from a converted release, on your recordings, without text, the frozen encoder's features computed only once:
    python scripts/pretrain.py recipes/pretrain-one-gpu.yaml --model neurolm-b --learning-rate 6e-5 \\
        --text-batch-size 0 --cache-eeg-features --train-data prepared/mine --output-dir runs/neurolm-b-mine

A recipe is a YAML file of options; what the command line says counts more. Stopped or killed, the same command goes on
from the last checkpoint. At the end --output-dir holds the model, ready for scripts/instruction_tune.py, and
training.json.
Exit status: 0 finished, 1 failed, 2 wrong usage, 130 or 143 stopped by a signal after saving.
"""

import sys
from dataclasses import dataclass, field

from transformers import set_seed

from neurolm_hf.collators import PretrainingCollator
from neurolm_hf.modeling_neurolm import NeuroLMForCausalLM
from neurolm_hf.processing_neurolm import NeuroLMProcessor
from neurolm_hf.recipes import StageTrainingArguments, json_object, parse_arguments
from neurolm_hf.stages import (
    LanguageModelOptions,
    check_recipe,
    exit_status,
    finish,
    held_out_text,
    make_trainer,
    open_sets,
    open_text,
    provenance,
    text_tokens,
    train,
)
from neurolm_hf.starting_models import join, load_language_model, new_text_model, read_text_tokenizer


@dataclass
class PretrainingOptions(LanguageModelOptions):
    """What is trained, and how beyond the Trainer's arguments."""

    vq: str | None = field(
        default=None, metadata={"help": "Neural tokenizer to start from (scripts/train_vq.py), with --text-model."}
    )
    text_from_scratch: str | None = field(
        default=None,
        metadata={"metavar": "TYPE", "help": "A language model with random weights, by its type: gpt2, llama, qwen3."},
    )
    text_config: str | None = field(
        default=None,
        metadata={"metavar": "JSON", "help": "Fields of the configuration that --text-from-scratch makes."},
    )
    model_config: str | None = field(
        default=None,
        metadata={"metavar": "JSON", "help": "Fields of NeuroLMConfig that differ from the paper's, with --vq."},
    )
    model: str | None = field(
        default=None, metadata={"help": "A pre-trained NeuroLM or a converted release to go on from, instead of --vq."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.text_fields = json_object("text_config", self.text_config)
        self.model_fields = json_object("model_config", self.model_config)
        if (self.model is None) == (self.vq is None):
            raise ValueError("give --vq with a language model to start from, or --model to go on from a NeuroLM")
        if (self.text_model is None) == (self.text_from_scratch is None) and self.vq is not None:
            raise ValueError("--vq needs --text-model, or --text-from-scratch for random weights")
        if self.model is not None and (self.text_model or self.text_from_scratch or self.text_tokenizer):
            raise ValueError(
                "--model has a language model already: no other --text-... model or tokenizer goes with it"
            )
        if self.model_fields and self.model is not None:
            raise ValueError(
                "--model has a configuration already: leave --model-config out, or clear the recipe's with "
                "--model-config {}"
            )
        if self.text_fields and self.text_from_scratch is None:
            raise ValueError(
                "--text-config is for --text-from-scratch: leave it out, or clear the recipe's with --text-config {}"
            )
        if self.text_from_scratch is not None and self.text_tokenizer is None:
            raise ValueError("--text-from-scratch needs --text-tokenizer, such as gpt2 or a folder")


def main(arguments: list[str] | None = None) -> None:
    """Trains, or says in one line why not."""
    options, args, recipe = parse_arguments(
        PretrainingOptions, __doc__ or "", sys.argv[1:] if arguments is None else arguments
    )
    sys.exit(exit_status(lambda: run(options, args, recipe)))


def run(options: PretrainingOptions, args: StageTrainingArguments, recipe: str | None) -> int:
    """The stage from its data to its files. Returns the exit status."""
    data = open_sets(options, args, with_tasks=False)
    set_seed(args.seed)
    model, processor = starting_model(options)
    check_recipe(data, processor.feature_extractor, options.model or str(options.vq))
    texts = open_text(options, args, processor.tokenizer, model.config.get_text_config().max_position_embeddings)
    before = model.config.provenance
    trainer = make_trainer(
        model,
        args,
        options,
        data,
        data.longest_row(),
        text_tokens(texts, args),
        data_collator=PretrainingCollator(processor, **texts),
        eval_data_collator=PretrainingCollator(processor, **held_out_text(options, data, texts)),
        processing_class=processor,
    )
    if status := train(trainer, options, data):
        return status
    text_model = options.text_model or options.text_from_scratch
    start = {"model": options.model, "vq": options.vq, "text_model": text_model, "provenance": before}
    source = provenance(__file__, trainer, data, recipe, start)
    model.config.update({"stage": "pretrained", "provenance": source})
    finish(trainer, data, source)
    return 0


def starting_model(options: PretrainingOptions) -> tuple[NeuroLMForCausalLM, NeuroLMProcessor]:
    """The model to train, and its processor."""
    if options.model is not None:
        model, processor = load_language_model(options.model, stages=("tokenizer", "pretrained"))
        if not model.model.eeg_encoder.config.has_codebook:
            raise ValueError(f"{options.model} has no codes to predict: convert it again, with --vq.")
        return model, processor
    tokenizer = read_text_tokenizer(options.text_tokenizer or str(options.text_model))
    text_model = options.text_model or new_text_model(str(options.text_from_scratch), tokenizer, options.text_fields)
    return join(str(options.vq), text_model, tokenizer, options.model_fields)


if __name__ == "__main__":
    main()
