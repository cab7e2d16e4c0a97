"""The script that fine-tunes a classifier: from prepared folders to one that opens anywhere, and its errors."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from stage_folders import write_language_model, write_sets, write_text_model, write_tokenizer, write_vq
from test_launching import run as launched
from test_recipes import REPOSITORY
from test_train_scripts import here, results
from tiny_labram import masked_model
from transformers import AutoModelForSequenceClassification, AutoProcessor

from neurolm_hf import EEGFeatureExtractor, NeuroLMForCausalLM, NeuroLMProcessor, NeuroLMVQModel
from neurolm_hf.collators import ClassificationCollator
from neurolm_hf.metrics import balanced_accuracy
from neurolm_hf.processing_neurolm import LABRAM_LAYOUT
from neurolm_hf.starting_models import load_classifier
from neurolm_hf.storage import load_prepared
from neurolm_hf.tasks import load_task


RECIPE = REPOSITORY / "recipes" / "classifier.yaml"
# Two epochs of two steps, each of two micro-batches.
SHORT = [
    *("--use-cpu", "--num-train-epochs", "2", "--per-device-train-batch-size", "4", "--total-train-batch-size", "8"),
    *("--logging-steps", "1", "--learning-rate", "1e-2"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder, as strings."""
    root = tmp_path_factory.mktemp("classifier")
    tokenizer = write_tokenizer(root / "tokenizer")
    made = {"vq": write_vq(root / "vq"), "gpt2": write_text_model(root / "gpt2", tokenizer)}
    made["model"] = write_language_model(root / "model", made["vq"], made["gpt2"])
    made |= {name: write_sets(root / name, name) for name in ("Workload", "HMC", "Corpus")}
    masked_model().save_pretrained(root / "labram")
    NeuroLMProcessor(EEGFeatureExtractor(notch_frequency=50, **LABRAM_LAYOUT)).save_pretrained(root / "labram")
    made["labram"] = root / "labram"
    return {name: str(folder) for name, folder in made.items()}


def tune(folders, output, *more, model="model", data="Workload"):
    """Exit status of a short training."""
    arguments = ["--model", folders[model], "--train-data", folders[data], "--output-dir", output, *SHORT, *more]
    return here("finetune_classifier", RECIPE, *arguments)


@pytest.mark.parametrize(
    ("model", "options", "trained"),
    [
        ("model", ["--with-question"], {"score", "model.language_model", "model.channel_embedding"}),
        ("model", ["--pooling", "encoder_mean"], {"score"}),
        # what is said of the validation split is without smoothing
        ("vq", ["--tune-eeg-encoder", "--label-smoothing-factor", "0.1"], {"score", "encoder"}),
    ],
)
def test_a_classifier_is_trained_and_opens(folders, tmp_path, model, options, trained):
    task = load_task("Workload")
    assert tune(folders, tmp_path / "run", *options, model=model) == 0
    made = results(tmp_path / "run")
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "run")
    assert opened.config.id2label == dict(enumerate(task.classes))
    assert opened.config.label2id == dict(task.answers)
    assert opened.config.problem_type == "single_label_classification"
    assert opened.config.provenance == made["provenance"]
    assert made["provenance"]["made_by"].startswith("finetune_classifier.py of neurolm_hf")
    assert [one["name"] for one in made["tasks"]] == ["Workload"]
    prompts = {"model": [task.prompt()] if "--with-question" in options else [], "vq": None}[model]
    for saved in (tmp_path / "run", tmp_path / "run" / "checkpoint-2"):
        assert json.loads((saved / "config.json").read_text()).get("classifier_prompts") == prompts
    # what it says of the validation split is what stands in the figures
    rows = load_prepared(folders["Workload"], "validation")
    batch = ClassificationCollator(processor, "--with-question" in options, task)([rows[i] for i in range(len(rows))])
    with torch.no_grad():
        output = opened(**{name: values for name, values in batch.items() if name != "rows"})
    assert made["validation"]["eval_loss"] == pytest.approx(float(output.loss), rel=1e-4)
    scored = balanced_accuracy(np.asarray(rows["label"]), output.logits.argmax(1))
    assert made["validation"]["eval_balanced_accuracy"] == pytest.approx(scored)
    best = max(entry["eval_balanced_accuracy"] for entry in made["log"] if "eval_balanced_accuracy" in entry)
    assert scored == pytest.approx(best)
    # nothing has moved but what was to be trained
    whole = (NeuroLMVQModel if model == "vq" else NeuroLMForCausalLM).from_pretrained(folders[model]).state_dict()
    moved = {name for name, value in opened.state_dict().items() if not torch.equal(value, whole.get(name, value))}
    moved |= {name for name in opened.state_dict() if name not in whole}
    assert {next(part for part in trained if name.startswith(part)) for name in moved} == trained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("model", ["--with-question"]),
        ("model", ["--pooling", "encoder_mean"]),
        ("vq", ["--tune-eeg-encoder"]),
        ("labram", ["--layer-decay", "0.65", "--label-smoothing-factor", "0.1"]),
    ],
)
def test_two_processes_train_what_one_does(folders, tmp_path, model, options):
    """DDP over gloo: a step of two processes is one of two micro-batches."""
    given = ["--model", folders[model], "--train-data", folders["Workload"], "--channel-dropout", "0.3", *options]
    given += ["--use-cpu", "--num-train-epochs", "2", "--per-device-train-batch-size", "4", "--learning-rate", "1e-2"]
    given += ["--eval-strategy", "epoch", "--logging-steps", "1"]
    # were there one process only, it would take twice as many steps
    launch = ("accelerate", "launch", "--config_file", "configs/ddp-cpu.yaml", "--main_process_port", "0")
    launched(REPOSITORY, *launch, "scripts/finetune_classifier.py", *given, "--output-dir", str(tmp_path / "two"))
    alone = [*given, "--gradient-accumulation-steps", "2", "--output-dir", tmp_path / "one"]
    assert here("finetune_classifier", *alone) == 0
    logs = [results(tmp_path / name)["log"] for name in ("one", "two")]
    assert [entry["step"] for entry in logs[0]] == [entry["step"] for entry in logs[1]]
    compared = ("loss", "grad_norm", "eval_loss", "eval_balanced_accuracy")
    figures = [[entry[name] for entry in log for name in compared if name in entry] for log in logs]
    assert figures[1] == pytest.approx(figures[0], rel=1e-4)
    weights, others, before = (
        load_file(folder / "model.safetensors")
        for folder in (tmp_path / "one", tmp_path / "two", Path(folders[model]))
    )
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, atol=1e-4, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
    moved = [name for name, tensor in weights.items() if name in before and not torch.equal(tensor, before[name])]
    assert bool(moved) == ("encoder_mean" not in options)


