"""The way in: channel names, units, files, the recipe and the patches against the references' own, text and EEG."""

import copy
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import types
from pathlib import Path

import mne
import numpy as np
import pytest
import torch
from recording_files import RECORDINGS, SHARED, make_eeg, needs_recordings, needs_shared, write_edf
from safetensors.numpy import load_file
from transformers import AutoFeatureExtractor

from neurolm_hf import processing_neurolm, reading_neurolm
from neurolm_hf.channels_neurolm import CHANNEL_VOCABULARY
from neurolm_hf.processing_neurolm import (
    LABRAM_LAYOUT,
    EEGBatch,
    EEGFeatureExtractor,
    NeuroLMProcessor,
    build_text_tokenizer,
    train_text_tokenizer,
)


needs_gpt2 = pytest.mark.skipif(not (SHARED / "gpt2" / "encoder.json").is_file(), reason="needs ../shared/gpt2")

LABRAM = Path(__file__).parent / "parity" / "labram"
QUESTION = "Question: Is this EEG segment of high workload?"
NAMES = ["FP1", "FP2", "C3"]


def make_raw(seconds=4.0, rate=200, names=NAMES, kinds="eeg", seed=0):
    info = mne.create_info(list(names), rate, kinds)
    return mne.io.RawArray(make_eeg(len(names), seconds, rate, seed) * 1e-6, info, verbose="error")


def make_extractor(**options):
    """One that changes nothing but the unit, unless asked to."""
    return EEGFeatureExtractor(**{"do_filter": False, "do_notch": False, **options})


@pytest.fixture(scope="module")
def tokenizer():
    return train_text_tokenizer([QUESTION + " Answer: Yes No. Some more words about EEG."] * 4, vocab_size=300)


@pytest.fixture
def processor(tokenizer):
    return NeuroLMProcessor(make_extractor(), copy.deepcopy(tokenizer))


# The recipe ---------------------------------------------------------------------------------------------------------


@needs_recordings
def test_preprocessing_agrees_with_the_reference():
    golden = load_file(SHARED / "parity" / "preprocessing_Subject00_2.safetensors")["last_60s_uv"]
    prepared = EEGFeatureExtractor(notch_frequency=50).prepare(RECORDINGS / "eegmat" / "Subject00_2.edf")[0]
    ours = prepared.values[:, -12000:] * 100
    assert ours.shape == golden.shape
    assert np.linalg.norm(ours - golden) / np.linalg.norm(golden) < 1e-6
    assert np.abs(ours - golden).max() < 1e-4
    assert " ".join(prepared.ch_names) == "FP1 FP2 F3 F4 F7 F8 T3 T4 C3 C4 T5 T6 P3 P4 O1 O2 FZ CZ PZ"
    report = prepared.report
    assert report.steps_applied == [
        "high-pass 0.1 Hz",
        "low-pass 75 Hz",
        "notch 50 Hz",
        "resample to 200 Hz",
        "divide by 100 uV",
    ]
    assert dict(report.dropped).keys() == {"EEG A2-A1", "ECG ECG"}
    assert ("EEG T3", "T3") in report.renamed


@needs_recordings
def test_real_recordings_of_other_montages_and_rates_pass():
    batch = EEGFeatureExtractor()(
        [RECORDINGS / "eegmmidb_S001" / "S001R04.edf", RECORDINGS / "pyedflib" / "test_utf8.edf"], return_tensors="np"
    )
    assert [report.kept[0] for report in batch.reports] == [("Fc5.", "FC5"), ("Fp1", "FP1")]
    # 125 s of 64 channels in windows of 16 s, 698 s of one channel in windows of 64 s
    assert [window.recording for window in batch.windows] == [0] * 7 + [1] * 10
    assert batch["eeg_attention_mask"].sum(axis=1).tolist() == [1024] * 7 + [64] * 10
    assert [report.seconds_left_over for report in batch.reports] == [13, 58]


def test_the_same_signal_in_any_unit_gives_the_same_input():
    extractor = make_extractor()
    eeg = make_eeg()
    expected = extractor(eeg, NAMES, 200, "uV").input_values[0]
    np.testing.assert_allclose(expected[0], eeg[0, :200] / 100, rtol=1e-6)
    for unit, factor in (("V", 1e-6), ("mV", 1e-3), ("0.1mV", 1e-2), ("nV", 1e3)):
        np.testing.assert_allclose(extractor(eeg * factor, NAMES, 200, unit).input_values[0], expected, rtol=1e-5)
    np.testing.assert_allclose(extractor(make_raw()).input_values[0], expected, rtol=1e-5)
    microvolt_raw = mne.io.RawArray(eeg, mne.create_info(NAMES, 200, "eeg"), verbose="error")
    np.testing.assert_allclose(extractor(microvolt_raw, unit="uV").input_values[0], expected, rtol=1e-6)


@pytest.mark.parametrize(("factor", "unit", "likely"), [(1e-6, "uV", "V"), (1e-3, "uV", "mV"), (1, "mV", "uV")])
def test_a_wrong_unit_is_caught(factor, unit, likely):
    with pytest.raises(ValueError, match=rf"recording 0: read in {unit}.*median.*FP.*uV.*pass unit='{likely}'"):
        make_extractor()(make_eeg(2) * factor, NAMES[:2], 200, unit)


def test_a_wrong_unit_in_a_file_header_is_caught(tmp_path):
    for unit in ("n/a", ""):
        path = write_edf(tmp_path / "unit.edf", unit=unit)
        with (
            pytest.warns(UserWarning, match="MNE takes the numbers for volts"),
            pytest.raises(ValueError, match=r"unit.edf: read in V.*pass unit='uV'"),
        ):
            make_extractor()(path)
        with pytest.warns(UserWarning, match="MNE takes the numbers for volts"):
            amplitudes = make_extractor()(path, unit="uV").reports[0].amplitude
        assert all(15 < amplitude < 25 for amplitude in amplitudes.values())


def test_slow_drifts_of_unfiltered_data_are_no_wrong_unit():
    drift = 4000 * np.sin(2 * np.pi * np.arange(40000) / 40000)
    assert 15 < make_extractor()(make_eeg(seconds=200) + drift, NAMES, 200, "uV").reports[0].amplitude["C3"] < 60


def test_odd_flat_and_clipped_channels_are_reported():
    eeg = make_eeg(5, seconds=8)
    eeg[1] *= 1000
    eeg[2] = 3.0
    eeg[3] = np.clip(eeg[3], -15, 15)
    with pytest.warns(UserWarning, match="channels|amplitude") as said:
        report = make_extractor()(eeg, [*NAMES, "C4", "CZ"], 200, "uV").reports[0]
    for part in ("flat channels: C3", "clipped channels: C4", "FP2 has an implausible amplitude"):
        assert any(part in str(warning.message) for warning in said)
    assert (report.flat, report.clipped) == (["C3"], ["C4"])
    assert any("FP2 has an implausible amplitude" in warning for warning in report.warnings)
    assert report.amplitude["C3"] == 0
    text = str(report)
    assert "flat      C3" in text
    assert "5 kept: FP1, FP2, C3, C4, CZ" in text
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_recordings_without_signal_raise():
    with pytest.raises(ValueError, match=r"every EEG channel is flat \(FP1, FP2, C3\)"):
        make_extractor()(np.zeros((3, 800)), NAMES, 200, "uV")
    with pytest.raises(ValueError, match="has no samples"):
        make_extractor()(np.zeros((3, 0)), NAMES, 200, "uV")
    with pytest.raises(ValueError, match=r"0\.5 s is less than one second"):
        make_extractor()(make_eeg(seconds=0.5), NAMES, 200, "uV")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_hole_in_the_data_is_named_by_channel_and_second(value):
    eeg = make_eeg()
    eeg[1, 450:460] = value
    with pytest.raises(ValueError, match=r"recording 0: channel 'EEG Fp2' has 10 NaN or infinite.*at 2.250 s"):
        make_extractor()(eeg, ["FP1", "EEG Fp2", "C3"], 200, "uV")
    # in a channel that is left out it does not matter
    assert len(make_extractor()(eeg, ["FP1", "ECG", "C3"], 200, "uV").windows) == 1


