#!/usr/bin/env python
"""Fine-tune a classifier of EEG windows: a head on a NeuroLM, on its neural tokenizer alone, or on a LaBraM.

The whole language model behind the frozen encoder, and the head on its last hidden state:
    python scripts/finetune_classifier.py recipes/classifier.yaml --model runs/pretrained \\
        --train-data prepared/mine --output-dir runs/classifier

After the question that an instruction-tuned model has learnt to answer:
    python scripts/finetune_classifier.py recipes/classifier.yaml --model runs/tuned --with-question \\
        --train-data prepared/mine --output-dir runs/classifier

The EEG encoder and the head, without a language model:
    python scripts/finetune_classifier.py recipes/classifier.yaml --model runs/vq --tune-eeg-encoder \\
        --train-data prepared/mine --output-dir runs/classifier

The head alone, on the mean of the frozen encoder's features (scripts/probe_features.py says in a minute whether
they hold anything):
    python scripts/finetune_classifier.py recipes/classifier.yaml --model runs/pretrained --pooling encoder_mean \\
        --learning-rate 1e-2 --train-data prepared/mine --output-dir runs/classifier

All of a pre-trained LaBraM and the head, as in its paper: lower learning rates for the blocks nearer to the input,
drop path, label smoothing:
    python scripts/finetune_classifier.py recipes/labram-finetune-base.yaml --model runs/labram \\
        --train-data prepared/mine --output-dir runs/labram-classifier

Prepared sets (scripts/prepare_data.py) may be several, of tasks with the same answers, which name the classes in
config.json; it also keeps the questions behind the EEG. Stopped or killed, the same command goes on from the last
checkpoint. At the end --output-dir holds the model and its processor (AutoModelForSequenceClassification and
AutoProcessor open them with trust_remote_code=True) and training.json; scripts/evaluate_tasks.py judges it on the
test split. For several labels a window and for regression, give the same classes of model to your own Trainer.
Exit status: 0 finished, 1 failed, 2 wrong usage, 130 or 143 stopped by a signal after saving.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import set_seed

from neurolm_hf.collators import ClassificationCollator
from neurolm_hf.processing_neurolm import NeuroLMProcessor
from neurolm_hf.prompts import prompt_ids
from neurolm_hf.recipes import StageTrainingArguments, parse_arguments
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
from neurolm_hf.starting_models import layout_of, load_classifier
from neurolm_hf.tasks import Task


@dataclass
class ClassifierOptions(DataOptions):
    """What is trained, and how beyond the Trainer's arguments."""

    model: str | None = field(
        default=None,
        metadata={
            "help": "What gets a head: a NeuroLM of any stage, its neural tokenizer (scripts/train_vq.py), or a "
            "LaBraM (scripts/pretrain_masked.py)."
        },
    )
    pooling: str | None = field(
        default=None,
        metadata={
            "choices": ["last_token", "mean", "encoder_mean", "cls"],
            "help": "What the head of a NeuroLM reads: its last hidden state at the last token (the default), their "
            "mean, or the mean of the EEG encoder's features, without the language model. That of a LaBraM: the mean "
            "over the patches (the default), behind a new layer norm, or the cls token.",
        },
    )
    with_question: bool = field(
        default=False, metadata={"help": "Write the task's question behind the EEG, for a language model to read."}
    )
    tune_eeg_encoder: bool = field(
        default=False, metadata={"help": "Train the EEG encoder too, which is frozen otherwise."}
    )
    channel_dropout: float = field(
        default=0.0, metadata={"help": "Share of channels left out of each training window, at random."}
    )
    layer_decay: float | None = field(
        default=None,
        metadata={"help": "Of a LaBraM: each block's share of the next one's learning rate, from the head down."},
    )
    drop_path: float | None = field(
        default=None,
        metadata={"help": "Of a LaBraM: share of windows that skip the last block in training, fewer the first ones."},
    )

    def __post_init__(self) -> None:
        if self.model is None:
            raise ValueError("give --model, a NeuroLM, a neural tokenizer or a LaBraM")
        if self.with_question and self.pooling == "encoder_mean":
            raise ValueError("--pooling encoder_mean reads EEG alone: --with-question does not go with it")
        if not 0 <= self.channel_dropout < 1:
            raise ValueError(f"--channel-dropout is a share from 0 to below 1, not {self.channel_dropout}")
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"--drop-path is a share from 0 to below 1, not {self.drop_path}")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer-decay is a share above 0 and up to 1, not {self.layer_decay}")


