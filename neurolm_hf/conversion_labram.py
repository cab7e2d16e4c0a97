"""From the checkpoints that LaBraM's authors released, and those that their code writes, to models.

Sizes are read from the files; [`neurolm_hf.released_files`] reads them and accounts for every tensor.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .channels_neurolm import CHANNEL_VOCABULARY
from .configuration_labram import LaBraMConfig, LaBraMVQConfig
from .modeling_labram import LaBraMForMaskedEEGModeling, LaBraMForSequenceClassification, LaBraMVQModel
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


# Of every published tokenizer; no tensor of one tells.
VQ_HEADS = 10

# Pre-training draws the channel rows up to so far from 0, and does not decay them: those of channels that it never saw
# stay there.
INITIAL_REACH = 0.02
CHANNEL_ROWS = "labram.transformer.channel_embedding.weight"

BLOCK = r"^blocks\.(\d+)\."
LAYER = r"transformer.layers.\1."
ENCODER_RULES = [
    (r"^cls_token$", "transformer.cls_token"),
    (r"^pos_embed$", "transformer.channel_embedding.weight"),
    (r"^time_embed$", "transformer.time_embedding.weight"),
    (r"^patch_embed\.(conv|norm)(\d)\.", r"patch_embedding.\1\2."),
    (BLOCK + r"norm1\.", LAYER + "attention_norm."),
    (BLOCK + r"attn\.qkv\.weight$", LAYER + "attention.qkv.weight"),
    (BLOCK + r"attn\.q_bias$", LAYER + "attention.query_bias"),
    (BLOCK + r"attn\.v_bias$", LAYER + "attention.value_bias"),
    (BLOCK + r"attn\.q_norm\.", LAYER + "attention.query_norm."),
    (BLOCK + r"attn\.k_norm\.", LAYER + "attention.key_norm."),
    (BLOCK + r"attn\.proj\.", LAYER + "attention.output."),
    (BLOCK + r"gamma_1$", LAYER + "attention_scale"),
    (BLOCK + r"norm2\.", LAYER + "mlp_norm."),
    (BLOCK + r"mlp\.fc1\.", LAYER + "mlp_in."),
    (BLOCK + r"mlp\.fc2\.", LAYER + "mlp_out."),
    (BLOCK + r"gamma_2$", LAYER + "mlp_scale"),
]

VQ_RULES = [*ENCODER_RULES, (r"^fc_norm\.", "transformer.norm.")]
VQ_PARTS: list[Part] = [
    ("encoder.", "encoder.", VQ_RULES),
    ("encode_task_layer.", "encoder.to_codebook.", []),
    ("quantize.embedding.weight", "encoder.quantizer.codebook", []),
    ("quantize.embedding.initted", "encoder.quantizer.initialized", []),
    ("quantize.cluster_size", "encoder.quantizer.cluster_size", []),
    ("decoder.patch_embed.proj.", "decoder.embedding.", []),
    ("decoder.", "decoder.", VQ_RULES),
    ("decode_task_layer.", "decoder.amplitude_head.", []),
    ("decode_task_layer_angle.", "decoder.phase_head.", []),
]
VQ_DROPPED = {
    "quantize.embedding.cluster_size": "a second cluster size that the reference never updates after k-means",
    "quantize.embedding.embed_avg": "an average that the reference never reads",
}

# pre-trained: the encoder is called the student
MASKED_PARTS: list[Part] = [
    ("student.mask_token", "mask_token", []),
    ("student.", "labram.", [*ENCODER_RULES, (r"^norm\.", "transformer.norm.")]),
    ("lm_head.", "code_head.", []),
]
MASKED_DROPPED = {
    "logit_scale": "logit_scale, which no published class has",
    **dict.fromkeys(
        ("student.lm_head.weight", "student.lm_head.bias"),
        "student.lm_head, which pre-training neither uses nor trains",
    ),
    **dict.fromkeys(
        ("projection_head.0.weight", "projection_head.0.bias"),
        "projection_head, which pre-training neither uses nor trains",
    ),
}

# fine-tuned: the encoder has no name of its own
CLASSIFIER_PARTS: list[Part] = [
    ("head.", "score.", []),
    ("fc_norm.", "pooled_norm.", []),
    ("", "labram.", [*ENCODER_RULES, (r"^norm\.", "transformer.norm.")]),
]


def convert_labram_vq(source: str | Path | Checkpoint, **config_fields: Any) -> tuple[LaBraMVQModel, ConversionReport]:
    """The neural tokenizer of a `vqnsp.pth`.

    Args:
        source: as in [`read_checkpoint`].
        config_fields: further fields of [`LaBraMVQConfig`].

    Raises:
        ValueError: for tensors that are unknown, missing or of another shape.
    """
    model, state, report = _map_vq(read_checkpoint(source, "vqnsp*.pth"), config_fields)
    fill_model(model, state)
    return model, report


def convert_labram(
    source: str | Path | Checkpoint,
    vq_source: str | Path | Checkpoint | None = None,
    classes: Sequence[str] | None = None,
    **config_fields: Any,
) -> tuple[LaBraMForMaskedEEGModeling | LaBraMForSequenceClassification, ConversionReport]:
    """The encoder of a `labram-base.pth` with its masked modelling, or a fine-tuned one with its head.

    Args:
        source: as in [`read_checkpoint`]; its tensors tell which of both it is.
        vq_source: of a pre-trained encoder, the `vqnsp.pth` that gives the codes to predict; without it they must be
            given as labels.
        classes: of a fine-tuned one, what its classes mean, in their order. A head with one output, the logit of a
            yes, takes two: no and yes.
        config_fields: further fields of [`LaBraMConfig`].

    Raises:
        ValueError: for tensors that are unknown, missing or of another shape, for a `vqnsp.pth` with another number of
            codes or beside a fine-tuned encoder, and for classes that do not fit the head.
    """
    checkpoint = read_checkpoint(source, "labram*.pth")
    report = ConversionReport()
    if checkpoint.must_be(Kind.LABRAM, Kind.LABRAM_CLASSIFIER) is Kind.LABRAM_CLASSIFIER:
        if vq_source is not None:
            raise ValueError(f"{checkpoint.path}: is fine-tuned and needs no codes: leave the tokenizer out (`--vq`).")
        return _convert_classifier(checkpoint, classes, config_fields, report), report
    if classes is not None:
        raise ValueError(f"{checkpoint.path}: is not fine-tuned, it has no head whose classes have names.")
    vq_checkpoint = None if vq_source is None else read_checkpoint(vq_source, "vqnsp*.pth")
    return _convert_masked(checkpoint, vq_checkpoint, config_fields, report), report


def _convert_masked(
    checkpoint: Checkpoint,
    vq_checkpoint: Checkpoint | None,
    config_fields: dict[str, Any],
    report: ConversionReport,
) -> LaBraMForMaskedEEGModeling:
    state = rename_tensors(checkpoint, MASKED_PARTS, MASKED_DROPPED, report)
    codes = checkpoint.shape("lm_head.weight", 2)[0]
    vq_config = None
    if vq_checkpoint is None:
        report.missing.append("the codes of its own input: the tokenizer that gives them is in vqnsp.pth (`--vq`)")
    else:
        vq_config = _add_tokenizer(state, vq_checkpoint, checkpoint, codes, report)
    with naming(checkpoint.path):
        config = LaBraMConfig(
            **_encoder_fields(checkpoint, "student."), codebook_size=codes, vq_config=vq_config, **config_fields
        )
    with torch.device("meta"):
        model = LaBraMForMaskedEEGModeling(config)
    check_tensors(model, state, checkpoint.path)
    has_initial_cls, report.untrained = _initial_rows(state[CHANNEL_ROWS])
    if has_initial_cls:
        report.missing.append(
            "a trained row of the cls token: in pre-training it stands at the first channel, so that a classifier "
            "starts from row 0 as it was drawn"
        )
    origins = {"labram": checkpoint.provenance}
    if vq_checkpoint is not None:
        origins["vq"] = vq_checkpoint.provenance
    model.config.provenance = {**origins, "untrained_channels": report.untrained}
    fill_model(model, state)
    model.freeze_tokenizer()
    return model


def _convert_classifier(
    checkpoint: Checkpoint, classes: Sequence[str] | None, config_fields: dict[str, Any], report: ConversionReport
) -> LaBraMForSequenceClassification:
    state = rename_tensors(checkpoint, CLASSIFIER_PARTS, {}, report)
    outputs = checkpoint.shape("head.weight", 2)[0]
    with naming(checkpoint.path):
        config = LaBraMConfig(
            **_encoder_fields(checkpoint, ""),
            **_label_fields(checkpoint, outputs, classes, report),
            classifier_pooling="mean" if "fc_norm.weight" in checkpoint.tensors else "cls",
            **config_fields,
        )
    with torch.device("meta"):
        model = LaBraMForSequenceClassification(config)
    check_tensors(model, state, checkpoint.path)
    # such a row was not pre-trained, and fine-tuning, whose rate is smallest there, has hardly moved it, if at all
    _, report.untrained = _initial_rows(state[CHANNEL_ROWS])
    model.config.provenance = {"labram": checkpoint.provenance}
    # that there is none says nothing here: an encoder that was never pre-trained starts elsewhere
    if report.untrained:
        model.config.provenance["untrained_channels"] = report.untrained
    fill_model(model, state)
    return model


def _initial_rows(table: torch.Tensor) -> tuple[bool, list[str]]:
    """Of the channel rows, those that lie where pre-training starts them: whether row 0 does, and which channels."""
    initial = (table.abs().amax(1) <= INITIAL_REACH).tolist()
    return initial[0], [name for name, is_initial in zip(CHANNEL_VOCABULARY, initial[1:], strict=False) if is_initial]


def _label_fields(
    checkpoint: Checkpoint, outputs: int, classes: Sequence[str] | None, report: ConversionReport
) -> dict[str, Any]:
    """What the outputs of a head are, as the published fine-tuning trains them."""
    problem = "multi_label_classification" if outputs == 1 else "single_label_classification"
    report.assumed.append(
        "its one output is the logit of a yes"
        if outputs == 1
        else f"its {outputs} outputs are classes, of which one is right"
    )
    if classes is None:
        report.missing.append("what its classes are called (`--tasks`)")
        return {"num_labels": outputs, "problem_type": problem}
    if len(classes) != max(outputs, 2):
        raise ValueError(
            f"{checkpoint.path}: its head has {outputs} output{'s' * (outputs > 1)}, which {len(classes)} classes "
            f"({', '.join(classes)}) do not fit."
        )
    names = list(classes[1:]) if outputs == 1 else list(classes)
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: place for place, name in enumerate(names)},
        "problem_type": problem,
    }


def _map_vq(
    checkpoint: Checkpoint, config_fields: dict[str, Any]
) -> tuple[LaBraMVQModel, dict[str, torch.Tensor], ConversionReport]:
    """The neural tokenizer without its values, and the values, which fit it."""
    checkpoint.must_be(Kind.LABRAM_VQ)
    report = ConversionReport(assumed=[f"the tokenizer has {VQ_HEADS} attention heads, as every published one"])
    codes, width = checkpoint.shape("quantize.embedding.weight", 2)
    with naming(checkpoint.path):
        config = LaBraMVQConfig(
            **_sizes(checkpoint, "encoder."),
            num_attention_heads=VQ_HEADS,
            decoder_num_hidden_layers=checkpoint.layers("decoder.blocks."),
            patch_size=checkpoint.shape("decode_task_layer.2.bias", 1)[0],
            codebook_size=codes,
            codebook_dim=width,
            provenance=checkpoint.provenance,
            **config_fields,
        )
    state = rename_tensors(checkpoint, VQ_PARTS, VQ_DROPPED, report)
    with torch.device("meta"):
        model = LaBraMVQModel(config)
    check_tensors(model, state, checkpoint.path)
    if not state["encoder.quantizer.initialized"]:
        report.missing.append("codes: nothing has placed its codebook yet, which training does in its first step")
    return model, state, report


def _add_tokenizer(
    state: dict[str, torch.Tensor],
    vq_checkpoint: Checkpoint,
    checkpoint: Checkpoint,
    codes: int,
    report: ConversionReport,
) -> LaBraMVQConfig:
    """Adds the way from patches to codes, out of vqnsp.pth."""
    vq_model, vq_state, vq_report = _map_vq(vq_checkpoint, {})
    config: LaBraMVQConfig = vq_model.config
    if config.codebook_size != codes:
        raise ValueError(
            f"{vq_checkpoint.path} is not the tokenizer that {checkpoint.path} was trained with: it has "
            f"{config.codebook_size} codes, and {codes} are predicted."
        )
    if not vq_state["encoder.quantizer.initialized"]:
        raise ValueError(f"{vq_checkpoint.path}: its codebook was never placed, so that it has no codes to predict.")
    for name, tensor in vq_state.items():
        if name.startswith("encoder."):
            state[f"vq.{name.removeprefix('encoder.')}"] = tensor
    for source, target in vq_report.converted.items():
        if target.startswith("encoder."):
            report.converted[f"{source} (VQ)"] = f"vq.{target.removeprefix('encoder.')}"
        else:
            report.dropped[f"{source} (VQ)"] = "only the tokenizer alone needs it: convert vqnsp.pth without --labram"
    report.dropped |= {f"{name} (VQ)": reason for name, reason in vq_report.dropped.items()}
    report.assumed += [*vq_report.assumed, "the tokenizer is the one whose codes the encoder was trained to predict"]
    return config


def _sizes(checkpoint: Checkpoint, prefix: str) -> dict[str, Any]:
    """What both configurations have of an encoder."""
    _, rows, width = checkpoint.shape(f"{prefix}pos_embed", 3)
    return {
        "conv_channels": checkpoint.shape(f"{prefix}patch_embed.conv1.bias", 1)[0],
        "hidden_size": width,
        "num_hidden_layers": checkpoint.layers(f"{prefix}blocks."),
        "intermediate_size": checkpoint.shape(f"{prefix}blocks.0.mlp.fc1.bias", 1)[0],
        "num_channel_embeddings": rows,
        "max_seconds": checkpoint.shape(f"{prefix}time_embed", 3)[1],
    }


def _encoder_fields(checkpoint: Checkpoint, prefix: str) -> dict[str, Any]:
    """The fields of a [`LaBraMConfig`] that an encoder's tensors give, and two that only matter to more training."""
    sizes = _sizes(checkpoint, prefix)
    head_width = checkpoint.shape(f"{prefix}blocks.0.attn.q_norm.weight", 1)[0]
    given = checkpoint.arguments.get("args")
    arguments = given if isinstance(given, dict) else {}
    scale = arguments.get("layer_scale_init_value")
    drop_path = arguments.get("drop_path")
    has_scale = f"{prefix}blocks.0.gamma_1" in checkpoint.tensors
    return {
        **sizes,
        "num_attention_heads": sizes["hidden_size"] // max(head_width, 1),
        "query_value_bias": f"{prefix}blocks.0.attn.q_bias" in checkpoint.tensors,
        "layer_scale_init": (scale if isinstance(scale, float) else 0.1) if has_scale else None,
        "drop_path_rate": drop_path if isinstance(drop_path, float) and 0 <= drop_path < 1 else 0.0,
    }
