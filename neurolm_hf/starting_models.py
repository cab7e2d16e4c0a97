"""What a stage starts from: a checkpoint that fits it, or new weights where they were asked for by name.

Everything that can be told from configurations is told before weights are read.
"""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import find_adapter_config_file
from transformers.utils.hub import extract_commit_hash

from .configuration_labram import LaBraMConfig, LaBraMVQConfig
from .configuration_neurolm import NeuroLMConfig, NeuroLMVQConfig
from .modeling_labram import LaBraMForMaskedEEGModeling, LaBraMForSequenceClassification, LaBraMVQModel
from .modeling_neurolm import (
    NeuroLMForCausalLM,
    NeuroLMForSequenceClassification,
    NeuroLMVQForPreTraining,
    NeuroLMVQForSequenceClassification,
    NeuroLMVQModel,
)
from .prepared_set import file_sha256
from .processing_neurolm import LABRAM_LAYOUT, EEGFeatureExtractor, NeuroLMProcessor, build_text_tokenizer


# How the neural tokenizers are told apart: what a command line calls them, and their folders' type.
ARCHITECTURES: dict[str, str] = {"neurolm": "neurolm_vq", "labram": "labram_vq"}
_TOKENIZERS: dict[str, tuple[type[PreTrainedConfig], Any]] = {
    "neurolm_vq": (NeuroLMVQConfig, NeuroLMVQModel),
    "labram_vq": (LaBraMVQConfig, LaBraMVQModel),
}


def architecture_of(source: str) -> str | None:
    """Which of `ARCHITECTURES` a folder or Hub id holds a neural tokenizer of; None where it holds something else.

    Raises:
        ValueError: there is no such folder or id, or no config in it.
    """
    kind = model_type(source)
    return next((name for name, own in ARCHITECTURES.items() if own == kind), None)


def layout_of(source: str) -> dict[str, Any]:
    """How the model of a folder or Hub id reads its patches, where that is not NeuroLM's way; for `stages.open_sets`.

    Raises:
        ValueError: there is no such folder or id, or no config in it.
    """
    return dict(LABRAM_LAYOUT) if not is_adapter(source) and model_type(source).startswith("labram") else {}


def new_vq(feature_extractor: EEGFeatureExtractor, fields: Mapping[str, Any], architecture: str = "neurolm") -> Any:
    """A neural tokenizer with random weights.

    Args:
        feature_extractor: of the model; its patches are the model's.
        fields: of `NeuroLMVQConfig` or `LaBraMVQConfig` that differ from the paper's.
        architecture: `"neurolm"` or `"labram"`.

    Raises:
        ValueError: fields that there are not, or that make no model.
    """
    config, model = _TOKENIZERS[ARCHITECTURES[architecture]]
    of_data: dict[str, Any] = {
        "patch_size": feature_extractor.patch_size,
        "max_seconds": feature_extractor.max_seconds,
    }
    _check_fields(config(), fields)
    return model(config(**of_data | dict(fields)))


def load_vq(
    source: str, fields: Mapping[str, Any] | None = None, architectures: Collection[str] = ("neurolm",)
) -> tuple[Any, EEGFeatureExtractor]:
    """A trained neural tokenizer and the feature extractor it was trained behind.

    Args:
        source: folder or Hub id of a NeuroLMVQModel, NeuroLMVQForPreTraining or LaBraMVQModel.
        fields: of its configuration that are to change; its weights must still fit.
        architectures: those that will do, of `ARCHITECTURES`.

    Raises:
        ValueError: it is something else, its codebook was never placed, or `fields` do not fit its weights.
        OSError: it cannot be read.
    """
    kind = model_type(source)
    if kind == "neurolm":
        raise ValueError(f"{source} is a language model with its EEG encoder, not a neural tokenizer: see --model.")
    if kind == "labram":
        raise ValueError(f"{source} is a LaBraM, not the neural tokenizer that names its codes: see --model.")
    if kind not in _TOKENIZERS:
        raise ValueError(f"{source} is a {kind}, not a neural tokenizer as scripts/train_vq.py makes.")
    if kind not in [ARCHITECTURES[name] for name in architectures]:
        raise ValueError(
            f"{source} is a neural tokenizer of another architecture ({kind}): train one with scripts/train_vq.py "
            f"--architecture {' or '.join(architectures)}."
        )
    config_class, model_class = _TOKENIZERS[kind]
    fields = dict(fields or {})
    config = config_class.from_pretrained(source)
    _check_fields(config, fields)
    wanted = config_class(**config.to_dict() | fields)
    if different := _weights_that_differ(model_class, config, wanted):
        raise ValueError(f"{source} does not fit {json.dumps(fields)}: its {different} has another shape.")
    model: Any = model_class.from_pretrained(source, config=wanted)
    if not model.encoder.quantizer.initialized:
        raise ValueError(f"{source}: its codebook was never placed; train it with scripts/train_vq.py first.")
    return model, EEGFeatureExtractor.from_pretrained(source)


