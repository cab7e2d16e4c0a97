#!/usr/bin/env python
"""Stage 3: teach a pre-trained NeuroLM to answer questions about EEG, on one task or on several at once.

An adapter (LoRA) for your task, on one GPU or a patient CPU:
    python scripts/instruction_tune.py recipes/instruction-lora.yaml --model runs/pretrained \\
        --train-data prepared/mine --output-dir runs/adapter

The same, faster: the frozen encoder's features are computed once, of all channels, and kept beside the checkpoints:
    python scripts/instruction_tune.py recipes/instruction-lora.yaml --model runs/pretrained --channel-dropout 0 \\
        --cache-eeg-features --train-data prepared/mine --output-dir runs/adapter

With the paper's recipe, the whole language model, six tasks at once:
    torchrun --nproc_per_node 8 scripts/instruction_tune.py recipes/instruction-b.yaml --model runs/pretrained \\
        --text-data prepared/text --output-dir runs/neurolm-b \\
        --train-data prepared/tuab prepared/tuev prepared/seed prepared/hmc prepared/workload prepared/tusl

Two tasks, the small one as often as the large one, lettered options in a new order each time, no text beside them:
    python scripts/instruction_tune.py recipes/instruction-one-gpu.yaml --model runs/pretrained --shuffle-options \\
        --text-batch-size 0 --train-data prepared/hmc prepared/workload --weights 1 1 --output-dir runs/two-tasks

What LoRA adapts beyond the defaults, and the model with the adapter merged into it beside the adapter:
    python scripts/instruction_tune.py recipes/instruction-lora.yaml --lora-targets q_proj v_proj --save-merged \\
        --model runs/qwen --train-data prepared/mine --output-dir runs/adapter

A recipe is a YAML file of options; what the command line says counts more. Stopped or killed, the same command goes on
from the last checkpoint. At the end --output-dir holds the model or the adapter (AutoModelForCausalLM and
AutoPeftModelForCausalLM open them with trust_remote_code=True), the tasks it knows in config.json, and training.json.
Exit status: 0 finished, 1 failed, 2 wrong usage, 130 or 143 stopped by a signal after saving.
"""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import set_seed

from neurolm_hf.collators import InstructionCollator
from neurolm_hf.configuration_neurolm import NeuroLMConfig
from neurolm_hf.devices import shares_weights
from neurolm_hf.lora import add_adapter, lora_config, save_beside_adapter
from neurolm_hf.model_card import write_model_card
from neurolm_hf.modeling_neurolm import NeuroLMForCausalLM
from neurolm_hf.processing_neurolm import NeuroLMProcessor
from neurolm_hf.prompts import completion_ids, prompt_ids
from neurolm_hf.recipes import StageTrainingArguments, parse_arguments
from neurolm_hf.stages import (
    LanguageModelOptions,
    StageData,
    check_recipe,
    exit_status,
    finish,
    make_trainer,
    open_sets,
    open_text,
    provenance,
    text_tokens,
    train,
)
from neurolm_hf.starting_models import join, load_language_model, read_text_tokenizer, set_dropout
from neurolm_hf.tasks import Task