def test_edges_at_or_above_nyquist_are_skipped_and_reported():
    extractor = EEGFeatureExtractor()
    report = extractor.prepare(make_eeg(seconds=60, rate=128), NAMES, 128, "uV")[0].report
    assert report.steps_skipped == [("low-pass 75 Hz", "at or above the Nyquist frequency, 64 Hz")]
    assert report.warnings == ["low-pass 75 Hz left out: at or above the Nyquist frequency, 64 Hz"]
    report = extractor.prepare(make_eeg(seconds=60, rate=100), NAMES, 100, "uV")[0].report
    assert [step for step, _ in report.steps_skipped] == report.steps_impossible == ["low-pass 75 Hz", "notch 50 Hz"]
    off = EEGFeatureExtractor(do_filter=False, notch_frequency=None)
    report = off.prepare(make_eeg(seconds=60, rate=100), NAMES, 100, "uV")[0].report
    assert (len(report.steps_skipped), report.steps_impossible, report.warnings) == (3, [], [])
    report = extractor.prepare(make_eeg(seconds=60, rate=150), NAMES, 150, "uV")[0].report
    assert [step for step, _ in report.steps_skipped] == ["low-pass 75 Hz"]


@pytest.mark.filterwarnings("ignore:.*shorter than")
def test_steps_are_switched_off_one_by_one():
    eeg = make_eeg(rate=500)
    switches = {"do_filter": "high-pass", "do_notch": "notch", "do_rescale": "divide"}
    for switch, step in switches.items():
        report = EEGFeatureExtractor(**{switch: False}).prepare(eeg, NAMES, 500, "uV")[0].report
        assert not any(applied.startswith(step) for applied in report.steps_applied)
        assert f"switched off ({switch}=False)" in dict(report.steps_skipped).values()
    unscaled = make_extractor(do_rescale=False)(make_eeg(), NAMES, 200, "uV").input_values[0]
    np.testing.assert_allclose(unscaled[0], make_eeg()[0, :200], rtol=1e-6)
    with pytest.raises(ValueError, match="at 500 Hz and do_resample is off"):
        make_extractor(do_resample=False)(eeg, NAMES, 500, "uV")


def test_short_recordings_and_epochs_warn_when_filtered():
    with pytest.warns(UserWarning, match="recording 0: 4 s is shorter than the 33 s of the band-pass"):
        batch = EEGFeatureExtractor()(make_eeg(), NAMES, 200, "uV")
    assert any("shorter" in warning for warning in batch.reports[0].warnings)
    epochs = mne.make_fixed_length_epochs(make_raw(6.0), duration=2.0, preload=True, verbose="error")
    with pytest.warns(UserWarning, match="filter the Raw") as caught:
        batch = EEGFeatureExtractor()(epochs)
    assert len(caught) == 1
    assert all("shorter" in report.warnings[0] for report in batch.reports)


def test_each_epoch_is_a_recording():
    epochs = mne.make_fixed_length_epochs(make_raw(6.0), duration=2.0, preload=True, verbose="error")
    batch = make_extractor()([epochs, make_raw(2.0)], return_tensors="np")
    assert [report.source for report in batch.reports] == [
        *(f"recording 0, epoch {i}" for i in range(3)),
        "recording 1",
    ]
    assert batch["input_values"].shape == (4, 6, 200)
    np.testing.assert_allclose(batch["input_values"][1, 0], make_eeg(seconds=6)[0, 400:600] / 100, rtol=1e-5)


def test_channel_types_and_bads_of_mne_count():
    raw = make_raw(names=["FP1", "FP2", "CZ", "PZ"], kinds=["eeg", "misc", "eeg", "eeg"])
    raw.info["bads"] = ["PZ"]
    report = make_extractor()(raw).reports[0]
    assert [name for _, name in report.kept] == ["FP1", "CZ"]
    assert report.dropped == [("FP2", "MNE channel type 'misc'"), ("PZ", "marked bad in info['bads']")]


def test_filters_stop_where_recordings_were_joined():
    first, second = make_raw(40.0, seed=1), make_raw(40.0, seed=2)
    extractor = EEGFeatureExtractor()
    alone = extractor.prepare(first)[0].values
    joined = extractor.prepare(mne.concatenate_raws([first.copy(), second], verbose="error"))[0]
    np.testing.assert_allclose(joined.values[:, : alone.shape[1]], alone, atol=1e-5)
    assert "meet at 40.0 s" in joined.report.warnings[0]


def test_average_reference():
    extractor = make_extractor(reference="average")
    np.testing.assert_allclose(extractor.prepare(make_eeg(), NAMES, 200, "uV")[0].values.mean(axis=0), 0, atol=1e-6)
    bipolar = extractor.prepare(make_eeg(2), ["FP1-F7", "CZ"], 200, "uV")[0]
    assert ("average reference", "the montage has bipolar pairs") in bipolar.report.steps_skipped
    np.testing.assert_allclose(bipolar.values, make_eeg(2) / 100, rtol=1e-6)
    single = extractor.prepare(make_eeg(1), ["CZ"], 200, "uV")[0]
    assert dict(single.report.steps_skipped)["average reference"].startswith("there is one channel only")
    np.testing.assert_allclose(single.values, make_eeg(1) / 100, rtol=1e-6)


# Samples are computed where they are read ----------------------------------------------------------------------------


