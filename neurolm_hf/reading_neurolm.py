# Copyright 2026 The neurolm_hf authors. Licensed under the Apache License, Version 2.0.
"""What a recording is before anything is done to it: channel names, units, files.

1. Channel names: `resolve_channel`, `resolve_montage`.
2. Units: `microvolts_per`.
3. Files: `open_recording`.

This file is copied into model folders: it needs numpy, and MNE for files.
"""

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np


try:
    import mne
except ImportError:
    mne = None


# ------------------------------------------------------------------------------------------------
# 1. Channel names
# ------------------------------------------------------------------------------------------------

# The order is the checkpoint's: a channel's id is its index here.
# fmt: off
CHANNEL_VOCABULARY: tuple[str, ...] = (
    "FP1", "FPZ", "FP2",
    "AF9", "AF7", "AF5", "AF3", "AF1", "AFZ", "AF2", "AF4", "AF6", "AF8", "AF10",
    "F9", "F7", "F5", "F3", "F1", "FZ", "F2", "F4", "F6", "F8", "F10",
    "FT9", "FT7", "FC5", "FC3", "FC1", "FCZ", "FC2", "FC4", "FC6", "FT8", "FT10",
    "T9", "T7", "C5", "C3", "C1", "CZ", "C2", "C4", "C6", "T8", "T10",
    "TP9", "TP7", "CP5", "CP3", "CP1", "CPZ", "CP2", "CP4", "CP6", "TP8", "TP10",
    "P9", "P7", "P5", "P3", "P1", "PZ", "P2", "P4", "P6", "P8", "P10",
    "PO9", "PO7", "PO5", "PO3", "PO1", "POZ", "PO2", "PO4", "PO6", "PO8", "PO10",
    "O1", "OZ", "O2", "O9", "CB1", "CB2", "IZ", "O10",
    "T3", "T5", "T4", "T6", "M1", "M2", "A1", "A2",
    "CFC1", "CFC2", "CFC3", "CFC4", "CFC5", "CFC6", "CFC7", "CFC8",
    "CCP1", "CCP2", "CCP3", "CCP4", "CCP5", "CCP6", "CCP7", "CCP8",
    "T1", "T2", "FTT9h", "TTP7h", "TPP9h", "FTT10h", "TPP8h", "TPP10h",
    "FP1-F7", "F7-T7", "T7-P7", "P7-O1", "FP2-F8", "F8-T8", "T8-P8", "P8-O2",
    "FP1-F3", "F3-C3", "C3-P3", "P3-O1", "FP2-F4", "F4-C4", "C4-P4", "P4-O2",
    "pad", "I1", "I2",
)
# fmt: on
PAD_CHANNEL_ID = CHANNEL_VOCABULARY.index("pad")

UnknownChannels: TypeAlias = Literal["raise", "drop"]

_NAME_BY_UPPER = {name.upper(): name for name in CHANNEL_VOCABULARY if name != "pad"}
_ID_BY_NAME = {name: index for index, name in enumerate(CHANNEL_VOCABULARY)}
_ALIASES = {"LM": "M1", "RM": "M2"}
_REFERENCE_ELECTRODES = {"A1", "A2", "M1", "M2", "LM", "RM"}
# The vocabulary writes its bipolar pairs with the new names only. Single T3, T4, T5, T6 have ids of their own and keep
# their names.
_NEW_NAME_IN_PAIR = {"T3": "T7", "T5": "P7", "T4": "T8", "T6": "P8"}
_PREFIX = re.compile(r"^(?:EEG|POL)[\s_:\-]+")
_REFERENCE_SUFFIX = re.compile(r"-(?:REF|LE|AR|AVG|CAR|[MA][12])$")
_NON_EEG = re.compile(
    r"ECG|EKG|EOG|EMG|TRIG|ANNOTATIONS?$"
    r"|^(?:RESP|STATUS|STI\b|STI\d|STIM|PHOTIC|EVENT|MARKER|SPO2|SAO2|OSAT|PULSE|PLETH|PPG|GSR|EDA|TEMP|(?:AIR)?FLOW"
    r"|NASAL|THOR|ABDO|CHEST|SNORE|CHIN|BODY|POSITION|ACC|GYRO|DC\d+\b)"
    r"|^(?:[VH]EO[LRUD]?|LOC|ROC|IBI|BURSTS|SUPPR|HR|LEG)(?:$|[\s\-/])"
)
_BIOSEMI_LABEL = re.compile(r"^[A-I]\d{1,2}$")
_NAMED_AT_MOST = 24


