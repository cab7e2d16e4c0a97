"""LaBraM's checkpoints to models: every tensor accounted for, sizes, classes, and the fine-tuned model's numbers."""

import dataclasses
import json
import math
from pathlib import Path

import huggingface_hub
import pytest
import torch
from golden_labram import LABRAM_PARITY, golden, recording, released
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

from neurolm_hf import (
    LaBraMConfig,
    LaBraMForMaskedEEGModeling,
    LaBraMForSequenceClassification,
    LaBraMModel,
    LaBraMVQConfig,
    LaBraMVQModel,
)
from neurolm_hf.conversion_labram import convert_labram, convert_labram_vq
from neurolm_hf.released_files import read_checkpoint


VQ, BASE, FINE_TUNED = (LABRAM_PARITY / f"{name}.pth" for name in ("vqnsp", "labram-base", "labram-finetuned"))
# Names and shapes of the released files.
RELEASED_LAYOUT = json.loads((Path(__file__).parent / "checkpoint_layout_labram.json").read_text())
NEVER_READ = {
    VQ: {"quantize.embedding.cluster_size", "quantize.embedding.embed_avg"},
    BASE: {
        "logit_scale",
        "student.lm_head.weight",
        "student.lm_head.bias",
        "projection_head.0.weight",
        "projection_head.0.bias",
    },
    FINE_TUNED: set(),
}


def convert(checkpoint, path):
    """By the function for the file that it was read from."""
    return convert_labram_vq(checkpoint) if path == VQ else convert_labram(checkpoint)


def changed(path, change, **arguments):
    """A checkpoint after `change(tensors)`, with arguments of the command line in place of some."""
    checkpoint = read_checkpoint(path)
    tensors = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
    change(tensors)
    given = {"args": {**checkpoint.arguments["args"], **arguments}}
    return dataclasses.replace(checkpoint, tensors=tensors, arguments=given)


def renamed(**names):
    """A change that gives tensors other names, in which `__` stands for a dot."""

    def change(tensors):
        for old, new in names.items():
            tensors[new.replace("__", ".")] = tensors.pop(old.replace("__", "."))

    return change


def unchanged(tensors):
    pass


# --- every tensor ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NEVER_READ, ids=lambda path: path.stem)
def test_no_tensor_can_be_left_out(path):
    checkpoint = read_checkpoint(path)
    for name in checkpoint.tensors:
        rest = {other: tensor for other, tensor in checkpoint.tensors.items() if other != name}
        without = dataclasses.replace(checkpoint, tensors=rest)
        if name in NEVER_READ[path]:
            convert(without, path)
            continue
        with pytest.raises(ValueError, match=rf"{path.name}: "):
            convert(without, path)


@pytest.mark.parametrize("path", NEVER_READ, ids=lambda path: path.stem)
def test_no_tensor_can_be_added(path):
    encoder = {VQ: "encoder.", BASE: "student.", FINE_TUNED: ""}[path]
    for name in ("spare.weight", f"{encoder}spare", f"{encoder}blocks.0.attn.k_bias"):
        with pytest.raises(ValueError, match=rf"{path.name}: tensors that this converter does not know: {name}\."):
            convert(changed(path, lambda tensors, name=name: tensors.update({name: torch.zeros(3)})), path)


@pytest.mark.parametrize("path", NEVER_READ, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: torch.zeros(7, 100), r"mlp_out\.weight has the shape \(7, 100\), expected \(100, 80\)"),
        (lambda weight: weight.long(), r"mlp_out\.weight is of torch\.int64, expected torch\.float32"),
        (lambda weight: weight[0], r"mlp_out\.weight has the shape \(80,\), expected \(100, 80\)"),
    ],
)
def test_tensors_of_another_shape(path, change, message):
    def one(tensors):
        name = next(name for name in tensors if name.endswith("blocks.1.mlp.fc2.weight"))
        tensors[name] = change(tensors[name])

    with pytest.raises(ValueError, match=rf"{path.name}: cannot be converted: .*{message}"):
        convert(changed(path, one), path)


@pytest.mark.parametrize("path", NEVER_READ, ids=lambda path: path.stem)
def test_the_report_names_every_tensor(path):
    model, report = convert(path, path)
    tensors = released(path.stem)
    assert report.converted.keys() | report.dropped.keys() == tensors.keys()
    assert report.dropped.keys() == NEVER_READ[path]
    assert set(report.converted.values()) == model.state_dict().keys()
    assert not report.created
    for theirs, ours in report.converted.items():
        ours, expected = model.state_dict()[ours], tensors[theirs]
        assert torch.equal(ours.flatten(), expected.flatten().to(ours.dtype)), theirs