def test_a_file_too_long_for_memory_gives_the_same(tmp_path, monkeypatch):
    """Read twice and in blocks, instead of loaded."""
    path = write_edf(tmp_path / "long.edf", ("EEG Fp1", "EEG Fp2", "EEG C3"), seconds=200, rate=250)
    extractor = EEGFeatureExtractor()
    expected = extractor.prepare(path)[0]
    monkeypatch.setattr(processing_neurolm, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(processing_neurolm, "_CHECKED_VALUES", 1001)
    prepared = extractor.prepare(path)[0]
    assert prepared.report.to_dict() == expected.report.to_dict()
    assert prepared.values.dtype == np.float32
    np.testing.assert_array_equal(prepared.values, expected.values)


def test_samples_are_read_anywhere():
    prepared = make_extractor().prepare(make_eeg(seconds=10), NAMES, 200, "uV")[0]
    assert prepared.n_samples == 2000
    np.testing.assert_allclose(prepared.read(1999, 2000), make_eeg(seconds=10)[:, 1999:] / 100, rtol=1e-6)
    np.testing.assert_array_equal(prepared.read(5, 17), prepared.values[:, 5:17])
    for start, stop in ((-1, 3), (3, 3), (0, 2001)):
        with pytest.raises(ValueError, match=rf"recording 0: samples {start} to {stop} are not within 0 to 2000"):
            prepared.read(start, stop)


def test_channels_are_picked_by_name_and_in_order():
    prepared = make_extractor(reference="average").prepare(make_eeg(), NAMES, 200, "uV")[0]
    picked = prepared.pick(["C3", "FP1"])
    assert picked.ch_names == ["C3", "FP1"]
    assert picked.channel_ids.tolist() == [CHANNEL_VOCABULARY.index(name) for name in ("C3", "FP1")]
    # the average is that of all channels
    np.testing.assert_array_equal(picked.values, prepared.values[[2, 0]])
    np.testing.assert_array_equal(picked.pick(["FP1"]).read(3, 9), prepared.values[:1, 3:9])
    with pytest.raises(ValueError, match=r"recording 0 has no channel CZ, OZ\. It has FP1, FP2, C3"):
        prepared.pick(["CZ", "FP1", "OZ"])


def test_annotations_count_from_the_first_sample():
    raw = make_raw(10.0)
    raw.set_annotations(mne.Annotations([1.5, 4.0], [0.0, 2.0], ["T0", "T1"]))
    cropped = raw.copy().crop(1.0, None)
    assert make_extractor().prepare(raw)[0].annotations == [(1.5, 0.0, "T0"), (4.0, 2.0, "T1")]
    assert make_extractor().prepare(cropped)[0].annotations == [(0.5, 0.0, "T0"), (3.0, 2.0, "T1")]
    assert make_extractor().prepare(make_eeg(), NAMES, 200, "uV")[0].annotations == []


def test_the_amplitude_of_a_long_recording_is_measured_in_parts(monkeypatch):
    monkeypatch.setattr(processing_neurolm, "_MEASURED_BLOCKS", 2)
    eeg = make_eeg(2, seconds=1000)
    eeg[:, 327 * 200 : 654 * 200] *= 20  # all of the second of four blocks
    prepared = make_extractor().prepare(eeg, NAMES[:2], 200, "uV")[0]
    assert prepared.report.amplitude_seconds == 327 + 19  # the first and the last
    assert "over 346 s" in str(prepared.report)
    assert 15 < prepared.report.amplitude["FP1"] < 25
    prepared = make_extractor().prepare(eeg[:, : 400 * 200], NAMES[:2], 200, "uV")[0]
    assert prepared.report.amplitude_seconds == 400


def test_windows_lie_within_the_recording():
    assert list(processing_neurolm.window_starts(10, 4, 3)) == [0, 3, 6]
    assert list(processing_neurolm.window_starts(9, 4, 3)) == [0, 3]
    assert list(processing_neurolm.window_starts(3, 4, 3)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_torch_tensors_are_arrays(dtype):
    tensor = torch.tensor(make_eeg(), dtype=dtype, requires_grad=True)
    values = make_extractor().prepare(tensor, NAMES, 200, "uV")[0].values
    np.testing.assert_allclose(values, tensor.detach().double().numpy() / 100, rtol=1e-6)


def test_without_mne_only_what_needs_it_fails(monkeypatch):
    for module in (reading_neurolm, processing_neurolm):
        monkeypatch.setattr(module, "mne", None)
    assert len(make_extractor()(make_eeg(), NAMES, 200, "uV").windows) == 1
    for call in (
        lambda: EEGFeatureExtractor()(make_eeg(), NAMES, 200, "uV"),
        lambda: make_extractor()(make_eeg(rate=250), NAMES, 250, "uV"),
        lambda: make_extractor()(__file__),
    ):
        with pytest.raises(ImportError, match="pip install mne"):
            call()
    with pytest.raises(TypeError, match="pip install mne"):
        make_extractor()(make_raw())


@pytest.mark.parametrize("missing", ["ch_names", "sampling_rate", "unit"])
def test_an_array_needs_everything(missing):
    arguments = {"ch_names": NAMES, "sampling_rate": 200, "unit": "uV"}
    del arguments[missing]
    with pytest.raises(ValueError, match=f"pass {missing} too"):
        make_extractor()(make_eeg(), **arguments)


@pytest.mark.parametrize(
    ("eeg", "arguments", "error", "message"),
    [
        (make_eeg()[0], (NAMES, 200, "uV"), ValueError, r"\(channels, samples\), not \(800,\)"),
        (make_eeg().T[:800], (NAMES, 200, "uV"), ValueError, "3 channel names for 800 rows. Is it"),
        (make_eeg(), (NAMES[:2], 200, "uV"), ValueError, "2 channel names for 3 rows"),
        (make_eeg(), (NAMES, -1, "uV"), ValueError, "positive number of Hz"),
        (make_eeg(), (NAMES, 200, "furlong"), ValueError, "unit 'furlong' is unknown"),
        (make_eeg().astype(complex), (NAMES, 200, "uV"), TypeError, "dtype complex128"),
        ({"eeg": 1}, (), TypeError, "cannot read EEG from a dict"),
        (make_raw(), (NAMES,), ValueError, "bring their own channel names"),
        ([], (), ValueError, "empty list"),
        ([make_eeg()] * 2, ([NAMES] * 3, 200, "uV"), ValueError, "3 entries in ch_names for 2 recording"),
    ],
)
def test_wrong_arguments_raise(eeg, arguments, error, message):
    with pytest.raises(error, match=message):
        make_extractor()(eeg, *arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"patch_size": 100},
        {"band": (75, 0.1)},
        {"band": (1,)},
        {"band": None},
        {"notch_frequency": 0},
        {"notch_frequency": 500},
        {"scale": 0},
        {"reference": "Cz"},
        {"window_seconds": 1.5},
        {"stride_seconds": 0.001},
        {"max_tokens": 0},
        {"token_order": "channels"},
        {"channel_id_offset": 2},
        {"known_channels": 140, "channel_id_offset": 1},
        {"known_channels": 0, "channel_id_offset": 1},
        {"known_channels": 128},  # no row to stand at padding
    ],
)
def test_recipes_that_make_no_sense_raise(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        EEGFeatureExtractor(**options)


def test_prepared_data_say_by_which_recipe():
    extractor = EEGFeatureExtractor(notch_frequency=60)
    prepared = extractor.prepare(make_eeg(seconds=40, rate=250), NAMES, 250, "uV")[0]
    batch = extractor(prepared.values, NAMES, prepared_by=extractor.recipe_id)
    np.testing.assert_array_equal(batch.input_values[0], extractor.cut(prepared)[0].values)
    assert batch.reports[0].steps_applied == []
    EEGFeatureExtractor(notch_frequency=50)(prepared.values, NAMES, prepared_by=extractor.recipe_id)
    other = EEGFeatureExtractor(notch_frequency=None)
    with pytest.raises(ValueError, match=f"{extractor.recipe_id}.*{other.recipe_id}"):
        other(prepared.values, NAMES, prepared_by=extractor.recipe_id)
    for arguments, message in (({"sampling_rate": 250}, "at 200 Hz"), ({"unit": "uV"}, "leave unit='uV' out")):
        with pytest.raises(ValueError, match=message):
            extractor(prepared.values, NAMES, prepared_by=extractor.recipe_id, **arguments)
    values = prepared.values
    values[0, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        extractor(values, NAMES, prepared_by=extractor.recipe_id)
    with pytest.raises(TypeError, match="prepared data are arrays"):
        extractor(make_raw(), prepared_by=extractor.recipe_id)


def test_the_recipe_id_follows_what_changes_the_signal_and_nothing_else():
    base = EEGFeatureExtractor()
    assert base.recipe_id == EEGFeatureExtractor(window_seconds=4, max_tokens=99, band=[0.1, 75]).recipe_id
    # where the mains are differs between the recordings of one model
    assert base.recipe_id == EEGFeatureExtractor(notch_frequency=60).recipe_id
    # one prepared set serves both models
    assert EEGFeatureExtractor(**base.recipe, **LABRAM_LAYOUT).recipe_id == base.recipe_id
    changes = [{"band": (1, 75)}, {"notch_frequency": None}, {"scale": 1}]
    changes += [{"reference": "average"}, {"do_filter": False}, {"sampling_rate": 100, "patch_size": 100}]
    assert len({base.recipe_id, *(EEGFeatureExtractor(**change).recipe_id for change in changes)}) == 7


# Windows and patches ------------------------------------------------------------------------------------------------


def test_patches_are_time_major():
    eeg = make_eeg(3, seconds=4.7)
    batch = make_extractor()(eeg, NAMES, 200, "uV", return_tensors="pt")
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch.items()} == {
        "input_values": ((1, 12, 200), torch.float32),
        "eeg_channel_ids": ((1, 12), torch.int64),
        "eeg_time_ids": ((1, 12), torch.int64),
        "eeg_segment_ids": ((1, 12), torch.int64),
        "eeg_attention_mask": ((1, 12), torch.int64),
    }
    assert batch["eeg_time_ids"][0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert batch["eeg_channel_ids"][0].tolist() == [CHANNEL_VOCABULARY.index(name) for name in NAMES] * 4
    for patch, (second, channel) in enumerate((s, c) for s in range(4) for c in range(3)):
        expected = eeg[channel, second * 200 : second * 200 + 200] / 100
        np.testing.assert_allclose(batch["input_values"][0, patch], expected, rtol=1e-6)
    assert (batch.reports[0].seconds_used, batch.reports[0].seconds_left_over) == (4, pytest.approx(0.7))


@needs_shared
def test_patches_agree_with_the_references_loader():
    inputs = load_file(SHARED / "parity" / "inputs.safetensors")
    meta = json.loads((SHARED / "parity" / "inputs.json").read_text())
    raw = [inputs[f"raw_uv.{index}"] for index in range(3)]
    names = [recording["ch_names"] for recording in meta["recordings"]]
    batch = make_extractor(pad_to_patches=meta["block_size"])(raw, names, 200, "uV", return_tensors="np")
    real = inputs["input_mask"]
    np.testing.assert_allclose(batch["input_values"], inputs["X"], atol=1e-6)
    np.testing.assert_array_equal(batch["eeg_attention_mask"], real)
    np.testing.assert_array_equal(batch["eeg_channel_ids"][real], inputs["input_chans"][real])
    np.testing.assert_array_equal(batch["eeg_time_ids"][real], inputs["input_time"][real])


def test_rows_are_padded_on_the_right():
    batch = make_extractor()([make_eeg(3, 2), make_eeg(2, 4)], [NAMES, NAMES[:2]], 200, "uV", return_tensors="np")
    assert batch["input_values"].shape == (2, 8, 200)
    assert batch["eeg_attention_mask"].tolist() == [[1] * 6 + [0] * 2, [1] * 8]
    assert batch["eeg_channel_ids"][0, 6:].tolist() == [136, 136]
    assert batch["eeg_time_ids"][0].tolist() == [0, 0, 0, 1, 1, 1, 0, 0]
    assert not batch["input_values"][0, 6:].any()


def test_a_long_recording_becomes_windows_from_its_start():
    extractor = make_extractor(max_tokens=10)
    batch = extractor(make_eeg(3, 11.5), NAMES, 200, "uV", return_tensors="np")
    assert [(w.row, w.recording, w.start, w.end) for w in batch.windows] == [(0, 0, 0, 3), (1, 0, 3, 6), (2, 0, 6, 9)]
    np.testing.assert_allclose(batch["input_values"][2, 0], make_eeg(3, 11.5)[0, 1200:1400] / 100, rtol=1e-6)
    assert batch["eeg_time_ids"][2].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert (batch.reports[0].seconds_used, batch.reports[0].seconds_left_over) == (9, 2.5)
    one_channel = make_extractor(max_seconds=5)(make_eeg(1, 12), ["CZ"], 200, "uV")
    assert [(w.start, w.end) for w in one_channel.windows] == [(0, 5), (5, 10)]


def test_windows_of_given_length_and_stride():
    extractor = make_extractor(window_seconds=4, stride_seconds=2)
    assert make_extractor(stride_seconds=0.07).stride_seconds == 0.07
    windows = extractor(make_eeg(3, 60), NAMES, 200, "uV").windows
    assert len(windows) == 29
    assert [(w.start, w.end) for w in windows[:2]] == [(0, 4), (2, 6)]
    sparse = make_extractor(window_seconds=1, stride_seconds=2.5)(make_eeg(3, 6.5), NAMES, 200, "uV")
    assert [w.start for w in sparse.windows] == [0, 2.5, 5]
    assert (sparse.reports[0].seconds_used, sparse.reports[0].seconds_left_over) == (3, 3.5)
    assert [(w.start, w.end) for w in extractor(make_eeg(3, 2.9), NAMES, 200, "uV").windows] == [(0, 2)]


def test_what_exceeds_the_token_budget_raises():
    with pytest.raises(ValueError, match="3 channels do not fit a budget of 2 tokens"):
        make_extractor(max_tokens=2)(make_eeg(), NAMES, 200, "uV")
    with pytest.raises(ValueError, match=r"windows of 4 s of 3 channels exceed.*3 s at most"):
        make_extractor(max_tokens=10, window_seconds=4)(make_eeg(), NAMES, 200, "uV")


def test_padding_to_a_given_length():
    extractor = make_extractor(pad_to_patches=7)
    batch = extractor(make_eeg(3, 4), NAMES, 200, "uV", return_tensors="np")
    assert batch["input_values"].shape == (2, 7, 200)
    assert batch["eeg_attention_mask"].sum(axis=1).tolist() == [6, 6]
    segments = extractor.cut(extractor.prepare(make_eeg(3, 4), NAMES, 200, "uV")[0])
    with pytest.raises(ValueError, match="row 0 has 12 patches, pad_to_patches is 7"):
        extractor.collate([segments])


def test_batches_keep_reports_and_windows():
    batch = make_extractor()(make_eeg(), NAMES, 200, "uV", return_tensors="pt")
    assert isinstance(batch, EEGBatch)
    for other in (batch.to("cpu"), batch.to(torch.bfloat16), pickle.loads(pickle.dumps(batch)), copy.deepcopy(batch)):
        assert other.reports[0].kept == [(name, name) for name in NAMES]
        assert other.windows[0].end == 4
        assert set(other) == set(EEGFeatureExtractor.model_input_names)
    assert batch["input_values"].dtype == torch.bfloat16
    assert batch["eeg_channel_ids"].dtype == torch.int64
    assert "reports" not in dict(**batch)
    lists = make_extractor()(make_eeg(), NAMES, 200, "uV")
    assert isinstance(lists.input_values, list)
    assert isinstance(lists.input_values[0], np.ndarray)


# LaBraM's layout -----------------------------------------------------------------------------------------------------


def make_labram_extractor(**options):
    return make_extractor(**{**LABRAM_LAYOUT, **options})


@pytest.mark.parametrize("index", range(3))
def test_patches_agree_with_labrams_input(index):
    inputs = load_file(LABRAM / "inputs.safetensors")
    recording = json.loads((LABRAM / "meta.json").read_text())["recordings"][index]
    windows, n_channels, n_samples = inputs[f"raw_uv.{index}"].shape
    raw = list(inputs[f"raw_uv.{index}"])
    extractor = make_labram_extractor(do_resample=False)
    batch = extractor(raw, recording["ch_names"], recording["sfreq"], recording["unit"], return_tensors="np")
    assert list(batch) == ["input_values", "eeg_channel_ids", "eeg_time_ids", "eeg_attention_mask"]
    seconds = n_samples // 200
    expected = (inputs[f"raw_uv.{index}"] / np.float32(100)).reshape(windows, n_channels * seconds, 200)
    np.testing.assert_array_equal(batch["input_values"], expected)
    ids, times = inputs[f"input_chans.{index}"][1:].repeat(seconds), np.tile(np.arange(seconds), n_channels)
    for window in range(windows):
        np.testing.assert_array_equal(batch["eeg_channel_ids"][window], ids)
        np.testing.assert_array_equal(batch["eeg_time_ids"][window], times)
    assert batch["eeg_attention_mask"].all()


def test_both_orders_hold_the_same_patches():
    eeg = make_eeg(3, 4)
    extractors = (make_extractor(), make_labram_extractor())
    one, other = (extractor.cut(extractor.prepare(eeg, NAMES, 200, "uV")[0])[0] for extractor in extractors)
    assert one.n_seconds == other.n_seconds == 4
    by_time = np.arange(12).reshape(3, 4).T.reshape(-1)  # where a time-major patch stands in channel-major order
    np.testing.assert_array_equal(one.values, other.values[by_time])
    np.testing.assert_array_equal(one.channel_ids + 1, other.channel_ids[by_time])
    np.testing.assert_array_equal(one.time_ids, other.time_ids[by_time])
    for extractor, segment in zip(extractors, (one, other), strict=True):
        for patches in (segment.values, torch.from_numpy(segment.values)):
            by_channel = extractor.by_channel(patches, 3)
            np.testing.assert_array_equal(by_channel, (eeg.reshape(3, 4, 200) / 100).astype(np.float32))
        assert extractor.by_channel(segment.time_ids, 3).tolist() == [[0, 1, 2, 3]] * 3


def test_channel_major_rows_are_padded_with_row_0():
    extractor = make_labram_extractor()
    batch = extractor([make_eeg(3, 2), make_eeg(2, 4)], [NAMES, NAMES[:2]], 200, "uV", return_tensors="np")
    ids = [CHANNEL_VOCABULARY.index(name) + 1 for name in NAMES]
    assert batch["eeg_channel_ids"][0].tolist() == [*np.repeat(ids, 2), 0, 0]
    assert batch["eeg_time_ids"].tolist() == [[0, 1, 0, 1, 0, 1, 0, 0], [0, 1, 2, 3, 0, 1, 2, 3]]
    assert batch["eeg_attention_mask"].tolist() == [[1] * 6 + [0] * 2, [1] * 8]
    assert not batch["input_values"][0, 6:].any()
    segments = extractor.cut(extractor.prepare(make_eeg(3, 2), NAMES, 200, "uV")[0])
    with pytest.raises(ValueError, match="row 1 has 2 segments: a channel-major row is one window"):
        extractor.collate([segments, segments * 2])


def test_names_without_a_row_are_refused_or_dropped(tmp_path):
    extractor = make_labram_extractor()
    names = ["EEG Fp1-F7", "EEG P8-O2", "EEG Fp1-F3", "I1"]
    eeg, path = make_eeg(4), write_edf(tmp_path / "tcp.edf", names, rate=200)
    for recording, arguments, source in ((eeg, (names, 200, "uV"), "recording 0"), (path, (), "tcp.edf")):
        with pytest.raises(
            ValueError,
            match=rf"{source}: this model has no row for 2 channel\(s\): 'EEG Fp1-F3', 'I1'. The names are known.*"
            r"first 128 .*unknown_channels='drop'",
        ):
            extractor(recording, *arguments)
        assert make_extractor()(recording, *arguments)["eeg_channel_ids"][0][:4].tolist() == [120, 127, 128, 137]
        batch = extractor(recording, *arguments, unknown_channels="drop")
        assert set(batch["eeg_channel_ids"][0].tolist()) == {121, 128}
        reason = "a channel that this model has no row for"
        assert batch.reports[0].dropped == [("EEG Fp1-F3", reason), ("I1", reason)]
    with pytest.raises(ValueError, match="no EEG channel is left"):
        extractor(eeg[:1], ["I2"], 200, "uV", unknown_channels="drop")
    # names such as this have rows, though LaBraM's code cannot reach them; an unknown name is still unknown
    assert extractor(eeg[:1], ["TPP10h"], 200, "uV")["eeg_channel_ids"][0][0] == 120
    with pytest.raises(ValueError, match=r"2 channel name.*not in"):
        extractor(eeg, [*NAMES[:2], "bogus", "bogus2"], 200, "uV")


def test_labram_reads_16_seconds_and_256_patches():
    batch = make_labram_extractor()([make_eeg(3, 33), make_eeg(64, 9)], [NAMES, CHANNEL_VOCABULARY[:64]], 200, "uV")
    assert [(w.start, w.end) for w in batch.windows] == [(0, 16), (16, 32), (0, 4), (4, 8)]
    with pytest.raises(ValueError, match=r"windows of 17 s of 3 channels exceed.*16 s at most"):
        make_labram_extractor(window_seconds=17)(make_eeg(3, 20), NAMES, 200, "uV")


def test_the_layout_is_saved_and_older_folders_open(tmp_path):
    labram = EEGFeatureExtractor(notch_frequency=60, **LABRAM_LAYOUT)
    labram.save_pretrained(tmp_path)
    again = AutoFeatureExtractor.from_pretrained(tmp_path, trust_remote_code=False)
    assert isinstance(again, EEGFeatureExtractor)
    assert again.to_dict() == labram.to_dict()
    assert {name: getattr(again, name) for name in LABRAM_LAYOUT} == LABRAM_LAYOUT
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    for name in ("token_order", "channel_id_offset", "known_channels"):
        del saved[name]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))
    older = EEGFeatureExtractor.from_pretrained(tmp_path)
    assert (older.token_order, older.channel_id_offset, older.known_channels) == ("time_major", 0, 139)


