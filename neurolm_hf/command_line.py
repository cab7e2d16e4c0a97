"""How scripts read their command lines: a dataclass of options, and a `--help` that keeps the docstring's lines."""

import argparse
from typing import Any

from transformers import HfArgumentParser


def options_parser(*kinds: type, description: str | None, **settings: Any) -> HfArgumentParser:
    """A parser of these dataclasses. Options are not to be abbreviated: a new one would change what an old line means.

    Args:
        description: what `--help` says first, as it stands; a script's docstring.
        settings: others of `argparse.ArgumentParser`.
    """
    return HfArgumentParser(
        list(kinds),  # type: ignore[arg-type]  # theirs is opaque
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **settings,
    )
