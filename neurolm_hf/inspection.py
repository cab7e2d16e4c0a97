# Copyright 2026 The neurolm_hf authors. Licensed under the Apache License, Version 2.0.
"""What is in a recording: `inspect_recording` tells, `plot_recording` shows. Nothing is changed or refused here.

Unknown channel names, odd units and implausible amplitudes are reported, where `EEGFeatureExtractor` would raise.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from .channels_neurolm import KeptChannel, UnknownChannels, clean_name, join_words, resolve_montage, resolve_rows
from .checks_neurolm import PLAUSIBLE_MICROVOLTS, InputChecks, robust_amplitude, unit_advice
from .figures import BLUE, STYLE, VERMILION
from .reading_neurolm import (
    PathOrStr,
    excluded_rows,
    open_recording,
    read_edf_header,
    read_samples,
    recording_format,
    stored_units,
    volts_per,
)


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Amplitudes are measured on at most this many blocks, so that a day-long recording takes seconds.
BLOCKS = 20
BLOCK_SECONDS = 60
FIRST_ANNOTATIONS = 5
AMPLITUDE = "1.4826 x median absolute deviation within seconds, before filtering (preparation judges after filtering)"
# MNE's channel types that are voltages.
CHANNEL_COLUMNS = ("channel", "reads as", "type", "unit", "rate", "amplitude")

_VOLTAGES = {"eeg", "eog", "ecg", "emg", "bio", "seeg", "ecog", "dbs"}
_GREY = "#767676"
_PLOTTED_AT_MOST = 40


@dataclass(frozen=True)
class ChannelInfo:
    """One channel of a recording.

    Fields:
        name, unit: as the file writes them; unit None where the format writes none.
        kind: MNE's channel type; None for a channel that is left out on opening, for its sampling rate.
        sampling_rate: in Hz, as stored.
        resolved: its vocabulary name, or None; left_out: why, then.
        amplitude: `robust_amplitude` before filtering, in microvolts; None where it is no voltage or was not measured.
        flat, clipped: whether it has no signal, and whether it stays at the rails of its range.
    """

    name: str
    kind: str | None
    unit: str | None
    sampling_rate: float
    resolved: str | None = None
    left_out: str | None = None
    amplitude: float | None = None
    flat: bool = False
    clipped: bool = False


@dataclass(frozen=True)
class RecordingInfo:
    """What is in a recording. `print` it, or `to_dict()` it for a JSON file.

    Fields:
        path, format; bytes: of all its files.
        sampling_rate: in Hz, of the data as they are read; samples: a channel; seconds.
        start: date and time of the first sample, ISO 8601, or None.
        channels: in the order of the file.
        annotations: description -> how often; first_annotations: (onset, duration, description), in seconds.
        measured: which part of the recording the amplitudes are of.
        problems: everything that a reader should know before using it.
    """

    path: str
    format: str
    bytes: int
    sampling_rate: float
    samples: int
    seconds: float
    start: str | None
    channels: list[ChannelInfo]
    annotations: dict[str, int]
    first_annotations: list[tuple[float, float, str]]
    measured: str
    problems: list[str]

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain values that JSON can hold."""
        return asdict(self)

    def __str__(self) -> str:
        kept = sum(channel.resolved is not None for channel in self.channels)
        lines = [
            self.path,
            f"  {self.format}, {_size(self.bytes)}; {_count(len(self.channels), 'channel')}, {kept} usable; "
            f"{self.sampling_rate:g} Hz; {_duration(self.seconds)}; "
            + (f"from {self.start}" if self.start else "undated"),
            "",
            *(f"  {line}".rstrip() for line in _table(self.channels)),
            "",
            f"  Amplitude: {AMPLITUDE}; here {self.measured}.",
            f"  Annotations: {_annotation_text(self)}.",
        ]
        if self.problems:
            lines += ["  Problems:", *(f"    - {problem}" for problem in self.problems)]
        return "\n".join(lines)