def test_a_processor_serves_labram_without_text_alone(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"token_order is 'channel_major'.*leave the tokenizer out"):
        NeuroLMProcessor(make_labram_extractor(), copy.deepcopy(tokenizer))
    NeuroLMProcessor(make_labram_extractor()).save_pretrained(tmp_path)
    processor = NeuroLMProcessor.from_pretrained(tmp_path)
    assert processor.feature_extractor.token_order == "channel_major"
    batch = processor(make_eeg(3, 2), None, NAMES, 200, "uV", return_tensors="pt")
    ids = [CHANNEL_VOCABULARY.index(name) + 1 for name in NAMES]
    assert batch["eeg_channel_ids"][0].tolist() == np.repeat(ids, 2).tolist()
    codes = processor.tokenize_eeg([make_eeg(3, 2), make_eeg(1, 3)], FakeVQModel(), [NAMES, ["CZ"]], 200, "uV")
    cz = CHANNEL_VOCABULARY.index("CZ") + 1
    interleaved = [code for channel in ids for code in (channel, channel + 1000)]
    assert codes.tolist() == [interleaved, [cz, cz + 1000, cz + 2000, -1, -1, -1]]


# Text tokenizers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2():
    return build_text_tokenizer(SHARED / "gpt2")


@needs_gpt2
def test_gpt2_has_neurolms_tokens_at_free_ids(gpt2, tmp_path):
    assert gpt2.convert_tokens_to_ids(["<|endoftext|>", "[SEP]", "<|eeg|>", "<|pad|>"]) == [50256, 50257, 50258, 50259]
    assert (gpt2.pad_token_id, gpt2.padding_side, len(gpt2)) == (50259, "left", 50260)
    gpt2.save_pretrained(tmp_path)
    again = build_text_tokenizer(tmp_path)
    assert (len(again), again.pad_token_id, again.padding_side) == (50260, 50259, "left")
    text = "<|eeg|>[SEP]" + QUESTION
    assert again(text)["input_ids"] == gpt2(text)["input_ids"]


