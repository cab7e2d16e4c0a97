"""From a folder to labelled windows: names, splits, where windows lie, what is refused."""

import dataclasses
import shutil
from pathlib import Path

import mne
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from neurolm_hf import EEGFeatureExtractor
from neurolm_hf.recordings import Recording, find_workload_recordings, split_subjects, window_recordings
from neurolm_hf.simulation import simulate_recordings
from neurolm_hf.tasks import load_task


SHARED = Path(__file__).parents[2] / "shared"
EEGMAT = SHARED / "recordings" / "eegmat"
needs_eegmat = pytest.mark.skipif(not EEGMAT.exists(), reason="needs ../shared/recordings/eegmat")

WORKLOAD = load_task("Workload")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    simulate_recordings(folder, subjects=2, seconds=64)
    return folder


@pytest.fixture(scope="module")
def extractor():
    return EEGFeatureExtractor(notch_frequency=WORKLOAD.notch_hz)


@pytest.fixture(scope="module")
def windows(folder, extractor):
    return window_recordings(find_workload_recordings(folder), WORKLOAD, extractor)


def write_edf(path, names, seconds, volts=1e-5):
    noise = np.random.default_rng(0).standard_normal((len(names), seconds * 200)) * volts
    raw = mne.io.RawArray(noise, mne.create_info(names, 200, "eeg"), verbose="error")
    limit = round(1e8 * volts)  # microvolts, a hundred times the noise
    mne.export.export_raw(path, raw, fmt="edf", physical_range=(-limit, limit), verbose="error")
    return Recording(path, path.stem.split("_")[0], "No")


class TestFinding:
    def test_conditions_by_name(self, folder):
        found = find_workload_recordings(str(folder))
        assert [(one.path.name, one.subject, one.answer) for one in found] == [
            ("Subject00_1.edf", "Subject00", "No"),
            ("Subject00_2.edf", "Subject00", "Yes"),
            ("Subject01_1.edf", "Subject01", "No"),
            ("Subject01_2.edf", "Subject01", "Yes"),
        ]

    def test_nothing_to_find(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="absent is not a folder"):
            find_workload_recordings(tmp_path / "absent")
        with pytest.raises(FileNotFoundError, match=r"it holds no \.edf file"):
            find_workload_recordings(tmp_path)
        (tmp_path / "night.edf").touch()
        with pytest.raises(FileNotFoundError, match=r"called night\.edf.*must be called SubjectNN_1\.edf"):
            find_workload_recordings(tmp_path)

    def test_a_subject_with_one_condition(self, tmp_path):
        for name in ("Subject00_1.edf", "Subject00_2.edf", "Subject07_2.edf"):
            (tmp_path / name).touch()
        with pytest.raises(ValueError, match=r"Not so Subject07: add what is missing"):
            find_workload_recordings(tmp_path)

    def test_strangers_are_left_out_with_a_warning(self, tmp_path):
        for name in ("Subject00_1.edf", "Subject00_2.EDF", "Subject00_3.edf", "notes.txt"):
            (tmp_path / name).touch()
        with pytest.warns(UserWarning, match=r"left out.*: Subject00_3\.edf\.$"):
            assert len(find_workload_recordings(tmp_path)) == 2


class TestSplitting:
    subjects = [f"Subject{number:02d}" for number in range(16)]

    def test_nobody_is_in_both_and_nobody_is_lost(self):
        split = split_subjects(self.subjects)
        assert sorted(split.train + split.test) == self.subjects
        assert len(split.test) == 4

    def test_deterministic_whatever_the_order(self):
        split = split_subjects(self.subjects)
        assert split == split_subjects(3 * self.subjects[::-1])
        assert split != split_subjects(self.subjects, seed=1)

    def test_each_side_has_a_subject(self):
        for share in (0.01, 0.99):
            assert all(split_subjects(["a", "b"], test_share=share))

    def test_refusals(self):
        with pytest.raises(ValueError, match="two subjects at least"):
            split_subjects(["a", "a"])
        with pytest.raises(ValueError, match="between 0 and 1"):
            split_subjects(self.subjects, test_share=1.0)


