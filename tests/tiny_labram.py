"""Tiny LaBraM models for the tests; 100 is the smallest width, 25 positions of four channels."""

from typing import Any

import torch
from tiny import randomize

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
