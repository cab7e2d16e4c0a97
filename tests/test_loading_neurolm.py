"""The language model's weights: saved, loaded, tied, resized, adapted, and put together from trained parts."""

import copy
import json

import pytest
import torch
from tiny import (
    BACKBONES,
    EEG,
    EEG_TOKEN_ID,
    ROWS,
    SEP,
    VOCAB_SIZE,
    language_model,
    lm_batch,
    lm_config,
    randomize,
    text_config,
    vq_config,
    vq_model,
)
from transformers import AutoConfig, AutoModelForCausalLM

from neurolm_hf import NeuroLMForCausalLM, NeuroLMModel, NeuroLMVQForPreTraining


@pytest.fixture(params=BACKBONES)
def backbone(request):
    return request.param


@pytest.fixture
def model(backbone):
    return language_model(backbone, 48)


def logits_of(model):
    """At real tokens."""
    with torch.no_grad():
        return model.eval()(**lm_batch(ROWS)).logits[lm_batch(ROWS)["attention_mask"].bool()]


def assert_same_weights(actual, expected):
    actual, expected = actual.state_dict(), expected.state_dict()
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


def assert_nothing_lost(info):
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))


# --- saving and loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
def test_saved_and_loaded_bit_for_bit(model, tmp_path, shard_size):
    model.suppress_tokens([90, 91])
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert ((tmp_path / "model.safetensors.index.json").exists()) == (shard_size == "20KB")
    loaded, info = NeuroLMForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert_nothing_lost(info)
    assert_same_weights(loaded, model)
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert loaded.generation_config.suppress_tokens == [90, 91, EEG_TOKEN_ID]
    loaded.save_pretrained(tmp_path / "again")
    assert_same_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "again"), model)


