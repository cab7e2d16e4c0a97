# Copyright 2026 The neurolm_hf authors. Licensed under the Apache License, Version 2.0.
"""Files: every format that MNE reads, and the checks that it lacks.

`open_recording` gives an `mne.io.Raw` that is not loaded, and what is to be said about the file; `read_samples` reads.

This file is copied into model folders: it needs numpy, and MNE for files.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .channels_neurolm import NAMED_AT_MOST, join_words, microvolts_per, non_eeg_reason, resolve_channel


try:
    import mne
except ImportError:
    mne = None


PathOrStr: TypeAlias = str | os.PathLike[str]

# What `open_recording` reads, by suffix; a .cnt, .eeg or .dat is told by its content.
_FORMAT_OF_SUFFIX = {
    ".edf": "EDF",
    ".bdf": "BDF",
    ".gdf": "GDF",
    ".vhdr": "BrainVision",
    ".ahdr": "BrainVision",
    ".set": "EEGLAB",
    ".fif": "FIF",
    ".fif.gz": "FIF",
    ".cnt": "CNT",
    ".mff": "EGI MFF",
    ".raw": "EGI simple binary",
    ".cdt": "Curry",
    ".dap": "Curry",
    ".lay": "Persyst",
    ".nxe": "eXimia",
    ".data": "Nicolet",
    ".ds": "CTF",
    ".eeg": "Nihon Kohden",
    ".rs3": "Curry",
}
# Where to look for recordings in a folder: one file of each, the header where a recording is several files.
RECORDING_SUFFIXES = tuple(suffix for suffix in _FORMAT_OF_SUFFIX if suffix not in (".eeg", ".rs3"))
_HEADER_OF_PART = {
    ".eeg": (".vhdr", ".ahdr"),
    ".vmrk": (".vhdr",),
    ".amrk": (".ahdr",),
    ".fdt": (".set",),
    ".head": (".data",),
    ".dat": (".lay",),
}
_FOLDERS = (".mff", ".ds")
_PACKAGES = {
    "EEGLAB": ("pymatreader",),
    "ANT CNT": ("antio",),
    "Curry": ("curryreader",),
    "EGI MFF": ("mffpy", "defusedxml"),
    "BIDS": ("mne-bids",),
}
# What MNE says on opening that is no news here, or no harm: file names, dates and filters are not used, and records,
# samples and rates are checked by ourselves.
_NO_NEWS = re.compile(
    r"naming convention|measurement date|meas date|[Hh]ighpass|[Ll]owpass|filter|Number of records|mixed sampling"
    r"|DataPoints|HED|participants\.tsv|coordsystem|electrodes|montage|EEG reference|coordinate|Fiducial"
    r"|Invalid patient"
)
_EDF_LIKE = ("EDF", "BDF", "GDF")
# Bytes a value, by GDF's codes of number types.
_GDF_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 8, 8: 8, 16: 4, 17: 8}
_NIHON_KOHDEN = (b"EEG-", b"QI-4", b"DAE-")


def require_mne(purpose: str) -> Any:
    """MNE, or an ImportError that says what needs it and how to install it."""
    if mne is None:
        raise ImportError(f"{purpose} needs MNE-Python: pip install mne")
    return mne


def open_recording(path: PathOrStr) -> tuple[Any, list[str]]:
    """An `mne.io.Raw` whose data stay in the file until they are read, and what is to be said about the file.

    A file that is part of a recording (BrainVision's .eeg and .vmrk, EEGLAB's .fdt) opens through its header. In a
    BIDS dataset the channel types, bad channels, units and events of the dataset count. Where an EDF file mixes
    sampling rates, channels that are not sampled as the EEG is are left out.

    Raises:
        ImportError: MNE, or a package that this format needs, is missing; the message says what to install.
        ValueError: the file is missing, damaged, cut short, without samples, or of no format that MNE reads.
    """
    path, notes = _find_header(Path(path))
    if path.is_file() and path.stat().st_size == 0:
        raise ValueError(f"{path} is empty. Get the file again.")
    require_mne(f"Reading {path}")
    kind = recording_format(path)
    found = _look_at(path, kind)
    failure = "cannot be read as EEG, it may be damaged or mislabelled"
    with _reading(path, failure, " Get the file again, if it is EEG.", kind) as said:
        raw = _mne_read(path, kind, found.options)
        # a damaged FIF opens with channels of kinds that there are not
        raw.get_channel_types()
    # MNE only warns of a FIF that ends between two buffers
    if cut := next((line for line in said if kind == "FIF" and line.startswith("Invalid tag")), None):
        raise ValueError(f"{path} is cut short or damaged: {cut.rstrip('.')}. Get the file again.")
    if raw.n_times == 0:
        raise ValueError(f"{path} has no samples.")
    units = list(found.units)
    if root := _bids_root(path):
        with _reading(path, f"does not fit its BIDS dataset {root}", kind="BIDS") as said_of_bids:
            units = _adopt_bids(raw, path, root, units)
        said += said_of_bids
    notes += found.notes + [f"{path}: {line}" for line in said] + _settle_units(raw, kind, units, path)
    _check_end(raw, path, kind)
    return raw, notes


def read_samples(raw: Any, rows: Sequence[int], start: int, stop: int, source: str) -> np.ndarray:
    """Samples `start` to `stop` of some rows of a recording: float64 (rows, samples), in volts.

    Raises:
        ValueError: the data cannot be read, naming `source` and the seconds.
    """
    rate = raw.info["sfreq"]
    failure = f"cannot be read from {start / rate:.1f} to {stop / rate:.1f} s, it may be damaged"
    with _reading(source, failure, " Get the file again."):
        data = raw.get_data(picks=list(rows), start=start, stop=stop)
        if data.shape[1] != stop - start:
            raise ValueError(f"{data.shape[1]} samples of {stop - start} are there")
    return np.asarray(data, dtype=np.float64)


def recording_format(path: PathOrStr) -> str:
    """The name of a recording's format, told by its suffix, and by its content where two formats share one.

    Raises:
        ValueError: there is no such file, or its content is not what the suffix says.
    """
    path, _ = _find_header(Path(path))
    name = path.name.lower()
    suffix = ".fif.gz" if name.endswith(".fif.gz") else path.suffix.lower()
    kind = _FORMAT_OF_SUFFIX.get(suffix, suffix[1:].upper())
    if kind != "CNT":
        return kind
    head = _head(path)
    if head.startswith((b"RIFF", b"RF64")):
        return "ANT CNT"
    if head.startswith(b"Version "):
        return "Neuroscan CNT"
    raise ValueError(f"{path} is no CNT file: it begins neither as Neuroscan's nor as ANT's do. Get the file again.")


def stored_units(path: PathOrStr) -> list[str]:
    """The unit of each row of a recording as its file writes it; empty for the formats that write none.

    Raises:
        ValueError: as `open_recording`.
    """
    path, _ = _find_header(Path(path))
    return list(_look_at(path, recording_format(path)).units)


def excluded_rows(raw: Any) -> dict[int, str]:
    """The rows of a recording that are no EEG by MNE's channel type or marked bad, with the reason of each."""
    excluded = {row: f"MNE channel type {kind!r}" for row, kind in enumerate(raw.get_channel_types()) if kind != "eeg"}
    for row, name in enumerate(raw.ch_names):
        if name in raw.info["bads"]:
            excluded.setdefault(row, "marked bad in info['bads']")
    return excluded