def inspect_recording(path: PathOrStr) -> RecordingInfo:
    """What is in a recording: channels and what each resolves to, units, rate, length, annotations, amplitudes,
    problems. Memory does not grow with its length.

    Raises:
        ImportError, ValueError: it cannot be opened or read, as `open_recording`.
    """
    raw, problems = open_recording(path)
    rate, source, kind = float(raw.info["sfreq"]), str(path), recording_format(path)
    measured = _measure(raw, source)
    channels = _channels(raw, measured, stored_units(path))
    if kind in ("EDF", "BDF"):
        kind = read_edf_header(path).kind
        channels = _with_stored_rates(path, channels)
    onsets = [float(onset) for onset in raw.annotations.onset - raw.first_time]
    listed = zip(onsets, map(float, raw.annotations.duration), map(str, raw.annotations.description), strict=True)
    date = raw.info["meas_date"]
    problems = [*problems, *_name_problems(raw, source), *measured.problems, *_amplitude_problems(channels)]
    return RecordingInfo(
        path=source,
        format=kind,
        bytes=_total_bytes(path, raw),
        sampling_rate=rate,
        samples=int(raw.n_times),
        seconds=float(raw.n_times / rate),
        start=date.replace(tzinfo=None).isoformat(sep=" ", timespec="seconds") if date else None,
        channels=channels,
        annotations=dict(Counter(map(str, raw.annotations.description)).most_common()),
        first_annotations=list(listed)[:FIRST_ANNOTATIONS],
        measured=measured.part,
        problems=[problem.removeprefix(f"{source}: ") for problem in dict.fromkeys(problems)],
    )


@dataclass
class _Measured:
    """Amplitude in microvolts by row, the rows that are flat and clipped, which part of the recording this is of."""

    part: str
    amplitudes: dict[int, float] = field(default_factory=dict)
    flat: set[int] = field(default_factory=set)
    clipped: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def _measure(raw: Any, source: str) -> _Measured:
    """Amplitudes, each the median over the blocks, and what is flat, clipped or not finite."""
    rows = [row for row, kind in enumerate(raw.get_channel_types()) if kind in _VOLTAGES]
    if not rows:
        return _Measured("none, for no channel is a voltage")
    rate = raw.info["sfreq"]
    starts, length = _blocks(raw.n_times, rate)
    whole = len(starts) * length >= raw.n_times
    measured = _Measured("of the whole recording" if whole else f"of {len(starts)} minutes spread over the recording")
    checks, amplitudes, finite = InputChecks(len(rows)), [], np.ones(len(rows), dtype=bool)
    for start in starts:
        data = read_samples(raw, rows, start, min(start + length, raw.n_times), source) * 1e6
        finite &= np.isfinite(data).all(axis=1)
        data = np.nan_to_num(data, nan=0.0, posinf=0.0, neginf=0.0)
        amplitudes.append(robust_amplitude(data, max(1, round(rate))))
        checks.add(data)
    for i, (row, amplitude) in enumerate(zip(rows, np.median(amplitudes, axis=0), strict=True)):
        measured.amplitudes[row] = round(float(amplitude), 4)
        if checks.flat[i]:
            measured.flat.add(row)
        elif checks.clipped[i]:
            measured.clipped.add(row)
        if not finite[i]:
            measured.problems.append(f"channel {raw.ch_names[row]!r} has NaN or infinite values")
    return measured


def _blocks(n_samples: int, rate: float) -> tuple[list[int], int]:
    """Where blocks begin and how long they are: one after the other, or spread evenly where there are too many."""
    length = max(1, min(n_samples, round(BLOCK_SECONDS * rate)))
    if n_samples <= BLOCKS * length:
        return list(range(0, n_samples, length)), length
    return np.linspace(0, n_samples - length, BLOCKS).round().astype(int).tolist(), length