@dataclass(frozen=True)
class KeptChannel:
    """A channel the model will read: its row in the recording, the name found there, its vocabulary name and id."""

    row: int
    original: str
    name: str
    id: int


@dataclass(frozen=True)
class DroppedChannel:
    """A channel that is left out, and why."""

    original: str
    reason: str


@dataclass(frozen=True)
class Montage:
    """The channels of a recording, those kept (in the recording's order) and those dropped."""

    kept: tuple[KeptChannel, ...]
    dropped: tuple[DroppedChannel, ...]

    @property
    def rows(self) -> list[int]:
        return [channel.row for channel in self.kept]

    @property
    def names(self) -> list[str]:
        return [channel.name for channel in self.kept]

    @property
    def ids(self) -> np.ndarray:
        """Vocabulary ids, int64 (channels,)."""
        return np.array([channel.id for channel in self.kept], dtype=np.int64)


def resolve_channel(name: str) -> str | None:
    """The vocabulary's name for a channel, or None where it has none.

    Case, 'EEG ' and 'POL ' in front, dots at the end, spaces around hyphens and a reference electrode at the end
    ('EEG F4-M1' is F4) do not matter. A bipolar pair is itself or unknown, never its first electrode; inside a pair
    T3, T4, T5, T6 are read as T7, T8, P7, P8. A name that is in the vocabulary is never renamed.
    """
    cleaned = _clean(name)
    if cleaned in _NAME_BY_UPPER:
        return _NAME_BY_UPPER[cleaned]
    if _is_reference_pair(cleaned):
        return None
    cleaned = _REFERENCE_SUFFIX.sub("", cleaned)
    cleaned = _ALIASES.get(cleaned, cleaned)
    if "-" in cleaned:
        cleaned = "-".join(_NEW_NAME_IN_PAIR.get(part, part) for part in cleaned.split("-"))
    return _NAME_BY_UPPER.get(cleaned)


def resolve_montage(
    ch_names: Sequence[str],
    excluded: Mapping[int, str] | None = None,
    unknown_channels: UnknownChannels = "raise",
    source: str = "recording",
) -> Montage:
    """Resolve the channel names of one recording.

    Args:
        ch_names: names in the order of the recording's rows.
        excluded: rows to leave out whatever their name, with the reason of each.
        unknown_channels: 'raise', or 'drop' to leave unknown names out and say so in `dropped`.
        source: what to call the recording in messages.

    Raises:
        TypeError: a name is not a string.
        ValueError: unknown names (with the closest vocabulary names), two rows of one name, or no channel left.
    """
    if unknown_channels not in ("raise", "drop"):
        raise ValueError(f"unknown_channels is 'raise' or 'drop', not {unknown_channels!r}.")
    kept: list[KeptChannel] = []
    dropped: list[DroppedChannel] = []
    unknown: list[str] = []
    biosemi = _has_biosemi_labels(ch_names)
    for row, original in enumerate(ch_names):
        if not isinstance(original, str):
            raise TypeError(f"{source}: channel names are strings, row {row} has {original!r}.")
        reason = (excluded or {}).get(row)
        # BioSemi's A1 is no ear lobe and its C3 no C3.
        name = None if biosemi and _BIOSEMI_LABEL.match(_clean(original)) else resolve_channel(original)
        if reason is None and name is not None:
            kept.append(KeptChannel(row, original, name, _ID_BY_NAME[name]))
            continue
        reason = reason or _non_eeg_reason(original)
        if reason is None:
            unknown.append(original)
            reason = "unknown name" + (" (BioSemi label)" if biosemi else "")
        dropped.append(DroppedChannel(original, reason))
    if unknown and unknown_channels == "raise":
        raise ValueError(_unknown_channels_message(unknown, source, biosemi))
    _check_no_duplicates(kept, source)
    if not kept:
        reasons = (
            "; ".join(f"{channel.original!r}: {channel.reason}" for channel in dropped[:8]) or "no channels at all"
        )
        raise ValueError(f"{source}: no EEG channel is left ({reasons}).")
    return Montage(tuple(kept), tuple(dropped))


def _clean(name: str) -> str:
    cleaned = re.sub(r"[‐‑‒–—−]", "-", name.strip().upper())
    cleaned = re.sub(r"\s*-\s*", "-", re.sub(r"\s+", " ", cleaned))
    return _PREFIX.sub("", cleaned).rstrip(".").strip()


