"""Answers as probabilities: how likely the model finds each allowed answer of a task, and nothing to parse."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch.nn import functional
from transformers.utils.logging import tqdm

from .collators import eeg_and_text
from .modeling_neurolm import NeuroLMForCausalLM
from .processing_neurolm import NeuroLMProcessor
from .prompts import completion_ids
from .storage import Row, batches_of
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

    EEG, question and all answers are read in one pass; every answer is scored as a whole, its end of text included, so
    that no answer gains by being the start of another.

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
    try:
        scores = answer_log_likelihoods(model.eval(), processor, eeg, task, batch_size, **eeg_arguments)
    finally:
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
    inputs = dict(processor(eeg=eeg, text=texts, return_tensors="pt", **eeg_arguments))
    completions = [completion_ids(processor.tokenizer, task, answer) for answer in task.classes]
    starts, scores = range(0, len(inputs["input_ids"]), batch_size), []
    for start in tqdm(starts, desc="answers", unit="batch", disable=len(starts) == 1):
        rows = {name: tensor[start : start + batch_size].to(model.device) for name, tensor in inputs.items()}
        scores.append(model.score_answers(completions, **rows))
    return torch.cat(scores)


def score_rows(
    model: NeuroLMForCausalLM, processor: NeuroLMProcessor, rows: Sequence[Row], task: Task, batch_size: int
) -> Iterator[tuple[Row, torch.Tensor]]:
    """Prepared windows in turn, each with the log-likelihoods (answers,) that `answer_log_likelihoods` finds.

    Args:
        model: in evaluation mode, with or without an adapter around it.
        rows: what `storage.load_prepared` returns, or a list; each is read once.
        batch_size: windows read at a time.

    Raises:
        ValueError: what `checked_signal` refuses.
    """
    completions = [completion_ids(processor.tokenizer, task, answer) for answer in task.classes]
    for part in batches_of(rows, batch_size):
        inputs = eeg_and_text(processor, part, [processor.eeg_token + task.prompt()] * len(part))
        with torch.no_grad():
            scores = model.score_answers(
                completions, **{name: tensor.to(model.device) for name, tensor in inputs.items()}
            )
        yield from zip(part, scores, strict=True)


def classify_rows(
    model: Any, collate: Callable[[Sequence[Row]], dict[str, Any]], rows: Sequence[Row], batch_size: int
) -> Iterator[torch.Tensor]:
    """Of prepared windows in turn: logits (classes,) of a classifier, whose softmax are its probabilities.

    Args:
        model: of classes, in evaluation mode. One output is taken as the logit of the second of two classes.
        collate: such as a `ClassificationCollator` of the model's processor.
        rows, batch_size: as in `score_rows`.

    Raises:
        ValueError: what the collator or the model refuses.
    """
    for part in batches_of(rows, batch_size):
        # names are no input, and labels are not to be looked at
        batch = {name: values for name, values in collate(part).items() if name not in ("rows", "labels")}
        with torch.no_grad():
            logits = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}).logits
        yield from torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def true_class(task: Task, row: Row) -> int:
    """The class of a prepared window's answer.

    Raises:
        ValueError: the answer is not one of the task's.
    """
    if row["answer"] not in task.answers:
        raise ValueError(f"{str(row['answer'])!r} is no answer of task {task.name}: {', '.join(task.classes)}.")
    return task.answers[row["answer"]]


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