def _channels(raw: Any, measured: _Measured, units: Sequence[str]) -> list[ChannelInfo]:
    """The channels as MNE gives them, at the rate of the recording."""
    units_of_rows = units if len(units) == len(raw.ch_names) else [None] * len(raw.ch_names)
    fates = resolve_rows(raw.ch_names, excluded_rows(raw))
    return [
        ChannelInfo(
            name=raw.ch_names[row],
            kind=kind,
            unit=unit,
            sampling_rate=float(raw.info["sfreq"]),
            resolved=fate.name if isinstance(fate, KeptChannel) else None,
            left_out=None if isinstance(fate, KeptChannel) else fate.reason,
            amplitude=measured.amplitudes.get(row),
            flat=row in measured.flat,
            clipped=row in measured.clipped,
        )
        for row, (kind, unit, fate) in enumerate(zip(raw.get_channel_types(), units_of_rows, fates, strict=True))
    ]


def _with_stored_rates(path: PathOrStr, channels: Sequence[ChannelInfo]) -> list[ChannelInfo]:
    """The channels of an EDF file with those that were left out for their rate, each with the rate it is stored at."""
    header = read_edf_header(path)
    names = {channel.name for channel in channels}
    opened = iter(channels)
    found = []
    for signal in header.signals:
        label, unit, rate = header.labels[signal], header.units[signal], header.rates[signal]
        # MNE puts -0, -1, ... to names that occur twice
        if label in names or f"{label}-0" in names:
            found.append(replace(next(opened), sampling_rate=rate))
        else:
            found.append(ChannelInfo(label, None, unit, rate, left_out="another sampling rate than the EEG"))
    return found


def _name_problems(raw: Any, source: str) -> list[str]:
    """What `EEGFeatureExtractor` would raise on the names, first as they are, then without the unknown ones."""
    problems = []
    for unknown_channels in get_args(UnknownChannels):
        try:
            resolve_montage(raw.ch_names, excluded_rows(raw), unknown_channels, source)
        except ValueError as error:
            # the reason of each channel is in the table
            problems.append(re.sub(r"(no EEG channel is left) \(.*\)", r"\1", str(error), flags=re.DOTALL))
    return problems


def _amplitude_problems(channels: Sequence[ChannelInfo]) -> list[str]:
    eeg = [channel for channel in channels if channel.resolved is not None and channel.amplitude is not None]
    live = {channel.name: channel.amplitude or 0.0 for channel in eeg if not channel.flat}
    problems = []
    for kind, names in (
        ("flat", [channel.name for channel in eeg if channel.flat]),
        ("clipped", [channel.name for channel in eeg if channel.clipped]),
    ):
        if names:
            problems.append(f"{kind} channels: {join_words(names)}")
    if not live:
        return problems
    low, high = PLAUSIBLE_MICROVOLTS
    median = float(np.median(list(live.values())))
    if not low <= median <= high:
        problems.append(
            f"before filtering, the median channel has an amplitude of {median:.3g} uV, which is no EEG ({low:g} to "
            f"{high:g} uV). " + unit_advice(median * 1e-6)
        )
        return problems
    odd = [f"{name} ({amplitude:.3g} uV)" for name, amplitude in live.items() if not low <= amplitude <= high]
    return problems + ([f"implausible amplitudes before filtering: {join_words(odd)}"] if odd else [])


def _total_bytes(path: PathOrStr, raw: Any) -> int:
    """Size of the file, or of all files in its folder, with the data files beside it."""
    files = {Path(path).resolve()} | {Path(name).resolve() for name in raw.filenames if name is not None}
    parts = [part for file in files for part in (file.rglob("*") if file.is_dir() else [file])]
    return sum(part.stat().st_size for part in set(parts) if part.is_file())


# As text --------------------------------------------------------------------------------------------


