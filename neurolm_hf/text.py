"""Text for the language model: from documents to blocks of token ids, one document at a time."""

import glob
import gzip
import hashlib
import itertools
import json
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils.logging import tqdm

from . import __version__
from .storage import TEMPORARY, publish, temporary_beside, write_text


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

TEXT_SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")
SETTINGS_FILE = "preparation.json"
SUMMARY_FILE = "summary.json"

# SHA-256 of the two files of GPT-2's byte-pair encoding, as tiktoken checks them after a download.
_ENCODER_JSON_HASH = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"
_VOCAB_BPE_HASH = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
# Key in a shard's Parquet metadata: where in the documents it ends.
_STOPPED_AT = b"neurolm_hf_stopped_at"


@dataclass(frozen=True)
class TextEncoder:
    """What turns a document into token ids.

    Attributes:
        name: what the prepared text is told to be encoded by: `gpt2`, or the tokenizer's folder or Hub id.
        encode: ids of a document. Special tokens written out in a document are ordinary text to it.
        end_of_text: id that stands after every document.
        dtype: the smallest of uint16 and int32 that holds every id.
        vocabulary: hash of its tokens and their ids, as `vocabulary_hash` gives it.
    """

    name: str
    encode: Callable[[str], list[int]]
    end_of_text: int
    dtype: str
    vocabulary: str


def gpt2_encoder(bpe_folder: str | Path | None = None) -> TextEncoder:
    """GPT-2's tokens through tiktoken.

    Args:
        bpe_folder: folder with GPT-2's `encoder.json` and `vocab.bpe`. Without it tiktoken takes its vocabulary from
            `TIKTOKEN_CACHE_DIR`, or downloads it.

    Raises:
        ImportError: tiktoken is not installed.
        ValueError: the vocabulary cannot be had, or the files are not GPT-2's.
    """
    try:
        import tiktoken
    except ImportError as error:
        raise ImportError("GPT-2's tokens need tiktoken: pip install tiktoken") from error
    if bpe_folder is not None:
        encoding = _encoding_from_files(Path(bpe_folder))
    else:
        try:
            encoding = tiktoken.get_encoding("gpt2")
        except OSError as error:  # what requests raises, too
            reason = textwrap.shorten(str(error).partition("\n")[0], 300, placeholder=" ...")
            raise ValueError(
                "GPT-2's vocabulary is not in TIKTOKEN_CACHE_DIR and cannot be downloaded; give a folder that holds "
                f"its encoder.json and vocab.bpe (--bpe-folder). The download said: {reason}"
            ) from error
    letters = bytes_to_unicode()
    tokens = {
        "".join(letters[byte] for byte in encoding.decode_single_token_bytes(token)): token
        for token in range(encoding.n_vocab)
        if token != encoding.eot_token
    }
    return TextEncoder("gpt2", encoding.encode_ordinary, encoding.eot_token, "uint16", _hash(tokens))


def transformers_encoder(tokenizer: str) -> TextEncoder:
    """The tokens of a text tokenizer of transformers, such as a small model's own.

    Args:
        tokenizer: a Hub id or a folder that `build_text_tokenizer` opens.

    Raises:
        ValueError, OSError: it cannot be opened, or has no end-of-text token.
    """
    from .processing_neurolm import build_text_tokenizer

    opened: Any = build_text_tokenizer(tokenizer)
    if opened.eos_token_id is None:
        raise ValueError(f"the tokenizer {tokenizer} has no end-of-text token to join documents with.")

    def encode(document: str) -> list[int]:
        options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
        return opened(document, **options)["input_ids"]

    dtype = "uint16" if len(opened) <= 2**16 else "int32"
    return TextEncoder(tokenizer, encode, opened.eos_token_id, dtype, vocabulary_hash(opened))


def text_vocabulary(tokenizer: Any) -> dict[str, int]:
    """Tokens that text is made of, and their ids: all but special and added ones, of which a model may have more."""
    special = {*tokenizer.added_tokens_decoder, *tokenizer.all_special_ids}
    return {token: index for token, index in tokenizer.get_vocab().items() if index not in special}


