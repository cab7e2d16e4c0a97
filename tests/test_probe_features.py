"""The script that says what features hold: its table, its rows by hand, and its errors."""

import json
import shutil

import numpy as np
import pytest
import torch
from labram_folders import write_labram_folders
from prepared_folders import write_prepared
from stage_folders import write_language_model, write_text_model, write_tokenizer, write_vq
from test_recipes import script_module

from neurolm_hf import NeuroLMVQForSequenceClassification
from neurolm_hf.baseline import logistic_probabilities
from neurolm_hf.collators import EEGCollator
from neurolm_hf.metrics import balanced_accuracy
from neurolm_hf.processing_neurolm import EEGFeatureExtractor
from neurolm_hf.starting_models import load_classifier
from neurolm_hf.storage import load_prepared
from neurolm_hf.tasks import load_task


WORKLOAD = load_task("Workload")
PROBE, BASELINE = "its features", "log band power"


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
    made["labram"] = write_labram_folders(root / "labrams") / "masked"
    return {name: str(folder) for name, folder in made.items()}


def judged(folders, capsys, model, *options):
    """Rows of the table: name -> cells."""
    script_module("probe_features").main(["--model", folders[model], "--data", folders["data"], *options])
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


def test_the_probe_stands_beside_baseline_and_chance(folders, capsys):
    rows = judged(folders, capsys, "classifier")
    assert len(rows) == 4
    model = NeuroLMVQForSequenceClassification.from_pretrained(folders["classifier"]).eval()
    collate = EEGCollator(EEGFeatureExtractor.from_pretrained(folders["classifier"]))
    features, labels = {}, {}
    for split in ("train", "test"):
        prepared = load_prepared(folders["data"], split)
        batch = collate([prepared[index] for index in range(len(prepared))])
        labels[split] = np.asarray(prepared["label"])
        with torch.no_grad():
            inputs = {name: values for name, values in batch.items() if name != "rows"}
            features[split] = model(**inputs).features.numpy()
    fitted = logistic_probabilities(features["train"], labels["train"], features["test"], strength=0.01)
    by_probe = balanced_accuracy(labels["test"], fitted.argmax(1))
    assert row_of(rows, PROBE)["balanced accuracy"].startswith(f"{by_probe:.3f} (")
    assert row_of(rows, "chance")["AUROC"].startswith("0.500")
    less = row_of(rows, f"difference: {PROBE} less baseline")["AUROC"].split(" ")[0]
    difference = auroc_of(row_of(rows, PROBE)) - auroc_of(row_of(rows, BASELINE))
    assert float(less) == pytest.approx(difference, abs=1.5e-3)
    assert less[0] in "+-"


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("vq", []),
        ("model", ["--with-question"]),
        ("model", ["--pooling", "encoder_mean"]),
        ("labram", []),
        ("labram", ["--pooling", "cls"]),
    ],
)
def test_models_that_were_never_classifiers(folders, capsys, model, options):
    rows = judged(folders, capsys, model, *options)
    assert row_of(rows, PROBE) is not None
    assert len(rows) == 4


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
        script_module("probe_features").main(["--model", str(copy), "--data", folders["data"]])
        warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
        assert warned == ["warning: The model was trained on 2 of these subjects."]
    script_module("probe_features").main(["--model", folders["vq"], "--data", folders["data"]])
    assert "warning: " not in capsys.readouterr().err


def test_cpus_are_made_fast_as_everywhere(folders, capsys, monkeypatch):
    module, calls = script_module("probe_features"), []
    monkeypatch.setattr(module, "make_cpu_fast", lambda: calls.append("made"))
    monkeypatch.setattr(module.torch.cuda, "is_available", lambda: False)
    module.main(["--model", folders["vq"], "--data", folders["data"]])
    assert calls == ["made"]


def question_classifier(folders, folder, prompts):
    """A classifier on the language model that says what it was trained behind."""
    model, processor = load_classifier(folders["model"], WORKLOAD.classes)
    model.config.classifier_prompts = prompts
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def test_a_trained_classifier_is_asked_as_it_was_trained(folders, tmp_path, capsys):
    asked = question_classifier(folders, tmp_path / "asked", [WORKLOAD.prompt()])
    silent = question_classifier(folders, tmp_path / "silent", [])
    unknown = question_classifier(folders, tmp_path / "unknown", None)
    given = {"asked": asked, "silent": silent, "unknown": unknown, "data": folders["data"]}
    probes = {name: row_of(judged(given, capsys, name), PROBE) for name in ("asked", "silent", "unknown")}
    with_question = row_of(judged(given, capsys, "unknown", "--with-question"), PROBE)
    assert probes["silent"] == probes["unknown"]
    assert probes["asked"] == with_question == row_of(judged(given, capsys, "asked", "--with-question"), PROBE)
    assert probes["asked"] != probes["silent"]


def test_features_behind_another_text_are_refused(folders, tmp_path):
    other = load_task("Workload").prompt().replace("workload", "effort")
    for prompts, options, words in (
        ([other], [], "effort"),
        ([], ["--with-question"], "was trained on EEG alone: leave --with-question out"),
    ):
        model = question_classifier(folders, tmp_path / words[:3], prompts)
        with pytest.raises(SystemExit, match=words):
            script_module("probe_features").main(["--model", model, "--data", folders["data"], *options])


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
        script_module("probe_features").main(arguments)
    assert words in str(exit_.value.code)
