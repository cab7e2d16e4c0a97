"""A tiny NeuroLM that answers, as a pipeline, and recordings of three channels to ask it about."""

from typing import Any

import mne
import numpy as np
import torch
from tiny import randomize, text_config, vq_config

from neurolm_hf import NeuroLMConfig, NeuroLMForCausalLM
from neurolm_hf.processing_neurolm import (
    EEGFeatureExtractor,
    NeuroLMProcessor,
    train_text_tokenizer,
    write_completion,
    write_prompt,
)
from neurolm_hf.tasks import load_task


WORKLOAD = load_task("Workload")
SLEEP = {"name": "Sleep", "question": "Question: Which stage?", "answers": ["(A)", "(B)", "(C)"], "window_seconds": 3}
SLEEP |= {"channels": ["C3", "O2"]}
TASKS = [WORKLOAD.config_entry() | {"window_seconds": 2, "channels": None}, SLEEP]
CHANNELS = ["C3", "C4", "O2"]
RATE = 200


def microvolts(seconds: float, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    times = np.arange(int(seconds * RATE)) / RATE
    rhythms = np.sin(2 * np.pi * generator.uniform(4, 30, size=(len(CHANNELS), 1)) * times)
    return 20 * generator.normal(size=(len(CHANNELS), len(times))) + 20 * rhythms


def as_raw(seconds: float, seed: int = 0) -> mne.io.RawArray:
    return mne.io.RawArray(microvolts(seconds, seed) * 1e-6, mne.create_info(CHANNELS, RATE, "eeg"), verbose=False)


def as_dict(seconds: float, seed: int = 0) -> dict[str, Any]:
    return {"eeg": microvolts(seconds, seed), "ch_names": CHANNELS, "sampling_rate": RATE, "unit": "uV"}


def tiny_processor(**recipe: Any) -> NeuroLMProcessor:
    texts = [WORKLOAD.training_text(answer) for answer in ("No", "Yes")] * 9
    texts += [write_prompt(SLEEP["question"], SLEEP["answers"]) + write_completion("(B)", "")] * 9
    # a filter longer than these recordings would warn
    recipe = {"window_seconds": 4, "do_filter": False, "do_notch": False, **recipe}
    return NeuroLMProcessor(EEGFeatureExtractor(**recipe), train_text_tokenizer(texts, vocab_size=320))


def tiny_answerer(processor: NeuroLMProcessor) -> NeuroLMForCausalLM:
    torch.manual_seed(0)
    config = NeuroLMConfig(
        eeg_config=vq_config(num_channel_embeddings=256, max_seconds=16).to_dict(),
        text_config=text_config(vocab_size=340, n_positions=256),
        eeg_token_id=processor.eeg_token_id,
        stage="instruction-tuned",
        tasks=TASKS,
    )
    return randomize(NeuroLMForCausalLM(config))
