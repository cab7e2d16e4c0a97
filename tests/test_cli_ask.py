"""`neurolm ask`: the pipeline's answers as tables, JSON, CSV and annotations; no code of a repository is run."""

import contextlib
import csv
import io
import json

import mne
import pytest
from cli_folders import WORKLOAD, write_models, write_recordings
from labram_folders import write_labram_folders

from neurolm_hf.answering import open_model
from neurolm_hf.cli.main import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A good one, a bad one, a good one."""
    return write_recordings(tmp_path_factory.mktemp("recordings"))


@pytest.fixture(scope="module")
def pipe(models):
    """What the command's answers are compared with."""
    answering = open_model(str(models["tuned"]))
    return answering.model.as_pipeline(answering.processor)


@pytest.fixture(scope="module")
def wanted(pipe, recordings):
    """path -> the pipeline's answers about each good recording."""
    return {str(path): pipe(str(path), batch_size=16) for path in (recordings[0], recordings[2])}


def ask(capsys, *arguments):
    """(exit status, standard output, standard error)."""
    status = main(["ask", *map(str, arguments), "--device", "cpu", "--batch-size", "16"])
    return status, *capsys.readouterr()


@pytest.fixture(scope="module")
def asked(models, recordings, tmp_path_factory):
    """(exit status, standard output, standard error, folder of CSV and annotations) about all recordings at once."""
    folder, out, err = tmp_path_factory.mktemp("asked"), io.StringIO(), io.StringIO()
    to_files = ["--csv", folder / "all.csv", "--annotations", folder / "x-annot.fif"]
    arguments = ["ask", models["tuned"], *recordings, "--json", *to_files, "--batch-size", 3]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(map(str, arguments)))
    return status, out.getvalue(), err.getvalue(), folder


def test_json_is_what_the_pipeline_says(asked, wanted, recordings):
    status, out, err, _ = asked
    assert status == 1
    first, failed, second = map(json.loads, out.splitlines())
    assert err == f"neurolm ask: error: {failed['error']}\n"
    assert set(failed) == {"path", "error"}
    assert "not a valid EDF file" in failed["error"]
    assert [one["path"] for one in (first, failed, second)] == list(map(str, recordings))
    for document in (first, second):
        right = wanted[document["path"]]
        assert set(document) == {"path", "question", "windows", "counts", "mean_probabilities"}
        assert document["question"] == WORKLOAD["question"]
        assert [(one["start"], one["end"], one["answer"]) for one in document["windows"]] == [
            (one["start"], one["end"], one["answer"]) for one in right
        ]
        for one, other in zip(document["windows"], right, strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-5)
        answers = [one["answer"] for one in right]
        assert document["counts"] == {name: answers.count(name) for name in ("No", "Yes")}
        mean = sum(one["probabilities"]["Yes"] for one in right) / len(right)
        assert document["mean_probabilities"]["Yes"] == pytest.approx(mean, abs=1e-5)
    assert first["windows"] != second["windows"]


