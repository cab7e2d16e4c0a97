"""The codes: counted window by window, laid out by their widest directions, marked by what they decode to alone."""

from collections import Counter

import numpy as np
import pytest
import torch
from small_trainings import ROWS, language_model, make_processor
from tiny import vq_model
from tiny_labram import labram_vq

from neurolm_hf.channels_neurolm import CHANNEL_VOCABULARY
from neurolm_hf.codebook_use import code_frequencies, count_codes, two_dimensions
from neurolm_hf.collators import window_segment
from neurolm_hf.processing_neurolm import LABRAM_LAYOUT, EEGFeatureExtractor


def codes_alone(encode, extractor):
    """Codes of each window, read by itself."""
    found = Counter()
    for row in ROWS:
        segment = window_segment(extractor, row)
        values = (segment.values, segment.channel_ids, segment.time_ids)
        with torch.no_grad():
            found.update(encode(*(torch.from_numpy(one)[None] for one in values)).flatten().tolist())
    return found


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_codes_are_counted_as_if_each_window_were_alone(batch_size):
    """Windows of one to four channels and seconds, padded to one another, in batches, by either tokenizer."""
    for vq, extractor in (
        (vq_model(num_channel_embeddings=256), EEGFeatureExtractor()),
        (labram_vq(), EEGFeatureExtractor(**LABRAM_LAYOUT)),
    ):
        counts = count_codes(vq, extractor, ROWS, batch_size)
        expected = codes_alone(lambda *given, vq=vq: vq.encode(*given).codes, extractor)
        assert counts.tolist() == [expected[code] for code in range(32)]
        assert counts.sum() == sum(len(row["channels"]) * row["signal"].shape[1] // 200 for row in ROWS)
        assert (counts > 0).sum() > 3


def test_a_language_model_counts_with_its_own_encoder():
    processor = make_processor()
    model = language_model(processor)
    counts = count_codes(model.model, processor.feature_extractor, ROWS, 4)
    expected = codes_alone(model.get_eeg_codes, processor.feature_extractor)
    assert counts.tolist() == [expected[code] for code in range(32)]


def test_two_dimensions_are_the_widest():
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(50, 6)) * [1, 5, 0.1, 3, 0.2, 0.5] + 7
    places, shares = two_dimensions(torch.from_numpy(vectors))
    variances = np.linalg.eigvalsh(np.cov(vectors.T))[::-1]
    np.testing.assert_allclose(shares, variances[:2] / variances.sum())
    np.testing.assert_allclose(np.cov(places.T), np.diag(variances[:2]), atol=1e-9)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    assert (apart <= np.linalg.norm(vectors[:, None] - vectors[None], axis=-1) + 1e-9).all()


def test_codes_that_are_all_alike_are_one_place():
    places, shares = two_dimensions(torch.ones(4, 3))
    assert not places.any()
    assert shares == (0, 0)


@pytest.mark.parametrize("bins", [100, 30])
def test_a_code_is_of_the_frequency_at_which_it_stands_out(bins, monkeypatch):
    monkeypatch.setattr("neurolm_hf.codebook_use.CODES_AT_A_TIME", 10)
    vq = vq_model(num_channel_embeddings=256, num_frequency_bins=bins)
    counts = np.arange(32) % 3
    spectra = []
    for code in range(32):
        channel = torch.tensor([[CHANNEL_VOCABULARY.index("CZ")]])
        with torch.no_grad():
            decoded = vq.decode(torch.tensor([[code]]), channel, torch.tensor([[0]]))
        spectra.append(decoded.frequency[0, 0, 1:46].numpy())
    usual = np.mean([spectra[code] for code in range(32) if counts[code]], axis=0)
    expected = [1 + int((spectrum - usual).argmax()) for spectrum in spectra]
    hertz, highest = code_frequencies(vq, EEGFeatureExtractor(), counts)
    assert hertz.tolist() == expected
    assert highest == min(45, bins - 1)
    assert len(set(expected)) > 3


def test_codes_of_labram_too_stand_at_cz():
    vq, counts = labram_vq(), np.arange(32) % 3
    row = torch.full((32, 1), CHANNEL_VOCABULARY.index("CZ") + 1)
    with torch.no_grad():
        decoded = vq.decode(torch.arange(32)[:, None], row, torch.zeros_like(row))
    spectra = decoded.amplitude[:, 0, 1:46].numpy()
    hertz, highest = code_frequencies(vq, EEGFeatureExtractor(**LABRAM_LAYOUT), counts)
    assert hertz.tolist() == (1 + (spectra - spectra[counts > 0].mean(axis=0)).argmax(axis=1)).tolist()
    assert highest == 45
    assert len(set(hertz)) > 3
