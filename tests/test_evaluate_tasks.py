"""The script, from recordings to its files: a model, an adapter, the reference's scoring, and its errors."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml
from stage_folders import write_language_model, write_sets, write_text_model, write_tokenizer, write_vq
from test_answering import tune, write_classifier, write_labram
from test_lora import stir
from test_recipes import script_module

from neurolm_hf import (
    EEGFeatureExtractor,
    NeuroLMForCausalLM,
    NeuroLMProcessor,
    NeuroLMVQForSequenceClassification,
)
from neurolm_hf.baseline import baseline_probabilities
from neurolm_hf.collators import EEGCollator
from neurolm_hf.lora import add_adapter, lora_config
from neurolm_hf.metrics import ANSWER_METRICS, auroc
from neurolm_hf.preparation import prepare_dataset
from neurolm_hf.scoring import answer_probabilities
from neurolm_hf.simulation import simulate_recordings
from neurolm_hf.storage import load_prepared, row_signal
from neurolm_hf.tasks import load_task
from neurolm_hf.written_answers import NO_ANSWER, reference_class, write_answers


WORKLOAD = load_task("Workload")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder, as strings: six simulated people, three of them to test on; a model and an adapter."""
    root = tmp_path_factory.mktemp("evaluate")
    simulate_recordings(root / "recordings", subjects=6)
    # every 12 s is enough
    task = dataclasses.replace(WORKLOAD, windows=dataclasses.replace(WORKLOAD.windows, stride_seconds=12))
    summary = prepare_dataset(
        task,
        root / "recordings",
        root / "workload",
        feature_extractor=EEGFeatureExtractor(notch_frequency=50),
        split_rule="subject",
        shares={"train": 0.5, "validation": 0.0, "test": 0.5},
        workers=1,
    )
    assert summary.windows == {"train": 30, "test": 30}
    made = {"workload": root / "workload", "hmc": write_sets(root / "hmc", "HMC", {"validation": 5})}
    made["corpus"] = write_sets(root / "corpus", "Corpus", {"test": 2})
    tokenizer = write_tokenizer(root / "tokenizer")
    text, vq = write_text_model(root / "text", tokenizer), write_vq(root / "vq")
    made["vq"] = vq
    provenance = {"data": [{"task": "Workload", "subjects": ["Subject00"]}]}
    made["classifier"] = write_classifier(root / "classifier", vq, provenance)
    made["labram"] = write_labram(root / "labram", provenance)
    made["model"] = tune(write_language_model(root / "model", vq, text), WORKLOAD)
    base = NeuroLMForCausalLM.from_pretrained(made["model"])
    stir(add_adapter(base, made["model"], lora_config(base))).save_pretrained(root / "adapter")
    made["adapter"], made["root"] = root / "adapter", root
    return {name: str(folder) for name, folder in made.items()}


def evaluate(*arguments):
    """Runs the script in this process; returns its exit status."""
    try:
        script_module("evaluate_tasks").main([str(argument) for argument in arguments])
    except SystemExit as exit_:
        return exit_.code
    return 0


def results(folder):
    return json.loads((folder / "results.json").read_text())["results"]


@pytest.fixture(scope="module")
def answers(folders):
    """(test rows, what the model says of them)"""
    rows = load_prepared(folders["workload"], "test")
    model = NeuroLMForCausalLM.from_pretrained(folders["model"])
    processor = NeuroLMProcessor.from_pretrained(folders["model"])
    probabilities = answer_probabilities(
        model,
        processor,
        [row_signal(row) for row in rows],
        WORKLOAD,
        ch_names=[list(row["channels"]) for row in rows],
        prepared_by=processor.feature_extractor.recipe_id,
    )
    return rows, probabilities


