"""`neurolm report`: which page is written of what; the pages themselves are tested with what writes them."""

import json

import pytest
from cli_folders import write_models, write_recordings
from labram_folders import write_labram_folders
from stage_folders import write_sets

from neurolm_hf.cli.main import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return write_recordings(tmp_path_factory.mktemp("recordings"))


def report(capsys, *arguments):
    """(exit status, standard output, standard error)."""
    status = main(["report", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_of_a_recording(models, recordings, capsys, tmp_path):
    """With a question of one's own, and reconstructions by the neural tokenizer."""
    asked = ["--question", "Is it on?", "--answer", "Yes", "--answer", "No"]
    arguments = [models["tuned"], recordings[0], "--output", tmp_path / "out", "--vq", models["vq"], *asked]
    status, out, err = report(capsys, *arguments, "--device", "cpu")
    page = tmp_path / "out" / "index.html"
    assert (status, out) == (0, f"{page}\n"), err
    text = page.read_text()
    assert "Is it on?" in text
    assert "one.edf" in text
    pictures = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert {"answers", "tokens", "reconstruction"} <= pictures


def test_of_a_checkpoint(models, capsys, tmp_path, monkeypatch):
    """The split stands behind the colon; the rest goes through as it is."""
    given = []

    def write(*arguments, **options):
        given.append((arguments, options))
        return tmp_path / "out" / "index.html"

    monkeypatch.setattr("neurolm_hf.checkpoint_report.write_checkpoint_report", write)
    rest = ["--vq", "v", "--training", "t", "--evaluation", "e"]
    status, out, _ = report(capsys, models["vq"], "--data", "c:/set:validation", "--output", tmp_path / "out", *rest)
    assert (status, out) == (0, f"{tmp_path / 'out' / 'index.html'}\n")
    ((arguments, options),) = given
    assert arguments == (str(models["vq"]), "c:/set", str(tmp_path / "out"))
    assert options == {"split": "validation", "tokenizer": "v", "training": "t", "evaluation": "e"}
    report(capsys, models["vq"], "--data", "c:/set", "--output", tmp_path / "out")
    assert (given[1][0][1], given[1][1]["split"]) == ("c:/set", "test")


def test_of_a_neural_tokenizer(models, capsys, tmp_path):
    folder = write_sets(tmp_path / "set", "Corpus", {"test": 2})
    status, out, err = report(capsys, models["vq"], "--data", folder, "--output", tmp_path / "out")
    assert (status, out) == (0, f"{tmp_path / 'out' / 'index.html'}\n"), err
    assert json.loads((folder / "summary.json").read_text())["windows"] == {"test": 4}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a recording, FILE, or a prepared set, --data, and not both"),
        (["a.edf", "--data", "set"], "and not both"),
        (["a.edf", "--training", "runs"], "--training does not go with a recording"),
        (["--data", "set", "--unknown-channels", "drop"], "--unknown-channels does not go with a prepared set"),
        (["a.edf", "--task", "Workload", "--question", "Is it?"], "not both"),
    ],
)
def test_wrong_usage(models, capsys, tmp_path, arguments, message):
    status, out, err = report(capsys, models["tuned"], *arguments, "--output", tmp_path / "out")
    assert (status, out) == (2, "")
    assert message in err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_reported_is_a_line(models, recordings, capsys, tmp_path):
    labram = write_labram_folders(tmp_path / "labram")
    for arguments, message in (
        ([models["tuned"], recordings[1]], f"{recordings[1]} is not a valid EDF file"),
        ([models["vq"], recordings[0]], "is a neurolm_vq, which answers nothing"),
        ([labram / "masked", recordings[0]], "is a labram, which answers nothing in words"),
        ([models["tuned"], recordings[0], "--vq", labram / "tokenizer"], "of another architecture (labram_vq)"),
        ([models["tuned"], "--data", tmp_path / "absent"], "absent"),
    ):
        status, out, err = report(capsys, *arguments, "--output", tmp_path / "out")
        assert (status, out, err.count("\n")) == (1, "", 1), err
        assert err.startswith("neurolm report: error: ")
        assert message in err
