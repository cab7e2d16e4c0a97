"""The script that judges a classifier and what features hold: its table, its rows by hand, and its errors."""

import numpy as np
import pytest
import torch
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


def test_a_trained_head_stands_beside_the_probe_baseline_and_chance(folders, capsys):
    rows = judged(folders, capsys, "classifier")
    assert len(rows) == 4
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
    assert row_of(rows, BASELINE) is not None


@pytest.mark.parametrize(
    ("model", "options"), [("vq", []), ("model", ["--with-question"]), ("model", ["--pooling", "encoder_mean"])]
)
def test_of_other_models_the_features_are_judged_alone(folders, capsys, model, options):
    rows = judged(folders, capsys, model, *options)
    assert row_of(rows, HEAD) is None
    assert row_of(rows, PROBE) is not None
    assert len(rows) == 3


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
