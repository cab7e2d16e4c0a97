# Copyright 2026 The neurolm_hf authors. Licensed under the Apache License, Version 2.0.
"""Band-pass, notch and resampling of a recording of any length, block by block, with MNE's result.

MNE filters with zero-phase FIR kernels and resamples by one Fourier transform of the whole recording, padded. Both are
linear, so a stretch of output needs a stretch of input only:

* Inside a recording, band-pass and notch are one convolution with the convolution of their kernels (MNE designs them).
  Within half a kernel of an edge they are applied one after the other to the odd reflection there, as MNE does.
* With n samples padded to N, of which M remain, output sample k is the band-limited interpolation at
  (k + r) N / M - p, p samples being padded in front and r removed again. We take a block of input, let its ends fade
  out, transform it, multiply by the kernel's response, cut at the lower Nyquist frequency, and evaluate the result at
  these places: an inverse transform to a denser grid, then a narrow kernel (a non-uniform FFT).
* The interpolation reaches as far as 1/distance, but only what lies at the Nyquist frequency is felt from afar. After
  a low-pass that is the places where the signal breaks off: its ends, the seam of the padding, joints of parts. Their
  contributions are added; the rest is below 1e-6. Without a low-pass that is down there (rates below 200 Hz, filters
  switched off, unfiltered stretches) it is small in EEG but 1 % of white noise, so recordings that fit into memory are
  then resampled in one piece.

This file is copied into model folders: it needs numpy, and MNE (which brings SciPy) when something is to be filtered.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np

from .reading_neurolm import mne, require_mne


try:
    import scipy.fft
    import scipy.signal
    import scipy.sparse
except ImportError:  # it comes with MNE, and require_mne says how to get that
    scipy = None


# (start, stop) -> float64 (channels, stop - start), 0 <= start < stop <= n_samples.
ReadSamples: TypeAlias = Callable[[int, int], np.ndarray]

# What we allow ourselves to hold of one recording, as float64.
IN_MEMORY_BYTES = 256 * 2**20
# A block is so many times what is lost of it on one side.
_BLOCK_TO_MARGIN = 8
# Filtered edges of parts, and output: what is kept for the next read.
_EDGES_KEPT = 4
_OUTPUT_BYTES = 128 * 2**20
# A low-pass is down where its response is below this.
_ATTENUATED = 0.002
# Between the output of a block and the first input that fades, and over which it fades: in samples of the slower rate.
_GUARD = 512
# Points of the dense grid for each cycle of the highest frequency; width of the interpolation kernel in such points,
# and its shape: an error of 1e-9.
_POINTS = 3
_TAPS = 12
_SHAPE = np.pi * _TAPS * (1 - 1 / _POINTS)
# Equivalent point sources of a break, and how many blocks away it is still felt (1e-7 of it).
_SOURCES = 10
_BREAK_REACH = 16
_BREAKS_KEPT = 32
_CHEBYSHEV_POINTS = np.polynomial.chebyshev.chebpts1(_SOURCES)
# (points, coefficients): values at the points times it are the coefficients of the polynomial through them
_TO_COEFFICIENTS = np.linalg.inv(np.polynomial.chebyshev.chebvander(_CHEBYSHEV_POINTS, _SOURCES - 1)).T


class BlockFilter:
    """A recording after band-pass, notch and resampling, read anywhere at the cost of the blocks that are touched.

    Args:
        read: gives samples of the recording, float64 (channels, stop - start).
        n_samples, rate: of the recording (Hz).
        low, high: edges of the band-pass in Hz, None for none.
        notch: frequency to take out in Hz, or None.
        target_rate: Hz of the output.
        boundaries: (onset, duration, description) in seconds where separately recorded parts meet: each is filtered
            apart, what lies within a duration is not filtered, and the whole is resampled, as MNE does.
        block: input samples of a block; None: by the length of the filter.

    Resampled in one piece by MNE, and the result kept, are recordings of at most two blocks, where it is no slower,
    and those that fit into `IN_MEMORY_BYTES` and have no low-pass that is down at both Nyquist frequencies, for
    exactness.

    Attributes:
        n_out: samples of the output.
        block_length: samples of it that are computed together, whole seconds; the last block may be shorter.

    Raises:
        ImportError: there is something to do and MNE is not installed.
    """

    def __init__(
        self,
        read: ReadSamples,
        n_samples: int,
        rate: float,
        low: float | None,
        high: float | None,
        notch: float | None,
        target_rate: float,
        boundaries: Sequence[tuple[float, float, str]] = (),
        block: int | None = None,
    ):
        kernels = _design(rate, low, high, notch)
        self._signal = _FilteredSignal(read, n_samples, kernels, _parts(boundaries, n_samples, rate), block)
        self._resampler: _Resampler | None = None
        self._in_one_piece = False
        self.n_out, step = n_samples, self._signal.step
        if rate != target_rate:
            require_mne("Resampling EEG")
            self._resampler = _Resampler(self._signal, rate, target_rate, block)
            self.n_out, step = self._resampler.n_out, self._resampler.step
            n_bytes = 8 * len(read(0, 1)) * max(n_samples, self.n_out)
            lowpassed = _gain(self._signal.kernel, min(rate, target_rate) / (2 * rate)) < _ATTENUATED
            lowpassed &= all(is_filtered for _, _, is_filtered in self._signal.parts)
            self._in_one_piece = n_samples <= 2 * self._resampler.size or (
                n_bytes <= IN_MEMORY_BYTES and not lowpassed
            )
        whole_seconds = step - step % round(target_rate)
        self.block_length = self.n_out if self._in_one_piece else whole_seconds or step
        self._blocks: OrderedDict[int, np.ndarray] = OrderedDict()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples `start` to `stop` of the output, float64 (channels, stop - start), in the unit of the input."""
        if not 0 <= start < stop <= self.n_out:
            raise ValueError(f"samples {start} to {stop} are not within 0 to {self.n_out}.")
        pieces = []
        for index in range(start // self.block_length, (stop - 1) // self.block_length + 1):
            first = index * self.block_length
            pieces.append(self._block(index)[:, max(0, start - first) : stop - first])
        return np.concatenate(pieces, axis=1)

    def _block(self, index: int) -> np.ndarray:
        if index in self._blocks:
            self._blocks.move_to_end(index)
            return self._blocks[index]
        start = index * self.block_length
        stop = min(start + self.block_length, self.n_out)
        if self._resampler is None:
            block = self._signal.read(start, stop)
        elif self._in_one_piece:
            block = self._resampler.read_whole()
        else:
            block = self._resampler.read_block(start, stop)
        self._blocks[index] = block
        while len(self._blocks) > 1 and len(self._blocks) * block.nbytes > _OUTPUT_BYTES:
            self._blocks.popitem(last=False)
        return block


# ------------------------------------------------------------------------------------------------
# Filters
# ------------------------------------------------------------------------------------------------


def _design(rate: float, low: float | None, high: float | None, notch: float | None) -> tuple[np.ndarray, ...]:
    """The kernels of `raw.filter(low, high)` and `raw.notch_filter(notch)`, of odd length and symmetric."""
    if low is None and high is None and notch is None:
        return ()
    require_mne("Filtering EEG")
    return _design_once(rate, low, high, notch)


@lru_cache(maxsize=16)
def _design_once(rate: float, low: float | None, high: float | None, notch: float | None) -> tuple[np.ndarray, ...]:
    kernels = []
    if low is not None or high is not None:
        kernels.append(mne.filter.create_filter(None, rate, low, high, verbose="ERROR"))
    if notch is not None:
        # notch_filter's own numbers: a stop band of notch / 200, and 0.5 Hz on either side to come down
        half = notch / 400 + 0.5
        edges = [notch + half], [notch - half]
        kernels.append(mne.filter.create_filter(None, rate, *edges, "auto", 0.5, 0.5, verbose="ERROR"))
    return tuple(kernels)


def filter_length(rate: float, low: float | None, high: float | None) -> int:
    """Samples of the band-pass kernel."""
    return max(map(len, _design(rate, low, high, None)), default=1)


def _parts(boundaries: Sequence[tuple[float, float, str]], n_samples: int, rate: float) -> list[tuple[int, int, bool]]:
    """(start, stop, is filtered) of the stretches of a recording, in samples."""
    cuts = {0, n_samples}
    skipped = []
    for onset, duration, _ in boundaries:
        start, stop = (min(max(round(second * rate), 0), n_samples) for second in (onset, onset + duration))
        cuts |= {start, stop}
        skipped.append((start, stop))
    places = sorted(cuts)
    parts: list[tuple[int, int, bool]] = []
    for start, stop in pairwise(places):
        parts.append((start, stop, not any(first <= start and stop <= last for first, last in skipped)))
    return parts


class _FilteredSignal:
    """The recording after its kernels, at its own rate, read anywhere.

    Attributes:
        read_input: of the recording. n_samples: its length.
        parts: as `_parts` gives them. kernel: all kernels in one. half: samples it reaches to either side.
        step: samples of a block that come out valid.
    """

    def __init__(
        self,
        read: ReadSamples,
        n_samples: int,
        kernels: tuple[np.ndarray, ...],
        parts: list[tuple[int, int, bool]],
        block: int | None,
    ):
        self.read_input, self.n_samples, self.kernels = read, n_samples, kernels
        self.parts = parts if kernels else [(0, n_samples, False)]
        self.kernel = np.ones(1)
        for kernel in kernels:
            self.kernel = scipy.signal.fftconvolve(self.kernel, kernel)
        self.half = len(self.kernel) // 2
        self.size = n_samples
        if kernels:
            self.size = scipy.fft.next_fast_len(max(block or _BLOCK_TO_MARGIN * self.half, 4 * self.half), real=True)
        self.step = self.size - 2 * self.half if kernels else 2**16
        self._responses: dict[int, np.ndarray] = {}
        self._edges: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def read(self, start: int, stop: int) -> np.ndarray:
        """Filtered samples, float64 (channels, stop - start)."""
        pieces = []
        for first, last, is_filtered in self.parts:
            begin, end = max(start, first), min(stop, last)
            if begin < end:
                pieces.append(self._read_part(begin, end, first, last) if is_filtered else self.read_input(begin, end))
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)

    def _read_part(self, start: int, stop: int, first: int, last: int) -> np.ndarray:
        """Of one part, `first` to `last`: what its edges touch, and what they do not."""
        if last - first <= 4 * self.half:
            return self._edge(first, last)[:, start - first : stop - first]
        inner_start, inner_stop = first + self.half, last - self.half
        pieces = []
        if start < inner_start:
            pieces.append(self._edge(first, first + 2 * self.half)[:, start - first : min(stop, inner_start) - first])
        for begin in range(max(start, inner_start), min(stop, inner_stop), self.step):
            pieces.append(self._convolve(begin, min(begin + self.step, stop, inner_stop)))
        if stop > inner_stop:
            edge_start = last - 2 * self.half
            pieces.append(self._edge(edge_start, last)[:, max(start, inner_stop) - edge_start : stop - edge_start])
        return np.concatenate(pieces, axis=1)

    def _convolve(self, start: int, stop: int) -> np.ndarray:
        """Away from edges: one convolution with the whole kernel, by overlap-save."""
        rows = self.read_input(start - self.half, stop + self.half)
        size = self.size
        if 2 * rows.shape[1] < size:
            size = scipy.fft.next_fast_len(rows.shape[1], real=True)
        if size not in self._responses:
            self._responses = {size: _zero_phase_response(self.kernel, size)}
        filtered = np.empty((len(rows), stop - start))
        for target, row in zip(filtered, rows, strict=True):
            spectrum = scipy.fft.rfft(row, size)
            spectrum *= self._responses[size]
            target[:] = scipy.fft.irfft(spectrum, size)[self.half : self.half + stop - start]
        return filtered

    def _edge(self, start: int, stop: int) -> np.ndarray:
        """A stretch with an edge of its part at one end or at both, through the kernels one after the other. What is
        nearer than `half` to an end that is none is not valid."""
        if (start, stop) not in self._edges:
            rows = self.read_input(start, stop)
            for kernel in self.kernels:
                rows = _filter_reflected(rows, kernel)
            self._edges[start, stop] = rows
            if len(self._edges) > _EDGES_KEPT:
                self._edges.popitem(last=False)
        return self._edges[start, stop]