def add_text_adversary(vq: NeuroLMVQModel, text_model: str) -> NeuroLMVQForPreTraining:
    """The neural tokenizer with a new adversary that tells its features from a language model's token embeddings.

    Args:
        text_model: folder or Hub id of a causal language model; its embeddings are taken over, and frozen.

    Raises:
        ValueError: embeddings of another width than the tokenizer's features, or not a text model.
        OSError: it cannot be read.
    """
    text_config = _text_config(text_model)
    width, text_width = vq.config.hidden_size, text_config.hidden_size
    if width != text_width:
        raise ValueError(
            f"The neural tokenizer's features are {width} wide, the embeddings of {text_model} {text_width}: for the "
            "text adversary they must be equal. Take a text model of that width, or set hidden_size in --vq-config."
        )
    text: Any = AutoModelForCausalLM.from_pretrained(text_model)
    embeddings = text.get_input_embeddings().weight
    config = vq.config.to_dict() | {"alignment_vocab_size": len(embeddings)}
    model = NeuroLMVQForPreTraining(NeuroLMVQConfig(**config))
    model.vq.load_state_dict(vq.state_dict())
    with torch.no_grad():
        model.text_embedding.weight.copy_(embeddings)
    return model


def new_text_model(model_type: str, tokenizer: PreTrainedTokenizerBase, fields: Mapping[str, Any]) -> PreTrainedModel:
    """A decoder with random weights, for where none is at hand.

    Args:
        model_type: as transformers calls it: `gpt2`, `llama`, `qwen3`.
        tokenizer: its vocabulary and special tokens become the model's.
        fields: of its configuration, such as `n_layer`.

    Raises:
        ValueError: no such decoder, or fields that there are not.
    """
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"{model_type!r} is no language model of transformers; gpt2, llama and qwen3 are some.")
    _check_fields(AutoConfig.for_model(model_type), fields)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = AutoConfig.for_model(model_type, **{"vocab_size": len(tokenizer)} | special | dict(fields))
    return AutoModelForCausalLM.from_config(config)


def join(
    vq: str,
    text_model: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fields: Mapping[str, Any] | None = None,
) -> tuple[NeuroLMForCausalLM, NeuroLMProcessor]:
    """A trained neural tokenizer before a language model, and the processor of both.

    Args:
        vq: folder or Hub id of the neural tokenizer.
        text_model: a causal language model, or its folder or Hub id.
        tokenizer: from `build_text_tokenizer`.
        fields: of `NeuroLMConfig` that differ from its defaults.

    Raises:
        ValueError: what `load_vq` refuses, not a text model, or fields that there are not.
        OSError: they cannot be read.
    """
    if isinstance(text_model, str):
        _text_config(text_model)
    fields = dict(fields or {})
    _check_fields(NeuroLMConfig(), fields)
    eeg_model, feature_extractor = load_vq(vq)
    model = NeuroLMForCausalLM.from_eeg_text_pretrained(eeg_model, text_model, tokenizer.get_vocab(), **fields)
    return model, NeuroLMProcessor(feature_extractor, tokenizer)


