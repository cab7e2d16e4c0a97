from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from small_trainings import ROWS, TASK, arguments, language_model, make_processor, stages
from transformers import EarlyStoppingCallback
from transformers.utils import logging

from neurolm_hf.collators import PretrainingCollator
from neurolm_hf.layers_neurolm import codebook_statistics
from neurolm_hf.metrics import balanced_accuracy
from neurolm_hf.modeling_neurolm import NeuroLMCausalLMOutputWithPast, NeuroLMForCausalLM
from neurolm_hf.processing_neurolm import NeuroLMProcessor
from neurolm_hf.scoring import answer_probabilities
from neurolm_hf.tasks import load_task
from neurolm_hf.training import CodebookCallback, NeuroLMTrainer
from neurolm_hf.training_set import TrainingSet
from neurolm_hf.validation import ReconstructionCallback, answer_counts, sample_statistics


@pytest.fixture(scope="module")
def processor() -> NeuroLMProcessor:
    return make_processor()


def evaluated(folder: Path, name: str, texts: float, batch_size: int) -> dict[str, float]:
    stage = stages()[name]
    trainer = NeuroLMTrainer(
        model=stage.model(),
        args=arguments(folder, per_device_eval_batch_size=batch_size),
        eval_dataset=ROWS,
        data_collator=None,
        eval_data_collator=stage.collator(texts),
    )
    return trainer.evaluate()


@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_tokenizer_metrics_are_means_over_the_whole_split(tmp_path: Path, batch_size: int) -> None:
    metrics = evaluated(tmp_path, "vq", 0, batch_size)
    stage = stages()["vq"]
    batch = stage.collator(0)(ROWS)
    outputs = stage.model().vq(**batch)
    for name in ("frequency_loss", "raw_loss", "commitment_loss", "codebook_usage", "perplexity"):
        assert metrics[f"eval_{name}"] == pytest.approx(outputs[name].item(), rel=1e-5), name
    assert metrics["eval_loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
    usage, perplexity = codebook_statistics(outputs.codes, 32)
    assert (metrics["eval_codebook_usage"], metrics["eval_perplexity"]) == (usage.item(), perplexity.item())


@pytest.mark.parametrize(("batch_size", "texts"), [(2, 1), (2, 0.5), (3, 1), (7, 2)])
@pytest.mark.parametrize("name", ["pretraining", "lora"])
def test_language_model_metrics_are_means_over_the_whole_split(
    tmp_path: Path, name: str, batch_size: int, texts: float
) -> None:
    metrics = evaluated(tmp_path, name, texts, batch_size)
    stage = stages()[name]
    batch = stage.collator(texts)(ROWS)
    batch.pop("rows")
    model = stage.model().eval()
    outputs = model(**batch)
    assert metrics["eval_text_loss"] == pytest.approx(outputs.text_loss.item(), rel=1e-5)
    assert metrics["eval_loss"] == pytest.approx(outputs.loss.item(), rel=1e-5)
    if name == "lora":
        assert metrics["eval_answer_loss"] == pytest.approx(outputs.answer_loss.item(), rel=1e-5)
        assert not {"eval_eeg_loss", "eval_eeg_accuracy"} & metrics.keys()
        return
    assert "eval_answer_loss" not in metrics
    assert metrics["eval_eeg_loss"] == pytest.approx(outputs.eeg_loss.item(), rel=1e-5)
    text_rows = model.config.text_config.vocab_size
    targets, likeliest = outputs.targets, outputs.logits[..., text_rows:].argmax(-1)
    right = (likeliest + text_rows == targets)[targets >= text_rows]
    assert len(right) == 17
    assert metrics["eval_eeg_accuracy"] == pytest.approx(right.float().mean().item())


def test_accuracy_on_codes_is_that_of_the_likeliest_code(tmp_path: Path) -> None:
    stage = stages()["pretraining"]
    model = stage.model()
    trainer = NeuroLMTrainer(model=model, args=arguments(tmp_path), eval_dataset=ROWS, data_collator=stage.collator(0))
    codes = model(**stage.collator(0)(ROWS)).targets
    wanted = codes[codes >= 0] - model.config.text_config.vocab_size
    most = int(wanted.mode().values)
    with torch.no_grad():
        # whatever it reads, the same code: right as often as that occurs. Text is likelier than any code
        model.code_head.weight.zero_()
        model.lm_head.weight.fill_(2.0)
        model.model.language_model.ln_f.weight.zero_()
        model.model.language_model.ln_f.bias.fill_(1.0)
        model.code_head.weight[most] = 1.0
    assert trainer.evaluate()["eval_eeg_accuracy"] == pytest.approx((wanted == most).float().mean().item())


def test_statistics_are_of_samples_and_count_texts_to_them_in_turn() -> None:
    # the third row is a text, of the first of two samples
    outputs = NeuroLMCausalLMOutputWithPast(
        target_losses=torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]),
        target_rows=torch.tensor([0, 0, 1, 1, 2, 2]),
        target_kinds=torch.tensor([0, 1, 0, 0, 2, 2]),
        target_hits=torch.tensor([True, True, False, True, True, True]),
    )
    sums, items = sample_statistics(outputs, samples=2)
    assert {name: values.tolist() for name, values in sums.items()} == {
        "eeg_loss": [1, 12],
        "answer_loss": [2, 0],
        "text_loss": [48, 0],
        "eeg_accuracy": [1, 1],
    }
    assert {name: values.tolist() for name, values in items.items()} == {
        "eeg_loss": [1, 2],
        "answer_loss": [1, 0],
        "text_loss": [2, 0],
        "eeg_accuracy": [1, 2],
    }


