"""LaBraM's weights: saved, loaded by other classes, in other precisions and places, adapted, compiled."""

import copy
import json

import pytest
import torch
from labram_folders import write_labram_folders
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from tiny import EEG, randomize
from tiny_labram import labram_batch, labram_classifier, labram_config, labram_vq, masked_model
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification

from neurolm_hf import (
    LaBraMForMaskedEEGModeling,
    LaBraMForSequenceClassification,
    LaBraMModel,
    LaBraMVQModel,
)
from neurolm_hf.model_card import model_card
from neurolm_hf.starting_models import load_classifier


SAMPLES = (EEG((4, 8), 2, seed=1), EEG((1, 4, 6), 3, seed=2), EEG((10,), 4, seed=3))
MAKERS = [
    pytest.param(labram_vq, AutoModel, id="tokenizer"),
    pytest.param(masked_model, AutoModelForPreTraining, id="masked"),
    pytest.param(labram_classifier, AutoModelForSequenceClassification, id="classifier"),
]


def loss_of(model):
    """Of the same masks and labels."""
    batch = labram_batch(*SAMPLES)
    if isinstance(model, LaBraMForSequenceClassification):
        batch["labels"] = torch.tensor([0, 1, 1])
    torch.manual_seed(0)
    return model(**batch).loss


def assert_same_weights(actual, expected):
    actual, expected = actual.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


def assert_nothing_lost(info):
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize(("make", "auto_class"), MAKERS)
def test_saved_and_loaded_bit_for_bit(make, auto_class, tmp_path):
    model = make()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    loaded, info = auto_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model)
    assert_nothing_lost(info)
    assert_same_weights(loaded, model)
    assert not loaded.training
    assert torch.equal(loss_of(loaded), loss_of(model))
    trained = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert trained == {name for name in dict(model.named_parameters()) if not name.startswith("vq.")}
    loaded.save_pretrained(tmp_path / "again")
    first, second = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path, tmp_path / "again"))
    # loading writes the type of the weights into the parts as well
    (second.get("vq_config") or {}).pop("dtype", None)
    assert first == second
    low = auto_class.from_pretrained(tmp_path, device_map="cpu", attn_implementation="eager")
    assert {p.device.type for p in low.parameters()} == {"cpu"}
    torch.testing.assert_close(loss_of(low), loss_of(model), atol=1e-5, rtol=1e-4)


def test_the_tokenizer_within_stays_frozen(tmp_path):
    masked_model().save_pretrained(tmp_path)
    loaded = LaBraMForMaskedEEGModeling.from_pretrained(tmp_path).train()
    assert not any(p.requires_grad for p in loaded.vq.parameters())
    assert not loaded.vq.training
    assert loaded.labram.training
    assert bool(loaded.vq.quantizer.initialized)


# --- what opens from what --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_pre_trained_folder_gets_a_head_and_its_norm_is_not_taken_for_another(pooling, tmp_path):
    whole = masked_model()
    whole.save_pretrained(tmp_path)
    torch.manual_seed(1)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=5, classifier_pooling=pooling, drop_path_rate=0.1, output_loading_info=True
    )
    new, unread = (
        {f"{module}.{part}" for module in modules for part in ("weight", "bias")}
        for modules in (
            (["score", "pooled_norm"], ["labram.transformer.norm"]) if pooling == "mean" else (["score"], [])
        )
    )
    assert set(info["missing_keys"]) == new
    # the heads of pre-training are known; the norm that nothing reads any more is told
    assert set(info["unexpected_keys"]) == unread
    assert not info["mismatched_keys"]
    if pooling == "mean":
        assert (model.pooled_norm.weight == 1).all()
        assert not model.pooled_norm.bias.any()
    for name, value in whole.labram.state_dict().items():
        if pooling == "cls" or not name.startswith("transformer.norm."):
            assert torch.equal(model.labram.state_dict()[name], value), name
    # a head that says little at first, whatever the folder was
    assert model.score.weight.shape == (5, 100)
    assert 0 < model.score.weight.abs().max() < 1e-4
    assert model.labram.transformer.layers[-1].drop_path == 0.1
    assert all(p.requires_grad for p in model.parameters())


def test_an_encoder_opens_from_any_of_its_folders(tmp_path):
    for make, known in ((masked_model, {"transformer.norm"}), (labram_classifier, set())):
        whole = make()
        whole.save_pretrained(tmp_path)
        base, info = LaBraMModel.from_pretrained(tmp_path, output_loading_info=True)
        missing = {name.rpartition(".")[0] for name in info["missing_keys"]}
        assert missing == (set() if known else {"transformer.norm"})
        for name, value in whole.labram.state_dict().items():
            assert torch.equal(base.state_dict()[name], value), name
    masked_model().labram.save_pretrained(tmp_path / "base")
    again, info = LaBraMForMaskedEEGModeling.from_pretrained(
        tmp_path / "base", vq_config=None, output_loading_info=True
    )
    assert set(info["missing_keys"]) == {"mask_token", "code_head.weight", "code_head.bias"}
    assert again.code_head.weight.abs().max() <= 0.02 * (1 + 1e-6)


def test_a_key_that_belongs_nowhere_is_reported(tmp_path):
    for make in (labram_vq, masked_model, labram_classifier):
        model = make()
        model.save_pretrained(tmp_path, state_dict={**model.state_dict(), "stray.weight": torch.zeros(2)})
        _, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert set(info["unexpected_keys"]) == {"stray.weight"}


