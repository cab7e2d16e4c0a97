import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pybv
import pytest
import task_layouts
from datasets.distributed import split_dataset_by_node
from joblib import parallel_config, register_parallel_backend
from joblib.parallel import ThreadingBackend
from recording_files import RECORDINGS, make_eeg, needs_recordings, write_edf

from neurolm_hf import preparation, storage
from neurolm_hf.preparation import prepare_dataset
from neurolm_hf.prepared_set import Summary, shard_name
from neurolm_hf.processing_neurolm import EEGFeatureExtractor
from neurolm_hf.storage import load_prepared, row_signal
from neurolm_hf.task_sections import TableLabels
from neurolm_hf.tasks import Task, load_task


SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "prepare_data.py"
WORKLOAD = load_task("Workload")
CORPUS = load_task("Corpus")
EXTRACTOR = EEGFeatureExtractor()
SUBJECTS = 4


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four subjects in the layout of the Workload task, 8 s each: 3 windows of 4 s, from 0, 2 and 4 s on."""
    folder = tmp_path_factory.mktemp("recordings")
    for subject in range(SUBJECTS):
        for condition in (1, 2):
            name = f"Subject0{subject}_{condition}.edf"
            write_edf(folder / name, [f"EEG {one}" for one in WORKLOAD.channels], 8, 200, scale=1 + subject / 10)
    return folder


def prepare(folder: Path, output: Path, **changes: Any) -> Summary:
    given = {"feature_extractor": EXTRACTOR, "split_rule": "subject", "workers": 1, **changes}
    return prepare_dataset(given.pop("task", WORKLOAD), folder, output, **given)


@pytest.fixture(scope="module")
def clean(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one undisturbed run makes."""
    output = tmp_path_factory.mktemp("clean") / "set"
    prepare(recordings, output)
    return output


def whole(path: Path, task: Task = WORKLOAD) -> np.ndarray:
    """The whole recording after the recipe, the task's channels in its order."""
    with pytest.warns(UserWarning, match="shorter than"):
        (prepared,) = EXTRACTOR.prepare(path, unknown_channels=task.unknown_channels)
    return prepared.pick(list(task.channels)).values


