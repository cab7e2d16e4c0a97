"""What the three scripts share: prepared sets and text in, a model with its figures out, and errors in one line."""

import errno
import json
import os
import shutil
import warnings

import numpy as np
import pytest
from stage_folders import write_sets, write_text, write_text_model, write_tokenizer, write_vq
from test_recipes import script_module
from test_train_scripts import NEW_VQ, here
from tiny import vq_config
from torch.utils.data import DataLoader

from neurolm_hf import NeuroLMVQModel
from neurolm_hf.collators import EEGCollator
from neurolm_hf.processing_neurolm import build_text_tokenizer, train_text_tokenizer
from neurolm_hf.recipes import StageTrainingArguments
from neurolm_hf.stages import (
    SKIPPED_ROWS,
    TRACEBACK,
    StageOptions,
    exit_status,
    finish,
    held_out_text,
    make_trainer,
    open_sets,
    open_text,
    optimizer_steps,
    train,
    training_set,
)
from neurolm_hf.storage import ShardWriter, encode_row
from neurolm_hf.tasks import load_task
from neurolm_hf.training import CodebookCallback, QuantizerScheduleCallback


TASK = load_task("Workload")


def arguments(folder, **changes):
    given = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 2, "use_cpu": True}
    return StageTrainingArguments(output_dir=str(folder), report_to=[], **{**given, **changes})


def spoil(folder, split, index=0):
    """Writes a shard again, its second window with a channel of no vocabulary."""
    rows = []
    for start in (0.0, 4.0):
        of_row = {"sampling_rate": 200, "unit": "100uV", "subject": "x", "recording": f"bad-{split}"}
        recipe_id = json.loads((folder / "preparation.json").read_text())["recipe_id"]
        signal = [[0.5] * 800] * 2
        answer = TASK.classes[0]
        row = encode_row(
            np.array(signal), ["FP1", "FP2"], **of_row, start=start, recipe_id=recipe_id, task=TASK, answer=answer
        )
        rows.append(row)
    rows[1]["channels"] = ["FP1", "NOWHERE"]
    writer = ShardWriter(sorted((folder / "data" / split).glob("*.parquet"))[index], TASK)
    for row in rows:
        writer.add(row)
    writer.commit()


@pytest.fixture
def folder(tmp_path):
    return write_sets(tmp_path / "prepared", splits={"train": 4, "validation": 2})


def test_bad_rows_of_the_validation_are_left_out_and_listed(folder, tmp_path):
    spoil(folder, "validation")
    strict, lenient = (StageOptions([str(folder)], skip_bad_rows=skip) for skip in (False, True))
    assert [len(rows) for rows, _ in open_sets(strict, arguments(tmp_path), with_tasks=True).validation] == [4]
    with pytest.warns(UserWarning, match="left out of the validation"):
        data = open_sets(lenient, arguments(tmp_path), with_tasks=True)
    ((rows, task),) = data.validation
    assert task.name == "Workload"
    assert ["NOWHERE" in row["channels"] for row in rows] == [False] * 3
    (skipped,) = data.skipped
    assert f"of {folder}: bad-validation at 4 s" in skipped


def test_rows_left_out_of_a_run_are_listed_whoever_met_them(folder, tmp_path):
    """Before an interruption (the file has them), in this start, and in the validation split."""
    spoil(folder, "validation")
    spoil(folder, "train")
    options = StageOptions([str(folder)], skip_bad_rows=True)
    args = arguments(tmp_path / "run", max_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = open_sets(options, args, with_tasks=False)
        trainer = vq_trainer(options, args, data)
        assert train(trainer, options, data) == 0
        with (tmp_path / "run" / SKIPPED_ROWS).open("a") as file:
            file.write("Row 7 of prepared: met before.\n" * 2)
        finish(trainer, data, {})
    listed = json.loads((tmp_path / "run" / "training.json").read_text())["skipped_rows"]
    assert len(listed) == 3
    for words in ("bad-train at 4 s", "bad-validation at 4 s", "Row 7 of prepared"):
        assert sum(words in line for line in listed) == 1


def vq_trainer(options, args, data):
    plain = EEGCollator(data.feature_extractor)
    model = NeuroLMVQModel(vq_config(num_channel_embeddings=256, max_seconds=64))
    callbacks = [CodebookCallback()]
    given = {"data_collator": plain, "processing_class": data.feature_extractor}
    return make_trainer(model, args, options, data, data.longest_row(), callbacks=callbacks, **given)


def test_memory_is_looked_at_before_the_trainer_moves_the_model(folder, tmp_path, monkeypatch):
    options, args = StageOptions([str(folder)]), arguments(tmp_path / "run")
    data = open_sets(options, args, with_tasks=False)
    monkeypatch.setattr("neurolm_hf.resources.free_memory", lambda device: 1000)
    monkeypatch.setattr("neurolm_hf.stages.NeuroLMTrainer", lambda **given: pytest.fail("the trainer was made"))
    with pytest.raises(ValueError, match="Training needs at least"):
        vq_trainer(options, args, data)


def test_a_full_disk_at_the_end_is_told_and_the_same_command_writes_the_rest(folder, tmp_path, monkeypatch):
    options, args = StageOptions([str(folder)]), arguments(tmp_path / "run", max_steps=1)
    data = open_sets(options, args, with_tasks=False)
    trainer = vq_trainer(options, args, data)
    assert train(trainer, options, data) == 0

    def full(output):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"final files of .*run could not be written.*without training again"):
        finish(trainer, data, {}, write=full)
    assert not (tmp_path / "run" / "training.json").exists()
    again = vq_trainer(options, args, data)
    assert train(again, options, data) == 0
    finish(again, data, {}, write=lambda output: (output / "beside.txt").touch())
    assert (tmp_path / "run" / "training.json").exists()
    assert (tmp_path / "run" / "beside.txt").exists()


