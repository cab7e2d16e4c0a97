"""The reference's prepared files, written here as its scripts write them, come out as prepared rows."""

import json
import math
import os
import pickle
import shutil
from pathlib import Path

import joblib
import numpy as np
import pytest
from datasets import load_dataset

from neurolm_hf import EEGFeatureExtractor
from neurolm_hf.leakage import find_leaks, read_prepared_set
from neurolm_hf.reference_pickles import REFUSED, ZEROS, find_reference_recordings, import_pickles
from neurolm_hf.storage import load_prepared, row_signal
from neurolm_hf.tasks import load_task
from scripts.import_pickles import main


TUH = load_task("TUAB").channels


def eeg(channels, seconds, seed=0):
    """Microvolts, as the reference keeps them: float64."""
    return np.random.default_rng(seed).normal(0, 20, (channels, seconds * 200))


def dump(path, **content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))


def rows_of(folder, split):
    return list(load_prepared(folder, split))


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def workload(tmp_path):
    """Three recordings of two windows, in the three parts."""
    channels = load_task("Workload").channels
    for number, (part, name) in enumerate(
        [("train", "Subject00_1"), ("eval", "Subject01_2"), ("test", "Subject02_1")]
    ):
        for index in range(2):
            label = int(name[-1]) - 1
            window = eeg(19, 4, seed=10 * number + index)
            dump(tmp_path / "in" / part / f"{name}-{index}.pkl", X=window, ch_names=list(channels), y=label)
    return tmp_path / "in"


def test_workload(workload, tmp_path):
    summary = import_pickles(load_task("Workload"), workload, tmp_path / "out")
    assert summary.windows == {"train": 2, "validation": 2, "test": 2}
    assert summary.subjects == {"train": 1, "validation": 1, "test": 1}
    assert summary.hours["train"] == pytest.approx(8 / 3600)
    assert summary.failed == []
    first, second = rows_of(tmp_path / "out", "validation")
    np.testing.assert_allclose(row_signal(second), eeg(19, 4, seed=11) / 100, rtol=1e-3, atol=1e-6)
    assert list(second["channels"]) == list(load_task("Workload").channels)
    assert (second["subject"], second["recording"]) == ("Subject01", "eval/Subject01_2")
    assert (second["label"], second["answer"], second["unit"]) == (1, "Yes", "100uV")
    assert (second["recipe_id"], second["sampling_rate"]) == (EEGFeatureExtractor().recipe_id, 200)
    assert math.isnan(second["start"])
    assert first["question"] == load_task("Workload").question
    assert len(load_dataset(str(tmp_path / "out"))["test"]) == 2


def test_channels_come_in_the_order_of_the_task(tmp_path):
    channels = list(load_task("HMC").channels)
    window = eeg(4, 30)
    dump(tmp_path / "in" / "train" / "SN001-0.pkl", X=window[::-1], ch_names=channels[::-1], y=np.array([4.0]))
    dump(tmp_path / "in" / "train" / "SN001-1.pkl", X=np.zeros((4, 6000)), ch_names=channels, y=np.array([0.0]))
    summary = import_pickles(load_task("HMC"), tmp_path / "in", tmp_path / "out")
    (row,) = rows_of(tmp_path / "out", "train")
    np.testing.assert_allclose(row_signal(row), window / 100, rtol=1e-3, atol=1e-6)
    assert (row["answer"], row["subject"], list(row["channels"])) == ("(E)", "SN001", channels)
    # the maker's room for more epochs than there are
    assert summary.files[0]["left_out"] == [{"reason": ZEROS, "windows": 1}]


def test_tuab(tmp_path):
    for index in (0, 1, 10):
        dump(tmp_path / "in" / "val" / f"aaaaabdo_s003_t000_{index}.pkl", X=eeg(23, 10, index), y=1)
    import_pickles(load_task("TUAB"), tmp_path / "in", tmp_path / "out")
    rows = rows_of(tmp_path / "out", "validation")
    assert [row["start"] for row in rows] == [0, 10, 100]  # windows follow one another, and 10 comes after 1
    assert {(row["subject"], row["recording"], row["answer"]) for row in rows} == {
        ("aaaaabdo", "val/aaaaabdo_s003_t000", "Yes")
    }
    assert tuple(rows[0]["channels"]) == TUH


