"""Write a page with pictures: about a recording and what a model answers about
it, or about a model on a prepared set.

A recording: traces with the answers over them, which channels and seconds
mattered, spectra before and after filtering, VQ tokens, all that is odd:
    neurolm report MODEL night.edf --output report
    neurolm report MODEL night.edf --output report \\
        --question "Is it REM?" --answer Yes --answer No

A checkpoint, on windows that scripts/prepare_data.py has prepared: scores,
confusions and reliability, use of the codes and a map of them, losses:
    neurolm report MODEL --data prepared/hmc --output report
    neurolm report MODEL --data prepared/hmc:validation --output report \\
        --training runs/neurolm --evaluation results

With --vq, the neural tokenizer that a NeuroLM was made with, there are
reconstructions too; MODEL may be a neural tokenizer itself, with --data.

FOLDER/index.html holds everything in one file, to be mailed or printed; the
pictures lie beside it as PNG files. Where it is, is printed. Code that lies
beside a model's weights is never run.

Exit status: 0 written, 1 something could not be read or written, 2 wrong
usage.
"""

import argparse
import sys
from pathlib import Path

from .console import Console
from .question import add_question_options, check_question_options, open_pipeline
from .reading import add_reading_options, check_model, prepare_torch


HELP = "a page with pictures, of a recording or of a checkpoint"
# Options that go with one kind of report.
OF_A_RECORDING = ("task", "question", "answer", "unit", "unknown_channels", "device")
OF_A_CHECKPOINT = ("training", "evaluation")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of `neurolm report`."""
    parser.add_argument("model", metavar="MODEL", help="a folder or an id of the Hub")
    parser.add_argument("file", nargs="?", metavar="FILE", help="a recording, in any format that MNE reads")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="folder for the page and its pictures")
    parser.add_argument("--vq", metavar="MODEL", help="the neural tokenizer that the model was made with")
    recording = parser.add_argument_group("of a recording")
    add_question_options(recording)
    add_reading_options(recording)
    checkpoint = parser.add_argument_group("of a checkpoint")
    checkpoint.add_argument(
        "--data", metavar="FOLDER[:SPLIT]", help="a prepared set, and its split (default: test), in place of FILE"
    )
    checkpoint.add_argument("--training", metavar="FOLDER", help="folder of the training, for its losses")
    checkpoint.add_argument(
        "--evaluation",
        metavar="FOLDER",
        help="what scripts/evaluate_tasks.py has written about these windows; without, some are evaluated now",
    )


def run(options: argparse.Namespace, console: Console) -> None:
    """Writes the one or the other, and prints where.

    Raises:
        ValueError, OSError, ImportError: what cannot be opened, read or written.
    """
    check_model(options.model, options.parser)
    if problem := _usage_problem(options):
        options.parser.error(problem)
    check_question_options(options)
    page = _of_a_recording(options, console) if options.file else _of_a_checkpoint(options, console)
    console.text(str(page))


def _usage_problem(options: argparse.Namespace) -> str | None:
    """What is wrong with the options before anything is opened."""
    if (options.file is None) == (options.data is None):
        return "give a recording, FILE, or a prepared set, --data, and not both"
    kind, others = ("a recording", OF_A_CHECKPOINT) if options.file else ("a prepared set", OF_A_RECORDING)
    for name in others:
        if getattr(options, name) is not None:
            return f"--{name.replace('_', '-')} does not go with {kind}"
    return None


def _of_a_recording(options: argparse.Namespace, console: Console) -> Path:
    pipe = open_pipeline(options.model, options.device, console)
    from ..recording_report import write_recording_report
    from ..starting_models import load_vq

    tokenizer = load_vq(options.vq)[0].to(pipe.device).eval() if options.vq else None
    _show_bars(console)
    return write_recording_report(
        pipe,
        options.file,
        options.output,
        task=options.task,
        question=options.question,
        candidate_answers=options.answer,
        unit=options.unit,
        unknown_channels=options.unknown_channels,
        tokenizer=tokenizer,
    )


def _of_a_checkpoint(options: argparse.Namespace, console: Console) -> Path:
    prepare_torch("cpu", console)
    from ..answering import folder_and_split
    from ..checkpoint_report import write_checkpoint_report

    folder, split = folder_and_split(options.data)
    _show_bars(console)
    return write_checkpoint_report(
        options.model,
        folder,
        options.output,
        split=split,
        tokenizer=options.vq,
        training=options.training,
        evaluation=options.evaluation,
    )


def _show_bars(console: Console) -> None:
    """Has the report's own bars tell how far it is, where standard error is a terminal."""
    from transformers.utils import logging

    console.clear()
    if sys.stderr.isatty():
        logging.enable_progress_bar()
