"""What the commands that ask have in common: the question, and the model that is asked."""

import argparse
from typing import Any

from .console import Console
from .reading import prepare_torch


def add_question_options(parser: argparse._ActionsContainer) -> None:
    """What is asked."""
    parser.add_argument("--task", help="name of a task that the model was tuned on")
    parser.add_argument("--question", metavar="TEXT", help="a question of your own")
    parser.add_argument(
        "--answer", action="append", metavar="TEXT", help="an allowed answer to --question; once for each"
    )


def check_question_options(options: argparse.Namespace) -> None:
    """Leaves with a message where they are no usage."""
    if options.task and options.question:
        options.parser.error("give --task, or --question with its --answer, not both")
    if options.answer and not options.question:
        options.parser.error("--answer belongs to --question; the answers of a task are its own")
    if options.answer and len(set(options.answer)) < max(2, len(options.answer)):
        options.parser.error("--answer must be given twice or more, with different answers")


def open_pipeline(source: str, device: str | None, console: Console, batch_size: int = 8) -> Any:
    """`pipeline("eeg-question-answering")` of a folder, a Hub id or an adapter.

    It is built of this package's classes: no code that lies beside the weights is run.

    Args:
        device: to compute on; None: a GPU where there is one.
        batch_size: windows that are read at a time.

    Raises:
        ValueError, OSError, ImportError: it cannot be opened, or answers nothing.
    """
    device = prepare_torch(device, console)
    from ..answering import open_model

    console.progress(f"opening {source}")
    answering = open_model(source, device)
    return answering.model.as_pipeline(answering.processor, device=device, batch_size=batch_size)