def main(arguments: list[str] | None = None) -> None:
    """Trains, or says in one line why not."""
    options, args, recipe = parse_arguments(
        ClassifierOptions, __doc__ or "", sys.argv[1:] if arguments is None else arguments
    )
    sys.exit(exit_status(lambda: run(options, args, recipe)))


def run(options: ClassifierOptions, args: StageTrainingArguments, recipe: str | None) -> int:
    """The training from its data to its files. Returns the exit status."""
    data = open_sets(options, args, with_tasks=True, layout=layout_of(str(options.model)))
    set_seed(args.seed)
    model, processor = starting_model(options, data.tasks)
    check_recipe(data, processor.feature_extractor, str(options.model))
    if processor.tokenizer is None:
        # what is read later is cut as the head has learnt it
        processor.feature_extractor.window_seconds = data.window_seconds()
    before = model.config.provenance
    question = max(len(prompt_ids(processor.tokenizer, task)) for task in data.tasks) if options.with_question else 0
    trainer = make_trainer(
        model,
        args,
        options,
        data,
        data.longest_row() + question,
        data_collator=ClassificationCollator(
            processor, options.with_question, channel_dropout=options.channel_dropout
        ),
        eval_data_collator=ClassificationCollator(processor, options.with_question),
        # the Trainer aligns special tokens with a processor's text tokenizer, which must be there for that
        processing_class=processor if processor.tokenizer is not None else processor.feature_extractor,
        layer_decay=options.layer_decay,
    )
    if status := train(trainer, options, data):
        return status
    source = provenance(__file__, trainer, data, recipe, {"model": options.model, "provenance": before})
    model.config.provenance = source
    finish(trainer, data, source, data.tasks, write=processor.save_pretrained)
    return 0


def common_answers(tasks: Sequence[Task]) -> tuple[str, ...]:
    """The answers of all tasks, which are the classes.

    Raises:
        ValueError: the tasks have different ones.
    """
    first = tasks[0]
    for task in tasks:
        if task.classes != first.classes:
            raise ValueError(
                f"{first.name} is answered by {', '.join(first.classes)}, {task.name} by {', '.join(task.classes)}: "
                "one head has one set of classes. Train a classifier for each, or tune a language model on both "
                "(scripts/instruction_tune.py)."
            )
    return first.classes


def starting_model(options: ClassifierOptions, tasks: Sequence[Task]) -> tuple[Any, NeuroLMProcessor]:
    """The model with its head, frozen where it is not to be trained, and its processor.

    What will stand behind the EEG is written into its config, so that every checkpoint says how it is to be asked.
    """
    model: Any
    answers = common_answers(tasks)
    model, processor = load_classifier(str(options.model), answers, options.pooling, options.drop_path)
    if options.with_question and processor.tokenizer is None:
        raise ValueError(f"{options.model} has no text tokenizer to write a question with: leave --with-question out.")
    if model.config.model_type == "labram":
        if options.tune_eeg_encoder:
            raise ValueError("All of a LaBraM is trained in any case: leave --tune-eeg-encoder out.")
        return model, processor
    if not hasattr(model, "freeze_eeg_encoder"):  # of a neural tokenizer
        if not options.tune_eeg_encoder:
            model.encoder.requires_grad_(False)
        return model, processor
    prompts = {task.prompt() for task in tasks} if options.with_question else set()
    model.config.classifier_prompts = sorted(prompts)
    if options.tune_eeg_encoder:
        model.config.freeze_eeg_encoder = False
        model.model.eeg_encoder.requires_grad_(True)
        model.freeze_eeg_encoder()
    return model, processor


if __name__ == "__main__":
    main()