class TestWindows:
    def test_29_windows_a_file_from_its_last_minute(self, windows):
        dataset = windows.dataset
        assert len(dataset) == 4 * 29
        assert dataset[:29]["start"] == [4 + 2 * index for index in range(29)]
        assert dataset.unique("recording") == [f"Subject0{one}_{two}.edf" for one in (0, 1) for two in (1, 2)]
        assert windows.skipped == []
        assert [Path(report.source).name for report in windows.reports] == dataset.unique("recording")

    def test_labels_follow_the_task(self, windows, extractor):
        dataset = windows.dataset
        assert dataset.features["label"].names == ["No", "Yes"]
        for row in dataset.select_columns(["recording", "label", "answer", "subject"]):
            assert (row["label"], row["answer"]) == ((1, "Yes") if row["recording"][10] == "2" else (0, "No"))
            assert row["recording"].startswith(row["subject"])
        assert dataset.unique("question") == [WORKLOAD.question]
        assert dataset.unique("recipe_id") == [extractor.recipe_id]
        assert dataset[5]["channels"] == list(WORKLOAD.channels)

    def test_windows_are_cut_from_the_prepared_whole(self, folder, windows, extractor):
        (prepared,) = extractor.prepare(folder / "Subject01_2.edf")
        rows = [prepared.ch_names.index(name) for name in WORKLOAD.channels]
        signals = windows.dataset.with_format("numpy")[3 * 29 :]["signal"]
        np.testing.assert_array_equal(signals[0], prepared.values[rows, 800:1600])
        np.testing.assert_array_equal(signals[28], prepared.values[rows, -800:])

    def test_channels_come_in_the_task_s_order(self, folder, extractor):
        task = dataclasses.replace(WORKLOAD, channels=("FP1", "CZ", "FP2"))
        dataset = window_recordings(find_workload_recordings(folder)[:1], task, extractor).dataset
        (prepared,) = extractor.prepare(folder / "Subject00_1.edf")
        rows = [prepared.ch_names.index(name) for name in ("FP1", "CZ", "FP2")]
        np.testing.assert_array_equal(dataset.with_format("numpy")[0]["signal"], prepared.values[rows, 800:1600])
        assert dataset[0]["channels"] == ["FP1", "CZ", "FP2"]

    def test_all_channels_of_the_recording_where_the_task_names_none(self, folder, extractor):
        task = dataclasses.replace(WORKLOAD, channels=None)
        row = window_recordings(find_workload_recordings(folder)[:1], task, extractor).dataset[0]
        assert sorted(row["channels"]) == sorted(WORKLOAD.channels)  # A2-A1 and ECG are no scalp EEG

    def test_closer_windows_over_the_whole_recording(self, folder, extractor):
        task = dataclasses.replace(WORKLOAD, stride_seconds=0.5, last_seconds=None)
        dataset = window_recordings(find_workload_recordings(folder)[:1], task, extractor).dataset
        assert dataset["start"][:] == [0.5 * index for index in range(121)]

    def test_arrays_stay_float32_in_every_format(self, windows):
        array = windows.dataset.with_format("numpy")[:]["signal"]
        assert (array.dtype, array.shape) == (np.float32, (116, 19, 800))
        assert 0.02 < array.std() < 1  # tens of microvolts, divided by 100
        row = windows.dataset.with_format("torch")[3]
        assert (row["signal"].dtype, tuple(row["signal"].shape)) == (torch.float32, (19, 800))
        assert (row["label"].dtype, row["label"].item()) == (torch.int64, 0)
        np.testing.assert_array_equal(row["signal"].numpy(), array[3])

    def test_windows_go_back_into_the_feature_extractor(self, windows, extractor):
        row = windows.dataset.with_format("numpy")[0]
        batch = extractor(
            row["signal"],
            ch_names=list(row["channels"]),
            sampling_rate=200,
            prepared_by=str(row["recipe_id"]),
            return_tensors="np",
        )
        assert batch["input_values"].shape == (1, 4 * 19, 200)
        np.testing.assert_array_equal(batch["input_values"][0, 19 + 2], row["signal"][2, 200:400])


