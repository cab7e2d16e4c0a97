"""Windows in, batches out: rows (`storage.row_signal` reads their signal) become what the models read.

Tokenizer: patches. Pre-training: the patches' codes as labels. Instruction tuning: prompt and answer. All that is
random about a row comes from its `draw` (see `training_set`), so that a training that is resumed meets the same rows.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from .channels_neurolm import CHANNEL_VOCABULARY
from .modeling_neurolm import IGNORE_INDEX
from .processing_neurolm import EEGFeatureExtractor, EEGSegment, NeuroLMProcessor
from .storage import Row, row_signal
from .tasks import Task


class EEGCollator:
    """Batches for the neural tokenizer: patches and the ids of their channels and seconds.

    `rows` of a batch names its windows. Where texts are mixed in, `text_input_ids` (texts, tokens) is for the
    adversary of `NeuroLMVQForPreTraining`.

    Args:
        feature_extractor: the one whose recipe prepared the rows.
        text_blocks: what `text.load_text_blocks` returns, blocks of equal length.
        texts_per_batch: how many of them join each batch.

    Raises:
        ValueError: `texts_per_batch` without blocks to draw from.
    """

    def __init__(self, feature_extractor: EEGFeatureExtractor, text_blocks: Any = None, texts_per_batch: int = 0):
        self.feature_extractor = feature_extractor
        self._texts = _Texts(None, text_blocks, texts_per_batch)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        batch = self.feature_extractor.collate([[window_segment(self.feature_extractor, row)] for row in rows])
        batch = batch.convert_to_tensors("pt")
        inputs: dict[str, Any] = {name: batch[name] for name in batch if name != "eeg_segment_ids"}
        if texts := self._texts.draw(rows):
            inputs["text_input_ids"] = torch.tensor(texts)
        return {**inputs, "rows": [row_name(row) for row in rows]}


class PretrainingCollator:
    """Batches for multi-channel autoregression: every patch's code is a label (paper, section 3.2).

    `rows` of a batch names its windows; the texts follow them as rows without EEG.

    Args:
        processor: its placeholder is the label that stands for a patch's code.
        texts: sentences to draw from, so that the language model keeps its language. Without texts and blocks the
            training is on EEG alone.
        texts_per_batch: how many join each batch.
        text_blocks: instead of `texts`, what `text.load_text_blocks` returns.

    Raises:
        ValueError: `texts_per_batch` without anything to draw from, or both to draw from.
    """

    def __init__(
        self,
        processor: NeuroLMProcessor,
        texts: Sequence[str] | None = None,
        texts_per_batch: int = 0,
        text_blocks: Any = None,
    ):
        self.processor = processor
        self._texts = _Texts(texts, text_blocks, texts_per_batch, processor.tokenizer)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        placeholders = [self.processor.eeg_token] * len(rows)
        batch = _eeg_and_text(self.processor, rows, placeholders, self._texts.draw(rows))
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)
        return {**batch, "labels": labels, "rows": [row_name(row) for row in rows]}


class InstructionCollator:
    """Batches for instruction tuning: EEG, prompt and answer, with a loss on what follows the prompt (section 3.3).

    A row's own `task` is asked where it has one, so that a batch can mix tasks. `rows` of a batch names its windows;
    the texts, with a loss on all of their tokens, follow them as rows without EEG.

    Args:
        processor: what tokenizes.
        task: what is asked about rows that have no task of their own.
        channel_dropout: share of channels that are left out of a training window, at random. 0 keeps all.
        shuffle_options: writes lettered options in a random order for each row.
        texts, texts_per_batch, text_blocks: as in `PretrainingCollator`.

    Raises:
        ValueError: as `PretrainingCollator`.
    """

    def __init__(
        self,
        processor: NeuroLMProcessor,
        task: Task | None = None,
        channel_dropout: float = 0.0,
        shuffle_options: bool = False,
        texts: Sequence[str] | None = None,
        texts_per_batch: int = 0,
        text_blocks: Any = None,
    ):
        self.processor = processor
        self.task = task
        self.channel_dropout = channel_dropout
        self.shuffle_options = shuffle_options
        self._texts = _Texts(texts, text_blocks, texts_per_batch, processor.tokenizer)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        asked = [self._ask(row) for row in rows]
        placed = [self.processor.eeg_token + task.training_text(answer) for _, task, answer in asked]
        texts = self._texts.draw(rows)
        batch = _eeg_and_text(self.processor, [row for row, _, _ in asked], placed, texts)
        prompts = self.processor.tokenizer([task.prompt() for _, task, _ in asked])["input_ids"]
        lengths = torch.tensor([len(prompt) for prompt in prompts] + [0] * len(texts)).unsqueeze(1)
        # text starts after the last placeholder, wherever the padding is
        is_eeg = batch["mm_token_type_ids"] > 0
        place_in_text = (batch["attention_mask"] * ~is_eeg).cumsum(1)
        no_target = (batch["attention_mask"] == 0) | is_eeg | (place_in_text <= lengths)
        labels = batch["input_ids"].masked_fill(no_target, IGNORE_INDEX)
        return {**batch, "labels": labels, "rows": [row_name(row) for row in rows]}

    def _ask(self, row: Row) -> tuple[Row, Task, str]:
        """The row as it is shown, the task as it is asked, and the answer."""
        task: Task | None = row.get("task") or self.task
        answer: Any = row.get("answer")
        if task is None:
            raise ValueError(f"{row_name(row)}: no task to ask about it. Give the collator one, or each row its own.")
        if answer not in task.answers:
            known = ", ".join(task.classes) or "none"
            raise ValueError(f"{row_name(row)}: {answer!r} is no answer of task {task.name}; its answers are {known}.")
        if not (self.channel_dropout or self.shuffle_options):
            return row, task, answer
        generator = _generator(row)
        row = drop_channels(row, self.channel_dropout, generator)
        if self.shuffle_options:
            task, letters = task.shuffled(generator)
            answer = letters[answer]
        return row, task, answer


class RecipeMismatchError(ValueError):
    """A row was prepared by another recipe than the model's."""