def test_the_report_names_every_tensor_of_both_files():
    model, report = convert_labram(BASE, VQ)
    names = released("labram-base").keys() | {f"{name} (VQ)" for name in released("vqnsp")}
    assert report.converted.keys() | report.dropped.keys() == names
    assert set(report.converted.values()) == model.state_dict().keys()
    assert report.dropped["logit_scale"] == "logit_scale, which no published class has"
    assert "tokenizer alone" in report.dropped["decode_task_layer.0.weight (VQ)"]
    assert "1 dropped: logit_scale" in str(report)
    assert "10 attention heads" in str(report)
    assert not report.missing
    assert convert_labram(BASE)[1].missing[0].startswith("the codes of its own input")


def test_the_tokenizer_beside_the_encoder_is_frozen():
    model, _ = convert_labram(BASE, VQ)
    model.train()
    assert not any(parameter.requires_grad for parameter in model.vq.parameters())
    assert all(parameter.requires_grad for parameter in model.labram.parameters())
    assert not model.vq.training
    codes = model(**recording(2)).labels
    assert torch.equal(codes, golden("tokenizer_outputs")["2.codes"].reshape(codes.shape))


# --- the released layout ---------------------------------------------------------------------------------------------


def write_layouts(folder):
    """Both released files with all values 1, which take no room."""
    for name, layout in RELEASED_LAYOUT.items():
        tensors = {key: torch.ones(()).expand(shape) for key, shape in layout.items()}
        torch.save({"model": tensors}, folder / f"{name}.pth")


def test_the_released_layout(tmp_path):
    """Names and shapes of the released files give the published sizes; nothing is left over or missing."""
    write_layouts(tmp_path)
    vq, report = convert_labram_vq(tmp_path / "vqnsp.pth")
    assert report.converted.keys() | report.dropped.keys() == RELEASED_LAYOUT["vqnsp"].keys()
    assert fields_of(vq.config) == fields_of(LaBraMVQConfig())
    assert sum(parameter.numel() for parameter in vq.parameters() if parameter.requires_grad) == 7_522_640
    model, report = convert_labram(tmp_path / "labram-base.pth", tmp_path / "vqnsp.pth")
    assert report.converted.keys() >= RELEASED_LAYOUT["labram-base"].keys() - NEVER_READ[BASE]
    assert fields_of(model.config) == fields_of(LaBraMConfig())
    assert fields_of(model.config.vq_config) == fields_of(LaBraMVQConfig())
    assert model.labram.num_parameters() == 5_819_936


def fields_of(config):
    """All that is the architecture's."""
    return {
        name: value
        for name, value in config.to_dict().items()
        if name not in ("architectures", "provenance", "vq_config")
    }


# --- what the files do not say ---------------------------------------------------------------------------------------


def keep_rows(*rows):
    """A change that puts rows of the channel table back to where pre-training starts them."""

    def change(tensors):
        table = next(tensor for name, tensor in tensors.items() if name.endswith("pos_embed"))
        for row in rows:
            table[0, row] = torch.linspace(-0.02, 0.02, table.shape[-1])

    return change


def test_channels_that_were_never_trained():
    model, report = convert_labram(changed(BASE, keep_rows(2, 32, 128)))
    names = ["FPZ", "FC2", "P8-O2"]
    assert report.untrained == model.config.provenance["untrained_channels"] == names
    assert "untrained: the rows of 3 channels: FPZ, FC2, P8-O2" in str(report)
    assert "row 0" not in str(report)
    model, report = convert_labram(changed(BASE, keep_rows(0, 128)))
    assert report.untrained == model.config.provenance["untrained_channels"] == ["P8-O2"]
    assert "missing: a trained row of the cls token" in str(report)
    # a single value out of the range is training's
    moved = changed(BASE, keep_rows(2))
    moved.tensors["student.pos_embed"][0, 2, 7] = -0.0201
    assert not convert_labram(moved)[1].untrained
    model, report = convert_labram(BASE)
    assert report.untrained == model.config.provenance["untrained_channels"] == []
    assert "untrained" not in str(report)


def test_channels_that_a_fine_tuned_encoder_never_trained():
    model, report = convert_labram(changed(FINE_TUNED, keep_rows(0, 2)))
    assert report.untrained == model.config.provenance["untrained_channels"] == ["FPZ"]
    assert "cls token" not in str(report)
    # none in the range may be an encoder that started elsewhere: nothing is known
    assert "untrained_channels" not in convert_labram(FINE_TUNED)[0].config.provenance