def _zero_phase_response(kernel: np.ndarray, size: int) -> np.ndarray:
    """The real response of a symmetric kernel of odd length at the bins of an rfft of `size`."""
    half = len(kernel) // 2
    centred = np.zeros(size)
    centred[: half + 1] = kernel[half:]
    centred[size - half :] = kernel[:half]
    return scipy.fft.rfft(centred).real


def _gain(kernel: np.ndarray, frequency: float) -> float:
    """Of a symmetric kernel, at a frequency in cycles a sample."""
    offsets = np.arange(len(kernel)) - len(kernel) // 2
    return float(abs(kernel @ np.cos(2 * np.pi * frequency * offsets)))


def _filter_reflected(rows: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Filter (channels, samples) with odd reflection at both ends, as far as the rows go, zeros beyond."""
    n_samples, half = rows.shape[1], len(kernel) // 2
    depth = min(half, n_samples - 1)
    left = 2 * rows[:, :1] - rows[:, depth:0:-1]
    right = 2 * rows[:, -1:] - rows[:, -2 : -depth - 2 : -1]
    padded = np.concatenate([left, rows, right], axis=1)
    filtered = scipy.signal.oaconvolve(padded, kernel[np.newaxis], axes=1)
    return filtered[:, depth + half : depth + half + n_samples]


# ------------------------------------------------------------------------------------------------
# Resampling
# ------------------------------------------------------------------------------------------------


class _Resampler:
    """`mne.filter.resample(x, target_rate, rate, npad="auto")` of a filtered signal, in blocks.

    Places are samples of the signal, 0 to n; the padded signal goes on periodically on either side of it.

    Attributes:
        n_out: samples of the output. size: input samples of a block. step: output samples of a block.
    """

    def __init__(self, signal: _FilteredSignal, rate: float, target_rate: float, block: int | None):
        self._signal = signal
        self._rates = rate, target_rate
        n_samples, ratio = signal.n_samples, float(target_rate) / rate
        # MNE's padding to a power of two
        self._padded = 2 ** int(np.ceil(np.log2(n_samples + 2 * min(n_samples // 8, 100))))
        self._front = (self._padded - n_samples) // 2
        self._resampled = max(round(ratio * self._padded), 1)
        self._removed = round(ratio * self._front)
        self.n_out = max(round(ratio * n_samples), 1)

        self._guard = round(_GUARD * max(1.0, 1 / ratio))
        self._margin = signal.half + 2 * self._guard
        self.size = scipy.fft.next_fast_len(max(block or _BLOCK_TO_MARGIN * self._margin, 3 * self._margin), real=True)
        self.step = int((self.size - 2 * self._margin - 2) * self._resampled / self._padded)

        fade = np.cumsum(np.kaiser(self._guard, 30.0))
        fade /= fade[-1]
        self._taper = np.concatenate([fade, np.ones(self.size - 2 * self._guard), fade[::-1]])
        # of a break, what is treated apart
        self._reach = self._guard // 4
        bump = np.cumsum(np.kaiser(self._reach, 30.0))
        self._bump = np.concatenate([bump, bump[::-1]]) / bump[-1]
        places = {0, n_samples, n_samples + self._padded - n_samples - self._front}
        self._breaks = sorted(places | {start for start, _, _ in signal.parts})
        self._near: OrderedDict[int, np.ndarray] = OrderedDict()
        self._sources: dict[int, np.ndarray] = {}
        # MNE's kernel is sin(order x) envelope(x) / N at x = pi distance / N
        if self._resampled < self._padded:
            self._order, self._envelope = 2 * (self._resampled // 2) + 1, lambda x: 1 / np.sin(x)
        else:
            self._order, self._envelope = self._padded, lambda x: 1 / np.tan(x)

        cut = self.size * min(self._resampled / self._padded, 1.0) / 2  # the lower Nyquist frequency, in bins
        n_bins = int(cut + 0.5) + 1
        self._grid = scipy.fft.next_fast_len(_POINTS * n_bins, real=True)
        self._interpolate = _interpolation_response(n_bins, self._grid) * (self._grid / self.size)
        self._interpolate[-1] *= cut + 1.5 - n_bins  # as much of the last bin as lies below
        self._filter_and_interpolate = _zero_phase_response(signal.kernel, self.size)[:n_bins] * self._interpolate

    def read_whole(self) -> np.ndarray:
        """All of the output, by MNE's own transform of the whole signal."""
        rate, target_rate = self._rates
        rows = self._signal.read(0, self._signal.n_samples)
        return mne.filter.resample(rows, target_rate, rate, npad="auto", verbose="ERROR")

    def read_block(self, start: int, stop: int) -> np.ndarray:
        """Output samples `start` to `stop`, at most `step` of them."""
        # in whole numbers, so that a place is exact however late it is
        numerators = (np.arange(start, stop) + self._removed) * self._padded - self._front * self._resampled
        first = int(numerators[0] // self._resampled) - self._margin
        places = (numerators - first * self._resampled) / self._resampled
        if any(begin <= first and first + self.size <= end for begin, end, _ in self._fused_parts()):
            rows = self._signal.read_input(first, first + self.size) * self._taper
            response = self._filter_and_interpolate
        else:
            rows = self._extended(first, first + self.size) * self._taper
            self._take_out_breaks(rows, first)
            response = self._interpolate
        matrix = _interpolation_matrix(places * (self._grid / self.size), self._grid)
        output = np.empty((len(rows), stop - start))
        for target, row in zip(output, rows, strict=True):
            spectrum = scipy.fft.rfft(row)[: len(response)]
            spectrum *= response
            target[:] = matrix @ scipy.fft.irfft(spectrum, self._grid)
        self._add_breaks(output, places + first)
        return output

    def _fused_parts(self) -> list[tuple[int, int, bool]]:
        return [part for part in self._signal.parts if part[2] or not self._signal.kernels]

    def _extended(self, start: int, stop: int) -> np.ndarray:
        """The padded, periodic signal at places `start` to `stop`, float64 (channels, stop - start)."""
        n_samples = self._signal.n_samples
        places = (np.arange(start, stop) + self._front) % self._padded - self._front
        left, right = places < 0, places >= n_samples
        sources = np.where(left, -places, np.where(right, 2 * (n_samples - 1) - places, places))
        # the seam of the padding brings both ends of the recording together
        rows = None
        for group in (sources < n_samples // 2, sources >= n_samples // 2):
            if not group.any():
                continue
            low, high = int(sources[group].min()), int(sources[group].max())
            values = self._signal.read(low, high + 1)
            if rows is None:
                rows = np.empty((len(values), stop - start))
            rows[:, group] = values[:, sources[group] - low]
        assert rows is not None
        for outside, place in ((left, 0), (right, n_samples - 1)):
            if outside.any():
                rows[:, outside] = 2 * self._signal.read(place, place + 1) - rows[:, outside]
        return rows

    # Breaks ----------------------------------------------------------------

    def _nearest(self, place: int, middle: float) -> int:
        """The image of a break in the periodic signal that is nearest to a place."""
        return place + self._padded * round((middle - place) / self._padded)

    def _take_out_breaks(self, rows: np.ndarray, first: int) -> None:
        kept = np.ones(self.size)
        for place in self._breaks:
            begin = self._nearest(place, first + self.size / 2) - self._reach - first
            low, high = max(begin, 0), min(begin + 2 * self._reach, self.size)
            if low < high:
                kept[low:high] -= self._share(place)[low - begin : high - begin]
        rows *= kept

    def _share(self, place: int) -> np.ndarray:
        """Of each sample around a break, the share that is treated as this break's: its bump, or less where the bumps
        of neighbours overlap with it."""
        total, left = np.zeros(2 * self._reach), np.ones(2 * self._reach)
        for other in self._breaks:
            offset = (other - place + self._padded // 2) % self._padded - self._padded // 2
            if abs(offset) < 2 * self._reach:
                low, high = max(offset, 0), 2 * self._reach + min(offset, 0)
                bump = self._bump[low - offset : high - offset]
                total[low:high] += bump
                left[low:high] *= 1 - bump
        return self._bump * (1 - left) / total

    def _add_breaks(self, output: np.ndarray, places: np.ndarray) -> None:
        """Add what the breaks contribute at these places: far ones as a few point sources, which give the Nyquist
        frequency under a smooth envelope; where one is near, in segments, and this one sample by sample."""
        middle, half = (places[0] + places[-1]) / 2, max((places[-1] - places[0]) / 2 + 1, 4.0 * self._reach)
        if min(abs(self._nearest(place, middle) - middle) for place in self._breaks) < 2 * half:
            half = 4.0 * self._reach
        length = max(1, int(2 * half * self._resampled / self._padded))
        for start in range(0, len(places), length):
            here = slice(start, min(start + length, len(places)))
            middle = (places[here][0] + places[here][-1]) / 2
            images = [(place, self._nearest(place, middle)) for place in self._breaks]
            for place, image in images:
                if abs(image - middle) < 2 * half:
                    output[:, here] += self._around(place) @ self._kernel(places[here] - image)
            far = [one for one in images if 2 * half <= abs(one[1] - middle) < _BREAK_REACH * self.size]
            if far:
                output[:, here] += self._far(far, places[here], middle, half)

    def _far(self, images: list[tuple[int, int]], places: np.ndarray, middle: float, half: float) -> np.ndarray:
        """What far breaks contribute at places within `half` of `middle`, (channels, places)."""
        sources = np.concatenate([image + self._reach * _CHEBYSHEV_POINTS for _, image in images])
        turned = [
            self._sources_of(place) * np.exp(1j * np.pi * self._order * (middle - image) / self._padded)
            for place, image in images
        ]
        away = middle + half * _CHEBYSHEV_POINTS[:, np.newaxis] - sources
        at_points = np.concatenate(turned, axis=1) @ self._envelope(np.pi * away / self._padded).T
        vander = np.polynomial.chebyshev.chebvander((places - middle) / half, _SOURCES - 1)
        carrier = np.pi * self._order * (places - middle) / self._padded
        waves = np.concatenate([vander.T * np.sin(carrier), vander.T * np.cos(carrier)])
        coefficients = at_points @ _TO_COEFFICIENTS / self._padded
        return np.concatenate([coefficients.real, coefficients.imag], axis=1) @ waves

    def _kernel(self, places: np.ndarray) -> np.ndarray:
        """What MNE's two transforms amount to: the weights, at places counted from a break, of the samples around it,
        (2 reach, places)."""
        samples = np.arange(-self._reach, self._reach)[:, np.newaxis]
        away = places - samples
        at_zero = np.abs(away) < 1e-7
        away[at_zero] = 1e-7
        to_places, to_samples = (np.exp(1j * np.pi * self._order * at / self._padded) for at in (places, samples))
        weights = (to_places * to_samples.conj()).imag * self._envelope(np.pi * away / self._padded) / self._padded
        weights[at_zero] = self._order / self._padded
        return weights

    def _around(self, place: int) -> np.ndarray:
        """A break's share of the samples around it, (channels, 2 reach)."""
        if place not in self._near:
            self._near[place] = self._extended(place - self._reach, place + self._reach) * self._share(place)
            if len(self._near) > _BREAKS_KEPT:
                self._near.popitem(last=False)
        return self._near[place]

    def _sources_of(self, place: int) -> np.ndarray:
        """The samples around a break, shifted from the Nyquist frequency to zero, as complex (channels, sources) point
        sources at Chebyshev points, which are felt alike from afar."""
        if place not in self._sources:
            offsets = np.arange(-self._reach, self._reach)
            shifted = self._around(place) * np.exp(-1j * np.pi * self._order * offsets / self._padded)
            vander = np.polynomial.chebyshev.chebvander(offsets / self._reach, _SOURCES - 1)
            self._sources[place] = shifted @ vander @ _TO_COEFFICIENTS.T
        return self._sources[place]


def _interpolation_response(n_bins: int, grid: int) -> np.ndarray:
    """One over the transform of the interpolation kernel at the lowest bins of a grid."""
    nodes, weights = np.polynomial.legendre.leggauss(4 * _TAPS)
    nodes, weights = nodes[nodes > 0], weights[nodes > 0]
    phases = np.cos(np.pi * _TAPS * nodes[:, np.newaxis] * np.arange(n_bins) / grid)
    return 1 / _TAPS / (weights * _bell(nodes) @ phases)


def _interpolation_matrix(places: np.ndarray, grid: int) -> Any:
    """Sparse (places, grid): values at places of a grid from `_TAPS` of its points each."""
    first = np.ceil(places - _TAPS / 2).astype(np.int64)
    points = first[:, np.newaxis] + np.arange(_TAPS)
    weights = _bell((points - places[:, np.newaxis]) * (2 / _TAPS))
    rows = np.arange(0, points.size + 1, _TAPS)
    return scipy.sparse.csr_array((weights.ravel(), points.ravel(), rows), shape=(len(places), grid))


def _bell(x: np.ndarray) -> np.ndarray:
    """The interpolation kernel, from -1 to 1: of those so narrow one that leaks least to other frequencies."""
    return np.exp(_SHAPE * (np.sqrt(np.maximum(1 - x * x, 0)) - 1))
