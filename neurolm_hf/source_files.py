"""Which files hold a recording, which ones say something about it, and the fingerprint of them all."""

import os
import re
from collections.abc import Iterator
from glob import escape
from pathlib import Path
from typing import Any

from .prepared_set import file_sha256, text_sha256
from .task_sections import SidecarLabels
from .tasks import Task


# A recording may be several files. Those with the stem of the one that is opened, by its suffix:
_PARTS_BY_STEM = {".set": (".fdt",), ".dap": (".dat", ".rs3"), ".data": (".head",)}
# those that a text header names (BrainVision's and Persyst's):
_TEXT_HEADERS = (".vhdr", ".ahdr", ".lay")
_NAMED_PART = re.compile(r"^\s*(?:DataFile|MarkerFile|File)\s*=\s*(.+?)\s*$", re.IGNORECASE | re.MULTILINE)
# and night-1.fif, which goes on with night.fif.
_FIF = re.compile(r"(.*)(\.fif(?:\.gz)?)", re.IGNORECASE)
_BIDS_SIDECAR = re.compile(r"(?:channels|events|eeg|ieeg|meg)\.(?:tsv|json)")


def fingerprint(path: Path, task: Task) -> dict[str, Any]:
    """Size and sha256 of all files that hold a recording, and the sha256 of the files beside them that belong to it.

    The sha256 of a recording of one file is the file's, else that of the list of theirs.
    """
    parts = _parts(path)
    digests = {name: file_sha256(part) for name, part in parts.items()}
    whole = text_sha256("\n".join(f"{digest} {name}" for name, digest in digests.items()))
    beside = _files_beside(path, task)
    return {
        "sha256": digests[""] if digests.keys() == {""} else whole,
        "bytes": sum(part.stat().st_size for part in parts.values()),
        "files_beside": {
            name: file_sha256(beside[name])
            for name in sorted(beside)
            if beside[name].is_file() and beside[name] not in parts.values()
        },
    }


def _parts(path: Path) -> dict[str, Path]:
    """The files that hold a recording, by what follows its stem in their names; that which is opened, first, by ''."""
    if path.is_dir():  # such as EGI's .mff
        files = sorted(one for one in path.rglob("*") if one.is_file())
        return {one.relative_to(path).as_posix(): one for one in files}
    suffix, stem, others = path.suffix.lower(), path.stem, set[Path]()
    if suffix in _TEXT_HEADERS:
        others = {path.parent / name for name in _NAMED_PART.findall(_text(path))}
    elif suffix in _PARTS_BY_STEM:
        own = path.parent.glob(f"{escape(stem)}.*")
        others = {one for one in own if one.suffix.lower() in _PARTS_BY_STEM[suffix]}
    elif match := _FIF.fullmatch(path.name):
        stem = match[1]
        number = re.compile(rf"{re.escape(stem)}-\d+{re.escape(match[2])}")
        others = {one for one in path.parent.iterdir() if number.fullmatch(one.name)}
    others = {one for one in others if one.is_file() and one != path}
    return {"": path, **{one.name.removeprefix(stem): one for one in sorted(others)}}


def _text(path: Path) -> str:
    """The first MiB of a text header, in UTF-8 or else, as older recorders write, Latin-1."""
    with path.open("rb") as file:
        data = file.read(2**20)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _files_beside(path: Path, task: Task) -> dict[str, Path]:
    """The files that are named after a recording, or describe it by its BIDS dataset or the task's labels."""
    # in BIDS the channels and events of sub-1_task-x_eeg.edf are in sub-1_task-x_channels.tsv and so on
    common = f"{path.stem.rpartition('_')[0]}_" if path.stem.startswith("sub-") else f"{path.stem}."
    files = [one for one in path.parent.glob(f"{escape(common)}*") if one != path]
    files += _inherited(path)
    if isinstance(task.labels, SidecarLabels):
        files.append(path.with_name(task.labels.file.format(stem=path.stem)))
    return {Path(os.path.relpath(one, path.parent)).as_posix(): one for one in files}


def _inherited(path: Path) -> Iterator[Path]:
    """The side-cars of a BIDS recording, from its folder up to that of the dataset: those with no other entities."""
    if not path.name.startswith("sub-"):
        return
    folders = list(path.parents)
    root = next((i for i, folder in enumerate(folders) if (folder / "dataset_description.json").is_file()), None)
    if root is None:
        return
    entities = set(path.name.split("_")[:-1])
    for folder in folders[: root + 1]:
        for one in folder.iterdir():
            *own, kind = one.name.split("_")
            if _BIDS_SIDECAR.fullmatch(kind) and entities.issuperset(own):
                yield one