def vocabulary_hash(tokenizer: Any) -> str:
    """Hash of `text_vocabulary`, by which prepared text and a model's tokenizer are told to fit."""
    return _hash(text_vocabulary(tokenizer))


def _hash(vocabulary: Mapping[str, int]) -> str:
    return hashlib.sha256(json.dumps(sorted(vocabulary.items())).encode()).hexdigest()


def text_files(patterns: Sequence[str | Path]) -> list[Path]:
    """Files, files of folders and files that globs match, sorted by path, each once.

    Raises:
        ValueError: a pattern that matches no text file, or a file of another kind.
    """
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            matched = [file for file in path.rglob("*") if file.is_file() and file.name.endswith(TEXT_SUFFIXES)]
        else:
            matched = (
                [path] if path.is_file() else [Path(file) for file in glob.glob(os.fspath(pattern), recursive=True)]
            )
        if not matched:
            raise ValueError(f"{pattern}: no text file there; wanted are {', '.join(TEXT_SUFFIXES)}.")
        if strange := [file for file in matched if not (file.is_file() and file.name.endswith(TEXT_SUFFIXES))]:
            raise ValueError(f"{strange[0]} is no text file; wanted are {', '.join(TEXT_SUFFIXES)}.")
        found.update(matched)
    return sorted(found)


