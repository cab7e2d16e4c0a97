"""Configurations: presets, round trips, partial dictionaries, and what they refuse."""

import subprocess
import sys

import pytest
import torch
from tiny import EEG_TOKEN_ID, lm_config, text_config, vq_config
from transformers import AutoConfig, LlamaConfig

from neurolm_hf import NeuroLMConfig, NeuroLMForCausalLM, NeuroLMVQConfig, NeuroLMVQModel


TASK = {"name": "Sleep", "question": "Which stage? (A) Wake. (B) REM.", "answers": ["(A)", "(B)"]}


@pytest.mark.parametrize(("size", "millions"), [("B", 254), ("L", 500), ("XL", 1696)])
def test_presets_have_the_papers_sizes(size, millions):
    config = NeuroLMConfig.from_preset(size)
    with torch.device("meta"):
        model, vq = NeuroLMForCausalLM(config), NeuroLMVQModel(config.eeg_config)
    # the paper counts the language model with the tokenizer's encoder; its 1696 for XL fits no layout exactly
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, rel=0.03 if size == "XL" else 0.01)
    assert model.lm_head.out_features + model.code_head.out_features == 58496
    assert sum(parameter.numel() for parameter in vq.parameters()) > 85e6
    with pytest.raises(ValueError, match="no preset 'M'"):
        NeuroLMConfig.from_preset("M")


def test_defaults_are_the_papers():
    config = NeuroLMConfig()
    text = config.text_config
    assert (text.model_type, text.activation_function, text.vocab_size) == ("gpt2", "gelu", 50304)
    assert (text.embd_pdrop, text.attn_pdrop, text.resid_pdrop) == (0.0, 0.0, 0.0)
    assert not config.tie_word_embeddings
    assert not config.eeg_config.padding_enters_statistics
    assert config.freeze_eeg_encoder
    assert (config.stage, config.tasks, config.provenance) == (None, [], None)
    assert (config.eeg_config.decoder_hidden_size, config.eeg_config.decoder_num_attention_heads) == (768, 12)


def test_partial_dictionaries_keep_our_defaults():
    config = NeuroLMConfig(text_config={"n_layer": 3}, eeg_config={"hidden_size": 96})
    assert (config.text_config.n_layer, config.text_config.activation_function) == (3, "gelu")
    assert (config.text_config.resid_pdrop, config.text_config.vocab_size) == (0.0, 50304)
    assert isinstance(config.eeg_config, NeuroLMVQConfig)
    assert (config.eeg_config.hidden_size, config.eeg_config.decoder_hidden_size) == (96, 96)
    assert config.eeg_config.codebook_size == 8192
    llama = NeuroLMConfig(text_config={"model_type": "llama", "vocab_size": 60000, "hidden_size": 64})
    assert isinstance(llama.text_config, LlamaConfig)
    assert llama.get_text_config() is llama.text_config
    given = {"n_layer": 3}
    NeuroLMConfig(text_config=given)
    assert given == {"n_layer": 3}


@pytest.mark.parametrize("backbone", ["gpt2", "llama", "qwen3"])
def test_round_trip(backbone, tmp_path):
    config = lm_config(
        backbone,
        stage="instruction-tuned",
        tasks=[TASK],
        provenance={"sources": [{"file": "NeuroLM-B.pt", "sha256": "00"}], "licence": "MIT"},
        freeze_eeg_encoder=False,
        tie_word_embeddings=True,
        eeg_config=vq_config(padding_enters_statistics=True, provenance={"licence": "MIT"}),
    )
    config.save_pretrained(tmp_path)
    for loaded in (
        NeuroLMConfig.from_pretrained(tmp_path),
        AutoConfig.from_pretrained(tmp_path),
        NeuroLMConfig.from_dict(config.to_dict()),
    ):
        assert isinstance(loaded, NeuroLMConfig)
        assert loaded.to_dict() == config.to_dict() | {"_name_or_path": loaded.to_dict().get("_name_or_path")} or (
            loaded.to_json_string(use_diff=False) == config.to_json_string(use_diff=False)
        )
        for name in ("stage", "tasks", "provenance", "freeze_eeg_encoder", "tie_word_embeddings", "eeg_token_id"):
            assert getattr(loaded, name) == getattr(config, name)
        assert loaded.eeg_config.padding_enters_statistics
        assert loaded.eeg_config.provenance == {"licence": "MIT"}
        assert loaded.text_config.model_type == backbone
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()


