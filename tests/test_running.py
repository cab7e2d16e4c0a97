import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import STAGES, Trouble, TroubleCallback, make_trainer, results, run_in_process, said
from transformers import TrainingArguments

from neurolm_hf.checkpoints import SEAL, is_complete, last_complete_checkpoint, seal
from neurolm_hf.running import (
    DECIDING_ARGUMENTS,
    LOCK,
    SETTINGS,
    SKIPPED_BATCHES,
    claim_folder,
    deciding_arguments,
    locked,
    run_training,
)


# A run whose evaluations grow worse with each epoch: the first is the best, the third stops it.
EVALUATED = {
    "num_train_epochs": 5,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_steps": 500,
    "metric_for_best_model": "eval_loss",
    "load_best_model_at_end": True,
    "patience": 2,
    "learning_rate": 0.2,
}


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Results of a stage's run without trouble, made once."""
    made: dict[str, dict[str, torch.Tensor]] = {}

    def run(stage: str) -> dict[str, torch.Tensor]:
        if stage not in made:
            output_dir = tmp_path_factory.mktemp(stage)
            assert run_in_process(stage, output_dir) == 0
            made[stage] = results(output_dir)
        return made[stage]

    return run


def assert_same(tensors: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert tensors.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(tensors[name], expected[name])] == []


@pytest.mark.parametrize(
    ("stage", "trouble", "left"),
    [
        # between two files of a checkpoint
        ("vq", Trouble(moment="saving", step=4), 3),
        # between two micro-batches
        ("pretraining", Trouble(moment="substep_end", step=3), 3),
        # between the weights' move and the codebook's, schedule's and state's
        ("lora", Trouble(moment="optimizer_step", step=5), 5),
    ],
)
def test_a_killed_run_ends_with_the_same_weights(
    tmp_path: Path, uninterrupted: Any, stage: str, trouble: Trouble, left: int
) -> None:
    assert run_in_process(stage, tmp_path, trouble) == -signal.SIGKILL
    last = last_complete_checkpoint(tmp_path)
    assert last == tmp_path / f"checkpoint-{left}"
    if trouble.moment == "saving":
        half = tmp_path / f"checkpoint-{trouble.step}"
        assert (half / "optimizer.pt").exists()
        assert not (half / SEAL).exists()
    assert run_in_process(stage, tmp_path) == 0
    assert_same(results(tmp_path), uninterrupted(stage))


def test_a_run_that_saves_seldom_makes_its_lost_steps_again(tmp_path: Path, uninterrupted: Any) -> None:
    arguments = {"save_steps": 3}
    assert run_in_process("vq", tmp_path, Trouble(moment="step_end", step=2), **arguments) == -signal.SIGKILL
    assert last_complete_checkpoint(tmp_path) is None
    assert run_in_process("vq", tmp_path, Trouble(moment="step_end", step=5), **arguments) == -signal.SIGKILL
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-3"
    half = tmp_path / "checkpoint-6" / "half-written.pt"
    half.parent.mkdir()
    half.touch()
    assert run_in_process("vq", tmp_path, **arguments) == 0
    assert_same(results(tmp_path), uninterrupted("vq"))
    assert is_complete(half.parent)
    assert not half.exists()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("moment", ["step_begin", "substep_end", "optimizer_step", "step_end", "saving"])
def test_a_run_that_is_killed_in_every_step(tmp_path: Path, uninterrupted: Any, stage: str, moment: str) -> None:
    for step in range(1, 6):
        assert run_in_process(stage, tmp_path, Trouble(moment=moment, step=step)) == -signal.SIGKILL
    assert run_in_process(stage, tmp_path) == 0
    assert_same(results(tmp_path), uninterrupted(stage))


def test_the_random_state_is_what_makes_it_the_same(tmp_path: Path, uninterrupted: Any) -> None:
    """The runs of these tests do draw random numbers in their steps."""
    assert run_in_process("vq", tmp_path, Trouble(moment="step_end", step=4)) == -signal.SIGKILL
    folder = tmp_path / "checkpoint-3"
    shutil.copy(tmp_path / "checkpoint-2" / "rng_state.pth", folder / "rng_state.pth")
    seal(folder)
    assert run_in_process("vq", tmp_path) == 0
    assert last_complete_checkpoint(tmp_path) == tmp_path / "checkpoint-6"
    codebook = "model.vq.encoder.quantizer.codebook"
    assert not torch.equal(results(tmp_path)[codebook], uninterrupted("vq")[codebook])


