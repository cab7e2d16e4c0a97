"""One step of a training without data and without memory: what the model computes and keeps, counted as it runs.

No rule of thumb stands for the model. A micro-batch goes through it, forward and backward, on torch's fake tensors,
which have shapes and nothing else: products are counted as they are called, memory as tensors come and go. So a
decoder, an adapter, a frozen encoder or activation checkpointing costs what its own code makes it cost. That takes
seconds at any size, and any machine can do it.
"""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry

from .configuration_neurolm import NeuroLMConfig, NeuroLMVQConfig
from .modeling_neurolm import (
    GradientCheckpointingLayer,
    NeuroLMForCausalLM,
    NeuroLMVQForPreTraining,
    NeuroLMVQModel,
    reconstruction_targets,
)


Stage = Literal["vq", "pretrain", "instruct"]

_aten = torch.ops.aten
# FLOPs by operation: those that torch's counter knows, and two that it does not: attention on the CPU, where the step
# runs here (scores and values; backward the scores once more, beside four gradients), and a product added in place.
FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    _aten.addmm_: flop_registry[_aten.addmm],
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
}
# every other product is one of attention, fused or not
OUTSIDE_ATTENTION = {_aten.mm, _aten.addmm, _aten.addmm_, _aten.convolution, _aten.convolution_backward}


@dataclass(frozen=True)
class Setup:
    """What is trained, and how.

    Attributes:
        stage: the neural tokenizer, pre-training, or instruction tuning.
        config: of the neural tokenizer or, in the two other stages, of the language model.
        adversary: the neural tokenizer's, which text is mixed in for.
        lora_rank: of an adapter on the language model's layers; 0 trains all of them.
        lora_eeg_projector: train the EEG projector and the channel embedding beside the adapter.
        activation_checkpointing: keep the input of a layer only, and run the layer a second time.
        bf16: products in bfloat16; otherwise all is float32.

    Raises:
        ValueError: a configuration of another stage, or an adapter on the neural tokenizer.
    """

    stage: Stage
    config: NeuroLMVQConfig | NeuroLMConfig
    adversary: bool = True
    lora_rank: int = 0
    lora_eeg_projector: bool = False
    activation_checkpointing: bool = False
    bf16: bool = True

    def __post_init__(self) -> None:
        expected = NeuroLMVQConfig if self.stage == "vq" else NeuroLMConfig
        if not isinstance(self.config, expected):
            raise ValueError(f"Stage {self.stage!r} needs a {expected.__name__}, got a {type(self.config).__name__}.")
        if self.lora_rank and self.stage == "vq":
            raise ValueError("LoRA adapts the language model: the neural tokenizer is trained in full.")


@dataclass(frozen=True)
class Batch:
    """Windows of equal shape, and texts of equal length beside them.

    Attributes:
        windows, channels, seconds: of EEG; a window has a patch for each channel and second.
        texts, text_tokens: how many, and how long each is.
        prompt_tokens, answer_tokens: what follows the EEG of each window. Without an answer, codes are the targets.
    """

    windows: int
    channels: int
    seconds: int
    texts: int = 0
    text_tokens: int = 1024
    prompt_tokens: int = 0
    answer_tokens: int = 0

    @property
    def patches(self) -> int:
        """Of a window."""
        return self.channels * self.seconds

    @property
    def targets(self) -> int:
        """Of all windows: their answers, or each patch that has a next second; and of all texts."""
        of_window = self.answer_tokens or self.channels * (self.seconds - 1)
        return self.windows * of_window + self.texts * (self.text_tokens - 1)


@dataclass
class Flops:
    """FLOPs, a multiplication and an addition being two; those of `attention` are among the others."""

    forward: int = 0
    backward: int = 0
    attention: int = 0

    @property
    def total(self) -> int:
        """Both ways."""
        return self.forward + self.backward

    def times(self, factor: float) -> "Flops":
        """Those of so many."""
        return Flops(round(self.forward * factor), round(self.backward * factor), round(self.attention * factor))


@dataclass(frozen=True)
class Sizes:
    """How many numbers a model has, parameters and buffers.

    Attributes:
        total: all of them. trained: those that have a gradient.
        language_model: those that read the texts in a pass of their own; 0 for the neural tokenizer.
        frozen_encoder: those that no gradient passes.
        at_work: those that a rank must hold together where weights are shared out: what is outside of the
            transformers' layers, and the two largest of these, one at work and the next one.
    """

    total: int
    trained: int
    language_model: int
    frozen_encoder: int
    at_work: int


@dataclass(frozen=True)
class DryRun:
    """What a forward and a backward pass take.

    Attributes:
        flops: by part of the model. What activation checkpointing does a second time is among `backward`.
        activations: bytes that are alive at the worst moment beside weights, gradients and optimiser: what is kept
            for the gradients, the batch, bfloat16 copies of float32 weights, the logits of a chunk of targets, what
            is temporary. Also the language model's gradients from the texts, which autograd holds back until those
            from the EEG join them.
        sizes: of the model.
    """

    flops: dict[str, Flops]
    activations: int
    sizes: Sizes


