"""LaBraM through the trainer: its tokenizer, masked modelling, fine-tuning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from small_trainings import ROWS, arguments, labelled, stages
from tiny_labram import labram_classifier, labram_vq, labram_vq_config, masked_model
from torch.nn import functional

from neurolm_hf.collators import EEGCollator, MaskedCollator
from neurolm_hf.layers_neurolm import codebook_statistics
from neurolm_hf.modeling_labram import LaBraMVQModel
from neurolm_hf.processing_neurolm import LABRAM_LAYOUT, EEGFeatureExtractor
from neurolm_hf.training import CodebookCallback, NeuroLMTrainer, QuantizerScheduleCallback
from neurolm_hf.validation import ReconstructionCallback


@pytest.fixture
def extractor() -> EEGFeatureExtractor:
    return EEGFeatureExtractor(**LABRAM_LAYOUT)


def log_entries(trainer: NeuroLMTrainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("make", [labram_vq, masked_model], ids=["tokenizer", "masked"])
def test_only_what_the_reference_decays_decays(tmp_path: Path, make: Any) -> None:
    model = make()
    names = NeuroLMTrainer(model=model, args=arguments(tmp_path)).get_decay_parameter_names(model)
    assert not any(name.endswith(("bias", "norm.weight", "cls_token")) for name in names)
    assert not any("channel_embedding" in name or "time_embedding" in name for name in names)
    assert ("mask_token" in names) == (make is masked_model)
    assert any(name.endswith("patch_embedding.conv1.weight") for name in names)
    assert any(name.endswith("layers.1.mlp_in.weight") for name in names)


def test_the_tokenizer_is_trained_as_neurolm_s(tmp_path: Path, extractor: EEGFeatureExtractor) -> None:
    torch.manual_seed(0)
    model = LaBraMVQModel(labram_vq_config(dead_code_threshold=0.1))
    seen: list[tuple] = []
    model.register_forward_hook(
        lambda *_: seen.append((model.config.quantizer_bypass, bool(model.encoder.quantizer.initialized)))
    )
    trainer = NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=4, gradient_accumulation_steps=2),
        train_dataset=ROWS,
        data_collator=EEGCollator(extractor),
        callbacks=[CodebookCallback(), QuantizerScheduleCallback(warmup_steps=1, bypass=0.5)],
    )
    trainer.train()
    assert seen[:3] == [(1.0, False), (1.0, False), (0.5, True)]
    assert model.config.quantizer_bypass == 0.0
    parts = ("amplitude_loss", "phase_loss", "commitment_loss")
    entries = log_entries(trainer)
    assert len(entries) == 4
    # there is no codebook in the first step
    assert {"amplitude_loss", "phase_loss"} <= entries[0].keys()
    assert not {"commitment_loss", "codebook_usage", "perplexity"} & entries[0].keys()
    for entry in entries[1:]:
        assert {*parts, "codebook_usage", "perplexity"} <= entry.keys()
        assert sum(entry[name] for name in parts) == pytest.approx(entry["loss"], rel=1e-3)


@pytest.mark.parametrize("batch_size", [2, 7])
def test_tokenizer_metrics_are_means_over_the_whole_split(tmp_path: Path, batch_size: int) -> None:
    stage = stages()["labram-vq"]
    trainer = NeuroLMTrainer(
        model=stage.model(),
        args=arguments(tmp_path, per_device_eval_batch_size=batch_size),
        eval_dataset=ROWS,
        data_collator=stage.collator(0),
    )
    metrics = trainer.evaluate()
    outputs = stage.model()(**stage.collator(0)(ROWS))
    for name in ("loss", "amplitude_loss", "phase_loss", "commitment_loss"):
        assert metrics[f"eval_{name}"] == pytest.approx(outputs[name].item(), rel=1e-5), name
    usage, perplexity = codebook_statistics(outputs.codes, 32)
    assert (metrics["eval_codebook_usage"], metrics["eval_perplexity"]) == (usage.item(), perplexity.item())


def test_a_picture_shows_each_channel_s_amplitudes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extractor: EEGFeatureExtractor
) -> None:
    drawn = []
    draw = ReconstructionCallback.on_evaluate.__globals__["figures"].plot_amplitudes
    monkeypatch.setattr("neurolm_hf.figures.plot_amplitudes", lambda *given: drawn.append(given) or draw(*given))
    trainer = NeuroLMTrainer(
        model=labram_vq(),
        args=arguments(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        data_collator=EEGCollator(extractor),
        callbacks=[CodebookCallback()],
    )
    trainer.add_callback(ReconstructionCallback(ROWS[1:], EEGCollator(extractor), tmp_path / "pictures"))
    trainer.train()
    first, second = (imread(tmp_path / "pictures" / f"step-{step}.png") for step in (1, 2))
    assert not np.array_equal(first, second)
    target, predicted, channels = drawn[-1]
    assert channels == ["FP1", "O2"]
    assert target.shape == predicted.shape == (2, 101)
    window = ROWS[1]["signal"].reshape(2, 3, 200)
    amplitude = np.abs(np.fft.fft(window))
    z = (amplitude - amplitude.mean()) / amplitude.std(ddof=1)
    np.testing.assert_allclose(target, z.mean(1)[:, :101], atol=1e-4)


@pytest.mark.parametrize("batch_size", [2, 7])
def test_masked_metrics_are_means_over_the_whole_split(tmp_path: Path, batch_size: int) -> None:
    stage = stages()["labram-masked"]
    model = stage.model()
    trainer = NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path, per_device_eval_batch_size=batch_size),
        eval_dataset=ROWS,
        data_collator=stage.collator(0),
    )
    metrics = trainer.evaluate()
    batch = stage.collator(0)(ROWS)
    with torch.no_grad():
        outputs = model(**batch)
    real = batch["eeg_attention_mask"].bool()
    right = outputs.logits.argmax(-1)[real] == outputs.labels[real]
    losses = functional.cross_entropy(outputs.logits[real], outputs.labels[real], reduction="none")
    first = batch["masked"][real]
    assert metrics["eval_masked_loss"] == pytest.approx(losses[first].mean().item(), rel=1e-5)
    assert metrics["eval_complement_loss"] == pytest.approx(losses[~first].mean().item(), rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
    assert metrics["eval_masked_accuracy"] == pytest.approx(right.float().mean().item())


def test_masked_modelling_learns_codes_and_leaves_the_tokenizer(
    tmp_path: Path, extractor: EEGFeatureExtractor
) -> None:
    model = masked_model()
    before = {name: tensor.clone() for name, tensor in model.vq.state_dict().items()}
    trainer = NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=30, per_device_train_batch_size=7, learning_rate=3e-3),
        train_dataset=labelled(ROWS),
        eval_dataset=labelled(ROWS),
        data_collator=MaskedCollator(extractor),
    )
    trainer.train()
    entries = log_entries(trainer)
    assert all({"masked_loss", "complement_loss", "masked_accuracy"} <= entry.keys() for entry in entries)
    for entry in entries:
        assert entry["masked_loss"] + entry["complement_loss"] == pytest.approx(entry["loss"], rel=1e-3)
        assert 0 <= entry["masked_accuracy"] <= 1
    assert entries[-1]["loss"] < 0.7 * entries[0]["loss"]
    assert entries[-1]["masked_accuracy"] > entries[0]["masked_accuracy"]
    assert not model.vq.training
    after = model.vq.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_drop_path_and_smoothing_are_of_the_training_alone(tmp_path: Path) -> None:
    model = labram_classifier(drop_path_rate=0.5)
    stage = stages()["labram-classifier"]
    trainer = NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=2, label_smoothing_factor=0.3, learning_rate=0.0, weight_decay=0.0),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        data_collator=stage.collator(0),
        layer_decay=0.65,
    )
    given: list[float] = []
    forward = model.forward
    model.forward = lambda *args, **kwargs: given.append(kwargs.get("smoothing", 0.0)) or forward(*args, **kwargs)
    trainer.train()
    assert given == [0.3, 0.3]
    losses = [trainer.evaluate()["eval_loss"] for _ in range(2)]
    batch = stage.collator(0)(ROWS)
    with torch.no_grad():
        plain = functional.cross_entropy(model.eval()(**batch).logits, batch["labels"]).item()
    assert losses == pytest.approx([plain, plain], rel=1e-5)
