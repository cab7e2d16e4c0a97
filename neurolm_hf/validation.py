"""What a training sees of itself on the validation split: exact means, answers, and a picture.

The Trainer gathers what `sample_statistics` gives for each sample over batches and processes; `validation_metrics`
adds it up. So a metric is the mean over the whole split, however the split falls into batches.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import EvalPrediction, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import TensorBoardCallback
from transformers.utils import ModelOutput

from . import figures
from .layers_neurolm import IGNORE_INDEX, codebook_statistics
from .metrics import balanced_accuracy
from .modeling_neurolm import TARGET_KINDS, NeuroLMForCausalLM
from .processing_neurolm import NeuroLMProcessor
from .scoring import score_rows, true_class
from .storage import Row
from .tasks import Task


def sample_statistics(
    outputs: ModelOutput, samples: int, labels: torch.Tensor | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """What each sample adds to the metrics of its split.

    Args:
        outputs: of a neural tokenizer, of masked modelling, or of the language model or a classifier with `labels`.
        samples: how many there are. Rows beyond them (texts mixed in) are counted to the samples in turn.
        labels: of a classifier.

    Returns:
        metric -> (samples,) sums, and of the tokenizer `codes` (samples, patches), -1 at padding, of classes `label`
        and `predicted` (samples,); metric -> (samples,) numbers of items summed.
    """
    if "target_losses" in outputs:
        return _language_model_statistics(outputs, samples)
    if "sample_losses" in outputs and labels is not None:
        return _classifier_statistics(outputs, labels)
    if "patch_hits" in outputs:
        return _masked_statistics(outputs)
    return _tokenizer_statistics(outputs)


def validation_metrics(prediction: EvalPrediction, codebook_size: int) -> dict[str, float]:
    """Metrics of a split from all of its samples' statistics: means over items, and the `loss`.

    Of a neural tokenizer: its output's `PATCH_LOSSES`, `codebook_usage`, `perplexity`. Of the language model, those
    that have targets: `eeg_loss`, `answer_loss`, `text_loss`, and `eeg_accuracy`, the share of EEG targets whose most
    likely code is the right one. Of masked modelling: `masked_loss`, `complement_loss`, and `masked_accuracy`, that
    share of all patches, each in the pass that did not see it. Of a classifier of single labels: `balanced_accuracy`.
    """
    sums: Mapping[str, NDArray] = prediction.predictions  # type: ignore[assignment]
    items: Mapping[str, NDArray] = prediction.label_ids  # type: ignore[assignment]
    metrics = {
        name: float(sums[name].sum(dtype=np.float64) / count.sum()) for name, count in items.items() if count.sum()
    }
    if "loss" not in metrics:
        metrics["loss"] = sum(value for name, value in metrics.items() if name.endswith("_loss"))
    if "codes" in sums:
        usage, perplexity = codebook_statistics(torch.from_numpy(sums["codes"]).long(), codebook_size)
        metrics |= {"codebook_usage": float(usage), "perplexity": float(perplexity)}
    if "predicted" in sums:
        labelled = sums["label"] != IGNORE_INDEX
        metrics["balanced_accuracy"] = balanced_accuracy(sums["label"][labelled], sums["predicted"][labelled])
    return metrics


def answer_counts(
    model: NeuroLMForCausalLM, processor: NeuroLMProcessor, task: Task, rows: Sequence[Row], batch_size: int
) -> torch.Tensor:
    """How often windows of each class (rows) got each answer (columns): (classes, classes).

    Args:
        model: in evaluation mode, with or without an adapter around it.
        rows: prepared windows with their `answer`.
        batch_size: windows read at a time.

    Raises:
        ValueError: what `checked_signal` refuses; an answer that is not the task's.
    """
    counts = torch.zeros(len(task.classes), len(task.classes))
    for row, scores in score_rows(model, processor, rows, task, batch_size):
        counts[true_class(task, row), int(scores.argmax())] += 1
    return counts


class ReconstructionCallback(TrainerCallback):
    """After each evaluation of a neural tokenizer, draws a window and what it reconstructs: NeuroLM's the signal,
    LaBraM's each channel's amplitude spectrum.

    The picture is `folder/step-N.png`, and goes to TensorBoard where that is among `callbacks`. To be given to a
    trainer that is made: `trainer.add_callback`.

    Args:
        rows: prepared windows, of the validation split; the first is drawn.
        collator: makes a batch of rows.
        folder: made where it is not there.
        callbacks: the trainer's (`trainer.callback_handler.callbacks`), among which may be TensorBoard's.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        collator: Callable[[Sequence[Row]], Any],
        folder: str | Path,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        self.row = rows[0]
        self.collator = collator
        self.folder = Path(folder)
        self.callbacks = callbacks

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        batch = self.collator([self.row])
        model = kwargs["model"]
        was_training = model.training
        with torch.no_grad():
            outputs = model.eval()(**{name: v.to(model.device) for name, v in batch.items() if name != "rows"})
        model.train(was_training)
        # all processes make the pass, which gathers weights that are shared out
        if not state.is_world_process_zero:
            return
        figure = plot_reconstructed(outputs, list(self.row["channels"]))
        self.folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.folder / f"step-{state.global_step}.png")
        for callback in self.callbacks:
            if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
                callback.tb_writer.add_figure("reconstruction", figure, state.global_step)