def set_dropout(model: NeuroLMForCausalLM, share: float) -> None:
    """Dropout of the language model while this model is trained; its configuration keeps its own.

    Raises:
        ValueError: the language model has no dropout to set.
    """
    modules = list(model.model.language_model.modules())
    layers = [module for module in modules if isinstance(module, torch.nn.Dropout)]
    attentions = [module for module in modules if isinstance(getattr(module, "attention_dropout", None), float)]
    if share and not layers and not attentions:
        raise ValueError(f"A {model.config.get_text_config().model_type} has no dropout: leave --dropout out.")
    for layer in layers:
        layer.p = share
    for attention in attentions:
        attention.attention_dropout = share


def load_language_model(source: str, stages: Collection[str]) -> tuple[NeuroLMForCausalLM, NeuroLMProcessor]:
    """A NeuroLM of an earlier stage, or a converted release, and its processor.

    Args:
        source: its folder or Hub id.
        stages: those that one may start from.

    Raises:
        ValueError: it is something else, of another stage, or has no text tokenizer.
        OSError: it cannot be read.
    """
    _check_no_adapter(source)
    kind = model_type(source)
    if kind == "neurolm_vq":
        raise ValueError(f"{source} is a neural tokenizer: give it as --vq, with --text-model beside it.")
    if kind.startswith("labram"):
        raise ValueError(
            f"{source} is a {kind}, which has no words: scripts/pretrain_masked.py and scripts/finetune_classifier.py "
            "train it."
        )
    if kind != "neurolm":
        raise ValueError(f"{source} is a {kind}: give it as --text-model, with the neural tokenizer as --vq.")
    stage = PreTrainedConfig.get_config_dict(source)[0].get("stage")
    if stage not in stages:
        raise ValueError(
            f"{source} is at stage {stage!r}; this training starts from {' or '.join(map(repr, stages))}."
        )
    processor = NeuroLMProcessor.from_pretrained(source)
    if processor.tokenizer is None:
        raise ValueError(f"{source} has no text tokenizer: convert it again with --text-tokenizer.")
    return NeuroLMForCausalLM.from_pretrained(source), processor


def new_masked_model(
    vq: str, fields: Mapping[str, Any], size: str = "Base"
) -> tuple[LaBraMForMaskedEEGModeling, EEGFeatureExtractor]:
    """A LaBraM with random weights that learns to predict a tokenizer's codes, and its feature extractor.

    Args:
        vq: folder or Hub id of a LaBraMVQModel.
        fields: of `LaBraMConfig` that differ from the size's.
        size: as in `LaBraMConfig.from_preset`.

    Raises:
        ValueError: what `load_vq` refuses, fields that there are not, or that make no model or do not fit the
            tokenizer.
        OSError: it cannot be read.
    """
    _check_fields(LaBraMConfig(), fields)
    tokenizer, extractor = load_vq(vq, architectures=("labram",))
    of_tokenizer = {name: getattr(tokenizer.config, name) for name in _OF_TOKENIZER}
    given = {**of_tokenizer, **fields, "vq_config": tokenizer.config.to_dict()}
    model: Any = LaBraMForMaskedEEGModeling(LaBraMConfig.from_preset(size, **given))
    model.vq.load_state_dict(tokenizer.encoder.state_dict())
    return model, extractor


