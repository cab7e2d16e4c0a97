# Copyright 2026 The neurolm_hf authors. Licensed under the Apache License, Version 2.0.
"""LaBraM (arXiv 2405.18765): a neural tokenizer by spectrum prediction, and the encoder that learns its codes.

The file follows the data: patches -> convolutions -> transformer -> codebook -> predicted amplitude and phase; then
the encoder that predicts the codes of masked patches, and the head that it is fine-tuned with. Patches are batch first
and channel-major, all seconds of a channel one after the other: `input_values` (batch, patches, patch_size) with the
ids of channel and second of every patch. Channel ids are 1 + place in the vocabulary; row 0 is the cls token's.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_labram import LaBraMConfig, LaBraMVQConfig
from .layers_neurolm import (
    EEGClassifierOutput,
    EEGLayer,
    EEGPreTrainedModel,
    NeuralTokenizer,
    PatchEmbedding,
    VectorQuantizer,
    VQEncoderOutput,
    WindowClassifier,
    check_patches,
    check_shapes,
    denominators,
    mean_over,
    patch_errors,
    quantize_features,
    real_mask,
    real_patches,
    recorders,
    tanh_head,
    zscore,
)


@dataclass
class LaBraMVQDecoderOutput(ModelOutput):
    r"""What [`LaBraMVQModel.decode`] returns.

    Args:
        amplitude (`torch.FloatTensor` of shape `(batch, patches, patch_size)`): amplitude of every bin of each patch's
            two-sided spectrum, as z-scores over the sample.
        phase (`torch.FloatTensor` of shape `(batch, patches, patch_size)`): its phase, as z-scores over the sample.
    """

    amplitude: torch.Tensor | None = None
    phase: torch.Tensor | None = None


@dataclass
class LaBraMVQOutput(ModelOutput):
    r"""What [`LaBraMVQModel.forward`] returns.

    Args:
        loss (`torch.FloatTensor` of shape `()`): amplitude, phase and commitment loss together, weighted by the
            config.
        amplitude_loss, phase_loss, commitment_loss (`torch.FloatTensor` of shape `()`): means over the real patches of
            the batch; with `num_items_in_batch`, this batch's share of the means over the step.
        amplitude, phase: see [`LaBraMVQDecoderOutput`].
        target_amplitude, target_phase: what they should have been, same shapes; zero at padding.
        features, quantized, codes: see [`VQEncoderOutput`].
        patch_losses (`torch.FloatTensor` of shape `(batch, patches, 4)`): `PATCH_LOSSES` of each patch, zero at
            padding; their means are the losses.
        codebook_usage (`torch.FloatTensor` of shape `()`): share of the codebook that this batch used.
        perplexity (`torch.FloatTensor` of shape `()`): exponential of the entropy of the codes of this batch.
        hidden_states, attentions: of the encoder, with the cls token first, when asked for.
    """

    PATCH_LOSSES: ClassVar[tuple[str, ...]] = ("loss", "amplitude_loss", "phase_loss", "commitment_loss")

    loss: torch.Tensor | None = None
    amplitude_loss: torch.Tensor | None = None
    phase_loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    amplitude: torch.Tensor | None = None
    phase: torch.Tensor | None = None
    target_amplitude: torch.Tensor | None = None
    target_phase: torch.Tensor | None = None
    features: torch.Tensor | None = None
    quantized: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    patch_losses: torch.Tensor | None = None
    codebook_usage: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class LaBraMMaskedEEGOutput(ModelOutput):
    r"""What [`LaBraMForMaskedEEGModeling.forward`] returns.

    Every real patch is predicted once, in the pass that masks it.

    Args:
        loss (`torch.FloatTensor` of shape `()`): `masked_loss` and `complement_loss` added up, where there are labels.
        masked_loss, complement_loss (`torch.FloatTensor` of shape `()`): mean cross-entropy over the masked patches,
            and over the others in the second pass, in which they are the masked ones. With `num_items_in_batch`, this
            batch's share of the means over the step.
        patch_losses (`torch.FloatTensor` of shape `(batch, patches)`): cross-entropy of each patch, zero at padding.
        patch_hits (`torch.BoolTensor` of shape `(batch, patches)`): whether the likeliest code is right.
        masked (`torch.BoolTensor` of shape `(batch, patches)`): what the first pass masked.
        labels (`torch.LongTensor` of shape `(batch, patches)`): the codes that were to be predicted, -1 at padding.
        logits (`torch.FloatTensor` of shape `(batch, patches, codebook_size)`): zero at padding; `None` while
            training, where they would be most of the memory.
    """

    loss: torch.Tensor | None = None
    masked_loss: torch.Tensor | None = None
    complement_loss: torch.Tensor | None = None
    patch_losses: torch.Tensor | None = None
    patch_hits: torch.Tensor | None = None
    masked: torch.Tensor | None = None
    labels: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class LaBraMTransformer(nn.Module):
    """Puts a cls token before embedded patches, adds where and when, and lets all see each other.

    Args:
        config: of either kind.
        num_layers: number of blocks.
        block: switches of [`EEGLayer`].
        drop_path: share of samples that leave out the last block's branches while training.
        final_norm: whether a layer norm follows the blocks.
    """

    def __init__(
        self,
        config: LaBraMConfig | LaBraMVQConfig,
        num_layers: int,
        block: dict[str, Any],
        drop_path: float = 0.0,
        final_norm: bool = True,
    ):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.channel_embedding = nn.Embedding(config.num_channel_embeddings, width)
        self.time_embedding = nn.Embedding(config.max_seconds, width)
        shares = [drop_path * layer / max(num_layers - 1, 1) for layer in range(num_layers)]
        self.layers = nn.ModuleList(
            EEGLayer(
                config,
                width,
                config.num_attention_heads,
                config.intermediate_size,
                bias=True,
                drop_path=share,
                **block,
            )
            for share in shares
        )
        for number, layer in enumerate(self.layers, start=1):
            # the deeper a block, the less its branches add at first
            for linear in (layer.get_submodule("attention.output"), layer.get_submodule("mlp_out")):
                linear.initial_divisor = (2 * number) ** 0.5
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if final_norm else None
        self.gradient_checkpointing = False

    def forward(
        self,
        patch_embeds: torch.Tensor,
        channel_ids: torch.Tensor,
        time_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
        cls_at_first_channel: bool = False,
    ) -> torch.Tensor:
        """(batch, 1 + patches, hidden_size), the cls token first.

        Args:
            patch_embeds: (batch, patches, hidden_size).
            channel_ids, time_ids: (batch, patches).
            mask: (batch, patches), True where a patch is real.
            cls_at_first_channel: the cls token takes the row of the first channel in place of row 0, as in the
                reference's masked modelling, in which row 0 never learns.
        """
        cls_channel = torch.zeros_like(channel_ids[:, :1])
        if cls_at_first_channel:
            first = cls_channel if mask is None else mask.int().argmax(1, keepdim=True)
            cls_channel = channel_ids.gather(1, first)
        cls = self.cls_token + self.channel_embedding(cls_channel)
        patches = patch_embeds + self.channel_embedding(channel_ids) + self.time_embedding(time_ids)
        hidden_states = torch.cat([cls.to(patches.dtype), patches], dim=1)
        seen = None if mask is None else F.pad(mask, (1, 0), value=True)
        attention_mask = create_bidirectional_mask(self.config, hidden_states, seen)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask)
        return hidden_states if self.norm is None else self.norm(hidden_states)


class _LaBraMWeights(EEGPreTrainedModel):
    """Initialisation, and what an optimiser asks, of all models of this file."""

    _can_record_outputs = recorders("transformer.")

    # Initial weights are drawn up to so far from 0, in their standard deviations, and the convolutions' like all
    # others; None: as far as they fall, and the convolutions' as torch draws them. A model within another has its own.
    _initial_reach: float | None = None

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            if (bound := getattr(module, "initial_bound", None)) is not None:
                for values in module.parameters():
                    init.uniform_(values, -bound, bound)
            else:
                self._draw(module.weight)
                if (divisor := getattr(module, "initial_divisor", 1.0)) != 1.0:
                    init.copy_(module.weight, module.weight / divisor)
        elif isinstance(module, nn.Embedding):
            self._draw(module.weight)
        elif isinstance(module, nn.Conv1d) and self._initial_reach is not None:
            self._draw(module.weight)
            init.zeros_(cast(torch.Tensor, module.bias))
        elif isinstance(module, LaBraMTransformer):
            self._draw(module.cls_token)
        elif isinstance(module, LaBraMForMaskedEEGModeling):
            self._draw(module.mask_token)

    def _draw(self, values: torch.Tensor) -> None:
        std = self.config.initializer_range
        if self._initial_reach is None:
            init.normal_(values, std=std)
        else:
            reach = self._initial_reach * std
            init.trunc_normal_(values, std=std, a=-reach, b=reach)

    @property
    def depths(self) -> int:
        """How many depths [`parameter_depth`] tells apart: the input, each block, and what follows them."""
        return self.config.num_hidden_layers + 2

    def parameter_depth(self, name: str) -> int:
        """How deep in the encoder a parameter lies, for learning rates that decay from layer to layer.

        As in the reference: 0 the patch embedding, the cls token and the channel rows, 1 + k block k, and `depths` - 1
        all others. The time rows are among these.
        """
        _, behind, rest = f".{name}".rpartition(".transformer.")
        if behind and rest.startswith("layers."):
            return 1 + int(rest.split(".")[1])
        at_input = ".patch_embedding." in f".{name}" or (
            behind and rest.startswith(("cls_token", "channel_embedding"))
        )
        return 0 if at_input else self.depths - 1

    def no_weight_decay(self, name: str) -> bool:
        """Whether a parameter is one of the tokens and tables that the reference does not decay.

        The mask token does decay.
        """
        return name.endswith(("cls_token", "channel_embedding.weight", "time_embedding.weight"))


class LaBraMVQPreTrainedModel(_LaBraMWeights):
    """Loading, saving and initialisation of the neural tokenizer's models."""

    config: LaBraMVQConfig
    config_class = LaBraMVQConfig
    base_model_prefix = "vq"
    _can_record_outputs = recorders("encoder.")


