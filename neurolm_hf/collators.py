"""Windows in, batches out: rows (`storage.row_signal` reads their signal) become what the models read.

Tokenizer: patches. Masked modelling: patches, and which of them are masked. Pre-training: the patches' codes as
labels. Instruction tuning: prompt and answer. Classification: EEG, with a question or without, and labels. All that is
random about a row comes from its `draw` (see `training_set`), so that a training that is resumed meets the same rows.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .channels_neurolm import CHANNEL_VOCABULARY
from .layers_neurolm import IGNORE_INDEX, PADDING_CODE
from .modeling_labram import masked_counts
from .processing_neurolm import EEGFeatureExtractor, EEGSegment, NeuroLMProcessor
from .prompts import completion_ids
from .storage import Row, row_signal
from .tasks import Task


class EEGCollator:
    """Batches for the neural tokenizer: patches and the ids of their channels and seconds.

    `rows` of a batch names its windows. Where texts are mixed in, `text_input_ids` and `text_attention_mask` (texts,
    tokens), right-padded, are for the adversary of `NeuroLMVQForPreTraining`; where none is drawn, they hold one token
    that is padding.

    Args:
        feature_extractor: the one whose recipe prepared the rows.
        text_blocks: what `text.load_text_blocks` returns.
        texts_per_row: how many of them each row brings, on average: at 0.25 every fourth row of an epoch brings one.
            Which rows and which texts depends on the rows' `draw` alone, not on how they fall into batches.

    Raises:
        ValueError: `texts_per_row` below 0, or without blocks to draw from.
    """

    def __init__(self, feature_extractor: EEGFeatureExtractor, text_blocks: Any = None, texts_per_row: float = 0.0):
        self.feature_extractor = feature_extractor
        self._texts = _Texts(None, text_blocks, texts_per_row)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        batch = self.feature_extractor.collate([[window_segment(self.feature_extractor, row)] for row in rows])
        batch = batch.convert_to_tensors("pt")
        inputs: dict[str, Any] = {name: batch[name] for name in batch if name != "eeg_segment_ids"}
        return {**inputs, **self._texts.batch(rows), "rows": [row_name(row) for row in rows]}


class MaskedCollator(EEGCollator):
    """Batches for masked modelling: those of `EEGCollator`, and `masked` (batch, patches), True where it masks.

    Of a row with L real patches it masks exactly L - floor(L (1 - share)), and nothing of the padding.

    Args:
        feature_extractor: as in `EEGCollator`.
        share: of the patches that is masked; `LaBraMConfig.mask_ratio`.
    """

    def __init__(self, feature_extractor: EEGFeatureExtractor, share: float = 0.5):
        super().__init__(feature_extractor)
        self.share = share

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        batch = super().__call__(rows)
        masked = torch.zeros_like(batch["eeg_attention_mask"], dtype=torch.bool)
        for row, of_row, real in zip(rows, masked, batch["eeg_attention_mask"], strict=True):
            places = real.nonzero().flatten()
            count = int(masked_counts(real[None] > 0, self.share))
            of_row[places[_generator(row, _MASK).permutation(len(places))[:count]]] = True
        return {**batch, "masked": masked}


class PretrainingCollator:
    """Batches for multi-channel autoregression: every patch's code is a label (paper, section 3.2).

    `rows` of a batch names its windows. Where texts are mixed in, `text_input_ids` and `text_attention_mask` (texts,
    tokens), right-padded, stand beside the EEG; where none is drawn, they hold one end-of-text token, which predicts
    nothing: all processes must make the same passes. Rows with `eeg_features` (see `feature_cache`) give those, and
    their `eeg_codes`, in place of `input_values`.

    Args:
        processor: its placeholder is the label that stands for a patch's code.
        texts: sentences to draw from, so that the language model keeps its language. Without texts and blocks the
            training is on EEG alone.
        texts_per_row: as in `EEGCollator`.
        text_blocks: instead of `texts`, what `text.load_text_blocks` returns.

    Raises:
        ValueError: `texts_per_row` below 0, or without anything to draw from; both to draw from.
    """

    def __init__(
        self,
        processor: NeuroLMProcessor,
        texts: Sequence[str] | None = None,
        texts_per_row: float = 0.0,
        text_blocks: Any = None,
    ):
        self.processor = processor
        self._texts = _Texts(texts, text_blocks, texts_per_row, processor.tokenizer)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        batch = eeg_and_text(self.processor, rows, [self.processor.eeg_token] * len(rows))
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORE_INDEX)
        names = [row_name(row) for row in rows]
        return {**batch, "labels": labels, **self._texts.batch(rows), "rows": names}


class InstructionCollator:
    """Batches for instruction tuning: EEG, prompt and answer, with a loss on what follows the prompt (section 3.3).

    A row's own `task` is asked where it has one, so that a batch can mix tasks. The texts, with a loss on all of their
    tokens, and rows with `eeg_features` are as in `PretrainingCollator`.

    Args:
        processor: what tokenizes.
        task: what is asked about rows that have no task of their own.
        channel_dropout: share of channels that are left out of a training window, at random. 0 keeps all.
        shuffle_options: writes lettered options in a random order for each row.
        texts, texts_per_row, text_blocks: as in `PretrainingCollator`.

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
        texts_per_row: float = 0.0,
        text_blocks: Any = None,
    ):
        self.processor = processor
        self.task = task
        self.channel_dropout = channel_dropout
        self.shuffle_options = shuffle_options
        self._texts = _Texts(texts, text_blocks, texts_per_row, processor.tokenizer)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        asked = [self._ask(row) for row in rows]
        tokenizer = self.processor.tokenizer
        prompts = [self.processor.eeg_token + task.prompt() for _, task, _ in asked]
        answers = [completion_ids(tokenizer, task, answer) for _, task, answer in asked]
        batch = _append(eeg_and_text(self.processor, [row for row, _, _ in asked], prompts), answers, tokenizer)
        lengths = torch.tensor([len(ids) for ids in answers]).unsqueeze(1)
        real = batch["attention_mask"]
        from_end = real.flip(1).cumsum(1).flip(1)  # 1 at the last token of a row, 2 at the one before
        labels = batch["input_ids"].masked_fill((real == 0) | (from_end > lengths), IGNORE_INDEX)
        return {**batch, "labels": labels, **self._texts.batch(rows), "rows": [row_name(row) for row in rows]}

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


