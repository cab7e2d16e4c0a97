import hashlib
from dataclasses import asdict
from pathlib import Path

import pytest

from neurolm_hf.prepared_set import (
    BEGUN,
    file_sha256,
    open_output,
    prepared_recipe_id,
    prepared_task,
    read_report,
    remove_leftovers,
    shard_name,
    summarize,
    text_sha256,
    to_json,
)
from neurolm_hf.tasks import TASK_FILES, load_task


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def put_report(output: Path, key: str, subject: str, **changes: object) -> None:
    report = {
        "recording": key,
        "subject": subject,
        "sha256": "ab",
        "bytes": 3,
        "hours": 0.5,
        "windows": {},
        "window_hours": {},
        "shards": {},
        "left_out": [],
        "warnings": [],
        "error": None,
    }
    put(output / "reports" / f"{shard_name(key)}.json", to_json(report | changes))


def test_shard_names_are_file_names() -> None:
    names = {shard_name(key) for key in ("a/b.edf", "a-b.edf", "a_b.edf", "ä/b c.edf", "a/b.bdf", "x" * 300 + ".edf")}
    assert len(names) == 6
    assert all(len(name) < 100 and name.isascii() and "." not in name and "/" not in name for name in names)
    assert shard_name("a/b.edf") == f"a-b-{hashlib.sha256(b'a/b.edf').hexdigest()[:8]}"


def test_an_output_belongs_to_its_settings(tmp_path: Path) -> None:
    output = tmp_path / "new" / "set"
    settings = {"seed": 0, "shares": (0.5, 0.5), "answers": {"b": 0, "a": 1}}
    open_output(output, settings)
    written = (output / "preparation.json").read_text()
    assert written.index('"b"') < written.index('"a"')
    put(output / "summary.json")
    open_output(output, settings)
    assert not (output / "summary.json").exists()
    put(output / "summary.json")
    put_report(output, "a.edf", "ann")
    message = r'\(answers\.c: was absent, is null; seed: was 0, is 1; unit: was "uV", is absent\).*delete the folder'
    settings |= {"unit": "uV"}
    put(output / "preparation.json", to_json(settings))
    written = (output / "preparation.json").read_text()
    other = {"seed": 1, "shares": (0.5, 0.5), "answers": {"b": 0, "a": 1, "c": None}}
    with pytest.raises(ValueError, match=message):
        open_output(output, other)
    assert (output / "summary.json").exists()
    assert (output / "preparation.json").read_text() == written


def test_an_output_with_nothing_worth_keeping_takes_other_settings(tmp_path: Path) -> None:
    open_output(tmp_path, {"unit": None})
    put_report(tmp_path, "a.edf", "ann", error="no unit")
    open_output(tmp_path, {"unit": "uV"})
    assert (tmp_path / "preparation.json").read_text() == to_json({"unit": "uV"})
    shard = put(tmp_path / "data" / "train" / "a.parquet")
    with pytest.raises(ValueError, match='unit: was "uV", is "V"'):
        open_output(tmp_path, {"unit": "V"})
    shard.unlink()
    open_output(tmp_path, {"unit": "V"})


def test_an_output_that_is_worked_on_keeps_its_settings(tmp_path: Path) -> None:
    """The first run of them has written nothing yet."""
    open_output(tmp_path, {"unit": None})
    mark = put(tmp_path / "reports" / f".a{BEGUN}")
    with pytest.raises(ValueError, match='unit: was null, is "V"'):
        open_output(tmp_path, {"unit": "V"})
    mark.unlink()
    open_output(tmp_path, {"unit": "V"})


def test_a_licence_stays_until_there_is_another(tmp_path: Path) -> None:
    put_report(tmp_path / "set", "a.edf", "ann")
    put(tmp_path / "set" / "preparation.json", to_json({"unit": "uV"}))
    for given, kept in (({"licence": "odc-by"}, "odc-by"), ({}, "odc-by"), ({"licence": "cc0-1.0"}, "cc0-1.0")):
        open_output(tmp_path / "set", {"unit": "uV"} | given)
        assert (tmp_path / "set" / "preparation.json").read_text() == to_json({"unit": "uV", "licence": kept})
    with pytest.raises(ValueError, match=r'other settings \(unit: was "uV", is "V"\)'):
        open_output(tmp_path / "set", {"unit": "V"})


@pytest.mark.parametrize("broken", ["", "{", "[]"])
def test_settings_that_cannot_be_read(tmp_path: Path, broken: str) -> None:
    put(tmp_path / "preparation.json", broken)
    with pytest.raises(ValueError, match=r"preparation\.json is empty or damaged\. Delete .* or give another output"):
        open_output(tmp_path, {})


