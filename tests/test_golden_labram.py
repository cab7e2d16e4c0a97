"""LaBraM's own numbers, reproduced: 1e-5 absolute in float32, 1e-4 relative for gradients, codes exact.

`tests/parity/labram` holds what the official LaBraM code (arXiv 2405.18765) computed on one CPU in float32, from tiny
checkpoints in the released layout: the tokenizer, masked modelling, fine-tuning, and one training step of each. Its
`meta.json` says what each tensor is, and which gradients are nothing but rounding. They cannot be made again from this
repository; nothing here may change them.

Each function named `*_numbers` gives our values under the names of the golden file, so that the last test can see
whether any golden tensor was forgotten.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_labram import (
    LABRAM_PARITY,
    classifier,
    golden,
    masked_model,
    metadata,
    recording,
    released,
    tokenizer,
)

from neurolm_hf import LaBraMForSequenceClassification
from neurolm_hf.layers_neurolm import PatchEmbedding
from neurolm_hf.training import optimizer_groups


TOLERANCE = 1e-5
RECORDINGS = range(3)
LABEL_SMOOTHING = 0.1

Numbers = dict[str, torch.Tensor]


def assert_golden(ours: Numbers, file: str) -> None:
    for name, value in ours.items():
        expected = golden(file)[name]
        value = value.detach().reshape(expected.shape)
        if not expected.is_floating_point():
            assert torch.equal(value.to(expected.dtype), expected), name
            continue
        bound = TOLERANCE
        if ".grad." in name:
            bound = 1e-4 * float(expected.abs().max())
        assert float((value - expected).abs().max()) <= bound, name


def layer_outputs(module: torch.nn.Module, run: Callable[[], object]) -> Numbers:
    """What goes into the first block of a transformer and comes out of each while `run` runs, in its first pass."""
    found: Numbers = {}
    hooks = []
    for number, layer in enumerate(module.layers):

        def keep(_: torch.nn.Module, inputs: tuple, output: torch.Tensor, number: int = number) -> None:
            if number == 0:
                found.setdefault("block_input", inputs[0])
            found.setdefault(f"block{number}", output)

        hooks.append(layer.register_forward_hook(keep))
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return found


# --- the tokenizer ---------------------------------------------------------------------------------------------------


@functools.cache
def tokenizer_numbers(index: int) -> Numbers:
    model, _ = tokenizer()
    inputs = recording(index)
    before = model.encoder.quantizer.cluster_size.clone()
    with torch.no_grad():
        outputs = model(**inputs)
        encoded = model.encode(**inputs)
    assert torch.equal(outputs.codes, encoded.codes)
    # evaluation must not move it; the reference's does, and its moving average is ours of these codes
    assert torch.equal(model.encoder.quantizer.cluster_size, before)
    counts = torch.bincount(outputs.codes.flatten(), minlength=len(before))
    decay = model.config.codebook_decay
    batch, channels, samples = golden("inputs")[f"raw_uv.{index}"].shape
    quantized = encoded.quantized.view(batch, channels, samples // 200, -1).permute(0, 3, 1, 2)
    numbers = {
        "cluster_size_after_one_eval_forward": before * decay + counts * (1 - decay),
        "codes": outputs.codes,
        "encoder_features": encoded.features,
        "pre_quant": model.encoder.to_codebook(encoded.features),
        "quant_loss": outputs.commitment_loss,
        "quantized": quantized,
        "rec_amplitude": outputs.amplitude,
        "rec_angle": outputs.phase,
        "rec_angle_loss": outputs.phase_loss,
        "rec_loss": outputs.amplitude_loss,
        "total_loss": outputs.loss,
    }
    if index == 0:
        numbers |= {"target_amplitude": outputs.target_amplitude, "target_angle": outputs.target_phase}
    if index == 1:
        with torch.no_grad():
            numbers["encoder_layers.patch_embed"] = model.encoder.patch_embedding(inputs["input_values"])
            numbers["decoder_layers.patch_embed"] = model.decoder.embedding(encoded.quantized)
        for part in ("encoder", "decoder"):
            layers = layer_outputs(getattr(model, part).transformer, lambda: model(**inputs))
            numbers |= {f"{part}_layers.{name}": value for name, value in layers.items()}
    return {f"{index}.{name}": value for name, value in numbers.items()}


@pytest.mark.parametrize("index", RECORDINGS)
def test_tokenizer(index: int) -> None:
    assert_golden(tokenizer_numbers(index), "tokenizer_outputs")


@functools.cache
def kmeans_numbers() -> Numbers:
    numbers = {}
    for case in ("many", "few"):
        given = {name: golden("tokenizer_outputs")[f"kmeans.{case}.{name}"] for name in ("samples", "start")}
        quantizer = tokenizer()[0].encoder.quantizer
        quantizer.config.codebook_size = len(given["start"])
        quantizer.codebook, quantizer.cluster_size = given["start"].clone(), torch.zeros(len(given["start"]))
        quantizer.refine(given["samples"])
        numbers |= {f"kmeans.{case}.means": quantizer.codebook, f"kmeans.{case}.bins": quantizer.cluster_size}
    return numbers


def test_kmeans() -> None:
    assert_golden(kmeans_numbers(), "tokenizer_outputs")


@pytest.mark.parametrize("channels", [8, 16])
def test_convolutions_of_the_released_widths(channels: int) -> None:
    """At the width of the other fixtures the convolutions' biases cancel."""
    config = tokenizer()[0].config
    config.conv_channels = channels
    module = PatchEmbedding(config)
    given = golden("patch_embed_released_widths")
    weights = {name: given[f"{channels}.{name}"] for name in module.state_dict()}
    module.load_state_dict({name: w.squeeze(2) if w.ndim == 4 else w for name, w in weights.items()})
    raw = golden("inputs")["raw_uv.1"][:, :2] / 100
    with torch.no_grad():
        values = module(raw.reshape(1, -1, 200))
    assert_golden({f"{channels}.output": values}, "patch_embed_released_widths")


