from typing import Any

import numpy as np
import pytest
import torch
from tiny import EEG, randomize, text_config, vq_batch, vq_config, vq_model
from transformers import TrainingArguments

from neurolm_hf import NeuroLMConfig, NeuroLMForCausalLM, NeuroLMVQModel
from neurolm_hf.channels_neurolm import CHANNEL_VOCABULARY
from neurolm_hf.processing_neurolm import EEGFeatureExtractor, NeuroLMProcessor, train_text_tokenizer
from neurolm_hf.storage import encode_row
from neurolm_hf.tasks import load_task
from neurolm_hf.training import (
    CodebookCallback,
    EEGCollator,
    InstructionCollator,
    NeuroLMTrainer,
    PretrainingCollator,
    QuantizerScheduleCallback,
    drop_channels,
    standardize_features,
    window_segment,
)


TASK = load_task("Workload")
TEXTS = ["Alpha fades during work.", "Theta grows over the midline."]


def row(channels: tuple[str, ...] = ("C3", "C4", "CZ"), seconds: int = 2, answer: str = "Yes", seed: int = 0) -> dict:
    signal = np.random.default_rng(seed).normal(size=(len(channels), 200 * seconds)).astype(np.float32)
    return {"signal": signal, "channels": list(channels), "answer": answer}


HOLE = np.where(np.arange(1200).reshape(3, 400) == 450, np.nan, 0.5)
ROWS = [
    row(),
    row(("FP1", "O2"), 3, "No", seed=1),
    row(("PZ",), 2, "Yes", seed=2),
    row(("FP1", "CZ"), 2, "No", seed=3),
]


@pytest.fixture(scope="module")
def processor() -> NeuroLMProcessor:
    texts = [*TEXTS, *(TASK.training_text(answer) for answer in TASK.classes)]
    return NeuroLMProcessor(EEGFeatureExtractor(), train_text_tokenizer(texts, vocab_size=320))


def language_model(processor: NeuroLMProcessor) -> NeuroLMForCausalLM:
    torch.manual_seed(0)
    config = NeuroLMConfig(
        eeg_config=vq_config(num_channel_embeddings=256).to_dict(),
        text_config=text_config("gpt2", vocab_size=len(processor.tokenizer)),
        eeg_token_id=processor.eeg_token_id,
    )
    return randomize(NeuroLMForCausalLM(config))


def arguments(tmp_path: Any, **changes: Any) -> TrainingArguments:
    given = {
        "output_dir": str(tmp_path),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "remove_unused_columns": False,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**given, **changes})


def test_window_is_time_major_with_the_vocabulary_s_ids() -> None:
    segment = window_segment(EEGFeatureExtractor(), ROWS[1])
    assert segment.time_ids.tolist() == [0, 0, 1, 1, 2, 2]
    assert [CHANNEL_VOCABULARY[index] for index in segment.channel_ids] == ["FP1", "O2"] * 3
    np.testing.assert_array_equal(segment.values[3], ROWS[1]["signal"][1, 200:400])


def stored(given: dict) -> dict:
    """The row as a prepared set holds it."""
    place = {"subject": "s", "recording": "a.edf", "start": 0.0}
    recipe = {"sampling_rate": 200, "unit": "100uV", "recipe_id": EEGFeatureExtractor().recipe_id}
    row = encode_row(given["signal"], given["channels"], **place, **recipe, task=TASK, answer=given["answer"])
    return {**row, "signal": np.asarray(row["signal"], np.float32), "channels": np.array(row["channels"], object)}


@pytest.mark.parametrize("index", range(3))
def test_stored_rows_give_the_batches_of_plain_ones(processor: NeuroLMProcessor, index: int) -> None:
    rounded = [{**one, "signal": one["signal"].astype(np.float16)} for one in ROWS]
    collate = collators(processor)[index]
    plain, read = collate(rounded), collate([stored(one) for one in ROWS])
    assert plain.keys() == read.keys()
    assert all(torch.equal(plain[name], read[name]) for name in plain)


def test_channels_of_a_stored_row_are_dropped_with_their_signal() -> None:
    torch.manual_seed(0)
    kept = drop_channels(stored(ROWS[0]), 0.5)
    assert 0 < len(kept["channels"]) < 3
    for name, signal in zip(kept["channels"], kept["signal"], strict=True):
        np.testing.assert_allclose(signal, ROWS[0]["signal"][ROWS[0]["channels"].index(name)], rtol=1e-3, atol=1e-6)