def read_files(files: Sequence[Path], text_column: str = "text") -> Iterator[str]:
    """Documents of text files, in order: a `.txt` file is one document, a line of a `.jsonl` file is one.

    Args:
        files: what `text_files` gives. Those that end in `.gz` are read through gzip.
        text_column: name of the text in a `.jsonl` line.

    Raises:
        ValueError: not UTF-8, not JSON, or no such text; the message names file and line.
    """
    for file in files:
        try:
            with _open_text(file) as stream:
                if file.name.endswith((".txt", ".txt.gz")):
                    yield stream.read()
                    continue
                for number, line in enumerate(stream, 1):
                    if line.strip():
                        yield _document(json.loads(line), text_column, f"{file}, line {number}")
        except (UnicodeDecodeError, json.JSONDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{file} cannot be read as UTF-8 text or JSON lines: {error}.") from error


def read_dataset(
    name: str,
    config_name: str | None = None,
    *,
    data_files: Sequence[str] | None = None,
    split: str = "train",
    text_column: str = "text",
) -> Iterator[str]:
    """Documents of a `datasets` text set, streamed: nothing is downloaded beyond what is read.

    Args:
        name: a Hub id such as `Skylion007/openwebtext`, a local folder, or a builder such as `text`, `json`,
            `parquet` with `data_files`.
        config_name, data_files, split: as `datasets.load_dataset` takes them.
        text_column: the column that holds a document.

    Raises:
        ImportError: datasets is not installed.
        ValueError, OSError: the set cannot be opened, or has no such column of strings.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("reading text sets needs datasets: pip install datasets") from error
    rows = load_dataset(
        name, config_name, data_files=list(data_files) if data_files else None, split=split, streaming=True
    )
    for number, row in enumerate(rows):
        yield _document(row, text_column, f"{name}, row {number}")


class TextBlocks(Iterator[np.ndarray]):
    """Blocks of token ids, (block_length,) each, from documents that are each followed by the end-of-text token.

    Empty documents are skipped. What does not fill a block at the end stays in `carry`.

    Args:
        documents: texts, in order.
        encoder: what makes ids of them.
        block_length: tokens of a block.
        documents_read, carry: where an earlier one stopped: as many documents are skipped, and these ids come first.
    """

    def __init__(
        self,
        documents: Iterable[str],
        encoder: TextEncoder,
        block_length: int,
        documents_read: int = 0,
        carry: Sequence[int] = (),
    ):
        self.encoder = encoder
        self.block_length = block_length
        self.documents_read = documents_read
        self._documents = itertools.islice(documents, documents_read, None)
        self._ids = np.array(carry, dtype=encoder.dtype)
        self._start = 0

    @property
    def carry(self) -> np.ndarray:
        """The ids of the documents read that are in no block yet."""
        return self._ids[self._start :]

    def __next__(self) -> np.ndarray:
        while len(self.carry) < self.block_length:
            document = next(self._documents)
            self.documents_read += 1
            if document:
                ids = [*self.encoder.encode(document), self.encoder.end_of_text]
                self._ids, self._start = np.concatenate([self.carry, np.array(ids, dtype=self.encoder.dtype)]), 0
        self._start += self.block_length
        return self._ids[self._start - self.block_length : self._start]


def prepare_text(
    documents: Iterable[str],
    output: str | Path,
    encoder: TextEncoder,
    *,
    source: Mapping[str, Any],
    block_length: int = 1024,
    blocks_per_shard: int = 16384,
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """Writes blocks of tokens to `output/data/train-NNNNN.parquet`, column `input_ids`, and says what it wrote.

    A shard is written whole or not at all and holds where it stopped, so that a run that was killed goes on after its
    last shard and ends with the same bytes. Memory holds one shard and one document.

    Args:
        documents: texts, the same ones in the same order when a run is continued.
        output: an empty or new folder, or the one of an earlier run with the same settings.
        encoder: what makes ids of them.
        source: where the documents come from, as JSON; it is noted, and must be the same to continue.
        block_length: tokens of a block.
        blocks_per_shard: blocks of every shard but the last.
        max_tokens: stop before there are more tokens than this; None: at the end of the documents.

    Returns:
        The summary, also in `output/summary.json`: shards, blocks, tokens, documents read, tokens left out at the end.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the folder holds something else, or the text fills no block.
    """
    _check_lengths(block_length, blocks_per_shard, max_tokens)
    output = Path(output)
    settings = {
        "neurolm_hf": __version__,
        "source": dict(source),
        "tokenizer": encoder.name,
        "end_of_text": encoder.end_of_text,
        "vocabulary": encoder.vocabulary,
        "dtype": encoder.dtype,
        "block_length": block_length,
        "blocks_per_shard": blocks_per_shard,
        "max_tokens": max_tokens,
    }
    _claim_folder(output, settings)
    if (output / SUMMARY_FILE).is_file():
        return json.loads((output / SUMMARY_FILE).read_text(encoding="utf-8"))
    shards, written, documents_read, carry = _finished_shards(output)
    blocks = TextBlocks(documents, encoder, block_length, documents_read, carry)
    most = None if max_tokens is None else max_tokens // block_length
    with tqdm(unit=" tokens", initial=written * block_length, unit_scale=True, desc=output.name) as progress:
        while most is None or written < most:
            size = blocks_per_shard if most is None else min(blocks_per_shard, most - written)
            shard = list(itertools.islice(blocks, size))
            if not shard:
                break
            _write_shard(_shard_path(output, shards), np.stack(shard), blocks)
            shards, written = shards + 1, written + len(shard)
            progress.update(len(shard) * block_length)
    if not written:
        raise ValueError(f"{len(blocks.carry)} tokens fill no block of {block_length}: give more text.")
    summary = {
        "shards": shards,
        "blocks": written,
        "tokens": written * block_length,
        "documents_read": blocks.documents_read,
        "tokens_left_out": len(blocks.carry),
    }
    write_text(output / SUMMARY_FILE, json.dumps(summary, indent=1) + "\n")
    return summary


def load_text_blocks(folder: str | Path, *, streaming: bool = False) -> "Dataset | IterableDataset":
    """The blocks that `prepare_text` wrote, as a dataset with the column `input_ids`, (block_length,) a row.

    Raises:
        ImportError: datasets is not installed.
        ValueError: the folder holds no finished set of text.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("reading prepared text needs datasets: pip install datasets") from error
    folder = Path(folder)
    if not (folder / SUMMARY_FILE).is_file():
        raise ValueError(
            f"{folder} holds no finished set of text; run prepare_text.py again, which goes on from there."
        )
    shards = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))["shards"]
    files = [os.fspath(_shard_path(folder, index)) for index in range(shards)]
    return load_dataset("parquet", data_files=files, split="train", streaming=streaming)


def _open_text(file: Path) -> TextIO:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8")
    return file.open(encoding="utf-8")


