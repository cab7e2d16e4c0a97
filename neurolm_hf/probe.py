"""Linear probe: a frozen model's features of prepared windows, for logistic regression to read.

`baseline.logistic_probabilities` fits it. What it finds, the features hold; what it misses, a training may still find.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils.logging import tqdm

from .channels_neurolm import CHANNEL_VOCABULARY
from .collators import EEGCollator
from .layers_neurolm import mean_over
from .modeling_neurolm import NeuroLMForSequenceClassification, NeuroLMVQForSequenceClassification
from .storage import Row, batches_of


# Of the 10-20 system: frontal pole, frontal, temporal, central, parietal, occipital.
REGIONS = (
    *(("FP1", "FP2"), ("F3", "F4", "FZ"), ("F7", "F8"), ("T3", "T4")),
    *(("C3", "C4", "CZ"), ("T5", "T6"), ("P3", "P4", "PZ"), ("O1", "O2")),
)


def window_features(
    model: NeuroLMForSequenceClassification | NeuroLMVQForSequenceClassification,
    collate: Callable[[Sequence[Row]], dict[str, Any]],
    rows: Sequence[Row],
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """(windows, width): what the head of a classifier reads, which need not have been trained.

    Args:
        model: its `classifier_pooling` says which features.
        collate: such as a `ClassificationCollator` of the model's processor.
        rows: prepared windows, what `storage.load_prepared` returns.
        batch_size: windows read at a time.

    Raises:
        ValueError: no windows; what the collator refuses.
    """
    return _of_batches(model, collate, rows, batch_size, lambda inputs: model(**inputs).features)


def region_features(
    model: Any,
    collate: EEGCollator,
    rows: Sequence[Row],
    regions: Sequence[Sequence[str]] = REGIONS,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """(windows, regions x width): the tokenizer's features, averaged over the seconds and channels of each region.

    Args:
        model: a neural tokenizer, NeuroLM's with or without a head, or LaBraM's; its encoder is read.
        collate: of its feature extractor.
        rows, batch_size: as in `window_features`.
        regions: vocabulary names of the channels of each.

    Raises:
        ValueError: no windows, or one that has no channel of a region; what the collator refuses.
    """
    offset = collate.feature_extractor.channel_id_offset
    ids = [torch.tensor([CHANNEL_VOCABULARY.index(name) + offset for name in region]) for region in regions]

    def read(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        channels, real = inputs["eeg_channel_ids"], inputs["eeg_attention_mask"].bool()
        features = model.base_model.encoder(inputs["input_values"], channels, inputs["eeg_time_ids"], real)
        inside = [real & torch.isin(channels, region.to(channels.device)) for region in ids]
        for region, places in zip(regions, inside, strict=True):
            if not bool(places.any(1).all()):
                raise ValueError(f"A window has none of the channels {', '.join(region)}: give other `regions`.")
        return torch.cat([mean_over(features, places) for places in inside], dim=1)

    return _of_batches(model, collate, rows, batch_size, read)


@torch.no_grad()
def _of_batches(
    model: Any,
    collate: Callable[[Sequence[Row]], dict[str, Any]],
    rows: Sequence[Row],
    batch_size: int,
    read: Callable[[dict[str, torch.Tensor]], torch.Tensor],
) -> NDArray[np.float32]:
    """What `read` makes of each batch, one below the other; the model in evaluation mode meanwhile."""
    if not len(rows):
        raise ValueError("There are no windows whose features could be computed.")
    was_training = model.training
    model.eval()
    batches, found = math.ceil(len(rows) / batch_size), []
    parts = tqdm(batches_of(rows, batch_size), total=batches, desc="features", unit="batch", disable=batches == 1)
    try:
        for part in parts:
            batch = collate(part)
            # names are no input, and labels are not to be looked at
            named = {name: values for name, values in batch.items() if name not in ("rows", "labels")}
            inputs = {name: values.to(model.device) for name, values in named.items()}
            found.append(read(inputs).float().cpu())
    finally:
        model.train(was_training)
    return torch.cat(found).numpy()