@needs_gpt2
def test_gpt2_agrees_with_tiktoken(gpt2, tmp_path, monkeypatch):
    tiktoken = pytest.importorskip("tiktoken")
    for name in ("encoder.json", "vocab.bpe"):
        url = f"https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/{name}"
        shutil.copyfile(SHARED / "gpt2" / name, tmp_path / hashlib.sha1(url.encode()).hexdigest())
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    encoding = tiktoken.get_encoding("gpt2")
    facts = json.loads((SHARED / "facts" / "tasks.json").read_text())
    tasks = [task for task in facts.values() if isinstance(task, dict) and "question" in task]
    texts = [f"{task['question']} Answer: {answer}" for task in tasks for answer in task["answers"]]
    texts += [
        "",
        " ",
        "  two  spaces\n\n\ttab",
        "I'm we've 12345 naïve — 脑电图 🧠",
        (SHARED / "style.md").read_text(),
    ]
    assert len(texts) > 20
    for text in texts:
        assert gpt2(text)["input_ids"] == encoding.encode(text)
    special = f"[SEP]{QUESTION} Answer: Yes <|endoftext|>"
    expected = [50257, *encoding.encode(f"{QUESTION} Answer: Yes "), 50256]
    assert expected[-2] == 220
    assert gpt2(special)["input_ids"] == expected


