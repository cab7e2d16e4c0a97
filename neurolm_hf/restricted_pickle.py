"""Pickles of numpy arrays read without running anything that is in them.

A pickle is a program, and loading it runs it. Here it may build dictionaries, lists, tuples, strings and numbers, and
may ask for the handful of functions by which numpy rebuilds an array. These are answered by stand-ins of our own,
which take a shape, a plain dtype and exactly the bytes that fill it. Every other name is refused, and said.
"""

import io
import math
import pickle
import pickletools
import re
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np


# The reference's largest window, 1024 seconds of a channel in float64, has 1.6 MB and some hundred opcodes. The limits
# keep a file from making us build what it could not hold.
MAX_BYTES = 64 * 2**20
MAX_OPCODES = 10_000
MAX_DIMENSIONS = 3

# What pickles of protocol 2 and later are made of, without the opcodes that call classes, look up registered
# extensions, or name objects outside the file.
_OPCODES = frozenset(
    """PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT SHORT_BINUNICODE BINUNICODE
    BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8 BYTEARRAY8 EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2
    TUPLE3 APPEND APPENDS SETITEM SETITEMS MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE
    BUILD""".split()  # noqa: SIM905
)
_PLAIN_DTYPE = re.compile(r"b1|[iu][1248]|f[248]")


def read_pickle(path: str | Path) -> dict[str, Any]:
    """The dictionary in a pickle; its values may be numpy arrays and numbers, strings, numbers, and lists of these.

    Raises:
        OSError: the file cannot be read.
        ValueError: it asks for anything else, is cut short, or is no such pickle; the message names the file, and what
            was refused as `module.name`.
    """
    path = Path(path)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(
            f"{path}: {path.stat().st_size:,} bytes; a window of the reference has less than {MAX_BYTES:,}."
        )
    content = path.read_bytes()
    try:
        _check_opcodes(content)
        loaded = _RestrictedUnpickler(io.BytesIO(content)).load()
    except Exception as error:
        # A damaged or hostile pickle can make the machine fail in every way there is.
        raise ValueError(f"{path} is not read: {error or type(error).__name__}") from error
    if not isinstance(loaded, dict) or not all(isinstance(key, str) for key in loaded):
        raise ValueError(f"{path} holds a {type(loaded).__name__}; a dictionary with names was expected.")
    try:
        return {key: _value(item) for key, item in loaded.items()}
    except _Refused as error:
        raise ValueError(f"{path} is not read: {error}") from error


class _Refused(ValueError):
    """What a pickle asked for and does not get."""


class _Stub:
    """An object of ours on the pickle's stack. The pickle cannot set its attributes: BUILD calls `__setstate__`."""

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __setstate__(self, state: object) -> None:
        raise _Refused(f"it changes {type(self).__name__.strip('_')}, which only an attack does.")


class _Function(_Stub):
    """Stands for a function of numpy."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]):
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)


class _Dtype(_Stub):
    """A dtype of plain numbers."""

    __slots__ = ("dtype",)

    def __init__(self, code: object, align: object = False, copy: object = True):
        if not isinstance(code, str) or not _PLAIN_DTYPE.fullmatch(code):
            raise _Refused(f"an array of dtype {reprlib.repr(code)} is refused: only numbers are read.")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        _version, order, subarray, names, fields, *_rest = state
        if order not in ("<", ">", "|", "=") or (subarray, names, fields) != (None, None, None):
            raise _Refused("a dtype with fields is refused: only numbers are read.")
        self.dtype = self.dtype.newbyteorder(order)


class _Array(_Stub):
    """An array that is rebuilt in two steps, as numpy does: made empty, then given its state."""

    __slots__ = ("array",)

    def __init__(self, array: np.ndarray | None = None):
        self.array = array

    def __setstate__(self, state: Any) -> None:
        _version, shape, dtype, fortran, data = state
        self.array = _build(data, dtype, shape, "F" if fortran else "C")


def _build(data: object, dtype: object, shape: object, order: object = "C") -> np.ndarray:
    """The array of this shape, which these bytes fill exactly."""
    if not isinstance(dtype, _Dtype) or not isinstance(data, (bytes, bytearray)) or order not in ("C", "F"):
        raise _Refused("an array that is not made of a dtype and bytes is refused (object arrays are such).")
    if not isinstance(shape, tuple) or len(shape) > MAX_DIMENSIONS:
        raise _Refused(f"an array of shape {reprlib.repr(shape)} is refused.")
    if not all(type(size) is int and size >= 0 for size in shape):
        raise _Refused(f"an array of shape {reprlib.repr(shape)} is refused.")
    if math.prod(shape) * dtype.dtype.itemsize != len(data):
        raise _Refused(f"an array of shape {shape} and {dtype.dtype} is not filled by {len(data)} bytes.")
    # a view: however often a pickle uses the same bytes, they are there once
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _reconstruct(subtype: object, shape: object, code: object) -> _Array:
    if subtype is not _NDARRAY:
        raise _Refused("an array of another class than numpy.ndarray is refused.")
    return _Array()


def _scalar(dtype: object, data: object) -> _Array:
    return _Array(_build(data, dtype, ()))


def _frombuffer(data: object, dtype: object, shape: object, order: object, axis_order: object = None) -> _Array:
    if axis_order is not None:
        raise _Refused("an array whose axes are permuted is refused.")
    return _Array(_build(data, dtype, shape, order))


def _no_call(*args: object) -> NoReturn:
    raise _Refused("it calls numpy.ndarray, which only an attack does.")


_NDARRAY = _Function(_no_call)
_GLOBALS = {
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": _Function(_Dtype),
    # numpy 2 renamed the module; files of both are about
    **dict.fromkeys(
        ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"), _Function(_reconstruct)
    ),
    **dict.fromkeys(("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"), _Function(_scalar)),
    **dict.fromkeys(("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"), _Function(_frombuffer)),
}


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> _Function:
        """Nothing is imported: a known name gives its stand-in."""
        return _global(f"{module}.{name}")

    def persistent_load(self, pid: object) -> NoReturn:
        raise _Refused(f"it refers to an object outside the file ({pid!r}).")


def _global(name: str) -> _Function:
    if name not in _GLOBALS:
        raise _Refused(f"it asks for {name}, which is no part of an array. Nothing of it was run.")
    return _GLOBALS[name]


def _check_opcodes(content: bytes) -> None:
    """Refuses, before anything is built, opcodes and sizes that no pickle of arrays needs."""
    for count, (opcode, argument, _position) in enumerate(pickletools.genops(content)):
        if opcode.name in ("GLOBAL", "INST"):
            _global(str(argument).replace(" ", "."))
        if opcode.name not in _OPCODES:
            raise _Refused(f"its opcode {opcode.name} is refused.")
        if count >= MAX_OPCODES:
            raise _Refused(f"it has more than {MAX_OPCODES} opcodes.")
        # C pickle makes room for all places of the memo up to the highest
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > MAX_OPCODES:
            raise _Refused(f"it remembers an object at place {argument}.")


def _value(item: Any) -> Any:
    """A value of the dictionary, with arrays in place of our stubs. Lists in lists are refused: a list that holds
    another one ten times, and so on, is endless to whoever prints it."""
    if isinstance(item, (list, tuple)):
        return [_plain(part) for part in item]
    return _plain(item)


def _plain(item: Any) -> Any:
    if isinstance(item, _Array):
        return item.array
    if item is None or isinstance(item, (bool, int, float, str)):
        return item
    raise _Refused(f"a {type(item).__name__.strip('_')} inside is refused: only arrays, numbers and strings are read.")
