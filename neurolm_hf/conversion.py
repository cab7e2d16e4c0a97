"""From the checkpoints that NeuroLM's authors released to models; sizes are read from the files.

[`neurolm_hf.released_files`] reads them and accounts for every tensor.
"""

import re
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from .configuration_neurolm import NeuroLMConfig, NeuroLMVQConfig
from .modeling_neurolm import NeuroLMForCausalLM, NeuroLMVQForPreTraining, NeuroLMVQModel
from .released_files import (
    Checkpoint,
    ConversionReport,
    Kind,
    Part,
    check_tensors,
    fill_model,
    naming,
    read_checkpoint,
    rename_tensors,
)


# The reference never stores these of a language model's encoder; they are the paper's.
PAPER_ENCODER_HEADS = 12

# Rows above GPT-2's words are free in any checkpoint that has so many.
GPT2_WORDS = 50257

# Tokens that are no words: they must lie on rows that are free.
SPECIAL_TOKENS = ("[SEP]", "<|eeg|>", "<|pad|>")

TRANSFORMER_RULES = [
    (r"^pos_embed\.", "transformer.channel_embedding."),
    (r"^time_embed\.", "transformer.time_embedding."),
    (r"^blocks\.(\d+)\.ln_1\.", r"transformer.layers.\1.attention_norm."),
    (r"^blocks\.(\d+)\.attn\.c_attn\.", r"transformer.layers.\1.attention.qkv."),
    (r"^blocks\.(\d+)\.attn\.c_proj\.", r"transformer.layers.\1.attention.output."),
    (r"^blocks\.(\d+)\.ln_2\.", r"transformer.layers.\1.mlp_norm."),
    (r"^blocks\.(\d+)\.mlp\.c_fc\.", r"transformer.layers.\1.mlp_in."),
    (r"^blocks\.(\d+)\.mlp\.c_proj\.", r"transformer.layers.\1.mlp_out."),
    (r"^fc_norm\.", "transformer.norm."),
]
ENCODER_RULES = [
    (r"^patch_embed\.l\.0\.", "patch_embedding.projection."),
    (r"^patch_embed\.", "patch_embedding."),
    *TRANSFORMER_RULES,
]
DECODER_RULES = [(r"^patch_embed\.", "embedding."), *TRANSFORMER_RULES]

# the first prefix that fits names the part; its rules name the tensor
VQ_PARTS: list[Part] = [
    ("VQ.encoder.", "vq.encoder.", ENCODER_RULES),
    ("VQ.decoder_freq.", "vq.frequency_decoder.", DECODER_RULES),
    ("VQ.decoder_raw.", "vq.raw_decoder.", DECODER_RULES),
    ("VQ.encode_task_layer.", "vq.encoder.to_codebook.", []),
    ("VQ.decode_task_layer_freq.", "vq.frequency_decoder.head.", []),
    ("VQ.decode_task_layer_raw.", "vq.raw_decoder.head.", []),
    ("VQ.quantize.embedding.weight", "vq.encoder.quantizer.codebook", []),
    ("VQ.quantize.embedding.initted", "vq.encoder.quantizer.initialized", []),
    ("VQ.quantize.cluster_size", "vq.encoder.quantizer.cluster_size", []),
    ("domain_classifier.", "alignment_classifier.", []),
    ("wte.", "text_embedding.", []),
]
VQ_DROPPED = {
    "VQ.quantize.embedding.cluster_size": "a second cluster size that the reference never updates after k-means",
    "VQ.quantize.embedding.embed_avg": "an average that the reference never reads",
}
NEUROLM_PARTS: list[Part] = [
    ("GPT2.transformer.", "model.language_model.", []),
    ("GPT2.lm_head.", "lm_head.", []),
    ("tokenizer.", "model.eeg_encoder.", ENCODER_RULES),
    ("pos_embed.", "model.channel_embedding.", []),
    ("encode_transform_layer.", "model.eeg_projector.", []),
]


def convert_vq(
    source: str | Path | Checkpoint, **config_fields: Any
) -> tuple[NeuroLMVQForPreTraining | NeuroLMVQModel, ConversionReport]:
    """The neural tokenizer of a `VQ.pt`, with its text-alignment adversary where the file has one.

    Args:
        source: as in [`read_checkpoint`].
        config_fields: further fields of [`NeuroLMVQConfig`].

    Raises:
        ValueError: for tensors that are unknown, missing or of another shape.
    """
    model, state, report = _map_vq(read_checkpoint(source, "VQ*.pt"), config_fields)
    fill_model(model, state)
    return model, report


