import errno
import json
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from neurolm_hf.checkpoints import (
    SEAL,
    WRITE_ERRORS,
    checkpoint_failed,
    checkpoint_step,
    final_files_failed,
    is_complete,
    last_complete_checkpoint,
    remove_incomplete,
    seal,
    unseal,
)


def checkpoint(output_dir: Path, step: int, *, sealed: bool = True) -> Path:
    folder = output_dir / f"checkpoint-{step}"
    (folder / "inner").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"m" * 2_000_000)
    (folder / "inner" / "empty.txt").touch()
    if sealed:
        seal(folder)
    return folder


def test_a_seal_lists_every_file_with_its_size(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 5)
    assert json.loads((folder / SEAL).read_text()) == {
        "files": {"inner/empty.txt": 0, "model.safetensors": 2_000_000},
    }
    assert is_complete(folder)
    assert sorted(file.name for file in folder.iterdir()) == [SEAL, "inner", "model.safetensors"]
    # sealed twice says the same: the seal is no file of its own
    before = (folder / SEAL).read_text()
    seal(folder)
    assert (folder / SEAL).read_text() == before
    unseal(folder)
    unseal(folder)
    assert not is_complete(folder)


def test_the_seal_comes_after_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path, 5, sealed=False)
    flushed, fsync = [], os.fsync

    def record(handle: int) -> None:
        flushed.append((Path(os.readlink(f"/proc/self/fd/{handle}")).name, (folder / SEAL).exists()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", record)
    seal(folder)
    names = [name for name, _ in flushed]
    assert {"model.safetensors", "empty.txt", "inner", "checkpoint-5", tmp_path.name} <= set(names)
    assert not any(sealed for name, sealed in flushed if name in ("model.safetensors", "empty.txt"))
    # the file that becomes the seal is on the disk before it has the seal's name
    assert (next(name for name in names if name.startswith(f".{SEAL}")), False) in flushed


@pytest.mark.parametrize("damage", ["shorter", "longer", "missing", "no seal", "torn seal", "other json"])
def test_a_damaged_checkpoint_is_not_complete(tmp_path: Path, damage: str) -> None:
    folder = checkpoint(tmp_path, 5)
    model, mark = folder / "model.safetensors", folder / SEAL
    if damage == "shorter":
        os.truncate(model, 10)
    elif damage == "longer":
        model.write_bytes(b"m" * 2_000_001)
    elif damage == "missing":
        model.unlink()
    elif damage == "no seal":
        mark.unlink()
    elif damage == "torn seal":
        os.truncate(mark, 10)
    else:
        mark.write_text("{}")
    assert not is_complete(folder)
    assert last_complete_checkpoint(tmp_path) is None


def test_the_latest_complete_checkpoint_is_picked_by_its_step(tmp_path: Path) -> None:
    assert last_complete_checkpoint(tmp_path / "not there") is None
    for step in (100, 20, 9):
        checkpoint(tmp_path, step)
    half = checkpoint(tmp_path, 200, sealed=False)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-300").write_text("a file")
    last = last_complete_checkpoint(tmp_path)
    assert last == tmp_path / "checkpoint-100"
    assert checkpoint_step(last) == 100
    assert half.is_dir()


def test_incomplete_checkpoints_are_removed_where_a_run_writes_them_again(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10, sealed=False)
    checkpoint(tmp_path, 20)
    checkpoint(tmp_path, 30, sealed=False)
    os.truncate(checkpoint(tmp_path, 40) / "model.safetensors", 10)
    remove_incomplete(tmp_path, after=20)
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-20"]


WRITERS = {
    "python": lambda path: path.write_bytes(bytes(4000)),
    "torch": lambda path: torch.save(torch.zeros(1000), path),
    "safetensors": lambda path: save_file({"zeros": torch.zeros(1000)}, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_the_errors_of_all_writers_are_known(tmp_path: Path, writer: str) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # files that cannot grow, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(WRITE_ERRORS):
            WRITERS[writer](tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_with_figures_and_with_what_is_intact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path, 10)
    half = checkpoint(tmp_path, 20, sealed=False)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_234_000))
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    message = str(checkpoint_failed(full, half, tmp_path))
    assert f"{half} could not be written: [Errno 28] No space left on device" in message
    assert "a checkpoint of this run takes 2.0 MB, and 1.2 MB are free" in message
    assert f"start the same command again. {tmp_path / 'checkpoint-10'} is complete" in message
    assert not half.exists()
    assert is_complete(tmp_path / "checkpoint-10")


def test_a_full_disk_at_the_first_checkpoint(tmp_path: Path) -> None:
    half = checkpoint(tmp_path, 20, sealed=False)
    message = str(checkpoint_failed(RuntimeError("unexpected pos 576 vs 534"), half, tmp_path))
    assert "more than the 2.0 MB that were written" in message
    assert "no complete checkpoint yet: the training starts from the beginning" in message
    assert not half.exists()


def test_an_error_that_is_not_about_space_gets_no_advice_about_space(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    half = checkpoint(tmp_path, 20, sealed=False)
    message = str(checkpoint_failed(PermissionError(errno.EACCES, "Permission denied"), half, tmp_path))
    assert "Permission denied" in message
    assert "disk" not in message
    assert f"{tmp_path / 'checkpoint-10'} is complete" in message


@pytest.mark.parametrize(
    ("error", "about_space"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (RuntimeError("unexpected pos 576 vs 534"), True),
        (PermissionError(errno.EACCES, "Permission denied"), False),
    ],
)
def test_final_files_that_cannot_be_written_lose_no_training(
    tmp_path: Path, error: Exception, about_space: bool
) -> None:
    message = str(final_files_failed(error, tmp_path))
    assert str(error) in message
    assert ("if the disk is full" in message) == about_space
    assert "start the same command again to write it, without training again" in message
