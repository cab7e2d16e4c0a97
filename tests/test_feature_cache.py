"""Features that are kept: the same losses, computed once, by whom and however often it was interrupted."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from stage_folders import write_language_model, write_sets, write_text, write_text_model, write_tokenizer, write_vq
from test_train_scripts import REPOSITORY, here

from neurolm_hf import EEGFeatureExtractor, NeuroLMForCausalLM, feature_cache
from neurolm_hf.collators import EEGCollator
from neurolm_hf.feature_cache import FeatureCache, compute_features
from neurolm_hf.modeling_neurolm import NeuroLMEEGEncoder
from neurolm_hf.recipes import StageTrainingArguments
from neurolm_hf.storage import ShardWriter, encode_row, load_prepared
from neurolm_hf.tasks import load_task


TASK = load_task("Workload")
# 16 windows in micro-batches of 3, four of them a step: two epochs, each with an uneven end.
SHORT = [
    *("--use-cpu", "--max-steps", "4", "--per-device-train-batch-size", "3", "--total-train-batch-size", "12"),
    *("--eval-strategy", "steps", "--eval-steps", "2", "--save-strategy", "no", "--logging-steps", "1"),
]
CACHE = "--cache-eeg-features"


def vary(folder, fingerprint, bad=False):
    """Windows of other montages and lengths in every second shard; the second row of the first can be bad."""
    recipe_id = json.loads((folder / "preparation.json").read_text())["recipe_id"]
    for number, file in enumerate(sorted((folder / "data").glob("*/*.parquet"))):
        channels, seconds = (["C3", "CZ", "C4"], 2) if number % 2 else (["FP1", "FP2"], 4)
        writer = ShardWriter(file, TASK)
        for index in range(2):
            signal = np.random.default_rng(2 * number + index).normal(size=(len(channels), 200 * seconds))
            of_row = {"sampling_rate": 200, "unit": "100uV", "subject": f"s{number}", "recording": file.stem}
            row = encode_row(
                signal, channels, **of_row, start=float(index), recipe_id=recipe_id, task=TASK, answer=TASK.classes[0]
            )
            writer.add({**row, "channels": [*channels[1:], "NOWHERE"]} if bad and number == 0 and index else row)
        writer.commit()
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"fingerprint": fingerprint}))
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("cache")
    made = {"root": root, "tokenizer": write_tokenizer(root / "tokenizer"), "vq": write_vq(root / "vq")}
    made["gpt2"] = write_text_model(root / "gpt2", made["tokenizer"])
    made["text"] = write_text(root / "text", made["tokenizer"])
    made["model"] = write_language_model(root / "model", made["vq"], made["gpt2"])
    made["mine"] = vary(write_sets(root / "mine"), "a" * 64)
    made["bad"] = vary(write_sets(root / "bad"), "b" * 64, bad=True)
    return made


def pretraining(folders, *more):
    start = ["--vq", folders["vq"], "--text-model", folders["gpt2"], "--train-data", folders["mine"]]
    return ["pretrain", *start, "--text-data", folders["text"], "--text-batch-size", "3", *SHORT, *more]


def tuning(folders, *more, data="mine"):
    start = ["--model", folders["model"], "--train-data", folders[data], "--lora", "--lora-eeg-projector"]
    return ["instruction_tune", *start, "--shuffle-options", "--feature-noise", "0.5", *SHORT, *more]


def logged(folder):
    """Every loss and figure of a run."""
    log = json.loads((Path(folder) / "training.json").read_text())["log"]
    measured = ("loss", "accuracy", "grad_norm")
    return [{name: entry[name] for name in entry if name.endswith(measured)} for entry in log]


def assert_same_figures(given, expected):
    assert [entry.keys() for entry in given] == [entry.keys() for entry in expected]
    for ours, theirs in zip(given, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)


def count_rows_encoded(monkeypatch):
    seen = []
    forward = NeuroLMEEGEncoder.forward
    monkeypatch.setattr(
        NeuroLMEEGEncoder,
        "forward",
        lambda self, values, *given: (seen.append(len(values)), forward(self, values, *given))[1],
    )
    return seen


@pytest.mark.parametrize("stage", [pretraining, tuning])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_losses_are_those_without_a_cache_and_the_encoder_runs_once(folders, tmp_path, monkeypatch, stage, workers):
    assert here(*stage(folders), "--output-dir", tmp_path / "without") == 0
    encoded = count_rows_encoded(monkeypatch)
    loader = ["--dataloader-num-workers", workers]
    with monkeypatch.context() as context:
        # what reads a signal for a training set
        context.setattr("neurolm_hf.training_set.usable_row", lambda *given: pytest.fail("a signal was read"))
        assert here(*stage(folders, *loader), CACHE, "--output-dir", tmp_path / "with") == 0
    given, expected = logged(tmp_path / "with"), logged(tmp_path / "without")
    assert sum("loss" in entry for entry in given) == 4
    assert sum("eval_loss" in entry for entry in given) == 2
    assert_same_figures(given, expected)
    if stage is pretraining:
        assert sum(encoded) == 16 + 6
    files = sorted((tmp_path / "with" / "eeg_features").glob("mine-*/*.safetensors"))
    assert len(files) == 2
    tensors = [load_file(file) for file in files]
    assert all(("codes" in one) == (stage is pretraining) for one in tensors)
    assert {len(one["starts"]) - 1 for one in tensors} == {16, 6}
    # the same start again reads what is there
    assert here(*stage(folders, *loader), CACHE, "--output-dir", tmp_path / "with") == 0
    assert sum(encoded) == 16 + 6 or stage is tuning


KILL_WHILE_WRITING = """
import os, signal, sys
from neurolm_hf import feature_cache
from scripts.pretrain import main

