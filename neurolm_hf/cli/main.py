"""From a command line to an exit status."""

import argparse
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .. import __version__
from . import ask, convert, info, report, tokens
from .console import FAILURES, Console, one_line


COMMANDS = {"info": info, "ask": ask, "tokens": tokens, "report": report, "convert": convert}
DESCRIPTION = """Ask questions about EEG in words, and see what the answers rest on.

    neurolm info night.edf                         what is in a recording
    neurolm ask MODEL night.edf                    answers about its windows
    neurolm tokens night.edf --model MODEL         a code a channel and second
    neurolm report MODEL night.edf --output page   pictures of all this
    neurolm convert --vq VQ.pt --output tokenizer  the authors' checkpoints

`neurolm COMMAND --help` teaches each of them. MODEL is a folder or an id of
the Hub; code that lies beside its weights is never run.

Results go to standard output, all else to standard error. Exit status: 0 done,
1 something failed (it is named, and the rest is done), 2 wrong usage, 130
stopped by Ctrl-C."""
INTERRUPTED = 130
# what a shell says of a command that was ended by SIGPIPE
NOBODY_READS = 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: without the name of the program; those of this process otherwise.

    Returns:
        the exit status, as `neurolm --help` has it.
    """
    for stream in (sys.stdout, sys.stderr):
        # a file name, or a channel's, may hold what this terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        # behind the ^C that a terminal shows
        print("\n" * sys.stderr.isatty() + "neurolm: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # `neurolm ... | head` has read enough; what is still buffered must not fail when the process ends
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            os.dup2(nowhere, stream.fileno())
        return NOBODY_READS


def _run(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as exit_:  # argparse has said what was wrong, or has shown the help
        return int(exit_.code or 0)
    if options.command is None:
        parser.print_help()
        return 0
    console = Console(options.parser.prog, as_json=getattr(options, "json", False))
    with _warnings_told(console):
        try:
            options.run(options, console)
        except BrokenPipeError:
            raise
        except SystemExit as exit_:  # a command found that it is used wrongly
            return int(exit_.code or 0)
        except FAILURES as error:
            console.error(one_line(error))
        finally:
            console.clear()
    return console.status


@contextmanager
def _warnings_told(console: Console) -> Iterator[None]:
    """Gives the console what is warned of and logged meanwhile: a line, without the place in the code."""

    class Teller(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            console.warning(record.getMessage())

    teller, logger = Teller(logging.WARNING), logging.getLogger("neurolm_hf")
    logger.addHandler(teller)
    with warnings.catch_warnings():
        # what libraries tell those who call them
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", kind)
        warnings.showwarning = lambda message, *_: console.warning(str(message))
        try:
            yield
        finally:
            logger.removeHandler(teller)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "neurolm",
        usage="neurolm COMMAND ...",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"neurolm_hf {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", prog="neurolm")
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            # an abbreviation would change its meaning with every new option
            allow_abbrev=False,
        )
        module.add_options(command)
        command.set_defaults(run=module.run, parser=command)
    return parser
