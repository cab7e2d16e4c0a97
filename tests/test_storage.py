import hashlib
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel
from prepared_folders import write_shard

from neurolm_hf import storage
from neurolm_hf.storage import (
    ShardWriter,
    encode_row,
    load_prepared,
    row_features,
    row_signal,
    window_kinds,
    write_text,
)
from neurolm_hf.tasks import load_task


TASK = load_task("Workload")


def signal(channels: int = 3, samples: int = 400, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.3, (channels, samples)).astype(np.float32)


def encode(values: np.ndarray, **changes: Any) -> dict:
    given = {
        "channels": ["C3", "C4", "CZ", "PZ"][: len(values)],
        "sampling_rate": 200,
        "unit": "100uV",
        "subject": "s1",
        "recording": "s1/a.edf",
        "start": 4.0,
        "recipe_id": "0123456789ab",
        "task": TASK,
        "answer": "Yes",
    }
    return encode_row(values, **{**given, **changes})


def prepared_folder(tmp_path: Path, **rows: list[dict]) -> Path:
    """A finished preparation with these rows by split, a shard a row."""
    for split, given in rows.items():
        for number, row in enumerate(given):
            write_shard([row], tmp_path / "data" / split / f"{number}.parquet", TASK)
    for name in ("preparation.json", "summary.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path


def test_a_row_holds_all_columns() -> None:
    row = encode(signal())
    assert set(row) == set(row_features(TASK))
    assert (row["label"], row["question"], row["answer"]) == (1, TASK.question, "Yes")
    assert (row["channels"], row["unit"], row["sampling_rate"]) == (["C3", "C4", "CZ"], "100uV", 200.0)
    assert row_features(TASK)["label"] == ClassLabel(names=["No", "Yes"])


def test_a_row_without_a_question_has_no_label() -> None:
    row = encode(signal(), task=None, answer=None)
    assert (row["label"], row["question"], row["answer"]) == (-1, None, None)
    assert row_features(None)["label"].names == []


def test_signal_comes_back_to_half_precision() -> None:
    values = signal()
    values[0, 0] = 8.0  # an artefact of 800 uV
    read = row_signal(encode(values))
    assert (read.dtype, read.shape) == (np.float32, (3, 400))
    np.testing.assert_allclose(read, values, rtol=2**-11, atol=2**-25)


def test_a_two_dimensional_signal_is_taken_as_it_is() -> None:
    values = signal()
    assert row_signal({"signal": values, "channels": ["C3", "C4", "CZ"]}) is values


def test_a_signal_that_does_not_divide_is_named() -> None:
    with pytest.raises(ValueError, match=r"s1/a.edf at 4 s: 1200 values of signal do not divide into 7 channels"):
        row_signal({**encode(signal()), "channels": ["C3"] * 7})


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        (signal(), {"channels": ["C3"]}, r"s1/a.edf at 4 s: 1 channel names for a signal of shape \(3, 400\)"),
        (np.full((2, 200), [[1.0], [np.nan]]), {}, "channel C4 holds values that are not finite"),
        (np.full((2, 200), [[7e4], [1.0]]), {}, "channel C3 holds values that are not finite, or above 65504 100uV"),
        (signal(), {"answer": "Perhaps"}, "'Perhaps' is no answer; those of Workload are No, Yes"),
    ],
)
def test_rows_that_cannot_be_stored(values: np.ndarray, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode(values, **changes)


def test_a_shard_is_deterministic_and_in_groups(tmp_path: Path) -> None:
    rows = [encode(signal(1 + index % 4, 200, index), start=index) for index in range(150)]
    for name in ("one", "two"):
        write_shard(rows, tmp_path / f"{name}.parquet", TASK)
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.iterdir()}
    assert len(digests) == 1
    metadata = pq.ParquetFile(tmp_path / "one.parquet").metadata
    assert [metadata.row_group(index).num_rows for index in range(3)] == [64, 64, 22]
    column = metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"
    assert "BYTE_STREAM_SPLIT" in column.encodings
    assert stat.S_IMODE(os.stat(tmp_path / "one.parquet").st_mode) == 0o644


