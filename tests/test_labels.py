"""Label sources: what each gives, and one wrong file of each kind."""

import json

import pytest
import task_layouts

from neurolm_hf.labels import Span, label_spans
from neurolm_hf.recordings import Recording, find_recordings
from neurolm_hf.tasks import load_task


def recording(path, **fields):
    return Recording(path, path.name, "S", **fields)


def spans(task, one, annotations=(), n_seconds=100.0):
    return label_spans(load_task(task) if isinstance(task, str) else task, one, annotations, n_seconds)


def user_task(folder, **changes):
    (folder / "task.json").write_text(json.dumps(task_layouts.TABLE_TASK | changes))
    return load_task(folder / "task.json")


class TestWholeRecordings:
    def test_by_path(self, tmp_path):
        assert spans("TUAB", recording(tmp_path / "a.edf", label="abnormal")) == [Span(0, 100, "abnormal", "Yes")]
        assert spans("Workload", recording(tmp_path / "a.edf", label="1"), n_seconds=62.5) == [
            Span(0, 62.5, "1", "No")
        ]

    def test_unknown(self, tmp_path):
        with pytest.raises(ValueError, match=r"a\.edf: 'odd' is no label of task TUAB, which knows normal, abnormal"):
            spans("TUAB", recording(tmp_path / "a.edf", label="odd"))

    def test_nothing_asked(self, tmp_path):
        assert spans("TUEG", recording(tmp_path / "a.edf")) == [Span(0, 100, None, None)]


class TestSidecars:
    def test_rec(self, tmp_path):
        (one, *_) = find_recordings(load_task("TUEV"), task_layouts.tuev(tmp_path))[1:]
        assert spans("TUEV", one) == [
            Span(0.5, 1.5, "6", "(F)"),
            Span(0.5, 1.5, "6", "(F)"),  # the same event on another channel stays
            Span(10.1, 11.1, "1", "(A)"),
            Span(18.6, 19.6, "4", "(D)"),
        ]

    def test_tse_agg(self, tmp_path):
        one = find_recordings(load_task("TUSL"), task_layouts.tusl(tmp_path))[0]
        assert spans("TUSL", one) == [
            Span(2, 12, "seiz", "(B)"),
            Span(15.5, 25.5, "bckg", "(A)"),
            Span(26, 29, "slow", "(C)"),
        ]

    def test_sleepscoring(self, tmp_path):
        (one,) = find_recordings(load_task("HMC"), task_layouts.hmc(tmp_path))
        assert spans("HMC", one) == [
            Span(0, 30, "Sleep stage W", "(A)"),
            Span(12, 12, "Lights off@@EEG F4-A1", None),
            Span(30, 60, "Sleep stage N2", "(C)"),
            Span(60, 90, "Sleep stage R", "(E)"),
        ]

    def test_columns_in_another_order_by_their_names(self, tmp_path):
        text = "Annotation,Duration, Recording onset\r\nSleep stage N1,30,0\r\n\r\nSleep stage N3,30,30\r\n"
        (tmp_path / "SN002_sleepscoring.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert spans("HMC", recording(tmp_path / "SN002.edf")) == [
            Span(0, 30, "Sleep stage N1", "(B)"),
            Span(30, 60, "Sleep stage N3", "(D)"),
        ]

    def test_missing_names_both_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"a\.edf has no labels: .*a\.rec is not there"):
            spans("TUEV", recording(tmp_path / "a.edf"))

    @pytest.mark.parametrize(
        ("task", "name", "content", "message"),
        [
            ("TUEV", "a.rec", "0,1,2,6\n0,1,2,7\n", r"a\.rec, line 2: '7' is no label of task TUEV, which knows 1, 2"),
            ("TUEV", "a.rec", "0,1,2\n", r"a\.rec, line 1: 3 columns where 4 are needed: '0,1,2'"),
            ("TUEV", "a.rec", "0,x,2,6\n", r"a\.rec, line 1: start must be a number of seconds, got 'x'"),
            ("TUEV", "a.rec", "0,2,1,6\n", r"a\.rec, line 1: an event from 2 to 1 s"),
            ("TUEV", "a.rec", "\n", r"a\.rec holds no event"),
            ("TUEV", "a.rec", "", r"a\.rec holds no event"),
            ("TUEV", "a.rec", b"\xff\xfe0", r"a\.rec is not a text file: byte 0"),
            (
                "TUSL",
                "a.tse_agg",
                "version\n\n1 2 seizure\n",
                r"a\.tse_agg, line 3: 'seizure' is no label of task TUSL",
            ),
            ("TUSL", "a.tse_agg", "1 2 seiz\n3 4 bckg\n", r"a\.tse_agg holds no event"),
            (
                "HMC",
                "a_sleepscoring.txt",
                "Date, Onset\n1, 2\n",
                r"line 1: no column 'Recording onset'; .* Date, Onset",
            ),
            (
                "HMC",
                "a_sleepscoring.txt",
                "Recording onset,Duration,Annotation\n0,30,Sleep stage n2\n",
                r"line 2: 'Sleep stage n2' is no label of task HMC, which knows .*, Lights\*\.",
            ),
            (
                "HMC",
                "a_sleepscoring.txt",
                "Recording onset,Duration,Annotation,Duration\n0,30,Sleep stage W,30\n",
                r"a_sleepscoring\.txt, line 1: column 'Duration' stands there more than once",
            ),
            (
                "TUSL",
                "a.tse_agg",
                "version = tse_v1.0.0\n1 2 seiz\n3 4 bckg\n",
                r"a\.tse_agg, line 2: an event, '1 2 seiz', where the task's header_lines = 2 has a header",
            ),
            ("HMC", "a_sleepscoring.txt", "", r"a_sleepscoring\.txt holds no event: is it cut short"),
        ],
    )
    def test_wrong_files(self, tmp_path, task, name, content, message):
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError, match=message):
            spans(task, recording(tmp_path / "a.edf"))


