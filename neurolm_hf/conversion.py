"""From the checkpoints that NeuroLM's authors released to a folder that `from_pretrained` opens.

Every tensor is accounted for: each one of the checkpoint is mapped or dropped by name with a reason, each one of the
model is filled from the checkpoint or created by name with a reason. Sizes are read from the file.

Files are mapped into memory, privately: a converted model reads its weights from the file until something writes to
them, and writing changes neither the file nor another model converted from it.
"""

import hashlib
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import huggingface_hub
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerBase

from .configuration_neurolm import NeuroLMConfig, NeuroLMVQConfig
from .modeling_neurolm import NeuroLMForCausalLM, NeuroLMVQForPreTraining, NeuroLMVQModel


LICENCE = "the released code is MIT; its checkpoints are published on the Hub as Weibang/NeuroLM"

# The reference never stores these of a language model's encoder; they are the paper's.
PAPER_ENCODER_HEADS = 12

# Rows above GPT-2's words are free in any checkpoint that has so many.
GPT2_WORDS = 50257

# Tokens that are no words: they must lie on rows that are free.
SPECIAL_TOKENS = ("[SEP]", "<|eeg|>", "<|pad|>")

COMPILED = "_orig_mod."

# What a message lists at most.
LISTED = 6

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
        for what, reasons in (("dropped", self.dropped), ("created", self.created)):
            lines += [f"{count} {what}: {reason}" for reason, count in Counter(reasons.values()).items()]
        return "\n".join(lines + [f"missing: {sentence}" for sentence in self.missing])


@dataclass
class Checkpoint:
    """A released file: its tensors without compile prefix, the arguments stored beside them, its origin."""

    path: Path
    tensors: dict[str, torch.Tensor]
    arguments: dict[str, Any]
    provenance: dict[str, Any]

    def shape(self, name: str, dimensions: int) -> list[int]:
        """The shape of a tensor that must be there and have so many dimensions."""
        if name not in self.tensors:
            raise ValueError(f"{self.path}: has no {name}.")
        shape = list(self.tensors[name].shape)
        if len(shape) != dimensions:
            raise ValueError(f"{self.path}: {name} has the shape {tuple(shape)}, not {dimensions} dimensions.")
        return shape

    def layers(self, prefix: str) -> int:
        """How many numbered parts there are behind a prefix."""
        found = [re.match(rf"{re.escape(prefix)}(\d+)\.", name) for name in self.tensors]
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    def heads(self, arguments: str) -> int:
        """The number of attention heads, which no shape tells."""
        given = self.arguments.get(arguments)
        heads = given.get("n_head") if isinstance(given, dict) else None
        if not isinstance(heads, int) or heads < 1:
            raise ValueError(f"{self.path}: its `{arguments}` do not say the number of attention heads (`n_head`).")
        return heads


def read_checkpoint(source: str | Path, pattern: str = "*.pt") -> Checkpoint:
    """Maps a released `.pt` file without unpickling anything but tensors and plain containers.

    Args:
        source: a file, a file of a Hub repository as `REPO_ID:FILE`, or a `REPO_ID` in which one file fits `pattern`.

    Raises:
        ValueError: if it is not such a checkpoint, naming it.
    """
    path, origin = _locate(source, pattern)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a PyTorch checkpoint (as `torch.save` has written them since PyTorch 1.6).")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds code ({code[1]}), which is never run" if code else str(error).splitlines()[0]
        raise ValueError(f"{path}: not a PyTorch checkpoint of plain tensors: {reason}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{path}: not a NeuroLM checkpoint, it has no 'model' entry.")
    tensors = {str(name).replace(COMPILED, ""): tensor for name, tensor in content["model"].items()}
    if len(tensors) < len(content["model"]):
        raise ValueError(f"{path}: tensors occur both with and without the prefix '{COMPILED}'.")
    if strange := [name for name, tensor in tensors.items() if not isinstance(tensor, torch.Tensor)]:
        raise ValueError(f"{path}: not tensors: {_listed(strange)}.")
    arguments = {key: value for key, value in content.items() if str(key).endswith("_args")}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    numbers = {key: content[key] for key in ("iter_num", "epoch") if isinstance(content.get(key), int)}
    return Checkpoint(path, tensors, arguments, {**origin, "sha256": digest, "licence": LICENCE, **numbers})


