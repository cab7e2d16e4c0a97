"""Answers that a model writes by itself, token by token, and how NeuroLM's reference code reads and scores them."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers.utils.logging import tqdm

from .collators import eeg_and_text
from .processing_neurolm import SEP_TOKEN, NeuroLMProcessor
from .prompts import completion_ids, prompt_ids
from .storage import Row, batches_of
from .tasks import Task


# What the reference lets a model write, its end of text or not.
REFERENCE_TOKENS = 5
# What the reference makes of a text in which it finds no answer.
NO_ANSWER = -1


@torch.no_grad()
def write_answers(
    model: Any,
    processor: NeuroLMProcessor,
    rows: Sequence[Row],
    task: Task,
    batch_size: int,
    as_reference: bool = False,
) -> list[str]:
    """What the model writes after the prompt about each prepared window, always its most likely token.

    Args:
        model: in evaluation mode, with or without an adapter around it.
        rows: what `storage.load_prepared` returns, or a list.
        batch_size: windows read at a time.
        as_reference: five tokens, special ones spelt out, in place of as many as the longest answer has, up to the end
            of text.

    Raises:
        ValueError: what `checked_signal` refuses.
    """
    tokenizer = processor.tokenizer
    prompt = prompt_ids(tokenizer, task)
    longest = max(len(completion_ids(tokenizer, task, answer)) for answer in task.classes)
    options: dict[str, Any] = {"max_new_tokens": longest}
    if as_reference:
        options = {"max_new_tokens": REFERENCE_TOKENS, "eos_token_id": None}
    texts: list[str] = []
    batches = math.ceil(len(rows) / batch_size)
    progress = tqdm(
        batches_of(rows, batch_size), total=batches, desc="written answers", unit="batch", disable=batches == 1
    )
    for part in progress:
        batch = eeg_and_text(processor, part, [processor.eeg_token + task.prompt()] * len(part))
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        written = model.generate(**inputs, do_sample=False, pad_token_id=tokenizer.pad_token_id, **options)
        new = written[:, inputs["input_ids"].shape[1] :].tolist()
        texts += [_decode_after(tokenizer, prompt, ids, skip_special_tokens=not as_reference) for ids in new]
    return texts


def reference_class(task: Task, written: str) -> int:
    """The class that the reference reads from a text, or `NO_ANSWER`.

    It splits prompt and answer at spaces and takes the word after `Answer:`, by its number. Of a word that starts with
    a bracket it takes three characters. Anything but an answer, letter by letter, is none. It knows GPT-2's text
    tokenizer only: others may put a space where an answer begins, and then nothing is found.

    Args:
        written: from `write_answers(..., as_reference=True)`.
    """
    prompt = task.prompt().removeprefix(SEP_TOKEN)
    # a prompt for letters goes on with the bracket that begins the answer's own word
    place = len(prompt.removesuffix(" (").split(" "))
    words = (prompt + written).split(" ")
    word = words[place] if place < len(words) else ""
    return task.answers.get(word[:3] if word.startswith("(") else word, NO_ANSWER)


def reference_scores(task: Task, classes: ArrayLike) -> NDArray[np.float64]:
    """What the reference gives to its metrics in place of probabilities.

    A hard answer has 1, all others 0. No answer counts as the last one where there are more than two; of two, as the
    first (`No`), and the score of the other is -1, which ranks below that of a `No`.

    Args:
        classes: (windows,) from `reference_class`.

    Returns:
        (windows, answers)
    """
    given = np.asarray(classes, dtype=np.int64)
    scores: NDArray[np.float64] = np.eye(len(task.classes))[given]
    if len(task.classes) == 2:
        scores[given == NO_ANSWER] = (0.0, -1.0)
    return scores


def _decode_after(tokenizer: Any, prompt: list[int], new: list[int], skip_special_tokens: bool) -> str:
    """The text of tokens behind a prompt; alone, some tokenizers would take a space from its beginning."""
    options = {"skip_special_tokens": skip_special_tokens, "clean_up_tokenization_spaces": False}
    before, whole = tokenizer.decode(prompt, **options), tokenizer.decode(prompt + new, **options)
    return whole[len(before) :]