def test_a_trained_tokenizer_round_trips(tokenizer):
    size = len(tokenizer)
    tokens = ["<|endoftext|>", "[SEP]", "<|eeg|>", "<|pad|>"]
    assert tokenizer.convert_tokens_to_ids(tokens) == list(range(size - 4, size))
    assert size <= 300
    for text in (QUESTION, "unseen 脑电图 text\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    with pytest.raises(ValueError, match="at least 260"):
        train_text_tokenizer(["a"], vocab_size=100)


def test_a_folder_without_a_tokenizer_raises(tmp_path):
    with pytest.raises(ValueError, match=r"has no text tokenizer.*encoder.json with vocab.bpe"):
        build_text_tokenizer(tmp_path)


# The processor ------------------------------------------------------------------------------------------------------


def test_text_without_a_placeholder_gets_the_eeg_in_front(processor):
    eeg_id = processor.eeg_token_id
    text = f"[SEP]{QUESTION} Answer:"
    batch = processor(make_eeg(3, 2), text, NAMES, 200, "uV", return_tensors="pt")
    assert list(batch) == [
        "input_ids",
        "attention_mask",
        "mm_token_type_ids",
        *EEGFeatureExtractor.model_input_names,
    ]
    assert set(batch) == set(processor.model_input_names)
    assert all(tensor.shape[0] == 1 for tensor in batch.values())
    assert batch["input_ids"][0].tolist() == [eeg_id] * 6 + processor.tokenizer(text)["input_ids"]
    assert batch["mm_token_type_ids"][0, :8].tolist() == [1, 1, 1, 2, 2, 2, 0, 0]
    explicit = processor(make_eeg(3, 2), "<|eeg|>" + text, NAMES, 200, "uV", return_tensors="pt")
    assert torch.equal(explicit["input_ids"], batch["input_ids"])
    assert batch.reports[0].kept
    assert batch.windows[0].end == 2
    assert batch.to("cpu").reports is batch.reports


def test_eeg_and_text_interleave(processor):
    eeg_id = processor.eeg_token_id
    text = "before <|eeg|> between <|eeg|><|eeg|> after"
    recordings = [make_eeg(3, 2), make_eeg(1, 1), make_eeg(2, 2)]
    names = [NAMES, ["CZ"], ["PZ", "OZ"]]
    batch = processor(recordings, text, names, 200, "uV", return_tensors="np")
    ids, blocks = batch["input_ids"][0], batch["mm_token_type_ids"][0]
    encode = processor.tokenizer
    expected = encode("before ")["input_ids"] + [eeg_id] * 6 + encode(" between ")["input_ids"]
    assert ids.tolist() == expected + [eeg_id] * 5 + encode(" after")["input_ids"]
    assert blocks[ids == eeg_id].tolist() == [1, 1, 1, 2, 2, 2, 3, 4, 4, 5, 5]
    assert not blocks[ids != eeg_id].any()
    assert batch["eeg_segment_ids"].tolist() == [[0] * 6 + [1] + [2] * 4]
    assert batch["eeg_time_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1]]
    channels = [CHANNEL_VOCABULARY.index(name) for name in NAMES * 2 + ["CZ"] + ["PZ", "OZ"] * 2]
    assert batch["eeg_channel_ids"][0].tolist() == channels
    assert [(w.row, w.segment, w.recording) for w in batch.windows] == [(0, 0, 0), (0, 1, 1), (0, 2, 2)]


def test_recordings_are_taken_in_order_or_by_sample(processor):
    recordings = [make_eeg(3, seconds, seed=seconds) for seconds in (1, 2, 3)]
    texts = ["a <|eeg|> b <|eeg|>", "c"]
    flat = processor(recordings, texts, NAMES, 200, "uV", return_tensors="pt")
    nested = processor([recordings[:2], recordings[2:]], texts, NAMES, 200, "uV", return_tensors="pt")
    named = processor(
        [recordings[:2], recordings[2:]],
        texts,
        ch_names=[[NAMES, NAMES], [NAMES]],
        sampling_rate=[[200, 200], [200]],
        unit=[["uV", "uV"], ["uV"]],
        return_tensors="pt",
    )
    for other in (nested, named):
        assert all(torch.equal(flat[name], other[name]) for name in flat)
    assert flat["eeg_attention_mask"].sum(dim=1).tolist() == [9, 9]
    assert (flat["input_ids"] == processor.eeg_token_id).sum(dim=1).tolist() == [9, 9]


def test_a_sample_may_have_no_eeg_beside_others_that_have(processor):
    batch = processor([[make_eeg(3, 1)], []], ["a", "b"], NAMES, 200, "uV", return_tensors="pt")
    assert batch["eeg_attention_mask"].tolist() == [[1] * 3, [0] * 3]
    assert batch["mm_token_type_ids"][1].sum() == 0


@pytest.mark.parametrize(
    ("n_recordings", "texts", "message"),
    [
        (1, "x <|eeg|> y <|eeg|>", r"sample 0: its text has room for 2 recording\(s\), 1 are given"),
        (2, "x", r"sample 0 is the last and 1 recording\(s\) are left over.*room for 1, 2 are given"),
        (1, ["x <|eeg|>", "y <|eeg|>"], r"sample 1: its text has room for 1 recording\(s\), 0 are given"),
        (0, "x <|eeg|>", r"sample 0: its text has room for 1 recording\(s\), 0 are given"),
        ([1, 2], ["x", "y <|eeg|>"], r"sample 1: its text has room for 1 recording\(s\), 2 are given"),
        ([1, 1], ["x"], r"1 text\(s\) but recordings for 2 sample"),
    ],
)
def test_counts_that_do_not_match_raise(processor, n_recordings, texts, message):
    eeg = make_eeg(3, 1)
    many = [[eeg] * n for n in n_recordings] if isinstance(n_recordings, list) else [eeg] * n_recordings
    with pytest.raises(ValueError, match=message):
        processor(many or None, texts, NAMES, 200, "uV")


def test_a_recording_of_several_windows_gives_a_row_for_each(processor):
    processor.feature_extractor.window_seconds = 2
    batch = processor([make_eeg(3, 6), make_eeg(3, 2)], ["long", "short one"], NAMES, 200, "uV", return_tensors="pt")
    assert [(w.row, w.recording, w.start) for w in batch.windows] == [(0, 0, 0), (1, 0, 2), (2, 0, 4), (3, 1, 0)]
    assert batch["input_ids"].shape[0] == 4
    assert len(batch.reports) == 2
    texts = processor.batch_decode(batch["input_ids"], skip_special_tokens=True)
    assert texts == ["long"] * 3 + ["short one"]
    with pytest.raises(ValueError, match=r"sample 0: its recording 1 gives 3 windows.*window_seconds"):
        processor([make_eeg(3, 2), make_eeg(3, 6)], "a <|eeg|> b <|eeg|>", NAMES, 200, "uV")


def test_epochs_give_a_row_each(processor):
    epochs = mne.make_fixed_length_epochs(make_raw(6.0), duration=2.0, preload=True, verbose="error")
    batch = processor(epochs, "a question", return_tensors="pt")
    assert [(w.row, w.recording) for w in batch.windows] == [(0, 0), (1, 1), (2, 2)]


def test_eeg_alone_and_text_alone(processor):
    alone = processor([make_eeg(3, 2), make_eeg(3, 1)], None, NAMES, 200, "uV", return_tensors="pt")
    pad, eeg = processor.tokenizer.pad_token_id, processor.eeg_token_id
    assert alone["input_ids"].tolist() == [[eeg] * 6, [pad] * 3 + [eeg] * 3]
    assert alone["mm_token_type_ids"].tolist() == [[1, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1]]
    text = processor(text=["hello", "hello there"], return_tensors="pt")
    assert list(text) == ["input_ids", "attention_mask", "mm_token_type_ids"]
    assert text["mm_token_type_ids"].sum() == 0
    assert text["attention_mask"][0, 0] == 0
    with pytest.raises(ValueError, match="pass eeg, text or both"):
        processor()


def test_padding_on_either_side(processor):
    eeg, texts = [make_eeg(3, 1), make_eeg(3, 2)], ["a longer text than the other", "x"]
    left = processor(eeg, texts, NAMES, 200, "uV", return_tensors="pt")
    right = processor(eeg, texts, NAMES, 200, "uV", return_tensors="pt", padding_side="right")
    processor.tokenizer.padding_side = "right"
    default = processor(eeg, texts, NAMES, 200, "uV", return_tensors="pt")
    assert torch.equal(default["input_ids"], right["input_ids"])
    assert left["attention_mask"].sum(dim=1).tolist() == right["attention_mask"].sum(dim=1).tolist()
    for name in ("input_ids", "mm_token_type_ids"):
        for row in range(2):
            values = [batch[name][row][batch["attention_mask"][row].bool()] for batch in (left, right)]
            assert torch.equal(*values)
            assert bool(left["attention_mask"][row, -1])
            assert bool(right["attention_mask"][row, 0])
    assert torch.equal(left["input_values"], right["input_values"])
    assert left["eeg_attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]


def test_padding_and_truncation_of_text(processor):
    arguments = (make_eeg(3, 1), "some words to cut away", NAMES, 200, "uV")
    full = processor(*arguments, return_tensors="np")["input_ids"][0]
    cut = processor(*arguments, truncation=True, max_length=6, return_tensors="np")
    assert cut["input_ids"][0].tolist() == full[:6].tolist()
    assert cut["mm_token_type_ids"].shape == cut["attention_mask"].shape == (1, 6)
    with pytest.raises(ValueError, match=r"row 0: its .* 3 of them EEG, cannot be cut to 2"):
        processor(*arguments, truncation=True, max_length=2)
    with pytest.raises(ValueError, match="truncation needs max_length"):
        processor(*arguments, truncation=True)
    assert (
        processor(*arguments, padding="max_length", max_length=64)["input_ids"][0][:2]
        == [processor.tokenizer.pad_token_id] * 2
    )
    assert processor(*arguments, pad_to_multiple_of=32, return_tensors="np")["input_ids"].shape == (1, 32)
    with pytest.raises(ValueError, match="more than max_length 4"):
        processor(*arguments, padding="max_length", max_length=4)
    ragged = processor(text=["a", "longer text"], padding=False)
    assert len(ragged["input_ids"][0]) < len(ragged["input_ids"][1])
    assert isinstance(ragged["input_ids"][0], list)
    with pytest.raises(ValueError, match="make no tensor without padding"):
        processor(text=["a", "longer text"], padding=False, return_tensors="pt")


def test_the_tokenizers_own_limit_neither_warns_nor_cuts(processor, caplog):
    processor.tokenizer.model_max_length = 8
    with caplog.at_level("WARNING"):
        batch = processor(make_eeg(3, 4), QUESTION, NAMES, 200, "uV", return_tensors="pt")
    assert batch["input_ids"].shape[1] == 12 + len(processor.tokenizer(QUESTION, verbose=False)["input_ids"])
    assert not caplog.records


def test_unknown_arguments_raise(processor):
    with pytest.raises(TypeError, match="takes no unknown_chanels"):
        processor(make_eeg(), "x", NAMES, 200, "uV", unknown_chanels="drop")
    with pytest.raises(TypeError, match="takes no return_offsets_mapping"):
        processor(text="x", text_kwargs={"return_offsets_mapping": True})
    with pytest.raises(TypeError, match="text is a string"):
        processor(text=[1])
    batch = processor(make_eeg(), "x", ["FP1", "FP2", "bogus"], 200, "uV", audio_kwargs={"unknown_channels": "drop"})
    assert batch.reports[0].dropped == [("bogus", "unknown name")]
    with pytest.raises(TypeError, match="not a mixture"):
        processor([make_eeg(), [make_eeg()]], "x", NAMES, 200, "uV")


def conversation(*answer, **eeg):
    question = {"role": "user", "content": [{"type": "eeg", **eeg}, {"type": "text", "text": QUESTION}]}
    return [question, *({"role": "assistant", "content": one} for one in answer)]


def test_interleave_takes_ids_where_a_call_takes_text(processor):
    text = "before <|eeg|> between <|eeg|> after"
    recordings, arguments = [make_eeg(3, 2), make_eeg(1, 1)], {"sampling_rate": 200, "unit": "uV"}
    names = [NAMES[: len(one)] for one in recordings]
    expected = processor([recordings], text, ch_names=[names], return_tensors="pt", **arguments)
    prepared = processor.feature_extractor.prepare(recordings, ch_names=names, **arguments)
    segments = [segment for one in prepared for segment in processor.feature_extractor.cut(one)]
    ids = processor.tokenizer(text)["input_ids"]
    batch = processor.interleave([(ids, segments)])
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in expected)
    # rows of different lengths are padded as the tokenizer pads
    both = processor.interleave([(ids, segments), ([processor.eeg_token_id], segments[1:])])
    assert torch.equal(both["attention_mask"].sum(1), torch.tensor([len(expected["input_ids"][0]), 1]))
    with pytest.raises(ValueError, match=r"row 1: 2 placeholder\(s\) for 1 segment"):
        processor.interleave([(ids, segments), (ids, segments[:1])])


def test_chat_template(processor):
    prompt = f"<|eeg|>[SEP]{QUESTION} Answer:"
    assert processor.apply_chat_template(conversation()) == prompt
    assert processor.apply_chat_template(conversation(), add_generation_prompt=True) == prompt
    assert processor.apply_chat_template(conversation("Yes")) == prompt + " Yes <|endoftext|>"
    listed = conversation([{"type": "text", "text": "Yes"}])
    assert processor.apply_chat_template([listed, conversation()]) == [prompt + " Yes <|endoftext|>", prompt]
    assert processor.apply_chat_template([{"role": "user", "content": "Why?"}]) == "[SEP]Why? Answer:"
    with pytest.raises(Exception, match="roles 'user' and 'assistant' only"):
        processor.apply_chat_template([{"role": "system", "content": "x"}])
    with pytest.raises(Exception, match="no 'image' content"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "image"}]}])


