"""The rows of a training: one or several prepared sets, mixed by weight, in an order that needs no state.

Which row stands where in an epoch is a pure function of the seed and the epoch. A training that is resumed in the
middle of an epoch goes on with the very rows that it would have had, and so do the workers of a `DataLoader`.
"""

import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from .collators import RecipeMismatchError, checked_signal
from .processing_neurolm import EEGFeatureExtractor
from .storage import Row, signal_lengths
from .tasks import Task


LEAVE_BAD_ROWS_OUT = (
    "Prepare its recording again, or leave such rows out (on_bad_row='skip'; --skip-bad-rows of the scripts)."
)


class TrainingSet(Dataset[Row]):
    """The rows of prepared sets, shuffled anew each epoch. To be read in order, or in that of a `StepSampler`.

    An epoch has as many rows as the parts have together. Without weights that is every row once. With weights the
    parts share the epoch by weight, and each is walked through without replacement before it begins again, from one
    epoch to the next.

    Args:
        parts: rows (what `storage.load_prepared` returns, or a list) and the task asked about them; `None` where
            nothing is asked.
        feature_extractor: the one of the model; its recipe must have prepared the rows.
        weights: one a part, above 0; only their proportions count.
        seed: of the order, and of every random choice that a collator makes about a row.
        on_bad_row: `raise` stops at a row that cannot be read or that `checked_signal` refuses. `skip` warns, and
            another row of the same part takes its place. A row of another recipe stops the training in any case.
        names: what messages call the parts, such as their folders.
        skipped_file: gets a line for each row that is skipped, whichever worker or process meets it, so that what an
            interrupted training has skipped is known to the next.
        features: a `feature_cache.FeatureCache` of each part, from which rows are read in place of their signals.

    Raises:
        ValueError: no rows, weights that do not fit the parts or leave one without a row, or a seed below 0.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Any, Task | None]],
        feature_extractor: EEGFeatureExtractor,
        weights: Sequence[float] | None = None,
        seed: int = 0,
        on_bad_row: Literal["raise", "skip"] = "raise",
        names: Sequence[str] | None = None,
        skipped_file: Path | None = None,
        features: Sequence[Any] | None = None,
    ):
        if on_bad_row not in ("raise", "skip"):
            raise ValueError(f"on_bad_row is 'raise' or 'skip', not {on_bad_row!r}.")
        if seed < 0:
            raise ValueError(f"The seed must be 0 or more, got {seed}.")
        self.parts = list(parts)
        self.feature_extractor = feature_extractor
        self.seed = seed
        self.on_bad_row = on_bad_row
        self.skipped_file = skipped_file
        self.features = features
        given = names or [f"part {part}" + (f" ({task.name})" if task else "") for part, (_, task) in enumerate(parts)]
        self._names = list(given)
        self._lengths = [len(rows) for rows, _ in self.parts]
        if not self.parts or min(self._lengths) == 0:
            raise ValueError(f"Every part of a training needs rows; these have {self._lengths or 'no part'}.")
        self._counts = _shares(self._lengths, weights)
        # In shared memory, for the workers of a DataLoader are started once and live through all epochs.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._bad = [torch.zeros(length, dtype=torch.bool).share_memory_() for length in self._lengths]
        self._order: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None
        self._patches: list[NDArray[np.int64]] | None = None

    def __len__(self) -> int:
        return sum(self._counts)

    @property
    def epoch(self) -> int:
        """The epoch whose order is in use."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Puts the rows in the order of an epoch, in all workers. The Trainer calls this."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> Row:
        """The row at a place of the epoch, its signal float32 (channels, samples), or its features in its place.

        Beside the columns of the row there are `task`, and `draw`: (seed, epoch, index), which seeds what is random
        about it.

        Raises:
            ValueError: the row cannot be used and bad rows are not skipped, none of its part can be used, or it was
                prepared by another recipe.
            IndexError: there is no such place.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"There is no row {index} in a set of {len(self)}.")
        draw = (self.seed, self.epoch, index)
        part, first = self._place(index)
        return {**self._read_usable(part, first, draw), "task": self.parts[part][1], "draw": draw}

    def lengths(self) -> NDArray[np.int64]:
        """Patches of the row at each place of this epoch (places,), as their preparation says."""
        if self._patches is None:
            size = self.feature_extractor.patch_size
            self._patches = [signal_lengths(rows) // size for rows, _ in self.parts]
        parts, rows = self._order_of_epoch()
        lengths = np.zeros(len(self), dtype=np.int64)
        for part, patches in enumerate(self._patches):
            lengths[parts == part] = patches[rows[parts == part]]
        return lengths

    @property
    def skipped(self) -> list[str]:
        """What is wrong with each row that was skipped, by any worker. Reads these rows again."""
        return [
            self._fault(part, row)
            for part, flags in enumerate(self._bad)
            for row in flags.nonzero().flatten().tolist()
        ]

    def _place(self, index: int) -> tuple[int, int]:
        """(part, row of that part) at a place of this epoch."""
        parts, rows = self._order_of_epoch()
        return int(parts[index]), int(rows[index])

    def _order_of_epoch(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """`_order_of` the epoch that is in use."""
        epoch = self.epoch
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, *self._order_of(epoch))
        return self._order[1:]

    def _order_of(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Part and row at each place of an epoch, both (places,)."""
        parts = np.repeat(np.arange(len(self.parts)), self._counts)
        rows = np.concatenate([self._rows_of(part, epoch) for part in range(len(self.parts))])
        order = np.random.default_rng((self.seed, epoch, 0, _ORDER)).permutation(len(self))
        return parts[order], rows[order]

    def _rows_of(self, part: int, epoch: int) -> NDArray[np.int64]:
        """The rows that a part gives to an epoch: from where the last epoch left off, pass after pass."""
        length, count = self._lengths[part], self._counts[part]
        start, stop = epoch * count, (epoch + 1) * count
        passes = [
            np.random.default_rng((self.seed, number, part, _PASS)).permutation(length)
            for number in range(start // length, (stop - 1) // length + 1)
        ]
        begin = start % length
        return np.concatenate(passes)[begin : begin + count]

    def _read_usable(self, part: int, first: int, draw: tuple[int, ...]) -> Row:
        """A row, or where it is bad and may be skipped, another of its part."""
        for index in self._candidates(part, first, draw):
            if self._bad[part][index]:
                continue
            try:
                return self._read(part, index)
            except RecipeMismatchError:
                raise
            except ValueError as error:
                if self.on_bad_row == "raise":
                    raise ValueError(f"{error} {LEAVE_BAD_ROWS_OUT}") from error
                self._skip(part, index, error)
        raise ValueError(f"None of the {self._lengths[part]} rows of {self._names[part]} can be used.")

    def _skip(self, part: int, index: int, error: ValueError) -> None:
        self._bad[part][index] = True
        warnings.warn(f"{error} The row is skipped.", stacklevel=4)
        if self.skipped_file is not None:
            # one short write at the end of the file: lines of several workers do not mix
            with self.skipped_file.open("a", encoding="utf-8") as file:
                file.write(" ".join(str(error).split()) + "\n")

    def _candidates(self, part: int, first: int, draw: tuple[int, ...]) -> Iterator[int]:
        """The row, then all of its part at random: neighbours of a bad row are often as bad."""
        yield first
        yield from np.random.default_rng((*draw, _REPLACEMENT)).permutation(self._lengths[part]).tolist()

    def _read(self, part: int, index: int) -> Row:
        if self.features is not None:
            return self.features[part].read(index)
        return usable_row(self.parts[part][0], index, self.feature_extractor, self._names[part])

    def _fault(self, part: int, index: int) -> str:
        """What `_read` says about a bad row."""
        try:
            self._read(part, index)
        except ValueError as error:
            return " ".join(str(error).split())
        return f"Row {index} of {self._names[part]} could not be read at first."


class StepSampler(Sampler[int]):
    """The places of an epoch in an order in which a micro-batch has windows of like length, and so little padding.

    Which windows make up an optimiser step is the set's own random order. Only within a step they are sorted by their
    number of patches, so that its mean and its gradient stay as they were. A step's micro-batches go to the devices in
    turn, so that these have windows of like length at a time, too. A step of a single micro-batch cannot be grouped
    and stays as it was drawn.

    Args:
        rows: what is sampled; its epoch decides.
        batch_size: windows of a micro-batch.
        devices: how many take one each at the same time. Where several do, an epoch is filled up by its first windows
            until they have equally many.
        accumulation: how many each of them takes in a step.
        drop_last: instead of being filled up, or of ending with a smaller batch, an epoch loses its last windows.
        as_drawn: steps of the training, from 0, that stay as they were drawn: where k-means places a codebook on a
            micro-batch, that must hold windows of all kinds.
    """

    def __init__(
        self,
        rows: TrainingSet,
        batch_size: int,
        devices: int = 1,
        accumulation: int = 1,
        drop_last: bool = False,
        as_drawn: Collection[int] = (0,),
    ):
        self.rows = rows
        self.as_drawn = list(as_drawn)
        self.step = batch_size * devices * accumulation
        self.is_grouped = devices * accumulation > 1
        multiple = batch_size * devices if devices > 1 or drop_last else 1
        whole, over = divmod(len(rows), multiple)
        self._length = (whole + (over > 0 and not drop_last)) * multiple

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        order = np.arange(self._length)
        places, steps = order % len(self.rows), order // self.step
        if self.is_grouped:
            lengths = self.rows.lengths()[places]
            before = self.rows.epoch * -(-self._length // self.step)
            lengths[np.isin(before + steps, self.as_drawn)] = 0
            places = places[np.lexsort((lengths, steps))]
        yield from places.tolist()


def usable_row(rows: Any, index: int, feature_extractor: EEGFeatureExtractor, name: str) -> Row:
    """A row that can be trained on, its signal float32 (channels, samples).

    Args:
        rows: what `storage.load_prepared` returns, or a list.
        name: what a message calls them.

    Raises:
        RecipeMismatchError: prepared by another recipe.
        ValueError: the row cannot be read, or `checked_signal` refuses it; says which, and why.
    """
    try:
        row = rows[index]
        return {**row, "signal": checked_signal(feature_extractor, row)}
    except RecipeMismatchError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"Row {index} of {name}: {error}") from error
    except (LookupError, TypeError) as error:  # a damaged row lacks columns, or holds something else in them
        raise ValueError(f"Row {index} of {name}: {type(error).__name__}: {error}.") from error


# Streams of random numbers that share a seed; NumPy takes (a, b) and (a, b, 0) for the same.
_ORDER, _PASS, _REPLACEMENT = 1, 2, 3


def _shares(lengths: Sequence[int], weights: Sequence[float] | None) -> list[int]:
    """Rows of an epoch by part: all of them, or by weight, rounded so that the sum stays."""
    if weights is None:
        return list(lengths)
    if len(weights) != len(lengths):
        raise ValueError(f"{len(weights)} weights for {len(lengths)} parts: give one for each.")
    given = np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(given) & (given > 0)).all():
        raise ValueError(f"Weights must be above 0, got {list(weights)}; leave a part out instead of weighting it 0.")
    exact = given / given.sum() * sum(lengths)
    counts = np.floor(exact).astype(np.int64)
    most_lost = np.argsort(counts - exact, kind="stable")
    counts[most_lost[: sum(lengths) - counts.sum()]] += 1
    if (counts == 0).any():
        raise ValueError(
            f"Weights {list(weights)} leave part {int(np.argmin(counts))} without a row in an epoch of "
            f"{sum(lengths)}: raise its weight, or leave it out."
        )
    return [int(count) for count in counts]
