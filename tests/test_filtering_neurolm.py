"""Filters and resampling in blocks: the same numbers as MNE's on the whole recording."""

import subprocess
import sys

import mne
import numpy as np
import pytest
from recording_files import RECORDINGS, needs_recordings

from neurolm_hf import filtering_neurolm
from neurolm_hf.filtering_neurolm import BlockFilter, filter_length


BAND = (0.1, 75.0)


def make_signal(n_samples, rate, channels=2, seed=0):
    """EEG-like noise (1/f above 1 Hz) of standard deviation 1 on an offset of 1000 and a drift of 100."""
    noise = np.fft.rfft(np.random.default_rng(seed).normal(size=(channels, n_samples)))
    noise /= np.maximum(np.fft.rfftfreq(n_samples, 1 / rate), 1.0)
    noise = np.fft.irfft(noise, n_samples)
    return noise / noise.std(axis=1, keepdims=True) + 1000 + 100 * np.arange(n_samples) / n_samples


def by_mne(data, rate, low, high, notch, target_rate, boundaries=()):
    raw = mne.io.RawArray(data.copy(), mne.create_info(len(data), rate, "eeg"), verbose="error")
    if boundaries:
        raw.set_annotations(mne.Annotations(*zip(*boundaries, strict=True)), verbose="error")
    if low is not None or high is not None:
        raw.filter(low, high, verbose="error")
    if notch is not None:
        raw.notch_filter(notch, verbose="error")
    if rate != target_rate:
        raw.resample(target_rate, verbose="error")
    return raw.get_data()


def in_blocks(data, *arguments, **options):
    """A `BlockFilter` of an array that takes the smallest blocks its filters allow."""
    return BlockFilter(lambda start, stop: data[:, start:stop], data.shape[1], *arguments, **{"block": 1, **options})


@pytest.fixture
def no_room(monkeypatch):
    """As for a recording too long for memory."""
    monkeypatch.setattr(filtering_neurolm, "IN_MEMORY_BYTES", 0)


def error(filtered, expected):
    """The largest difference, in standard deviations."""
    ours = filtered.read(0, filtered.n_out)
    assert ours.shape == expected.shape
    assert ours.dtype == np.float64
    return np.abs(ours - expected).max() / expected.std()


@pytest.mark.parametrize("rate", [210, 250, 256, 500, 512, 999.4, 1000])
@pytest.mark.parametrize("n_samples", [400_009, 2**18 - 201])
def test_many_blocks_agree_with_mne(rate, n_samples, no_room):
    data = make_signal(n_samples, rate)
    filtered = in_blocks(data, rate, *BAND, 50, 200)
    assert filtered.n_out >= 5 * filtered.block_length
    # of blocks as small as these; half of it of those used
    assert error(filtered, by_mne(data, rate, *BAND, 50, 200)) < 3e-6


@pytest.mark.parametrize(
    ("rate", "low", "high", "notch"), [(200, *BAND, 50), (200, None, None, 50), (200, 0.1, None, None)]
)
def test_without_resampling_the_result_is_exact(rate, low, high, notch):
    data = make_signal(60_013, rate)
    filtered = in_blocks(data, rate, low, high, notch, 200)
    assert filtered.n_out > 2 * filtered.block_length
    assert error(filtered, by_mne(data, rate, low, high, notch, 200)) < 1e-9


@pytest.mark.parametrize("rate", [100, 128, 160, 500])
@pytest.mark.parametrize("n_samples", [601, 5003, 20_001, 32_768, 65_537])
def test_short_recordings_agree_exactly(rate, n_samples):
    """Shorter than the filter, as long as a power of two, primes."""
    data = make_signal(n_samples, rate)
    high, notch = 75 if rate > 150 else None, 50 if rate > 102 else None
    filtered = BlockFilter(lambda start, stop: data[:, start:stop], n_samples, rate, 0.1, high, notch, 200)
    expected = by_mne(data, rate, 0.1, high, notch, 200)
    assert error(filtered, expected) < 1e-9
    assert filtered.block_length == filtered.n_out


@pytest.mark.parametrize(("rate", "tolerance"), [(160, 1e-5), (128, 5e-3), (100, 5e-3)])
def test_without_a_low_pass_long_recordings_agree_less(rate, tolerance, no_room):
    """What lies at the Nyquist frequency itself is felt over the whole recording."""
    data = make_signal(200_003, rate)
    high, notch = 75 if rate > 150 else None, 50 if rate > 102 else None
    filtered = in_blocks(data, rate, 0.1, high, notch, 200)
    assert filtered.n_out > 5 * filtered.block_length
    assert error(filtered, by_mne(data, rate, 0.1, high, notch, 200)) < tolerance


def test_exactly_one_and_two_blocks(no_room):
    size = in_blocks(make_signal(10, 500), 500, *BAND, 50, 200)._resampler.size
    for n_samples in (size, 2 * size, 2 * size + 1):
        data = make_signal(n_samples, 500)
        assert error(in_blocks(data, 500, *BAND, 50, 200), by_mne(data, 500, *BAND, 50, 200)) < 1e-6


