"""A recording, read and answered: against the pipeline, its tokens, and spectra that are known."""

from typing import Any

import mne
import numpy as np
import pytest
from tiny import vq_config
from tiny_pipeline import RATE, as_dict, as_raw, tiny_answerer, tiny_processor

from neurolm_hf import NeuroLMVQModel
from neurolm_hf.answered_recording import check_decoder, measure_spectra, read_recording


def open_pipe(**recipe: Any) -> Any:
    processor = tiny_processor(**recipe)
    return tiny_answerer(processor).as_pipeline(processor, device="cpu")


@pytest.fixture(scope="module")
def pipe() -> Any:
    return open_pipe()


def with_line(seconds: int, hertz: float, microvolts: float) -> dict[str, Any]:
    given = as_dict(seconds)
    line = microvolts * np.sin(2 * np.pi * hertz * np.arange(seconds * RATE) / RATE)
    return given | {"eeg": given["eeg"] + line}


def test_answers_and_tokens_are_those_of_the_pipeline_and_the_model(pipe: Any) -> None:
    read = read_recording(pipe, as_raw(13), {"task": "Sleep"}, None, 100)
    answers = pipe(as_raw(13), task="Sleep")
    assert [read.time(window) for window in range(4)] == [(one["start"], one["end"]) for one in answers]
    expected = [list(one["probabilities"].values()) for one in answers]
    np.testing.assert_allclose(read.probabilities, expected, atol=1e-6)
    best = int(read.probabilities.max(axis=1).argmax())
    assert read.most_confident(1) == [best]
    assert read.answer(best) == f"{answers[best]['answer']} {read.probabilities[best].max():.2f}"
    of_each = [answers[window]["answer"] for window in read.most_confident(3)]
    assert sorted(of_each) == sorted({one["answer"] for one in answers})

    tokens = tiny_processor(window_seconds=3).tokenize_eeg(as_raw(13).pick(["C3", "O2"]), pipe.model)
    for codes, row in zip(read.codes, tokens, strict=True):
        np.testing.assert_array_equal(codes, row.reshape(3, 2).T)


def test_microvolts_are_unscaled(pipe: Any) -> None:
    read = read_recording(pipe, as_raw(4), {"task": "Workload"}, None, 100)
    np.testing.assert_allclose(read.microvolts(100, 300), as_dict(4)["eeg"][:, 100:300], atol=1e-4)


def test_of_many_windows_some_are_asked_about(pipe: Any) -> None:
    read = read_recording(pipe, as_raw(41), {"task": "Workload"}, None, 5)
    assert read.of_all == 20
    assert [read.time(window)[0] for window in range(5)] == [0, 10, 20, 28, 38]
    assert len(read.probabilities) == len(read.codes) == 5


def test_a_line_that_the_notch_left_is_found() -> None:
    pipe = open_pipe(do_filter=True, do_notch=True, band=(1.0, 75.0))  # the notch is at 50 Hz
    for hertz, left in ((60.0, [60.0]), (50.0, [])):
        given, asked = with_line(20, hertz, 20), {"task": "Workload"}
        spectra = measure_spectra(read_recording(pipe, given, asked, None, 5), given, asked)
        assert (spectra.mains_left, spectra.notch_hz, spectra.why_not) == (left, 50, None)
        place = int(np.argmin(abs(spectra.frequencies - hertz)))
        # the power of a sine within Hann's bandwidth, of a resolution of half a hertz
        expected = pytest.approx(20**2 / 2 / 0.75, rel=0.1)
        assert spectra.before is not None
        assert spectra.before[:, place].mean() == expected
        assert (spectra.after[:, place].mean() == expected) == bool(left)


def test_without_a_notch_there_is_none(pipe: Any) -> None:
    asked = {"task": "Workload"}
    spectra = measure_spectra(read_recording(pipe, as_raw(4), asked, None, 5), as_raw(4), asked)
    assert spectra.notch_hz is None
    np.testing.assert_allclose(spectra.before, spectra.after)
    assert spectra.seconds == 4


def test_a_prepared_recording_has_no_before(pipe: Any) -> None:
    (prepared,) = pipe.processor.feature_extractor.prepare(as_raw(4))
    asked = {"task": "Workload"}
    spectra = measure_spectra(read_recording(pipe, prepared, asked, None, 5), prepared, asked)
    assert spectra.before is None
    assert "has been prepared" in str(spectra.why_not)


def test_what_cannot_be_read(pipe: Any) -> None:
    with pytest.raises(ValueError, match="give candidate_answers"):
        read_recording(pipe, as_raw(4), {"question": "What is it?"}, None, 5)
    epochs = mne.make_fixed_length_epochs(as_raw(4), 2, preload=True, verbose=False)
    with pytest.raises(ValueError, match="2 epochs"):
        read_recording(pipe, epochs, {"task": "Workload"}, None, 5)


def test_a_decoder_must_know_the_codes_of_the_encoder(pipe: Any) -> None:
    encoder = pipe.model.model.eeg_encoder
    vq = NeuroLMVQModel(vq_config(num_channel_embeddings=256, max_seconds=16))
    vq.encoder.load_state_dict(encoder.state_dict())
    check_decoder(vq, encoder)
    vq.encoder.quantizer.codebook[3] += 0.1
    with pytest.raises(ValueError, match="other codes than the model"):
        check_decoder(vq, encoder)