class LaBraMEEGEncoder(LaBraMVQPreTrainedModel):
    """From patches to features and, through the codebook, to codes: the half of the tokenizer always needed."""

    def __init__(self, config: LaBraMVQConfig):
        super().__init__(config)
        self.patch_embedding = PatchEmbedding(config)
        self.transformer = LaBraMTransformer(config, config.num_hidden_layers, _VQ_BLOCK)
        self.to_codebook = tanh_head(config.hidden_size, config.codebook_dim)
        self.quantizer = VectorQuantizer(config)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        channel_ids: torch.Tensor,
        time_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Features (batch, patches, hidden_size), without the cls token's; `mask` as booleans."""
        patch_embeds = self.patch_embedding(input_values, mask)
        return self.transformer(patch_embeds, channel_ids, time_ids, mask)[:, 1:]

    def quantize(
        self, features: torch.Tensor, mask: torch.Tensor | None = None, learn: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See [`quantize_features`]."""
        return quantize_features(self.to_codebook, self.quantizer, features, mask, learn)

    @torch.no_grad()
    def codes(
        self,
        input_values: torch.Tensor,
        channel_ids: torch.Tensor,
        time_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The codes (batch, patches), -1 at padding; arguments of [`forward`]."""
        return self.quantize(self(input_values, channel_ids, time_ids, mask), mask)[1]


class LaBraMVQDecoder(nn.Module):
    """From codes' vectors (batch, patches, codebook_dim) to amplitude and phase of each patch."""

    def __init__(self, config: LaBraMVQConfig):
        super().__init__()
        width = config.hidden_size
        self.embedding = nn.Linear(config.codebook_dim, width)
        # a convolution of one patch in the reference, which is drawn as convolutions are
        self.embedding.initial_bound = config.codebook_dim**-0.5
        self.transformer = LaBraMTransformer(config, config.decoder_num_hidden_layers, _VQ_BLOCK)
        self.amplitude_head = tanh_head(width, config.patch_size)
        self.phase_head = tanh_head(width, config.patch_size)

    def forward(
        self,
        quantized: torch.Tensor,
        channel_ids: torch.Tensor,
        time_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> LaBraMVQDecoderOutput:
        embeds = self.embedding(quantized.to(self.embedding.weight.dtype))
        hidden_states = self.transformer(embeds, channel_ids, time_ids, mask)[:, 1:]
        return LaBraMVQDecoderOutput(
            amplitude=self.amplitude_head(hidden_states), phase=self.phase_head(hidden_states)
        )


class LaBraMVQModel(NeuralTokenizer, LaBraMVQPreTrainedModel):
    """The neural tokenizer that predicts spectra (paper, section 2.2): EEG patches to codes, codes to spectra.

    While training, each forward adds to the sums that move the codebook; call [`update_codebook`] after every
    optimiser step (`neurolm_hf.training.CodebookCallback` does it in a Trainer).
    """

    def __init__(self, config: LaBraMVQConfig):
        super().__init__(config)
        self.encoder = LaBraMEEGEncoder(config)
        self.decoder = LaBraMVQDecoder(config)
        self.post_init()

    def encode(
        self,
        input_values: torch.Tensor,
        eeg_channel_ids: torch.Tensor,
        eeg_time_ids: torch.Tensor,
        eeg_attention_mask: torch.Tensor | None = None,
    ) -> VQEncoderOutput:
        """EEG patches to features and codes.

        Args:
            input_values: (batch, patches, patch_size), microvolts / 100 at 200 Hz, channel-major (all seconds of
                channel 0, then of channel 1).
            eeg_channel_ids: (batch, patches), 1 + place in the channel vocabulary.
            eeg_time_ids: (batch, patches), second of each patch, from 0 without gaps.
            eeg_attention_mask: (batch, patches), 1 where a patch is real.

        Raises:
            ValueError: shapes, ids or an order that do not fit.
        """
        mask = _check_input(self.config, input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask)
        features = self.encoder(input_values, eeg_channel_ids, eeg_time_ids, mask)
        quantized, codes, _ = self.encoder.quantize(features, mask)
        return VQEncoderOutput(features=features, quantized=quantized, codes=codes)

    def decode(
        self,
        codes: torch.Tensor | None = None,
        eeg_channel_ids: torch.Tensor | None = None,
        eeg_time_ids: torch.Tensor | None = None,
        eeg_attention_mask: torch.Tensor | None = None,
        quantized: torch.Tensor | None = None,
    ) -> LaBraMVQDecoderOutput:
        """Codes (batch, patches), or their vectors `quantized` (batch, patches, codebook_dim), to spectra.

        Raises:
            ValueError: unless exactly one of `codes` and `quantized` is given, and both ids.
        """
        quantized = self._vectors(codes, quantized, eeg_channel_ids, eeg_time_ids)
        mask = None if eeg_attention_mask is None else eeg_attention_mask.bool()
        return self.decoder(quantized, eeg_channel_ids, eeg_time_ids, mask)

    def count_loss_items(
        self, input_values: torch.Tensor, eeg_attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """(1,), float32: patches of this batch that enter the losses, their denominator; arguments of [`forward`]."""
        return real_mask(input_values, eeg_attention_mask).sum().float().view(1)

    @capture_outputs
    def forward(
        self,
        input_values: torch.Tensor,
        eeg_channel_ids: torch.Tensor,
        eeg_time_ids: torch.Tensor,
        eeg_attention_mask: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> LaBraMVQOutput:
        """Predicts the spectra of its input through the codebook.

        Args:
            input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask: as in [`encode`].
            num_items_in_batch: (1,), [`count_loss_items`] summed over all batches of a step: the losses are then this
                batch's share of the step's. `None`: means over this batch.
        """
        mask = _check_input(self.config, input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask)
        target_amplitude, target_phase = spectrum_targets(input_values, mask)
        features = self.encoder(input_values, eeg_channel_ids, eeg_time_ids, mask)
        quantized, codes, vectors = self._quantize(features, mask)
        decoded = self.decoder(quantized, eeg_channel_ids, eeg_time_ids, mask)
        items = self.count_loss_items(input_values, eeg_attention_mask)
        losses = self._losses(
            {
                "amplitude": patch_errors(decoded.amplitude, target_amplitude, mask),
                "phase": patch_errors(decoded.phase, target_phase, mask),
            },
            codes,
            vectors,
            mask,
            denominators(items, num_items_in_batch, self.training),
        )
        return LaBraMVQOutput(
            **losses,  # type: ignore[arg-type]
            amplitude=decoded.amplitude,
            phase=decoded.phase,
            target_amplitude=target_amplitude,
            target_phase=target_phase,
            features=features,
            quantized=quantized,
            codes=codes,
        )


class LaBraMPreTrainedModel(_LaBraMWeights):
    """Loading, saving and initialisation of the encoder's models."""

    config: LaBraMConfig
    config_class = LaBraMConfig
    base_model_prefix = "labram"
    # the heads of pre-training and the tokenizer beside them; a final norm that is not read is reported
    _keys_to_ignore_on_load_unexpected = [r"^vq\.", r"^mask_token$", r"^code_head\."]


class LaBraMModel(LaBraMPreTrainedModel):
    """The encoder: EEG patches to one vector a patch, with the cls token's before them.

    Args:
        config: its configuration.
        final_norm: whether the layer norm of pre-training follows the blocks; a classifier that reads the mean of the
            patches has one of its own.
        initial_reach: how far from 0 initial weights are drawn, in their standard deviations; None: as far as they
            fall.
    """

    def __init__(self, config: LaBraMConfig, final_norm: bool = True, initial_reach: float | None = None):
        super().__init__(config)
        self._initial_reach = initial_reach
        block = {
            "query_value_bias": config.query_value_bias,
            "query_key_norm": config.query_key_norm,
            "layer_scale": config.layer_scale_init,
        }
        self.patch_embedding = PatchEmbedding(config)
        self.transformer = LaBraMTransformer(
            config, config.num_hidden_layers, block, config.drop_path_rate, final_norm
        )
        self.post_init()

    @capture_outputs
    def forward(
        self,
        input_values: torch.Tensor,
        eeg_channel_ids: torch.Tensor,
        eeg_time_ids: torch.Tensor,
        eeg_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutput:
        """`last_hidden_state` (batch, 1 + patches, hidden_size); undefined at padding.

        Args:
            input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask: as in [`LaBraMVQModel.encode`].
        """
        mask = _check_input(self.config, input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask)
        patch_embeds = self.patch_embedding(input_values, mask)
        return BaseModelOutput(last_hidden_state=self.transformer(patch_embeds, eeg_channel_ids, eeg_time_ids, mask))


class LaBraMForMaskedEEGModeling(LaBraMPreTrainedModel):
    """The encoder learns the tokenizer's codes of patches that it does not see (paper, section 2.3).

    Symmetric masking: one pass with some patches masked, one with the others. As in the reference, masking follows the
    convolutions, whose norms have seen all patches, and the cls token stands at the first channel.
    """

    # what it saves is all that it reads
    _keys_to_ignore_on_load_unexpected = []
    _initial_reach = 1.0

    def __init__(self, config: LaBraMConfig):
        super().__init__(config)
        self.labram = LaBraMModel(config, initial_reach=self._initial_reach)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.code_head = nn.Linear(config.hidden_size, config.codebook_size)
        self.vq = None if config.vq_config is None else LaBraMEEGEncoder(cast(LaBraMVQConfig, config.vq_config))
        self.post_init()
        self.freeze_tokenizer()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the tokenizer is frozen again, which loading undoes."""
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_tokenizer()
        return loaded

    def freeze_tokenizer(self) -> None:
        """Takes the tokenizer out of training for good."""
        if self.vq is not None:
            self.vq.requires_grad_(False)
            self.vq.eval()

    def train(self, mode: bool = True) -> "LaBraMForMaskedEEGModeling":
        """As in torch; the tokenizer stays in evaluation mode."""
        super().train(mode)
        if self.vq is not None:
            self.vq.eval()
        return self

    def count_loss_items(
        self,
        input_values: torch.Tensor,
        eeg_attention_mask: torch.Tensor | None = None,
        masked: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(2,), float32: patches that are masked in the first pass and in the second; arguments of [`forward`]."""
        real = real_mask(input_values, eeg_attention_mask)
        first = masked_counts(real, self.config.mask_ratio) if masked is None else (masked.bool() & real).sum(1)
        return torch.stack([first.sum(), real.sum() - first.sum()]).float()

    def get_eeg_codes(
        self,
        input_values: torch.Tensor,
        eeg_channel_ids: torch.Tensor,
        eeg_time_ids: torch.Tensor,
        eeg_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The codes that the tokenizer names patches by, (batch, patches), -1 at padding.

        Args:
            input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask: as in [`LaBraMVQModel.encode`].

        Raises:
            ValueError: what [`LaBraMVQModel.encode`] refuses, or a model without tokenizer.
        """
        if self.vq is None:
            raise ValueError(
                "This LaBraM has no tokenizer that gives codes: ask the LaBraMVQModel that it learnt from."
            )
        mask = _check_input(self.config, input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask)
        return self.vq.codes(input_values, eeg_channel_ids, eeg_time_ids, mask)

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        eeg_channel_ids: torch.Tensor,
        eeg_time_ids: torch.Tensor,
        eeg_attention_mask: torch.Tensor | None = None,
        masked: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> LaBraMMaskedEEGOutput:
        """Predicts the code of every patch from the patches that are not masked with it.

        Args:
            input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask: as in [`LaBraMVQModel.encode`].
            masked: (batch, patches), True where the first pass masks; `None` draws `mask_ratio` of each sample's
                patches.
            labels: (batch, patches), the codes; `None` asks the tokenizer in `vq`, where there is one.
            num_items_in_batch: (2,), [`count_loss_items`] summed over all batches of a step: the losses are then this
                batch's share of the step's. `None`: means over this batch.

        Raises:
            ValueError: what [`LaBraMVQModel.encode`] refuses, or labels that are no codes.
        """
        mask = _check_input(
            self.config, input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask, masked=masked, labels=labels
        )
        real = real_mask(input_values, eeg_attention_mask)
        masked = draw_masked(real, self.config.mask_ratio) if masked is None else masked.bool() & real
        if labels is None and self.vq is not None:
            labels = self.vq.codes(input_values, eeg_channel_ids, eeg_time_ids, mask)
        patch_embeds = self.labram.patch_embedding(input_values, mask)
        first, second = (
            self.labram.transformer(
                torch.where(hidden[..., None], self.mask_token.to(patch_embeds.dtype), patch_embeds),
                eeg_channel_ids,
                eeg_time_ids,
                mask,
                cls_at_first_channel=True,
            )[:, 1:]
            for hidden in (masked, real & ~masked)
        )
        predicted = self.code_head(torch.where(masked[..., None], first, second)[real])
        logits = None
        if not self.training:
            logits = predicted.new_zeros(*real.shape, predicted.shape[-1])
            logits[real] = predicted
        if labels is None:
            return LaBraMMaskedEEGOutput(masked=masked, logits=logits)
        targets = labels[real]
        self._check_codes(targets)
        patch_losses = torch.zeros(real.shape, device=real.device)
        patch_losses = patch_losses.masked_scatter(real, F.cross_entropy(predicted.float(), targets, reduction="none"))
        hits = torch.zeros_like(real).masked_scatter(real, predicted.argmax(-1) == targets)
        items = self.count_loss_items(input_values, eeg_attention_mask, masked)
        counts = denominators(items, num_items_in_batch, self.training)
        sums = torch.stack([(patch_losses * masked).sum(), (patch_losses * ~masked).sum()])
        masked_loss, complement_loss = (sums / counts).unbind()
        return LaBraMMaskedEEGOutput(
            loss=masked_loss + complement_loss,
            masked_loss=masked_loss,
            complement_loss=complement_loss,
            patch_losses=patch_losses,
            patch_hits=hits,
            masked=masked,
            labels=labels.masked_fill(~real, -1),
            logits=logits,
        )

    def _check_codes(self, targets: torch.Tensor) -> None:
        if torch.compiler.is_compiling() or not len(targets):
            return
        if int(targets.min()) < 0 or int(targets.max()) >= self.config.codebook_size:
            raise ValueError(
                f"`labels` hold codes from {int(targets.min())} to {int(targets.max())}; there are "
                f"{self.config.codebook_size}, from 0 on."
            )


class LaBraMForSequenceClassification(WindowClassifier, LaBraMPreTrainedModel):
    """The encoder with a head for classes, several labels a sample, or values (paper, section 2.4).

    With `classifier_pooling="mean"` the head reads the mean of the patches behind a layer norm of its own, and the
    norm of pre-training is left out; with `"cls"` it reads the cls token behind the norm of pre-training.
    """

    def __init__(self, config: LaBraMConfig):
        super().__init__(config)
        takes_mean = config.classifier_pooling == "mean"
        self.labram = LaBraMModel(config, final_norm=not takes_mean)
        self.pooled_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if takes_mean else None
        self.score = nn.Linear(config.hidden_size, cast(int, config.num_labels))
        # a head that says little at first
        self.score.initial_divisor = 1 / config.head_init_scale  # type: ignore[assignment]
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        eeg_channel_ids: torch.Tensor,
        eeg_time_ids: torch.Tensor,
        eeg_attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        smoothing: float = 0.0,
        **kwargs: Any,
    ) -> EEGClassifierOutput:
        """Classifies windows of EEG, or predicts values.

        Args:
            input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask: as in [`LaBraMVQModel.encode`].
            labels: classes (batch,), integers from 0 to `num_labels` - 1, -100 is ignored; several labels a sample
                (batch, num_labels), 0 or 1; or values of a regression (batch, num_labels), (batch,) for one each.
            num_items_in_batch: (1,), [`count_loss_items`] summed over all batches of a step: the loss is then this
                batch's share of the step's. `None`: mean over this batch.
            smoothing: share of each label that goes to all classes alike.

        Raises:
            ValueError: what [`LaBraMVQModel.encode`] refuses, labels that do not fit `num_labels`, or a row without
                EEG.
        """
        outputs = self.labram(input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask, **kwargs)
        hidden_states = outputs.last_hidden_state
        real = real_patches(hidden_states[:, 1:], eeg_attention_mask)
        if self.pooled_norm is None:
            features = hidden_states[:, 0]
        else:
            features = self.pooled_norm(mean_over(hidden_states[:, 1:], real))
        return EEGClassifierOutput(
            **self._classify(features, labels, num_items_in_batch, smoothing),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


# --- helpers ---------------------------------------------------------------------------------------------------------

# Blocks of the tokenizer: neither norms of queries and keys nor layer scale.
_VQ_BLOCK = {"query_value_bias": True}


def spectrum_targets(input_values: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """What the decoder must predict (paper, section 2.2): z-scores over all patches and bins of each sample.

    Args:
        input_values: (batch, patches, patch_size); mask: (batch, patches), True where real.

    Returns:
        amplitude and phase of the two-sided spectrum of each patch, (batch, patches, patch_size) each, float32, zero
        at padding, with the unbiased standard deviation. The phase lies in (-pi, pi] before.
    """
    with torch.autocast(input_values.device.type, enabled=False):
        signal = input_values.detach().float()
        size = signal.shape[-1]
        spectrum = torch.fft.rfft(signal, dim=-1)
        # the bins at 0 Hz and at half the sampling rate are real: of the sign of a zero their phase must not depend
        phase = spectrum.angle()
        real_bins = [0] if size % 2 else [0, -1]
        phase[..., real_bins] = torch.where(spectrum.real[..., real_bins] < 0, torch.pi, 0.0)
        mirrored = slice(1, (size + 1) // 2)
        amplitude = spectrum.abs()
        amplitude = torch.cat([amplitude, amplitude[..., mirrored].flip(-1)], dim=-1)
        phase = torch.cat([phase, -phase[..., mirrored].flip(-1)], dim=-1)
        weights = torch.ones(size, device=signal.device)
        return zscore(amplitude, mask, weights), zscore(phase, mask, weights)


def masked_counts(real: torch.Tensor, ratio: float) -> torch.Tensor:
    """(batch,): how many patches of each sample are masked, all but the whole number in `1 - ratio` of them."""
    lengths = real.sum(1)
    return lengths - (lengths * (1 - ratio)).floor().long()


def draw_masked(real: torch.Tensor, ratio: float) -> torch.Tensor:
    """(batch, patches), True at the patches that are masked: [`masked_counts`] of each sample's, at random.

    Args:
        real: (batch, patches), True where a patch is real.
    """
    noise = torch.rand(real.shape, device=real.device).masked_fill(~real, torch.inf)
    return noise.argsort(1).argsort(1) < masked_counts(real, ratio)[:, None]


def _check_input(
    config: LaBraMConfig | LaBraMVQConfig,
    input_values: torch.Tensor,
    channel_ids: torch.Tensor,
    time_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **others: torch.Tensor | None,
) -> torch.Tensor | None:
    """Patches of the right size, ids that fit them, channel-major; returns the mask as booleans."""
    check_patches(input_values, config.patch_size)
    ids = {"eeg_channel_ids": channel_ids, "eeg_time_ids": time_ids, "eeg_attention_mask": attention_mask, **others}
    check_shapes(input_values.shape[:2], **ids)
    mask = None if attention_mask is None else attention_mask.bool()
    if torch.compiler.is_compiling():
        return mask
    real = real_mask(input_values, attention_mask)
    channels, seconds = channel_ids[real], time_ids[real]
    if not len(channels):
        return mask
    sample = torch.arange(len(real), device=real.device)[:, None].expand_as(real)[real]
    rows = config.num_channel_embeddings
    wrong = (channels < 1) | (channels >= rows)
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        raise ValueError(
            f"Sample {int(sample[place])} has channel id {int(channels[place])}; LaBraM's are 1 to {rows - 1}, one "
            "more than the place in the channel vocabulary. Prepare it with the model's own feature extractor."
        )
    starts = torch.ones_like(channels, dtype=torch.bool)
    starts[1:] = (channels.diff() != 0) | (sample.diff() != 0)
    steps = torch.where(starts, seconds, F.pad(seconds.diff(), (1, 0)) - 1)
    if bool(steps.any()):
        row = int(sample[steps.nonzero()[0]])
        raise ValueError(
            f"The patches of sample {row} are not channel-major: the seconds of each channel must count 0, 1, 2, ... "
            "before the next channel begins. Prepare it with the model's own feature extractor."
        )
    if int(seconds.max()) >= config.max_seconds:
        raise ValueError(
            f"A sample of {int(seconds.max()) + 1} seconds is longer than the {config.max_seconds} seconds the model "
            "has embeddings for; cut it into shorter windows."
        )
    return mask


LaBraMVQModel.register_for_auto_class("AutoModel")
LaBraMModel.register_for_auto_class("AutoModel")
LaBraMForMaskedEEGModeling.register_for_auto_class("AutoModelForPreTraining")
LaBraMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "LaBraMForMaskedEEGModeling",
    "LaBraMForSequenceClassification",
    "LaBraMModel",
    "LaBraMPreTrainedModel",
    "LaBraMVQModel",
    "LaBraMVQPreTrainedModel",
]