def _is_reference_pair(cleaned: str) -> bool:
    parts = cleaned.split("-")
    return len(parts) == 2 and all(part in _REFERENCE_ELECTRODES for part in parts)


def _non_eeg_reason(name: str) -> str | None:
    cleaned = _clean(name)
    if _is_reference_pair(cleaned):
        return "a pair of two reference electrodes, no scalp signal"
    return "not EEG by its name" if _NON_EEG.search(cleaned) else None


def _has_biosemi_labels(ch_names: Sequence[str]) -> bool:
    """Whether A1 and A2 stand in a row of BioSemi labels (A1...A32, B1...B32, ...)."""
    names = {_clean(name) for name in ch_names if isinstance(name, str)}
    return any({f"{row}3", f"{row}4", f"{row}5"} <= names for row in "ABDEGHI")  # C3, C4, C5 and F3, F4, F5 are 10-20


def _unknown_channels_message(unknown: list[str], source: str, biosemi: bool) -> str:
    parts = []
    for name in unknown[:_NAMED_AT_MOST]:
        close = [] if biosemi else difflib.get_close_matches(_clean(name), _NAME_BY_UPPER, n=3, cutoff=0.5)
        parts.append(f"{name!r}" + (f" (close to {', '.join(_NAME_BY_UPPER[key] for key in close)})" if close else ""))
    if len(unknown) > _NAMED_AT_MOST:
        parts.append(f"and {len(unknown) - _NAMED_AT_MOST} more")
    hints = ""
    if any(_clean(name) == "PAD" for name in unknown):
        hints += " 'pad' is reserved for padding."
    if biosemi:
        hints += (
            " The names look like BioSemi labels (A1, A2, A3, ...): positions on the cap, not 10-20 names. MNE's "
            "montages 'biosemi16' to 'biosemi256' say which is which."
        )
    if any(name.endswith("-0") for name in unknown):
        hints += " MNE adds -0, -1, ... to channels that share a name: keep one of each and rename it."
    return (
        f"{source}: {len(unknown)} channel name(s) not in NeuroLM's vocabulary: {join_words(parts)}.{hints} "
        "Rename them, leave them out, or pass unknown_channels='drop' to drop and report them."
    )


def _check_no_duplicates(kept: list[KeptChannel], source: str) -> None:
    first: dict[str, KeptChannel] = {}
    for channel in kept:
        other = first.setdefault(channel.name, channel)
        if other is not channel:
            raise ValueError(
                f"{source}: {other.original!r} (row {other.row}) and {channel.original!r} (row {channel.row}) are "
                f"both channel {channel.name}. Keep one of them."
            )


# ------------------------------------------------------------------------------------------------
# 2. Units
# ------------------------------------------------------------------------------------------------

MICROVOLTS_PER_UNIT = {"V": 1e6, "mV": 1e3, "uV": 1.0, "nV": 1e-3}
_UNIT = re.compile(r"^(\d*\.?\d+(?:e[+-]?\d+)?)?\*?(milli|micro|nano|m|u|n)?(?:v|volts?)$")
_UNIT_OF_PREFIX = {"": "V", "milli": "mV", "m": "mV", "micro": "uV", "u": "uV", "nano": "nV", "n": "nV"}


def microvolts_per(unit: str) -> float:
    """Microvolts in one `unit`: 'V', 'mV', 'uV' (also 'µV'), 'nV', words ('microvolts') and multiples ('0.1mV').

    Raises:
        TypeError: the unit is not a string.
        ValueError: it is none of these.
    """
    if not isinstance(unit, str):
        raise TypeError(f"unit is a string such as 'uV', not {unit!r}.")
    match = _UNIT.match(re.sub(r"\s+", "", unit).replace("µ", "u").replace("μ", "u").lower())
    factor = float(match[1] or 1) if match else 0.0
    if match is None or factor == 0.0:
        raise ValueError(f"unit {unit!r} is unknown: use 'V', 'mV', 'uV', 'nV' or a multiple such as '0.1mV'.")
    return factor * MICROVOLTS_PER_UNIT[_UNIT_OF_PREFIX[match[2] or ""]]


# ------------------------------------------------------------------------------------------------
# 3. Files
# ------------------------------------------------------------------------------------------------

