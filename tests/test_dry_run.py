"""What is counted without data, against real steps. The slow test measures processes from outside."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import EEG, language_model, lm_batch, lm_config, text_config, vq_batch, vq_config, vq_model
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from neurolm_hf import NeuroLMVQForPreTraining
from neurolm_hf.dry_run import Batch, Setup, Stage, _Meter, dry_run
from neurolm_hf.lora import add_adapter, lora_config


aten = torch.ops.aten
# a second counter, told in its own way what it does not know
UNKNOWN: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: lambda *shapes, **_: sdpa_flop_count(*shapes[:3]),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda *s, **_: sdpa_backward_flop_count(*s[:4]),
    aten.addmm_: lambda _, one, other, **__: 2 * one[0] * one[1] * other[1],
}
WINDOW, LONG_WINDOW = EEG((1, 2, 3), 4), EEG(tuple(range(16)), 8)
TEXTS = torch.randint(3, 50, (2, 100), generator=torch.Generator().manual_seed(0))
QUESTION, ANSWER = [11, 12, 13, 14, 15], [21, 22]
SHAPE = Batch(3, 3, 4, texts=2, text_tokens=12)
SHAPES: dict[Stage, Batch] = {
    "vq": SHAPE,
    "pretrain": SHAPE,
    "instruct": replace(SHAPE, prompt_tokens=len(QUESTION), answer_tokens=len(ANSWER)),
}
LONG = {"channels": 16, "seconds": 8, "text_tokens": 100}


def real_batch(stage: Stage, window: EEG = WINDOW, text_tokens: int = 12) -> dict[str, torch.Tensor]:
    """A batch of the shape that `SHAPES` says, or of these windows and texts."""
    texts = TEXTS[:, :text_tokens]
    if stage == "vq":
        return {**vq_batch(*[window] * 3), "text_input_ids": texts}
    question, answer = (QUESTION, ANSWER) if stage == "instruct" else ([], [])
    batch = lm_batch([[window, *question, *answer]] * 3)
    labels = batch["input_ids"].clone()
    if answer:
        labels[:, : -len(answer)] = -100
    return {**batch, "labels": labels, "text_input_ids": texts}


def real_flops(model: Any, batch: dict[str, torch.Tensor]) -> int:
    with FlopCounterMode(display=False, custom_mapping=UNKNOWN) as counter:
        model.train()(**batch).loss.backward()
    return counter.get_total_flops()


def real_activations(model: Any, batch: dict[str, torch.Tensor]) -> int:
    """The most bytes that were alive in a second micro-batch, beside the model and its gradients."""
    model.train()(**batch).loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    with _Meter([*model.parameters(), *model.buffers(), *gradients]) as meter:
        batch = {name: tensor.clone() for name, tensor in batch.items()}
        model(**batch).loss.backward()
    return meter.peak


def flops(setup: Setup, batch: Batch) -> int:
    return sum(part.total for part in dry_run(setup, batch).flops.values())


def trained_model(setup: Setup, backbone: str = "gpt2", hidden_size: int = 48) -> Any:
    """The real model of a setup."""
    model = vq_model(NeuroLMVQForPreTraining) if setup.stage == "vq" else language_model(backbone, hidden_size)
    if setup.lora_rank:
        add_adapter(model, "", lora_config(model, setup.lora_rank, eeg_projector=setup.lora_eeg_projector))
    if setup.activation_checkpointing:
        model.activation_checkpointing_enable()
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_flops_of_the_tokenizer_are_those_of_a_real_step(attention: str) -> None:
    for adversary in (True, False):
        model = vq_model(NeuroLMVQForPreTraining) if adversary else vq_model()
        model.set_attn_implementation(attention)
        batch = real_batch("vq")
        if not adversary:
            del batch["text_input_ids"]
        setup = Setup("vq", vq_config(attn_implementation=attention), adversary=adversary, bf16=False)
        assert flops(setup, SHAPE) == real_flops(model, batch)


@pytest.mark.parametrize(
    ("backbone", "rank", "checkpointing"),
    [
        ("gpt2", 0, False),
        ("gpt2", 2, False),
        ("gpt2", 0, True),
        ("gpt2", 2, True),
        ("llama", 0, False),
        ("qwen3", 2, True),
    ],
)
def test_flops_of_the_language_model_are_those_of_a_real_step(backbone: str, rank: int, checkpointing: bool) -> None:
    config = lm_config(backbone, 48)
    stages: tuple[Stage, ...] = ("pretrain", "instruct")
    for stage in stages:
        setup = Setup(stage, config, lora_rank=rank, activation_checkpointing=checkpointing, bf16=False)
        assert flops(setup, SHAPES[stage]) == real_flops(trained_model(setup, backbone), real_batch(stage))


def test_flops_of_the_language_model_are_those_of_the_formula() -> None:
    layers, width, tokens, windows, texts, text_tokens = 2, 32, 12, 5, 3, 20
    shape = Batch(windows, 3, 4, texts=texts, text_tokens=text_tokens)
    counted = dry_run(Setup("pretrain", lm_config(), bf16=False), shape).flops
    # each number of a matrix is a multiplication and an addition; as many for the gradient of its input, and of itself
    matrices = 2 * layers * 12 * width**2
    # scores and values, 2 x 2 x width for each pair of tokens; backward five such halves, the scores once more
    pairs = 4 * layers * width
    for name, rows, length in (
        ("language model on EEG", windows, tokens),
        ("language model on text", texts, text_tokens),
    ):
        forward = rows * length * (matrices + pairs * length)
        backward = rows * length * (2 * matrices + 2.5 * pairs * length)
        assert (counted[name].forward, counted[name].backward) == (forward, backward)
        assert counted[name].attention == 3.5 * rows * pairs * length**2
    # all three products in the forward pass; the last second and the last token predict nothing
    targets = windows * 3 * 3 + texts * (text_tokens - 1)
    assert counted["heads"].forward == 3 * 2 * targets * width * (96 + 32)
    assert counted["heads"].backward == 0
    assert counted["EEG encoder"].backward == 0


def test_an_adapter_and_checkpointing_change_what_is_computed_backward() -> None:
    setup = Setup("pretrain", lm_config(hidden_size=48), bf16=False)

    def of_text(**changes: Any) -> Any:
        return dry_run(replace(setup, **changes), replace(SHAPE, text_tokens=64)).flops["language model on text"]

    full, adapted, twice = of_text(), of_text(lora_rank=2), of_text(activation_checkpointing=True)
    assert adapted.forward > full.forward
    # frozen matrices have no gradient of their own
    assert adapted.backward < 0.75 * full.backward
    # a layer runs a second time, but for its last product, whose result nobody needs
    assert twice.forward == full.forward
    assert full.backward + 0.6 * full.forward < twice.backward < full.backward + full.forward
    projector = dry_run(replace(setup, lora_rank=2, lora_eeg_projector=True), SHAPE).sizes
    assert projector.trained > dry_run(replace(setup, lora_rank=2), SHAPE).sizes.trained


def test_attention_is_counted_apart() -> None:
    shape = replace(SHAPE, windows=1, texts=0)
    longer = replace(shape, channels=2 * shape.channels)
    one, two = (
        dry_run(Setup("pretrain", lm_config()), each).flops["language model on EEG"] for each in (shape, longer)
    )
    assert two.attention == 4 * one.attention
    assert two.total - two.attention == 2 * (one.total - one.attention)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", ["vq", "pretrain", "instruct"])
def test_activations_are_those_of_a_real_step(stage: Stage, checkpointing: bool) -> None:
    config = vq_config() if stage == "vq" else lm_config(hidden_size=128)
    setup = Setup(stage, config, activation_checkpointing=checkpointing, bf16=False)
    real = real_activations(trained_model(setup, hidden_size=128), real_batch(stage, LONG_WINDOW, 100))
    assert dry_run(setup, replace(SHAPES[stage], **LONG)).activations == pytest.approx(real, rel=0.05)


def test_what_costs_less_memory() -> None:
    shape = Batch(4, 8, 8, texts=2, text_tokens=64)
    setup = Setup("pretrain", lm_config("llama", 64))
    whole = dry_run(replace(setup, bf16=False), shape).activations
    assert dry_run(setup, shape).activations < whole
    assert dry_run(setup, shape, cast_weights=True).activations < dry_run(setup, shape).activations
    assert dry_run(replace(setup, bf16=False, activation_checkpointing=True), shape).activations < 0.7 * whole


@pytest.mark.parametrize("rank", [0, 2])
def test_sizes_are_those_of_the_model(rank: int) -> None:
    setup = Setup("instruct", lm_config(hidden_size=48), lora_rank=rank)
    model = trained_model(setup)
    sizes = dry_run(setup, SHAPES["instruct"]).sizes

    def numbers(*tensors: torch.Tensor) -> int:
        return sum(tensor.numel() for tensor in tensors)

    assert sizes.total == numbers(*model.parameters(), *model.buffers())
    assert sizes.trained == numbers(*(parameter for parameter in model.parameters() if parameter.requires_grad))
    assert sizes.language_model == numbers(*model.model.language_model.parameters())
    assert sizes.frozen_encoder == numbers(*model.model.eeg_encoder.parameters())
    layers = [numbers(*layer.parameters()) for layer in model.model.language_model.h]
    of_encoder = [numbers(*layer.parameters()) for layer in model.model.eeg_encoder.transformer.layers]
    assert sizes.at_work == sizes.total - sum(layers) - sum(of_encoder) + sum(sorted(layers + of_encoder)[-2:])


def test_what_cannot_be_counted_is_said() -> None:
    with pytest.raises(ValueError, match="needs a NeuroLMConfig, got a NeuroLMVQConfig"):
        Setup("pretrain", vq_config())
    with pytest.raises(ValueError, match="trained in full"):
        Setup("vq", vq_config(), lora_rank=4)
    with pytest.raises(ValueError, match="9 s is longer than the 8 s"):
        dry_run(Setup("vq", vq_config()), Batch(1, 2, 9))
    with pytest.raises(ValueError, match="no next one"):
        dry_run(Setup("pretrain", lm_config()), Batch(1, 2, 1))
    with pytest.raises(ValueError, match="128 positions, and a text takes 129"):
        dry_run(Setup("pretrain", lm_config()), Batch(1, 2, 2, texts=1, text_tokens=129))
    with pytest.raises(ValueError, match="a window with its question takes 130"):
        dry_run(Setup("instruct", lm_config()), Batch(1, 2, 8, prompt_tokens=120, answer_tokens=2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({}, 0.03),
        ({"activation_checkpointing": True}, 0.03),
        ({"lora_rank": 8}, 0.03),
        # a CPU's bfloat16 products pack their matrices anew each time
        ({"bf16": True}, 0.08),
    ],
)
def test_memory_is_that_of_a_real_process(changes: dict[str, Any], tolerance: float) -> None:
    """Weights, gradients, AdamW's moments and activations together, in a process of its own."""
    setup = replace(Setup("pretrain", larger_config(), bf16=False), **changes)
    run = dry_run(setup, LARGER_SHAPE)
    expected = 4 * run.sizes.total + (4 + 8) * run.sizes.trained + run.activations
    # memory that is freed goes back at once, so that what the process holds is what is alive
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1", "PATH": ""}
    command = [sys.executable, __file__, json.dumps(changes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    assert expected == pytest.approx(int(done.stdout.split()[-1]), rel=tolerance)


LARGER_SHAPE = Batch(8, 16, 8, texts=2, text_tokens=256)


def larger_config() -> Any:
    eeg = vq_config(hidden_size=256, num_hidden_layers=4)
    return lm_config(
        eeg_config=eeg, text_config=text_config(hidden_size=512, n_layer=8, n_head=8, vocab_size=8000, n_positions=512)
    )


def train_and_measure(changes: dict[str, Any]) -> int:
    """The most that this process held in a step's second micro-batch, less what it held before there was a model."""
    from neurolm_hf import NeuroLMForCausalLM

    setup = replace(Setup("pretrain", larger_config(), bf16=False), **changes)
    batch = lm_batch([[LONG_WINDOW]] * 8)
    batch |= {"labels": batch["input_ids"], "text_input_ids": torch.randint(3, 50, (2, 256))}
    # what is loaded once is loaded now
    tiny_model = language_model().train()
    tiny_model(**lm_batch([[WINDOW]]), text_input_ids=TEXTS).loss.backward()
    before = held("VmRSS")
    model = NeuroLMForCausalLM(larger_config())
    model.model.eeg_encoder.quantizer.initialized.fill_(True)
    if setup.lora_rank:
        add_adapter(model, "", lora_config(model, setup.lora_rank))
    if setup.activation_checkpointing:
        model.activation_checkpointing_enable()
    optimizer = torch.optim.AdamW([p for p in model.train().parameters() if p.requires_grad], foreach=False)

    def micro_batch() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=setup.bf16):
            loss = model(**batch).loss
        loss.backward()

    micro_batch()
    optimizer.step()
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    micro_batch()
    return held("VmHWM") - before


def held(name: str) -> int:
    """Bytes, as the kernel says."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    print(train_and_measure(json.loads(sys.argv[1])))
