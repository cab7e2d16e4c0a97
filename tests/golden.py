"""The golden data of `tests/parity`, as the tests read them; `test_golden.py` says what they are."""

import functools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from neurolm_hf.conversion import convert_neurolm, convert_vq


PARITY = Path(__file__).parent / "parity"
SIZES = ("base", "large", "nobias")
RECORDINGS = range(3)
BLOCK_SIZE = 36
TEXT_ROWS = 512
PAD_ID = 508


@functools.cache
def golden(name: str) -> dict[str, torch.Tensor]:
    """All tensors of one golden file, such as `inputs` or `tokenizer_outputs`."""
    return load_file(PARITY / f"{name}.safetensors")


def metadata() -> dict[str, Any]:
    """Channel names and lengths of the recordings."""
    return json.loads((PARITY / "inputs.json").read_text())


def patches(index: int) -> int:
    """Real patches of a recording."""
    return int(golden("inputs")["num_tokens"][index])


def recording(index: int, padded: bool = False) -> dict[str, torch.Tensor]:
    """Model inputs of one recording, alone: without padding and mask, or as padded by the reference."""
    length = BLOCK_SIZE if padded else patches(index)
    inputs = {name: values[index : index + 1, :length] for name, values in batch().items()}
    if not padded:
        del inputs["eeg_attention_mask"]
    return inputs


def batch() -> dict[str, torch.Tensor]:
    """Model inputs of the three recordings, as padded by the reference."""
    inputs = golden("inputs")
    return {
        "input_values": inputs["X"],
        "eeg_channel_ids": inputs["input_chans"].long(),
        "eeg_time_ids": inputs["input_time"].long(),
        "eeg_attention_mask": inputs["input_mask"].long(),
    }


def tokenizer_model(**fields: Any) -> Any:
    """The neural tokenizer of VQ.pt with its adversary, freshly converted."""
    return convert_vq(PARITY / "VQ.pt", **fields)[0]


def language_model(size: str, **fields: Any) -> Any:
    """The language model of a size with the codebook of VQ.pt, freshly converted."""
    return convert_neurolm(PARITY / f"NeuroLM-{size}.pt", PARITY / "VQ.pt", **fields)[0]


def prompt_of(size: str, index: int, eeg_token_id: int) -> torch.Tensor:
    """One placeholder a patch, then the golden prompt: (1, tokens)."""
    prompt = golden(f"neurolm_{size}_outputs")[f"single.{index}.prompt"]
    return torch.cat([torch.full((1, patches(index)), eeg_token_id), prompt], dim=1)
