"""Synthetic EDF recordings that look like EEGMAT's: eyes-closed rest and mental arithmetic, two files a subject.

The signal is a sum of parts with known physiology: spatially mixed 1/f background, posterior alpha that waxes and
wanes, frontal-midline theta, beta, blinks, slow drift, 50 Hz hum, an ECG. Workload weakens alpha and strengthens theta
and beta, each by an amount of the subject's own. Subjects differ in level, in spectrum and in the size of these
effects, and every recording has a gain of its own: no constant tells the conditions apart, and loudness does so badly.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


Signal = NDArray[np.floating]

SAMPLING_RATE = 500
CONDITIONS = ("rest", "arithmetic")

# millimetres to the right, to the front and up; mne's standard 10-20 montage, rounded
ELECTRODES_MM = {
    "Fp1": (-29, 84, -7),
    "Fp2": (30, 85, -7),
    "F3": (-50, 53, 42),
    "F4": (52, 54, 41),
    "F7": (-70, 42, -11),
    "F8": (73, 44, -12),
    "T3": (-84, -16, -9),
    "T4": (85, -15, -9),
    "C3": (-65, -12, 64),
    "C4": (67, -11, 64),
    "T5": (-72, -73, -2),
    "T6": (73, -73, -3),
    "P3": (-53, -79, 56),
    "P4": (56, -79, 57),
    "O1": (-29, -112, 9),
    "O2": (30, -112, 9),
    "Fz": (0, 59, 66),
    "Cz": (0, -9, 100),
    "Pz": (0, -81, 83),
}
# delay from the R wave in s, height in microvolts, width in s of the waves P, Q, R, S, T
_HEART_WAVES = (
    (-0.17, 40.0, 0.02),
    (-0.03, -50.0, 0.008),
    (0.0, 600.0, 0.01),
    (0.03, -120.0, 0.009),
    (0.22, 110.0, 0.04),
)
CHANNEL_NAMES = (*(f"EEG {name}" for name in ELECTRODES_MM), "EEG A2-A1", "ECG ECG")
_AMPLIFIER_RANGE_UV = 1000.0
_RECORDED_ON = datetime(2020, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class SubjectTraits:
    """What stays the same in all recordings of a subject.

    Amplitudes are in microvolts: RMS, but for blinks the peak. A change is the amplitude at work over that at rest.
    """

    background_uv: float
    background_exponent: float
    alpha_hz: float
    alpha_uv: float
    alpha_change: float
    theta_hz: float
    theta_uv: float
    theta_change: float
    beta_uv: float
    beta_change: float
    blink_uv: float
    blinks_per_minute: float
    drift_uv: float
    line_uv: float
    heart_rate_hz: float


def simulate_recordings(directory: str | Path, *, subjects: int, seconds: int = 64, seed: int = 0) -> list[Path]:
    """Write `SubjectNN_1.edf` (eyes-closed rest) and `SubjectNN_2.edf` (mental arithmetic) for every subject.

    A recording depends on `seed`, its subject, its condition and `seconds` only: more subjects change no file.

    Args:
        directory: where the files go; made when it is not there.
        subjects: how many subjects, 1 to 100.
        seconds: length of each recording.
        seed: of all random draws.

    Returns:
        The paths, two a subject, in name order.

    Raises:
        ValueError: `subjects` or `seconds` out of range.
        FileExistsError: a file of that name is there already; nothing is overwritten.
        ImportError: edfio is missing.
    """
    if not 1 <= subjects <= 100:
        raise ValueError(f"subjects must be between 1 and 100 (file names have two digits), got {subjects}.")
    if seconds < 1:
        raise ValueError(f"seconds must be at least 1, got {seconds}.")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    recordings = {
        folder / f"Subject{subject:02d}_{number}.edf": (subject, condition)
        for subject in range(subjects)
        for number, condition in enumerate(CONDITIONS, start=1)
    }
    taken = [path for path in recordings if path.exists()]
    if taken:
        raise FileExistsError(f"{taken[0]} exists already. Choose an empty folder, or delete the old recordings.")
    for path, (subject, condition) in recordings.items():
        _write_edf(path, simulate_signal(subject, condition, seconds=seconds, seed=seed))
    return list(recordings)


def simulate_signal(subject: int, condition: str, *, seconds: int = 64, seed: int = 0) -> Signal:
    """One recording as an array (21 channels as in `CHANNEL_NAMES`, seconds x 500 samples) in microvolts.

    Raises:
        ValueError: `condition` is not one of `CONDITIONS`.
    """
    if condition not in CONDITIONS:
        raise ValueError(f"condition must be one of {', '.join(CONDITIONS)}, got {condition!r}.")
    traits = draw_traits(subject, seed=seed)
    rng = np.random.default_rng([seed, subject, 1 + CONDITIONS.index(condition)])
    samples = seconds * SAMPLING_RATE
    scalp = _background(rng, traits, samples)
    scalp += _rhythms(rng, traits, samples, working=condition == "arithmetic")
    scalp += _blinks(rng, traits, samples)
    scalp += _drift(rng, traits, samples)
    scalp += _hum(rng, traits, samples)
    scalp *= rng.lognormal(0.0, 0.08)
    scalp -= scalp.mean(axis=1, keepdims=True)  # EEG amplifiers are coupled through a capacitor
    ears = 4.0 * _noise(rng, 1, samples, _one_over_f(traits.background_exponent))
    return np.concatenate([scalp, ears, _electrocardiogram(rng, traits, samples)])


def draw_traits(subject: int, *, seed: int = 0) -> SubjectTraits:
    """The traits of a subject; the same for the same seed, whatever else is simulated."""
    rng = np.random.default_rng([seed, subject, 0])
    return SubjectTraits(
        background_uv=9.0 * rng.lognormal(0.0, 0.2),
        background_exponent=rng.normal(1.7, 0.1),
        alpha_hz=rng.uniform(8.8, 11.4),
        alpha_uv=12.0 * rng.lognormal(0.0, 0.25),
        alpha_change=rng.uniform(0.15, 0.32),
        theta_hz=rng.uniform(5.5, 6.6),
        theta_uv=3.5 * rng.lognormal(0.0, 0.2),
        theta_change=rng.uniform(1.9, 2.8),
        beta_uv=2.2 * rng.lognormal(0.0, 0.25),
        beta_change=rng.uniform(1.3, 1.8),
        blink_uv=rng.uniform(50.0, 120.0),
        blinks_per_minute=rng.uniform(2.0, 9.0),
        drift_uv=4.0 * rng.lognormal(0.0, 0.3),
        line_uv=1.0 * rng.lognormal(0.0, 0.4),
        heart_rate_hz=rng.uniform(0.95, 1.4),
    )


def _distances_mm(*sites: str) -> Signal:
    """Distances (19, sites) from every electrode to those sites."""
    positions = np.array(list(ELECTRODES_MM.values()), dtype=np.float64)
    centres = np.array([ELECTRODES_MM[site] for site in sites], dtype=np.float64)
    distances: Signal = np.linalg.norm(positions[:, None] - centres[None], axis=-1)
    return distances


def _noise(rng: Generator, rows: int, samples: int, power: Callable[[Signal], Signal]) -> Signal:
    """Gaussian noise (rows, samples) with the given power spectrum over frequency in Hz, each row at RMS 1."""
    frequencies = np.fft.rfftfreq(samples, 1 / SAMPLING_RATE)
    spectrum = np.fft.rfft(rng.standard_normal((rows, samples)))
    spectrum *= np.sqrt(power(frequencies)) * (frequencies > 0)
    noise = np.fft.irfft(spectrum, n=samples)
    return noise / noise.std(axis=1, keepdims=True)


def _one_over_f(exponent: float) -> Callable[[Signal], Signal]:
    """1/f power that flattens below about 1.5 Hz, as scalp EEG does."""
    return lambda hz: 1 / (1.5**exponent + hz**exponent)


def _peak(centre_hz: float, width_hz: float) -> Callable[[Signal], Signal]:
    """A Gaussian peak of power."""
    return lambda hz: np.exp(-0.5 * ((hz - centre_hz) / width_hz) ** 2)


def _below(edge_hz: float) -> Callable[[Signal], Signal]:
    """Power at slow frequencies only."""
    return lambda hz: np.exp(-0.5 * (hz / edge_hz) ** 2)


def _background(rng: Generator, traits: SubjectTraits, samples: int) -> Signal:
    """1/f noise (19, samples) whose correlation falls off with the distance of the electrodes."""
    mixing = np.linalg.cholesky(np.exp(-((_distances_mm(*ELECTRODES_MM) / 150) ** 1.7)))
    sources = _noise(rng, len(ELECTRODES_MM), samples, _one_over_f(traits.background_exponent))
    electrode_gains = rng.lognormal(0.0, 0.06, size=(len(ELECTRODES_MM), 1))
    sensor_noise = 0.3 * rng.standard_normal((len(ELECTRODES_MM), samples))
    return traits.background_uv * electrode_gains * (mixing @ sources) + sensor_noise


def _rhythms(rng: Generator, traits: SubjectTraits, samples: int, *, working: bool) -> Signal:
    """Alpha, theta and beta (19, samples) at the level of the condition."""
    alpha = traits.alpha_uv * (traits.alpha_change if working else 1.0)
    theta = traits.theta_uv * (traits.theta_change if working else 1.0)
    beta = traits.beta_uv * (traits.beta_change if working else 1.0)
    return (
        alpha * _rhythm(rng, samples, _peak(traits.alpha_hz, 0.6), ("O1", "O2", "Pz"), spread_mm=85)
        + theta * _rhythm(rng, samples, _peak(traits.theta_hz, 0.5), ("Fz", "F3", "F4"), spread_mm=45)
        + beta * _rhythm(rng, samples, _peak(20.0, 4.0), ("Fz", "C3", "C4"), spread_mm=50)
    )


def _rhythm(
    rng: Generator,
    samples: int,
    power: Callable[[Signal], Signal],
    centres: tuple[str, ...],
    spread_mm: float,
) -> Signal:
    """A rhythm (19, samples) from one source under each centre, waxing and waning together; RMS 1 at its strongest.

    The sources share half of their power, so that the sites go partly in step, as occipital alpha does.
    """
    shared = _noise(rng, 1, samples, power)
    sources = np.sqrt(0.5) * (shared + _noise(rng, len(centres), samples, power))
    envelope = np.exp(0.3 * _noise(rng, 1, samples, _below(0.2)))
    topography = np.exp(-0.5 * (_distances_mm(*centres) / spread_mm) ** 2)
    field = topography @ (envelope * sources)
    return field / field.std(axis=1).max() * rng.lognormal(0.0, 0.1)


def _blinks(rng: Generator, traits: SubjectTraits, samples: int) -> Signal:
    """Eye blinks (19, samples): 0.35 s long, at random times, falling off from the frontal poles."""
    rate = traits.blinks_per_minute / 60 / SAMPLING_RATE
    onsets = np.flatnonzero(rng.random(samples) < rate)
    train = np.zeros(samples)
    train[onsets] = rng.lognormal(0.0, 0.2, size=len(onsets))
    phase = np.linspace(0.0, 1.0, int(0.35 * SAMPLING_RATE))
    shape = np.sin(np.pi * phase) ** 2 - 0.25 * np.sin(np.pi * phase**2) ** 4
    course = np.convolve(train, shape / shape.max())[:samples]
    distances = _distances_mm("Fp1", "Fp2").min(axis=1, keepdims=True)
    return traits.blink_uv * np.exp(-distances / 35) * course


def _drift(rng: Generator, traits: SubjectTraits, samples: int) -> Signal:
    """Slow electrode drift (19, samples), each electrode on its own."""
    return traits.drift_uv * _noise(rng, len(ELECTRODES_MM), samples, _below(0.15))


def _hum(rng: Generator, traits: SubjectTraits, samples: int) -> Signal:
    """50 Hz line noise (19, samples): one phase, a strength of its own at each electrode."""
    times = np.arange(samples) / SAMPLING_RATE
    strengths = traits.line_uv * rng.uniform(0.4, 1.6, size=(len(ELECTRODES_MM), 1))
    return strengths * np.sqrt(2) * np.sin(2 * np.pi * 50 * times + rng.uniform(0, 2 * np.pi))


def _electrocardiogram(rng: Generator, traits: SubjectTraits, samples: int) -> Signal:
    """An ECG (1, samples) of P, Q, R, S and T waves with a slightly irregular beat."""
    beats = int(samples / SAMPLING_RATE * traits.heart_rate_hz) + 1
    intervals = np.clip(rng.normal(1.0, 0.04, beats), 0.8, 1.2) / traits.heart_rate_hz
    train = np.zeros(samples)
    peaks = (np.cumsum(intervals) * SAMPLING_RATE).astype(int)
    train[peaks[peaks < samples]] = 1.0
    delays, heights, widths = np.array(_HEART_WAVES).T[:, :, None]
    times = np.arange(-0.3, 0.4, 1 / SAMPLING_RATE)
    beat = (heights * np.exp(-0.5 * ((times - delays) / widths) ** 2)).sum(axis=0)
    return np.convolve(train, beat)[:samples][None] + 5.0 * _noise(rng, 1, samples, _below(0.3))


def _write_edf(path: Path, signal_uv: Signal) -> None:
    """Write a recording (21, samples) in microvolts as EDF."""
    import mne  # here, because importing it takes a second

    if importlib.util.find_spec("edfio") is None:
        raise ImportError('Writing EDF files needs edfio: pip install "neurolm_hf[demo]"', name="edfio")
    types = ["eeg"] * len(ELECTRODES_MM) + ["eeg", "ecg"]
    info = mne.create_info(list(CHANNEL_NAMES), SAMPLING_RATE, types)
    raw = mne.io.RawArray(signal_uv * 1e-6, info, verbose="error")
    raw.set_meas_date(_RECORDED_ON)
    raw.info["device_info"] = {"type": "simulated"}
    limits = (-_AMPLIFIER_RANGE_UV, _AMPLIFIER_RANGE_UV)
    mne.export.export_raw(path, raw, fmt="edf", physical_range=limits, verbose="error")
