"""Prepared windows on disk: what a row holds, how its signal is stored, and how a prepared folder is read.

A row's `signal` is a flat list of float16, channel after channel; `row_signal` gives it back as float32 (channels,
samples). Parquet files are compressed by zstd with the two bytes of each number split apart. Measured by
`python benchmarks/storage.py` on EEGMAT (4 s of 19 channels; one core; rows a second end at a float32 array):

                          MB an hour  at random, numpy  at random, plain  streamed  largest error  codes changed
    float32, flat list          45.0             43400              2440      6500           none           none
    float16, flat list          23.0             24700               370      5900        0.19 uV       0-0.004%
    float16, Array2D            22.9             11300              2150      3400           same           same
    float16, nested lists       22.9              7900               370      3900           same           same
    float16, binary             25.2        (see below)            35700     15100           same           same
    int16, scale a row, flat    27.8             34400              2150      5400       0.009 uV       0-0.011%

- float16 halves float32. Its error goes with the value (2e-4 of it: 0.19 uV from 400 to 800 uV, 0.01 uV at
  30 uV), and it changes no more codes than int16, whose error goes with a row's largest value. int16 is larger, for
  Parquet has no 16-bit integers.
- Without splitting bytes, zstd gives 25.2 MB an hour, snappy and none 27.4; streaming is as fast with all of them.
- Montages and windows differ between rows of a corpus, which an `Array2D` (one free dimension) cannot hold, and it
  reads at half the speed.
- Binary cells are damaged without a word by the `numpy` and `torch` formats of datasets 5.2 (zero bytes at the end are
  cut), and nobody else can read them.
- Plain Python lists of numbers are slow in every layout but binary: `load_prepared` sets the `numpy` format.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .task_sections import PARTS
from .tasks import Task


if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

Row = dict[str, Any]

ROWS_A_GROUP = 64
# How many rows' lengths are asked for at a time: a selection of rows is copied for it, anything else is not.
ROWS_A_LOOK = 1024
# What `preparation.json` says about the storage.
STORAGE = {
    "signal": "float16, channel after channel",
    "compression": "zstd, split bytes",
    "rows_a_group": ROWS_A_GROUP,
}
TEMPORARY = ".part"
# Said where one of these packages is missing.
NEEDED = 'Prepared sets need datasets, pyarrow and joblib: pip install "neurolm_hf[data]"'


def row_features(task: Task | None) -> "Features":
    """The columns of a prepared row.

    `signal` (float16, flat), `channels` (vocabulary names), `sampling_rate` (Hz), `unit` (of a stored 1.0, such as
    '100uV'), `subject`, `recording` (key), `start` (s), `label` (the task's class, -1 without one), `question` and
    `answer` (null without one), `recipe_id`.

    Args:
        task: gives the names of the classes; None, or a task without a question, gives none.

    Raises:
        ImportError: datasets is missing.
    """
    try:
        from datasets import ClassLabel, Features, List, Value
    except ImportError as error:
        raise ImportError(NEEDED, name="datasets") from error
    text = Value("string")
    return Features(
        {
            "signal": List(Value("float16")),
            "channels": List(text),
            "sampling_rate": Value("float32"),
            "unit": text,
            "subject": text,
            "recording": text,
            "start": Value("float64"),
            "label": ClassLabel(names=[] if task is None else list(task.answers)),
            "question": text,
            "answer": text,
            "recipe_id": text,
        }
    )


def encode_row(
    signal: NDArray[np.floating],
    channels: Sequence[str],
    *,
    sampling_rate: float,
    unit: str,
    subject: str,
    recording: str,
    start: float,
    recipe_id: str,
    task: Task | None = None,
    answer: str | None = None,
) -> Row:
    """A row as it is stored.

    Args:
        signal: (channels, samples) in `unit`, prepared.
        channels: vocabulary names, one a row of `signal`.
        task, answer: the question and its answer; the label is the answer's class.

    Raises:
        ValueError: names that do not fit the signal, an answer that is none of the task's, values that are not finite
            or beyond what float16 holds.
    """
    where = f"{recording} at {start:g} s"
    if signal.ndim != 2 or len(signal) != len(channels):
        raise ValueError(f"{where}: {len(channels)} channel names for a signal of shape {signal.shape}.")
    if answer is not None and (task is None or answer not in task.answers):
        known = "there is no task" if task is None else f"those of {task.name} are {', '.join(task.answers)}"
        raise ValueError(f"{where}: {answer!r} is no answer; {known}.")
    finite = np.isfinite(signal)
    limit = np.finfo(np.float16).max
    if not finite.all() or np.abs(signal).max() > limit:
        bad = int(np.flatnonzero((~finite | (np.abs(signal) > limit)).any(axis=1))[0])
        raise ValueError(
            f"{where}: channel {channels[bad]} holds values that are not finite, or above {limit:g} {unit}."
        )
    return {
        "signal": signal.astype(np.float16).ravel(),
        "channels": list(channels),
        "sampling_rate": float(sampling_rate),
        "unit": unit,
        "subject": subject,
        "recording": recording,
        "start": float(start),
        "label": -1 if task is None or answer is None else task.answers[answer],
        "question": None if task is None else task.question,
        "answer": answer,
        "recipe_id": recipe_id,
    }


def batches_of(rows: Sequence[Any], size: int) -> Iterator[list[Any]]:
    """Rows in turn, so many at a time, each read once."""
    for start in range(0, len(rows), size):
        yield [rows[index] for index in range(start, min(start + size, len(rows)))]


def row_signal(row: Mapping[str, Any]) -> NDArray[np.float32]:
    """The signal of a row, float32 (channels, samples).

    A two-dimensional `signal` is taken as it is, so that rows made in memory need no encoding.

    Raises:
        ValueError: a flat signal that does not divide into the row's channels.
    """
    signal: NDArray[np.float32] = np.asarray(row["signal"], dtype=np.float32)
    if signal.ndim != 1:
        return signal
    count = len(row["channels"])
    if not count or signal.size % count:
        where = f"{row.get('recording', 'a window')} at {float(row.get('start', 0.0)):g} s"
        raise ValueError(f"{where}: {signal.size} values of signal do not divide into {count} channels.")
    return signal.reshape(count, -1)


def signal_lengths(rows: Any) -> NDArray[np.int64]:
    """How many values the signal of each row has (rows,), without reading any from the disk; 0 where there is none.

    Args:
        rows: what [`load_prepared`] returns, or a list.
    """
    if isinstance(rows, list):
        return np.array([np.size(row["signal"]) if row and "signal" in row else 0 for row in rows], dtype=np.int64)
    import pyarrow.compute as pc

    tables = rows.select_columns("signal").with_format("arrow").iter(ROWS_A_LOOK)
    lengths = [pc.fill_null(pc.list_value_length(table["signal"]), 0).to_numpy() for table in tables]
    return np.concatenate(lengths).astype(np.int64)


def window_kinds(rows: Any) -> dict[tuple[tuple[str, ...], int], int]:
    """(channels, values of the signal) of rows -> place of the first that has them; no signal is read.

    Args:
        rows: what [`load_prepared`] returns.
    """
    import pyarrow.compute as pc

    tables = rows.select_columns("channels").with_format("arrow").iter(ROWS_A_LOOK)
    montages = [names for table in tables for names in pc.binary_join(table["channels"], "\0").to_pylist()]
    found: dict[tuple[str, int], int] = {}
    for place, kind in enumerate(zip(montages, signal_lengths(rows).tolist(), strict=True)):
        found.setdefault(kind, place)
    return {(tuple(names.split("\0")), length): place for (names, length), place in found.items()}


class ShardWriter:
    """Writes rows to a Parquet file, a group at a time, so that memory does not grow with their number.

    The same rows give the same bytes. The file appears at `path` with `commit`, complete, or not at all.

    Args:
        path: the file; its folder is made.
        task: as in `row_features`.

    Raises:
        ImportError: pyarrow or datasets is missing.
    """

    def __init__(self, path: Path, task: Task | None):
        try:
            import pyarrow.parquet as pq
        except ImportError as error:
            raise ImportError(NEEDED, name="pyarrow") from error
        self.path = path
        self._schema = row_features(task).arrow_schema
        self._pending: list[Row] = []
        self._temporary = temporary_beside(path)
        self._writer = pq.ParquetWriter(
            self._temporary,
            self._schema,
            compression="zstd",
            use_dictionary=False,
            use_byte_stream_split=["signal.list.element"],
            write_statistics=False,
        )

    def add(self, row: Row) -> None:
        """Takes a row from `encode_row`."""
        self._pending.append(row)
        if len(self._pending) == ROWS_A_GROUP:
            self._write_pending()

    def commit(self) -> None:
        """Makes the file appear."""
        if self._pending:
            self._write_pending()
        self._writer.close()
        publish(self._temporary, self.path)

    def discard(self) -> None:
        """Leaves nothing behind."""
        self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def _write_pending(self) -> None:
        import pyarrow as pa

        columns = {name: [row[name] for row in self._pending] for name in self._schema.names}
        self._writer.write_table(pa.Table.from_pydict(columns, schema=self._schema))
        self._pending.clear()


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically: complete, or not at all."""
    temporary = temporary_beside(path)
    temporary.write_text(text, encoding="utf-8")
    publish(temporary, path)


def temporary_beside(path: Path) -> Path:
    """A fresh empty file in the folder of `path`, which is made; hidden, and named after it.

    Every writer has its own, for a killed run's last worker may still be writing when the next run has begun.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
    os.close(handle)
    Path(name).chmod(0o644)  # mkstemp's files are their owner's only
    return Path(name)


def publish(temporary: Path, path: Path) -> None:
    """Gives a finished temporary file its name, after its bytes have reached the disk."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def load_prepared(
    folder: str | Path, split: str | None = None, streaming: bool = False
) -> "Dataset | IterableDataset":
    """The rows of a prepared folder, in `numpy` format; `row_signal` gives the signal of each.

    Args:
        folder: made by `scripts/prepare_data.py` or `scripts/import_pickles.py`.
        split: 'train', 'validation' or 'test'; None: all rows.
        streaming: read while iterating, without a copy in the cache. Split the result over ranks with
            `datasets.distributed.split_dataset_by_node`.

    Raises:
        FileNotFoundError: no such folder, or nothing prepared in it.
        ValueError: a preparation that was not finished, recordings that are not prepared yet, or a split without rows.
        ImportError: datasets is missing.
    """
    folder = Path(folder)
    files = _shards(folder, split)
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(NEEDED, name="datasets") from error
    paths = [escape(str(file)) for file in files]  # load_dataset takes them for patterns
    dataset = load_dataset("parquet", data_files=paths, split="train", streaming=streaming)
    return dataset.with_format("numpy")


