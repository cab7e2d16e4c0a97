#!/usr/bin/env python
"""How well models answer: their scores on prepared windows, beside the plain baseline and chance, with intervals.

On the test windows of one task; the model is a folder, an id of the Hub, or an adapter (LoRA):
    python scripts/evaluate_tasks.py --model runs/neurolm-b --data prepared/workload --output-dir results

Several models in one table, on the same windows, such as a classifier of the task's answers
(scripts/finetune_classifier.py) beside a model that answers in words; the first is compared with the others:
    python scripts/evaluate_tasks.py --model runs/neurolm-b runs/labram-classifier --data prepared/workload \\
        --output-dir results

Several tasks, each on the split that stands behind its colon (without one: test):
    python scripts/evaluate_tasks.py --model runs/adapter --output-dir results \\
        --data prepared/tuab prepared/hmc:validation prepared/workload

Scored as the authors' code does, to stand beside their figures: answers that the model writes, read by word position.
Figures of a publication stand in the table where the set is the published one as far as it can tell (task, split,
recipe, no recording that failed, number of windows); otherwise the page says in what it differs:
    python scripts/evaluate_tasks.py --model runs/neurolm-b --data prepared/tuab --as-reference \\
        --published figures.json --output-dir results-as-reference
figures.json is yours: [{"name": "...", "source": "...", "task": "TUAB", "metrics": {"balanced_accuracy": 0.5}}]

Every window gets a probability for each answer of its task; all metrics come from these (accuracy, balanced accuracy,
Cohen's kappa, weighted F1, expected calibration error; AUROC and AUC-PR of two answers), with 95% intervals that draw
whole subjects. The baseline, logistic regression on the log power of five bands, is fitted on the train split of the
same set. Differences of each model to it, and of the first model to the others, have intervals of their own, from the
same draws. Beside that a language model writes freely about some windows, and the share of texts that are no answer is
told. Before anything is scored, every model reads a window of each montage and length; all are in memory together.
OUTPUT_DIR gets results.json, results.md, and model-index.yaml for the head of the first model's card;
scripts/publish.py --results finds the figures of any of the models.
Exit status: 0 finished, 1 failed, 2 wrong usage.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError

from neurolm_hf.answering import check_set, open_any, open_set
from neurolm_hf.command_line import options_parser
from neurolm_hf.cpu import make_cpu_fast
from neurolm_hf.evaluation import evaluate_set
from neurolm_hf.evaluation_report import EvaluatedModel, Evaluation, read_published
from neurolm_hf.starting_models import describe_source


@dataclass
class Arguments:
    """The options; `--help` shows them."""

    model: list[str] = field(
        metadata={"help": "What to evaluate, a folder or an id of the Hub each: NeuroLM, adapters, classifiers."}
    )
    data: list[str] = field(
        metadata={"metavar": "FOLDER[:SPLIT]", "help": "Prepared sets (scripts/prepare_data.py) of tasks."}
    )
    output_dir: str = field(metadata={"help": "Folder for the results; those of an earlier run are replaced."})
    name: list[str] = field(
        default_factory=list,
        metadata={"help": "What the tables call each model; without, the last part of each --model."},
    )
    as_reference: bool = field(default=False, metadata={"help": "Score as the authors' code does."})
    published: str | None = field(
        default=None, metadata={"metavar": "FILE", "help": "Published figures to stand beside; with --as-reference."}
    )
    written_windows: int = field(
        default=256,
        metadata={"help": "Windows of a set about which the model also writes freely; 0: none."},
    )
    batch_size: int = field(default=32, metadata={"help": "Windows that are read at a time."})
    device: str | None = field(
        default=None, metadata={"help": "Such as cuda:0 or cpu; without, a GPU where there is one."}
    )

    def __post_init__(self) -> None:
        if self.name and len(self.name) != len(self.model):
            raise ValueError(f"--name has {len(self.name)} names for {len(self.model)} models")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"models are called alike, {', '.join(self.names)}: give each its own --name")
        if self.published is not None and not self.as_reference:
            raise ValueError("--published figures are of the reference's scoring: add --as-reference")
        if self.batch_size < 1:
            raise ValueError(f"--batch-size is 1 or more, not {self.batch_size}")
        if self.written_windows < 0:
            raise ValueError(f"--written-windows is 0 or more, not {self.written_windows}")

    @property
    def names(self) -> list[str]:
        """What the tables call the models, in their order."""
        return self.name or [Path(source).name for source in self.model]


def main(arguments: list[str] | None = None) -> None:
    """Evaluates and prints the tables, or says in one line why not."""
    parser = options_parser(Arguments, description=__doc__)
    try:
        (options,) = parser.parse_args_into_dataclasses(arguments)
    except ValueError as error:
        parser.error(str(error))
    try:
        print(evaluate(options).markdown())
    except (ValueError, OSError, ImportError, SafetensorError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    print(f"results  {options.output_dir}")


def evaluate(options: Arguments) -> Evaluation:
    """The evaluation by the options, written to its folder.

    Raises:
        ValueError, OSError, ImportError: sets, models or figures that cannot be used.
    """
    published = [] if options.published is None else read_published(options.published)
    sets = [open_set(place) for place in dict.fromkeys(options.data)]
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        make_cpu_fast()
    answering = {
        name: open_any(source, sets[0].task, device) for name, source in zip(options.names, options.model, strict=True)
    }
    for given in sets:
        for name, one in answering.items():
            check_set(given, one)
            for doubt in one.doubts(given):
                print(f"warning: {name}, {given.task.name}: {doubt}", file=sys.stderr)
    # hours of scoring must not end at a folder that cannot be made
    Path(options.output_dir).mkdir(parents=True, exist_ok=True)
    results = [
        evaluate_set(
            given,
            answering,
            as_reference=options.as_reference,
            batch_size=options.batch_size,
            written_windows=options.written_windows,
            published=published,
        )
        for given in sets
    ]
    models = {name: EvaluatedModel(one.kind, describe_source(one.source)) for name, one in answering.items()}
    evaluation = Evaluation(models, options.as_reference, results)
    evaluation.write(options.output_dir)
    return evaluation


if __name__ == "__main__":
    main()