def test_low_memory_loading(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = NeuroLMForCausalLM.from_pretrained(tmp_path, low_cpu_mem_usage=True, device_map="cpu")
    assert torch.equal(logits_of(loaded), logits_of(model))
    loaded = NeuroLMForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    assert loaded.model.language_model.config._attn_implementation == "eager"
    torch.testing.assert_close(logits_of(loaded), logits_of(model), atol=1e-5, rtol=1e-4)


def test_base_model_of_the_folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    base = NeuroLMModel.from_pretrained(tmp_path)
    assert_same_weights(base, model.model)
    base.save_pretrained(tmp_path / "base")
    again, info = NeuroLMForCausalLM.from_pretrained(tmp_path / "base", output_loading_info=True)
    assert set(info["missing_keys"]) == {"lm_head.weight", "code_head.weight"}
    assert_same_weights(again.model, model.model)


def test_meta_device(backbone):
    with torch.device("meta"):
        skeleton = NeuroLMForCausalLM(lm_config(backbone, 48))
    assert {tensor.device.type for tensor in skeleton.state_dict().values()} == {"meta"}
    assert skeleton.state_dict().keys() == language_model(backbone, 48).state_dict().keys()


def test_initialisation(backbone):
    torch.manual_seed(1)
    one = NeuroLMForCausalLM(lm_config(backbone))
    torch.manual_seed(1)
    assert_same_weights(NeuroLMForCausalLM(lm_config(backbone)), one)
    assert one.model.channel_embedding.weight.std().item() == pytest.approx(1.0, abs=0.2)
    assert one.model.eeg_encoder.transformer.time_embedding.weight.std().item() == pytest.approx(1.0, abs=0.2)
    assert one.lm_head.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert logits_of(one).isfinite().all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_one_precision_whatever_the_text_config_says(backbone, dtype):
    """Text models are published in bfloat16, and their configs say so."""
    model = NeuroLMForCausalLM(lm_config(text_config=text_config(backbone, dtype=dtype)))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert logits_of(model).isfinite().all()


# --- resizing and tying ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [128, 95])
@pytest.mark.parametrize("tied", [False, True])
def test_resizing_the_text_rows_keeps_the_code_rows(backbone, rows, tied, tmp_path):
    model = language_model(backbone, 48, tie_word_embeddings=tied)
    before, codes = logits_of(model), model.code_head.weight.clone()
    model.resize_token_embeddings(rows, mean_resizing=False)
    assert model.config.get_text_config().vocab_size == model.lm_head.out_features == rows
    assert model.model.get_input_embeddings().num_embeddings == rows
    assert torch.equal(model.code_head.weight, codes)
    batch = lm_batch(ROWS)
    after = model(**batch, labels=batch["input_ids"])
    logits, kept = after.logits[batch["attention_mask"].bool()], min(rows, VOCAB_SIZE)
    torch.testing.assert_close(logits[:, :kept], before[:, :kept], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(logits[:, rows:], before[:, VOCAB_SIZE:], atol=1e-5, rtol=1e-4)
    assert after.eeg_loss > 0
    model.save_pretrained(tmp_path)
    loaded, info = NeuroLMForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert_nothing_lost(info)
    assert_same_weights(loaded, model)
    model.generate(**batch, max_new_tokens=2, do_sample=False)


def test_tied_text_rows(backbone, tmp_path):
    model = language_model(backbone, 48, tie_word_embeddings=True)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert model.code_head.weight.shape == (32, 48)
    model.save_pretrained(tmp_path)
    loaded, info = NeuroLMForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert_nothing_lost(info)
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    assert torch.equal(logits_of(loaded), logits_of(model))
    loaded.train()(**lm_batch(ROWS), labels=lm_batch(ROWS)["input_ids"]).loss.backward()


def test_tying_follows_our_config_not_the_text_models(backbone, tmp_path):
    """GPT-2's and many others' own configs tie; NeuroLM's heads are its own unless it says otherwise."""
    config = lm_config(text_config=text_config(backbone, 48, tie_word_embeddings=True))
    model = randomize(NeuroLMForCausalLM(config))
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert not torch.equal(model.lm_head.weight, model.get_input_embeddings().weight)
    model.save_pretrained(tmp_path)
    loaded = NeuroLMForCausalLM.from_pretrained(tmp_path)
    assert_same_weights(loaded, model)


# --- from trained parts ----------------------------------------------------------------------------------------------


def text_model(backbone, hidden_size=48, **changes):
    torch.manual_seed(5)
    values = text_config(backbone, hidden_size, **changes)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    return randomize(AutoModelForCausalLM.from_config(config), seed=5)


def parts(backbone, tmp_path, saved, **changes):
    vq, text = vq_model(NeuroLMVQForPreTraining), text_model(backbone, **changes)
    if not saved:
        return vq, text, vq, text
    vq.save_pretrained(tmp_path / "vq")
    text.save_pretrained(tmp_path / "text")
    return str(tmp_path / "vq"), str(tmp_path / "text"), vq, text


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_from_eeg_and_text(backbone, tmp_path, saved, tied):
    vq_part, text_part, vq, text = parts(backbone, tmp_path, saved, tie_word_embeddings=tied)
    model = NeuroLMForCausalLM.from_eeg_text_pretrained(vq_part, text_part)
    assert model.config.stage == "tokenizer"
    assert model.config.eeg_token_id == VOCAB_SIZE + 1
    assert model.config.get_text_config().vocab_size == model.lm_head.out_features == 128
    assert_same_weights(model.model.eeg_encoder, vq.vq.encoder)
    ours, theirs = model.model.language_model.state_dict(), text.base_model.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name][: len(value)], value), name
    output = text.get_output_embeddings().weight
    assert torch.equal(model.lm_head.weight[:VOCAB_SIZE], output)
    torch.testing.assert_close(model.lm_head.weight[VOCAB_SIZE:], output.mean(0).expand(32, -1))
    # [SEP], <|eeg|>, <|pad|> and the rows that nothing uses
    assert model.generation_config.suppress_tokens == list(range(VOCAB_SIZE, 128))
    assert not any(p.requires_grad for p in model.model.eeg_encoder.parameters())
    if backbone == "gpt2":
        config = model.model.language_model.config
        assert (config.activation_function, config.embd_pdrop, config.attn_pdrop, config.resid_pdrop) == (
            "gelu", 0.0, 0.0, 0.0,
        )  # fmt: skip
        assert not any(module.p for module in model.modules() if isinstance(module, torch.nn.Dropout))
    else:
        # the very same function of text
        ids = torch.arange(3, 20)[None]
        torch.testing.assert_close(model.eval()(ids).logits[..., :VOCAB_SIZE], text(ids).logits)
    row = [EEG((3, 7), 2), VOCAB_SIZE, 11]
    batch = lm_batch([row])
    batch["input_ids"][batch["input_ids"] == EEG_TOKEN_ID] = model.config.eeg_token_id
    assert model.eval()(**batch, labels=batch["input_ids"]).loss.isfinite()
    model.save_pretrained(tmp_path / "both")
    assert_same_weights(NeuroLMForCausalLM.from_pretrained(tmp_path / "both"), model)


def test_vocabulary_of_the_text_side(tmp_path):
    vq, text, *_ = parts("gpt2", tmp_path, saved=False)
    words = {f"word{index}": index for index in range(93)}
    # it fits into the rows that are there
    vocabulary = {**words, "[SEP]": 93, "<|eeg|>": 94}
    model = NeuroLMForCausalLM.from_eeg_text_pretrained(vq, text, vocabulary)
    assert (model.config.eeg_token_id, model.lm_head.out_features) == (94, 96)
    assert model.generation_config.suppress_tokens == [93, 94, 95]
    # it does not, and <|pad|> is a word of the vocabulary
    vocabulary = {**words, "<|pad|>": 40, "[SEP]": 128, "<|eeg|>": 129}
    fields = {"stage": "pretrained", "tie_word_embeddings": True}
    model = NeuroLMForCausalLM.from_eeg_text_pretrained(vq, text, vocabulary, **fields)
    assert (model.config.eeg_token_id, model.lm_head.out_features) == (129, 192)
    assert model.generation_config.suppress_tokens == [40, 128, 129, *range(130, 192)]
    assert model.config.stage == "pretrained"
    assert model.lm_head.weight is model.get_input_embeddings().weight
    with pytest.raises(ValueError, match=r"<\|eeg\|>"):
        NeuroLMForCausalLM.from_eeg_text_pretrained(vq, text, words)


