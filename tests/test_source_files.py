"""Which files are a recording, and the fingerprint that a change of any of them changes."""

from pathlib import Path

import pytest
from recording_files import write_edf

from neurolm_hf.source_files import fingerprint
from neurolm_hf.tasks import load_task


CORPUS = load_task("Corpus")


def test_files_that_belong_to_a_recording_count(tmp_path: Path) -> None:
    """A label file that changes is noticed, though the recording has not."""
    for name in ("a.rec", "ab.rec"):
        (tmp_path / name).write_text("1")
    file = write_edf(tmp_path / "a.edf")
    before = fingerprint(file, CORPUS)
    assert list(before["files_beside"]) == ["a.rec"]
    (tmp_path / "ab.rec").write_text("2")
    assert fingerprint(file, CORPUS) == before
    (tmp_path / "a.rec").write_text("2")
    assert fingerprint(file, CORPUS) != before
    sidecar = tmp_path / "sub-1_task-x_channels.tsv"
    sidecar.write_text("name")
    beside = fingerprint(write_edf(tmp_path / "sub-1_task-x_eeg.edf"), CORPUS)["files_beside"]
    assert list(beside) == ["sub-1_task-x_channels.tsv"]


BRAINVISION = "Brain Vision Data Exchange Header File Version 1.0\n[Common Infos]\nDataFile={}\nMarkerFile = m.vmrk\n"


@pytest.mark.parametrize(
    ("opened", "text", "other"),
    [
        ("a.vhdr", BRAINVISION.format("data of a.eeg"), "data of a.eeg"),
        ("a.vhdr", BRAINVISION.format("Möller.eeg"), "Möller.eeg"),
        ("a.VHDR", BRAINVISION.format("a.eeg"), "m.vmrk"),
        ("a.lay", "[FileInfo]\nFile=a.dat\n", "a.dat"),
        ("a.set", "", "a.fdt"),
        ("night_raw.fif", "", "night_raw-1.fif"),
        ("night_raw.fif.gz", "", "night_raw-12.fif.gz"),
    ],
)
def test_all_files_that_hold_a_recording_count(tmp_path: Path, opened: str, text: str, other: str) -> None:
    """The header says nothing of the samples."""
    digests = set()
    for content in ("1", "22"):
        folder = tmp_path / content
        folder.mkdir()
        (folder / opened).write_bytes(text.encode("latin-1" if "Möller" in text else "utf-8"))
        (folder / other).write_text(content)
        source = fingerprint(folder / opened, CORPUS)
        assert source["bytes"] == (folder / opened).stat().st_size + len(content)
        assert source["files_beside"] == {}
        digests.add(source["sha256"])
    assert len(digests) == 2


def test_inherited_side_cars_of_bids_count(tmp_path: Path) -> None:
    file = tmp_path / "bids" / "sub-1" / "eeg" / "sub-1_task-x_eeg.edf"
    file.parent.mkdir(parents=True)
    write_edf(file)
    names = ("channels.tsv", "task-x_eeg.json", "sub-1/sub-1_task-x_events.tsv", "sub-1/eeg/sub-1_channels.tsv")
    others = ("task-y_eeg.json", "participants.tsv", "sub-1/sub-1_scans.tsv", "../events.tsv")
    for name in (*names, *others):
        (tmp_path / "bids" / name).write_text("1")
    assert fingerprint(file, CORPUS)["files_beside"] == {}
    (tmp_path / "bids" / "dataset_description.json").write_text("{}")
    beside = fingerprint(file, CORPUS)["files_beside"]
    assert set(beside) == {
        *("../../channels.tsv", "../../task-x_eeg.json", "../sub-1_task-x_events.tsv", "sub-1_channels.tsv")
    }
