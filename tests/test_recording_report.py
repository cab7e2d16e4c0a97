"""The report of a recording: what its page says is what the pipeline, the tokens and occlusion say."""

import re
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
from pages import checked
from recording_files import write_edf
from tiny import vq_config, vq_model
from tiny_pipeline import CHANNELS, RATE, as_dict, as_raw, tiny_answerer, tiny_processor

from neurolm_hf import NeuroLMVQModel, figures, recording_report
from neurolm_hf.occlusion import answer_importance
from neurolm_hf.recording_report import write_recording_report


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of few pixels: most of the time would go into drawing them."""
    monkeypatch.setitem(figures.STYLE, "figure.dpi", 40)


@pytest.fixture(scope="module")
def pipe() -> Any:
    processor = tiny_processor()
    return tiny_answerer(processor).as_pipeline(processor, device="cpu")


@pytest.fixture(scope="module")
def filtering() -> Any:
    """A pipeline whose recipe has filters."""
    processor = tiny_processor(do_filter=True, do_notch=True, band=(1.0, 75.0))
    return tiny_answerer(processor).as_pipeline(processor, device="cpu")


@pytest.fixture(scope="module")
def tokenizer(pipe: Any) -> NeuroLMVQModel:
    """The neural tokenizer of the tiny model."""
    vq = NeuroLMVQModel(vq_config(num_channel_embeddings=256, max_seconds=16))
    vq.encoder.load_state_dict(pipe.model.model.eeg_encoder.state_dict())
    return vq


def test_a_page_tells_what_the_model_said_and_what_mattered(pipe: Any, tokenizer: Any, tmp_path: Path) -> None:
    raw = as_raw(13)
    raw.set_annotations(mne.Annotations([5.0], [0.0], ["blink $x$"]))
    page = write_recording_report(pipe, raw, tmp_path / "report", task="Sleep", tokenizer=tokenizer)
    text, headings = checked(page)
    answers = pipe(raw, task="Sleep")
    given = [window["answer"] for window in answers]
    for answer in ("(A)", "(B)", "(C)"):
        mean = np.mean([window["probabilities"][answer] for window in answers])
        share = given.count(answer) / len(given)
        assert f"{answer} {given.count(answer)} {share:.0%} {mean:.2f}" in text
    assert "4 windows of 3 s." in text
    assert "1 s at the end are in no window." in text

    best = max(answers, key=lambda window: window["probabilities"][window["answer"]])
    heading = f"Window {best['start']:g} to {best['end']:g} s: {best['answer']}, "
    assert headings[2] == heading + f"{best['probabilities'][best['answer']]:.2f}"
    found = answer_importance(pipe, raw, start=best["start"], task="Sleep")
    strongest = max(found.channels, key=lambda name: found.channels[name])
    assert f"most for the answer: {strongest} {found.channels[strongest]:+.2f}" in page.read_text()
    assert "Not on the map, for they have no place of their own there: C3, O2." in text  # two channels span none

    codes = pipe.processor.tokenize_eeg(raw.copy().pick(["C3", "O2"]).crop(0, 12, include_tmax=False), pipe.model)
    assert f"are {len(codes.unique())} of the 32 codes" in text or "of the 32 codes" in text
    window = int(best["start"]) // 3
    # the encoder reads windows of three seconds
    processor = tiny_processor(window_seconds=3)
    of_window = processor.tokenize_eeg(raw.copy().pick(["C3", "O2"]), pipe.model)[window].reshape(3, 2).T
    assert f"C3 {' '.join(map(str, of_window[0].tolist()))}" in text
    assert headings[-3:] == ["Reconstruction", "The recording", "How this was made"]


def test_spectra_of_before_and_after_and_a_line_that_is_left(
    filtering: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    draw = recording_report.plot_filtering
    monkeypatch.setattr(recording_report, "plot_filtering", lambda *given: drawn.append(given) or draw(*given))
    given = as_dict(20)
    given["eeg"] = given["eeg"] + 20 * np.sin(2 * np.pi * 60 * np.arange(20 * RATE) / RATE)
    text, _ = checked(write_recording_report(filtering, given, tmp_path, task="Workload"))
    ((hertz, after, before, notch),) = drawn
    assert (notch, after.shape, before.shape) == (50, (3, hertz.size), (3, hertz.size))
    notched = abs(hertz - 50) < 0.3
    assert (before[:, notched] > 3 * after[:, notched]).all()
    assert "notch 50 Hz" in text
    assert "A line at 60 Hz is left, for the recipe took out 50 Hz" in text


def test_what_is_odd_about_a_file_is_said(pipe: Any, tmp_path: Path) -> None:
    names = ["EEG C3", "EEG <b>&", "EEG O2", "ECG"]
    path = write_edf(tmp_path / "<i>$x$ & 'y'.edf", names, seconds=6, rate=200)
    page = write_recording_report(pipe, path, tmp_path / "out", task="Workload", unknown_channels="drop")
    text, _ = checked(page)
    assert "<i>$x$ & 'y'.edf: answers of" in text
    assert "Left out: EEG <b>& (unknown name), ECG (not EEG by its name)." in text
    assert "1 channel name(s) not in NeuroLM's vocabulary" in text
    assert "Format EDF" in text
    assert "EEG C3 C3" in text
    assert "<b>" not in page.read_text()
    assert "<i>" not in page.read_text()


def test_doubts_stand_out(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"question": "Is it <high>?", "candidate_answers": ["No", "Yes"]}
    monkeypatch.setattr(pipe.model.config, "stage", "pretrained")
    page = write_recording_report(pipe, as_raw(4), tmp_path, **asked).read_text()
    warnings = re.findall(r"<p class=warning>(.*?)</p>", page)
    assert warnings == [
        "The model was never instruction-tuned: its answers mean nothing.",
        "The model was not tuned on this question with these answers.",
    ]


def test_another_tokenizer_is_refused(pipe: Any, tmp_path: Path) -> None:
    other = vq_model(num_channel_embeddings=256, max_seconds=16)
    other.encoder.quantizer.codebook.neg_()
    with pytest.raises(ValueError, match="other codes than the model"):
        write_recording_report(pipe, as_raw(2), tmp_path / "out", task="Workload", tokenizer=other)
    page = write_recording_report(pipe, as_raw(2), tmp_path, task="Workload").read_text()
    assert "a NeuroLM holds no decoder" in page


def test_a_long_recording_gives_a_small_page_that_says_what_is_left_out(pipe: Any, tmp_path: Path) -> None:
    page = write_recording_report(pipe, as_raw(400), tmp_path, task="Workload", windows_at_most=20)
    text, _ = checked(page)
    assert "20 windows of 2 s, evenly spread among the 200 of the recording; the others were left out." in text
    assert "40 of 400 s are shown" in text
    assert page.stat().st_size < 4e6


def test_one_channel_for_one_second(pipe: Any, tmp_path: Path) -> None:
    """Nothing can be left out of it, and the page says the rest."""
    given = {**as_dict(1), "eeg": as_dict(1)["eeg"][:1], "ch_names": CHANNELS[:1]}
    _, headings = checked(write_recording_report(pipe, given, tmp_path, task="Workload"))
    assert not list(tmp_path.glob("channel*.png"))
    assert headings[:2] == ["What to know first", "Answers"]


def test_a_prepared_recording_has_no_before(pipe: Any, tmp_path: Path) -> None:
    (prepared,) = pipe.processor.feature_extractor.prepare(as_raw(4))
    text, _ = checked(write_recording_report(pipe, prepared, tmp_path, task="Workload"))
    assert "There is no spectrum before the filters: it was given as it has been prepared." in text


def test_what_cannot_be_reported(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give candidate_answers"):
        write_recording_report(pipe, as_raw(4), tmp_path / "out", question="What is it?")
    epochs = mne.make_fixed_length_epochs(as_raw(4), 2, preload=True, verbose=False)
    with pytest.raises(ValueError, match="2 epochs"):
        write_recording_report(pipe, epochs, tmp_path / "out", task="Workload")
    assert not (tmp_path / "out").exists()
