"""Checkpoints that are whole or not there: a seal after the last byte, and what to say when the disk is full.

The Trainer writes a checkpoint file by file. A process that is killed meanwhile leaves a folder that looks like a
checkpoint. So a finished one is sealed by `complete.json`, which lists its files with their sizes, and only a sealed
one is ever gone on from.
"""

import errno
import json
import os
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError

from .storage import write_text


SEAL = "complete.json"
# What writing a checkpoint raises when the disk is full: Python, torch.save and safetensors each in their own way.
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
_NAME = re.compile(r"checkpoint-\d+")


def seal(folder: Path) -> None:
    """Marks a checkpoint as complete, after all of its bytes have reached the disk.

    Call it when every process has written its files.
    """
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file != folder / SEAL]
    for file in files:
        _flush(file)
    sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
    write_text(folder / SEAL, json.dumps({"files": sizes}, indent=1) + "\n")
    # names of files are in their folders' bytes
    for path in (*(file for file in folder.rglob("*") if file.is_dir()), folder, folder.parent):
        _flush(path)


def unseal(folder: Path) -> None:
    """Takes the seal off a checkpoint that is about to be written over, if there is one."""
    (folder / SEAL).unlink(missing_ok=True)


def is_complete(folder: Path) -> bool:
    """Whether a checkpoint is sealed and all of its files are there at the sizes that the seal says."""
    try:
        sizes = json.loads((folder / SEAL).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def last_complete_checkpoint(output_dir: Path) -> Path | None:
    """The complete checkpoint of the latest step, or None. Others are never picked, and are left alone."""
    return next((folder for _, folder in reversed(_checkpoints(output_dir)) if is_complete(folder)), None)


def remove_incomplete(output_dir: Path, after: int) -> None:
    """Removes the incomplete checkpoints of steps beyond `after`, which a run that starts there writes again."""
    for step, folder in _checkpoints(output_dir):
        if step > after and not is_complete(folder):
            shutil.rmtree(folder)


def checkpoint_step(folder: Path) -> int:
    """The step whose checkpoint a folder is, by its name."""
    return int(folder.name.rpartition("-")[2])


def checkpoint_failed(error: Exception, folder: Path, output_dir: Path) -> OSError:
    """The error to raise where a checkpoint could not be written. Removes what was written of it.

    An operating system's error that is not about space (a permission, a vanished folder) gets no advice about space.

    Args:
        error: one of `WRITE_ERRORS`.
        folder: of the checkpoint.
        output_dir: of the run.

    Returns:
        an error that says what was being written, which space it needs and which there is, which complete checkpoint
        is intact, and what to do.
    """
    intact = last_complete_checkpoint(output_dir)
    if intact is not None:
        needed = f"a checkpoint of this run takes {_megabytes(_size(intact))}"
        then = f"{intact} is complete: the training goes on from there."
    else:
        needed = f"more than the {_megabytes(_size(folder))} that were written are needed"
        then = "There is no complete checkpoint yet: the training starts from the beginning."
    shutil.rmtree(folder, ignore_errors=True)
    message = f"The checkpoint {folder} could not be written: {error}. Its half-written files are removed"
    if not _may_lack_space(error):
        return OSError(f"{message}. Start the same command again when this is mended. {then}")
    return OSError(
        f"{message}; {needed}, and {_free(output_dir)} are free there now. If the disk is full, make space or lower "
        f"`save_total_limit`; then start the same command again. {then}"
    )


def final_files_failed(error: Exception, output_dir: Path) -> OSError:
    """The error to raise where the files that follow a training could not be written.

    Args:
        error: one of `WRITE_ERRORS`.
        output_dir: of the run.
    """
    message = f"The final files of {output_dir} could not be written: {error}."
    if _may_lack_space(error):
        message += f" {_free(output_dir)} are free there now: if the disk is full, make space."
    return OSError(
        f"{message} The training has ended and its checkpoints are intact, but the model in this folder is not "
        "complete; start the same command again to write it, without training again."
    )


def _checkpoints(output_dir: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint, in the order of their steps."""
    folders = (folder for folder in output_dir.glob("checkpoint-*") if folder.is_dir())
    return sorted((checkpoint_step(folder), folder) for folder in folders if _NAME.fullmatch(folder.name))


def _may_lack_space(error: Exception) -> bool:
    """Whether a full disk may be the cause; torch and safetensors do not tell."""
    return not isinstance(error, OSError) or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _free(folder: Path) -> str:
    return _megabytes(shutil.disk_usage(folder).free)


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
