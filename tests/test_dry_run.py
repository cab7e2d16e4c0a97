import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch
from tiny import BACKBONES, EEG, EEG_TOKEN_ID, language_model, lm_batch, lm_config, vq_batch, vq_config, vq_model
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from neurolm_hf import NeuroLMVQForPreTraining
from neurolm_hf.dry_run import Batch, Setup, dry_run
from neurolm_hf.lora import add_adapter, lora_config


aten = torch.ops.aten
# a second counter, told in its own way what it does not know
UNKNOWN: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *s, **_: sdpa_backward_flop_count(*s[:4]),
    aten.addmm_: lambda _, one, other, **__: 2 * one[0] * one[1] * other[1],
}
WINDOW = EEG((1, 2, 3), 4)
TEXTS = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(0))
PRETRAINING = Batch(3, 3, 4, texts=2, text_tokens=12)
INSTRUCTION = Batch(3, 3, 4, texts=2, text_tokens=12, prompt_tokens=5, answer_tokens=2)


def counted(model: Any, batch: dict[str, torch.Tensor]) -> int:
    """FLOPs of a real forward and backward pass."""
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN) as counter:
        model.train()(**batch).loss.backward()
    return counter.get_total_flops()


def pretraining_batch() -> dict[str, torch.Tensor]:
    batch = lm_batch([[WINDOW]] * 3)
    return {**batch, "labels": batch["input_ids"], "text_input_ids": TEXTS}


def instruction_batch() -> dict[str, torch.Tensor]:
    batch = lm_batch([[WINDOW, 11, 12, 13, 14, 15, 21, 22]] * 3)
    labels = batch["input_ids"].clone()
    labels[:, :-2] = -100
    return {**batch, "labels": labels, "text_input_ids": TEXTS}


def total(setup: Setup, batch: Batch) -> int:
    return sum(part.total for part in dry_run(setup, batch).flops.values())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("adversary", [False, True])
def test_flops_of_the_tokenizer_are_those_of_a_real_step(adversary: bool, attention: str) -> None:
    config = vq_config(attn_implementation=attention)
    model = vq_model(NeuroLMVQForPreTraining, attn_implementation=attention) if adversary else vq_model()
    model.set_attn_implementation(attention)
    batch = vq_batch(*[WINDOW] * 3)
    if adversary:
        batch["text_input_ids"] = TEXTS % 50
    said = total(Setup("vq", config, adversary=adversary, bf16=False), PRETRAINING)
    assert said == counted(model, batch)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_flops_of_the_language_model_are_those_of_a_real_step(backbone: str, rank: int, checkpointing: bool) -> None:
    for stage, batch, real in (
        ("pretrain", PRETRAINING, pretraining_batch()),
        ("instruct", INSTRUCTION, instruction_batch()),
    ):
        model = language_model(backbone, hidden_size=48)
        if rank:
            add_adapter(model, "", lora_config(model, rank))
        if checkpointing:
            model.activation_checkpointing_enable()
        config = lm_config(backbone, hidden_size=48)
        setup = Setup(stage, config, lora_rank=rank, activation_checkpointing=checkpointing, bf16=False)  # type: ignore[arg-type]
        assert total(setup, batch) == counted(model, real)