def test_eeg_collator_pads_different_montages() -> None:
    batch = EEGCollator(EEGFeatureExtractor())(ROWS)
    assert batch["input_values"].shape == (4, 6, 200)
    assert batch["eeg_attention_mask"].sum(1).tolist() == [6, 6, 2, 4]
    assert set(batch) == {"input_values", "eeg_channel_ids", "eeg_time_ids", "eeg_attention_mask"}
    NeuroLMVQModel(vq_config(num_channel_embeddings=256))(**batch)


def test_pretraining_labels_are_every_patch_and_the_text(processor: NeuroLMProcessor) -> None:
    batch = PretrainingCollator(processor, TEXTS, texts_per_batch=2)(ROWS)
    is_eeg = batch["input_ids"] == processor.eeg_token_id
    assert is_eeg.sum(1).tolist() == [6, 6, 2, 4, 0, 0]
    assert torch.equal(batch["labels"] == processor.eeg_token_id, is_eeg)
    for ids, labels, mask in zip(
        batch["input_ids"][4:], batch["labels"][4:], batch["attention_mask"][4:], strict=True
    ):
        text = processor.decode(ids[mask.bool()])
        assert text.removesuffix("<|endoftext|>") in TEXTS
        assert text.endswith("<|endoftext|>")
        assert torch.equal(labels[mask.bool()], ids[mask.bool()])
        assert (labels[~mask.bool()] == -100).all()
    outputs = language_model(processor)(**batch)
    assert outputs.eeg_loss is not None
    assert outputs.text_loss is not None


def test_pretraining_collator_needs_texts_to_draw_from(processor: NeuroLMProcessor) -> None:
    with pytest.raises(ValueError, match="needs `texts`"):
        PretrainingCollator(processor, texts_per_batch=1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_instruction_labels_are_what_follows_the_prompt(processor: NeuroLMProcessor, side: str) -> None:
    processor.tokenizer.padding_side = side
    batch = InstructionCollator(processor, TASK)(ROWS)
    processor.tokenizer.padding_side = "left"
    for given, labels in zip(ROWS, batch["labels"], strict=True):
        assert processor.tokenizer.decode(labels[labels != -100]) == f" {given['answer']} <|endoftext|>"
    prompts = batch["input_ids"].masked_fill((batch["labels"] != -100) | (batch["attention_mask"] == 0), 0)
    for ids, mask, labels in zip(prompts, batch["attention_mask"], batch["labels"], strict=True):
        kept = ids[mask.bool() & (labels == -100) & (ids != processor.eeg_token_id)]
        assert processor.tokenizer.decode(kept) == TASK.prompt()


def test_instruction_labels_of_lettered_answers(processor: NeuroLMProcessor) -> None:
    lettered = load_task("TUSL")
    batch = InstructionCollator(processor, lettered)([{**ROWS[0], "answer": "(B)"}])
    labels = batch["labels"][0]
    assert processor.tokenizer.decode(labels[labels != -100]) == "B) <|endoftext|>"


def test_channel_dropout_keeps_signal_and_name_together() -> None:
    torch.manual_seed(0)
    full = row(tuple(CHANNEL_VOCABULARY[:20]))
    counts = []
    for _ in range(200):
        kept = drop_channels(full, 0.3)
        counts.append(len(kept["channels"]))
        for name, signal in zip(kept["channels"], kept["signal"], strict=True):
            np.testing.assert_array_equal(signal, full["signal"][full["channels"].index(name)])
    assert 13 < np.mean(counts) < 15
    assert drop_channels(full, 0.0) is full
    assert len(drop_channels(row(("CZ",)), 1.0)["channels"]) == 1


def test_standardized_features_have_unit_scale_and_the_same_codes() -> None:
    model = vq_model()
    batch = vq_batch(*(EEG((1, 2, 5), 4, seed=seed) for seed in range(6)), EEG((2,), 3, seed=9), extra_padding=2)
    before = model.encode(**batch)
    standardize_features(model, [batch])
    after = model.encode(**batch)
    features = after.features[batch["eeg_attention_mask"].bool()]
    torch.testing.assert_close(features.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
    torch.testing.assert_close(features.std(0, unbiased=False), torch.ones(32), atol=1e-3, rtol=0)
    assert torch.equal(before.codes, after.codes)
    assert not torch.allclose(before.features, after.features, atol=1e-2)


def test_trainer_moves_the_codebook_once_a_step_and_logs_the_parts(tmp_path: Any, monkeypatch: Any) -> None:
    model = NeuroLMVQModel(vq_config(num_channel_embeddings=256))
    updates, forwards = [], []
    update = model.update_codebook
    monkeypatch.setattr(model, "update_codebook", lambda: (updates.append(1), update()))
    model.register_forward_hook(lambda *_: forwards.append(1))
    trainer = NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path, gradient_accumulation_steps=2),
        train_dataset=ROWS,
        data_collator=EEGCollator(EEGFeatureExtractor()),
        callbacks=[CodebookCallback()],
    )
    start = model.encoder.quantizer.codebook.clone()
    trainer.train()
    assert (len(updates), len(forwards)) == (4, 8)
    assert not torch.equal(start, model.encoder.quantizer.codebook)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 4
    for entry in logged:
        assert {"frequency_loss", "raw_loss", "commitment_loss", "codebook_usage", "perplexity"} <= entry.keys()
        total = entry["frequency_loss"] + entry["raw_loss"] + entry["commitment_loss"]
        assert total == pytest.approx(entry["loss"], rel=1e-3)


