"""What a Markdown document holds: its code blocks, and how a reader would run them."""

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parent.parent
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)(?P<rest>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S)
# Of a console block, what no test runs: it fetches, or builds what the test has made already.
_NOT_RUN = ("git ", "make ")
FAILS = " || true"


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        language: after the fence, `""` where none is named.
        title: of `title="..."`, the file that the block is; `""` without.
        line: of the document, for messages.
    """

    language: str
    title: str
    code: str
    line: int


def blocks_of(document: Path) -> list[Block]:
    """Its fenced blocks, from top to bottom, without their indent."""
    text = document.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', match["rest"])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match["language"], title[1] if title else "", textwrap.dedent(match["code"]), line))
    return found


def commands_of(block: Block) -> list[str]:
    """What stands behind the prompts of a console block, lines that end in a backslash joined; no git, no make."""
    lines = block.code.replace("\\\n", " ").splitlines()
    commands = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [command for command in commands if not command.startswith(_NOT_RUN)]


def run_python(block: Block, document: Path, namespace: dict[str, Any]) -> str:
    """Runs a Python block in a namespace; returns what it printed. An error names the document's line."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n" * block.line + block.code, str(document), "exec"), namespace)
    return printed.getvalue()


def run_command(command: str, folder: Path) -> str:
    """A command of a document, by this Python; returns what it printed.

    Commands are scripts of this repository (`python scripts/...`) or the package's own (`neurolm ...`). One that ends
    in `|| true` must fail, for the document says that it does.
    """
    done = subprocess.run(
        program(command.removesuffix(FAILS)),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    failed = done.returncode != 0
    assert failed == command.endswith(FAILS), (command, done.stdout[-1000:], done.stderr[-3000:])
    return done.stdout


def program(command: str) -> list[str]:
    """The words of a command, for this Python."""
    first, *words = shlex.split(command)
    programs = {"python": [sys.executable], "neurolm": [sys.executable, "-m", "neurolm_hf"]}
    assert first in programs, command
    return [*programs[first], *words]
