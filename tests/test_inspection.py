"""What is in a recording: the report of `inspect_recording`, and its picture."""

import json

import mne
import numpy as np
import pytest
from recording_files import (
    RECORDINGS,
    make_eeg,
    needs_recordings,
    write_brainvision,
    write_edf,
    write_mixed_edf,
)

from neurolm_hf import inspection
from neurolm_hf.inspection import inspect_recording, plot_recording


def channels_of(info):
    return {channel.name: channel for channel in info.channels}


def test_the_facts_of_a_file(tmp_path):
    path = write_brainvision(tmp_path / "a.vhdr", make_eeg(4, 90), ["Fp1", "EEG Cz-REF", "ECG", "CP 6"])
    info = inspect_recording(path)
    assert (info.path, info.format, info.sampling_rate, info.samples, info.seconds) == (
        str(path), "BrainVision", 200, 18000, 90
    )  # fmt: skip
    assert info.bytes == path.stat().st_size + 4 * 18000 * 2
    assert (info.annotations, info.first_annotations) == ({"Stimulus/S  1": 1}, [(0.5, 0.005, "Stimulus/S  1")])
    assert [(c.name, c.resolved, c.left_out, c.kind, c.unit) for c in info.channels] == [
        ("Fp1", "FP1", None, "eeg", "µV"),
        ("EEG Cz-REF", "CZ", None, "eeg", "µV"),
        ("ECG", None, "not EEG by its name", "eeg", "µV"),
        ("CP 6", None, "unknown name", "eeg", "µV"),
    ]
    assert [c.amplitude for c in info.channels] == pytest.approx([20] * 4, rel=0.05)
    assert info.measured == "of the whole recording"
    assert info.problems == [
        "1 channel name(s) not in NeuroLM's vocabulary: 'CP 6' (close to CP6, CCP6, P6). Rename them, leave them out, "
        "or pass unknown_channels='drop' (--unknown-channels drop) to drop and report them."
    ]


def test_a_report_is_json_and_text(tmp_path):
    info = inspect_recording(write_edf(tmp_path / "a.edf", names=("EEG Fp1", "EDF 7")))
    assert json.loads(json.dumps(info.to_dict(), allow_nan=False))["channels"][0]["resolved"] == "FP1"
    text = str(info)
    assert (
        "  Amplitude: 1.4826 x median absolute deviation within seconds, before filtering (preparation judges after "
        "filtering); here of the whole recording.\n"
    ) in text
    for words in ("EDF, 2.4 kB; 2 channels, 1 usable; 100 Hz; 4 s; from 2020-01-01 00:00:00",
                  "EEG Fp1  FP1", "left out  eeg   uV    100 Hz", "Annotations: none", "Problems:"):  # fmt: skip
        assert words in text


def test_names_that_would_raise_are_reported(tmp_path):
    doubled = inspect_recording(write_edf(tmp_path / "a.edf", names=("EEG Fp1", "FP1-REF")))
    assert any("are both channel FP1" in problem for problem in doubled.problems)
    nothing = inspect_recording(write_edf(tmp_path / "b.edf", names=("EMG chin", "x")))
    assert nothing.problems[0].startswith("1 channel name(s) not in NeuroLM's vocabulary: 'x'")
    assert nothing.problems[1:] == ["no EEG channel is left."]
    assert [channel.left_out for channel in nothing.channels] == ["not EEG by its name", "unknown name"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"unit": ""}, "likely uV: pass unit='uV'"),
        ({"unit": "n/a"}, "unit 'n/a' of EEG Fp1, EEG Fp2 is no voltage"),
        ({"unit": "mV"}, "are likely mV: pass unit='mV' if so"),
        ({"unit": "UV"}, "'UV' of EEG Fp1, EEG Fp2 is read as 1 uV"),
        ({"scale": 0.0}, "flat channels: EEG Fp1, EEG Fp2"),
    ],
)
def test_units_and_amplitudes(tmp_path, options, said):
    info = inspect_recording(write_edf(tmp_path / "a.edf", **options))
    assert any(said in problem for problem in info.problems), info.problems


def test_flat_and_clipped_channels(tmp_path):
    data = make_eeg(4, 10)
    data[1] = 3.0
    data[2] = np.clip(30 * np.sin(np.arange(2000) / 9), -20, 20)
    data[3] = 2500 * np.sin(np.arange(2000) / 3)
    info = inspect_recording(write_brainvision(tmp_path / "a.vhdr", data, ["Fp1", "Fp2", "Cz", "Pz"]))
    assert [(c.flat, c.clipped) for c in info.channels] == [
        (False, False),
        (True, False),
        (False, True),
        (False, False),
    ]
    assert "flat channels: Fp2" in info.problems
    assert "clipped channels: Cz" in info.problems
    assert any(problem.startswith("implausible amplitudes before filtering: Pz (2.6") for problem in info.problems)


def test_values_that_are_no_numbers(tmp_path):
    data = make_eeg(2, 4)
    data[1, 77] = np.nan
    raw = mne.io.RawArray(data * 1e-6, mne.create_info(["Fp1", "Cz"], 200, "eeg"), verbose="ERROR")
    raw.save(tmp_path / "a_raw.fif", verbose="ERROR")
    info = inspect_recording(tmp_path / "a_raw.fif")
    assert info.problems == ["channel 'Cz' has NaN or infinite values"]
    assert [channel.unit for channel in info.channels] == [None, None]
    json.dumps(info.to_dict(), allow_nan=False)


