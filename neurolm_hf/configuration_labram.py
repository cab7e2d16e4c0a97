# Copyright 2026 The neurolm_hf authors. Licensed under the Apache License, Version 2.0.
"""Configurations of LaBraM (arXiv 2405.18765): of its neural tokenizer, and of the encoder that predicts its codes."""

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec

from .configuration_neurolm import CleanUploads, check_groups, check_heads, check_shares, conv_positions


# AutoModel of a saved folder must work whichever of the classes was saved.
LABRAM_VQ_AUTO_MAP = {
    "AutoConfig": "configuration_labram.LaBraMVQConfig",
    "AutoModel": "modeling_labram.LaBraMVQModel",
}
LABRAM_AUTO_MAP = {
    "AutoConfig": "configuration_labram.LaBraMConfig",
    "AutoModel": "modeling_labram.LaBraMModel",
    "AutoModelForPreTraining": "modeling_labram.LaBraMForMaskedEEGModeling",
    "AutoModelForSequenceClassification": "modeling_labram.LaBraMForSequenceClassification",
}

# facts of the released code and of the paper, table 5: 5.8M, 46M and 369M parameters
LABRAM_SIZES: dict[str, dict[str, int | float]] = {
    "Base": {
        "conv_channels": 8,
        "hidden_size": 200,
        "num_hidden_layers": 12,
        "num_attention_heads": 10,
        "intermediate_size": 800,
        "layer_scale_init": 0.1,
    },
    "Large": {
        "conv_channels": 16,
        "hidden_size": 400,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 1600,
        "layer_scale_init": 1e-5,
    },
    "Huge": {
        "conv_channels": 32,
        "hidden_size": 800,
        "num_hidden_layers": 48,
        "num_attention_heads": 16,
        "intermediate_size": 3200,
        "layer_scale_init": 1e-6,
    },
}


@strict
class LaBraMVQConfig(CleanUploads, PreTrainedConfig):
    r"""Configuration of [`LaBraMVQModel`], the tokenizer by vector-quantised neural spectrum prediction.

    The defaults are the released tokenizer's.

    Args:
        patch_size (`int`): samples of one patch, that is of one second of one channel.
        conv_channels (`int`): channels of the three temporal convolutions of the patch embedding.
        conv_groups (`int`): groups of their group norms.
        hidden_size (`int`): what the convolutions leave of a patch, positions x `conv_channels`: no linear layer
            follows them.
        num_hidden_layers (`int`), num_attention_heads (`int`), intermediate_size (`int`): the encoder, its heads and
            the width of its MLPs.
        decoder_num_hidden_layers (`int`): layers of the decoder, which is as wide as the encoder.
        num_channel_embeddings (`int`): rows of the channel embedding tables; row 0 is the cls token's.
        max_seconds (`int`): rows of the time embedding tables, the longest sample in seconds.
        codebook_size (`int`), codebook_dim (`int`): number of codes, width of a code.
        codebook_decay (`float`): decay of the moving average that moves the codebook.
        commitment_weight (`float`), amplitude_weight (`float`), phase_weight (`float`): factors of the losses.
        kmeans_iterations (`int`): iterations of the k-means that places the codebook on the first training batch.
        dead_code_threshold (`float`): a code used less than this share of the mean usage is replaced by a vector of
            the batch when the codebook moves. 0 never replaces any, as in the paper.
        quantizer_bypass (`float`): share of training samples whose decoder reads the unquantised vectors. 0 is the
            paper's; 1 trains an autoencoder and leaves the codebook untouched until it is lowered.
        layer_norm_eps (`float`): of all layer norms.
        initializer_range (`float`): standard deviation of weights at initialisation.
        provenance (`dict`, *optional*): where the weights come from (source file, hash, licence, data).
    """

    model_type = "labram_vq"
    base_config_key = "vq_config"
    # not predictions: what `Trainer.evaluate` with `compute_metrics` must leave out
    keys_to_ignore_at_inference = ["features"]

    patch_size: int = 200
    conv_channels: int = 8
    conv_groups: int = 4
    hidden_size: int = 200
    num_hidden_layers: int = 12
    num_attention_heads: int = 10
    intermediate_size: int = 800
    decoder_num_hidden_layers: int = 3
    num_channel_embeddings: int = 129
    max_seconds: int = 16
    codebook_size: int = 8192
    codebook_dim: int = 64
    codebook_decay: float = 0.99
    commitment_weight: float | int = 1.0
    amplitude_weight: float | int = 1.0
    phase_weight: float | int = 1.0
    kmeans_iterations: int = 10
    dead_code_threshold: float | int = 0.0
    quantizer_bypass: float | int = 0.0
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    provenance: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("auto_map", dict(LABRAM_VQ_AUTO_MAP))
        super().__post_init__(**kwargs)

    def validate_geometry(self) -> None:
        """Widths, heads and convolutions must fit each other."""
        _check_geometry(self)

    def validate_loss_weights(self) -> None:
        """No negative loss, and something to predict."""
        if min(self.amplitude_weight, self.phase_weight) < 0 or self.amplitude_weight + self.phase_weight == 0:
            raise ValueError(
                f"`amplitude_weight` ({self.amplitude_weight}) and `phase_weight` ({self.phase_weight}) must not be "
                "negative, nor both 0."
            )

    def validate_shares(self) -> None:
        """Decay, bypass and dead-code threshold are shares."""
        check_shares(self, "codebook_decay", "quantizer_bypass", "dead_code_threshold")


