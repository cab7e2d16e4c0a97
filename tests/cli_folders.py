"""Models and recordings for the tests of the command: tiny, tuned on Workload with windows of four seconds."""

import json

from recording_files import write_edf
from stage_folders import write_language_model, write_text_model, write_tokenizer, write_vq
from test_lora import stir

from neurolm_hf import NeuroLMForCausalLM, NeuroLMProcessor
from neurolm_hf.lora import add_adapter, lora_config
from neurolm_hf.tasks import load_task


WORKLOAD = load_task("Workload").config_entry() | {"window_seconds": 4, "channels": None}
SECONDS = 40  # longer than the filter, which would warn


def tune(folder):
    """Lets a saved model or adapter say that it was tuned on the task."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"stage": "instruction-tuned", "tasks": [WORKLOAD]}))
    return folder


def write_models(root):
    """name -> folder: `vq`, `pretrained`, `tuned`, and `adapter` of `pretrained`."""
    tokenizer = write_tokenizer(root / "tokenizer")
    text, vq = write_text_model(root / "text", tokenizer), write_vq(root / "vq")
    pretrained = write_language_model(root / "pretrained", vq, text)
    base = NeuroLMForCausalLM.from_pretrained(pretrained)
    stir(add_adapter(base, pretrained, lora_config(base))).save_pretrained(root / "adapter")
    base.config.save_pretrained(root / "adapter")
    NeuroLMProcessor.from_pretrained(pretrained).save_pretrained(root / "adapter")
    return {
        "vq": vq,
        "pretrained": pretrained,
        "tuned": tune(write_language_model(root / "tuned", vq, text)),
        "adapter": tune(root / "adapter"),
    }


def write_recordings(root):
    """Two recordings of 40 s and two channels, which differ, and between them one that is none."""
    bad = root / "bad.edf"
    bad.write_text("no")
    return [
        write_edf(root / "one.edf", seconds=SECONDS),
        bad,
        write_edf(root / "two.edf", names=("EEG C3", "EEG O2"), seconds=SECONDS),
    ]