def test_parts_in_bfloat16(backbone, tmp_path):
    text = text_model(backbone).to(torch.bfloat16)
    text.save_pretrained(tmp_path)
    vq = vq_model(NeuroLMVQForPreTraining).vq
    for part in (text, str(tmp_path)):
        model = NeuroLMForCausalLM.from_eeg_text_pretrained(vq, part)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert torch.equal(model.lm_head.weight[:VOCAB_SIZE], text.get_output_embeddings().weight.float())
        batch = lm_batch([[SEP, 11, 12]])
        assert model(**batch, labels=batch["input_ids"]).loss.isfinite()


def test_parts_that_do_not_fit(tmp_path):
    vq, text, *_ = parts("gpt2", tmp_path, saved=False)
    text.transformer.wpe = torch.nn.Embedding(200, 48)
    with pytest.raises(ValueError, match=r"wpe.weight has the shape \(200, 48\)"):
        NeuroLMForCausalLM.from_eeg_text_pretrained(vq, text)


# --- adapters --------------------------------------------------------------------------------------------------------


def test_lora_on_the_language_model(model, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    reference = copy.deepcopy(model)
    pattern = r".*language_model.*\.(c_attn|q_proj|v_proj)"
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, target_modules=pattern, init_lora_weights=False,
        # "channel_embedding" alone would also be the frozen encoder's
        modules_to_save=["model.eeg_projector", "model.channel_embedding"],
        fan_in_fan_out="gpt2" in type(model.model.language_model).__name__.lower(), task_type="CAUSAL_LM",
    )  # fmt: skip
    adapted = get_peft_model(model, config)
    adaptable = [name for name, p in adapted.named_parameters() if p.requires_grad or "lora" in name]
    assert not any("eeg_encoder" in name for name in adaptable)
    assert not adapted.train().get_base_model().model.eeg_encoder.training
    batch = lm_batch(ROWS)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], 0.1)
    adapted(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(p.grad is not None for p in adapted.parameters() if p.requires_grad)
    optimizer.step()
    expected = logits_of(adapted)
    assert (expected - logits_of(reference)).abs().max() > 1e-3
    adapted.save_pretrained(tmp_path)
    tokens = adapted.generate(**batch, max_new_tokens=4, do_sample=False)
    reloaded = PeftModel.from_pretrained(copy.deepcopy(reference), tmp_path)
    torch.testing.assert_close(logits_of(reloaded), expected)
    merged = adapted.merge_and_unload()
    assert merged.state_dict().keys() == reference.state_dict().keys()
    torch.testing.assert_close(logits_of(merged), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(merged.generate(**batch, max_new_tokens=4, do_sample=False), tokens)
    for name, value in reference.model.eeg_encoder.state_dict().items():
        assert torch.equal(merged.model.eeg_encoder.state_dict()[name], value)


def test_lora_with_gradient_checkpointing(model):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=r".*language_model.*\.(c_attn|q_proj)", init_lora_weights=False)
    adapted = get_peft_model(model, config).train()
    batch = lm_batch(ROWS)

    def gradients():
        adapted.zero_grad()
        adapted(**batch, labels=batch["input_ids"]).loss.backward()
        return [p.grad.clone() for p in adapted.parameters() if p.requires_grad]

    expected = gradients()
    for reentrant in (False, True):
        adapted.gradient_checkpointing_enable({"use_reentrant": reentrant})
        adapted.enable_input_require_grads()
        for gradient, other in zip(gradients(), expected, strict=True):
            torch.testing.assert_close(gradient, other, atol=1e-6, rtol=1e-4)


def test_saved_config_names_what_a_loader_needs(model, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling_neurolm.NeuroLMForCausalLM"
    assert config["eeg_config"]["codebook_size"] == vq_config().codebook_size


def test_resizing_keeps_the_placeholder():
    model = language_model()
    with pytest.raises(ValueError, match="leave out the EEG placeholder"):
        model.resize_token_embeddings(EEG_TOKEN_ID)


def test_label_beyond_the_text_rows_and_placeholders_without_eeg_raise():
    model, batch = language_model(), lm_batch(ROWS)
    with pytest.raises(ValueError, match="there are 96 text rows"):
        model(**batch, labels=torch.full_like(batch["input_ids"], 100))
    with pytest.raises(ValueError, match="Sample 0 has EEG placeholders, but there are no"):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