@dataclass
class _Found:
    """What a look at a file before MNE's found: notes, options for MNE's reader, and the unit of each row."""

    notes: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    units: Sequence[str] = ()


@contextmanager
def _reading(source: PathOrStr, failure: str, advice: str = "", kind: str = "") -> Iterator[list[str]]:
    """Turns whatever MNE raises into a ValueError that names the source, and collects what MNE warns of.

    What readers print is dropped: standard output is the caller's.
    """
    said: list[str] = []
    try:
        with warnings.catch_warnings(record=True) as caught, mne.use_log_level("WARNING"), redirect_stdout(StringIO()):
            warnings.simplefilter("always")
            yield said
    # MNE's readers raise all kinds of exceptions on a damaged file, bare Exception included.
    except Exception as error:
        detail = (str(error).strip() or type(error).__name__).splitlines()[0]
        missing = [name for name in _PACKAGES.get(kind, ()) if find_spec(name.replace("-", "_")) is None]
        if missing:
            needed = f"Reading {source} ({kind}) needs {' and '.join(missing)}"
            raise ImportError(f"{needed}: pip install {' '.join(missing)}") from error
        raise ValueError(f"{source} {failure}: {detail.rstrip('.')}.{advice}") from error
    lines = [" ".join(str(warning.message).split()) for warning in caught]
    said += [line for line in dict.fromkeys(lines) if not _NO_NEWS.search(line)]