class ClassificationCollator:
    """Batches for a classifier: EEG, on request with a question behind it, and each row's `label` as `labels`.

    Labels are classes (batch,) int64, values (batch,) float32, or where a row has several numbers, (batch, numbers) of
    either kind. `rows` of a batch names its windows. Rows with `eeg_features` are as in `PretrainingCollator`.

    Args:
        processor: of the model. Without a text tokenizer there is EEG alone.
        with_question: writes the prompt of a row's task behind its EEG, as an instruction-tuned model has read it.
        task: what is asked about rows that have no task of their own.
        channel_dropout: as in `InstructionCollator`.

    Raises:
        ValueError: a question without a text tokenizer; of a batch, a row without label, or without task to ask.
    """

    def __init__(
        self,
        processor: NeuroLMProcessor,
        with_question: bool = False,
        task: Task | None = None,
        channel_dropout: float = 0.0,
    ):
        if with_question and processor.tokenizer is None:
            raise ValueError("A question needs a text tokenizer, which this processor has not: leave it out.")
        self.processor = processor
        self.with_question = with_question
        self.task = task
        self.channel_dropout = channel_dropout
        self._eeg_alone = EEGCollator(processor.feature_extractor)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        if self.channel_dropout:
            rows = [drop_channels(row, self.channel_dropout, _generator(row)) for row in rows]
        labels = torch.from_numpy(np.array([_label(row) for row in rows]))
        labels = labels.float() if labels.is_floating_point() else labels
        if self.processor.tokenizer is None:
            return {**self._eeg_alone(rows), "labels": labels}
        placed = [self.processor.eeg_token + self._prompt(row) for row in rows]
        names = [row_name(row) for row in rows]
        return {**eeg_and_text(self.processor, rows, placed), "labels": labels, "rows": names}

    def _prompt(self, row: Row) -> str:
        if not self.with_question:
            return ""
        task: Task | None = row.get("task") or self.task
        if task is None:
            raise ValueError(f"{row_name(row)}: no task whose question could be asked. Give the collator one.")
        return task.prompt()


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
    signal = _signal(feature_extractor, row)
    ids = np.array([_CHANNEL_IDS[name] for name in row["channels"]])
    return feature_extractor.to_segment(signal, ids)


