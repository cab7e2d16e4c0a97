"""What a model reads and says of a whole recording: answers and tokens of its windows, spectra before and after.

This is what a report of the recording shows; nothing here draws.
"""

import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import welch
from transformers.utils.logging import tqdm

from .inspection import RecordingInfo
from .pipeline_neurolm import Asked, EEGQuestionAnsweringPipeline
from .processing_neurolm import EEGFeatureExtractor, PreparedEEG, eeg_codes
from .recording_figures import spread
from .stages import bare_language_model


if TYPE_CHECKING:
    from .modeling_neurolm import NeuroLMVQModel

BATCH = 32
SPECTRUM_SECONDS = 60
MAINS_HZ = (50.0, 60.0)
# A line in the spectrum, as a multiple of the power beside it.
STANDS_OUT = 2.0
# Power that no longer matters, as a share of that below 40 Hz.
FAINT = 1e-3


@dataclass(frozen=True)
class Reading:
    """What the model has read and said of a recording.

    Attributes:
        spans: first and last sample of each window that was asked about; of_all: how many windows there are.
        probabilities: (windows, answers); codes: of each window (channels, seconds); none of a model
            that was saved without its codebook.
        info: what is in the file; None where the recording is no file.
    """

    pipe: EEGQuestionAnsweringPipeline
    asked: Asked
    extractor: EEGFeatureExtractor
    prepared: PreparedEEG
    spans: list[tuple[int, int]]
    of_all: int
    probabilities: NDArray[np.float64]
    codes: list[NDArray[np.int64]]
    info: RecordingInfo | None

    @property
    def answers(self) -> tuple[str, ...]:
        return self.asked.question.answers

    @property
    def seconds(self) -> float:
        return self.prepared.n_samples / self.extractor.sampling_rate

    def time(self, window: int) -> tuple[float, float]:
        """Start and end of a window, in seconds."""
        first, last = self.spans[window]
        return first / self.extractor.sampling_rate, last / self.extractor.sampling_rate

    def answer(self, window: int) -> str:
        """Its likeliest answer, with the probability."""
        probabilities = self.probabilities[window]
        return f"{self.answers[int(probabilities.argmax())]} {probabilities.max():.2f}"

    def microvolts(self, first: int, last: int, of: PreparedEEG | None = None) -> NDArray[np.float64]:
        """Samples (channels, samples) as the model reads them, unscaled; or those of another reading of the same."""
        scale = self.extractor.scale if self.extractor.do_rescale else 1.0
        return (of or self.prepared).read(first, last).astype(np.float64) * scale

    def most_confident(self, at_most: int) -> list[int]:
        """The window with the highest probability of each answer that was given, the surest first."""
        given = self.probabilities.argmax(axis=1)
        best = [
            int(np.where(given == answer, self.probabilities[:, answer], -1).argmax()) for answer in np.unique(given)
        ]
        return sorted(best, key=lambda window: -self.probabilities[window].max())[:at_most]


@dataclass(frozen=True)
class Spectra:
    """Power of a recording's channels in the seconds in its middle.

    Attributes:
        seconds: how many.
        frequencies: in Hz, from 0 to half of the recipe's rate.
        after, before: (channels, frequencies) in µV²/Hz, as the model reads the recording, and without the filters of
            its recipe; before is None where it cannot be told.
        why_not: the reason, then.
        notch_hz: the mains frequency that was taken out, if one was.
    """

    seconds: float
    frequencies: NDArray[np.float64]
    after: NDArray[np.float64]
    before: NDArray[np.float64] | None
    why_not: str | None
    notch_hz: float | None

    @property
    def mains_left(self) -> list[float]:
        """Mains frequencies at which a line still stands out."""
        power = np.median(self.after, axis=0)
        weak = FAINT * float(np.median(power[(self.frequencies >= 1) & (self.frequencies <= 40)]))
        found = []
        for hertz in MAINS_HZ:
            away = np.abs(self.frequencies - hertz)
            line, beside = away <= 0.5, (away >= 2) & (away <= 5)
            if not line.any() or not beside.any():
                continue
            if power[line].max() > max(weak, STANDS_OUT * float(np.median(power[beside]))):
                found.append(hertz)
        return found