def _locate(source: str | Path, pattern: str) -> tuple[Path, dict[str, str]]:
    """A local file, downloaded if it is on the Hub, and what to record of where it comes from."""
    path = Path(source)
    if path.is_file():
        return path, {"file": path.name}
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::(.+))?", str(source))
    if path.exists() or hub is None or (hub[2] is None and path.suffix):
        raise ValueError(f"{source}: no such file (a file of a Hub repository is written REPO_ID:FILE).")
    repository, name = hub[1], hub[2]
    try:
        name = name or _only_file(repository, pattern)
        path = Path(huggingface_hub.hf_hub_download(repository, name))
    except ValueError:
        raise
    except Exception as error:  # the network, the Hub and its client have too many kinds of their own
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{source}: not here, and not to be had from the Hub: {reason}") from error
    # .../snapshots/<commit>/<file>
    commit = path.parts[-1 - len(PurePosixPath(name).parts)]
    return path, {"file": f"{repository}:{name}", "revision": commit}


def _only_file(repository: str, pattern: str) -> str:
    names = [
        name for name in huggingface_hub.list_repo_files(repository) if fnmatch(PurePosixPath(name).name, pattern)
    ]
    if len(names) != 1:
        found = f"it has {_listed(names)}" if names else "it has none"
        raise ValueError(f"{repository}: which {pattern}? Say {repository}:FILE; {found}.")
    return names[0]


def convert_vq(
    source: str | Path, **config_fields: Any
) -> tuple[NeuroLMVQForPreTraining | NeuroLMVQModel, ConversionReport]:
    """The neural tokenizer of a `VQ.pt`, with its text-alignment adversary where the file has one.

    Args:
        source: as in [`read_checkpoint`].
        config_fields: further fields of [`NeuroLMVQConfig`].

    Raises:
        ValueError: for tensors that are unknown, missing or of another shape.
    """
    model, state, report = _map_vq(read_checkpoint(source, "VQ*.pt"), config_fields)
    _fill(model, state)
    return model, report


