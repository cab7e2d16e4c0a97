"""Two gloo processes with uneven batches train as one process with all of it does."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tiny import EEG, EEG_TOKEN_ID, ROWS, language_model, lm_batch, vq_batch, vq_model
from torch.nn.parallel import DistributedDataParallel

from neurolm_hf import NeuroLMVQForPreTraining


# rank 0 has three samples, rank 1 has one, shorter
SAMPLES = [EEG((1, 2, 5), 3, seed=1), EEG((2,), 4, seed=2), EEG((0, 3), 2, seed=3), EEG((4,), 2, seed=4)]
TEXTS = torch.arange(24).view(4, 6)
PARTS = [slice(0, 3), slice(3, 4)]


def tokenizer_step(wrap: Any, part: slice) -> dict[str, torch.Tensor]:
    """Gradients of one step, and the codebook after it."""
    model = vq_model(NeuroLMVQForPreTraining).train()
    batch = vq_batch(*SAMPLES[part])
    wrapped = wrap(model)  # its hooks live as long as it does
    wrapped(**batch, text_input_ids=TEXTS[part], reversal_strength=0.4).loss.backward()
    model.update_codebook()
    codebook = {"codebook": model.vq.encoder.quantizer.codebook}
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | codebook


def language_model_step(wrap: Any, part: slice) -> dict[str, torch.Tensor]:
    """Gradients of one step in which rank 1 has text alone."""
    model = language_model(hidden_size=40).train()
    rows = [ROWS[0], ROWS[2], ROWS[3], ROWS[1]][part]
    batch = lm_batch(rows)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    assert (labels == EEG_TOKEN_ID).any() == (part.start == 0)
    wrapped = wrap(model)
    wrapped(**batch, labels=labels).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def rank_step(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {
        "tokenizer": tokenizer_step(DistributedDataParallel, PARTS[rank]),
        "language model": language_model_step(DistributedDataParallel, PARTS[rank]),
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(rank_step, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize(("stage", "step"), [("tokenizer", tokenizer_step), ("language model", language_model_step)])
def test_gradient_is_that_of_one_large_batch(ranks: list[dict], stage: str, step: Any) -> None:
    alone = step(lambda model: model, slice(0, 4))
    assert alone.keys() == ranks[0][stage].keys() == ranks[1][stage].keys()
    for name, expected in alone.items():
        for rank in ranks:
            torch.testing.assert_close(
                rank[stage][name], expected, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
            )