def test_tokenizer_of_another_codebook():
    def halve(tensors):
        for name in list(tensors):
            if name.startswith("quantize.") and len(tensors[name]) == 64:
                tensors[name] = tensors[name][:32]

    with pytest.raises(
        ValueError, match=r"is not the tokenizer that .*base\.pth was trained with: it has 32 codes, and"
    ):
        convert_labram(BASE, changed(VQ, halve))


@pytest.mark.parametrize(
    ("source", "vq", "message"),
    [
        (
            VQ,
            None,
            r"vqnsp\.pth: holds LaBraM's neural tokenizer .*, neither LaBraM's pre-trained encoder .* nor a fine",
        ),
        (BASE, BASE, r"base\.pth: holds LaBraM's pre-trained encoder .*, not LaBraM's neural tokenizer"),
        (BASE, LABRAM_PARITY.parent / "VQ.pt", r"VQ\.pt: holds NeuroLM's neural tokenizer .*, not LaBraM's neural"),
        (FINE_TUNED, VQ, r"finetuned\.pth: is fine-tuned and needs no codes: leave the tokenizer out"),
    ],
)
def test_files_of_the_wrong_kind(source, vq, message):
    with pytest.raises(ValueError, match=message):
        convert_labram(source, vq)
    with pytest.raises(ValueError, match=r"base\.pth: holds .*, not LaBraM's neural tokenizer \(vqnsp\.pth\)"):
        convert_labram_vq(BASE)


def test_heads_that_do_not_fit():
    def narrow(tensors):
        for name in list(tensors):
            if "_norm." in name and ".attn." in name:
                tensors[name] = tensors[name][:3]

    with pytest.raises(ValueError, match=r"base\.pth: .*multiple of the number of attention heads"):
        convert_labram(changed(BASE, narrow))


# --- fine-tuned ------------------------------------------------------------------------------------------------------


def test_the_head_reads_what_it_was_tuned_on():
    assert convert_labram(FINE_TUNED)[0].config.classifier_pooling == "mean"
    renames = renamed(fc_norm__weight="norm.weight", fc_norm__bias="norm.bias")
    model, report = convert_labram(changed(FINE_TUNED, renames))
    assert model.config.classifier_pooling == "cls"
    assert report.converted["norm.weight"] == "labram.transformer.norm.weight"
    hidden_states = model.labram(**recording(1)).last_hidden_state
    assert torch.equal(model(**recording(1)).logits, model.score(hidden_states[:, 0]))


def test_biases_layer_scale_and_drop_path():
    def default(tensors):
        for block in (0, 1):
            tensors[f"blocks.{block}.attn.q_bias"] = torch.full((100,), 0.5)
            tensors[f"blocks.{block}.attn.v_bias"] = torch.full((100,), -0.5)
            del tensors[f"blocks.{block}.gamma_1"], tensors[f"blocks.{block}.gamma_2"]

    config = convert_labram(FINE_TUNED)[0].config
    assert (config.query_value_bias, config.layer_scale_init, config.drop_path_rate) == (False, 0.1, 0)
    model, _ = convert_labram(changed(FINE_TUNED, default, drop_path=0.2, layer_scale_init_value=0.0))
    assert (model.config.query_value_bias, model.config.layer_scale_init) == (True, None)
    assert model.config.drop_path_rate == 0.2
    assert (model.labram.transformer.layers[1].attention.value_bias == -0.5).all()
    config = convert_labram(changed(FINE_TUNED, unchanged, layer_scale_init_value=1e-5))[0].config
    assert config.layer_scale_init == 1e-5
    # what only matters to more training is left out where it makes no sense
    for strange in ("a tenth", None, 1.0):
        model, _ = convert_labram(changed(FINE_TUNED, unchanged, drop_path=strange, layer_scale_init_value="much"))
        assert (model.config.drop_path_rate, model.config.layer_scale_init) == (0.0, 0.1)


def test_a_codebook_that_was_never_placed():
    unplaced = changed(VQ, lambda tensors: tensors.update({"quantize.embedding.initted": torch.zeros(1)}))
    _, report = convert_labram_vq(unplaced)
    assert any(sentence.startswith("codes: nothing has placed its codebook") for sentence in report.missing)
    with pytest.raises(ValueError, match=r"vqnsp\.pth: its codebook was never placed"):
        convert_labram(BASE, unplaced)


def one_output(tensors):
    tensors["head.weight"], tensors["head.bias"] = tensors["head.weight"][:1], tensors["head.bias"][:1]


