"""From a folder to recordings: names, subjects, what is left out, and users' tables."""

import json

import pytest
import task_layouts
from recording_files import RECORDINGS, needs_recordings

from neurolm_hf.recordings import find_recordings, read_table, read_times, subject_of
from neurolm_hf.simulation import simulate_recordings
from neurolm_hf.tasks import load_task


def user_task(folder, content):
    path = folder / "task.json"
    path.write_text(json.dumps(content))
    return load_task(path)


def touch(folder, *keys):
    for key in keys:
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).touch()
    return folder


def found(task, folder):
    return [(one.key, one.subject, one.folder, one.label) for one in find_recordings(load_task(task), folder)]


class TestLayouts:
    def test_workload(self, tmp_path):
        simulate_recordings(tmp_path, subjects=2, seconds=5)
        assert found("Workload", str(tmp_path)) == [
            ("Subject00_1.edf", "Subject00", None, "1"),
            ("Subject00_2.edf", "Subject00", None, "2"),
            ("Subject01_1.edf", "Subject01", None, "1"),
            ("Subject01_2.edf", "Subject01", None, "2"),
        ]

    def test_tuab(self, tmp_path):
        files = found("TUAB", task_layouts.tuab(tmp_path))
        assert len(files) == 12
        assert files[0] == ("edf/eval/abnormal/01_tcp_ar/aaaaaaal_s002_t001.edf", "aaaaaaal", "eval", "abnormal")
        assert files[-1] == ("edf/train/normal/01_tcp_ar/aaaaaaae_s001_t000.edf", "aaaaaaae", "train", "normal")

    def test_tuev(self, tmp_path):
        files = found("TUEV", task_layouts.tuev(tmp_path))
        assert len(files) == 6
        assert files[0] == ("edf/eval/000/bckg_000_a_.edf", "000", "eval", None)
        assert files[1] == ("edf/train/aaaaaaaa/aaaaaaaa_00000001.edf", "aaaaaaaa", "train", None)

    def test_seed(self, tmp_path):
        assert found("SEED", task_layouts.seed(tmp_path)) == [("SEED_RAW_EEG/1_1.cnt", "1", None, None)]

    def test_hmc(self, tmp_path):
        assert found("HMC", task_layouts.hmc(tmp_path)) == [("recordings/SN001.edf", "SN001", None, None)]

    def test_tusl_and_tueg(self, tmp_path):
        files = found("TUSL", task_layouts.tusl(tmp_path / "tusl"))
        assert [subject for _, subject, _, _ in files] == (
            4 * ["aaaaaaju"] + 3 * ["aaaaalmg"] + 2 * ["aaaaalnv"] + ["aaaaamoa"]
        )
        files = found("TUEG", task_layouts.tueg(tmp_path / "tueg"))
        assert [subject for _, subject, _, _ in files] == ["aaaaaaaa", "aaaaaaab"]

    def test_eegmmidb_s_runs_of_imagery(self, tmp_path):
        task_layouts.eegmmidb(tmp_path)
        with pytest.warns(
            UserWarning, match=r"1 recordings left out, not laid out as SnnnRmm\.edf.*S001/S001R03\.edf"
        ):
            files = found("EEGMMIDB", tmp_path)
        assert files == [("S001/S001R04.edf", "S001", None, "04"), ("S001/S001R06.edf", "S001", None, "06")]

    @pytest.mark.parametrize(
        ("task", "key"),
        [
            ("TUAB", "edf/train/normal/01_tcp_ar/aaaaaaaa_s001_t000.EDF"),
            ("TUEV", "edf/train/aaaaaaaa/aaaaaaaa_00000001.EDF"),
            ("TUSL", "aaaaaaju_s000_t000.EDF"),
            ("TUEG", "aaaaaaju_s000_t000.EDF"),
            ("HMC", "SN001.EDF"),
            ("EEGMMIDB", "S001/S001R04.EDF"),
            ("SEED", "1_1.CNT"),
            ("Workload", "Subject00_1.EDF"),
        ],
    )
    def test_suffixes_in_capitals(self, tmp_path, task, key):
        assert [name for name, *_ in found(task, touch(tmp_path, key))] == [key]

    @needs_recordings
    def test_real_folders(self, tmp_path):
        assert len(found("Workload", RECORDINGS / "eegmat")) == 32
        assert [label for *_, label in found("EEGMMIDB", RECORDINGS / "eegmmidb_S001")] == [
            *("04", "06", "08", "10", "12", "14")
        ]
        tiny = find_recordings(user_task(tmp_path, task_layouts.BIDS_TASK), RECORDINGS / "mne_bids_tiny")
        assert [(one.path.name, one.subject) for one in tiny] == [("sub-01_ses-eeg_task-rest_eeg.vhdr", "01")]