def test_the_same_command_goes_on_and_a_classifier_can_be_trained_further(folders, tmp_path, capsys):
    assert tune(folders, tmp_path / "run", model="vq") == 0
    first = (tmp_path / "run" / "model.safetensors").read_bytes()
    assert tune(folders, tmp_path / "run", model="vq") == 0
    assert "this run has ended, at step 4" in capsys.readouterr().out
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == first
    head = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").score.weight
    again, _ = load_classifier(str(tmp_path / "run"), load_task("Workload").classes)
    assert torch.equal(again.score.weight, head)
    with pytest.raises(ValueError, match="is a classifier of No, Yes; these sets have"):
        load_classifier(str(tmp_path / "run"), load_task("HMC").classes)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data": "Corpus"}, "which asks nothing: this training needs a task with a question"),
        ({"model": "gpt2"}, "is a gpt2: give a NeuroLM"),
        ({"model": "vq", "options": ["--pooling", "mean"]}, "leave --pooling out"),
        ({"model": "vq", "options": ["--with-question"]}, "no text tokenizer to write a question with"),
        ({"options": ["--pooling", "cls"]}, "whose --pooling is last_token or mean or encoder_mean, not cls"),
        ({"options": ["--drop-path", "0.1"]}, "a neurolm, which has no drop path: leave --drop-path out"),
        ({"options": ["--layer-decay", "0.5"]}, "does not say how deep its weights lie"),
    ],
)
def test_what_cannot_be_trained_is_told_in_a_line(folders, tmp_path, capsys, given, words):
    options = given.pop("options", [])
    assert tune(folders, tmp_path / "run", *options, **given) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


def test_tasks_of_different_answers_have_no_common_head(folders, tmp_path, capsys):
    sets = [folders["Workload"], folders["HMC"]]
    arguments = ["--model", folders["vq"], "--train-data", *sets, "--output-dir", tmp_path / "run", *SHORT]
    assert here("finetune_classifier", RECIPE, *arguments) == 1
    assert "one head has one set of classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--pooling", "encoder_mean", "--with-question"], "--with-question does not go with it"),
        (["--channel-dropout", "1"], "--channel-dropout is a share from 0 to below 1"),
        (["--pooling", "last"], "invalid choice"),
        (["--drop-path", "1"], "--drop-path is a share from 0 to below 1"),
        (["--layer-decay", "0"], "--layer-decay is a share above 0 and up to 1"),
    ],
)
def test_wrong_usage(folders, tmp_path, capsys, options, words):
    assert tune(folders, tmp_path / "run", *options) == 2
    assert words in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        json.loads((tmp_path / "run" / "settings.json").read_text())


def test_the_model_must_be_named(tmp_path, capsys):
    assert here("finetune_classifier", "--train-data", "somewhere", "--output-dir", tmp_path / "run") == 2
    assert "give --model, a NeuroLM, a neural tokenizer or a LaBraM" in capsys.readouterr().err
