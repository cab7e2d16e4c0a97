"""Text: the ids are GPT-2's, documents are joined and cut as declared, and a killed run ends with the same bytes."""

import gzip
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from recording_files import SHARED, needs_shared

from neurolm_hf.processing_neurolm import build_text_tokenizer, train_text_tokenizer
from neurolm_hf.text import (
    TextBlocks,
    TextEncoder,
    gpt2_encoder,
    load_text_blocks,
    prepare_text,
    read_dataset,
    read_files,
    text_files,
    transformers_encoder,
    vocabulary_hash,
)
from scripts.prepare_text import main


ROOT = Path(__file__).parents[1]
GPT2 = SHARED / "gpt2"
DEMO_TEXT = ROOT / "scripts" / "demo_text.txt"
# An encoder that one can follow by hand: a letter is its code, and 0 ends a document.
LETTERS = TextEncoder("letters", lambda document: [ord(letter) for letter in document], 0, "uint16", "letters")


def letters(row):
    return "".join(chr(value) if value else "|" for value in row)


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*arguments):
    """The exit status of the script, and what it said where it failed."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    code = stopped.value.code
    return (1, code) if isinstance(code, str) else (code, "")


@needs_shared
def test_ids_are_those_of_transformers_gpt2():
    text = DEMO_TEXT.read_text() + "\n\n  Über 3.14 µV — don't,  'll  \t日本語 <|endoftext|> end \n"
    expected = build_text_tokenizer(GPT2)(text, split_special_tokens=True)["input_ids"]
    encoder = gpt2_encoder(GPT2)
    assert encoder.encode(text) == expected
    assert (encoder.name, encoder.end_of_text, encoder.dtype) == ("gpt2", 50256, "uint16")
    # NeuroLM's tokens beside GPT-2's own change nothing of what text is made of
    assert encoder.vocabulary == vocabulary_hash(build_text_tokenizer(GPT2))
    assert 50256 not in encoder.encode("a document that says <|endoftext|>")


@needs_shared
def test_gpt2_files_of_another_vocabulary_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"lacks encoder\.json"):
        gpt2_encoder(tmp_path)
    (tmp_path / "encoder.json").write_text("{}")
    with pytest.raises(ValueError, match=r"encoder\.json is not GPT-2's; for another vocabulary give --tokenizer"):
        gpt2_encoder(tmp_path)


def test_without_network_and_folder_the_error_says_what_to_do(monkeypatch):
    import tiktoken

    def no_network(name):
        raise ConnectionError("no route to host\nat line 3")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    with pytest.raises(ValueError, match=r"TIKTOKEN_CACHE_DIR.*--bpe-folder.*no route to host$"):
        gpt2_encoder()


def test_what_the_download_said_is_cut_between_words(monkeypatch):
    import tiktoken

    def no_network(name):
        raise ConnectionError("proxy " * 80)

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    with pytest.raises(ValueError, match=r"said: (proxy )+\.\.\.$"):
        gpt2_encoder()


def test_tokenizer_of_a_model(tmp_path):
    tokenizer = train_text_tokenizer(DEMO_TEXT.read_text().splitlines(), vocab_size=400)
    tokenizer.save_pretrained(tmp_path)
    encoder = transformers_encoder(str(tmp_path))
    text = "The alpha rhythm [SEP] fades.<|endoftext|>"
    ids = encoder.encode(text)
    assert tokenizer.decode(ids) == text
    assert encoder.end_of_text == tokenizer.eos_token_id
    assert not {tokenizer.eos_token_id, tokenizer.sep_token_id} & set(ids)
    assert encoder.dtype == "uint16"


def test_documents_are_joined_and_cut():
    blocks = TextBlocks(["abc", "", "de", "fghijk"], LETTERS, 4)
    assert [letters(block) for block in blocks] == ["abc|", "de|f", "ghij"]
    assert letters(blocks.carry) == "k|"
    assert blocks.documents_read == 4


def test_blocks_go_on_where_they_stopped():
    documents = ["abc", "defghijklmn", "op"]
    whole = [letters(block) for block in TextBlocks(documents, LETTERS, 3)]
    for stop in range(len(whole)):
        first = TextBlocks(documents, LETTERS, 3)
        done = [letters(block) for block in itertools.islice(first, stop)]
        rest = TextBlocks(documents, LETTERS, 3, first.documents_read, first.carry.tolist())
        assert done + [letters(block) for block in rest] == whole


def prepare(folder, documents=("abc", "defghijklmn", "op", "qrstu"), **options):
    settings = {"source": {"made": "here"}, "block_length": 3, "blocks_per_shard": 2, **options}
    return prepare_text(documents, folder, LETTERS, **settings)


def test_shards(tmp_path):
    summary = prepare(tmp_path / "text")
    # abc|defghijklmn|op|qrstu| has 25 letters: 8 blocks in 4 shards, 1 left out
    expected = {"shards": 4, "blocks": 8, "tokens": 24, "documents_read": 4, "tokens_left_out": 1}
    assert summary == expected == json.loads((tmp_path / "text" / "summary.json").read_text())
    shards = sorted((tmp_path / "text" / "data").iterdir())
    assert [shard.name for shard in shards] == [f"train-0000{index}.parquet" for index in range(4)]
    second = pq.read_table(shards[1]).column("input_ids").to_pylist()
    assert [letters(row) for row in second] == ["fgh", "ijk"]


@pytest.mark.parametrize("streaming", [False, True])
def test_read_back(tmp_path, streaming):
    prepare(tmp_path / "text")
    rows = list(load_text_blocks(tmp_path / "text", streaming=streaming))
    assert "".join(letters(row["input_ids"]) for row in rows) == "abc|defghijklmn|op|qrstu"


def test_max_tokens_stops_early(tmp_path):
    taken = []

    def documents():
        for document in ("abc", "defghijklmn", "op", "qrstu"):
            taken.append(document)
            yield document

    summary = prepare(tmp_path / "text", documents(), max_tokens=11)
    assert (summary["blocks"], summary["tokens"], summary["documents_read"]) == (3, 9, 2)
    assert taken == ["abc", "defghijklmn"]  # nothing beyond what is used
    with pytest.raises(ValueError, match=r"max_tokens \(2\) must leave room for one block of 3"):
        prepare(tmp_path / "other", max_tokens=2)


@pytest.mark.parametrize("documents_before_the_crash", range(4))
def test_a_run_that_was_cut_short_ends_with_the_same_bytes(tmp_path, documents_before_the_crash):
    prepare(tmp_path / "whole")

    def crashing():
        yield from ("abc", "defghijklmn", "op", "qrstu")[:documents_before_the_crash]
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        prepare(tmp_path / "resumed", crashing())
    (tmp_path / "resumed" / "data" / ".train-00002.parquet.x.part").write_bytes(b"half a shard")
    with pytest.raises(ValueError, match="no finished set"):
        load_text_blocks(tmp_path / "resumed")
    prepare(tmp_path / "resumed")
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")


def test_an_interrupted_write_leaves_no_shard(tmp_path, monkeypatch):
    import neurolm_hf.text as text

    def disk_full(source, target):
        raise OSError("disk full")

    (tmp_path / "text" / "data").mkdir(parents=True)
    with monkeypatch.context() as patched:
        patched.setattr(text, "_claim_folder", lambda output, settings: None)
        patched.setattr(os, "replace", disk_full)
        with pytest.raises(OSError, match="disk full"):
            prepare(tmp_path / "text")
    assert not list((tmp_path / "text").rglob("*.parquet"))


def test_a_finished_run_reads_nothing_again(tmp_path):
    summary = prepare(tmp_path / "text")

    def untouched():
        raise AssertionError("read again")
        yield

    assert prepare(tmp_path / "text", untouched()) == summary


def test_other_folders_are_not_written_into(tmp_path):
    prepare(tmp_path / "text")
    with pytest.raises(ValueError, match="was begun with another block_length; choose another folder"):
        prepare(tmp_path / "text", block_length=4)
    with pytest.raises(ValueError, match=r"max_tokens \(2\) must leave room for one block of 3 tokens"):
        prepare(tmp_path / "new", max_tokens=2)
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("precious")
    with pytest.raises(ValueError, match="is not an empty folder"):
        prepare(tmp_path / "mine")
    with pytest.raises(ValueError, match="2 tokens fill no block of 3: give more text"):
        prepare(tmp_path / "short", ["a"])


def test_files(tmp_path):
    (tmp_path / "b.txt").write_text("one\ntwo")
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n\n{"text": "y", "other": 1}\n')
    (tmp_path / "deep").mkdir()
    with gzip.open(tmp_path / "deep" / "c.txt.gz", "wt", encoding="utf-8") as file:
        file.write("zipped")
    (tmp_path / "picture.png").write_bytes(b"not text")
    found = text_files([tmp_path, tmp_path / "b.txt", f"{tmp_path}/*.jsonl"])
    assert [path.name for path in found] == ["a.jsonl", "b.txt", "c.txt.gz"]
    assert list(read_files(found)) == ["x", "y", "one\ntwo", "zipped"]
    with pytest.raises(ValueError, match=r"picture\.png is no text file"):
        text_files([tmp_path / "picture.png"])
    with pytest.raises(ValueError, match=r"nothing\*: no text file there"):
        text_files([f"{tmp_path}/nothing*"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\x00", r"a\.txt cannot be read as UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text":', r"a\.jsonl cannot be read as UTF-8 text or JSON lines"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}\n', r"a\.jsonl, line 2 has no text in column 'text'.*: body"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl, line 1 has no text"),
        ("a.txt.gz", b"not gzip", r"a\.txt\.gz cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(read_files([tmp_path / name]))


def test_a_text_set_is_streamed(tmp_path):
    lines = [json.dumps({"body": f"document {index}"}) for index in range(1000)]
    (tmp_path / "set.json").write_text("\n".join(lines))
    options = {"data_files": [str(tmp_path / "set.json")], "text_column": "body"}
    documents = read_dataset("json", **options)
    assert list(itertools.islice(documents, 3)) == ["document 0", "document 1", "document 2"]
    with pytest.raises(ValueError, match=r"json, row 0 has no text in column 'text' \(--text-column\).*: body"):
        next(read_dataset("json", data_files=[str(tmp_path / "set.json")]))


@needs_shared
def test_script(tmp_path, capsys):
    options = ["--bpe-folder", GPT2, "--block-length", 16, "--blocks-per-shard", 10]
    main([str(item) for item in ["--files", DEMO_TEXT, "--output", tmp_path / "a", *options]])
    said = capsys.readouterr().out
    ids = np.concatenate([row["input_ids"] for row in load_text_blocks(tmp_path / "a")])
    expected = [*gpt2_encoder(GPT2).encode(DEMO_TEXT.read_text()), 50256]
    kept = len(expected) // 16 * 16
    assert ids.tolist() == expected[:kept]
    assert f"{kept // 16:,} blocks, {kept:,} tokens of gpt2 from 1 documents; {len(expected) - kept}" in said

    lines = ["--dataset", "text", "--data-files", DEMO_TEXT, "--output", tmp_path / "b", *options]
    main([str(item) for item in lines])
    assert "from 32 documents" in capsys.readouterr().out


def test_interrupted_script(tmp_path, monkeypatch, capsys):
    import scripts.prepare_text as script

    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "prepare_text", interrupted)
    monkeypatch.setattr(script, "gpt2_encoder", lambda folder: LETTERS)
    assert run("--files", DEMO_TEXT, "--output", tmp_path / "out")[0] == 130
    assert capsys.readouterr().err == "Stopped. Start the same command again to go on.\n"


def test_script_exit_status(tmp_path, capsys):
    assert run("--help")[0] == 0
    assert run("--output", tmp_path / "out")[0] == 2
    assert "give --files or --dataset" in capsys.readouterr().err
    assert run("--output", tmp_path / "out", "--files", DEMO_TEXT, "--tokenizer", "x", "--bpe-folder", "y")[0] == 2
    assert run("--output", tmp_path / "out", "--files", DEMO_TEXT, "--max-tokens", 5)[0] == 2
    code, said = run("--output", tmp_path / "out", "--files", DEMO_TEXT, "--bpe-folder", tmp_path)
    assert code == 1
    assert said.startswith("error: ")
    assert "lacks encoder.json" in said
    command = [sys.executable, "scripts/prepare_text.py", "--output", tmp_path / "out", "--files", tmp_path / "no"]
    command += ["--bpe-folder", tmp_path]
    failed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stderr.count("\n")) == (1, 1)
