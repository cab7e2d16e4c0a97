# Copyright 2026 The neurolm_hf authors. Licensed under the Apache License, Version 2.0.
"""NeuroLM (arXiv 2409.00101): the vector-quantised neural tokenizer and the language model that reads EEG.

The file follows the data: patches -> convolutions -> transformer -> codebook -> decoders, then the language model
that reads the encoder's features between its text tokens. EEG is batch first everywhere, one row a sample:
`input_values` (batch, patches, patch_size) with the ids of channel, second and segment of every patch.
"""

import inspect
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModel, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.masking_utils import create_bidirectional_mask, create_masks_for_generate
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    ModelOutput,
    cached_file,
    can_return_tuple,
    is_peft_available,
    logging,
)
from transformers.utils.output_capturing import capture_outputs

from .configuration_neurolm import NeuroLMConfig, NeuroLMVQConfig
from .layers_neurolm import (
    IGNORE_INDEX,
    PADDING_CODE,
    EEGClassifierOutput,
    EEGEmbedding,
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
    real_patches,
    recorders,
    tanh_head,
    zscore,
)


logger = logging.get_logger(__name__)

# The targets of the language model: codes, text of a row that has EEG, text of a row that has none. Each kind has a
# mean of its own, so that a few answers are not lost among much text.
TARGET_KINDS = ("eeg", "answer", "text")

# Targets whose logits, as wide as both vocabularies together, exist at a time.
LOSS_CHUNK = 512


@dataclass
class NeuroLMVQDecoderOutput(ModelOutput):
    r"""What [`NeuroLMVQModel.decode`] returns.

    Args:
        frequency (`torch.FloatTensor` of shape `(batch, patches, num_frequency_bins)`): amplitude spectrum of each
            patch, as z-scores over the sample.
        raw (`torch.FloatTensor` of shape `(batch, patches, patch_size)`): signal, as z-scores over the sample.
    """

    frequency: torch.Tensor | None = None
    raw: torch.Tensor | None = None


@dataclass
class NeuroLMVQOutput(ModelOutput):
    r"""What [`NeuroLMVQModel.forward`] and [`NeuroLMVQForPreTraining.forward`] return.

    Args:
        loss (`torch.FloatTensor` of shape `()`): frequency and raw loss, weighted by the config, and commitment loss
            together, and the alignment losses where there are any.
        frequency_loss, raw_loss, commitment_loss (`torch.FloatTensor` of shape `()`): means over the real patches of
            the batch; with `num_items_in_batch`, this batch's share of the means over the step.
        eeg_alignment_loss, text_alignment_loss (`torch.FloatTensor` of shape `()`): cross-entropy of the classifier
            that tells EEG features (0) from text embeddings (1); only from [`NeuroLMVQForPreTraining`].
        frequency, raw: see [`NeuroLMVQDecoderOutput`].
        target_frequency, target_raw: what they should have been, same shapes; zero at padding.
        features, quantized, codes: see [`VQEncoderOutput`].
        patch_losses (`torch.FloatTensor` of shape `(batch, patches, 4)`): `PATCH_LOSSES` of each patch, the loss
            without the alignment losses, zero where it enters none; their means are the losses.
        codebook_usage (`torch.FloatTensor` of shape `()`): share of the codebook that this batch used.
        perplexity (`torch.FloatTensor` of shape `()`): exponential of the entropy of the codes of this batch.
        hidden_states, attentions: of the encoder, when asked for.
    """

    PATCH_LOSSES: ClassVar[tuple[str, ...]] = ("loss", "frequency_loss", "raw_loss", "commitment_loss")

    loss: torch.Tensor | None = None
    frequency_loss: torch.Tensor | None = None
    raw_loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None
    eeg_alignment_loss: torch.Tensor | None = None
    text_alignment_loss: torch.Tensor | None = None
    frequency: torch.Tensor | None = None
    raw: torch.Tensor | None = None
    target_frequency: torch.Tensor | None = None
    target_raw: torch.Tensor | None = None
    features: torch.Tensor | None = None
    quantized: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    patch_losses: torch.Tensor | None = None
    codebook_usage: torch.Tensor | None = None
    perplexity: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class NeuroLMEEGEncoding(ModelOutput):
    r"""What [`NeuroLMModel.encode_eeg`] returns.

    Args:
        features (`torch.FloatTensor` of shape `(batch, patches, eeg_config.hidden_size)`): the encoder's features;
            undefined at padding.
        codes (`torch.LongTensor` of shape `(batch, patches)`): VQ tokens, -1 at padding; where they were asked for.
    """

    features: torch.Tensor | None = None
    codes: torch.Tensor | None = None


@dataclass
class NeuroLMModelOutputWithPast(BaseModelOutputWithPast):
    r"""What [`NeuroLMModel.forward`] returns: the language model's outputs and

    Args:
        eeg_codes (`torch.LongTensor` of shape `(batch, patches)`): VQ tokens of the EEG, -1 at padding; with
            `output_eeg_codes=True`.
    """

    eeg_codes: torch.Tensor | None = None


@dataclass
class NeuroLMCausalLMOutputWithPast(ModelOutput):
    r"""What [`NeuroLMForCausalLM.forward`] returns.

    Args:
        loss (`torch.FloatTensor` of shape `()`): `eeg_loss`, `answer_loss` and `text_loss` added up, those that have
            targets. The one that has a gradient; its parts are for the eye.
        eeg_loss (`torch.FloatTensor` of shape `()`): mean cross-entropy over the patches that are targets.
        answer_loss (`torch.FloatTensor` of shape `()`): mean cross-entropy over the text tokens that are targets in
            rows with EEG.
        text_loss (`torch.FloatTensor` of shape `()`): mean cross-entropy over the text tokens that are targets in
            rows without EEG, those of `text_input_ids` included. With `num_items_in_batch`, all three are this
            batch's share of the means over the step.
        targets (`torch.LongTensor` of shape `(batch, tokens)`): the row of the logits that each token should predict,
            codes behind text; -100 where nothing is predicted. With `labels`.
        target_losses (`torch.FloatTensor` of shape `(targets,)`): cross-entropy of each of them, sample by sample,
            then of each target in `text_input_ids`.
        target_rows (`torch.LongTensor` of shape `(targets,)`): the sample of each; texts count on after the samples.
        target_kinds (`torch.LongTensor` of shape `(targets,)`): whether each is EEG (0), of an answer (1) or text (2).
        target_hits (`torch.BoolTensor` of shape `(targets,)`): whether the likeliest code is right; of text, the
            likeliest word.
        logits (`torch.FloatTensor`): text rows, then code rows, as one softmax reads them. Shape `(batch, tokens,
            vocab_size + codebook_size)`; with `text_logits_only`, `(batch, tokens, vocab_size)`. `None` while
            training, where they would be most of the memory.
        past_key_values, hidden_states, attentions: of the language model.
        eeg_codes (`torch.LongTensor` of shape `(batch, patches)`): VQ tokens of the EEG, -1 at padding, when the
            labels asked for them.
    """

    loss: torch.Tensor | None = None
    eeg_loss: torch.Tensor | None = None
    answer_loss: torch.Tensor | None = None
    text_loss: torch.Tensor | None = None
    targets: torch.Tensor | None = None
    target_losses: torch.Tensor | None = None
    target_rows: torch.Tensor | None = None
    target_kinds: torch.Tensor | None = None
    target_hits: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    eeg_codes: torch.Tensor | None = None