def test_a_damaged_file_is_named(folder, tmp_path):
    file = sorted((folder / "data" / "train").glob("*.parquet"))[1]
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match=rf"{file} is damaged: .*Start its preparation again"):
        open_sets(StageOptions([str(folder)]), arguments(tmp_path), with_tasks=False)


def test_an_error_in_a_worker_is_one_line(folder, tmp_path, capsys, monkeypatch):
    spoil(folder, "train")
    options, args = StageOptions([str(folder)]), arguments(tmp_path)
    rows = training_set(open_sets(options, args, with_tasks=False), options, args)

    def read():
        return len(list(DataLoader(rows, batch_size=None, num_workers=1)))

    assert exit_status(read) == 1
    error = capsys.readouterr().err
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: Row 1 of {folder}: bad-train at 4 s")
    assert line.endswith("--skip-bad-rows of the scripts).")
    assert "Traceback" not in error
    monkeypatch.setenv(TRACEBACK, "1")
    assert exit_status(read) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "usable_row" in error


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_batch_size": 3}, "give --text-data, or --text-batch-size 0"),
        ({"text_batch_size": -3, "text_data": "text"}, "0 or more, not -3"),
        ({"text_batch_size": 0, "text_data": "text"}, "leave --text-data out"),
    ],
)
def test_text_options_that_do_not_go_together(changes, words):
    with pytest.raises(ValueError, match=words):
        StageOptions(["data"], **changes)
    StageOptions(["data"], text_batch_size=0)


