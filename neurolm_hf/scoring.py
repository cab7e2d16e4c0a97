"""Answers as probabilities: how likely the model finds each allowed answer of a task, and nothing to parse."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tqdm import tqdm

from .modeling_neurolm import IGNORE_INDEX, NeuroLMForCausalLM
from .processing_neurolm import NeuroLMProcessor
from .tasks import Task
from .training import InstructionCollator


@torch.no_grad()
def answer_probabilities(
    model: NeuroLMForCausalLM,
    processor: NeuroLMProcessor,
    rows: Sequence[dict[str, Any]],
    task: Task,
    batch_size: int = 32,
) -> NDArray[np.float64]:
    """Probability of each allowed answer for each window.

    Every answer is scored as a whole, its end of text included, so that no answer gains by being the start of another.

    Args:
        model: an instruction-tuned model, or one with a LoRA adapter.
        rows: windows with `signal` (channels, samples), prepared by the processor's recipe, and `channels` (names).
        batch_size: windows a forward.

    Returns:
        (windows, answers), each row sums to one; columns as in `task.classes`.
    """
    was_training = model.training
    model.eval()
    collate = InstructionCollator(processor, task)
    scores = []
    for start in tqdm(range(0, len(rows), batch_size), desc="answers", unit="batch"):
        batch_rows = [rows[index] for index in range(start, min(start + batch_size, len(rows)))]
        likelihoods = []
        for answer in task.classes:
            batch = collate([{**row, "answer": answer} for row in batch_rows])
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            likelihoods.append(_log_likelihood(model, batch))
        scores.append(torch.stack(likelihoods, dim=1))
    model.train(was_training)
    return F.softmax(torch.cat(scores).double(), dim=1).cpu().numpy()


def _log_likelihood(model: NeuroLMForCausalLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(windows,): log-likelihood of the tokens that `labels` mark, among text tokens."""
    targets = batch.pop("labels")[:, 1:]
    kept = int((targets != IGNORE_INDEX).any(0).nonzero()[0])
    logits = model(**batch, logits_to_keep=targets.shape[1] - kept + 1, text_logits_only=True).logits[:, :-1]
    losses = F.cross_entropy(
        logits.transpose(1, 2).float(), targets[:, kept:], ignore_index=IGNORE_INDEX, reduction="none"
    )
    return -losses.sum(1)