@pytest.mark.parametrize("broken", ["", "[]", "null", '"error"', "{}"])
def test_what_is_no_report_counts_as_none(tmp_path: Path, broken: str) -> None:
    file = put(tmp_path / "reports" / f"{shard_name('a.edf')}.json", broken)
    assert read_report(file) is None
    assert summarize(tmp_path, ["a.edf"], []).missing == ["a.edf"]
    open_output(tmp_path / "set", {"unit": None})
    put(tmp_path / "set" / "reports" / "a.json", broken)
    open_output(tmp_path / "set", {"unit": "V"})


def test_an_output_with_other_files_is_refused(tmp_path: Path) -> None:
    put(tmp_path / ".preparation.json.x.part")  # left by a run that was killed at once
    open_output(tmp_path, {})
    put(tmp_path / "other" / "thesis.txt")
    with pytest.raises(ValueError, match=r"holds other files and no preparation\.json"):
        open_output(tmp_path / "other", {})


def test_leftovers_of_others_at_work_stay(tmp_path: Path) -> None:
    whole = [put(tmp_path / "data" / "train" / f"{name}.parquet") for name in ("mine", "theirs")]
    theirs = put(tmp_path / "data" / "test" / ".theirs.parquet.1.part")
    top = put(tmp_path / ".summary.json.1.part")
    gone = [
        put(tmp_path / "data" / "train" / ".mine.parquet.1.part"),
        put(tmp_path / "reports" / ".mine.json.1.part"),
        put(tmp_path / "reports" / "nobody.json"),
        put(tmp_path / "data" / "test" / "nobody.parquet"),
    ]
    remove_leftovers(tmp_path, {"mine", "theirs"}, {"mine"})
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in (*whole, theirs, top))
    remove_leftovers(tmp_path, {"mine", "theirs"}, {"mine", "theirs"})
    assert not theirs.exists()
    assert not top.exists()


def test_a_summary_adds_up(tmp_path: Path) -> None:
    first = {"windows": {"train": 3, "test": 1}, "window_hours": {"train": 0.3, "test": 0.1}}
    put_report(tmp_path, "a.edf", "ann", **first, shards={"train": "t1", "test": "t2"}, warnings=["odd"])
    second = {"windows": {"train": 2}, "window_hours": {"train": 0.2}, "shards": {"train": "t3"}}
    put_report(tmp_path, "b.edf", "ann", **second, left_out=[{"reason": "too short", "windows": 4}])
    put_report(tmp_path, "c.edf", "ben", error="damaged")
    summary = summarize(tmp_path, ["a.edf", "b.edf", "c.edf", "d.edf"], ["by trials"])
    assert summary.missing == ["d.edf"]
    assert summary.windows == {"train": 5, "test": 1}
    assert summary.hours == pytest.approx({"train": 0.5, "test": 0.1})
    assert summary.subjects == {"train": 1, "test": 1}
    assert summary.notes == ["by trials", "1 of 4 recordings are not prepared yet, d.edf among them"]
    assert [entry["recording"] for entry in summary.failed] == ["c.edf"]
    assert set(asdict(summary)["files"][0]) == {
        *("recording", "subject", "sha256", "bytes", "hours", "windows", "left_out", "warnings", "error"),
        *("steps_impossible", "dropped"),
    }
    lines = "\n".join(
        sorted(
            f"{split}/{shard_name(key)} {sha}"
            for split, key, sha in (
                ("train", "a.edf", "t1"),
                ("test", "a.edf", "t2"),
                ("train", "b.edf", "t3"),
            )
        )
    )
    assert summary.fingerprint == hashlib.sha256(lines.encode()).hexdigest()
    text = str(summary)
    for part in (
        "3 recordings, 1 failed",
        "4 windows: too short",
        "failed: c.edf: damaged",
        "note: by trials",
        "1 recordings with warnings",
    ):
        assert part in text


def test_digests(tmp_path: Path) -> None:
    assert file_sha256(put(tmp_path / "a", "ä")) == text_sha256("ä") == hashlib.sha256("ä".encode()).hexdigest()


@pytest.mark.parametrize("name", sorted(file.stem for file in TASK_FILES.glob("*.json")))
def test_the_task_of_a_prepared_set(tmp_path: Path, name: str) -> None:
    task = load_task(name)
    put(tmp_path / "preparation.json", to_json({"task_file": asdict(task), "recipe_id": "0123456789ab"}))
    assert prepared_task(tmp_path) == task
    assert list(prepared_task(tmp_path).answers) == list(task.answers)
    assert prepared_recipe_id(tmp_path) == "0123456789ab"


def test_a_folder_that_holds_no_readable_task(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no prepared recordings"):
        prepared_task(tmp_path)
    put(tmp_path / "preparation.json", "[]")
    with pytest.raises(ValueError, match=r"preparation\.json is damaged, it says no recipe_id"):
        prepared_recipe_id(tmp_path)
    put(tmp_path / "preparation.json", to_json({"task_file": asdict(load_task("Workload")) | {"colour": 1}}))
    with pytest.raises(ValueError, match=r"preparation\.json: task_file has no field colour"):
        prepared_task(tmp_path)
