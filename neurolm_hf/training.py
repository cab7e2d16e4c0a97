"""The three stages of NeuroLM through the HF Trainer: what the Trainer does not know, and nothing it does.

Windows in, batches out: the collators turn rows (`storage.row_signal` reads their signal) into what the models read.
Tokenizer: patches. Pre-training: the patches' codes as labels. Instruction tuning: prompt and answer.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .channels_neurolm import CHANNEL_VOCABULARY
from .modeling_neurolm import IGNORE_INDEX, NeuroLMVQModel
from .processing_neurolm import EEGFeatureExtractor, EEGSegment, NeuroLMProcessor
from .storage import Row, row_signal
from .tasks import Task


LOGGED_OUTPUTS = (
    "frequency_loss",
    "raw_loss",
    "commitment_loss",
    "codebook_usage",
    "perplexity",
    "eeg_loss",
    "text_loss",
)


class NeuroLMTrainer(Trainer):
    """The Trainer, which also logs the parts of the loss and the state of the codebook."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._parts: dict[str, list[torch.Tensor]] = {}

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """As the Trainer's; keeps the parts of the loss for the next log entry."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if not torch.isfinite(loss):
            raise ValueError(
                f"The loss of step {self.state.global_step + 1} is {loss.item()}; this step has moved no weight."
            )
        if model.training:
            for name in LOGGED_OUTPUTS:
                if (value := outputs.get(name)) is not None:
                    self._parts.setdefault(name, []).append(value.detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's, with the means of the parts since the last entry."""
        if "loss" in logs:
            logs |= {name: float(torch.stack(values).mean()) for name, values in self._parts.items()}
            self._parts.clear()
        super().log(logs, start_time)


class CodebookCallback(TrainerCallback):
    """Moves the codebook once an optimiser step, by the sums of all its micro-batches."""

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kwargs["model"].update_codebook()


class QuantizerScheduleCallback(TrainerCallback):
    """Trains a small tokenizer into its codebook: without quantiser first, then with a share of samples around it.

    A small model that must quantise from its first step on tends to collapse to a few codes.

    Args:
        warmup_steps: steps without the quantiser; k-means places the codebook after them.
        bypass: share of samples that go around the quantiser from then on.
        revive_until: share of the training after which dead codes are left alone, so that the codebook settles.
    """

    def __init__(self, warmup_steps: int, bypass: float, revive_until: float = 0.8):
        self.warmup_steps = warmup_steps
        self.bypass = bypass
        self.revive_until = revive_until
        self._own: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        config = kwargs["model"].config
        self._own = {name: getattr(config, name) for name in ("quantizer_bypass", "dead_code_threshold")}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        config = kwargs["model"].config
        config.quantizer_bypass = 1.0 if state.global_step < self.warmup_steps else self.bypass
        if state.global_step >= self.revive_until * state.max_steps:
            config.dead_code_threshold = 0.0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # what is saved between two steps must not carry the schedule's state
        kwargs["model"].config.update(self._own)


class EEGCollator:
    """Batches for the neural tokenizer: patches and the ids of their channels and seconds."""

    def __init__(self, feature_extractor: EEGFeatureExtractor):
        self.feature_extractor = feature_extractor

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        batch = self.feature_extractor.collate([[window_segment(self.feature_extractor, row)] for row in rows])
        batch = batch.convert_to_tensors("pt")
        return {name: batch[name] for name in batch if name != "eeg_segment_ids"}


class PretrainingCollator:
    """Batches for multi-channel autoregression: every patch's code is a label (paper, section 3.2).

    Args:
        processor: its placeholder is the label that stands for a patch's code.
        texts: sentences to draw from, so that the language model keeps its language; `None` trains on EEG alone.
        texts_per_batch: how many join each batch as rows without EEG.
    """

    def __init__(self, processor: NeuroLMProcessor, texts: Sequence[str] | None = None, texts_per_batch: int = 0):
        if texts_per_batch and not texts:
            raise ValueError("`texts_per_batch` needs `texts` to draw from.")
        self.processor = processor
        self.texts = texts or []
        self.texts_per_batch = texts_per_batch

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        drawn = torch.randint(len(self.texts), (self.texts_per_batch,)).tolist() if self.texts_per_batch else []
        end = self.processor.tokenizer.eos_token
        texts = [self.processor.eeg_token] * len(rows) + [self.texts[index] + end for index in drawn]
        batch = _eeg_and_text(self.processor, rows, texts)
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)}


