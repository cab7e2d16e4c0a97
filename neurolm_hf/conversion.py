"""From the checkpoints that NeuroLM's authors released to a folder that `from_pretrained` opens.

Every tensor is accounted for: each one of the checkpoint is mapped or dropped by name with a reason, each one of the
model is filled from the checkpoint or created by name with a reason. Sizes are read from the file.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .configuration_neurolm import NeuroLMConfig, NeuroLMVQConfig
from .modeling_neurolm import NeuroLMForCausalLM, NeuroLMVQForPreTraining, NeuroLMVQModel

LICENCE = "the released code is MIT; its checkpoints are published on the Hub as Weibang/NeuroLM"

# The reference never stores these of a language model's encoder; they are the paper's.
PAPER_ENCODER_HEADS = 12

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
VQ_PARTS: list[tuple[str, str, list[tuple[str, str]]]] = [
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
NEUROLM_PARTS: list[tuple[str, str, list[tuple[str, str]]]] = [
    ("GPT2.transformer.", "model.language_model.", []),
    ("GPT2.lm_head.", "lm_head.", []),
    ("tokenizer.", "model.eeg_encoder.", ENCODER_RULES),
    ("pos_embed.", "model.channel_embedding.", []),
    ("encode_transform_layer.", "model.eeg_projector.", []),
]


@dataclass
class ConversionReport:
    """What became of every tensor.

    Attributes:
        converted: name in the checkpoint -> name(s) in the model.
        dropped: name in the checkpoint -> why it is not needed.
        created: name in the model -> why it was not in the checkpoint.
        missing: what the converted folder cannot do, in words.
    """

    converted: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    created: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} tensors converted"]
        lines += [f"dropped {name}: {reason}" for name, reason in self.dropped.items()]
        reasons = sorted(set(self.created.values()))
        lines += [f"created {sum(v == r for v in self.created.values())} tensors: {r}" for r in reasons]
        lines += [f"missing: {sentence}" for sentence in self.missing]
        return "\n".join(lines)


@dataclass
class Checkpoint:
    """A released file: its tensors without compile prefix, the arguments stored beside them, its origin."""

    path: Path
    tensors: dict[str, torch.Tensor]
    arguments: dict[str, Any]
    provenance: dict[str, Any]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Reads a released `.pt` file without unpickling anything but tensors and plain containers.

    Raises:
        ValueError: if the file is not such a checkpoint, naming it.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(f"{path}: not a PyTorch checkpoint of plain tensors ({error}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{path}: not a NeuroLM checkpoint, it has no 'model' entry.")
    tensors = {name.removeprefix("_orig_mod."): tensor for name, tensor in content["model"].items()}
    if len(tensors) < len(content["model"]):
        raise ValueError(f"{path}: tensors occur both with and without the prefix '_orig_mod.'.")
    arguments = {key: value for key, value in content.items() if key.endswith("_args")}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)
    provenance = {
        "file": path.name,
        "sha256": digest,
        "licence": LICENCE,
        **{key: content[key] for key in ("iter_num", "epoch") if isinstance(content.get(key), int)},
    }
    return Checkpoint(path, tensors, arguments, provenance)


def convert_vq(
    checkpoint: Checkpoint, **config_fields: Any
) -> tuple[NeuroLMVQForPreTraining | NeuroLMVQModel, ConversionReport]:
    """The neural tokenizer of a `VQ.pt`, with its text-alignment adversary where the file has one."""
    config = vq_config(checkpoint, **config_fields)
    report = ConversionReport()
    state = dict(_rename(checkpoint, VQ_PARTS, VQ_DROPPED, report))
    has_adversary = any(name.startswith("alignment_classifier.") for name in state)
    model: NeuroLMVQForPreTraining | NeuroLMVQModel
    with torch.device("meta"):
        model = NeuroLMVQForPreTraining(config) if has_adversary else NeuroLMVQModel(config)
    if not has_adversary:
        report.missing.append("the text-alignment adversary: the tokenizer encodes and decodes, but cannot go on training with it")
        state = {name.removeprefix("vq."): tensor for name, tensor in state.items()}
    _fill(model, state, checkpoint.path)
    return model, report


def convert_neurolm(
    checkpoint: Checkpoint,
    vq_checkpoint: Checkpoint | None,
    eeg_token_id: int | None = None,
    stage: str = "pretrained",
    tasks: list[dict[str, Any]] | None = None,
    **vq_fields: Any,
) -> tuple[NeuroLMForCausalLM, ConversionReport]:
    """The language model of a `NeuroLM-*.pt`, with the codebook of the `VQ.pt` it was trained with.

    Args:
        vq_checkpoint: `None` leaves the model without codes.
        eeg_token_id: row of the text vocabulary for the placeholder; `None` takes the last, which is free.
        stage, tasks: what the file has been through; it does not say so itself.
        vq_fields: further fields of the EEG configuration.

    Raises:
        ValueError: for tensors that are unknown, missing or of another shape, and for a `VQ.pt` of another encoder.
    """
    report = ConversionReport()
    state = dict(_rename(checkpoint, NEUROLM_PARTS, {}, report))
    rows = len(state["model.language_model.wte.weight"])
    head = state.pop("lm_head.weight")
    state["lm_head.weight"], state["code_head.weight"] = head[:rows], head[rows:]
    report.converted["GPT2.lm_head.weight"] = "lm_head.weight and code_head.weight"

    provenance: dict[str, Any] = {"neurolm": checkpoint.provenance}
    if vq_checkpoint is None:
        encoder_fields = _encoder_sizes(checkpoint.tensors, "tokenizer.")
        eeg_config = NeuroLMVQConfig(
            **encoder_fields,
            num_attention_heads=PAPER_ENCODER_HEADS,
            codebook_size=len(state["code_head.weight"]),
            has_codebook=False,
            **vq_fields,
        )
        report.missing.append(
            "VQ tokens, and EEG targets for pre-training: the codebook is in VQ.pt (`--vq`); the encoder is taken to "
            f"have the paper's {PAPER_ENCODER_HEADS} heads, which only VQ.pt says"
        )
    else:
        eeg_config = vq_config(vq_checkpoint, **vq_fields)
        state |= _codebook_state(vq_checkpoint, checkpoint, state, report)
        provenance["vq"] = vq_checkpoint.provenance
    config = NeuroLMConfig(
        eeg_config=eeg_config,
        text_config=_gpt2_config(checkpoint, state),
        eeg_token_id=rows - 1 if eeg_token_id is None else eeg_token_id,
        stage=stage,
        tasks=tasks,
        provenance=provenance,
    )
    with torch.device("meta"):
        model = NeuroLMForCausalLM(config)
    expected = model.state_dict()
    for name in _gpt2_biases(state, expected):
        state[name] = torch.zeros(expected[name].shape)
        report.created[name] = "zero bias, since the checkpoint was trained without biases"
    _transpose_gpt2(state)
    _fill(model, state, checkpoint.path)
    model.freeze_eeg_encoder()
    # rows that the text side never filled: GPT-2 has 50257 words, VQ.pt knows how many another vocabulary has
    words = eeg_config.alignment_vocab_size if eeg_config.alignment_vocab_size < rows else rows
    model.suppress_tokens(list(range(words, rows)))
    return model, report


def vq_config(checkpoint: Checkpoint, **fields: Any) -> NeuroLMVQConfig:
    """The configuration that the shapes and arguments of a `VQ.pt` give."""
    tensors, arguments = checkpoint.tensors, checkpoint.arguments
    for name in ("encoder_args", "decoder_args"):
        if "n_head" not in arguments.get(name, {}):
            raise ValueError(f"{checkpoint.path}: no `{name}` with the number of heads; this is not a VQ.pt.")
    for name in ("VQ.quantize.embedding.weight", "VQ.decoder_freq.fc_norm.weight", "VQ.encoder.fc_norm.weight"):
        if name not in tensors:
            raise ValueError(f"{checkpoint.path}: has no {name}; this is not a VQ.pt.")
    codes, dim = tensors["VQ.quantize.embedding.weight"].shape
    optional = {}
    if "wte.weight" in tensors:
        optional["alignment_vocab_size"] = len(tensors["wte.weight"])
    if "domain_classifier.0.weight" in tensors:
        optional["alignment_hidden_size"] = len(tensors["domain_classifier.0.weight"])
    return NeuroLMVQConfig(
        **_encoder_sizes(tensors, "VQ.encoder."),
        **optional,
        num_attention_heads=arguments["encoder_args"]["n_head"],
        decoder_hidden_size=len(tensors["VQ.decoder_freq.fc_norm.weight"]),
        decoder_num_hidden_layers=_layers(tensors, "VQ.decoder_freq.blocks."),
        decoder_num_attention_heads=arguments["decoder_args"]["n_head"],
        codebook_size=codes,
        codebook_dim=dim,
        num_frequency_bins=len(tensors["VQ.decode_task_layer_freq.2.bias"]),
        patch_size=len(tensors["VQ.decode_task_layer_raw.2.bias"]),
        provenance=checkpoint.provenance,
        **fields,
    )


def _encoder_sizes(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, int]:
    try:
        channels = tensors[f"{prefix}pos_embed.weight"]
        return {
            "hidden_size": channels.shape[1],
            "num_hidden_layers": _layers(tensors, f"{prefix}blocks."),
            "conv_channels": len(tensors[f"{prefix}patch_embed.conv1.bias"]),
            "num_channel_embeddings": len(channels),
            "max_seconds": len(tensors[f"{prefix}time_embed.weight"]),
        }
    except KeyError as error:
        raise ValueError(f"The checkpoint has no {error.args[0]}: it holds no EEG encoder.") from error


def _layers(tensors: dict[str, torch.Tensor], prefix: str) -> int:
    return 1 + max((int(name[len(prefix) :].split(".")[0]) for name in tensors if name.startswith(prefix)), default=-1)


def _gpt2_config(checkpoint: Checkpoint, state: dict[str, torch.Tensor]) -> dict[str, Any]:
    if "n_head" not in checkpoint.arguments.get("model_args", {}):
        raise ValueError(f"{checkpoint.path}: no `model_args` with the number of heads; this is not a NeuroLM checkpoint.")
    rows, width = state["model.language_model.wte.weight"].shape
    return {
        "model_type": "gpt2",
        "vocab_size": rows,
        "n_embd": width,
        "n_layer": _layers(state, "model.language_model.h."),
        "n_head": checkpoint.arguments["model_args"]["n_head"],
        "n_positions": len(state["model.language_model.wpe.weight"]),
        # GPT-2's 50256 ends a text; a smaller vocabulary has no such row
        **({} if rows > 50256 else {"bos_token_id": None, "eos_token_id": None}),
    }


def _codebook_state(
    vq_checkpoint: Checkpoint, checkpoint: Checkpoint, state: dict[str, torch.Tensor], report: ConversionReport
) -> dict[str, torch.Tensor]:
    """The way from features to codes, out of VQ.pt, whose encoder must be the language model's own."""
    vq_report = ConversionReport()
    added = {}
    for name, tensor in _rename(vq_checkpoint, VQ_PARTS, VQ_DROPPED, vq_report):
        if not name.startswith("vq.encoder."):
            continue
        ours = "model.eeg_encoder." + name.removeprefix("vq.encoder.")
        if ours in state:
            if state[ours].shape != tensor.shape or not torch.equal(state[ours], tensor):
                raise ValueError(
                    f"{vq_checkpoint.path} is not the tokenizer that {checkpoint.path} was trained with: their encoders "
                    f"differ at {ours}."
                )
        else:
            added[ours] = tensor
    for source, target in vq_report.converted.items():
        kept = target.startswith("vq.encoder.")
        if kept:
            report.converted[f"{source} (VQ)"] = target.replace("vq.encoder.", "model.eeg_encoder.")
        else:
            report.dropped[f"{source} (VQ)"] = "only the tokenizer's own training needs it: convert VQ.pt alone for it"
    report.dropped |= {f"{name} (VQ)": reason for name, reason in vq_report.dropped.items()}
    return added


