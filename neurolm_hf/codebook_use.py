"""The codes of a neural tokenizer: how often prepared windows use them, where they lie, what they decode to."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from .channels_neurolm import CHANNEL_VOCABULARY
from .collators import EEGCollator
from .layers_neurolm import NeuralTokenizer
from .modeling_labram import LaBraMVQDecoderOutput
from .processing_neurolm import EEGFeatureExtractor
from .storage import batches_of


# Where a code is decoded alone: in the first second of this channel.
CHANNEL_OF_A_CODE = "CZ"
SHOWN_HZ = 45
# Codes that are decoded at a time.
CODES_AT_A_TIME = 512


def count_codes(encoder: Any, extractor: EEGFeatureExtractor, rows: Any, batch_size: int) -> NDArray[np.int64]:
    """(codes,) number of patches of prepared windows that are given each code.

    Args:
        encoder: a neural tokenizer, or a language model with its encoder and its codebook.
        extractor: of its recipe.
        rows: what `storage.load_prepared` returns, or a list.
        batch_size: windows read at a time.

    Raises:
        ValueError: what `collators.checked_signal` refuses.
    """
    collator = EEGCollator(extractor)
    counts = np.zeros(len(codebook_of(encoder)), dtype=np.int64)
    batches = batches_of(rows, batch_size)
    for part in tqdm(batches, total=-(-len(rows) // batch_size), desc="codes", unit="batch"):
        inputs = on_device(collator(part), encoder)
        with torch.no_grad():
            tokenizer = isinstance(encoder, NeuralTokenizer)
            codes = encoder.encode(**inputs).codes if tokenizer else encoder.get_eeg_codes(**inputs)
        real = codes[inputs["eeg_attention_mask"].bool()]
        counts += np.bincount(real.cpu().numpy(), minlength=len(counts))
    return counts


def on_device(batch: Mapping[str, Any], model: Any) -> dict[str, torch.Tensor]:
    """A collator's batch as inputs of a model, where the model is."""
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "rows"}
    inputs["input_values"] = inputs["input_values"].to(model.dtype)
    return inputs


def codebook_of(encoder: Any) -> torch.Tensor:
    """(codes, width) of a neural tokenizer or of a language model."""
    home = encoder.encoder if isinstance(encoder, NeuralTokenizer) else encoder.eeg_encoder
    codebook: torch.Tensor = home.quantizer.codebook.detach().float().cpu()
    return codebook


def two_dimensions(codebook: torch.Tensor) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """Where codes (codes, width) lie along the two principal components of the codebook.

    Returns:
        places (codes, 2), and the share of the variance along each component.
    """
    vectors = codebook.double().numpy()
    left, spreads, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    variances = spreads**2 / max(float((spreads**2).sum()), np.finfo(float).tiny)
    return left[:, :2] * spreads[:2], (float(variances[0]), float(variances[1]))


@torch.no_grad()
def code_frequencies(
    tokenizer: Any, extractor: EEGFeatureExtractor, counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], int]:
    """At which frequency a code, decoded alone, stands out most from the mean of those in use.

    Args:
        tokenizer: a neural tokenizer, which decodes.
        extractor: of its recipe.
        counts: (codes,), how often each is used.

    Returns:
        (codes,) in Hz, and the highest frequency that was looked at.
    """
    codes = torch.arange(len(counts), device=tokenizer.device)[:, None]
    channel = torch.full_like(codes, CHANNEL_VOCABULARY.index(CHANNEL_OF_A_CODE) + extractor.channel_id_offset)
    spectra = [
        _spectrum(tokenizer.decode(part, ids, torch.zeros_like(part)))[:, 0]
        for part, ids in zip(codes.split(CODES_AT_A_TIME), channel.split(CODES_AT_A_TIME), strict=True)
    ]
    predicted = torch.cat(spectra).float().cpu().numpy()
    shown = predicted[:, 1 : SHOWN_HZ + 1]  # bin i is i Hz
    return 1.0 + (shown - shown[counts > 0].mean(axis=0)).argmax(axis=1), shown.shape[1]


def _spectrum(decoded: Any) -> torch.Tensor:
    """(batch, patches, bins) up to half the sampling rate, from what a tokenizer's `decode` returns."""
    if isinstance(decoded, LaBraMVQDecoderOutput):
        amplitude = cast(torch.Tensor, decoded.amplitude)
        return amplitude[..., : amplitude.shape[-1] // 2 + 1]  # the others mirror these
    return cast(torch.Tensor, decoded.frequency)
