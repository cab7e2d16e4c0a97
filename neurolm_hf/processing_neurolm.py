# Copyright 2026 The neurolm_hf authors. Licensed under the Apache License, Version 2.0.
"""From a raw EEG recording to the inputs of NeuroLM or LaBraM, in the order of the data.

1. What was done to a recording: `EEGReport`; what the model reads: `EEGSegment`, `EEGBatch`.
2. `EEGFeatureExtractor`: the saved recipe, applied to whole recordings (`PreparedEEG`, computed where it is read),
   then cut into windows and patches.
3. `build_text_tokenizer`, `train_text_tokenizer`: a text tokenizer with the three tokens NeuroLM needs.
4. `NeuroLMProcessor`: EEG and text in one sequence.

This file is copied into model folders: it needs torch, numpy and transformers, and MNE only for files, MNE objects,
filtering and resampling.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import AddedToken, AutoTokenizer, BatchFeature, GPT2Tokenizer, SequenceFeatureExtractor
from transformers.processing_utils import AudioKwargs, ProcessingKwargs, ProcessorMixin
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import cached_file

from .channels_neurolm import (
    CHANNEL_VOCABULARY,
    PAD_CHANNEL_ID,
    Montage,
    UnknownChannels,
    join_words,
    microvolts_per,
    resolve_montage,
)
from .checks_neurolm import PLAUSIBLE_MICROVOLTS, InputChecks, amplitude_of, deviations_by_second, unit_advice
from .filtering_neurolm import IN_MEMORY_BYTES, BlockFilter, ReadSamples, filter_length
from .reading_neurolm import PathOrStr, excluded_rows, mne, open_recording, read_samples


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
        steps_impossible: those skipped though the recipe asks for them, because the recording does not allow
            them; they stand among the warnings too.
        amplitude: robust amplitude in microvolts by vocabulary name, after filtering.
        amplitude_seconds: how much of the recording it was measured on: all, or of a long one 16 stretches spread
            evenly.
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
    steps_impossible: list[str] = field(default_factory=list)
    amplitude: dict[str, float] = field(default_factory=dict)
    amplitude_seconds: float = 0.0
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
            amplitude += f" over {self.amplitude_seconds:g} s"
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
    """A whole recording after the recipe, not yet cut. Its samples are computed where they are read: a long recording
    takes no more memory than a short one.

    Fields:
        ch_names, channel_ids: vocabulary names, and their indices int64 (channels,).
        report: its report; the seconds are filled in when it is cut.
        n_samples: at the recipe's sampling rate.
        samples: (start, stop) -> float32 (channels, stop - start); call `read`, which checks its arguments.
        item: index of the thing passed that it comes from (an Epochs object gives several recordings).
        annotations: (onset, duration, description) of a file's or MNE object's annotations, in seconds from the first
            sample.
    """

    ch_names: list[str]
    channel_ids: np.ndarray
    report: EEGReport
    n_samples: int
    samples: Callable[[int, int], np.ndarray]
    item: int = 0
    annotations: list[tuple[float, float, str]] = field(default_factory=list)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Samples `start` to `stop`, float32 (channels, stop - start), divided by the recipe's scale. Neighbouring
        reads share what is computed.

        Raises:
            ValueError: there are no such samples, or the file is damaged there.
        """
        if not 0 <= start < stop <= self.n_samples:
            raise ValueError(f"{self.report.source}: samples {start} to {stop} are not within 0 to {self.n_samples}.")
        return self.samples(start, stop)

    @property
    def values(self) -> np.ndarray:
        """The whole recording, float32 (channels, samples), computed anew each time."""
        return self.read(0, self.n_samples)

    def pick(self, names: Sequence[str]) -> "PreparedEEG":
        """The same recording with these channels, in this order.

        Raises:
            ValueError: it has no channel of such a name.
        """
        if missing := [name for name in names if name not in self.ch_names]:
            dropped = join_words(f"{original!r} ({reason})" for original, reason in self.report.dropped)
            raise ValueError(
                f"{self.report.source} has no channel {join_words(missing)}. It has {join_words(self.ch_names)}"
                + (f"; left out: {dropped}." if dropped else ".")
            )
        rows = [self.ch_names.index(name) for name in names]
        return replace(
            self,
            ch_names=list(names),
            channel_ids=self.channel_ids[rows],
            samples=lambda start, stop: self.samples(start, stop)[rows],
        )