def test_an_evaluation_makes_no_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    logits = NeuroLMForCausalLM._logits
    monkeypatch.setattr(NeuroLMForCausalLM, "_logits", lambda *args: made.append(1) or logits(*args))
    evaluated(tmp_path, "pretraining", 1, 3)
    assert not made
    stage = stages()["pretraining"]
    batch = stage.collator(1)(ROWS)
    batch.pop("rows")
    assert stage.model().eval()(**batch).logits is not None
    assert made


def test_answers_of_the_validation_split_decide_which_checkpoint_is_best(
    tmp_path: Path, processor: NeuroLMProcessor, caplog: Any
) -> None:
    stage = stages()["lora"]
    model = stage.model()
    answer_sets = {"mine": (TASK, ROWS), "first": (TASK, ROWS[:3])}
    trainer = NeuroLMTrainer(
        model=model,
        args=arguments(
            tmp_path,
            max_steps=6,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="best",
            metric_for_best_model="balanced_accuracy",
            load_best_model_at_end=True,
            per_device_eval_batch_size=2,
        ),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        data_collator=stage.collator(1),
        processing_class=processor,
        answer_sets=answer_sets,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=5)],
    )
    logging.enable_propagation()
    trainer.train()
    logging.disable_propagation()
    assert "instruction-tuned" not in caplog.text

    entries = [entry for entry in trainer.state.log_history if "eval_balanced_accuracy" in entry]
    assert len(entries) == trainer.state.global_step
    means = [entry["eval_balanced_accuracy"] for entry in entries]
    assert means == [
        (entry["eval_mine_balanced_accuracy"] + entry["eval_first_balanced_accuracy"]) / 2 for entry in entries
    ]
    assert trainer.state.best_metric == max(means)
    # the best weights are in place again: what they answer, asked as a user would
    for name, (task, rows) in answer_sets.items():
        probabilities = answer_probabilities(
            model,
            processor,
            [[row["signal"]] for row in rows],
            task,
            ch_names=[[row["channels"]] for row in rows],
            prepared_by=processor.feature_extractor.recipe_id,
        )
        truth = [task.answers[row["answer"]] for row in rows]
        best = entries[int(np.argmax(means))]
        assert best[f"eval_{name}_balanced_accuracy"] == balanced_accuracy(truth, probabilities.argmax(1))


def test_answer_counts_do_not_depend_on_the_batches(processor: NeuroLMProcessor) -> None:
    model = language_model(processor)
    one, all_at_once = (answer_counts(model, processor, TASK, ROWS, size) for size in (1, 7))
    assert torch.equal(one, all_at_once)
    assert one.sum(1).tolist() == [3.0, 4.0]


