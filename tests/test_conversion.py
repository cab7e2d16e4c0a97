"""Released checkpoints to folders: every tensor accounted for, both ways."""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from golden import PARITY, golden, prompt_of, recording
from safetensors.torch import load_file

from neurolm_hf import NeuroLMForCausalLM, NeuroLMVQModel
from neurolm_hf.conversion import convert_neurolm, convert_vq
from neurolm_hf.processing_neurolm import build_text_tokenizer


REPOSITORY = Path(__file__).parents[1]
GPT2 = REPOSITORY.parent / "shared" / "gpt2"
VQ, NEUROLM = PARITY / "VQ.pt", PARITY / "NeuroLM-base.pt"

# Names and shapes of the released VQ.pt and NeuroLM-B.pt.
RELEASED_LAYOUT = Path(__file__).parent / "checkpoint_layout.json"
RELEASED_ARGUMENTS = {
    "VQ": {"encoder_args": {"n_head": 12}, "decoder_args": {"n_head": 12}},
    "NeuroLM-B": {"model_args": {"n_head": 12}},
}


def write(folder, source, change, name=None):
    """A copy of a golden checkpoint after `change(content)`, its tensors being in `content["model"]`."""
    content = torch.load(source, weights_only=True)
    change(content)
    path = folder / (name or source.name)
    torch.save(content, path)
    return path


# --- every tensor ----------------------------------------------------------------------------------------------------


def add_unknown(content):
    content["model"]["spare.weight"] = torch.zeros(3)


def remove_norm(content):
    del content["model"][next(name for name in content["model"] if name.endswith("fc_norm.bias"))]


def widen_time(content):
    name = next(name for name in content["model"] if name.endswith("blocks.0.mlp.c_fc.weight"))
    content["model"][name] = torch.zeros(7, 48)


def make_integer(content):
    name = next(name for name in content["model"] if name.endswith("blocks.0.mlp.c_fc.weight"))
    content["model"][name] = content["model"][name].long()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_unknown, r"does not know: spare\.weight"),
        (remove_norm, r"missing .*transformer\.norm\.bias"),
        (widen_time, r"mlp_in\.weight has the shape \(7, 48\), expected \(192, 48\)"),
        (make_integer, r"mlp_in\.weight is of torch\.int64"),
        (lambda content: content["model"].update(note="hello"), "not tensors: note"),
        (lambda content: content.pop("model"), "has no 'model' entry"),
    ],
)
def test_strict_both_ways(tmp_path, change, message):
    with pytest.raises(ValueError, match=rf"VQ\.pt: .*{message}"):
        convert_vq(write(tmp_path, VQ, change))
    with pytest.raises(ValueError, match=rf"NeuroLM-base\.pt: .*{message}"):
        convert_neurolm(write(tmp_path, NEUROLM, change))


@pytest.mark.parametrize("name", sorted(torch.load(VQ, weights_only=True)["model"]))
def test_no_tensor_of_a_tokenizer_can_be_left_out(tmp_path, name):
    path = write(tmp_path, VQ, lambda content: content["model"].pop(name))
    if name in ("VQ.quantize.embedding.cluster_size", "VQ.quantize.embedding.embed_avg"):
        # never read, by the reference neither
        convert_vq(path)
        return
    with pytest.raises(ValueError, match=r"VQ\.pt: "):
        convert_vq(path)
    # nor where a language model needs a part of it only
    with pytest.raises(ValueError, match=r"VQ\.pt"):
        convert_neurolm(NEUROLM, path)


@pytest.mark.parametrize("name", sorted(torch.load(NEUROLM, weights_only=True)["model"]))
def test_no_tensor_of_a_language_model_can_be_left_out(tmp_path, name):
    with pytest.raises(ValueError, match=r"NeuroLM-base\.pt: "):
        convert_neurolm(write(tmp_path, NEUROLM, lambda content: content["model"].pop(name)))


