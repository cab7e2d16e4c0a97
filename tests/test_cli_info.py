"""`neurolm info`: several files, in words, as JSON and as pictures; files that cannot be read."""

import json

import pytest
from recording_files import RECORDINGS, make_eeg, needs_recordings, write_cnt, write_edf

from neurolm_hf.cli.main import main
from neurolm_hf.inspection import inspect_recording


def info(capsys, *arguments):
    """(exit status, standard output, standard error)."""
    status = main(["info", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_in_words_and_pictures(tmp_path, capsys):
    files = [write_edf(tmp_path / "a.edf"), write_cnt(tmp_path / "b.cnt", make_eeg(2, 4) * 10, ["Fp1", "Cz"])]
    status, out, err = info(capsys, *files, "--picture", tmp_path / "x.png")
    assert (status, err) == (0, "")
    assert out == "".join(f"{inspect_recording(file)}\n\n" for file in files)
    assert {path.name for path in tmp_path.glob("*.png")} == {"x-1.png", "x-2.png"}
    status, _, _ = info(capsys, files[0], "--picture", tmp_path / "y.png")
    assert (status, (tmp_path / "y.png").read_bytes()[:4]) == (0, b"\x89PNG")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_picture_that_fails_leaves_the_report(tmp_path, capsys, as_json):
    file, picture = write_edf(tmp_path / "a.edf"), tmp_path / "x.png"
    picture.mkdir()
    status, out, err = info(capsys, file, "--picture", picture, *["--json"] * as_json)
    assert status == 1
    assert f"neurolm info: error: the picture {picture} of {file} cannot be drawn: " in err
    assert json.loads(out)["format"] == "EDF" if as_json else f"{file}\n  EDF, " in out


def test_pictures_are_png(tmp_path, capsys):
    status, out, err = info(capsys, write_edf(tmp_path / "a.edf"), "--picture", tmp_path / "x.jpg")
    assert (status, out) == (2, "")
    assert "--picture draws PNG: name a .png file, not " in err
    status, out, err = info(capsys, tmp_path / "a.edf", "--picture", tmp_path / "nowhere" / "x.png")
    assert (status, out) == (2, "")
    assert f"there is no folder {tmp_path / 'nowhere'} to write x.png to" in err


def test_json_is_a_line_a_file_and_goes_on_after_a_bad_one(tmp_path, capsys):
    good, bad, absent = write_edf(tmp_path / "good.edf"), tmp_path / "bad.edf", tmp_path / "absent.edf"
    bad.write_text("no")
    status, out, err = info(capsys, "--json", bad, good, absent)
    first, second, third = map(json.loads, out.splitlines())
    assert (status, set(first), set(third)) == (1, {"path", "error"}, {"path", "error"})
    assert "not a valid EDF file" in first["error"]
    assert third["error"] == f"{absent}: there is no such file."
    assert err.splitlines() == [f"neurolm info: error: {one['error']}" for one in (first, third)]
    assert second == json.loads(json.dumps(inspect_recording(good).to_dict()))


def test_help_teaches(capsys):
    status, out, _ = info(capsys, "--help")
    assert status == 0
    assert "neurolm info study/*.edf --json" in out
    assert "Exit status: 0 all files were read, 1 any could not be read" in out
    for field in inspect_recording.__annotations__["return"].__dataclass_fields__:
        assert field in out, "every field of --json is named"
    status, _, err = info(capsys)
    assert (status, "FILE" in err) == (2, True)


@needs_recordings
def test_damaged_recordings_are_one_line_each(capsys):
    files = sorted(path for path in (RECORDINGS / "malformed").iterdir() if path.suffix in (".edf", ".fif"))
    status, out, err = info(capsys, *files)
    assert (status, out) == (1, "")
    lines = err.splitlines()
    assert len(lines) == len(files) == 4
    for file, line in zip(files, lines, strict=True):
        assert line.startswith(f"neurolm info: error: {file} ")
        assert "Get the file again" in line