@strict
class LaBraMConfig(CleanUploads, PreTrainedConfig):
    r"""Configuration of [`LaBraMModel`], [`LaBraMForMaskedEEGModeling`] and [`LaBraMForSequenceClassification`].

    The defaults are LaBraM-Base; [`from_preset`] makes the others.

    Args:
        patch_size (`int`), conv_channels (`int`), conv_groups (`int`), hidden_size (`int`), num_hidden_layers (`int`),
            num_attention_heads (`int`), intermediate_size (`int`), num_channel_embeddings (`int`), max_seconds
            (`int`), layer_norm_eps (`float`): as in [`LaBraMVQConfig`].
        query_value_bias (`bool`): biases of queries and values. The pre-trained models have none; models that were
            fine-tuned with the reference's defaults have.
        query_key_norm (`bool`): layer norms of each head's queries and keys.
        layer_scale_init (`float`, *optional*): what each block's two branches are scaled by at first; `None`: they are
            not scaled.
        drop_path_rate (`float`): share of samples that leave out the branches of the last block while training; it
            grows linearly over the blocks from 0.
        codebook_size (`int`): codes that masked patches are predicted among.
        mask_ratio (`float`): share of each sample's patches that [`LaBraMForMaskedEEGModeling`] masks.
        vq_config (`LaBraMVQConfig` or `dict`, *optional*): the frozen tokenizer that gives the codes; `None`: the
            codes are given as labels.
        classifier_pooling (`str`): what the head of [`LaBraMForSequenceClassification`] reads: `"mean"`, the mean of
            the patches behind a layer norm of its own; `"cls"`, the cls token behind the encoder's norm.
        head_init_scale (`float`): factor of the head's weights at initialisation.
        initializer_range (`float`): standard deviation of weights at initialisation.
        provenance (`dict`, *optional*): where the weights come from (source file, hash, licence, data).
    """

    model_type = "labram"
    # not predictions: what `Trainer.evaluate` with `compute_metrics` must leave out
    keys_to_ignore_at_inference = ["features", "sample_losses", "patch_losses", "patch_hits", "masked", "labels"]
    sub_configs_defaults = {"vq_config": SubConfigSpec(config_class=LaBraMVQConfig, optional=True)}

    patch_size: int = 200
    conv_channels: int = 8
    conv_groups: int = 4
    hidden_size: int = 200
    num_hidden_layers: int = 12
    num_attention_heads: int = 10
    intermediate_size: int = 800
    num_channel_embeddings: int = 129
    max_seconds: int = 16
    query_value_bias: bool = False
    query_key_norm: bool = True
    layer_scale_init: float | int | None = 0.1
    drop_path_rate: float | int = 0.0
    codebook_size: int = 8192
    mask_ratio: float = 0.5
    vq_config: dict | PreTrainedConfig | None = None
    classifier_pooling: Literal["mean", "cls"] = "mean"
    head_init_scale: float | int = 0.001
    layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    provenance: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("auto_map", dict(LABRAM_AUTO_MAP))
        super().__post_init__(**kwargs)

    @classmethod
    def from_preset(cls, size: str, **kwargs: Any) -> "LaBraMConfig":
        """The configuration of a size of the paper: `"Base"` (5.8M), `"Large"` (46M) or `"Huge"` (369M).

        `kwargs` are fields that differ.
        """
        if size not in LABRAM_SIZES:
            raise ValueError(f"There is no preset {size!r}; the presets are {', '.join(LABRAM_SIZES)}.")
        return cls(**{**LABRAM_SIZES[size], **kwargs})

    def validate_geometry(self) -> None:
        """Widths, heads and convolutions must fit each other, and so must the tokenizer."""
        _check_geometry(self)
        vq = self.vq_config
        if isinstance(vq, PreTrainedConfig):
            for name in ("patch_size", "num_channel_embeddings", "max_seconds", "codebook_size"):
                own, given = getattr(self, name), getattr(vq, name)
                if own != given:
                    raise ValueError(f"`{name}` is {own}, but that of the tokenizer in `vq_config` {given}.")

    def validate_shares(self) -> None:
        """Drop path and mask are shares, and something is masked."""
        check_shares(self, "drop_path_rate", "mask_ratio")
        if self.head_init_scale <= 0:
            raise ValueError(f"`head_init_scale` must be above 0, got {self.head_init_scale}.")
        if self.drop_path_rate == 1 or self.mask_ratio in (0, 1):
            raise ValueError(
                f"`drop_path_rate` ({self.drop_path_rate}) must be below 1, `mask_ratio` ({self.mask_ratio}) between "
                "0 and 1."
            )


def _check_geometry(config: LaBraMVQConfig | LaBraMConfig) -> None:
    positions = conv_positions(config.patch_size)
    if config.hidden_size != positions * config.conv_channels:
        raise ValueError(
            f"`hidden_size` ({config.hidden_size}) must be {positions} x `conv_channels` ({config.conv_channels}) = "
            f"{positions * config.conv_channels}: the convolutions leave {positions} positions of a patch of "
            f"{config.patch_size} samples, and no linear layer follows them."
        )
    check_heads("hidden_size", config.hidden_size, config.num_attention_heads)
    check_groups(config)


LaBraMVQConfig.register_for_auto_class()
LaBraMConfig.register_for_auto_class()

__all__ = ["LaBraMConfig", "LaBraMVQConfig"]