@dataclass(frozen=True)
class EEGSegment:
    """One window as patches, in the `token_order` of the feature extractor.

    Fields:
        values: float32 (patches, patch_size); channel_ids, time_ids: int64 (patches,), the model's rows. Time ids
            count from 0.
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
        return int(self.time_ids.max()) + 1


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

# Stretches of a long recording on which its amplitude is measured, and values that are looked at at once.
_MEASURED_BLOCKS = 16
_CHECKED_VALUES = 2**22
# Below this rate not even the alpha rhythm is left.
SLOWEST_HZ = 50.0
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
    """One recording's kept channels before the recipe; `read` gives microvolts. `unit` is what they came in."""

    read: ReadSamples
    n_samples: int
    montage: Montage
    sampling_rate: float
    unit: str
    source: str
    item: int
    annotations: list[tuple[float, float, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_epoch: bool = False

    @property
    def boundaries(self) -> list[tuple[float, float, str]]:
        """The joints of a concatenated or paused recording: filters stop there."""
        return [one for one in self.annotations if one[2].lower().startswith(("edge", "bad_acq_skip"))]


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


# How LaBraM reads what a recipe prepared, be it for NeuroLM: `EEGFeatureExtractor(**recipe, **LABRAM_LAYOUT)`. Its
# channel table has 129 rows: the first is its cls token's, the last that of P8-O2.
LABRAM_LAYOUT: dict[str, Any] = {
    "token_order": "channel_major",
    "channel_id_offset": 1,
    "known_channels": 128,
    "max_tokens": 256,
    "max_seconds": 16,
}


class EEGFeatureExtractor(SequenceFeatureExtractor):
    """Turns EEG recordings of any montage, length, unit and sampling rate into patches, by a recipe saved with it.

    A whole recording is read, resolved, checked, brought to microvolts, band-passed, notched, resampled,
    re-referenced, divided by `scale`, and only then cut into windows. The defaults are NeuroLM's; with
    `**LABRAM_LAYOUT` the same signal comes as LaBraM reads it.

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
        token_order: 'time_major', all channels of second 0, then all channels of second 1, and so on, or
            'channel_major', all seconds of the first channel, then of the second; a row is then one window, and has no
            segment ids.
        channel_id_offset: what is added to a channel's index in the vocabulary: 1 where row 0 of the model's channel
            table is no channel's. That row stands at padding, too.
        known_channels: so many names of the vocabulary, from its first on, have a row in the model. The others are
            treated as unknown names are.
        do_resample, do_filter, do_notch, do_rescale: switches of the steps.
        padding_value: value of padded samples.

    Raises:
        ValueError: values that do not fit together.
    """

    # A channel-major batch has them all but `eeg_segment_ids`.
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
        token_order: Literal["time_major", "channel_major"] = "time_major",
        channel_id_offset: int = 0,
        known_channels: int = len(CHANNEL_VOCABULARY),
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
        if not isinstance(band, Sequence):
            raise ValueError(f"band is (low, high) in Hz, not {band!r}. For no band-pass pass do_filter=False.")
        self.band = tuple(float(edge) for edge in band)
        self.notch_frequency = None if notch_frequency is None else float(notch_frequency)
        self.scale = float(scale)
        self.reference = reference
        self.window_seconds = window_seconds
        self.stride_seconds = stride_seconds
        self.max_tokens = max_tokens
        self.max_seconds = max_seconds
        self.pad_to_patches = pad_to_patches
        self.token_order = token_order
        self.channel_id_offset = channel_id_offset
        self.known_channels = known_channels
        self.do_resample = do_resample
        self.do_filter = do_filter
        self.do_notch = do_notch
        self.do_rescale = do_rescale
        self.check_settings()

    def check_settings(self) -> None:
        """A ValueError for settings that make no recipe, no windows or no layout; the message names the setting."""
        self._check_layout()
        if self.patch_size != self.sampling_rate:
            raise ValueError(
                f"a patch is one second: patch_size ({self.patch_size}) equals sampling_rate ({self.sampling_rate})."
            )
        if len(self.band) != 2 or not 0 < self.band[0] < self.band[1]:
            raise ValueError(f"band is (low, high) in Hz with 0 < low < high, not {self.band}.")
        if self.notch_frequency is not None and self.notch_frequency <= 0:
            raise ValueError(f"notch_frequency is positive or None, not {self.notch_frequency}.")
        if self.do_notch and self.notch_frequency is not None and self.notch_frequency > self.sampling_rate / 2:
            raise ValueError(
                f"notch_frequency {self.notch_frequency:g} Hz is above the Nyquist frequency of the prepared signal, "
                f"{self.sampling_rate / 2:g} Hz. The mains are at 50 or 60 Hz; for no notch pass None."
            )
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

    def _check_layout(self) -> None:
        if self.token_order not in ("time_major", "channel_major"):
            raise ValueError(f"token_order is 'time_major' or 'channel_major', not {self.token_order!r}.")
        if self.channel_id_offset not in (0, 1):
            raise ValueError(f"channel_id_offset is 0 or 1, not {self.channel_id_offset!r}.")
        # Without a row 0 that is no channel's, the vocabulary's 'pad' stands at padding.
        fewest = 1 if self.channel_id_offset else PAD_CHANNEL_ID + 1
        if self.known_channels not in range(fewest, len(CHANNEL_VOCABULARY) + 1):
            raise ValueError(
                f"known_channels is a whole number from {fewest} to {len(CHANNEL_VOCABULARY)} where channel_id_offset "
                f"is {self.channel_id_offset}, not {self.known_channels!r}."
            )

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
        """A short hash of `recipe`: what prepared data carry, and what `prepared_by` is compared with.

        Which mains frequency was taken out does not count, only whether it was: it belongs to the place of the
        recording. One model reads recordings from Europe and from America.
        """
        conventions = {**self.recipe, "notch_frequency": self.notch_frequency is not None}
        return hashlib.sha256(json.dumps(conventions, sort_keys=True).encode()).hexdigest()[:12]

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
            unknown_channels: 'raise', or 'drop' to leave out and report channels whose name is unknown or has no row
                in the model.
            prepared_by: the `recipe_id` under which these arrays were prepared (scaled, at `sampling_rate`): all steps
                are skipped if it is this recipe's, else an error.
            return_tensors: 'pt', 'np', or None for lists of NumPy arrays.

        Returns:
            [`EEGBatch`]: rows right-padded; patches in the `token_order`.

            - **input_values** -- float32 (rows, patches, patch_size)
            - **eeg_channel_ids**, **eeg_time_ids** -- int64 (rows, patches), rows of the model's tables; at padding
              the row of 'pad' (with a `channel_id_offset` row 0), and 0
            - **eeg_segment_ids** -- int64 (rows, patches), of time-major rows alone
            - **eeg_attention_mask** -- int64 (rows, patches)

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
        elif self.do_filter and any(is_epochs(one) for one in recordings):
            _warn(
                "filtering short epochs distorts them (a 0.1 Hz high-pass is longer than most): filter the Raw with "
                "this feature extractor's recipe before cutting epochs, or pass the Raw."
            )
        prepare_one = self._prepare_one if prepared_by is None else self._as_prepared
        resolve = partial(resolve_montage, unknown_channels=unknown_channels, known_channels=self.known_channels)
        items = _items(recordings, ch_names, sampling_rate, unit)
        return [prepare_one(signal) for item in items for signal in _open(item, resolve)]

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
        return [self.segment_at(prepared, start, stop, recording) for start, stop in self.window_spans(prepared)]

    def segment_at(self, prepared: PreparedEEG, start: int, stop: int, recording: int = 0) -> EEGSegment:
        """The patches of samples `start` to `stop` of a prepared recording."""
        signal = prepared.read(start, stop)
        return self.to_segment(signal, prepared.channel_ids, recording, start / self.sampling_rate)

    def window_spans(self, prepared: PreparedEEG) -> list[tuple[int, int]]:
        """First and last sample (excluded) of each window; the report says how much of the recording they cover.

        Raises:
            ValueError: as `cut`.
        """
        source, n_samples = prepared.report.source, prepared.n_samples
        length = self.window_length(len(prepared.ch_names), source) * self.patch_size
        if n_samples < self.patch_size:
            raise ValueError(f"{source}: {n_samples / self.sampling_rate:.3g} s is less than one second of EEG.")
        length = min(length, n_samples // self.patch_size * self.patch_size)
        stride = length if self.stride_seconds is None else round(self.stride_seconds * self.sampling_rate)
        starts = window_starts(n_samples, length, stride)
        covered = starts[-1] + length - max(0, stride - length) * (len(starts) - 1)
        prepared.report.seconds_used = covered / self.sampling_rate
        prepared.report.seconds_left_over = (n_samples - covered) / self.sampling_rate
        return [(start, start + length) for start in starts]

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
        """The patches of one prepared window: the one place where their order is written, and `by_channel` undoes it.

        Args:
            values: (channels, samples), a whole number of seconds.
            channel_ids: int64 (channels,), indices in the vocabulary.
            recording, start: where the window comes from (index, seconds).
        """
        n_channels, n_samples = values.shape
        if n_samples == 0 or n_samples % self.patch_size:
            raise ValueError(f"a window is a whole number of seconds, {n_samples} samples are not.")
        seconds = n_samples // self.patch_size
        patches = values.reshape(n_channels, seconds, self.patch_size)
        ids = np.asarray(channel_ids, dtype=np.int64) + self.channel_id_offset
        channels, times = np.meshgrid(ids, np.arange(seconds, dtype=np.int64), indexing="ij")
        if self.token_order == "time_major":
            patches, channels, times = patches.swapaxes(0, 1), channels.T, times.T
        return EEGSegment(
            values=patches.reshape(-1, self.patch_size).astype(np.float32),
            channel_ids=channels.reshape(-1),
            time_ids=times.reshape(-1),
            recording=recording,
            start=start,
            end=start + seconds,
        )

    def by_channel(self, patches: Any, n_channels: int) -> Any:
        """What a model gives for the patches of a window, (patches, ...) -> (channels, seconds, ...).

        Args:
            patches: an array or a tensor, without padding.
            n_channels: of the window.
        """
        if self.token_order == "channel_major":
            return patches.reshape(n_channels, -1, *patches.shape[1:])
        return patches.reshape(-1, n_channels, *patches.shape[1:]).swapaxes(0, 1)

    def collate(
        self,
        rows: Sequence[Sequence[EEGSegment]],
        reports: Sequence[EEGReport] = (),
        return_tensors: str | None = None,
    ) -> EEGBatch:
        """Put the segments of each row one after the other and pad the rows on the right. Output as in `__call__`.

        Raises:
            ValueError: a row longer than `pad_to_patches`, or a channel-major one of several segments.
        """
        has_segments = self.token_order == "time_major"
        if not has_segments and (wrong := [row for row, segments in enumerate(rows) if len(segments) != 1]):
            count = len(rows[wrong[0]])
            raise ValueError(f"row {wrong[0]} has {count} segments: a channel-major row is one window.")
        lengths = [sum(segment.n_patches for segment in row) for row in rows]
        width = self.pad_to_patches or max(lengths)
        if max(lengths) > width:
            raise ValueError(f"row {int(np.argmax(lengths))} has {max(lengths)} patches, pad_to_patches is {width}.")
        shape = (len(rows), width)
        values = np.full((*shape, self.patch_size), self.padding_value, dtype=np.float32)
        channel_ids = np.full(shape, 0 if self.channel_id_offset else PAD_CHANNEL_ID, dtype=np.int64)
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
        arrays = dict(zip(self.model_input_names, (values, channel_ids, time_ids, segment_ids, mask), strict=True))
        if not has_segments:
            del arrays["eeg_segment_ids"]
        return _to_batch(arrays, return_tensors, reports, windows)

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
        report = _new_report(signal)
        report.unit = "prepared"
        _check_finite(signal, _check_input(signal))
        report.steps_skipped = [("all steps", f"the data are prepared by recipe {self.recipe_id}")]
        return _pack(signal, report, signal.n_samples, partial(_finish, signal.read, False, 1.0))

    def _prepare_one(self, signal: _Signal) -> PreparedEEG:
        report = _new_report(signal)
        seconds = signal.n_samples / signal.sampling_rate
        if seconds < 1:
            raise ValueError(f"{signal.source}: {seconds:.3g} s is less than one second of EEG.")
        checks = _check_input(signal)
        _check_finite(signal, checks)
        _note_flat_and_clipped(signal, checks, report)
        filtered = self._filter(signal, report)
        average = self._plan_reference(report)
        _check_amplitude(filtered, average, signal, report, self.patch_size)
        reason = None if self.do_rescale else "switched off (do_rescale=False)"
        _note_step(report, f"divide by {self.scale:g} uV", reason)
        scale = self.scale if self.do_rescale else 1.0
        return _pack(signal, report, filtered.n_out, partial(_finish, filtered.read, average, scale))

    def _filter(self, signal: _Signal, report: EEGReport) -> BlockFilter:
        """Band-pass, notch, resample, in this order and as of the whole recording."""
        rate = signal.sampling_rate
        low, high = self._plan_band(rate, report)
        notch = self._plan_notch(rate, report)
        self._plan_resample(signal, report)
        if low is not None or high is not None:
            _warn_if_short(signal, low, high, report)
        return BlockFilter(
            signal.read, signal.n_samples, rate, low, high, notch, self.sampling_rate, signal.boundaries
        )

    def _plan_band(self, rate: float, report: EEGReport) -> tuple[float | None, float | None]:
        edges: list[float | None] = []
        for name, edge in zip(("high-pass", "low-pass"), self.band, strict=True):
            off = None if self.do_filter else "switched off (do_filter=False)"
            impossible = f"at or above the Nyquist frequency, {rate / 2:g} Hz" if edge >= rate / 2 else None
            applied = _note_step(report, f"{name} {edge:g} Hz", off, impossible)
            edges.append(edge if applied else None)
        return edges[0], edges[1]

    def _plan_notch(self, rate: float, report: EEGReport) -> float | None:
        if self.notch_frequency is None:
            _note_step(report, "notch", "no notch_frequency in the recipe")
            return None
        off = None if self.do_notch else "switched off (do_notch=False)"
        impossible = None
        if self.notch_frequency + _NOTCH_MARGIN > rate / 2:
            impossible = f"at or above the Nyquist frequency, {rate / 2:g} Hz, or within {_NOTCH_MARGIN:g} Hz of it"
        applied = _note_step(report, f"notch {self.notch_frequency:g} Hz", off, impossible)
        return self.notch_frequency if applied else None

    def _plan_resample(self, signal: _Signal, report: EEGReport) -> None:
        rate, step = signal.sampling_rate, f"resample to {self.sampling_rate} Hz"
        if rate != self.sampling_rate and not self.do_resample:
            raise ValueError(
                f"{signal.source} is at {rate:g} Hz and do_resample is off, but patches are seconds at "
                f"{self.sampling_rate} Hz: resample it, or switch do_resample on."
            )
        _note_step(report, step, "already there" if rate == self.sampling_rate else None)

    def _plan_reference(self, report: EEGReport) -> bool:
        if self.reference is None:
            return False
        impossible = None
        if any("-" in name for _, name in report.kept):
            impossible = "the montage has bipolar pairs"
        elif len(report.kept) == 1:
            impossible = "there is one channel only, nothing would be left of it"
        return _note_step(report, "average reference", None, impossible)


def window_starts(n_samples: int, length: int, stride: int) -> range:
    """First samples of the windows of `length` that lie in a recording of `n_samples`, `stride` apart."""
    return range(0, n_samples - length + 1, stride)


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


def is_epochs(item: Any) -> bool:
    """Whether it is `mne.Epochs`, each of which is a recording of its own."""
    return mne is not None and isinstance(item, mne.BaseEpochs)


def _open(item: _Item, resolve: Callable[..., Montage]) -> list[_Signal]:
    """The recordings in one thing the user passed: several for Epochs, else one. `resolve`: what becomes of names."""
    if _is_array(item.eeg):
        return [_open_array(item, resolve)]
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
    return _open_mne(item, eeg, resolve, notes)


def _open_array(item: _Item, resolve: Callable[..., Montage]) -> _Signal:
    source, ch_names, rate, unit = item.source, item.ch_names, item.sampling_rate, item.unit
    if ch_names is None or rate is None or unit is None:
        given = {"ch_names": ch_names, "sampling_rate": rate, "unit": unit}
        missing = join_words(name for name, value in given.items() if value is None)
        raise ValueError(
            f"{source}: an array says nothing about itself, pass {missing} too, e.g. ch_names=['FP1', 'FP2'], "
            "sampling_rate=500, unit='uV'."
        )
    array = _as_numpy(item.eeg)
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
    montage = resolve(list(ch_names), source=source)
    data = array[montage.rows].astype(np.float64) * microvolts_per(unit)
    return _Signal(_reader(data), data.shape[1], montage, float(rate), unit, source, item.index)


def _as_numpy(array: Any) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        # NumPy has no bfloat16
        array = array.float() if array.dtype == torch.bfloat16 else array
    return np.asarray(array)


def _reader(data: np.ndarray) -> ReadSamples:
    return lambda start, stop: data[:, start:stop]


def _open_mne(item: _Item, eeg: Any, resolve: Callable[..., Montage], notes: list[str]) -> list[_Signal]:
    """The recordings of an `mne.io.Raw` or `mne.Epochs`. `item` says which unit, MNE's volts where it says none."""
    source, unit, rate = item.source, item.unit or "V", float(eeg.info["sfreq"])
    factor = microvolts_per(unit)
    montage = resolve(eeg.ch_names, excluded_rows(eeg), source=source)
    if isinstance(eeg, mne.BaseEpochs):
        data = eeg.get_data(picks=montage.rows, verbose="ERROR") * factor
        if data.size == 0:
            raise ValueError(f"{source} has no samples.")
        return [
            _Signal(
                _reader(epoch),
                data.shape[2],
                montage,
                rate,
                unit,
                f"{source}, epoch {number}",
                item.index,
                is_epoch=True,
            )
            for number, epoch in enumerate(data)
        ]
    n_samples = eeg.n_times
    if n_samples == 0:
        raise ValueError(f"{source} has no samples.")

    read: ReadSamples = partial(_read_microvolts, eeg, montage.rows, source, factor)
    if 8 * n_samples * len(montage.rows) <= IN_MEMORY_BYTES:
        read = _reader(read(0, n_samples))
    signal = _Signal(read, n_samples, montage, rate, unit, source, item.index, _annotations(eeg), notes)
    if signal.boundaries:
        joints = join_words(f"{onset:.1f} s" for onset, _, _ in signal.boundaries)
        signal.notes = [
            *notes,
            f"separately recorded parts meet at {joints}: filtered apart, but windows may span them",
        ]
    return [signal]


def _read_microvolts(raw: Any, rows: list[int], source: str, factor: float, start: int, stop: int) -> np.ndarray:
    return read_samples(raw, rows, start, stop, source) * factor


def _annotations(raw: Any) -> list[tuple[float, float, str]]:
    """(onset, duration, description) in seconds from the first sample."""
    parts = zip(raw.annotations.onset, raw.annotations.duration, raw.annotations.description, strict=True)
    return [(float(onset - raw.first_time), float(duration), str(text)) for onset, duration, text in parts]


def _new_report(signal: _Signal) -> EEGReport:
    report = EEGReport(signal.source, signal.unit, signal.sampling_rate, warnings=list(signal.notes))
    report.kept = [(channel.original, channel.name) for channel in signal.montage.kept]
    report.dropped = [(channel.original, channel.reason) for channel in signal.montage.dropped]
    return report


def _pack(
    signal: _Signal, report: EEGReport, n_samples: int, samples: Callable[[int, int], np.ndarray]
) -> PreparedEEG:
    montage = signal.montage
    return PreparedEEG(montage.names, montage.ids, report, n_samples, samples, signal.item, signal.annotations)


def _finish(read: ReadSamples, average: bool, scale: float, start: int, stop: int) -> np.ndarray:
    """Filtered microvolts to what the model reads, float32 (channels, stop - start)."""
    return (_rereference(read(start, stop), average) / scale).astype(np.float32)


def _rereference(data: np.ndarray, average: bool) -> np.ndarray:
    return data - data.mean(axis=0) if average else data


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)


def _note_step(report: EEGReport, step: str, off: str | None, impossible: str | None = None) -> bool:
    """Whether a step is applied. `off`: why it need not be; `impossible`: why this recording does not allow it."""
    if off is None and impossible is None:
        report.steps_applied.append(step)
        return True
    report.steps_skipped.append((step, off or impossible or ""))
    if off is None:
        report.steps_impossible.append(step)
        report.warnings.append(f"{step} left out: {impossible}")
    return False


def _warn_if_short(signal: _Signal, low: float | None, high: float | None, report: EEGReport) -> None:
    rate, n_samples = signal.sampling_rate, signal.n_samples
    length = filter_length(rate, low, high)
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


def _check_input(signal: _Signal) -> InputChecks:
    n_channels = len(signal.montage.kept)
    checks = InputChecks(n_channels)
    step = max(1, _CHECKED_VALUES // n_channels)
    for start in range(0, signal.n_samples, step):
        checks.add(signal.read(start, min(start + step, signal.n_samples)))
    return checks


def _check_finite(signal: _Signal, checks: InputChecks) -> None:
    if not checks.n_bad.any():
        return
    row = int(np.argmax(checks.n_bad > 0))
    others = int(np.count_nonzero(checks.n_bad)) - 1
    too = f" ({others} more channel(s) too)" if others else ""
    raise ValueError(
        f"{signal.source}: channel {signal.montage.kept[row].original!r} has {checks.n_bad[row]} NaN or infinite "
        f"value(s), the first at {checks.first_bad[row] / signal.sampling_rate:.3f} s{too}. Repair or cut them out, "
        "or leave the channel out."
    )


def _note_flat_and_clipped(signal: _Signal, checks: InputChecks, report: EEGReport) -> None:
    names = np.array(signal.montage.names)
    report.flat = names[checks.flat].tolist()
    report.clipped = names[checks.clipped].tolist()
    if len(report.flat) == len(names):
        raise ValueError(
            f"{signal.source}: every EEG channel is flat ({join_words(report.flat)}), there is no signal."
        )
    for kind, found in (("flat", report.flat), ("clipped", report.clipped)):
        if found:
            report.warnings.append(f"{kind} channels: {join_words(found)}")
            _warn(f"{signal.source}: {kind} channels: {join_words(found)}")


def _check_amplitude(
    filtered: BlockFilter, average: bool, signal: _Signal, report: EEGReport, samples_per_second: int
) -> None:
    """Measure each channel's robust amplitude (microvolts) and refuse a recording whose unit must be wrong."""
    names = signal.montage.names
    deviations = []
    for start, stop in _measured_stretches(filtered, samples_per_second):
        data = _rereference(filtered.read(start, stop), average)
        deviations.append(deviations_by_second(data, samples_per_second))
        report.amplitude_seconds += (stop - start) / samples_per_second
    amplitudes = amplitude_of(np.concatenate(deviations, axis=1))
    report.amplitude = {name: round(float(amplitude), 4) for name, amplitude in zip(names, amplitudes, strict=True)}
    live = [row for row, name in enumerate(names) if name not in report.flat]
    median = float(np.median(amplitudes[live]))
    low, high = PLAUSIBLE_MICROVOLTS
    if not low <= median <= high:
        row = min(live, key=lambda r: abs(amplitudes[r] - median))
        raise ValueError(
            f"{signal.source}: read in {signal.unit}, the median channel has an amplitude of {median:.3g} uV (e.g. "
            f"{names[row]}: {amplitudes[row]:.3g} uV), which is no EEG ({low:g} to {high:g} uV). "
            + unit_advice(median / microvolts_per(signal.unit))
        )
    for row in live:
        if not low <= amplitudes[row] <= high:
            report.warnings.append(f"{names[row]} has an implausible amplitude, {amplitudes[row]:.3g} uV")
            _warn(f"{signal.source}: {report.warnings[-1]}")


def _measured_stretches(filtered: BlockFilter, samples_per_second: int) -> list[tuple[int, int]]:
    """(start, stop) of all blocks of a recording, or of some spread evenly over a long one."""
    starts = list(range(0, filtered.n_out, filtered.block_length))
    if len(starts) > 1 and filtered.n_out - starts[-1] < samples_per_second:
        starts.pop()
    if len(starts) > _MEASURED_BLOCKS:
        starts = [starts[round(place)] for place in np.linspace(0, len(starts) - 1, _MEASURED_BLOCKS)]
    return [(start, min(start + filtered.block_length, filtered.n_out)) for start in starts]


def _to_batch(
    arrays: dict[str, Any],
    return_tensors: str | None,
    reports: Sequence[EEGReport],
    windows: Sequence[EEGWindow],
) -> EEGBatch:
    if return_tensors is None:
        arrays = {name: list(array) for name, array in arrays.items()}
    return EEGBatch(arrays, return_tensors, reports, windows)


def eeg_codes(batch: EEGBatch, model: Any) -> torch.Tensor:
    """The VQ tokens of windows.

    Args:
        batch: of [`EEGFeatureExtractor`], as `pt`.
        model: a model with `get_eeg_codes` (a NeuroLM, or a LaBraM that was trained by masking) or `encode` (a neural
            tokenizer alone).

    Returns:
        `torch.LongTensor` (windows, patches), on the model's device: codes in the batch's order, -1 at padding.

    Raises:
        TypeError: a model that gives no codes.
    """
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    inputs["input_values"] = inputs["input_values"].to(model.dtype)
    with torch.no_grad():
        if hasattr(model, "get_eeg_codes"):
            codes = model.get_eeg_codes(**inputs)
        elif hasattr(tokenizer := getattr(model, "vq", model), "encode"):  # it may stand in its adversary
            inputs.pop("eeg_segment_ids", None)
            codes = tokenizer.encode(**inputs).codes
        else:
            raise TypeError(f"a {type(model).__name__} has neither get_eeg_codes nor encode.")
    return codes.masked_fill(inputs["eeg_attention_mask"] == 0, -1)


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


def is_lettered(answers: Sequence[str]) -> bool:
    """Whether answers are the letters of options given in the question, such as `(A)`."""
    return bool(answers) and answers[0].startswith("(")


def write_prompt(question: str, answers: Sequence[str]) -> str:
    """What the model reads after the EEG and before it answers, as it was tuned on it."""
    return f"{SEP_TOKEN}{question} Answer:" + (" (" if is_lettered(answers) else "")


def write_completion(answer: str, end_of_text: str) -> str:
    """What the model writes after a prompt to give this answer, up to the text tokenizer's end of text."""
    return (answer.removeprefix("(") if is_lettered([answer]) else f" {answer}") + f" {end_of_text}"


def continuation_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text that goes on from another, and so has no beginning or end of its own.

    A prompt and an answer are tokenized apart. Together, a tokenizer may join the end of the one and the start of the
    other, and neither a training nor a comparison of answers would know where the answer begins.

    Raises:
        ValueError: a tokenizer without an end of text, or that ends every text by itself.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("The text tokenizer has no end of text (`eos_token`), with which every answer ends.")
    if tokenizer(EEG_TOKEN)["input_ids"][-1] == tokenizer.eos_token_id:
        raise ValueError(
            "The text tokenizer ends every text by itself, a prompt too, after which nothing can follow: load it "
            "with add_eos_token=False."
        )
    # behind a special token, for some tokenizers put a space before what begins a text
    return tokenizer(EEG_TOKEN + text, add_special_tokens=False)["input_ids"][1:]


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
        `"raise"`, or `"drop"` to leave out and report channels whose name is unknown or has no row in the model.
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
        feature_extractor: an [`EEGFeatureExtractor`]; beside text a time-major one.
        tokenizer: a text tokenizer that knows `<|eeg|>` and has a padding token, as `build_text_tokenizer` gives;
            None for EEG alone.
        chat_template: a Jinja template, `CHAT_TEMPLATE` by default.

    Raises:
        ValueError: the tokenizer lacks `<|eeg|>` or a padding token, or stands beside a channel-major extractor.
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
        if feature_extractor.token_order != "time_major":
            raise ValueError(
                f"EEG and text make one sequence in the order of time, and this feature extractor's token_order is "
                f"{feature_extractor.token_order!r} (LaBraM's): leave the tokenizer out, or pass a time-major one."
            )

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

    def interleave(self, rows: Sequence[tuple[Sequence[int], Sequence[EEGSegment]]]) -> EEGBatch:
        """Rows of token ids, each with the segments that its placeholders stand for in turn, as one padded batch.

        Args:
            rows: (ids, segments); one `<|eeg|>` among the ids for each segment, which is expanded to its patches.

        Returns:
            [`EEGBatch`] of tensors: `input_ids`, `attention_mask`, `mm_token_type_ids` and the EEG, as `__call__`.

        Raises:
            ValueError: a row with another number of placeholders than of segments.
        """
        for row, (ids, segments) in enumerate(rows):
            if (count := list(ids).count(self.eeg_token_id)) != len(segments):
                raise ValueError(f"row {row}: {count} placeholder(s) for {len(segments)} segment(s) of EEG.")
        batch = self.feature_extractor.collate([list(segments) for _, segments in rows], [], "pt")
        expanded = [self._expand(list(ids), list(segments)) for ids, segments in rows]
        options = {"padding": True, "return_tensors": "pt"}
        arrays = self._padded([ids for ids, _ in expanded], [blocks for _, blocks in expanded], options)
        return EEGBatch({**EEGBatch(arrays, "pt"), **batch}, None, batch.reports, batch.windows)

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
            model: a model with `get_eeg_codes` (a NeuroLM, or a LaBraM that was trained by masking) or `encode` (a
                neural tokenizer alone).

        Returns:
            `torch.LongTensor` (windows, patches): codes in the feature extractor's `token_order`, -1 at padding.
        """
        batch = self.feature_extractor(
            eeg, ch_names, sampling_rate, unit, unknown_channels, prepared_by, return_tensors="pt"
        )
        return eeg_codes(batch, model)

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
        return self._padded(ids, blocks, options)

    def _padded(self, ids: list[list[int]], blocks: list[list[int]], options: dict[str, Any]) -> dict[str, Any]:
        tokenizer = self._require_tokenizer()
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
        # a pipeline hands the model's on, and a tokenizer would keep it and could not be saved
        kwargs.pop("dtype", None)
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