# --- masked modelling ------------------------------------------------------------------------------------------------


@functools.cache
def masked_numbers(index: int) -> Numbers:
    model, _ = masked_model()
    inputs, mask = recording(index), golden("inputs")[f"mask.{index}"]
    with torch.no_grad():
        outputs = model(**inputs, masked=mask)
        embeds = model.labram.patch_embedding(inputs["input_values"])
        hidden = {
            name: model.labram.transformer(
                torch.where(where[..., None], model.mask_token, embeds),
                inputs["eeg_channel_ids"],
                inputs["eeg_time_ids"],
                cls_at_first_channel=True,
            )
            for name, where in (("masked", mask), ("complement", ~mask), ("unmasked", torch.zeros_like(mask)))
        }
    numbers = {
        "labels": outputs.labels,
        "loss": outputs.loss,
        "loss_masked": outputs.masked_loss,
        "loss_complement": outputs.complement_loss,
        "logits_masked": outputs.logits[mask],
        "logits_complement": outputs.logits[~mask],
        "accuracy_masked": outputs.patch_hits[mask].float().mean(),
        "accuracy_complement": outputs.patch_hits[~mask].float().mean(),
        "hidden_masked": hidden["masked"],
        "hidden_complement": hidden["complement"],
    }
    if index == 0:
        numbers["hidden_unmasked"] = hidden["unmasked"]
    if index == 1:
        layers = layer_outputs(model.labram.transformer, lambda: model(**inputs, masked=mask))
        numbers |= {f"student_layers_masked.{name}": value for name, value in layers.items()}
        numbers["student_layers_masked.patch_embed"] = embeds
        # a head that never learns, and that no model of ours has: its hidden states are compared with it
        head = [released("labram-base")[f"student.lm_head.{name}"] for name in ("weight", "bias")]
        numbers["student_lm_head_logits_unmasked"] = F.linear(hidden["unmasked"][:, 1:], *head)
    return {f"{index}.{name}": value for name, value in numbers.items()}


@pytest.mark.parametrize("index", RECORDINGS)
def test_masked_modelling(index: int) -> None:
    assert_golden(masked_numbers(index), "mem_outputs")


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def transferred(folder: Path, pooling: str, **fields: object) -> LaBraMForSequenceClassification:
    """The masked model as a classifier, by way of a folder."""
    model, _ = masked_model()
    model.save_pretrained(folder)
    return LaBraMForSequenceClassification.from_pretrained(folder, classifier_pooling=pooling, **fields).eval()


