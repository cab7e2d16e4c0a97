"""The frozen EEG encoder's features, computed once and read in all epochs in place of the signals.

A prepared set has a folder of files, one for so many rows: `features` (patches, width) float32, row after row, `codes`
(patches,) int32 where they are targets, and `starts` (rows + 1,) int64, the patch with which each row begins. A row
that cannot be used has no patches. A file is there complete or not at all, so that a start that was killed goes on;
a folder's name holds a hash of all that its features depend on, so that none is taken for another's.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save
from torch import nn
from transformers import TrainingArguments
from transformers.utils.logging import tqdm

from .collators import EEGCollator, RecipeMismatchError
from .modeling_neurolm import NeuroLMModel
from .processing_neurolm import EEGFeatureExtractor
from .storage import Row, publish, signal_lengths, temporary_beside
from .training_set import LEAVE_BAD_ROWS_OUT, usable_row


FEATURES = "eeg_features"
ROWS_A_FILE = 64


class FeatureCache:
    """Where the features of a prepared set lie.

    Args:
        folder: in which the set's folder of files is made.
        rows: what `storage.load_prepared` returns.
        name: what messages call them.
        fingerprint: of what the rows hold.
        feature_extractor: of the model, and of the rows.
        model: the language model, whose encoder is frozen.
        precision: in which the encoder computes: 'fp32', 'bf16' or 'fp16'.
        with_codes: codes are kept too.

    Raises:
        ValueError: features would not stay the same, for the encoder is trained, or padding enters them.
    """

    def __init__(
        self,
        folder: Path,
        rows: Any,
        name: str,
        fingerprint: str,
        feature_extractor: EEGFeatureExtractor,
        model: NeuroLMModel,
        precision: str,
        with_codes: bool,
    ):
        config: Any = model.config.eeg_config
        if not model.config.freeze_eeg_encoder:
            raise ValueError("this model trains its EEG encoder: leave --cache-eeg-features out")
        if config.padding_enters_statistics and not feature_extractor.pad_to_patches:
            raise ValueError(
                "padding enters this model's features (padding_enters_statistics), so a window's depend on its batch: "
                "leave --cache-eeg-features out, or set pad_to_patches of the feature extractor"
            )
        self.rows = rows
        self.name = name
        self.feature_extractor = feature_extractor
        self.with_codes = with_codes
        self.patches = signal_lengths(rows) // feature_extractor.patch_size
        self.bytes_a_patch = 4 * (config.hidden_size + with_codes)
        recipe = [feature_extractor.recipe_id, feature_extractor.pad_to_patches, precision, with_codes, ROWS_A_FILE]
        key = hashlib.sha256(json.dumps([fingerprint, *recipe]).encode() + self.patches.tobytes())
        key.update(_fingerprint(model.eeg_encoder))
        self.folder = folder / f"{Path(name).name}-{key.hexdigest()[:16]}"
        self._without_signals = rows.remove_columns("signal")

    def read(self, index: int) -> Row:
        """A row: in place of `signal` its `eeg_features` (patches, width) float32 and, with codes, `eeg_codes` int64.

        Raises:
            ValueError: the row could not be used when the features were computed.
            FileNotFoundError: they are not computed yet.
        """
        number, place = divmod(index, ROWS_A_FILE)
        # a map of the file, opened here: workers of a DataLoader share no handle
        with safe_open(self._file(number), framework="np") as file:
            begin, end = file.get_slice("starts")[place : place + 2].tolist()
            if begin == end:
                usable_row(self.rows, index, self.feature_extractor, self.name)
                raise ValueError(f"Row {index} of {self.name} could not be read when its features were computed.")
            row = {**self._without_signals[index], "eeg_features": file.get_slice("features")[begin:end]}
            if self.with_codes:
                row["eeg_codes"] = file.get_slice("codes")[begin:end].astype(np.int64)
        return row

    @property
    def n_files(self) -> int:
        """Files when all are there."""
        return -(-len(self.rows) // ROWS_A_FILE)

    def missing(self) -> list[int]:
        """Numbers of the files that are not there yet."""
        return [number for number in range(self.n_files) if self.lacks(number)]

    def lacks(self, number: int) -> bool:
        """Whether this file is not there yet."""
        return not self._file(number).exists()

    def rows_of(self, number: int) -> range:
        """Rows of a file."""
        return range(number * ROWS_A_FILE, min((number + 1) * ROWS_A_FILE, len(self.rows)))

    def write(self, number: int, encoded: Sequence[tuple[NDArray, NDArray]]) -> None:
        """Makes a file appear, of the features and codes of each of its rows."""
        features, codes = zip(*encoded, strict=True)
        tensors = {
            "starts": np.cumsum([0, *map(len, features)]),
            "features": np.concatenate(features).astype(np.float32),
        }
        if self.with_codes:
            tensors["codes"] = np.concatenate(codes).astype(np.int32)
        temporary = temporary_beside(self._file(number))
        temporary.write_bytes(save(tensors))
        publish(temporary, self._file(number))

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:06d}.safetensors"


def compute_features(
    caches: Sequence[FeatureCache], model: NeuroLMModel, args: TrainingArguments, skip_bad_rows: bool
) -> None:
    """Computes the features that are not there yet; each process its share of the files.

    The encoder computes as it does in training: on the training's device, in its precision, as many windows at a time.
    Only DeepSpeed and FSDP in bfloat16 would have rounded its weights, and computed rougher features than these.

    Args:
        model: the language model of the caches.
        skip_bad_rows: note rows that cannot be used, for the training to leave out, instead of stopping at them.

    Raises:
        ValueError: the disk is too small, or a row cannot be used.
        OSError: a file could not be written.
    """
    _check_disk(caches)
    # by a file's place among all: another process may have made some already when this one looks what is missing
    places = [(cache, number) for cache in caches for number in range(cache.n_files)]
    own = places[args.process_index :: args.world_size]
    share = [(cache, number) for cache, number in own if cache.lacks(number)]
    encoder: Any = model.eeg_encoder
    device = encoder.device
    total = sum(len(cache.rows_of(number)) for cache, number in share)
    quiet = args.disable_tqdm or not args.should_log or not total
    encoder.to(args.device)
    try:
        with tqdm(total=total, desc="features of the EEG", unit=" windows", disable=quiet) as progress:
            for cache, number in share:
                cache.write(number, _encode(cache, cache.rows_of(number), model, args, skip_bad_rows))
                progress.update(len(cache.rows_of(number)))
    finally:
        encoder.to(device)


def precision_of(args: TrainingArguments) -> str:
    """In which precision a training computes."""
    return "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"


def _check_disk(caches: Sequence[FeatureCache]) -> None:
    missing = [(cache, cache.rows_of(number)) for cache in caches for number in cache.missing()]
    needed = sum(cache.bytes_a_patch * int(cache.patches[rows].sum()) for cache, rows in missing)
    folder = caches[0].folder.parent.absolute()
    existing = next(one for one in (folder, *folder.parents) if one.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        windows = sum(len(rows) for _, rows in missing)
        raise ValueError(
            f"The features of {windows} windows need {needed / 1e9:.3g} GB in {folder} ({caches[0].bytes_a_patch} "
            f"bytes a patch), and {free / 1e9:.3g} GB are free there. Set --output-dir to a larger disk, or leave "
            "--cache-eeg-features out."
        )


def _encode(
    cache: FeatureCache, indices: range, model: NeuroLMModel, args: TrainingArguments, skip_bad_rows: bool
) -> list[tuple[NDArray, NDArray]]:
    """Features and codes of each row, none of a row that cannot be used."""
    rows: dict[int, Row] = {}
    for index in indices:
        try:
            rows[index] = usable_row(cache.rows, index, cache.feature_extractor, cache.name)
        except RecipeMismatchError:
            raise
        except ValueError as error:
            if not skip_bad_rows:
                raise ValueError(f"{error} {LEAVE_BAD_ROWS_OUT}") from error
    collate = EEGCollator(cache.feature_extractor)
    width = cache.bytes_a_patch // 4 - cache.with_codes
    encoded = {index: (np.empty((0, width), np.float32), np.empty(0, np.int64)) for index in indices}
    dtype = torch.float16 if args.fp16 else torch.bfloat16
    for part in _of_equal_length(rows, cache.patches, args.train_batch_size):
        batch = collate([rows[index] for index in part])
        del batch["rows"]
        inputs = {name: values.to(args.device) for name, values in batch.items()}
        with torch.no_grad(), torch.autocast(args.device.type, dtype=dtype, enabled=precision_of(args) != "fp32"):
            encoding: Any = model.encode_eeg(**inputs, with_codes=cache.with_codes)
        features = encoding.features.float().cpu().numpy()
        codes = encoding.codes.cpu().numpy() if cache.with_codes else batch["eeg_time_ids"].numpy()
        real = batch["eeg_attention_mask"].bool().numpy()
        for place, index in enumerate(part):
            encoded[index] = features[place][real[place]], codes[place][real[place]]
    return [encoded[index] for index in indices]


def _of_equal_length(rows: dict[int, Row], patches: NDArray[np.int64], batch_size: int) -> Iterator[list[int]]:
    """Rows that need no padding, so many at a time."""
    for length in np.unique(patches[list(rows)]):
        same = [index for index in rows if patches[index] == length]
        for start in range(0, len(same), batch_size):
            yield same[start : start + batch_size]


def _fingerprint(module: nn.Module) -> bytes:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.flatten().view(torch.uint8).numpy())
    return digest.digest()