class TestTrials:
    def test_the_same_in_every_recording(self, tmp_path):
        found = spans("SEED", recording(tmp_path / "1_1.cnt"))
        assert len(found) == 15
        assert found[0] == Span(24, 265, "Positive", "Positive", "train")
        assert found[11] == Span(2812, 3047, "Negative", "Negative", "validation")
        assert found[14] == Span(3598, 3807, "Negative", "Negative", "test")

    def test_a_label_that_is_no_answer(self, tmp_path):
        trials = {"source": "trials", "trials": [{"start": 0, "end": 4, "label": "Perhaps"}]}
        with pytest.raises(ValueError, match=r"task Vigilance: 'Perhaps' is no label .* which knows No, Yes"):
            spans(user_task(tmp_path, labels=trials), recording(tmp_path / "a.edf"))


class TestAnnotations:
    notes = ((0.0, 4.2, "T0"), (4.2, 4.1, "T2"), (8.3, 4.1, " T1 "))

    def test_the_run_says_what_they_mean(self, tmp_path):
        fists = spans("EEGMMIDB", recording(tmp_path / "S001R04.edf", label="04"), self.notes)
        assert [(one.label, one.answer) for one in fists] == [("04:T0", None), ("04:T2", "(B)"), ("04:T1", "(A)")]
        assert [(one.start, one.end) for one in fists] == [(0, 4.2), (4.2, 4.2 + 4.1), (8.3, 8.3 + 4.1)]
        feet = spans("EEGMMIDB", recording(tmp_path / "S001R14.edf", label="14"), self.notes)
        assert [one.answer for one in feet] == [None, "(D)", "(C)"]

    def test_any_other(self, tmp_path):
        task = user_task(tmp_path, labels={"source": "annotations", "map": {"T2": "Yes", "*": None}})
        found = spans(task, recording(tmp_path / "a.edf"), self.notes)
        assert [(one.label, one.answer) for one in found] == [("T0", None), ("T2", "Yes"), ("T1", None)]

    def test_beginnings(self, tmp_path):
        names = {"T2": "Yes", "T*": "No", "T1*": None}
        task = user_task(tmp_path, labels={"source": "annotations", "map": names})
        notes = [(0, 1, "T2"), (1, 1, "T2b"), (2, 1, "T1b"), (3, 1, "T")]
        assert [one.answer for one in spans(task, recording(tmp_path / "a.edf"), notes)] == ["Yes", "No", None, "No"]
        with pytest.raises(ValueError, match=r"annotation at 4 s: 't2' is no label .* which knows T2, T\*, T1\*"):
            spans(task, recording(tmp_path / "a.edf"), [*notes, (4, 1, "t2")])

    def test_unknown_and_absent(self, tmp_path):
        one = recording(tmp_path / "S001R04.edf", label="04")
        with pytest.raises(
            ValueError, match=r"S001R04\.edf, annotation at 7\.5 s: '04:T3' is no label of task EEGMMIDB"
        ):
            spans("EEGMMIDB", one, [(7.5, 1.0, "T3")])
        with pytest.raises(ValueError, match=r"S001R04\.edf has no event that task EEGMMIDB could take a label from"):
            spans("EEGMMIDB", one)


class TestTable:
    def test_rows(self, tmp_path):
        task = user_task(task_layouts.table(tmp_path))
        ann, ben = find_recordings(task, tmp_path)
        assert spans(task, ann) == [Span(3, 14, "awake", "Yes"), Span(20, 24.5, "asleep", "No")]
        assert spans(task, ben, n_seconds=30.0) == [Span(0, 30, "awake", "Yes"), Span(1, 9, "?", None)]

    def test_unknown(self, tmp_path):
        (tmp_path / "a.edf").touch()
        (tmp_path / "labels.csv").write_text("file,start,end,label\na.edf,1,5,awake\na.edf,5,9,dreaming\n")
        task = user_task(tmp_path)
        with pytest.raises(
            ValueError, match=r"labels\.csv, line 3: 'dreaming' is no label .* knows awake, asleep, \?"
        ):
            spans(task, find_recordings(task, tmp_path)[0])
