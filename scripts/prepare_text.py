#!/usr/bin/env python
"""Turn text into blocks of tokens, to keep a language model's language while it learns EEG.

A text set of the Hub, streamed, so that only what is used is downloaded:
    python scripts/prepare_text.py --dataset Skylion007/openwebtext --max-tokens 1000000000 --output openwebtext

Files, folders and patterns (a .txt file is one document, a line of a .jsonl file is one; .gz is read as it is):
    python scripts/prepare_text.py --files 'books/*.txt' notes/ --output my-text

A builder of `datasets` on local files, here with a document a line:
    python scripts/prepare_text.py --dataset text --data-files 'lines/*.txt' --output my-text

Without network, with GPT-2's vocabulary out of a folder:
    python scripts/prepare_text.py --files notes/ --bpe-folder folder-with-encoder.json-and-vocab.bpe --output my-text

Documents are joined by <|endoftext|>. The tokens at the end that fill no block are left out, and counted. Started
again after it was killed, it goes on after its last finished shard and ends with the same bytes.
Exit status: 0 prepared, 1 could not be prepared, 2 wrong usage.
"""

import sys
from dataclasses import dataclass, field

from neurolm_hf.command_line import options_parser
from neurolm_hf.text import gpt2_encoder, prepare_text, read_dataset, read_files, text_files, transformers_encoder


@dataclass
class Arguments:
    """The options; `--help` shows them."""

    output: str = field(metadata={"help": "Folder to write to: empty, new, or that of an earlier run to go on with."})
    files: list[str] | None = field(
        default=None, metadata={"help": "Text files, folders, or patterns: .txt, .jsonl, and both with .gz."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "A text set: an id of the Hub, a folder, or a builder: text, json, parquet."}
    )
    config_name: str | None = field(default=None, metadata={"help": "The set's configuration, where it has several."})
    data_files: list[str] | None = field(default=None, metadata={"help": "Files for a builder of --dataset."})
    split: str = field(default="train", metadata={"help": "Which split of --dataset (default: train)."})
    text_column: str = field(default="text", metadata={"help": "The column that holds a document (default: text)."})
    bpe_folder: str | None = field(
        default=None, metadata={"help": "Folder with GPT-2's encoder.json and vocab.bpe, to work without network."}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "A text tokenizer other than GPT-2's: a folder (of a model, say) or an id of the Hub."},
    )
    block_length: int = field(default=1024, metadata={"help": "Tokens of a block (default: 1024)."})
    blocks_per_shard: int = field(
        default=16384, metadata={"help": "Blocks of a Parquet file (default: 16384, of GPT-2's tokens 33 MB)."}
    )
    max_tokens: int | None = field(default=None, metadata={"help": "Stop before there are more tokens than this."})


def main(arguments: list[str] | None = None) -> None:
    """Prepares, or says in one line why not."""
    parser = options_parser(Arguments, description=__doc__)
    (options,) = parser.parse_args_into_dataclasses(arguments)
    if problem := usage_problem(options):
        parser.error(problem)
    try:
        prepare(options)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        print("Stopped. Start the same command again to go on.", file=sys.stderr)
        sys.exit(130)


def usage_problem(options: Arguments) -> str | None:
    """What is wrong with the options before anything is read."""
    if (options.files is None) == (options.dataset is None):
        return "give --files or --dataset"
    if options.files is not None and (options.data_files or options.config_name):
        return "--data-files and --config-name belong to --dataset"
    if options.tokenizer is not None and options.bpe_folder is not None:
        return "--bpe-folder is GPT-2's vocabulary: give it, or --tokenizer"
    if options.block_length < 1 or options.blocks_per_shard < 1:
        return "--block-length and --blocks-per-shard are at least 1"
    if options.max_tokens is not None and options.max_tokens < options.block_length:
        return "--max-tokens must leave room for one block"
    return None


def prepare(options: Arguments) -> None:
    """Encodes and writes, and prints what was written.

    Raises:
        ValueError, OSError, ImportError: what cannot be read, encoded or written.
    """
    encoder = transformers_encoder(options.tokenizer) if options.tokenizer else gpt2_encoder(options.bpe_folder)
    if options.dataset is not None:
        where = {name: getattr(options, name) for name in ("dataset", "config_name", "data_files", "split")}
        documents = read_dataset(
            options.dataset,
            options.config_name,
            data_files=options.data_files,
            split=options.split,
            text_column=options.text_column,
        )
    else:
        files = text_files(options.files or [])
        where = {"files": [{"path": str(file), "bytes": file.stat().st_size} for file in files]}
        documents = read_files(files, options.text_column)
    summary = prepare_text(
        documents,
        options.output,
        encoder,
        source={**where, "text_column": options.text_column},
        block_length=options.block_length,
        blocks_per_shard=options.blocks_per_shard,
        max_tokens=options.max_tokens,
    )
    print(
        f"{options.output}: {summary['blocks']:,} blocks, {summary['tokens']:,} tokens of {encoder.name} from "
        f"{summary['documents_read']:,} documents; {summary['tokens_left_out']:,} tokens left out at the end"
    )


if __name__ == "__main__":
    main()