def test_report_names_every_tensor():
    vq, neurolm = (set(torch.load(path, weights_only=True)["model"]) for path in (VQ, NEUROLM))
    _, report = convert_vq(VQ)
    assert report.converted.keys() | report.dropped.keys() == vq
    model, report = convert_neurolm(NEUROLM, VQ)
    assert report.converted.keys() | report.dropped.keys() == neurolm | {f"{name} (VQ)" for name in vq}
    filled = {target for targets in report.converted.values() for target in targets.split(" and ")}
    assert filled | report.created.keys() == model.state_dict().keys()
    model, report = convert_neurolm(PARITY / "NeuroLM-nobias.pt", VQ)
    filled = {target for targets in report.converted.values() for target in targets.split(" and ")}
    assert filled | report.created.keys() == model.state_dict().keys()
    assert len(report.created) == 13
    assert all(name.endswith(".bias") for name in report.created)


def test_a_tokenizer_without_adversary(tmp_path):
    def strip(content):
        for name in [name for name in content["model"] if name.startswith(("domain_classifier.", "wte."))]:
            del content["model"][name]

    path = write(tmp_path, VQ, strip)
    model, report = convert_vq(path)
    assert type(model) is NeuroLMVQModel
    assert "adversary" in report.missing[0]
    assert convert_neurolm(NEUROLM, path)[0].config.eeg_token_id == 511


def test_compile_prefix(tmp_path):
    def compiled(content):
        content["model"] = {f"_orig_mod.{name}": tensor for name, tensor in content["model"].items()}

    def twice(content):
        content["model"] |= {f"_orig_mod.{name}": tensor for name, tensor in content["model"].items()}

    model, _ = convert_neurolm(write(tmp_path, NEUROLM, compiled), write(tmp_path, VQ, compiled))
    expected, _ = convert_neurolm(NEUROLM, VQ)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="both with and without"):
        convert_vq(write(tmp_path, VQ, twice))


def test_tokenizer_of_another_encoder(tmp_path):
    def retrain(content):
        content["model"]["VQ.encoder.blocks.1.mlp.c_fc.weight"][3, 4] += 1e-3

    path = write(tmp_path, VQ, retrain)
    with pytest.raises(ValueError, match=r"is not the tokenizer that .*NeuroLM-base\.pt was trained with"):
        convert_neurolm(NEUROLM, path)


def test_files_of_the_wrong_kind():
    with pytest.raises(
        ValueError, match=r"base\.pt: holds NeuroLM's language model .*, not NeuroLM's neural tokenizer"
    ):
        convert_vq(NEUROLM)
    with pytest.raises(ValueError, match=r"VQ\.pt: holds NeuroLM's neural tokenizer .*, not NeuroLM's language model"):
        convert_neurolm(VQ)
    with pytest.raises(ValueError, match=r"absent\.pt: no such file"):
        convert_vq("checkpoints/absent.pt")


@pytest.mark.parametrize("name", ["encoder_args", "decoder_args"])
def test_heads_must_be_known_and_fit(tmp_path, name):
    with pytest.raises(ValueError, match=rf"its `{name}` do not say"):
        convert_vq(write(tmp_path, VQ, lambda content: content.pop(name)))
    with pytest.raises(ValueError, match=r"VQ\.pt: .*multiple of the number of attention heads"):
        convert_vq(write(tmp_path, VQ, lambda content: content[name].update(n_head=7)))


def test_training_one_model_leaves_the_file_and_other_models_alone():
    content = {path: path.read_bytes() for path in (VQ, NEUROLM)}
    one, other = (convert_neurolm(NEUROLM, VQ)[0] for _ in range(2))
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with torch.no_grad():
        for tensor in one.state_dict().values():
            tensor.copy_(torch.ones_like(tensor))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for path in content:
        assert path.read_bytes() == content[path]


def test_no_two_tensors_of_a_model_share_memory(tmp_path):
    def tie(content):
        tensors = content["model"]
        tensors["VQ.decoder_raw.pos_embed.weight"] = tensors["VQ.decoder_freq.pos_embed.weight"]

    model, _ = convert_vq(write(tmp_path, VQ, tie))
    pointers = [tensor.data_ptr() for tensor in model.state_dict().values()]
    assert len(pointers) == len(set(pointers))


