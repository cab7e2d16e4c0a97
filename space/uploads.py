"""What may be uploaded, and what becomes of it: moved out of reach, looked at, opened once, and removed.

An upload is checked before MNE sees it: how many bytes, which format by name and by content, and whether a header
refers to files that were not uploaded. Its duration is checked when it is opened, in `visit`.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


MEGABYTE = 2**20
MAX_BYTES = 50 * MEGABYTE
MAX_FILES = 3

# The file to open -> how it begins. What is packed (.fif.gz), a folder (.mff), or read by compiled code that a damaged
# file brings down, and all visitors with it (EEGLAB's .set, ANT's .cnt), is left out.
_BEGINNINGS = {
    ".edf": (b"0       ",),
    ".bdf": (b"\xffBIOSEMI",),
    ".gdf": (b"GDF ",),
    ".fif": (b"\x00\x00\x00\x64",),
    ".cnt": (b"Version ",),
    ".vhdr": (b"Brain Vision", b"BrainVision", b"\xef\xbb\xbfBrain"),
}
_PARTS = {".vhdr": (".eeg", ".vmrk", ".dat")}
SUFFIXES = (*_BEGINNINGS, *_PARTS[".vhdr"])
FORMATS = (
    "One file: EDF, BDF, GDF, FIF or Neuroscan CNT. Together in one upload: BrainVision's .vhdr, .eeg and .vmrk. Save "
    "others, such as EEGLAB's .set, as EDF."
)


@contextmanager
def taken(uploaded: Sequence[str], upload_folder: str | os.PathLike) -> Iterator[Path]:
    """Takes an upload away from where it was received and gives the file of it that is to be opened.

    It lies in a folder of its own, which only this visit knows, and is gone afterwards, whatever happens.

    Args:
        uploaded: the files of one upload, as the web server names them.
        upload_folder: where the web server puts uploads; nothing else is touched.

    Raises:
        ValueError: the upload is no longer there, too large, of no format that is read here, or not one recording.
    """
    root = Path(upload_folder).resolve()
    folder = Path(tempfile.mkdtemp(prefix="visit-", dir=root))
    try:
        for path in _within(uploaded, root):
            _move(path, folder)
        yield recording_to_open(folder)
    except ValueError as error:
        # visitors know the names of their files, and need not know ours
        raise ValueError(str(error).replace(f"{folder}/", "")) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def recording_to_open(folder: Path) -> Path:
    """The one file of a folder that opens the recording, the others being its parts.

    Raises:
        ValueError: too many bytes, another format, another content than the name says, several recordings, parts
            that are missing, or a header that refers to other files.
    """
    files = sorted(folder.iterdir())
    size = sum(path.stat().st_size for path in files)
    if size > MAX_BYTES:
        raise ValueError(too_large(size))
    for path in files:
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{path.name} is of no format that this page reads. {FORMATS}")
    openable = [path for path in files if path.suffix.lower() in _BEGINNINGS]
    if not openable:
        raise ValueError(f"{files[0].name} is a part of a recording, and its header is missing. {FORMATS}")
    header = openable[0]
    parts = [path for path in files if path != header]
    if len(openable) > 1 or any(path.suffix.lower() not in _PARTS.get(header.suffix.lower(), ()) for path in parts):
        raise ValueError(f"These are several recordings: upload one at a time. {FORMATS}")
    with open(header, "rb") as file:
        beginning = file.read(32)
    if not beginning.startswith(_BEGINNINGS[header.suffix.lower()]):
        raise ValueError(
            f"{header.name} is not what its name says: it does not begin as a {header.suffix[1:].upper()} file does. "
            "It may be another kind of file under this name, or damaged."
        )
    if header.suffix.lower() == ".vhdr":
        _check_references(header, {path.name for path in parts})
    return header


def too_large(size: int) -> str:
    """What is said of an upload of so many bytes."""
    return (
        f"The upload has {size / MEGABYTE:.0f} MB, and this page reads {MAX_BYTES // MEGABYTE} MB at most. Cut a "
        "shorter piece out of the recording."
    )


def remove_old(upload_folder: str | os.PathLike, seconds: float) -> None:
    """Removes what lies in the upload folder for longer than that: uploads that nobody came back for."""
    newest_to_go = time.time() - seconds
    for path in Path(upload_folder).iterdir():
        if path.lstat().st_mtime < newest_to_go:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _within(uploaded: Sequence[str], root: Path) -> list[Path]:
    """The files of an upload, every one a plain file below the upload folder."""
    if len(uploaded) > MAX_FILES:
        raise ValueError(f"An upload is one recording, {MAX_FILES} files at most, and these are {len(uploaded)}.")
    paths = []
    for name in uploaded:
        path = Path(name)
        # resolved, so that neither .. nor a link leads out
        if path.is_symlink() or not path.resolve().is_relative_to(root) or not path.is_file():
            raise ValueError("The upload is no longer here. Upload it again.")
        paths.append(path.resolve())
    if len({path.name for path in paths}) < len(paths):
        raise ValueError("Two files of the upload have one name. Upload one recording at a time.")
    return paths


def _move(path: Path, folder: Path) -> None:
    try:
        os.replace(path, folder / path.name)
    except FileNotFoundError as error:
        # equal files of two visitors are one file to the web server, and the other one was faster
        raise ValueError("The upload is no longer here. Upload it again.") from error
    shutil.rmtree(path.parent, ignore_errors=True)


def _check_references(header: Path, parts: set[str]) -> None:
    """A BrainVision header names its files: only such as were uploaded with it may be opened."""
    for line in header.read_bytes().decode("latin-1").splitlines():
        named = re.match(r"\s*(DataFile|MarkerFile)\s*[=:]\s*(.+?)\s*$", line, re.IGNORECASE)
        if named and named[2] not in parts:
            raise ValueError(
                f"{header.name} says {named[1]}={named[2]}, and no such file was uploaded with it. Upload the .vhdr, "
                ".eeg and .vmrk files together, under the names written in the .vhdr."
            )