def dry_run(setup: Setup, batch: Batch, cast_weights: bool = False) -> DryRun:
    """Counts what a micro-batch takes.

    Attention is what `config._attn_implementation` says; every score is counted, masked ones too, for they are
    computed.

    Args:
        cast_weights: with `bf16`, the weights themselves are bfloat16, as in DeepSpeed and FSDP; otherwise products
            take copies of them, as autocast makes them.

    Raises:
        ValueError: windows or texts that are longer than the model has positions for, or nothing to predict.
    """
    _check_lengths(setup, batch)
    model = _build(setup, cast_weights)
    with FakeTensorMode():
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        model.tie_weights()
        for parameter in model.parameters():
            # as after the first micro-batch of a step: what comes is added to what is there
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        with _Meter([*model.parameters(), *model.buffers(), *gradients]) as meter:
            with torch.autocast("cpu", torch.bfloat16, enabled=setup.bf16 and not cast_weights):
                step = _tokenizer_step if setup.stage == "vq" else _language_model_step
                # the batch lives as long as the step
                loss, *_held = step(meter, model, setup, batch)
            loss.backward()
        return DryRun(meter.flops, meter.peak, _sizes(model))


class _EndOfPart(torch.autograd.Function):
    """Says, on the way back, that a part of the model begins."""

    @staticmethod
    def forward(ctx: Any, output: torch.Tensor, begin: Callable[[], None]) -> torch.Tensor:
        ctx.begin = begin
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        ctx.begin()
        return gradient, None


