"""LaBraM's configurations: sizes, round trips, and what they refuse."""

import json

import pytest
import torch
from tiny_labram import labram_config, labram_vq_config
from transformers import AutoConfig

from neurolm_hf import LaBraMConfig, LaBraMModel, LaBraMVQConfig, LaBraMVQModel
from neurolm_hf.configuration_labram import LABRAM_SIZES


# of the reference's encoders, without the heads of pre-training
PARAMETERS = {"Base": 5_819_936, "Large": 46_258_720, "Huge": 369_235_712}


@pytest.mark.parametrize("size", LABRAM_SIZES)
def test_sizes_have_the_papers_parameters(size):
    with torch.device("meta"):
        model = LaBraMModel(LaBraMConfig.from_preset(size))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[size]
    assert model.config.layer_scale_init == {"Base": 0.1, "Large": 1e-5, "Huge": 1e-6}[size]


def test_a_preset_with_changes():
    config = LaBraMConfig.from_preset("Large", drop_path_rate=0.1, num_hidden_layers=2)
    assert (config.hidden_size, config.num_hidden_layers, config.drop_path_rate) == (400, 2, 0.1)
    with pytest.raises(ValueError, match="There is no preset 'Small'; the presets are Base, Large, Huge"):
        LaBraMConfig.from_preset("Small")


def test_defaults_are_the_papers():
    config = LaBraMConfig()
    assert {name: getattr(config, name) for name in LABRAM_SIZES["Base"]} == LABRAM_SIZES["Base"]
    assert (config.query_key_norm, config.query_value_bias, config.mask_ratio) == (True, False, 0.5)
    assert (config.classifier_pooling, config.head_init_scale, config.vq_config) == ("mean", 0.001, None)
    vq = LaBraMVQConfig()
    assert (vq.codebook_size, vq.codebook_dim, vq.codebook_decay) == (8192, 64, 0.99)
    assert (vq.num_channel_embeddings, vq.max_seconds, vq.decoder_num_hidden_layers) == (129, 16, 3)
    with torch.device("meta"):
        model = LaBraMVQModel(vq)
    assert model.encoder.quantizer.codebook.shape == (8192, 64)
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_522_640


def test_round_trip(tmp_path):
    config = labram_config(
        drop_path_rate=0.1,
        query_value_bias=True,
        layer_scale_init=None,
        classifier_pooling="cls",
        id2label={0: "No", 1: "Yes", 2: "Perhaps"},
        provenance={"licence": "MIT"},
        vq_config=labram_vq_config(provenance={"file": "vqnsp.pth", "sha256": "00"}),
    )
    config.save_pretrained(tmp_path)
    for loaded in (LaBraMConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, LaBraMConfig)
        assert isinstance(loaded.vq_config, LaBraMVQConfig)
        assert loaded.vq_config.provenance == {"file": "vqnsp.pth", "sha256": "00"}
        assert (loaded.num_labels, loaded.id2label[2]) == (3, "Perhaps")
        for name in ("drop_path_rate", "query_value_bias", "layer_scale_init", "classifier_pooling", "provenance"):
            assert getattr(loaded, name) == getattr(config, name), name
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()
    # the tokenizer's own configuration, from the folder of a model that holds it
    assert LaBraMVQConfig.from_pretrained(tmp_path).codebook_dim == 8


def test_a_saved_configuration_names_what_a_loader_needs(tmp_path):
    for config, auto_class, name in (
        (labram_config(vq_config=None), "AutoModelForSequenceClassification", "LaBraMForSequenceClassification"),
        (labram_vq_config(), "AutoModel", "LaBraMVQModel"),
    ):
        config.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["auto_map"][auto_class] == f"modeling_labram.{name}"
        loaded = AutoConfig.from_pretrained(tmp_path)
        assert type(loaded) is type(config)
    assert LaBraMConfig.from_dict(labram_config(vq_config=None).to_dict()).vq_config is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: labram_vq_config(hidden_size=200),
            r"`hidden_size` \(200\) must be 25 x `conv_channels` \(4\) = 100: the convolutions leave 25 positions",
        ),
        (lambda: labram_config(hidden_size=96), r"`hidden_size` \(96\) must be 25 x"),
        (lambda: labram_config(num_attention_heads=3), r"`hidden_size` \(100\) must be a multiple .* heads \(3\)"),
        (lambda: labram_vq_config(conv_groups=3), r"`conv_channels` \(4\) must be a multiple of `conv_groups` \(3\)"),
        (lambda: labram_vq_config(amplitude_weight=-1), r"`amplitude_weight` \(-1\) .* must not be negative"),
        (lambda: labram_vq_config(amplitude_weight=0, phase_weight=0), "nor both 0"),
        (lambda: labram_vq_config(codebook_decay=1.5), r"`codebook_decay` must lie between 0 and 1, got 1.5"),
        (lambda: labram_vq_config(quantizer_bypass=-0.1), "`quantizer_bypass` must lie between"),
        (lambda: labram_vq_config(dead_code_threshold=2), "`dead_code_threshold` must lie between"),
        (lambda: labram_config(drop_path_rate=1.0), r"`drop_path_rate` \(1.0\) must be below 1"),
        (lambda: labram_config(mask_ratio=0.0), r"`mask_ratio` \(0.0\) between 0 and 1"),
        (lambda: labram_config(head_init_scale=0), "`head_init_scale` must be above 0, got 0"),
        (lambda: labram_config(mask_ratio=1.0), r"`mask_ratio` \(1.0\) between 0 and 1"),
        (
            lambda: labram_config(codebook_size=64),
            r"`codebook_size` is 64, but that of the tokenizer in `vq_config` 32",
        ),
        (
            lambda: labram_config(vq_config={**labram_vq_config().to_dict(), "max_seconds": 8}),
            "`max_seconds` is 16, but that of the tokenizer in `vq_config` 8",
        ),
        (lambda: labram_config(classifier_pooling="max"), "classifier_pooling"),
        (lambda: labram_config(hidden_size="Base"), "hidden_size"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(Exception, match=message) as error:
        make()
    assert "ValidationError" in type(error.value).__name__ or isinstance(error.value, (ValueError, TypeError))
