import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import lm_config, vq_config


ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "estimate_training.py"
DOCUMENT = ROOT / "docs" / "scaling.md"
specification = importlib.util.spec_from_file_location("estimate_training", SCRIPT)
assert specification is not None
assert specification.loader is not None
estimate_training = importlib.util.module_from_spec(specification)
sys.modules["estimate_training"] = estimate_training
specification.loader.exec_module(estimate_training)

CORPUS = ["--hours", "2", "--channels", "3", "--window-seconds", "4"]
TEXT = ["--text-tokens", "12"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    lm_config().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def recipe(tmp_path: Path, text: str, name: str = "recipe.yaml") -> str:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return str(tmp_path / name)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    estimate_training.main([*arguments, "--json"])
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        estimate_training.main(list(arguments))
    return str(caught.value.code) if isinstance(caught.value.code, str) else capsys.readouterr().err


def test_a_recipe_is_counted_as_it_trains(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    written = recipe(
        tmp_path,
        "num_train_epochs: 2\ntotal_train_batch_size: 24\nper_device_train_batch_size: 4\ntext_batch_size: 6\n"
        "activation_checkpointing: true\n",
    )
    (stage,) = told(capsys, "--model", model, "--pretrain", written, "--devices", "2", *CORPUS, *TEXT)
    assert stage["stage"] == "pretrain"
    assert stage["windows"] == 1800
    assert stage["steps"] == 150
    assert stage["eeg_tokens"] == 2 * 1800 * 12
    assert stage["text_tokens"] == 150 * 6 * 12
    assert (stage["micro_batch"]["windows"], stage["micro_batches"]) == (4, 3)
    assert stage["flops"] == 150 * sum(
        part["forward"] + part["backward"] for part in stage["flops_of_a_step"].values()
    )
    ddp = stage["strategies"]["DDP"]
    assert ddp["device_hours"] == pytest.approx(2 * ddp["hours"])
    # what the command line says counts more
    changes = ["--epochs", "1", "--total-batch-size", "8", "--micro-batch-size", "2", "--text-batch-size", "0"]
    (other,) = told(
        capsys, "--model", model, "--pretrain", written, "--devices", "1", *CORPUS, *changes, "--fp32",
        "--activation-checkpointing", "false", "--optim", "sgd",
    )  # fmt: skip
    assert (other["steps"], other["text_tokens"], other["micro_batches"]) == (225, 0, 4)
    assert set(other["strategies"]) == {"one device"}
    assert other["strategies"]["one device"]["rank"]["optimiser"] == 0
    assert "language model on text" not in other["flops_of_a_step"]


def test_a_recipe_that_says_little_has_the_trainers_defaults(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    written = recipe(tmp_path, "max_steps: 30\ngradient_accumulation_steps: 2\n")
    (stage,) = told(capsys, "--model", model, "--vq", written, "--devices", "1", *CORPUS, *TEXT)
    assert stage["steps"] == 30
    assert (stage["micro_batch"]["windows"], stage["micro_batches"]) == (8, 2)
    # a quarter of the windows
    assert stage["text_tokens"] == 30 * 4 * 12
    assert "adversary on text" in stage["flops_of_a_step"]
    (without,) = told(capsys, "--model", model, "--vq", written, "--devices", "1", "--text-batch-size", "0", *CORPUS)
    assert set(without["flops_of_a_step"]) == {"encoder", "quantiser", "decoders"}


def test_an_adapter_is_the_recipes_or_the_command_lines(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    written = recipe(tmp_path, "lora: true\nlora_rank: 2\nlora_eeg_projector: true\nper_device_train_batch_size: 4\n")
    arguments = ["--model", model, "--instruct", written, "--prompt-tokens", "5", *CORPUS, *TEXT]
    trained = [
        told(capsys, *arguments, *more)[0]["trained"] for more in ([], ["--lora-rank", "4"], ["--lora-rank", "0"])
    ]
    assert trained[0] < trained[1] < trained[2]


def test_the_encoder_and_the_optimiser_are_the_recipes(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", model, "--devices", "1", "--prompt-tokens", "5", *CORPUS, *TEXT, "--instruct"]
    plain, other = (
        told(capsys, *arguments, recipe(tmp_path, f"per_device_train_batch_size: 4\n{more}"))[0]
        for more in ("", "tune_eeg_encoder: true\noptim: sgd\n")
    )
    assert other["trained"] > plain["trained"]
    assert other["flops_of_a_step"]["EEG encoder"]["backward"] > plain["flops_of_a_step"]["EEG encoder"]["backward"]
    ranks = [one["strategies"]["one device"]["rank"]["optimiser"] for one in (plain, other)]
    assert ranks[0] > 0 == ranks[1]


def test_each_stage_has_its_corpus(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    written = recipe(tmp_path, "num_train_epochs: 1\nper_device_train_batch_size: 4\n")
    stages = told(
        capsys, "--model", model, "--vq", written, "--pretrain", written, "--instruct", written, "--hours", "1",
        "2", "3", "--channels", "3", "--window-seconds", "4", "5", "6", "--devices", "1", *TEXT,
    )  # fmt: skip
    assert [stage["stage"] for stage in stages] == ["vq", "pretrain", "instruct"]
    assert [stage["windows"] for stage in stages] == [900, 1440, 1800]
    # questions and answers are the targets of the last one, so that no codes are looked up
    assert stages[2]["micro_batch"]["answer_tokens"] == 3


def test_tables_say_what_fits(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    written = recipe(tmp_path, "per_device_train_batch_size: 4\nactivation_checkpointing: true\n")
    arguments = ["--model", model, "--pretrain", written, *CORPUS, *TEXT]
    estimate_training.main(arguments)
    text = capsys.readouterr().out
    assert "8 × H100: 989 TFLOP/s in bfloat16, of which 40% are taken to be reached, 80 GB, 450 GB/s" in text
    assert "## Pre-training" in text
    assert "activation checkpointing" in text
    rows = [line for line in text.splitlines() if line.startswith("| ") and "GB of a GPU" not in line]
    strategies = [row.split(" | ")[0].strip("| ") for row in rows if "| yes |" in row]
    assert strategies == ["one device", "DDP", "ZeRO-1", "ZeRO-2", "ZeRO-3", "ZeRO-3, offloaded", "FSDP"]
    assert "Nothing is sent while something is computed" in text
    gpu = ["--tflops", "10", "--memory-gb", "0.0001", "--link-gbs", "5", "--devices", "16"]
    estimate_training.main([*arguments, *gpu])
    text = capsys.readouterr().out
    assert "16 × GPU: 10 TFLOP/s in bfloat16, of which 40% are taken to be reached, 0.0001 GB, 5 GB/s" in text
    assert "| yes |" not in text


def test_another_language_model_takes_the_place_of_the_presets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import Qwen3Config

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    Qwen3Config(**sizes, num_key_value_heads=2, head_dim=16, vocab_size=500).save_pretrained(tmp_path / "qwen")
    written = recipe(tmp_path, "per_device_train_batch_size: 1\n")
    (stage,) = told(
        capsys, "--text-model", str(tmp_path / "qwen"), "--pretrain", written, "--devices", "1", *CORPUS, *TEXT
    )
    # the paper's encoder with all that is small behind it
    assert 85e6 < stage["parameters"] < 95e6


def test_a_tokenizer_has_one_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vq_config().save_pretrained(tmp_path / "vq")
    written = recipe(tmp_path, "per_device_train_batch_size: 2\n")
    (stage,) = told(capsys, "--model", str(tmp_path / "vq"), "--vq", written, *CORPUS, *TEXT)
    assert stage["stage"] == "vq"
    problem = refused(capsys, "--model", str(tmp_path / "vq"), "--pretrain", written, *CORPUS)
    assert "without a language model" in problem


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--hours", "1"], "give a recipe to tell about"),
        (["--hours", "1", "2", "--pretrain", "r"], "--hours takes one value, or one for each of the 1 stages; got 2"),
        (["--hours", "0", "--pretrain", "r"], "--hours must be above 0"),
        (["--hours", "1", "--pretrain", "r", "--gpu", "Z80"], "--gpu is one of A100, H100, H200"),
        (["--hours", "1", "--pretrain", "r", "--utilisation", "1.5"], "--utilisation is a share"),
        (["--hours", "1", "--pretrain", "r", "--devices", "0"], "--devices and --gpus-per-node are at least 1"),
        (["--hours", "1", "--pretrain", "r", "--epochs", "-1"], "--epochs must not be negative"),
        (["--hours", "1", "--pretrain", "r"], "there is no recipe r"),
    ],
)
def test_wrong_usage_is_said(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert problem in refused(capsys, *arguments)


def test_what_does_not_fit_together_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sized = str(ROOT / "recipes" / "vq-cpu.yaml")
    assert "makes a model of another size than B (vq_config)" in refused(capsys, "--vq", sized, "--hours", "1")
    written = recipe(tmp_path, "total_train_batch_size: 30\nper_device_train_batch_size: 4\n")
    assert "30 windows a step cannot be shared out" in refused(capsys, "--pretrain", written, "--hours", "1")
    targets = recipe(tmp_path, "lora: true\nlora_targets: [c_attn]\n")
    assert "lora_targets names layers of its own" in refused(capsys, "--instruct", targets, "--hours", "1")
    for stage, name in (("--vq", "labram-vq-paper"), ("--instruct", "labram-finetune-base")):
        labram = str(ROOT / "recipes" / f"{name}.yaml")
        assert f"{name}.yaml is a recipe of LaBraM" in refused(capsys, stage, labram, "--hours", "1")
    paper = str(ROOT / "recipes" / "pretrain-b.yaml")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    problem = refused(capsys, "--model", str(tmp_path / "other"), "--pretrain", paper, "--hours", "1")
    assert "other is a bert" in problem


@pytest.mark.slow
def test_the_documents_tables_are_what_its_command_prints() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.search(
        r"```\n(python scripts/estimate_training\.py .*?)```.*?<!-- output -->\n(.*?)\n<!-- end", text, re.S
    )
    assert found is not None
    command, output = shlex.split(found[1].replace("\\\n", " ")), found[2]
    done = subprocess.run([sys.executable, *command[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == output.strip()