def convert_neurolm(
    source: str | Path,
    vq_source: str | Path | None = None,
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
    vq_checkpoint = None if vq_source is None else read_checkpoint(vq_source, "VQ*.pt")
    report = ConversionReport()
    text_config = _gpt2_config(checkpoint)
    rows = text_config["vocab_size"]
    state = dict(_rename(checkpoint, NEUROLM_PARTS, {}, report))
    _split_head(state, rows, checkpoint, report)
    if vq_checkpoint is None:
        eeg_config = _eeg_config_without_codes(checkpoint, len(state["code_head.weight"]), vq_fields, report)
    else:
        eeg_config = _add_codebook(state, vq_checkpoint, checkpoint, vq_fields, report)
    origins = {"neurolm": checkpoint, "vq": vq_checkpoint}
    free = _free_rows(checkpoint, vq_checkpoint, rows, text_tokenizer)
    with _naming(checkpoint.path):
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
    _check(model, state, checkpoint.path)
    _fill(model, state)
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
    config = _vq_config(checkpoint, **config_fields)
    report = ConversionReport()
    state = dict(_rename(checkpoint, VQ_PARTS, VQ_DROPPED, report))
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
    _check(model, state, checkpoint.path)
    return model, state, report


def _vq_config(checkpoint: Checkpoint, **fields: Any) -> NeuroLMVQConfig:
    """The configuration that the shapes and arguments of a `VQ.pt` give."""
    if not any(name.startswith("VQ.") for name in checkpoint.tensors):
        raise ValueError(f"{checkpoint.path}: holds no neural tokenizer, this is not a VQ.pt.")
    codes, width = checkpoint.shape("VQ.quantize.embedding.weight", 2)
    optional: dict[str, Any] = {}
    if "wte.weight" in checkpoint.tensors:
        optional["alignment_vocab_size"] = checkpoint.shape("wte.weight", 2)[0]
    if "domain_classifier.0.weight" in checkpoint.tensors:
        optional["alignment_hidden_size"] = checkpoint.shape("domain_classifier.0.weight", 2)[0]
    with _naming(checkpoint.path):
        return NeuroLMVQConfig(
            **_encoder_sizes(checkpoint, "VQ.encoder."),
            **optional,
            num_attention_heads=checkpoint.heads("encoder_args"),
            decoder_hidden_size=checkpoint.shape("VQ.decoder_freq.fc_norm.weight", 1)[0],
            decoder_num_hidden_layers=checkpoint.layers("VQ.decoder_freq.blocks."),
            decoder_num_attention_heads=checkpoint.heads("decoder_args"),
            codebook_size=codes,
            codebook_dim=width,
            num_frequency_bins=checkpoint.shape("VQ.decode_task_layer_freq.2.bias", 1)[0],
            patch_size=checkpoint.shape("VQ.decode_task_layer_raw.2.bias", 1)[0],
            provenance=checkpoint.provenance,
            **fields,
        )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What a configuration refuses, as an error that names the file it was read from."""
    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(f"{path}: {error.__cause__ or error}") from error


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
    if not any(name.startswith("GPT2.") for name in checkpoint.tensors):
        raise ValueError(f"{checkpoint.path}: holds no language model, this is not a NeuroLM checkpoint.")
    rows, width = checkpoint.shape("GPT2.transformer.wte.weight", 2)
    checkpoint.shape("GPT2.lm_head.weight", 2)
    return {
        "model_type": "gpt2",
        "vocab_size": rows,
        "n_embd": width,
        "n_layer": checkpoint.layers("GPT2.transformer.h."),
        "n_head": checkpoint.heads("model_args"),
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
    with _naming(checkpoint.path):
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
        if re.search(r"conv\d\.weight$", rest) and tensor.ndim == 4:
            tensor = tensor.squeeze(2)
        if new.endswith("initialized") and tensor.numel() == 1:
            tensor = tensor.bool().reshape(())
        report.converted[name] = new + rest
        yield new + rest, tensor
    if unknown:
        raise ValueError(f"{checkpoint.path}: tensors that this converter does not know: {_listed(unknown)}.")


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


def _check(model: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
    """Every tensor of the model must be there, every tensor that is there must be the model's."""
    expected = model.state_dict()
    problems = [f"missing {name}" for name in expected.keys() - state.keys()]
    problems += [f"unexpected {name}" for name in state.keys() - expected.keys()]
    for name in expected.keys() & state.keys():
        given, wanted = state[name], expected[name]
        if given.shape != wanted.shape:
            problems.append(f"{name} has the shape {tuple(given.shape)}, expected {tuple(wanted.shape)}")
        elif given.is_floating_point() != wanted.is_floating_point():
            problems.append(f"{name} is of {given.dtype}, expected {wanted.dtype}")
    if problems:
        raise ValueError(f"{path}: cannot be converted: {_listed(problems, '; ')}.")


def _fill(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Assigns contiguous tensors of the model's types; those that lie on the same memory as another are copied."""
    taken, values = set(), {}
    for name, wanted in model.state_dict().items():
        tensor = state[name].to(wanted.dtype).contiguous()
        values[name] = tensor.clone() if tensor.data_ptr() in taken else tensor
        taken.add(tensor.data_ptr())
    model.load_state_dict(values, strict=True, assign=True)
    model.eval()


def _listed(names: Iterable[str], separator: str = ", ") -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - LISTED} more" if len(ordered) > LISTED else ""
    return separator.join(ordered[:LISTED]) + more
