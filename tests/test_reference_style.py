"""The baseline of the benchmarks does the same mathematics as our models: losses, gradients, codebook, answers."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny import EEG, EEG_TOKEN_ID, SEP, language_model, lm_batch, vq_batch, vq_config, vq_model

from neurolm_hf import NeuroLMVQForPreTraining


SCRIPT = Path(__file__).parent.parent / "benchmarks" / "reference_style.py"
# two windows of three seconds of two channels, and texts of one length behind them
WINDOWS = (EEG((3, 7), 3, seed=1), EEG((3, 7), 3, seed=2))
TEXTS = ([SEP, 11, 12, 13, 14], [SEP, 11, 12, 17, 18])
PADDED = 10


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    specification = importlib.util.spec_from_file_location("reference_style", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["reference_style"] = module
    specification.loader.exec_module(module)
    return module


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def pretraining_batch(padding: int) -> dict[str, torch.Tensor]:
    batch = lm_batch([[window] for window in WINDOWS])
    batch["labels"] = batch["input_ids"]
    return pad_eeg(batch, padding)


def instruction_batch(padding: int) -> dict[str, torch.Tensor]:
    batch = lm_batch([[window, *text] for window, text in zip(WINDOWS, TEXTS, strict=True)])
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, :-2] = -100
    return pad_eeg(batch, padding)


def pad_eeg(batch: dict[str, torch.Tensor], padding: int) -> dict[str, torch.Tensor]:
    """With so many patches of padding more, which have no placeholder."""
    for name in ("eeg_channel_ids", "eeg_time_ids", "eeg_segment_ids", "eeg_attention_mask"):
        batch[name] = torch.nn.functional.pad(batch[name], (0, padding))
    batch["input_values"] = torch.nn.functional.pad(batch["input_values"], (0, 0, 0, padding))
    return batch


# padded as the reference does, where padding changes the codes; and windows as they are, where it must not
@pytest.mark.parametrize("padding", [PADDED, 0])
def test_tokenizer_step(reference: ModuleType, padding: int) -> None:
    def made() -> Any:
        model = vq_model(NeuroLMVQForPreTraining, padding_enters_statistics=padding > 0).train()
        model.reversal_strength = 0.37
        return model

    ours, theirs, patches = made(), made(), WINDOWS[0].patches
    loss = ours(**vq_batch(*WINDOWS, extra_padding=padding)).loss
    batch = reference.pad(vq_batch(*WINDOWS), patches=patches + padding, text=0)
    expected = reference.tokenizer_loss(theirs, batch, reference.tokenizer_targets(theirs, batch))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    assert_same(gradients(ours, loss), gradients(theirs, expected))
    ours.update_codebook()
    assert_same(dict(ours.named_buffers()), dict(theirs.named_buffers()))


@pytest.mark.parametrize("stage", ["pretraining", "instruction"])
@pytest.mark.parametrize("padding", [PADDED, 0])
def test_language_model_step(reference: ModuleType, stage: str, padding: int) -> None:
    eeg_config = vq_config(padding_enters_statistics=padding > 0)
    ours, theirs = (language_model(eeg_config=eeg_config).train() for _ in range(2))
    make = pretraining_batch if stage == "pretraining" else instruction_batch
    loss = ours(**make(padding)).loss
    text = 0 if stage == "pretraining" else 5 + padding
    batch = reference.pad(make(0), patches=WINDOWS[0].patches + padding, text=text)
    expected = getattr(reference, f"{stage}_loss")(theirs, batch)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=0)
    assert_same(gradients(ours, loss), gradients(theirs, expected))


@pytest.mark.parametrize("padding", [PADDED, 0])
def test_generation(reference: ModuleType, padding: int) -> None:
    model = language_model(eeg_config=vq_config(padding_enters_statistics=padding > 0))
    batch = instruction_batch(padding)
    del batch["labels"]
    ours = model.generate(**batch, max_new_tokens=4, do_sample=False, eos_token_id=None)[:, -4:]
    padded = reference.pad(instruction_batch(0), patches=WINDOWS[0].patches + padding, text=9)
    made = reference.generate(model, padded, 4)
    assert EEG_TOKEN_ID not in made
    assert torch.equal(made, ours)