def test_tuev(tmp_path):
    parts = {
        "processed_train/aaaaaaar_00000001-3": ("train", "aaaaaaar", 1, "(A)"),
        "processed_eval/aaaaaabc_00000001-0": ("validation", "aaaaaabc", 4, "(D)"),
        "processed_test/bckg_000_a_-12": ("test", "000", 6, "(F)"),
    }
    for name, (_, _, label, _) in parts.items():
        others = {"offending_channel": np.array([3.0]), "label": np.array([float(label)])}
        dump(tmp_path / "in" / f"{name}.pkl", signal=eeg(23, 5), **others)
    import_pickles(load_task("TUEV"), tmp_path / "in", tmp_path / "out")
    for split, subject, _, answer in parts.values():
        (row,) = rows_of(tmp_path / "out", split)
        assert (row["subject"], row["answer"]) == (subject, answer)


def test_the_first_stage_of_tuev_is_refused(tmp_path):
    for part in ("processed_train", "processed_eval"):
        dump(tmp_path / part / "aaaaaaar_00000001-3.pkl", signal=eeg(23, 5), label=np.array([1.0]))
    with pytest.raises(ValueError, match=r"whose processed_eval is the test part\. Give the folder"):
        find_reference_recordings(load_task("TUEV"), tmp_path)


def test_tusl_notch_and_note(tmp_path):
    dump(tmp_path / "in" / "test" / "aaaaaaju_s001_t000-0.pkl", X=eeg(23, 10), ch_names=list(TUH), y=np.array([2.0]))
    summary = import_pickles(load_task("TUSL"), tmp_path / "in", tmp_path / "out")
    (row,) = rows_of(tmp_path / "out", "test")
    assert row["answer"] == "(C)"
    assert row["recipe_id"] == EEGFeatureExtractor(notch_frequency=60).recipe_id
    assert "The published split of TUSL is not by subject." in summary.notes


def test_pretraining(tmp_path):
    names = ["FP1", "FP2", "CZ"]
    for index in range(2):
        dump(tmp_path / "in" / "anywhere" / f"aaaaaaaa_s001_t000_{index}.pkl", X=eeg(3, 40, index), ch_names=names)
    import_pickles(load_task("TUEG"), tmp_path / "in", tmp_path / "out")
    first, second = rows_of(tmp_path / "out", "train")
    assert (first["start"], second["start"], second["label"], second["answer"]) == (0, 40, -1, None)
    assert list(second["channels"]) == names
    assert row_signal(second).shape == (3, 8000)
    with pytest.raises(ValueError, match=r"task Corpus has no notch_hz.*TUEG"):
        import_pickles(load_task("Corpus"), tmp_path / "in", tmp_path / "other")


def test_seed(tmp_path):
    h5py = pytest.importorskip("h5py")
    task = load_task("SEED")
    names = ["FP1", "FPZ"]
    starts = [0, 10, *range(20, 150, 10)]
    ends = [8, 14, *(start + 4 for start in starts[2:])]  # 9, 5, 5 ... seconds, the last one included
    samples = eeg(2, 160)
    with h5py.File(tmp_path / "seed-3.hdf5", "w") as file:
        group = file.create_group("1_2")
        data = group.create_dataset("eeg", data=samples, chunks=(2, 200))
        group.attrs["trialStart"], group.attrs["trialEnd"], group.attrs["label"] = starts, ends, ["H", "N", "S"] * 5
        data.attrs["rsFreq"], data.attrs["chOrder"] = 200, names
    summary = import_pickles(task, tmp_path / "seed-3.hdf5", tmp_path / "out")
    # two windows in the first trial, one in each other; trials 1-9, 10-12, 13-15
    assert summary.windows == {"train": 10, "validation": 3, "test": 3}
    rows = rows_of(tmp_path / "out", "train")
    assert [row["start"] for row in rows[:4]] == [0, 4, 10, 20]
    assert [row["answer"] for row in rows[:4]] == ["Positive", "Positive", "Neutral", "Negative"]
    assert {(row["subject"], row["recording"]) for row in rows} == {("1", "seed-3/1_2")}
    np.testing.assert_allclose(row_signal(rows[2]), samples[:, 2000:2800] / 100, rtol=1e-3, atol=1e-6)
    leaks = find_leaks([read_prepared_set(tmp_path / "out")])
    assert {leak.grade for leak in leaks} == {"declared"}


class Attack:
    def __reduce__(self):
        return os.system, ("touch RAN",)