def test_half_precision_becomes_float32(tmp_path):
    def halve(content):
        content["model"] = {
            name: tensor.bfloat16() if tensor.is_floating_point() else tensor
            for name, tensor in content["model"].items()
        }

    model, _ = convert_vq(write(tmp_path, VQ, halve))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32, torch.bool}


# --- the released layout ---------------------------------------------------------------------------------------------


def test_released_layout(tmp_path):
    """Names and shapes of the released files give the paper's sizes; nothing is left over or missing."""
    write_layouts(tmp_path)
    vq, report = convert_vq(tmp_path / "VQ.pt")
    assert report.converted.keys() | report.dropped.keys() == json.loads(RELEASED_LAYOUT.read_text())["VQ"].keys()
    defaults = type(vq.config)(provenance=vq.config.provenance)
    assert {k: v for k, v in vq.config.to_dict().items() if k != "architectures"} == {
        k: v for k, v in defaults.to_dict().items() if k != "architectures"
    }
    model, _ = convert_neurolm(tmp_path / "NeuroLM-B.pt")
    preset = type(model.config).from_preset("B").get_text_config()
    for field in ("n_layer", "n_embd", "n_head", "n_positions", "vocab_size", "eos_token_id", "activation_function"):
        assert getattr(model.config.get_text_config(), field) == getattr(preset, field), field
    assert model.code_head.weight.shape == (8192, 768)
    assert model.config.eeg_token_id == 50303
    assert model.generation_config.suppress_tokens == list(range(50257, 50304))
    assert model.generation_config.eos_token_id == 50256


@pytest.mark.skipif(not GPT2.exists(), reason="needs ../shared/gpt2")
def test_text_tokenizer_of_the_released_layout(tmp_path):
    write_layouts(tmp_path)
    model, _ = convert_neurolm(tmp_path / "NeuroLM-B.pt", text_tokenizer=build_text_tokenizer(GPT2))
    assert model.config.eeg_token_id == 50258
    assert model.generation_config.suppress_tokens == list(range(50257, 50304))
    assert (model.generation_config.eos_token_id, model.generation_config.pad_token_id) == (50256, 50259)