def load_masked_model(source: str, vq: str | None = None) -> tuple[LaBraMForMaskedEEGModeling, EEGFeatureExtractor]:
    """A LaBraM to go on pre-training, and its feature extractor.

    Args:
        source: folder or Hub id of a LaBraMForMaskedEEGModeling.
        vq: of the LaBraMVQModel that gives the codes, for a source that has none of its own, such as a released one.

    Raises:
        ValueError: it is something else, has no tokenizer, or has one and `vq` gives another; what `load_vq` refuses.
        OSError: it cannot be read.
    """
    kind = model_type(source)
    if kind == "labram_vq":
        raise ValueError(f"{source} is a neural tokenizer: give it as --vq, with --from-scratch.")
    architectures = PreTrainedConfig.get_config_dict(source)[0].get("architectures") or []
    if kind != "labram" or "LaBraMForMaskedEEGModeling" not in architectures:
        what = architectures[0] if architectures else kind
        raise ValueError(f"{source} is a {what}, not a LaBraM with its head for codes, as this training makes.")
    config = LaBraMConfig.from_pretrained(source)
    if config.vq_config is not None and vq is not None:
        raise ValueError(f"{source} has the tokenizer that it was trained with: leave --vq out.")
    if config.vq_config is None and vq is None:
        raise ValueError(f"{source} has no tokenizer that gives codes: give --vq, the one that it was trained with.")
    extractor = EEGFeatureExtractor.from_pretrained(source)
    if vq is None:
        return LaBraMForMaskedEEGModeling.from_pretrained(source), extractor
    tokenizer, of_tokenizer = load_vq(vq, architectures=("labram",))
    if of_tokenizer.recipe_id != extractor.recipe_id:
        raise ValueError(
            f"{vq} was trained behind another recipe than {source}: it is not the one that belongs to it."
        )
    trained = LaBraMForMaskedEEGModeling.from_pretrained(source)
    model = LaBraMForMaskedEEGModeling(LaBraMConfig(**config.to_dict() | {"vq_config": tokenizer.config.to_dict()}))
    codes = {f"vq.{name}": tensor for name, tensor in tokenizer.encoder.state_dict().items()}
    model.load_state_dict(trained.state_dict() | codes)
    return model, extractor


def load_classifier(
    source: str, classes: Sequence[str], pooling: str | None = None, drop_path: float | None = None
) -> tuple[Any, NeuroLMProcessor]:
    """A NeuroLM of any stage, a neural tokenizer of it, or a LaBraM, with a head for these classes, and its processor.

    The head is new, and transformers says so, unless the source is a classifier of the same classes; so is the norm
    before it of a LaBraM that reads the mean, which leaves the norm of the pre-training unused. An adapter (LoRA)
    of a classifier, with the classifier's config beside it, is merged into its model.

    Args:
        source: folder or Hub id.
        classes: their names, class 0 first.
        pooling: `classifier_pooling` of the config; None is the source's own. A neural tokenizer has none.
        drop_path: `LaBraMConfig.drop_path_rate`; None is the source's own.

    Raises:
        ValueError: it is something else, a classifier of other classes or another pooling, a pooling or a drop path
            that it does not have, or an adapter of a language model or without a config.
        OSError: it cannot be read.
        ImportError: an adapter, without peft.
    """
    adapter = is_adapter(source)
    if adapter and not is_classifier(source):
        _check_no_adapter(source)
    if adapter and Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ValueError(
            f"{source} is an adapter without its classifier's config, which names the classes: write it there with "
            "model.config.save_pretrained."
        )
    kind = model_type(source)
    _check_classifier_options(source, kind, pooling, drop_path)
    fields = _label_fields(source, classes, pooling)
    if kind == "neurolm_vq":
        tokenizer = NeuroLMVQForSequenceClassification.from_pretrained(source, **fields)
        return tokenizer, NeuroLMProcessor(EEGFeatureExtractor.from_pretrained(source))
    if adapter:
        model = _merged_classifier(source)
        return model, NeuroLMProcessor.from_pretrained(processor_home(source, model))
    if pooling is not None:
        fields["classifier_pooling"] = pooling
    if kind == "labram":
        fields |= {} if drop_path is None else {"drop_path_rate": drop_path}
        labram = LaBraMForSequenceClassification.from_pretrained(source, **fields)
        return labram, NeuroLMProcessor(EEGFeatureExtractor.from_pretrained(source))
    return NeuroLMForSequenceClassification.from_pretrained(source, **fields), NeuroLMProcessor.from_pretrained(source)


