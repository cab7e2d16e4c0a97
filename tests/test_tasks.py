"""Tasks: the shipped file against the facts, prompts word for word, errors that say what is wrong."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from recording_files import SHARED, needs_shared
from task_layouts import TABLE_TASK

from neurolm_hf.task_sections import (
    AnnotationLabels,
    FolderSplit,
    RecordingFiles,
    SubjectSplit,
    Windows,
    may_share_subjects,
)
from neurolm_hf.tasks import TASK_FILES, Task, load_task


FACTS = SHARED / "facts" / "tasks.json"
SIDECAR = {
    "source": "sidecar",
    "file": "{stem}.txt",
    "delimiter": ",",
    "header_lines": 0,
    "start": 0,
    "end": 1,
    "label": 2,
}


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
        "metrics": ("accuracy",),
        "channels": None,
        "notch_hz": 50,
        "recordings": RecordingFiles("any"),
        "labels": AnnotationLabels("annotations"),
        "windows": Windows(30),
        "split": SubjectSplit("subject", {"train": 1.0}),
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
    assert task.completion("(B)", "<|endoftext|>") == "B) <|endoftext|>"
    assert task.completion("(B)", "</s>") == "B) </s>"
    assert task.training_text("(B)") == f"[SEP]{task.question} Answer: (B) <|endoftext|>"


OPTIONS = {"(A)": "Wake", "(B)": "REM", "(C)": "Other"}


def test_shuffled_options_move_between_the_letters():
    task, seen = lettered(), set()
    for seed in range(60):
        other, letters = task.shuffled(np.random.default_rng(seed))
        order = [OPTIONS[answer] for answer in sorted(letters, key=letters.get)]
        text = "Question: Which sleep type is this? Options: (A) {}. (B) {}. (C) {}."
        assert other.question == text.format(*order)
        assert other.prompt() == f"[SEP]{other.question} Answer: ("
        assert other.classes == task.classes
        seen.add(other.question)
    assert len(seen) == 6
    assert task.shuffled(np.random.default_rng(1)) == task.shuffled(np.random.default_rng(1))


def test_the_last_option_may_end_otherwise():
    task = lettered(question="Question: Which? (A) one, e.g. a spike, (B) two, (C) three?")
    for seed in range(20):
        other, letters = task.shuffled(np.random.default_rng(seed))
        words = {"(A)": "one, e.g. a spike", "(B)": "two", "(C)": "three?"}
        assert all(f"{letters[answer]} {words[answer]}" in other.question for answer in words)


def test_a_task_without_letters_is_not_shuffled(workload):
    task, letters = workload.shuffled(np.random.default_rng(0))
    assert task is workload
    assert letters == {"No": "No", "Yes": "Yes"}


@pytest.mark.parametrize("name", sorted(file.stem for file in TASK_FILES.glob("*.json")))
def test_every_shipped_task_can_be_shuffled(name):
    task = load_task(name)
    other, letters = task.shuffled(np.random.default_rng(0))
    assert sorted(letters) == sorted(letters.values()) == sorted(task.classes)
    if task.lettered:
        assert sorted(other.question) == sorted(task.question)
        assert other.question != task.question


def test_options_that_are_not_in_the_question_cannot_be_shuffled():
    task = lettered(question="Question: Which sleep type is this, (A) wake or (B) REM?")
    with pytest.raises(ValueError, match=r"Task Sleep: question must end in the options \(A\) \(B\) \(C\)"):
        task.shuffled(np.random.default_rng(0))


def test_classes_follow_their_index(workload):
    assert workload.classes == ("No", "Yes")
    assert workload.config_entry() == {
        "name": "Workload",
        "question": "Question: Is this EEG segment of high workload?",
        "answers": ["No", "Yes"],
        "window_seconds": 4,
        "channels": list(workload.channels),
        "unknown_channels": "drop",
    }


@needs_shared
@pytest.mark.parametrize("name", ["TUAB", "TUEV", "SEED", "HMC", "Workload", "TUSL"])
def test_the_paper_s_tasks_agree_with_the_facts(name):
    task, facts = load_task(name), json.loads(FACTS.read_text())[name]
    assert task.question == facts["question"]
    assert list(task.answers.items()) == list(facts["answers"].items())
    assert list(task.metrics) == facts["metrics"]
    assert (task.windows.seconds, task.notch_hz) == (facts["seconds"], facts["notch_hz"])
    assert task.channels == (tuple(facts["channels"]) if isinstance(facts["channels"], list) else None)
    assert task.prompt().endswith("Answer: (" if name in ("TUEV", "HMC", "TUSL") else "Answer:")


@needs_shared
def test_seed_s_trials_agree_with_the_facts():
    task, facts = load_task("SEED"), json.loads(FACTS.read_text())["SEED"]
    trials = task.labels.trials
    assert [trial.start for trial in trials] == facts["trial_start_s"]
    assert [trial.end - 1 for trial in trials] == facts["trial_end_s"]
    assert [trial.label for trial in trials] == facts["trial_labels"]
    assert [trial.split for trial in trials] == 9 * ["train"] + 3 * ["validation"] + 3 * ["test"]
    assert sum((trial.end - trial.start) // 4 for trial in trials) == 855


def test_a_corpus_asks_nothing():
    corpus = load_task("TUEG")
    assert (corpus.question, corpus.answers, corpus.classes, corpus.lettered) == (None, {}, (), False)
    with pytest.raises(ValueError, match="TUEG is a corpus to pre-train on: it has no question"):
        corpus.prompt()


def test_a_line_about_each_task():
    assert load_task("Workload").describe() == (
        "Workload: Is this EEG segment of high workload? No, Yes. Windows of 4 s; split by counts of files; folder: "
        "SubjectNN_1.edf (rest) and SubjectNN_2.edf (mental arithmetic)."
    )
    assert load_task("TUSL").describe().startswith("TUSL: Which type does this EEG segment belong to? Options: (A) ba")
    assert load_task("TUEG").describe() == (
        "TUEG: a corpus to pre-train on, nothing is asked. Windows as long as the token budget holds; all "
        "train; folder: SUBJECT_*.edf in any folder."
    )
    for name, words in (
        ("TUSL", "split by files, not by subject;"),
        ("SEED", "split by trials, not by subject;"),
        ("TUAB", "split by folders, not by subject;"),
        ("TUEV", "split by folders;"),
        ("EEGMMIDB", "split by subject;"),
    ):
        assert f" {words}" in load_task(name).describe()


def test_which_published_splits_are_by_subject():
    tasks = [load_task(path) for path in TASK_FILES.glob("*.json")]
    assert sorted(task.name for task in tasks if not task.split.by_subject) == ["SEED", "TUAB", "TUSL"]
    for task in tasks:
        assert may_share_subjects(asdict(task.split)) is not task.split.by_subject
    folders = FolderSplit("folders", {"train": "train", "eval": "test"}, per_label=True)
    assert folders.by_subject  # nothing is drawn
    assert not may_share_subjects(asdict(folders))


def test_names_in_any_case_and_paths(workload):
    assert load_task("workload") == workload
    assert load_task(TASK_FILES / "workload.json") == workload
    assert load_task(str(TASK_FILES / "workload.json")) == workload


def test_unknown_names_and_answers(workload, tmp_path):
    with pytest.raises(ValueError, match=r"no task 'Sleep'; there are .*Workload"):
        load_task("Sleep")
    for path in (tmp_path / "absent.json", str(tmp_path / "absent.json")):
        with pytest.raises(FileNotFoundError, match=r"no task file .*absent\.json\. Give the path .* task: Corpus, "):
            load_task(path)
    with pytest.raises(ValueError, match="'Maybe' is no answer of task Workload; its answers are No, Yes"):
        workload.training_text("Maybe")


def test_files_that_are_no_task(tmp_path, content):
    for text, message in (
        ("{", r"task\.json is not JSON"),
        ('{"name": "a", "answers": {"No": 0, "No": 1}}', r"task\.json is not JSON: an object has No twice"),
        ("[]", r"task\.json must be a JSON object, got \[\]"),
        (content | {"colour": "red"}, "has no field colour"),
        ({key: value for key, value in content.items() if key != "question"}, r"task\.json lacks question"),
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
        ("channels", ["CZ", "Fp1"]),
        ("notch_hz", -50),
        ("notch_hz", "50"),
        ("metrics", ["beauty"]),
        ("unknown_channels", "keep"),
        ("drop_channels", ["A1"]),
        ("labels", {"source": "none"}),
        ("recordings", {"layout": "any", "pattern": "(?P<subject>.*)"}),
    ],
)
def test_malformed_fields_are_named_with_the_file(tmp_path, content, field, value):
    with pytest.raises(ValueError, match=rf"task\.json.*{field}(\[.*\])? must"):
        load_task(write(tmp_path, content | {field: value}))


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("recordings", {"layout": "any", "pattern": "("}, "recordings: pattern must be a regular expression"),
        ("recordings", {"layout": "any", "pattern": ".*"}, r"recordings: pattern must have a group \(\?P<subject>"),
        (
            "recordings",
            {"layout": "any", "pattern": "(?P<subject>.)(?P<run>.)"},
            "recordings: pattern must have no groups but subject, split and label; got run",
        ),
        ("question", None, r"answers must be empty \('none' for labels\) where question is null"),
        ("labels", {"source": "guess"}, "labels: source must be 'none', 'path', .* got 'guess'"),
        ("labels", {"source": "path", "map": {"1": "Maybe"}}, "labels must map '1' to an answer or null; got 'Maybe'"),
        ("labels", {"source": "trials", "trials": []}, "labels: trials must hold at least one"),
        (
            "labels",
            {"source": "trials", "trials": [{"start": 5, "end": 5, "label": "Yes"}]},
            r"labels: trials\[0\]: start and end must be 0 <= start < end; got 5 and 5",
        ),
        ("labels", {"source": "sidecar", "file": "{stem}.txt"}, "labels lacks delimiter, header_lines, label, start"),
        ("labels", SIDECAR | {"file": "a.txt"}, r"labels: file must have \{stem\}"),
        ("labels", SIDECAR | {"file": "{stem}_{run}.txt"}, r"labels: file must have \{stem\} .* and no other \{\}"),
        ("labels", SIDECAR | {"duration": 3}, "labels: either end or duration must be given"),
        ("labels", SIDECAR | {"start": "onset"}, "labels: header_lines must be 1 or more where columns are named"),
        ("labels", SIDECAR, "windows must not leave out parts of a recording whose events"),
        ("windows", {"seconds": 0}, "windows: seconds must be above 0"),
        ("windows", {"seconds": 4.5}, "windows: seconds must be a whole number or null, got 4.5"),
        ("windows", {"seconds": 4, "stride_seconds": 0}, "windows: stride_seconds must be above 0"),
        (
            "windows",
            {"seconds": 4, "stride_seconds": True},
            "windows: stride_seconds must be a number or null, got True",
        ),
        ("windows", {"seconds": 4, "last_seconds": 3}, "windows: last_seconds must hold at least one window"),
        ("windows", {"seconds": 4, "before_seconds": -1}, "windows: before_seconds must be 0 or more"),
        ("split", {"rule": "chance"}, "split: rule must be 'folders', .* got 'chance'"),
        ("split", {"rule": "subject", "shares": {"train": 0.5}}, "split: shares must be 0 or more and add up to 1"),
        ("split", {"rule": "subject", "shares": {"tests": 1}}, "split: shares must be of train, validation, test"),
        ("split", {"rule": "counts", "train": 1, "validation": 1, "recordings": 2}, "split: train, .* leave some"),
        ("split", {"rule": "folders", "folders": {"a": "train"}}, r"recordings must have a pattern with .*\?P<split>"),
        (
            "split",
            {"rule": "folders", "folders": {"a": "dev"}},
            r"split: folders\['a'\] must be 'train', 'validation'",
        ),
        ("windows", {"seconds": 4, "after_seconds": 1}, "windows must not span signal around events"),
        ("windows", {"seconds": 4, "wrap": True}, "windows must not span signal around events"),
        ("split", {"rule": "trials"}, "split must not be by trials unless every trial, or a table"),
    ],
)
def test_malformed_sections_are_named_with_the_file(tmp_path, content, section, value, message):
    with pytest.raises(ValueError, match=rf"task\.json.*{message}"):
        load_task(write(tmp_path, content | {section: value}))


@pytest.mark.parametrize("field", ["channels", "drop_channels"])
@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("Fp1", "write 'FP1'"),
        ("EEG Cz-REF", "write 'CZ'"),
        ("heart", "it is none of CHANNEL_VOCABULARY"),
        ("pad", "it is none of CHANNEL_VOCABULARY"),
    ],
)
def test_channels_are_names_of_the_vocabulary(field, name, advice):
    message = rf"Task Sleep: {field} must be names of the channel vocabulary; got '{name}': {advice}\."
    with pytest.raises(ValueError, match=message):
        lettered(**{field: ("PZ", name)})


def test_a_split_per_label_needs_a_label():
    files = RecordingFiles("any", "(?P<split>[^/]+)/(?P<subject>.+)")
    split = FolderSplit("folders", {"train": "train", "eval": "test"}, 0.2)
    assert not lettered(recordings=files, split=split).split.per_label
    with pytest.raises(ValueError, match=r"Sleep: recordings must have a pattern with a group \(\?P<label>"):
        lettered(recordings=files, split=replace(split, per_label=True))


def test_a_user_s_task_may_leave_out_what_has_a_default(tmp_path):
    task = load_task(write(tmp_path, TABLE_TASK))
    assert (task.drop_channels, task.unknown_channels) == ((), "raise")
    assert (task.windows.last_seconds, task.windows.wrap) == (None, False)


def test_every_shipped_file_is_named_after_its_task():
    for path in TASK_FILES.glob("*.json"):
        assert load_task(path).name.lower() == path.stem