def test_a_csv_of_all_recordings(asked, wanted):
    with open(asked[3] / "all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    right = [(path, row) for path, answers in wanted.items() for row in answers.rows()]
    assert list(rows[0]) == ["path", "start", "end", "answer", "p(No)", "p(Yes)"]
    for row, (path, answer) in zip(rows, right, strict=True):
        assert (row["path"], row["answer"]) == (path, answer["answer"])
        assert float(row["p(Yes)"]) == pytest.approx(answer["p(Yes)"], abs=1e-5)


def check_annotations(file, recording, answers):
    raw = mne.io.read_raw(recording, verbose="ERROR")
    raw.set_annotations(mne.read_annotations(file))
    assert raw.annotations.onset - raw.first_time == pytest.approx([one["start"] for one in answers])
    assert set(raw.annotations.duration) == {4.0}
    assert list(raw.annotations.description) == [
        f"{one['answer']} {one['probabilities'][one['answer']]:.2f}" for one in answers
    ]


def test_annotations_fit_the_recordings(asked, wanted, recordings):
    assert sorted(path.name for path in asked[3].glob("*.fif")) == ["x-1-annot.fif", "x-3-annot.fif"]
    check_annotations(asked[3] / "x-3-annot.fif", recordings[2], wanted[str(recordings[2])])


def test_tables_for_people(models, recordings, wanted, capsys, tmp_path):
    place = tmp_path / "x.csv"
    status, out, err = ask(capsys, models["tuned"], recordings[0], "--annotations", place)
    assert (status, err) == (0, "")
    lines, right = out.splitlines(), wanted[str(recordings[0])]
    assert lines[:3] == [WORKLOAD["question"], "", str(recordings[0])]
    assert lines[3].split() == ["seconds", "answer", "No", "Yes"]
    assert [line.split() for line in lines[4:14]] == [
        [f"{one['start']:g}-{one['end']:g}", one["answer"], *(f"{p:.2f}" for p in one["probabilities"].values())]
        for one in right
    ]
    counts = [sum(one["answer"] == name for one in right) for name in ("No", "Yes")]
    assert lines[14].startswith(f"  10 windows: No {counts[0]}, Yes {counts[1]}; mean probabilities: No 0.")
    assert len(lines) == 15
    check_annotations(place, recordings[0], right)


def test_a_summary_of_several(models, recordings, wanted, capsys):
    status, out, _ = ask(capsys, models["tuned"], *recordings)
    assert status == 1
    *_, header, first, second = out.splitlines()
    assert header.split() == ["recording", "most", "frequent", "windows", "mean", "p(No)", "mean", "p(Yes)"]
    for line, (path, answers) in zip((first, second), wanted.items(), strict=True):
        given = [one["answer"] for one in answers]
        mean = sum(one["probabilities"]["Yes"] for one in answers) / len(answers)
        assert line.split()[:3] == [path, max(("No", "Yes"), key=given.count), "10"]
        assert float(line.split()[4]) == pytest.approx(mean, abs=0.006)


def test_windows_and_questions_of_ones_own(models, recordings, pipe, capsys):
    asked = {"question": "Is it high?", "candidate_answers": ["Yes", "No", "More high workload"]}
    windows = {"window_seconds": 5, "stride_seconds": 3}
    answers = [part for answer in asked["candidate_answers"] for part in ("--answer", answer)]
    options = ["--window-seconds", 5, "--stride-seconds", 3, "--json"]
    status, out, _ = ask(capsys, models["tuned"], recordings[0], "--question", asked["question"], *answers, *options)
    document, wanted = json.loads(out), pipe(str(recordings[0]), **asked, **windows)
    assert (status, document["question"]) == (0, "Question: Is it high?")
    assert [(one["start"], one["answer"]) for one in document["windows"]] == [
        (one["start"], one["answer"]) for one in wanted
    ]
    assert list(document["counts"]) == asked["candidate_answers"]


def test_without_answers_the_model_writes(models, recordings, pipe, capsys, tmp_path):
    options = ["--question", "Is it high?", "--window-seconds", 20]
    status, out, err = ask(capsys, models["tuned"], recordings[0], *options, "--csv", tmp_path / "a.csv")
    answers = pipe(str(recordings[0]), question="Is it high?", window_seconds=20)
    written = [one["written"] for one in answers]
    assert (status, err) == (0, "")
    assert [line.strip() for line in out.splitlines()[4:]] == [
        f"{20 * place}-{20 * place + 20}".ljust(7) + f"  {text!r}" for place, text in enumerate(written)
    ]
    with open(tmp_path / "a.csv", newline="") as file:
        assert [row["written"] for row in csv.DictReader(file)] == written


def test_examples_are_read_first(models, recordings, pipe, wanted, capsys):
    good, other = recordings[0], recordings[2]
    examples = ["--example", f"{other}@30=Yes", "--example", f"{good}@2.5=No"]
    status, out, _ = ask(capsys, models["tuned"], good, "--json", *examples)
    right = pipe(str(good), examples=[(str(other), 30.0, "Yes"), (str(good), 2.5, "No")], batch_size=16)
    assert status == 0
    found = json.loads(out)["windows"][3]["probabilities"]
    assert found == pytest.approx(right[3]["probabilities"], abs=1e-5)
    assert found != pytest.approx(wanted[str(good)][3]["probabilities"], abs=1e-5)
    # what is wrong with an example is said once, not for every recording
    status, out, err = ask(capsys, models["tuned"], good, other, "--example", f"{other}@30=Maybe")
    assert (status, out) == (1, "")
    assert err == "neurolm ask: error: examples: 'Maybe' of example 0 is none of the answers No, Yes.\n"


def test_annotations_that_cannot_be_written_leave_the_answers(models, recordings, capsys, tmp_path):
    place = tmp_path / "x.csv"
    place.mkdir()
    status, out, err = ask(capsys, models["tuned"], recordings[0], "--json", "--annotations", place)
    assert (status, len(out.splitlines())) == (1, 1)
    assert err.startswith(f"neurolm ask: error: the annotations {place} of {recordings[0]} cannot be written: ")


def test_an_adapter_answers_its_own_tasks(models, recordings, capsys):
    status, out, err = ask(capsys, models["adapter"], recordings[0], "--task", "Workload", "--json")
    assert (status, err) == (0, "")
    adapted = json.loads(out)["windows"]
    plain = json.loads(ask(capsys, models["pretrained"], recordings[0], "--json", *of_workload())[1])["windows"]
    assert adapted[0]["probabilities"] != pytest.approx(plain[0]["probabilities"], abs=1e-4)


def of_workload():
    answers = [part for answer in WORKLOAD["answers"] for part in ("--answer", answer)]
    return ["--question", WORKLOAD["question"], *answers, "--window-seconds", 4]


@pytest.fixture
def hostile(models, tmp_path):
    """A model whose folder brings code for everything, and the file that tells that some of it was run."""
    folder, marker = tmp_path / "model", tmp_path / "ran"
    folder.mkdir()
    for file in models["tuned"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    for name in ("modeling_neurolm", "configuration_neurolm", "pipeline_neurolm", "processing_neurolm", "other"):
        (folder / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')\nraise SystemExit('run')\n")
    for name in ("config.json", "processor_config.json", "tokenizer_config.json"):
        change_json(
            folder / name,
            auto_map={
                "AutoConfig": "configuration_neurolm.NeuroLMConfig",
                "AutoModelForCausalLM": "modeling_neurolm.NeuroLMForCausalLM",
                "AutoProcessor": "processing_neurolm.NeuroLMProcessor",
                "AutoFeatureExtractor": "processing_neurolm.EEGFeatureExtractor",
                "AutoTokenizer": [None, "other.Tokenizer"],
            },
        )
    return folder, marker


def change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_no_code_of_a_repository_is_run(hostile, recordings, wanted, capsys):
    folder, marker = hostile
    status, out, err = ask(capsys, folder, recordings[0], "--json")
    assert not marker.exists()
    assert (status, err) == (0, "")
    given = [one["answer"] for one in json.loads(out)["windows"]]
    assert given == [one["answer"] for one in wanted[str(recordings[0])]]


def test_a_tokenizer_that_is_code_is_refused_without_asking(hostile, recordings, capsys):
    folder, marker = hostile
    change_json(folder / "tokenizer_config.json", tokenizer_class="OtherTokenizer")
    status, out, err = ask(capsys, folder, recordings[0])
    assert not marker.exists()
    # no "Do you wish to run the custom code?" on standard output
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert f"{folder} wants to run code of its own for its text tokenizer" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "Workload", "--question", "Is it?"], "give --task, or --question with its --answer, not both"),
        (["--answer", "Yes", "--answer", "No"], "--answer belongs to --question"),
        (["--question", "Is it?", "--answer", "Yes"], "--answer must be given twice or more"),
        (["--question", "Is it?", "--answer", "Yes", "--answer", "Yes"], "with different answers"),
        (["--example", "a.edf"], "--example is FILE=ANSWER or FILE@SECOND=ANSWER, not 'a.edf'"),
        (["--annotations", "a.fif"], "MNE wants --annotations to end in -annot.fif, _annot.fif, .csv, .txt"),
        (["--csv", "nowhere/x.csv"], "there is no folder nowhere to write x.csv to"),
        (["--annotations", "nowhere/x-annot.fif"], "there is no folder nowhere to write x-annot.fif to"),
        (["--window-seconds", "0"], "--window-seconds must be above 0, not 0"),
        (["--stride-seconds", "-1"], "--stride-seconds must be above 0, not -1"),
    ],
)
def test_wrong_usage(models, recordings, capsys, arguments, message):
    status, out, err = ask(capsys, models["tuned"], recordings[0], *arguments)
    assert (status, out) == (2, "")
    assert message in err


