"""The plain baseline a model is held against: log band power with logistic regression."""

import numpy as np
from numpy.typing import NDArray
from scipy.signal import welch


BANDS_HZ = {"delta": (1, 4), "theta": (4, 8), "alpha": (8, 13), "beta": (13, 30), "gamma": (30, 45)}

# Strong, for there are more features than subjects; as good as weaker ones on EEGMAT, better on simulated recordings.
REGULARISATION = 0.01


def band_power_features(windows: NDArray[np.floating], sampling_rate: float) -> NDArray[np.float64]:
    """Log band power of each channel (Welch, one-second segments).

    Args:
        windows: EEG (windows, channels, samples), of at least one second, in any unit.
        sampling_rate: samples a second, above 90 Hz.

    Returns:
        Features (windows, channels x 5): the bands of `BANDS_HZ` of the first channel, then of the second, and so on.

    Raises:
        ValueError: the array is not three-dimensional, shorter than a second, sampled too slowly, or holds values that
            are not finite.
    """
    if windows.ndim != 3:
        raise ValueError(f"windows must be (windows, channels, samples), got shape {windows.shape}.")
    if sampling_rate <= 90:
        raise ValueError(f"The bands reach 45 Hz, which needs more than 90 samples a second, got {sampling_rate}.")
    if windows.shape[-1] < sampling_rate:
        raise ValueError(f"A window must last a second at least, got {windows.shape[-1]} samples.")
    if not np.isfinite(windows).all():
        bad = int(np.flatnonzero(~np.isfinite(windows).all(axis=(1, 2)))[0])
        raise ValueError(f"Window {bad} holds values that are not finite.")
    frequencies, power = welch(windows.astype(np.float64), fs=sampling_rate, nperseg=int(sampling_rate))
    band_powers = [
        power[..., (frequencies >= low) & (frequencies < high)].mean(axis=-1) for low, high in BANDS_HZ.values()
    ]
    tiny = np.finfo(np.float64).tiny  # a flat channel has no power at all
    features: NDArray[np.float64] = np.log(np.maximum(np.stack(band_powers, axis=-1), tiny))
    return features.reshape(len(windows), -1)


def baseline_probabilities(
    train_windows: NDArray[np.floating],
    train_labels: NDArray[np.int64],
    test_windows: NDArray[np.floating],
    *,
    sampling_rate: float,
) -> NDArray[np.float64]:
    """Fit the baseline on the training windows and ask it about the test windows.

    Args:
        train_windows: EEG (windows, channels, samples), in the unit of the test windows.
        train_labels: class index of each training window; every class from 0 up must occur.
        test_windows: EEG (windows, channels, samples) with the same channels in the same order.
        sampling_rate: samples a second.

    Returns:
        Probabilities (test windows, classes); column i belongs to class i.

    Raises:
        ValueError: windows as in `band_power_features`, a class without training windows, or different channels.
        ImportError: scikit-learn is missing.
    """
    if train_windows.shape[1] != test_windows.shape[1]:
        raise ValueError(f"{train_windows.shape[1]} channels to train on, but {test_windows.shape[1]} to test on.")
    train, test = (band_power_features(windows, sampling_rate) for windows in (train_windows, test_windows))
    return logistic_probabilities(train, train_labels, test, strength=REGULARISATION)


def logistic_probabilities(
    train_features: NDArray[np.floating],
    train_labels: NDArray[np.int64],
    test_features: NDArray[np.floating],
    *,
    strength: float,
) -> NDArray[np.float64]:
    """What logistic regression on standardised features says.

    Args:
        train_features: (windows, features).
        train_labels: class index of each training window; every class from 0 up must occur.
        test_features: (test windows, features).
        strength: inverse of the regularisation, scikit-learn's `C`.

    Returns:
        Probabilities (test windows, classes); column i belongs to class i.

    Raises:
        ValueError: a class without training windows.
        ImportError: scikit-learn is missing.
    """
    present = np.unique(train_labels)
    if len(present) < 2 or not np.array_equal(present, np.arange(len(present))):
        raise ValueError(f"The training windows must hold two or more classes, from 0 up; got {present.tolist()}.")
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise ImportError(
            'Logistic regression needs scikit-learn, which is not installed: pip install "neurolm_hf[demo]"',
            name=error.name,
        ) from error
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
    classifier.fit(train_features, train_labels)
    probabilities: NDArray[np.float64] = classifier.predict_proba(test_features)
    return probabilities
