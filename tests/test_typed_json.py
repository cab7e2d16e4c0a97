"""JSON into dataclasses: what is read, and what each error says."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pytest

from neurolm_hf.typed_json import read_dataclass


@dataclass(frozen=True)
class Circle:
    kind: Literal["circle"]
    radius: float


@dataclass(frozen=True)
class Square:
    kind: Literal["square"]
    side: int

    def __post_init__(self):
        if self.side < 1:
            raise ValueError(f"side must be 1 or more; got {self.side}.")


@dataclass(frozen=True)
class Drawing:
    title: str | None
    shape: Circle | Square
    colours: tuple[str, ...] = ()
    layers: Mapping[str, int | str] | None = None
    frame: Square | None = None
    filled: bool = False


GOOD = {"title": None, "shape": {"kind": "square", "side": 2}}


def test_values_of_every_kind():
    content = {
        "title": "a",
        "shape": {"kind": "circle", "radius": 2},
        "colours": ["red", "blue"],
        "layers": {"top": 1, "below": "all"},
        "frame": {"kind": "square", "side": 3},
        "filled": True,
    }
    assert read_dataclass(Drawing, content, "file") == Drawing(
        "a", Circle("circle", 2.0), ("red", "blue"), {"top": 1, "below": "all"}, Square("square", 3), True
    )
    assert read_dataclass(Drawing, GOOD, "file") == Drawing(None, Square("square", 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 1}, "file has no field size; its fields are title, shape, colours"),
        ({"title": 1}, "file: title must be a string or null, got 1"),
        ({"filled": 1}, "file: filled must be true or false, got 1"),
        ({"colours": "red"}, "file: colours must be a list, got 'red'"),
        ({"colours": ["red", 2]}, r"file: colours\[1\] must be a string, got 2"),
        ({"layers": {"top": True}}, r"file: layers\['top'\] must be a whole number or a string, got True"),
        ({"shape": {"kind": "line"}}, "file: shape: kind must be 'circle' or 'square', got 'line'"),
        ({"shape": {"kind": "circle"}}, "file: shape lacks radius"),
        ({"shape": {"kind": "circle", "radius": True}}, "file: shape: radius must be a number, got True"),
        ({"shape": {"kind": "square", "side": 0}}, "file: shape: side must be 1 or more; got 0"),
        ({"shape": 3}, "file: shape must be a JSON object, got 3"),
        ({"frame": {"kind": "circle", "side": 1}}, "file: frame: kind must be 'square', got 'circle'"),
    ],
)
def test_errors_name_the_field(change, message):
    with pytest.raises(ValueError, match=message):
        read_dataclass(Drawing, GOOD | change, "file")


def test_what_is_missing_or_no_object():
    with pytest.raises(ValueError, match="file lacks shape, title"):
        read_dataclass(Drawing, {}, "file")
    with pytest.raises(ValueError, match=r"file must be a JSON object, got \[\]"):
        read_dataclass(Drawing, [], "file")