def checked_signal(feature_extractor: EEGFeatureExtractor, row: Row) -> NDArray[np.float32]:
    """The signal of a row, float32 (channels, samples). A window that would spoil a training is refused.

    Raises:
        RecipeMismatchError: prepared by another recipe; a ValueError, as the others.
        ValueError: channels that are no vocabulary names, have no row in the model or do not fit the signal, more
            seconds than it reads, values that are not finite.
    """
    where = row_name(row)
    _check_recipe(feature_extractor, row)
    signal, channels = row_signal(row), list(row["channels"])
    if unknown := [name for name in channels if name not in _CHANNEL_IDS]:
        raise ValueError(f"{where}: {', '.join(unknown)} are no names of the channel vocabulary.")
    if without_row := [name for name in channels if _CHANNEL_IDS[name] >= feature_extractor.known_channels]:
        raise ValueError(
            f"{where}: this model has no row for {', '.join(without_row)}: it has rows for the first "
            f"{feature_extractor.known_channels} names of the channel vocabulary only. Prepare the recordings without "
            "these channels (`drop_channels` of the task)."
        )
    if len(signal) != len(channels):
        raise ValueError(f"{where}: {len(signal)} rows of signal for {len(channels)} channels.")
    seconds = signal.shape[1] / feature_extractor.sampling_rate
    if seconds > feature_extractor.max_seconds:
        raise ValueError(
            f"{where}: the window has {seconds:g} s, and this model reads {feature_extractor.max_seconds} s at most: "
            "prepare shorter windows."
        )
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
# Texts and masks have random numbers of their own: those of the row alone are for its augmentation.
_TEXTS, _MASK = 4, 5


def _signal(feature_extractor: EEGFeatureExtractor, row: Row) -> NDArray[np.float32]:
    """The signal of a row; what a `TrainingSet` gives, a row with a `draw`, has been through `checked_signal`."""
    if "draw" not in row:
        return checked_signal(feature_extractor, row)
    _check_recipe(feature_extractor, row)
    return row_signal(row)


def _check_recipe(feature_extractor: EEGFeatureExtractor, row: Row) -> None:
    if row.get("recipe_id", feature_extractor.recipe_id) != feature_extractor.recipe_id:
        raise RecipeMismatchError(
            f"{row_name(row)}: prepared by recipe {row['recipe_id']}, but this feature extractor's is "
            f"{feature_extractor.recipe_id}: prepare the recordings again, or load the extractor of that recipe."
        )


def _label(row: Row) -> Any:
    """What a row is to be classified as; preparation marks a row without an answer by -1."""
    label: Any = row.get("label")
    if label is None or (isinstance(label, int | np.integer) and label == -1):
        raise ValueError(f"{row_name(row)} has no label: only rows with an answer can be classified.")
    return label


def _generator(row: Row, *stream: int) -> np.random.Generator:
    """What decides what is random about a row: its `draw`, or torch's generator where it has none."""
    draw = row.get("draw")
    return np.random.default_rng(int(torch.randint(2**62, ())) if draw is None else (*draw, *stream))