PathOrStr: TypeAlias = str | os.PathLike[str]
_RECORDING_FOLDERS = (".mff", ".ds")


def require_mne(purpose: str) -> Any:
    """MNE, or an ImportError that says what needs it and how to install it."""
    if mne is None:
        raise ImportError(f"{purpose} needs MNE-Python: pip install mne")
    return mne


def open_recording(path: PathOrStr) -> tuple[Any, list[str]]:
    """An `mne.io.Raw` with its data, and what is to be said about the file."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: there is no such file.")
    if path.is_dir() and path.suffix.lower() not in _RECORDING_FOLDERS:
        raise ValueError(f"{path} is a folder: pass the recordings in it one by one, or as a list.")
    require_mne(f"Reading {path}")
    notes = _check_edf(path) if path.suffix.lower() in (".edf", ".bdf") else []
    try:
        with mne.use_log_level("ERROR"):
            raw = _mne_read(path)
            raw.load_data()
    except ImportError:
        raise
    # MNE's readers raise all kinds of exceptions on a damaged file, bare Exception included.
    except Exception as error:
        detail = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} cannot be read as EEG, it may be damaged or mislabelled: {detail}") from error
    if raw.n_times == 0:
        raise ValueError(f"{path} has no samples.")
    return raw, notes


def _mne_read(path: Path) -> Any:
    # Two formats that mne.io.read_raw does not recognise by their suffix alone.
    if path.suffix.lower() == ".raw":
        return mne.io.read_raw_egi(path)
    if path.suffix.lower() == ".data":
        return mne.io.read_raw_nicolet(path, ch_type="eeg")
    return mne.io.read_raw(path)


def _check_edf(path: Path) -> list[str]:
    """Compare the size of an EDF or BDF file with what its header says: MNE guesses where they disagree."""
    header_bytes, n_records, record_bytes, discontinuous = _edf_layout(path)
    if n_records == 0:
        raise ValueError(f"{path} has no samples: its header says 0 data records.")
    notes = []
    if discontinuous:
        notes.append(f"{path}: a discontinuous (EDF+D) recording: its parts are read as if one followed the other.")
    size = path.stat().st_size
    # -1 is the format's own mark for a recording that was never closed.
    extra = size - header_bytes - n_records * record_bytes if n_records > 0 else 0
    if extra < 0:
        raise ValueError(
            f"{path} is cut short: {-extra} bytes fewer than its header says ({n_records} records of {record_bytes} "
            "bytes). Get the file again."
        )
    if extra > 0 and (extra >= record_bytes or _has_only_crlf(path, extra)):
        raise ValueError(
            f"{path} is damaged: {extra} bytes more than its header says. A conversion of line ends (LF to CRLF, by "
            "git or a transfer in text mode) does this. Get the file again as binary."
        )
    if extra > 0:
        notes.append(f"{path}: {extra} stray byte(s) after the last record are ignored.")
    return notes


def _edf_layout(path: Path) -> tuple[int, int, int, bool]:
    """Header bytes, number of data records, bytes of one record, and whether the file is marked discontinuous."""
    with open(path, "rb") as file:
        head = file.read(256)
        try:
            header_bytes, n_records, n_signals = int(head[184:192]), int(head[236:244]), int(head[252:256])
            file.seek(256 + 216 * n_signals)
            samples = [int(file.read(8)) for _ in range(n_signals)]
        except ValueError as error:
            raise ValueError(
                f"{path} is not a valid {path.suffix[1:].upper()} file: its header cannot be read ({error}). It may "
                "be another kind of file under this name, or its header is shifted."
            ) from error
    if n_signals < 1 or header_bytes != 256 * (n_signals + 1):
        raise ValueError(
            f"{path} has a damaged header: {header_bytes} header bytes do not fit {n_signals} signals. Get the file "
            "again."
        )
    sample_bytes = 3 if head[:1] == b"\xff" else 2
    return header_bytes, n_records, sum(samples) * sample_bytes, head[192:197] in (b"EDF+D", b"BDF+D")


def _has_only_crlf(path: Path, extra: int) -> bool:
    """Whether every LF of the file follows a CR, as many times as there are extra bytes: never so by chance."""
    content = path.read_bytes()
    return content.count(b"\n") == content.count(b"\r\n") >= extra > 1


def join_words(parts: Iterable[str]) -> str:
    """The parts, separated by commas."""
    return ", ".join(parts)
