from dataclasses import dataclass, field

import pytest

from neurolm_hf.command_line import options_parser


@dataclass
class Options:
    """What may be said."""

    folder: str = field(metadata={"help": "Where."})
    windows: int = 3


def test_options_are_read_as_they_are_written(capsys: pytest.CaptureFixture[str]) -> None:
    parser = options_parser(Options, description="First line.\n    and a line of its own", usage="me")
    assert parser.parse_args_into_dataclasses(["--folder", "here"]) == (Options("here"),)
    with pytest.raises(SystemExit):
        parser.parse_args(["--folder", "here", "--win", "4"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert "First line.\n    and a line of its own" in shown
    assert shown.startswith("usage: me")