def reconstructed(outputs: Any, channels: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a neural tokenizer had to reconstruct of the first window of a batch, and what it makes of it.

    Args:
        outputs: of the tokenizer.
        channels: of the window.

    Returns:
        (channels, samples) each, z-scored, of NeuroLM's; of LaBraM's (channels, bins), the amplitudes up to half the
        sampling rate, means over the seconds.
    """
    if "raw" in outputs:
        return by_channel(outputs.target_raw, channels), by_channel(outputs.raw, channels)
    # channel-major; the bins above half the sampling rate mirror those below
    target, drawn = (
        values[0].unflatten(0, (channels, -1)).mean(1)[:, : values.shape[-1] // 2 + 1].float().cpu().numpy()
        for values in (outputs.target_amplitude, outputs.amplitude)
    )
    return target, drawn


def plot_reconstructed(outputs: Any, channels: Sequence[str]) -> Any:
    """Draws what `reconstructed` gives of the window with these channels."""
    given, drawn = reconstructed(outputs, len(channels))
    if "raw" in outputs:  # a patch is a second
        return figures.plot_reconstruction(given, drawn, channels, outputs.raw.shape[-1])
    return figures.plot_amplitudes(given, drawn, channels)


def predicted_patches(outputs: Any) -> torch.Tensor:
    """(batch, patches), True where masked modelling predicts a code: at every real patch, in one of its two passes."""
    return outputs.labels >= 0


def _masked_statistics(outputs: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    predicted = predicted_patches(outputs)
    passes = {"masked_loss": predicted & outputs.masked, "complement_loss": predicted & ~outputs.masked}
    sums = {name: (outputs.patch_losses * patches).sum(1) for name, patches in passes.items()}
    sums["masked_accuracy"] = outputs.patch_hits.sum(1).float()
    items = {name: patches.sum(1) for name, patches in passes.items()}
    return sums, items | {"masked_accuracy": predicted.sum(1)}


def _tokenizer_statistics(outputs: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    sums = dict(zip(outputs.PATCH_LOSSES, outputs.patch_losses.sum(1).unbind(-1), strict=True))
    # a patch that enters the losses has a code
    items = (outputs.codes >= 0).sum(1)
    return {**sums, "codes": outputs.codes.int()}, dict.fromkeys(outputs.PATCH_LOSSES, items)


def _language_model_statistics(outputs: Any, samples: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    losses, right = outputs.target_losses, outputs.target_hits.float()
    sample = outputs.target_rows % samples
    of_kinds = functional.one_hot(outputs.target_kinds, len(TARGET_KINDS)).float().unbind(1)

    def of_samples(values: torch.Tensor) -> torch.Tensor:
        return values.new_zeros(samples).index_add_(0, sample, values)

    sums = {f"{kind}_loss": of_samples(losses * of_kind) for kind, of_kind in zip(TARGET_KINDS, of_kinds, strict=True)}
    items = {f"{kind}_loss": of_samples(of_kind) for kind, of_kind in zip(TARGET_KINDS, of_kinds, strict=True)}
    sums["eeg_accuracy"], items["eeg_accuracy"] = of_samples(right * of_kinds[0]), items["eeg_loss"]
    return sums, items


def _classifier_statistics(
    outputs: Any, labels: torch.Tensor
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    sums, items = {"loss": outputs.sample_losses}, {"loss": torch.ones_like(outputs.sample_losses)}
    if labels.ndim == 1 and not labels.is_floating_point():
        items["loss"] = (labels != IGNORE_INDEX).float()
        sums |= {"label": labels, "predicted": outputs.logits.argmax(1)}
    return sums, items


def by_channel(patches: torch.Tensor, channels: int) -> NDArray[np.float32]:
    """(1, patches, patch_size), time-major -> (channels, samples)."""
    return patches[0].view(-1, channels, patches.shape[-1]).transpose(0, 1).flatten(1).float().cpu().numpy()
