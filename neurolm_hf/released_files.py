"""The files that NeuroLM's and LaBraM's authors released, and what their code writes: read, told apart, accounted for.

Every tensor is accounted for: each one of a file is mapped or dropped by name with a reason, each one of the model is
filled from the file or created by name with a reason.

Files are mapped into memory, privately: a converted model reads its weights from the file until something writes to
them, and writing changes neither the file nor another model converted from it.
"""

import argparse
import hashlib
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError


COMPILED = "_orig_mod."

# What a message lists at most.
LISTED = 6

_numpy_scalar = np._core.multiarray.scalar  # type: ignore[attr-defined]

# What LaBraM's code puts beside the tensors: its command line, and learning rates that are numbers of NumPy, which
# version 1 wrote under another name. They hold values and run nothing.
VALUES: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    _numpy_scalar,
    (_numpy_scalar, "numpy.core.multiarray.scalar"),
    np.dtype,
    np.dtypes.Float64DType,
]

# Of a part's tensors: the start of the name in the file, in the model, and how the rest of the name changes.
Part = tuple[str, str, list[tuple[str, str]]]


class Kind(Enum):
    """What a file holds: how the tensors begin that no other kind has, its name in messages, and its licence."""

    NEUROLM_VQ = ("VQ.", "NeuroLM's neural tokenizer (VQ.pt)", "neurolm")
    NEUROLM = ("GPT2.", "NeuroLM's language model (NeuroLM-*.pt)", "neurolm")
    LABRAM_VQ = ("quantize.", "LaBraM's neural tokenizer (vqnsp.pth)", "labram")
    LABRAM = ("student.", "LaBraM's pre-trained encoder (labram-base.pth)", "labram")
    LABRAM_CLASSIFIER = ("head.", "a fine-tuned LaBraM", "labram")

    def __init__(self, mark: str, words: str, family: str):
        self.mark, self.words, self.family = mark, words, family


LICENCES = {
    "neurolm": "the released code is MIT; its checkpoints are published on the Hub as Weibang/NeuroLM",
    "labram": "the released code is MIT",
}


@dataclass
class ConversionReport:
    """What became of every tensor.

    Attributes:
        converted: name in the checkpoint -> name(s) in the model.
        dropped: name in the checkpoint -> why it is not needed.
        created: name in the model -> why it was not in the checkpoint.
        assumed: what no file says and was taken from the published code, in words.
        untrained: of LaBraM's encoder, the channels whose rows pre-training has left where it starts them.
        missing: what the converted folder cannot do, in words.
    """

    converted: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    created: dict[str, str] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)
    untrained: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{len(self.converted)} tensors converted"]
        for what, reasons in (("dropped", self.dropped), ("created", self.created)):
            lines += [f"{count} {what}: {reason}" for reason, count in Counter(reasons.values()).items()]
        lines += [f"assumed: {sentence}" for sentence in self.assumed]
        if self.untrained:
            lines.append(f"untrained: the rows of {len(self.untrained)} channels: {', '.join(self.untrained)}")
        return "\n".join(lines + [f"missing: {sentence}" for sentence in self.missing])


@dataclass
class Checkpoint:
    """A released file: its tensors without compile prefix, the arguments stored beside them, its origin."""

    path: Path
    tensors: dict[str, torch.Tensor]
    arguments: dict[str, Any]
    provenance: dict[str, Any]

    @property
    def kind(self) -> Kind | None:
        """What it holds, told by its tensors; None: nothing that is known."""
        return next((kind for kind in Kind if any(name.startswith(kind.mark) for name in self.tensors)), None)

    def must_be(self, *kinds: Kind) -> Kind:
        """Its kind, which must be one of these."""
        kind = self.kind
        if kind is None or kind not in kinds:
            found = "nothing that this converter knows" if kind is None else kind.words
            wanted = " nor ".join(one.words for one in kinds)
            raise ValueError(f"{self.path}: holds {found}, {'not' if len(kinds) == 1 else 'neither'} {wanted}.")
        return kind

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


# --- reading ---------------------------------------------------------------------------------------------------------