def _find_header(path: Path) -> tuple[Path, list[str]]:
    """The file to open for a path: itself, or the header of the recording that it is a part of."""
    if not path.exists():
        raise ValueError(f"{path}: there is no such file.")
    suffix = path.suffix.lower()
    if path.is_dir():
        if suffix not in _FOLDERS:
            raise ValueError(f"{path} is a folder: pass the recordings in it one by one, or as a list.")
        return path, []
    head = _head(path)
    headers = [path.with_suffix(header) for header in _HEADER_OF_PART.get(suffix, ())]
    if not headers or (suffix == ".eeg" and head.startswith(_NIHON_KOHDEN)):
        return path, []
    for header in headers:
        if header.exists():
            return header, [f"{path} is a part of {header.name}, which is opened."]
    if suffix == ".dat":  # of Curry or BCI2000
        return path, []
    kind = _FORMAT_OF_SUFFIX[headers[0].suffix]
    other = ", nor does it begin as a Nihon Kohden file does" if suffix == ".eeg" else ""
    raise ValueError(f"{path} is a part of a {kind} recording, but its header {headers[0].name} is missing{other}.")


def _head(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(256)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error


def _look_at(path: Path, kind: str) -> _Found:
    check = _CHECKS.get(kind)
    try:
        return check(path) if check else _Found()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def _mne_read(path: Path, kind: str, options: dict[str, Any]) -> Any:
    if kind == "EGI simple binary":
        return mne.io.read_raw_egi(path)
    if kind == "Nicolet":
        return mne.io.read_raw_nicolet(path, ch_type="eeg")
    if kind == "Neuroscan CNT":
        return mne.io.read_raw_cnt(path, **options)
    if kind == "ANT CNT":
        return mne.io.read_raw_ant(path)
    return mne.io.read_raw(path, **options)


def _check_end(raw: Any, path: Path, kind: str) -> None:
    """Read the last second: where a file is cut short, this fails."""
    if kind == "EEGLAB":
        data = Path(raw.filenames[0])
        # data inside a .set can only be read as a whole
        if data.suffix.lower() != ".fdt":
            return
        _check_frames(path, data, 4 * len(raw.ch_names), raw.n_times)
    start = max(0, raw.n_times - max(1, round(raw.info["sfreq"])))
    read_samples(raw, range(len(raw.ch_names)), start, raw.n_times, str(path))


def _check_frames(path: Path, data: Path, frame_bytes: int, frames: int | None = None) -> list[str]:
    """Compare the size of a data file of equal frames (one sample of all channels) with what its header says."""
    if frame_bytes <= 0:
        raise ValueError(f"{path} has a damaged header: no channels.")
    size = data.stat().st_size
    extra = size - frame_bytes * frames if frames is not None else size % frame_bytes
    if extra == 0:
        return []
    if extra > 0 and _has_only_crlf(data, 2):
        raise ValueError(
            f"{path}: its data ({data.name}) are damaged by a conversion of line ends (LF to CRLF, by git or a "
            "transfer in text mode). Get the file again as binary."
        )
    if extra < 0:
        raise ValueError(
            f"{path}: its data ({data.name}) are cut short: {-extra} bytes fewer than its header says. Get the file "
            "again."
        )
    if size % frame_bytes:
        raise ValueError(
            f"{path}: its data ({data.name}) are damaged or cut short: {size} bytes are no whole number of samples of "
            f"{frame_bytes} bytes. Get the file again."
        )
    return [f"{path}: its data ({data.name}) hold {extra // frame_bytes} samples more than its header says."]


# EDF and BDF --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EDFHeader:
    """What the header of an EDF or BDF file says; one entry a signal, annotation signals included.

    Fields:
        labels, units: as written; rates: in Hz.
        kind: 'EDF', 'EDF+C', 'EDF+D', 'BDF', 'BDF+C' or 'BDF+D' (+D: discontinuous).
        n_records: -1 where the recording was never closed; record_bytes, header_bytes: sizes.
    """

    labels: tuple[str, ...]
    units: tuple[str, ...]
    rates: tuple[float, ...]
    kind: str
    n_records: int
    record_bytes: int
    header_bytes: int

    @property
    def signals(self) -> list[int]:
        """Positions of the signals that are no annotations."""
        return [i for i, label in enumerate(self.labels) if label not in ("EDF Annotations", "BDF Annotations")]


def read_edf_header(path: PathOrStr) -> EDFHeader:
    """The header of an EDF or BDF file.

    Raises:
        ValueError: it is no such header.
    """
    path = Path(path)
    head = _head(path)
    try:
        header_bytes, n_records, n_signals = int(head[184:192]), int(head[236:244]), int(head[252:256])
        record_seconds = float(head[244:252])
        rest = _edf_signal_fields(path, n_signals)
        samples = [int(text) for text in _edf_column(rest, n_signals, 216, 8)]
    except ValueError as error:
        raise ValueError(
            f"{path} is not a valid {path.suffix[1:].upper()} file: its header cannot be read ({error}). It may be "
            "another kind of file under this name, or its header is shifted. Get the file again."
        ) from error
    if header_bytes != 256 * (n_signals + 1) or min(samples) < 0 or sum(samples) == 0:
        raise ValueError(
            f"{path} has a damaged header: {header_bytes} header bytes do not fit {n_signals} signals. Get the file "
            "again."
        )
    is_bdf = head[:1] == b"\xff"
    plus = head[195:197].decode("latin-1") if re.match(rb"[EB]DF\+[CD]", head[192:197]) else ""
    return EDFHeader(
        labels=_edf_column(rest, n_signals, 0, 16),
        units=_edf_column(rest, n_signals, 96, 8),
        rates=tuple(count / (record_seconds or 1.0) for count in samples),
        kind=("BDF" if is_bdf else "EDF") + plus,
        n_records=n_records,
        record_bytes=sum(samples) * (3 if is_bdf else 2),
        header_bytes=header_bytes,
    )


def _edf_signal_fields(path: Path, n_signals: int) -> bytes:
    if not 0 < n_signals < 10000:
        raise ValueError(f"{n_signals} signals")
    with open(path, "rb") as file:
        file.seek(256)
        return file.read(256 * n_signals)


def _edf_column(fields: bytes, n_signals: int, offset: int, width: int) -> tuple[str, ...]:
    """One field of all signals, which stand one after the other; `offset` is the width of the fields before it."""
    column = fields[offset * n_signals : (offset + width) * n_signals]
    return tuple(column[i * width : (i + 1) * width].decode("latin-1").strip() for i in range(n_signals))


def _check_edf(path: Path) -> _Found:
    """Compare the size of an EDF or BDF file with what its header says, as MNE guesses where they disagree; plan the
    rates to read."""
    header = read_edf_header(path)
    suffix = path.suffix[1:].upper()
    if header.kind[:3] != suffix:
        raise ValueError(
            f"{path} is {header.kind[:3]} by its content: MNE would read wrong numbers. Rename it to "
            f".{header.kind[:3].lower()}."
        )
    if header.n_records == 0:
        raise ValueError(f"{path} has no samples: its header says 0 data records.")
    if not header.signals:
        raise ValueError(
            f"{path} holds annotations only, no signals: pass the recording that they belong to "
            "(mne.read_annotations reads them)."
        )
    notes = []
    if header.kind[3:] == "+D":
        notes.append(f"{path}: a discontinuous (EDF+D) recording: its parts are read as if one followed the other.")
    notes += _check_edf_size(path, header)
    rate_notes, left_out = _plan_rates(path, header)
    rows = [i for i in header.signals if header.labels[i] not in left_out]
    return _Found(notes + rate_notes, {"exclude": left_out}, [header.units[i] for i in rows])


def _check_edf_size(path: Path, header: EDFHeader) -> list[str]:
    data_bytes = path.stat().st_size - header.header_bytes
    if header.n_records < 0:
        records = data_bytes // header.record_bytes
        return [f"{path} was never closed by its recorder: all {records} whole records of the file are read."]
    extra = data_bytes - header.n_records * header.record_bytes
    if extra < 0:
        raise ValueError(
            f"{path} is cut short: {-extra} bytes fewer than its header says ({header.n_records} records of "
            f"{header.record_bytes} bytes). Get the file again."
        )
    if extra > 0 and (extra >= header.record_bytes or _has_only_crlf(path, extra)):
        raise ValueError(
            f"{path} is damaged: {extra} bytes more than its header says. A conversion of line ends (LF to CRLF, by "
            "git or a transfer in text mode) does this. Get the file again as binary."
        )
    return [f"{path}: {extra} stray byte(s) after the last record are ignored."] if extra else []


def _plan_rates(path: Path, header: EDFHeader) -> tuple[list[str], list[str]]:
    """What to say of mixed sampling rates, and the labels to leave out: MNE resamples all channels to the highest rate
    that it reads, each stretch on its own, so that the values depend on the stretch."""
    rates = {i: header.rates[i] for i in header.signals}
    if len(set(rates.values())) == 1:
        return [], []
    eeg = [i for i in rates if _is_eeg_by_name(header.labels[i])]
    eeg_rates = sorted({rates[i] for i in eeg})
    if len(eeg_rates) != 1:
        listed = "; ".join(
            f"{rate:g} Hz: {join_words(repr(header.labels[i]) for i in eeg or rates if rates[i] == rate)}"
            for rate in eeg_rates or sorted(set(rates.values()))
        )
        return [
            f"{path}: the {'EEG channels' if eeg else 'channels'} are sampled at different rates ({listed}). MNE "
            f"resamples the slower ones to {max(rates.values()):g} Hz, each stretch that is read on its own, so that "
            "their values are off near the ends of a stretch: leave them out, or resample the file first."
        ], []
    kept = {header.labels[i] for i in rates if rates[i] == eeg_rates[0]}
    left_out = {header.labels[i]: rates[i] for i in rates if header.labels[i] not in kept}
    listed = join_words(f"{label!r} ({rate:g} Hz)" for label, rate in left_out.items())
    note = f"{path}: left out, being sampled at another rate than the EEG ({eeg_rates[0]:g} Hz): {listed}."
    return [note], list(left_out)


def _is_eeg_by_name(label: str) -> bool:
    named_so = re.match(r"EEG\b", label.strip(), re.IGNORECASE) is not None
    return non_eeg_reason(label) is None and (named_so or resolve_channel(label) is not None)


def _has_only_crlf(path: Path, extra: int) -> bool:
    """Whether every LF of the file follows a CR, as many times as there are extra bytes: never so by chance."""
    lf = crlf = 0
    last = b""
    with open(path, "rb") as file:
        while block := file.read(2**24):
            lf += block.count(b"\n")
            crlf += block.count(b"\r\n") + (last == b"\r" and block[:1] == b"\n")
            last = block[-1:]
    return lf == crlf >= extra > 1


# Other formats --------------------------------------------------------------------------------------


def _check_gdf(path: Path) -> _Found:
    """Check the size of a GDF file; its units are text in version 1, codes in version 2."""
    head = _head(path)
    try:
        version = float(head[4:8])
        n_signals = int.from_bytes(head[252 : 256 if version < 1.9 else 254], "little")
        fields = _edf_signal_fields(path, n_signals)
    except ValueError as error:
        raise ValueError(
            f"{path} is not a valid GDF file: its header cannot be read ({error}). Get the file again."
        ) from error
    _check_gdf_size(path, version, head, fields)
    if version < 1.9:
        return _Found(units=[unit.split("\0")[0].strip() for unit in _edf_column(fields, n_signals, 96, 8)])
    codes = np.frombuffer(fields[102 * n_signals : 104 * n_signals], dtype="<u2")
    names = {4256: "V", 4274: "mV", 4275: "uV", 4276: "nV"}
    return _Found(units=[names.get(int(code), "") for code in codes])


def _check_gdf_size(path: Path, version: float, head: bytes, fields: bytes) -> None:
    """Compare the size of a GDF file with what its header and the event table after its data say."""
    n_signals = len(fields) // 256
    samples = np.frombuffer(fields[216 * n_signals : 220 * n_signals], "<i4")
    widths = [
        _GDF_BYTES.get(code, 0) for code in np.frombuffer(fields[220 * n_signals : 224 * n_signals], "<i4").tolist()
    ]
    n_records = int.from_bytes(head[236:244], "little", signed=True)
    if n_records < 0 or 0 in widths or (samples < 0).any():
        return
    header_bytes = (
        int.from_bytes(head[184:192], "little") if version < 1.9 else 256 * int.from_bytes(head[184:186], "little")
    )
    end, size = header_bytes + n_records * int(samples @ widths), path.stat().st_size
    with open(path, "rb") as file:
        file.seek(min(end, size))
        table = file.read(8)
    n_events = int.from_bytes(table[1:4] if version >= 1.94 else table[4:8], "little")
    extra = size - end - len(table) - n_events * {1: 6, 3: 12}.get(table[0] if table else 0, 0)
    if extra and _has_only_crlf(path, 2):
        raise ValueError(
            f"{path} is damaged: its size does not fit its header. A conversion of line ends (LF to CRLF, by git or a "
            "transfer in text mode) does this. Get the file again as binary."
        )
    if extra < 0:
        raise ValueError(f"{path} is cut short: {-extra} bytes fewer than its header says. Get the file again.")


def _check_brainvision(path: Path) -> _Found:
    """Compare the files of a BrainVision recording with what its header says."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = path.read_text(encoding="latin-1")
    text = text.split("[Comment]")[0]
    settings = {key.lower(): value.strip() for key, value in re.findall(r"^(\w+)\s*=(.*)$", text, re.MULTILINE)}
    data = path.parent / settings.get("datafile", "")
    if not data.is_file():
        raise ValueError(
            f"{path}: its data file {settings.get('datafile', '')!r} is missing. Keep the .vhdr, .vmrk and .eeg files "
            "together, under the names written in the .vhdr."
        )
    infos = re.search(r"\[Channel Infos\](.*?)(?=^\[|\Z)", text, re.DOTALL | re.MULTILINE | re.IGNORECASE)
    channels = re.findall(r"^Ch(\d+)=(.*)$", infos[1] if infos else "", re.MULTILINE | re.IGNORECASE)
    fields_by_number = {int(number): f"{fields.strip()},,,".split(",") for number, fields in channels}
    units = [fields_by_number[number][3] or "uV" for number in sorted(fields_by_number)]
    points = settings.get("datapoints", "")
    width = {"INT_16": 2, "INT_32": 4, "IEEE_FLOAT_32": 4}.get(settings.get("binaryformat", ""), 0)
    n_channels = settings.get("numberofchannels", "")
    if settings.get("dataformat") != "BINARY" or not width or not n_channels.isdigit() or path.suffix == ".ahdr":
        return _Found(units=units)
    frames = int(points) if points.isdigit() and int(points) else None
    notes = _check_frames(path, data, width * int(n_channels), frames)
    if notes and settings.get("dataorientation") == "VECTORIZED":
        raise ValueError(f"{notes[0]} Channels stand one after the other in this file: where each begins is lost.")
    return _Found(notes, units=units)


def _check_eximia(path: Path) -> _Found:
    return _Found(_check_frames(path, path, 64 * 2))


def _check_persyst(path: Path) -> _Found:
    text = path.read_text(encoding="latin-1")
    settings = {key.lower(): value.strip() for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE)}
    data = path.parent / Path(settings.get("file", "").replace("\\", "/")).name
    if not data.is_file():
        raise ValueError(f"{path}: its data file {data.name!r} is missing. Keep the .lay and .dat files together.")
    count, width = settings.get("waveformcount", ""), {"0": 2, "7": 4}.get(settings.get("datatype", ""))
    return _Found(_check_frames(path, data, int(count) * width)) if count.isdigit() and width else _Found()


def _check_neuroscan(path: Path) -> _Found:
    """Whether a Neuroscan CNT holds 16 or 32 bits a value: its header does not say, and MNE's guess can fail."""
    with open(path, "rb") as file:
        header = file.read(900)
        n_channels = int.from_bytes(header[370:372], "little")
        labels = [file.read(75)[:10].split(b"\0")[0] for _ in range(n_channels)]
    if len(header) < 900 or n_channels == 0:
        raise ValueError(f"{path} is cut short or damaged: its header names no channels. Get the file again.")
    n_samples, table = (int.from_bytes(header[at : at + 4], "little") for at in (864, 886))
    # Older files mark bad channels in the fifth byte of the label: MNE takes longer labels for marks.
    options: dict[str, Any] = {"header": "new"} if any(len(label) > 4 for label in labels) else {}
    first, size = 900 + 75 * n_channels, path.stat().st_size
    ends = {width: first + n_samples * n_channels * width for width in (2, 4)}
    # the table's position has 32 bits, and overflows in large files
    fitting = [width for width in ends if n_samples and ends[width] % 2**32 == table]
    if fitting:
        if ends[fitting[0]] > size:
            missing = ends[fitting[0]] - size
            raise ValueError(f"{path} is cut short: {missing} bytes fewer than its header says. Get the file again.")
        return _Found(options={**options, "data_format": f"int{8 * fitting[0]}"})
    if not first < table <= size:
        raise ValueError(
            f"{path} is cut short or damaged: its header puts the end of the data at byte {table}, and the file has "
            f"{size}. Get the file again."
        )
    width = _cnt_width_by_values(path, first, table - first, n_channels)
    note = (
        f"{path}: its header counts {n_samples} samples, which does not fit its size; by their values the numbers "
        f"have {8 * width} bits, and all {(table - first) // (n_channels * width)} samples are read."
    )
    return _Found([note], {**options, "data_format": f"int{8 * width}", "recompute_n_samples": True})


def _cnt_width_by_values(path: Path, first: int, data_bytes: int, n_channels: int) -> int:
    """Bytes a value. 16-bit numbers read as 32-bit ones jump by multiples of 2**16 from sample to sample, as true ones
    do not."""
    fitting = [width for width in (2, 4) if data_bytes % (n_channels * width) == 0]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        frame = 4 * n_channels
        offset = first + data_bytes // (2 * frame) * frame
        values = np.fromfile(path, "<i4", (first + data_bytes - offset) // frame * n_channels, offset=offset)
        steps = np.abs(np.diff(values.reshape(-1, n_channels)[:5000].astype(np.int64), axis=0))
        small = float(np.mean(steps[steps > 0] < 2**15)) if steps.any() else 0.9
        if small > 0.95 or small < 0.8:
            return 4 if small > 0.95 else 2
    raise ValueError(
        f"{path}: nothing tells whether its numbers have 16 or 32 bits, for its header's count of samples does not "
        "fit its size. Save it again with Neuroscan's software, or read it with mne.io.read_raw_cnt and the right "
        "data_format, and save it as .fif."
    )


_CHECKS: dict[str, Callable[[Path], _Found]] = {
    "EDF": _check_edf,
    "BDF": _check_edf,
    "GDF": _check_gdf,
    "BrainVision": _check_brainvision,
    "Neuroscan CNT": _check_neuroscan,
    "Persyst": _check_persyst,
    "eXimia": _check_eximia,
}


# Units and BIDS --------------------------------------------------------------------------------------


def _settle_units(raw: Any, kind: str, units: Sequence[str], path: Path) -> list[str]:
    """Correct the channels whose unit we know and MNE does not, and say which have none that is known.

    MNE takes EDF units other than 'uV' and 'mV' for volts, and BrainVision's other than V, mV, uV and nV too, with
    the channel type 'misc'.
    """
    if len(units) != len(raw.ch_names):
        return []
    # private, but the only place that says how MNE has read a unit
    taken = raw._raw_extras[0]["units"] if kind in _EDF_LIKE else [channel["range"] for channel in raw.info["chs"]]
    corrected: dict[str, list[str]] = {}
    unknown: dict[tuple[str, str], list[str]] = {}
    for row, (name, unit, kind_of_row) in enumerate(zip(raw.ch_names, units, raw.get_channel_types(), strict=True)):
        mistyped = kind_of_row == "misc" and _is_eeg_by_name(name)
        if non_eeg_reason(name) is not None or not (kind_of_row == "eeg" or mistyped):
            continue
        volts = volts_per(unit)
        if volts is None:
            unknown.setdefault((unit, kind_of_row), []).append(name)
            continue
        if not np.isclose(volts, taken[row], rtol=1e-6, atol=0):
            raw._cals[row] *= volts / taken[row]
            corrected.setdefault(unit, []).append(name)
            if mistyped:
                raw.set_channel_types({name: "eeg"}, on_unit_change="ignore")
    return [_corrected_unit_note(path, unit, names) for unit, names in corrected.items()] + [
        _unknown_unit_note(path, unit, names, kind_of_row) for (unit, kind_of_row), names in unknown.items()
    ]


def _corrected_unit_note(path: Path, unit: str, names: list[str]) -> str:
    meant = f"{1e6 * (volts_per(unit) or 0):g} uV"
    return f"{path}: the unit {unit!r} of {_some(names)} is read as {meant}, which MNE by itself does not."


def _unknown_unit_note(path: Path, unit: str, names: list[str], kind_of_row: str) -> str:
    what = f"the unit {unit!r} of {_some(names)} is no voltage" if unit else f"no unit is given for {_some(names)}"
    if kind_of_row == "misc":
        return f"{path}: {what}: MNE makes it channel type 'misc'. If it is EEG, write its unit into the header."
    return f"{path}: {what}: MNE takes the numbers for volts. If they are microvolts, pass unit='uV' (--unit uV)."


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMED_AT_MOST} more" if len(names) > NAMED_AT_MOST else ""
    return join_words(names[:NAMED_AT_MOST]) + more


def volts_per(unit: str) -> float | None:
    """Volts in one unit as files write it, a mu in UTF-8 or Shift-JIS read as Latin-1 included; None: no voltage."""
    try:
        return microvolts_per(re.sub("\u00c2\u00b5|\u00ce\u00bc|\x83\xca", "u", unit)) * 1e-6
    except ValueError:
        return None


def _bids_root(path: Path) -> Path | None:
    """The BIDS dataset that a recording lies in, or None."""
    if not path.name.startswith("sub-") or path.parent.name not in ("eeg", "ieeg", "meg"):
        return None
    parents = path.absolute().parents
    return next((folder for folder in parents if (folder / "dataset_description.json").is_file()), None)


def _adopt_bids(raw: Any, path: Path, root: Path, units: list[str]) -> list[str]:
    """Give a recording the channel types, bad channels, date and events of its BIDS dataset; the units of its rows,
    from the dataset where the file has none that is known."""
    mne_bids = import_module("mne_bids")
    bids_path = mne_bids.get_bids_path_from_fname(path.absolute()).update(root=root)
    described = mne_bids.read_raw_bids(bids_path)
    types = dict(zip(described.ch_names, described.get_channel_types(), strict=True))
    raw.set_channel_types({name: types[name] for name in raw.ch_names if name in types}, on_unit_change="ignore")
    raw.info["bads"] = [name for name in described.info["bads"] if name in raw.ch_names]
    raw.set_meas_date(described.info["meas_date"])
    raw.set_annotations(described.annotations)
    table = bids_path.find_matching_sidecar(suffix="channels", extension=".tsv", on_error="ignore")
    if table is None or len(units) != len(raw.ch_names):
        return units
    lines = [line.split("\t") for line in Path(table).read_text(encoding="utf-8-sig").splitlines()]
    of_name = {
        cells["name"]: cells.get("units", "")
        for cells in (dict(zip(lines[0], row, strict=False)) for row in lines[1:])
    }
    of_rows = [of_name.get(name, "") for name in raw.ch_names]
    return [unit if volts_per(unit) else other or unit for unit, other in zip(units, of_rows, strict=True)]