class TestCorpus:
    def test_every_format_in_any_folder(self, tmp_path):
        touch(
            tmp_path,
            "a/1.EDF",
            "a/2.vhdr",
            "a/2.eeg",
            "a/2.vmrk",
            "b/deep/3.set",
            "b/deep/3.fdt",
            "4.fif.gz",
            "4-1.fif.gz",
        )
        touch(
            tmp_path,
            "c/5.mff/signal1.bin",
            "c/5.mff/inner.edf",
            "c/nihon.EEG",
            "d-2.fif",
            "notes.txt",
            ".trash/6.edf",
            "._7.edf",
        )
        assert [(key, subject) for key, subject, _, _ in found("Corpus", tmp_path)] == [
            ("4.fif.gz", "4"),
            ("a/1.EDF", "a"),
            ("a/2.vhdr", "a"),
            ("b/deep/3.set", "b"),
            ("c/5.mff", "c"),
            ("c/nihon.EEG", "c"),
            ("d-2.fif", "d-2"),
        ]

    def test_a_bids_dataset_without_its_copies(self, tmp_path):
        touch(tmp_path, "dataset_description.json", "sub-01/eeg/sub-01_task-x_eeg.edf")
        touch(tmp_path, "derivatives/clean/sub-01/eeg/sub-01_task-x_eeg.edf", "sourcedata/sub-01.bdf")
        assert [key for key, *_ in found("Corpus", tmp_path)] == ["sub-01/eeg/sub-01_task-x_eeg.edf"]
        (tmp_path / "dataset_description.json").unlink()
        assert len(found("Corpus", tmp_path)) == 3

    def test_data_files_that_a_header_of_another_name_names(self, tmp_path):
        touch(tmp_path, "a/raw0001.EEG", "a/nihon.eeg", "b/raw0001.eeg")
        header = "Brain Vision Data Exchange Header File Version 1.0\r\n; Müller\r\nDataFile=raw0001.EEG\r\n"
        (tmp_path / "a" / "rec.vhdr").write_bytes(header.encode("latin-1"))
        assert [key for key, *_ in found("Corpus", tmp_path)] == ["a/nihon.eeg", "a/rec.vhdr", "b/raw0001.eeg"]

    def test_linked_folders_are_walked_once_and_never_in_circles(self, tmp_path):
        touch(tmp_path, "in/b/1.edf", "away/x/2.edf", "away/y/3.edf")
        for link, target in (
            ("in/x", "away/x"),
            ("in/x again", "away/x"),
            ("in/again", "in/b"),
            ("in/b/circle", "in"),
            ("away/x/y", "away/y"),
            ("away/y/x", "away/x"),
        ):
            (tmp_path / link).symlink_to(tmp_path / target, target_is_directory=True)
        assert [key for key, *_ in found("Corpus", tmp_path / "in")] == ["b/1.edf", "x/2.edf", "x/y/3.edf"]

    @pytest.mark.parametrize(
        ("key", "subject", "guessed_from"),
        [
            ("sub-01/ses-a/eeg/sub-01_ses-a_eeg.edf", "01", None),
            ("study/sub-7_eeg.vhdr", "7", None),
            ("anna/monday/rest.edf", "rest", "file"),
            ("edf/000/aaaaaaaq/s001_2015/01_tcp_ar/aaaaaaaq_s001_t000.edf", "aaaaaaaq", None),
            ("edf/xaaaaaaaq_s001_t000.edf", "xaaaaaaaq_s001_t000", "file"),
            ("anna.fif.gz", "anna", "file"),
            ("pre_sub-x.edf", "x", None),
            ("notsub-1/a.edf", "a", "file"),
        ],
    )
    def test_whose_a_recording_is(self, tmp_path, key, subject, guessed_from):
        (one,) = find_recordings(load_task("Corpus"), touch(tmp_path, key))
        assert (one.subject, one.guessed_from) == (subject, guessed_from)

    def test_folders_that_all_share_are_no_subject(self, tmp_path):
        touch(tmp_path, "edf/eeg/anna/monday/1.edf", "edf/eeg/anna/2.edf", "edf/eeg/anne/1.edf", "edf/eeg/bo.edf")
        assert [one.subject for one in find_recordings(load_task("Corpus"), tmp_path)] == [
            "anna",
            "anna",
            "anne",
            "bo",
        ]
        assert subject_of("edf/eeg/anna/monday/1.edf", 2) == ("anna", "folder")
        assert subject_of("edf/eeg/bo.edf", 2) == ("bo", "file")

    def test_a_pattern_is_no_guess(self, tmp_path):
        (one,) = find_recordings(load_task("Workload"), touch(tmp_path, "Subject00_1.edf"))
        assert (one.subject, one.guessed_from) == ("Subject00", None)