def convert_neurolm(
    source: str | Path | Checkpoint,
    vq_source: str | Path | Checkpoint | None = None,
    text_tokenizer: PreTrainedTokenizerBase | None = None,
    stage: Literal["pretrained", "instruction-tuned"] = "pretrained",
    tasks: list[dict[str, Any]] | None = None,
    **vq_fields: Any,
) -> tuple[NeuroLMForCausalLM, ConversionReport]:
    """The language model of a `NeuroLM-*.pt`, with the codebook of the `VQ.pt` it was trained with.

    Args:
        source, vq_source: as in [`read_checkpoint`]; without `vq_source` the model has no codes.
        text_tokenizer: says the id of the EEG placeholder and what ends a text. `None`: the placeholder takes the last
            row of the text vocabulary, which is free.
        stage, tasks: what the file has been through; it does not say so itself.
        vq_fields: further fields of [`NeuroLMVQConfig`].

    Raises:
        ValueError: for tensors that are unknown, missing or of another shape, for a `VQ.pt` of another encoder, and
            for a text tokenizer of another vocabulary.
    """
    checkpoint = read_checkpoint(source, "NeuroLM*.pt")
    checkpoint.must_be(Kind.NEUROLM)
    vq_checkpoint = None if vq_source is None else read_checkpoint(vq_source, "VQ*.pt")
    report = ConversionReport()
    text_config = _gpt2_config(checkpoint)
    rows = text_config["vocab_size"]
    state = rename_tensors(checkpoint, NEUROLM_PARTS, {}, report)
    _split_head(state, rows, checkpoint, report)
    if vq_checkpoint is None:
        eeg_config = _eeg_config_without_codes(checkpoint, len(state["code_head.weight"]), vq_fields, report)
    else:
        eeg_config = _add_codebook(state, vq_checkpoint, checkpoint, vq_fields, report)
    origins = {"neurolm": checkpoint, "vq": vq_checkpoint}
    free = _free_rows(checkpoint, vq_checkpoint, rows, text_tokenizer)
    with naming(checkpoint.path):
        config = NeuroLMConfig(
            eeg_config=eeg_config,
            text_config=text_config,
            eeg_token_id=free[-1] if text_tokenizer is None else text_tokenizer.get_vocab()["<|eeg|>"],
            stage=stage,
            tasks=tasks,
            provenance={name: origin.provenance for name, origin in origins.items() if origin is not None},
        )
    with torch.device("meta"):
        model = NeuroLMForCausalLM(config)
    _create_gpt2_biases(state, model.state_dict(), report)
    _transpose_gpt2(state)
    check_tensors(model, state, checkpoint.path)
    fill_model(model, state)
    model.freeze_eeg_encoder()
    model.suppress_tokens(list(free))
    if text_tokenizer is not None:
        for part in (model.generation_config, config.get_text_config()):
            for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
                setattr(part, name, getattr(text_tokenizer, name))
    return model, report


def _map_vq(
    checkpoint: Checkpoint, config_fields: dict[str, Any]
) -> tuple[NeuroLMVQForPreTraining | NeuroLMVQModel, dict[str, torch.Tensor], ConversionReport]:
    """The neural tokenizer without its values, and the values, which fit it."""
    checkpoint.must_be(Kind.NEUROLM_VQ)
    config = _vq_config(checkpoint, **config_fields)
    report = ConversionReport()
    state = rename_tensors(checkpoint, VQ_PARTS, VQ_DROPPED, report)
    has_adversary = any(name.startswith("alignment_classifier.") for name in state)
    model: NeuroLMVQForPreTraining | NeuroLMVQModel
    with torch.device("meta"):
        model = NeuroLMVQForPreTraining(config) if has_adversary else NeuroLMVQModel(config)
    if not has_adversary:
        report.missing.append(
            "the text-alignment adversary: the tokenizer encodes and decodes, but cannot go on training with it"
        )
        state = {name.removeprefix("vq."): tensor for name, tensor in state.items()}
        report.converted = {name: target.removeprefix("vq.") for name, target in report.converted.items()}
    check_tensors(model, state, checkpoint.path)
    return model, state, report