class _Texts:
    """Texts beside the rows of a training; each row decides about its own. Blocks need no tokenizer."""

    def __init__(self, texts: Sequence[str] | None, blocks: Any, per_row: float, tokenizer: Any = None):
        if texts and blocks is not None:
            raise ValueError("Give `texts` or `text_blocks`, not both.")
        if per_row < 0:
            raise ValueError(f"`texts_per_row` must be 0 or more, got {per_row}.")
        self._source: Any = texts if blocks is None else blocks
        if per_row and not self._source:
            raise ValueError("`texts_per_row` needs `texts` or `text_blocks` to draw from.")
        self._of_sentences = blocks is None
        self._per_row = per_row
        self._tokenizer = tokenizer

    def batch(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """What these rows bring, one row's texts after the other's: `text_input_ids` and `text_attention_mask`.

        Nothing where no row ever brings any.
        """
        if not self._per_row:
            return {}
        tokenizer = self._tokenizer
        # a language model reads a token of its own where there is no text, an adversary judges none
        filler, padding = (0, 0) if tokenizer is None else (tokenizer.eos_token_id, tokenizer.pad_token_id)
        texts = self._draw(rows)
        width = max((len(text) for text in texts), default=1)
        ids = torch.full((max(len(texts), 1), width), padding if texts else filler)
        mask = torch.zeros_like(ids) if texts or tokenizer is None else torch.ones_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        if tokenizer is not None and int(ids.max()) >= len(tokenizer):
            raise ValueError(
                f"The text has token {int(ids.max())}, but the tokenizer has {len(tokenizer)}: prepare the text with "
                "this one."
            )
        return {"text_input_ids": ids, "text_attention_mask": mask}

    def _draw(self, rows: Sequence[Row]) -> list[list[int]]:
        drawn: list[int] = []
        for place, row in enumerate(rows):
            if count := self._count(row["draw"][2] if row.get("draw") is not None else place):
                drawn += _generator(row, _TEXTS).integers(len(self._source), size=count).tolist()
        if self._of_sentences:
            texts = [self._source[index] + self._tokenizer.eos_token for index in drawn]
            return self._tokenizer(texts)["input_ids"] if texts else []
        return [[int(token) for token in self._source[index]["input_ids"]] for index in drawn]

    def _count(self, place: int) -> int:
        """Texts of the row at a place of its epoch, or of its batch where it has no draw."""
        # a share such as 1/3 must not lose a text to rounding
        until = [math.floor(rows * self._per_row + 1e-9) for rows in (place, place + 1)]
        return until[1] - until[0]


def eeg_and_text(processor: NeuroLMProcessor, rows: Sequence[Row], placed: list[str]) -> dict[str, torch.Tensor]:
    """Model inputs of prepared windows, each placed in its text.

    Args:
        processor: of the model.
        rows: prepared windows, each with its `signal` or its `eeg_features`.
        placed: a text for each window, with one placeholder.

    Raises:
        ValueError: what `checked_signal` refuses.
    """
    extractor = processor.feature_extractor
    cached = bool(rows) and "eeg_features" in rows[0]
    signals = [_stand_in(extractor, row) if cached else _signal(extractor, row) for row in rows]
    batch = dict(
        processor(
            eeg=[[signal] for signal in signals],
            text=placed,
            ch_names=[[list(row["channels"])] for row in rows],
            prepared_by=extractor.recipe_id,
            return_tensors="pt",
        )
    )
    if not cached:
        return batch
    shape = batch.pop("input_values").shape[:2]
    for name, padding in _CACHED.items():
        if name in rows[0]:
            values = [torch.from_numpy(row[name]) for row in rows]
            batch[name] = values[0].new_full((*shape, *values[0].shape[1:]), padding)
            for row, one in enumerate(values):
                batch[name][row, : len(one)] = one
    return batch


def _stand_in(feature_extractor: EEGFeatureExtractor, row: Row) -> NDArray[np.float32]:
    """A signal as long as that whose features the row has: ids and placeholders follow from its shape alone."""
    _check_recipe(feature_extractor, row)
    seconds = len(row["eeg_features"]) // len(row["channels"])
    return np.zeros((len(row["channels"]), seconds * feature_extractor.patch_size), dtype=np.float32)


def _append(batch: dict[str, torch.Tensor], texts: list[list[int]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """The batch with token ids after the last token of each row, as long as it must be."""
    real = batch["attention_mask"].bool()
    before = {name: [row[mask] for row, mask in zip(batch[name], real, strict=True)] for name in _PADDING}
    width = max(len(ids) + len(text) for ids, text in zip(before["input_ids"], texts, strict=True))
    joined = dict(batch)
    for name, padding in _PADDING.items():
        fill = tokenizer.pad_token_id if padding is None else padding
        joined[name] = torch.full((len(texts), width), fill)
        for row, (start, text) in enumerate(zip(before[name], texts, strict=True)):
            added = {"input_ids": text, "attention_mask": [1] * len(text)}.get(name, [0] * len(text))
            values = torch.cat([start, torch.tensor(added, dtype=torch.int64)])
            on_left = tokenizer.padding_side == "left"
            joined[name][row, slice(width - len(values), None) if on_left else slice(len(values))] = values
    return joined


# What stands at padding; None is the tokenizer's own.
_PADDING = {"input_ids": None, "attention_mask": 0, "mm_token_type_ids": 0}
# What stands at padding of what a `feature_cache` holds.
_CACHED = {"eeg_features": 0.0, "eeg_codes": PADDING_CODE}