def read_checkpoint(source: str | Path | Checkpoint, *patterns: str) -> Checkpoint:
    """Maps a file of `torch.save` without unpickling anything but tensors, plain containers and `VALUES`.

    Args:
        source: a file, a file of a Hub repository as `REPO_ID:FILE`, or a `REPO_ID` in which one file fits one of
            `patterns`; a checkpoint that was read before is given back.

    Raises:
        ValueError: if it is not such a checkpoint, naming it.
    """
    if isinstance(source, Checkpoint):
        return source
    path, origin = _locate(source, patterns)
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: not a PyTorch checkpoint (as `torch.save` has written them since PyTorch 1.6).")
    try:
        with torch.serialization.safe_globals(VALUES):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        reason = str(error).splitlines()[0]
        if code:
            reason = f"it holds code ({code[1]}), which is never run"
        elif "weights_only" in reason:  # advice to switch that off
            reason = "beside tensors it holds objects of a kind that is not read"
        raise ValueError(f"{path}: not a PyTorch checkpoint of plain tensors: {reason}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ValueError(f"{path}: not a checkpoint of NeuroLM or LaBraM, it has no 'model' entry.")
    tensors = {str(name).replace(COMPILED, ""): tensor for name, tensor in content["model"].items()}
    if len(tensors) < len(content["model"]):
        raise ValueError(f"{path}: tensors occur both with and without the prefix '{COMPILED}'.")
    if strange := [name for name, tensor in tensors.items() if not isinstance(tensor, torch.Tensor)]:
        raise ValueError(f"{path}: not tensors: {listed(strange)}.")
    arguments = {
        key: vars(value) if isinstance(value, argparse.Namespace) else value
        for key, value in content.items()
        if str(key).endswith("args")
    }
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    checkpoint = Checkpoint(path, tensors, arguments, {**origin, "sha256": digest})
    if checkpoint.kind is not None:
        checkpoint.provenance["licence"] = LICENCES[checkpoint.kind.family]
    numbers = {key: content[key] for key in ("iter_num", "epoch") if isinstance(content.get(key), int)}
    checkpoint.provenance.update(numbers)
    return checkpoint


def _locate(source: str | Path, patterns: Sequence[str]) -> tuple[Path, dict[str, str]]:
    """A local file, downloaded if it is on the Hub, and what to record of where it comes from."""
    path = Path(source)
    if path.is_file():
        return path, {"file": path.name}
    hub = re.fullmatch(r"([\w.-]+/[\w.-]+)(?::(.+))?", str(source))
    if path.exists() or hub is None or (hub[2] is None and path.suffix):
        raise ValueError(f"{source}: no such file (a file of a Hub repository is written REPO_ID:FILE).")
    repository, name = hub[1], hub[2]
    try:
        name = name or _only_file(repository, patterns)
        path = Path(huggingface_hub.hf_hub_download(repository, name))
    except ValueError:
        raise
    except Exception as error:  # the network, the Hub and its client have too many kinds of their own
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{source}: not here, and not to be had from the Hub: {reason}") from error
    # .../snapshots/<commit>/<file>
    commit = path.parts[-1 - len(PurePosixPath(name).parts)]
    return path, {"file": f"{repository}:{name}", "revision": commit}


def _only_file(repository: str, patterns: Sequence[str]) -> str:
    names = [
        name
        for name in huggingface_hub.list_repo_files(repository)
        if any(fnmatch(PurePosixPath(name).name, pattern) for pattern in patterns)
    ]
    if len(names) != 1:
        found = f"it has {listed(names)}" if names else "it has none"
        raise ValueError(f"{repository}: which {' or '.join(patterns)}? Say {repository}:FILE; {found}.")
    return names[0]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What a configuration refuses, as an error that names the file it was read from."""
    try:
        yield
    except StrictDataclassError as error:
        raise ValueError(f"{path}: {error.__cause__ or error}") from error


# --- accounting ------------------------------------------------------------------------------------------------------


def rename_tensors(
    checkpoint: Checkpoint, parts: Sequence[Part], dropped: dict[str, str], report: ConversionReport
) -> dict[str, torch.Tensor]:
    """The tensors under our names and in our shapes.

    Args:
        parts: the first one that a name begins with names it. Where a part has rules, exactly the names that one of
            them fits are known.
        dropped: name -> why it is not needed.

    Raises:
        ValueError: for tensors that are unknown.
    """
    state, unknown = {}, []
    for name, tensor in checkpoint.tensors.items():
        if name in dropped:
            report.dropped[name] = dropped[name]
            continue
        ours = _our_name(name, parts)
        if ours is None:
            unknown.append(name)
            continue
        report.converted[name] = ours
        state[ours] = _our_shape(ours, tensor)
    if unknown:
        raise ValueError(f"{checkpoint.path}: tensors that this converter does not know: {listed(unknown)}.")
    return state


def _our_name(name: str, parts: Sequence[Part]) -> str | None:
    for theirs, ours, rules in parts:
        if not name.startswith(theirs):
            continue
        rest = name.removeprefix(theirs)
        if not rules:
            return ours + rest
        rule = next((rule for rule in rules if re.search(rule[0], rest)), None)
        return None if rule is None else ours + re.sub(*rule, rest)
    return None


def _our_shape(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Without the dimensions of length 1 that only the reference's tensors have."""
    if re.search(r"conv\d\.weight$", name) and tensor.ndim == 4:
        return tensor.squeeze(2)
    if name.endswith("_embedding.weight") and tensor.ndim == 3:
        return tensor.squeeze(0)
    if name.endswith("decoder.embedding.weight") and tensor.ndim == 4:
        return tensor.squeeze(3).squeeze(2)
    if name.endswith("quantizer.initialized") and tensor.numel() == 1:
        return tensor.bool().reshape(())
    return tensor


def check_tensors(model: torch.nn.Module, state: dict[str, torch.Tensor], path: Path) -> None:
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
        raise ValueError(f"{path}: cannot be converted: {listed(problems, '; ')}.")


def fill_model(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Assigns contiguous tensors of the model's types; those that lie on the same memory as another are copied."""
    taken, values = set(), {}
    for name, wanted in model.state_dict().items():
        tensor = state[name].to(wanted.dtype).contiguous()
        values[name] = tensor.clone() if tensor.data_ptr() in taken else tensor
        taken.add(tensor.data_ptr())
    model.load_state_dict(values, strict=True, assign=True)
    model.eval()


def listed(names: Iterable[str], separator: str = ", ") -> str:
    """The first names in order, and how many more."""
    ordered = sorted(names)
    more = f" and {len(ordered) - LISTED} more" if len(ordered) > LISTED else ""
    return separator.join(ordered[:LISTED]) + more