def test_chat_template_with_recordings(processor):
    options = {"ch_names": NAMES, "sampling_rate": 200, "unit": "uV"}
    arguments = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    expected = processor(make_eeg(), processor.apply_chat_template(conversation()), **options, return_tensors="pt")
    inside = processor.apply_chat_template(conversation(eeg=make_eeg()), processor_kwargs=dict(options), **arguments)
    beside = processor.apply_chat_template(
        conversation(), processor_kwargs={"eeg": make_eeg(), **options}, **arguments
    )
    batched = processor.apply_chat_template(
        [conversation(eeg=make_eeg())], processor_kwargs=dict(options), **arguments
    )
    for batch in (inside, beside, batched):
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
        assert batch.windows == expected.windows


@needs_gpt2
def test_a_rendered_sample_has_the_papers_ids(gpt2):
    processor = NeuroLMProcessor(make_extractor(), gpt2)
    text = processor.apply_chat_template(conversation("Yes"))
    batch = processor(make_eeg(3, 1), text, NAMES, 200, "uV", return_tensors="np")
    ids = batch["input_ids"][0].tolist()
    assert ids[:4] == [50258] * 3 + [50257]
    # 'Answer', ':', ' Yes', ' ', '<|endoftext|>'
    assert ids[-5:] == [23998, 25, 3363, 220, 50256]


def test_decoding_leaves_eeg_out(processor):
    text = f"[SEP]{QUESTION} Answer: Yes <|endoftext|>"
    ids = processor(make_eeg(), text, NAMES, 200, "uV", return_tensors="pt")["input_ids"]
    assert processor.decode(ids[0]) == text
    assert processor.decode(ids[0], skip_special_tokens=True) == f"{QUESTION} Answer: Yes "
    assert processor.batch_decode(ids) == processor.batch_decode(ids.tolist()) == [text]
    assert processor.batch_decode(list(ids)) == [text]
    assert processor.decode([-100, *processor.tokenizer("Yes")["input_ids"]]) == "Yes"
    assert processor.decode([processor.eeg_token_id]) == ""