def test_a_bad_pickle_stops_nothing_and_is_named(workload, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    channels = list(load_task("Workload").channels)
    good = (workload / "train" / "Subject00_1-0.pkl").read_bytes()
    bad = {
        "2": (pickle.dumps({"X": Attack()}), "asks for posix.system"),
        "3": (good[:-100], "is not read"),
        "4": (pickle.dumps({"X": eeg(19, 3), "ch_names": channels, "y": 0}), "has 600 samples"),
        "5": (pickle.dumps({"X": eeg(19, 4), "ch_names": channels, "y": 2}), "has the label 2; the classes"),
        "6": (pickle.dumps({"X": eeg(18, 4), "ch_names": channels, "y": 0}), "18 rows of signal do not fit"),
        "7": (pickle.dumps({"X": eeg(19, 4) * 1e-6, "ch_names": channels, "y": 0}), "not microvolts, maybe volts"),
        "8": (pickle.dumps({"X": eeg(19, 4) * np.nan, "ch_names": channels, "y": 0}), "not finite"),
        "9": (pickle.dumps({"X": eeg(19, 4) * 1e9, "ch_names": channels, "y": 0}), "65504"),
        "10": (pickle.dumps({"ch_names": channels, "y": 0}), "has no signal"),
        "11": (pickle.dumps({"X": eeg(19, 4), "ch_names": ["CHEESE", *channels[1:]], "y": 0}), "do not fit"),
        "12": (pickle.dumps({"X": eeg(19, 4), "ch_names": ["FPZ", *channels[1:]], "y": 0}), "has others"),
        "13": (pickle.dumps({"X": eeg(19, 4), "ch_names": channels}), "has the label None"),
        "14": (pickle.dumps({"X": eeg(19, 4), "ch_names": 19, "y": 0}), "TypeError"),
        "15": (pickle.dumps({"X": eeg(19, 4), "ch_names": channels, "y": [[0], [0]]}), "a list inside is refused"),
    }
    for index, (content, _) in bad.items():
        (workload / "train" / f"Subject00_1-{index}.pkl").write_bytes(content)
    dump(workload / "test" / "Subject09_1-0.pkl", X=Attack())
    summary = import_pickles(load_task("Workload"), workload, tmp_path / "out")
    assert summary.windows == {"train": 2, "validation": 2, "test": 2}
    entries = {entry["recording"]: entry for entry in summary.files}
    mixed = entries["train/Subject00_1"]
    assert mixed["left_out"] == [{"reason": REFUSED, "windows": len(bad)}]
    for (index, (_, reason)), warning in zip(bad.items(), mixed["warnings"], strict=True):
        assert reason in warning
        assert warning.startswith(f"Subject00_1-{index}.pkl") or index == "9"
    assert mixed["error"] is None
    (failed,) = summary.failed
    assert failed["recording"] == "test/Subject09_1"
    assert "Subject09_1-0.pkl is not read: it asks for posix.system" in failed["error"]
    assert not list(tmp_path.rglob("RAN"))
    assert str(tmp_path) not in (tmp_path / "out" / "summary.json").read_text()


def test_started_again_it_goes_on_with_the_same_bytes(workload, tmp_path, monkeypatch):
    import neurolm_hf.reference_pickles as reference_pickles

    task = load_task("Workload")
    import_pickles(task, workload, tmp_path / "whole")
    read, opened = reference_pickles.read_pickle, []

    def killed_after_three(path):
        opened.append(Path(path).name)
        if len(opened) > 3:
            raise KeyboardInterrupt
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(reference_pickles, "read_pickle", killed_after_three)
        with pytest.raises(KeyboardInterrupt):
            import_pickles(task, workload, tmp_path / "resumed")
    assert not list((tmp_path / "resumed").rglob("*.part"))
    import_pickles(task, workload, tmp_path / "resumed")
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")

    shutil.copytree(workload, tmp_path / "elsewhere")
    with joblib.parallel_config(backend="threading", n_jobs=2):
        import_pickles(task, tmp_path / "elsewhere", tmp_path / "moved")
    assert files_of(tmp_path / "moved") == files_of(tmp_path / "whole")


def test_a_changed_pickle_is_imported_again(workload, tmp_path):
    task, channels = load_task("Workload"), list(load_task("Workload").channels)
    before = import_pickles(task, workload, tmp_path / "out")
    dump(workload / "eval" / "Subject01_2-0.pkl", X=eeg(19, 4, seed=99), ch_names=channels, y=1)
    after = import_pickles(task, workload, tmp_path / "out")
    assert after.fingerprint != before.fingerprint
    row, _ = rows_of(tmp_path / "out", "validation")
    np.testing.assert_allclose(row_signal(row), eeg(19, 4, seed=99) / 100, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("content", ["", '{"sha256": ', "[]", "{}"])
def test_a_damaged_report_counts_as_not_done(workload, tmp_path, content):
    task = load_task("Workload")
    import_pickles(task, workload, tmp_path / "out")
    whole = files_of(tmp_path / "out")
    next((tmp_path / "out" / "reports").glob("*.json")).write_text(content)
    import_pickles(task, workload, tmp_path / "out")
    assert files_of(tmp_path / "out") == whole


def test_a_pickle_that_cannot_be_opened_is_the_error_of_its_recording(workload, tmp_path):
    task = load_task("Workload")
    before = import_pickles(task, workload, tmp_path / "whole")
    (workload / "train" / "Subject07_1-0.pkl").mkdir()
    (workload / "eval" / "Subject08_1-0.pkl").symlink_to(tmp_path / "gone")
    away = workload / "test" / "Subject02_1-1.pkl"
    content = away.read_bytes()
    away.unlink()
    away.symlink_to(tmp_path / "later")
    summary = import_pickles(task, workload, tmp_path / "out")
    assert [(entry["recording"], entry["error"]) for entry in summary.failed] == [
        ("eval/Subject08_1", "[Errno 2] No such file or directory: 'Subject08_1-0.pkl'"),
        ("test/Subject02_1", "[Errno 2] No such file or directory: 'Subject02_1-1.pkl'"),
        ("train/Subject07_1", "[Errno 21] Is a directory: 'Subject07_1-0.pkl'"),
    ]
    assert summary.windows == {"train": 2, "validation": 2}
    (tmp_path / "later").write_bytes(content)
    (workload / "train" / "Subject07_1-0.pkl").rmdir()
    (workload / "eval" / "Subject08_1-0.pkl").unlink()
    after = import_pickles(task, workload, tmp_path / "out")
    assert (after.failed, after.fingerprint) == ([], before.fingerprint)


def test_a_damaged_hdf5_file_is_named(tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / "seed-3.hdf5").write_text("no")
    with pytest.raises(OSError, match=r"seed-3.hdf5 cannot be opened as HDF5: .*Get the file again"):
        import_pickles(load_task("SEED"), tmp_path / "seed-3.hdf5", tmp_path / "out")


def test_a_session_without_samples_is_its_own_error(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "seed-3.hdf5", "w") as file:
        file.create_group("1_2")
        file.create_dataset("2_1", data=[1.0])
    summary = import_pickles(load_task("SEED"), tmp_path / "seed-3.hdf5", tmp_path / "out")
    assert [entry["recording"] for entry in summary.failed] == ["seed-3/1_2", "seed-3/2_1"]
    assert "eeg" in summary.failed[0]["error"]


def test_folders_that_are_none(tmp_path, workload):
    with pytest.raises(FileNotFoundError, match=r"nothing is not there\. Give the folder"):
        import_pickles(load_task("Workload"), tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no \.pkl file"):
        import_pickles(load_task("Workload"), tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match=r"holds no \.hdf5 file"):
        import_pickles(load_task("SEED"), workload, tmp_path / "out")
    shutil.move(workload / "eval", workload / "strange")
    with pytest.raises(ValueError, match=r"strange holds pickles, but is no part of a set"):
        import_pickles(load_task("Workload"), workload, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_script(workload, tmp_path, monkeypatch, capsys):
    import scripts.import_pickles as script

    options = ["--task", "Workload", "--input", str(workload), "--output", str(tmp_path / "out")]

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        return stopped.value.code

    assert run(*options) == 0
    assert "3 recordings, 0 failed" in capsys.readouterr().out
    (workload / "test" / "Subject02_1-1.pkl").write_bytes(b"damaged")
    assert run(*options) == 1
    assert "left out: Subject02_1-1.pkl is not read" in capsys.readouterr().err
    assert run("--task", "Workload") == 2
    capsys.readouterr()
    assert run("--task", "Nap", *options[2:]) == 2
    assert "There is no task 'Nap'" in capsys.readouterr().err
    assert run(*options[:2], "--input", str(tmp_path / "no"), *options[4:]) == 2
    assert "no is not there" in capsys.readouterr().err
    (workload / "test" / "Subject02_1-1.pkl").unlink()
    (workload / "test" / "Subject02_1-1.pkl").mkdir()
    assert run(*options) == 1
    assert "failed: test/Subject02_1: [Errno 21] Is a directory" in capsys.readouterr().out

    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "import_pickles", interrupted)
    assert run(*options) == 130
    assert capsys.readouterr().err == "Stopped. Start the same command again to go on.\n"
    settings = json.loads((tmp_path / "out" / "preparation.json").read_text())
    assert settings["task"] == "Workload"
    assert settings["recipe"]["notch_frequency"] == 50