@dataclass
class InstructionOptions(LanguageModelOptions):
    """What is trained, and how beyond the Trainer's arguments."""

    model: str | None = field(
        default=None, metadata={"help": "The pre-trained NeuroLM to start from (scripts/pretrain.py, or a release)."}
    )
    vq: str | None = field(
        default=None, metadata={"help": "Instead, to go without pre-training: a neural tokenizer, with --text-model."}
    )
    channel_dropout: float = field(
        default=0.0, metadata={"help": "Share of channels left out of each training window, at random."}
    )
    feature_noise: float = field(
        default=0.0,
        metadata={"help": "Random offset of all features of a window; hides from a small model whose EEG it is."},
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout of the language model."})
    shuffle_options: bool = field(
        default=False, metadata={"help": "Write lettered options in a random order for each training window."}
    )
    tune_eeg_encoder: bool = field(
        default=False, metadata={"help": "Train the EEG encoder too, which is frozen otherwise."}
    )
    lora: bool = field(default=False, metadata={"help": "Train an adapter and leave the model as it is."})
    lora_rank: int | None = field(default=None, metadata={"help": "Rank of its matrices; 16 without."})
    lora_alpha: int | None = field(default=None, metadata={"help": "Scales it by alpha / rank; twice the rank."})
    lora_dropout: float | None = field(default=None, metadata={"help": "Dropout of what goes into it; 0 without."})
    lora_targets: list[str] | None = field(
        default=None,
        metadata={
            "metavar": "LAYER",
            "help": "Linear layers of the language model that it adapts, by name (q_proj, attn.c_attn, lm_head); all "
            "of its blocks' without.",
        },
    )
    lora_eeg_projector: bool = field(
        default=False, metadata={"help": "Train the EEG projector and the channel embedding along, in full."}
    )
    lora_new_tokens: bool = field(default=False, metadata={"help": "Train the embedding of [SEP] along."})
    save_merged: bool = field(
        default=False, metadata={"help": "Also write the model with the adapter merged into it, to OUTPUT_DIR/merged."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.model is None) == (self.vq is None):
            raise ValueError(
                "give --model, a pre-trained NeuroLM, or --vq and --text-model to go without pre-training"
            )
        if (self.vq is None) != (self.text_model is None):
            raise ValueError("--vq and --text-model belong together")
        if self.lora and self.model is None:
            raise ValueError("--lora needs --model: an adapter belongs to a model that is saved")
        if self.lora and self.tune_eeg_encoder:
            raise ValueError("--lora leaves the EEG encoder as it is: --tune-eeg-encoder does not go with it")
        if self.cache_eeg_features and self.tune_eeg_encoder:
            raise ValueError("--cache-eeg-features is for a frozen encoder: --tune-eeg-encoder does not go with it")
        if self.cache_eeg_features and self.channel_dropout:
            raise ValueError(
                "--cache-eeg-features keeps the features of all channels: --channel-dropout does not go with it (a "
                "recipe's is cleared by --channel-dropout 0)"
            )
        if self.save_merged and not self.lora:
            raise ValueError("--save-merged is about the adapter of --lora")
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.name.startswith("lora_")}
        given = {name: value for name, value in given.items() if value is not None and value is not False}
        if given and not self.lora:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            raise ValueError(f"{names}: only for an adapter; add --lora, or leave them out to train the whole model")
        for name in ("channel_dropout", "dropout", "lora_dropout"):
            if not 0 <= (getattr(self, name) or 0) < 1:
                raise ValueError(f"--{name.replace('_', '-')} is a share from 0 to below 1, not {getattr(self, name)}")
        if self.feature_noise < 0:
            raise ValueError(f"--feature-noise is a standard deviation, 0 or more, not {self.feature_noise}")


def main(arguments: list[str] | None = None) -> None:
    """Trains, or says in one line why not."""
    options, args, recipe = parse_arguments(
        InstructionOptions, __doc__ or "", sys.argv[1:] if arguments is None else arguments
    )
    sys.exit(exit_status(lambda: run(options, args, recipe)))


def run(options: InstructionOptions, args: StageTrainingArguments, recipe: str | None) -> int:
    """The stage from its data to its files. Returns the exit status."""
    data = open_sets(options, args, with_tasks=True)
    set_seed(args.seed)
    base, processor = starting_model(options)
    check_recipe(data, processor.feature_extractor, options.model or str(options.vq))
    texts = open_text(options, args, processor.tokenizer, base.config.get_text_config().max_position_embeddings)
    before = base.config.provenance
    model: Any = (
        add_adapter(base, str(options.model), adapter_config(base, processor, options)) if options.lora else base
    )
    trainer = make_trainer(
        model,
        args,
        options,
        data,
        data.longest_row() + longest_question(processor, data.tasks),
        text_tokens(texts, args),
        data_collator=InstructionCollator(
            processor, channel_dropout=options.channel_dropout, shuffle_options=options.shuffle_options, **texts
        ),
        eval_data_collator=InstructionCollator(processor),
        answer_sets=answer_sets(data),
        processing_class=processor,
    )
    if status := train(trainer, options, data):
        return status
    start = {"model": options.model, "vq": options.vq, "text_model": options.text_model, "provenance": before}
    source = provenance(__file__, trainer, data, recipe, start)
    label(base.config, data.tasks, source)

    def write_adapter(folder: Path) -> None:
        save_beside_adapter(base, processor, folder)
        if options.save_merged:
            adapted = reopened(base, options, folder) if shares_weights(args) else model
            save_merged(adapted, processor, folder / "merged")

    finish(trainer, data, source, data.tasks, write=write_adapter if options.lora else None)
    return 0


def starting_model(options: InstructionOptions) -> tuple[NeuroLMForCausalLM, NeuroLMProcessor]:
    """The model to tune, and its processor."""
    if options.model is not None:
        model, processor = load_language_model(options.model, stages=("pretrained", "instruction-tuned"))
    else:
        tokenizer = read_text_tokenizer(options.text_tokenizer or str(options.text_model))
        model, processor = join(str(options.vq), str(options.text_model), tokenizer)
    model.model.feature_noise = options.feature_noise
    set_dropout(model, options.dropout)
    if options.tune_eeg_encoder:
        model.config.freeze_eeg_encoder = False
        model.model.eeg_encoder.requires_grad_(True)
        model.freeze_eeg_encoder()
    return model, processor


def adapter_config(base: NeuroLMForCausalLM, processor: NeuroLMProcessor, options: InstructionOptions) -> Any:
    """LoRA as the options ask for it."""
    return lora_config(
        base,
        rank=16 if options.lora_rank is None else options.lora_rank,
        alpha=options.lora_alpha,
        dropout=options.lora_dropout or 0.0,
        targets=options.lora_targets,
        eeg_projector=options.lora_eeg_projector,
        new_tokens=[processor.tokenizer.sep_token_id] if options.lora_new_tokens else [],
    )


def answer_sets(data: StageData) -> dict[str, tuple[Task, Any]]:
    """The validation windows of each task by its name; by number where several sets ask the same."""
    sets: dict[str, tuple[Task, Any]] = {}
    for rows, task in data.validation:
        assert task is not None  # open_sets
        same = sum(other.name == task.name for other, _ in sets.values())
        sets[task.name if not same else f"{task.name}_{same + 1}"] = (task, rows)
    return sets


def longest_question(processor: NeuroLMProcessor, tasks: list[Task]) -> int:
    """Tokens of the longest question with its answer."""
    tokenizer = processor.tokenizer
    return max(
        len(prompt_ids(tokenizer, task)) + len(completion_ids(tokenizer, task, answer))
        for task in tasks
        for answer in task.classes
    )


def label(config: NeuroLMConfig, tasks: list[Task], source: dict[str, Any]) -> None:
    """Writes into the config what the model has been through."""
    entries = {task["name"]: task for task in config.tasks or []} | {task.name: task.config_entry() for task in tasks}
    config.update({"stage": "instruction-tuned", "tasks": list(entries.values()), "provenance": source})


def reopened(base: NeuroLMForCausalLM, options: InstructionOptions, folder: Path) -> Any:
    """The adapted model, read again: where its weights are shared out, no process has them whole."""
    whole, _ = load_language_model(str(options.model), stages=("pretrained", "instruction-tuned"))
    whole.config = base.config
    return PeftModel.from_pretrained(whole, folder)


def save_merged(adapted: Any, processor: NeuroLMProcessor, folder: Path) -> None:
    """The model with the adapter merged into it, as a model of its own."""
    adapted.merge_and_unload().save_pretrained(folder)
    processor.save_pretrained(folder)
    write_model_card(folder)


if __name__ == "__main__":
    main()
