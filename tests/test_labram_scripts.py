"""LaBraM by the scripts, from prepared sets to a classifier: tokenizer, masked modelling, fine-tuning; errors."""

import json
import os
import re
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from stage_folders import write_sets, write_text_model, write_tokenizer, write_vq
from test_recipes import REPOSITORY, script_module
from test_train_scripts import figures, here, results
from tiny_labram import WIDTHS, labram_classifier, labram_vq, masked_model
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, AutoProcessor
from transformers.utils import logging

from neurolm_hf import EEGFeatureExtractor, NeuroLMProcessor, starting_models
from neurolm_hf.collators import ClassificationCollator, MaskedCollator
from neurolm_hf.metrics import balanced_accuracy
from neurolm_hf.processing_neurolm import LABRAM_LAYOUT
from neurolm_hf.starting_models import load_classifier, load_vq
from neurolm_hf.storage import load_prepared
from neurolm_hf.tasks import load_task
from neurolm_hf.training_set import TrainingSet


RECIPES = REPOSITORY / "recipes"
TINY = json.dumps({**WIDTHS, "num_hidden_layers": 2})
TINY_VQ = json.dumps(
    {**WIDTHS, "num_hidden_layers": 1, "decoder_num_hidden_layers": 1, "codebook_size": 16, "codebook_dim": 8}
)
# Three steps of two micro-batches.
SHORT = [
    *("--use-cpu", "--max-steps", "3", "--per-device-train-batch-size", "4", "--total-train-batch-size", "8"),
    *("--logging-steps", "1", "--eval-strategy", "steps", "--eval-steps", "2", "--save-steps", "2"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder, as strings."""
    root = tmp_path_factory.mktemp("labram")
    made = {name: write_sets(root / name, name) for name in ("Workload", "HMC", "Corpus")}
    made["neurolm-vq"] = write_vq(root / "neurolm-vq")
    made["gpt2"] = write_text_model(root / "gpt2", write_tokenizer(root / "tokenizer"))
    extractor = EEGFeatureExtractor(notch_frequency=50, **LABRAM_LAYOUT)
    for name, model in {
        "untrained-vq": labram_vq(),
        "masked": masked_model(),
        "without-vq": masked_model(vq_config=None),
        "binary": labram_classifier(num_labels=1, problem_type="multi_label_classification"),
    }.items():
        model.save_pretrained(root / name)
        NeuroLMProcessor(extractor).save_pretrained(root / name)
        made[name] = root / name
    made["root"] = root
    return {name: str(folder) for name, folder in made.items()}


@pytest.fixture(scope="module")
def vq(folders):
    output = f"{folders['root']}/run-vq"
    options = ["--from-scratch", "--vq-config", TINY_VQ, "--quantizer-warmup-steps", "1", *SHORT]
    sets = ["--train-data", folders["Workload"], folders["Corpus"], "--weights", "2", "1"]
    assert here("train_vq", RECIPES / "labram-vq-cpu.yaml", *options, *sets, "--output-dir", output) == 0
    return output


@pytest.fixture(scope="module")
def pretrained(folders, vq):
    output = f"{folders['root']}/run-pretrained"
    options = ["--from-scratch", "--vq", vq, "--labram-config", TINY, *SHORT]
    sets = ["--train-data", folders["Workload"], folders["Corpus"]]
    recipe = RECIPES / "labram-pretrain-cpu.yaml"
    assert here("pretrain_masked", recipe, *options, *sets, "--output-dir", output) == 0
    return output


def test_the_tokenizer_is_trained_and_written(vq):
    made = results(vq)
    for name in ("amplitude_loss", "phase_loss", "codebook_usage", "perplexity"):
        assert made["validation"][f"eval_{name}"] > 0
    assert [entry["step"] for entry in made["log"] if "amplitude_loss" in entry] == [1, 2, 3]
    assert {path.name for path in (Path(vq) / "reconstruction").iterdir()} == {"step-2.png", "step-3.png"}
    model = AutoModel.from_pretrained(vq)
    assert (model.config.model_type, model.config.codebook_size) == ("labram_vq", 16)
    assert model.config.provenance["recipe"] == "labram-vq-cpu.yaml"
    assert model.encoder.quantizer.initialized
    extractor = EEGFeatureExtractor.from_pretrained(vq)
    assert {name: getattr(extractor, name) for name in LABRAM_LAYOUT} == LABRAM_LAYOUT
    assert extractor.recipe_id == EEGFeatureExtractor(notch_frequency=50).recipe_id


def test_a_trained_tokenizer_is_trained_on_as_what_it_is(folders, vq, tmp_path):
    given = ["--vq", vq, "--train-data", folders["Corpus"], "--output-dir", tmp_path / "run", *SHORT]
    # a recipe's sizes must be those of the folder
    unset = ["--vq-config", "{}", "--quantizer-warmup-steps", "0"]
    assert here("train_vq", RECIPES / "labram-vq-cpu.yaml", *given, *unset) == 0
    start = results(tmp_path / "run")["provenance"]["started_from"]
    assert start["vq"] == vq
    assert start["provenance"]["recipe"] == "labram-vq-cpu.yaml"
    assert AutoModel.from_pretrained(tmp_path / "run").config.model_type == "labram_vq"


def test_masked_modelling_is_trained_and_opens(folders, vq, pretrained):
    made = results(pretrained)
    model = AutoModelForPreTraining.from_pretrained(pretrained)
    assert model.config.num_hidden_layers == 2
    assert model.config.provenance == made["provenance"]
    assert made["provenance"]["made_by"].startswith("pretrain_masked.py of neurolm_hf")
    assert made["provenance"]["started_from"]["vq"] == vq
    for name, tensor in load_vq(vq, architectures=["labram"])[0].encoder.state_dict().items():
        assert torch.equal(model.vq.state_dict()[name], tensor), name
    logged = [entry for entry in made["log"] if "masked_loss" in entry]
    assert [entry["step"] for entry in logged] == [1, 2, 3]
    for entry in logged:
        assert entry["loss"] == pytest.approx(entry["masked_loss"] + entry["complement_loss"], rel=1e-3)
        assert 0 <= entry["masked_accuracy"] <= 1
    # what it says of the validation split, whose masks are those of its rows
    processor = AutoProcessor.from_pretrained(pretrained)
    assert processor.tokenizer is None
    parts = [(load_prepared(folders[name], "validation"), None) for name in ("Workload", "Corpus")]
    rows = TrainingSet(parts, processor.feature_extractor)
    batch = MaskedCollator(processor.feature_extractor)([rows[place] for place in range(len(rows))])
    with torch.no_grad():
        output = model.eval()(**{name: values for name, values in batch.items() if name != "rows"})
    for name in ("loss", "masked_loss", "complement_loss"):
        assert made["validation"][f"eval_{name}"] == pytest.approx(float(output[name]), rel=1e-4)


def test_evaluations_mask_the_same_patches_each_time(folders, pretrained, monkeypatch, tmp_path):
    seen = []

    class Watching(MaskedCollator):
        def __call__(self, rows):
            batch = super().__call__(rows)
            seen.extend(zip(batch["rows"], batch["masked"].tolist(), strict=True))
            return batch

    monkeypatch.setattr(script_module("pretrain_masked"), "MaskedCollator", Watching)
    given = ["--model", pretrained, "--train-data", folders["Corpus"], "--output-dir", tmp_path / "run", *SHORT]
    assert here("pretrain_masked", *given, "--max-steps", "4", "--num-train-epochs", "2") == 0
    masks = {}
    for row, mask in seen:
        masks.setdefault(row, []).append(tuple(mask))
    validation = {row: found for row, found in masks.items() if row.startswith("validation")}
    assert len(validation) == 6
    assert all(len(found) == 2 and len(set(found)) == 1 for found in validation.values())
    assert any(len(set(found)) > 1 for row, found in masks.items() if row.startswith("train"))


@pytest.mark.parametrize("script", ["pretrain_masked", "finetune_classifier"])
def test_a_stopped_run_ends_with_the_same_weights(folders, vq, tmp_path, capsys, monkeypatch, script):
    """With the same masks; and with a state of the optimiser in many groups, and blocks left out at random."""
    start = {
        "pretrain_masked": ["--from-scratch", "--vq", vq, "--labram-config", TINY],
        "finetune_classifier": [*("--model", folders["masked"]), "--layer-decay", "0.65", "--drop-path", "0.5"],
    }[script]
    given = [*start, "--use-cpu", "--max-steps", "5", "--per-device-train-batch-size", "4"]
    given += ["--train-data", folders["Workload"]]
    assert here(script, *given, "--output-dir", tmp_path / "whole") == 0
    collator = {"pretrain_masked": MaskedCollator, "finetune_classifier": ClassificationCollator}[script]

    class Preempted(collator):
        def __call__(self, rows):
            os.kill(os.getpid(), signal.SIGTERM)
            return super().__call__(rows)

    with monkeypatch.context() as context:
        context.setattr(script_module(script), collator.__name__, Preempted)
        assert here(script, *given, "--output-dir", tmp_path / "stopped") == 143
    assert here(script, *given, "--output-dir", tmp_path / "stopped") == 0
    assert "going on from step 1 of 5" in capsys.readouterr().out
    whole, stopped = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped"))
    assert whole == stopped


def test_a_model_without_its_tokenizer_goes_on_with_it_beside(folders, vq, tmp_path, capsys):
    given = ["--train-data", folders["Corpus"], "--output-dir", tmp_path / "run", *SHORT]
    assert here("pretrain_masked", "--model", folders["without-vq"], *given) == 1
    assert "has no tokenizer that gives codes: give --vq" in capsys.readouterr().err
    assert here("pretrain_masked", "--model", folders["without-vq"], "--vq", folders["untrained-vq"], *given) == 0
    start, made = (AutoModelForPreTraining.from_pretrained(one) for one in (folders["without-vq"], tmp_path / "run"))
    assert made.vq is not None
    assert start.labram.state_dict().keys() == made.labram.state_dict().keys()
    # three steps have moved it a little
    for name, tensor in start.labram.state_dict().items():
        torch.testing.assert_close(made.labram.state_dict()[name], tensor, atol=1e-3, rtol=0, msg=name)


@pytest.mark.parametrize(
    "script",
    ["pretrain_masked", *(pytest.param(one, marks=pytest.mark.slow) for one in ("train_vq", "finetune_classifier"))],
)
@pytest.mark.parametrize(
    ("option", "tolerance"),
    [
        (["--activation-checkpointing"], 1e-6),
        (["--torch-compile", "--torch-compile-backend", "eager"], 1e-5),
        (["--bf16"], 0.05),
    ],
    ids=["checkpointing", "compiled", "bf16"],
)
def test_what_saves_time_or_memory_changes_no_figure(folders, tmp_path, script, option, tolerance):
    start = {
        "train_vq": ["--from-scratch", "--architecture", "labram", "--vq-config", TINY_VQ],
        "pretrain_masked": ["--model", folders["masked"]],
        "finetune_classifier": ["--model", folders["masked"], "--layer-decay", "0.65"],
    }[script]
    given = [*start, "--train-data", folders["Workload"], *SHORT, "--max-steps", "2"]
    torch.compiler.reset()
    assert here(script, *given, "--output-dir", tmp_path / "plain") == 0
    assert here(script, *given, *option, "--output-dir", tmp_path / "given") == 0
    torch.compiler.reset()
    plain, other = figures(tmp_path / "plain"), figures(tmp_path / "given")
    assert len(plain) == 5
    assert other == pytest.approx(plain, rel=tolerance)
    if option == ["--bf16"]:
        assert other != plain


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_classifier_is_fine_tuned_and_opens(folders, pretrained, tmp_path, caplog, pooling):
    task, output, takes_mean = load_task("Workload"), tmp_path / "run", pooling == "mean"
    given = ["--model", pretrained, "--train-data", folders["Workload"], "--output-dir", output, "--pooling", pooling]
    given += [*SHORT, "--load-best-model-at-end", "false", "--save-strategy", "steps", "--dataloader-num-workers", "0"]
    logging.enable_propagation()
    assert here("finetune_classifier", RECIPES / "labram-finetune-base.yaml", *given) == 0
    report = dict(re.findall(r"([\w.]+)\s+\| (MISSING|UNEXPECTED)", caplog.text))
    new = {f"{module}.{name}" for module in ("score", "pooled_norm")[: 1 + takes_mean] for name in ("weight", "bias")}
    unused = {"labram.transformer.norm.weight", "labram.transformer.norm.bias"} if takes_mean else set()
    assert report == dict.fromkeys(new, "MISSING") | dict.fromkeys(unused, "UNEXPECTED")
    opened = AutoModelForSequenceClassification.from_pretrained(output).eval()
    processor = AutoProcessor.from_pretrained(output)
    assert opened.config.id2label == dict(enumerate(task.classes))
    # a recording is cut as the head has learnt it
    assert processor.feature_extractor.window_seconds == task.windows.seconds == 4
    assert (opened.config.classifier_pooling, opened.config.drop_path_rate) == (pooling, 0.1)
    made = results(output)
    assert opened.config.provenance == made["provenance"]
    assert [one["name"] for one in made["tasks"]] == ["Workload"]
    rows = load_prepared(folders["Workload"], "validation")
    batch = ClassificationCollator(processor)([rows[i] for i in range(len(rows))])
    with torch.no_grad():
        result = opened(**{name: values for name, values in batch.items() if name != "rows"})
    # the validation loss is without smoothing
    assert made["validation"]["eval_loss"] == pytest.approx(float(result.loss), rel=1e-4)
    scored = balanced_accuracy(np.asarray(rows["label"]), result.logits.argmax(1))
    assert made["validation"]["eval_balanced_accuracy"] == pytest.approx(scored)
    settings = json.loads((output / "settings.json").read_text())
    assert (settings["layer_decay"], settings["label_smoothing_factor"]) == (0.65, 0.1)
    again, _ = load_classifier(str(output), task.classes)
    assert torch.equal(again.score.weight, opened.score.weight)


def test_a_classifier_of_one_logit_stands_for_the_second_class(folders):
    model, processor = load_classifier(folders["binary"], ("No", "Yes"))
    assert (model.config.num_labels, model.config.problem_type) == (1, "multi_label_classification")
    assert model.config.id2label == {0: "Yes"}
    assert processor.feature_extractor.token_order == "channel_major"
    with pytest.raises(
        ValueError, match=r"is a classifier of LABEL_0 \(multi_label_classification\); these sets have"
    ):
        load_classifier(folders["binary"], load_task("HMC").classes)


@pytest.mark.parametrize(
    ("labels", "problem_type", "words"),
    [
        (["LABEL_0"], "regression", r"of LABEL_0 \(regression\); these sets have No, Yes"),
        (["abnormal"], "multi_label_classification", r"of abnormal \(multi_label_classification\)"),
        (["No", "Yes"], "multi_label_classification", r"of No, Yes \(multi_label_classification\)"),
        (["Yes", "No"], "single_label_classification", "of Yes, No; these sets have No, Yes"),
    ],
)
def test_a_head_of_something_else_is_refused(tmp_path, labels, problem_type, words):
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: place for place, name in enumerate(labels)}}
    model = labram_classifier(num_labels=len(labels), problem_type=problem_type, **names)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=words):
        load_classifier(str(tmp_path), ("No", "Yes"))


@pytest.mark.parametrize("script", ["train_vq", "pretrain_masked", "finetune_classifier"])
def test_windows_that_labram_cannot_read_are_told_by_name(folders, tmp_path, capsys, monkeypatch, script):
    start = {
        "train_vq": ["--from-scratch", "--architecture", "labram"],
        "pretrain_masked": ["--model", folders["masked"]],
        "finetune_classifier": ["--model", folders["masked"]],
    }[script]
    for module in (script_module("train_vq"), script_module("pretrain_masked"), starting_models):
        monkeypatch.setitem(module.LABRAM_LAYOUT, "max_seconds", 2)
    given = ["--train-data", folders["Workload"], "--output-dir", tmp_path / "run", *SHORT]
    assert here(script, *start, *given) == 1
    assert re.search(r"-\d\.edf at \d s .*the window has 4 s, and this model reads 2 s", capsys.readouterr().err)
    # before anything is trained, or claimed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        ("train_vq", ["--from-scratch", "--architecture", "labram", "--standardize-features"], "leave it out"),
        (
            "train_vq",
            [*("--from-scratch", "--architecture", "labram"), "--text-model", "{gpt2}", "--text-data", "{gpt2}"],
            "has no text adversary",
        ),
        ("train_vq", ["--from-scratch", "--label-smoothing-factor", "0.1"], "is for classifiers of single labels"),
        ("train_vq", ["--vq", "{neurolm-vq}", "--architecture", "labram"], "is a tokenizer of neurolm"),
        ("train_vq", ["--vq", "{masked}"], "is a LaBraM, not the neural tokenizer"),
        (
            "train_vq",
            ["--from-scratch", "--architecture", "labram", "--vq-config", '{"raw_weight": 1}'],
            "no field raw",
        ),
        ("pretrain_masked", ["--from-scratch", "--vq", "{neurolm-vq}"], "--architecture labram"),
        (
            "pretrain_masked",
            ["--from-scratch", "--vq", "{untrained-vq}", "--labram-config", '{"depth": 1}'],
            "no field",
        ),
        ("pretrain_masked", ["--model", "{untrained-vq}"], "give it as --vq, with --from-scratch"),
        ("pretrain_masked", ["--model", "{binary}"], "is a LaBraMForSequenceClassification, not"),
        ("pretrain_masked", ["--model", "{masked}", "--vq", "{untrained-vq}"], "leave --vq out"),
        ("finetune_classifier", ["--model", "{untrained-vq}"], "give the LaBraM that learnt its codes"),
        ("finetune_classifier", ["--model", "{masked}", "--tune-eeg-encoder"], "leave --tune-eeg-encoder out"),
        ("finetune_classifier", ["--model", "{masked}", "--with-question"], "leave --with-question out"),
        ("finetune_classifier", ["--model", "{masked}", "--pooling", "last_token"], "is mean or cls, not last_token"),
        ("pretrain", ["--vq", "{untrained-vq}", "--text-model", "{gpt2}"], "--architecture neurolm"),
    ],
)
def test_what_cannot_be_trained_is_told_in_a_line(folders, tmp_path, capsys, script, options, words):
    options = [folders[one[1:-1]] if one.startswith("{") and one[1:-1] in folders else one for one in options]
    given = ["--train-data", folders["Workload"], "--output-dir", tmp_path / "run", *SHORT]
    assert here(script, *options, *given) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert words in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give --model, a pre-trained LaBraM, or --from-scratch"),
        (["--model", "a", "--from-scratch"], "give --model, a pre-trained LaBraM, or --from-scratch"),
        (["--from-scratch"], "--from-scratch needs --vq"),
        (["--model", "a", "--size", "Large"], "leave --size and --labram-config out"),
        (["--from-scratch", "--vq", "a", "--size", "XL"], "invalid choice: 'XL'"),
    ],
)
def test_wrong_usage(tmp_path, capsys, options, words):
    assert here("pretrain_masked", *options, "--train-data", "data", "--output-dir", tmp_path / "run") == 2
    assert words in capsys.readouterr().err
