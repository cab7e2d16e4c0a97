"""A task's prompt and answers as token ids: the one place, so that what is trained on is what is scored."""

from typing import Any

from .processing_neurolm import continuation_ids
from .tasks import Task


def prompt_ids(tokenizer: Any, task: Task) -> list[int]:
    """What stands between the EEG and the answer. The processor gives the same for `text=task.prompt()`.

    Raises:
        ValueError: nothing is asked; a tokenizer without an end of text, or that ends every text by itself.
    """
    return continuation_ids(tokenizer, task.prompt())


def completion_ids(tokenizer: Any, task: Task, answer: str) -> list[int]:
    """The answer after the prompt, up to the tokenizer's end of text.

    Raises:
        ValueError: an answer that is not the task's; otherwise as `prompt_ids`.
    """
    return continuation_ids(tokenizer, task.completion(answer, tokenizer.eos_token or ""))