def test_text_is_counted_by_the_step_and_some_is_held_out(folder, tmp_path):
    write_tokenizer(tmp_path / "tokenizer")
    text = write_text(tmp_path / "text", tmp_path / "tokenizer", block_length=8)
    tokenizer = build_text_tokenizer(tmp_path / "tokenizer")
    args = arguments(tmp_path)
    assert open_text(StageOptions(["data"]), args, tokenizer) == {}
    for size, share in ((None, 0.25), (3, 3 / 8)):
        options = StageOptions([str(folder)], text_data=str(text), text_batch_size=size)
        texts = open_text(options, args, tokenizer)
        assert texts["texts_per_row"] == share
        # the same however a step is divided
        other = arguments(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
        assert open_text(options, other, tokenizer)["texts_per_row"] == share
    data = open_sets(options, args, with_tasks=False)
    held = held_out_text(options, data, texts)
    blocks = json.loads((text / "summary.json").read_text())["blocks"]
    assert len(held["text_blocks"]) == blocks // 20 > 0
    assert len(texts["text_blocks"]) + len(held["text_blocks"]) == blocks
    assert 0 < held["texts_per_row"] <= texts["texts_per_row"]
    assert held_out_text(StageOptions(["data"]), data, {}) == {}


def test_text_of_another_tokenizer_is_refused_though_its_end_of_text_agrees(folder, tmp_path):
    tokenizers = [train_text_tokenizer([word] * 9, vocab_size=264) for word in ("abab abab", "cdcd cdcd")]
    assert tokenizers[0].eos_token_id == tokenizers[1].eos_token_id
    tokenizers[0].save_pretrained(tmp_path / "first")
    text = write_text(tmp_path / "text", tmp_path / "first", block_length=8)
    options = StageOptions([str(folder)], text_data=str(text))
    open_text(options, arguments(tmp_path), build_text_tokenizer(tmp_path / "first"))
    with pytest.raises(ValueError, match="whose vocabulary is not this model's"):
        open_text(options, arguments(tmp_path), tokenizers[1])


def test_steps_of_a_training(folder, tmp_path):
    data = open_sets(StageOptions([str(folder)]), arguments(tmp_path), with_tasks=False)
    assert optimizer_steps(arguments(tmp_path), data) == 2
    by_epochs = arguments(tmp_path, max_steps=-1, num_train_epochs=3, gradient_accumulation_steps=1)
    assert optimizer_steps(by_epochs, data) == 6


def test_a_start_with_other_weights_under_the_same_name_is_another_run(folder, tmp_path, capsys):
    write_vq(tmp_path / "vq")
    start = ["--vq", tmp_path / "vq", "--train-data", folder, "--use-cpu", "--max-steps", "1"]
    assert here("train_vq", *start, "--output-dir", tmp_path / "run") == 0
    shutil.rmtree(tmp_path / "vq")
    write_vq(tmp_path / "vq", dead_code_threshold=0.5)
    assert here("train_vq", *start, "--output-dir", tmp_path / "run") == 1
    assert "vq was {'folder'" in capsys.readouterr().err


def test_a_warmup_leaves_a_codebook_and_is_not_judged(folder, tmp_path, capsys):
    start = [*NEW_VQ, "--train-data", folder, "--use-cpu", "--per-device-train-batch-size", "4"]
    warmup = ["--max-steps", "3", "--quantizer-warmup-steps"]
    assert here("train_vq", *start, *warmup, "3", "--output-dir", tmp_path / "all") == 1
    assert "--quantizer-warmup-steps 3 leaves none of the 3 steps" in capsys.readouterr().err
    assert not (tmp_path / "all").exists()
    best = ["--load-best-model-at-end", "--save-steps", "1", "--eval-strategy", "steps", "--eval-steps", "1"]
    assert here("train_vq", *start, *warmup, "1", *best, "--output-dir", tmp_path / "run") == 0
    log = json.loads((tmp_path / "run" / "training.json").read_text())["log"]
    assert [entry["step"] for entry in log if "eval_loss" in entry] == [2, 3]
    assert NeuroLMVQModel.from_pretrained(tmp_path / "run").encoder.quantizer.initialized


def test_the_text_model_knows_every_token_of_its_text(folder, tmp_path, capsys):
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    small = train_text_tokenizer(["ab"], vocab_size=262)
    small.save_pretrained(tmp_path / "small")
    write_text_model(tmp_path / "model", tmp_path / "small")
    text = write_text(tmp_path / "text", tokenizer)
    start = [*NEW_VQ, "--train-data", folder, "--use-cpu", "--max-steps", "1", "--text-data", text]
    given = ["--text-model", tmp_path / "model", "--text-tokenizer", tokenizer]
    assert here("train_vq", *start, *given, "--output-dir", tmp_path / "run") == 1
    assert "has embeddings of" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "expected"), [(None, 0.4), (0.0, 0.0), (0.2, 0.2)])
def test_the_option_for_the_bypass_counts_more_than_the_model_s(given, expected):
    script = script_module("train_vq")
    model = NeuroLMVQModel(vq_config(quantizer_bypass=0.4))
    options = script.VQOptions(["data"], from_scratch=True, quantizer_bypass=given)
    (schedule,) = [made for made in script.callbacks(model, options) if isinstance(made, QuantizerScheduleCallback)]
    assert schedule.bypass == expected


@pytest.mark.parametrize(
    ("strategy", "warmup", "delay"), [("steps", 1, 2), ("steps", 2, 3), ("epoch", 1, 1), ("epoch", 2, 2)]
)
def test_evaluations_begin_after_the_warmup(folder, tmp_path, strategy, warmup, delay):
    """Of 4 windows in a step an epoch has 2 steps."""
    script = script_module("train_vq")
    plan = {"gradient_accumulation_steps": 1, "max_steps": 6, "eval_strategy": strategy, "eval_steps": 1}
    args = arguments(tmp_path, **plan)
    options = script.VQOptions([str(folder)], from_scratch=True, quantizer_warmup_steps=warmup)
    data = open_sets(options, args, with_tasks=False)
    script.keep_evaluation_out_of_warmup(options, args, data)
    assert args.eval_delay == delay
    with pytest.raises(ValueError, match="judges codes that there are not yet"):
        script.keep_evaluation_out_of_warmup(options, arguments(tmp_path, **plan, eval_on_start=True), data)
