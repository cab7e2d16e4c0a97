"""Two gloo processes with uneven batches train and evaluate as one process with all of it does."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from small_trainings import (
    ROWS as WINDOWS,
)
from small_trainings import (
    TASK,
    EpochRecorder,
    GradientCallback,
    SpoilingCollator,
    arguments,
    assert_same_steps,
    codebook,
    fixed,
    gradients,
    large_batches,
    make_processor,
    stages,
)
from tiny import EEG, EEG_TOKEN_ID, ROWS, language_model, lm_batch, vq_batch, vq_model
from torch.nn.parallel import DistributedDataParallel

from neurolm_hf import NeuroLMVQForPreTraining
from neurolm_hf.checkpoints import is_complete
from neurolm_hf.collators import EEGCollator
from neurolm_hf.processing_neurolm import EEGFeatureExtractor
from neurolm_hf.training import CodebookCallback, NeuroLMTrainer
from neurolm_hf.training_set import StepSampler


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


# Two processes, two micro-batches of one window and its text: four windows a step, the last of seven filled up by the
# first. Their lengths and montages all differ.
MEASURED = ("loss", "accuracy", "usage", "perplexity")
STEPS = [WINDOWS[:4], WINDOWS[4:] + WINDOWS[:1]]
LABRAM = ("labram-vq", "labram-masked", "labram-classifier")
TRAINED = ("vq", "pretraining", "lora", *LABRAM)


def trained_steps(folder: Path, name: str, **changes: Any) -> tuple[list[dict], list[dict]]:
    """Gradients and codebook of each step of a `NeuroLMTrainer`, and what it logged."""
    kept = GradientCallback()
    # of a LaBraM every weight takes part in every pass
    unused = None if name not in LABRAM else False
    trainer = NeuroLMTrainer(
        model=stages()[name].model(),
        args=fixed(
            folder,
            max_steps=2,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
            ddp_find_unused_parameters=unused,
        ),
        train_dataset=WINDOWS,
        **{"data_collator": stages()[name].collator(1), **changes},
        callbacks=[kept, *([CodebookCallback()] if name.endswith("vq") else [])],
    )
    trainer.train()
    return kept.steps, [entry for entry in trainer.state.log_history if "loss" in entry]


def evaluated(folder: Path, name: str) -> dict[str, float]:
    stage = stages()[name]
    answers = (
        {"processing_class": make_processor(), "answer_sets": {"mine": (TASK, WINDOWS)}} if name == "lora" else {}
    )
    trainer = NeuroLMTrainer(
        model=stage.model(),
        args=arguments(folder, per_device_eval_batch_size=2),
        eval_dataset=WINDOWS,
        data_collator=stage.collator(0),
        **(answers if name == "lora" else {}),
    )
    metrics = trainer.evaluate()
    return {name: value for name, value in metrics.items() if name.endswith(MEASURED)}


def drawn(folder: Path, max_steps: int, resume: bool) -> list[tuple]:
    """Which rows this process reads of a training set: (seed, epoch, index)."""
    rows = EpochRecorder()
    NeuroLMTrainer(
        model=vq_model(num_channel_embeddings=256),
        args=arguments(folder, max_steps=max_steps, save_strategy="steps", save_steps=1),
        train_dataset=rows,
        data_collator=EEGCollator(EEGFeatureExtractor()),
        callbacks=[CodebookCallback()],
    ).train(resume_from_checkpoint=resume)
    return rows.draws


def rank_training(rank: int, folder: str, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    path = Path(folder)
    results = {
        "steps": {name: trained_steps(path / name, name) for name in TRAINED},
        "bad": trained_steps(path / "bad", "vq", data_collator=SpoilingCollator(1), skip_bad_batches=True),
        "metrics": {name: evaluated(path / "evaluated", name) for name in TRAINED},
        "drawn": [drawn(path / "drawn", 3, resume=False), drawn(path / "drawn", 4, resume=True)],
    }
    torch.save(results, path / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    folder = tmp_path_factory.mktemp("trainings")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank_training, args=(str(folder), port), nprocs=2)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", TRAINED)
def test_a_trainer_s_steps_are_those_of_large_batches(trainings: tuple[Path, list[dict]], name: str) -> None:
    expected = large_batches(stages()[name], STEPS)
    for rank in trainings[1]:
        steps, entries = rank["steps"][name]
        assert_same_steps(steps, expected)
        for entry in entries:
            parts = [value for part, value in entry.items() if part.endswith("_loss")]
            assert bool(parts) == (name != "labram-classifier")
            assert not parts or sum(parts) == pytest.approx(entry["loss"], rel=1e-5)


def test_a_bad_batch_of_one_process_is_left_out_of_the_step_of_both(trainings: tuple[Path, list[dict]]) -> None:
    stage = stages()["vq"]
    model = stage.model().train()
    whole, good = stage.collator(1)(WINDOWS[:4]), stage.collator(1)(WINDOWS[:3])
    model(**good, num_items_in_batch=model.count_loss_items(**whole)).loss.backward()
    # the second process, which met it, has nothing to say about the codebook
    of_codebook = stage.model().train()
    of_codebook(**stage.collator(1)([WINDOWS[0], WINDOWS[2]]))
    of_codebook.update_codebook()
    for rank in trainings[1]:
        steps, entries = rank["bad"]
        assert_same_steps(steps[:1], [gradients(model) | codebook(of_codebook)])
        assert [entry["skipped_batches"] for entry in entries] == [1, 0]
    (line,) = (trainings[0] / "bad" / "skipped.jsonl").read_text().splitlines()
    assert "3.edf at 4 s (s3)" in line


@pytest.mark.parametrize("name", TRAINED)
def test_metrics_are_those_of_one_process(tmp_path: Path, trainings: tuple[Path, list[dict]], name: str) -> None:
    expected = evaluated(tmp_path, name)
    assert ("eval_mine_balanced_accuracy" in expected) == (name == "lora")
    for rank in trainings[1]:
        assert rank["metrics"][name] == pytest.approx(expected, rel=1e-5)


def test_a_training_set_keeps_its_order_and_epoch_through_a_resume(trainings: tuple[Path, list[dict]]) -> None:
    # an epoch is two steps of two rows on each process, filled up by its first row, each step's rows by length
    rows, epochs = EpochRecorder(), []
    for epoch in range(2):
        rows.set_epoch(epoch)
        epochs.append([(3, epoch, place) for place in StepSampler(rows, 2, devices=2)])
        assert [sorted(place for _, _, place in part) for part in (epochs[-1][:4], epochs[-1][4:])] == [
            [0, 1, 2, 3],
            [0, 4, 5, 6],
        ]
    for rank, results in enumerate(trainings[1]):
        before, after = results["drawn"]
        own = [epoch[2 * rank : 2 * rank + 2] + epoch[4 + 2 * rank : 6 + 2 * rank] for epoch in epochs]
        assert before[:6] == own[0] + own[1][:2]
        assert after == own[1][2:]
    assert all(is_complete(trainings[0] / "drawn" / f"checkpoint-{step}") for step in (1, 2, 3, 4))