def test_models_that_are_none(models, recordings, capsys, tmp_path):
    status, _, err = ask(capsys, recordings[0], models["tuned"])
    assert (status, f"{recordings[0]} is a file, and MODEL is a folder" in err) == (2, True)
    status, _, err = ask(capsys, tmp_path / "absent", recordings[0])
    assert (status, f"there is no folder {tmp_path / 'absent'}" in err) == (2, True)
    labram = write_labram_folders(tmp_path / "labram")
    for model, message in (
        (models["vq"], "is a neurolm_vq, which answers nothing"),
        (tmp_path, "holds no model"),
        (labram / "classifier", "is a labram, which answers nothing in words: scripts/finetune_classifier.py"),
        (labram / "tokenizer", "is a labram_vq, which answers nothing in words"),
    ):
        status, out, err = ask(capsys, model, recordings[0])
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert err.startswith(f"neurolm ask: error: {model} {message}")


def test_what_holds_for_all_recordings_is_said_once(models, recordings, capsys):
    status, out, err = ask(capsys, models["tuned"], *recordings, "--task", "HMC")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("neurolm ask: error: The model knows no task 'HMC'; its tasks are Workload.")
    assert main(["ask", str(models["tuned"]), *map(str, recordings), "--device", "nonsense"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "--device nonsense cannot be used" in err


def test_an_untuned_model_is_doubted(models, recordings, capsys):
    # `warning_once` keeps what it has said in this process
    from transformers.utils.logging import warning_once

    warning_once.cache_clear()
    status, _, err = ask(capsys, models["pretrained"], recordings[0], *of_workload(), "--json")
    assert status == 0
    assert err.startswith("neurolm ask: warning: This checkpoint's stage is 'pretrained'")
    assert err.count("\n") == 1