# --- precision and place ---------------------------------------------------------------------------------------------


def quantizer_of(model):
    return (model.vq if isinstance(model, LaBraMForMaskedEEGModeling) else model.encoder).quantizer


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [labram_vq, masked_model])
def test_the_codebook_stays_in_float32(make, dtype, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    loaded, cast = type(model).from_pretrained(tmp_path, dtype=dtype), copy.deepcopy(model).to(dtype)
    for low in (loaded, cast):
        assert low.dtype == dtype
        for name, buffer in quantizer_of(model).named_buffers():
            assert torch.equal(quantizer_of(low).get_buffer(name), buffer)
            assert quantizer_of(low).get_buffer(name).dtype == buffer.dtype
        loss = loss_of(low.train())
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, loss_of(model), atol=0.1, rtol=0.05)
        loss.backward()
        assert all(p.grad.isfinite().all() for p in low.parameters() if p.grad is not None)
    # before the codebook vectors are made in full, too
    full = {name for name, p in loaded.named_parameters() if p.dtype == torch.float32}
    assert full
    assert all("to_codebook" in name for name in full)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_classifier_in_bfloat16(pooling, tmp_path):
    model = labram_classifier(classifier_pooling=pooling)
    model.save_pretrained(tmp_path)
    loaded = LaBraMForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    output = loaded(**labram_batch(*SAMPLES), labels=torch.tensor([0, 1, 1]))
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    torch.testing.assert_close(output.logits.float(), model(**labram_batch(*SAMPLES)).logits, atol=0.1, rtol=0.1)


@pytest.mark.parametrize(("make", "auto_class"), MAKERS)
def test_meta_device(make, auto_class):
    model = make()
    with torch.device("meta"):
        skeleton = type(model)(model.config)
    assert {tensor.device.type for tensor in skeleton.state_dict().values()} == {"meta"}
    skeleton = skeleton.to_empty(device="cpu")
    skeleton.load_state_dict(model.state_dict())
    assert torch.equal(loss_of(skeleton.eval()), loss_of(model))


# --- adapters --------------------------------------------------------------------------------------------------------


# the norm before the head is as new as the head
LORA = {
    "r": 4,
    "target_modules": ["qkv"],
    "init_lora_weights": False,
    "modules_to_save": ["score", "pooled_norm"],
    "task_type": "SEQ_CLS",
}


def test_an_adapter_on_a_pre_trained_folder_opens_as_a_classifier(tmp_path):
    base = write_labram_folders(tmp_path) / "masked"
    model, processor = load_classifier(str(base), ("No", "Yes", "Perhaps"))
    torch.manual_seed(0)
    adapted = get_peft_model(model, LoraConfig(**LORA)).eval()
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if p.requires_grad and "lora" not in name:
                p.add_(torch.randn(p.shape))
        expected = adapted(**labram_batch(*SAMPLES)).logits
    adapted.save_pretrained(tmp_path / "adapter")
    model.config.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    merged, own = load_classifier(str(tmp_path / "adapter"), ("No", "Yes", "Perhaps"))
    assert isinstance(merged, LaBraMForSequenceClassification)
    assert own.feature_extractor.token_order == "channel_major"
    again = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=3).eval()
    for one in (merged.eval(), again):
        with torch.no_grad():
            torch.testing.assert_close(one(**labram_batch(*SAMPLES)).logits, expected, atol=1e-5, rtol=1e-5)
    card = model_card(tmp_path / "adapter")
    assert "An adapter (LORA) of a [LaBraM](https://arxiv.org/abs/2405.18765) that sorts windows of EEG" in card
    assert "Classes: No, Yes, Perhaps." in card


def test_lora_on_a_classifier(tmp_path):
    reference = labram_classifier()
    config = LoraConfig(**LORA)
    torch.manual_seed(0)
    adapted = get_peft_model(copy.deepcopy(reference), config)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert {name.rpartition("lora_")[0] for name in trained if "lora" in name} == {
        f"base_model.model.labram.transformer.layers.{block}.attention.qkv." for block in range(3)
    }
    assert any("score" in name for name in trained)
    loss_of(adapted.get_base_model().train()).backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    batch = labram_batch(*SAMPLES)
    with torch.no_grad():
        expected = adapted.eval()(**batch).logits
        assert (expected - reference(**batch).logits).abs().max() > 1e-3
        adapted.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(copy.deepcopy(reference), tmp_path).eval()
        torch.testing.assert_close(again(**batch).logits, expected)
        merged = again.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, expected, atol=1e-5, rtol=1e-5)
    assert merged.state_dict().keys() == reference.state_dict().keys()


# --- compiled --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_compiled_forward_is_the_same():
    for make in (labram_vq, labram_classifier):
        model = make()
        batch = labram_batch(*SAMPLES)
        with torch.no_grad():
            expected = model(**batch)
            output = torch.compile(model)(**batch)
        for name in expected:
            torch.testing.assert_close(output[name], expected[name], atol=1e-5, rtol=1e-4)
    torch.compiler.reset()


def test_new_weights_are_the_same_for_the_same_seed():
    for kind, config in ((LaBraMVQModel, labram_vq().config), (LaBraMForMaskedEEGModeling, labram_config())):
        made = []
        for _ in range(2):
            torch.manual_seed(3)
            made.append(kind(config))
        assert_same_weights(*made)
        assert loss_of(randomize(made[0])).isfinite()
