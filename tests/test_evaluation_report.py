"""The files of an evaluation, by their content."""

import json
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

from neurolm_hf import __version__
from neurolm_hf.evaluation import ModelResult, PublishedFigures, Result, Score, WrittenAnswers
from neurolm_hf.evaluation_report import EvaluatedModel, Evaluation, read_evaluation, read_published
from neurolm_hf.published_protocol import Protocol


QUESTION = "Question: Is this EEG segment of high workload?"


SOURCE = {"folder": "/runs/tiny", "sha256": "123"}
UNDEFINED = "roc_auc is undefined in 12 of 1000 draws of subjects; its interval is that of the others."


def of_model(**changes):
    given = {
        "scores": {"accuracy": Score(0.625, 0.5, 0.75), "roc_auc": Score(0.7, 0.6, 0.8, 12)},
        "less_baseline": {"accuracy": Score(0.125, -0.05, 0.3), "roc_auc": Score(-0.1)},
        "first_less": None,
        "by_subject": [
            {"subject": "s|1", "windows": 1300, "accuracy": 0.75, "roc_auc": None},
            {"subject": "s2", "windows": 40, "accuracy": 0.5, "roc_auc": 0.5},
        ],
        "written": WrittenAnswers(64, 0.25, ["Yes\nNo", "–"]),
        "doubts": [],
        "notes": [UNDEFINED],
    }
    return ModelResult(**given | changes)


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
        "models": {"tiny": of_model()},
        "baseline": {"accuracy": Score(0.5, 0.25, 0.75), "roc_auc": Score(0.6)},
        "baseline_by_subject": [
            {"subject": "s|1", "windows": 1300, "accuracy": 0.375, "roc_auc": None},
            {"subject": "s2", "windows": 40, "accuracy": 0.625, "roc_auc": 0.75},
        ],
        "chance": {"accuracy": Score(0.5, 0.5, 0.5), "roc_auc": Score(0.5, 0.5, 0.5)},
        "protocol": Protocol(["split by subject, not as the task is"], 4000, 6, 2088),
        "published": [],
        "notes": ["A split by subject."],
    }
    return Result(**given | changes)


def evaluation(*results, as_reference=False):
    return Evaluation({"tiny": EvaluatedModel("answers", SOURCE)}, as_reference, list(results) or [result()])


def compared():
    """A language model beside a classifier."""
    rows = [{"subject": name, "windows": 7, "accuracy": 0.25, "roc_auc": None} for name in ("s|1", "s2")]
    head = of_model(
        scores={"accuracy": Score(0.25), "roc_auc": Score(0.4)},
        less_baseline={"accuracy": Score(-0.25, -0.5, -0.125), "roc_auc": Score(-0.2)},
        first_less={"accuracy": Score(0.375, 0.25, 0.5), "roc_auc": Score(0.3)},
        by_subject=rows,
        written=None,
        doubts=["The model was trained on 2 of these subjects."],
    )
    models = {
        "tiny": EvaluatedModel("answers", SOURCE),
        "he|ad": EvaluatedModel("classifier", {"folder": "/runs/head", "sha256": "456"}),
    }
    return Evaluation(models, False, [result(models={"tiny": of_model(), "he|ad": head})])


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
    assert difference == ["difference: tiny less baseline", "+0.125 (-0.05 to +0.30)", "-0.100"]
    assert "A difference is taken within each draw, on the same subjects" in page
    assert "probabilities that a language model gives the allowed answers." in page
    assert "Chance always gives each answer the share of windows" in page
    assert chance == ["chance", "0.500 (0.50 to 0.50)", "0.500 (0.50 to 0.50)"]
    assert head_of_subjects == ["subject", "windows", "of", "accuracy", "AUROC"]
    assert subjects == [
        *(["s\\|1", "1,300", "tiny", "0.750", "–"], ["s\\|1", "1,300", "baseline", "0.375", "–"]),
        *(["s2", "40", "tiny", "0.500", "0.500"], ["s2", "40", "baseline", "0.625", "0.750"]),
    ]
    assert "- roc_auc is undefined in 12 of 1000 draws" in page
    assert "about 64 windows, the model wrote texts of which 25.0% are none of the answers, such as" in page
    assert '"Yes\\nNo", "–".' in page


def test_markdown_of_what_is_missing():
    alone = {"tiny": of_model(less_baseline=None, written=None, notes=[])}
    page = evaluation(result(models=alone, baseline=None, baseline_by_subject=None, notes=[])).markdown()
    assert tables(page)[3:] == [
        ["subject", "windows", "accuracy", "AUROC"],
        *(["s\\|1", "1,300", "0.750", "–"], ["s2", "40", "0.500", "0.500"]),
    ]
    assert [row[0] for row in tables(page)][:3] == ["", "tiny", "chance"]
    assert "log band power" not in page
    assert "difference" not in page
    assert "\n- " not in page
    undefined = {"accuracy": Score(0.5), "roc_auc": Score(None)}
    assert tables(evaluation(result(models={"tiny": of_model(scores=undefined)})).markdown())[1] == [
        "tiny",
        "0.500",
        "–",
    ]


