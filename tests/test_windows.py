"""Where windows lie: every layout in miniature against starts counted by hand, then the rules one by one."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest
import task_layouts
from recording_files import RECORDINGS, SHARED, needs_recordings, needs_shared
from safetensors.numpy import load_file

from neurolm_hf import EEGFeatureExtractor
from neurolm_hf.processing_neurolm import EEGReport
from neurolm_hf.recordings import Recording, find_recordings
from neurolm_hf.splits import assign_splits
from neurolm_hf.task_sections import Trial, TrialLabels, Windows
from neurolm_hf.tasks import load_task
from neurolm_hf.windows import LeftOut, Window, place_windows, read_window, select_channels, window_length


# Where windows lie does not depend on the filters, which want longer recordings.
EXTRACTOR = EEGFeatureExtractor(do_filter=False, do_notch=False)


def prepare_folder(task, folder, **options):
    """(windows, what was left out, the recording prepared) of every recording, by its key."""
    task = load_task(task)
    recordings, _ = assign_splits(task, find_recordings(task, folder), **options)
    placed = {}
    for one in recordings:
        (prepared,) = EXTRACTOR.prepare(one.path, unknown_channels=task.unknown_channels)
        prepared = select_channels(task, prepared)
        placed[one.key] = (*place_windows(task, one, prepared, EXTRACTOR), prepared)
    return placed


def starts(windows):
    return [window.start for window in windows]


@dataclasses.dataclass
class Counted:
    """A prepared recording whose sample at position i is i in every channel."""

    n_samples: int
    ch_names: list = dataclasses.field(default_factory=lambda: ["FP1", "CZ"])
    annotations: tuple = ()
    report: EEGReport = dataclasses.field(default_factory=lambda: EEGReport("night.edf"))

    def read(self, start, stop):
        assert 0 <= start < stop <= self.n_samples
        return np.tile(np.arange(start, stop, dtype=np.float32), (len(self.ch_names), 1))

    def pick(self, names):
        return dataclasses.replace(self, ch_names=names)


class TestLayouts:
    def test_tuab(self, tmp_path):
        placed = prepare_folder("TUAB", task_layouts.tuab(tmp_path))
        windows, left_out, prepared = placed["edf/eval/abnormal/01_tcp_ar/aaaaaaal_s002_t001.edf"]
        assert windows == [Window(0, "Yes", "test"), Window(2000, "Yes", "test"), Window(4000, "Yes", "test")]
        assert left_out == []
        assert tuple(prepared.ch_names) == load_task("TUAB").channels
        assert sum(len(windows) for windows, *_ in placed.values()) == 11 * 2 + 3
        parts = Counter((window.answer, window.split) for windows, *_ in placed.values() for window in windows)
        assert parts == {
            ("No", "train"): 8,
            ("No", "validation"): 2,
            ("No", "test"): 2,
            ("Yes", "train"): 8,
            ("Yes", "validation"): 2,
            ("Yes", "test"): 3,
        }

    def test_tuev(self, tmp_path):
        with pytest.warns(UserWarning, match=r"bckg_000_a_\.edf: its labels go on to 20\.5 s, but .* ends at 20 s"):
            placed = prepare_folder("TUEV", task_layouts.tuev(tmp_path))
        windows, left_out, prepared = placed["edf/eval/000/bckg_000_a_.edf"]
        assert windows == [Window(200, "(B)", "test")]
        assert left_out == [LeftOut("past the end of the recording", 1)]
        assert "its labels go on to 20.5 s" in prepared.report.warnings[-1]
        windows, left_out, prepared = placed["edf/train/aaaaaaaa/aaaaaaaa_00000001.edf"]
        assert starts(windows) == [-300, -300, 1620, 3320]
        assert [window.answer for window in windows] == ["(F)", "(F)", "(A)", "(D)"]
        assert left_out == []
        whole = prepared.read(0, 4000)
        np.testing.assert_array_equal(
            read_window(prepared, -300, 1000), np.concatenate([whole[:, 3700:], whole[:, :700]], axis=1)
        )
        np.testing.assert_array_equal(
            read_window(prepared, 3320, 1000), np.concatenate([whole[:, 3320:], whole[:, :320]], axis=1)
        )

    def test_seed_broken_off(self, tmp_path):
        with pytest.warns(UserWarning, match=r"1_1\.cnt: its labels go on to 3807 s, but the recording ends at 300 s"):
            ((windows, left_out, prepared),) = prepare_folder("SEED", task_layouts.seed(tmp_path)).values()
        assert starts(windows) == [*range(4800, 4800 + 60 * 800, 800), 57800, 58600]
        assert [window.answer for window in windows] == 60 * ["Positive"] + 2 * ["Neutral"]
        assert {window.split for window in windows} == {"train"}
        assert left_out == [LeftOut("past the end of the recording", 855 - 62)]
        assert tuple(prepared.ch_names) == task_layouts.SEED_ELECTRODES

    def test_seed_whole(self):
        (recording,), _ = assign_splits(load_task("SEED"), [Recording("1_1.cnt", "1_1.cnt", "1")])
        windows, left_out = place_windows(load_task("SEED"), recording, Counted(3810 * 200), EXTRACTOR)
        assert Counter(window.split for window in windows) == {"train": 507, "validation": 177, "test": 171}
        assert (windows[60], windows[-1]) == (
            Window(289 * 200, "Neutral", "train"),
            Window((3598 + 51 * 4) * 200, "Negative", "test"),
        )
        assert left_out == []

    def test_hmc(self, tmp_path):
        shares = {"test": 1}
        ((windows, left_out, prepared),) = prepare_folder(
            "HMC", task_layouts.hmc(tmp_path), rule="subject", shares=shares
        ).values()
        assert windows == [Window(0, "(A)", "test"), Window(6000, "(C)", "test"), Window(12000, "(E)", "test")]
        assert left_out == [LeftOut("labelled 'Lights off@@EEG F4-A1'", 1)]
        assert prepared.ch_names == ["F4", "C4", "O2", "C3"]

    def test_tusl(self, tmp_path):
        placed = prepare_folder("TUSL", task_layouts.tusl(tmp_path))
        windows, left_out, _ = placed["edf/aaaaaaju/s000_2010/01_tcp_ar/aaaaaaju_s000_t000.edf"]
        assert windows == [Window(400, "(B)", "train"), Window(3100, "(A)", "train")]
        assert left_out == [LeftOut("shorter than a window of 10 s", 1)]
        parts = Counter(window.split for windows, *_ in placed.values() for window in windows)
        assert parts == {"train": 12, "test": 4, "validation": 4}

    def test_tueg(self, tmp_path):
        reference, ears = prepare_folder("TUEG", task_layouts.tueg(tmp_path)).values()
        # 23 channels: 44 s a window, and 90 of 100 s are used
        assert reference[:2] == ([Window(0, None, "train"), Window(8800, None, "train")], [])
        assert ears[:2] == ([], [LeftOut("linked-ear reference", 2)])

    def test_eegmmidb(self, tmp_path):
        task_layouts.eegmmidb(tmp_path)
        (tmp_path / "S001" / "S001R03.edf").unlink()
        hands, feet = prepare_folder("EEGMMIDB", tmp_path, rule="subject", shares={"validation": 1}).values()
        assert hands[0] == [Window(840, "(B)", "validation"), Window(1660, "(A)", "validation")]
        assert feet[0] == [Window(840, "(D)", "validation"), Window(1660, "(C)", "validation")]
        assert hands[1] == [LeftOut("labelled '04:T0'", 1), LeftOut("shorter than a window of 4 s", 1)]
        assert hands[2].ch_names == ["FC5", "CZ", "IZ"]

    def test_a_user_s_table(self, tmp_path):
        path = task_layouts.table(tmp_path) / "task.json"
        path.write_text(json.dumps(task_layouts.TABLE_TASK))
        ann, ben = prepare_folder(path, tmp_path).values()
        assert [(window.start, window.answer) for window in ann[0]] == [
            (600, "Yes"),
            (1200, "Yes"),
            (1800, "Yes"),
            (4000, "No"),
        ]
        assert ann[1] == []
        assert starts(ben[0]) == [0, 600, 1200, 1800, 2400, 3000, 3600, 4200, 4800]
        assert ben[1] == [LeftOut("labelled '?'", 2)]
        assert {ann[0][0].split, ben[0][0].split} == {"train", "test"}

    def test_a_user_s_table_that_says_the_split(self, tmp_path):
        path = task_layouts.table(tmp_path) / "task.json"
        path.write_text(json.dumps(task_layouts.TABLE_TASK))  # by subject
        rows = (
            "ann/monday.edf,3,8,awake,test\nann/monday.edf,20,24.5,asleep,test\nben/monday.edf,1,9,awake,validation\n"
        )
        (tmp_path / "labels.csv").write_text("file,start,end,label,split\n" + rows)
        ann, ben = prepare_folder(path, tmp_path).values()
        assert [(window.start, window.split) for window in ann[0]] == [(600, "test"), (4000, "test")]
        assert [(window.start, window.split) for window in ben[0]] == [(200, "validation"), (800, "validation")]

    @needs_recordings
    def test_a_bids_dataset(self, tmp_path):
        (tmp_path / "task.json").write_text(json.dumps(task_layouts.BIDS_TASK))
        ((windows, left_out, _),) = prepare_folder(tmp_path / "task.json", RECORDINGS / "mne_bids_tiny").values()
        assert windows == [Window(40, "Yes", "train")]  # its stimulus comes at 0.2 s
        assert left_out == [LeftOut("labelled 'start_experiment'", 1)]

    @needs_recordings
    def test_eegmmidb_s_real_recordings(self):
        placed = prepare_folder("EEGMMIDB", RECORDINGS / "eegmmidb_S001", rule="subject", shares={"train": 1})
        assert [len(windows) for windows, *_ in placed.values()] == 6 * [15]
        assert {sum(one.windows for one in left_out) for _, left_out, _ in placed.values()} == {15}
        windows, left_out, prepared = placed["S001R04.edf"]
        assert windows[:2] == [Window(840, "(B)", "train"), Window(2500, "(A)", "train")]
        assert left_out == [LeftOut("labelled '04:T0'", 15)]
        assert len(prepared.ch_names) == 64

    @needs_recordings
    def test_eegmat_has_the_paper_s_928_windows(self):
        task = load_task("Workload")
        with pytest.raises(ValueError, match="needs all 72; there are 32"):
            assign_splits(task, find_recordings(task, RECORDINGS / "eegmat"))
        placed = prepare_folder("Workload", RECORDINGS / "eegmat", rule="subject")
        assert [len(windows) for windows, *_ in placed.values()] == 32 * [29]
        assert Counter(window.answer for windows, *_ in placed.values() for window in windows) == {
            "No": 464,
            "Yes": 464,
        }
        windows, left_out, prepared = placed["Subject00_1.edf"]
        assert starts(windows) == list(range(prepared.n_samples - 12000, prepared.n_samples - 799, 400))
        assert left_out == []

    @needs_shared
    def test_eegmat_s_windows_agree_with_the_golden_preprocessing(self, tmp_path):
        (tmp_path / "Subject00_2.edf").symlink_to(RECORDINGS / "eegmat" / "Subject00_2.edf")
        task = load_task("Workload")
        (one,), _ = assign_splits(task, find_recordings(task, tmp_path), rule="subject", shares={"test": 1})
        extractor = EEGFeatureExtractor()
        prepared = select_channels(task, extractor.prepare(one.path)[0])
        windows, _ = place_windows(task, one, prepared, extractor)
        # every other window: no overlap
        minute = np.concatenate([read_window(prepared, window.start, 800) for window in windows[::2]], axis=1)
        golden = load_file(SHARED / "parity" / "preprocessing_Subject00_2.safetensors")["last_60s_uv"] / 100
        assert minute.shape == golden.shape == (19, 12000)
        assert np.linalg.norm(minute - golden) / np.linalg.norm(golden) < 1e-3


class TestRules:
    def place(self, windows, n_seconds, trials=None, extractor=EXTRACTOR, **fields):
        if trials:
            labels = TrialLabels("trials", tuple(Trial(*trial) for trial in trials))
            task = dataclasses.replace(load_task("Workload"), labels=labels, windows=windows, channels=None)
        else:
            task = dataclasses.replace(load_task("Corpus"), windows=windows)
        recording = Recording("night.edf", "night.edf", "S", split="train")
        return place_windows(task, recording, Counted(round(n_seconds * 200), **fields), extractor)

    def test_the_last_seconds_and_what_they_hold(self):
        assert starts(self.place(Windows(4, 2, last_seconds=8), 62.5)[0]) == [10900, 11300, 11700]
        assert starts(self.place(Windows(4, 2, last_seconds=8), 7)[0]) == [0, 400]
        assert starts(self.place(Windows(4, leave_out_last_seconds=3), 11)[0]) == [0, 800]

    def test_recordings_shorter_than_a_window_are_counted(self):
        assert self.place(Windows(4), 3) == ([], [LeftOut("shorter than a window of 4 s", 1)])
        assert self.place(Windows(4, leave_out_last_seconds=3), 2) == (
            [],
            [LeftOut("shorter than a window of 4 s", 1)],
        )

    def test_strides_round_to_samples(self):
        assert starts(self.place(Windows(1, 0.333), 2)[0]) == [0, 67, 134]

    def test_an_event_of_a_window_s_length_whatever_its_onset(self):
        onsets = [k * 0.0125 for k in range(40)]  # 2.5 samples apart
        windows, left_out = self.place(Windows(4), 10, [(onset, onset + 4, "Yes") for onset in onsets])
        assert (starts(windows), left_out) == ([round(onset * 200) for onset in onsets], [])
        windows, left_out = self.place(Windows(6, before_seconds=1, after_seconds=1), 10, [(1.0375, 5.0375, "Yes")])
        assert (starts(windows), left_out) == ([8], [])

    def test_signal_around_an_event(self):
        trials = [(0.5, 1.0, "Yes"), (5.0, 5.5, "No"), (9.5, 9.9, "Yes")]
        windows, left_out = self.place(Windows(2, before_seconds=1, after_seconds=0.5), 10, trials)
        assert windows == [Window(800, "No", "train")]
        assert left_out == [
            LeftOut("before the start of the recording", 1),
            LeftOut("shorter than a window of 2 s", 1),
        ]
        windows, left_out = self.place(Windows(1, after_seconds=1), 10, trials)
        assert starts(windows) == [100, 1000]
        assert left_out == [LeftOut("past the end of the recording", 1)]

    def test_an_event_must_lie_inside_even_where_its_window_wraps(self):
        wrapping = Windows(3, before_seconds=1, after_seconds=1, wrap=True)
        with pytest.warns(UserWarning, match=r"night\.edf: its labels go on to 11 s, but the recording ends at 10 s"):
            windows, left_out = self.place(wrapping, 10, [(0, 1, "Yes"), (9, 10, "No"), (10, 11, "Yes")])
        assert windows == [Window(-200, "Yes", "train"), Window(1600, "No", "train")]
        assert left_out == [LeftOut("past the end of the recording", 1)]

    def test_a_trial_that_runs_on_keeps_what_lies_inside(self):
        with pytest.warns(UserWarning, match="go on to 12 s"):
            windows, left_out = self.place(Windows(2), 9, [(4, 12, "Yes")])
        assert starts(windows) == [800, 1200]
        assert left_out == [LeftOut("past the end of the recording", 2)]

    def test_the_token_budget(self):
        names = [f"C{number}" for number in range(100)]
        windows, _ = self.place(Windows(None), 25, ch_names=names)
        assert starts(windows) == [0, 2000]  # 1024 // 100 = 10 s
        assert starts(self.place(Windows(None), 200)[0]) == [0, 12800, 25600]  # 64 s at most
        with pytest.raises(
            ValueError, match=r"night\.edf: windows of 11 s of 100 channels exceed .* 1024 tokens and 64 s"
        ):
            self.place(Windows(11), 25, ch_names=names)
        with pytest.raises(ValueError, match=r"windows of 65 s of 2 channels exceed"):
            self.place(Windows(65), 100)

    def test_a_recording_without_a_split(self):
        recording = Recording("night.edf", "night.edf", "S")
        with pytest.raises(ValueError, match=r"night\.edf has no split: pass the recordings through assign_splits"):
            place_windows(load_task("Corpus"), recording, Counted(100000), EXTRACTOR)

    def test_a_split_by_subject_comes_before_that_of_trials(self):
        task = load_task("SEED")
        (one,), _ = assign_splits(task, [Recording("1_1.cnt", "1_1.cnt", "1")], rule="subject", shares={"test": 1})
        windows, _ = place_windows(task, one, Counted(3810 * 200), EXTRACTOR)
        assert {window.split for window in windows} == {"test"}


class TestChannels:
    def test_the_task_s_in_its_order(self):
        task = dataclasses.replace(load_task("Workload"), channels=("CZ", "FP1"))
        assert select_channels(task, Counted(9)).ch_names == ["CZ", "FP1"]

    def test_the_recording_s_own(self):
        task = load_task("SEED")
        assert select_channels(task, Counted(9, ["FP1", "M1", "CZ", "M2"])).ch_names == ["FP1", "CZ"]
        whole = Counted(9)
        assert select_channels(task, whole) is whole
        with pytest.raises(ValueError, match=r"night\.edf: task SEED drops all of its channels"):
            select_channels(task, Counted(9, ["M1"]))

    def test_window_length(self):
        assert window_length(load_task("Workload"), Counted(9), EXTRACTOR) == 800
        budget = load_task("TUEG")  # leaves out the last 10 s
        assert window_length(budget, Counted(60 * 200, ["FP1"] * 23), EXTRACTOR) == 44 * 200
        assert window_length(budget, Counted(30 * 200 + 150, ["FP1"] * 23), EXTRACTOR) == 20 * 200
        assert window_length(budget, Counted(9 * 200, ["FP1"] * 23), EXTRACTOR) == 200


def test_windows_are_read_across_the_ends():
    prepared = Counted(5)
    assert read_window(prepared, 1, 3)[1].tolist() == [1, 2, 3]
    assert read_window(prepared, -2, 4)[0].tolist() == [3, 4, 0, 1]
    assert read_window(prepared, 4, 12)[0].tolist() == [4, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0]