class TestRefusals:
    def test_nothing_to_find(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="absent is not a folder"):
            found("Workload", tmp_path / "absent")
        with pytest.raises(FileNotFoundError, match=r"no recording of task Workload: it holds no recording"):
            found("Workload", tmp_path)
        touch(tmp_path, "night.edf")
        with pytest.raises(
            FileNotFoundError, match=r"are night\.edf\. They must be laid out as SubjectNN_1\.edf \(rest\)"
        ):
            found("Workload", tmp_path)

    def test_strangers_are_left_out_with_a_warning(self, tmp_path):
        touch(
            tmp_path, "Subject00_1.edf", "Subject00_2.EDF", "Subject00_3.edf", "a.edf", "b.edf", "c.edf", "notes.txt"
        )
        with pytest.warns(
            UserWarning, match=r"4 recordings left out.*: Subject00_3\.edf, a\.edf, b\.edf and 1 more\.$"
        ):
            assert len(found("Workload", tmp_path)) == 2


class TestTables:
    def test_recordings_are_those_it_names(self, tmp_path):
        touch(task_layouts.table(tmp_path), "zoe/unlabelled.edf")
        ann, ben = find_recordings(user_task(tmp_path, task_layouts.TABLE_TASK), tmp_path)
        assert (ann.key, ann.subject, ann.path) == ("ann/monday.edf", "ann", tmp_path / "ann" / "monday.edf")
        assert [(row.start, row.end, row.label) for row in ann.rows] == [(3, 14, "awake"), (20, 24.5, "asleep")]
        assert [(row.start, row.end, row.label) for row in ben.rows] == [(None, None, "awake"), (1, 9, "?")]

    def test_its_own_subjects_and_splits(self, tmp_path):
        touch(tmp_path, "1.edf", "2.edf", "three.edf")
        rows = "test,Ann,awake,4,0,./1.edf\n,,awake,9,5,1.edf\ntrain,Ben,awake,,,2.edf\ntrain,,awake,,,three.edf\n"
        text = "\ufeffsplit,subject,label,end,start,file\n" + rows
        (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
        one, two, three = find_recordings(user_task(tmp_path, task_layouts.TABLE_TASK), tmp_path)
        assert (one.key, one.subject, [row.split for row in one.rows]) == ("1.edf", "Ann", ["test", None])
        assert (two.key, two.subject, [row.split for row in two.rows]) == ("2.edf", "Ben", ["train"])
        assert (three.subject, [x.guessed_from for x in (one, two, three)]) == ("three", [None, None, "file"])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("file,start,label\n", r"labels\.csv, line 1: no column end\. Its header must be file,start,end,label"),
            ("file,start,end,label\n", r"labels\.csv has no rows"),
            ("file,start,end,label,end\n", r"labels\.csv, line 1: column end stands there more than once"),
            (
                "file,start,end,label\na.edf,1,2,x\na.edf,one,2,x\n",
                "line 3: start must be a number of seconds, got 'one'",
            ),
            ("file,start,end,label\na.edf,1,nan,x\n", "line 2: end must be a number of seconds, got 'nan'"),
            ("file,start,end,label\na.edf,2,1,x\n", "line 2: an event from 2 to 1 s"),
            ("file,start,end,label\na.edf,,1,x\n", "line 2: give start and end, or neither"),
            ("file,start,end,label\na.edf,0,1,\n", "line 2: a row must have a file, a start, an end and a label"),
            ("file,start,end,label\na.edf,0,1,x,y\n", "line 2: a row must have .* no more than the header"),
            ("file,start,end,label,split\na.edf,0,1,x,dev\n", "line 2: split must be train, .* got 'dev'"),
            (
                "file,start,end,label,subject\na.edf,0,1,x,A\na.edf,1,2,x,B\n",
                r"line 3: a\.edf has several subjects: A, B",
            ),
            (
                "file;start;end;label\na.edf;0;1;x\n",
                r"line 1: no column file, start, .* with commas between them, not ';'\.",
            ),
            ("file,start,end,label\n/data/a.edf,0,1,x\n", r"line 2: the file /data/a\.edf does not lie under"),
            (
                "file,start,end,label\na.edf,0,1,x\nb/../../a.edf,0,1,x\n",
                r"labels\.csv, line 3: the file b/\.\./\.\./a\.edf does not lie under the input folder",
            ),
            (
                "file,start,end,label\na.edf,0,1,x\nd.edf,0,1,x\nc.edf,0,1,x\nb/e.edf,0,1,x\n",
                r"labels\.csv, line 3: \S*/d\.edf is not there, nor are others .* names: c\.edf, b/e\.edf\. Correct",
            ),
            ("file,start,end,label\na.edf,0,1,x\nd.edf,0,1,x\n", r"line 3: \S*/d\.edf is not there\. Correct the"),
        ],
    )
    def test_malformed(self, tmp_path, text, message):
        touch(tmp_path, "a.edf")
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            find_recordings(user_task(tmp_path, task_layouts.TABLE_TASK), tmp_path)

    def test_other_encodings(self, tmp_path):
        (tmp_path / "labels.csv").write_bytes("file,start,end,label\nzoë.edf,0,1,x\n".encode("cp1252"))
        with pytest.raises(ValueError, match=r"labels\.csv is not UTF-8 \(byte 23\): save it as UTF-8"):
            read_table(tmp_path / "labels.csv")

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"absent\.csv is not there: the table"):
            read_table(tmp_path / "absent.csv")

    def test_unknown_subjects(self, tmp_path):
        touch(tmp_path, "x/a.edf")
        (tmp_path / "labels.csv").write_text("file,start,end,label\nx/a.edf,0,1,x\n")
        task = user_task(tmp_path, task_layouts.TABLE_TASK | {"recordings": task_layouts.BIDS_TASK["recordings"]})
        with pytest.raises(ValueError, match=r"line 2: the subject of x/a\.edf is unknown\. Add a column subject"):
            find_recordings(task, tmp_path)


def test_times():
    assert read_times("0.5", "2", "f") == (0.5, 2.0)
    assert read_times("0.5", "2", "f", duration=True) == (0.5, 2.5)
    with pytest.raises(ValueError, match="f: duration must be a number of seconds, got ''"):
        read_times("0", "", "f", duration=True)
    with pytest.raises(ValueError, match="f: an event from -1 to 2 s"):
        read_times("-1", "2", "f")
