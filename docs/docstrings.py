"""An extension of Griffe: our docstrings as the API reference reads them.

`Fields:` of output classes are attributes, and [`Name`] is how transformers writes the name of a class.
"""

import re
from typing import Any

import griffe


_FIELDS = re.compile(r"^( *)Fields:$", re.M)
_NAME = re.compile(r"\[(`[^`\]]+`)\](?!\()")


class OurDocstrings(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called once an object."""
        if obj.docstring is not None:
            obj.docstring.value = _NAME.sub(r"\1", _FIELDS.sub(r"\1Attributes:", obj.docstring.value))