feature_cache.ROWS_A_FILE = 4
publish, published = feature_cache.publish, []

def publish_until_killed(temporary, path):
    if len(published) == 2:
        os.truncate(temporary, temporary.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    published.append(path)
    publish(temporary, path)

feature_cache.publish = publish_until_killed
main(sys.argv[1:])
"""


def test_a_start_that_was_killed_goes_on_with_what_is_complete(folders, tmp_path, monkeypatch):
    _, *arguments = pretraining(folders, CACHE, "--output-dir", tmp_path / "killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    killed = [sys.executable, "-c", KILL_WHILE_WRITING, *map(str, arguments)]
    assert subprocess.run(killed, env=environment, capture_output=True, check=False).returncode == -signal.SIGKILL
    (folder,) = (tmp_path / "killed" / "eeg_features").glob("mine-*")
    assert sorted(file.name for file in folder.glob("[0-9]*")) == ["000000.safetensors", "000001.safetensors"]
    assert len(list(folder.glob(".*.part"))) == 1
    monkeypatch.setattr(feature_cache, "ROWS_A_FILE", 4)
    encoded = count_rows_encoded(monkeypatch)
    assert here("pretrain", *arguments) == 0
    assert sum(encoded) == 8 + 6
    assert here(*pretraining(folders), "--output-dir", tmp_path / "without") == 0
    assert_same_figures(logged(tmp_path / "killed"), logged(tmp_path / "without"))


def test_an_interrupt_while_features_are_computed_is_no_failure(folders, tmp_path, monkeypatch, capsys):
    def interrupt(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(feature_cache, "_encode", interrupt)
    assert here(*pretraining(folders), CACHE, "--output-dir", tmp_path / "run") == 130
    assert "Start the same command again" in capsys.readouterr().err


def arguments(folder, **changes):
    return StageTrainingArguments(output_dir=str(folder), use_cpu=True, report_to=[], **changes)


def caches(folders, folder, model=None, data="mine", precision="fp32", with_codes=True, fingerprint="f"):
    extractor = EEGFeatureExtractor(notch_frequency=50)
    model = NeuroLMForCausalLM.from_pretrained(folders["model"]).model if model is None else model
    rows = load_prepared(folders[data], "train")
    return model, [
        FeatureCache(folder, rows, str(folders[data]), fingerprint, extractor, model, precision, with_codes)
    ]


def test_each_process_computes_its_share(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "ROWS_A_FILE", 3)
    model, given = caches(folders, tmp_path)
    encoded = count_rows_encoded(monkeypatch)
    args = arguments(tmp_path, per_device_train_batch_size=2)
    for rank in range(2):
        own = SimpleNamespace(**{name: getattr(args, name) for name in ("device", "bf16", "fp16", "train_batch_size")})
        own.process_index, own.world_size, own.disable_tqdm, own.should_log = rank, 2, True, rank == 0
        # the second begins when the first has made its own
        compute_features(given, model, own, False)
        assert sum(encoded) == sum(len(given[0].rows_of(number)) for number in range(rank, given[0].n_files, 2))
        encoded.clear()
    assert given[0].missing() == []
    # what the model itself gives, row by row
    collate = EEGCollator(given[0].feature_extractor)
    for index, row in enumerate(load_prepared(folders["mine"], "train")):
        batch = {name: value for name, value in collate([row]).items() if name != "rows"}
        with torch.no_grad():
            encoding = model.encode_eeg(**batch)
        read = given[0].read(index)
        assert "signal" not in read
        assert read["subject"] == row["subject"]
        torch.testing.assert_close(torch.from_numpy(read["eeg_features"]), encoding.features[0])
        assert read["eeg_codes"].tolist() == encoding.codes[0].tolist()


def test_features_are_taken_for_no_others(folders, tmp_path):
    model, (first,) = caches(folders, tmp_path)
    _, (again,) = caches(folders, tmp_path)
    assert again.folder == first.folder
    with torch.no_grad():
        model.eeg_encoder.transformer.norm.bias[0] += 1e-3
    others = [
        caches(folders, tmp_path, model),
        caches(folders, tmp_path, precision="bf16"),
        caches(folders, tmp_path, with_codes=False),
        caches(folders, tmp_path, fingerprint="g"),
        caches(folders, tmp_path, data="bad"),
    ]
    assert len({first.folder, *(given[0].folder for _, given in others)}) == 6


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("freeze_eeg_encoder", False, "trains its EEG encoder"),
        ("padding_enters_statistics", True, "a window's depend on its batch"),
    ],
)
def test_features_that_do_not_stay_are_not_kept(folders, tmp_path, field, value, words):
    model = NeuroLMForCausalLM.from_pretrained(folders["model"]).model
    config = model.config if hasattr(model.config, field) else model.config.eeg_config
    setattr(config, field, value)
    with pytest.raises(ValueError, match=words):
        caches(folders, tmp_path, model)


def test_a_disk_that_is_too_small_is_told_before_anything_is_computed(folders, tmp_path, monkeypatch):
    model, given = caches(folders, tmp_path / "run" / "eeg_features")
    usage = shutil.disk_usage(tmp_path)
    # 16 windows, of 8 patches and of 6 in turn, with 32 numbers and a code each
    needed = 4 * (8 * 8 + 8 * 6) * 33
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=needed - 1))
    encoded = count_rows_encoded(monkeypatch)
    with pytest.raises(
        ValueError, match=rf"16 windows need 1.48e-05 GB in {tmp_path}.*\(132 bytes a patch\).*--output-dir"
    ):
        compute_features(given, model, arguments(tmp_path), False)
    assert not encoded
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=needed))
    compute_features(given, model, arguments(tmp_path), False)


def test_a_bad_row_stops_the_computing_or_is_left_out(folders, tmp_path, capsys):
    run = tuning(folders, CACHE, "--output-dir", tmp_path / "run", data="bad")
    assert here(*run, "--eval-strategy", "no") == 1
    assert "NOWHERE are no names of the channel vocabulary" in (error := capsys.readouterr().err)
    assert "--skip-bad-rows" in error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert here(*run, "--eval-strategy", "no", "--skip-bad-rows") == 0
        without = tuning(folders, "--skip-bad-rows", "--output-dir", tmp_path / "without", data="bad")
        assert here(*without, "--eval-strategy", "no") == 0
    made = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("run", "without")]
    assert len(made[0]["skipped_rows"]) == 1
    assert made[0]["skipped_rows"] == made[1]["skipped_rows"]
    assert_same_figures(logged(tmp_path / "run"), logged(tmp_path / "without"))


def test_a_row_that_has_become_usable_since_is_no_row_with_a_signal(folders, tmp_path):
    model, (cache,) = caches(folders, tmp_path)
    compute_features([cache], model, arguments(tmp_path), False)
    (file,) = cache.folder.glob("*.safetensors")
    tensors = load_file(file)
    tensors["starts"] = np.repeat(tensors["starts"][-1:], len(tensors["starts"]))
    file.write_bytes(feature_cache.save(tensors))
    with pytest.raises(ValueError, match=r"Row 3 of .*mine could not be read when its features were computed"):
        cache.read(3)


def test_a_run_may_go_on_without_the_cache(folders, tmp_path):
    saved = ["--save-strategy", "steps", "--save-steps", "2", "--output-dir", tmp_path / "run"]
    assert here(*pretraining(folders, CACHE, *saved, "--max-steps", "4")) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    shutil.rmtree(tmp_path / "run" / "eeg_features")
    assert here(*pretraining(folders, *saved)) == 0
    assert not (tmp_path / "run" / "eeg_features").exists()


@pytest.mark.slow
def test_two_processes_share_the_work_and_train_as_without(folders, tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, more in (("with", [CACHE]), ("without", [])):
        script, *given = pretraining(folders, *more, "--ddp-backend", "gloo", "--output-dir", tmp_path / name)
        done = subprocess.run(
            [*launch, str(REPOSITORY / "scripts" / f"{script}.py"), *map(str, given)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert_same_figures(logged(tmp_path / "with"), logged(tmp_path / "without"))
    assert len(list((tmp_path / "with" / "eeg_features").glob("*/*.safetensors"))) == 2