@functools.cache
def transfer_numbers(folder: Path, kind: str) -> Numbers:
    binary = kind == "transfer_binary"
    fields = {"num_labels": 1, "problem_type": "multi_label_classification"} if binary else {"num_labels": 6}
    model = transferred(folder, "cls" if kind == "transfer_cls" else "mean", **fields)
    given = golden("finetune_outputs")
    model.score.load_state_dict({name: given[f"{kind}.head.{name}"] for name in ("weight", "bias")})
    numbers = {}
    for index in RECORDINGS:
        inputs = recording(index)
        labels = given.get(f"{kind}.{index}.targets")
        with torch.no_grad():
            outputs = model(**inputs, labels=labels)
            hidden = model.labram(**inputs).last_hidden_state
        numbers[f"{index}.logits"] = outputs.logits
        if not binary:
            numbers[f"{index}.pooled"] = outputs.features
        if labels is not None:
            numbers[f"{index}.loss"] = outputs.loss
        if index == 1 and not binary:
            numbers["1.tokens"] = hidden if model.pooled_norm is None else model.pooled_norm(hidden)
    return {f"{kind}.{name}": value for name, value in numbers.items()}


KINDS = ("transfer_mean", "transfer_cls", "transfer_binary")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("labram")


@pytest.mark.parametrize("kind", KINDS)
def test_fine_tuning_from_the_masked_model(folder: Path, kind: str) -> None:
    assert_golden(transfer_numbers(folder, kind), "finetune_outputs")


@functools.cache
def finetuned_numbers() -> Numbers:
    model, _ = classifier()
    numbers = {}
    for index in RECORDINGS:
        inputs, labels = recording(index), golden("finetune_outputs")[f"finetuned.{index}.targets"]
        with torch.no_grad():
            outputs = model(**inputs, labels=labels)
            smooth = model(**inputs, labels=labels, smoothing=LABEL_SMOOTHING)
            hidden = model.labram(**inputs).last_hidden_state
        numbers |= {
            f"finetuned.{index}.logits": outputs.logits,
            f"finetuned.{index}.pooled": outputs.features,
            f"finetuned.{index}.tokens": model.pooled_norm(hidden),
            f"finetuned.{index}.loss_plain": outputs.loss,
            f"finetuned.{index}.loss_smoothing_0.1": smooth.loss,
        }
    return numbers


def test_a_fine_tuned_model() -> None:
    assert_golden(finetuned_numbers(), "finetune_outputs")


# --- one training step of each ---------------------------------------------------------------------------------------


@functools.cache
def training_step(kind: str) -> tuple[Numbers, dict[str, torch.Tensor]]:
    """The numbers of a step on recording 0, and every gradient by the reference's name, before any clipping."""
    makers = {"tokenizer": tokenizer, "mem": masked_model, "finetune": classifier}
    model, report = makers[kind]()
    settings = metadata()["training_steps"][kind]
    model.train()
    given = {
        "tokenizer": {},
        "mem": {"masked": golden("inputs")["mask.0"]},
        "finetune": {"labels": golden("finetune_outputs").get("finetuned.0.targets"), "smoothing": LABEL_SMOOTHING},
    }[kind]
    outputs = model(**recording(0), **given)
    outputs.loss.backward()
    parameters = dict(model.named_parameters())
    names = {theirs: ours for theirs, ours in report.converted.items() if ours in parameters}
    gradients = {
        theirs: parameters[ours].grad.clone() for theirs, ours in names.items() if not theirs.endswith("(VQ)")
    }
    numbers = {"loss": outputs.loss}
    if kind == "mem":
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip_grad_norm"])
        numbers["grad_norm_before_clip"] = norm
    groups = optimizer_groups(model, settings["lr"], settings["weight_decay"], settings.get("layer_decay"))
    betas = tuple(settings["opt_betas"] or (0.9, 0.999))
    torch.optim.AdamW(groups, lr=settings["lr"], betas=betas, eps=settings["opt_eps"]).step()
    if kind == "tokenizer":
        numbers = {
            "total_loss": outputs.loss,
            "rec_loss": outputs.amplitude_loss,
            "rec_angle_loss": outputs.phase_loss,
            "quant_loss": outputs.commitment_loss,
        }
        model.update_codebook()
        numbers["codebook_after"] = model.encoder.quantizer.codebook
        numbers["cluster_size_after"] = model.encoder.quantizer.cluster_size
    rows = golden("inputs")["input_chans.0"]
    file = {"tokenizer": "tokenizer_outputs", "mem": "mem_outputs", "finetune": "finetune_outputs"}[kind]
    for name in golden(file):
        what, _, theirs = name.removeprefix("train.").partition(".")
        if not name.startswith(("train.grad.", "train.param_after.")):
            continue
        if theirs.endswith(".used_rows"):
            numbers[f"grad.{theirs}"] = gradients[theirs.removesuffix(".used_rows")][rows]
        elif theirs in names:
            numbers[f"{what}.{theirs}"] = gradients[theirs] if what == "grad" else parameters[names[theirs]]
    return {f"train.{name}": value for name, value in numbers.items()}, gradients