def _document(row: Mapping[str, Any], text_column: str, where: str) -> str:
    text = row.get(text_column) if isinstance(row, Mapping) else None
    if not isinstance(text, str):
        columns = ", ".join(row) if isinstance(row, Mapping) else "none"
        raise ValueError(f"{where} has no text in column {text_column!r} (--text-column); its columns: {columns}.")
    return text


def _encoding_from_files(folder: Path) -> Any:
    """tiktoken's GPT-2 encoding from a folder, checked against the hashes of GPT-2's own files."""
    from tiktoken import Encoding
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks
    from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

    files = {"encoder.json": _ENCODER_JSON_HASH, "vocab.bpe": _VOCAB_BPE_HASH}
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder} lacks {name}; the folder of GPT-2's vocabulary holds encoder.json and vocab.bpe."
            )
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
            raise ValueError(f"{folder / name} is not GPT-2's; for another vocabulary give --tokenizer.")
    ranks = data_gym_to_mergeable_bpe_ranks(
        vocab_bpe_file=os.fspath(folder / "vocab.bpe"),
        encoder_json_file=os.fspath(folder / "encoder.json"),
        vocab_bpe_hash=_VOCAB_BPE_HASH,
        encoder_json_hash=_ENCODER_JSON_HASH,
    )
    special = {"<|endoftext|>": len(ranks)}
    return Encoding(
        "gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special, explicit_n_vocab=len(ranks) + 1
    )


def _check_lengths(block_length: int, blocks_per_shard: int, max_tokens: int | None) -> None:
    if block_length < 1 or blocks_per_shard < 1:
        raise ValueError(
            f"block_length and blocks_per_shard are at least 1, not {block_length} and {blocks_per_shard}."
        )
    if max_tokens is not None and max_tokens < block_length:
        raise ValueError(f"max_tokens ({max_tokens}) must leave room for one block of {block_length} tokens.")


def _claim_folder(output: Path, settings: dict[str, Any]) -> None:
    """Notes the settings in an empty folder, or checks that an earlier run had the same."""
    noted = output / SETTINGS_FILE
    if noted.is_file():
        earlier = json.loads(noted.read_text(encoding="utf-8"))
        if other := [name for name in settings if earlier.get(name) != settings[name]]:
            raise ValueError(f"{output} was begun with another {', '.join(other)}; choose another folder.")
        for unfinished in output.rglob(f"*{TEMPORARY}"):
            unfinished.unlink()
        return
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} is not an empty folder; choose another.")
    (output / "data").mkdir(parents=True, exist_ok=True)
    write_text(noted, json.dumps(settings, indent=1) + "\n")


def _shard_path(output: Path, index: int) -> Path:
    return output / "data" / f"train-{index:05d}.parquet"


def _finished_shards(output: Path) -> tuple[int, int, int, list[int]]:
    """Shards and blocks that an earlier run wrote, documents that it read, and ids that it had in no block yet."""
    pq = _parquet()
    shards = blocks = documents_read = 0
    carry: list[int] = []
    while (path := _shard_path(output, shards)).is_file():
        metadata = pq.read_metadata(path)
        stopped = json.loads(metadata.metadata[_STOPPED_AT])
        shards, blocks = shards + 1, blocks + metadata.num_rows
        documents_read, carry = stopped["documents_read"], stopped["carry"]
    return shards, blocks, documents_read, carry


def _write_shard(path: Path, ids: np.ndarray, blocks: TextBlocks) -> None:
    import pyarrow as pa

    rows = pa.FixedSizeListArray.from_arrays(pa.array(ids.reshape(-1)), ids.shape[1])
    stopped = {"documents_read": blocks.documents_read, "carry": blocks.carry.tolist()}
    table = pa.table({"input_ids": rows}).replace_schema_metadata({_STOPPED_AT: json.dumps(stopped).encode()})
    temporary = temporary_beside(path)
    _parquet().write_table(table, temporary, compression="zstd", row_group_size=1024)
    publish(temporary, path)


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("preparing text needs pyarrow: pip install pyarrow") from error
    return pyarrow.parquet
