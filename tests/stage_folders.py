"""Tiny folders that a stage of training starts from: text models, neural tokenizers, language models, text."""

import json

from prepared_folders import write_prepared
from tiny import randomize, text_config, vq_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from neurolm_hf import EEGFeatureExtractor, NeuroLMForCausalLM, NeuroLMProcessor, NeuroLMVQModel
from neurolm_hf.processing_neurolm import build_text_tokenizer, train_text_tokenizer
from neurolm_hf.starting_models import new_text_model
from neurolm_hf.tasks import load_task
from neurolm_hf.text import prepare_text, transformers_encoder


WIDTH = 32
TASKS = ("Workload", "HMC")
# Subjects by split; every one has a recording of two windows.
SPLITS = {"train": 8, "validation": 3}


def write_sets(folder, task="Workload", splits=SPLITS):
    """A prepared set of `task`."""
    recordings = [
        (f"{split}-{index}.edf", f"{split}{index}", split) for split, count in splits.items() for index in range(count)
    ]
    return write_prepared(folder, recordings, task)


def write_other_recipe(folder):
    """A prepared set that says it was prepared with another scale."""
    write_sets(folder)
    file = folder / "preparation.json"
    recipe = EEGFeatureExtractor(notch_frequency=50, scale=10)
    made = json.loads(file.read_text()) | {"recipe": recipe.recipe, "recipe_id": recipe.recipe_id}
    file.write_text(json.dumps(made))
    return folder


def write_tokenizer(folder):
    """A text tokenizer that knows the words of the tasks."""
    tasks = [load_task(name) for name in TASKS]
    texts = [task.training_text(answer) for task in tasks for answer in task.classes]
    train_text_tokenizer(texts, vocab_size=400).save_pretrained(folder)
    return folder


def write_metaspace_tokenizer(folder):
    """A text tokenizer as Llama 2's: `<s>` before a text, `</s>` for its end, pieces such as `▁(B)` across a space."""
    tasks = [load_task(name) for name in TASKS]
    texts = [f"{task.question} Answer: {answer}" for task in tasks for answer in task.classes] * 2
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>", model_max_length=4096
    )
    tokenizer.save_pretrained(folder)
    return folder


def write_text_model(folder, tokenizer_folder, kind="gpt2", width=WIDTH):
    """A text model with random weights, and its tokenizer."""
    tokenizer = build_text_tokenizer(tokenizer_folder)
    new = {"model_type", "vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"}
    fields = {name: value for name, value in text_config(kind, width).items() if name not in new}
    position_field = "n_positions" if kind == "gpt2" else "max_position_embeddings"
    model = randomize(new_text_model(kind, tokenizer, {**fields, position_field: 256}))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_text(folder, tokenizer_folder, block_length=24):
    """Prepared text of that tokenizer."""
    documents = [f"Question: is document number {number} long? Answer: no" for number in range(40)]
    encoder = transformers_encoder(str(tokenizer_folder))
    prepare_text(documents, folder, encoder, source={}, block_length=block_length)
    return folder


def write_vq(folder, **changes):
    """A neural tokenizer behind the recipe of `write_sets`, its codebook placed."""
    config = vq_config(num_channel_embeddings=256, max_seconds=64, **changes)
    randomize(NeuroLMVQModel(config)).save_pretrained(folder)
    NeuroLMProcessor(EEGFeatureExtractor(notch_frequency=50)).save_pretrained(folder)
    return folder


def write_language_model(folder, vq_folder, text_folder, stage="pretrained"):
    """A NeuroLM of a stage, of a neural tokenizer and a text model."""
    tokenizer = build_text_tokenizer(text_folder)
    model = NeuroLMForCausalLM.from_eeg_text_pretrained(
        str(vq_folder), str(text_folder), tokenizer.get_vocab(), stage=stage
    )
    model.save_pretrained(folder)
    NeuroLMProcessor(EEGFeatureExtractor(notch_frequency=50), tokenizer).save_pretrained(folder)
    return folder
