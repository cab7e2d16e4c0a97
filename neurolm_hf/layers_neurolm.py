# Copyright 2026 The neurolm_hf authors. Licensed under the Apache License, Version 2.0.
"""What NeuroLM's neural tokenizer and LaBraM are both made of, with switches for what differs between them.

Convolutions along time, a transformer block, a quantiser, heads, and the arithmetic of targets and losses. Everything
is batch first, (batch, patches, ...), and takes a mask (batch, patches), True where a patch is real: padding and
batch-mates change nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput, logging
from transformers.utils.output_capturing import OutputRecorder

from .configuration_neurolm import CleanUploads, conv_positions


logger = logging.get_logger(__name__)

IGNORE_INDEX = -100
PADDING_CODE = -1

# What stays in float32 when weights are loaded in another precision; the third buffer of the quantiser is a boolean.
FLOAT32_MODULES = ["to_codebook", "quantizer.codebook", "quantizer.cluster_size"]

# Rows of vectors compared with the codebook at a time, so that no (patches x codes) matrix exists for a whole batch.
LOOKUP_CHUNK = 8192

# A codebook that is fed but never moved is a silent failure: say so after this many training batches.
BATCHES_BEFORE_WARNING = 64


@dataclass
class VQEncoderOutput(ModelOutput):
    r"""What [`NeuroLMVQModel.encode`] and [`LaBraMVQModel.encode`] return.

    Args:
        features (`torch.FloatTensor` of shape `(batch, patches, hidden_size)`): the encoder's features, before the
            quantiser. Those of NeuroLM are what its language model reads.
        quantized (`torch.FloatTensor` of shape `(batch, patches, codebook_dim)`): the nearest codes' vectors, of unit
            length.
        codes (`torch.LongTensor` of shape `(batch, patches)`): indices into the codebook; -1 at padding, unless
            `padding_enters_statistics` has it quantised too.
    """

    features: torch.Tensor | None = None
    quantized: torch.Tensor | None = None
    codes: torch.Tensor | None = None


@dataclass
class EEGClassifierOutput(ModelOutput):
    r"""What the forward of [`NeuroLMForSequenceClassification`] and of the other classifiers returns.

    Args:
        loss (`torch.FloatTensor` of shape `()`): mean of `sample_losses` over the labelled samples of the batch; with
            `num_items_in_batch`, this batch's share of the mean over the step. With `labels`.
        logits (`torch.FloatTensor` of shape `(batch, num_labels)`): before softmax or sigmoid; of a regression, the
            predicted values.
        features (`torch.FloatTensor` of shape `(batch, width)`): what the head has read.
        sample_losses (`torch.FloatTensor` of shape `(batch,)`): loss of each sample, float32; 0 where its label is
            -100. With `labels`.
        hidden_states, attentions: when asked for; of the language model, or of the encoder that stands alone. `None`
            with `classifier_pooling="encoder_mean"`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    features: torch.Tensor | None = None
    sample_losses: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class EEGEmbedding(nn.Embedding):
    """Rows for channels or seconds, drawn with a standard deviation of their own."""

    def __init__(self, rows: int, width: int, initializer_range: float):
        super().__init__(rows, width)
        self.initializer_range = initializer_range


class PatchGroupNorm(nn.GroupNorm):
    """Group norm of a whole sample: the statistics run over all its real patches, not over one patch."""

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """`hidden_states` (batch, patches, channels, positions), `mask` (batch, patches), True where real."""
        if mask is None:
            return super().forward(hidden_states.transpose(1, 2)).transpose(1, 2)
        batch, patches, _, positions = hidden_states.shape
        groups = hidden_states.float().view(batch, patches, self.num_groups, -1, positions)
        real = mask[:, :, None, None, None]
        count = mask.sum(1).clamp(min=1).view(batch, 1, 1, 1, 1) * groups[0, 0, 0].numel()
        mean = (groups * real).sum((1, 3, 4), keepdim=True) / count
        variance = ((groups - mean).square() * real).sum((1, 3, 4), keepdim=True) / count
        normed = ((groups - mean) * torch.rsqrt(variance + self.eps)).view(hidden_states.shape)
        normed = normed * self.weight[:, None].float() + self.bias[:, None].float()
        return normed.to(hidden_states.dtype)