def test_a_shard_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    for end, there in (("discard", []), ("commit", ["a.parquet"])):
        writer = ShardWriter(tmp_path / "a.parquet", TASK)
        for index in range(100):
            writer.add(encode(signal(), start=index))
        (begun,) = tmp_path.iterdir()
        assert begun.name.startswith(".a.parquet.")
        getattr(writer, end)()
        assert [path.name for path in tmp_path.iterdir()] == there


@pytest.mark.parametrize("missing", ["pyarrow.parquet", "datasets"])
def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: Any, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=re.escape('pip install "neurolm_hf[data]"')):
        ShardWriter(tmp_path / "a.parquet", TASK)
    assert list(tmp_path.iterdir()) == []


def test_the_settings_say_how_large_a_group_is() -> None:
    assert storage.STORAGE["rows_a_group"] == storage.ROWS_A_GROUP


def test_writing_again_replaces(tmp_path: Path, monkeypatch: Any) -> None:
    write_text(tmp_path / "a.json", "old")
    with monkeypatch.context() as patch:
        patch.setattr(storage.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"
    write_text(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "new"


@pytest.mark.parametrize("streaming", [False, True])
def test_a_prepared_folder_is_read_with_its_montages(tmp_path: Path, streaming: bool) -> None:
    montages = [encode(signal(1 + index, 200 * (4 - index), index), start=index) for index in range(4)]
    folder = prepared_folder(tmp_path, train=montages[:3], test=[montages[3]])
    train = load_prepared(folder, "train", streaming=streaming)
    assert train.features == row_features(TASK)
    read = list(train)
    assert [row_signal(row).shape for row in read] == [(1, 800), (2, 600), (3, 400)]
    for row, given in zip(read, montages, strict=False):
        np.testing.assert_array_equal(row_signal(row), row_signal(given))
        assert list(row["channels"]) == given["channels"]
        assert (row["answer"], row["label"], row["start"]) == ("Yes", 1, given["start"])
    assert len(list(load_prepared(folder, streaming=streaming))) == 4


def test_rows_are_read_in_batches_too(tmp_path: Path) -> None:
    folder = prepared_folder(tmp_path, train=[encode(signal(1 + index, 400, index)) for index in range(3)])
    rows = load_prepared(folder, "train").__getitems__([2, 0])
    assert [row_signal(row).shape for row in rows] == [(3, 400), (1, 400)]


def test_a_set_without_some_recordings_is_refused(tmp_path: Path) -> None:
    folder = prepared_folder(tmp_path, train=[encode(signal())])
    (folder / "summary.json").write_text('{"files": [{}], "missing": ["b.edf", "c.edf"]}')
    with pytest.raises(ValueError, match="2 of 3 recordings are not prepared yet: run the other shards"):
        load_prepared(folder)
    for broken in ("", "[]"):
        (folder / "summary.json").write_text(broken)
        with pytest.raises(ValueError, match=r"summary\.json is empty or damaged\. Start the same command again"):
            load_prepared(folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_may_be_called_as_a_pattern_is(tmp_path: Path, streaming: bool) -> None:
    folder = prepared_folder(tmp_path / "out [1]* ?", train=[encode(signal())])
    assert len(list(load_prepared(folder, streaming=streaming))) == 1


def test_folders_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no prepared recordings\. Give the --output"):
        load_prepared(tmp_path)
    folder = prepared_folder(tmp_path, train=[encode(signal())])
    with pytest.raises(ValueError, match=r"no rows in split 'test'; splits with rows: train"):
        load_prepared(folder, "test")
    with pytest.raises(ValueError, match="not 'dev'"):
        load_prepared(folder, "dev")
    (folder / "summary.json").unlink()
    with pytest.raises(ValueError, match="was not finished"):
        load_prepared(folder)


def test_one_window_of_each_montage_and_length_is_found(tmp_path: Path) -> None:
    windows = [encode(signal(channels, samples)) for channels, samples in ((2, 400), (2, 600), (3, 400), (2, 400))]
    folder = prepared_folder(tmp_path, train=windows)
    rows = load_prepared(folder, "train")
    assert window_kinds(rows) == {
        (("C3", "C4"), 800): 0,
        (("C3", "C4"), 1200): 1,
        (("C3", "C4", "CZ"), 1200): 2,
    }