def test_models_stand_in_one_table():
    page = compared().markdown()
    assert "# Answers of tiny, he|ad\n" in page
    assert "gives the allowed answers and a classifier gives its classes." in page
    rows = tables(page)
    assert [row[0] for row in rows[1:8]] == [
        *("tiny", "he\\|ad", "log band power, logistic regression"),
        *("difference: tiny less baseline", "difference: he\\|ad less baseline", "difference: tiny less he\\|ad"),
        "chance",
    ]
    assert [row[1] for row in rows[1:3]] == ["0.625 (0.50 to 0.75)", "0.250"]
    assert [row[1] for row in rows[5:7]] == ["-0.250 (-0.50 to -0.12)", "+0.375 (+0.25 to +0.50)"]
    # of each subject all models, one below the other
    assert [row[:4] for row in rows[8:]] == [
        ["subject", "windows", "of", "accuracy"],
        *(["s\\|1", "1,300", "tiny", "0.750"], ["s\\|1", "7", "he\\|ad", "0.250"]),
        ["s\\|1", "1,300", "baseline", "0.375"],
        *(["s2", "40", "tiny", "0.500"], ["s2", "7", "he\\|ad", "0.250"]),
        ["s2", "40", "baseline", "0.625"],
    ]
    notes = [line for line in page.splitlines() if line.startswith("- ")]
    assert notes[:3] == [
        "- A split by subject.",
        f"- tiny, he|ad: {UNDEFINED}",
        "- he|ad: The model was trained on 2 of these subjects.",
    ]
    assert notes[3].startswith("- tiny: Left to write by itself about 64 windows, the model wrote")
    assert len(notes) == 4


def test_one_model_taken_out():
    made = compared()
    sources = {name: dict(model.source) for name, model in made.models.items()}
    assert [made.name_of(source) for source in sources.values()] == ["tiny", "he|ad"]
    assert made.name_of({"folder": "elsewhere", "sha256": "456"}) == "he|ad"
    assert made.name_of({"folder": "/runs/head", "sha256": "457"}) is None
    assert made.name_of({"id": "me/head", "commit": "1"}) is None
    alone = made.alone("he|ad", "mine")
    assert alone.models == {"mine": made.models["he|ad"]}
    page = alone.markdown()
    assert [row[0] for row in tables(page)[:5]] == [
        *("", "mine", "log band power, logistic regression", "difference: mine less baseline", "chance"),
    ]
    assert "tiny" not in page
    (index,) = alone.card_data().to_dict()["model-index"]
    assert index["results"][0]["task"] == {"type": "eeg-classification", "name": "EEG classification"}
    assert index["results"][0]["metrics"][0]["value"] == 0.25
    # the first model's own
    assert made.card_data().to_dict() == evaluation().card_data().to_dict()


def test_an_evaluation_of_before_is_read(tmp_path):
    """A file that held one language model, its results among the others."""
    made = evaluation(result(models={"tiny": of_model(doubts=["The model was trained on 2 of these subjects."])}))
    made.write(tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    own = content["results"][0].pop("models")["tiny"]
    del content["results"][0]["baseline_by_subject"]
    content["results"][0] |= {
        "model": own["scores"],
        "difference": own["less_baseline"],
        "by_subject": own["by_subject"],
        "written": own["written"],
        "notes": [*own["doubts"], "A split by subject.", UNDEFINED],
    }
    content |= {"name": "tiny", "source": SOURCE}
    del content["models"]
    (tmp_path / "results.json").write_text(json.dumps(content))
    (found,) = read_evaluation(tmp_path).results
    (as_now,) = made.results
    assert found.models["tiny"] == replace(as_now.models["tiny"], notes=[])
    unnamed = replace(as_now, models={}, baseline_by_subject=None, notes=["A split by subject.", UNDEFINED])
    assert replace(found, models={}) == unnamed
    assert read_evaluation(tmp_path).models == made.models


def test_published_figures_are_called_so():
    figures = [PublishedFigures("NeuroLM-X", "table 1", "Workload", {"accuracy": 0.61})]
    page = evaluation(result(published=figures), as_reference=True).markdown()
    assert ["NeuroLM-X, published (table 1)", "0.610", "–"] in tables(page)
    assert "Scored as NeuroLM's reference code does" in page


def test_the_model_index_reads_back():
    scores = {"accuracy": Score(0.5), "roc_auc": Score(None)}
    other = result(split="validation", models={"tiny": of_model(scores=scores)})
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
    assert content["models"] == {"tiny": {"kind": "answers", "source": SOURCE}}
    assert content["as_reference"] is False
    (of_set,) = content["results"]
    found = of_set["models"]["tiny"]
    assert found["scores"]["roc_auc"] == {"value": 0.7, "low": 0.6, "high": 0.8, "undefined_draws": 12}
    assert found["written"] == {"windows": 64, "unparseable": 0.25, "examples": ["Yes\nNo", "–"]}
    assert found["less_baseline"]["accuracy"] == {"value": 0.125, "low": -0.05, "high": 0.3, "undefined_draws": 0}
    assert of_set["protocol"]["departures"] == ["split by subject, not as the task is"]
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
