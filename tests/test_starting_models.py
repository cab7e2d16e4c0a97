"""A stage starts from what fits it, and says in one sentence what does not."""

import shutil

import pytest
import torch
from labram_folders import write_labram_folders
from safetensors.torch import load_file, save_file
from stage_folders import (
    write_language_model,
    write_text_model,
    write_tokenizer,
    write_vq,
)
from test_lora import stir
from tiny import EEG, vq_batch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from neurolm_hf import EEGFeatureExtractor, NeuroLMVQForPreTraining, NeuroLMVQModel
from neurolm_hf.lora import add_adapter, lora_config
from neurolm_hf.processing_neurolm import build_text_tokenizer
from neurolm_hf.starting_models import (
    add_text_adversary,
    describe_source,
    is_classifier,
    join,
    load_classifier,
    load_language_model,
    load_vq,
    new_text_model,
    new_vq,
    read_text_tokenizer,
    set_dropout,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> folder, as strings."""
    root = tmp_path_factory.mktemp("starts")
    made = {"tokenizer": write_tokenizer(root / "tokenizer"), "vq": write_vq(root / "vq")}
    for kind in ("gpt2", "llama", "qwen3"):
        made[kind] = write_text_model(root / kind, made["tokenizer"], kind)
    made["wide"] = write_text_model(root / "wide", made["tokenizer"], "gpt2", width=64)
    made["model"] = write_language_model(root / "model", made["vq"], made["gpt2"])
    made["tuned"] = write_language_model(root / "tuned", made["vq"], made["gpt2"], stage="instruction-tuned")
    made["labram"] = write_labram_folders(root / "labram") / "masked"
    made["empty"] = root / "empty"
    made["empty"].mkdir()
    made["adapter"] = root / "adapter"
    made["adapter"].mkdir()
    (made["adapter"] / "adapter_config.json").write_text("{}")
    return {name: str(folder) for name, folder in made.items()}


def test_a_new_tokenizer_has_the_patches_of_the_data():
    extractor = EEGFeatureExtractor(max_seconds=8)
    vq = new_vq(extractor, {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "codebook_size": 7})
    config = vq.config
    assert (config.patch_size, config.max_seconds, config.hidden_size, config.codebook_size) == (200, 8, 16, 7)
    # what follows from another field still does
    assert config.decoder_hidden_size == 16
    with pytest.raises(ValueError, match="NeuroLMVQConfig has no field hidden, layers"):
        new_vq(extractor, {"layers": 3, "hidden": 1})


def test_a_trained_tokenizer_computes_as_before(folders):
    loaded, extractor = load_vq(folders["vq"])
    assert extractor.notch_frequency == 50
    batch = vq_batch(EEG((1, 2), 3, seed=4))
    with torch.no_grad():
        codes = loaded.eval().encode(**batch).codes
        expected = NeuroLMVQModel.from_pretrained(folders["vq"]).eval().encode(**batch).codes
    assert torch.equal(codes, expected)


def test_fields_of_training_may_change_and_shapes_may_not(folders):
    loaded, _ = load_vq(folders["vq"], {"dead_code_threshold": 0.1})
    assert loaded.config.dead_code_threshold == 0.1
    with pytest.raises(ValueError, match=r"does not fit .*codebook_size"):
        load_vq(folders["vq"], {"codebook_size": 64})
    with pytest.raises(ValueError, match="has no field codebook"):
        load_vq(folders["vq"], {"codebook": 64})


def test_a_tokenizer_that_was_never_trained_is_refused(tmp_path):
    new_vq(EEGFeatureExtractor(), {"hidden_size": 16, "num_attention_heads": 2}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="codebook was never placed"):
        load_vq(str(tmp_path))


def test_the_adversary_knows_the_embeddings_of_the_text_model(folders):
    vq, _ = load_vq(folders["vq"])
    model = add_text_adversary(vq, folders["qwen3"])
    assert isinstance(model, NeuroLMVQForPreTraining)
    text = AutoModelForCausalLM.from_pretrained(folders["qwen3"])
    assert torch.equal(model.text_embedding.weight, text.get_input_embeddings().weight)
    assert not model.text_embedding.weight.requires_grad
    assert all(torch.equal(value, vq.state_dict()[name]) for name, value in model.vq.state_dict().items())
    assert model.config.alignment_vocab_size == text.config.vocab_size


def test_the_adversary_needs_equal_widths(folders):
    vq, _ = load_vq(folders["vq"])
    with pytest.raises(ValueError, match=r"features are 32 wide, the embeddings of .*wide 64"):
        add_text_adversary(vq, folders["wide"])
    with pytest.raises(ValueError, match="is a neurolm, not a text model"):
        add_text_adversary(vq, folders["model"])


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "wide"])
def test_any_decoder_joins(folders, kind):
    tokenizer = read_text_tokenizer(folders[kind])
    model, processor = join(folders["vq"], folders[kind], tokenizer)
    text = AutoModelForCausalLM.from_pretrained(folders[kind])
    ids = torch.arange(6, 30).unsqueeze(0)
    with torch.no_grad():
        theirs, ours = text.base_model(ids).last_hidden_state, model.model.language_model(ids).last_hidden_state
    # GPT-2's is the approximate GELU, ours the exact one
    assert torch.allclose(theirs, ours, atol=5e-3)
    assert model.config.stage == "tokenizer"
    assert processor.feature_extractor.notch_frequency == 50
    assert model.config.eeg_token_id == processor.eeg_token_id
    trained = load_vq(folders["vq"])[0].encoder.state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in model.model.eeg_encoder.state_dict().items())


def test_a_text_model_from_scratch_is_asked_for_by_its_type(folders):
    tokenizer = build_text_tokenizer(folders["tokenizer"])
    model = new_text_model("gpt2", tokenizer, {"n_layer": 1, "n_embd": 8, "n_head": 2})
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.config.n_layer == 1
    # names of transformers and names of GPT-2 alike
    assert new_text_model("gpt2", tokenizer, {"hidden_size": 24, "n_layer": 1}).config.n_embd == 24
    with pytest.raises(ValueError, match="'gpt-2' is no language model"):
        new_text_model("gpt-2", tokenizer, {})
    with pytest.raises(ValueError, match="LlamaConfig has no field n_layer"):
        new_text_model("llama", tokenizer, {"n_layer": 1})


def test_an_earlier_stage_is_loaded_with_its_processor(folders):
    model, processor = load_language_model(folders["model"], stages=("pretrained",))
    assert model.config.stage == "pretrained"
    assert not any(p.requires_grad for p in model.model.eeg_encoder.parameters())
    assert processor.tokenizer.eos_token == "<|endoftext|>"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("tuned", "is at stage 'instruction-tuned'; this training starts from 'pretrained'"),
        ("vq", "is a neural tokenizer: give it as --vq"),
        ("gpt2", "is a gpt2: give it as --text-model"),
        ("labram", "is a labram, which has no words: scripts/pretrain_masked.py"),
        ("empty", "holds no model"),
        ("adapter", "is an adapter: merge it"),
    ],
)
def test_what_is_no_earlier_stage_is_refused(folders, source, words):
    with pytest.raises(ValueError, match=words):
        load_language_model(folders[source], stages=("pretrained",))


def test_an_adapter_of_a_classifier_opens_with_its_classes(folders, tmp_path):
    answers = ("Wake", "REM", "NREM")
    torch.manual_seed(0)
    base, processor = load_classifier(folders["model"], answers, "mean")
    adapted = stir(add_adapter(base, folders["model"], lora_config(base, rank=2)))
    adapted.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is an adapter without its classifier's config, which names the classes"):
        load_classifier(str(tmp_path), answers)
    base.config.save_pretrained(tmp_path)
    assert is_classifier(str(tmp_path))
    model, own = load_classifier(str(tmp_path), answers)
    assert own.feature_extractor.recipe_id == processor.feature_extractor.recipe_id
    assert model.config.classifier_pooling == "mean"
    # as a model of transformers too, with its adapter beside its weights
    opened = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert opened.config.label2id == {"Wake": 0, "REM": 1, "NREM": 2}
    torch.testing.assert_close(opened.score.modules_to_save["default"].weight, model.score.weight)
    assert opened.peft_config["default"].r == 2
    for name, value in adapted.merge_and_unload().state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)
    with pytest.raises(ValueError, match="is a classifier of Wake, REM, NREM; these sets have No, Yes"):
        load_classifier(str(tmp_path), ("No", "Yes"))
    with pytest.raises(ValueError, match="whose head reads mean, not last_token"):
        load_classifier(str(tmp_path), answers, "last_token")
    # of a language model there is no head to bring
    with pytest.raises(ValueError, match="is an adapter: merge it"):
        load_classifier(folders["adapter"], answers)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("model", "is a language model with its EEG encoder, not a neural tokenizer"),
        ("llama", "is a llama, not a neural tokenizer"),
        ("empty", "holds no model"),
    ],
)
def test_what_is_no_tokenizer_is_refused(folders, source, words):
    with pytest.raises(ValueError, match=words):
        load_vq(folders[source])


def test_a_missing_text_tokenizer_says_what_to_give(folders):
    with pytest.raises(ValueError, match=r"cannot be read: .* Give --text-tokenizer"):
        read_text_tokenizer(folders["empty"])


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_dropout_acts_while_training_and_is_not_saved(folders, kind):
    model, _ = join(folders["vq"], folders[kind], read_text_tokenizer(folders[kind]))
    ids = torch.arange(6, 14).unsqueeze(0)
    before = model.config.to_dict()

    def hidden(mode):
        with torch.no_grad():
            return model.train(mode)(input_ids=ids).logits

    assert torch.equal(hidden(True), hidden(True))
    set_dropout(model, 0.5)
    assert not torch.equal(hidden(True), hidden(True))
    assert torch.equal(hidden(False), hidden(False))
    assert model.config.to_dict() == before
    set_dropout(model, 0.0)
    assert torch.equal(hidden(True), hidden(True))


def test_fields_of_the_language_model_are_its_own(folders):
    tokenizer = read_text_tokenizer(folders["gpt2"])
    torch.manual_seed(0)
    narrow, _ = join(folders["vq"], folders["gpt2"], tokenizer, {"channel_initializer_range": 0.01})
    wide, _ = join(folders["vq"], folders["gpt2"], tokenizer, {"channel_initializer_range": 2.0})
    assert float(narrow.model.channel_embedding.weight.std()) == pytest.approx(0.01, rel=0.1)
    assert float(wide.model.channel_embedding.weight.std()) == pytest.approx(2.0, rel=0.1)
    with pytest.raises(ValueError, match="NeuroLMConfig has no field noise"):
        join(folders["vq"], folders["gpt2"], tokenizer, {"noise": 1})


def test_a_start_is_known_by_its_weights_and_not_by_its_name_alone(folders, tmp_path, monkeypatch):
    shutil.copytree(folders["vq"], tmp_path / "vq")
    before = describe_source(str(tmp_path / "vq"))
    monkeypatch.chdir(tmp_path)
    assert describe_source("vq") == before
    (tmp_path / "vq" / "training.json").write_text("{}")
    assert describe_source("vq") == before
    assert before["sha256"] == describe_source(folders["vq"])["sha256"]
    weights = load_file(tmp_path / "vq" / "model.safetensors")
    weights["encoder.quantizer.codebook"][0, 0] += 1e-3
    save_file(weights, tmp_path / "vq" / "model.safetensors", {"format": "pt"})
    assert describe_source("vq")["folder"] == before["folder"]
    assert describe_source("vq")["sha256"] != before["sha256"]