def test_tokenizer_round_trip(tmp_path):
    config = vq_config(decoder_hidden_size=24, decoder_num_attention_heads=2, dead_code_threshold=0.1)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, NeuroLMVQConfig)
    assert (loaded.decoder_hidden_size, loaded.decoder_num_attention_heads) == (24, 2)
    assert loaded.dead_code_threshold == 0.1
    assert loaded.auto_map["AutoModel"] == "modeling_neurolm.NeuroLMVQModel"
    # a language model's folder holds its tokenizer's config
    lm_config(eeg_config=config).save_pretrained(tmp_path / "lm")
    assert NeuroLMVQConfig.from_pretrained(tmp_path / "lm").decoder_hidden_size == 24


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: vq_config(hidden_size=33), "`hidden_size` .33. must be a multiple"),
        (lambda: vq_config(decoder_hidden_size=30), "`decoder_hidden_size` .30. must be a multiple"),
        (lambda: vq_config(conv_groups=3), "`conv_channels`"),
        (lambda: vq_config(num_frequency_bins=102), "`num_frequency_bins`"),
        (lambda: vq_config(num_frequency_bins=0), "`num_frequency_bins`"),
        (lambda: vq_config(frequency_target="phase"), "frequency_target"),
        (lambda: vq_config(frequency_target="log_power", frequency_smoothing=4), "must be odd .* got 4"),
        (lambda: vq_config(frequency_target="log_power", frequency_smoothing=101), "must be odd .* got 101"),
        (lambda: vq_config(frequency_smoothing=3), "the amplitude is not smoothed"),
        (lambda: vq_config(raw_weight=-1), "`raw_weight` .-1. must not be"),
        (lambda: vq_config(frequency_weight=0, raw_weight=0), "nor both 0"),
        (lambda: vq_config(codebook_decay=1.5), "`codebook_decay` must lie between"),
        (lambda: vq_config(quantizer_bypass=-0.1), "`quantizer_bypass` must lie between"),
        (lambda: lm_config(eeg_token_id=96), "`eeg_token_id` .96. must be a row of the text vocabulary, which has 96"),
        (lambda: lm_config(stage="finished"), "stage"),
        (lambda: lm_config(tasks=[{"name": "Sleep"}]), "lacks \\['answers', 'question'\\]"),
        (lambda: lm_config(tasks=[{**TASK, "answers": ["(A)"]}]), "at least two answers"),
        (lambda: vq_config(hidden_size="large"), "hidden_size"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(Exception, match=message) as error:
        make()
    assert "ValidationError" in type(error.value).__name__ or isinstance(error.value, (ValueError, TypeError))


def test_small_settings():
    assert lm_config(text_config=text_config("gpt2", n_layer=1)).get_text_config().num_hidden_layers == 1
    assert lm_config().eeg_token_id == EEG_TOKEN_ID


@pytest.mark.parametrize(
    "first",
    [
        "from neurolm_hf import NeuroLMConfig",
        "from neurolm_hf import NeuroLMForCausalLM",
        "from neurolm_hf import EEGFeatureExtractor",
        "import neurolm_hf.modeling_neurolm",
        "import neurolm_hf; from transformers import AutoProcessor",
        "from transformers import AutoModel; import neurolm_hf",
        "from transformers import AutoFeatureExtractor; import neurolm_hf",
        "import neurolm_hf; import transformers.modeling_layers",
        "import neurolm_hf.layers_neurolm",
        "from neurolm_hf import LaBraMForSequenceClassification",
    ],
)
def test_classes_register_whatever_is_imported_first(first):
    """In a fresh process: ours import the auto modules, whose import registers ours."""
    code = f"""{first}
import neurolm_hf
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
assert type(AutoConfig.for_model("neurolm_vq")) is neurolm_hf.NeuroLMVQConfig
assert AutoModelForCausalLM._model_mapping[neurolm_hf.NeuroLMConfig] is neurolm_hf.NeuroLMForCausalLM
assert PROCESSOR_MAPPING[neurolm_hf.NeuroLMConfig] is neurolm_hf.NeuroLMProcessor
assert type(AutoConfig.for_model("labram")) is neurolm_hf.LaBraMConfig
assert AutoModel._model_mapping[neurolm_hf.LaBraMVQConfig] is neurolm_hf.LaBraMVQModel
"""
    subprocess.run([sys.executable, "-c", code], check=True)
