# Copyright 2026 The neurolm_hf authors. Licensed under the Apache License, Version 2.0.
"""From a raw EEG recording to the inputs of NeuroLM, in the order of the data.

1. What was done to a recording: `EEGReport`; what the model reads: `EEGSegment`, `EEGBatch`.
2. `EEGFeatureExtractor`: the saved recipe, applied to whole recordings, then cut into windows and patches.
3. `build_text_tokenizer`, `train_text_tokenizer`: a text tokenizer with the three tokens NeuroLM needs.
4. `NeuroLMProcessor`: EEG and text in one sequence.

This file is copied into model folders: it needs torch, numpy and transformers, and MNE only for files, MNE objects,
filtering and resampling.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AddedToken, AutoTokenizer, BatchFeature, GPT2Tokenizer, SequenceFeatureExtractor
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import cached_file

from .reading_neurolm import (
    MICROVOLTS_PER_UNIT,
    PAD_CHANNEL_ID,
    Montage,
    PathOrStr,
    UnknownChannels,
    join_words,
    microvolts_per,
    mne,
    open_recording,
    require_mne,
    resolve_montage,
)


# ------------------------------------------------------------------------------------------------
# 1. Reports, segments and batches
# ------------------------------------------------------------------------------------------------


@dataclass
class EEGReport:
    """What was found in one recording and what was done to it. `print` it, or `to_dict()` it for a JSON file.

    Fields:
        source: the file, or which of the recordings passed.
        unit, sampling_rate: as the data came in (Hz).
        kept: (name found, vocabulary name) of the channels used, in order; `renamed` are those that differ.
        dropped: (name found, reason).
        steps_applied: in order; steps_skipped: (step, reason).
        amplitude: robust amplitude in microvolts by vocabulary name.
        flat, clipped: vocabulary names of channels without signal, and at the rails of their range.
        seconds_used, seconds_left_over: part of the recording covered by windows, and the rest.
        warnings: everything else worth a look.
    """

    source: str
    unit: str = ""
    sampling_rate: float = 0.0
    kept: list[tuple[str, str]] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    steps_applied: list[str] = field(default_factory=list)
    steps_skipped: list[tuple[str, str]] = field(default_factory=list)
    amplitude: dict[str, float] = field(default_factory=dict)
    flat: list[str] = field(default_factory=list)
    clipped: list[str] = field(default_factory=list)
    seconds_used: float = 0.0
    seconds_left_over: float = 0.0
    warnings: list[str] = field(default_factory=list)

    @property
    def renamed(self) -> list[tuple[str, str]]:
        return [(original, name) for original, name in self.kept if original != name]

    def to_dict(self) -> dict[str, Any]:
        """All fields and `renamed`, as plain Python values."""
        fields = {**asdict(self), "renamed": self.renamed}
        return json.loads(json.dumps(fields))

    def __str__(self) -> str:
        amplitude = "not measured"
        if self.amplitude:
            median = float(np.median(list(self.amplitude.values())))
            amplitude = f"median {median:.3g} uV ({join_words(f'{n} {a:.3g}' for n, a in self.amplitude.items())})"
        lines = {
            "channels": f"{len(self.kept)} kept: {join_words(name for _, name in self.kept)}",
            "renamed": join_words(f"{original} -> {name}" for original, name in self.renamed),
            "dropped": join_words(f"{original} ({reason})" for original, reason in self.dropped),
            "input": f"{self.sampling_rate:g} Hz, {self.unit}",
            "steps": join_words(self.steps_applied),
            "skipped": join_words(f"{step} ({reason})" for step, reason in self.steps_skipped),
            "amplitude": amplitude,
            "flat": join_words(self.flat),
            "clipped": join_words(self.clipped),
            "seconds": f"{self.seconds_used:g} used, {self.seconds_left_over:g} left over",
            "warnings": "; ".join(self.warnings),
        }
        return "\n".join([self.source, *(f"  {key:<10}{text}" for key, text in lines.items() if text)])


@dataclass(frozen=True)
class EEGWindow:
    """Where a segment of a batch comes from: its row and place in the row, the index of its recording (and so of its
    report), and its start and end in seconds of that recording."""

    row: int
    segment: int
    recording: int
    start: float
    end: float


@dataclass
class PreparedEEG:
    """A whole recording after the recipe, not yet cut.

    Fields:
        values: float32 (channels, samples) at the recipe's sampling rate, divided by the recipe's scale.
        ch_names, channel_ids: vocabulary names, and ids int64 (channels,).
        report: its report; the seconds are filled in when it is cut.
        item: index of the thing passed that it comes from (an Epochs object gives several recordings).
    """

    values: np.ndarray
    ch_names: list[str]
    channel_ids: np.ndarray
    report: EEGReport
    item: int = 0


@dataclass(frozen=True)
class EEGSegment:
    """One window as patches, time-major: all channels of second 0, then all channels of second 1, and so on.

    Fields:
        values: float32 (patches, patch_size); channel_ids, time_ids: int64 (patches,). Time ids count from 0.
        recording, start, end: where it comes from, in seconds of that recording.
    """

    values: np.ndarray
    channel_ids: np.ndarray
    time_ids: np.ndarray
    recording: int
    start: float
    end: float

    @property
    def n_patches(self) -> int:
        return len(self.time_ids)

    @property
    def n_seconds(self) -> int:
        return int(self.time_ids[-1]) + 1


class EEGBatch(BatchFeature):
    """Model inputs, batch first, with two plain attributes that are not inputs and stay through `.to()` and pickling.

    Attributes:
        reports: one `EEGReport` per recording.
        windows: one `EEGWindow` per segment, in the order of rows and, inside a row, of segments.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        tensor_type: str | None = None,
        reports: Sequence[EEGReport] = (),
        windows: Sequence[EEGWindow] = (),
    ):
        self.reports = list(reports)
        self.windows = list(windows)
        super().__init__(data, tensor_type=tensor_type)

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


# ------------------------------------------------------------------------------------------------
# 2. Feature extractor
# ------------------------------------------------------------------------------------------------

# Median robust amplitude of the channels, in microvolts, outside of which the unit must be wrong. Scalp EEG has some 3
# to 150; a suppressed or quiet bipolar recording 1, an infant's or a very artefact-laden one some hundreds. Units are
# mistaken by factors of 1000, which lead from the usual amplitudes to below 0.15 or above 3000.
PLAUSIBLE_MICROVOLTS = (0.5, 1000.0)
_TYPICAL_MICROVOLTS = 20.0
# A channel is flat if one value fills this share of its samples, clipped if it stays at its extremes for that share.
_FLAT_SHARE = 0.9
# Below this rate not even the alpha rhythm is left.
SLOWEST_HZ = 50.0
_CLIPPED_SHARE = 0.01
# Room that MNE's notch needs between its frequency and Nyquist (Hz).
_NOTCH_MARGIN = 1.0


@dataclass(frozen=True)
class _Item:
    """One thing the user passed and what was said about it."""

    index: int
    eeg: Any
    ch_names: Sequence[str] | None = None
    sampling_rate: float | None = None
    unit: str | None = None

    @property
    def source(self) -> str:
        is_path = isinstance(self.eeg, (str, os.PathLike))
        return os.fspath(self.eeg) if is_path else f"recording {self.index}"


