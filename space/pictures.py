"""The pictures of a window, as PNG in base64: they travel within the page, and no file of them is left anywhere."""

import base64
import io
from typing import TYPE_CHECKING

from visit import Window

from neurolm_hf.occlusion import AnswerImportance
from neurolm_hf.recording_figures import plot_channel_seconds, plot_topography, plot_traces


if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Seconds before and after a window, as a share of it.
_BESIDE = 0.5


def traces(window: Window) -> str:
    """The window and what is beside it, as the model reads it, in microvolts."""
    extractor, recording = window.extractor, window.recording
    rate, end = extractor.sampling_rate, window.start + window.seconds
    beside = max(1.0, _BESIDE * window.seconds)
    first, last = max(0.0, window.start - beside), min(recording.n_samples / rate, end + beside)
    signal = recording.read(round(first * rate), round(last * rate))
    if extractor.do_rescale:
        signal = signal * extractor.scale
    windows = [(first, window.start, ""), (window.start, end, "this window"), (end, last, "")]
    marks = [(onset, text) for onset, _, text in recording.annotations if first <= onset < last]
    return _as_png(plot_traces(signal, recording.ch_names, rate, first, windows, marks))


def maps(found: AnswerImportance) -> tuple[str, str, list[str]]:
    """The map of the head, the map of channels and seconds, and the channels that have no place on the head."""
    topography, unplaced = plot_topography(found.channels)
    patches = plot_channel_seconds(found.channel_seconds, list(found.channels), found.seconds, found.start)
    return _as_png(topography), _as_png(patches), unplaced


def _as_png(figure: "Figure") -> str:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return base64.b64encode(file.getvalue()).decode("ascii")