def _table(channels: Sequence[ChannelInfo]) -> list[str]:
    rows = [(*CHANNEL_COLUMNS, ""), *(channel_row(channel) for channel in channels)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def channel_row(channel: ChannelInfo) -> tuple[str, ...]:
    """What a table says of a channel: a cell for each of `CHANNEL_COLUMNS`, and one for what is odd about it."""
    remarks = [channel.left_out, "flat" if channel.flat else None, "clipped" if channel.clipped else None]
    return (
        channel.name,
        channel.resolved or "left out",
        channel.kind or "",
        channel.unit or "",
        f"{channel.sampling_rate:g} Hz",
        "" if channel.amplitude is None else f"{channel.amplitude:.3g} uV",
        join_words(remark for remark in remarks if remark),
    )


def _annotation_text(info: RecordingInfo) -> str:
    if not info.annotations:
        return "none"
    shown = list(info.annotations.items())[:12]
    counts = join_words(f"{description!r} x {count}" for description, count in shown)
    others = len(info.annotations) - len(shown)
    more = f" and {_count(others, 'other description')}" if others else ""
    first = join_words(f"{text!r} at {onset:.2f} s" for onset, _, text in info.first_annotations)
    return f"{counts}{more}; the first: {first}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f} MB" if n_bytes >= 1e5 else f"{n_bytes / 1e3:.1f} kB"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.4g} s"
    whole = round(seconds)
    return f"{seconds:.0f} s ({whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02})"


# As a picture --------------------------------------------------------------------------------------------

TRACE_SECONDS = 10.0
SPECTRUM_SECONDS = 60.0


