"""Recordings for the tests: the real ones beside the repository, and EDF files written field by field."""

from pathlib import Path

import numpy as np
import pytest


SHARED = Path(__file__).resolve().parents[2] / "shared"
RECORDINGS = SHARED / "recordings"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
needs_recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="needs ../shared/recordings")


def make_eeg(channels=3, seconds=4.0, rate=200, seed=0):
    """Noise of 20 microvolts, (channels, samples)."""
    return np.random.default_rng(seed).normal(0, 20, (channels, round(seconds * rate)))


def write_edf(path, names=("EEG Fp1", "EEG Fp2"), seconds=4, rate=100, unit="uV", records=None, scale=1.0):
    """An EDF file from its definition, one record a second, of 20 microvolts of noise times `scale`."""
    n = len(names)

    def fields(values, width):
        return b"".join(str(value).ljust(width)[:width].encode("latin1") for value in values)

    head = fields(["0"], 8) + fields(["X X X X", "Startdate X X X X"], 80) + b"01.01.2000.00.00"
    head += fields([256 * (n + 1)], 8) + fields([""], 44) + fields([seconds if records is None else records, 1], 8)
    head += fields([n], 4) + fields(names, 16) + fields([""] * n, 80) + fields([unit] * n, 8)
    for value in (-3276.8, 3276.7, -32768, 32767):
        head += fields([value] * n, 8)
    head += fields([""] * n, 80) + fields([rate] * n, 8) + fields([""] * n, 32)
    data = np.round(make_eeg(n, seconds, rate) * 10 * scale).astype("<i2").reshape(n, seconds, rate)
    path.write_bytes(head + data.transpose(1, 0, 2).tobytes())
    return path
