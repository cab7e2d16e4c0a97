"""What a command says: results on standard output, all else on standard error, one line each."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError


# What is wrong with something a user gave; anything else is a mistake of ours, and shows its trace.
FAILURES = (ValueError, OSError, ImportError, SafetensorError)


class Console:
    """Where a command tells what it found, and what it could not do.

    Attributes:
        program: such as `neurolm ask`, for the beginning of messages.
        as_json: results are JSON, one document a line.
        status: the exit status: 1 as soon as anything failed.
    """

    def __init__(self, program: str, as_json: bool = False):
        self.program = program
        self.as_json = as_json
        self.status = 0
        self._job = self._progress = ""

    def result(self, document: dict[str, Any], text: str) -> None:
        """Prints a result, at once: the document as one line of JSON, or the text."""
        self.clear()
        print(json.dumps(document, allow_nan=False) if self.as_json else text, flush=True)

    def text(self, text: str) -> None:
        """Prints text that belongs to no result; nothing where results are JSON."""
        self.clear()
        if not self.as_json:
            print(text, flush=True)

    def error(self, message: str) -> None:
        """Something failed: a line on standard error, and the exit status 1."""
        self.status = 1
        self._say(f"{self.program}: error: {message}")

    def warning(self, message: str) -> None:
        """Something that is worth a look, in a line on standard error."""
        self._say(f"{self.program}: warning: {' '.join(message.split())}")

    def progress(self, text: str) -> None:
        """What is going on, in a line that the next one replaces; where standard error is a terminal."""
        if sys.stderr.isatty():
            self.clear()
            # a line that wraps could not be taken back
            self._progress = f"{self._job}{text}"[: shutil.get_terminal_size().columns - 1]
            print(self._progress, end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Takes the line of `progress` back."""
        if self._progress:
            print(f"\r{' ' * len(self._progress)}\r", end="", file=sys.stderr, flush=True)
            self._progress = ""

    def each(self, files: Sequence[str], work: Callable[[str, int], None]) -> None:
        """Does the work on one file after another: (file, its number from 1 on).

        A file that fails stops none of the rest. Its error goes to standard error; with JSON an object with path and
        error stands in its place as well.
        """
        for number, file in enumerate(files, 1):
            self._job = f"{file} ({number} of {len(files)}): " if len(files) > 1 else f"{file}: "
            self.progress("reading")
            try:
                work(file, number)
            except BrokenPipeError:
                raise
            except FAILURES as error:
                message = one_line(error, file)
                self.error(message)
                if self.as_json:
                    self.result({"path": file, "error": message}, "")
        self._job = ""

    def _say(self, line: str) -> None:
        self.clear()
        print(line, file=sys.stderr, flush=True)


def one_line(error: BaseException, file: str | None = None) -> str:
    """The message of an error in one line, which names the file."""
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.filename and error.strerror:
        message = f"{error.filename}: {error.strerror}"
    return message if file is None or file in message else f"{file}: {message}"


def check_output(path: str | None, parser: argparse.ArgumentParser) -> None:
    """Leaves with a message where a file could not be written, before hours are spent on what it should hold."""
    if path and not Path(path).parent.is_dir():
        parser.error(f"there is no folder {Path(path).parent} to write {Path(path).name} to")


def numbered(path: str, number: int, count: int, suffix: str) -> Path:
    """The file that belongs to one of `count` recordings: `path` itself, or `night-2.png` for the second of several.

    Args:
        suffix: with which `path` ends.
    """
    return Path(path if count == 1 else f"{path.removesuffix(suffix)}-{number}{suffix}")


def table(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a table, columns two spaces apart; the first `left` columns aligned left, numbers after them right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
