"""What the commands that read with a model have in common: how they read, and where they compute."""

import argparse
import os
from pathlib import Path

from .console import Console


def add_reading_options(parser: argparse._ActionsContainer) -> None:
    """Units, names and the device."""
    parser.add_argument("--unit", help="of the values, such as uV, where the one in the file is wrong or missing")
    parser.add_argument(
        "--unknown-channels",
        choices=("raise", "drop"),
        help="what to do about channel names that NeuroLM does not know (`neurolm info FILE` lists them); without, "
        "they are an error unless the task says otherwise",
    )
    parser.add_argument("--device", help="such as cpu or cuda:0; without, a GPU where there is one")


def add_window_options(parser: argparse.ArgumentParser) -> None:
    """Windows, and how many are read at a time."""
    parser.add_argument(
        "--window-seconds", type=float, metavar="S", help="length of the windows; without, the model's or the task's"
    )
    parser.add_argument(
        "--stride-seconds",
        type=float,
        metavar="S",
        help="from one window's start to the next; below the length they overlap (default: the length)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="windows that the model reads at a time (default: 8)"
    )


def check_window_options(options: argparse.Namespace) -> None:
    """Leaves with a message where they are no usage."""
    for name in ("window_seconds", "stride_seconds", "batch_size"):
        value = getattr(options, name)
        if value is not None and value <= 0:
            options.parser.error(f"--{name.replace('_', '-')} must be above 0, not {value:g}")


def check_model(source: str, parser: argparse.ArgumentParser) -> None:
    """Leaves with a message where MODEL is a file, or a path to a folder that is not there."""
    if Path(source).is_file():
        parser.error(f"{source} is a file, and MODEL is a folder or an id of the Hub")
    is_path = source.startswith((".", "/", "~")) or source.count("/") > 1
    if is_path and not Path(source).is_dir():
        parser.error(f"there is no folder {source}")


def load_transformers(console: Console) -> None:
    """Loads PyTorch and transformers, which takes seconds, and turns bars off that would end up in log files."""
    console.progress("loading PyTorch")
    # where DeepSpeed is installed, it would tell the standard output which accelerator it has found
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging

    # turns off those of downloads too, which are worth having and show themselves on terminals alone
    logging.disable_progress_bar()
    enable_progress_bars()


def prepare_torch(device: str | None, console: Console) -> str:
    """Makes a device ready to compute on.

    Args:
        device: as PyTorch writes them; None: a GPU where there is one.

    Returns:
        the device.

    Raises:
        ValueError: there is no such device.
    """
    load_transformers(console)
    import torch

    from ..cpu import make_cpu_fast

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=chosen)
    # PyTorch without CUDA fails an assertion
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"--device {chosen} cannot be used: {reason}. Leave it out, or say cpu.") from error
    if chosen == "cpu":
        make_cpu_fast()
    return chosen
