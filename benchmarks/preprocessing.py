#!/usr/bin/env python
"""Band-pass, notch and resampling in blocks against MNE's on the whole recording.

The same recording goes through MNE's `filter`, `notch_filter` and `resample` and through our `BlockFilter`, in turn,
in one process with one thread. Prints hours of EEG (all its channels) a minute, their ratio, the largest difference in
standard deviations of the signal, and how much memory each takes beside its input and output, measured in a process of
its own.
"""

import os


os.environ["OMP_NUM_THREADS"] = "1"

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

import mne
import numpy as np
from transformers import HfArgumentParser

from neurolm_hf.filtering_neurolm import BlockFilter


LOW, HIGH, NOTCH, TARGET_RATE = 0.1, 75.0, 50.0, 200.0
EEGMAT = Path(__file__).resolve().parents[2] / "shared" / "recordings" / "eegmat" / "Subject00_1.edf"


# float64 (channels, samples) in microvolts, and its rate in Hz.
Recording: TypeAlias = tuple[np.ndarray, float]


@dataclass
class BenchmarkArguments:
    """What to measure."""

    minutes: float = field(default=20.0, metadata={"help": "Length of the made-up recordings."})
    channels: int = field(default=21, metadata={"help": "Channels of the made-up recordings."})
    repeats: int = field(default=5, metadata={"help": "How often each is measured; the median is printed."})


def make_recording(rate: float, minutes: float, channels: int) -> Recording:
    """Noise of 20 microvolts with a spectrum like that of EEG (1/f above 1 Hz)."""
    n_samples = round(rate * minutes * 60)
    spectrum = np.fft.rfft(np.random.default_rng(0).normal(size=(channels, n_samples)))
    spectrum /= np.maximum(np.fft.rfftfreq(n_samples, 1 / rate), 1.0)
    noise = np.fft.irfft(spectrum, n_samples)
    return 20 * noise / noise.std(), rate


def read_eegmat() -> Recording:
    """A real recording, in microvolts."""
    raw = mne.io.read_raw(EEGMAT, verbose="ERROR").pick("eeg")
    return raw.get_data() * 1e6, raw.info["sfreq"]


def by_mne(data: np.ndarray, rate: float) -> np.ndarray:
    """MNE's steps, on a copy of the data as a file would give it."""
    info = mne.create_info(len(data), rate, "eeg", verbose="ERROR")
    raw = mne.io.RawArray(data.copy(), info, verbose="ERROR")
    raw.filter(LOW, HIGH, verbose="ERROR")
    raw.notch_filter(NOTCH, verbose="ERROR")
    raw.resample(TARGET_RATE, verbose="ERROR")
    return raw.get_data()


def by_blocks(data: np.ndarray, rate: float) -> np.ndarray:
    """Ours, read minute by minute into one array."""
    filtered = BlockFilter(lambda start, stop: data[:, start:stop], data.shape[1], rate, LOW, HIGH, NOTCH, TARGET_RATE)
    output = np.empty((len(data), filtered.n_out))
    for start in range(0, filtered.n_out, 12_000):
        stop = min(start + 12_000, filtered.n_out)
        output[:, start:stop] = filtered.read(start, stop)
    return output


def seconds(method: Callable[[np.ndarray, float], np.ndarray], data: np.ndarray, rate: float) -> float:
    """Time of one run."""
    start = time.perf_counter()
    method(data, rate)
    return time.perf_counter() - start


def grown_megabytes(method: Callable[[np.ndarray, float], np.ndarray], recording: Callable[[], Recording]) -> float:
    """By how much a run raises the peak memory of this process above what input and output take."""
    data, rate = recording()
    method(data[:, : round(60 * rate)], rate)  # loads libraries
    rest = 8 * len(data) * round(data.shape[1] / rate * TARGET_RATE) / 2**20
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # forget the peak
    before = _resident("VmRSS")
    method(data, rate)
    return _resident("VmHWM") - before - rest


def _resident(kind: str) -> float:
    """Megabytes by Linux's own count."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith(kind))


def measure(name: str, recording: Callable[[], Recording], repeats: int) -> None:
    """Print a line."""
    data, rate = recording()
    expected = by_mne(data, rate)
    difference = np.abs(by_blocks(data, rate) - expected).max() / expected.std()
    pairs = [(seconds(by_mne, data, rate), seconds(by_blocks, data, rate)) for _ in range(repeats)]
    medians = [float(np.median(column)) for column in zip(*pairs, strict=True)]
    speeds = [data.shape[1] / rate / 60 / median for median in medians]
    memory = []
    for method in (by_mne, by_blocks):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            memory.append(pool.apply(grown_megabytes, (method, recording)))
    print(
        f"{name:<24}{len(data):>9}{data.shape[1] / rate / 60:>9.1f}{speeds[0]:>11.1f}{speeds[1]:>12.1f}"
        f"{speeds[1] / speeds[0]:>7.2f}{difference:>12.1e}{memory[0]:>9.0f}{memory[1]:>9.0f}"
    )


def main(arguments: BenchmarkArguments) -> None:
    """Print a line a recording."""
    print(f"{'recording':<24}{'channels':>9}{'minutes':>9}{'h/min MNE':>11}{'h/min ours':>12}{'ratio':>7}", end="")
    print(f"{'difference':>12}{'MB MNE':>9}{'MB ours':>9}")
    for rate in (500.0, 256.0):
        recording = partial(make_recording, rate, arguments.minutes, arguments.channels)
        measure(f"noise, {rate:g} Hz", recording, arguments.repeats)
    if EEGMAT.exists():
        measure(EEGMAT.name, read_eegmat, arguments.repeats)


if __name__ == "__main__":
    parser = HfArgumentParser(BenchmarkArguments, description=__doc__)  # type: ignore[arg-type]  # theirs is opaque
    main(*parser.parse_args_into_dataclasses())
