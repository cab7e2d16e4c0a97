"""The script that judges a classifier and what features hold: its table, its rows by hand, and its errors."""

import json
import shutil

import numpy as np
import pytest
import torch
from prepared_folders import write_prepared
from stage_folders import write_language_model, write_text_model, write_tokenizer, write_vq
from test_lora import stir
from test_recipes import script_module

from neurolm_hf import NeuroLMProcessor, NeuroLMVQForSequenceClassification
from neurolm_hf.baseline import logistic_probabilities
from neurolm_hf.collators import ClassificationCollator, EEGCollator
from neurolm_hf.lora import add_adapter, lora_config
from neurolm_hf.metrics import auroc, balanced_accuracy
from neurolm_hf.processing_neurolm import EEGFeatureExtractor
from neurolm_hf.starting_models import load_classifier
from neurolm_hf.storage import load_prepared
from neurolm_hf.tasks import load_task


WORKLOAD = load_task("Workload")
HEAD, PROBE, BASELINE = "its head", "its features", "log band power"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder, as strings."""
    root = tmp_path_factory.mktemp("classifiers")
    made = {"vq": write_vq(root / "vq"), "gpt2": write_text_model(root / "gpt2", write_tokenizer(root / "tokenizer"))}
    made["model"] = write_language_model(root / "model", made["vq"], made["gpt2"])
    # every subject has a recording of each answer
    subjects = {"train": range(4), "test": range(4, 7)}
    recordings = [(f"{i}-{j}.edf", f"s{i}", split) for split, who in subjects.items() for i in who for j in "ab"]
    made["data"] = write_prepared(root / "data", recordings)
    made["corpus"] = write_prepared(root / "corpus", [("a.edf", "s", "train")], "Corpus")
    torch.manual_seed(0)
    trained, processor = load_classifier(str(made["vq"]), load_task("Workload").classes)
    torch.nn.init.normal_(trained.score.weight)
    made["classifier"] = root / "classifier"
    trained.save_pretrained(made["classifier"])
    processor.save_pretrained(made["classifier"])
    return {name: str(folder) for name, folder in made.items()}


def judged(folders, capsys, model, *options):
    """Rows of the table: name -> cells."""
    script_module("evaluate_classifier").main(["--model", folders[model], "--data", folders["data"], *options])
    title, _, heading, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert title == "Workload, test: 12 windows of 3 subjects"
    names = [name.strip() for name in heading.strip("|").split("|")]
    assert {"accuracy", "balanced accuracy", "AUROC", "calibration error"} <= set(names)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in cells}


def row_of(rows, start):
    return next((cells for name, cells in rows.items() if name.startswith(start)), None)


def auroc_of(cells):
    return float(cells["AUROC"].split(" ")[0])


def test_a_trained_head_stands_beside_the_probe_baseline_and_chance(folders, capsys):
    rows = judged(folders, capsys, "classifier")
    assert len(rows) == 6
    model = NeuroLMVQForSequenceClassification.from_pretrained(folders["classifier"]).eval()
    collate = EEGCollator(EEGFeatureExtractor.from_pretrained(folders["classifier"]))
    outputs, labels = {}, {}
    for split in ("train", "test"):
        prepared = load_prepared(folders["data"], split)
        batch = collate([prepared[index] for index in range(len(prepared))])
        labels[split] = np.asarray(prepared["label"])
        with torch.no_grad():
            outputs[split] = model(**{name: values for name, values in batch.items() if name != "rows"})
    by_head = balanced_accuracy(labels["test"], outputs["test"].logits.argmax(1))
    assert row_of(rows, HEAD)["balanced accuracy"].startswith(f"{by_head:.3f} (")
    features = [outputs[split].features.numpy() for split in ("train", "test")]
    fitted = logistic_probabilities(features[0], labels["train"], features[1], strength=0.01)
    by_probe = balanced_accuracy(labels["test"], fitted.argmax(1))
    assert row_of(rows, PROBE)["balanced accuracy"].startswith(f"{by_probe:.3f} (")
    assert row_of(rows, "chance")["AUROC"].startswith("0.500")
    plain = row_of(rows, BASELINE)
    for who in (HEAD, PROBE):
        less = row_of(rows, f"difference: {who} less baseline")["AUROC"].split(" ")[0]
        assert float(less) == pytest.approx(auroc_of(row_of(rows, who)) - auroc_of(plain), abs=1.5e-3)
        assert less[0] in "+-"


@pytest.mark.parametrize(
    ("model", "options"), [("vq", []), ("model", ["--with-question"]), ("model", ["--pooling", "encoder_mean"])]
)
def test_of_other_models_the_features_are_judged_alone(folders, capsys, model, options):
    rows = judged(folders, capsys, model, *options)
    assert row_of(rows, HEAD) is None
    assert row_of(rows, PROBE) is not None
    assert len(rows) == 4
    assert row_of(rows, f"difference: {PROBE} less baseline") is not None


def test_subjects_whom_the_model_was_trained_on_are_warned_of(folders, tmp_path, capsys):
    judged(folders, capsys, "vq")
    data = [{"task": "Workload", "subjects": ["s0", "s5", "s4"]}]
    for name in ("classifier", "model"):
        copy = shutil.copytree(folders[name], tmp_path / name)
        file = copy / "config.json"
        config = json.loads(file.read_text())
        # of the neural tokenizer inside a NeuroLM
        (config["eeg_config"] if name == "model" else config)["provenance"] = {"data": data}
        file.write_text(json.dumps(config))
        script_module("evaluate_classifier").main(["--model", str(copy), "--data", folders["data"]])
        warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
        assert warned == ["warning: The model was trained on 2 of these subjects."]
    script_module("evaluate_classifier").main(["--model", folders["vq"], "--data", folders["data"]])
    assert "warning: " not in capsys.readouterr().err


def test_cpus_are_made_fast_as_everywhere(folders, capsys, monkeypatch):
    module, calls = script_module("evaluate_classifier"), []
    monkeypatch.setattr(module, "make_cpu_fast", lambda: calls.append("made"))
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    module.main(["--model", folders["vq"], "--data", folders["data"]])
    assert calls == ["made"]


def question_classifier(folders, folder, prompts):
    """A classifier on the language model that says what it was trained behind; its head is not at its start."""
    torch.manual_seed(1)
    model, processor = load_classifier(folders["model"], WORKLOAD.classes)
    torch.nn.init.normal_(model.score.weight)
    model.config.classifier_prompts = prompts
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_a_trained_head_is_asked_as_it_was_trained(folders, tmp_path, capsys):
    asked = question_classifier(folders, tmp_path / "asked", [WORKLOAD.prompt()])
    silent = question_classifier(folders, tmp_path / "silent", [])
    unknown = question_classifier(folders, tmp_path / "unknown", None)
    given = {"asked": asked, "silent": silent, "unknown": unknown, "data": folders["data"]}
    heads = {name: row_of(judged(given, capsys, name), HEAD) for name in ("asked", "silent", "unknown")}
    with_question = row_of(judged(given, capsys, "unknown", "--with-question"), HEAD)
    assert heads["silent"] == heads["unknown"]
    assert heads["asked"] == with_question == row_of(judged(given, capsys, "asked", "--with-question"), HEAD)
    assert heads["asked"] != heads["silent"]


def test_a_head_is_not_judged_behind_another_text(folders, tmp_path):
    other = load_task("Workload").prompt().replace("workload", "effort")
    for prompts, options, words in (
        ([other], [], "effort"),
        ([], ["--with-question"], "was trained on EEG alone: leave --with-question out"),
    ):
        model = question_classifier(folders, tmp_path / words[:3], prompts)
        with pytest.raises(SystemExit, match=words):
            script_module("evaluate_classifier").main(["--model", model, "--data", folders["data"], *options])


def write_adapter(folders, folder):
    """An adapter of a classifier with its config beside it, and the model with it merged."""
    torch.manual_seed(1)
    base, _ = load_classifier(folders["model"], WORKLOAD.classes, "mean")
    base.config.classifier_prompts = [WORKLOAD.prompt()]
    adapted = stir(add_adapter(base, folders["model"], lora_config(base)))
    adapted.save_pretrained(folder)
    base.config.save_pretrained(folder)
    return str(folder), adapted.merge_and_unload().eval()


def test_an_adapter_of_a_classifier_is_judged(folders, tmp_path, capsys):
    adapter, merged = write_adapter(folders, tmp_path / "adapter")
    rows = judged({"adapter": adapter, "data": folders["data"]}, capsys, "adapter")
    processor = NeuroLMProcessor.from_pretrained(folders["model"])
    prepared = load_prepared(folders["data"], "test")
    batch = ClassificationCollator(processor, True, WORKLOAD)([prepared[index] for index in range(len(prepared))])
    with torch.no_grad():
        logits = merged(**{name: values for name, values in batch.items() if name != "rows"}).logits
    labels = np.asarray(prepared["label"])
    assert row_of(rows, HEAD)["AUROC"].startswith(f"{auroc(labels, logits.softmax(1)[:, 1]):.3f} (")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"--data": "corpus"}, "which asks nothing"),
        ({"--model": "gpt2"}, "is a gpt2: give a NeuroLM"),
        ({"--pooling": "mean", "--model": "vq"}, "leave --pooling out"),
        ({"--model": "vq", "--with-question": "true"}, "A question needs a text tokenizer"),
        ({"--data": "data:train"}, "fitted on the train split"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(folders, changes, words):
    given = {"--model": "model", "--data": "data"} | changes
    places = {**folders, "data:train": f"{folders['data']}:train"}
    arguments = [part for name, value in given.items() for part in (name, places.get(value, value))]
    with pytest.raises(SystemExit) as exit_:
        script_module("evaluate_classifier").main(arguments)
    assert words in str(exit_.value.code)
