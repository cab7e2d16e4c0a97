"""A task's prompt and answers as token ids: the one place, so that what is trained on is what is scored.

A prompt and an answer are tokenized apart. Together, a tokenizer may join the end of the one and the start of the
other, and neither a training nor a comparison of answers would know where the answer begins.
"""

from typing import Any

from .processing_neurolm import EEG_TOKEN
from .tasks import Task


def prompt_ids(tokenizer: Any, task: Task) -> list[int]:
    """What stands between the EEG and the answer. The processor gives the same for `text=task.prompt()`.

    Raises:
        ValueError: nothing is asked; a tokenizer without an end of text, or that ends every text by itself.
    """
    return _continuation(tokenizer, task.prompt())


def completion_ids(tokenizer: Any, task: Task, answer: str) -> list[int]:
    """The answer after the prompt, up to the tokenizer's end of text.

    Raises:
        ValueError: an answer that is not the task's; otherwise as `prompt_ids`.
    """
    return _continuation(tokenizer, task.completion(answer, tokenizer.eos_token or ""))


def _continuation(tokenizer: Any, text: str) -> list[int]:
    """Ids of a text that goes on from another, and so has no beginning or end of its own."""
    if tokenizer.eos_token_id is None:
        raise ValueError("The text tokenizer has no end of text (`eos_token`), with which every answer ends.")
    if tokenizer(EEG_TOKEN)["input_ids"][-1] == tokenizer.eos_token_id:
        raise ValueError(
            "The text tokenizer ends every text by itself, a prompt too, after which nothing can follow: load it "
            "with add_eos_token=False."
        )
    # behind a special token, for some tokenizers put a space before what begins a text
    return tokenizer(EEG_TOKEN + text, add_special_tokens=False)["input_ids"][1:]
