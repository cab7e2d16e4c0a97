from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import language_model, lm_config, vq_config

from neurolm_hf.costs import ONE_DEVICE, STRATEGIES, Devices, Rank, Schedule, costs_of, ranks_of, step_of
from neurolm_hf.dry_run import Batch, Flops, Setup, dry_run


STEP = Batch(24, 3, 4, texts=6, text_tokens=12)
PRETRAINING = Setup("pretrain", lm_config(), bf16=False)
TOKENIZER = Setup("vq", vq_config(), adversary=False, bf16=False)
DEVICES = Devices(per_node=4, flops=1e12, utilisation=0.5, memory=1e9, link=8e9, node_link=2e9, host_link=1e9)


def schedule(**changes: Any) -> Schedule:
    values: dict[str, Any] = {"hours": 10.0, "epochs": 2, "step": STEP, "micro_batch": 4, "devices": 3}
    return Schedule(**values | changes)


def test_steps_of_a_corpus() -> None:
    plan = schedule()
    assert plan.windows == 10 * 3600 // 4
    # 9000 windows are 375 steps of 24
    assert plan.steps == 750
    assert schedule(epochs=0.5).steps == 188
    assert schedule(steps=7).steps == 7
    assert plan.micro_batches(3) == 2
    assert plan.batch(3) == replace(STEP, windows=4, texts=1)
    # no more windows at once than there are for a device
    assert schedule(micro_batch=50).batch(3) == replace(STEP, windows=8, texts=2)
    assert schedule(micro_batch=50).micro_batches(3) == 1
    assert plan.micro_batches(1) == 6
    with pytest.raises(ValueError, match="24 windows a step cannot be shared out evenly to 5 devices that take 4"):
        schedule(devices=5)


@pytest.mark.parametrize("setup", [PRETRAINING, TOKENIZER, replace(PRETRAINING, stage="instruct")])
def test_flops_of_a_step_are_those_of_all_its_windows_and_texts(setup: Setup) -> None:
    step = replace(STEP, prompt_tokens=5, answer_tokens=2) if setup.stage == "instruct" else STEP
    assert step_of(setup, step).flops == dry_run(setup, step).flops
    without = replace(step, texts=0)
    assert step_of(setup, without).flops == dry_run(setup, without).flops


def test_weights_gradients_and_optimiser_are_those_of_a_real_model() -> None:
    model = language_model().train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moments = [one for state in optimizer.state.values() for one in (state["exp_avg"], state["exp_avg_sq"])]

    def numbers(tensors: Any) -> int:
        return sum(tensor.numel() * 4 for tensor in tensors)

    rank = ranks_of(PRETRAINING, schedule(devices=1), moments=8)[ONE_DEVICE]
    assert rank.weights == numbers([*model.parameters(), *model.buffers()])
    assert rank.gradients == numbers(trained)
    assert rank.optimiser == numbers(moments)
    assert rank.activations == dry_run(PRETRAINING, replace(STEP, windows=4, texts=1)).activations
    assert rank.memory == rank.weights + rank.gradients + rank.optimiser + rank.activations
    assert (rank.sent, rank.host, rank.buffers) == (0, 0, 0)


def test_what_is_shared_out_is_held_by_each_rank_once() -> None:
    ranks = ranks_of(PRETRAINING, schedule(), moments=8)
    assert tuple(ranks) == STRATEGIES
    alone, ddp = ranks[ONE_DEVICE], ranks["DDP"]
    assert replace(ddp, buffers=0, sent=0) == alone
    assert ddp.buffers == alone.gradients
    zero1, zero2, zero3, offloaded, fsdp = (ranks[name] for name in STRATEGIES[2:])
    # beside the moments a float32 copy of the trained weights
    master = alone.optimiser + alone.gradients
    assert (zero1.weights, zero1.gradients) == (alone.weights, alone.gradients)
    for rank in (zero1, zero2, zero3):
        assert 3 * rank.optimiser == pytest.approx(master)
    assert (zero2.weights, 3 * zero2.gradients) == (alone.weights, pytest.approx(alone.gradients))
    assert 3 * zero3.weights == pytest.approx(alone.weights)
    assert offloaded.weights == offloaded.gradients == offloaded.optimiser == 0
    assert 3 * offloaded.host == pytest.approx(alone.weights + alone.gradients + master)
    # with two micro-batches, FSDP keeps whole gradients beside its share
    assert fsdp.gradients == pytest.approx(alone.gradients * (1 + 1 / 3))
    assert ranks_of(PRETRAINING, schedule(micro_batch=8), 8)["FSDP"].gradients == pytest.approx(alone.gradients / 3)
    assert 3 * fsdp.optimiser == pytest.approx(alone.optimiser)
    assert zero3.buffers == fsdp.buffers > 0


