# Copyright 2026 The neurolm_hf authors. Licensed under the Apache License, Version 2.0.
"""Configurations of the NeuroLM neural tokenizer and of the NeuroLM language model (arXiv 2409.00101)."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.utils import PushToHubMixin


# AutoModel of a saved folder must work whichever of the classes was saved.
VQ_AUTO_MAP = {
    "AutoConfig": "configuration_neurolm.NeuroLMVQConfig",
    "AutoModel": "modeling_neurolm.NeuroLMVQModel",
    "AutoModelForPreTraining": "modeling_neurolm.NeuroLMVQForPreTraining",
    "AutoModelForSequenceClassification": "modeling_neurolm.NeuroLMVQForSequenceClassification",
}
AUTO_MAP = {
    "AutoConfig": "configuration_neurolm.NeuroLMConfig",
    "AutoModel": "modeling_neurolm.NeuroLMModel",
    "AutoModelForCausalLM": "modeling_neurolm.NeuroLMForCausalLM",
    "AutoModelForSequenceClassification": "modeling_neurolm.NeuroLMForSequenceClassification",
}

# what `transformers.pipeline` finds in a saved folder
CUSTOM_PIPELINES = {
    "eeg-question-answering": {
        "impl": "pipeline_neurolm.EEGQuestionAnsweringPipeline",
        "pt": ["AutoModelForCausalLM"],
    }
}

# GPT-2 as NeuroLM uses it: exact GELU, no dropout, room for special tokens, output rows of their own.
GPT2_DEFAULTS: dict[str, Any] = {
    "activation_function": "gelu",
    "vocab_size": 50304,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "tie_word_embeddings": False,
}

# facts of the paper, table 5: NeuroLM-B (254M), -L (500M) and -XL (1696M) differ in their GPT-2 only
GPT2_SIZES: dict[str, dict[str, int]] = {
    "B": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "L": {"n_layer": 24, "n_embd": 1024, "n_head": 16},
    "XL": {"n_layer": 48, "n_embd": 1600, "n_head": 25},
}


class CleanUploads(PushToHubMixin):
    """Of configurations and models: `push_to_hub` sends no local paths, no names of subjects and no empty card."""

    def _upload_modified_files(self, working_dir: Any, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, which has just written the folder; what lies in it and in memory stays as it was.

        The card is ours where the package is installed and the repository's is not a person's.
        """
        folder = Path(working_dir)
        try:
            from neurolm_hf.model_card import renew_card

            renew_card(folder, repo_id)
        except ImportError:
            pass  # the shipped files alone: transformers' card stays
        file = folder / "config.json"
        written = file.read_bytes() if file.is_file() else None
        if written is not None:
            cleaned = without_local_names(json.loads(written))
            file.write_text(json.dumps(cleaned, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        try:
            return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)
        finally:
            if written is not None:
                file.write_bytes(written)  # the folder may be the one of `save_pretrained(..., push_to_hub=True)`


@strict
class NeuroLMVQConfig(CleanUploads, PreTrainedConfig):
    r"""Configuration of [`NeuroLMVQModel`], the vector-quantised neural tokenizer. The defaults are the paper's.

    Args:
        patch_size (`int`): samples of one patch, that is of one second of one channel.
        conv_channels (`int`): channels of the three temporal convolutions of the patch embedding.
        conv_groups (`int`): groups of their group norms.
        hidden_size (`int`), num_hidden_layers (`int`), num_attention_heads (`int`): the encoder.
        decoder_hidden_size (`int`, *optional*), decoder_num_hidden_layers (`int`),
            decoder_num_attention_heads (`int`, *optional*): each of the two decoders; `None` is the encoder's.
        num_channel_embeddings (`int`): rows of the channel embedding tables.
        max_seconds (`int`): rows of the time embedding tables, the longest sample in seconds.
        codebook_size (`int`), codebook_dim (`int`): number of codes, width of a code.
        codebook_decay (`float`): decay of the moving average that moves the codebook.
        commitment_weight (`float`): factor of the commitment loss.
        num_frequency_bins (`int`): bins of the spectrum that are predicted, from 0 Hz up.
        frequency_target (`str`): `"amplitude"` predicts the amplitude spectrum as the paper does; `"log_power"` the
            logarithm of the power, in which a small model can see more than the largest peaks.
        frequency_smoothing (`int`): bins over which the power is averaged before its logarithm is taken, odd.
        frequency_weight (`float`), raw_weight (`float`): factors of the two reconstruction losses. 0 leaves one out.
        kmeans_iterations (`int`): iterations of the k-means that places the codebook on the first training batch.
        dead_code_threshold (`float`): a code used less than this share of the mean usage is replaced by a vector of
            the batch when the codebook moves. 0 never replaces any, as in the paper.
        quantizer_bypass (`float`): share of training samples whose decoders read the unquantised vectors. 0 is the
            paper's; 1 trains an autoencoder and leaves the codebook untouched until it is lowered.
        has_codebook (`bool`): `False` for a language model converted without its tokenizer checkpoint: features can be
            computed, codes cannot.
        padding_enters_statistics (`bool`): compatibility with checkpoints tuned on padded input. `True` lets zero
            padding enter group norm, codebook, commitment and reconstruction losses as the reference does; `False`
            uses real patches only, so that padding changes nothing.
        alignment_vocab_size (`int`), alignment_hidden_size (`int`): frozen text embeddings and classifier width of the
            text-alignment adversary of [`NeuroLMVQForPreTraining`].
        layer_norm_eps (`float`), final_layer_norm_eps (`float`): inside the blocks, after them.
        initializer_range (`float`): standard deviation of linear layers at initialisation.
        embedding_initializer_range (`float`): the same of channel and time embeddings.
        provenance (`dict`, *optional*): where the weights come from (source file, hash, licence, data).
    """

    model_type = "neurolm_vq"
    base_config_key = "eeg_config"
    # not predictions: what `Trainer.evaluate` with `compute_metrics` must leave out
    keys_to_ignore_at_inference = ["features", "sample_losses"]

    patch_size: int = 200
    conv_channels: int = 16
    conv_groups: int = 4
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    decoder_hidden_size: int | None = None
    decoder_num_hidden_layers: int = 4
    decoder_num_attention_heads: int | None = None
    num_channel_embeddings: int = 256
    max_seconds: int = 64
    codebook_size: int = 8192
    codebook_dim: int = 128
    codebook_decay: float = 0.99
    commitment_weight: float = 1.0
    num_frequency_bins: int = 100
    frequency_target: Literal["amplitude", "log_power"] = "amplitude"
    frequency_smoothing: int = 1
    frequency_weight: float | int = 1.0
    raw_weight: float | int = 1.0
    kmeans_iterations: int = 10
    dead_code_threshold: float | int = 0.0
    quantizer_bypass: float | int = 0.0
    has_codebook: bool = True
    padding_enters_statistics: bool = False
    alignment_vocab_size: int = 50257
    alignment_hidden_size: int = 256
    layer_norm_eps: float = 1e-5
    final_layer_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    embedding_initializer_range: float | int = 1.0
    provenance: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.decoder_hidden_size is None:
            self.decoder_hidden_size = self.hidden_size
        if self.decoder_num_attention_heads is None:
            self.decoder_num_attention_heads = self.num_attention_heads
        kwargs.setdefault("auto_map", dict(VQ_AUTO_MAP))
        super().__post_init__(**kwargs)

    def validate_geometry(self) -> None:
        """Widths, heads and bins must fit each other."""
        for name, width, heads in (
            ("hidden_size", self.hidden_size, self.num_attention_heads),
            ("decoder_hidden_size", self.decoder_hidden_size, self.decoder_num_attention_heads),
        ):
            check_heads(name, width, heads)
        check_groups(self)
        if not 0 < self.num_frequency_bins <= self.patch_size // 2 + 1:
            raise ValueError(
                f"`num_frequency_bins` ({self.num_frequency_bins}) must lie between 1 and {self.patch_size // 2 + 1}, "
                f"the one-sided spectrum of a patch of {self.patch_size} samples."
            )

    def validate_frequency_target(self) -> None:
        """Smoothing belongs to the power, and is centred on a bin."""
        width = self.frequency_smoothing
        if width < 1 or width % 2 == 0 or width > self.num_frequency_bins:
            raise ValueError(
                f"`frequency_smoothing` must be odd and lie between 1 and `num_frequency_bins` "
                f"({self.num_frequency_bins}), got {width}."
            )
        if width > 1 and self.frequency_target != "log_power":
            raise ValueError(
                "`frequency_smoothing` is for `frequency_target='log_power'`; the amplitude is not smoothed."
            )

    def validate_loss_weights(self) -> None:
        """No negative loss, and something to reconstruct."""
        if min(self.frequency_weight, self.raw_weight) < 0 or self.frequency_weight + self.raw_weight == 0:
            raise ValueError(
                f"`frequency_weight` ({self.frequency_weight}) and `raw_weight` ({self.raw_weight}) must not be "
                "negative, nor both 0."
            )

    def validate_shares(self) -> None:
        """Decay, bypass and dead-code threshold are shares."""
        check_shares(self, "codebook_decay", "quantizer_bypass", "dead_code_threshold")


@strict
class NeuroLMConfig(CleanUploads, PreTrainedConfig):
    r"""Configuration of [`NeuroLMModel`], [`NeuroLMForCausalLM`] and [`NeuroLMForSequenceClassification`].

    Args:
        eeg_config (`NeuroLMVQConfig` or `dict`, *optional*): the neural tokenizer whose encoder feeds the model.
        text_config (`PreTrainedConfig` or `dict`, *optional*): any decoder of transformers. For GPT-2, what a `dict`
            leaves out takes NeuroLM's values (exact GELU, no dropout, 50304 rows), not the library's.
        eeg_token_id (`int`): id of the `<|eeg|>` placeholder, one per patch; a row of the text vocabulary.
        freeze_eeg_encoder (`bool`): keep the encoder frozen and in evaluation mode, as the paper does.
        channel_initializer_range (`float`): standard deviation of the language model's channel embedding at
            initialisation.
        classifier_pooling (`str`): what the head of [`NeuroLMForSequenceClassification`] reads: `"last_token"`, the
            language model's last hidden state at the last real token; `"mean"`, their mean over all real tokens;
            `"encoder_mean"`, the mean of the EEG encoder's features over all real patches, without the language model.
        classifier_prompts (`list[str]`, *optional*): what stands behind the EEG when the head of
            [`NeuroLMForSequenceClassification`] reads it, one of these texts, as it was trained; `[]` where it was
            trained on EEG alone, `None` where nobody has said it.
        stage (`str`, *optional*): what the weights have been through: `"tokenizer"` (the tokenizer is trained, the
            language model has never seen EEG), `"pretrained"` (multi-channel autoregression), `"instruction-tuned"`;
            `None` for random weights.
        tasks (`list[dict]`): the tasks of instruction tuning, each with `name`, `question` and `answers` (list of
            `str` in class order), and if it says so `window_seconds`, `channels`, `drop_channels` and
            `unknown_channels` (`"raise"` or `"drop"`).
        provenance (`dict`, *optional*): where the weights come from (source files, hashes, licence, data).
    """

    model_type = "neurolm"
    # not predictions: what `Trainer.evaluate` with `compute_metrics` must leave out
    keys_to_ignore_at_inference = [
        "past_key_values",
        "eeg_loss",
        "answer_loss",
        "text_loss",
        "targets",
        "target_losses",
        "target_rows",
        "target_kinds",
        "target_hits",
        "eeg_codes",
        "features",
        "sample_losses",
    ]
    sub_configs_defaults = {
        "eeg_config": SubConfigSpec(config_class=NeuroLMVQConfig),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="gpt2", init_kwargs=GPT2_DEFAULTS),
    }

    eeg_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    eeg_token_id: int = 50258
    freeze_eeg_encoder: bool = True
    channel_initializer_range: float | int = 1.0
    classifier_pooling: Literal["last_token", "mean", "encoder_mean"] = "last_token"
    classifier_prompts: list[str] | None = None
    stage: Literal["tokenizer", "pretrained", "instruction-tuned"] | None = None
    tasks: list[dict[str, Any]] | None = None
    provenance: dict[str, Any] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.text_config, dict) and self.text_config.get("model_type", "gpt2") == "gpt2":
            self.text_config = {**GPT2_DEFAULTS, **self.text_config}
        if self.tasks is None:
            self.tasks = []
        kwargs.setdefault("auto_map", dict(AUTO_MAP))
        kwargs.pop("custom_pipelines", None)
        if __package__ != "neurolm_hf":
            # the package's own is registered, and needs no trust in what lies in a folder
            kwargs["custom_pipelines"] = {name: dict(how) for name, how in CUSTOM_PIPELINES.items()}
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        output: dict[str, Any] = super().to_dict()
        # not what is in memory, where `transformers.pipeline` puts classes in place of names
        output["custom_pipelines"] = {name: dict(how) for name, how in CUSTOM_PIPELINES.items()}
        return output

    @classmethod
    def from_preset(cls, size: str, **kwargs: Any) -> "NeuroLMConfig":
        """The configuration of a size of the paper: `"B"` (254M), `"L"` (500M) or `"XL"` (1696M)."""
        if size not in GPT2_SIZES:
            raise ValueError(f"There is no preset {size!r}; the presets are {', '.join(GPT2_SIZES)}.")
        return cls(text_config={**GPT2_DEFAULTS, **GPT2_SIZES[size]}, **kwargs)

    def was_tuned_on(self, question: str, answers: Sequence[str] | None = None) -> bool:
        """Whether a task asks this very question, and with these answers in this order where they are given."""
        return any(
            task["question"] == question and (answers is None or tuple(task["answers"]) == tuple(answers))
            for task in self.tasks or []
        )

    def validate_eeg_token(self) -> None:
        """The placeholder must be a row of the text vocabulary."""
        rows = self.get_text_config().vocab_size
        if not 0 <= self.eeg_token_id < rows:
            raise ValueError(
                f"`eeg_token_id` ({self.eeg_token_id}) must be a row of the text vocabulary, which has {rows}."
            )

    def validate_tasks(self) -> None:
        """Every task names its question and at least two answers."""
        for task in self.tasks or []:
            missing = {"name", "question", "answers"} - task.keys()
            if missing:
                raise ValueError(f"A task of the config lacks {sorted(missing)}: {task}.")
            if len(task["answers"]) < 2:
                raise ValueError(f"Task {task['name']!r} needs at least two answers, got {task['answers']}.")