def plot_recording(path: PathOrStr, info: RecordingInfo) -> "Figure":
    """Draw ten seconds from the middle of a recording, the amplitude of every channel and the spectrum of its EEG.

    Args:
        path: the recording; info: what `inspect_recording` said of it.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: no channel is a voltage, or the data cannot be read.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install matplotlib") from error
    raw, _ = open_recording(path)
    by_name = {channel.name: channel for channel in info.channels}
    rows = [row for row, name in enumerate(raw.ch_names) if by_name[name].amplitude is not None]
    if not rows:
        raise ValueError(f"{path}: there is nothing to draw, for no channel is a voltage.")
    shown = [rows[i] for i in np.linspace(0, len(rows) - 1, min(_PLOTTED_AT_MOST, len(rows))).round().astype(int)]
    channels = [by_name[raw.ch_names[row]] for row in shown]
    eeg = [row for row in rows if by_name[raw.ch_names[row]].resolved is not None] or rows
    with matplotlib.rc_context(STYLE):
        height = max(5.0, 0.24 * len(shown) + 1.2)
        figure = Figure(figsize=(13, height), layout="constrained")
        grid = figure.add_gridspec(2, 2, width_ratios=(2, 1), height_ratios=(max(1.0, 0.09 * len(shown)), 1))
        trace_axis = figure.add_subplot(grid[:, 0])
        amplitude_axis, spectrum_axis = figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, 1])
        known = all(_has_known_unit(by_name[raw.ch_names[row]]) for row in eeg)
        _draw_traces(trace_axis, raw, shown, channels, str(path), known)
        _draw_amplitudes(amplitude_axis, channels, known)
        _draw_spectrum(spectrum_axis, raw, eeg, str(path), known)
        more = f", {len(shown)} of {len(rows)} channels" if len(shown) < len(rows) else ""
        figure.suptitle(
            f"{Path(path).name}: {info.format}, {info.sampling_rate:g} Hz, {_duration(info.seconds)}{more}",
            fontsize=13,
        )
    return figure


def _middle(raw: Any, seconds: float) -> tuple[int, int]:
    """First and last sample of some seconds in the middle of a recording."""
    length = min(raw.n_times, max(1, round(seconds * raw.info["sfreq"])))
    start = (raw.n_times - length) // 2
    return start, start + length


def _label(channel: ChannelInfo) -> str:
    if channel.resolved is None:
        return f"{channel.name} (left out)"
    same = clean_name(channel.name) == channel.resolved.upper()
    return channel.name if same else f"{channel.name} = {channel.resolved}"


def _has_known_unit(channel: ChannelInfo) -> bool:
    """Whether microvolts are microvolts: formats that write no unit have one, EDF's and others' may be no voltage."""
    return channel.unit is None or volts_per(channel.unit) is not None


def _draw_traces(
    axis: "Axes", raw: Any, rows: list[int], channels: list[ChannelInfo], source: str, known: bool
) -> None:
    """One line a channel, the first on top, equally scaled; left-out channels in grey, each to its own scale."""
    start, stop = _middle(raw, TRACE_SECONDS)
    data = np.nan_to_num(read_samples(raw, rows, start, stop, source) * 1e6)
    data -= np.median(data, axis=1, keepdims=True)
    usable = [channel.amplitude or 0.0 for channel in channels if channel.resolved is not None and not channel.flat]
    spacing = 8 * float(np.median(usable)) if usable else 0.0
    seconds = np.arange(start, stop) / raw.info["sfreq"]
    for position, (trace, channel) in enumerate(zip(data, channels, strict=True)):
        kept = channel.resolved is not None
        scale = spacing if kept and spacing else 8 * (channel.amplitude or 0.0)
        height = np.clip(trace / scale, -1.5, 1.5) if scale else 0 * trace
        axis.plot(seconds, height - position, color=BLUE if kept else _GREY, linewidth=0.6)
    axis.set_yticks(-np.arange(len(channels)), [_label(channel) for channel in channels], fontsize=8)
    axis.set(
        xlim=(seconds[0], seconds[-1] + 1 / raw.info["sfreq"]), ylim=(-len(channels) - 0.6, 1.6), xlabel="Time (s)"
    )
    axis.grid(axis="y", visible=False)
    apart = f"; lines {_number(spacing, known)} apart" if spacing else ""
    axis.set_title(f"Unfiltered{apart}, traces cut at 1.5 lines; grey: left out, own scale", fontsize=10)


def _number(microvolts: float, known: bool) -> str:
    return f"{microvolts:.3g} µV" if known else f"{microvolts * 1e-6:.3g} (as read, unit unknown)"


def _draw_amplitudes(axis: "Axes", channels: list[ChannelInfo], known: bool) -> None:
    low, high = PLAUSIBLE_MICROVOLTS if known else (0.0, np.inf)
    factor = 1.0 if known else 1e-6  # what MNE took for volts
    floor = 0.01
    values = [max(factor * (channel.amplitude or 0.0), floor) for channel in channels]
    colours = [
        _GREY if channel.resolved is None else BLUE if low <= value <= high and not channel.flat else VERMILION
        for channel, value in zip(channels, values, strict=True)
    ]
    positions = -np.arange(len(channels))
    axis.hlines(positions, floor, values, color=colours, linewidth=1.2)
    axis.scatter(values, positions, color=colours, s=14, zorder=3)
    axis.set_xscale("log")
    end = 2 * max(values)
    if known:
        axis.axvspan(low, high, color="#eef4f8", zorder=0)
        end = max(2 * high, end)
    axis.set_yticks(positions, [_label(channel) for channel in channels], fontsize=6 if len(channels) > 24 else 8)
    axis.set(xlim=(floor, end), ylim=(-len(channels) + 0.2, 0.8))
    axis.grid(axis="y", visible=False)
    title = "Amplitude (µV), unfiltered; shaded: plausible" if known else "Amplitude, as read, unit unknown"
    axis.set_title(title, fontsize=10)


def _draw_spectrum(axis: "Axes", raw: Any, rows: list[int], source: str, known: bool) -> None:
    """Median over the channels, and the range of the middle 80% of them."""
    from scipy.signal import welch

    rate = raw.info["sfreq"]
    data = np.nan_to_num(read_samples(raw, rows, *_middle(raw, SPECTRUM_SECONDS), source) * (1e6 if known else 1.0))
    frequencies, power = welch(data, rate, nperseg=min(data.shape[1], round(2 * rate)))
    inside = (frequencies > 0) & (frequencies <= 100)
    power = np.maximum(power[:, inside], 1e-12)
    low, middle, high = np.quantile(power, (0.1, 0.5, 0.9), axis=0)
    axis.fill_between(frequencies[inside], low, high, color=BLUE, alpha=0.2, linewidth=0)
    axis.plot(frequencies[inside], middle, color=BLUE, linewidth=1.2)
    axis.set_yscale("log")
    axis.set(xlim=(0, min(100, rate / 2)), xlabel="Frequency (Hz)")
    unit = "µV²/Hz" if known else "as read, unit unknown"
    axis.set_title(f"Power ({unit}): median, middle 80%", fontsize=10)
