"""Files of `torch.save`: what is read, what is refused and never run, and how the kinds are told apart."""

import argparse
import pathlib
import zipfile

import numpy as np
import pytest
import torch
from golden import PARITY
from golden_labram import LABRAM_PARITY

from neurolm_hf.released_files import ConversionReport, Kind, read_checkpoint


KINDS = {
    PARITY / "VQ.pt": Kind.NEUROLM_VQ,
    PARITY / "NeuroLM-base.pt": Kind.NEUROLM,
    LABRAM_PARITY / "vqnsp.pth": Kind.LABRAM_VQ,
    LABRAM_PARITY / "labram-base.pth": Kind.LABRAM,
    LABRAM_PARITY / "labram-finetuned.pth": Kind.LABRAM_CLASSIFIER,
}


@pytest.mark.parametrize(("path", "kind"), KINDS.items(), ids=lambda value: getattr(value, "name", None))
def test_the_tensors_tell_what_a_file_holds(path, kind):
    checkpoint = read_checkpoint(path)
    assert checkpoint.must_be(*Kind) is checkpoint.kind is kind
    assert read_checkpoint(checkpoint) is checkpoint
    others = [other for other in Kind if other is not kind]
    with pytest.raises(ValueError, match=rf"{path.name}: holds .*, not ") as refused:
        checkpoint.must_be(others[0])
    assert str(refused.value).startswith(f"{path}: holds {kind.words}, not {others[0].words}")
    with pytest.raises(ValueError, match=r"neither .* nor .* nor "):
        checkpoint.must_be(*others)


def test_tensors_of_nothing_that_is_known(tmp_path):
    torch.save({"model": {"conv.weight": torch.zeros(1)}}, tmp_path / "other.pth")
    checkpoint = read_checkpoint(tmp_path / "other.pth")
    assert checkpoint.kind is None
    assert "licence" not in checkpoint.provenance
    with pytest.raises(ValueError, match=r"other\.pth: holds nothing that this converter knows, not LaBraM's neural"):
        checkpoint.must_be(Kind.LABRAM_VQ)


# --- what stands beside the tensors ----------------------------------------------------------------------------------


def write_as_labram(path, **others):
    """What LaBraM's code saves after an epoch: its command line, and an optimiser with rates out of a NumPy array."""
    weights = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.AdamW([{"params": [weights], "lr_scale": 0.65}], lr=5e-4)
    weights.sum().backward()
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] = np.linspace(0, 5e-4, 3)[1] * group["lr_scale"]
    args = argparse.Namespace(
        model="labram_base_patch200_200", nb_classes=6, drop_path=0.1, opt_betas=[0.9, 0.99], device="cuda", dist=None
    )
    content = {
        "model": {"head.weight": weights.data, "head.bias": torch.zeros(2)},
        "optimizer": optimizer.state_dict(),
        "epoch": 12,
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "args": args,
        **others,
    }
    torch.save(content, path)
    return path


def rewrite(path, old, new):
    """Replaces bytes of the pickle in a file."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            if name.endswith("data.pkl"):
                assert old in data
                data = data.replace(old, new)
            archive.writestr(name, data)


@pytest.mark.parametrize("numpy_version", [1, 2])
def test_what_labrams_code_saves(tmp_path, numpy_version):
    path = write_as_labram(tmp_path / "checkpoint-best.pth")
    if numpy_version == 1:
        rewrite(path, b"cnumpy._core.multiarray\nscalar\n", b"cnumpy.core.multiarray\nscalar\n")
    with pytest.raises(Exception, match="GLOBAL"):
        torch.load(path, weights_only=True)
    checkpoint = read_checkpoint(path)
    assert torch.allclose(checkpoint.tensors["head.weight"], torch.tensor(0.9995), atol=1e-5)
    assert checkpoint.arguments["args"]["drop_path"] == 0.1
    assert checkpoint.arguments["args"]["opt_betas"] == [0.9, 0.99]
    assert checkpoint.provenance.keys() == {"file", "sha256", "licence", "epoch"}
    assert (checkpoint.provenance["epoch"], checkpoint.provenance["licence"]) == (12, "the released code is MIT")
    # what may be read here may not be read elsewhere
    with pytest.raises(Exception, match="GLOBAL"):
        torch.load(path, weights_only=True)


class Touch:
    """Pickled, a call that leaves a trace."""

    def __init__(self, call, *arguments):
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("place", ["model", "optimizer", "args", "scaler"])
def test_code_is_never_run(tmp_path, place):
    touched = tmp_path / "touched"
    calls = {
        "open": (open, str(touched), "w"),
        "exec": (exec, f"open({str(touched)!r}, 'w')"),
        "path": (pathlib.Path.touch, touched),
        "load": (np.load, str(tmp_path / "other.npy"), None, True),
    }
    for name, call in calls.items():
        path = write_as_labram(tmp_path / f"{name}.pth", **{place: {"a": argparse.Namespace(b=Touch(*call))}})
        with pytest.raises(ValueError, match=rf"{name}\.pth: .*it holds code \(\S+\), which is never run\.$"):
            read_checkpoint(path)
    assert not touched.exists()


def test_values_of_other_kinds_are_refused_without_advice_to_read_them_anyway(tmp_path):
    path = write_as_labram(tmp_path / "odd.pth", args=argparse.Namespace(drop_path=np.float32(0.1)))
    with pytest.raises(ValueError, match=r"odd\.pth: .*objects of a kind that is not read\.$"):
        read_checkpoint(path)


def test_files_that_are_no_checkpoint(tmp_path):
    text, legacy = tmp_path / "text.pt", tmp_path / "legacy.pt"
    text.write_text("hello")
    torch.save({"model": {"a": torch.zeros(1)}}, legacy, _use_new_zipfile_serialization=False)
    for path in (text, legacy):
        with pytest.raises(ValueError, match=rf"{path.name}: not a PyTorch checkpoint"):
            read_checkpoint(path)
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt: not a checkpoint of NeuroLM or LaBraM, it has no 'model' entry"):
        read_checkpoint(tmp_path / "list.pt")


def test_a_report_counts_and_names():
    report = ConversionReport(
        converted={"a": "b", "c": "d"},
        dropped={"e": "never read", "f": "never read"},
        assumed=["ten heads"],
        untrained=["FPZ", "T1"],
        missing=["codes"],
    )
    assert str(report).split("\n") == [
        "2 tensors converted",
        "2 dropped: never read",
        "assumed: ten heads",
        "untrained: the rows of 2 channels: FPZ, T1",
        "missing: codes",
    ]