def test_one_output_is_the_logit_of_a_yes():
    checkpoint = changed(FINE_TUNED, one_output)
    model, report = convert_labram(checkpoint, classes=("No", "Yes"))
    assert (model.config.num_labels, model.config.id2label, model.config.label2id) == (1, {0: "Yes"}, {"Yes": 0})
    assert model.config.problem_type == "multi_label_classification"
    assert (report.assumed, report.missing) == (["its one output is the logit of a yes"], [])
    with torch.no_grad():
        output = model(**recording(1), labels=torch.ones(1, 1))
    assert float(output.loss) == pytest.approx(math.log1p(math.exp(-float(output.logits))), abs=1e-6)
    unnamed, report = convert_labram(checkpoint)
    assert (unnamed.config.num_labels, unnamed.config.id2label) == (1, {0: "LABEL_0"})
    assert report.missing == ["what its classes are called (`--tasks`)"]
    with pytest.raises(ValueError, match=r"its head has 1 output, which 3 classes \(a, b, c\) do not fit"):
        convert_labram(checkpoint, classes=("a", "b", "c"))


def test_several_outputs_are_classes():
    model, report = convert_labram(FINE_TUNED, classes=tuple("ABCDEF"))
    assert model.config.id2label == dict(enumerate("ABCDEF"))
    assert model.config.problem_type == "single_label_classification"
    assert report.assumed == ["its 6 outputs are classes, of which one is right"]
    with pytest.raises(ValueError, match=r"its head has 6 outputs, which 2 classes \(No, Yes\) do not fit"):
        convert_labram(FINE_TUNED, classes=("No", "Yes"))
    with pytest.raises(ValueError, match=r"base\.pth: is not fine-tuned, it has no head"):
        convert_labram(BASE, classes=("No", "Yes"))


# --- the Hub ---------------------------------------------------------------------------------------------------------


def test_files_of_the_hub(monkeypatch):
    snapshot = LABRAM_PARITY.parent
    there = [f"{LABRAM_PARITY.name}/{path.name}" for path in LABRAM_PARITY.iterdir()]
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name: str(snapshot / name))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository: there)
    model, _ = convert_labram("me/LaBraM:labram/labram-base.pth", "me/LaBraM")
    provenance = model.config.provenance
    assert provenance["labram"]["file"] == "me/LaBraM:labram/labram-base.pth"
    assert provenance["vq"]["file"] == "me/LaBraM:labram/vqnsp.pth"
    assert provenance["vq"]["revision"] == snapshot.name
    found = "labram/labram-base.pth, labram/labram-finetuned.pth"
    with pytest.raises(ValueError, match=rf"me/LaBraM: which labram\*\.pth\? Say me/LaBraM:FILE; it has {found}\."):
        convert_labram("me/LaBraM")


# --- saved and opened again ------------------------------------------------------------------------------------------


def assert_same(model, other):
    assert type(model) is type(other)
    assert model.state_dict().keys() == other.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_converted_models_open_again(tmp_path):
    vq, _ = convert_labram_vq(VQ)
    vq.save_pretrained(tmp_path / "vq")
    assert_same(AutoModel.from_pretrained(tmp_path / "vq"), vq)
    assert isinstance(vq, LaBraMVQModel)
    masked, _ = convert_labram(BASE, VQ)
    masked.save_pretrained(tmp_path / "masked")
    opened = AutoModelForPreTraining.from_pretrained(tmp_path / "masked")
    assert_same(opened, masked)
    assert isinstance(opened, LaBraMForMaskedEEGModeling)
    assert opened.config.provenance == masked.config.provenance
    encoder = AutoModel.from_pretrained(tmp_path / "masked")
    assert isinstance(encoder, LaBraMModel)
    assert_same(encoder, masked.labram)
    classifier, _ = convert_labram(FINE_TUNED)
    classifier.save_pretrained(tmp_path / "classifier")
    assert_same(AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier"), classifier)


@pytest.mark.parametrize("index", range(3))
def test_the_fine_tuned_model_computes_the_golden_numbers(tmp_path, index):
    convert_labram(FINE_TUNED)[0].save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(model, LaBraMForSequenceClassification)
    expected = {
        name.removeprefix(f"finetuned.{index}."): tensor
        for name, tensor in golden("finetune_outputs").items()
        if name.startswith(f"finetuned.{index}.")
    }
    targets = expected.pop("targets")
    with torch.no_grad():
        tokens = model.pooled_norm(model.labram(**recording(index)).last_hidden_state)
        plain = model(**recording(index), labels=targets)
        model.train()
        smoothed = model(**recording(index), labels=targets, smoothing=0.1)
    ours = {
        "logits": plain.logits,
        "pooled": plain.features,
        "tokens": tokens,
        "loss_plain": plain.loss,
        "loss_smoothing_0.1": smoothed.loss,
    }
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        assert float((tensor - expected[name]).abs().max()) <= 1e-5, name
