"""The card says what the folder holds, `load_dataset` reads the folder by it, and its code runs."""

import json
import re

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from prepared_folders import write_prepared

from neurolm_hf.channels_neurolm import non_eeg_reason
from neurolm_hf.dataset_card import SOURCES, plain_text, write_card
from neurolm_hf.tasks import TASK_FILES, load_task


RECORDINGS = [
    ("Subject00_1.edf", "Subject00", "train", {"left_out": [{"reason": "too short | at the end", "windows": 1200}]}),
    ("Subject00_2.edf", "Subject00", "train"),
    ("Subject01_1.edf", "Subject01", "train", {"left_out": [{"reason": "too short | at the end", "windows": 34}]}),
    ("Subject02_2.edf", "Subject02", "test"),
]


@pytest.fixture
def prepared(tmp_path):
    return write_prepared(tmp_path / "set", RECORDINGS, notes=["16 of 36 subjects."])


def header_of(card):
    return yaml.safe_load(card.read_text().split("---\n")[1])


def test_figures(prepared):
    text = write_card(prepared).read_text()
    assert "> Question: Is this EEG segment of high workload?" in text
    assert "Answers: No (class 0), Yes (class 1)." in text
    # 3 and 1 recordings of 2 windows, answers in turn
    assert "| train | 2 | 0.01 | 6 | 4 | 2 |\n| test | 1 | 0.00 | 2 | 0 | 2 |" in text
    assert "band-passed 0.1–75 Hz, notched at 50 Hz, resampled to 200 Hz, divided by 100 µV, and then cut." in text
    assert "Channels: FP1, FP2, F3, F4, F7, F8, T3" in text
    assert "| 1,234 | too short \\| at the end |" in text
    assert "Split: by the number of files, in name order.\n- 16 of 36 subjects." in text
    assert SOURCES["Workload"] in text
    assert "could not be used" not in text


def test_a_recipe_of_few_steps_and_a_split_by_subject(prepared):
    path = prepared / "preparation.json"
    content = json.loads(path.read_text())
    off = {"do_filter": False, "do_notch": False, "do_rescale": False, "reference": "average"}
    path.write_text(json.dumps({**content, "recipe": content["recipe"] | off, "split_rule": "subject"}))
    text = write_card(prepared).read_text()
    assert "were resampled to 200 Hz, referenced to the average, and then cut." in text
    assert "Split: by subject, drawn by seed 0: train 0.6, validation 0.2, test 0.2." in text


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        ("Workload", {"split_rule": "subject", "shares": {"train": 0.5, "validation": 0, "test": 0.5}, "seed": 3}, 0),
        ("Corpus", {"seed": 7}, 1),
        ("Corpus", {"from": "reference"}, 2),
    ],
)
def test_a_split_by_subject_can_be_drawn_again(tmp_path, task, changes, said):
    folder = write_prepared(tmp_path, RECORDINGS, task=task)
    path = folder / "preparation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    expected = (
        "Split: by subject, drawn by seed 3: train 0.5, test 0.5.",
        "Split: by subject, drawn by seed 7: train 1.",
        "Split: by subject.",
    )
    assert expected[said] in write_card(folder).read_text()


def test_steps_that_recordings_did_not_allow_are_counted(prepared):
    path = prepared / "summary.json"
    content = json.loads(path.read_text())
    assert "But " not in write_card(prepared).read_text()
    content["files"][0]["steps_impossible"] = ["low-pass 75 Hz", "notch 50 Hz"]
    content["files"][1]["steps_impossible"] = ["low-pass 75 Hz"]
    path.write_text(json.dumps(content))
    text = write_card(prepared).read_text()
    assert "But low-pass 75 Hz was left out of 2 of 4 recordings" in text
    assert "But notch 50 Hz was left out of 1 of 4 recordings" in text


