"""LoRA on the language model alone: which layers an adapter goes to, whatever the decoder."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save
from transformers.pytorch_utils import Conv1D

from .modeling_neurolm import NeuroLMForCausalLM, NeuroLMForSequenceClassification
from .processing_neurolm import NeuroLMProcessor


# As PEFT matches them: a pattern from the start, names of whole modules by their end.
LANGUAGE_MODEL = "model.language_model"
EEG_MODULES = ("model.eeg_projector", "model.channel_embedding")
# Both kinds of model that an adapter may be for.
Adaptable = NeuroLMForCausalLM | NeuroLMForSequenceClassification


def lora_config(
    model: Adaptable,
    rank: int = 16,
    alpha: int | None = None,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    eeg_projector: bool = False,
    new_tokens: Sequence[int] = (),
) -> LoraConfig:
    """What PEFT needs to adapt the language model. The frozen EEG encoder is never adapted.

    A classifier's head is trained along, in full.

    Args:
        model: the model that the adapter is for.
        rank: of the low-rank matrices.
        alpha: their product is scaled by `alpha / rank`; None is twice the rank.
        dropout: of what goes into them.
        targets: names of linear layers of the decoder, as `q_proj` or `attn.c_proj`; `lm_head` is one too. None: all
            linear layers of its blocks.
        eeg_projector: train the projector of EEG features and the channel embedding along, in full.
        new_tokens: ids of text tokens whose embedding rows are trained along, such as `[SEP]`'s.

    Raises:
        ValueError: a rank below 1, or a target that is no linear layer of the decoder.
    """
    if rank < 1:
        raise ValueError(f"The rank of LoRA is 1 or more, not {rank}.")
    layers = _linear_layers(model)
    names = sorted({name.rpartition(".")[2] for name in layers})
    heads = [] if isinstance(model, NeuroLMForSequenceClassification) else ["lm_head"]
    chosen = list(targets) if targets else names
    reached = {target: [layer for name, layer in layers.items() if _ends_with(name, target)] for target in chosen}
    for target, found in reached.items():
        if not found and target not in heads:
            raise ValueError(
                f"{target!r} is no linear layer of the language model; its layers are {', '.join([*names, *heads])}."
            )
    inside = "|".join(re.escape(target) for target, found in reached.items() if found)
    patterns = [rf"{re.escape(LANGUAGE_MODEL)}\.(.*\.)?({inside})"] if inside else []
    patterns += ["lm_head"] if "lm_head" in chosen else []
    trained_whole = [name for name in EEG_MODULES if any(True for _ in model.get_submodule(name).parameters())]
    embedding = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    return LoraConfig(
        # under SEQ_CLS PEFT trains `score` by itself
        task_type="CAUSAL_LM" if heads else "SEQ_CLS",
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=dropout,
        target_modules="|".join(f"({pattern})" for pattern in patterns),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for found in reached.values() for layer in found),
        modules_to_save=trained_whole if eeg_projector else None,
        trainable_token_indices={embedding: sorted(set(new_tokens))} if new_tokens else None,
    )


def add_adapter(model: Adaptable, base: str | Path, config: LoraConfig) -> PeftModel:
    """The model with a new adapter, all else frozen.

    Args:
        base: where the model was loaded from, a folder or a Hub id. The adapter's config names it, a folder with its
            absolute path, so that the adapter finds it from wherever it is opened.
        config: from `lora_config`.
    """
    model.name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else str(base)
    adapted: Any = get_peft_model(model, config)
    return adapted


def save_beside_adapter(model: Adaptable, processor: NeuroLMProcessor, folder: str | Path) -> None:
    """Writes what PEFT leaves out of an adapter's folder: config and code of the model, and its processor.

    With them the folder opens as a model does, by `AutoModelForCausalLM` or `pipeline`, and says what it was taught.
    """
    custom_object_save(model, folder, config=model.config)  # type: ignore[arg-type]  # it takes configs
    model.config.save_pretrained(folder)
    processor.save_pretrained(folder)


def merged_classifier(source: str) -> PreTrainedModel:
    """The adapter of a NeuroLM's or a LaBraM's classifier, merged into the model that it belongs to.

    PEFT alone builds the head that the base model's config knows of, which has other classes or none. Here it is the
    config beside the adapter that says them: `model.config.save_pretrained(folder)` has written it.

    Args:
        source: folder or Hub id of the adapter.

    Raises:
        OSError: the config, the adapter or its model cannot be read.
    """
    adapter = PeftConfig.from_pretrained(source)
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    base = AutoModelForSequenceClassification.from_pretrained(
        adapter.base_model_name_or_path, revision=adapter.revision, config=config, trust_remote_code=False
    )
    merged: Any = PeftModel.from_pretrained(base, source)
    return merged.merge_and_unload()


def _linear_layers(model: Adaptable) -> dict[str, nn.Module]:
    """The linear layers of the decoder by their name in it; GPT-2's are a class of their own."""
    decoder = model.get_submodule(LANGUAGE_MODEL)
    return {name: module for name, module in decoder.named_modules() if isinstance(module, nn.Linear | Conv1D)}


def _ends_with(name: str, target: str) -> bool:
    """Whether a dotted name is another one, or ends with it."""
    return f".{name}".endswith(f".{target}")
