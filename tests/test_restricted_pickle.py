"""Pickles of arrays come out as they went in; whatever else a pickle asks for is refused by name, and nothing runs."""

import builtins
import os
import pickle
import struct
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from neurolm_hf.restricted_pickle import MAX_BYTES, read_pickle


class Calls:
    """Pickles as a call of any function with any arguments, as attacks do."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def write(path, content, protocol=4):
    path = path / "window.pkl"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        np.arange(12, dtype=">i2").reshape(2, 6)[:, ::2],
        np.array([[True, False]]),
        np.zeros((0, 4)),
    ],
    ids=["float64", "fortran", "big-endian slice", "bool", "empty"],
)
def test_arrays(tmp_path, array, protocol):
    names = ["FP1", "FP2"]
    whole = {"X": array, "y": np.float64(2.0), "ch_names": names, "z": np.array([3.0]), "n": -70000, "e": None}
    read = read_pickle(write(tmp_path, whole, protocol))
    np.testing.assert_array_equal(read["X"], array)
    assert read["X"].dtype == array.dtype
    assert (float(read["y"]), read["z"].tolist(), read["ch_names"]) == (2.0, [3.0], names)
    assert (read["n"], read["e"]) == (-70000, None)


def test_files_of_numpy_1(tmp_path):
    content = pickle.dumps({"X": np.arange(3.0)}, protocol=3).replace(b"numpy._core.", b"numpy.core.")
    assert b"numpy.core.multiarray" in content
    assert read_pickle(write(tmp_path, content))["X"].tolist() == [0, 1, 2]


ATTACKS = [
    (Calls(os.system, "touch RAN"), r"asks for (posix|nt)\.system"),
    (Calls(builtins.eval, "open('RAN', 'w')"), r"asks for builtins\.eval"),
    (Calls(builtins.getattr, "x", "upper"), r"asks for builtins\.getattr"),
    (Calls(subprocess.Popen, ["touch", "RAN"]), r"asks for subprocess\.Popen"),
    (Calls(np.load, "RAN.npy", None, True), r"asks for numpy\.load"),
    (Calls(np.fromfile, "RAN"), r"asks for numpy\.fromfile"),
    (Path("RAN"), r"asks for pathlib\.\w+"),
    ([np.array([Calls(os.system, "touch RAN")], dtype=object)], r"dtype 'O8' is refused|asks for (posix|nt)\.system"),
    (np.array([[], [1]], dtype=object), r"dtype 'O8' is refused: only numbers"),
    (np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), r"dtype 'V12' is refused"),
    (np.array(["text"]), r"dtype 'U4' is refused"),
    (np.ma.array([1.0]), r"asks for numpy\.ma\.core\._mareconstruct"),
    ({1, 2}, r"opcode EMPTY_SET is refused|asks for builtins\.set"),
    (Exception, r"asks for builtins\.Exception"),
]


@pytest.mark.parametrize(("attack", "message"), ATTACKS, ids=[message for _, message in ATTACKS])
@pytest.mark.parametrize("protocol", [3, 4])
def test_anything_else_is_refused_by_name_and_not_run(tmp_path, monkeypatch, attack, message, protocol):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, {"X": attack}, protocol)
    with pytest.raises(ValueError, match=rf"window\.pkl is not read: .*({message})"):
        read_pickle(path)
    assert [file.name for file in tmp_path.iterdir()] == ["window.pkl"]


HEAD = b"\x80\x04"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n"
DTYPE = b"cnumpy\ndtype\n\x8c\x02f8\x89\x88\x87R"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cos\nsystem\n(S'touch RAN'\ntR.", r"asks for os\.system"),
        (b"(S'touch RAN'\nios\nsystem\n.", r"asks for os\.system|opcode STRING"),
        (HEAD + b"\x8c\x02os\x8c\x06system\x93\x8c\x09touch RAN\x85R.", r"asks for os\.system"),
        (HEAD + b"\x8c\x05numpy\x8c\x11ndarray.__class__\x93.", r"asks for numpy\.ndarray\.__class__"),
        (HEAD + b"cnumpy\nndarray\n)R.", "calls numpy.ndarray"),
        (HEAD + b"cnumpy\nndarray\n)\x81.", "opcode NEWOBJ"),
        # a state for one of our stand-ins
        (HEAD + ARRAY + b"}\x8c\x08__code__\x8c\x01xs" + b"b.", "changes Function"),
        (HEAD + b"X\x04\x00\x00\x00\x41\x42\x43\x44" + b"Q.", "opcode BINPERSID"),
        (HEAD + b"\x82\x01.", "opcode EXT1"),
        (HEAD + b"r\xff\xff\xff\xff.", "remembers an object at place 4294967295|stack"),
        (HEAD + b"}r\xff\xff\xff\x7f.", "remembers an object at place 2147483647"),
        (HEAD + b"\x8e" + struct.pack("<Q", 2**40) + b"abc.", "expected 1099511627776 bytes"),
        (HEAD + b")" * 20_000 + b".", "more than 10000 opcodes"),
        (HEAD + b"cnumpy\ndtype\n\x8c\x05f8,i8\x85R.", "dtype 'f8,i8' is refused"),
        (b"not a pickle", "is not read"),
        (b"", "is not read"),
    ],
)
def test_crafted_programs(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=message):
        read_pickle(path)
    assert [file.name for file in tmp_path.iterdir()] == ["window.pkl"]


def crafted_array(shape, data, dtype=DTYPE):
    """A pickle of {"X": array}, with a shape and bytes that need not fit."""
    dimensions = b"".join(b"\x8a\x08" + struct.pack("<q", size) for size in shape)
    state = b"(K\x01(" + dimensions + b"t" + dtype + b"\x89" + b"B" + struct.pack("<I", len(data)) + data + b"tb"
    made = ARRAY + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    return HEAD + b"}\x8c\x01X" + made + state + b"s."


def test_shape_and_bytes_must_agree(tmp_path):
    assert read_pickle(write(tmp_path, crafted_array([2], bytes(16))))["X"].tolist() == [0, 0]
    for shape in ([2**40], [2**40, 2**40], [-1], [3], [1, 1, 1, 2]):
        with pytest.raises(ValueError, match="an array of shape"):
            read_pickle(write(tmp_path, crafted_array(shape, bytes(16))))
    objects = DTYPE.replace(b"f8", b"O8")
    with pytest.raises(ValueError, match="dtype 'O8' is refused"):
        read_pickle(write(tmp_path, crafted_array([2], bytes(16), objects)))


def test_a_file_cut_short_at_any_place(tmp_path):
    whole = pickle.dumps({"X": np.arange(8.0).reshape(2, 4), "y": 1, "ch_names": ["A1", "A2"]})
    for length in range(len(whole)):
        path = write(tmp_path, whole[:length])
        with pytest.raises(ValueError, match=r"window\.pkl is not read"):
            read_pickle(path)


def test_damaged_bytes_fail_in_no_other_way(tmp_path):
    whole = pickle.dumps({"X": np.arange(8.0).reshape(2, 4), "y": 1, "ch_names": ["A1", "A2"]})
    random = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] = random.integers(256)
        path = write(tmp_path, bytes(damaged))
        try:
            read_pickle(path)
        except ValueError as error:
            assert "window.pkl" in str(error)  # noqa: PT017


def test_lists_in_lists_are_refused(tmp_path):
    bomb = ["x"]
    for _ in range(30):
        bomb = [bomb] * 10
    with pytest.raises(ValueError, match=r"window\.pkl is not read: a list inside is refused"):
        read_pickle(write(tmp_path, {"X": 1, "ch_names": bomb}))


def test_a_huge_shape_does_not_make_a_huge_message(tmp_path):
    shape = b"("  # of a tuple that holds another three times, and so on
    shape += b"\x8c\x01x" + b"".join(b"\x94h%ch%c\x87" % (place, place) for place in range(20)) + b"t"
    content = HEAD + b"}\x8c\x01X" + ARRAY + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01" + shape
    with pytest.raises(ValueError, match="an array of shape") as caught:
        read_pickle(write(tmp_path, content + DTYPE + b"\x89C\x08abcdefghtbs."))
    assert len(str(caught.value)) < 20_000


def test_the_same_bytes_used_often_are_kept_once(tmp_path):
    data = b"\x96" + struct.pack("<Q", 80_000) + bytes(80_000) + b"\x94"
    array = ARRAY + b"cnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01M\x10\x27\x85" + DTYPE + b"\x89%stb"
    content = HEAD + b"}\x8c\x01X](" + array % data + array % b"h\x00" * 299 + b"es."
    tracemalloc.start()
    arrays = read_pickle(write(tmp_path, content))["X"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(arrays) == 300
    assert arrays[-1].shape == (10_000,)
    assert peak < 5e6, "and not 24 MB"


def test_other_content(tmp_path):
    with pytest.raises(ValueError, match="holds a list; a dictionary with names was expected"):
        read_pickle(write(tmp_path, [1]))
    with pytest.raises(ValueError, match="holds a dict; a dictionary with names"):
        read_pickle(write(tmp_path, {1: 2}))
    path = tmp_path / "window.pkl"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ValueError, match="67,108,865 bytes"):
        read_pickle(path)