def test_channels_that_may_be_eeg_are_missed(prepared):
    path = prepared / "summary.json"
    content = json.loads(path.read_text())
    of_no_eeg = [
        ["EOG1", "MNE channel type 'eog'"],
        ["ECG", non_eeg_reason("ECG")],
        ["A1-A2", non_eeg_reason("A1-A2")],
    ]
    content["files"][0]["dropped"] = of_no_eeg
    path.write_text(json.dumps(content))
    assert "Channels were left out" not in write_card(prepared).read_text()
    content["files"][0]["dropped"] = [["X1", "unknown name"], ["X2", "unknown name"], *of_no_eeg]
    content["files"][1]["dropped"] = [["X1", "unknown name"], ["FP1", "marked bad in info['bads']"]]
    path.write_text(json.dumps(content))
    line = "by reason (recordings, of 4): marked bad in info['bads'] (1), unknown name (2); see `summary.json`."
    assert line in write_card(prepared).read_text()


def test_a_split_by_a_table_is_called_so(prepared):
    path = prepared / "preparation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"split_rule": "table"}))
    assert "Split: by the table's column `split`." in write_card(prepared).read_text()


def test_failed_recordings_are_named(prepared):
    path = prepared / "summary.json"
    content = json.loads(path.read_text())
    content["files"] += [
        {**content["files"][0], "recording": f"bad{i:02d}.edf", "error": "cut\nshort"} for i in range(60)
    ]
    path.write_text(json.dumps(content))
    text = write_card(prepared).read_text()
    assert "60 of 64 recordings could not be used." in text
    assert "| bad49.edf | cut short |" in text
    assert "bad50" not in text
    assert "10 more: see `summary.json`." in text


def test_load_dataset_reads_the_folder_by_its_card(prepared):
    card = write_card(prepared)
    assert header_of(card)["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train/*.parquet"},
        {"split": "test", "path": "data/test/*.parquet"},
    ]
    dataset = load_dataset(str(prepared))
    assert {split: len(rows) for split, rows in dataset.items()} == {"train": 6, "test": 2}
    assert dataset["test"].features["label"].names == ["No", "Yes"]


def test_the_code_on_the_card_runs(prepared):
    code = re.search(r"```python\n(.*?)```", write_card(prepared).read_text(), re.DOTALL).group(1)
    names = {}
    exec(code.replace("FOLDER", str(prepared)), names)
    expected = np.random.default_rng(0).normal(size=(2, 800))
    np.testing.assert_allclose(names["signal"], expected, atol=2e-3)
    assert names["row"]["unit"] == "100uV"


def test_same_folder_same_bytes(prepared):
    first = write_card(prepared).read_bytes()
    assert write_card(prepared).read_bytes() == first


@pytest.mark.parametrize(("licence", "in_header"), [("odc-by", "odc-by"), ("Ask: the author", "other")])
def test_licence(prepared, licence, in_header):
    assert "license" not in header_of(write_card(prepared))
    path = prepared / "preparation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"licence": licence}))
    card = write_card(prepared)
    assert header_of(card)["license"] == in_header
    assert f"Licence of the recordings: {licence}." in card.read_text()


def test_an_unknown_source_is_called_so(tmp_path):
    folder = write_prepared(tmp_path, [("a.edf", "a", "train")], task="Corpus", name='my "own": corpus')
    card = write_card(folder)
    assert header_of(card)["pretty_name"] == 'my "own": corpus prepared for NeuroLM'
    text = card.read_text()
    assert "nothing is asked" in text
    assert "is not known to the tool that wrote this card: see the source" in text


def test_sources_are_shipped_tasks():
    assert set(SOURCES) <= {load_task(path).name for path in TASK_FILES.glob("*.json")}


def test_an_unfinished_set_has_no_card(prepared):
    (prepared / "summary.json").write_text("{")
    with pytest.raises(ValueError, match=r"summary\.json is not JSON"):
        write_card(prepared)
    (prepared / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"no finished prepared set: it has no summary\.json"):
        write_card(prepared)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("workload_2", "workload_2"),
        ("*a* _b_ `c`", r"\*a\* \_b\_ \`c\`"),
        ("a\n# b\n\n---", r"a \# b ---"),
        ("<script>[x](y) & ~z~ !", r"\<script\>\[x\](y) \& \~z\~ \!"),
        ("back\\slash|bar", "back\\\\slash|bar"),
    ],
)
def test_names_are_shown_as_they_are(name, shown):
    assert plain_text(name) == shown