def fits_head(labels: Sequence[str], problem_type: str | None, classes: Sequence[str]) -> bool:
    """Whether these classes are what a head tells apart.

    That is by an output for each, or as LaBraM's authors do, by one logit, which stands for the second of two.

    Args:
        labels: what the head's outputs are called.
        problem_type: as in its config; None is for classes.
        classes: their names, class 0 first.
    """
    if problem_type == "multi_label_classification":
        return len(classes) == 2 and len(labels) == 1 and labels[0] in (classes[1], _UNNAMED)
    return problem_type in (None, "single_label_classification") and list(labels) == list(classes)


def is_classifier(source: str) -> bool:
    """Whether a folder or Hub id holds a model that was saved with a classifier's head, or the adapter of one.

    Raises:
        OSError: it cannot be read.
    """
    if is_adapter(source):
        return _adapter_settings(source).get("task_type") == "SEQ_CLS"
    names = PreTrainedConfig.get_config_dict(source)[0].get("architectures") or ()
    return any(name.endswith("ForSequenceClassification") for name in names)


def is_adapter(source: str) -> bool:
    """Whether a folder or Hub id holds an adapter; not so where there is no such folder or id."""
    try:
        return find_adapter_config_file(source) is not None
    except OSError:
        return False


def processor_home(source: str, model: PreTrainedModel) -> str:
    """Where the processor of an adapter is: beside it, or beside the model that it belongs to.

    Args:
        source: folder or Hub id of the adapter.
        model: the model it belongs to; PEFT alone saves no processor.
    """
    if Path(source).is_dir() and not (Path(source) / "processor_config.json").is_file():
        return str(model.name_or_path)
    return source


def read_text_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """`build_text_tokenizer`, with an error that says what to give.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return build_text_tokenizer(source)
    except (ValueError, OSError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"the text tokenizer {source!r} cannot be read: {reason}. Give --text-tokenizer, a folder with one."
        ) from error


def model_type(source: str) -> str:
    """What a folder or Hub id holds, by its config: `neurolm`, `neurolm_vq`, or a text model such as `gpt2`.

    Raises:
        ValueError: there is no such folder or id, or no config in it.
    """
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise ValueError(f"{source} holds no model: there is no config.json.")
    try:
        return PreTrainedConfig.get_config_dict(source)[0].get("model_type", "model without a type")
    except OSError as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(f"{source} is no folder here, nor can it be read from the Hub: {reason}.") from error


def describe_source(source: str) -> dict[str, str]:
    """Which weights or tokenizer a folder or Hub id stands for, for the settings of a run.

    Of a folder: its resolved path, and a hash over its weights, its configuration and its vocabulary. Of a Hub id: the
    commit.
    """
    folder = Path(source)
    if not folder.is_dir():
        # it has been read by now, so the cache has it
        found = (try_to_load_from_cache(source, name) for name in _CONFIGURATIONS)
        commit = next((extract_commit_hash(file, None) for file in found if isinstance(file, str)), None)
        return {"id": source, "commit": str(commit)}
    files = sorted({file for pattern in _DECIDING_FILES for file in folder.glob(pattern)})
    lines = "".join(f"{file.name} {file_sha256(file)}\n" for file in files)
    return {"folder": str(folder.resolve()), "sha256": hashlib.sha256(lines.encode()).hexdigest()}


# What the head of a classifier can read, by the type of the folder.
_POOLINGS: dict[str, tuple[str, ...]] = {
    "neurolm": ("last_token", "mean", "encoder_mean"),
    "neurolm_vq": (),
    "labram": ("mean", "cls"),
}
# What transformers calls the output of a head that nobody has named.
_UNNAMED = "LABEL_0"
# What a LaBraM must have as the tokenizer whose codes it learns.
_OF_TOKENIZER = ("patch_size", "num_channel_embeddings", "max_seconds", "codebook_size")
_CONFIGURATIONS = ("config.json", "tokenizer_config.json")
_DECIDING_FILES = (
    *("config.json", "*.safetensors", "pytorch_model*.bin"),
    *("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "encoder.json", "vocab.bpe"),
)


def _check_no_adapter(source: str) -> None:
    if (Path(source) / "adapter_config.json").is_file():
        raise ValueError(f"{source} is an adapter: merge it into its model (--save-merged), or start from that model.")


def _adapter_settings(source: str) -> dict[str, Any]:
    """What PEFT has written beside an adapter's weights."""
    content: dict[str, Any] = json.loads(Path(str(find_adapter_config_file(source))).read_text(encoding="utf-8"))
    return content