def write_layouts(folder):
    """Both released files without values, a few kilobytes."""
    for name, layout in json.loads(RELEASED_LAYOUT.read_text()).items():
        tensors = {key: torch.empty(shape, device="meta") for key, shape in layout.items()}
        torch.save({"model": tensors, **RELEASED_ARGUMENTS[name]}, folder / f"{name}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("parts", [("VQ",), ("NeuroLM-B",), ("VQ", "NeuroLM-B")], ids="+".join)
def test_peak_memory(released_files, tmp_path, parts):
    """The whole process, imports included, stays below three times the checkpoint, the larger one of two."""
    options = {"VQ": "--vq", "NeuroLM-B": "--neurolm"}
    arguments = [argument for part in parts for argument in (options[part], str(released_files[part]))]
    arguments += ["--text-tokenizer", "none", "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "neurolm_hf", "convert", *arguments]
    # from a small process in between: a child's peak begins with what its parent held when it was started
    measure = "import resource as r, subprocess as s, sys; s.run(sys.argv[1:], check=True, stdout=sys.stderr)"
    measure += "; print(r.getrusage(r.RUSAGE_CHILDREN).ru_maxrss)"
    command = [sys.executable, "-c", measure, *command]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True)
    size = max(released_files[part].stat().st_size for part in parts)
    ratio = int(done.stdout) * 1024 / size
    print(f"{'+'.join(parts)}: peak memory {ratio:.2f} times a checkpoint of {size / 1e9:.2f} GB")
    assert ratio < 3
    saved = load_file(tmp_path / "out" / "model.safetensors")
    if "NeuroLM-B" in parts:
        theirs = torch.load(released_files["NeuroLM-B"], weights_only=True, mmap=True)["model"]
        name = "h.11.mlp.c_fc.weight"
        assert torch.equal(saved[f"model.language_model.{name}"], theirs[f"GPT2.transformer.{name}"].T)
        assert torch.equal(saved["code_head.weight"], theirs["GPT2.lm_head.weight"][50304:])
        assert ("model.eeg_encoder.quantizer.codebook" in saved) == ("VQ" in parts)


@pytest.fixture(scope="module")
def released_files(tmp_path_factory):
    """Both released files, 0.7 and 1.0 GB, with random values."""
    folder = tmp_path_factory.mktemp("released")
    layouts = json.loads(RELEASED_LAYOUT.read_text())
    generator = torch.Generator().manual_seed(0)
    tensors = {
        file: {name: torch.randn(shape, generator=generator) for name, shape in layout.items()}
        for file, layout in layouts.items()
    }
    language_model = tensors["NeuroLM-B"]
    for name in language_model:
        if name.startswith("tokenizer."):
            language_model[name] = tensors["VQ"][name.replace("tokenizer.", "VQ.encoder.", 1)]
    paths = {file: folder / f"{file}.pt" for file in tensors}
    for file, path in paths.items():
        torch.save({"model": tensors[file], **RELEASED_ARGUMENTS[file]}, path)
    del tensors, language_model
    yield paths
    for path in paths.values():
        path.unlink()


# --- the Hub ---------------------------------------------------------------------------------------------------------


def assert_golden_logits(model, index):
    with torch.no_grad():
        logits = model(input_ids=prompt_of("base", index, model.config.eeg_token_id), **recording(index)).logits
    expected = golden("neurolm_base_outputs")[f"single.{index}.logits"]
    assert float((logits - expected).abs().max()) <= 1e-5


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub repository with the golden files, and what was asked of it."""
    snapshot = tmp_path / "models--Weibang--NeuroLM" / "snapshots" / "c0ffee"
    (snapshot / "checkpoints").mkdir(parents=True)
    names = {"VQ.pt": VQ, "NeuroLM-B.pt": NEUROLM, "NeuroLM-L.pt": PARITY / "NeuroLM-large.pt"}
    for name, path in names.items():
        (snapshot / "checkpoints" / name).symlink_to(path)
    asked = []

    def download(repository, name):
        asked.append((repository, name))
        if not (snapshot / name).exists():
            raise huggingface_hub.errors.EntryNotFoundError("404: no such entry\nRequest ID: 7")
        return str(snapshot / name)

    def files(repository):
        asked.append(repository)
        return ["README.md", *(f"checkpoints/{name}" for name in names)]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", files)
    return asked


def test_files_of_the_hub(hub):
    model, _ = convert_neurolm("Weibang/NeuroLM:checkpoints/NeuroLM-B.pt", "Weibang/NeuroLM")
    assert isinstance(model, NeuroLMForCausalLM)
    assert hub == [
        ("Weibang/NeuroLM", "checkpoints/NeuroLM-B.pt"),
        "Weibang/NeuroLM",
        ("Weibang/NeuroLM", "checkpoints/VQ.pt"),
    ]
    assert model.config.provenance["vq"]["file"] == "Weibang/NeuroLM:checkpoints/VQ.pt"
    assert model.config.provenance["neurolm"]["revision"] == "c0ffee"
    assert_golden_logits(model, 0)


def test_files_that_the_hub_cannot_give(hub):
    there = "checkpoints/NeuroLM-B.pt, checkpoints/NeuroLM-L.pt"
    with pytest.raises(ValueError, match=f"Say Weibang/NeuroLM:FILE; it has {there}"):
        convert_neurolm("Weibang/NeuroLM")
    with pytest.raises(
        ValueError, match=r"NeuroLM-M\.pt: not here, and not to be had from the Hub: 404: no such entry"
    ):
        convert_neurolm("Weibang/NeuroLM:NeuroLM-M.pt")
