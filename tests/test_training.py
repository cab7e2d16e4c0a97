import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainings import (
    ROWS,
    TASK,
    EpochRecorder,
    GradientCallback,
    SpoilingCollator,
    adversarial_tokenizer,
    arguments,
    assert_same_steps,
    fixed,
    gradients,
    language_model,
    large_batches,
    make_processor,
    stages,
)
from tiny import EEG, vq_batch, vq_config, vq_model
from transformers import TrainerCallback, modeling_utils

from neurolm_hf import NeuroLMVQModel, training
from neurolm_hf.checkpoints import is_complete
from neurolm_hf.collators import EEGCollator, InstructionCollator
from neurolm_hf.processing_neurolm import EEGFeatureExtractor, NeuroLMProcessor
from neurolm_hf.training import (
    LOSS_PARTS,
    AlignmentScheduleCallback,
    CodebookCallback,
    NeuroLMTrainer,
    QuantizerScheduleCallback,
    standardize_features,
)


@pytest.fixture(scope="module")
def processor() -> NeuroLMProcessor:
    return make_processor()


def small_tokenizer(**changes: Any) -> NeuroLMVQModel:
    torch.manual_seed(0)
    return NeuroLMVQModel(vq_config(num_channel_embeddings=256, **changes))


def log_entries(trainer: NeuroLMTrainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("name", ["vq", "pretraining", "unfrozen", "lora", "labram-vq", "labram-masked"])
@pytest.mark.parametrize(
    ("accumulation", "steps"),
    [(4, [ROWS] * 2), (3, [ROWS[:6], ROWS[6:]])],
    ids=["7 rows in 4 batches", "6 rows in 3 batches, then 1"],
)
def test_micro_batches_give_the_gradient_of_one_large_batch(
    tmp_path: Path, name: str, accumulation: int, steps: list
) -> None:
    stage, kept = stages()[name], GradientCallback()
    trainer = NeuroLMTrainer(
        model=stage.model(),
        args=fixed(tmp_path, max_steps=2, gradient_accumulation_steps=accumulation),
        train_dataset=ROWS,
        # a text with every other row: there are batches without any
        data_collator=stage.collator(0.5),
        callbacks=[kept, *([CodebookCallback()] if name.endswith("vq") else [])],
    )
    trainer.train()
    assert_same_steps(kept.steps, large_batches(stage, steps, texts=0.5))
    for entry in log_entries(trainer):
        assert sum(entry.get(part, 0.0) for part in LOSS_PARTS) == pytest.approx(entry["loss"], rel=1e-5)


def test_logged_parts_are_means_over_the_steps_of_an_entry(tmp_path: Path) -> None:
    stage = stages()["pretraining"]
    trainer = NeuroLMTrainer(
        model=stage.model(),
        args=fixed(tmp_path, max_steps=4, logging_steps=4, gradient_accumulation_steps=3),
        train_dataset=ROWS,
        data_collator=stage.collator(1),
    )
    trainer.train()
    outputs = [stage.model()(**stage.collator(1)(rows)) for rows in (ROWS[:6], ROWS[6:])]
    (entry,) = log_entries(trainer)
    # the row of the second step has no target of EEG
    assert outputs[1].eeg_loss is None
    assert entry["eeg_loss"] == pytest.approx(outputs[0].eeg_loss.item() / 2, rel=1e-5)
    assert entry["text_loss"] == pytest.approx(sum(output.text_loss.item() for output in outputs) / 2, rel=1e-5)
    assert entry["loss"] == pytest.approx(entry["eeg_loss"] + entry["text_loss"], rel=1e-5)


def test_several_gpus_in_one_process_are_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match="torchrun --nproc_per_node 2"):
        NeuroLMTrainer(model=small_tokenizer(), args=args, train_dataset=ROWS, data_collator=EEGCollator)


