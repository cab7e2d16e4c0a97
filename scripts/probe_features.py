#!/usr/bin/env python
"""What the features of a model hold about a task: a linear probe of prepared windows, beside the plain baseline.

Of a neural tokenizer, on the test windows of a set; after a colon stands another split:
    python scripts/probe_features.py --model runs/vq --data prepared/mine
    python scripts/probe_features.py --model runs/vq --data prepared/mine:validation

Of a LaBraM, of a NeuroLM's encoder, and of its language model after the task's question:
    python scripts/probe_features.py --model runs/labram --data prepared/mine
    python scripts/probe_features.py --model runs/pretrained --pooling encoder_mean --data prepared/mine
    python scripts/probe_features.py --model runs/tuned --with-question --data prepared/mine

The probe is logistic regression on what a classifier's head reads, fitted on the train split of the set as the
baseline is; the model stays as it is. transformers says that the head is new: nothing reads it. Of a classifier these
are the features that it was trained to have; its own answers are judged by scripts/evaluate_tasks.py. In brackets: 95%
intervals that draw whole subjects; those of the difference to the baseline draw the same subjects for both. Subjects
whom the model was trained on are warned of.
Exit status: 0 finished, 1 failed, 2 wrong usage.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from neurolm_hf.answering import doubts_of_subjects, open_set, reads_question
from neurolm_hf.baseline import logistic_probabilities
from neurolm_hf.collators import ClassificationCollator
from neurolm_hf.command_line import options_parser
from neurolm_hf.cpu import make_cpu_fast
from neurolm_hf.dataset_card import markdown_table
from neurolm_hf.evaluation import BASELINE, CHANCE, baseline_of_set, judge, windows_of
from neurolm_hf.evaluation_report import TITLES, as_difference, with_interval
from neurolm_hf.metrics import metrics_of
from neurolm_hf.probe import window_features
from neurolm_hf.starting_models import is_classifier, load_classifier
from neurolm_hf.storage import load_prepared
from neurolm_hf.tasks import Task


PROBE = "its features, logistic regression"


@dataclass
class Arguments:
    """The options; `--help` shows them."""

    model: str = field(metadata={"help": "A neural tokenizer, a NeuroLM of any stage, a LaBraM, or a classifier."})
    data: str = field(metadata={"metavar": "FOLDER[:SPLIT]", "help": "A prepared set of a task (the test split)."})
    pooling: str | None = field(
        default=None,
        metadata={
            "choices": ["last_token", "mean", "encoder_mean", "cls"],
            "help": "Which features of a NeuroLM: the last hidden state at the last token (the default), their mean, "
            "or the mean of the EEG encoder's features; of a LaBraM: the mean over its patches, or those of cls. A "
            "trained classifier knows its own.",
        },
    )
    with_question: bool = field(
        default=False,
        metadata={
            "help": "Write the task's question behind the EEG. A trained classifier knows whether it reads one."
        },
    )
    strength: float = field(
        default=0.01,
        metadata={"help": "Inverse of the probe's regularisation: small for many features and few subjects."},
    )
    batch_size: int = field(default=64, metadata={"help": "Windows that are read at a time."})


def main(arguments: list[str] | None = None) -> None:
    """Judges and prints the table, or says in one line why not."""
    parser = options_parser(Arguments, description=__doc__)
    (options,) = parser.parse_args_into_dataclasses(arguments)
    try:
        run(options)
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def run(options: Arguments) -> None:
    """From the prepared set to the printed table."""
    given = open_set(options.data)
    if given.split == "train":
        raise ValueError("The probe and the baseline are fitted on the train split: give another to judge them on.")
    classes = given.task.classes
    train = load_prepared(given.folder, "train")
    model: Any
    model, processor = load_classifier(options.model, classes, options.pooling)
    for doubt in doubts_of_subjects(model.config, given):
        print(f"warning: {doubt}", file=sys.stderr)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        make_cpu_fast()
    model.to(device)
    collate = ClassificationCollator(processor, with_question(options, model.config, given.task), given.task)
    fitted, features = (window_features(model, collate, rows, options.batch_size) for rows in (train, given.rows))
    windows = windows_of(given)
    baseline, why_not = baseline_of_set(given, windows)
    probabilities = {
        PROBE: logistic_probabilities(fitted, np.asarray(train["label"]), features, strength=options.strength),
        BASELINE: baseline,
        CHANCE: np.tile(windows.shares, (len(features), 1)),
    }
    names = metrics_of(len(classes))
    judged = {who: judge(windows, values, names) for who, values in probabilities.items() if values is not None}
    table = [[who, *map(with_interval, found.scores.values())] for who, found in judged.items()]
    if BASELINE in judged:
        differences = judged[PROBE].less(judged[BASELINE]).scores
        table.append(["difference: its features less baseline", *map(as_difference, differences.values())])
    print(f"{given.task.name}, {given.split}: {len(features)} windows of {len(set(windows.subjects))} subjects\n")
    print(markdown_table(["", *(TITLES[name] for name in names)], table))
    if why_not is not None:
        print(f"There is no baseline: {why_not}")


def with_question(options: Arguments, config: Any, task: Task) -> bool:
    """Whether the task's question stands behind the EEG: where a trained head says what it reads, as it was trained.

    Raises:
        ValueError: the head was trained behind other texts, or on EEG alone where a question is asked for.
    """
    known = reads_question(config, task, options.model) if is_classifier(options.model) else None
    if options.with_question and known is False:
        raise ValueError(f"{options.model} is a classifier that was trained on EEG alone: leave --with-question out.")
    return options.with_question if known is None else known


if __name__ == "__main__":
    main()
