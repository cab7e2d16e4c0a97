"""Tasks: the shipped file against the facts, prompts word for word, errors that say what is wrong."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from neurolm_hf.tasks import TASK_FILES, Task, load_task


FACTS = Path(__file__).parents[2] / "shared" / "facts" / "tasks.json"


@pytest.fixture
def workload():
    return load_task("Workload")


@pytest.fixture
def content():
    return json.loads((TASK_FILES / "workload.json").read_text())


def write(folder, content):
    path = folder / "task.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def lettered(**changes):
    values = {
        "name": "Sleep",
        "question": "Question: Which sleep type is this? Options: (A) Wake. (B) REM. (C) Other.",
        "answers": {"(A)": 0, "(B)": 1, "(C)": 2},
        "channels": None,
        "window_seconds": 30,
        "stride_seconds": None,
        "last_seconds": None,
        "notch_hz": 50,
    }
    return Task(**(values | changes))


def test_prompt_word_for_word(workload):
    prompt = "[SEP]Question: Is this EEG segment of high workload? Answer:"
    assert workload.prompt() == prompt
    assert workload.training_text("Yes") == prompt + " Yes <|endoftext|>"
    assert workload.training_text("No") == prompt + " No <|endoftext|>"


def test_lettered_prompt_stops_after_the_bracket():
    task = lettered()
    assert task.prompt() == f"[SEP]{task.question} Answer: ("
    assert task.completion("(B)") == "B) <|endoftext|>"
    assert task.training_text("(B)") == f"[SEP]{task.question} Answer: (B) <|endoftext|>"


def test_classes_follow_their_index(workload):
    assert workload.classes == ("No", "Yes")
    assert workload.config_entry() == {
        "name": "Workload",
        "question": "Question: Is this EEG segment of high workload?",
        "answers": ["No", "Yes"],
    }


@pytest.mark.skipif(not FACTS.exists(), reason="needs ../shared/facts")
def test_workload_agrees_with_the_facts(workload):
    facts = json.loads(FACTS.read_text())["Workload"]
    assert workload.question == facts["question"]
    assert list(workload.answers.items()) == list(facts["answers"].items())
    assert list(workload.channels) == facts["channels"]
    assert (workload.window_seconds, workload.notch_hz) == (facts["seconds"], facts["notch_hz"])
    assert facts["windows"].startswith(
        f"last {workload.last_seconds} s of each file, {workload.window_seconds} s long, "
        f"stride {workload.stride_seconds} s"
    )


@pytest.mark.skipif(not FACTS.exists(), reason="needs ../shared/facts")
@pytest.mark.parametrize("name", ["TUAB", "TUEV", "SEED", "HMC", "TUSL"])
def test_the_format_holds_the_other_tasks(tmp_path, name):
    facts = json.loads(FACTS.read_text())[name]
    channels = facts["channels"] if isinstance(facts["channels"], list) else None
    content = {"name": name, "question": facts["question"], "answers": facts["answers"], "channels": channels}
    content |= {"window_seconds": facts["seconds"], "stride_seconds": None, "last_seconds": None}
    task = load_task(write(tmp_path, content | {"notch_hz": facts["notch_hz"]}))
    assert task.answers == facts["answers"]
    assert task.prompt().endswith("Answer: (" if name in ("TUEV", "HMC", "TUSL") else "Answer:")


def test_names_in_any_case_and_paths(workload):
    assert load_task("workload") == workload
    assert load_task(TASK_FILES / "workload.json") == workload
    assert load_task(str(TASK_FILES / "workload.json")) == workload


def test_unknown_names_and_answers(workload, tmp_path):
    with pytest.raises(ValueError, match=r"no task 'Sleep'; there are .*Workload"):
        load_task("Sleep")
    with pytest.raises(FileNotFoundError):
        load_task(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="'Maybe' is no answer of task Workload; its answers are No, Yes"):
        workload.training_text("Maybe")


def test_files_that_are_no_task(tmp_path, content):
    for text, message in (
        ("{", r"task\.json is not JSON"),
        ("[]", "holds a list"),
        (content | {"colour": "red"}, "fields that no task has: colour"),
        ({key: value for key, value in content.items() if key != "question"}, "lacks question"),
    ):
        with pytest.raises(ValueError, match=message):
            load_task(write(tmp_path, text))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("question", "Is it?"),
        ("answers", {"Yes": 1, "No": 0}),
        ("answers", {"No": 0}),
        ("answers", {"No": 0, "Yes": True}),
        ("answers", {"No": 0, "Yes ": 1}),
        ("answers", {"(A)": 0, "B": 1}),
        ("answers", ["No", "Yes"]),
        ("channels", []),
        ("channels", ["CZ", "CZ"]),
        ("channels", ["CZ", 3]),
        ("window_seconds", 0),
        ("window_seconds", "4"),
        ("stride_seconds", 0),
        ("stride_seconds", True),
        ("last_seconds", 3),
        ("notch_hz", -50),
        ("notch_hz", None),
    ],
)
def test_malformed_fields_are_named_with_the_file(tmp_path, content, field, value):
    with pytest.raises(ValueError, match=rf"task\.json.*{field} must"):
        load_task(write(tmp_path, content | {field: value}))


def test_every_shipped_file_is_complete():
    for path in TASK_FILES.glob("*.json"):
        assert list(json.loads(path.read_text())) == [field.name for field in fields(Task)], path
        assert load_task(path).name.lower() == path.stem