class _Meter(TorchDispatchMode):
    """FLOPs of what runs under it, by part; bytes of the tensors made under it that are alive, and the most ever.

    torch's own FlopCounterMode keeps what checkpointing would free, so that the two cannot be measured together.
    """

    def __init__(self, held: Iterable[torch.Tensor]):
        super().__init__()
        self.flops: dict[str, Flops] = {}
        self.live = self.peak = 0
        # a storage is the same object as long as it lives
        self._met = {id(tensor.untyped_storage()) for tensor in held}
        self._part, self._way = Flops(), "forward"

    def run(self, name: str, part: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """A part of the model, whose FLOPs are to be told apart."""
        self._begin(name, "forward")
        return _EndOfPart.apply(part(*inputs), partial(self._begin, name, "backward"))

    def _begin(self, name: str, way: str) -> None:
        self._part, self._way = self.flops.setdefault(name, Flops()), way

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        operation = func.overloadpacket
        if operation in FLOPS:
            flops = FLOPS[operation](*args, **(kwargs or {}), out_val=result)
            setattr(self._part, self._way, getattr(self._part, self._way) + flops)
            self._part.attention += 0 if operation in OUTSIDE_ATTENTION else flops
        tree_map_only(torch.Tensor, self._meet, result)
        return result

    def _meet(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._met:
            return
        self._met.add(id(storage))
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._leave, id(storage), storage.nbytes())

    def _leave(self, key: int, size: int) -> None:
        self._met.discard(key)
        self.live -= size


def _check_lengths(setup: Setup, batch: Batch) -> None:
    config: Any = setup.config
    longest = getattr(config, "eeg_config", config).max_seconds
    if batch.seconds > longest:
        raise ValueError(f"A window of {batch.seconds} s is longer than the {longest} s that the model can take.")
    if setup.stage == "vq":
        return
    if batch.targets < 1:
        raise ValueError("A window of one second has no next one whose codes could be predicted: take longer windows.")
    positions = config.get_text_config().max_position_embeddings
    # a second of EEG takes one position
    for what, tokens in (
        ("a text", batch.text_tokens if batch.texts else 0),
        ("a window with its question", batch.seconds + batch.prompt_tokens + batch.answer_tokens),
    ):
        if tokens > positions:
            raise ValueError(
                f"The language model has {positions} positions, and {what} takes {tokens}: make it shorter."
            )


def _build(setup: Setup, cast_weights: bool) -> Any:
    """The model in training mode, as the stage trains it, without memory."""
    kind: Any = NeuroLMForCausalLM
    if setup.stage == "vq":
        kind = NeuroLMVQForPreTraining if setup.adversary else NeuroLMVQModel
    with torch.device("meta"):
        model = kind(setup.config)
        if setup.lora_rank:
            # an optional dependency
            from .lora import add_adapter, lora_config

            add_adapter(model, "", lora_config(model, setup.lora_rank, eeg_projector=setup.lora_eeg_projector))
    if setup.activation_checkpointing:
        model.activation_checkpointing_enable()
    return (model.bfloat16() if cast_weights else model).train()


def _tokenizer_step(meter: _Meter, model: Any, setup: Setup, batch: Batch) -> list[torch.Tensor]:
    """The loss, and the batch."""
    vq = model.vq if setup.adversary else model
    values = torch.zeros(batch.windows, batch.patches, vq.config.patch_size)
    ids = torch.zeros(batch.windows, batch.patches, dtype=torch.long)
    mask = torch.ones(batch.windows, batch.patches, dtype=torch.bool)

    def decode(quantized: torch.Tensor) -> torch.Tensor:
        targets = reconstruction_targets(values, mask, vq.config)
        decoded = vq.decode(quantized=quantized, eeg_channel_ids=ids, eeg_time_ids=ids, eeg_attention_mask=mask)
        errors = [F.mse_loss(one.float(), target) for one, target in zip(decoded.values(), targets, strict=True)]
        return torch.stack(errors).sum()

    def judge(features: torch.Tensor) -> torch.Tensor:
        return model.alignment_classifier(features).sum()

    features = meter.run("encoder", lambda: vq.encoder(values, ids, ids, mask))
    quantized = meter.run("quantiser", lambda features: vq.encoder.quantize(features)[0], features)
    loss = meter.run("decoders", decode, quantized)
    if setup.adversary:
        loss = loss + meter.run("adversary on EEG", judge, features)
    if setup.adversary and batch.texts:
        texts = torch.zeros(batch.texts, batch.text_tokens, dtype=torch.long)
        loss = loss + meter.run("adversary on text", lambda: judge(model.text_embedding(texts)))
    return [loss, values, ids, mask]


def _language_model_step(meter: _Meter, model: Any, setup: Setup, batch: Batch) -> list[torch.Tensor]:
    """The loss, and the batch."""
    inner, embed = model.model, model.get_input_embeddings()
    tokens = batch.patches + batch.prompt_tokens + batch.answer_tokens
    ids = torch.zeros(batch.windows, tokens, dtype=torch.long)
    patch_ids = ids[:, : batch.patches]
    targets = batch.targets - batch.texts * (batch.text_tokens - 1)

    values = torch.zeros(batch.windows, batch.patches, inner.eeg_encoder.config.patch_size)

    def encode() -> torch.Tensor:
        with torch.set_grad_enabled(not inner.config.freeze_eeg_encoder):
            features = inner.eeg_encoder(values, patch_ids, patch_ids)
            if not batch.answer_tokens:
                inner.eeg_encoder.quantize(features)
        return features

    def read_eeg(features: torch.Tensor) -> torch.Tensor:
        features = features.to(inner.channel_embedding.weight.dtype)
        eeg = inner.eeg_projector(features) + inner.channel_embedding(patch_ids)
        embeds = embed(ids)
        embeds = embeds.masked_scatter(torch.zeros(batch.windows, tokens, 1, dtype=torch.bool), eeg.to(embeds.dtype))
        staircase = torch.zeros(batch.windows, 1, tokens, tokens, dtype=torch.bool)
        places = (torch.zeros(targets, dtype=torch.long), torch.zeros(targets, dtype=torch.long))
        with inner._last_mlp_at(places if batch.answer_tokens else None, ids.shape):
            read = inner.language_model(
                inputs_embeds=embeds, attention_mask=staircase, position_ids=ids, use_cache=False
            )
        return read.last_hidden_state[places]

    def read_text() -> torch.Tensor:
        embeds = embed(torch.zeros(batch.texts, batch.text_tokens, dtype=torch.long))
        read = inner.language_model(inputs_embeds=embeds, use_cache=False)
        return read.last_hidden_state[:, :-1].flatten(0, 1)

    def predict(*hidden_states: torch.Tensor) -> torch.Tensor:
        together = torch.cat(hidden_states)
        count = len(together)
        return model._weigh_targets(together, torch.zeros(count, dtype=torch.long), torch.zeros(count))[0]

    features = meter.run("EEG encoder", encode)
    hidden_states = [meter.run("language model on EEG", read_eeg, features)]
    if batch.texts:
        hidden_states.append(meter.run("language model on text", read_text))
    return [meter.run("heads", predict, *hidden_states), values, ids]


def _sizes(model: Any) -> Sizes:
    tensors = [*model.parameters(), *model.buffers()]
    total = _count(tensors)
    language_model = model.model.language_model if isinstance(model, NeuroLMForCausalLM) else None
    frozen = language_model is not None and model.config.freeze_eeg_encoder
    layers = [_count(one.parameters()) for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
    return Sizes(
        total=total,
        trained=_count(parameter for parameter in model.parameters() if parameter.requires_grad),
        language_model=_count(language_model.parameters()) if language_model is not None else 0,
        frozen_encoder=_count(model.model.eeg_encoder.parameters()) if frozen else 0,
        at_work=total - sum(layers) + sum(sorted(layers)[-2:]),
    )


def _count(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)