@dataclass
class _Signal:
    """One recording's kept channels before the recipe: float64 (channels, samples) in `unit`."""

    data: np.ndarray
    montage: Montage
    sampling_rate: float
    unit: str
    source: str
    item: int
    # (onset, duration, description) in seconds, where separately recorded parts meet: filters stop there.
    boundaries: list[tuple[float, float, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_epoch: bool = False


# What transformers writes into a saved extractor beside its own arguments.
_LIBRARY_FIELDS = {
    "auto_map",
    "feature_extractor_type",
    "padding_side",
    "processor_class",
    "return_attention_mask",
    "transformers_version",
    "_name_or_path",
}


class EEGFeatureExtractor(SequenceFeatureExtractor):
    """Turns EEG recordings of any montage, length, unit and sampling rate into patches, by a recipe saved with it.

    A whole recording is read, resolved, checked, brought to microvolts, band-passed, notched, resampled,
    re-referenced, divided by `scale`, and only then cut into windows.

    Args:
        sampling_rate: Hz of the patches.
        patch_size: samples of a patch, one second: equal to `sampling_rate`.
        band: edges of the band-pass in Hz. An edge at or above the Nyquist frequency of a recording is skipped.
        notch_frequency: mains frequency in Hz, None for no notch.
        scale: microvolts are divided by it.
        reference: None, or 'average' for the average of the channels kept.
        window_seconds: length of a window in whole seconds; None: as many as fit the token budget.
        stride_seconds: from the start of a window to the start of the next; None: the window's length.
        max_tokens: patches of a window at most, over all channels.
        max_seconds: seconds of a window at most.
        pad_to_patches: pad every row to exactly this many patches, as checkpoints tuned on padded input expect; None:
            to the longest row of the batch.
        do_resample, do_filter, do_notch, do_rescale: switches of the steps.
        padding_value: value of padded samples.

    Raises:
        ValueError: values that do not fit together.
    """

    model_input_names = [
        "input_values",
        "eeg_channel_ids",
        "eeg_time_ids",
        "eeg_segment_ids",
        "eeg_attention_mask",
    ]

    def __init__(
        self,
        sampling_rate: int = 200,
        patch_size: int = 200,
        band: Sequence[float] = (0.1, 75.0),
        notch_frequency: float | None = 50.0,
        scale: float = 100.0,
        reference: str | None = None,
        window_seconds: int | None = None,
        stride_seconds: float | None = None,
        max_tokens: int = 1024,
        max_seconds: int = 64,
        pad_to_patches: int | None = None,
        do_resample: bool = True,
        do_filter: bool = True,
        do_notch: bool = True,
        do_rescale: bool = True,
        padding_value: float = 0.0,
        **kwargs: Any,
    ):
        kwargs.pop("feature_size", None)
        if unknown := sorted(set(kwargs) - _LIBRARY_FIELDS):
            raise TypeError(f"EEGFeatureExtractor takes no {join_words(unknown)}.")
        super().__init__(int(patch_size), int(sampling_rate), padding_value, **kwargs)
        self.patch_size = int(patch_size)
        self.band = tuple(float(edge) for edge in band)
        self.notch_frequency = None if notch_frequency is None else float(notch_frequency)
        self.scale = float(scale)
        self.reference = reference
        self.window_seconds = window_seconds
        self.stride_seconds = stride_seconds
        self.max_tokens = max_tokens
        self.max_seconds = max_seconds
        self.pad_to_patches = pad_to_patches
        self.do_resample = do_resample
        self.do_filter = do_filter
        self.do_notch = do_notch
        self.do_rescale = do_rescale
        self._validate()

    def _validate(self) -> None:
        if self.patch_size != self.sampling_rate:
            raise ValueError(
                f"a patch is one second: patch_size ({self.patch_size}) equals sampling_rate ({self.sampling_rate})."
            )
        if len(self.band) != 2 or not 0 < self.band[0] < self.band[1]:
            raise ValueError(f"band is (low, high) in Hz with 0 < low < high, not {self.band}.")
        if self.notch_frequency is not None and self.notch_frequency <= 0:
            raise ValueError(f"notch_frequency is positive or None, not {self.notch_frequency}.")
        if self.scale <= 0:
            raise ValueError(f"scale is positive, not {self.scale}.")
        if self.reference not in (None, "average"):
            raise ValueError(f"reference is None or 'average', not {self.reference!r}.")
        for name in ("window_seconds", "max_tokens", "max_seconds", "pad_to_patches"):
            value = getattr(self, name)
            if value is not None and (value != int(value) or value < 1):
                raise ValueError(f"{name} is a whole number of at least 1, not {value!r}.")
        if self.stride_seconds is not None:
            stride = self.stride_seconds * self.sampling_rate
            if stride < 1 - 1e-6 or abs(stride - round(stride)) > 1e-6:
                raise ValueError(f"stride_seconds is a whole number of samples, not {self.stride_seconds} s.")

    # The recipe ----------------------------------------------------------------

    @property
    def recipe(self) -> dict[str, Any]:
        """The fields that change the signal."""
        return {
            "sampling_rate": self.sampling_rate,
            "band": list(self.band),
            "notch_frequency": self.notch_frequency,
            "scale": self.scale,
            "reference": self.reference,
            "do_resample": self.do_resample,
            "do_filter": self.do_filter,
            "do_notch": self.do_notch,
            "do_rescale": self.do_rescale,
        }

    @property
    def recipe_id(self) -> str:
        """A short hash of `recipe`: what prepared data carry, and what `prepared_by` is compared with."""
        return hashlib.sha256(json.dumps(self.recipe, sort_keys=True).encode()).hexdigest()[:12]

    # The three steps a user may want one by one ----------------------------------------------------------------

    def __call__(
        self,
        eeg: Any,
        ch_names: Any = None,
        sampling_rate: Any = None,
        unit: Any = None,
        unknown_channels: UnknownChannels = "raise",
        prepared_by: str | None = None,
        return_tensors: str | None = None,
    ) -> EEGBatch:
        """Prepare recordings and cut them into windows, one row each.

        Args:
            eeg: a NumPy array (channels, samples), an `mne.io.Raw`, `mne.Epochs` (each epoch a recording of its own),
                a path to a file MNE reads, or a list of these.
            ch_names: channel names of an array: one list for all, or a list per item.
            sampling_rate: Hz of an array: one for all, or one per item.
            unit: unit of the values, one for all or one per item. Needed for arrays. MNE objects and files are in V by
                MNE's convention; give it where that is wrong.
            unknown_channels: 'raise', or 'drop' to leave unknown channel names out and report them.
            prepared_by: the `recipe_id` under which these arrays were prepared (scaled, at `sampling_rate`): all steps
                are skipped if it is this recipe's, else an error.
            return_tensors: 'pt', 'np', or None for lists of NumPy arrays.

        Returns:
            [`EEGBatch`]: rows right-padded; patches time-major.

            - **input_values** -- float32 (rows, patches, patch_size)
            - **eeg_channel_ids**, **eeg_time_ids** -- int64 (rows, patches); `PAD_CHANNEL_ID` and 0 at padding
            - **eeg_segment_ids**, **eeg_attention_mask** -- int64 (rows, patches)

        Raises:
            TypeError, ValueError: what is wrong, where and what to do.
            ImportError: a step needs MNE and it is not installed.
        """
        prepared = self.prepare(eeg, ch_names, sampling_rate, unit, unknown_channels, prepared_by)
        rows = [[segment] for index, one in enumerate(prepared) for segment in self.cut(one, index)]
        return self.collate(rows, [one.report for one in prepared], return_tensors)

    def prepare(
        self,
        eeg: Any,
        ch_names: Any = None,
        sampling_rate: Any = None,
        unit: Any = None,
        unknown_channels: UnknownChannels = "raise",
        prepared_by: str | None = None,
    ) -> list[PreparedEEG]:
        """Apply the recipe to whole recordings. Arguments and errors as in `__call__`; one result per recording."""
        recordings = list(eeg) if isinstance(eeg, (list, tuple)) else [eeg]
        if not recordings:
            raise ValueError("no recordings were passed: `eeg` is an empty list.")
        if prepared_by is not None:
            self._check_prepared(recordings, sampling_rate, unit, prepared_by)
            sampling_rate, unit = self.sampling_rate, "uV"
        elif self.do_filter and any(_is_epochs(one) for one in recordings):
            _warn(
                "filtering short epochs distorts them (a 0.1 Hz high-pass is longer than most): filter the Raw with "
                "this feature extractor's recipe before cutting epochs, or pass the Raw."
            )
        prepare_one = self._prepare_one if prepared_by is None else self._as_prepared
        items = _items(recordings, ch_names, sampling_rate, unit)
        return [prepare_one(signal) for item in items for signal in _open(item, unknown_channels)]

    def cut(self, prepared: PreparedEEG, recording: int = 0) -> list[EEGSegment]:
        """Cut a prepared recording into windows, from its start, and each window into patches.

        A recording shorter than a window is one window of its whole seconds. What remains after the last full window
        is left over; the report says how much of the recording is used.

        Args:
            prepared: from `prepare`.
            recording: its index, for the segments' `recording`.

        Raises:
            ValueError: shorter than a second, more channels than `max_tokens`, or a window beyond the token budget.
        """
        source, n_samples = prepared.report.source, prepared.values.shape[1]
        length = self.window_length(len(prepared.ch_names), source) * self.patch_size
        if n_samples < self.patch_size:
            raise ValueError(f"{source}: {n_samples / self.sampling_rate:.3g} s is less than one second of EEG.")
        length = min(length, n_samples // self.patch_size * self.patch_size)
        stride = length if self.stride_seconds is None else round(self.stride_seconds * self.sampling_rate)
        starts = range(0, n_samples - length + 1, stride)
        covered = starts[-1] + length - max(0, stride - length) * (len(starts) - 1)
        prepared.report.seconds_used = covered / self.sampling_rate
        prepared.report.seconds_left_over = (n_samples - covered) / self.sampling_rate
        return [
            self.to_segment(
                prepared.values[:, start : start + length], prepared.channel_ids, recording, start / self.sampling_rate
            )
            for start in starts
        ]

    def window_length(self, n_channels: int, source: str = "recording") -> int:
        """Whole seconds of a window of `n_channels` channels, by `window_seconds` and the token budget."""
        max_tokens = min(self.max_tokens, self.pad_to_patches or self.max_tokens)
        if n_channels > max_tokens:
            raise ValueError(f"{source}: {n_channels} channels do not fit a budget of {max_tokens} tokens a window.")
        budget = min(self.max_seconds, max_tokens // n_channels)
        if self.window_seconds is not None and self.window_seconds > budget:
            raise ValueError(
                f"{source}: windows of {self.window_seconds} s of {n_channels} channels exceed the budget of "
                f"{max_tokens} tokens and {self.max_seconds} s: {budget} s at most."
            )
        return int(self.window_seconds or budget)

    def to_segment(
        self, values: np.ndarray, channel_ids: np.ndarray, recording: int = 0, start: float = 0.0
    ) -> EEGSegment:
        """The patches of one prepared window, time-major: the one place where this order is written.

        Args:
            values: (channels, samples), a whole number of seconds.
            channel_ids: int64 (channels,).
            recording, start: where the window comes from (index, seconds).
        """
        n_channels, n_samples = values.shape
        if n_samples == 0 or n_samples % self.patch_size:
            raise ValueError(f"a window is a whole number of seconds, {n_samples} samples are not.")
        seconds = n_samples // self.patch_size
        patches = values.reshape(n_channels, seconds, self.patch_size).transpose(1, 0, 2)
        return EEGSegment(
            values=patches.reshape(-1, self.patch_size).astype(np.float32),
            channel_ids=np.tile(np.asarray(channel_ids, dtype=np.int64), seconds),
            time_ids=np.repeat(np.arange(seconds, dtype=np.int64), n_channels),
            recording=recording,
            start=start,
            end=start + seconds,
        )

    def collate(
        self,
        rows: Sequence[Sequence[EEGSegment]],
        reports: Sequence[EEGReport] = (),
        return_tensors: str | None = None,
    ) -> EEGBatch:
        """Put the segments of each row one after the other and pad the rows on the right. Output as in `__call__`."""
        lengths = [sum(segment.n_patches for segment in row) for row in rows]
        width = self.pad_to_patches or max(lengths)
        if max(lengths) > width:
            raise ValueError(f"row {int(np.argmax(lengths))} has {max(lengths)} patches, pad_to_patches is {width}.")
        shape = (len(rows), width)
        values = np.full((*shape, self.patch_size), self.padding_value, dtype=np.float32)
        channel_ids = np.full(shape, PAD_CHANNEL_ID, dtype=np.int64)
        time_ids, segment_ids, mask = (np.zeros(shape, dtype=np.int64) for _ in range(3))
        windows = []
        for row, segments in enumerate(rows):
            begin = 0
            for index, segment in enumerate(segments):
                where = (row, slice(begin, begin + segment.n_patches))
                values[where], channel_ids[where] = segment.values, segment.channel_ids
                time_ids[where], segment_ids[where], mask[where] = segment.time_ids, index, 1
                windows.append(EEGWindow(row, index, segment.recording, segment.start, segment.end))
                begin += segment.n_patches
        arrays = (values, channel_ids, time_ids, segment_ids, mask)
        return _to_batch(dict(zip(self.model_input_names, arrays, strict=True)), return_tensors, reports, windows)

    # Inside `prepare` ----------------------------------------------------------------

    def _check_prepared(self, items: list[Any], sampling_rate: Any, unit: Any, prepared_by: str) -> None:
        if prepared_by != self.recipe_id:
            raise ValueError(
                f"the data were prepared by recipe {prepared_by}, this feature extractor's is {self.recipe_id} "
                f"({self.recipe}): prepare them again from the recordings, or load the feature extractor they "
                "came from."
            )
        if not all(_is_array(item) for item in items):
            raise TypeError("prepared data are arrays (channels, samples), not MNE objects or files.")
        rates = sampling_rate if isinstance(sampling_rate, (list, tuple)) else [sampling_rate]
        if any(rate is not None and rate != self.sampling_rate for rate in rates):
            raise ValueError(f"prepared data are at {self.sampling_rate} Hz, not {sampling_rate} Hz.")
        if unit is not None:
            raise ValueError(f"prepared data are scaled already: leave unit={unit!r} out.")

    def _as_prepared(self, signal: _Signal) -> PreparedEEG:
        _check_finite(signal)
        report = EEGReport(signal.source, "prepared", signal.sampling_rate)
        report.kept = [(channel.original, channel.name) for channel in signal.montage.kept]
        report.dropped = [(channel.original, channel.reason) for channel in signal.montage.dropped]
        report.steps_skipped = [("all steps", f"the data are prepared by recipe {self.recipe_id}")]
        return self._pack(signal, signal.data, report)

    def _prepare_one(self, signal: _Signal) -> PreparedEEG:
        report = EEGReport(signal.source, signal.unit, signal.sampling_rate, warnings=list(signal.notes))
        report.kept = [(channel.original, channel.name) for channel in signal.montage.kept]
        report.dropped = [(channel.original, channel.reason) for channel in signal.montage.dropped]
        seconds = signal.data.shape[1] / signal.sampling_rate
        if seconds < 1:
            raise ValueError(f"{signal.source}: {seconds:.3g} s is less than one second of EEG.")
        _check_finite(signal)
        _find_flat_and_clipped(signal, report)
        data = self._filter(signal.data * microvolts_per(signal.unit), signal, report)
        data = self._rereference(data, report)
        _check_amplitude(data, signal, report, self.patch_size)
        if self.do_rescale:
            data = data / self.scale
        reason = None if self.do_rescale else "switched off (do_rescale=False)"
        _note_step(report, f"divide by {self.scale:g} uV", reason)
        return self._pack(signal, data, report)

    def _pack(self, signal: _Signal, data: np.ndarray, report: EEGReport) -> PreparedEEG:
        values = np.ascontiguousarray(data, dtype=np.float32)
        return PreparedEEG(values, signal.montage.names, signal.montage.ids, report, signal.item)

    def _filter(self, data: np.ndarray, signal: _Signal, report: EEGReport) -> np.ndarray:
        """Band-pass, notch, resample, in this order and on the whole recording."""
        rate = signal.sampling_rate
        low, high = self._plan_band(rate, report)
        notch = self._plan_notch(rate, report)
        resample = self._plan_resample(signal, report)
        if low is None and high is None and notch is None and not resample:
            return data
        raw = _as_raw_array(data, signal)
        if low is not None or high is not None:
            _warn_if_short(signal, low, high, report)
            raw.filter(low, high, verbose="ERROR")
        if notch is not None:
            raw.notch_filter(notch, verbose="ERROR")
        if resample:
            raw.resample(self.sampling_rate, verbose="ERROR")
        return raw.get_data()

    def _plan_band(self, rate: float, report: EEGReport) -> tuple[float | None, float | None]:
        edges: list[float | None] = []
        for name, edge in zip(("high-pass", "low-pass"), self.band, strict=True):
            reason = None if self.do_filter else "switched off (do_filter=False)"
            if reason is None and edge >= rate / 2:
                reason = f"at or above the Nyquist frequency, {rate / 2:g} Hz"
            _note_step(report, f"{name} {edge:g} Hz", reason)
            edges.append(edge if reason is None else None)
        return edges[0], edges[1]

    def _plan_notch(self, rate: float, report: EEGReport) -> float | None:
        if self.notch_frequency is None:
            _note_step(report, "notch", "no notch_frequency in the recipe")
            return None
        reason = None if self.do_notch else "switched off (do_notch=False)"
        if reason is None and self.notch_frequency + _NOTCH_MARGIN > rate / 2:
            reason = f"at or above the Nyquist frequency, {rate / 2:g} Hz, or within {_NOTCH_MARGIN:g} Hz of it"
        _note_step(report, f"notch {self.notch_frequency:g} Hz", reason)
        return self.notch_frequency if reason is None else None

    def _plan_resample(self, signal: _Signal, report: EEGReport) -> bool:
        rate, step = signal.sampling_rate, f"resample to {self.sampling_rate} Hz"
        if rate == self.sampling_rate:
            _note_step(report, step, "already there")
            return False
        if not self.do_resample:
            raise ValueError(
                f"{signal.source} is at {rate:g} Hz and do_resample is off, but patches are seconds at "
                f"{self.sampling_rate} Hz: resample it, or switch do_resample on."
            )
        _note_step(report, step, None)
        return True

    def _rereference(self, data: np.ndarray, report: EEGReport) -> np.ndarray:
        if self.reference is None:
            return data
        bipolar = any("-" in name for _, name in report.kept)
        _note_step(report, "average reference", "the montage has bipolar pairs" if bipolar else None)
        return data if bipolar else data - data.mean(axis=0)


def _items(recordings: list[Any], ch_names: Any, sampling_rate: Any, unit: Any) -> list[_Item]:
    arrays = [_is_array(one) for one in recordings]
    names = _per_item(ch_names, arrays, depth=1, what="ch_names")
    rates = _per_item(sampling_rate, arrays, depth=0, what="sampling_rate")
    units = _per_item(unit, [True] * len(recordings), depth=0, what="unit")
    return [_Item(index, *parts) for index, parts in enumerate(zip(recordings, names, rates, units, strict=True))]


def _per_item(value: Any, takes: list[bool], depth: int, what: str) -> list[Any]:
    """One value per item, from one per item or one for all; `depth` is that of a single value (a list of names: 1).

    A value for all goes to the items that take it, or to every item where none does, so that it is refused there.
    """
    if _depth(value) == depth + 1:
        if len(value) != len(takes):
            raise ValueError(f"{len(value)} entries in {what} for {len(takes)} recording(s).")
        return list(value)
    return [value if take or not any(takes) else None for take in takes]


def _depth(value: Any) -> int:
    """How deep lists are nested in `value`: 0 for a single thing."""
    if not isinstance(value, (list, tuple, np.ndarray)):
        return 0
    return 1 + max((_depth(part) for part in value), default=0)


def _is_array(item: Any) -> bool:
    return isinstance(item, (np.ndarray, torch.Tensor))


def _is_epochs(item: Any) -> bool:
    return mne is not None and isinstance(item, mne.BaseEpochs)


def _open(item: _Item, unknown_channels: UnknownChannels) -> list[_Signal]:
    """The recordings in one thing the user passed: several for Epochs, else one."""
    if _is_array(item.eeg):
        return [_open_array(item, unknown_channels)]
    notes: list[str] = []
    eeg = item.eeg
    if isinstance(eeg, (str, os.PathLike)):
        eeg, notes = open_recording(eeg)
        for note in notes:
            _warn(note)
    if mne is None or not isinstance(eeg, (mne.io.BaseRaw, mne.BaseEpochs)):
        raise TypeError(
            f"{item.source}: cannot read EEG from a {type(eeg).__name__}. Pass a NumPy array (channels, samples), an "
            "mne.io.Raw, mne.Epochs, a path, or a list of these" + (" (MNE: pip install mne)." if mne is None else ".")
        )
    if item.ch_names is not None or item.sampling_rate is not None:
        raise ValueError(
            f"{item.source}: files and MNE objects bring their own channel names and sampling rate. Leave `ch_names` "
            "and `sampling_rate` out (rename with raw.rename_channels)."
        )
    return _open_mne(item, eeg, unknown_channels, notes)


def _open_array(item: _Item, unknown_channels: UnknownChannels) -> _Signal:
    source, ch_names, rate, unit = item.source, item.ch_names, item.sampling_rate, item.unit
    if ch_names is None or rate is None or unit is None:
        given = {"ch_names": ch_names, "sampling_rate": rate, "unit": unit}
        missing = join_words(name for name, value in given.items() if value is None)
        raise ValueError(
            f"{source}: an array says nothing about itself, pass {missing} too, e.g. ch_names=['FP1', 'FP2'], "
            "sampling_rate=500, unit='uV'."
        )
    array = np.asarray(item.eeg)
    if array.ndim != 2:
        raise ValueError(f"{source}: an EEG array is (channels, samples), not {array.shape}. Pass several as a list.")
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{source}: EEG arrays hold real numbers, this has dtype {array.dtype}.")
    if isinstance(ch_names, str) or len(ch_names) != len(array):
        transposed = " Is it (samples, channels)? Transpose it." if len(ch_names) == array.shape[1] else ""
        raise ValueError(f"{source}: {len(ch_names)} channel names for {len(array)} rows.{transposed}")
    if not isinstance(rate, (int, float, np.number)) or not 0 < rate < float("inf"):
        raise ValueError(f"{source}: sampling_rate is a positive number of Hz, not {rate!r}.")
    if rate < SLOWEST_HZ:
        raise ValueError(f"{source}: {rate:g} Hz is too slow for EEG ({SLOWEST_HZ:g} Hz at least). Is it in kHz?")
    if array.shape[1] == 0:
        raise ValueError(f"{source} has no samples.")
    microvolts_per(unit)
    montage = resolve_montage(list(ch_names), None, unknown_channels, source)
    data = array[montage.rows].astype(np.float64)
    return _Signal(data, montage, float(rate), unit, source, item.index)


def _open_mne(item: _Item, eeg: Any, unknown_channels: UnknownChannels, notes: list[str]) -> list[_Signal]:
    """The recordings of an `mne.io.Raw` or `mne.Epochs`. `item` says which unit, MNE's volts where it says none."""
    source, unit, rate = item.source, item.unit or "V", float(eeg.info["sfreq"])
    microvolts_per(unit)
    excluded = {row: f"MNE channel type {kind!r}" for row, kind in enumerate(eeg.get_channel_types()) if kind != "eeg"}
    for row, name in enumerate(eeg.ch_names):
        if name in eeg.info["bads"]:
            excluded.setdefault(row, "marked bad in info['bads']")
    montage = resolve_montage(eeg.ch_names, excluded, unknown_channels, source)
    data = eeg.get_data(picks=montage.rows, verbose="ERROR")
    if data.size == 0:
        raise ValueError(f"{source} has no samples.")
    if data.ndim == 3:
        return [
            _Signal(epoch, montage, rate, unit, f"{source}, epoch {number}", item.index, is_epoch=True)
            for number, epoch in enumerate(data)
        ]
    boundaries = _boundaries(eeg)
    if boundaries:
        joints = join_words(f"{onset:.1f} s" for onset, _, _ in boundaries)
        notes = [*notes, f"separately recorded parts meet at {joints}: filtered apart, but windows may span them"]
    return [_Signal(data, montage, rate, unit, source, item.index, boundaries, notes)]


def _boundaries(raw: Any) -> list[tuple[float, float, str]]:
    """(onset, duration, description) of the joints of a concatenated or paused recording, in seconds of its data."""
    annotations = raw.annotations
    parts = zip(annotations.onset, annotations.duration, annotations.description, strict=True)
    return [
        (float(onset - raw.first_time), float(duration), str(description))
        for onset, duration, description in parts
        if str(description).lower().startswith(("edge", "bad_acq_skip"))
    ]


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)


def _note_step(report: EEGReport, step: str, reason: str | None) -> None:
    if reason is None:
        report.steps_applied.append(step)
    else:
        report.steps_skipped.append((step, reason))


def _as_raw_array(data: np.ndarray, signal: _Signal) -> Any:
    require_mne("Filtering and resampling EEG")
    info = mne.create_info(signal.montage.names, signal.sampling_rate, "eeg", verbose="ERROR")
    raw = mne.io.RawArray(data, info, verbose="ERROR")
    if signal.boundaries:
        onsets, durations, descriptions = zip(*signal.boundaries, strict=True)
        raw.set_annotations(mne.Annotations(onsets, durations, descriptions), verbose="ERROR")
    return raw


def _warn_if_short(signal: _Signal, low: float | None, high: float | None, report: EEGReport) -> None:
    rate, n_samples = signal.sampling_rate, signal.data.shape[1]
    length = len(mne.filter.create_filter(None, rate, low, high, verbose="ERROR"))
    if n_samples >= length:
        return
    message = (
        f"{signal.source}: {n_samples / rate:.3g} s is shorter than the {length / rate:.3g} s of the band-pass "
        "filter, which distorts it: pass the whole recording."
    )
    report.warnings.append(message)
    # Of epochs `prepare` has warned once for all.
    if not signal.is_epoch:
        _warn(message)


def _check_finite(signal: _Signal) -> None:
    bad = ~np.isfinite(signal.data)
    if not bad.any():
        return
    row = int(np.argmax(bad.any(axis=1)))
    second = int(np.argmax(bad[row])) / signal.sampling_rate
    others = int(bad.any(axis=1).sum()) - 1
    too = f" ({others} more channel(s) too)" if others else ""
    raise ValueError(
        f"{signal.source}: channel {signal.montage.kept[row].original!r} has {int(bad[row].sum())} NaN or infinite "
        f"value(s), the first at {second:.3f} s{too}. Repair or cut them out, or leave the channel out."
    )


def _find_flat_and_clipped(signal: _Signal, report: EEGReport) -> None:
    for name, row in zip(signal.montage.names, signal.data, strict=True):
        if np.mean(row == np.median(row)) >= _FLAT_SHARE:
            report.flat.append(name)
        elif _clipped_share(row) >= _CLIPPED_SHARE:
            report.clipped.append(name)
    if len(report.flat) == len(signal.data):
        raise ValueError(
            f"{signal.source}: every EEG channel is flat ({join_words(report.flat)}), there is no signal."
        )
    for kind, names in (("flat", report.flat), ("clipped", report.clipped)):
        if names:
            report.warnings.append(f"{kind} channels: {join_words(names)}")
            _warn(f"{signal.source}: {kind} channels: {join_words(names)}")


def _clipped_share(row: np.ndarray) -> float:
    """Share of samples that stay at the channel's lowest or highest value from one sample to the next."""
    at_rail = (row == row.min()) | (row == row.max())
    return float(np.mean(at_rail[1:] & (row[1:] == row[:-1])))


def _check_amplitude(data: np.ndarray, signal: _Signal, report: EEGReport, samples_per_second: int) -> None:
    """Measure each channel's robust amplitude (microvolts) and refuse a recording whose unit must be wrong."""
    names = signal.montage.names
    amplitudes = _robust_amplitude(data, samples_per_second)
    report.amplitude = {name: round(float(amplitude), 4) for name, amplitude in zip(names, amplitudes, strict=True)}
    live = [row for row, name in enumerate(names) if name not in report.flat]
    median = float(np.median(amplitudes[live]))
    low, high = PLAUSIBLE_MICROVOLTS
    if not low <= median <= high:
        row = min(live, key=lambda r: abs(amplitudes[r] - median))
        raise ValueError(
            f"{signal.source}: read in {signal.unit}, the median channel has an amplitude of {median:.3g} uV (e.g. "
            f"{names[row]}: {amplitudes[row]:.3g} uV), which is no EEG ({low:g} to {high:g} uV). "
            + _unit_advice(median / microvolts_per(signal.unit))
        )
    for row in live:
        if not low <= amplitudes[row] <= high:
            report.warnings.append(f"{names[row]} has an implausible amplitude, {amplitudes[row]:.3g} uV")
            _warn(f"{signal.source}: {report.warnings[-1]}")


def _robust_amplitude(data: np.ndarray, samples_per_second: int) -> np.ndarray:
    """1.4826 x the median absolute deviation from the median, inside each second, so that slow drifts of unfiltered
    data do not count; the median over the seconds in which a channel is alive. (channels, samples) -> (channels,)."""
    seconds = data.shape[1] // samples_per_second
    if seconds == 0:
        return 1.4826 * np.median(np.abs(data - np.median(data, axis=1, keepdims=True)), axis=1)
    patches = data[:, : seconds * samples_per_second].reshape(len(data), seconds, samples_per_second)
    deviation = np.median(np.abs(patches - np.median(patches, axis=2, keepdims=True)), axis=2)
    # a filter leaves a little ringing where a channel is dead: far below its own typical second is no signal
    alive = deviation > 0.05 * np.quantile(deviation, 0.9, axis=1, keepdims=True)
    medians = [np.median(row[kept]) if kept.any() else 0.0 for row, kept in zip(deviation, alive, strict=True)]
    return 1.4826 * np.array(medians)


def _unit_advice(amplitude: float) -> str:
    """Advice on the unit of numbers of this amplitude."""
    low, high = PLAUSIBLE_MICROVOLTS
    fitting = [unit for unit, factor in MICROVOLTS_PER_UNIT.items() if low <= amplitude * factor <= high]
    if not fitting:
        return f"Numbers of about {amplitude:.3g} fit no unit from nV to V: check the recording's scaling."
    likely = min(fitting, key=lambda unit: abs(np.log(amplitude * MICROVOLTS_PER_UNIT[unit] / _TYPICAL_MICROVOLTS)))
    return f"Numbers of about {amplitude:.3g} are likely {likely}: pass unit='{likely}' if so."


def _to_batch(
    arrays: dict[str, Any],
    return_tensors: str | None,
    reports: Sequence[EEGReport],
    windows: Sequence[EEGWindow],
) -> EEGBatch:
    if return_tensors is None:
        arrays = {name: list(array) for name, array in arrays.items()}
    return EEGBatch(arrays, return_tensors, reports, windows)


# ------------------------------------------------------------------------------------------------
# 3. Text tokenizers
# ------------------------------------------------------------------------------------------------

SEP_TOKEN = "[SEP]"
EEG_TOKEN = "<|eeg|>"
PAD_TOKEN = "<|pad|>"
_END_OF_TEXT = "<|endoftext|>"
_BPE_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")
_HUB_OPTIONS = ("cache_dir", "token", "revision", "local_files_only")


def build_text_tokenizer(source: PathOrStr) -> PreTrainedTokenizerBase:
    """A decoder's text tokenizer with `[SEP]`, `<|eeg|>` and `<|pad|>` at the next free ids (GPT-2: 50257 to 50259).

    Args:
        source: a Hub id ('gpt2'), a folder with a saved tokenizer, or a folder with GPT-2's BPE files
            (`encoder.json` and `vocab.bpe`, or `vocab.json` and `merges.txt`).

    Returns:
        The tokenizer, padding on the left with `<|pad|>`. Tokens that it has already keep their ids.

    Raises:
        ValueError: a folder without any of these files.
    """
    folder = Path(source)
    if not folder.is_dir() or any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return _add_neurolm_tokens(AutoTokenizer.from_pretrained(os.fspath(source)))
    for vocab_name, merges_name in _BPE_FILES:
        if (folder / vocab_name).is_file() and (folder / merges_name).is_file():
            vocab = json.loads((folder / vocab_name).read_text(encoding="utf-8"))
            lines = (folder / merges_name).read_text(encoding="utf-8").split("\n")
            merges = [line.split() for line in lines if line and not line.startswith("#version")]
            return _add_neurolm_tokens(_byte_level_bpe(vocab, merges))
    expected = " or ".join(f"{vocab} with {merges}" for vocab, merges in _BPE_FILES)
    raise ValueError(f"{folder} has no text tokenizer: neither {_TOKENIZER_FILES[0]}, nor {expected}.")


def train_text_tokenizer(texts: Iterable[str], vocab_size: int = 1024) -> PreTrainedTokenizerBase:
    """Train a small byte-level BPE, for where no BPE file is at hand: `<|endoftext|>` and NeuroLM's three tokens last.

    Args:
        texts: what to train on.
        vocab_size: tokens in all, the four special ones included; fewer where the texts give fewer merges.

    Raises:
        ValueError: `vocab_size` leaves no room for the 256 bytes and the special tokens.
    """
    # transformers depends on tokenizers, but nothing else in this file needs it.
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    reserved = 4
    if vocab_size < len(alphabet) + reserved:
        raise ValueError(f"vocab_size is at least {len(alphabet) + reserved}, not {vocab_size}.")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=vocab_size - reserved, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab = {**model["vocab"], _END_OF_TEXT: len(model["vocab"])}
    return _add_neurolm_tokens(_byte_level_bpe(vocab, model["merges"]))


def _byte_level_bpe(vocab: dict[str, int], merges: list[list[str]]) -> PreTrainedTokenizerBase:
    pairs: Any = [tuple(pair) for pair in merges]
    return GPT2Tokenizer(vocab=vocab, merges=pairs)


def _add_neurolm_tokens(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokens = [AddedToken(token, special=True, normalized=False) for token in (SEP_TOKEN, EEG_TOKEN, PAD_TOKEN)]
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.sep_token = SEP_TOKEN
    tokenizer.pad_token = PAD_TOKEN
    tokenizer.padding_side = "left"
    # Only what is in init_kwargs is saved.
    tokenizer.init_kwargs["padding_side"] = "left"
    return tokenizer


# ------------------------------------------------------------------------------------------------
# 4. Processor
# ------------------------------------------------------------------------------------------------

CHAT_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message['role'] not in ('user', 'assistant') -%}
        {{- raise_exception("NeuroLM knows the roles 'user' and 'assistant' only, not '" + message['role'] + "'.") -}}
    {%- endif -%}
    {%- set content = message['content'] -%}
    {%- set items = [{'type': 'text', 'text': content}] if content is string else content -%}
    {%- set turn = namespace(asked=false) -%}
    {%- for item in items -%}
        {%- if item['type'] == 'eeg' and message['role'] == 'user' -%}
            {{- '<|eeg|>' -}}
        {%- elif item['type'] == 'text' and message['role'] == 'user' -%}
            {{- (item['text'] if turn.asked else '[SEP]' + item['text']) -}}
            {%- set turn.asked = true -%}
        {%- elif item['type'] == 'text' -%}
            {{- ' ' + item['text'] + ' ' + eos_token -}}
        {%- else -%}
            {{- raise_exception("no '" + item['type'] + "' content in a turn of role '" + message['role'] + "'.") -}}
        {%- endif -%}
    {%- endfor -%}
    {%- if turn.asked and message['role'] == 'user' -%}
        {{- ' Answer:' -}}
    {%- endif -%}
{%- endfor -%}
"""

_TEXT_OPTIONS = {
    "add_special_tokens",
    "padding",
    "padding_side",
    "max_length",
    "truncation",
    "pad_to_multiple_of",
    "return_tensors",
}
_EEG_OPTIONS = {"unknown_channels", "prepared_by", "return_tensors"}


class EEGKwargs(AudioKwargs, total=False):
    """Keyword arguments that go to the feature extractor; see [`EEGFeatureExtractor.__call__`].

    unknown_channels (`str`, *optional*, defaults to `"raise"`):
        `"raise"`, or `"drop"` to leave unknown channel names out and report them.
    prepared_by (`str`, *optional*):
        The `recipe_id` under which the arrays passed were prepared.
    """

    unknown_channels: UnknownChannels
    prepared_by: str | None


class NeuroLMProcessorKwargs(ProcessingKwargs, total=False):
    """Keyword arguments of [`NeuroLMProcessor`] by where they go; transformers calls the EEG's `audio_kwargs`."""

    audio_kwargs: EEGKwargs  # type: ignore[misc]


class NeuroLMProcessor(ProcessorMixin):
    """EEG and text in one sequence: an [`EEGFeatureExtractor`] and a text tokenizer.

    `<|eeg|>` in a text stands for one recording and becomes one token per patch.

    Args:
        feature_extractor: an [`EEGFeatureExtractor`].
        tokenizer: a text tokenizer that knows `<|eeg|>` and has a padding token, as `build_text_tokenizer` gives;
            None for EEG alone.
        chat_template: a Jinja template, `CHAT_TEMPLATE` by default.

    Raises:
        ValueError: the tokenizer lacks `<|eeg|>` or a padding token.
    """

    valid_processor_kwargs = NeuroLMProcessorKwargs  # type: ignore[assignment]
    text_kwargs = {"padding": True}
    eeg_token = EEG_TOKEN

    def __init__(
        self,
        feature_extractor: EEGFeatureExtractor,
        tokenizer: PreTrainedTokenizerBase | None = None,
        chat_template: str | dict[str, str] | None = None,
    ):
        chat_template = CHAT_TEMPLATE if chat_template is None else chat_template
        if tokenizer is None:
            # ProcessorMixin checks, saves and prints these; it knows no optional one. (A partial can be pickled.)
            self.get_attributes = partial(list, ("feature_extractor",))  # type: ignore[method-assign]
            super().__init__(feature_extractor, chat_template=chat_template)
            self.tokenizer = None
            return
        self.eeg_token_id = _special_token_id(tokenizer, EEG_TOKEN)
        if tokenizer.pad_token_id is None:
            raise ValueError("the text tokenizer has no padding token: make it with build_text_tokenizer(...).")
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

    @property
    def model_input_names(self) -> list[str]:
        text_names = [] if self.tokenizer is None else ["input_ids", "attention_mask", "mm_token_type_ids"]
        return text_names + self.feature_extractor.model_input_names

    def __call__(
        self,
        eeg: Any = None,
        text: str | list[str] | None = None,
        ch_names: Any = None,
        sampling_rate: Any = None,
        unit: Any = None,
        **kwargs: Any,  # those of NeuroLMProcessorKwargs, nested or flat
    ) -> EEGBatch:
        """Prepare EEG, text, or both in one sequence.

        Args:
            eeg: one recording, a list of recordings, which the texts' placeholders take in order, or a list of
                lists, the recordings of each text. A recording is whatever [`EEGFeatureExtractor.__call__`] accepts.
            text: one text or several. A text without `<|eeg|>` gets its recording in front. None: EEG alone.
            ch_names, sampling_rate, unit: as in [`EEGFeatureExtractor.__call__`]; nested like `eeg` where it is.
            kwargs: `unknown_channels`, `prepared_by`; of the text `padding` (True by default), `padding_side` (the
                tokenizer's), `max_length`, `truncation`, `pad_to_multiple_of`, `add_special_tokens`; `return_tensors`.

        Returns:
            [`EEGBatch`], batch first. A text with one recording gives one row for each of the recording's windows.

            - **input_ids**, **attention_mask** -- int64 (rows, tokens), if there is a tokenizer
            - **mm_token_type_ids** -- int64 (rows, tokens): 1, 2, 3, ... over the seconds of all EEG segments of a
              row, 0 for text and padding
            - the keys of [`EEGFeatureExtractor.__call__`], if there is EEG, always right-padded

        Raises:
            ValueError: texts and recordings do not match (which sample, and both counts), a recording of several
                windows in a text of several recordings, or truncation that would cut EEG.
            TypeError: arguments of the wrong kind, or unknown ones.
        """
        if eeg is None and text is None:
            raise ValueError("pass eeg, text or both.")
        text_options, eeg_options = self._options(dict(kwargs))
        return_tensors = text_options.get("return_tensors")
        eeg_options.pop("return_tensors", None)
        items, sizes = _flatten(eeg)
        texts, recordings = self._match(text, len(items), sizes)
        if items:
            arguments = (_flatten_like(ch_names, sizes, 1), _flatten_like(sampling_rate, sizes, 0))
            prepared = self.feature_extractor.prepare(items, *arguments, _flatten_like(unit, sizes, 0), **eeg_options)
        else:
            prepared = []
        segments = self._segments_of_items(prepared, len(items))
        rows = [row for sample, indices in enumerate(recordings) for row in _rows_of_sample(sample, indices, segments)]
        reports = [one.report for one in prepared]
        batch = EEGBatch()
        if items:
            batch = self.feature_extractor.collate([row for _, row in rows], reports, return_tensors)
        if self.tokenizer is None:
            return batch
        arrays = self._text_arrays(texts, rows, text_options)
        tensors = EEGBatch(arrays, return_tensors)
        return EEGBatch({**tensors, **batch}, None, batch.reports, batch.windows)

    def tokenize_eeg(
        self,
        eeg: Any,
        model: Any,
        ch_names: Any = None,
        sampling_rate: Any = None,
        unit: Any = None,
        unknown_channels: UnknownChannels = "raise",
        prepared_by: str | None = None,
    ) -> torch.Tensor:
        """The VQ tokens of recordings.

        Args:
            eeg, ch_names, sampling_rate, unit, unknown_channels, prepared_by: as in [`EEGFeatureExtractor.__call__`].
            model: a model with `get_eeg_codes` (a NeuroLM) or `encode` (its neural tokenizer alone).

        Returns:
            `torch.LongTensor` (windows, patches): time-major codes, -1 at padding.
        """
        batch = self.feature_extractor(
            eeg, ch_names, sampling_rate, unit, unknown_channels, prepared_by, return_tensors="pt"
        )
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        inputs["input_values"] = inputs["input_values"].to(model.dtype)
        with torch.no_grad():
            model = getattr(model, "vq", model)  # of the tokenizer with its adversary
            if hasattr(model, "get_eeg_codes"):
                codes = model.get_eeg_codes(**inputs)
            elif hasattr(model, "encode"):
                del inputs["eeg_segment_ids"]
                codes = model.encode(**inputs).codes
            else:
                raise TypeError(f"a {type(model).__name__} has neither get_eeg_codes nor encode.")
        return codes.masked_fill(inputs["eeg_attention_mask"] == 0, -1)

    def decode(self, token_ids: Any, **kwargs: Any) -> Any:
        """Text of token ids (one row or several), EEG placeholders and negative ids (masked labels) left out."""
        return self._require_tokenizer().decode(self._without_eeg(token_ids), **kwargs)

    def batch_decode(self, sequences: Any, **kwargs: Any) -> Any:
        """As `decode`, of several rows."""
        return self._require_tokenizer().batch_decode(self._without_eeg(sequences), **kwargs)

    # Arguments ----------------------------------------------------------------

    def _require_tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise ValueError("this processor has no text tokenizer: pass it one made with build_text_tokenizer(...).")
        return self.tokenizer

    def _options(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keyword arguments of the text and of the EEG; unknown ones raise (transformers would only log them)."""
        # apply_chat_template passes these of every processor.
        for name in ("images", "videos", "audio"):
            if kwargs.get(name) is None:
                kwargs.pop(name, None)
        allowed = {"text_kwargs": _TEXT_OPTIONS, "audio_kwargs": _EEG_OPTIONS}
        unknown = set(kwargs) - _TEXT_OPTIONS - _EEG_OPTIONS - set(allowed)
        for group, names in allowed.items():
            unknown |= set(kwargs.get(group, {})) - names
        if unknown:
            raise TypeError(f"NeuroLMProcessor takes no {join_words(sorted(unknown))}.")
        init_kwargs = {} if self.tokenizer is None else self.tokenizer.init_kwargs
        merged = self._merge_kwargs(tokenizer_init_kwargs=init_kwargs, **kwargs)
        eeg_options = {name: value for name, value in merged["audio_kwargs"].items() if name in _EEG_OPTIONS}
        return merged["text_kwargs"], eeg_options

    def _match(self, text: Any, n_items: int, sizes: list[int] | None) -> tuple[list[str], list[list[int]]]:
        """The texts, each with a placeholder for each of its recordings, and the indices of those recordings."""
        if text is None:
            sizes = [1] * n_items if sizes is None else sizes
            texts = [EEG_TOKEN * size for size in sizes]
        else:
            self._require_tokenizer()
            texts = [text] if isinstance(text, str) else text
            if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(one, str) for one in texts):
                raise TypeError("text is a string or a non-empty list of strings.")
        if sizes is not None and len(sizes) != len(texts):
            raise ValueError(f"{len(texts)} text(s) but recordings for {len(sizes)} sample(s).")
        matched, recordings, used = [], [], 0
        for sample, one in enumerate(texts):
            count = one.count(EEG_TOKEN)
            offered = n_items - used if sizes is None else sizes[sample]
            # an empty list of a nested `eeg`, or no EEG at all, says that a text stands alone
            if count == 0 and n_items > 0 and (sizes is None or offered > 0):
                one, count = EEG_TOKEN + one, 1
            if count > offered or (sizes is not None and count != offered):
                raise ValueError(f"sample {sample}: its text has room for {count} recording(s), {offered} are given.")
            matched.append(one)
            recordings.append(list(range(used, used + count)))
            used += count
        if used < n_items:
            raise ValueError(
                f"sample {len(texts) - 1} is the last and {n_items - used} recording(s) are left over: the texts "
                f"({len(texts)}) have room for {used}, {n_items} are given. Put in more {EEG_TOKEN}, or pass as many "
                "texts as recordings."
            )
        return matched, recordings

    def _segments_of_items(self, prepared: list[PreparedEEG], n_items: int) -> list[list[EEGSegment]]:
        segments: list[list[EEGSegment]] = [[] for _ in range(n_items)]
        for index, one in enumerate(prepared):
            segments[one.item].extend(self.feature_extractor.cut(one, index))
        return segments

    # Text ----------------------------------------------------------------

    def _text_arrays(
        self, texts: list[str], rows: list[tuple[int, list[EEGSegment]]], options: dict[str, Any]
    ) -> dict[str, Any]:
        """`input_ids`, `attention_mask` and `mm_token_type_ids` of the rows, placeholders expanded, padded."""
        tokenizer = self._require_tokenizer()
        special = {name: options[name] for name in ("add_special_tokens",) if options.get(name) is not None}
        # verbose=False: no warning about model_max_length, which counts text and not seconds of EEG.
        encoded = [tokenizer(text, verbose=False, **special)["input_ids"] for text in texts]
        ids, blocks = [], []
        for row, (sample, segments) in enumerate(rows):
            row_ids, row_blocks = self._expand(encoded[sample], segments)
            start, stop = self._kept_by_truncation(row, row_ids, options)
            ids.append(row_ids[start:stop])
            blocks.append(row_blocks[start:stop])
        width = self._padded_width([len(row_ids) for row_ids in ids], options)
        side = options.get("padding_side") or tokenizer.padding_side
        columns = (
            ("input_ids", ids, tokenizer.pad_token_id),
            ("attention_mask", [[1] * len(row_ids) for row_ids in ids], 0),
            ("mm_token_type_ids", blocks, 0),
        )
        arrays: dict[str, Any] = {
            name: lists if width is None else _pad(lists, width, fill, side) for name, lists, fill in columns
        }
        if options.get("return_tensors") is None:
            arrays = {name: [np.asarray(row).tolist() for row in array] for name, array in arrays.items()}
        return arrays

    def _expand(self, ids: list[int], segments: list[EEGSegment]) -> tuple[list[int], list[int]]:
        """Repeat each placeholder for every patch of its segment, and number the blocks (segment, second) from 1."""
        expanded, blocks, first_block = [], [], 1
        remaining = iter(segments)
        for token_id in ids:
            if token_id != self.eeg_token_id:
                expanded.append(token_id)
                blocks.append(0)
                continue
            segment = next(remaining)
            expanded.extend([token_id] * segment.n_patches)
            blocks.extend((first_block + segment.time_ids).tolist())
            first_block += segment.n_seconds
        return expanded, blocks

    def _kept_by_truncation(self, row: int, ids: list[int], options: dict[str, Any]) -> tuple[int, int]:
        if options.get("truncation") in (None, False, "do_not_truncate"):
            return 0, len(ids)
        max_length = options.get("max_length")
        if max_length is None:
            raise ValueError("truncation needs max_length.")
        excess = max(0, len(ids) - max_length)
        left = self._require_tokenizer().truncation_side == "left"
        cut = ids[:excess] if left else ids[len(ids) - excess :]
        if self.eeg_token_id in cut:
            raise ValueError(
                f"row {row}: its {len(ids)} tokens, {ids.count(self.eeg_token_id)} of them EEG, cannot be cut to "
                f"{max_length} without cutting EEG. Use shorter windows or a larger max_length."
            )
        return (excess, len(ids)) if left else (0, len(ids) - excess)

    def _padded_width(self, lengths: list[int], options: dict[str, Any]) -> int | None:
        """Tokens of every row, or None for no padding."""
        padding, width = options.get("padding"), max(lengths)
        if padding in (False, None, "do_not_pad"):
            if options.get("return_tensors") is not None and len(set(lengths)) > 1:
                raise ValueError(f"rows of {min(lengths)} to {width} tokens make no tensor without padding.")
            return None
        if padding == "max_length":
            if options.get("max_length") is None:
                raise ValueError("padding='max_length' needs max_length.")
            if width > options["max_length"]:
                row = lengths.index(width)
                raise ValueError(f"row {row} has {width} tokens, more than max_length {options['max_length']}.")
            width = options["max_length"]
        elif padding not in (True, "longest"):
            raise ValueError(f"padding is True, False, 'longest' or 'max_length', not {padding!r}.")
        multiple = options.get("pad_to_multiple_of") or 1
        return -(-width // multiple) * multiple

    def _without_eeg(self, token_ids: Any) -> Any:
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        if isinstance(ids, int):
            ids = [ids]
        if any(isinstance(one, (list, tuple)) or hasattr(one, "tolist") for one in ids):
            return [self._without_eeg(one) for one in ids]
        self._require_tokenizer()
        return [one for one in ids if one >= 0 and one != self.eeg_token_id]

    # Chat ----------------------------------------------------------------

    def _multimodal_inputs_from_conversations(
        self, conversations: list[list[dict[str, Any]]], *args: Any, **kwargs: Any
    ) -> tuple[list, list, list, dict[str, Any]]:
        """Recordings in the conversations ({'type': 'eeg', 'eeg': ...} or 'path'), for apply_chat_template."""
        recordings = [
            [
                item["eeg"] if "eeg" in item else item["path"]
                for message in conversation
                if isinstance(message.get("content"), (list, tuple))
                for item in message["content"]
                if item.get("type") == "eeg" and ("eeg" in item or "path" in item)
            ]
            for conversation in conversations
        ]
        return [], [], [], ({"eeg": recordings} if any(recordings) else {})

    # Loading ----------------------------------------------------------------

    @classmethod
    def _load_tokenizer_from_pretrained(
        cls, sub_processor_type: str, pretrained_model_name_or_path: PathOrStr, subfolder: str = "", **kwargs: Any
    ) -> PreTrainedTokenizerBase | None:
        """The saved tokenizer, or None where the processor was saved without one."""
        places = {name: kwargs[name] for name in _HUB_OPTIONS if name in kwargs}
        found = [
            cached_file(
                pretrained_model_name_or_path,
                name,
                subfolder=subfolder,
                _raise_exceptions_for_missing_entries=False,
                **places,
            )
            for name in _TOKENIZER_FILES
        ]
        if not any(found):
            return None
        return super()._load_tokenizer_from_pretrained(
            sub_processor_type, pretrained_model_name_or_path, subfolder=subfolder, **kwargs
        )


def _special_token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    """The id of a token that the tokenizer knows as one."""
    ids = tokenizer(token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1 or tokenizer.convert_ids_to_tokens(ids[0]) != token:
        raise ValueError(f"the text tokenizer does not know {token}: make it with build_text_tokenizer(...).")
    return ids[0]


def _flatten(eeg: Any) -> tuple[list[Any], list[int] | None]:
    """The recordings one after the other and, where they come as a list per text, how many each text has."""
    if eeg is None:
        return [], None
    if not isinstance(eeg, (list, tuple)):
        return [eeg], None
    nested = [isinstance(one, (list, tuple)) for one in eeg]
    if not eeg or (any(nested) and not all(nested)):
        raise TypeError(
            "eeg is a recording, a non-empty list of recordings, or a list of lists of them, not a mixture."
        )
    if not nested[0]:
        return list(eeg), None
    return [item for one in eeg for item in one], [len(one) for one in eeg]


def _flatten_like(value: Any, sizes: list[int] | None, depth: int) -> Any:
    """Flatten an argument that is nested as the recordings are; `depth` is that of a single value."""
    if sizes is None or _depth(value) != depth + 2:
        return value
    if [len(one) for one in value] != sizes:
        raise ValueError(f"an argument is nested as {[len(one) for one in value]}, the recordings as {sizes}.")
    return [item for one in value for item in one]


def _rows_of_sample(
    sample: int, indices: list[int], segments: list[list[EEGSegment]]
) -> list[tuple[int, list[EEGSegment]]]:
    """(sample, segments) of each row: one row per window where there is one recording, else one row of all."""
    if len(indices) == 1:
        return [(sample, [segment]) for segment in segments[indices[0]]]
    for place, index in enumerate(indices):
        if len(segments[index]) > 1:
            raise ValueError(
                f"sample {sample}: its recording {place} gives {len(segments[index])} windows, but beside other "
                "recordings it must be one. Cut it shorter before, or set the feature extractor's window_seconds."
            )
    return [(sample, [segments[index][0] for index in indices])]


def _pad(rows: list[list[int]], width: int, fill: int, side: str) -> np.ndarray:
    padded = np.full((len(rows), width), fill, dtype=np.int64)
    for target, row in zip(padded, rows, strict=True):
        where = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        target[where] = row
    return padded


EEGFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
NeuroLMProcessor.register_for_auto_class("AutoProcessor")