class InstructionCollator:
    """Batches for instruction tuning: EEG, prompt and answer, with a loss on what follows the prompt (section 3.3).

    Args:
        processor, task: what writes the prompt, and which.
        channel_dropout: share of channels that are left out of a training window, at random. 0 keeps all.
    """

    def __init__(self, processor: NeuroLMProcessor, task: Task, channel_dropout: float = 0.0):
        self.processor = processor
        self.task = task
        self.channel_dropout = channel_dropout
        self.prompt_length = len(processor.tokenizer(task.prompt())["input_ids"])

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        rows = [drop_channels(row, self.channel_dropout) for row in rows]
        texts = [self.processor.eeg_token + self.task.training_text(row["answer"]) for row in rows]
        batch = _eeg_and_text(self.processor, rows, texts)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)
        # text starts after the last placeholder, wherever the padding is
        is_eeg = batch["mm_token_type_ids"] > 0
        after_eeg = (batch["attention_mask"] * ~is_eeg).cumsum(1)
        labels = labels.masked_fill(is_eeg | (after_eeg <= self.prompt_length), IGNORE_INDEX)
        return {**batch, "labels": labels}


def window_segment(feature_extractor: EEGFeatureExtractor, row: Row) -> EEGSegment:
    """The patches of a row, whose `channels` are vocabulary names.

    Raises:
        ValueError: what `checked_signal` refuses.
    """
    signal = checked_signal(feature_extractor, row)
    ids = np.array([_CHANNEL_IDS[name] for name in row["channels"]])
    return feature_extractor.to_segment(signal, ids)


def checked_signal(feature_extractor: EEGFeatureExtractor, row: Row) -> NDArray[np.float32]:
    """The signal of a row, float32 (channels, samples). A window that would spoil a training is refused.

    Raises:
        ValueError: prepared by another recipe, channels that are no vocabulary names or do not fit the signal, values
            that are not finite.
    """
    where = f"{row.get('recording', 'a window')} at {float(row.get('start', 0.0)):g} s"
    if row.get("recipe_id", feature_extractor.recipe_id) != feature_extractor.recipe_id:
        raise ValueError(
            f"{where}: prepared by recipe {row['recipe_id']}, but this feature extractor's is "
            f"{feature_extractor.recipe_id}: prepare the recordings again, or load the extractor of that recipe."
        )
    signal, channels = row_signal(row), list(row["channels"])
    if unknown := [name for name in channels if name not in _CHANNEL_IDS]:
        raise ValueError(f"{where}: {', '.join(unknown)} are no names of the channel vocabulary.")
    if len(signal) != len(channels):
        raise ValueError(f"{where}: {len(signal)} rows of signal for {len(channels)} channels.")
    finite = np.isfinite(signal)
    if not finite.all():
        row_index, sample = (int(index) for index in np.argwhere(~finite)[0])
        second = float(row.get("start", 0.0)) + sample / feature_extractor.sampling_rate
        raise ValueError(f"{where}: channel {channels[row_index]} is not finite at {second:g} s.")
    return signal


def drop_channels(row: Row, share: float) -> Row:
    """The row without a random `share` of its channels; torch's generator decides. At least one channel stays."""
    if share <= 0:
        return row
    keep = torch.rand(len(row["channels"])) >= share
    if not keep.any():
        keep[int(torch.randint(len(keep), ()))] = True
    kept = keep.nonzero().squeeze(1).tolist()
    return {**row, "signal": row_signal(row)[kept], "channels": [row["channels"][i] for i in kept]}


@torch.no_grad()
def standardize_features(model: NeuroLMVQModel, batches: Iterable[dict[str, torch.Tensor]]) -> None:
    """Gives each encoder feature mean 0 and variance 1 over `batches`, without changing any code.

    The scale goes into the encoder's last layer norm and is undone in the first layer of the head before the codebook,
    so the checkpoint's format stays. A small language model learns from features of unit scale much faster.
    """
    parts: list[torch.Tensor] = []
    for batch in batches:
        features = model.encode(**batch).features
        assert features is not None
        parts.append(features[batch["eeg_attention_mask"].bool()].double())
    real = torch.cat(parts)
    mean, deviation = real.mean(0), real.std(0, unbiased=False).clamp(min=1e-4)
    norm: Any = model.encoder.transformer.norm
    head: Any = model.encoder.to_codebook[0]
    weight = head.weight.double()
    head.bias.copy_(head.bias.double() + weight @ mean)
    head.weight.copy_(weight * deviation)
    norm.weight.copy_(norm.weight.double() / deviation)
    norm.bias.copy_((norm.bias.double() - mean) / deviation)


_CHANNEL_IDS = {name: index for index, name in enumerate(CHANNEL_VOCABULARY)}


def _eeg_and_text(processor: NeuroLMProcessor, rows: Sequence[Row], texts: list[str]) -> dict[str, torch.Tensor]:
    """Model inputs of prepared windows, one a text; texts beyond the rows have no EEG."""
    signals = [checked_signal(processor.feature_extractor, row) for row in rows]
    without: list[list] = [[] for _ in texts[len(rows) :]]
    batch = processor(
        eeg=[[signal] for signal in signals] + without,
        text=texts,
        ch_names=[[list(row["channels"])] for row in rows] + without,
        prepared_by=processor.feature_extractor.recipe_id,
        return_tensors="pt",
    )
    return dict(batch)
