"""Tiny folders of models and adapters as the scripts leave them, and a client of the stand-in for the Hub."""

import json
import os
import subprocess
import sys
import textwrap

from hub_server import TOKEN
from stage_folders import write_language_model, write_text_model, write_tokenizer, write_vq
from test_lora import stir
from tiny import randomize

from neurolm_hf import NeuroLMForCausalLM, NeuroLMProcessor
from neurolm_hf.lora import add_adapter, lora_config, save_beside_adapter
from neurolm_hf.tasks import load_task


SUBJECTS = [f"Subject{number:02d}" for number in range(12)]
SET = {
    "folder": "workload",
    "task": "Workload",
    "fingerprint": "f" * 64,
    "recipe_id": "306348a2eb23",
    "windows": 2712,
    "subjects": SUBJECTS,
    "hours": 3.25,
    "window_seconds": 4,
    "channels": ["FP1", "FP2"],
    "notch_hz": 50.0,
    "licence": "odc-by",
}
STEP = {
    "made_by": "instruction_tune.py of neurolm_hf 0.1.0",
    "versions": {"torch": "2.9.1"},
    "recipe": "instruction-lora.yaml",
    "started_from": {"model": "/home/anna/runs/pretrained", "vq": None, "text_model": None, "provenance": None},
    "data": [SET],
    "steps": 2250,
    "epochs": 2.5,
}
JUNK = ("training_args.bin", "optimizer.pt", "settings.json", "training.json", ".lock", "notes.txt")


def write_folders(folder):
    """A neural tokenizer, a pre-trained model, a tuned one, and an adapter."""
    write_tokenizer(folder / "words")
    write_text_model(folder / "text", folder / "words")
    write_vq(folder / "vq")
    write_language_model(folder / "pretrained", folder / "vq", folder / "text")
    write_tuned(folder / "tuned", folder / "pretrained")
    write_adapter(folder / "adapter", folder / "pretrained")
    return folder


def write_tuned(folder, pretrained, seed=1):
    """A model that knows the task Workload, with what lies beside it after a training."""
    model = randomize(NeuroLMForCausalLM.from_pretrained(pretrained), seed)
    tune(model)
    model.save_pretrained(folder)
    NeuroLMProcessor.from_pretrained(pretrained).save_pretrained(folder)
    for name in JUNK:
        (folder / name).write_text("{}")
    (folder / "checkpoint-4").mkdir()
    (folder / "checkpoint-4" / "model.safetensors").write_text("")
    return folder


def write_adapter(folder, pretrained):
    """An adapter that knows the same task."""
    model = NeuroLMForCausalLM.from_pretrained(pretrained)
    stir(add_adapter(model, pretrained, lora_config(model, rank=4))).save_pretrained(folder)
    tune(model)
    save_beside_adapter(model, NeuroLMProcessor.from_pretrained(pretrained), folder)
    return folder


def tune(model):
    """Puts a history into a model's config."""
    entry = load_task("Workload").config_entry()
    model.config.update({"stage": "instruction-tuned", "tasks": [entry], "provenance": STEP})


def change_json(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def client(hub, folder, token=TOKEN):
    """The environment of a process that takes the stand-in for the Hub and has an empty cache."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(folder / "hf-home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment |= {"PYTHONPATH": ""} | ({} if token is None else {"HF_TOKEN": token})
    return environment


def run_client(hub, code, folder, token=TOKEN, alone=True, succeeds=True):
    """Code in a process of its own, in `folder`; what it printed, or what it complained of where it must fail.

    Where it is `alone`, `neurolm_hf` cannot be imported.
    """
    folder.mkdir(exist_ok=True)
    code = textwrap.dedent(code)
    code = f"import sys\nsys.modules['neurolm_hf'] = None\n{code}" if alone else code
    environment = client(hub, folder, token)
    if not alone:
        environment["PYTHONPATH"] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert (done.returncode == 0) is succeeds, done.stderr
    return done.stdout if succeeds else done.stderr
