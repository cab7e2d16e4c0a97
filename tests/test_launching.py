"""The launch guide's own lines, and what scripts do at their end where weights are shared out."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from peft import PeftModel
from safetensors.torch import load_file
from stage_folders import (
    write_language_model,
    write_sets,
    write_text,
    write_text_model,
    write_tokenizer,
    write_vq,
)

from neurolm_hf import NeuroLMForCausalLM, NeuroLMVQModel


REPOSITORY = Path(__file__).parents[1]
GUIDE = REPOSITORY / "docs" / "many-devices.md"
ZERO_3 = ("accelerate", "launch", "--config_file", "configs/zero3.yaml", "--main_process_port", "0")
SHORT = (
    *("--ddp-backend", "gloo", "--max-steps", "2", "--per-device-train-batch-size", "2", "--save-steps", "1"),
    *("--total-train-batch-size", "8", "--eval-strategy", "steps", "--eval-steps", "1"),
)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the guide says: this repository, prepared sets and text, a small GPT-2."""
    root = tmp_path_factory.mktemp("launching")
    for name in ("configs", "recipes", "scripts"):
        (root / name).symlink_to(REPOSITORY / name)
    tokenizer = write_tokenizer(root / "tokenizer")
    write_text_model(root / "gpt2-small", tokenizer)
    (root / "prepared").mkdir()
    write_text(root / "prepared" / "text", tokenizer)
    write_sets(root / "prepared" / "corpus", "Corpus")
    write_sets(root / "prepared" / "workload")
    return root


def run(folder: Path, *command: str) -> str:
    """Runs a command in a folder; returns what it printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "port": port,
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def results(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text())


@pytest.mark.slow
def test_the_guide_s_lines_run(folder: Path) -> None:
    one_node, two_nodes = blocks("bash")
    run(folder, "bash", "-euo", "pipefail", "-c", one_node)
    run(folder, "bash", "-euo", "pipefail", "-c", two_nodes)
    runs = folder / "runs"
    assert bool(NeuroLMVQModel.from_pretrained(runs / "vq").encoder.quantizer.initialized)
    for name, stage in (("pretrained", "pretrained"), ("tuned", "instruction-tuned")):
        model, info = NeuroLMForCausalLM.from_pretrained(runs / name, output_loading_info=True)
        assert not any(info.values()), info
        assert model.config.stage == stage
    PeftModel.from_pretrained(NeuroLMForCausalLM.from_pretrained(runs / "pretrained"), runs / "adapter")
    for name in ("vq", "pretrained", "tuned", "adapter"):
        settings = json.loads((runs / name / "settings.json").read_text())
        shared = {"pretrained": "ZeRO-2 on 2 processes", "tuned": "ZeRO-3 with offload on 2 processes"}
        assert settings.get("sharding") == shared.get(name)
        assert settings["total_train_batch_size"] == 8
        # two processes of two windows: a run of one would have taken four micro-batches and not said so
        assert results(runs / name)["provenance"]["steps"] == 2


def test_the_guide_s_slurm_script_is_bash() -> None:
    (script,) = blocks("sbatch")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_guide_names_files_that_exist() -> None:
    named = re.findall(r"(?:configs|recipes|scripts|tests)/[\w-]+\.\w+", GUIDE.read_text())
    assert len(named) > 10
    missing = [name for name in {*named} if not (REPOSITORY / name).is_file()]
    assert missing == []


@pytest.mark.slow
def test_two_nodes_of_accelerate_share_weights_out(folder: Path) -> None:
    """Evaluation, a picture of a reconstruction and standardised features, with ZeRO-3 on two nodes of one process."""
    script = (
        "node() { accelerate launch --config_file configs/zero3.yaml --num_machines 2 --num_processes 2"
        ' --machine_rank "$1" --main_process_ip 127.0.0.1 --main_process_port "$port"'
        " scripts/train_vq.py recipes/vq-cpu.yaml --from-scratch --quantizer-warmup-steps 0 --vq-config '{}'"
        ' --train-data prepared/corpus --output-dir runs/shared-vq "${@:2}"; }\n'
        'node 0 "$@" & node 1 "$@" && wait $!'
    )
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "codebook_size": 16}
    script = script.replace("{}", json.dumps({**small, "decoder_num_hidden_layers": 1}))
    run(folder, "bash", "-euo", "pipefail", "-c", script, "bash", *SHORT)
    output = folder / "runs" / "shared-vq"
    assert (output / "reconstruction" / "step-2.png").is_file()
    assert results(output)["validation"]["eval_loss"] > 0
    saved, before = load_file(output / "model.safetensors"), load_file(output / "checkpoint-2" / "model.safetensors")
    changed = {name for name, tensor in saved.items() if not tensor.equal(before[name])}
    assert changed == {
        *("encoder.transformer.norm.weight", "encoder.transformer.norm.bias"),
        *("encoder.to_codebook.0.weight", "encoder.to_codebook.0.bias"),
    }


@pytest.mark.slow
def test_an_adapter_is_merged_where_weights_are_shared_out(folder: Path) -> None:
    vq = write_vq(folder / "vq")
    model = write_language_model(folder / "model", vq, folder / "gpt2-small")
    tune = ("scripts/instruction_tune.py", "recipes/instruction-lora.yaml", "--lora", "--model", str(model))
    output = ("--train-data", "prepared/workload", "--save-merged", "--output-dir", "runs/merged")
    command = (*ZERO_3, *tune, *output, *SHORT, "--save-strategy", "steps", "--load-best-model-at-end", "true")
    run(folder, *command, "--metric-for-best-model", "loss")
    merged = load_file(folder / "runs" / "merged" / "merged" / "model.safetensors")
    before = load_file(model / "model.safetensors")
    changed = [name for name, tensor in merged.items() if not tensor.equal(before[name])]
    assert any("language_model" in name for name in changed)
    assert not any("eeg_encoder" in name or "head" in name for name in changed)
    assert results(folder / "runs" / "merged")["validation"]["eval_Workload_balanced_accuracy"] >= 0
    # the same command on a run that has ended writes the same files again, and trains nothing
    again = run(folder, *command, "--metric-for-best-model", "loss")
    assert "this run has ended" in again
    rewritten = load_file(folder / "runs" / "merged" / "merged" / "model.safetensors")
    assert all(tensor.equal(merged[name]) for name, tensor in rewritten.items())


@pytest.mark.slow
def test_the_trainer_takes_a_deepspeed_file(folder: Path) -> None:
    """`--deepspeed FILE` under torchrun; on CPUs for one process alone."""
    command = ("torchrun", "--standalone", "--nproc-per-node", "1", "scripts/pretrain.py", "recipes/pretrain-cpu.yaml")
    start = ("--vq", str(write_vq(folder / "vq-of-one")), "--text-model", "gpt2-small", "--text-config", "{}")
    data = ("--train-data", "prepared/corpus", "--deepspeed", "configs/zero3.json", "--output-dir", "runs/one")
    run(folder, *command, *start, *data, *SHORT)
    settings = json.loads((folder / "runs" / "one" / "settings.json").read_text())
    assert settings["sharding"] == "ZeRO-3 on 1 processes"
    _, info = NeuroLMForCausalLM.from_pretrained(folder / "runs" / "one", output_loading_info=True)
    assert not any(info.values()), info
