"""An extension of Griffe: our docstrings as the API reference reads them.

`Fields:` of output classes are attributes, [`Name`] and (`type`) are how transformers writes a class and a type, and
what several arguments have in common, `a, b: text`, is said of each.
"""

import re
from typing import Any

import griffe


_FIELDS = re.compile(r"^( *)Fields:$", re.M)
_NAME = re.compile(r"\[(`[^`\]]+`)\](?!\()")
_TYPE = re.compile(r"^ +\w+ \(`[^()]*\): ", re.M)
_ITEM = r"\w+(?: \([^()]*\))?"
# with the lines that go on below it, indented further
_SHARED = re.compile(rf"^(?P<indent> +)(?P<names>{_ITEM}(?:,\s+{_ITEM})+): (?P<text>.*(?:\n(?P=indent) +.*)*)$", re.M)


class OurDocstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once an object."""
        if obj.docstring is not None:
            text = _NAME.sub(r"\1", _FIELDS.sub(r"\1Attributes:", obj.docstring.value))
            text = _SHARED.sub(_one_by_one, text)
            obj.docstring.value = _TYPE.sub(lambda match: re.sub("[`*]", "", match[0]), text)


def _one_by_one(match: re.Match[str]) -> str:
    names = re.findall(_ITEM, match["names"])
    return "\n".join(f"{match['indent']}{name}: {match['text']}" for name in names)
