#!/usr/bin/env python
"""How to store prepared EEG: number type, layout and Parquet compression, measured.

Windows of EEGMAT (4 s of 19 channels; simulated recordings where the real ones are not there) and a mix of montages as
a pre-training corpus has it (3 to 64 channels, 1024 patches a window) are written in every combination and read back
as the Trainer reads: at random through `datasets` (batches of 16 rows by shuffled index; plain Python, `numpy` and
`torch` format) and streamed from Parquet (`numpy` format). All times end at a float32 array (channels, samples).
Errors are against float32 before storage; `codes` is the share of VQ codes that change with a small random tokenizer.

Binary cells are read as plain Python only: the `numpy` and `torch` formats of datasets 5.2 cut zero bytes off the end
of a cell, without a word.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from datasets import Array2D, Dataset, Features, List, Value, disable_progress_bars, load_dataset
from transformers import HfArgumentParser

from neurolm_hf import NeuroLMVQConfig, NeuroLMVQModel
from neurolm_hf.processing_neurolm import EEGFeatureExtractor
from neurolm_hf.simulation import simulate_recordings


RATE = 200
BATCH = 16
TYPES = ("float32", "float16", "int16, scale a row", "int16, scale a channel")
LAYOUTS = ("flat list", "Array2D", "nested lists", "binary")
FORMATS = (None, "numpy", "torch")
COMPRESSIONS = ("none", "snappy", "zstd", "zstd, split bytes")


@dataclass
class BenchmarkArguments:
    """What to measure on."""

    recordings: Path = field(
        default=Path(__file__).resolve().parents[2] / "shared" / "recordings" / "eegmat",
        metadata={"help": "EEGMAT's folder; simulated recordings where it does not exist."},
    )
    files: int = field(default=4, metadata={"help": "How many files to cut."})


class Window(NamedTuple):
    """float32 (channels, samples) in units of 100 uV, and the ids of the channels."""

    signal: np.ndarray
    channel_ids: np.ndarray


class Stored(NamedTuple):
    """The windows in one type and layout: a dataset, and how to get float32 (channels, samples) from a row."""

    dataset: Dataset
    decode: Callable[[dict[str, Any]], np.ndarray]


def read_windows(folder: Path, files: int, channels: Iterable[int], seconds: Callable[[int], int]) -> list[Window]:
    """Consecutive windows of the first files: of `channels` (cycled) rows and `seconds(channels)` seconds each.

    Recordings of 19 channels give up to 76 by being repeated, shifted in time so that no window holds a row twice.
    """
    windows = []
    counts = iter(channels)
    for path in sorted(folder.glob("*.edf"))[:files]:
        (prepared,) = EEGFeatureExtractor().prepare(path, unknown_channels="drop")
        whole, start = prepared.values, 0
        values = np.concatenate([np.roll(whole, turn * whole.shape[1] // 4, axis=1) for turn in range(4)])
        while True:
            n = next(counts)
            length = RATE * seconds(n)
            if start + length > values.shape[1]:
                break
            windows.append(Window(np.ascontiguousarray(values[:n, start : start + length]), np.arange(n)))
            start += length
    return windows


def encode_numbers(signal: np.ndarray, kind: str) -> tuple[np.ndarray, list[float]]:
    """The stored numbers (channels, samples) and the scales they are multiplied by when read."""
    if not kind.startswith("int16"):
        return signal.astype(kind), [1.0]
    peaks = np.abs(signal).max(axis=1 if "channel" in kind else None, keepdims=True)
    scales = (np.maximum(peaks, 1e-9) / 32767).astype(np.float32)
    return np.rint(signal / scales).astype(np.int16), scales.ravel().tolist()


def store(windows: list[Window], kind: str, layout: str) -> Stored:
    """The windows as a dataset in memory."""
    number = kind.split(",")[0]
    features: dict[str, Any] = {"channels": Value("int32"), "scales": List(Value("float32"))}
    features["signal"] = {
        "flat list": List(Value(number)),
        "Array2D": Array2D((None, RATE), number),
        "nested lists": List(List(Value(number))),
        "binary": Value("binary"),
    }[layout]

    def cell(numbers: np.ndarray) -> Any:
        if layout == "binary":
            return numbers.tobytes()
        if layout == "nested lists":
            return list(numbers)
        return numbers.ravel() if layout == "flat list" else numbers.reshape(-1, RATE)

    def decode(row: dict[str, Any]) -> np.ndarray:
        stored = row["signal"]
        numbers = np.frombuffer(stored, number) if layout == "binary" else np.asarray(stored, np.float32)
        signal = numbers.reshape(int(row["channels"]), -1).astype(np.float32, copy=False)
        return signal * np.asarray(row["scales"], np.float32)[:, None] if number == "int16" else signal

    encoded = [encode_numbers(window.signal, kind) for window in windows]
    columns = {
        "channels": [len(numbers) for numbers, _ in encoded],
        "scales": [scales for _, scales in encoded],
        "signal": [cell(numbers) for numbers, _ in encoded],
    }
    return Stored(Dataset.from_dict(columns, features=Features(features)), decode)


def write(stored: Stored, compression: str, path: Path) -> None:
    """One Parquet file of row groups of 64 rows."""
    split = compression.endswith("split bytes")
    signal = next(name for name in _leaf_columns(stored) if name.startswith("signal"))
    pq.write_table(
        stored.dataset.data.table,
        path,
        row_group_size=64,
        compression=compression.split(",")[0],
        use_dictionary=False,
        use_byte_stream_split=[signal] if split else False,
    )


def _leaf_columns(stored: Stored) -> list[str]:
    """Parquet's names of the columns, lists written as `signal.list.element`."""
    with tempfile.TemporaryFile() as file:
        pq.write_table(stored.dataset.data.table.slice(0, 1), file)
        file.seek(0)
        schema = pq.ParquetFile(file).schema
        return [schema.column(index).path for index in range(len(schema.names))]


