"""The golden data of `tests/parity/labram`, as the tests read them; `test_golden_labram.py` says what they are."""

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from neurolm_hf.conversion_labram import convert_labram, convert_labram_vq


LABRAM_PARITY = Path(__file__).parent / "parity" / "labram"


@functools.cache
def golden(name: str) -> dict[str, torch.Tensor]:
    """All tensors of one golden file, such as `inputs` or `tokenizer_outputs`."""
    return load_file(LABRAM_PARITY / f"{name}.safetensors")


@functools.cache
def metadata() -> dict[str, Any]:
    """What `meta.json` says."""
    return json.loads((LABRAM_PARITY / "meta.json").read_text())


@functools.cache
def released(name: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint: `vqnsp`, `labram-base` or `labram-finetuned`."""
    return torch.load(LABRAM_PARITY / f"{name}.pth", weights_only=True)["model"]


def recording(index: int) -> dict[str, torch.Tensor]:
    """Model inputs of a recording, without a mask: channel-major patches."""
    values = golden("inputs")[f"raw_uv.{index}"] / 100
    batch, channels, samples = values.shape
    seconds = samples // 200
    ids = golden("inputs")[f"input_chans.{index}"][1:]
    return {
        "input_values": values.reshape(batch, channels * seconds, 200),
        "eeg_channel_ids": ids.repeat_interleave(seconds).expand(batch, -1),
        "eeg_time_ids": torch.arange(seconds).repeat(channels).expand(batch, -1),
    }


def tokenizer() -> tuple[Any, Any]:
    """The tokenizer of vqnsp.pth and the report of its conversion, freshly made."""
    return convert_labram_vq(LABRAM_PARITY / "vqnsp.pth")


def masked_model() -> tuple[Any, Any]:
    """The masked model of labram-base.pth with the tokenizer of vqnsp.pth, and the report."""
    return convert_labram(LABRAM_PARITY / "labram-base.pth", LABRAM_PARITY / "vqnsp.pth")


def classifier() -> tuple[Any, Any]:
    """The classifier of labram-finetuned.pth, and the report."""
    return convert_labram(LABRAM_PARITY / "labram-finetuned.pth")
