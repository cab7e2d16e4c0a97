"""JSON into dataclasses: every field must be known, be there and have its type, or the error names it."""

import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints


Declared = TypeVar("Declared")


def read_dataclass(kind: type[Declared], content: object, where: str) -> Declared:
    """An instance of a dataclass from a JSON object.

    Fields may be annotated with str, int, float, bool, `None`, `Literal`, `tuple[X, ...]`, `Mapping[str, X]`, other
    dataclasses, and unions of these. Dataclasses in a union are told apart by their first field, a `Literal`.

    Args:
        kind: the dataclass.
        content: what `json.load` gave.
        where: starts every error: the file, and the field inside it.

    Raises:
        ValueError: a field is missing, unknown, of another type, or refused by the dataclass itself.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{where} must be a JSON object, got {content!r}.")
    declared = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := content.keys() - declared.keys():
        known = ", ".join(declared)
        raise ValueError(f"{where} has no field {', '.join(sorted(unknown))}; its fields are {known}.")
    required = {name for name, field in declared.items() if field.default is MISSING}
    if missing := required - content.keys():
        raise ValueError(f"{where} lacks {', '.join(sorted(missing))}.")
    hints = get_type_hints(kind)
    values = {name: _read(hints[name], value, f"{where}: {name}") for name, value in content.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _read(hint: Any, value: object, where: str, *, or_null: bool = False) -> Any:
    """The value as its annotation wants it; `or_null` is for the error alone."""
    if isinstance(hint, type) and is_dataclass(hint):
        return read_dataclass(hint, value, where)
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _read_union(get_args(hint), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_read(get_args(hint)[0], item, f"{where}[{place}]") for place, item in enumerate(value))
    if origin is Mapping and isinstance(value, dict):
        return {key: _read(get_args(hint)[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if origin is Literal and value in get_args(hint):
        return value
    if hint is float and type(value) is int:
        return float(value)
    # `type`, not `isinstance`: JSON's true is no number.
    if origin is None and type(value) is hint:
        return value
    raise ValueError(f"{where} must be {_name(hint)}{' or null' if or_null else ''}, got {value!r}.")


def _read_union(kinds: tuple[Any, ...], value: object, where: str) -> Any:
    """The value as the one of several annotations that takes it."""
    if value is None and types.NoneType in kinds:
        return None
    others = [kind for kind in kinds if kind is not types.NoneType]
    if len(others) == 1:
        return _read(others[0], value, where, or_null=True)
    if all(is_dataclass(kind) for kind in others):
        return _read_section(others, value, where)
    for kind in others:
        if type(value) is kind:
            return value
    raise ValueError(f"{where} must be {_listed(map(_name, kinds))}, got {value!r}.")


def _read_section(kinds: Sequence[Any], value: object, where: str) -> Any:
    """The value as the one of several dataclasses that its first field names."""
    key = fields(kinds[0])[0].name
    sections = {get_args(get_type_hints(kind)[key])[0]: kind for kind in kinds}
    if not isinstance(value, dict):
        raise ValueError(f"{where} must be a JSON object, got {value!r}.")
    if value.get(key) not in sections:
        raise ValueError(f"{where}: {key} must be {_listed(map(repr, sections))}, got {value.get(key)!r}.")
    return read_dataclass(sections[value[key]], value, where)


_NAMES = {str: "a string", int: "a whole number", float: "a number", bool: "true or false", types.NoneType: "null"}


def _name(hint: Any) -> str:
    """An annotation in JSON's words."""
    origin = get_origin(hint)
    if origin is Literal:
        return _listed(map(repr, get_args(hint)))
    if origin is tuple:
        return "a list"
    return _NAMES.get(hint, "an object")


def _listed(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}" if first else last
