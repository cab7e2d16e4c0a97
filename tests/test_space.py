"""The Space without a browser: what may be uploaded, what a visit reads and asks, what the page says."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
import yaml
from recording_files import make_eeg, write_brainvision, write_cnt, write_edf, write_gdf
from tiny_pipeline import SLEEP, tiny_answerer, tiny_processor

from neurolm_hf import EEGQuestionAnsweringPipeline
from neurolm_hf.occlusion import answer_importance


sys.path.insert(0, str(Path(__file__).parent.parent / "space"))
import gate
import pictures
import uploads
import visit
import words


SPACE = Path(uploads.__file__).parent
NAMES = ("EEG C3", "EEG C4", "EEG O2", "ECG")
OWN = visit.Question(question="Is it?", candidate_answers=("Yes", "No", "Perhaps"))


@pytest.fixture(scope="module")
def pipe() -> EEGQuestionAnsweringPipeline:
    processor = tiny_processor(scale=10.0)
    return EEGQuestionAnsweringPipeline(model=tiny_answerer(processor), processor=processor, device="cpu")


@pytest.fixture
def edf(tmp_path: Path) -> Path:
    return write_edf(tmp_path / "night.edf", NAMES, seconds=21, rate=200)


@pytest.fixture
def opened(pipe: Any, edf: Path) -> visit.Opened:
    return visit.read_recording(edf, pipe.processor.feature_extractor)


def received(folder: Path, *files: Path) -> list[str]:
    """Uploads as Gradio leaves them: each in a folder that is named for its content."""
    paths = []
    for number, file in enumerate(files):
        path = folder / f"{number:064x}" / file.name
        path.parent.mkdir(parents=True)
        path.write_bytes(file.read_bytes())
        paths.append(str(path))
    return paths


# --- uploads


def test_an_upload_is_there_while_it_is_read_and_gone_afterwards(tmp_path: Path, edf: Path) -> None:
    folder = tmp_path / "uploads"
    files = received(folder, edf)
    with uploads.taken(files, folder) as path:
        assert path.name == "night.edf"
        assert path.read_bytes() == edf.read_bytes()
        assert not Path(files[0]).exists()
        assert path.parent.stat().st_mode & 0o077 == 0
    assert list(folder.rglob("*")) == []
    with pytest.raises(ValueError, match="no longer here"), uploads.taken(files, folder):
        pass
    files = received(folder, edf)
    with pytest.raises(ValueError, match=r"^night.edf is bad"), uploads.taken(files, folder) as path:
        raise ValueError(f"{path} is bad")
    assert list(folder.rglob("*")) == []


def test_only_uploads_are_read(tmp_path: Path, edf: Path) -> None:
    folder = tmp_path / "uploads"
    folder.mkdir()
    (folder / "link.edf").symlink_to(edf)
    others = [
        str(edf),
        str(folder / ".." / edf.name),
        str(folder / "link.edf"),
        str(folder),
        "/etc/passwd",
        "http://x",
    ]
    for other in others:
        with pytest.raises(ValueError, match="no longer here"), uploads.taken([other], folder):
            pass
    assert edf.exists()


def files_of_every_format(folder: Path) -> list[list[Path]]:
    data = make_eeg(3)
    found = [[write_edf(folder / "a.edf")], [write_gdf(folder / "a.gdf", data, NAMES[:3])]]
    found += [[write_cnt(folder / "a.cnt", data * 10, NAMES[:3])]]
    raw = mne.io.RawArray(data * 1e-6, mne.create_info(["C3", "C4", "O2"], 200, "eeg"), verbose=False)
    raw.save(folder / "a_raw.fif", verbose=False)
    write_brainvision(folder / "b.vhdr", data, NAMES[:3])
    return [*found, [folder / "a_raw.fif"], sorted(folder.glob("b.*"))]


def test_every_format_of_the_page_opens(tmp_path: Path, pipe: Any) -> None:
    formats = []
    for files in files_of_every_format(tmp_path):
        folder = tmp_path / "uploads"
        with uploads.taken(received(folder, *files), folder) as path:
            opened = visit.read_recording(path, pipe.processor.feature_extractor)
        assert opened.prepared is not None, opened.refusal
        formats.append(opened.info.format)
        folder.rmdir()
    assert formats == ["EDF", "GDF", "Neuroscan CNT", "FIF", "BrainVision"]


def brainvision(folder: Path, old: str, new: str) -> list[Path]:
    header = write_brainvision(folder / "b.vhdr", make_eeg(3), NAMES[:3])
    header.write_text(header.read_text().replace(old, new))
    return sorted(folder.glob("b.*"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: [f("song.zip", b"PK\x03\x04")], "song.zip is of no format that this page reads. One file: EDF"),
        (lambda f: [f("night.fif.gz", b"\x1f\x8b")], "of no format"),
        (lambda f: [f("night.edf", b"PK\x03\x04")], "is not what its name says: it does not begin as an? EDF file"),
        (lambda f: [f("night.cnt", b"RIFF" + bytes(99))], "does not begin as an? CNT"),
        (lambda f: [f("a.set", b"MATLAB 5.0 MAT-file")], "a.set is of no format .* such as EEGLAB's .set, as EDF"),
        (lambda f: [f("a.edf", b"0"), f("b.edf", b"0")], "several recordings"),
        (lambda f: [f("a.edf", b"0"), f("b.vmrk", b"0")], "several recordings"),
        (lambda f: [f("b.eeg", b"0")], "b.eeg is a part of a recording, and its header is missing"),
        (lambda f: [f(f"{n}.edf", b"0") for n in range(4)], "3 files at most, and these are 4"),
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, make: Any, message: str) -> None:
    def write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    folder = tmp_path / "uploads"
    with pytest.raises(ValueError, match=message), uploads.taken(received(folder, *make(write)), folder):
        pass
    assert not any(path.is_file() for path in folder.rglob("*") if "visit-" in str(path))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("DataFile=b.eeg", "DataFile=/etc/passwd"),
        ("DataFile=b.eeg", "DataFile=../b.eeg"),
        ("MarkerFile=b.vmrk", "markerfile : /etc/passwd"),
        ("[Channel Infos]", "[Other]\n DataFile: /etc/passwd\n[Channel Infos]"),
    ],
)
def test_a_header_opens_no_other_file(tmp_path: Path, old: str, new: str) -> None:
    folder = tmp_path / "uploads"
    files = received(folder, *brainvision(tmp_path, old, new))
    with pytest.raises(ValueError, match="no such file was uploaded with it"), uploads.taken(files, folder):
        pass


def test_parts_of_a_recording_elsewhere_are_not_read(tmp_path: Path, pipe: Any) -> None:
    """The second wall, behind the look at the header: where the data come from in the end."""
    (tmp_path / "visit").mkdir()
    header = write_brainvision(tmp_path / "visit" / "b.vhdr", make_eeg(3), NAMES[:3])
    assert visit.read_recording(header, pipe.processor.feature_extractor).prepared is not None
    header.with_suffix(".eeg").rename(tmp_path / "b.eeg")
    header.write_text(header.read_text().replace("DataFile=b.eeg", "DataFile=../b.eeg"))
    with pytest.raises(ValueError, match=r"b.vhdr refers to a file that was not uploaded with it"):
        visit.read_recording(header, pipe.processor.feature_extractor)


def test_large_uploads_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edf: Path) -> None:
    monkeypatch.setattr(uploads, "MAX_BYTES", 1000)
    folder = tmp_path / "uploads"
    with pytest.raises(ValueError, match="this page reads 0 MB at most"), uploads.taken(received(folder, edf), folder):
        pass


@pytest.mark.slow
def test_a_server_that_is_told_to_stop_leaves_no_uploads(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(SPACE.parent), "PYTHONUNBUFFERED": "1"}
    environment.pop("GRADIO_TEMP_DIR", None)
    command = [sys.executable, str(SPACE / "app.py")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        while "Running" not in (line := server.stdout.readline()):
            assert line, "the server has ended"
        (folder,) = tmp_path.glob("neurolm-space-*")
        (folder / "upload.edf").write_text("a recording")
        server.terminate()
        server.wait(timeout=30)
    assert not folder.exists()


def test_what_nobody_came_back_for_is_removed(tmp_path: Path) -> None:
    for name, age in (("old", 100), ("new", 5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.edf").write_bytes(b"0")
        (tmp_path / f"{name}.tmp").write_bytes(b"0")
        for path in (tmp_path / name, tmp_path / f"{name}.tmp"):
            os.utime(path, (path.stat().st_mtime - age,) * 2)
    uploads.remove_old(tmp_path, 50)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "new.tmp"]


# --- the gate


def answer_of_gate(folder: Path, path: str, headers: dict[str, str]) -> tuple[int, str]:
    sent: list[dict[str, Any]] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"let through"})

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path}
    scope["headers"] = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(gate.UploadGate(behind, folder)(scope, None, send))
    return sent[0]["status"], sent[1]["body"].decode()


def test_the_gate_turns_large_uploads_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = "/gradio_api/upload"
    assert answer_of_gate(tmp_path, upload, {"content-length": "1000"}) == (200, "let through")
    assert answer_of_gate(tmp_path, "/gradio_api/queue/join", {}) == (200, "let through")
    assert answer_of_gate(tmp_path, upload, {})[0] == 411
    status, text = answer_of_gate(tmp_path, upload, {"content-length": str(70 * uploads.MEGABYTE)})
    assert (status, text[:24]) == (413, "The upload has 70 MB, an")
    monkeypatch.setattr(gate, "MAX_HELD_BYTES", 4000)
    (tmp_path / "a").write_bytes(bytes(3500))
    status, text = answer_of_gate(tmp_path, upload, {"content-length": "1000"})
    assert (status, text[:20]) == (503, "Too many uploads are")


# --- a visit


@pytest.mark.parametrize("question", [visit.Question("Workload"), visit.Question("Sleep"), OWN])
def test_answers_are_the_pipelines(pipe: Any, edf: Path, opened: visit.Opened, question: visit.Question) -> None:
    edf.unlink()  # it is needed no more
    window = visit.find_window(pipe, opened, question)
    probabilities = visit.answer(pipe, window)
    assert sum(probabilities.values()) == pytest.approx(1)
    write_edf(edf, NAMES, seconds=21, rate=200)
    (wanted,) = [one for one in pipe(str(edf), **question.arguments) if one["start"] == window.start]
    assert wanted["end"] == window.start + window.seconds
    assert probabilities == pytest.approx(wanted["probabilities"], abs=1e-6)


def test_windows_lie_within_the_recording(pipe: Any, opened: visit.Opened) -> None:
    window = visit.find_window(pipe, opened, visit.Question("Sleep"))
    assert (window.start, window.seconds, window.last_start) == (9, 3, 18)
    assert [visit.find_window(pipe, opened, OWN, start).start for start in (-5, 7.2, 1000)] == [0, 7, 17]


def test_tokens_are_the_processors(pipe: Any, edf: Path, opened: visit.Opened) -> None:
    window = visit.find_window(pipe, opened, OWN, 8)
    codes = visit.tokens(pipe, window)
    wanted = pipe.processor.tokenize_eeg(str(edf), pipe.model)[2]
    assert codes.shape == (3, 4)
    assert codes.T.ravel().tolist() == wanted.tolist()


def test_importance_is_that_of_the_package(
    pipe: Any, edf: Path, opened: visit.Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = visit.find_window(pipe, opened, visit.Question("Sleep"), 6)
    found = visit.importance(pipe, window)
    wanted = answer_importance(pipe, str(edf), start=6, task="Sleep")
    assert found.channels == pytest.approx(wanted.channels, abs=1e-5)
    assert list(found.channels) == SLEEP["channels"]
    monkeypatch.setattr(visit, "MAX_MAP_SECONDS", 0)
    with pytest.raises(ValueError, match="would read this window 11 times, once without each part of it"):
        visit.importance(pipe, window)


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_SECONDS", 20, "night.edf is 0 minutes long, and this page reads 0 minutes at most"),
        ("MAX_CHANNELS", 3, "night.edf has 4 channels at 200 Hz, and this page reads 3 channels"),
        ("MAX_RATE", 100.0, "at 100 Hz at most"),
    ],
)
def test_a_visit_has_limits(
    pipe: Any, edf: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: float, message: str
) -> None:
    monkeypatch.setattr(visit, limit, value)
    with pytest.raises(ValueError, match=message):
        visit.read_recording(edf, pipe.processor.feature_extractor)


def test_what_the_model_cannot_read_is_reported_all_the_same(pipe: Any, tmp_path: Path) -> None:
    volts = write_edf(tmp_path / "volts.edf", NAMES, seconds=21, rate=200, unit="V")
    opened = visit.read_recording(volts, pipe.processor.feature_extractor)
    assert opened.prepared is None
    assert opened.info.path == "volts.edf"
    assert opened.refusal.startswith("volts.edf: read in V, the median channel has an amplitude of")
    with pytest.raises(ValueError, match="which is no EEG"):
        visit.find_window(pipe, opened, OWN)
    page = words.report(opened)
    assert "The model cannot read this recording." in page
    assert "choose uV as the unit and upload it again if so." in page
    assert visit.read_recording(volts, pipe.processor.feature_extractor, unit="uV").prepared is not None


@pytest.mark.parametrize(
    ("question", "answers", "message"),
    [
        ("  ", "Yes, No", "Write your question"),
        ("Is it?", "Yes", "Write 2 to 10 answers"),
        ("Is it?", ",".join(map(str, range(11))), "Write 2 to 10 answers"),
        ("Is it?" * 100, "Yes, No", "300 characters at most"),
    ],
)
def test_questions_have_limits(question: str, answers: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        visit.read_question(None, question, answers)


def test_questions() -> None:
    assert visit.read_question("Sleep", "ignored", "").arguments == {"task": "Sleep"}
    asked = visit.read_question(None, " Is it? ", "Yes,\nNo, \n Who knows\n")
    assert asked.arguments == {"question": "Is it?", "candidate_answers": ("Yes", "No", "Who knows")}


# --- what the page says and shows


def test_names_of_a_recording_are_no_markup(pipe: Any, tmp_path: Path) -> None:
    names = ("EEG C3", "EEG C4", "<img src=x>", "$\\frac{")
    path = write_edf(tmp_path / "<b>night.edf", names, seconds=21, rate=200)
    opened = visit.read_recording(path, pipe.processor.feature_extractor)
    page = words.report(opened)
    assert "<img" not in page
    assert "&lt;img src=x&gt;" in page
    assert "<h2>&lt;b&gt;night.edf</h2>" in page
    question = visit.Question(question="<i>Is it?", candidate_answers=("<u>", "No"))
    window = visit.find_window(pipe, opened, question)
    heading = words.answer_heading(window, visit.answer(pipe, window))
    assert "<i>" not in heading
    assert "<u>" not in heading
    assert "<i>" not in words.notice("<i>")
    assert 'alt="&quot;&gt;"' in words.picture("", '">')


def test_the_report_says_what_becomes_of_the_channels(pipe: Any, opened: visit.Opened) -> None:
    page = words.report(opened)
    assert "The model reads 3 channels: C3, C4, O2." in page
    assert "3 of them are renamed, such as EEG C3 to C3." in page
    assert "Left out: ECG (not EEG by its name)." in page
    window = visit.find_window(pipe, opened, OWN, 8)
    codes = np.array([[1, 2, 3, 4], [1, 5, 6, 7], [8, 9, 10, 11]])
    table = words.token_table(window, codes)
    assert "11 different ones" in table
    assert table.count("<td>1*</td>") == 2
    assert "<th scope=col>8 s</th>" in table


def test_pictures_are_drawn_of_a_window(pipe: Any, opened: visit.Opened) -> None:
    window = visit.find_window(pipe, opened, OWN, 0)
    assert pictures.traces(window).startswith("iVBOR")
    head, patches, unplaced = pictures.maps(visit.importance(pipe, window))
    assert head.startswith("iVBOR")
    assert patches.startswith("iVBOR")
    assert unplaced == ["C3", "C4", "O2"]  # three electrodes span no map


# --- what the Space says of itself


def test_the_readme_says_what_holds() -> None:
    text = (SPACE / "README.md").read_text()
    _, metadata, words_of_it = text.split("---\n", 2)
    space = yaml.safe_load(metadata)
    assert (space["sdk"], space["app_file"]) == ("gradio", "app.py")
    pinned = re.search(r"^gradio==(.*)$", (SPACE.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert space["sdk_version"] == pinned[1]
    limits = f"{uploads.MAX_BYTES // uploads.MEGABYTE} MB and {visit.MAX_SECONDS // 60} minutes at most"
    assert limits in words_of_it
    assert {f"`{path.name}`" for path in SPACE.glob("*.py")} <= set(re.findall(r"`\w+\.py`", words_of_it))