def test_two_sets_and_their_files(folders, answers, tmp_path, capsys):
    data = [folders["workload"], f"{folders['hmc']}:validation"]
    out = tmp_path / "results"
    assert evaluate("--model", folders["model"], "--data", *data, "--output-dir", out, "--written-windows", "4") == 0
    printed = capsys.readouterr()
    assert "warning: model, HMC: " in printed.err
    assert "never tuned on this question; its tasks are Workload." in printed.err
    workload, hmc = results(out)
    rows, probabilities = answers
    labels = np.asarray(rows["label"])
    assert (workload["task"], workload["split"], workload["windows"]) == ("Workload", "test", {"No": 15, "Yes": 15})
    own = workload["models"]["model"]
    assert own["scores"]["roc_auc"]["value"] == pytest.approx(auroc(labels, probabilities[:, 1]), abs=1e-6)
    train = load_prepared(folders["workload"], "train")
    windows = [np.stack([row_signal(row) for row in part]) for part in (train, rows)]
    plain = baseline_probabilities(windows[0], np.asarray(train["label"]), windows[1], sampling_rate=200)
    assert workload["baseline"]["roc_auc"]["value"] == pytest.approx(auroc(labels, plain[:, 1]), abs=1e-9)
    # simulated people are told apart by the plain baseline: the windows are the right ones
    assert workload["baseline"]["roc_auc"]["value"] > 0.9
    assert workload["chance"]["roc_auc"] == {"value": 0.5, "low": 0.5, "high": 0.5, "undefined_draws": 0}
    assert list(own["scores"]) == list(ANSWER_METRICS)
    for scores in (own["scores"], workload["baseline"]):
        assert all(one["low"] <= one["high"] for one in scores.values())
    values = [scores["roc_auc"]["value"] for scores in (own["scores"], workload["baseline"], own["less_baseline"])]
    assert values[2] == values[0] - values[1]
    assert "| difference: model less baseline | " in printed.out
    assert "Not the published protocol: the task is not as this package declares it; split by subject" in printed.out
    assert [row["windows"] for row in own["by_subject"]] == [10] * 3
    assert own["written"]["windows"] == 4
    assert (hmc["task"], hmc["split"], hmc["baseline"]) == ("HMC", "validation", None)
    assert any("no rows in split 'train'" in note for note in hmc["notes"])

    page = (out / "results.md").read_text()
    assert page.strip() in printed.out
    value, low, high = (own["scores"]["roc_auc"][name] for name in ("value", "low", "high"))
    assert f"{value:.3f} ({low:.2f} to {high:.2f})" in page
    (index,) = yaml.safe_load((out / "model-index.yaml").read_text())["model-index"]
    assert index["name"] == "model"
    assert [(one["dataset"]["name"], one["dataset"]["split"]) for one in index["results"]] == [
        ("Workload", "test"),
        ("HMC", "validation"),
    ]
    metrics = {one["type"]: one["value"] for one in index["results"][0]["metrics"]}
    assert metrics == pytest.approx({name: one["value"] for name, one in own["scores"].items()})


def test_an_adapter(folders, answers, tmp_path, capsys):
    arguments = ["--data", folders["workload"], "--output-dir", tmp_path, "--written-windows", "0", "--name", "LoRA"]
    assert evaluate("--model", folders["adapter"], *arguments) == 0
    (result,) = (one["models"]["LoRA"] for one in results(tmp_path))
    assert result["written"] is None
    rows, probabilities = answers
    base = auroc(np.asarray(rows["label"]), probabilities[:, 1])
    assert result["scores"]["roc_auc"]["value"] != pytest.approx(base, abs=1e-6)
    captured = capsys.readouterr()
    assert "does not say which tasks it was tuned on" in captured.err
    assert "| LoRA | " in captured.out
    assert "sha256" in json.loads((tmp_path / "results.json").read_text())["models"]["LoRA"]["source"]


def test_one_command_compares_models(folders, tmp_path, capsys):
    models = [folders[name] for name in ("model", "labram", "classifier", "adapter")]
    arguments = ["--data", folders["workload"], "--output-dir", tmp_path, "--written-windows", "4"]
    assert evaluate("--model", *models, *arguments) == 0
    printed = capsys.readouterr()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.out.splitlines() if "|" in line]
    table = {row[0]: row[1:] for row in cells[2 : 2 + 13]}
    assert list(table) == [
        *("model", "labram", "classifier", "adapter", "log band power, logistic regression"),
        *(f"difference: {name} less baseline" for name in ("model", "labram", "classifier", "adapter")),
        *(f"difference: model less {name}" for name in ("labram", "classifier", "adapter")),
        "chance",
    ]
    assert "warning: adapter, Workload: The model does not say" in printed.err
    (result,) = results(tmp_path)
    found = {name: one["scores"]["roc_auc"]["value"] for name, one in result["models"].items()}
    column = cells[0].index("AUROC") - 1
    assert {name: f"{value:.3f}" for name, value in found.items()} == {
        name: table[name][column].split(" ")[0] for name in found
    }
    # as of each by itself
    rows = load_prepared(folders["workload"], "test")
    model = NeuroLMVQForSequenceClassification.from_pretrained(folders["classifier"]).eval()
    batch = EEGCollator(EEGFeatureExtractor.from_pretrained(folders["classifier"]))([rows[i] for i in range(30)])
    with torch.no_grad():
        logits = model(**{name: values for name, values in batch.items() if name != "rows"}).logits
    assert found["classifier"] == pytest.approx(auroc(np.asarray(rows["label"]), logits.softmax(1)[:, 1]), abs=1e-6)
    assert len(set(found.values())) == 4
    first_less = result["models"]["classifier"]["first_less"]["roc_auc"]["value"]
    assert first_less == found["model"] - found["classifier"]
    written = {name: one["written"] and one["written"]["windows"] for name, one in result["models"].items()}
    assert written == {"model": 4, "labram": None, "classifier": None, "adapter": 4}
    content = json.loads((tmp_path / "results.json").read_text())
    assert [one["kind"] for one in content["models"].values()] == ["answers", "classifier", "classifier", "answers"]
    # the card of any of them finds its own figures
    for name in ("classifier", "labram"):
        script_module("publish").main([folders[name], "me/head", "--results", str(tmp_path), "--dry-run"])
        card = capsys.readouterr().out
        assert f"| head | {' | '.join(table[name])} |" in card
        assert "difference: head less baseline" in card
        assert "less adapter" not in card
        assert "type: eeg-classification" in card


