import dataclasses

import numpy as np
import pytest
import torch
from tiny import randomize, text_config, vq_config
from torch.nn import functional

from neurolm_hf import NeuroLMConfig, NeuroLMForCausalLM
from neurolm_hf.processing_neurolm import EEGFeatureExtractor, NeuroLMProcessor, train_text_tokenizer
from neurolm_hf.prompts import completion_ids
from neurolm_hf.scoring import answer_probabilities, calibrate
from neurolm_hf.tasks import load_task


TASK = dataclasses.replace(load_task("Workload"), answers={"No": 0, "Yes": 1, "Unsure": 2})
RECORDINGS = [np.random.default_rng(i).normal(size=(2 + i, 600)).astype(np.float32) for i in range(3)]
CHANNELS = [["C3", "C4"], ["FP1", "CZ", "O2"], ["F3", "F4", "P3", "P4"]]


@pytest.fixture(scope="module")
def processor() -> NeuroLMProcessor:
    feature_extractor = EEGFeatureExtractor(window_seconds=3)
    texts = [TASK.training_text(answer) for answer in ("No", "Yes")] * 9
    return NeuroLMProcessor(feature_extractor, train_text_tokenizer(texts, vocab_size=300))


@pytest.fixture(scope="module", params=["gpt2", "qwen3"])
def model(request: pytest.FixtureRequest, processor: NeuroLMProcessor) -> NeuroLMForCausalLM:
    torch.manual_seed(0)
    config = NeuroLMConfig(
        eeg_config=vq_config(num_channel_embeddings=256).to_dict(),
        text_config=text_config(request.param, vocab_size=320),
        eeg_token_id=processor.eeg_token_id,
    )
    return randomize(NeuroLMForCausalLM(config))


def arguments(processor: NeuroLMProcessor) -> dict:
    return {"ch_names": CHANNELS, "prepared_by": processor.feature_extractor.recipe_id}


@torch.no_grad()
def likelihood_alone(model, processor, recording, names, answer) -> float:
    """Log-likelihood of one answer in one unpadded sequence, read at once without a cache."""
    text = TASK.training_text(answer)
    inputs = processor(
        eeg=recording,
        text=text,
        ch_names=names,
        prepared_by=processor.feature_extractor.recipe_id,
        return_tensors="pt",
    )
    ids = inputs["input_ids"][0]
    logits = model(**inputs).logits[0, :-1, : model.lm_head.out_features]
    answer_length = len(completion_ids(processor.tokenizer, TASK, answer))
    losses = functional.cross_entropy(logits, ids[1:], reduction="none")
    return -float(losses[-answer_length:].sum())


def test_equals_each_answer_read_alone(model: NeuroLMForCausalLM, processor: NeuroLMProcessor) -> None:
    probabilities = answer_probabilities(model, processor, RECORDINGS, TASK, batch_size=2, **arguments(processor))
    alone = torch.tensor(
        [
            [likelihood_alone(model, processor, recording, names, answer) for answer in TASK.classes]
            for recording, names in zip(RECORDINGS, CHANNELS, strict=True)
        ]
    )
    assert len(completion_ids(processor.tokenizer, TASK, "Unsure")) > 3
    np.testing.assert_allclose(probabilities, functional.softmax(alone.double(), dim=1).numpy(), atol=1e-5)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-12)
    assert probabilities.std(0).max() > 1e-3  # the windows are told apart


def test_reads_the_eeg_once_a_batch(model: NeuroLMForCausalLM, processor: NeuroLMProcessor) -> None:
    calls = []
    handle = model.model.eeg_encoder.register_forward_hook(lambda *_: calls.append(1))
    answer_probabilities(model, processor, RECORDINGS, TASK, batch_size=2, **arguments(processor))
    handle.remove()
    assert len(calls) == 2


def test_a_long_recording_gives_a_row_a_window(model: NeuroLMForCausalLM, processor: NeuroLMProcessor) -> None:
    long = np.concatenate([RECORDINGS[0]] * 4, axis=1)
    given = arguments(processor) | {"ch_names": CHANNELS[0]}
    probabilities = answer_probabilities(model, processor, long, TASK, **given)
    assert probabilities.shape == (4, 3)
    np.testing.assert_allclose(probabilities, np.broadcast_to(probabilities[0], (4, 3)), atol=1e-5)


def test_training_mode_is_restored(model: NeuroLMForCausalLM, processor: NeuroLMProcessor) -> None:
    model.train()
    answer_probabilities(model, processor, RECORDINGS, TASK, **arguments(processor))
    assert model.training
    model.eval()


def test_an_untuned_model_warns(model: NeuroLMForCausalLM, processor: NeuroLMProcessor, monkeypatch) -> None:
    said = []
    monkeypatch.setattr("neurolm_hf.modeling_neurolm.logger.warning_once", said.append)
    answer_probabilities(model, processor, tuple(RECORDINGS), TASK, **arguments(processor))
    assert "never instruction-tuned" in said[0]


def test_calibration_takes_the_models_preference_out() -> None:
    # odds of 3 for the second answer on average, whatever is asked
    reference = np.array([[0.1, 0.9], [0.5, 0.5]])
    given = np.array([[0.25, 0.75], [0.2, 0.8], [0.4, 0.6]])
    calibrated = calibrate(given, reference)
    np.testing.assert_allclose(calibrated.sum(axis=1), 1.0)
    np.testing.assert_allclose(calibrated[0], [0.5, 0.5])
    assert calibrated[1, 1] > 0.5 > calibrated[2, 1]
    odds = given[:, 1] / given[:, 0]
    np.testing.assert_allclose(calibrated[:, 1] / calibrated[:, 0], odds / 3)


@pytest.mark.parametrize("reference", [np.empty((0, 2)), np.full((2, 3), 1 / 3)])
def test_calibration_needs_a_reference_of_the_same_answers(reference: np.ndarray) -> None:
    with pytest.raises(ValueError, match="of one task"):
        calibrate(np.array([[0.5, 0.5]]), reference)