def contents(output: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    files = [path for path in sorted(output.rglob("*")) if path.is_file()]
    return {path.relative_to(output).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def run_script(*arguments: Any, **popen: Any) -> subprocess.Popen:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **popen)


def test_a_set_is_complete(recordings: Path, clean: Path) -> None:
    summary = json.loads((clean / "summary.json").read_text())
    assert [entry["recording"] for entry in summary["files"]] == sorted(path.name for path in recordings.iterdir())
    assert summary["windows"] == {"train": 12, "validation": 6, "test": 6}
    assert summary["subjects"] == {"train": 2, "validation": 1, "test": 1}
    assert summary["hours"]["train"] == pytest.approx(12 * 4 / 3600)
    entry = summary["files"][0]
    file = recordings / "Subject00_1.edf"
    assert entry["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (entry["bytes"], entry["hours"], entry["error"]) == (file.stat().st_size, pytest.approx(8 / 3600), None)
    assert "shorter than" in " ".join(entry["warnings"])
    written = {path.name for path in clean.iterdir()}
    assert written == {"README.md", "data", "preparation.json", "reports", "summary.json"}
    assert len(contents(clean)) == 3 + 2 * 2 * SUBJECTS


def test_rows_hold_the_windows_of_the_whole_recording(recordings: Path, clean: Path) -> None:
    rows = [row for row in load_prepared(clean) if row["recording"] == "Subject02_2.edf"]
    values = whole(recordings / "Subject02_2.edf")
    assert [row["start"] for row in rows] == [0.0, 2.0, 4.0]
    for row in rows:
        start = round(row["start"] * 200)
        expected = values[:, start : start + 800]
        np.testing.assert_allclose(row_signal(row), expected, rtol=2**-11, atol=2**-25)
        assert tuple(row["channels"]) == WORKLOAD.channels
        assert (row["subject"], row["label"], row["answer"]) == ("Subject02", 1, "Yes")
        assert (row["question"], row["unit"], row["sampling_rate"]) == (WORKLOAD.question, "100uV", 200.0)
        assert row["recipe_id"] == EXTRACTOR.recipe_id


def test_nothing_tells_where_or_when(recordings: Path, clean: Path, tmp_path: Path) -> None:
    shutil.copytree(recordings, tmp_path / "elsewhere")
    prepare(tmp_path / "elsewhere", tmp_path / "set")
    assert contents(tmp_path / "set") == contents(clean)


class PoolOfThreads(ThreadingBackend):
    """Gives its results at the end only, as Ray's backend does."""

    supports_return_generator = False


@pytest.mark.parametrize("backend", ["threading", "pool"])
def test_parallel_equals_serial(recordings: Path, clean: Path, tmp_path: Path, backend: str, capfd: Any) -> None:
    register_parallel_backend("pool", PoolOfThreads)
    with parallel_config(backend, n_jobs=2):
        prepare(recordings, tmp_path / "set", workers=None)
    assert contents(tmp_path / "set") == contents(clean)
    assert "warn" not in capfd.readouterr().err.lower()


def test_parts_run_apart_equal_the_whole(recordings: Path, clean: Path, tmp_path: Path) -> None:
    first = prepare(recordings, tmp_path / "set", shard=(1, 2))
    assert len(first.files) == SUBJECTS
    assert "4 of 8 recordings are not prepared yet, Subject00_1.edf among them" in first.notes
    assert not (tmp_path / "set" / "README.md").exists()
    assert first.missing == [f"Subject0{number}_1.edf" for number in range(SUBJECTS)]
    with pytest.raises(ValueError, match="4 of 8 recordings are not prepared yet"):
        load_prepared(tmp_path / "set")
    assert prepare(recordings, tmp_path / "set", shard=(0, 2)).notes == []
    assert contents(tmp_path / "set") == contents(clean)
    with pytest.raises(ValueError, match="got 2/2"):
        prepare(recordings, tmp_path / "set", shard=(2, 2))


def test_interrupted_at_every_step_and_resumed(
    recordings: Path, clean: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Stopped before its n-th file gets its name, as SIGKILL would: nothing is tidied up."""
    for steps in range(6):
        left = [steps]

        def publish(temporary: Path, path: Path, left: list[int] = left) -> None:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            os.replace(temporary, path)

        with monkeypatch.context() as patch:
            patch.setattr(storage, "publish", publish)
            patch.setattr(storage.ShardWriter, "discard", lambda _: None)
            with pytest.raises(KeyboardInterrupt):
                prepare(recordings, tmp_path / "set")
    left_over = [name for name in contents(tmp_path / "set") if name.endswith(".part")]
    assert left_over
    assert 0 < len(list((tmp_path / "set" / "reports").glob("[!.]*"))) < 8
    prepare(recordings, tmp_path / "set")
    assert contents(tmp_path / "set") == contents(clean)


def test_only_what_changed_is_done_again(recordings: Path, clean: Path, tmp_path: Path) -> None:
    shutil.copytree(recordings, tmp_path / "in")
    output = tmp_path / "set"
    prepare(tmp_path / "in", output)
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*.parquet")}
    shard_of = {
        name: next(output.rglob(f"{shard_name(f'{name}.edf')}.parquet")) for name in ("Subject01_1", "Subject02_1")
    }
    shard_of["Subject01_1"].write_bytes(b"spoilt")
    write_edf(tmp_path / "in" / "Subject02_1.edf", [f"EEG {one}" for one in WORKLOAD.channels], 8, 200, scale=2)
    prepare(tmp_path / "in", output)
    again = {path for path, moment in before.items() if path.stat().st_mtime_ns != moment}
    assert again == set(shard_of.values())
    unlike = {name for name, digest in contents(output).items() if contents(clean).get(name) != digest}
    assert unlike == {
        shard_of["Subject02_1"].relative_to(output).as_posix(),
        f"reports/{shard_name('Subject02_1.edf')}.json",
        "summary.json",
        "README.md",  # it names the fingerprint
    }


def test_what_belongs_to_no_recording_is_removed(recordings: Path, clean: Path, tmp_path: Path) -> None:
    shutil.copytree(recordings, tmp_path / "in")
    (tmp_path / "in" / "Subject00_3.edf").write_bytes(b"left out with a note")
    summary = prepare(tmp_path / "in", tmp_path / "set")
    assert any("Subject00_3.edf" in note for note in summary.notes)
    (tmp_path / "in" / "Subject00_3.edf").unlink()
    gone = tmp_path / "set" / "reports" / "gone-00000000.json"
    gone.write_text("{}")
    prepare(tmp_path / "in", tmp_path / "set")
    assert contents(tmp_path / "set") == contents(clean)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "other settings (seed: was 0, is 1)"),
        ({"unit": "mV"}, 'unit: was null, is "mV"'),
        ({"feature_extractor": EEGFeatureExtractor(notch_frequency=60)}, "recipe.notch_frequency: was 50.0, is 60.0"),
        (
            {"task": dataclasses.replace(WORKLOAD, unknown_channels="raise")},
            'unknown_channels: was "drop", is "raise"',
        ),
    ],
)
def test_other_settings_are_refused(
    recordings: Path, clean: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    shutil.copytree(clean, tmp_path / "set")
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare(recordings, tmp_path / "set", **changes)
    assert contents(tmp_path / "set") == contents(clean)


def test_the_first_mistake_does_not_lock_the_folder(recordings: Path, clean: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unit 'bananas' is unknown"):
        prepare(recordings, tmp_path / "set", unit="bananas")
    assert not (tmp_path / "set").exists()
    wrong = dataclasses.replace(WORKLOAD, channels=("OZ",))
    assert len(prepare(recordings, tmp_path / "set", task=wrong).failed) == 2 * SUBJECTS
    prepare(recordings, tmp_path / "set")
    assert contents(tmp_path / "set") == contents(clean)


def test_filters_that_a_recording_does_not_allow_are_said(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, rate in (("a.edf", 100), ("b.edf", 200)):
        write_edf(tmp_path / "in" / name, ("EEG Fp1", "EEG Fp2"), 80, rate)
    summary = prepare(tmp_path / "in", tmp_path / "set", task=CORPUS, split_rule=None)
    slow, fast = summary.files
    assert slow["steps_impossible"] == ["low-pass 75 Hz", "notch 50 Hz"]
    assert slow["warnings"][:2] == [
        "low-pass 75 Hz left out: at or above the Nyquist frequency, 50 Hz",
        "notch 50 Hz left out: at or above the Nyquist frequency, 50 Hz, or within 1 Hz of it",
    ]
    assert (fast["steps_impossible"], fast["warnings"]) == ([], [])
    assert "But notch 50 Hz was left out of 1 of 2 recordings" in (tmp_path / "set" / "README.md").read_text()


def test_a_part_without_windows_is_noted(recordings: Path, tmp_path: Path) -> None:
    shutil.copytree(recordings, tmp_path / "in")
    entries = prepare(recordings, tmp_path / "first").files
    for entry in entries:
        if "test" in entry["windows"]:
            (tmp_path / "in" / entry["recording"]).write_bytes(b"damaged")
    summary = prepare(tmp_path / "in", tmp_path / "set")
    assert summary.notes == ["the test part has no windows: of its 2 recordings 2 failed, 0 gave none"]
    folder = task_layouts.tuab(tmp_path / "tuab")
    shutil.rmtree(folder / "edf" / "eval")
    summary = prepare(folder, tmp_path / "tuab_set", task=load_task("TUAB"), split_rule=None)
    assert summary.notes[-1] == "the test part has no windows: no recording belongs to it"


def test_a_folder_with_other_files_is_refused(recordings: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files and no preparation\.json"):
        prepare(recordings, tmp_path)


def test_one_bad_recording_stops_nothing(recordings: Path, clean: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(recordings, tmp_path / "in")
    bad = tmp_path / "in" / "Subject01_2.edf"
    good = bad.read_bytes()
    bad.write_bytes(b"not an EDF file at all")
    real = EEGFeatureExtractor.prepare

    def odd(self: EEGFeatureExtractor, eeg: Any, **options: Any) -> Any:
        if Path(eeg).name == "Subject02_1.edf":
            raise RuntimeError(f"{eeg}: an error that nobody expects")
        return real(self, eeg, **options)

    with monkeypatch.context() as patch:
        patch.setattr(EEGFeatureExtractor, "prepare", odd)
        summary = prepare(tmp_path / "in", tmp_path / "set")
    assert [entry["recording"] for entry in summary.failed] == ["Subject01_2.edf", "Subject02_1.edf"]
    assert summary.failed[1]["error"] == "RuntimeError: Subject02_1.edf: an error that nobody expects"
    assert str(tmp_path) not in summary.failed[0]["error"]
    assert "Subject01_2.edf" in str(summary)
    assert sum(summary.windows.values()) == 18
    bad.write_bytes(good)
    assert prepare(tmp_path / "in", tmp_path / "set").failed == []
    assert contents(tmp_path / "set") == contents(clean)


def test_a_recording_that_fails_half_way_leaves_no_rows(recordings: Path, tmp_path: Path, monkeypatch: Any) -> None:
    real = preparation.read_window

    def read(prepared: Any, start: int, length: int) -> np.ndarray:
        if start == 800 and prepared.report.source.endswith("Subject00_1.edf"):
            raise ValueError(f"{prepared.report.source}: damaged from 4 s on")
        return real(prepared, start, length)

    monkeypatch.setattr(preparation, "read_window", read)
    summary = prepare(recordings, tmp_path / "set")
    (entry,) = summary.failed
    assert (entry["error"], entry["windows"]) == ("Subject00_1.edf: damaged from 4 s on", {})
    assert not list((tmp_path / "set").rglob(f"*{shard_name('Subject00_1.edf')}*.parquet*"))


def test_an_output_that_cannot_be_written_is_no_recording_s_fault(
    recordings: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    def full(self: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.ShardWriter, "commit", full)
    with pytest.raises(OSError, match="No space left"):
        prepare(recordings, tmp_path / "set")
    assert not list((tmp_path / "set").rglob("reports/*.json"))
    assert not list((tmp_path / "set").rglob("*.part"))


@pytest.mark.parametrize(
    ("name", "windows", "shape"),
    [
        ("TUAB", {"train": 16, "validation": 4, "test": 5}, (23, 2000)),
        ("TUEV", {"train": 16, "validation": 4, "test": 1}, (23, 1000)),  # one event goes on past the end
        ("TUEG", {"train": 2}, (23, 8800)),  # recordings against linked ears are left out
    ],
)
def test_original_layouts(tmp_path: Path, name: str, windows: dict, shape: tuple[int, int]) -> None:
    task = load_task(name)
    summary = prepare(
        getattr(task_layouts, name.lower())(tmp_path / "in"), tmp_path / "set", task=task, split_rule=None
    )
    assert (summary.windows, summary.failed) == (windows, [])
    rows = load_prepared(tmp_path / "set")
    assert {row_signal(row).shape for row in rows} == {shape}
    assert all(row["label"] == task.answers.get(row["answer"], -1) for row in rows)
    assert {row["question"] for row in rows} == {task.question}


def test_windows_that_wrap_are_put_together(tmp_path: Path) -> None:
    """TUEV takes 2 s before and after an event, going on at the other end of the recording."""
    folder = task_layouts.tuev(tmp_path / "in")
    prepare(folder, tmp_path / "set", task=load_task("TUEV"), split_rule=None)
    key = "edf/train/aaaaaaaa/aaaaaaaa_00000001.edf"
    rows = [row for row in load_prepared(tmp_path / "set") if row["recording"] == key]
    values = whole(folder / key, load_task("TUEV"))
    assert [row["start"] for row in rows] == pytest.approx([-1.5, -1.5, 8.1, 16.6])
    for row, pieces in (
        (rows[0], (values[:, -300:], values[:, :700])),
        (rows[3], (values[:, 3320:], values[:, :320])),
    ):
        np.testing.assert_allclose(row_signal(row), np.hstack(pieces), rtol=2**-11, atol=2**-25)


def test_a_data_file_that_changes_is_noticed(tmp_path: Path) -> None:
    """Of six recordings with one header."""
    eeg = make_eeg(2, seconds=20)
    for number in range(6):
        folder = tmp_path / "in" / f"s{number}"
        folder.mkdir(parents=True)
        pybv.write_brainvision(
            data=eeg * (1 + number / 10), sfreq=200, ch_names=["Fp1", "Fp2"], fname_base="a", folder_out=folder
        )
    options = {"task": CORPUS, "split_rule": None}
    files = prepare(tmp_path / "in", tmp_path / "set", **options).files
    assert len({hashlib.sha256(file.read_bytes()).hexdigest() for file in tmp_path.rglob("*.vhdr")}) == 1
    assert len({entry["sha256"] for entry in files}) == 6
    data = tmp_path / "in" / "s0" / "a.eeg"
    data.write_bytes(data.read_bytes()[::-1])
    again = prepare(tmp_path / "in", tmp_path / "set", **options).files
    assert [old["sha256"] == new["sha256"] for old, new in zip(files, again, strict=True)] == [False] + 5 * [True]


def test_dropped_channels_are_listed(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    names = ("EEG Fp1-REF", "EEG Fp1-REF", "EEG C3-REF", "EEG X9-REF", "ECG")
    write_edf(tmp_path / "in" / "a.edf", names, 20, 200)
    (entry,) = prepare(tmp_path / "in", tmp_path / "set", task=CORPUS, split_rule=None).files
    assert entry["dropped"] == [
        ["EEG Fp1-REF-0", "unknown name"],
        ["EEG Fp1-REF-1", "unknown name"],
        ["EEG X9-REF", "unknown name"],
        ["ECG", "not EEG by its name"],
    ]
    lost = "2 rows are called 'EEG Fp1-REF', and all were left out, so that channel FP1 is missing"
    assert sum(lost in warning for warning in entry["warnings"]) == 1
    assert "unknown name (1)" in (tmp_path / "set" / "README.md").read_text()


def test_warnings_of_a_recording_that_failed_are_kept(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    file = write_edf(tmp_path / "in" / "a.edf", ("EEG X1", "EEG X2"), 20, 200)
    data = bytearray(file.read_bytes())
    data[236:244] = b"-1      "
    file.write_bytes(data)
    (entry,) = prepare(tmp_path / "in", tmp_path / "set", task=CORPUS, split_rule=None).failed
    (warning,) = [one for one in entry["warnings"] if "never closed" in one]
    assert warning.startswith("a.edf was never closed by its recorder")


def test_a_split_by_a_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lines = ["file,start,end,label,subject,split"]
    for number, part in enumerate(("train", "test")):
        write_edf(tmp_path / "in" / f"{number}.edf", [f"EEG {one}" for one in WORKLOAD.channels], 8, 200)
        lines.append(f"{number}.edf,,,No,s{number},{part}")
    (tmp_path / "in" / "labels.csv").write_text("\n".join(lines))
    windows = dataclasses.replace(WORKLOAD.windows, last_seconds=None)
    task = dataclasses.replace(WORKLOAD, labels=TableLabels("table", "labels.csv"), windows=windows)
    summary = prepare(tmp_path / "in", tmp_path / "set", task=task, split_rule=None)
    assert summary.windows.keys() == {"train", "test"}
    assert json.loads((tmp_path / "set" / "preparation.json").read_text())["split_rule"] == "table"
    assert not [note for note in summary.notes if "has no windows" in note]


def test_a_report_of_a_wrong_kind_is_made_again(recordings: Path, clean: Path, tmp_path: Path) -> None:
    shutil.copytree(clean, tmp_path / "set")
    for report, text in zip(sorted((tmp_path / "set" / "reports").iterdir()), ("[]", "null", "", "{}"), strict=False):
        report.write_text(text)
    prepare(recordings, tmp_path / "set")
    assert contents(tmp_path / "set") == contents(clean)


def test_the_licence_survives_a_resume(recordings: Path, tmp_path: Path) -> None:
    prepare(recordings, tmp_path / "set", licence="odc-by")
    before = contents(tmp_path / "set")
    prepare(recordings, tmp_path / "set")
    assert contents(tmp_path / "set") == before
    assert "license: odc-by" in (tmp_path / "set" / "README.md").read_text()


def test_two_ranks_stream_their_own_rows(clean: Path) -> None:
    stream = load_prepared(clean, "train", streaming=True)
    whole = [(row["recording"], row["start"]) for row in stream]
    ranks = [
        [(row["recording"], row["start"]) for row in split_dataset_by_node(stream, rank=rank, world_size=2)]
        for rank in range(2)
    ]
    assert len(whole) == 12
    assert not set(ranks[0]) & set(ranks[1])
    assert sorted(ranks[0] + ranks[1]) == sorted(whole)
    assert len(ranks[0]) == len(ranks[1])


@needs_recordings
def test_damaged_files_are_named_and_their_neighbours_prepared(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    shutil.copytree(RECORDINGS / "malformed", folder)
    write_edf(folder / "good.edf", seconds=80, rate=200)
    shutil.copy(RECORDINGS / "eegmmidb_S001" / "S001R04.edf", folder)
    summary = prepare(folder, tmp_path / "set", task=CORPUS, split_rule=None)
    reasons = {entry["recording"]: entry["error"] for entry in summary.files}
    damaged = {path.name for path in (RECORDINGS / "malformed").iterdir()} - {"SOURCE.txt"}
    assert {name for name, reason in reasons.items() if reason} == damaged
    assert all(name in reasons[name] and str(tmp_path) not in reasons[name] for name in damaged)
    rows = load_prepared(tmp_path / "set")
    assert set(rows.unique("recording")) == {"good.edf", "S001R04.edf"}


def test_a_model_s_recipe_is_followed_at_the_mains_of_the_recordings(
    recordings: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from prepare_data import main

    model = EEGFeatureExtractor(notch_frequency=60, scale=10.0, reference="average")
    model.save_pretrained(tmp_path / "model")
    given = f"--task Workload --input {recordings} --output {tmp_path / 'set'} --split subject --workers 1"
    previous = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as end:
            main([*given.split(), "--model", str(tmp_path / "model")])
    finally:
        signal.signal(signal.SIGTERM, previous)
    assert end.value.code == 0
    preparation = json.loads((tmp_path / "set/preparation.json").read_text())
    assert preparation["recipe"] == {**model.recipe, "notch_frequency": 50}
    assert preparation["recipe_id"] == model.recipe_id


def test_a_corpus_for_labram(tmp_path: Path, monkeypatch: Any) -> None:
    """Windows as long as LaBraM reads, by the recipe that NeuroLM's sets have, too."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from prepare_data import Arguments, feature_extractor

    made = {
        kind: feature_extractor(Arguments("Corpus", "in", "out", architecture=kind, scale=10.0), 50.0)
        for kind in ("neurolm", "labram")
    }
    assert made["labram"].recipe_id == made["neurolm"].recipe_id
    assert {kind: one.window_length(19) for kind, one in made.items()} == {"neurolm": 53, "labram": 13}
    assert made["labram"].window_length(4) == 16
    assert made["labram"].known_channels == 128
    # by the recipe of a model of the other kind
    made["labram"].save_pretrained(tmp_path)
    for kind, longest in ((None, 13), ("labram", 13), ("neurolm", 53)):
        other = feature_extractor(Arguments("Corpus", "in", "out", architecture=kind, model=str(tmp_path)), 60.0)
        assert (other.window_length(19), other.scale, other.notch_frequency) == (longest, 10.0, 60.0)


def test_the_script_s_exit_codes(recordings: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from prepare_data import main

    def status(*arguments: Any) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            main([str(one) for one in arguments])
        captured = capsys.readouterr()
        return int(end.value.code), captured.out + captured.err

    previous = signal.getsignal(signal.SIGTERM)
    given = ("--input", recordings, "--output", tmp_path / "set", "--workers", 1)
    workload = ("--task", "Workload", *given)
    try:
        code, text = status("--help")
        assert code == 0
        assert all(name in text for name in ("TUAB", "SEED", "Workload", "Corpus", "--split-shares"))
        wrong = {
            workload: "split by subject: --split subject",
            ("--task", "Corpus", *given): "give --notch-hz 50",
            ("--task", "Nothing", *given): "There is no task 'Nothing'",
            (*workload, "--split", "subject", "--shard", "2/2"): "--shard is i/n",
            (*workload, "--split", "subject", "--scheduler", "here:1"): "--scheduler belongs to",
            (*workload, "--backend", "dask", "--scheduler", "here:1"): "--workers does not go with",
            (*workload, "--workers", 0): "--workers is 1 or more, or -1",
            (*workload, "--workers", -2): "--workers is 1 or more, or -1",
            (*workload, "--seed", -1): "--seed is 0 or more",
            (*workload, "--notch-hz", 500): "notch_frequency 500 Hz is above the Nyquist frequency",
            (*workload, "--split", "subject", "--unit", "bananas"): "unit 'bananas' is unknown",
            (*workload, "--split", "subject", "--split-shares", "0.5", "0.5"): "--split-shares are three",
            (*workload, "--split", "subject", "--model", tmp_path / "nothing"): "holds no feature extractor",
            (*workload, "--split", "subject", "--model", "m", "--scale", 10): "leave --scale out",
            ("--task", "Workload", "--input", tmp_path / "none", "--output", tmp_path / "set"): "is not a folder",
        }
        for options, message in wrong.items():
            code, text = status(*options)
            assert code == 2
            assert text.startswith("error: ")
            assert text.count("\n") == 1
            assert message in text
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "joblib", None)
            code, text = status(*workload, "--split", "subject")
            assert (code, 'pip install "neurolm_hf[data]"' in text) == (2, True)
        assert not (tmp_path / "set").exists()
        code, text = status(*workload, "--split", "subject", "--split-shares", "0.5", "0", "0.5")
        assert code == 0
        assert "train              12 windows" in text
        monkeypatch.setattr("prepare_data.push_prepared", lambda folder, name: f"{name} from {folder}")
        code, text = status(
            *workload, "--split", "subject", "--split-shares", "0.5", "0", "0.5", "--push-to-hub", "a/b"
        )
        assert code == 0
        assert f"a/b from {tmp_path / 'set'}" in text
        (tmp_path / "short").mkdir()
        for name in ("Subject00_1.edf", "Subject01_1.edf", "Subject02_1.edf"):
            write_edf(tmp_path / "short" / name, [f"EEG {one}" for one in WORKLOAD.channels], 3, 200)
        short = ("--input", tmp_path / "short", "--output", tmp_path / "empty", "--workers", 1, "--split", "subject")
        code, text = status("--task", "Workload", *short)
        assert code == 1
        assert "3 recordings, 0 failed" in text
        assert "no window was kept" in text
        shutil.copytree(recordings, tmp_path / "in")
        (tmp_path / "in" / "Subject00_1.edf").write_bytes(b"damaged")
        code, text = status(
            "--task",
            "Workload",
            "--input",
            tmp_path / "in",
            "--output",
            tmp_path / "other",
            "--workers",
            1,
            "--split",
            "subject",
        )
        assert code == 1
        assert "failed: Subject00_1.edf" in text
    finally:
        signal.signal(signal.SIGTERM, previous)


@needs_recordings
@pytest.mark.slow
def test_eegmat_has_the_paper_s_windows(tmp_path: Path) -> None:
    folder = RECORDINGS / "eegmat"
    arguments = ("--task", "Workload", "--input", folder, "--output", tmp_path / "set", "--workers", 2)
    refused = run_script(*arguments)
    assert "needs all 72" in " ".join(refused.communicate()[0].split())
    assert refused.returncode == 2
    run = run_script(*arguments, "--split", "subject")
    text = run.communicate()[0]
    assert run.returncode == 0, text
    rows = load_prepared(tmp_path / "set")
    assert len(rows) == 928
    counts = np.unique(rows.with_format(None)["recording"], return_counts=True)[1]
    assert counts.tolist() == [29] * 32
    assert all(row_signal(rows[index]).shape == (19, 800) for index in (0, 500, 927))
    labels = np.asarray(rows.with_format(None)["label"])
    assert (labels == 0).sum() == (labels == 1).sum() == 464


@pytest.mark.slow
def test_killed_five_times_at_random_moments(tmp_path: Path) -> None:
    """Each time while recordings are worked on: some are done, some are not."""
    source = random.Random(0)
    (tmp_path / "in").mkdir()
    for number in range(24):
        file = tmp_path / "in" / f"Subject{number // 2:02d}_{1 + number % 2}.edf"
        write_edf(file, [f"EEG {one}" for one in WORKLOAD.channels], 40, 200, scale=1 + number / 50)
    arguments = ("--task", "Workload", "--input", tmp_path / "in", "--split", "subject", "--workers", 2)
    done = 0
    for _ in range(5):
        run = run_script(*arguments, "--output", tmp_path / "set", start_new_session=True)
        wait_for_reports(tmp_path / "set", done + 1)
        time.sleep(source.uniform(0, 0.05))
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        before, done = done, len(reports_in(tmp_path / "set"))
        assert before < done < 24
    for name in ("set", "undisturbed"):
        assert run_script(*arguments, "--output", tmp_path / name).wait() == 0
    assert contents(tmp_path / "set") == contents(tmp_path / "undisturbed")


def reports_in(output: Path) -> list[Path]:
    return list(output.glob("reports/[!.]*"))


def wait_for_reports(output: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while len(reports_in(output)) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


class DeadlyExtractor(EEGFeatureExtractor):
    """Dies of two recordings, as compiled readers do of some damaged files."""

    def prepare(self, eeg: Any, *arguments: Any, **options: Any) -> Any:
        if Path(eeg).name in ("Subject01_1.edf", "Subject03_2.edf"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().prepare(eeg, *arguments, **options)


@pytest.mark.slow
def test_recordings_that_kill_their_process_are_reported(recordings: Path, clean: Path, tmp_path: Path) -> None:
    summary = prepare(recordings, tmp_path / "set", feature_extractor=DeadlyExtractor(), workers=2)
    assert {entry["recording"]: entry["error"] for entry in summary.failed} == {
        name: f"{name}: the process that read it died, in the reader's own code or for want of memory"
        for name in ("Subject01_1.edf", "Subject03_2.edf")
    }
    assert sum(summary.windows.values()) == 18
    there = contents(tmp_path / "set")
    assert not [name for name in there if name.endswith(".part")]
    assert prepare(recordings, tmp_path / "set").failed == []
    assert contents(tmp_path / "set") == contents(clean)


@pytest.mark.slow
def test_stopped_by_sigterm_and_resumed(recordings: Path, clean: Path, tmp_path: Path) -> None:
    arguments = ("--task", "Workload", "--input", recordings, "--output", tmp_path / "set", "--split", "subject")
    run = run_script(*arguments, "--workers", 2)
    wait_for_reports(tmp_path / "set", 1)
    run.send_signal(signal.SIGTERM)
    text = run.communicate()[0]
    assert run.returncode == 130, text
    assert "Start the same command again" in text
    assert run_script(*arguments, "--workers", 1).wait() == 0
    assert contents(tmp_path / "set") == contents(clean)


@pytest.mark.slow
def test_a_dask_cluster_of_two_workers_gives_the_same(recordings: Path, clean: Path, tmp_path: Path) -> None:
    from dask.distributed import Client, LocalCluster, get_task_stream

    arguments = ("--task", "Workload", "--input", recordings, "--output", tmp_path / "set", "--split", "subject")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        with get_task_stream(client) as tasks:
            run = run_script(*arguments, "--backend", "dask", "--scheduler", cluster.scheduler_address)
            text = run.communicate()[0]
        workers = set(client.scheduler_info()["workers"])
    assert run.returncode == 0, text
    assert len(workers) == 2
    assert {task["worker"] for task in tasks.data} == workers
    assert len(tasks.data) == 2 * SUBJECTS
    assert contents(tmp_path / "set") == contents(clean)


PEAK_MEMORY = """
import sys
sys.argv = ["prepare_data.py", *sys.argv[2:]]
sys.path.insert(0, {scripts!r})
from prepare_data import main
try:
    main()
finally:
    # not getrusage: its peak begins with that of the parent
    peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print("peak", int(peak.split()[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads its peak memory from /proc")
def test_memory_is_flat_for_a_day_long_recording(tmp_path: Path) -> None:
    peaks = {}
    for name, hours in (("short", 4), ("day", 24)):
        folder = tmp_path / name / "in"
        folder.mkdir(parents=True)
        write_edf(folder / "a.edf", ("EEG Fp1", "EEG Fp2"), round(hours * 3600), 200)
        command = [sys.executable, "-c", PEAK_MEMORY.format(scripts=str(SCRIPT.parent)), "-", "--task", "Corpus"]
        command += ["--notch-hz", "50", "--input", folder, "--output", tmp_path / name / "set", "--workers", "1"]
        run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
        peaks[name] = int(run.stdout.split()[-1])
    rows = load_prepared(tmp_path / "day" / "set")
    assert len(rows) == 24 * 3600 // 64
    assert peaks["day"] - peaks["short"] < 100, peaks  # MiB; the day holds 132 as float32, 264 as float64