def _shards(folder: Path, split: str | None) -> list[Path]:
    """The Parquet files of a split, sorted."""
    if not (folder / "preparation.json").is_file():
        raise FileNotFoundError(
            f"{folder} holds no prepared recordings. Give the --output folder of scripts/prepare_data.py."
        )
    if not (folder / "summary.json").is_file():
        raise ValueError(f"{folder}: its preparation was not finished. Start the same command again: it resumes.")
    _check_complete(folder / "summary.json")
    if split is not None and split not in PARTS:
        raise ValueError(f"split is {', '.join(PARTS)} or None, not {split!r}.")
    files = {name: sorted((folder / "data" / name).glob("*.parquet")) for name in PARTS}
    chosen = [file for name in PARTS if split in (None, name) for file in files[name]]
    if not chosen:
        there = ", ".join(name for name in PARTS if files[name]) or "none"
        raise ValueError(f"{folder} has no rows in split {split!r}; splits with rows: {there}. See its summary.json.")
    return chosen


def _check_complete(file: Path) -> None:
    """A ValueError where a summary says that recordings are missing."""
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        missing = len(summary.get("missing", []))
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} is empty or damaged. Start the same command again: it makes it anew.") from error
    if missing:
        count = missing + len(summary["files"])
        raise ValueError(f"{file.parent}: {missing} of {count} recordings are not prepared yet: run the other shards.")