def test_weight_decay_is_for_matrices_and_embeddings(tmp_path: Path, processor: NeuroLMProcessor) -> None:
    for model in (language_model(processor, freeze_eeg_encoder=False), adversarial_tokenizer()):
        trainer = NeuroLMTrainer(model=model, args=arguments(tmp_path, weight_decay=0.1), train_dataset=ROWS)
        decayed, rest = trainer.create_optimizer().param_groups
        assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert {id(p) for p in decayed["params"]} == {id(p) for p in trained if p.ndim >= 2}
        assert {id(p) for p in rest["params"]} == {id(p) for p in trained if p.ndim < 2}
        names = trainer.get_decay_parameter_names(model)
        assert any(name.endswith("patch_embedding.conv1.weight") for name in names)
        assert any(name.endswith("channel_embedding.weight") for name in names)
        assert not any(name.endswith(("bias", "norm.weight")) for name in names)


def test_alignment_schedule_is_the_paper_s(tmp_path: Path) -> None:
    model = adversarial_tokenizer()
    seen: list[float] = []
    model.register_forward_hook(lambda *_: seen.append(model.reversal_strength))
    NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=4, gradient_accumulation_steps=2),
        train_dataset=ROWS,
        data_collator=EEGCollator(EEGFeatureExtractor()),
        callbacks=[CodebookCallback(), AlignmentScheduleCallback()],
    ).train()
    progress = torch.tensor([0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75])
    torch.testing.assert_close(torch.tensor(seen), torch.tanh(5 * progress))


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


def test_trainer_moves_the_codebook_once_a_step_and_logs_the_parts(tmp_path: Path, monkeypatch: Any) -> None:
    model = small_tokenizer()
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


def test_quantizer_schedule(tmp_path: Path) -> None:
    model = small_tokenizer(dead_code_threshold=0.1)
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


def test_a_codebook_that_is_not_placed_has_no_figures(tmp_path: Path) -> None:
    trainer = NeuroLMTrainer(
        model=small_tokenizer(),
        args=arguments(tmp_path, eval_strategy="steps", eval_steps=1),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        data_collator=EEGCollator(EEGFeatureExtractor()),
        callbacks=[CodebookCallback(), QuantizerScheduleCallback(warmup_steps=2, bypass=0.5)],
    )
    trainer.train()
    of_codebook = {"commitment_loss", "codebook_usage", "perplexity"}
    logged = [of_codebook & entry.keys() for entry in log_entries(trainer)]
    assert logged == [set(), set(), of_codebook, of_codebook]
    evaluated = [
        of_codebook & {name.removeprefix("eval_") for name in entry}
        for entry in trainer.state.log_history
        if "eval_loss" in entry
    ]
    assert evaluated == [set(), set(), of_codebook, of_codebook]


def test_quantizer_schedule_is_not_saved(tmp_path: Path) -> None:
    model = small_tokenizer(quantizer_bypass=0.25)
    NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=2, save_strategy="steps", save_steps=1),
        train_dataset=ROWS,
        data_collator=EEGCollator(EEGFeatureExtractor()),
        callbacks=[CodebookCallback(), QuantizerScheduleCallback(warmup_steps=1, bypass=0.5)],
    ).train()
    for step in (1, 2):
        assert NeuroLMVQModel.from_pretrained(tmp_path / f"checkpoint-{step}").config.quantizer_bypass == 0.25