BOUNDARIES = [
    [(300.0, 0.0, "EDGE boundary")],
    [(61.3, 0.0, "edge"), (500.002, 0.0, "edge"), (501.0, 0.0, "edge"), (800.0, 0.0, "edge")],
    [(0.0, 12.0, "BAD_ACQ_SKIP"), (400.0, 30.0, "bad_acq_skip"), (1590.0, 500.0, "BAD_ACQ_SKIP")],
]


@pytest.mark.parametrize("boundaries", BOUNDARIES)
@pytest.mark.parametrize("rate", [250, 200])
def test_parts_are_filtered_apart(boundaries, rate, no_room):
    data = make_signal(400_009, rate)
    # a jump at each joint, as between recordings; where nothing was recorded files have zeros
    for onset, duration, _ in boundaries:
        data[:, round(onset * rate) :] += 50
        data[:, round(onset * rate) : round((onset + duration) * rate)] = 0
    filtered = in_blocks(data, rate, *BAND, 50, 200, boundaries)
    assert filtered.n_out >= 5 * filtered.block_length
    assert error(filtered, by_mne(data, rate, *BAND, 50, 200, boundaries)) < (1e-9 if rate == 200 else 1e-6)


def test_reads_in_any_order_are_the_same(no_room):
    data = make_signal(200_003, 250)
    whole = in_blocks(data, 250, *BAND, 50, 200).read(0, 160_002)
    filtered = in_blocks(data, 250, *BAND, 50, 200)
    for start in np.random.default_rng(0).permutation(np.arange(0, 159_000, 7_919)):
        np.testing.assert_array_equal(filtered.read(start, start + 1_000), whole[:, start : start + 1_000])
    np.testing.assert_array_equal(filtered.read(159_999, 160_002), whole[:, -3:])
    for start, stop in ((-1, 5), (5, 5), (0, 160_003)):
        with pytest.raises(ValueError, match="not within 0 to 160002"):
            filtered.read(start, stop)


def test_neighbouring_windows_are_filtered_once(no_room):
    data, reads = make_signal(200_003, 250), []

    def read(start, stop):
        reads.append(stop - start)
        return data[:, start:stop]

    filtered = BlockFilter(read, 200_003, 250, *BAND, 50, 200)
    for start in range(80_000, 88_000, 800):
        filtered.read(start, start + 800)
    assert 0 < sum(reads) < 2 * filtered._resampler.size + 10


def test_nothing_to_do_gives_the_input():
    data = make_signal(1000, 200)
    filtered = in_blocks(data, 200, None, None, None, 200)
    np.testing.assert_array_equal(filtered.read(3, 900), data[:, 3:900])
    assert filter_length(200, None, None) == 1
    assert filter_length(200, *BAND) == 6601


@needs_recordings
def test_a_real_recording_agrees_closely(monkeypatch):
    raw = mne.io.read_raw(RECORDINGS / "eegmat" / "Subject00_1.edf", verbose="error").pick("eeg")
    data = np.tile(raw.get_data() * 1e6, (1, 3))
    monkeypatch.setattr(filtering_neurolm, "IN_MEMORY_BYTES", 0)
    filtered = in_blocks(data, 500, *BAND, 50, 200)
    assert filtered.n_out > 5 * filtered.block_length
    assert error(filtered, by_mne(data, 500, *BAND, 50, 200)) < 1e-6


READ_WINDOWS = """
import resource, sys
import numpy as np
from neurolm_hf.processing_neurolm import EEGFeatureExtractor

prepared = EEGFeatureExtractor(notch_frequency=50).prepare(sys.argv[1])[0]
for start in np.linspace(0, prepared.n_samples - 2000, 50).astype(int):
    assert np.isfinite(prepared.read(start, start + 2000)).all()
print(prepared.n_samples, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def write_long_edf(path, seconds, rate=256, names=("Fp1", "Fp2", "C3", "C4")):
    """Noise in records of a second, written a minute at a time."""
    n = len(names)

    def fields(values, width):
        return b"".join(str(value).ljust(width)[:width].encode() for value in values)

    head = fields(["0"], 8) + fields(["X X X X", "Startdate X X X X"], 80) + b"01.01.2000.00.00"
    head += fields([256 * (n + 1)], 8) + fields([""], 44) + fields([seconds, 1], 8) + fields([n], 4)
    head += fields(names, 16) + fields([""] * n, 80) + fields(["uV"] * n, 8)
    for value in (-3276.8, 3276.7, -32768, 32767):
        head += fields([value] * n, 8)
    head += fields([""] * n, 80) + fields([rate] * n, 8) + fields([""] * n, 32)
    random = np.random.default_rng(0)
    with open(path, "wb") as file:
        file.write(head)
        for _ in range(seconds // 60):
            file.write(random.normal(0, 200, (60, n, rate)).astype("<i2").tobytes())
    return path


@pytest.mark.slow
def test_a_day_takes_no_more_memory_than_ten_minutes(tmp_path):
    """As float64 a day of four channels would take 700 MB. What we keep of it at most is well below 100."""
    peaks = {}
    for seconds in (600, 3600 * 24):
        path = write_long_edf(tmp_path / f"{seconds}.edf", seconds)
        command = [sys.executable, "-c", READ_WINDOWS, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        path.unlink()
        assert done.returncode == 0, done.stderr
        n_samples, peaks[seconds] = map(int, done.stdout.split())
        assert n_samples == seconds * 200
    assert peaks[3600 * 24] < peaks[600] + 100, peaks
