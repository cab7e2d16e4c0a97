"""The linear probe: features of windows as they are read alone, and regions by hand."""

import numpy as np
import pytest
import torch
from small_trainings import ROWS, make_processor
from small_trainings import language_model as window_model
from tiny import randomize, vq_config
from tiny_labram import labram_vq

from neurolm_hf import (
    NeuroLMConfig,
    NeuroLMForSequenceClassification,
    NeuroLMVQForPreTraining,
    NeuroLMVQForSequenceClassification,
)
from neurolm_hf.collators import ClassificationCollator, EEGCollator
from neurolm_hf.probe import REGIONS, region_features, window_features
from neurolm_hf.processing_neurolm import LABRAM_LAYOUT, EEGFeatureExtractor


LABELLED = [{**row, "label": 0} for row in ROWS]
MONTAGE = tuple(sorted(name for region in REGIONS for name in region))


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.mark.parametrize("pooling", ["last_token", "encoder_mean"])
def test_features_are_those_of_each_window_alone(processor, pooling):
    fields = window_model(processor).config.to_dict() | {"classifier_pooling": pooling}
    model = randomize(NeuroLMForSequenceClassification(NeuroLMConfig(**fields))).train()
    collate = ClassificationCollator(processor)
    features = window_features(model, collate, LABELLED, batch_size=3)
    assert features.shape == (7, 32)
    assert features.dtype == np.float32
    assert model.training
    for index, row in enumerate(LABELLED):
        batch = {name: values for name, values in collate([row]).items() if name not in ("labels", "rows")}
        with torch.no_grad():
            alone = model.eval()(**batch).features[0].numpy()
        np.testing.assert_allclose(features[index], alone, atol=1e-5)
    # of the model, and not of the labels
    others = [{**row, "label": 1} for row in LABELLED]
    np.testing.assert_array_equal(window_features(model, collate, others, batch_size=3), features)


def montage_rows(count=3, seconds=2):
    rng = np.random.default_rng(0)
    signals = rng.normal(size=(count, len(MONTAGE), 200 * seconds)).astype(np.float32)
    return [{"signal": signal, "channels": list(MONTAGE)} for signal in signals]


@pytest.mark.parametrize("with_head", [False, True])
def test_regions_are_means_over_their_seconds_and_channels(with_head):
    torch.manual_seed(0)
    kind = NeuroLMVQForSequenceClassification if with_head else NeuroLMVQForPreTraining
    model = randomize(kind(vq_config(num_channel_embeddings=256)))
    collate, rows = EEGCollator(EEGFeatureExtractor()), montage_rows()
    features = region_features(model, collate, rows, batch_size=2)
    assert features.shape == (3, len(REGIONS) * 32)
    batch = collate(rows)
    with torch.no_grad():
        encoded = model.base_model.encoder(batch["input_values"], batch["eeg_channel_ids"], batch["eeg_time_ids"])
    by_second = encoded.view(3, 2, len(MONTAGE), 32)
    for place, region in enumerate(REGIONS):
        expected = by_second[:, :, [MONTAGE.index(name) for name in region]].mean((1, 2))
        np.testing.assert_allclose(features[:, 32 * place : 32 * place + 32], expected, atol=1e-5)


def test_regions_of_labram_are_the_same_channels():
    model, rows = labram_vq(), montage_rows()
    collate = EEGCollator(EEGFeatureExtractor(**LABRAM_LAYOUT))
    features = region_features(model, collate, rows, batch_size=2)
    batch = collate(rows)
    with torch.no_grad():
        encoded = model.encode(**{name: values for name, values in batch.items() if name != "rows"}).features
    by_channel = encoded.view(3, len(MONTAGE), 2, 100).mean(2)
    for place, region in enumerate(REGIONS):
        expected = by_channel[:, [MONTAGE.index(name) for name in region]].mean(1)
        np.testing.assert_allclose(features[:, 100 * place : 100 * place + 100], expected, atol=1e-5)


def test_a_window_without_a_region_and_no_windows_are_refused():
    model = randomize(NeuroLMVQForSequenceClassification(vq_config(num_channel_embeddings=256)))
    collate = EEGCollator(EEGFeatureExtractor())
    with pytest.raises(ValueError, match="none of the channels FP1, FP2"):
        region_features(model, collate, ROWS[:1])
    assert region_features(model, collate, ROWS[:1], regions=[("C3", "C4")]).shape == (1, 32)
    with pytest.raises(ValueError, match="no windows"):
        window_features(model, collate, [])