def test_quantizer_schedule(tmp_path: Any) -> None:
    model = NeuroLMVQModel(vq_config(num_channel_embeddings=256, dead_code_threshold=0.1))
    seen = []
    model.register_forward_hook(
        lambda *_: seen.append(
            (
                model.config.quantizer_bypass,
                model.config.dead_code_threshold,
                bool(model.encoder.quantizer.initialized),
            )
        )
    )
    NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=5),
        train_dataset=ROWS,
        data_collator=EEGCollator(EEGFeatureExtractor()),
        callbacks=[CodebookCallback(), QuantizerScheduleCallback(warmup_steps=2, bypass=0.5, revive_until=0.8)],
    ).train()
    assert seen == [(1.0, 0.1, False), (1.0, 0.1, False), (0.5, 0.1, True), (0.5, 0.1, True), (0.5, 0.0, True)]
    assert (model.config.quantizer_bypass, model.config.dead_code_threshold) == (0.0, 0.1)


def test_quantizer_schedule_is_not_saved(tmp_path: Any) -> None:
    model = NeuroLMVQModel(vq_config(num_channel_embeddings=256, quantizer_bypass=0.25))
    NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1),
        train_dataset=ROWS,
        data_collator=EEGCollator(EEGFeatureExtractor()),
        callbacks=[CodebookCallback(), QuantizerScheduleCallback(warmup_steps=1, bypass=0.5)],
    ).train()
    for step in (1, 2):
        assert NeuroLMVQModel.from_pretrained(tmp_path / f"checkpoint-{step}").config.quantizer_bypass == 0.25


def collators(processor: NeuroLMProcessor) -> list:
    extractor = processor.feature_extractor
    return [EEGCollator(extractor), PretrainingCollator(processor), InstructionCollator(processor, TASK)]


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"recipe_id": "deadbeef0000"}, "a.edf at 4 s: prepared by recipe deadbeef0000"),
        ({"channels": ["C3", "Fp1", "CZ"]}, "a.edf at 4 s: Fp1"),
        ({"channels": ["C3", "C4"]}, "3 rows of signal for 2 channels"),
        (
            {"signal": HOLE},
            r"channel C4 is not finite at 4\.25",
        ),
    ],
)
def test_a_spoilt_window_is_named(processor: NeuroLMProcessor, index: int, spoilt: dict, message: str) -> None:
    bad = {**row(), "recording": "a.edf", "start": 4.0, **spoilt}
    with pytest.raises(ValueError, match=message):
        collators(processor)[index]([ROWS[0], bad])


def test_a_loss_that_is_not_finite_stops_before_a_weight_moves(tmp_path: Any, monkeypatch: Any) -> None:
    model = NeuroLMVQModel(vq_config(num_channel_embeddings=256))
    before = model.raw_decoder.embedding.weight.clone()
    collate = EEGCollator(EEGFeatureExtractor())
    trainer = NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=ROWS,
        data_collator=lambda rows: {**(batch := collate(rows)), "input_values": batch["input_values"] * float("inf")},
        callbacks=[CodebookCallback()],
    )
    with pytest.raises(ValueError, match="step 1 is nan"):
        trainer.train()
    assert torch.equal(before, model.raw_decoder.embedding.weight)


def test_instruction_tuning_lowers_the_loss_and_leaves_the_encoder(tmp_path: Any, processor: NeuroLMProcessor) -> None:
    model = language_model(processor)
    encoder = {name: tensor.clone() for name, tensor in model.model.eeg_encoder.state_dict().items()}
    trainer = NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=12),
        train_dataset=ROWS,
        data_collator=InstructionCollator(processor, TASK, channel_dropout=0.2),
    )
    trainer.train()
    losses = [entry["text_loss"] for entry in trainer.state.log_history if "text_loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(encoder[name], tensor) for name, tensor in model.model.eeg_encoder.state_dict().items())