def test_a_loss_that_is_not_finite_stops_before_a_weight_moves(tmp_path: Path) -> None:
    model = adversarial_tokenizer()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path, train_sampling_strategy="sequential", gradient_accumulation_steps=2),
        train_dataset=ROWS,
        data_collator=SpoilingCollator(),
        callbacks=[CodebookCallback()],
    )
    with pytest.raises(ValueError, match=r"step 1 is nan in the batch of 2.edf at 4 s \(s2\), 3.edf at 4 s \(s3\); "):
        trainer.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_bad_batch_is_left_out_and_reported(tmp_path: Path) -> None:
    kept = GradientCallback()
    trainer = NeuroLMTrainer(
        model=adversarial_tokenizer(),
        args=fixed(tmp_path, max_steps=4, logging_steps=2, gradient_accumulation_steps=2),
        train_dataset=ROWS,
        data_collator=SpoilingCollator(1),
        callbacks=[kept, CodebookCallback()],
        skip_bad_batches=True,
    )
    trainer.train()
    (first, second) = (json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines())
    assert first == {"step": 1, "loss": "nan", "rows": ["2.edf at 4 s (s2)", "3.edf at 4 s (s3)"]}
    assert second["step"] == 3
    assert [entry["skipped_batches"] for entry in log_entries(trainer)] == [1, 1]
    assert all(torch.tensor(entry["raw_loss"]).isfinite() for entry in log_entries(trainer))

    # what is left of step 1: the first batch, as its part of the whole step
    stage, model = stages()["vq"], adversarial_tokenizer().train()
    start = model.vq.encoder.quantizer.codebook.clone()
    whole, good = stage.collator(1)(ROWS[:4]), stage.collator(1)(ROWS[:2])
    good.pop("rows")
    model(**good, num_items_in_batch=model.count_loss_items(**whole)).loss.backward()
    assert_same_steps([kept.steps[0]], [{**gradients(model), "vq.encoder.quantizer.codebook": start}])
    # step 2 is whole again, its codebook moves
    model.zero_grad()
    model.drop_codebook_step()
    model.update_codebook()
    batch = stage.collator(1)(ROWS[4:])
    batch.pop("rows")
    model(**batch).loss.backward()
    model.update_codebook()
    moved = model.vq.encoder.quantizer.codebook
    assert not torch.equal(moved, start)
    assert_same_steps([kept.steps[1]], [{**gradients(model), "vq.encoder.quantizer.codebook": moved}])


@pytest.mark.parametrize("skip", [False, True])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path, skip: bool) -> None:
    model = small_tokenizer()
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    model.raw_decoder.embedding.weight.register_hook(lambda gradient: gradient * float("nan"))
    trainer = NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path),
        train_dataset=ROWS,
        data_collator=EEGCollator(EEGFeatureExtractor()),
        callbacks=[CodebookCallback()],
        skip_bad_batches=skip,
    )
    with pytest.raises(ValueError, match="gradient of step 1 is not finite"):
        trainer.train()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.named_parameters())


def test_a_model_that_has_diverged_is_not_skipped_for_ever(tmp_path: Path) -> None:
    class Diverge(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            kwargs["model"].raw_decoder.embedding.weight.data.fill_(float("nan"))

    trainer = NeuroLMTrainer(
        model=small_tokenizer(),
        args=arguments(tmp_path),
        train_dataset=ROWS,
        data_collator=EEGCollator(EEGFeatureExtractor()),
        callbacks=[CodebookCallback(), Diverge()],
        skip_bad_batches=True,
    )
    with pytest.raises(ValueError, match=r"step 2 is nan.*weights are no longer finite"):
        trainer.train()


def test_a_bad_first_batch_does_not_place_the_codebook(tmp_path: Path) -> None:
    model = small_tokenizer()
    start, placed = model.encoder.quantizer.codebook.clone(), []
    model.register_forward_hook(lambda *_: placed.append(bool(model.encoder.quantizer.initialized)))
    NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=2, train_sampling_strategy="sequential"),
        train_dataset=[ROWS[3], ROWS[2], *ROWS[:2]],
        data_collator=SpoilingCollator(),
        callbacks=[CodebookCallback()],
        skip_bad_batches=True,
    ).train()
    assert placed == [False, True]
    assert not torch.equal(start, model.encoder.quantizer.codebook)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_a_training_set_keeps_its_order_and_epoch_through_a_resume(tmp_path: Path) -> None:
    def train(max_steps: int, resume: bool) -> list[tuple]:
        rows = EpochRecorder()
        NeuroLMTrainer(
            model=small_tokenizer(),
            args=arguments(tmp_path, max_steps=max_steps, save_strategy="steps", save_steps=1),
            train_dataset=rows,
            data_collator=EEGCollator(EEGFeatureExtractor()),
            callbacks=[CodebookCallback()],
        ).train(resume_from_checkpoint=resume)
        return rows.draws

    # seven rows in four batches; a loader reads one batch ahead
    expected = [(3, epoch, index) for epoch in range(3) for index in range(7)]
    assert train(6, resume=False)[:11] == expected[:11]
    assert train(12, resume=True) == expected[11:]