def test_in_bfloat16_only_what_the_optimiser_moves_stays_wide() -> None:
    narrow, wide = (ranks_of(replace(PRETRAINING, bf16=bf16), schedule(), 8) for bf16 in (True, False))
    assert narrow["DDP"].weights == wide["DDP"].weights
    assert narrow["FSDP"].weights == wide["FSDP"].weights
    for name in ("ZeRO-1", "ZeRO-2", "ZeRO-3"):
        assert 2 * narrow[name].weights == wide[name].weights
        assert 2 * narrow[name].gradients == wide[name].gradients
        assert narrow[name].optimiser == wide[name].optimiser
        assert 2 * narrow[name].sent == wide[name].sent


def test_what_is_sent_follows_the_rings() -> None:
    plan = schedule(micro_batch=8, step=replace(STEP, texts=0))
    sizes = dry_run(TOKENIZER, plan.batch(3)).sizes
    weights = 4 * sizes.total
    gradients = 4 * sizes.trained
    codebook = 2 / 3 * 2 * 4 * 32 * (8 + 1)
    sent = {name: rank.sent - codebook for name, rank in ranks_of(TOKENIZER, plan, 8).items() if name != ONE_DEVICE}
    assert sent["DDP"] == pytest.approx(2 * 2 / 3 * gradients)
    assert sent["ZeRO-1"] == sent["ZeRO-2"] == pytest.approx(sent["DDP"])
    # three times where DDP has two: weights forward, weights backward, gradients
    assert sent["ZeRO-3"] == sent["FSDP"] == pytest.approx(2 / 3 * (2 * weights + gradients))
    twice = ranks_of(TOKENIZER, replace(plan, micro_batch=4), 8)
    assert twice["DDP"].sent - codebook == pytest.approx(sent["DDP"])
    assert twice["ZeRO-1"].sent - codebook == pytest.approx(sent["ZeRO-1"])
    assert twice["ZeRO-2"].sent - codebook == pytest.approx(1.5 * sent["ZeRO-2"])
    assert twice["ZeRO-3"].sent - codebook == pytest.approx(2 * sent["ZeRO-3"])
    assert twice["FSDP"].sent - codebook == pytest.approx(2 / 3 * (4 * weights + gradients))


def test_text_is_a_second_pass_over_the_language_model_and_a_frozen_encoder_has_one_way() -> None:
    plan = schedule(micro_batch=8)
    sizes = dry_run(PRETRAINING, STEP).sizes
    with_text = ranks_of(PRETRAINING, plan, 8)["ZeRO-3"]
    without = ranks_of(PRETRAINING, replace(plan, step=replace(STEP, texts=0)), 8)["ZeRO-3"]
    share = 2 / 3 * 4
    assert with_text.sent - without.sent == pytest.approx(share * 2 * sizes.language_model)
    assert without.sent == pytest.approx(share * (2 * sizes.total - sizes.frozen_encoder + sizes.trained))


def test_an_adapter_sends_and_keeps_next_to_nothing() -> None:
    whole, adapted = (
        ranks_of(replace(PRETRAINING, stage="instruct", lora_rank=rank), schedule(), 8) for rank in (0, 2)
    )
    assert adapted["DDP"].sent < 0.2 * whole["DDP"].sent
    assert adapted["DDP"].optimiser < 0.2 * whole["DDP"].optimiser
    assert adapted["DDP"].weights > whole["DDP"].weights


def test_time_is_products_and_bytes_over_rates() -> None:
    rank = Rank(1, 1, 1, 1, sent=4e9, to_host=5e8)
    plan = schedule()
    flops = {"one": Flops(forward=2 * 10**12), "other": Flops(1 * 10**12, 3 * 10**12)}
    found = costs_of(flops, {ONE_DEVICE: Rank(1, 1, 1, 1), "DDP": rank}, plan, DEVICES)
    assert found["DDP"].compute_seconds == pytest.approx(6 / 3 / 0.5)
    assert found["DDP"].communication_seconds == pytest.approx(4 / 8 + 0.5)
    assert found["DDP"].hours == pytest.approx(750 * 5 / 3600)
    assert found["DDP"].device_hours == pytest.approx(3 * found["DDP"].hours)
    assert found[ONE_DEVICE].compute_seconds == pytest.approx(12)
    assert found[ONE_DEVICE].device_hours == found[ONE_DEVICE].hours
    # over several nodes the way between them counts
    wide = costs_of(flops, {"DDP": rank}, schedule(devices=6), DEVICES)
    assert wide["DDP"].communication_seconds == pytest.approx(4 / 2 + 0.5)