def _merged_classifier(source: str) -> PreTrainedModel:
    """`lora.merged_classifier`, which needs PEFT."""
    try:
        from .lora import merged_classifier
    except ImportError as error:
        raise ImportError('Adapters need peft: pip install "neurolm_hf[evaluation]"', name="peft") from error
    return merged_classifier(source)


def _check_classifier_options(source: str, kind: str, pooling: str | None, drop_path: float | None) -> None:
    """A ValueError for what gets no head, and for options that it does not have."""
    if kind == "labram_vq":
        raise ValueError(f"{source} is LaBraM's neural tokenizer: give the LaBraM that learnt its codes.")
    if kind not in _POOLINGS:
        raise ValueError(
            f"{source} is a {kind}: give a NeuroLM, its neural tokenizer as scripts/train_vq.py makes, or a LaBraM."
        )
    if kind == "neurolm_vq" and pooling is not None:
        raise ValueError(f"{source} is a neural tokenizer, whose features have one mean: leave --pooling out.")
    if pooling not in (None, *_POOLINGS[kind]):
        raise ValueError(f"{source} is a {kind}, whose --pooling is {' or '.join(_POOLINGS[kind])}, not {pooling}.")
    if drop_path is not None and kind != "labram":
        raise ValueError(f"{source} is a {kind}, which has no drop path: leave --drop-path out.")


def _label_fields(source: str, classes: Sequence[str], pooling: str | None) -> dict[str, Any]:
    """The fields of a config that say what a head's outputs are, for these classes.

    Raises:
        ValueError: the source has a head, of something else or that reads something else.
    """
    problem_type, outputs = "single_label_classification", list(classes)
    if is_classifier(source):
        saved = PreTrainedConfig.get_config_dict(source)[0]
        known, own = list(saved.get("id2label", {}).values()), saved.get("classifier_pooling")
        given = saved.get("problem_type")
        if not fits_head(known, given, classes):
            what = "" if given in (None, problem_type) else f" ({given})"
            raise ValueError(
                f"{source} is a classifier of {', '.join(known)}{what}; these sets have {', '.join(classes)}."
            )
        if pooling not in (None, own):
            raise ValueError(f"{source} is a classifier whose head reads {own}, not {pooling}: leave --pooling out.")
        problem_type, outputs = given or problem_type, outputs[-len(known) :]
    return {
        "id2label": dict(enumerate(outputs)),
        "label2id": {name: place for place, name in enumerate(outputs)},
        "problem_type": problem_type,
    }


def _text_config(source: str) -> Any:
    """The text part of a language model's configuration."""
    if (kind := model_type(source)).startswith(("neurolm", "labram")):
        raise ValueError(f"{source} is a {kind}, not a text model: --text-model is a GPT-2, a Llama, a Qwen ...")
    return AutoConfig.from_pretrained(source).get_text_config()


def _check_fields(config: PreTrainedConfig, fields: Mapping[str, Any]) -> None:
    """A ValueError for names that a configuration does not have; it would keep them without a word."""
    known = config.to_dict() | config.attribute_map
    if unknown := sorted(fields.keys() - known.keys()):
        raise ValueError(f"{type(config).__name__} has no field {', '.join(unknown)}.")


def _weights_that_differ(
    model: type[PreTrainedModel], config: PreTrainedConfig, other: PreTrainedConfig
) -> str | None:
    """The first weight of a model whose shape differs between two configurations."""
    with torch.device("meta"):
        shapes, others = ({name: w.shape for name, w in model(c).state_dict().items()} for c in (config, other))
    return next((name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name)), None)
