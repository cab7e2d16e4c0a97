"""The files of an evaluation, by their content."""

import json
import re

import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from neurolm_hf import __version__
from neurolm_hf.evaluation import PublishedFigures, Result, Score, WrittenAnswers
from neurolm_hf.evaluation_report import Evaluation, read_published
from neurolm_hf.published_protocol import Protocol


QUESTION = "Question: Is this EEG segment of high workload?"


def result(**changes):
    given = {
        "folder": "prepared/workload",
        "split": "test",
        "task": "Workload",
        "question": QUESTION,
        "fingerprint": "abc",
        "windows": {"No": 1300, "Yes": 40},
        "subjects": 2,
        "metrics": ["accuracy", "roc_auc"],
        "model": {"accuracy": Score(0.625, 0.5, 0.75), "roc_auc": Score(0.7, 0.6, 0.8, 12)},
        "baseline": {"accuracy": Score(0.5, 0.25, 0.75), "roc_auc": Score(0.6)},
        "difference": {"accuracy": Score(0.125, -0.05, 0.3), "roc_auc": Score(-0.1)},
        "chance": {"accuracy": Score(0.5, 0.5, 0.5), "roc_auc": Score(0.5, 0.5, 0.5)},
        "by_subject": [
            {"subject": "s|1", "windows": 1300, "accuracy": 0.75, "roc_auc": None},
            {"subject": "s2", "windows": 40, "accuracy": 0.5, "roc_auc": 0.5},
        ],
        "written": WrittenAnswers(64, 0.25, ["Yes\nNo", "–"]),
        "protocol": Protocol(["split by subject, not as the task is"], 4000, 6, 2088),
        "published": [],
        "notes": ["roc_auc is undefined in 12 of 1000 draws of subjects; its interval is that of the others."],
    }
    return Result(**given | changes)


def evaluation(*results, as_reference=False):
    return Evaluation("tiny", {"folder": "/runs/tiny", "sha256": "123"}, as_reference, list(results) or [result()])


def tables(markdown):
    """Rows of cells of all tables, without their rules."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if "---" not in line]


def test_markdown_has_all_in_tables():
    page = evaluation().markdown()
    assert "# Answers of tiny\n" in page
    assert "## Workload, test: 1,340 windows of 2 subjects" in page
    assert f"> {QUESTION}\n" in page
    assert "True answers: No 1,300, Yes 40." in page
    assert "Yes 40. Not the published protocol: split by subject, not as the task is. The whole set has 4,000" in page
    assert "6 subjects; the publication has 2,088 windows.\n" in page
    head, model, baseline, difference, chance, head_of_subjects, *subjects = tables(page)
    assert head == ["", "accuracy", "AUROC"]
    assert model == ["tiny", "0.625 (0.50 to 0.75)", "0.700 (0.60 to 0.80)"]
    assert baseline == ["log band power, logistic regression", "0.500 (0.25 to 0.75)", "0.600"]
    assert difference == ["difference: model less baseline", "+0.125 (-0.05 to +0.30)", "-0.100"]
    assert "The difference is taken within each draw, on the same subjects" in page
    assert "Chance always gives each answer the share of windows" in page
    assert chance == ["chance", "0.500 (0.50 to 0.50)", "0.500 (0.50 to 0.50)"]
    assert head_of_subjects == ["subject", "windows", "accuracy", "AUROC"]
    assert subjects == [["s\\|1", "1,300", "0.750", "–"], ["s2", "40", "0.500", "0.500"]]
    assert "- roc_auc is undefined in 12 of 1000 draws" in page
    assert "about 64 windows, the model wrote texts of which 25.0% are none of the answers, such as" in page
    assert '"Yes\\nNo", "–".' in page


def test_markdown_of_what_is_missing():
    page = evaluation(result(baseline=None, difference=None, written=None, notes=[])).markdown()
    assert [row[0] for row in tables(page)][:3] == ["", "tiny", "chance"]
    assert "log band power" not in page
    assert "difference" not in page
    assert "\n- " not in page
    undefined = {"accuracy": Score(0.5), "roc_auc": Score(None)}
    assert tables(evaluation(result(model=undefined)).markdown())[1] == ["tiny", "0.500", "–"]


def test_published_figures_are_called_so():
    figures = [PublishedFigures("NeuroLM-X", "table 1", "Workload", {"accuracy": 0.61})]
    page = evaluation(result(published=figures), as_reference=True).markdown()
    assert ["NeuroLM-X, published (table 1)", "0.610", "–"] in tables(page)
    assert "Scored as NeuroLM's reference code does" in page


def test_the_model_index_reads_back():
    other = result(split="validation", model={"accuracy": Score(0.5), "roc_auc": Score(None)})
    index = evaluation(result(), other).card_data().to_dict()["model-index"]
    name, results = model_index_to_eval_results(index)
    assert name == "tiny"
    found = [(one.dataset_split, one.metric_type, one.metric_value) for one in results]
    assert found == [("test", "accuracy", 0.625), ("test", "roc_auc", 0.7), ("validation", "accuracy", 0.5)]
    assert {(one.task_type, one.dataset_type, one.dataset_name) for one in results} == {
        ("eeg-question-answering", "workload", "Workload")
    }
    assert {one.dataset_revision for one in results} == {"abc"}
    assert [one.metric_name for one in results][:2] == ["accuracy", "AUROC"]
    (metric, _) = evaluation(as_reference=True).card_data().to_dict()["model-index"][0]["results"][0]["metrics"]
    assert metric["name"] == "accuracy (scored as the reference does)"


def test_files(tmp_path):
    made = evaluation()
    made.write(tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"results.json", "results.md", "model-index.yaml"}
    content = json.loads((tmp_path / "out/results.json").read_text())
    assert content["neurolm_hf"] == __version__
    assert (content["name"], content["source"]["sha256"], content["as_reference"]) == ("tiny", "123", False)
    (found,) = content["results"]
    assert found["model"]["roc_auc"] == {"value": 0.7, "low": 0.6, "high": 0.8, "undefined_draws": 12}
    assert found["written"] == {"windows": 64, "unparseable": 0.25, "examples": ["Yes\nNo", "–"]}
    assert found["difference"]["accuracy"] == {"value": 0.125, "low": -0.05, "high": 0.3, "undefined_draws": 0}
    assert found["protocol"]["departures"] == ["split by subject, not as the task is"]
    assert found["by_subject"][0]["roc_auc"] is None
    assert (tmp_path / "out/results.md").read_text() == made.markdown()
    index = yaml.safe_load((tmp_path / "out/model-index.yaml").read_text())
    assert index["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.625


def test_published_figures_from_a_file(tmp_path):
    file = tmp_path / "figures.json"
    given = {"name": "A", "source": "table 1", "task": "TUAB", "metrics": {"balanced_accuracy": 0.5}}
    file.write_text(json.dumps([given]))
    assert read_published(file) == [PublishedFigures(**given)]
    for text, message in (
        ("[", "is not JSON"),
        (json.dumps(given), "must hold a list"),
        (json.dumps([{**given, "metrics": {"f1": 0.5}}]), r"figures\.json: \[0\]: metrics has f1"),
        (json.dumps([{"name": "A"}]), r"\[0\] lacks metrics, source, task"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            read_published(file)
    with pytest.raises(FileNotFoundError):
        read_published(tmp_path / "absent.json")