class NeuroLMVQTransformer(nn.Module):
    """Adds where (channel) and when (second) to embedded patches and lets them see each other."""

    def __init__(self, config: NeuroLMVQConfig, hidden_size: int, num_layers: int, num_heads: int):
        super().__init__()
        self.config = config
        spread = config.embedding_initializer_range
        self.channel_embedding = EEGEmbedding(config.num_channel_embeddings, hidden_size, spread)
        self.time_embedding = EEGEmbedding(config.max_seconds, hidden_size, spread)
        self.layers = nn.ModuleList(
            EEGLayer(config, hidden_size, num_heads, 4 * hidden_size) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size, eps=config.final_layer_norm_eps)
        self.gradient_checkpointing = False

    def forward(
        self,
        patch_embeds: torch.Tensor,
        channel_ids: torch.Tensor,
        time_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        hidden_states = patch_embeds + self.channel_embedding(channel_ids) + self.time_embedding(time_ids)
        attention_mask = create_bidirectional_mask(self.config, hidden_states, mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask)
        return self.norm(hidden_states)


class NeuroLMVQPreTrainedModel(EEGPreTrainedModel):
    """Loading, saving and initialisation of the neural tokenizer's models."""

    config: NeuroLMVQConfig
    config_class = NeuroLMVQConfig
    base_model_prefix = "vq"
    _can_record_outputs = recorders("encoder.")


class NeuroLMEEGEncoder(NeuroLMVQPreTrainedModel):
    """From patches to features and, through the codebook, to codes: the half of the tokenizer always needed."""

    def __init__(self, config: NeuroLMVQConfig):
        super().__init__(config)
        width = config.hidden_size
        self.patch_embedding = PatchEmbedding(config, config.hidden_size)
        self.transformer = NeuroLMVQTransformer(config, width, config.num_hidden_layers, config.num_attention_heads)
        if config.has_codebook:
            self.to_codebook = tanh_head(width, config.codebook_dim)
            self.quantizer = VectorQuantizer(config)
        self.post_init()

    def forward(
        self,
        input_values: torch.Tensor,
        channel_ids: torch.Tensor,
        time_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Features (batch, patches, hidden_size) of samples that are each one segment; `mask` as booleans."""
        norm_mask = None if self.config.padding_enters_statistics else mask
        patch_embeds = self.patch_embedding(input_values, norm_mask)
        return self.transformer(patch_embeds, channel_ids, time_ids, mask)

    def quantize(
        self, features: torch.Tensor, mask: torch.Tensor | None = None, learn: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See [`quantize_features`]."""
        if not self.config.has_codebook:
            raise ValueError(
                "This checkpoint has no codebook: it was converted from a language model alone, so EEG can be read "
                "but not turned into VQ tokens. Convert it again with `--vq VQ.pt`."
            )
        if self.config.padding_enters_statistics:
            mask = None
        return quantize_features(self.to_codebook, self.quantizer, features, mask, learn)


class NeuroLMVQDecoder(nn.Module):
    """From codes' vectors (batch, patches, codebook_dim) to `output_size` numbers a patch."""

    def __init__(self, config: NeuroLMVQConfig, output_size: int):
        super().__init__()
        width, heads = config.decoder_hidden_size, config.decoder_num_attention_heads
        assert width is not None and heads is not None  # the config has filled both in
        self.embedding = nn.Linear(config.codebook_dim, width)
        self.transformer = NeuroLMVQTransformer(config, width, config.decoder_num_hidden_layers, heads)
        self.head = tanh_head(width, output_size)

    def forward(
        self,
        quantized: torch.Tensor,
        channel_ids: torch.Tensor,
        time_ids: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        embeds = self.embedding(quantized.to(self.embedding.weight.dtype))
        return self.head(self.transformer(embeds, channel_ids, time_ids, mask))


class NeuroLMVQModel(NeuralTokenizer, NeuroLMVQPreTrainedModel):
    """The vector-quantised neural tokenizer (paper, section 3.1): EEG patches to codes and back.

    While training, each forward adds to the sums that move the codebook; call [`update_codebook`] after every
    optimiser step (`neurolm_hf.training.CodebookCallback` does it in a Trainer).
    """

    def __init__(self, config: NeuroLMVQConfig):
        super().__init__(config)
        if not config.has_codebook:
            raise ValueError("A tokenizer without codebook cannot be built: set `has_codebook=True`.")
        self.encoder = NeuroLMEEGEncoder(config)
        self.frequency_decoder = NeuroLMVQDecoder(config, config.num_frequency_bins)
        self.raw_decoder = NeuroLMVQDecoder(config, config.patch_size)
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
            input_values: (batch, patches, patch_size), microvolts / 100 at 200 Hz, time-major (all channels of second
                0, then of second 1).
            eeg_channel_ids: (batch, patches), rows of the channel vocabulary.
            eeg_time_ids: (batch, patches), second of each patch, from 0 without gaps.
            eeg_attention_mask: (batch, patches), 1 where a patch is real.
        """
        mask = _check_patches(self.config, input_values, eeg_channel_ids, eeg_time_ids, None, eeg_attention_mask)
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
    ) -> NeuroLMVQDecoderOutput:
        """Codes (batch, patches), or their vectors `quantized` (batch, patches, codebook_dim), to spectra and signals.

        Raises:
            ValueError: unless exactly one of `codes` and `quantized` is given, and both ids.
        """
        quantized = self._vectors(codes, quantized, eeg_channel_ids, eeg_time_ids)
        mask = None if eeg_attention_mask is None else eeg_attention_mask.bool()
        return NeuroLMVQDecoderOutput(
            frequency=self.frequency_decoder(quantized, eeg_channel_ids, eeg_time_ids, mask),
            raw=self.raw_decoder(quantized, eeg_channel_ids, eeg_time_ids, mask),
        )

    def count_loss_items(
        self, input_values: torch.Tensor, eeg_attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """(1,), float32: patches of this batch that enter the losses, their denominator; arguments of [`forward`]."""
        if eeg_attention_mask is None or self.config.padding_enters_statistics:
            count = torch.tensor(input_values.shape[:2].numel(), device=input_values.device)
        else:
            count = eeg_attention_mask.sum()
        return count.float().view(1)

    @capture_outputs
    def forward(
        self,
        input_values: torch.Tensor,
        eeg_channel_ids: torch.Tensor,
        eeg_time_ids: torch.Tensor,
        eeg_attention_mask: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> NeuroLMVQOutput:
        """Reconstructs its input through the codebook.

        Args:
            input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask: as in [`encode`].
            num_items_in_batch: (1,), [`count_loss_items`] summed over all batches of a step: the losses are then this
                batch's share of the step's. `None`: means over this batch.
        """
        mask = _check_patches(self.config, input_values, eeg_channel_ids, eeg_time_ids, None, eeg_attention_mask)
        # The target first: it needs real patches only, in either mode.
        target_frequency, target_raw = reconstruction_targets(input_values, mask, self.config)

        features = self.encoder(input_values, eeg_channel_ids, eeg_time_ids, mask)
        quantized, codes, vectors = self._quantize(features, mask)
        decoded = self.decode(
            quantized=quantized,
            eeg_channel_ids=eeg_channel_ids,
            eeg_time_ids=eeg_time_ids,
            eeg_attention_mask=eeg_attention_mask,
        )

        items = self.count_loss_items(input_values, eeg_attention_mask)
        losses = self._losses(
            {
                # padded mode: predictions at padding count as zero, but in the denominator
                "frequency": patch_errors(decoded.frequency, target_frequency, mask),
                "raw": patch_errors(decoded.raw, target_raw, mask),
            },
            codes,
            vectors,
            None if self.config.padding_enters_statistics else mask,
            denominators(items, num_items_in_batch, self.training),
        )
        return NeuroLMVQOutput(
            **losses,  # type: ignore[arg-type]
            frequency=decoded.frequency,
            raw=decoded.raw,
            target_frequency=target_frequency,
            target_raw=target_raw,
            features=features,
            quantized=quantized,
            codes=codes,
        )


class NeuroLMVQForPreTraining(NeuroLMVQPreTrainedModel):
    """The neural tokenizer with its text-alignment adversary (paper, section 3.1).

    A classifier tells EEG features from frozen text embeddings; behind a gradient reversal, the encoder learns to
    deceive it, so that EEG features come to lie where the language model's text embeddings are.

    Attributes:
        reversal_strength (`float`): factor of the reversed gradient where [`forward`] is given none. 0 until something
            raises it (`neurolm_hf.training.AlignmentScheduleCallback` does it in a Trainer).
    """

    def __init__(self, config: NeuroLMVQConfig):
        super().__init__(config)
        self.reversal_strength = 0.0
        self.vq = NeuroLMVQModel(config)
        self.alignment_classifier = nn.Sequential(
            nn.Linear(config.hidden_size, config.alignment_hidden_size),
            nn.GELU(),
            nn.Linear(config.alignment_hidden_size, 2),
        )
        self.text_embedding = nn.Embedding(config.alignment_vocab_size, config.hidden_size)
        self.post_init()
        self.text_embedding.requires_grad_(False)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the text embeddings are frozen again, which loading undoes."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.text_embedding.requires_grad_(False)
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        return self.text_embedding

    def update_codebook(self) -> None:
        """See [`NeuroLMVQModel.update_codebook`]."""
        self.vq.update_codebook()

    def drop_codebook_step(self) -> None:
        """See [`NeuroLMVQModel.drop_codebook_step`]."""
        self.vq.drop_codebook_step()

    def count_loss_items(
        self,
        input_values: torch.Tensor,
        eeg_attention_mask: torch.Tensor | None = None,
        text_input_ids: torch.Tensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(3,), float32: patches in the tokenizer's losses, patches and text tokens that the classifier judges."""
        patches = self.vq.count_loss_items(input_values, eeg_attention_mask)
        judged = torch.ones(input_values.shape[:2]) if eeg_attention_mask is None else eeg_attention_mask
        tokens = text_input_ids.new_ones(text_input_ids.shape) if text_input_ids is not None else judged.new_zeros(1)
        if text_input_ids is not None and text_attention_mask is not None:
            tokens = text_attention_mask
        return torch.stack([patches[0], *(mask.sum().to(patches) for mask in (judged, tokens))])

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        eeg_channel_ids: torch.Tensor,
        eeg_time_ids: torch.Tensor,
        eeg_attention_mask: torch.Tensor | None = None,
        text_input_ids: torch.Tensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        reversal_strength: float | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> NeuroLMVQOutput:
        """Losses of the tokenizer and of the adversary.

        Args:
            input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask: as in [`NeuroLMVQModel.encode`].
            text_input_ids: (texts, tokens), a batch of text; without it only EEG is classified.
            text_attention_mask: (texts, tokens), 1 where a token is real.
            reversal_strength: factor of the reversed gradient, from 0 at the start of training to almost 1; the paper
                takes `2 / (1 + exp(-10 * progress)) - 1`. `None`: the attribute of this name.
            num_items_in_batch: (3,), [`count_loss_items`] summed over all batches of a step: the losses are then this
                batch's share of the step's. `None`: means over this batch.
        """
        items = self.count_loss_items(input_values, eeg_attention_mask, text_input_ids, text_attention_mask)
        counts = denominators(items, num_items_in_batch, self.training)
        outputs = self.vq(
            input_values,
            eeg_channel_ids,
            eeg_time_ids,
            eeg_attention_mask,
            num_items_in_batch=counts[:1],
            **{**kwargs, "return_dict": True},
        )
        strength = self.reversal_strength if reversal_strength is None else reversal_strength
        eeg_logits = self.alignment_classifier(_ReverseGradient.apply(outputs.features, strength))
        losses = {"eeg_alignment_loss": _classification_loss(eeg_logits, 0, eeg_attention_mask) / counts[1]}
        if text_input_ids is not None:
            text_logits = self.alignment_classifier(self.text_embedding(text_input_ids))
            losses["text_alignment_loss"] = _classification_loss(text_logits, 1, text_attention_mask) / counts[2]
        return NeuroLMVQOutput(**{**outputs, **losses, "loss": outputs.loss + sum(losses.values())})


class NeuroLMVQForSequenceClassification(WindowClassifier, NeuroLMVQPreTrainedModel):
    """The neural tokenizer's encoder with a head that reads the mean of its features over the real patches.

    The codebook takes no part, and stays as it is.
    """

    # the rest of a neural tokenizer and its adversary; any other key that has no place here is reported
    _keys_to_ignore_on_load_unexpected = [
        r"(frequency|raw)_decoder\.",
        r"^alignment_classifier\.",
        r"^text_embedding\.",
    ]

    def __init__(self, config: NeuroLMVQConfig):
        super().__init__(config)
        self.encoder = NeuroLMEEGEncoder(config)
        self.score = nn.Linear(config.hidden_size, cast(int, config.num_labels))
        self.post_init()
        self._freeze_codebook()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; what leads to the codebook is frozen again, which loading undoes."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._freeze_codebook()
        return loaded

    def _freeze_codebook(self) -> None:
        if self.config.has_codebook:
            # nothing of it is read: no gradient can reach it
            self.encoder.to_codebook.requires_grad_(False)

    @capture_outputs
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
            input_values, eeg_channel_ids, eeg_time_ids, eeg_attention_mask: as in [`NeuroLMVQModel.encode`].
            labels: as in [`NeuroLMForSequenceClassification.forward`].
            num_items_in_batch: (1,), [`count_loss_items`] summed over all batches of a step: the loss is then this
                batch's share of the step's. `None`: mean over this batch.
            smoothing: share of each label that goes to all classes alike.
        """
        mask = _check_patches(self.config, input_values, eeg_channel_ids, eeg_time_ids, None, eeg_attention_mask)
        features = self.encoder(input_values, eeg_channel_ids, eeg_time_ids, mask)
        pooled = mean_over(features, real_patches(features, mask))
        return EEGClassifierOutput(**self._classify(pooled, labels, num_items_in_batch, smoothing))


class NeuroLMPreTrainedModel(EEGPreTrainedModel):
    """Loading, saving and initialisation of the language model's classes."""

    config: NeuroLMConfig
    config_class = NeuroLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ["audio", "text"]
    # flash attention ignores masks with blocks, so the staircase would silently be lost
    _supports_flash_attn = False
    _no_split_modules = ["NeuroLMEEGEncoder"]
    _skip_keys_device_placement = ["past_key_values"]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in transformers; the EEG encoder is frozen again, which loading undoes.

        An adapter opens with the model it belongs to, and with the tasks or classes that it was tuned on: those of the
        config in its own folder or repository, where there is one.

        Raises:
            ImportError: an adapter, without peft.
        """
        name = _model_of_adapter(pretrained_model_name_or_path, kwargs)
        adapter_kwargs = kwargs.get("adapter_kwargs") or {}
        if adapter_kwargs.get("_adapter_model_path") is not None:
            _take_what_adapter_says(kwargs, **adapter_kwargs)
        loaded = super().from_pretrained(name, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.freeze_eeg_encoder()
        return loaded

    def freeze_eeg_encoder(self) -> None:
        """Applies `config.freeze_eeg_encoder` to the encoder's parameters and mode."""
        encoder = cast(NeuroLMModel, getattr(self, self.base_model_prefix, self)).eeg_encoder
        if self.config.freeze_eeg_encoder:
            encoder.requires_grad_(False)
            encoder.eval()
        elif encoder.config.has_codebook:
            # codes are targets: no gradient can reach what makes them
            encoder.to_codebook.requires_grad_(False)


class NeuroLMModel(NeuroLMPreTrainedModel):
    """A decoder-only language model that reads EEG features between its text tokens.

    A placeholder token `config.eeg_token_id` stands for each patch. All patches of one second of one segment form a
    block: they share a position and see each other; everything else is causal. Positions run on from block to text to
    block, so that a sample's positions depend on nothing else in the batch.

    Attributes:
        feature_noise (`float`): standard deviation of a random offset that all features of a segment share while
            training. It hides whose EEG it is, for a small model tells a few subjects apart. 0, the paper's, until a
            training sets it; it is not saved.
    """

    def __init__(self, config: NeuroLMConfig):
        super().__init__(config)
        self.feature_noise = 0.0
        eeg_config = _eeg_config(config)
        eeg_width, text_width = eeg_config.hidden_size, config.get_text_config().hidden_size
        self.eeg_encoder = NeuroLMEEGEncoder(eeg_config)
        self.eeg_projector = (
            nn.Identity() if eeg_width == text_width else nn.Sequential(nn.Linear(eeg_width, text_width), nn.GELU())
        )
        self.channel_embedding = EEGEmbedding(
            eeg_config.num_channel_embeddings, text_width, config.channel_initializer_range
        )
        # one precision for all, whatever the text model was published in
        self.language_model = AutoModel.from_config(config.get_text_config(), dtype=torch.get_default_dtype())
        if "position_ids" not in inspect.signature(self.language_model.forward).parameters:
            raise ValueError(
                f"A {config.get_text_config().model_type} cannot be the text model: it takes no `position_ids`, and "
                "all patches of a second must share a position."
            )
        self.post_init()
        self.freeze_eeg_encoder()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_decoder(self) -> nn.Module:
        return self.language_model

    def train(self, mode: bool = True) -> "NeuroLMModel":
        super().train(mode)
        if self.config.freeze_eeg_encoder:
            self.eeg_encoder.eval()
        return self

    def get_eeg_features(
        self,
        input_values: torch.Tensor,
        eeg_channel_ids: torch.Tensor,
        eeg_time_ids: torch.Tensor,
        eeg_segment_ids: torch.Tensor | None = None,
        eeg_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the language model reads in place of the placeholders, before its own position embedding.

        Args:
            input_values: (batch, patches, patch_size), microvolts / 100 at 200 Hz, time-major within a segment.
            eeg_channel_ids: (batch, patches), rows of the channel vocabulary.
            eeg_time_ids: (batch, patches), second of each patch, from 0 without gaps in every segment.
            eeg_segment_ids: (batch, patches), 0, 1, ... in the order of the placeholders; segments are encoded apart.
                `None`: one segment a row.
            eeg_attention_mask: (batch, patches), 1 where a patch is real. `None`: all are.

        Returns:
            (batch, patches, text hidden size); undefined at padding.
        """
        encoding = self.encode_eeg(
            input_values, eeg_channel_ids, eeg_time_ids, eeg_segment_ids, eeg_attention_mask, with_codes=False
        )
        return self._embed(cast(torch.Tensor, encoding.features), eeg_channel_ids, eeg_segment_ids)

    def get_eeg_codes(
        self,
        input_values: torch.Tensor,
        eeg_channel_ids: torch.Tensor,
        eeg_time_ids: torch.Tensor,
        eeg_segment_ids: torch.Tensor | None = None,
        eeg_attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """VQ tokens (batch, patches) of EEG, -1 at padding; arguments as in [`get_eeg_features`]."""
        encoding = self.encode_eeg(input_values, eeg_channel_ids, eeg_time_ids, eeg_segment_ids, eeg_attention_mask)
        return cast(torch.Tensor, encoding.codes)

    def encode_eeg(
        self,
        input_values: torch.Tensor,
        eeg_channel_ids: torch.Tensor,
        eeg_time_ids: torch.Tensor,
        eeg_segment_ids: torch.Tensor | None = None,
        eeg_attention_mask: torch.Tensor | None = None,
        with_codes: bool = True,
    ) -> NeuroLMEEGEncoding:
        """One pass of the encoder over every segment on its own: features, and codes of the same pass.

        Both can be kept and given to [`forward`] as `eeg_features` and `eeg_codes` as often as wanted, in place of
        `input_values`. Arguments as in [`get_eeg_features`].
        """
        config = _eeg_config(self.config)
        mask = _check_patches(config, input_values, eeg_channel_ids, eeg_time_ids, eeg_segment_ids, eeg_attention_mask)
        frozen = self.config.freeze_eeg_encoder
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            if mask is None and eeg_segment_ids is None:
                features = self.eeg_encoder(input_values, eeg_channel_ids, eeg_time_ids)
                codes = self.eeg_encoder.quantize(features)[1] if with_codes else None
                return NeuroLMEEGEncoding(features=features, codes=codes)
            rows = _SegmentRows(mask, eeg_segment_ids, input_values, config.padding_enters_statistics)
            if rows.count == 0:
                features = input_values.new_zeros(*input_values.shape[:2], config.hidden_size)
                no_codes = torch.full(input_values.shape[:2], PADDING_CODE, device=input_values.device)
                return NeuroLMEEGEncoding(
                    features=features + _zero_of(self.eeg_encoder), codes=no_codes if with_codes else None
                )
            row_features = self.eeg_encoder(
                rows.split(input_values), rows.split(eeg_channel_ids), rows.split(eeg_time_ids), rows.mask
            )
            codes = None
            if with_codes:
                codes = rows.join(self.eeg_encoder.quantize(row_features, rows.mask)[1], PADDING_CODE)
                codes = codes if mask is None else codes.masked_fill(~mask, PADDING_CODE)
            return NeuroLMEEGEncoding(features=rows.join(row_features, 0), codes=codes)

    def _embed(
        self, features: torch.Tensor, channel_ids: torch.Tensor, segment_ids: torch.Tensor | None
    ) -> torch.Tensor:
        if self.training and self.feature_noise > 0:
            features = features + self._segment_offsets(features, segment_ids)
        return self.eeg_projector(features.to(self.channel_embedding.weight.dtype)) + self.channel_embedding(
            channel_ids
        )

    def _segment_offsets(self, features: torch.Tensor, segment_ids: torch.Tensor | None) -> torch.Tensor:
        """Random offsets (batch, patches, width), the same for all patches of a segment."""
        segments = 1 if segment_ids is None else int(segment_ids.max()) + 1
        offsets = torch.randn(
            len(features), segments, features.shape[-1], device=features.device, dtype=features.dtype
        )
        offsets = offsets * self.feature_noise
        if segment_ids is None:
            return offsets.expand_as(features)
        return offsets.gather(1, segment_ids.clamp(min=0)[..., None].expand_as(features))

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """(batch, tokens), True where a token stands for a patch."""
        if input_ids is not None:
            return input_ids == self.config.eeg_token_id
        if inputs_embeds is None:
            raise ValueError("NeuroLM needs either `input_ids` or `inputs_embeds`.")
        placeholder = torch.tensor(self.config.eeg_token_id, device=inputs_embeds.device)
        return (inputs_embeds == self.get_input_embeddings()(placeholder)).all(-1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | dict | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        eeg_channel_ids: torch.Tensor | None = None,
        eeg_time_ids: torch.Tensor | None = None,
        eeg_segment_ids: torch.Tensor | None = None,
        eeg_attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        eeg_features: torch.Tensor | None = None,
        eeg_codes: torch.Tensor | None = None,
        output_eeg_codes: bool = False,
        wanted_tokens: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> NeuroLMModelOutputWithPast:
        """Reads text and EEG.

        Args:
            input_ids: (batch, tokens), text with one `config.eeg_token_id` a patch.
            attention_mask: (batch, tokens), 1 where a token is real; padding may be left or right.
            mm_token_type_ids: (batch, tokens), the block of each token: 1, 2, 3, ... over the (segment, second) blocks
                of a sample, 0 for text and padding. Worked out from the EEG ids when left out.
            input_values, eeg_channel_ids, eeg_time_ids, eeg_segment_ids, eeg_attention_mask: as in
                [`get_eeg_features`].
            position_ids: (batch, tokens), overrides the positions described in the class.
            past_key_values, inputs_embeds, use_cache: as everywhere in transformers.
            eeg_features: (batch, patches, eeg_config.hidden_size), what [`encode_eeg`] gave for this EEG, in place of
                `input_values`: the encoder does not run.
            eeg_codes: (batch, patches), the codes beside `eeg_features`.
            output_eeg_codes: return the VQ tokens of the EEG as well, from the same encoder pass.
            wanted_tokens: (batch, tokens), True where `last_hidden_state` will be used, and it must not be elsewhere:
                no token depends on what the last layer's MLP makes of another, so it leaves those out.

        Raises:
            ValueError: when a row's placeholders and real patches differ in number, or its seconds have gaps; EEG both
                as `input_values` and as `eeg_features`, or codes asked for that are nowhere.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("NeuroLM needs exactly one of `input_ids` and `inputs_embeds`.")
        placeholders = None
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)

        codes = None
        if input_values is not None or eeg_features is not None:
            if eeg_channel_ids is None or eeg_time_ids is None:
                raise ValueError("EEG needs `eeg_channel_ids` and `eeg_time_ids`, (batch, patches).")
            placeholders = self.get_placeholder_mask(input_ids, inputs_embeds)
            _check_placeholders(placeholders, eeg_time_ids, eeg_attention_mask)
            ids = (eeg_channel_ids, eeg_time_ids, eeg_segment_ids, eeg_attention_mask)
            encoding = self._encoding(input_values, eeg_features, eeg_codes, output_eeg_codes, *ids)
            codes = encoding.codes
            eeg_embeds = self._embed(cast(torch.Tensor, encoding.features), eeg_channel_ids, eeg_segment_ids)
            if eeg_attention_mask is not None:
                eeg_embeds = eeg_embeds[eeg_attention_mask.bool()]
            inputs_embeds = inputs_embeds.masked_scatter(
                placeholders.unsqueeze(-1), eeg_embeds.to(inputs_embeds.dtype)
            )
            if mm_token_type_ids is None:
                mm_token_type_ids = block_ids(placeholders, eeg_time_ids, eeg_segment_ids, eeg_attention_mask)
        elif input_ids is not None and input_ids.shape[1] > 1:  # a single token is one that generation chose: text
            _check_no_placeholders(self.get_placeholder_mask(input_ids))
        if placeholders is None and self.training:
            inputs_embeds = inputs_embeds + _zero_of(self.eeg_encoder, self.eeg_projector, self.channel_embedding)

        past_length = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = self._positions(inputs_embeds, attention_mask, mm_token_type_ids, past_length)
        self._check_context(position_ids, past_length + inputs_embeds.shape[1])
        # A mask that is ready (4-D, or one for each kind of layer) passes through.
        if attention_mask is None or (isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2):
            attention_mask = NeuroLMForCausalLM.create_masks_for_generate(
                self.config, inputs_embeds, attention_mask, past_key_values, mm_token_type_ids=mm_token_type_ids
            )
        for name in ("output_hidden_states", "output_attentions"):
            kwargs[name] = kwargs.get(name) if kwargs.get(name) is not None else getattr(self.config, name)
        kwargs.pop("return_dict", None)
        whole = wanted_tokens is None or kwargs["output_hidden_states"]
        places = None if whole else cast(torch.Tensor, wanted_tokens).nonzero(as_tuple=True)
        with self._last_mlp_at(places, inputs_embeds.shape[:2]):
            outputs = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                return_dict=True,
                **kwargs,
            )
        return NeuroLMModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            eeg_codes=codes,
        )

    @contextmanager
    def _last_mlp_at(self, places: tuple[torch.Tensor, ...] | None, shape: torch.Size) -> Iterator[None]:
        """Lets the MLP of the last decoder layer compute tokens at these places of `shape` alone; others get zeros.

        Not under activation checkpointing, which calls the layer again later, nor in a compiled graph.
        """
        last = [one for one in self.language_model.modules() if isinstance(one, GradientCheckpointingLayer)][-1]
        mlp = getattr(last, "mlp", None)
        recomputed = self.training and getattr(self.language_model, "gradient_checkpointing", False)
        compiled = torch.compiler.is_compiling() or last._compiled_call_impl is not None
        if places is None or mlp is None or recomputed or compiled:
            yield
            return

        narrowed: list[bool] = []

        def narrow(module: nn.Module, inputs: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            # a decoder whose MLP reads more than hidden states keeps it whole
            narrowed.append(len(inputs) == 1 and not kwargs)
            return ((inputs[0][places].unsqueeze(0),) if narrowed[-1] else inputs), kwargs

        def widen(module: nn.Module, inputs: tuple, output: Any) -> Any:
            if not narrowed.pop():
                return output
            # that of a mixture of experts gives its router's scores as well
            computed, *others = output if isinstance(output, tuple) else (output,)
            everywhere = computed.new_zeros(*shape, computed.shape[-1])
            everywhere[places] = computed.flatten(0, -2)
            return (everywhere, *others) if isinstance(output, tuple) else everywhere

        hooks = [mlp.register_forward_pre_hook(narrow, with_kwargs=True), mlp.register_forward_hook(widen)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _encoding(
        self,
        input_values: torch.Tensor | None,
        features: torch.Tensor | None,
        codes: torch.Tensor | None,
        with_codes: bool,
        *ids: torch.Tensor | None,
    ) -> NeuroLMEEGEncoding:
        """Of `input_values`, or `features` and `codes` that were encoded before, if they fit."""
        if features is None:
            encode_eeg: Any = self.encode_eeg
            return encode_eeg(input_values, *ids, with_codes=with_codes)
        config = _eeg_config(self.config)
        if input_values is not None:
            raise ValueError("Give the EEG as `input_values` or as `eeg_features`, not both.")
        if not self.config.freeze_eeg_encoder:
            raise ValueError("`eeg_features` of an encoder that is trained are out of date: give `input_values`.")
        if features.ndim != 3 or features.shape[-1] != config.hidden_size:
            raise ValueError(
                f"`eeg_features` must have the shape (batch, patches, {config.hidden_size}), got "
                f"{tuple(features.shape)}."
            )
        _check_ids(config, features.shape[:2], *cast(Any, ids))
        if with_codes and (codes is None or codes.shape != features.shape[:2]):
            raise ValueError(
                "`labels` ask for the codes of EEG placeholders: beside `eeg_features` there must be `eeg_codes` of "
                f"the shape {tuple(features.shape[:2])}, got {None if codes is None else tuple(codes.shape)}."
            )
        return NeuroLMEEGEncoding(features=features, codes=codes if with_codes else None)

    def _check_context(self, position_ids: torch.Tensor, tokens: int | torch.Tensor) -> None:
        """Learned positions end: GPT-2 would fail with an index out of range, on a GPU without saying where."""
        limit = self.config.get_text_config().max_position_embeddings
        # no more positions than tokens, so that short inputs need not be looked at
        if isinstance(getattr(self.language_model, "wpe", None), nn.Embedding) and tokens > limit:
            longest = int(position_ids.max()) + 1
            if longest > limit:
                raise ValueError(
                    f"An input takes {longest} positions (one for each token of text and each second of EEG), and "
                    f"this language model has {limit}: shorten windows or text, or give fewer examples."
                )

    def _positions(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: Any,
        mm_token_type_ids: torch.Tensor | None,
        past_length: int | torch.Tensor,
    ) -> torch.Tensor:
        if past_length:
            raise ValueError(
                "With a filled cache NeuroLM needs `position_ids`, since a second of EEG takes one position however "
                "many patches it has. `generate` and `prepare_inputs_for_generation` give them."
            )
        batch, tokens = inputs_embeds.shape[:2]
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            real = attention_mask.bool()
        else:
            real = torch.ones(batch, tokens, dtype=torch.bool, device=inputs_embeds.device)
        return positions_from_blocks(real, mm_token_type_ids)


class NeuroLMForCausalLM(NeuroLMPreTrainedModel, GenerationMixin):
    """NeuroLM with its two heads: text tokens and VQ codes, under one softmax.

    `forward` gives the logits of all text rows followed by those of all code rows; `generate` only ever produces text.
    The heads are apart, so that resizing or tying the text rows cannot touch the codes.
    """

    def __init__(self, config: NeuroLMConfig):
        super().__init__(config)
        self.model = NeuroLMModel(config)
        text_config = config.get_text_config()
        self.lm_head = nn.Linear(text_config.hidden_size, text_config.vocab_size, bias=False)
        self.code_head = nn.Linear(text_config.hidden_size, _eeg_config(config).codebook_size, bias=False)
        # where the embeddings live depends on the decoder: wte, embed_tokens, ...
        embedding = self.model.get_input_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is embedding)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.post_init()
        self.freeze_eeg_encoder()

    @classmethod
    def from_eeg_text_pretrained(
        cls,
        eeg_model: str | NeuroLMVQPreTrainedModel,
        text_model: str | PreTrainedModel,
        text_vocabulary: dict[str, int] | None = None,
        **kwargs: Any,
    ) -> "NeuroLMForCausalLM":
        """Starts from a trained neural tokenizer and a pre-trained language model, ready for EEG pre-training.

        Args:
            eeg_model: a [`NeuroLMVQModel`] or [`NeuroLMVQForPreTraining`], or the folder or Hub id of one.
            text_model: a causal language model of transformers, or the folder or Hub id of one. A GPT-2 is switched to
                the exact GELU and to no dropout, as the paper does.
            text_vocabulary: `tokenizer.get_vocab()` of the text side, which says the ids of `[SEP]`, `<|eeg|>` and
                `<|pad|>`. `None`: they are taken to be the first three ids after the text model's own.
            kwargs: further fields of [`NeuroLMConfig`].

        The text rows grow to hold the special tokens, to a multiple of 64 (GPT-2's 50257 become 50304).
        """
        vq = NeuroLMVQModel.from_pretrained(eeg_model) if isinstance(eeg_model, str) else eeg_model
        vq = cast(NeuroLMVQModel, getattr(vq, "vq", vq))
        text = AutoModelForCausalLM.from_pretrained(text_model) if isinstance(text_model, str) else text_model
        text_config = text.config.get_text_config().to_dict()
        rows = text_config["vocab_size"]
        if text_config["model_type"] == "gpt2":
            text_config.update(activation_function="gelu", embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0)
        if text_vocabulary is None:
            text_vocabulary = {"[SEP]": rows, "<|eeg|>": rows + 1, "<|pad|>": rows + 2}
        if "<|eeg|>" not in text_vocabulary:
            raise ValueError("`text_vocabulary` has no `<|eeg|>`; add it to the text tokenizer first.")
        highest = max(text_vocabulary.values())
        config = cls.config_class(
            eeg_config=vq.config.to_dict(),
            text_config={**text_config, "vocab_size": rows if highest < rows else (highest // 64 + 1) * 64},
            eeg_token_id=text_vocabulary["<|eeg|>"],
            **{"stage": "tokenizer", **kwargs},
        )
        model = cls(config)
        model.model.eeg_encoder.load_state_dict(vq.encoder.state_dict())
        with torch.no_grad():
            pairs = [(model.model.language_model, text.base_model), (model.lm_head, text.get_output_embeddings())]
            for ours, theirs in pairs:
                _copy_weights(ours, theirs)
        special = [text_vocabulary[name] for name in ("[SEP]", "<|eeg|>", "<|pad|>") if name in text_vocabulary]
        model.suppress_tokens(special + list(range(highest + 1, config.get_text_config().vocab_size)))
        return model

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers: the text rows only; the placeholder must stay among them."""
        if new_num_tokens is not None and new_num_tokens <= self.config.eeg_token_id:
            raise ValueError(
                f"{new_num_tokens} text rows would leave out the EEG placeholder, which is row "
                f"{self.config.eeg_token_id}: set `config.eeg_token_id` to a row that stays, or keep more."
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    def suppress_tokens(self, token_ids: list[int]) -> None:
        """Keeps generation from ever producing these text ids: the placeholder, reserved and unused rows."""
        self.generation_config.suppress_tokens = sorted({*token_ids, self.config.eeg_token_id})

    def get_eeg_features(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See [`NeuroLMModel.get_eeg_features`]."""
        return self.model.get_eeg_features(*args, **kwargs)

    def get_eeg_codes(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See [`NeuroLMModel.get_eeg_codes`]."""
        return self.model.get_eeg_codes(*args, **kwargs)

    def encode_eeg(self, *args: Any, **kwargs: Any) -> NeuroLMEEGEncoding:
        """See [`NeuroLMModel.encode_eeg`]."""
        return self.model.encode_eeg(*args, **kwargs)

    def get_decoder(self) -> nn.Module:
        return self.model.get_decoder()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | dict | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        eeg_channel_ids: torch.Tensor | None = None,
        eeg_time_ids: torch.Tensor | None = None,
        eeg_segment_ids: torch.Tensor | None = None,
        eeg_attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        eeg_features: torch.Tensor | None = None,
        eeg_codes: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        text_input_ids: torch.Tensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        text_logits_only: bool = False,
        return_logits: bool | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> NeuroLMCausalLMOutputWithPast:
        """Reads text and EEG and predicts the next of each.

        Args:
            labels: (batch, tokens), aligned with `input_ids`; -100 is ignored. At a placeholder, the label
                `config.eeg_token_id` stands for that patch's code, which the same channel predicts one second earlier;
                at text, a text id, which the token before predicts unless that token is EEG.
            text_input_ids: (texts, tokens), text beside the samples, with a loss on each next token. It is read in a
                pass of its own, so that samples are not padded to the length of texts.
            text_attention_mask: (texts, tokens), 1 where a token of the texts is real; padding on the right.
            logits_to_keep: only the last that many positions (0: all), or these positions.
            text_logits_only: leave the code rows out, as generation does.
            return_logits: give logits. `None`: unless there are targets and the model is training, for which the
                logits of a few targets at a time are enough.
            num_items_in_batch: (3,), [`count_loss_items`] summed over all batches of a step: the losses are then this
                batch's share of the step's. `None`: means over this batch.

        All other arguments are those of [`NeuroLMModel.forward`].
        """
        has_targets = labels is not None or text_input_ids is not None
        with_logits = not (has_targets and self.training) if return_logits is None else return_logits
        needs_codes = self._asks_for_codes(labels)
        if needs_codes and input_values is None and eeg_features is None:
            raise ValueError("`labels` ask for the codes of EEG placeholders, but there are no `input_values`.")
        ids = (eeg_channel_ids, eeg_time_ids, eeg_segment_ids, eeg_attention_mask)
        targets = wanted = None
        if labels is not None:
            self._check_labels(labels)
            placeholders = self.model.get_placeholder_mask(input_ids, inputs_embeds)
            if not needs_codes:
                targets = self._targets(labels, placeholders, attention_mask, None, *ids)
                wanted = None if with_logits else targets != IGNORE_INDEX
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            mm_token_type_ids=mm_token_type_ids,
            input_values=input_values,
            eeg_channel_ids=eeg_channel_ids,
            eeg_time_ids=eeg_time_ids,
            eeg_segment_ids=eeg_segment_ids,
            eeg_attention_mask=eeg_attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            # a cache would keep the keys and values of a whole training batch
            use_cache=False if has_targets and use_cache is None else use_cache,
            eeg_features=eeg_features,
            eeg_codes=eeg_codes,
            output_eeg_codes=needs_codes,
            wanted_tokens=wanted,
            **{**kwargs, "return_dict": True},
        )
        hidden_states = outputs.last_hidden_state
        logits = None
        if with_logits:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self._logits(hidden_states[:, keep], text_logits_only)
        if labels is not None and needs_codes:
            targets = self._targets(labels, placeholders, attention_mask, outputs.eeg_codes, *ids)
        found = [] if targets is None else [_TargetsOfPass(hidden_states, targets, placeholders)]
        if text_input_ids is not None:
            found.append(self._read_texts(text_input_ids, text_attention_mask))
        return NeuroLMCausalLMOutputWithPast(
            **self._losses(found, num_items_in_batch) if found else {},
            targets=targets,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            eeg_codes=outputs.eeg_codes,
        )

    def count_loss_items(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        eeg_channel_ids: torch.Tensor | None = None,
        eeg_time_ids: torch.Tensor | None = None,
        eeg_segment_ids: torch.Tensor | None = None,
        eeg_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        text_input_ids: torch.Tensor | None = None,
        text_attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(3,), float32: EEG, answer and text targets of this batch, the losses' denominators.

        Arguments as in [`forward`].
        """
        if labels is None and text_input_ids is None:
            raise ValueError("Only a batch with `labels` or `text_input_ids` has targets to count.")
        kinds = []
        if labels is not None:
            placeholders = self.model.get_placeholder_mask(input_ids, inputs_embeds)
            # which code it is changes no count
            needs_codes = self._asks_for_codes(labels) and eeg_channel_ids is not None
            codes = torch.zeros_like(cast(torch.Tensor, eeg_channel_ids)) if needs_codes else None
            ids = (eeg_channel_ids, eeg_time_ids, eeg_segment_ids, eeg_attention_mask)
            targets = self._targets(labels, placeholders, attention_mask, codes, *ids)
            kinds.append(_target_kinds(targets, placeholders))
        if text_input_ids is not None:
            targets = _next_tokens(text_input_ids, text_attention_mask)
            kinds.append(_target_kinds(targets, torch.zeros_like(targets, dtype=torch.bool)))
        return _count_kinds(torch.cat(kinds))

    def _read_texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> "_TargetsOfPass":
        """A pass over texts alone, (texts, tokens), and what each token should predict."""
        self._check_labels(input_ids)
        # without padding there is no mask, and attention may take its fast path
        padded = attention_mask is not None and not bool(attention_mask.all())
        outputs = self.model(
            input_ids=input_ids, attention_mask=attention_mask if padded else None, use_cache=False, return_dict=True
        )
        targets = _next_tokens(input_ids, attention_mask)
        return _TargetsOfPass(outputs.last_hidden_state, targets, torch.zeros_like(targets, dtype=torch.bool))

    def _losses(
        self, found: "list[_TargetsOfPass]", num_items_in_batch: torch.Tensor | None
    ) -> dict[str, torch.Tensor | None]:
        """The loss, its parts (`None` where this batch has no target of a kind) and the figures of each target."""
        hidden_states = torch.cat([one.hidden_states for one in found])
        target_ids, kinds = (torch.cat([getattr(one, name) for one in found]) for name in ("ids", "kinds"))
        samples = [one.samples for one in found]
        rows = torch.cat([one.rows + sum(samples[:place]) for place, one in enumerate(found)])
        items = _count_kinds(kinds)
        counts = denominators(items, num_items_in_batch, self.training)
        weights = (1 / counts)[kinds]
        loss, losses, hits = self._weigh_targets(hidden_states, target_ids, weights)
        means = torch.zeros_like(counts).index_add_(0, kinds, losses * weights)
        parts = {
            f"{name}_loss": mean if count else None
            for name, mean, count in zip(TARGET_KINDS, means, items.tolist(), strict=True)
        }
        figures = {"target_losses": losses, "target_rows": rows, "target_kinds": kinds, "target_hits": hits}
        return {"loss": loss, **parts, **figures}

    def _weigh_targets(
        self, hidden_states: torch.Tensor, target_ids: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weighted sum of the targets' cross-entropies, each of them, and whether the likeliest of its kind is right.

        Args:
            hidden_states: (targets, hidden_size); target_ids: (targets,), rows of both heads' logits; weights:
                (targets,), float32.
        """
        device = hidden_states.device.type
        mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else self.lm_head.weight.dtype
        plain = type(self.lm_head) is nn.Linear and type(self.code_head) is nn.Linear
        # a gradient in float16 must have been scaled (by GradScaler) before it is rounded
        if plain and dtype != torch.float16:
            inputs = (hidden_states, self.lm_head.weight, self.code_head.weight, target_ids, weights)
            return _WeighedCrossEntropy.apply(*inputs, torch.is_grad_enabled())
        # computed twice, so that no logits are kept for the gradient: an adapter's layers compute what they like
        losses, hits = zip(
            *(
                checkpoint(self._chunk_losses, *chunk, use_reentrant=False)
                for chunk in zip(hidden_states.split(LOSS_CHUNK), target_ids.split(LOSS_CHUNK), strict=True)
            ),
            strict=True,
        )
        return (torch.cat(losses) * weights).sum(), torch.cat(losses).detach(), torch.cat(hits)

    def _chunk_losses(
        self, hidden_states: torch.Tensor, target_ids: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self._logits(hidden_states).float()
        text, codes = logits.detach().split([self.lm_head.out_features, self.code_head.out_features], dim=1)
        hits = _likeliest_of_kind(text, codes, target_ids) == target_ids
        return F.cross_entropy(logits, target_ids, reduction="none"), hits

    def _logits(self, hidden_states: torch.Tensor, text_only: bool = False) -> torch.Tensor:
        text_logits = self.lm_head(hidden_states)
        return text_logits if text_only else torch.cat([text_logits, self.code_head(hidden_states)], dim=-1)

    def _asks_for_codes(self, labels: torch.Tensor | None) -> bool:
        return labels is not None and bool((labels == self.config.eeg_token_id).any())

    def _check_labels(self, labels: torch.Tensor) -> None:
        """A word that the text rows do not have would be learnt as a code."""
        if not torch.compiler.is_compiling() and int(labels.max()) >= self.lm_head.out_features:
            raise ValueError(
                f"A label is {int(labels.max())}, but there are {self.lm_head.out_features} text rows: the text "
                "tokenizer is not this model's. Codes are labelled by the placeholder."
            )

    def _targets(
        self,
        labels: torch.Tensor,
        placeholders: torch.Tensor,
        attention_mask: Any,
        codes: torch.Tensor | None,
        eeg_channel_ids: torch.Tensor | None,
        eeg_time_ids: torch.Tensor | None,
        eeg_segment_ids: torch.Tensor | None,
        eeg_attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """(batch, tokens): the row of the logits that each token should predict, -100 for none."""
        mask = attention_mask if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2 else None
        targets = _next_tokens(labels, mask)
        # no patch predicts a word, and no word a patch
        targets[:, :-1].masked_fill_(placeholders[:, :-1] | placeholders[:, 1:], IGNORE_INDEX)
        if codes is None or eeg_channel_ids is None or eeg_time_ids is None:
            return targets
        predictors = previous_second(eeg_channel_ids, eeg_time_ids, eeg_segment_ids, eeg_attention_mask)
        eeg_targets = self._eeg_targets(labels, placeholders, codes, predictors, eeg_attention_mask)
        return torch.where(eeg_targets != IGNORE_INDEX, eeg_targets, targets)

    def _eeg_targets(
        self,
        labels: torch.Tensor,
        placeholders: torch.Tensor,
        codes: torch.Tensor,
        predictors: torch.Tensor,
        eeg_attention_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """(batch, tokens): what each placeholder predicts, its channel's code of the next second as a row id."""
        real = torch.ones_like(codes, dtype=torch.bool) if eeg_attention_mask is None else eeg_attention_mask.bool()
        labelled = torch.zeros_like(real).masked_scatter(real, (labels == self.config.eeg_token_id)[placeholders])
        rows, patches = (labelled & (predictors >= 0)).nonzero(as_tuple=True)
        patch_targets = torch.full_like(codes, IGNORE_INDEX)
        patch_targets[rows, predictors[rows, patches]] = codes[rows, patches] + self.lm_head.out_features
        targets = torch.full_like(labels, IGNORE_INDEX)
        return targets.masked_scatter(placeholders, patch_targets[real])

    def generate(self, inputs: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, text only. Warns when EEG is asked about before any instruction tuning."""
        if kwargs.get("input_values") is not None:
            self.warn_if_untuned()
        return super().generate(inputs, *args, **kwargs)  # type: ignore[misc]

    def score_answers(
        self,
        answers: Sequence[Sequence[int]],
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        **eeg: Any,
    ) -> torch.Tensor:
        """How likely each answer is after the prompt: EEG, prompt and all answers are read in one pass.

        The answers stand behind the prompt, side by side: each sees the prompt and itself, at the positions that it
        would have alone, and only the places that predict one of its tokens reach the head.

        Args:
            answers: token ids of each, one or more, with its end of text where that counts.
            input_ids, attention_mask, mm_token_type_ids: prompts (batch, tokens), padded on either side, as the
                processor gives them.
            eeg: the other inputs of [`forward`]: `input_values` or `eeg_features`, and the ids.

        Returns:
            (batch, answers), float32: log-likelihoods among text tokens.

        Raises:
            ValueError: no answer, or an empty one.
        """
        if not answers or not all(answers):
            raise ValueError("Answers to score are lists of one token id or more.")
        tree = _AnswerTree(answers, input_ids.shape[1], input_ids.device)
        window = getattr(self.config.get_text_config(), "sliding_window", None)
        if len(answers) > 1 and window is not None and len(tree.branches) > window:
            # a window counts tokens, and answers before this one would push it away from the prompt
            alone = ([answer] for answer in answers)
            given = (input_ids, attention_mask, mm_token_type_ids)
            return torch.cat([self.score_answers(one, *given, **eeg) for one in alone], dim=1)
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if mm_token_type_ids is None and eeg.get("eeg_time_ids") is not None:
            ids = (eeg.get(f"eeg_{name}") for name in ("time_ids", "segment_ids", "attention_mask"))
            mm_token_type_ids = block_ids(self.model.get_placeholder_mask(input_ids), *cast(Any, ids))
        positions = positions_from_blocks(real.bool(), mm_token_type_ids)
        tokens = tree.tokens.expand(len(input_ids), -1)
        last = (real * torch.arange(input_ids.shape[1], device=real.device)).argmax(1, keepdim=True)
        places = torch.cat([last, tree.places.expand_as(tokens)], dim=1)

        input_ids = torch.cat([input_ids, tokens], dim=1)
        if mm_token_type_ids is not None:
            mm_token_type_ids = F.pad(mm_token_type_ids, (0, tokens.shape[1]))
        mask = self.create_masks_for_generate(
            self.config,
            inputs_embeds=self.get_input_embeddings()(input_ids),
            attention_mask=torch.cat([real, torch.ones_like(tokens)], dim=1),
            past_key_values=None,
            mm_token_type_ids=mm_token_type_ids,
            and_mask_function=tree.sees,
        )
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            mm_token_type_ids=mm_token_type_ids,
            position_ids=torch.cat([positions, positions.max(1, keepdim=True).values + 1 + tree.steps], dim=1),
            wanted_tokens=torch.zeros_like(input_ids, dtype=torch.bool).scatter(1, places, True),
            use_cache=False,
            return_dict=True,
            **eeg,
        )
        hidden_states = outputs.last_hidden_state
        scored = hidden_states.gather(1, places[..., None].expand(-1, -1, hidden_states.shape[-1]))
        likelihoods = F.log_softmax(self.lm_head(scored).float(), dim=-1)
        scores = [
            likelihoods[:, predictors, list(answer)].sum(1)
            for answer, predictors in zip(answers, tree.predictors, strict=True)
        ]
        return torch.stack(scores, dim=1)

    def as_pipeline(self, processor: Any, **options: Any) -> Any:
        """This model as `pipeline("eeg-question-answering")`, which transformers makes of a folder or a Hub id alone.

        An adapter that PEFT has put around a model keeps that model's config; `from_pretrained(ADAPTER)` and
        `pipeline(model=ADAPTER)` know the tasks of the adapter.

        Args:
            processor: the model's.
            options: as of `transformers.pipeline`: `batch_size`, `device`, what every call asks but `task`.
        """
        from .pipeline_neurolm import EEGQuestionAnsweringPipeline

        return EEGQuestionAnsweringPipeline(self, processor=processor, task="eeg-question-answering", **options)

    def warn_if_untuned(self) -> None:
        """Says that answers have no meaning where the checkpoint was never instruction-tuned.

        An adapter is taken for tuning: what it was tuned on stands in its own folder.
        """
        if self.config.stage != "instruction-tuned" and not hasattr(self, "peft_config"):
            logger.warning_once(
                f"This checkpoint's stage is {self.config.stage!r}: it was never instruction-tuned, so what it "
                "answers about EEG has no meaning. Fine-tune it on a task first."
            )

    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: torch.LongTensor, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        return {**inputs, "text_logits_only": True}

    def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> Any:
        # whatever a caller suppresses: a generated placeholder would stand for a patch that is not there
        generation_config, model_kwargs = super()._prepare_generation_config(  # type: ignore[misc]
            *args, **kwargs
        )
        given = generation_config.suppress_tokens or []
        generation_config.suppress_tokens = sorted({*given, self.config.eeg_token_id})
        return generation_config, model_kwargs

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: torch.Tensor, model_kwargs: dict[str, Any]
    ) -> torch.Tensor:
        """Positions by blocks. Also fills in `mm_token_type_ids`, which the masks of a static cache need."""
        inputs_embeds = model_kwargs.get("inputs_embeds")
        tokens = inputs_tensor if inputs_embeds is None else inputs_embeds
        attention_mask, blocks = model_kwargs.get("attention_mask"), model_kwargs.get("mm_token_type_ids")
        cache = model_kwargs.get("past_key_values")
        past_length = 0 if cache is None else int(cache.get_seq_length())
        lengths = {given.shape[1] for given in (tokens, attention_mask, blocks) if given is not None}
        if len(lengths) > 1 or 0 < tokens.shape[1] <= past_length:
            raise ValueError(
                "`input_ids`, `attention_mask` and `mm_token_type_ids` must be those of the whole sequence, also of "
                f"what a cache already holds; got {sorted(lengths)} tokens, {past_length} of them in the cache."
            )
        if blocks is None:
            input_ids = inputs_tensor if inputs_embeds is None else None
            placeholders = self.model.get_placeholder_mask(input_ids, inputs_embeds)
            eeg_time_ids, eeg_mask = model_kwargs.get("eeg_time_ids"), model_kwargs.get("eeg_attention_mask")
            if placeholders.any() and (eeg_time_ids is None or past_length):
                raise ValueError(
                    "The prompt holds EEG placeholders but no EEG: give `generate` the processor's whole output "
                    "(`model.generate(**inputs)`), or `mm_token_type_ids` when continuing from a cache."
                )
            if eeg_time_ids is not None:
                _check_placeholders(placeholders, eeg_time_ids, eeg_mask)
                blocks = block_ids(placeholders, eeg_time_ids, model_kwargs.get("eeg_segment_ids"), eeg_mask)
                model_kwargs["mm_token_type_ids"] = blocks
        real = torch.ones(tokens.shape[:2], device=tokens.device) if attention_mask is None else attention_mask
        return positions_from_blocks(real.bool(), blocks)

    @staticmethod
    def create_masks_for_generate(
        config: NeuroLMConfig,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        position_ids: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        and_mask_function: Callable | None = None,
        **kwargs: Any,
    ) -> torch.Tensor | dict | None:
        """The staircase: patches of one block see each other, all else is causal, padding is never seen.

        `and_mask_function` (batch, head, query, key) -> bool takes more from what text sees.
        """
        if "flash" in (config.get_text_config()._attn_implementation or ""):
            raise ValueError("Flash attention ignores the staircase of EEG blocks; use `sdpa` or `eager`.")
        blocks = None
        if mm_token_type_ids is not None and inputs_embeds.shape[1] > 1:
            # queries and keys are counted from the start of the cache
            past_length = 0 if past_key_values is None else int(past_key_values.get_seq_length())
            blocks = F.pad(mm_token_type_ids - 1, (past_length, 0), value=-1)
        # Positions repeat within a block; given here, they would be taken for packed sequences.
        return create_masks_for_generate(
            config=config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=None,
            and_mask_function=and_mask_function,
            block_sequence_ids=blocks,
        )


class NeuroLMForSequenceClassification(WindowClassifier, NeuroLMPreTrainedModel):
    """NeuroLM with a head on one vector a row: classes, several labels or values, for EEG with or without text.

    `config.classifier_pooling` says what the head reads. Under `"encoder_mean"` the language model does not run, so
    text changes nothing, and its weights are frozen.
    """

    # the heads of a NeuroLMForCausalLM; any other key that has no place here is reported
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\.", r"^code_head\."]

    def __init__(self, config: NeuroLMConfig):
        super().__init__(config)
        self.model = NeuroLMModel(config)
        of_encoder = config.classifier_pooling == "encoder_mean"
        width = _eeg_config(config).hidden_size if of_encoder else config.get_text_config().hidden_size
        self.score = nn.Linear(width, cast(int, config.num_labels))
        self.post_init()
        self.freeze_eeg_encoder()

    def freeze_eeg_encoder(self) -> None:
        """Applies `config.freeze_eeg_encoder` to the encoder; freezes what `config.classifier_pooling` leaves out."""
        super().freeze_eeg_encoder()
        if self.config.classifier_pooling == "encoder_mean":
            for unread in (self.model.eeg_projector, self.model.channel_embedding, self.model.language_model):
                unread.requires_grad_(False)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        input_values: torch.Tensor | None = None,
        eeg_channel_ids: torch.Tensor | None = None,
        eeg_time_ids: torch.Tensor | None = None,
        eeg_segment_ids: torch.Tensor | None = None,
        eeg_attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        eeg_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: torch.Tensor | None = None,
        smoothing: float = 0.0,
        **kwargs: Any,
    ) -> EEGClassifierOutput:
        """Classifies rows of EEG and text, or predicts values.

        Args:
            input_ids: as in [`NeuroLMModel.forward`]; may be left out where there is EEG alone.
            attention_mask: (batch, tokens), 1 where a token is real; padding may be left or right.
            labels: classes (batch,), integers from 0 to `num_labels` - 1, -100 is ignored; several labels a sample
                (batch, num_labels), 0 or 1; or values of a regression (batch, num_labels), (batch,) for one each.
            num_items_in_batch: (1,), [`count_loss_items`] summed over all batches of a step: the loss is then this
                batch's share of the step's. `None`: mean over this batch.
            smoothing: share of each label that goes to all classes alike.

        All other arguments are those of [`NeuroLMModel.forward`].

        Raises:
            ValueError: what [`NeuroLMModel.forward`] refuses, labels that do not fit `num_labels`, or a row without
                EEG under `"encoder_mean"`.
        """
        pooling = self.config.classifier_pooling
        if pooling == "encoder_mean":
            ids = (eeg_channel_ids, eeg_time_ids, eeg_segment_ids, eeg_attention_mask)
            features = self._encoder_mean(input_values, eeg_features, *ids)
            return EEGClassifierOutput(**self._classify(features, labels, num_items_in_batch, smoothing))
        if input_ids is None and inputs_embeds is None and eeg_time_ids is not None:
            input_ids, attention_mask = self._placeholders(eeg_time_ids, eeg_attention_mask), eeg_attention_mask
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError("A classifier needs `attention_mask` as (batch, tokens), to find the last real token.")
        tokens = input_ids if inputs_embeds is None else inputs_embeds[..., 0]
        if tokens is None:
            raise ValueError("There is nothing to classify: give EEG, `input_ids` or `inputs_embeds`.")
        real = torch.ones_like(tokens, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        wanted = pooled_tokens(real, pooling)
        # names of the samples, which collators give: a plain Trainer hands them on
        kwargs.pop("rows", None)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            mm_token_type_ids=mm_token_type_ids,
            input_values=input_values,
            eeg_channel_ids=eeg_channel_ids,
            eeg_time_ids=eeg_time_ids,
            eeg_segment_ids=eeg_segment_ids,
            eeg_attention_mask=eeg_attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            eeg_features=eeg_features,
            wanted_tokens=wanted,
            **{**kwargs, "use_cache": False, "return_dict": True},
        )
        return EEGClassifierOutput(
            **self._classify(mean_over(outputs.last_hidden_state, wanted), labels, num_items_in_batch, smoothing),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _encoder_mean(
        self,
        input_values: torch.Tensor | None,
        eeg_features: torch.Tensor | None,
        *ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """(batch, eeg_config.hidden_size): mean of the encoder's features over each row's real patches."""
        if (input_values is None and eeg_features is None) or ids[0] is None or ids[1] is None:
            raise ValueError(
                "`classifier_pooling='encoder_mean'` reads EEG alone: give `input_values`, `eeg_channel_ids` and "
                "`eeg_time_ids`, (batch, patches)."
            )
        encoding = self.model._encoding(input_values, eeg_features, None, False, *ids)
        features = cast(torch.Tensor, encoding.features).to(self.model.channel_embedding.weight.dtype)
        return mean_over(features, real_patches(features, ids[3]))

    def _placeholders(self, eeg_time_ids: torch.Tensor, eeg_attention_mask: torch.Tensor | None) -> torch.Tensor:
        """(batch, patches): `input_ids` of EEG alone; at padding stands another token, which is never seen."""
        token = self.config.eeg_token_id
        placeholders = torch.full_like(eeg_time_ids, token)
        if eeg_attention_mask is None:
            return placeholders
        return placeholders.masked_fill(eeg_attention_mask == 0, int(token == 0))


# --- EEG helpers -----------------------------------------------------------------------------------------------------


def reconstruction_targets(
    input_values: torch.Tensor, mask: torch.Tensor | None, config: NeuroLMVQConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the decoders must predict (paper, section 3.1): z-scores over the real patches of each sample.

    Args:
        input_values: (batch, patches, patch_size); mask: (batch, patches), True where real.
        config: says which spectrum is predicted.

    Returns:
        spectra (batch, patches, num_frequency_bins): amplitudes, z-scored together with all two-sided bins, or the log
        power of these bins, z-scored together; the signal (batch, patches, patch_size), z-scored. Both float32, zero
        at padding, with the unbiased standard deviation.
    """
    with torch.autocast(input_values.device.type, enabled=False):
        signal = input_values.detach().float()
        size, bins = signal.shape[-1], config.num_frequency_bins
        amplitude = torch.fft.rfft(signal, dim=-1).abs()
        if config.frequency_target == "log_power":
            log_power = _log_power(amplitude, mask, config.frequency_smoothing)[..., :bins]
            frequency = zscore(log_power, mask, torch.ones(bins, device=signal.device))
        else:
            # z-scores are taken over the two-sided spectrum, in which every bin but 0 and Nyquist appears twice
            twice = torch.full((amplitude.shape[-1],), 2.0, device=signal.device)
            twice[0] = 1.0
            if size % 2 == 0:
                twice[-1] = 1.0
            frequency = zscore(amplitude, mask, twice)[..., :bins]
        return frequency, zscore(signal, mask, torch.ones(size, device=signal.device))


def _log_power(amplitude: torch.Tensor, mask: torch.Tensor | None, smoothing: int) -> torch.Tensor:
    """Log of the power (batch, patches, bins), averaged over `smoothing` neighbouring bins, mirrored at the ends."""
    mirrored = F.pad(amplitude.square(), (smoothing // 2, smoothing // 2), mode="reflect")
    power = mirrored.unfold(-1, smoothing, 1).mean(-1)
    # a floor far under the sample's mean: a flat channel has no power, and its logarithm would hide all others
    real = torch.ones(power.shape[:2], device=power.device) if mask is None else mask.to(power.dtype)
    total = (power.mean(-1) * real).sum(1) / real.sum(1).clamp(min=1)
    floor = 1e-6 * total[:, None, None] + torch.finfo(power.dtype).tiny
    return (power + floor).log()


def pooled_tokens(real: torch.Tensor, pooling: str) -> torch.Tensor:
    """(batch, tokens), True at the tokens that a classifier reads.

    Args:
        real: (batch, tokens), True where a token is not padding.
        pooling: `"last_token"`, the last real one, or `"mean"`, all real ones.
    """
    if pooling == "mean":
        return real
    last = (real * torch.arange(real.shape[1], device=real.device)).argmax(1, keepdim=True)
    return torch.zeros_like(real).scatter(1, last, True)


def block_ids(
    placeholders: torch.Tensor,
    eeg_time_ids: torch.Tensor,
    eeg_segment_ids: torch.Tensor | None,
    eeg_attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    """(batch, tokens): 1, 2, 3, ... over the (segment, second) blocks of each sample, 0 for text and padding."""
    real = torch.ones_like(eeg_time_ids).bool() if eeg_attention_mask is None else eeg_attention_mask.bool()
    segments = torch.zeros_like(eeg_time_ids) if eeg_segment_ids is None else eeg_segment_ids
    samples = torch.arange(len(real), device=real.device)[:, None].expand_as(real)
    # real patches only, one after the other: padding may stand anywhere
    patches = torch.stack([samples[real], segments[real], eeg_time_ids[real]])
    starts = torch.zeros_like(real)
    starts[real] = (patches.diff(dim=1, prepend=patches.new_full((3, 1), -1)) != 0).any(0)
    blocks = starts.cumsum(1)
    return torch.zeros_like(placeholders, dtype=torch.long).masked_scatter(placeholders, blocks[real])


def _model_of_adapter(name: Any, options: dict[str, Any]) -> Any:
    """The model that an adapter's folder belongs to; any other name as it is.

    transformers takes a folder with a config for a whole model: it would look for the weights of an adapter's model
    in the adapter's folder.
    """
    if name is None or not os.path.isfile(os.path.join(name, "adapter_config.json")):
        return name
    if not is_peft_available():
        raise ImportError(f"{name} is an adapter, which needs peft: pip install peft", name="peft")
    if any(os.path.isfile(os.path.join(name, file)) for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        return name
    options["adapter_kwargs"] = {**(options.get("adapter_kwargs") or {}), "_adapter_model_path": os.fspath(name)}
    with open(os.path.join(name, "adapter_config.json"), encoding="utf-8") as file:
        return json.load(file)["base_model_name_or_path"]


def _take_what_adapter_says(
    options: dict[str, Any], _adapter_model_path: str, revision: str | None = None, **adapter_kwargs: Any
) -> None:
    """Lets the model be built with what the adapter was taught, where a config beside it tells of that.

    transformers reads the config of the model that an adapter belongs to, unless it is the adapter's folder it was
    told to open.
    """
    places = {name: options[name] for name in ("cache_dir", "local_files_only", "token") if name in options}
    found = cached_file(
        _adapter_model_path, CONFIG_NAME, revision=revision, _raise_exceptions_for_missing_entries=False, **places
    )
    config = options.get("config")
    if found is not None and config is None:
        options["config"] = found
    elif found is not None:
        taught = NeuroLMConfig.from_json_file(found)
        of_head = ("id2label", "label2id", "problem_type", "classifier_pooling", "classifier_prompts")
        for name in ("stage", "tasks", "provenance", *of_head):
            setattr(config, name, getattr(taught, name))


def positions_from_blocks(real: torch.Tensor, mm_token_type_ids: torch.Tensor | None) -> torch.Tensor:
    """(batch, tokens): text tokens and blocks take one position each, from left to right; 0 at padding.

    Args:
        real: (batch, tokens), True where a token is not padding.
        mm_token_type_ids: (batch, tokens) as in [`NeuroLMModel.forward`]; `None` is text only.
    """
    starts = real.clone()
    if mm_token_type_ids is not None:
        same = (mm_token_type_ids[:, 1:] == mm_token_type_ids[:, :-1]) & (mm_token_type_ids[:, 1:] > 0)
        starts[:, 1:] &= ~same
    return (starts.long().cumsum(1) - 1).clamp(min=0).masked_fill(~real, 0)


def previous_second(
    eeg_channel_ids: torch.Tensor,
    eeg_time_ids: torch.Tensor,
    eeg_segment_ids: torch.Tensor | None,
    eeg_attention_mask: torch.Tensor | None,
) -> torch.Tensor:
    """(batch, patches): index of the patch of the same channel and segment one second earlier; -1 if there is none."""
    segments = torch.zeros_like(eeg_time_ids) if eeg_segment_ids is None else eeg_segment_ids
    channels, seconds = int(eeg_channel_ids.max()) + 1, int(eeg_time_ids.max()) + 1
    keys = (segments * seconds + eeg_time_ids) * channels + eeg_channel_ids
    if eeg_attention_mask is not None:
        keys = keys.masked_fill(eeg_attention_mask == 0, -1)
    wanted = (keys - channels).masked_fill((eeg_time_ids == 0) | (keys < 0), -2)
    ordered, order = keys.sort(dim=1, stable=True)
    twice = ((ordered.diff(dim=1) == 0) & (ordered[:, 1:] >= 0)).any(1).nonzero()
    if len(twice):
        raise ValueError(
            f"Sample {int(twice[0])} has a channel twice in one second: which of the two predicts the next code is "
            "undefined."
        )
    found = torch.searchsorted(ordered, wanted).clamp(max=keys.shape[1] - 1)
    return torch.where(ordered.gather(1, found) == wanted, order.gather(1, found), -1)


class _SegmentRows:
    """The real patches of a batch, regrouped so that every segment is a row of its own.

    With `keep_padding`, rows that hold any EEG stay as they are, padding included.
    """

    def __init__(
        self,
        mask: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        input_values: torch.Tensor,
        keep_padding: bool,
    ):
        self.shape = input_values.shape[:2]
        self.mask: torch.Tensor | None
        if mask is None:
            mask = torch.ones(self.shape, dtype=torch.bool, device=input_values.device)
        if keep_padding:
            if segment_ids is not None and bool((segment_ids[mask] > 0).any()):
                raise ValueError(
                    "`padding_enters_statistics` reproduces the reference, which has one EEG segment a sample; "
                    "give one segment a row or set it to False."
                )
            keep = mask.any(1)
            self.patches = keep[:, None].expand(self.shape).flatten().nonzero().squeeze(1)
            self.count, self.length = int(keep.sum()), self.shape[1]
            self.places = torch.arange(len(self.patches), device=mask.device)
            self.mask = mask[keep]
            return
        self.patches = mask.flatten().nonzero().squeeze(1)
        sample = self.patches // self.shape[1]
        segment = torch.zeros_like(sample) if segment_ids is None else segment_ids.flatten()[self.patches]
        key = sample * (int(segment.max()) + 1 if len(segment) else 1) + segment
        _, row, lengths = torch.unique_consecutive(key, return_inverse=True, return_counts=True)
        self.count, self.length = len(lengths), int(lengths.max()) if len(lengths) else 0
        starts = lengths.cumsum(0) - lengths
        place = torch.arange(len(key), device=key.device) - starts[row]
        self.places = row * self.length + place
        padding = torch.arange(self.length, device=key.device) >= lengths[:, None]
        # without padding there is no mask, and attention may take its fast path
        self.mask = ~padding if bool(padding.any()) else None

    def split(self, values: torch.Tensor) -> torch.Tensor:
        """(batch, patches, ...) -> (segments, longest segment, ...), zero at padding."""
        rows = values.new_zeros(self.count * self.length, *values.shape[2:])
        rows[self.places] = values.flatten(0, 1)[self.patches]
        return rows.view(self.count, self.length, *values.shape[2:])

    def join(self, rows: torch.Tensor, padding: float) -> torch.Tensor:
        """(segments, longest segment, ...) -> (batch, patches, ...), `padding` at padding."""
        values = rows.new_full((self.shape[0] * self.shape[1], *rows.shape[2:]), padding)
        return values.index_copy(0, self.patches, rows.flatten(0, 1)[self.places]).view(*self.shape, *rows.shape[2:])


def _check_patches(
    config: NeuroLMVQConfig,
    input_values: torch.Tensor,
    channel_ids: torch.Tensor,
    time_ids: torch.Tensor,
    segment_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
) -> torch.Tensor | None:
    """Patches of the right size, and ids that fit them; returns the mask as booleans."""
    check_patches(input_values, config.patch_size)
    return _check_ids(config, input_values.shape[:2], channel_ids, time_ids, segment_ids, attention_mask)


def _check_ids(
    config: NeuroLMVQConfig,
    shape: torch.Size,
    channel_ids: torch.Tensor,
    time_ids: torch.Tensor,
    segment_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
) -> torch.Tensor | None:
    """Ids of (batch, patches) = `shape`, and seconds as the model takes them; returns the mask as booleans."""
    check_shapes(
        shape,
        eeg_channel_ids=channel_ids,
        eeg_time_ids=time_ids,
        eeg_segment_ids=segment_ids,
        eeg_attention_mask=attention_mask,
    )
    mask = None if attention_mask is None else attention_mask.bool()
    if torch.compiler.is_compiling() or time_ids.numel() == 0:
        return mask
    real = torch.ones_like(time_ids, dtype=torch.bool) if mask is None else mask
    segments = torch.zeros_like(time_ids) if segment_ids is None else segment_ids
    flat_time, flat_segment = time_ids[real], segments[real]
    sample = torch.arange(len(time_ids), device=time_ids.device)[:, None].expand_as(time_ids)[real]
    starts = torch.ones_like(flat_time, dtype=torch.bool)
    starts[1:] = (flat_segment.diff() != 0) | (sample.diff() != 0)
    steps = torch.where(starts, flat_time, F.pad(flat_time.diff(), (1, 0)))
    wrong = torch.where(starts, steps != 0, (steps != 0) & (steps != 1))
    wrong[1:] |= (sample.diff() == 0) & (flat_segment.diff() < 0)
    if bool(wrong.any()):
        row = int(sample[wrong.nonzero()[0]])
        raise ValueError(
            f"The seconds of sample {row} are {time_ids[row][real[row]].unique_consecutive().tolist()}: in every "
            "segment they must count 0, 1, 2, ... without gaps, all channels of a second together, segments in order."
        )
    if len(flat_time) and int(flat_time.max()) >= config.max_seconds:
        raise ValueError(
            f"A segment of {int(flat_time.max()) + 1} seconds is longer than the {config.max_seconds} seconds the "
            "model has embeddings for; cut it into shorter windows."
        )
    return mask


def _check_placeholders(
    placeholders: torch.Tensor, eeg_time_ids: torch.Tensor, attention_mask: torch.Tensor | None
) -> None:
    """Every row must have as many placeholders as patches: a surplus in one would shift the EEG of the next."""
    if torch.compiler.is_compiling():
        return
    if len(placeholders) != len(eeg_time_ids):
        raise ValueError(f"`input_ids` have {len(placeholders)} rows, the EEG has {len(eeg_time_ids)}.")
    tokens = placeholders.sum(1)
    patches = torch.full_like(tokens, eeg_time_ids.shape[1]) if attention_mask is None else attention_mask.sum(1)
    wrong = (tokens != patches).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"Sample {row} has {int(tokens[row])} EEG placeholders but {int(patches[row])} patches of EEG. The "
            "processor writes one placeholder a patch; do not truncate its output."
        )


def _check_no_placeholders(placeholders: torch.Tensor) -> None:
    if not torch.compiler.is_compiling() and bool(placeholders.any()):
        raise ValueError(
            f"Sample {int(placeholders.any(1).nonzero()[0])} has EEG placeholders, but there are no `input_values`: "
            "give the model the processor's whole output."
        )


def _next_tokens(labels: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """(batch, tokens): the label of the next token, -100 at the last one, before padding and at padding."""
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    if attention_mask is None:
        return targets
    real = attention_mask.bool()
    return targets.masked_fill(~(real & F.pad(real[:, 1:], (0, 1))), IGNORE_INDEX)


def _target_kinds(targets: torch.Tensor, placeholders: torch.Tensor) -> torch.Tensor:
    """(targets,): index into `TARGET_KINDS` of each target of (batch, tokens), sample by sample."""
    of_text = 2 - placeholders.any(1, keepdim=True).long()
    return of_text.expand_as(targets).masked_fill(placeholders, 0)[targets != IGNORE_INDEX]


class _AnswerTree:
    """Answers side by side behind a prompt of `length` tokens; their last tokens, which predict nothing, are left out.

    Attributes:
        tokens, steps, places (tokens,): the answers' tokens, how far each is into its answer, where it stands.
        branches (length + tokens,): 0 for the prompt, 1, 2, ... for the answers.
        predictors: for each answer, which of (last token of the prompt, *tokens) predict its tokens.
    """

    def __init__(self, answers: Sequence[Sequence[int]], length: int, device: torch.device):
        sizes = [len(answer) - 1 for answer in answers]
        self.tokens = torch.tensor([token for answer in answers for token in answer[:-1]], device=device).long()
        self.steps = torch.tensor([step for size in sizes for step in range(size)], device=device).long()
        self.places = torch.arange(length, length + sum(sizes), device=device)
        branch_sizes = torch.tensor([length, *sizes], device=device)
        self.branches = torch.arange(len(branch_sizes), device=device).repeat_interleave(branch_sizes)
        starts = [1 + sum(sizes[:place]) for place in range(len(sizes))]
        self.predictors = [[0, *range(start, start + size)] for start, size in zip(starts, sizes, strict=True)]

    def sees(self, batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """An answer sees the prompt and itself."""
        return (self.branches[key] == 0) | (self.branches[key] == self.branches[query])


class _TargetsOfPass:
    """The targets of one pass of the language model, one after the other.

    Attributes:
        hidden_states (targets, hidden_size): what predicts them.
        ids (targets,): rows of the logits.
        rows (targets,): sample of each.
        kinds (targets,): index into `TARGET_KINDS`.
        samples: how many samples the pass had.
    """

    def __init__(self, hidden_states: torch.Tensor, targets: torch.Tensor, placeholders: torch.Tensor):
        wanted = targets != IGNORE_INDEX
        self.hidden_states = hidden_states[wanted]
        self.ids = targets[wanted]
        self.rows = wanted.nonzero()[:, 0]
        self.kinds = _target_kinds(targets, placeholders)
        self.samples = len(targets)


class _WeighedCrossEntropy(torch.autograd.Function):
    """Cross-entropy over two heads under one softmax, a chunk of targets at a time, its gradient in the same pass.

    The logits of all targets never exist together, and none are computed a second time: the weight of each target is
    known, and so is the gradient of the sum as soon as a chunk's logits are.

    Inputs:
        hidden_states (targets, hidden_size); text_rows (vocab_size, hidden_size) and code_rows (codebook_size,
        hidden_size): the heads' weights; target_ids (targets,), codes behind text; weights (targets,), float32;
        whether a gradient may be asked for, which an autograd function cannot see by itself.
    Outputs:
        the weighted sum (), which has a gradient; the cross-entropies (targets,), float32; whether the likeliest row
        of the target's own head is the target (targets,).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_states: torch.Tensor,
        text_rows: torch.Tensor,
        code_rows: torch.Tensor,
        target_ids: torch.Tensor,
        weights: torch.Tensor,
        with_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        device = hidden_states.device.type
        mixed = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if mixed else text_rows.dtype
        inputs = (hidden_states, text_rows, code_rows)
        # a gradient is summed over chunks in the precision of what it belongs to
        gradients = [
            torch.zeros_like(given) if needed and with_gradient else None
            for given, needed in zip(inputs, ctx.needs_input_grad, strict=False)
        ]
        losses, hits = weights.new_empty(len(target_ids)), torch.empty_like(target_ids, dtype=torch.bool)
        with torch.autocast(device, enabled=False):
            hidden, text, code = (given.to(dtype) for given in inputs)
            for start in range(0, len(target_ids), LOSS_CHUNK):
                chunk = slice(start, start + LOSS_CHUNK)
                losses[chunk], hits[chunk] = _cross_entropy_chunk(
                    hidden[chunk], text, code, target_ids[chunk], weights[chunk], gradients, chunk
                )
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses, hits)
        return (losses * weights).sum(), losses, hits

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled = (None if gradient is None else gradient * upstream[0].to(gradient) for gradient in ctx.saved_tensors)
        return (*scaled, None, None, None)


def _cross_entropy_chunk(
    hidden_states: torch.Tensor,
    text_rows: torch.Tensor,
    code_rows: torch.Tensor,
    target_ids: torch.Tensor,
    weights: torch.Tensor,
    gradients: list[torch.Tensor | None],
    chunk: slice,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropies and hits of some targets; adds to the gradients of hidden states, text and code rows."""
    logits = [(hidden_states @ rows.T).float() for rows in (text_rows, code_rows)]
    hits = _likeliest_of_kind(logits[0], logits[1], target_ids) == target_ids
    largest = torch.maximum(*(part.amax(1) for part in logits))
    offsets = (0, len(text_rows))
    own = torch.zeros_like(weights)
    total = torch.zeros_like(weights)
    for part, offset in zip(logits, offsets, strict=True):
        inside, place = _places(target_ids, part, offset)
        own += torch.where(inside, part.gather(1, place[:, None]).squeeze(1), 0.0)
        total += part.sub_(largest[:, None]).exp_().sum(1)
    losses = largest + total.log() - own
    if all(gradient is None for gradient in gradients):
        return losses, hits
    of_hidden = None if gradients[0] is None else gradients[0][chunk]
    for part, offset, rows, of_rows in zip(logits, offsets, (text_rows, code_rows), gradients[1:], strict=True):
        inside, place = _places(target_ids, part, offset)
        # softmax minus one at the target, weighed
        part.mul_((weights / total)[:, None])
        part.scatter_add_(1, place[:, None], torch.where(inside, -weights, 0.0)[:, None])
        error = part.to(hidden_states.dtype)
        if of_hidden is not None:
            of_hidden += error @ rows
        if of_rows is not None and of_rows.dtype == error.dtype:
            of_rows.addmm_(error.T, hidden_states)
        elif of_rows is not None:
            of_rows += error.T @ hidden_states
    return losses, hits


def _places(target_ids: torch.Tensor, logits: torch.Tensor, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Which targets are among the columns of these logits, and where; column 0 for the others."""
    inside = (target_ids >= offset) & (target_ids < offset + logits.shape[1])
    return inside, torch.where(inside, target_ids - offset, 0)


def _likeliest_of_kind(text: torch.Tensor, codes: torch.Tensor, target_ids: torch.Tensor) -> torch.Tensor:
    """(targets,): the likeliest code where the target is a code, the likeliest word where it is a word."""
    is_text = target_ids < text.shape[1]
    return torch.where(is_text, text.argmax(1), codes.argmax(1) + text.shape[1])


def _count_kinds(target_kinds: torch.Tensor) -> torch.Tensor:
    """(kinds,), float32: how many targets there are of each kind."""
    return F.one_hot(target_kinds, len(TARGET_KINDS)).sum(0).float()


def _classification_loss(logits: torch.Tensor, target: int, mask: torch.Tensor | None) -> torch.Tensor:
    """Summed over the tokens of (batch, tokens, 2) that the mask holds."""
    logits = logits.flatten(0, 1) if mask is None else logits[mask.bool()]
    targets = torch.full((len(logits),), target, device=logits.device)
    return F.cross_entropy(logits.float(), targets, reduction="sum")


class _ReverseGradient(torch.autograd.Function):
    """Identity forward; the gradient times minus `strength` backward."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, strength: float) -> torch.Tensor:
        ctx.strength = strength
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return -ctx.strength * gradient, None


def _zero_of(*modules: nn.Module) -> torch.Tensor | float:
    """Zero, with a gradient to all trained parameters of the modules.

    Every rank must touch the same parameters, or DistributedDataParallel waits for gradients for ever. Parameters that
    ZeRO-3 or FSDP has shared out are left alone: they are whole inside their modules only.
    """
    whole = (
        p for module in modules for p in module.parameters() if type(p) is nn.Parameter and not hasattr(p, "ds_id")
    )
    return sum(0.0 * p.sum() for p in whole if p.requires_grad)


def _eeg_config(config: NeuroLMConfig) -> NeuroLMVQConfig:
    # a dictionary or nothing when the config was made, this ever after
    return cast(NeuroLMVQConfig, config.eeg_config)


def _copy_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Copies all weights by name; matrices with more rows than theirs (a grown vocabulary) take the mean row there."""
    source = theirs.state_dict()
    target = ours.state_dict()
    if source.keys() != target.keys():
        odd = sorted(source.keys() ^ target.keys())
        raise ValueError(f"The text model's weights differ from its config's: {odd}.")
    for name, values in target.items():
        given = source[name]
        if values.shape[1:] != given.shape[1:] or len(values) < len(given):
            raise ValueError(f"{name} has the shape {tuple(given.shape)}, expected {tuple(values.shape)}.")
        values[: len(given)] = given
        if len(values) > len(given):
            values[len(given) :] = given.float().mean(0).to(values.dtype)


NeuroLMVQModel.register_for_auto_class("AutoModel")
NeuroLMVQForPreTraining.register_for_auto_class("AutoModelForPreTraining")
NeuroLMVQForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
NeuroLMModel.register_for_auto_class("AutoModel")
NeuroLMForCausalLM.register_for_auto_class("AutoModelForCausalLM")
NeuroLMForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")

__all__ = [
    "NeuroLMForCausalLM",
    "NeuroLMForSequenceClassification",
    "NeuroLMModel",
    "NeuroLMPreTrainedModel",
    "NeuroLMVQForPreTraining",
    "NeuroLMVQForSequenceClassification",
    "NeuroLMVQModel",
    "NeuroLMVQPreTrainedModel",
]