class PatchEmbedding(nn.Module):
    """Three convolutions along time: (batch, patches, patch_size) -> (batch, patches, positions x channels).

    Args:
        config: its `patch_size`, `conv_channels` and `conv_groups`.
        projection_size: width of a linear layer with GELU that follows, as in NeuroLM; None: none does.
    """

    def __init__(self, config: Any, projection_size: int | None = None):
        super().__init__()
        channels, groups = config.conv_channels, config.conv_groups
        self.conv1 = nn.Conv1d(1, channels, kernel_size=15, stride=8, padding=7)
        self.norm1 = PatchGroupNorm(groups, channels)
        self.conv2 = nn.Conv1d(channels, channels, kernel_size=3, padding=1)
        self.norm2 = PatchGroupNorm(groups, channels)
        self.conv3 = nn.Conv1d(channels, channels, kernel_size=3, padding=1)
        self.norm3 = PatchGroupNorm(groups, channels)
        width = conv_positions(config.patch_size) * channels
        self.projection = None if projection_size is None else nn.Linear(width, projection_size)

    def forward(self, input_values: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        batch, patches, _ = input_values.shape
        hidden_states = input_values.to(self.conv1.weight.dtype).flatten(0, 1).unsqueeze(1)
        for conv, norm in ((self.conv1, self.norm1), (self.conv2, self.norm2), (self.conv3, self.norm3)):
            hidden_states = conv(hidden_states)
            normed = norm(hidden_states.view(batch, patches, *hidden_states.shape[1:]), mask)
            hidden_states = F.gelu(normed).flatten(0, 1)
        hidden_states = hidden_states.transpose(1, 2).reshape(batch, patches, -1)
        return hidden_states if self.projection is None else F.gelu(self.projection(hidden_states))


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain steps, which gives its weights too; arguments as transformers calls its own."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class EEGAttention(nn.Module):
    """Self-attention in which all patches of a sample see each other.

    Args:
        config: says which attention is used.
        hidden_size, num_heads: width, and into how many heads it is cut.
        bias: of the output projection.
        query_value_bias: biases of queries and values; one of the keys could not matter.
        query_key_norm: layer norms of each head's queries and keys, of the config's `layer_norm_eps`.
    """

    def __init__(
        self,
        config: Any,
        hidden_size: int,
        num_heads: int,
        *,
        bias: bool = False,
        query_value_bias: bool = False,
        query_key_norm: bool = False,
    ):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.query_bias = nn.Parameter(torch.zeros(hidden_size)) if query_value_bias else None
        self.value_bias = nn.Parameter(torch.zeros(hidden_size)) if query_value_bias else None
        eps = config.layer_norm_eps
        self.query_norm = nn.LayerNorm(self.head_dim, eps=eps) if query_key_norm else None
        self.key_norm = nn.LayerNorm(self.head_dim, eps=eps) if query_key_norm else None
        self.output = nn.Linear(hidden_size, hidden_size, bias=bias)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, patches, width = hidden_states.shape
        qkv = self.qkv(hidden_states)
        if self.query_bias is not None:
            qkv = qkv + torch.cat(
                [self.query_bias, torch.zeros_like(self.query_bias), cast(torch.Tensor, self.value_bias)]
            )
        query, key, value = qkv.view(batch, patches, 3, -1, self.head_dim).permute(2, 0, 3, 1, 4)
        if self.query_norm is not None:
            query, key = self.query_norm(query), cast(nn.Module, self.key_norm)(key)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        # Without padding there is no mask, and sdpa would turn causal unless told otherwise.
        attended, weights = attention(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0, is_causal=False
        )
        return self.output(attended.reshape(batch, patches, width)), weights


class EEGLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block.

    Args:
        config, hidden_size, num_heads, query_value_bias, query_key_norm: as in [`EEGAttention`]; the config's
            `layer_norm_eps` is that of all norms.
        intermediate_size: width of the MLP.
        bias: of norms, output projection and MLP.
        layer_scale: what the two branches are scaled by at first, feature by feature; None: they are not.
        drop_path: share of samples whose branches are left out while training.
    """

    def __init__(
        self,
        config: Any,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        *,
        bias: bool = False,
        query_value_bias: bool = False,
        query_key_norm: bool = False,
        layer_scale: float | None = None,
        drop_path: float = 0.0,
    ):
        super().__init__()
        eps = config.layer_norm_eps
        self.attention_norm = nn.LayerNorm(hidden_size, eps=eps, bias=bias)
        self.attention = EEGAttention(
            config,
            hidden_size,
            num_heads,
            bias=bias,
            query_value_bias=query_value_bias,
            query_key_norm=query_key_norm,
        )
        self.mlp_norm = nn.LayerNorm(hidden_size, eps=eps, bias=bias)
        self.mlp_in = nn.Linear(hidden_size, intermediate_size, bias=bias)
        self.mlp_out = nn.Linear(intermediate_size, hidden_size, bias=bias)
        self.layer_scale = layer_scale
        self.attention_scale, self.mlp_scale = (
            None if layer_scale is None else nn.Parameter(torch.full((hidden_size,), layer_scale)) for _ in range(2)
        )
        self.drop_path = drop_path

    def forward(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        attended = self.attention(self.attention_norm(hidden_states), attention_mask)[0]
        hidden_states = hidden_states + self._branch(attended, self.attention_scale)
        mixed = self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(hidden_states))))
        return hidden_states + self._branch(mixed, self.mlp_scale)

    def _branch(self, values: torch.Tensor, scale: nn.Parameter | None) -> torch.Tensor:
        if scale is not None:
            values = scale * values
        if self.drop_path and self.training:
            kept = torch.rand(len(values), 1, 1, device=values.device) >= self.drop_path
            values = values * (kept / (1 - self.drop_path)).to(values.dtype)
        return values


class VectorQuantizer(nn.Module):
    """Codebook of unit vectors, moved by an exponential moving average of the vectors that chose each code.

    Buffers:
        codebook (`(codebook_size, codebook_dim)`, float32): unit vectors.
        cluster_size (`(codebook_size,)`, float32): moving average of each code's count in a batch.
        initialized (`()`, bool): whether k-means (or a checkpoint) has placed the codes.

    Training batches only add to sums; [`update`] moves the codebook by them, once an optimiser step. The buffers stay
    in float32 whatever the model is cast to.
    """

    codebook: torch.Tensor
    cluster_size: torch.Tensor
    initialized: torch.Tensor

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.register_buffer("codebook", torch.empty(config.codebook_size, config.codebook_dim, dtype=torch.float32))
        self.register_buffer("cluster_size", torch.empty(config.codebook_size, dtype=torch.float32))
        self.register_buffer("initialized", torch.empty((), dtype=torch.bool))
        self._forget_sums()

    def _apply(self, fn: Callable, recurse: bool = True) -> "VectorQuantizer":
        # `.to(bfloat16)` and `.half()` cast buffers; a codebook needs all its bits, so only the device may change
        before = {name: buffer for name, buffer in self.named_buffers() if buffer.is_floating_point()}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float32:
                self.register_buffer(name, buffer.to(device=moved.device, dtype=torch.float32))
        return self

    def _forget_sums(self) -> None:
        # Not buffers: DistributedDataParallel would overwrite every rank's sums by those of rank 0.
        self._counts: torch.Tensor | None = None
        self._sums: torch.Tensor | None = None
        self._candidates: list[torch.Tensor] = []
        self._pending_batches = 0
        self._step_dropped = False

    def drop_step(self) -> None:
        """Forgets what this rank has seen since the last [`update`], and takes no more until the next."""
        self._forget_sums()
        self._step_dropped = True

    def lookup(self, vectors: torch.Tensor) -> torch.Tensor:
        """Index of the nearest code by squared distance. `vectors` (n, codebook_dim), unit length; returns (n,)."""
        squares = self.codebook.square().sum(1)
        chunks = [torch.argmin(squares - 2 * chunk @ self.codebook.T, dim=1) for chunk in vectors.split(LOOKUP_CHUNK)]
        return torch.cat(chunks) if chunks else vectors.new_zeros(0, dtype=torch.long)

    def forward(
        self, hidden_states: torch.Tensor, mask: torch.Tensor | None = None, learn: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantises (batch, patches, codebook_dim).

        Args:
            mask: (batch, patches), True where a patch takes part; codes are -1 elsewhere.
            learn: place the codebook by k-means if nothing has yet, and add this batch to the sums of [`update`].

        Returns:
            the codes' vectors (batch, patches, codebook_dim), straight-through for the gradient; the codes (batch,
            patches); the unit vectors that were quantised.
        """
        vectors = F.normalize(hidden_states.float(), dim=-1)
        flat = vectors.detach().flatten(0, -2)
        real = flat if mask is None else flat[mask.flatten()]
        if learn and not self.initialized:
            self._place_codebook(real)
        codes = self.lookup(real)
        if learn:
            self._accumulate(real, codes)
        if mask is None:
            codes = codes.view(vectors.shape[:-1])
        else:
            codes = torch.full_like(mask, PADDING_CODE, dtype=torch.long).masked_scatter(mask, codes)
        nearest = F.embedding(codes.clamp(min=0), self.codebook)
        return vectors + (nearest - vectors).detach(), codes, vectors

    @torch.no_grad()
    def _accumulate(self, vectors: torch.Tensor, codes: torch.Tensor) -> None:
        if self._step_dropped:
            return
        counts = torch.bincount(codes, minlength=self.config.codebook_size).to(torch.float32)
        sums = torch.zeros_like(self.codebook).index_add_(0, codes, vectors)
        self._counts = counts if self._counts is None else self._counts + counts
        self._sums = sums if self._sums is None else self._sums + sums
        if self.config.dead_code_threshold > 0:
            self._candidates.append(vectors)
        self._pending_batches += 1
        if self._pending_batches == BATCHES_BEFORE_WARNING:
            logger.warning(
                f"The codebook has not moved for {self._pending_batches} training batches. Call `update_codebook()` "
                "after each optimiser step (neurolm_hf.training.CodebookCallback does it in a Trainer)."
            )

    @torch.no_grad()
    def update(self) -> None:
        """Moves the codebook by the sums since the last call, over all ranks. Does nothing if there are none.

        Every rank must call it: it is a collective operation when torch.distributed is initialised.
        """
        counts = torch.zeros_like(self.cluster_size) if self._counts is None else self._counts
        sums = torch.zeros_like(self.codebook) if self._sums is None else self._sums
        if is_distributed():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        if not torch.isfinite(sums).all():
            self._forget_sums()
            raise ValueError("The vectors of this step are not finite; the codebook has not moved. Check the input.")
        if counts.sum() > 0:
            decay = self.config.codebook_decay
            self.cluster_size.mul_(decay).add_(counts, alpha=1 - decay)
            # The unit mean of a code's vectors is their sum made unit; codes without any keep their place.
            means = torch.where(counts[:, None] > 0, F.normalize(sums, dim=-1), self.codebook)
            self.codebook.copy_(F.normalize(self.codebook * decay + means * (1 - decay), dim=-1))
            if self.config.dead_code_threshold > 0:
                self._revive()
        self._forget_sums()

    def _revive(self) -> None:
        dead = (self.cluster_size < self.config.dead_code_threshold * self.cluster_size.mean()).nonzero().squeeze(1)
        candidates = _gather_rows(torch.cat([self.codebook[:0], *self._candidates]))
        if len(dead) == 0 or len(candidates) == 0:
            return
        choice = torch.randint(len(candidates), (len(dead),), device=dead.device)
        if is_distributed():
            dist.broadcast(choice, src=0)
        self.codebook[dead] = candidates[choice]
        self.cluster_size[dead] = self.cluster_size.mean()

    @torch.no_grad()
    def _place_codebook(self, vectors: torch.Tensor) -> None:
        """Cosine k-means on the first batch, the same on every rank since every rank sees all vectors.

        A batch that is not finite places nothing: its loss says so, and the next one may.
        """
        vectors = _gather_rows(vectors)
        size = self.config.codebook_size
        if not torch.isfinite(vectors).all():
            return
        if len(vectors) == 0:
            raise ValueError("The codebook cannot be placed: the first training batch has no real patch.")
        # a generator of its own: the result must not depend on a rank's random state, nor change it
        generator = torch.Generator().manual_seed(0)
        order = torch.randperm(len(vectors), generator=generator)
        if len(order) < size:
            more = torch.randint(len(vectors), (size - len(order),), generator=generator)
            order = torch.cat([order, more])
        self.codebook.copy_(vectors[order[:size].to(vectors.device)])
        self.refine(vectors)
        self.initialized.fill_(True)

    @torch.no_grad()
    def refine(self, vectors: torch.Tensor) -> None:
        """Cosine k-means from the codebook as it is: each code to the unit mean of its vectors (n, codebook_dim)."""
        size = self.config.codebook_size
        for _ in range(self.config.kmeans_iterations):
            codes = self.lookup(vectors)
            sums = torch.zeros_like(self.codebook).index_add_(0, codes, vectors)
            used = torch.bincount(codes, minlength=size) > 0
            self.codebook.copy_(torch.where(used[:, None], F.normalize(sums, dim=-1), self.codebook))
        self.cluster_size.copy_(torch.bincount(self.lookup(vectors), minlength=size))


def recorders(part: str) -> dict[str, OutputRecorder]:
    """What transformers records as hidden states and attentions: of the blocks whose names hold `part`."""
    return {
        "hidden_states": OutputRecorder(EEGLayer, layer_name=part),
        "attentions": OutputRecorder(EEGAttention, index=1, layer_name=part),
    }


class EEGPreTrainedModel(CleanUploads, PreTrainedModel):
    """Loading, saving and initialisation of all models that are made of these layers."""

    main_input_name = "input_values"
    supports_gradient_checkpointing = True
    # Losses with different denominators: a plain Trainer must average micro-batches, not rescale by a token count.
    # `neurolm_hf.training.NeuroLMTrainer` gives `num_items_in_batch` as `count_loss_items` counts.
    accepts_loss_kwargs = False
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_flex_attn = True
    _no_split_modules = ["EEGLayer"]
    _keep_in_fp32_modules_strict = FLOAT32_MODULES

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_layer(module)


class NeuralTokenizer:
    """What the two neural tokenizers share: a codebook that moves once a step, and losses of each real patch.

    Factors of the losses are the config's: `NAME_weight`.
    """

    config: Any
    encoder: Any
    training: bool

    def update_codebook(self) -> None:
        """Moves the codebook by what was seen since the last call; on every rank, after each optimiser step."""
        self.encoder.quantizer.update()

    def drop_codebook_step(self) -> None:
        """Leaves out of the next [`update_codebook`] all that this rank has seen and sees until then."""
        self.encoder.quantizer.drop_step()

    def _vectors(
        self,
        codes: torch.Tensor | None,
        quantized: torch.Tensor | None,
        channel_ids: torch.Tensor | None,
        time_ids: torch.Tensor | None,
    ) -> torch.Tensor:
        """What a decoder reads: the vectors `quantized`, or those of `codes`.

        Raises:
            ValueError: unless exactly one of the two is given, and both ids.
        """
        if (codes is None) == (quantized is None):
            raise ValueError("Give `decode` either `codes` or `quantized`.")
        if channel_ids is None or time_ids is None:
            raise ValueError("`decode` needs `eeg_channel_ids` and `eeg_time_ids`, (batch, patches), as `encode`.")
        if codes is None:
            return cast(torch.Tensor, quantized)
        return F.embedding(codes.clamp(min=0), self.encoder.quantizer.codebook)

    @property
    def _bypass(self) -> float:
        """Share of samples whose decoders read vectors that were not quantised."""
        return self.config.quantizer_bypass if self.training else 0.0

    def _quantize(
        self, features: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As [`VectorQuantizer.forward`], learning while training, with some samples around the quantiser."""
        bypass = self._bypass
        quantized, codes, vectors = self.encoder.quantize(features, mask, learn=self.training and bypass < 1)
        if bypass > 0:
            skipped = torch.rand(len(quantized), 1, 1, device=quantized.device) < bypass
            quantized = torch.where(skipped, vectors, quantized)
        return quantized, codes, vectors

    def _losses(
        self,
        errors: dict[str, torch.Tensor],
        codes: torch.Tensor,
        vectors: torch.Tensor,
        mask: torch.Tensor | None,
        counts: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The losses of an output, and statistics of its codes.

        Args:
            errors: name -> (batch, patches), of what the decoders predict.
            codes, vectors: from [`_quantize`].
            mask: (batch, patches), True where a patch was quantised.
            counts: (1,), what sums over patches are divided by.
        """
        nearest = F.embedding(codes.clamp(min=0), self.encoder.quantizer.codebook)
        weight = self.config.commitment_weight if self._bypass < 1 else 0.0
        commitment = patch_errors(vectors, nearest, mask) * weight
        total = sum(getattr(self.config, f"{name}_weight") * values for name, values in errors.items()) + commitment
        patch_losses = torch.stack([total, *errors.values(), commitment], dim=-1)
        # the first is a tensor of its own: the Trainer scales it in place
        loss, *parts = (patch_losses.sum((0, 1)) / counts).unbind()
        names = (*(f"{name}_loss" for name in errors), "commitment_loss")
        usage, perplexity = codebook_statistics(codes, self.config.codebook_size)
        return {
            "loss": loss.clone(),
            **dict(zip(names, parts, strict=True)),
            "patch_losses": patch_losses,
            "codebook_usage": usage,
            "perplexity": perplexity,
        }


class WindowClassifier:
    """What the two classifiers share: a linear head `score` on one vector a sample, and its loss.

    `config.problem_type` says what the labels are, as everywhere in transformers. `None`: what the first labels look
    like, values where `num_labels` is 1, else classes where they are integers, and several labels a sample otherwise.
    """

    config: Any
    score: nn.Module
    training: bool

    def count_loss_items(self, labels: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """(1,), float32: samples of this batch that enter the loss, its denominator; arguments of [`forward`]."""
        if self._problem_type(labels) != "single_label_classification":
            return torch.tensor([len(labels)], device=labels.device).float()
        return (labels != IGNORE_INDEX).sum().float().view(1)

    def _classify(
        self,
        features: torch.Tensor,
        labels: torch.Tensor | None,
        num_items_in_batch: torch.Tensor | None,
        smoothing: float,
    ) -> dict[str, Any]:
        """Features (batch, width), their logits and, with labels, the losses."""
        logits = self.score(features)
        if labels is None:
            return {"logits": logits, "features": features}
        labels = labels.to(logits.device)
        losses = label_losses(logits.float(), labels, self._problem_type(labels), smoothing)
        counts = denominators(self.count_loss_items(labels), num_items_in_batch, self.training)
        loss = losses.sum() / counts[0]
        return {"loss": loss, "logits": logits, "features": features, "sample_losses": losses.detach()}

    def _problem_type(self, labels: torch.Tensor) -> str:
        if self.config.problem_type is None:
            many = "multi_label" if labels.is_floating_point() else "single_label"
            self.config.problem_type = "regression" if self.config.num_labels == 1 else f"{many}_classification"
        return self.config.problem_type


def tanh_head(width: int, output_size: int) -> nn.Sequential:
    """Linear, tanh, linear: before the codebook, and behind the decoders."""
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, output_size))


def quantize_features(
    head: nn.Module, quantizer: VectorQuantizer, features: torch.Tensor, mask: torch.Tensor | None, learn: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See [`VectorQuantizer.forward`]; the head before it runs in the precision of its weights."""
    with torch.autocast(features.device.type, enabled=False):
        return quantizer(head(features.to(next(head.parameters()).dtype)), mask, learn)


def check_patches(input_values: torch.Tensor, patch_size: int) -> None:
    """A ValueError for anything but (batch, patches, patch_size)."""
    if input_values.ndim != 3 or input_values.shape[-1] != patch_size:
        raise ValueError(
            f"`input_values` must have the shape (batch, patches, {patch_size}), got {tuple(input_values.shape)}."
        )


def check_shapes(shape: torch.Size, **ids: torch.Tensor | None) -> None:
    """A ValueError for ids and masks that are not one a patch, (batch, patches) = `shape`; None is none."""
    for name, values in ids.items():
        if values is not None and values.shape != shape:
            raise ValueError(
                f"`{name}` must have the shape (batch, patches) = {tuple(shape)}, got {tuple(values.shape)}."
            )


def zscore(values: torch.Tensor, mask: torch.Tensor | None, weights: torch.Tensor) -> torch.Tensor:
    """z-scores of (batch, patches, bins) over patches and bins, each bin counted `weights` times."""
    real = torch.ones(values.shape[:2], device=values.device) if mask is None else mask.to(values.dtype)
    weights = real[..., None] * weights
    count = weights.sum((1, 2), keepdim=True)
    mean = (values * weights).sum((1, 2), keepdim=True) / count.clamp(min=1)
    variance = ((values - mean).square() * weights).sum((1, 2), keepdim=True) / (count - 1).clamp(min=1)
    # a sample that is constant but for rounding has no z-score: it stays at zero instead of turning NaN or noise
    scale = torch.where(variance > 1e-12 * mean.square(), variance, 1.0).rsqrt()
    return (values - mean) * scale * real[..., None]


def patch_errors(values: torch.Tensor | None, targets: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(batch, patches): mean squared error of each patch's (batch, patches, n), zero outside the mask."""
    errors = (cast(torch.Tensor, values).float() - targets).square().mean(-1)
    return errors if mask is None else errors * mask


def codebook_statistics(codes: torch.Tensor, codebook_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Share of the codebook in use, and perplexity, of codes of any shape; -1 is left out."""
    counts = torch.bincount(codes[codes >= 0].flatten(), minlength=codebook_size).float()
    shares = counts / counts.sum().clamp(min=1)
    entropy = -(shares * shares.clamp(min=1e-12).log()).sum()
    return (counts > 0).float().mean(), entropy.exp()


def real_mask(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(batch, patches), True where a patch of `values` (batch, patches, ...) is real; all are without a mask."""
    if mask is None:
        return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    return mask.bool()


def real_patches(features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """[`real_mask`]; a ValueError for a row that has no real patch."""
    real = real_mask(features, mask)
    if mask is not None and not torch.compiler.is_compiling() and not bool(real.any(1).all()):
        row = int((~real.any(1)).nonzero()[0])
        raise ValueError(f"Sample {row} has no EEG, of whose features a mean could be taken.")
    return real


def mean_over(values: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """(batch, width): mean of (batch, places, width) over the places that (batch, places) holds, taken in float32."""
    kept = values.float().masked_fill(~wanted[..., None], 0.0)
    return (kept.sum(1) / wanted.sum(1, keepdim=True).clamp(min=1)).to(values.dtype)


def denominators(items: torch.Tensor, num_items_in_batch: torch.Tensor | None, training: bool) -> torch.Tensor:
    """What sums over a batch with `items` (kinds of loss,) are divided by: the step's counts where they are given.

    Otherwise the batch's own, while training averaged over the ranks: DistributedDataParallel averages the ranks'
    gradients, and with this denominator the average is the gradient of the one large batch that they make up together.
    """
    counts = items if num_items_in_batch is None else num_items_in_batch
    if num_items_in_batch is None and training and is_distributed():
        counts = items.clone()
        dist.all_reduce(counts)
        counts = counts / dist.get_world_size()
    # one where there are none: the sum is zero
    return torch.where(counts > 0, counts, 1.0)


def label_losses(
    logits: torch.Tensor, labels: torch.Tensor, problem_type: str, smoothing: float = 0.0
) -> torch.Tensor:
    """(batch,): loss of each sample from logits (batch, num_labels), float32.

    Args:
        smoothing: share of each label that goes to all classes alike; for classes only.

    Raises:
        ValueError: labels of another shape, a class that there is not, or smoothing of what are no classes.
    """
    rows, width = logits.shape
    of_classes = problem_type == "single_label_classification"
    if smoothing and not of_classes:
        raise ValueError(f"`smoothing` is for classes, not for {problem_type}: leave it at 0.")
    if labels.numel() != (rows if of_classes else rows * width):
        expected = f"({rows},)" if of_classes else f"({rows}, {width})"
        raise ValueError(f"`labels` for {problem_type} must have the shape {expected}, got {tuple(labels.shape)}.")
    if problem_type == "regression":
        return F.mse_loss(logits, labels.view_as(logits).float(), reduction="none").mean(1)
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.view_as(logits).float(), reduction="none").mean(1)
    labels = labels.view(-1)
    if labels.is_floating_point():
        raise ValueError(f"`labels` for {problem_type} must be integers, got {labels.dtype}.")
    wrong = (labels != IGNORE_INDEX) & ((labels < 0) | (labels >= width))
    if not torch.compiler.is_compiling() and bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"The label of sample {row} is {int(labels[row])}, but the head has {width} classes, 0 to {width - 1}: "
            "load the model with the task's `num_labels`."
        )
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def _gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows (n, width) of all ranks in rank order; n may differ between ranks."""
    if not is_distributed():
        return rows
    lengths = [torch.zeros(1, dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, torch.tensor([len(rows)], device=rows.device))
    longest = max(int(length) for length in lengths)
    padded = F.pad(rows, (0, 0, 0, longest - len(rows)))
    gathered = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(length)] for part, length in zip(gathered, lengths, strict=True)])


def is_distributed() -> bool:
    """Whether there is another process."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def init_layer(module: nn.Module) -> None:
    """What transformers' default initialisation does not know of these layers.

    Only modules with weights of their own can be treated here: in custom code the library skips all others.
    """
    if isinstance(module, EEGEmbedding):
        init.normal_(module.weight, std=module.initializer_range)
    elif isinstance(module, nn.Conv1d):
        bound = (module.in_channels * module.kernel_size[0]) ** -0.5
        init.uniform_(module.weight, -bound, bound)
        init.uniform_(cast(torch.Tensor, module.bias), -bound, bound)
    elif isinstance(module, VectorQuantizer):
        init.copy_(module.codebook, F.normalize(torch.randn(module.codebook.shape), dim=-1))
        init.zeros_(module.cluster_size)
        init.zeros_(module.initialized)
    elif isinstance(module, EEGAttention) and module.query_bias is not None:
        for bias in (module.query_bias, module.value_bias):
            init.zeros_(cast(torch.Tensor, bias))
    elif isinstance(module, EEGLayer) and module.layer_scale is not None:
        for scale in (module.attention_scale, module.mlp_scale):
            init.constant_(cast(torch.Tensor, scale), module.layer_scale)