@pytest.mark.parametrize(("number", "moment"), [(signal.SIGTERM, "substep_end"), (signal.SIGINT, "step_begin")])
def test_a_stopped_run_saves_and_goes_on(
    tmp_path: Path, uninterrupted: Any, number: signal.Signals, moment: str
) -> None:
    arguments = {"save_strategy": "no"}
    # the signal comes during step 3
    assert run_in_process("vq", tmp_path, Trouble(number, moment, 2), **arguments) == 128 + number
    assert [folder.name for folder in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert is_complete(tmp_path / "checkpoint-3")
    assert f"{number.name}: saved at step 3; start the same command again" in said(tmp_path)
    assert run_in_process("vq", tmp_path, **arguments) == 0
    assert f"{tmp_path}: going on from step 3 of 6." in said(tmp_path)
    # the last step is saved in any case, to tell that the run has ended
    assert is_complete(tmp_path / "checkpoint-6")
    assert_same(results(tmp_path), uninterrupted("vq"))


def test_a_scheduler_s_signal_to_all_processes_does_not_end_the_workers_first(
    tmp_path: Path, uninterrupted: Any
) -> None:
    trouble = Trouble(signal.SIGTERM, "substep_end", 2, whole_group=True)
    arguments = {
        "save_strategy": "no",
        "dataloader_num_workers": 2,
        "dataloader_multiprocessing_context": "fork",
    }
    assert run_in_process("vq", tmp_path, trouble, **arguments) == 128 + signal.SIGTERM
    assert is_complete(tmp_path / "checkpoint-3")
    assert run_in_process("vq", tmp_path, **arguments) == 0
    assert_same(results(tmp_path), uninterrupted("vq"))


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vq", "lora"])
def test_two_processes_stop_together_and_go_on(tmp_path: Path, stage: str) -> None:
    """The signal meets only the second process; a kill leaves a checkpoint of which the first wrote more."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = {"per_device_train_batch_size": 1, "ddp_backend": "gloo"}
    assert run_in_process(stage, whole, ranks=2, **arguments) == 0
    stop = Trouble(signal.SIGTERM, "substep_end", 2, rank=1)
    assert run_in_process(stage, parts, stop, ranks=2, **arguments) == 128 + signal.SIGTERM
    assert last_complete_checkpoint(parts) == parts / "checkpoint-3"
    assert said(parts).count("SIGTERM: saved at step 3") == 1
    kill = Trouble(moment="saving", step=5)
    assert run_in_process(stage, parts, kill, ranks=2, **arguments) == -signal.SIGKILL
    assert last_complete_checkpoint(parts) == parts / "checkpoint-4"
    assert run_in_process(stage, parts, ranks=2, **arguments) == 0
    assert_same(results(parts), results(whole))


def evaluations(output_dir: Path) -> tuple[list[dict[str, Any]], Any]:
    """The evaluations of a run, without their times, and its best step."""
    last = last_complete_checkpoint(output_dir)
    assert last is not None
    state = json.loads((last / "trainer_state.json").read_text())
    entries = [entry for entry in state["log_history"] if "eval_loss" in entry]
    losses = [{name: entry[name] for name in ("step", "epoch", "eval_loss")} for entry in entries]
    return losses, state["best_global_step"]


@pytest.mark.parametrize(
    ("moment", "step"), [("substep_end", 4), ("step_begin", 3), ("evaluate", 4)], ids=["middle", "last", "after it"]
)
def test_a_stopped_run_keeps_the_evaluations_of_its_epochs(tmp_path: Path, moment: str, step: int) -> None:
    """Best model and early stopping are those of an uninterrupted run, wherever in an epoch the signal comes."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_in_process("vq", whole, **EVALUATED) == 0
    assert run_in_process("vq", parts, Trouble(signal.SIGTERM, moment, step), **EVALUATED) == 128 + signal.SIGTERM
    assert run_in_process("vq", parts, **EVALUATED) == 0
    assert evaluations(parts) == evaluations(whole)
    assert [entry["step"] for entry in evaluations(whole)[0]] == [2, 4, 6]
    assert_same(results(parts), results(whole))


def test_a_run_that_has_ended_is_not_trained_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Even where it was killed before its last files were written. Its weights are the best ones."""
    assert run_in_process("vq", tmp_path, **EVALUATED) == 0
    expected = results(tmp_path)
    (tmp_path / "results.safetensors").unlink()
    before = sorted((file, file.stat().st_mtime_ns) for file in tmp_path.rglob("*"))
    arguments = {name: value for name, value in EVALUATED.items() if name != "patience"}
    trainer = make_trainer("vq", tmp_path, **arguments)
    assert run_training(trainer, {"stage": "vq"}) is None
    assert "this run has ended, at step" in capsys.readouterr().out
    assert sorted((file, file.stat().st_mtime_ns) for file in tmp_path.rglob("*")) == before
    found = {f"model.{name}": tensor for name, tensor in trainer.model.state_dict().items()}
    assert_same(found, {name: tensor for name, tensor in expected.items() if name in found})
    assert (trainer.state.best_global_step, trainer.state.global_step) == (2, 6)


def test_a_full_disk_leaves_what_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Any
) -> None:
    trainer = make_trainer("vq", tmp_path)
    save = torch.save

    def save_until_full(content: Any, file: Any) -> None:
        if "checkpoint-4" in str(file):
            raise RuntimeError("unexpected pos 576 vs 534")
        save(content, file)

    monkeypatch.setattr(torch, "save", save_until_full)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(OSError, match=r"checkpoint-4 could not be written.*checkpoint-3 is complete"):
        run_training(trainer, {"stage": "vq"})
    monkeypatch.undo()
    assert not (tmp_path / "checkpoint-4").exists()
    assert signal.getsignal(signal.SIGINT) is handler
    assert run_in_process("vq", tmp_path) == 0
    assert_same(results(tmp_path), uninterrupted("vq"))


def arguments(output_dir: Path, **changes: Any) -> TrainingArguments:
    given = {"restore_callback_states_from_checkpoint": True, "use_cpu": True, "report_to": []}
    return TrainingArguments(output_dir=str(output_dir), **{**given, **changes})


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    settings = {"data": Path("/data/a"), "channels": ("C3", "C4"), "lora": None}
    claim_folder(folder, settings)
    # as a run finds it that was killed when it wrote its settings for the first time
    (folder / f".{SETTINGS}.x.part").touch()
    claim_folder(folder, settings)
    with pytest.raises(ValueError, match="other settings") as caught:
        claim_folder(folder, {**settings, "data": "/data/b", "rank": 8})
    message = str(caught.value)
    assert "data was '/data/a' and is '/data/b' now; rank was None and is 8 now" in message
    assert "channels" not in message
    (folder / SETTINGS).unlink()
    claim_folder(folder, settings)
    (folder / SETTINGS).unlink()
    (folder / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"files of something else \(notes.txt\)"):
        claim_folder(folder, settings)


def test_arguments_that_decide_the_weights_belong_to_a_run(tmp_path: Path) -> None:
    begun = deciding_arguments(arguments(tmp_path))
    assert set(DECIDING_ARGUMENTS) < begun.keys()
    assert json.loads(json.dumps(begun)) == begun
    for changes in ({"learning_rate": 1e-4}, {"max_steps": 7}, {"seed": 1}, {"per_device_train_batch_size": 4}):
        assert deciding_arguments(arguments(tmp_path, **changes)) != begun
    # neither how a batch is divided nor what is written beside the weights
    for changes in (
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
        {"logging_steps": 3, "save_steps": 7, "dataloader_num_workers": 2},
    ):
        assert deciding_arguments(arguments(tmp_path, **changes)) == begun


@pytest.mark.parametrize(
    "changes",
    [
        {"save_only_model": True},
        {"ignore_data_skip": True},
        {"enable_jit_checkpoint": True},
        {"restore_callback_states_from_checkpoint": False},
        {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_loss"},
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_steps": 2},
        {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_run_that_could_not_go_on_exactly_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    trainer = make_trainer("vq", tmp_path / "run", **changes)
    with pytest.raises(ValueError, match="must"):
        run_training(trainer, {})
    assert not (tmp_path / "run" / SETTINGS).exists()


def test_the_next_interrupt_from_the_keyboard_ends_it_at_once(tmp_path: Path) -> None:
    trainer = make_trainer("vq", tmp_path)
    trainer.add_callback(TroubleCallback(Trouble(signal.SIGINT, "step_begin", 1)))
    trainer.add_callback(TroubleCallback(Trouble(signal.SIGINT, "substep_end", 1)))
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_training(trainer, {})
    assert signal.getsignal(signal.SIGINT) is handler


HOLD_THE_LOCK = """
import os, sys, time
from pathlib import Path
from neurolm_hf.running import locked
with locked(Path(sys.argv[1])):
    if os.fork() == 0:  # as a worker of a DataLoader, which outlives a killed process for a while
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


def test_a_second_start_of_the_same_command_is_refused_and_harms_nothing(tmp_path: Path) -> None:
    trainer = make_trainer("vq", tmp_path)
    claim_folder(tmp_path, {**deciding_arguments(trainer.args), "stage": "vq"})
    being_written = tmp_path / "checkpoint-1" / "model.safetensors"
    being_written.parent.mkdir()
    being_written.touch()
    first = subprocess.Popen([sys.executable, "-c", HOLD_THE_LOCK, tmp_path], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    worker = int(first.stdout.readline())
    try:
        with pytest.raises(ValueError, match="is in use: another process trains there"):
            run_training(trainer, {"stage": "vq"})
        assert being_written.exists()
        first.kill()
        first.wait()
        # the lock has ended with its process, though the worker lives
        os.kill(worker, 0)
        assert run_training(trainer, {"stage": "vq"}) is None
    finally:
        first.kill()
        os.kill(worker, signal.SIGKILL)
        first.stdout.close()
    assert is_complete(tmp_path / "checkpoint-6")
    with locked(tmp_path, wanted=True):
        assert (tmp_path / LOCK).exists()


def test_batches_of_steps_that_are_made_again_are_reported_once(tmp_path: Path) -> None:
    assert run_in_process("vq", tmp_path, Trouble(signal.SIGTERM, "substep_end", 2)) == 128 + signal.SIGTERM
    file = tmp_path / SKIPPED_BATCHES
    kept = json.dumps({"step": 2, "rows": ["a"]}) + "\n"
    file.write_text(kept + json.dumps({"step": 4, "rows": ["b"]}) + '\n{"step": 5, "ro')
    assert run_in_process("vq", tmp_path) == 0
    assert file.read_text() == kept
