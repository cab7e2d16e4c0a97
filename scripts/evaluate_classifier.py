#!/usr/bin/env python
"""How well a classifier does on prepared windows, or what the features of any model hold, beside the plain baseline.

A classifier of scripts/finetune_classifier.py, on the test windows of a set; after a colon stands another split:
    python scripts/evaluate_classifier.py --model runs/classifier --data prepared/mine
    python scripts/evaluate_classifier.py --model runs/classifier --data prepared/mine:validation

A linear probe of a neural tokenizer, of a NeuroLM's encoder, and of its language model after the task's question:
    python scripts/evaluate_classifier.py --model runs/vq --data prepared/mine
    python scripts/evaluate_classifier.py --model runs/pretrained --pooling encoder_mean --data prepared/mine
    python scripts/evaluate_classifier.py --model runs/tuned --with-question --data prepared/mine

The probe is logistic regression on what a head reads, fitted on the train split of the set as the baseline is; the
model stays as it is. Only a classifier that was trained has a head that is judged: of all others transformers says
that the head is new, and nothing reads it. In brackets: 95% intervals that draw whole subjects; those of a
difference to the baseline draw the same subjects for both. Subjects whom the model was trained on are warned of.
Exit status: 0 finished, 1 failed, 2 wrong usage.
"""

import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError

from neurolm_hf.answering import doubts_of_subjects, open_set
from neurolm_hf.baseline import logistic_probabilities
from neurolm_hf.collators import ClassificationCollator
from neurolm_hf.command_line import options_parser
from neurolm_hf.cpu import make_cpu_fast
from neurolm_hf.dataset_card import markdown_table
from neurolm_hf.evaluation import BASELINE, CHANCE, Windows, baseline_of_set, judge
from neurolm_hf.evaluation_report import TITLES, as_difference, with_interval
from neurolm_hf.metrics import metrics_of
from neurolm_hf.probe import window_features
from neurolm_hf.starting_models import is_classifier, load_classifier
from neurolm_hf.storage import load_prepared
from neurolm_hf.tasks import Task


HEAD, PROBE = "its head", "its features, logistic regression"


@dataclass
class Arguments:
    """The options; `--help` shows them."""

    model: str = field(metadata={"help": "A classifier, a NeuroLM of any stage, or a neural tokenizer."})
    data: str = field(metadata={"metavar": "FOLDER[:SPLIT]", "help": "A prepared set of a task (the test split)."})
    pooling: str | None = field(
        default=None,
        metadata={
            "choices": ["last_token", "mean", "encoder_mean"],
            "help": "Which features of a NeuroLM: the last hidden state at the last token (the default), their mean, "
            "or the mean of the EEG encoder's features. A trained classifier knows its own.",
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
    collate = ClassificationCollator(processor, reads_question(options, model.config, given.task), given.task)
    fitted, features = (window_features(model, collate, rows, options.batch_size) for rows in (train, given.rows))
    windows = Windows(np.asarray(given.rows["label"]), np.asarray(given.rows["subject"], dtype=np.str_), classes)
    probabilities = {
        HEAD: head_probabilities(model, features) if is_classifier(options.model) else None,
        PROBE: logistic_probabilities(fitted, np.asarray(train["label"]), features, strength=options.strength),
    }
    probabilities[BASELINE], why_not = baseline_of_set(given, windows)
    probabilities[CHANCE] = np.tile(windows.shares, (len(features), 1))
    names = metrics_of(len(classes))
    judged = {who: judge(windows, values, names) for who, values in probabilities.items() if values is not None}
    table = [[who, *map(with_interval, found.scores.values())] for who, found in judged.items()]
    if BASELINE in judged:
        for who in (who for who in (HEAD, PROBE) if who in judged):
            differences = judged[who].less(judged[BASELINE]).scores
            table.append(
                [f"difference: {who.partition(',')[0]} less baseline", *map(as_difference, differences.values())]
            )
    print(f"{given.task.name}, {given.split}: {len(features)} windows of {len(set(windows.subjects))} subjects\n")
    print(markdown_table(["", *(TITLES[name] for name in names)], table))
    if why_not is not None:
        print(f"There is no baseline: {why_not}")


def reads_question(options: Arguments, config: Any, task: Task) -> bool:
    """Whether the task's question stands behind the EEG: where a trained head says what it reads, as it was trained.

    Raises:
        ValueError: the head was trained behind other texts, or on EEG alone where a question is asked for.
    """
    known = getattr(config, "classifier_prompts", None) if is_classifier(options.model) else None
    if known is None:
        return options.with_question
    if known and task.prompt() not in known:
        texts = ", ".join(map(repr, known))
        raise ValueError(f"{options.model} was trained with {texts} behind the EEG, not with {task.prompt()!r}.")
    if options.with_question and not known:
        raise ValueError(f"{options.model} is a classifier that was trained on EEG alone: leave --with-question out.")
    return bool(known)


def head_probabilities(model: Any, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """What the head says about features (windows, width): (windows, classes)."""
    with torch.no_grad():
        logits = model.score(torch.from_numpy(features).to(model.device, model.dtype))
    return logits.double().softmax(dim=1).cpu().numpy()


if __name__ == "__main__":
    main()