def rows_a_second(rows: Iterable[dict[str, Any]], decode: Callable[[dict[str, Any]], np.ndarray]) -> float:
    """Rows read and decoded in a second."""
    start, count = time.perf_counter(), 0
    for row in rows:
        decode(row)
        count += 1
    return count / (time.perf_counter() - start)


def at_random(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Every row once, in batches by shuffled index, as the Trainer's loader asks for them."""
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    for start in range(0, len(order), BATCH):
        yield from dataset.__getitems__(order[start : start + BATCH])


@torch.no_grad()
def codes(model: NeuroLMVQModel, signal: np.ndarray, channel_ids: np.ndarray) -> torch.Tensor:
    """VQ codes of one window, int64 (patches,)."""
    segment = EEGFeatureExtractor().to_segment(signal, channel_ids)
    batch = EEGFeatureExtractor().collate([[segment]], return_tensors="pt")
    names = ("input_values", "eeg_channel_ids", "eeg_time_ids", "eeg_attention_mask")
    return model.encode(**{name: batch[name] for name in names}).codes[0]


def print_errors(windows: list[Window]) -> None:
    """A line a number type."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "decoder_num_hidden_layers": 1}
    model = NeuroLMVQModel(NeuroLMVQConfig(**sizes, codebook_size=1024, codebook_dim=32)).eval()
    model.encoder.quantizer.initialized.fill_(True)
    print(f"{'type':<24}{'largest uV':>12}{'relative':>10}{'codes':>8}")
    for kind in TYPES:
        largest, error, power, changed, patches = 0.0, 0.0, 0.0, 0, 0
        for signal, ids in windows:
            numbers, scales = encode_numbers(signal, kind)
            read = numbers.astype(np.float32) * np.asarray(scales, np.float32)[:, None]
            largest = max(largest, float(np.abs(read - signal).max()) * 100)
            error += float(np.square(read - signal, dtype=np.float64).sum())
            power += float(np.square(signal, dtype=np.float64).sum())
            before, after = codes(model, signal, ids), codes(model, read, ids)
            changed, patches = changed + int((before != after).sum()), patches + len(before)
        print(f"{kind:<24}{largest:>12.2g}{np.sqrt(error / power):>10.1e}{changed / patches:>8.3%}")


def print_speeds(windows: list[Window], kind: str, layout: str, folder: Path) -> None:
    """A line: reading at random, then size and streaming for each compression."""
    stored = store(windows, kind, layout)
    path = folder / "plain.arrow"
    stored.dataset.save_to_disk(path)  # read from disk, memory-mapped, as after `load_dataset`
    dataset = Dataset.load_from_disk(path)
    formats = (None,) if layout == "binary" else FORMATS
    line = f"{kind:<24}{layout:<14}"
    for name in FORMATS:
        readable = name in formats
        speed = rows_a_second(at_random(dataset.with_format(name)), stored.decode) if readable else np.nan
        line += f"{speed:>8.0f}"
    hours = sum(window.signal.size for window in windows) / RATE / 3600 / 19
    for compression in COMPRESSIONS:
        if compression.endswith("split bytes") and layout == "binary":
            continue  # it splits numbers of fixed width only
        file = folder / "rows.parquet"
        write(stored, compression, file)
        stream = load_dataset("parquet", data_files=str(file), split="train", streaming=True)
        speed = rows_a_second(stream if layout == "binary" else stream.with_format("numpy"), stored.decode)
        line += f"{file.stat().st_size / hours / 1e6:>9.1f}{speed:>7.0f}"
    print(line, flush=True)


def main(arguments: BenchmarkArguments) -> None:
    """Print errors, then sizes and speeds, for either set of windows."""
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.recordings
        if not folder.is_dir():
            folder = Path(name) / "simulated"
            simulate_recordings(folder, subjects=2)
        montages = np.random.default_rng(0).choice([3, 8, 16, 19, 19, 21, 23, 32, 62, 64], 10_000)
        sets = {
            "EEGMAT: 4 s of 19 channels": read_windows(folder, arguments.files, iter(lambda: 19, 0), lambda _: 4),
            "corpus: 3 to 64 channels": read_windows(
                folder, arguments.files * 2, map(int, montages), lambda n: min(16, 1024 // n)
            ),
        }
        for title, windows in sets.items():
            print(f"\n{title}, {len(windows)} windows")
            print_errors(windows)
            print(
                "rows/s at random (plain, numpy, torch); then MB an hour of 19 channels and rows/s streamed, each by"
            )
            print("; ".join(COMPRESSIONS))
            for kind in TYPES:
                for layout in LAYOUTS:
                    print_speeds(windows, kind, layout, Path(name))


if __name__ == "__main__":
    parser = HfArgumentParser(BenchmarkArguments, description=__doc__)  # type: ignore[arg-type]  # theirs is opaque
    main(*parser.parse_args_into_dataclasses())