def test_as_the_reference_scores(folders, tmp_path, capsys):
    figures = tmp_path / "figures.json"
    figures.write_text(json.dumps([{"name": "A", "source": "B", "task": "Workload", "metrics": {"accuracy": 0.6}}]))
    arguments = ["--data", folders["workload"], "--output-dir", tmp_path / "out", "--as-reference"]
    assert evaluate("--model", folders["model"], *arguments, "--published", figures) == 0
    (result,) = results(tmp_path / "out")
    assert result["metrics"] == ["accuracy", "balanced_accuracy", "roc_auc", "pr_auc"]
    rows = load_prepared(folders["workload"], "test")
    model = NeuroLMForCausalLM.from_pretrained(folders["model"])
    texts = write_answers(
        model, NeuroLMProcessor.from_pretrained(folders["model"]), rows, WORKLOAD, 32, as_reference=True
    )
    hard = np.array([reference_class(WORKLOAD, text) for text in texts])
    labels = np.asarray(rows["label"])
    own = result["models"]["model"]
    assert own["scores"]["accuracy"]["value"] == np.mean((hard == 1) == (labels == 1))
    assert own["scores"]["roc_auc"]["value"] == auroc(labels, hard)
    assert own["written"]["unparseable"] == np.mean(hard == NO_ANSWER)
    # a split by subject is not the published one
    assert result["published"] == []
    assert "A, published" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "{model}", "--data", "{corpus}"], "prepared for Corpus, which asks nothing"),
        (["--model", "{model}", "--data", "{workload}:validation"], "has no rows in split 'validation'"),
        (["--model", "{model}", "--data", "{root}/absent"], "holds no prepared recordings"),
        (["--model", "{vq}", "--data", "{workload}"], "is a neurolm_vq without a head, which answers nothing"),
        (["--model", "{root}/absent", "--data", "{workload}"], "is no folder here, nor can it be read"),
        (["--model", "{model}", "--data", "{workload}", "--device", "nowhere"], "be put on the device 'nowhere'"),
        (
            ["--model", "{model}", "{classifier}", "--data", "{hmc}:validation"],
            "is a classifier of No, Yes; these sets",
        ),
        (
            ["--model", "{classifier}", "--data", "{workload}", "{hmc}:validation"],
            "is a classifier of No, Yes; HMC is answered by (A), (B)",
        ),
    ],
)
def test_what_cannot_be_evaluated(folders, arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = [argument.format(**folders) for argument in arguments]
    status = evaluate(*given, "--output-dir", tmp_path / "out")
    assert isinstance(status, str)
    assert status.startswith("error: ")
    assert message in status
    assert not (tmp_path / "out").exists()


def test_a_classifier_is_not_scored_as_the_reference_does(folders, tmp_path):
    models = [folders["model"], folders["classifier"]]
    status = evaluate(
        "--model", *models, "--data", folders["workload"], "--output-dir", tmp_path / "out", "--as-reference"
    )
    assert "classifier is a classifier, which writes no answers" in status
    assert not (tmp_path / "out" / "results.json").exists()


def test_a_folder_that_cannot_be_made_is_told_of_before_the_scoring(folders, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setattr(script_module("evaluate_tasks"), "evaluate_set", None)
    status = evaluate("--model", folders["model"], "--data", folders["workload"], "--output-dir", tmp_path / "taken")
    assert status.startswith("error: ")
    assert "taken" in status


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model"),
        (["--published", "figures.json"], "add --as-reference"),
        (["--batch-size", "0"], "--batch-size is 1 or more"),
        (["--written-windows", "-1"], "--written-windows is 0 or more"),
        (["--name", "a", "b"], "--name has 2 names for 1 models"),
        (["--model", "runs/a/last", "runs/b/last"], "models are called alike, last, last: give each its own --name"),
        (["--model", "a", "b", "--name", "c", "c"], "called alike, c, c"),
    ],
)
def test_wrong_usage(arguments, message, capsys):
    given = ["--model", "model", "--data", "data", "--output-dir", "out"] if arguments else []
    assert evaluate(*given, *arguments) == 2
    assert message in capsys.readouterr().err