def _rename(
    checkpoint: Checkpoint,
    parts: list[tuple[str, str, list[tuple[str, str]]]],
    dropped: dict[str, str],
    report: ConversionReport,
) -> Iterator[tuple[str, torch.Tensor]]:
    unknown = []
    for name, tensor in checkpoint.tensors.items():
        if name in dropped:
            report.dropped[name] = dropped[name]
            continue
        part = next(((old, new, rules) for old, new, rules in parts if name.startswith(old)), None)
        if part is None:
            unknown.append(name)
            continue
        old, new, rules = part
        rest = name[len(old) :]
        for pattern, replacement in rules:
            if re.search(pattern, rest):
                rest = re.sub(pattern, replacement, rest)
                break
        if re.search(r"conv\d\.weight$", rest):
            tensor = tensor.squeeze(2)
        if rest == "" and new.endswith("initialized"):
            tensor = tensor.bool().reshape(())
        report.converted[name] = new + rest
        yield new + rest, tensor
    if unknown:
        raise ValueError(f"{checkpoint.path}: tensors that this converter does not know: {', '.join(sorted(unknown))}.")


def _gpt2_biases(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    """Biases that transformers' GPT-2 always has; created only when the checkpoint has none at all."""
    prefix = "model.language_model."
    if any(name.startswith(prefix) and name.endswith(".bias") for name in state):
        return []
    return [name for name in expected if name.startswith(prefix) and name.endswith(".bias")]


def _transpose_gpt2(state: dict[str, torch.Tensor]) -> None:
    """The reference stores linear layers as (out, in); transformers' GPT-2 stores them as (in, out)."""
    for name, tensor in state.items():
        if re.search(r"language_model\.h\.\d+\.(attn|mlp)\.c_\w+\.weight$", name):
            state[name] = tensor.T


def _fill(model: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Assigns every tensor of the model, and uses every tensor of the checkpoint."""
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - expected.keys()]
    problems += [
        f"{name} has the shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if problems:
        raise ValueError(f"{path}: cannot be converted: {'; '.join(sorted(problems))}.")
    model.load_state_dict({name: tensor.contiguous() for name, tensor in state.items()}, strict=True, assign=True)
    model.eval()


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