# what no gradient reaches stays as it was in the file; none of it is in our models
UNTOUCHED = {
    "tokenizer_outputs": {
        "train.embed_avg_after": ("vqnsp", "quantize.embedding.embed_avg"),
        "train.embedding_cluster_size_after": ("vqnsp", "quantize.embedding.cluster_size"),
    },
    "mem_outputs": {"train.param_after.projection_head.0.bias": ("labram-base", "projection_head.0.bias")},
    "finetune_outputs": {},
}
STEPS = {"tokenizer": "tokenizer_outputs", "mem": "mem_outputs", "finetune": "finetune_outputs"}


@pytest.mark.parametrize("kind", STEPS)
def test_a_training_step(kind: str) -> None:
    assert_golden(training_step(kind)[0], STEPS[kind])


@pytest.mark.parametrize("kind", STEPS)
def test_every_gradient(kind: str) -> None:
    expected = json.loads((LABRAM_PARITY / "gradients.json").read_text())[kind]
    noise = set(metadata()["gradient_is_rounding_noise"][kind])
    gradients = training_step(kind)[1]
    untrained = {name for name, one in expected.items() if one is None}
    assert untrained == set(metadata()["parameters_without_gradient"][kind])
    assert gradients.keys() == expected.keys() - untrained
    for name in gradients.keys() - noise:
        ours, theirs = gradients[name].double(), expected[name]
        assert float(ours.norm()) == pytest.approx(theirs["norm"], rel=1e-4), name
        assert float(ours.sum()) == pytest.approx(theirs["sum"], rel=1e-4, abs=1e-4 * theirs["norm"]), name
    for name in noise:
        assert float(gradients[name].norm()) < 1e-5, name


def test_what_never_trains_stays() -> None:
    for file, tensors in UNTOUCHED.items():
        for name, (checkpoint, theirs) in tensors.items():
            assert torch.equal(golden(file)[name], released(checkpoint)[theirs]), name


def test_layer_decay_and_weight_decay_of_every_parameter() -> None:
    expected = json.loads((LABRAM_PARITY / "finetune_param_groups.json").read_text())
    model, report = classifier()
    groups = optimizer_groups(model, 1.0, expected["weight_decay"], expected["layer_decay"])
    ours = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    assert {report.converted[name] for name in expected["groups"]} == parameters.keys()
    for name, theirs in expected["groups"].items():
        scale, decay = ours[id(parameters[report.converted[name]])]
        assert (scale, decay) == (pytest.approx(theirs["lr_scale"]), theirs["weight_decay"]), name


# --- nothing forgotten -----------------------------------------------------------------------------------------------

GIVEN = {
    "tokenizer_outputs": {f"kmeans.{case}.{name}" for case in ("many", "few") for name in ("samples", "start")},
    "mem_outputs": set(),
    "finetune_outputs": {
        *(f"{kind}.head.{name}" for kind in KINDS for name in ("weight", "bias")),
        *(f"finetuned.{index}.targets" for index in RECORDINGS),
        "transfer_binary.0.targets",
    },
}


def compared(file: str, folder: Path) -> set[str]:
    numbers: dict[str, list[Numbers]] = {
        "tokenizer_outputs": [*map(tokenizer_numbers, RECORDINGS), kmeans_numbers(), training_step("tokenizer")[0]],
        "mem_outputs": [*map(masked_numbers, RECORDINGS), training_step("mem")[0]],
        "finetune_outputs": [
            *(transfer_numbers(folder, kind) for kind in KINDS),
            finetuned_numbers(),
            training_step("finetune")[0],
        ],
    }
    return {name for one in numbers[file] for name in one}


@pytest.mark.parametrize("file", GIVEN)
def test_every_golden_tensor_is_used(file: str, folder: Path) -> None:
    found = compared(file, folder) | UNTOUCHED[file].keys()
    assert found | GIVEN[file] == golden(file).keys()
    assert not found & GIVEN[file]


def test_every_golden_file_is_used() -> None:
    read = {f"{name}.safetensors" for name in (*GIVEN, "inputs", "patch_embed_released_widths")}
    read |= {f"{name}.pth" for name in ("vqnsp", "labram-base", "labram-finetuned")}
    read |= {"meta.json", "gradients.json", "finetune_param_groups.json"}
    assert {path.name for path in LABRAM_PARITY.iterdir()} == read
