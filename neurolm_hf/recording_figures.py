"""Figures of one recording: its traces with the answers over them, spectra, tokens, and what mattered for an answer.

As in `figures`, from plain arrays, in one style. Signed values go from blue over white to orange, and their sign is
written as well.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .figures import BLACK, BLUE, ORANGE, SKY, VERMILION, WIDTH_INCHES, drawing, label, matrix, panels


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Rows that a figure can show legibly; of more, these are spread evenly over the montage.
ROWS_AT_MOST = 32
BARS_AT_MOST = 24
# Fewer electrodes do not span a map.
ELECTRODES_OF_A_MAP = 4
LINES_APART = 8.0  # in robust amplitudes
TICK_STEPS = (1, 2, 5, 10, 20, 30, 60)  # columns
SHOWN_HZ = (0.5, 100.0)
SMALL = 9


@drawing
def plot_answers(
    starts: ArrayLike, ends: ArrayLike, probabilities: ArrayLike, answers: Sequence[str], seconds: float
) -> "Figure":
    """Draw the answers over a whole recording: the probability of the last of two answers, or of each of several.

    Args:
        starts, ends: (windows,) in seconds.
        probabilities: (windows, answers)
        answers: names of the columns.
        seconds: length of the recording.
    """
    from matplotlib.collections import PolyCollection

    begin, end = np.asarray(starts, dtype=float), np.asarray(ends, dtype=float)
    values = matrix(probabilities, "probabilities")
    if values.shape != (len(begin), len(answers)) or end.shape != begin.shape:
        raise ValueError(f"probabilities {values.shape} do not fit {len(begin)} windows and {len(answers)} answers")
    unit, name = (3600.0, "h") if seconds > 7200 else (60.0, "min") if seconds > 300 else (1.0, "s")
    begin, end, whole = begin / unit, end / unit, seconds / unit
    if len(answers) == 2:
        figure, (axis,) = panels(1, height=2.4)
        middle = (begin + end) / 2
        axis.hlines(values[:, 1], begin, end, color=BLUE, linewidth=2)
        axis.plot(middle, values[:, 1], color=SKY, linewidth=0.8, zorder=1)
        axis.axhline(0.5, color=BLACK, linestyle="--", linewidth=1)
        axis.set(ylabel=f"P({label(answers[1])})", ylim=(-0.03, 1.03))
        axis.set_title(f"Above the dashed line the answer is “{label(answers[1])}”, below “{label(answers[0])}”")
    else:
        figure, (axis,) = panels(1, height=1.2 + 0.36 * len(answers))
        axis.grid(False)
        for row in range(len(answers)):
            boxes = [
                [(left, row - 0.5), (right, row - 0.5), (right, row + 0.5), (left, row + 0.5)]
                for left, right in zip(begin, end, strict=True)
            ]
            cells = PolyCollection(boxes, array=values[:, row], cmap="cividis_r", clim=(0, 1), edgecolors="none")
            axis.add_collection(cells)
        likeliest = values.argmax(axis=1)
        axis.hlines(likeliest, begin, end, color=VERMILION, linewidth=2.5, label="Likeliest answer")
        axis.set_yticks(range(len(answers)), [label(answer) for answer in answers])
        axis.set_ylim(len(answers) - 0.5, -0.5)
        figure.colorbar(cells, ax=axis, label="Probability")
        axis.set_title("Orange line: the likeliest answer")
    axis.set(xlim=(0, whole), xlabel=f"Time ({name})")
    return figure


@drawing
def plot_traces(
    signal: ArrayLike,
    ch_names: Sequence[str],
    sampling_rate: float,
    start: float,
    windows: Sequence[tuple[float, float, str]],
    marks: Sequence[tuple[float, str]] = (),
) -> "Figure":
    """Draw the traces of some seconds, with what was answered about the windows above them.

    Args:
        signal: (channels, samples) in microvolts.
        ch_names: names of the rows.
        sampling_rate: in Hz.
        start: of the first sample, in seconds of the recording.
        windows: start and end in seconds, and what stands above the window.
        marks: seconds and descriptions of annotations.
    """
    data = matrix(signal, "signal")
    if len(ch_names) != len(data):
        raise ValueError(f"{len(ch_names)} channel names for {len(data)} rows of signal")
    rows = spread(len(data), ROWS_AT_MOST)
    data = data[rows] - np.median(data[rows], axis=1, keepdims=True)
    amplitude = float(np.median(1.4826 * np.median(np.abs(data), axis=1)))
    spacing = LINES_APART * amplitude or 1.0
    seconds = start + np.arange(data.shape[1]) / sampling_rate
    stop = start + data.shape[1] / sampling_rate

    figure, (axis,) = panels(1, height=1.3 + 0.24 * len(rows))
    for place, trace in enumerate(data):
        axis.plot(seconds, np.clip(trace / spacing, -1.5, 1.5) - place, color=BLUE, linewidth=0.6)
    top, bottom = 1.6, -len(rows) + 0.2
    for number, (left, right, text) in enumerate(windows):
        shown = max(left, start), min(right, stop)
        axis.axvspan(*shown, color="#f1f1f1" if number % 2 else "#ffffff", zorder=0)
        axis.axvline(left, color="#888888", linewidth=0.8)
        axis.text(
            sum(shown) / 2, top - 0.15, text, ha="center", va="top", fontsize=SMALL, fontweight="bold", clip_on=True
        )
    for onset, text in marks:
        axis.axvline(onset, color=VERMILION, linewidth=1, linestyle=":")
        axis.text(onset, bottom, f" {label(text, 16)}", rotation=90, va="bottom", fontsize=7, color="#8a3d00")
    axis.set_yticks(-np.arange(len(rows)), [label(ch_names[row], 12) for row in rows], fontsize=SMALL)
    axis.set(xlim=(start, stop), ylim=(bottom, top), xlabel="Time (s)")
    axis.grid(axis="y", visible=False)
    of = f", {len(rows)} of {len(ch_names)} channels" if len(rows) < len(ch_names) else ""
    axis.set_title(f"Lines are {spacing:.3g} µV apart{of}")
    return figure


@drawing
def plot_filtering(
    frequencies: ArrayLike,
    after: ArrayLike,
    before: ArrayLike | None = None,
    notch_hz: float | None = None,
) -> "Figure":
    """Draw the power spectrum before and after the preprocessing: median over channels, and their middle 80%.

    Args:
        frequencies: in Hz.
        after, before: (channels, frequencies) in µV²/Hz; before may be missing.
        notch_hz: the mains frequency that was taken out, marked.
    """
    hertz = np.asarray(frequencies, dtype=float)
    shown = (hertz >= SHOWN_HZ[0]) & (hertz <= SHOWN_HZ[1])
    figure, (axis,) = panels(1, height=3.2)
    lines = [("After", after, BLUE, "-")] + ([] if before is None else [("Before", before, ORANGE, "--")])
    highest = lowest = 0.0
    for name, power, colour, style in reversed(lines):
        values = np.maximum(matrix(power, name)[:, shown], 1e-12)
        low, middle, high = np.quantile(values, (0.1, 0.5, 0.9), axis=0)
        axis.fill_between(hertz[shown], low, high, color=colour, alpha=0.2, linewidth=0)
        axis.plot(hertz[shown], middle, style, color=colour, linewidth=1.4, label=name)
        highest = max(highest, float(high.max()))
        below = hertz[shown] < 60
        lowest = float(middle[below].min()) if below.any() else float(middle.min())
    if notch_hz is not None:
        axis.axvline(notch_hz, color=BLACK, linestyle=":", linewidth=1.2, label=f"Mains, {notch_hz:g} Hz")
    axis.set_yscale("log")
    axis.set(
        xlabel="Frequency (Hz)",
        ylabel="Power (µV²/Hz)",
        xlim=(0, SHOWN_HZ[1]),
        ylim=(max(lowest / 100, highest * 1e-9), highest * 2),
    )
    axis.legend()
    return figure


@drawing
def plot_token_map(rarity: ArrayLike, ch_names: Sequence[str], seconds: ArrayLike) -> "Figure":
    """Draw how rare each token is among all tokens of a recording.

    Args:
        rarity: (channels, columns) in bits: minus the binary logarithm of a token's share.
        ch_names: names of the rows.
        seconds: (columns,) where each column begins.
    """
    values, begin = matrix(rarity, "rarity"), np.asarray(seconds, dtype=float)
    rows = spread(len(values), ROWS_AT_MOST)
    figure, (axis,) = panels(1, height=1.4 + 0.2 * len(rows))
    axis.grid(False)
    image = axis.imshow(
        values[rows], cmap="cividis", aspect="auto", interpolation="nearest",
        extent=(-0.5, values.shape[1] - 0.5, len(rows) - 0.5, -0.5),
    )  # fmt: skip
    step = next(step for step in TICK_STEPS if step * 8 > len(begin) or step == TICK_STEPS[-1])
    ticks = np.arange(0, len(begin), step)
    axis.set_xticks(ticks, [f"{begin[tick]:g}" for tick in ticks])
    axis.set_yticks(range(len(rows)), [label(ch_names[row], 12) for row in rows], fontsize=SMALL)
    axis.set_xlabel("Time (s)")
    figure.colorbar(image, ax=axis, label="Rarity of the token (bits)")
    return figure


@drawing
def plot_topography(channels: Mapping[str, float]) -> "tuple[Figure, list[str]]":
    """Draw a value of each channel as a map of the head, seen from above, by MNE, and as bars.

    Args:
        channels: name -> signed value, such as `AnswerImportance.channels`.

    Returns:
        The figure, without a map where too few channels have a place; the channels that are not in the map: bipolar
        pairs, names without a place in MNE's 10-05 montage, a place that another channel has, values that are NaN.

    Raises:
        ValueError: no channel has a value.
        ImportError: matplotlib or MNE is missing.
    """
    values = {name: float(value) for name, value in channels.items() if np.isfinite(value)}
    if not values:
        raise ValueError("there is no value to draw: every channel's is NaN")
    places = _places(list(values))
    with_map = len(places) >= ELECTRODES_OF_A_MAP
    bars = sorted(sorted(values, key=lambda name: -abs(values[name]))[:BARS_AT_MOST], key=lambda name: -values[name])
    height = max(3.4, 1.1 + 0.2 * len(bars)) if with_map else 1.1 + 0.2 * len(bars)
    limit = max(map(abs, values.values())) or 1.0

    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    if with_map:
        map_axis, bar_axis = figure.subplots(1, 2, width_ratios=(3, 2))
        _draw_map(map_axis, values, places, limit)
    else:
        bar_axis = figure.subplots()
    ends = [values[name] for name in bars]
    colours = [ORANGE if end > 0 else BLUE for end in ends]
    bar_axis.barh(range(len(bars)), ends, color=colours, edgecolor=BLACK, linewidth=0.4)
    bar_axis.axvline(0, color=BLACK, linewidth=0.8)
    bar_axis.set_yticks(range(len(bars)), [label(name, 12) for name in bars], fontsize=SMALL)
    bar_axis.set_ylim(len(bars) - 0.4, -0.6)
    bar_axis.grid(axis="y", visible=False)
    bar_axis.set_xlabel("Fall of the log-odds")
    of = f"the {len(bars)} largest of {len(values)}" if len(bars) < len(values) else "all channels"
    bar_axis.set_title(f"Channel by channel, {of}" if not with_map else of.capitalize())
    return figure, [name for name in channels if not with_map or name not in places]


@drawing
def plot_channel_seconds(
    channel_seconds: ArrayLike, ch_names: Sequence[str], of_seconds: ArrayLike, start: float
) -> "Figure":
    """Draw which channel mattered in which second.

    Args:
        channel_seconds: (channels, seconds) signed values; NaN stays white.
        ch_names: names of the rows.
        of_seconds: (seconds,) values of the seconds in all channels, drawn above.
        start: of the first second, in the recording.
    """
    values, whole = matrix(channel_seconds, "channel_seconds"), np.asarray(of_seconds, dtype=float)
    if whole.shape != values.shape[1:]:
        raise ValueError(f"{whole.size} values of seconds for {values.shape[1]} seconds")
    known = np.abs(np.nan_to_num(values)).max(axis=1)
    rows = sorted(np.argsort(-known, kind="stable")[:ROWS_AT_MOST].tolist())
    limit = float(known.max()) or 1.0
    seconds = start + np.arange(len(whole))

    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH_INCHES, 2.4 + 0.2 * len(rows)), layout="constrained")
    top, axis = figure.subplots(2, 1, sharex=True, height_ratios=(1.1, 0.3 + 0.2 * len(rows)))
    heights = np.nan_to_num(whole)
    top.bar(
        seconds + 0.5, heights, width=0.9, color=[ORANGE if one > 0 else BLUE for one in heights], edgecolor=BLACK,
        linewidth=0.4,
    )  # fmt: skip
    top.axhline(0, color=BLACK, linewidth=0.8)
    top.set_title("Whole seconds, all channels")
    axis.grid(False)
    image = axis.imshow(
        values[rows], cmap=_signed_colours(), vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest",
        extent=(start, start + len(whole), len(rows) - 0.5, -0.5),
    )  # fmt: skip
    if len(whole) <= 16:
        for place, row in enumerate(rows):
            for second in np.flatnonzero(np.abs(np.nan_to_num(values[row])) >= limit / 2):
                sign = "+" if values[row, second] > 0 else "−"
                axis.text(start + second + 0.5, place, sign, ha="center", va="center")
    axis.set_yticks(range(len(rows)), [label(ch_names[row], 12) for row in rows], fontsize=SMALL)
    of = f", {len(rows)} of {len(ch_names)} channels" if len(rows) < len(ch_names) else ""
    axis.set_title(f"One channel in one second{of}")
    axis.set_xlabel("Time in the recording (s)")
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    figure.colorbar(image, ax=[top, axis], label="Fall of the log-odds")
    return figure


def spread(count: int, at_most: int) -> NDArray[np.int64]:
    """Indices of at most so many of `count` things, evenly spread."""
    places: NDArray[np.int64] = np.linspace(0, count - 1, min(at_most, count)).round().astype(np.int64)
    return places


# Drawing --------------------------------------------------------------------------------------------


def _draw_map(axis: "Axes", values: Mapping[str, float], places: Mapping[str, str], limit: float) -> None:
    import mne

    info = mne.create_info(list(places.values()), 1.0, "eeg", verbose="ERROR")
    info.set_montage(_montage(), verbose="ERROR")
    named = [label(name, 12) for name in places] if len(places) <= ROWS_AT_MOST else None
    mne.viz.plot_topomap(
        [values[name] for name in places], info, axes=axis, show=False, contours=0, sensors="k.", names=named,
        cmap=_signed_colours(), vlim=(-limit, limit), extrapolate="head",
    )  # fmt: skip
    # a name stands above its electrode, not on it
    for text in axis.texts:
        text.set(fontsize=SMALL, verticalalignment="bottom")
    for line in axis.lines:
        if line.get_marker() == ".":
            line.set_markersize(4)


def _places(names: Sequence[str]) -> dict[str, str]:
    """Channel -> its electrode in MNE's montage, each electrode once."""
    by_upper = {name.upper(): name for name in _montage().ch_names}
    # the old names are where the new ones are
    new = {"T3": "T7", "T4": "T8", "T5": "P7", "T6": "P8"}
    places: dict[str, str] = {}
    for name in names:
        electrode = by_upper.get(new.get(name.upper(), name.upper()))
        if electrode is not None and electrode not in places.values():
            places[name] = electrode
    return places


def _montage() -> Any:
    """The 10-05 montage, which MNE renames."""
    try:
        import mne
    except ImportError as error:
        raise ImportError("Maps of the head need MNE: pip install mne") from error
    names = mne.channels.get_builtin_montages()
    return mne.channels.make_standard_montage("colin27_1005" if "colin27_1005" in names else "standard_1005")


def _signed_colours() -> "Colormap":
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("blue-white-orange", [BLUE, "#ffffff", ORANGE])
    return colours.with_extremes(bad="#ffffff")