def test_an_answer_of_another_task_is_refused(processor: NeuroLMProcessor) -> None:
    with pytest.raises(ValueError, match="'Yes' is no answer of task SEED"):
        answer_counts(language_model(processor), processor, load_task("SEED"), ROWS, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"processing_class": None}, "give it as `processing_class`"),
        ({"eval_dataset": {"a": ROWS, "b": ROWS}}, "give one `eval_dataset`"),
    ],
)
def test_answer_sets_that_cannot_be_asked_are_refused(
    tmp_path: Path, processor: NeuroLMProcessor, given: dict, message: str
) -> None:
    whole = {"processing_class": processor, "eval_dataset": ROWS, "answer_sets": {"mine": (TASK, ROWS)}, **given}
    with pytest.raises(ValueError, match=message):
        NeuroLMTrainer(model=language_model(processor), args=arguments(tmp_path), **whole)


def test_answer_sets_are_those_of_their_own_split(tmp_path: Path, processor: NeuroLMProcessor) -> None:
    collated: list[str] = []

    def collator(kind: str) -> Any:
        return lambda rows: collated.append(kind) or stages()["lora"].collator(0)(rows)

    trainer = NeuroLMTrainer(
        model=language_model(processor),
        args=arguments(tmp_path),
        eval_dataset=ROWS,
        data_collator=collator("training"),
        eval_data_collator=collator("evaluation"),
        processing_class=processor,
        answer_sets={"mine": (TASK, ROWS)},
    )
    assert "eval_balanced_accuracy" in trainer.evaluate()
    other = list(ROWS)
    assert not any("balanced_accuracy" in name for name in trainer.evaluate(other))
    assert not any("balanced_accuracy" in name for name in trainer.predict(other).metrics)
    assert set(collated) == {"evaluation"}


def test_texts_of_the_validation_stay_the_same(tmp_path: Path, processor: NeuroLMProcessor) -> None:
    blocks = [{"input_ids": [number, number + 1, number + 2]} for number in range(200)]
    trainer = NeuroLMTrainer(
        model=language_model(processor),
        args=arguments(tmp_path),
        eval_dataset=TrainingSet([(ROWS, None)], processor.feature_extractor),
        data_collator=PretrainingCollator(processor, text_blocks=blocks, texts_per_row=0.5),
    )
    loader = trainer.get_eval_dataloader()  # kept from one evaluation to the next, as with persistent workers
    first, second = (trainer.evaluation_loop(loader, "Evaluation").metrics for _ in range(2))
    assert first["eval_text_loss"] == second["eval_text_loss"]
    assert first["eval_text_loss"] == trainer.evaluate()["eval_text_loss"]


def test_metrics_of_one_s_own_are_refused(tmp_path: Path, processor: NeuroLMProcessor) -> None:
    with pytest.raises(ValueError, match="leave it out, and score answers with `answer_sets`"):
        NeuroLMTrainer(model=language_model(processor), args=arguments(tmp_path), compute_metrics=lambda _: {})


def test_a_reconstruction_is_drawn_after_each_evaluation(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    stage = stages()["vq"]
    model = stage.model()
    trainer = NeuroLMTrainer(
        model=model,
        args=arguments(tmp_path, max_steps=4, eval_strategy="steps", eval_steps=2, report_to=["tensorboard"]),
        train_dataset=ROWS,
        eval_dataset=ROWS,
        data_collator=stage.collator(1),
        callbacks=[CodebookCallback()],
    )
    callbacks = trainer.callback_handler.callbacks
    trainer.add_callback(ReconstructionCallback(ROWS[5:], stage.collator(0), tmp_path / "pictures", callbacks))
    drawn = []
    draw = ReconstructionCallback.on_evaluate.__globals__["figures"].plot_reconstruction
    monkeypatch.setattr("neurolm_hf.figures.plot_reconstruction", lambda *given: drawn.append(given) or draw(*given))
    trainer.train()
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["step-2.png", "step-4.png"]
    first, second = (imread(tmp_path / "pictures" / f"step-{step}.png") for step in (2, 4))
    assert not np.array_equal(first, second)
    signal, reconstruction, channels, rate = drawn[-1]
    window = ROWS[5]["signal"]
    np.testing.assert_allclose(signal, (window - window.mean()) / window.std(ddof=1), atol=1e-4)
    assert reconstruction.shape == window.shape
    assert (channels, rate) == (["T3", "T4", "O1", "O2"], 200)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    assert [event.step for event in events.Images("reconstruction")] == [2, 4]
    assert {"train/raw_loss", "train/perplexity", "eval/codebook_usage", "eval/raw_loss"} <= set(
        events.Tags()["scalars"]
    )