def read_recording(
    pipe: EEGQuestionAnsweringPipeline,
    recording: Any,
    asked_with: dict[str, Any],
    info: RecordingInfo | None,
    windows_at_most: int,
) -> Reading:
    """Asks about the windows of a recording, and takes their tokens.

    Args:
        recording: as in a call of the pipeline; asked_with: its arguments.
        info: what is in the file, where it is one.
        windows_at_most: of more windows, so many are asked about, evenly spread.

    Raises:
        ValueError: no allowed answers, several epochs; what a call of the pipeline raises.
    """
    asked, extractor, prepared = pipe.prepare(recording, **asked_with)
    if not asked.completions:
        raise ValueError("A report is of allowed answers: give candidate_answers, or a task.")
    if len(prepared) != 1:
        raise ValueError(f"There are {len(prepared)} epochs, and a report is of one recording: pass the Raw.")
    spans = extractor.window_spans(prepared[0])
    of_all, spans = len(spans), [spans[place] for place in spread(len(spans), windows_at_most)]
    probabilities, codes, channels = [], [], len(prepared[0].ch_names)
    has_codes = bare_language_model(pipe.model).eeg_encoder.config.has_codebook
    for first in tqdm(range(0, len(spans), BATCH), desc="windows", unit="batch", disable=len(spans) <= BATCH):
        segments = [extractor.segment_at(prepared[0], *span) for span in spans[first : first + BATCH]]
        probabilities.append(pipe.score(asked, segments).softmax(dim=1).numpy())
        if not has_codes:
            continue
        of_batch = eeg_codes(extractor.collate([[one] for one in segments], [], "pt"), pipe.model).cpu().numpy()
        codes += [
            extractor.by_channel(row[: one.n_patches], channels) for row, one in zip(of_batch, segments, strict=True)
        ]
    return Reading(pipe, asked, extractor, prepared[0], spans, of_all, np.concatenate(probabilities), codes, info)


def _unfiltered(
    pipe: EEGQuestionAnsweringPipeline, recording: Any, asked_with: dict[str, Any]
) -> tuple[PreparedEEG | None, str | None]:
    """The recording by the same recipe without its filters, or why there is none."""
    if isinstance(recording, PreparedEEG):
        return None, "it was given as it has been prepared."
    extractor = copy.copy(pipe.processor.feature_extractor)
    extractor.do_filter = extractor.do_notch = False
    plain = copy.copy(pipe)
    plain.processor = copy.copy(pipe.processor)
    plain.processor.feature_extractor = extractor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they have been given on the first reading
        try:
            return plain.prepare(recording, **asked_with)[2][0], None
        except ValueError as error:
            return None, str(error)


def measure_spectra(reading: Reading, recording: Any, asked_with: dict[str, Any]) -> Spectra:
    """Spectra of a recording that was read.

    Args:
        recording, asked_with: what it was read from, and with which arguments.
    """
    rate, n_samples = reading.extractor.sampling_rate, reading.prepared.n_samples
    wanted = min(SPECTRUM_SECONDS * rate, n_samples)
    part = ((n_samples - wanted) // 2, (n_samples + wanted) // 2)
    before, why_not = _unfiltered(reading.pipe, recording, asked_with)
    frequencies, after = welch(reading.microvolts(*part), rate, nperseg=min(2 * rate, wanted))
    power = None
    if before is not None:
        power = welch(reading.microvolts(*part, of=before), rate, nperseg=min(2 * rate, wanted))[1]
    has_notch = any(step.startswith("notch") for step in reading.prepared.report.steps_applied)
    notch = reading.extractor.notch_frequency if has_notch else None
    return Spectra(wanted / rate, frequencies, after, power, why_not, notch)


def check_decoder(tokenizer: "NeuroLMVQModel", eeg_encoder: Any) -> None:
    """A ValueError where the decoder of a neural tokenizer knows other codes than a language model's encoder gives."""
    if not eeg_encoder.config.has_codebook:
        return
    ours, theirs = (one.quantizer.codebook.float().cpu() for one in (tokenizer.encoder, eeg_encoder))
    # a model in half precision has rounded its own
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, atol=1e-2):
        raise ValueError("The tokenizer has other codes than the model: give the one that the model was made with.")