def test_channels_left_out_for_their_rate_are_listed(tmp_path):
    info = inspect_recording(write_mixed_edf(tmp_path / "a.edf", {"Resp": 25, "Cz": 100, "ECG": 200}, kind="EDF+C"))
    assert (info.format, info.sampling_rate) == ("EDF+C", 100)
    assert [(c.name, c.sampling_rate, c.resolved, c.left_out) for c in info.channels] == [
        ("Resp", 25, None, "another sampling rate than the EEG"),
        ("Cz", 100, "CZ", None),
        ("ECG", 200, None, "another sampling rate than the EEG"),
    ]
    mixed = inspect_recording(write_mixed_edf(tmp_path / "b.edf", {"Fz": 100, "Cz": 200}))
    assert [c.sampling_rate for c in mixed.channels] == [100, 200]
    doubled = inspect_recording(write_edf(tmp_path / "c.edf", names=("Cz", "Cz")))
    assert [c.name for c in doubled.channels] == ["Cz-0", "Cz-1"]


def test_a_long_recording_is_measured_in_blocks(tmp_path, monkeypatch):
    path = write_edf(tmp_path / "a.edf", seconds=30 * 60, rate=50)
    read, lengths = inspection.read_samples, []

    def spy(raw, rows, start, stop, source):
        lengths.append((start, stop - start))
        return read(raw, rows, start, stop, source)

    monkeypatch.setattr(inspection, "read_samples", spy)
    info = inspect_recording(path)
    assert info.measured == "of 20 minutes spread over the recording"
    assert [length for _, length in lengths] == [3000] * 20
    assert (lengths[0][0], lengths[-1][0]) == (0, 29 * 3000)
    assert info.channels[0].amplitude == pytest.approx(20, rel=0.05)


def test_a_picture_shows_found_and_resolved_names(tmp_path):
    path = write_brainvision(tmp_path / "a.vhdr", make_eeg(3, 30), ["EEG Fp1", "CZ-M1", "ECG"])
    figure = plot_recording(path, inspect_recording(path))
    traces, amplitudes, spectrum = figure.axes
    names = ["EEG Fp1", "CZ-M1 = CZ", "ECG (left out)"]
    assert [label.get_text() for label in traces.get_yticklabels()] == names
    assert [label.get_text() for label in amplitudes.get_yticklabels()] == names
    assert traces.get_xlim() == (10.0, 20.0), "ten seconds from the middle"
    assert traces.get_ylim() == (-3.6, 1.6), "the outer traces reach 1.5 lines"
    assert "µV apart" in traces.get_title(loc="left")
    assert [axis.get_title(loc="left") for axis in (amplitudes, spectrum)] == [
        "Amplitude (µV), unfiltered; shaded: plausible",
        "Power (µV²/Hz): median, middle 80%",
    ]
    assert len(spectrum.lines) == 1
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_numbers_of_an_unknown_unit_are_drawn_as_such(tmp_path):
    path = write_edf(tmp_path / "a.edf", unit="", seconds=10)
    traces, amplitudes, spectrum = plot_recording(path, inspect_recording(path)).axes
    for axis in (traces, amplitudes, spectrum):
        assert "as read, unit unknown" in axis.get_title(loc="left")
        assert "µV" not in axis.get_title(loc="left")
    # noise of 20, whatever that is; the lines are 8 times that apart
    assert float(traces.get_title(loc="left").split("lines ")[1].split()[0]) == pytest.approx(160, rel=0.1)
    np.testing.assert_allclose(amplitudes.collections[-1].get_offsets()[:, 0], [20, 20], rtol=0.1)


def test_a_single_thing_is_no_plural(tmp_path):
    text = str(inspect_recording(write_edf(tmp_path / "a.edf", names=("Cz",))))
    assert "; 1 channel, 1 usable;" in text


def test_a_picture_without_a_voltage_raises(tmp_path):
    path = write_brainvision(tmp_path / "a.vhdr", make_eeg(2, 4), ["a", "b"], unit="C")
    info = inspect_recording(path)
    assert info.measured == "none, for no channel is a voltage"
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_recording(path, info)


@needs_recordings
def test_a_real_recording():
    info = inspect_recording(RECORDINGS / "eegmat" / "Subject00_2.edf")
    channels = channels_of(info)
    assert (info.format, info.sampling_rate, info.seconds, len(channels)) == ("EDF+C", 500, 62, 21)
    assert [name for name, c in channels.items() if c.resolved is None] == ["EEG A2-A1", "ECG ECG"]
    assert channels["ECG ECG"].left_out == "not EEG by its name"
    assert channels["ECG ECG"].unit == "mV"
    assert info.problems == []


@needs_recordings
def test_a_dataset_in_bids():
    info = inspect_recording(next((RECORDINGS / "mne_bids_tiny").rglob("*.vhdr")))
    assert info.format == "BrainVision"
    assert any(c.left_out == "marked bad in info['bads']" for c in info.channels)
