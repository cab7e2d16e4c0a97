# Copyright 2026 The neurolm_hf authors. Licensed under the Apache License, Version 2.0.
"""What is wrong with samples: not finite, flat, clipped, or of an amplitude that no EEG has.

This file is copied into model folders: it needs numpy.
"""

import numpy as np

from .channels_neurolm import MICROVOLTS_PER_UNIT


# Median robust amplitude of the channels, in microvolts, outside of which the unit must be wrong. Scalp EEG has some 3
# to 150; a suppressed or quiet bipolar recording 1, an infant's or a very artefact-laden one some hundreds. Units are
# mistaken by factors of 1000, which lead from the usual amplitudes to below 0.15 or above 3000.
PLAUSIBLE_MICROVOLTS = (0.5, 1000.0)
_TYPICAL_MICROVOLTS = 20.0
# A channel is clipped if it stays at its extremes for this share of its samples, flat if one value fills that share.
_CLIPPED_SHARE = 0.01
_FLAT_SHARE = 0.9


class InputChecks:
    """What is wrong with samples, found in one pass over blocks of them.

    Attributes, all (channels,):
        n_bad, first_bad: NaN or infinite samples, and the index of the first.
        flat: one value fills 90 % of the samples (of a long recording that is so in parts, 80 % may do).
        clipped: it is not flat and stays at its lowest or highest value from one sample to the next in 1 % of them.
    """

    def __init__(self, n_channels: int):
        self.n_seen = 0
        self.n_bad = np.zeros(n_channels, dtype=np.int64)
        self.first_bad = np.zeros(n_channels, dtype=np.int64)
        self._last = np.full((n_channels, 1), np.nan)
        # lowest, and minus the highest, with how often the channel stays there
        self._extremes = np.full((2, n_channels), np.inf)
        self._stays = np.zeros((2, n_channels), dtype=np.int64)
        # majority vote: if one value fills more than half of the samples it is `_leader`, `_lead` ahead of the rest
        self._leader = np.full(n_channels, np.nan)
        self._lead = np.zeros(n_channels, dtype=np.int64)

    @property
    def flat(self) -> np.ndarray:
        # a share s leads by 2 s - 1, and whatever leads by so much fills no less
        return self._lead >= (2 * _FLAT_SHARE - 1) * self.n_seen

    @property
    def clipped(self) -> np.ndarray:
        return (self._stays.sum(axis=0) >= _CLIPPED_SHARE * max(self.n_seen - 1, 1)) & ~self.flat

    def add(self, block: np.ndarray) -> None:
        """Look at the next samples, (channels, samples)."""
        bad = ~np.isfinite(block)
        if bad.any():
            found = bad.any(axis=1) & (self.n_bad == 0)
            self.first_bad[found] = self.n_seen + bad[found].argmax(axis=1)
            self.n_bad += bad.sum(axis=1)
        self.n_seen += block.shape[1]
        if self.n_bad.any():
            return
        is_same = block == np.concatenate([self._last, block[:, :-1]], axis=1)
        self._last = block[:, -1:].copy()
        for side, (extreme, sign) in enumerate(((block.min(axis=1), 1), (block.max(axis=1), -1))):
            self._stays[side, sign * extreme < self._extremes[side]] = 0
            self._extremes[side] = np.minimum(self._extremes[side], sign * extreme)
            at_extreme = block == sign * self._extremes[side][:, np.newaxis]
            self._stays[side] += (is_same & at_extreme).sum(axis=1)
        # a value cannot lead by more than the samples that equal the one before
        for row in np.flatnonzero(is_same.sum(axis=1) >= block.shape[1] / 5):
            self._vote(int(row), block[row])

    def _vote(self, row: int, samples: np.ndarray) -> None:
        value = np.median(samples)
        lead = 2 * np.count_nonzero(samples == value) - len(samples)
        if lead <= 0:
            return
        if value == self._leader[row]:
            self._lead[row] += lead
        elif lead > self._lead[row]:
            self._leader[row], self._lead[row] = value, lead - self._lead[row]
        else:
            self._lead[row] -= lead


def robust_amplitude(data: np.ndarray, samples_per_second: int) -> np.ndarray:
    """1.4826 x the median absolute deviation from the median, inside each second, so that slow drifts of unfiltered
    data do not count; the median over the seconds in which a channel is alive. (channels, samples) -> (channels,)."""
    return amplitude_of(deviations_by_second(data, samples_per_second))


def deviations_by_second(data: np.ndarray, samples_per_second: int) -> np.ndarray:
    """Median absolute deviation of each second, (channels, seconds); of all where there is no whole second."""
    length = min(samples_per_second, data.shape[1])
    seconds = data.shape[1] // length
    patches = data[:, : seconds * length].reshape(len(data), seconds, length)
    return _median(np.abs(patches - _median(patches)))[:, :, 0]


def _median(patches: np.ndarray) -> np.ndarray:
    """Along the last axis, which stays with length 1. Sorting short rows is nine times as fast as `np.median`."""
    ordered, length = np.sort(patches, axis=-1), patches.shape[-1]
    return (ordered[..., (length - 1) // 2, np.newaxis] + ordered[..., length // 2, np.newaxis]) / 2


def amplitude_of(deviation: np.ndarray) -> np.ndarray:
    """Robust amplitude (channels,) from the deviations (channels, seconds) of `deviations_by_second`."""
    # a filter leaves a little ringing where a channel is dead: far below its own typical second is no signal
    alive = deviation > 0.05 * np.quantile(deviation, 0.9, axis=1, keepdims=True)
    medians = [np.median(row[kept]) if kept.any() else 0.0 for row, kept in zip(deviation, alive, strict=True)]
    return 1.4826 * np.array(medians)


def unit_advice(amplitude: float) -> str:
    """Advice on the unit of numbers of this amplitude."""
    low, high = PLAUSIBLE_MICROVOLTS
    fitting = [unit for unit, factor in MICROVOLTS_PER_UNIT.items() if low <= amplitude * factor <= high]
    if not fitting:
        return f"Numbers of about {amplitude:.3g} fit no unit from nV to V: check the recording's scaling."
    likely = min(fitting, key=lambda unit: abs(np.log(amplitude * MICROVOLTS_PER_UNIT[unit] / _TYPICAL_MICROVOLTS)))
    return f"Numbers of about {amplitude:.3g} are likely {likely}: pass unit='{likely}' if so."