class TestRefusals:
    def test_short_recordings_give_what_they_hold(self, tmp_path, extractor):
        names = [f"EEG {name}" for name in WORKLOAD.channels]
        ten = write_edf(tmp_path / "Subject00_1.edf", names, 10)
        with pytest.warns(UserWarning, match="shorter than the"):
            dataset = window_recordings([ten], WORKLOAD, extractor).dataset
        assert dataset["start"][:] == [0, 2, 4, 6]
        three = write_edf(tmp_path / "Subject01_1.edf", names, 3)
        with (
            pytest.warns(UserWarning, match="shorter than the"),
            pytest.raises(ValueError, match=r"Subject01_1\.edf: 3 s are shorter than one window of 4 s"),
        ):
            window_recordings([three], WORKLOAD, extractor)

    def test_missing_and_unknown_channels(self, tmp_path, extractor):
        names = list(WORKLOAD.channels)
        few = write_edf(tmp_path / "few.edf", names[:-2], 64)
        with pytest.raises(ValueError, match=r"few\.edf lacks channels of task Workload: CZ, PZ\. It has FP1"):
            window_recordings([few], WORKLOAD, extractor)
        odd = write_edf(tmp_path / "odd.edf", [*names, "Banana"], 64)
        with pytest.raises(ValueError, match=r"odd\.edf.*Banana"):
            window_recordings([odd], WORKLOAD, extractor)

    def test_implausible_amplitudes(self, tmp_path, extractor):
        loud = write_edf(tmp_path / "loud.edf", list(WORKLOAD.channels), 64, volts=0.01)
        with pytest.raises(ValueError, match=r"loud\.edf"):
            window_recordings([loud], WORKLOAD, extractor)

    def test_bad_files_raise_or_are_skipped_and_reported(self, folder, tmp_path, extractor):
        shutil.copy(folder / "Subject00_1.edf", tmp_path / "Subject00_1.edf")
        (tmp_path / "Subject00_2.edf").write_text("This is no EDF file.")
        recordings = find_workload_recordings(tmp_path)
        with pytest.raises(ValueError, match=r"Subject00_2\.edf"):
            window_recordings(recordings, WORKLOAD, extractor)
        windows = window_recordings(recordings, WORKLOAD, extractor, on_error="skip")
        assert len(windows.dataset) == 29
        assert [one.path.name for one in windows.skipped] == ["Subject00_2.edf"]
        assert "Subject00_2.edf" in windows.skipped[0].reason
        with pytest.raises(ValueError, match=r"None of 1 recordings could be used.*Subject00_2\.edf"):
            window_recordings(recordings[1:], WORKLOAD, extractor, on_error="skip")

    def test_arguments_that_do_not_fit(self, folder, extractor):
        recordings = find_workload_recordings(folder)
        with pytest.raises(ValueError, match="no recordings"):
            window_recordings([], WORKLOAD, extractor)
        with pytest.raises(ValueError, match="mains have 50 Hz, but the recipe notches 60 Hz"):
            window_recordings(recordings, WORKLOAD, EEGFeatureExtractor(notch_frequency=60))
        with pytest.raises(ValueError, match="no stride"):
            window_recordings(recordings, dataclasses.replace(WORKLOAD, stride_seconds=None), extractor)
        stranger = dataclasses.replace(recordings[0], answer="Maybe")
        with pytest.raises(ValueError, match=r"Subject00_1\.edf: 'Maybe' is no answer of task Workload \(No, Yes\)"):
            window_recordings([stranger], WORKLOAD, extractor)
        with pytest.raises(ValueError, match="'raise' or 'skip', not 'ignore'"):
            window_recordings(recordings, WORKLOAD, extractor, on_error="ignore")

    def test_recordings_of_different_montages_need_named_channels(self, folder, tmp_path, extractor):
        task = dataclasses.replace(WORKLOAD, channels=None)
        few = write_edf(tmp_path / "few.edf", ["Cz", "Pz"], 64)
        with pytest.raises(ValueError, match="2 and 19 channels"):
            window_recordings([few, find_workload_recordings(folder)[0]], task, extractor)


@needs_eegmat
def test_eegmat_is_found_whole():
    recordings = find_workload_recordings(EEGMAT)
    assert len(recordings) == 32
    assert len({recording.subject for recording in recordings}) == 16


@needs_eegmat
def test_eegmat_windows_agree_with_the_golden_preprocessing(extractor):
    recording = next(one for one in find_workload_recordings(EEGMAT) if one.path.name == "Subject00_2.edf")
    signals = window_recordings([recording], WORKLOAD, extractor).dataset.with_format("numpy")[:]["signal"]
    minute = np.concatenate(list(signals[::2, :, :800]), axis=-1)  # every other window: no overlap
    golden = load_file(SHARED / "parity" / "preprocessing_Subject00_2.safetensors")["last_60s_uv"] / 100
    assert minute.shape == (19, 12000)
    assert golden.shape == (19, 12000)
    assert np.linalg.norm(minute - golden) / np.linalg.norm(golden) < 1e-3
