"""The band-power baseline: features against known signals, learning, errors."""

import sys

import numpy as np
import pytest

from neurolm_hf.baseline import BANDS_HZ, band_power_features, baseline_probabilities
from neurolm_hf.metrics import auroc, balanced_accuracy
from neurolm_hf.simulation import CONDITIONS, simulate_signal


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def simulated_windows(subjects):
    """Fifteen 4-s windows a recording at 500 Hz, unfiltered: windows (n, 19, 2000), labels (n,)"""
    windows, labels = [], []
    for subject in subjects:
        for label, condition in enumerate(CONDITIONS):
            signal = simulate_signal(subject, condition, seconds=60)[:19]
            windows.append(signal.reshape(19, 15, 2000).swapaxes(0, 1))
            labels += [label] * 15
    return np.concatenate(windows).astype(np.float32), np.array(labels)


@pytest.mark.parametrize(("hz", "band"), [(2, 0), (6, 1), (10, 2), (20, 3), (40, 4)])
def test_a_sine_shows_in_its_band_and_channel(hz, band):
    windows = 0.01 * noise(3, 2, 800)
    windows[:, 1] += np.sin(2 * np.pi * hz * np.arange(800) / 200)
    features = band_power_features(windows, 200).reshape(3, 2, len(BANDS_HZ))
    assert features.dtype == np.float64
    assert (features[:, 1].argmax(axis=-1) == band).all()
    assert (features[:, 1, band] > features[:, 0, band] + 3).all()


def test_a_gain_shifts_every_feature_by_its_log():
    windows = noise(4, 3, 800)
    shift = band_power_features(10 * windows, 200) - band_power_features(windows, 200)
    np.testing.assert_allclose(shift, 2 * np.log(10), rtol=1e-4)


def test_flat_channels_give_finite_features():
    assert np.isfinite(band_power_features(np.zeros((2, 3, 800), np.float32), 200)).all()


def test_bad_windows():
    for windows, rate, message in (
        (noise(3, 800), 200, r"\(windows, channels, samples\), got shape \(3, 800\)"),
        (noise(3, 2, 800), 90, "more than 90 samples a second"),
        (noise(3, 2, 100), 200, "a second at least, got 100 samples"),
        (np.where(np.arange(3)[:, None, None] == 1, np.nan, noise(3, 2, 800)), 200, "Window 1 holds values"),
    ):
        with pytest.raises(ValueError, match=message):
            band_power_features(windows, rate)


def test_bad_training_sets():
    windows = noise(4, 2, 400)
    for labels in ([0, 0, 0, 0], [0, 0, 2, 2], [1, 1, 2, 2]):
        with pytest.raises(ValueError, match="two or more classes, from 0 up"):
            baseline_probabilities(windows, np.array(labels), windows, sampling_rate=200)
    with pytest.raises(ValueError, match="2 channels to train on, but 3"):
        baseline_probabilities(windows, np.array([0, 1, 0, 1]), noise(4, 3, 400), sampling_rate=200)


def test_probabilities_of_three_classes():
    windows = 0.1 * noise(60, 1, 400)
    labels = np.arange(60) % 3
    windows[:, 0] += np.sin(2 * np.pi * np.array([6, 10, 20])[labels, None] * np.arange(400) / 200)
    probabilities = baseline_probabilities(windows[:30], labels[:30], windows[30:], sampling_rate=200)
    assert probabilities.shape == (30, 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert balanced_accuracy(labels[30:], probabilities.argmax(axis=1)) == 1


def test_simulated_workload_is_learnable_on_held_out_subjects_yet_not_trivial():
    train, train_labels = simulated_windows(range(10))
    test, test_labels = simulated_windows(range(10, 14))
    probabilities = baseline_probabilities(train, train_labels, test, sampling_rate=500)
    assert auroc(test_labels, probabilities[:, 1]) > 0.97
    assert balanced_accuracy(test_labels, probabilities.argmax(axis=1)) > 0.9
    loudness = np.log(test.std(axis=(1, 2)))
    assert 0.2 < auroc(test_labels, loudness) < 0.8


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ImportError, match=r'scikit-learn.*pip install "neurolm_hf\[demo\]"'):
        baseline_probabilities(noise(2, 1, 400), np.array([0, 1]), noise(2, 1, 400), sampling_rate=200)
