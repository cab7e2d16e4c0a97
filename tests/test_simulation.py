"""Simulated recordings: files like EEGMAT's, the same for the same seed, conditions that differ where they should."""

import sys

import mne
import numpy as np
import pytest
from scipy.signal import welch

from neurolm_hf.simulation import CHANNEL_NAMES, CONDITIONS, draw_traits, simulate_recordings, simulate_signal


SUBJECTS = range(6)


def band_power(signal, low, high):
    frequencies, power = welch(signal, 500, nperseg=1000)
    return power[..., (frequencies >= low) & (frequencies < high)].mean(axis=-1)


def channel(name):
    return CHANNEL_NAMES.index(f"EEG {name}")


@pytest.fixture(scope="module")
def signals():
    """(condition, subject, channel, sample)"""
    return np.stack([[simulate_signal(subject, condition) for subject in SUBJECTS] for condition in CONDITIONS])


def test_files_read_like_those_of_eegmat(tmp_path):
    paths = simulate_recordings(tmp_path, subjects=2, seconds=5)
    assert [path.name for path in paths] == [
        "Subject00_1.edf",
        "Subject00_2.edf",
        "Subject01_1.edf",
        "Subject01_2.edf",
    ]
    raw = mne.io.read_raw_edf(paths[3], preload=True, verbose="error")
    assert tuple(raw.ch_names) == CHANNEL_NAMES
    assert raw.info["sfreq"] == 500
    assert raw.n_times == 2500
    assert set(raw._orig_units.values()) == {"µV"}
    written = simulate_signal(1, "arithmetic", seconds=5)
    np.testing.assert_allclose(raw.get_data() * 1e6, written, atol=0.02)  # 16 bits over 2 mV


def test_a_recording_depends_on_seed_subject_and_condition_only(tmp_path):
    two = simulate_recordings(tmp_path / "two", subjects=2, seconds=4, seed=5)
    three = simulate_recordings(tmp_path / "three", subjects=3, seconds=4, seed=5)
    for path, same in zip(two, three, strict=False):
        assert path.read_bytes() == same.read_bytes()
    recordings = [path.read_bytes() for path in three]
    recordings += [path.read_bytes() for path in simulate_recordings(tmp_path / "six", subjects=3, seconds=4, seed=6)]
    assert len(set(recordings)) == 12


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "Subject01_2.edf").write_text("mine")
    with pytest.raises(FileExistsError, match=r"Subject01_2\.edf exists already"):
        simulate_recordings(tmp_path, subjects=2, seconds=4)
    assert [path.name for path in tmp_path.iterdir()] == ["Subject01_2.edf"]


def test_wrong_arguments(tmp_path):
    for subjects in (0, 101):
        with pytest.raises(ValueError, match="between 1 and 100"):
            simulate_recordings(tmp_path, subjects=subjects)
    with pytest.raises(ValueError, match="seconds must be at least 1"):
        simulate_recordings(tmp_path, subjects=1, seconds=0)
    with pytest.raises(ValueError, match="one of rest, arithmetic, got 'sleep'"):
        simulate_signal(0, "sleep")


def test_missing_edfio_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "edfio", None)
    with pytest.raises(ImportError, match=r'pip install "neurolm_hf\[demo\]"'):
        simulate_recordings(tmp_path, subjects=1, seconds=4)


def test_amplitudes_are_those_of_scalp_eeg(signals):
    scalp = signals[:, :, :19]
    rms = scalp.std(axis=-1)
    assert 5 < rms.min() < rms.max() < 50
    assert np.abs(scalp).max() < 500
    heart = signals[:, :, CHANNEL_NAMES.index("ECG ECG")]
    assert (heart.max(axis=-1) > 400).all()


def test_background_falls_with_frequency_and_hum_sits_at_50_hz(signals):
    power = [band_power(signals[:, :, :19], low, high).mean() for low, high in ((1, 4), (14, 30), (30, 45))]
    assert power[0] > 5 * power[1] > 10 * power[2]
    assert band_power(signals[:, :, :19], 49.5, 50.5).mean() > 1.5 * power[2]


def test_neighbours_correlate_more_than_distant_electrodes(signals):
    correlations = np.mean([np.corrcoef(recording[:19]) for recording in signals[0]], axis=0)
    assert correlations[channel("F3"), channel("Fz")] > 0.5
    assert correlations[channel("F3"), channel("Fz")] > correlations[channel("F3"), channel("O2")] + 0.3
    assert abs(correlations[channel("Fp1"), channel("O1")]) < 0.4


def test_blinks_are_frontal(signals):
    peaks = np.abs(signals[:, :, :19]).max(axis=-1).mean(axis=(0, 1))
    assert peaks[channel("Fp1")] > 1.5 * peaks[channel("O1")]


def test_workload_weakens_alpha_and_strengthens_theta_in_every_subject(signals):
    rest, work = signals
    posterior, midline = channel("O1"), channel("Fz")
    assert (band_power(work, 8, 13)[:, posterior] < 0.7 * band_power(rest, 8, 13)[:, posterior]).all()
    assert (band_power(work, 5, 7)[:, midline] > 1.3 * band_power(rest, 5, 7)[:, midline]).all()
    assert band_power(work, 15, 25)[:, midline].mean() > band_power(rest, 15, 25)[:, midline].mean()


def test_neither_offset_nor_gain_tells_the_conditions_apart(signals):
    rest, work = signals
    assert np.abs(signals[:, :, :19].mean(axis=-1)).max() < 3
    for low, high in ((0.5, 4), (30, 45)):
        change = np.log(band_power(work, low, high)[:, :19].mean(axis=-1))
        change -= np.log(band_power(rest, low, high)[:, :19].mean(axis=-1))
        assert change.min() < 0.1
        assert change.max() > -0.1
        assert abs(change.mean()) < 0.25


def test_subjects_differ(signals):
    alpha = band_power(signals[0], 8, 13)[:, channel("O1")]
    assert alpha.max() > 1.5 * alpha.min()
    frequencies = [draw_traits(subject).alpha_hz for subject in range(20)]
    assert max(frequencies) - min(frequencies) > 1.5
    assert draw_traits(3) == draw_traits(3) != draw_traits(3, seed=1)