def _vq_config(checkpoint: Checkpoint, **fields: Any) -> NeuroLMVQConfig:
    """The configuration that the shapes and arguments of a `VQ.pt` give."""
    codes, width = checkpoint.shape("VQ.quantize.embedding.weight", 2)
    optional: dict[str, Any] = {}
    if "wte.weight" in checkpoint.tensors:
        optional["alignment_vocab_size"] = checkpoint.shape("wte.weight", 2)[0]
    if "domain_classifier.0.weight" in checkpoint.tensors:
        optional["alignment_hidden_size"] = checkpoint.shape("domain_classifier.0.weight", 2)[0]
    with naming(checkpoint.path):
        return NeuroLMVQConfig(
            **_encoder_sizes(checkpoint, "VQ.encoder."),
            **optional,
            num_attention_heads=_heads(checkpoint, "encoder_args"),
            decoder_hidden_size=checkpoint.shape("VQ.decoder_freq.fc_norm.weight", 1)[0],
            decoder_num_hidden_layers=checkpoint.layers("VQ.decoder_freq.blocks."),
            decoder_num_attention_heads=_heads(checkpoint, "decoder_args"),
            codebook_size=codes,
            codebook_dim=width,
            num_frequency_bins=checkpoint.shape("VQ.decode_task_layer_freq.2.bias", 1)[0],
            patch_size=checkpoint.shape("VQ.decode_task_layer_raw.2.bias", 1)[0],
            provenance=checkpoint.provenance,
            **fields,
        )


def _heads(checkpoint: Checkpoint, arguments: str) -> int:
    """The number of attention heads, which no shape tells."""
    given = checkpoint.arguments.get(arguments)
    heads = given.get("n_head") if isinstance(given, dict) else None
    if not isinstance(heads, int) or heads < 1:
        raise ValueError(f"{checkpoint.path}: its `{arguments}` do not say the number of attention heads (`n_head`).")
    return heads


def _encoder_sizes(checkpoint: Checkpoint, prefix: str) -> dict[str, Any]:
    channels, width = checkpoint.shape(f"{prefix}pos_embed.weight", 2)
    return {
        "hidden_size": width,
        "num_hidden_layers": checkpoint.layers(f"{prefix}blocks."),
        "conv_channels": checkpoint.shape(f"{prefix}patch_embed.conv1.bias", 1)[0],
        "num_channel_embeddings": channels,
        "max_seconds": checkpoint.shape(f"{prefix}time_embed.weight", 2)[0],
    }


def _gpt2_config(checkpoint: Checkpoint) -> dict[str, Any]:
    rows, width = checkpoint.shape("GPT2.transformer.wte.weight", 2)
    checkpoint.shape("GPT2.lm_head.weight", 2)
    return {
        "model_type": "gpt2",
        "vocab_size": rows,
        "n_embd": width,
        "n_layer": checkpoint.layers("GPT2.transformer.h."),
        "n_head": _heads(checkpoint, "model_args"),
        "n_positions": checkpoint.shape("GPT2.transformer.wpe.weight", 2)[0],
        # GPT-2's last word ends a text; a smaller vocabulary has no such row
        **({} if rows >= GPT2_WORDS else {"bos_token_id": None, "eos_token_id": None}),
    }


def _free_rows(
    checkpoint: Checkpoint,
    vq_checkpoint: Checkpoint | None,
    rows: int,
    text_tokenizer: PreTrainedTokenizerBase | None,
) -> range:
    """The text rows that are no words. VQ.pt holds an embedding of every word; GPT-2's words are known."""
    words = None if vq_checkpoint is None else vq_checkpoint.tensors.get("wte.weight")
    first = len(words) if words is not None else GPT2_WORDS if rows >= GPT2_WORDS else None
    if text_tokenizer is None:
        if first is not None and first >= rows:
            raise ValueError(f"{checkpoint.path}: none of its {rows} rows of text is free for the EEG placeholder.")
        return range(rows - 1 if first is None else first, rows)
    vocabulary = text_tokenizer.get_vocab()
    if absent := [token for token in SPECIAL_TOKENS if token not in vocabulary]:
        raise ValueError(f"The text tokenizer has no {', '.join(absent)}: make it with `build_text_tokenizer`.")
    ids = {token: vocabulary[token] for token in SPECIAL_TOKENS}
    if first is None:
        first = min(ids.values())
    if min(ids.values()) < first or max(vocabulary.values()) >= rows:
        raise ValueError(
            f"The text tokenizer is not the one of {checkpoint.path}: its "
            + ", ".join(f"{token} is {index}" for token, index in ids.items())
            + f" and its highest id {max(vocabulary.values())}, but the free rows of the text vocabulary are {first} "
            f"to {rows - 1}."
        )
    return range(first, rows)


