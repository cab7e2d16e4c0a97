"""Tiny LaBraM models and batches for the tests; 100 is the smallest width, 25 positions of four channels.

A sample is an `EEG` of `tiny.py`, whose channels are rows of LaBraM's table here: they begin at 1.
"""

from typing import Any

import torch
from tiny import EEG, PATCH_SIZE, randomize

from neurolm_hf.configuration_labram import LaBraMConfig, LaBraMVQConfig
from neurolm_hf.modeling_labram import (
    LaBraMForMaskedEEGModeling,
    LaBraMForSequenceClassification,
    LaBraMVQModel,
)


WIDTHS = {"conv_channels": 4, "hidden_size": 100, "intermediate_size": 48, "num_attention_heads": 4}


def labram_vq_config(**changes: Any) -> LaBraMVQConfig:
    sizes = {"num_hidden_layers": 2, "decoder_num_hidden_layers": 1, "codebook_size": 32, "codebook_dim": 8}
    return LaBraMVQConfig(**{**WIDTHS, **sizes, **changes})


def labram_config(**changes: Any) -> LaBraMConfig:
    """With a tokenizer, whose codes are predicted."""
    values = {"num_hidden_layers": 3, "codebook_size": 32, "vq_config": labram_vq_config().to_dict()}
    return LaBraMConfig(**{**WIDTHS, **values, **changes})


def labram_vq(**changes: Any) -> LaBraMVQModel:
    torch.manual_seed(0)
    return randomize(LaBraMVQModel(labram_vq_config(**changes)), scale=0.05)


def masked_model(**changes: Any) -> LaBraMForMaskedEEGModeling:
    torch.manual_seed(0)
    return randomize(LaBraMForMaskedEEGModeling(labram_config(**changes)), scale=0.05)


def labram_classifier(**changes: Any) -> LaBraMForSequenceClassification:
    torch.manual_seed(0)
    values = {"num_labels": 2, "problem_type": "single_label_classification", "vq_config": None}
    return randomize(LaBraMForSequenceClassification(labram_config(**{**values, **changes})), scale=0.05)


def labram_batch(*samples: EEG, extra_padding: int = 0, padding_side: str = "right") -> dict[str, torch.Tensor]:
    """Inputs channel-major, padded with zeros to the longest sample and `extra_padding` patches more."""
    length = max(sample.patches for sample in samples) + extra_padding
    ids = torch.zeros(3, len(samples), length, dtype=torch.long)
    values = torch.zeros(len(samples), length, PATCH_SIZE)
    for row, sample in enumerate(samples):
        start = 0 if padding_side == "right" else length - sample.patches
        real = slice(start, start + sample.patches)
        values[row, real] = sample.values().unflatten(0, (sample.seconds, -1)).transpose(0, 1).flatten(0, 1)
        ids[0, row, real] = torch.tensor(sample.channels).repeat_interleave(sample.seconds)
        ids[1, row, real] = torch.arange(sample.seconds).repeat(len(sample.channels))
        ids[2, row, real] = 1
    names = ("input_values", "eeg_channel_ids", "eeg_time_ids", "eeg_attention_mask")
    return dict(zip(names, (values, *ids), strict=True))
