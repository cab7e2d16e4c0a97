"""Answers as probabilities: how likely the model finds each allowed answer of a task, and nothing to parse."""

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional
from transformers.utils.logging import tqdm

from .modeling_neurolm import NeuroLMForCausalLM
from .processing_neurolm import NeuroLMProcessor
from .prompts import completion_ids
from .tasks import Task


def answer_probabilities(
    model: NeuroLMForCausalLM,
    processor: NeuroLMProcessor,
    eeg: Any,
    task: Task,
    batch_size: int = 32,
    **eeg_arguments: Any,
) -> NDArray[np.float64]:
    """Probability of each allowed answer for each window.

    EEG and question are read once; every answer goes on from there and is scored as a whole, its end of text included,
    so that no answer gains by being the start of another.

    Args:
        model: an instruction-tuned model, with or without an adapter around it.
        eeg: a recording or a list of recordings, as the processor takes them.
        task: its question and its answers.
        batch_size: windows read at a time.
        eeg_arguments: `ch_names`, `sampling_rate`, `unit`, `unknown_channels`, `prepared_by` of the processor.

    Returns:
        (windows, answers), each row sums to one; columns as in `task.classes`, rows in the order of the windows.
    """
    # an adapter hands this on to the model that it wraps
    model.warn_if_untuned()
    was_training = model.training
    scores = answer_log_likelihoods(model.eval(), processor, eeg, task, batch_size, **eeg_arguments)
    model.train(was_training)
    return functional.softmax(scores.double(), dim=1).cpu().numpy()


@torch.no_grad()
def answer_log_likelihoods(
    model: NeuroLMForCausalLM,
    processor: NeuroLMProcessor,
    eeg: Any,
    task: Task,
    batch_size: int,
    **eeg_arguments: Any,
) -> torch.Tensor:
    """(windows, answers): log-likelihood of each answer with its end of text; arguments of `answer_probabilities`.

    Args:
        model: in evaluation mode.
    """
    texts = [task.prompt()] * (len(eeg) if isinstance(eeg, (list, tuple)) else 1)
    # a batch is padded on the left, so that all prompts end together and every answer can follow
    inputs = dict(processor(eeg=eeg, text=texts, padding_side="left", return_tensors="pt", **eeg_arguments))
    completions = [completion_ids(processor.tokenizer, task, answer) for answer in task.classes]
    starts, scores = range(0, len(inputs["input_ids"]), batch_size), []
    for start in tqdm(starts, desc="answers", unit="batch", disable=len(starts) == 1):
        rows = {name: tensor[start : start + batch_size].to(model.device) for name, tensor in inputs.items()}
        scores.append(log_likelihoods(model, rows, completions))
    return torch.cat(scores)


def calibrate(probabilities: ArrayLike, reference: ArrayLike) -> NDArray[np.float64]:
    """Probabilities with the model's preference for some answers taken out.

    A model that finds one answer likelier whatever it reads ranks windows well and yet answers them badly. The mean
    log-probabilities of windows among which every answer is as frequent are that preference.

    Args:
        probabilities: (windows, answers), of `answer_probabilities`.
        reference: (other windows, answers), of windows with every answer as often as the others, such as the training
            windows of a balanced task. Never of the windows that are to be judged.

    Returns:
        (windows, answers), each row sums to one.

    Raises:
        ValueError: different numbers of answers, or no reference.
    """
    given, known = (np.log(np.maximum(np.asarray(p, dtype=np.float64), 1e-12)) for p in (probabilities, reference))
    if given.ndim != 2 or known.ndim != 2 or given.shape[1] != known.shape[1] or not len(known):
        raise ValueError(
            f"Probabilities {given.shape} and reference {known.shape} must be (windows, answers) of one task."
        )
    shifted = np.exp(given - known.mean(axis=0))
    calibrated: NDArray[np.float64] = shifted / shifted.sum(axis=1, keepdims=True)
    return calibrated


def log_likelihoods(
    model: NeuroLMForCausalLM, rows: dict[str, torch.Tensor], completions: list[list[int]]
) -> torch.Tensor:
    """Log-likelihood of each completion after the prompt, among text tokens.

    Args:
        rows: the processor's output, padded on the left, on the model's device.
        completions: token ids that may follow.

    Returns:
        (windows, completions)
    """
    prefill = model(**rows, use_cache=True, logits_to_keep=1, text_logits_only=True)
    first = functional.log_softmax(prefill.logits[:, -1].float(), dim=-1)
    # text goes on at the position after the prompt's last
    starts = rows["mm_token_type_ids"].max(1).values + (rows["attention_mask"].sum(1) - _patches(rows))
    scores = []
    for completion in completions:
        tokens = torch.tensor(completion, device=first.device).expand(len(first), -1)
        score = first.gather(1, tokens[:, :1]).squeeze(1)
        if len(completion) > 1:
            offsets = torch.arange(len(completion) - 1, device=first.device)
            rest = model(
                input_ids=tokens[:, :-1],
                attention_mask=torch.cat([rows["attention_mask"], torch.ones_like(tokens[:, :-1])], dim=1),
                position_ids=starts[:, None] + offsets,
                past_key_values=copy.deepcopy(prefill.past_key_values),
                text_logits_only=True,
            )
            likelihoods = functional.log_softmax(rest.logits.float(), dim=-1)
            score = score + likelihoods.gather(2, tokens[:, 1:, None]).sum((1, 2))
        scores.append(score)
    return torch.stack(scores, dim=1)


def _patches(rows: dict[str, torch.Tensor]) -> torch.Tensor:
    """(windows,): tokens of the prompt that stand for EEG; they share one position a second."""
    return (rows["mm_token_type_ids"] > 0).sum(1)