def conv_positions(patch_size: int) -> int:
    """Positions that the patch embedding's convolutions leave of a patch."""
    return (patch_size - 1) // 8 + 1


def check_heads(name: str, width: int | None, heads: int | None) -> None:
    """A ValueError for a width that attention heads cannot share evenly; `name` is the field's."""
    if width is None or heads is None or width % heads:
        raise ValueError(f"`{name}` ({width}) must be a multiple of the number of attention heads ({heads}).")


def check_groups(config: Any) -> None:
    """A ValueError for convolutions whose channels the groups of their norms cannot share evenly."""
    if config.conv_channels % config.conv_groups:
        raise ValueError(
            f"`conv_channels` ({config.conv_channels}) must be a multiple of `conv_groups` ({config.conv_groups})."
        )


def check_shares(config: Any, *names: str) -> None:
    """A ValueError for fields that are no share from 0 to 1."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` must lie between 0 and 1, got {value}.")


def without_local_names(content: Any, subject_names: bool = False) -> Any:
    """JSON without what is only of this machine, and, unless `subject_names`, without the names of subjects.

    Paths go in whole, of where a training started all but the last name; of the subjects their number stays.
    """
    if isinstance(content, list):
        return [without_local_names(one, subject_names) for one in content]
    if not isinstance(content, dict):
        return content
    kept: dict[str, Any] = {}
    for name, value in content.items():
        if name in ("_name_or_path", "name_or_path"):
            continue
        if name == "subjects" and isinstance(value, list) and not subject_names:
            kept["subject_count"] = len(value)
        elif name == "started_from" and isinstance(value, dict):
            start = {key: _last_name(one) for key, one in value.items()}
            kept[name] = without_local_names(start, subject_names)
        else:
            kept[name] = without_local_names(value, subject_names)
    return kept


def _last_name(value: Any) -> Any:
    """Of an absolute path the last name; anything else as it is."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


NeuroLMVQConfig.register_for_auto_class()
NeuroLMConfig.register_for_auto_class()

__all__ = ["NeuroLMConfig", "NeuroLMVQConfig"]