def row_name(row: Row) -> str:
    """Where a row comes from, for messages, such as `a.edf at 4 s (s01)`."""
    place = f"{row.get('recording', 'a window')} at {float(row.get('start', 0.0)):g} s"
    return f"{place} ({row['subject']})" if row.get("subject") else place


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
        RecipeMismatchError: prepared by another recipe; a ValueError, as the others.
        ValueError: channels that are no vocabulary names or do not fit the signal, values
            that are not finite.
    """
    where = row_name(row)
    if row.get("recipe_id", feature_extractor.recipe_id) != feature_extractor.recipe_id:
        raise RecipeMismatchError(
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


def drop_channels(row: Row, share: float, generator: np.random.Generator) -> Row:
    """The row without a random `share` of its channels. At least one channel stays."""
    if share <= 0:
        return row
    count = len(row["channels"])
    keep = generator.random(count) >= share
    if not keep.any():
        keep[generator.integers(count)] = True
    kept = keep.nonzero()[0].tolist()
    return {**row, "signal": row_signal(row)[kept], "channels": [row["channels"][i] for i in kept]}


_CHANNEL_IDS = {name: index for index, name in enumerate(CHANNEL_VOCABULARY)}
# Texts have random numbers of their own: those of the row that decides are for its augmentation.
_TEXTS = 4


def _generator(row: Row, *stream: int) -> np.random.Generator:
    """What decides what is random about a row: its `draw`, or torch's generator where it has none."""
    draw = row.get("draw")
    return np.random.default_rng(int(torch.randint(2**62, ())) if draw is None else (*draw, *stream))


class _Texts:
    """Texts that join the batches of a training, as token ids. The first row of a batch decides which."""

    def __init__(self, texts: Sequence[str] | None, blocks: Any, count: int, tokenizer: Any = None):
        if texts and blocks is not None:
            raise ValueError("Give `texts` or `text_blocks`, not both.")
        self._source: Any = texts if blocks is None else blocks
        if count and not self._source:
            raise ValueError("`texts_per_batch` needs `texts` or `text_blocks` to draw from.")
        self._of_sentences = blocks is None
        self._count = count
        self._tokenizer = tokenizer

    def draw(self, rows: Sequence[Row]) -> list[list[int]]:
        """As many texts as join the batch of these rows."""
        if not self._count:
            return []
        drawn = _generator(rows[0], _TEXTS).integers(len(self._source), size=self._count).tolist()
        if self._of_sentences:
            return self._tokenizer([self._source[index] + self._tokenizer.eos_token for index in drawn])["input_ids"]
        return [[int(token) for token in self._source[index]["input_ids"]] for index in drawn]


def _eeg_and_text(
    processor: NeuroLMProcessor, rows: Sequence[Row], placed: list[str], texts: list[list[int]]
) -> dict[str, torch.Tensor]:
    """Model inputs of prepared windows, each placed in its text, and of texts without EEG after them."""
    signals = [checked_signal(processor.feature_extractor, row) for row in rows]
    without: list[list] = [[] for _ in texts]
    batch = dict(
        processor(
            eeg=[[signal] for signal in signals] + without,
            text=placed + [""] * len(texts),
            ch_names=[[list(row["channels"])] for row in rows] + without,
            prepared_by=processor.feature_extractor.recipe_id,
            return_tensors="pt",
        )
    )
    if texts:
        _write_texts(batch, texts, processor.tokenizer)
    return batch


def _write_texts(batch: dict[str, torch.Tensor], texts: list[list[int]], tokenizer: Any) -> None:
    """Writes token ids into the last rows of a batch, which is made as long as it must be."""
    if (largest := max(map(max, texts))) >= len(tokenizer):
        raise ValueError(
            f"The text has token {largest}, but the tokenizer has {len(tokenizer)}: prepare the text with this one."
        )
    on_left = tokenizer.padding_side == "left"
    padding = {"input_ids": tokenizer.pad_token_id, "attention_mask": 0, "mm_token_type_ids": 0}
    more = max(0, max(map(len, texts)) - batch["input_ids"].shape[1])
    for name, value in padding.items():
        batch[name] = F.pad(batch[name], (more, 0) if on_left else (0, more), value=value)
    for row, text in enumerate(texts, start=-len(texts)):
        real = slice(-len(text), None) if on_left else slice(len(text))
        batch["input_ids"][row, real] = torch.tensor(text)
        batch["attention_mask"][row, real] = 1