def _split_head(state: dict[str, torch.Tensor], rows: int, checkpoint: Checkpoint, report: ConversionReport) -> None:
    """The released head is one matrix; ours are two, text rows and code rows."""
    head = state.pop("lm_head.weight")
    if len(head) <= rows:
        raise ValueError(f"{checkpoint.path}: its {len(head)} output rows leave none for codes beside {rows} of text.")
    state["lm_head.weight"], state["code_head.weight"] = head[:rows], head[rows:]
    report.converted["GPT2.lm_head.weight"] = "lm_head.weight and code_head.weight"


def _eeg_config_without_codes(
    checkpoint: Checkpoint, codes: int, vq_fields: dict[str, Any], report: ConversionReport
) -> NeuroLMVQConfig:
    report.missing.append(
        "VQ tokens, and EEG targets for pre-training: the codebook is in VQ.pt (`--vq`); the encoder is taken to have "
        f"the paper's {PAPER_ENCODER_HEADS} heads, which only VQ.pt says"
    )
    with naming(checkpoint.path):
        return NeuroLMVQConfig(
            **_encoder_sizes(checkpoint, "tokenizer."),
            num_attention_heads=PAPER_ENCODER_HEADS,
            codebook_size=codes,
            has_codebook=False,
            **vq_fields,
        )


def _add_codebook(
    state: dict[str, torch.Tensor],
    vq_checkpoint: Checkpoint,
    checkpoint: Checkpoint,
    vq_fields: dict[str, Any],
    report: ConversionReport,
) -> NeuroLMVQConfig:
    """Adds the way from features to codes, out of VQ.pt, whose encoder must be the language model's own."""
    vq_model, vq_state, vq_report = _map_vq(vq_checkpoint, vq_fields)
    encoder = "vq.encoder." if isinstance(vq_model, NeuroLMVQForPreTraining) else "encoder."
    for name, tensor in vq_state.items():
        if not name.startswith(encoder):
            continue
        ours = "model.eeg_encoder." + name.removeprefix(encoder)
        if ours not in state:
            state[ours] = tensor
        elif not torch.equal(state[ours], tensor):
            raise ValueError(
                f"{vq_checkpoint.path} is not the tokenizer that {checkpoint.path} was trained with: their encoders "
                f"differ at {ours}."
            )
    for source, target in vq_report.converted.items():
        if target.startswith(encoder):
            report.converted[f"{source} (VQ)"] = target.replace(encoder, "model.eeg_encoder.")
        else:
            report.dropped[f"{source} (VQ)"] = "only the tokenizer alone needs it: convert VQ.pt without --neurolm"
    report.dropped |= {f"{name} (VQ)": reason for name, reason in vq_report.dropped.items()}
    return vq_model.config


def _create_gpt2_biases(
    state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], report: ConversionReport
) -> None:
    """Biases that transformers' GPT-2 always has; created only when the checkpoint has none at all."""
    prefix = "model.language_model."
    if any(name.startswith(prefix) and name.endswith(".bias") for name in state):
        return
    for name, tensor in expected.items():
        if name.startswith(prefix) and name.endswith(".bias"):
            state[name] = torch.zeros(tensor.shape)
            report.created[name] = "zero bias, since the checkpoint was trained without biases"


def _transpose_gpt2(state: dict[str, torch.Tensor]) -> None:
    """The reference stores linear layers as (out, in); transformers' GPT-2 stores them as (in, out)."""
    for name, tensor in state.items():
        if re.search(r"language_model\.h\.\d+\.(attn|mlp)\.c_\w+\.weight$", name) and tensor.ndim == 2:
            state[name] = tensor.T