def test_checkpoints_are_sealed_before_older_ones_go(tmp_path: Path, monkeypatch: Any) -> None:
    there: list[tuple] = []
    seal = training.seal

    def observed(folder: Path) -> None:
        there.append(tuple(sorted(path.name for path in tmp_path.glob("checkpoint-*"))))
        assert not is_complete(folder)
        assert (folder / "trainer_state.json").is_file()
        saved = torch.load(folder / "training_args.bin", weights_only=False)
        assert saved.save_total_limit == 1
        seal(folder)

    monkeypatch.setattr(training, "seal", observed)
    # left by an earlier run that had come further: its seal must not vouch for what is written now
    (tmp_path / "checkpoint-1").mkdir()
    seal(tmp_path / "checkpoint-1")
    args = arguments(tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1)
    trainer = NeuroLMTrainer(
        model=small_tokenizer(),
        args=args,
        train_dataset=ROWS,
        data_collator=EEGCollator(EEGFeatureExtractor()),
        callbacks=[CodebookCallback()],
    )
    trainer.train()
    # the one before is still there when the next is whole
    assert there == [("checkpoint-1",), ("checkpoint-1", "checkpoint-2"), ("checkpoint-2", "checkpoint-3")]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert is_complete(tmp_path / "checkpoint-3")
    assert args.save_total_limit == 1


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch: Any) -> None:
    class FullDisk(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                monkeypatch.setattr(training, "seal", fail)

    def fail(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    trainer = NeuroLMTrainer(
        model=small_tokenizer(),
        args=arguments(tmp_path, max_steps=3, save_strategy="steps", save_steps=1, save_total_limit=1),
        train_dataset=ROWS,
        data_collator=EEGCollator(EEGFeatureExtractor()),
        callbacks=[CodebookCallback(), FullDisk()],
    )
    with pytest.raises(OSError, match=r"checkpoint-2 could not be written: .*checkpoint-1 is complete"):
        trainer.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]


def test_instruction_tuning_lowers_the_loss_and_leaves_the_encoder(
    tmp_path: Path, processor: NeuroLMProcessor
) -> None:
    model = language_model(processor)
    encoder = {name: tensor.clone() for name, tensor in model.model.eeg_encoder.state_dict().items()}
    trainer = NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=12),
        train_dataset=ROWS,
        data_collator=InstructionCollator(processor, TASK, channel_dropout=0.2),
    )
    trainer.train()
    losses = [entry["answer_loss"] for entry in trainer.state.log_history if "answer_loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(encoder[name], tensor) for name, tensor in model.model.eeg_encoder.state_dict().items())


def kept_steps(folder: Path, name: str, **changes: Any) -> GradientCallback:
    kept = GradientCallback()
    stage = stages()[name]
    NeuroLMTrainer(
        model=stage.model(),
        args=fixed(folder, max_steps=2, per_device_train_batch_size=4, **changes),
        train_dataset=ROWS,
        data_collator=stage.collator(0.5),
        callbacks=[kept, *([CodebookCallback()] if name == "vq" else [])],
    ).train()
    return kept


@pytest.mark.parametrize("name", ["vq", "pretraining", "unfrozen", "lora"])
def test_activation_checkpointing_computes_the_same_gradients_twice(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = kept_steps(tmp_path, name).steps
    recomputed = []
    checkpoint = modeling_utils.checkpoint

    def counted(*args: Any, **kwargs: Any) -> Any:
        recomputed.append(1)
        return checkpoint(*args, **kwargs)

    monkeypatch.setattr(modeling_utils, "checkpoint", counted)
    assert_same_steps(kept_steps(tmp_path, name, activation_checkpointing=True).steps, expected)
    assert recomputed


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["vq", "pretraining", "unfrozen", "lora"])
def test_compiled_layers_compute_the_same_gradients(tmp_path: Path, name: str, backend: str) -> None:
    expected = kept_steps(tmp_path, name).steps
    torch.compiler.reset()
    given = kept_steps(tmp_path, name, torch_compile=True, torch_compile_backend=backend).steps
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.compiler.reset()
    assert_same_steps(given, expected)