class FakeModel(torch.nn.Module):
    """Codes that say which patch they came from: channel id + 1000 x second."""

    device, dtype = torch.device("cpu"), torch.bfloat16

    def get_eeg_codes(
        self, input_values, eeg_channel_ids, eeg_time_ids, eeg_segment_ids=None, eeg_attention_mask=None
    ):
        assert input_values.dtype == self.dtype
        assert not torch.is_grad_enabled()
        assert eeg_attention_mask is not None
        return eeg_channel_ids + 1000 * eeg_time_ids


class FakeVQModel(torch.nn.Module):
    device, dtype = torch.device("cpu"), torch.float32

    def encode(self, input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask=None):
        return types.SimpleNamespace(codes=eeg_channel_ids + 1000 * eeg_time_ids)


@pytest.mark.parametrize("model", [FakeModel(), FakeVQModel()])
def test_tokenize_eeg(processor, model):
    recordings = [make_eeg(3, 2), make_eeg(1, 3)]
    codes = processor.tokenize_eeg(recordings, model, [NAMES, ["CZ"]], 200, "uV")
    names = [CHANNEL_VOCABULARY.index(name) for name in NAMES]
    cz = CHANNEL_VOCABULARY.index("CZ")
    assert codes.dtype == torch.int64
    assert codes.tolist() == [[*names, *(i + 1000 for i in names)], [cz, cz + 1000, cz + 2000, -1, -1, -1]]
    with pytest.raises(TypeError, match="neither get_eeg_codes nor encode"):
        processor.tokenize_eeg(
            recordings, types.SimpleNamespace(device="cpu", dtype=torch.float32), [NAMES, ["CZ"]], 200, "uV"
        )


def test_a_tokenizer_without_the_eeg_token_is_refused(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.pad_token = None
    with pytest.raises(ValueError, match="no padding token"):
        NeuroLMProcessor(make_extractor(), plain)
    from transformers import GPT2Tokenizer

    with pytest.raises(ValueError, match=r"does not know <\|eeg\|>"):
        NeuroLMProcessor(make_extractor(), GPT2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[]))


# Saving and loading -------------------------------------------------------------------------------------------------


def test_the_recipe_is_saved(processor, tmp_path):
    processor.feature_extractor = EEGFeatureExtractor(notch_frequency=60, window_seconds=4, reference="average")
    processor.save_pretrained(tmp_path)
    again = NeuroLMProcessor.from_pretrained(tmp_path)
    assert again.feature_extractor.to_dict() == processor.feature_extractor.to_dict()
    assert again.feature_extractor.recipe_id == processor.feature_extractor.recipe_id
    assert (again.feature_extractor.notch_frequency, again.feature_extractor.window_seconds) == (60, 4)
    assert again.tokenizer.padding_side == "left"
    assert again.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert again.chat_template == processing_neurolm.CHAT_TEMPLATE
    changed = EEGFeatureExtractor.from_pretrained(tmp_path, notch_frequency=50)
    assert changed.notch_frequency == 50


LOAD = """
import json, sys, warnings
sys.modules["neurolm_hf"] = None
import numpy as np
from transformers import AutoFeatureExtractor, AutoProcessor

folder, out = sys.argv[1:3]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
assert extractor.recipe_id == processor.feature_extractor.recipe_id
eeg = np.random.default_rng(0).normal(0, 20, (3, 800))
text = None if processor.tokenizer is None else "[SEP]What is this? Answer:"
batch = processor(eeg, text, ["FP1", "FP2", "C3"], 200, "uV", return_tensors="np")
processor.save_pretrained(out)
extractor.save_pretrained(out + "-extractor")
AutoFeatureExtractor.from_pretrained(out + "-extractor", trust_remote_code=True)
assert not any(name.startswith("neurolm_hf.") for name in sys.modules)
print(json.dumps({name: value.tolist() for name, value in batch.items()}))
"""


@pytest.mark.parametrize("with_text", [True, False])
def test_a_saved_folder_loads_where_the_package_is_not_installed(processor, tmp_path, with_text):
    if not with_text:
        processor = NeuroLMProcessor(make_extractor())
    first, second, third = (str(tmp_path / name) for name in ("first", "second", "third"))
    processor.save_pretrained(first)
    files = set(os.listdir(first))
    assert {"processor_config.json", "processing_neurolm.py", "chat_template.jinja"} <= files
    assert ("tokenizer.json" in files) is with_text
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    outputs = []
    # what was loaded and saved again loads as well
    for source, target in ((first, second), (second, third)):
        command = [sys.executable, "-c", LOAD, source, target]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        outputs.append(json.loads(done.stdout.splitlines()[-1]))
    text = "[SEP]What is this? Answer:" if with_text else None
    expected = processor(make_eeg(), text, NAMES, 200, "uV", return_tensors="np")
    for output in outputs:
        assert output == {name: value.tolist() for name, value in expected.items()}
    assert set(os.listdir(second)) == files


def test_a_processor_without_text(tmp_path):
    processor = NeuroLMProcessor(make_extractor())
    batch = processor(make_eeg(), None, NAMES, 200, "uV", return_tensors="pt")
    assert set(batch) == set(processor.model_input_names) == set(EEGFeatureExtractor.model_input_names)
    for call in (lambda: processor(text="x"), lambda: processor.decode([1])):
        with pytest.raises(ValueError, match="no text tokenizer"):
            call()
    assert "EEGFeatureExtractor" in repr(processor)
    assert pickle.loads(pickle.dumps(processor)).tokenizer is None
    processor.save_pretrained(tmp_path)
    again = NeuroLMProcessor.from_pretrained(tmp_path)
    assert again.tokenizer is None
    assert again.feature_extractor.to_dict() == processor.feature_extractor.to_dict()


def test_fewer_recordings_than_texts_raise(processor):
    signal = np.random.default_rng(0).normal(scale=20, size=(2, 800))
    given = {"ch_names": ["C3", "C4"], "sampling_rate": 200, "unit": "uV"}
    processor.feature_extractor.do_filter = processor.feature_extractor.do_notch = False
    with pytest.raises(ValueError, match="sample 1: its text has room for 1 recording"):
        processor(eeg=signal, text=["a", "b"], **given)
    batch = processor(eeg=[[signal], []], text=["a", "b"], return_tensors="pt", **given)
    assert batch["eeg_attention_mask"].sum(1).tolist() == [8, 0]


def test_a_half_dead_recording_is_not_taken_for_another_unit():
    signal = np.random.default_rng(0).normal(scale=20, size=(2, 32 * 200))
    signal[:, 8 * 200 :] = 0
    batch = EEGFeatureExtractor(do_filter=False, do_notch=False)(
        signal, ch_names=["C3", "C4"], sampling_rate=200, unit="uV"
    )
    assert 15 < batch.reports[0].amplitude["C3"] < 25


def test_kilohertz_and_misspelt_options_raise():
    signal = np.random.default_rng(0).normal(scale=20, size=(2, 2000))
    with pytest.raises(ValueError, match="kHz"):
        EEGFeatureExtractor()(signal, ch_names=["C3", "C4"], sampling_rate=0.25, unit="uV")
    with pytest.raises(TypeError, match="notch"):
        EEGFeatureExtractor(notch=60)


def test_recipe_id_does_not_depend_on_the_kind_of_number():
    assert EEGFeatureExtractor(sampling_rate=200.0, patch_size=200).recipe_id == EEGFeatureExtractor().recipe_id


def test_chat_turn_of_several_texts_is_one_question(processor):
    content = [
        {"type": "text", "text": "Question: Compare "},
        {"type": "eeg"},
        {"type": "text", "text": " with "},
        {"type": "eeg"},
        {"type": "text", "text": "."},
    ]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    assert prompt == "[SEP]Question: Compare <|eeg|> with <|eeg|>. Answer:"


def test_chat_template_and_task_write_the_same_prompt(processor):
    from neurolm_hf.tasks import load_task

    task = load_task("Workload")
    turns = [{"role": "user", "content": task.question}, {"role": "assistant", "content": "Yes"}]
    assert processor.apply_chat_template(turns[:1], tokenize=False) == task.prompt()
    assert processor.apply_chat_template(turns, tokenize=False) == task.training_text("Yes")
