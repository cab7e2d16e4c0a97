# Copyright 2026 The neurolm_hf authors. Licensed under the Apache License, Version 2.0.
"""Names and units: which channel of the vocabulary a name means, how many microvolts a unit is.

This file is copied into model folders: it needs numpy.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np


# ------------------------------------------------------------------------------------------------
# Channel names
# ------------------------------------------------------------------------------------------------

# The order is the checkpoints': a channel's id is its index here, to which LaBraM adds one.
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
_UNKNOWN = "unknown name"
_NO_ROW = "a channel that this model has no row for"
# In messages, so many names are written out.
NAMED_AT_MOST = 24


@dataclass(frozen=True)
class KeptChannel:
    """A channel the model will read: its row in the recording, the name found there, its vocabulary name and index."""

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
        """Indices in the vocabulary, int64 (channels,)."""
        return np.array([channel.id for channel in self.kept], dtype=np.int64)


def resolve_channel(name: str) -> str | None:
    """The vocabulary's name for a channel, or None where it has none.

    Case, 'EEG ' and 'POL ' in front, dots at the end, spaces around hyphens and a reference electrode at the end
    ('EEG F4-M1' is F4) do not matter. A bipolar pair is itself or unknown, never its first electrode; inside a pair
    T3, T4, T5, T6 are read as T7, T8, P7, P8. A name that is in the vocabulary is never renamed.
    """
    cleaned = clean_name(name)
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
    known_channels: int = len(CHANNEL_VOCABULARY),
) -> Montage:
    """Resolve the channel names of one recording.

    Args:
        ch_names: names in the order of the recording's rows.
        excluded: rows to leave out whatever their name, with the reason of each.
        unknown_channels: 'raise', or 'drop' to leave unknown names out and say so in `dropped`.
        source: what to call the recording in messages.
        known_channels: so many names of the vocabulary, from its first on, have a row in the model. `unknown_channels`
            says what becomes of the others too.

    Raises:
        TypeError: a name is not a string.
        ValueError: unknown names (with the closest vocabulary names), names that the model has no row for, two rows
            of one name, or no channel left.
    """
    if unknown_channels not in ("raise", "drop"):
        raise ValueError(f"unknown_channels is 'raise' or 'drop', not {unknown_channels!r}.")
    rows = resolve_rows(ch_names, excluded, source, known_channels)
    kept = [channel for channel in rows if isinstance(channel, KeptChannel)]
    dropped = [channel for channel in rows if isinstance(channel, DroppedChannel)]
    unknown = [channel.original for channel in dropped if channel.reason.startswith(_UNKNOWN)]
    biosemi = _has_biosemi_labels(ch_names)
    if unknown and unknown_channels == "raise":
        raise ValueError(_unknown_channels_message(unknown, source, biosemi))
    without_row = [repr(channel.original) for channel in dropped if channel.reason == _NO_ROW]
    if without_row and unknown_channels == "raise":
        raise ValueError(
            f"{source}: this model has no row for {len(without_row)} channel(s): {join_words(without_row)}. The names "
            f"are known, but it has rows for the first {known_channels} of the vocabulary only. Leave them out, or "
            "pass unknown_channels='drop' (--unknown-channels drop) to drop and report them."
        )
    _check_no_duplicates(kept, source)
    if not kept:
        reasons = (
            "; ".join(f"{channel.original!r}: {channel.reason}" for channel in dropped[:8]) or "no channels at all"
        )
        raise ValueError(f"{source}: no EEG channel is left ({reasons}).")
    return Montage(tuple(kept), tuple(dropped))


def resolve_rows(
    ch_names: Sequence[str],
    excluded: Mapping[int, str] | None = None,
    source: str = "recording",
    known_channels: int = len(CHANNEL_VOCABULARY),
) -> list[KeptChannel | DroppedChannel]:
    """What becomes of every row of a recording, on its own; arguments as in `resolve_montage`, which this serves.

    Raises:
        TypeError: a name is not a string.
    """
    rows: list[KeptChannel | DroppedChannel] = []
    biosemi = _has_biosemi_labels(ch_names)
    for row, original in enumerate(ch_names):
        if not isinstance(original, str):
            raise TypeError(f"{source}: channel names are strings, row {row} has {original!r}.")
        reason = (excluded or {}).get(row)
        # BioSemi's A1 is no ear lobe and its C3 no C3.
        name = None if biosemi and _BIOSEMI_LABEL.match(clean_name(original)) else resolve_channel(original)
        if reason is None and name is not None:
            index = _ID_BY_NAME[name]
            is_known = index < known_channels
            rows.append(KeptChannel(row, original, name, index) if is_known else DroppedChannel(original, _NO_ROW))
            continue
        reason = reason or non_eeg_reason(original) or _UNKNOWN + (" (BioSemi label)" if biosemi else "")
        rows.append(DroppedChannel(original, reason))
    return rows


def clean_name(name: str) -> str:
    """A channel name in capitals, without 'EEG ' or 'POL ' in front, dots at the end and spaces around hyphens."""
    cleaned = re.sub(r"[‐‑‒–—−]", "-", name.strip().upper())
    cleaned = re.sub(r"\s*-\s*", "-", re.sub(r"\s+", " ", cleaned))
    return _PREFIX.sub("", cleaned).rstrip(".").strip()


def _is_reference_pair(cleaned: str) -> bool:
    parts = cleaned.split("-")
    return len(parts) == 2 and all(part in _REFERENCE_ELECTRODES for part in parts)


def non_eeg_reason(name: str) -> str | None:
    """Why a channel is no EEG by its name, or None where the name does not say so."""
    cleaned = clean_name(name)
    if _is_reference_pair(cleaned):
        return "a pair of two reference electrodes, no scalp signal"
    return "not EEG by its name" if _NON_EEG.search(cleaned) else None


def _has_biosemi_labels(ch_names: Sequence[str]) -> bool:
    """Whether A1 and A2 stand in a row of BioSemi labels (A1...A32, B1...B32, ...)."""
    names = {clean_name(name) for name in ch_names if isinstance(name, str)}
    return any({f"{row}3", f"{row}4", f"{row}5"} <= names for row in "ABDGHI")  # C3 and F3 are 10-20, E3 is EGI's


def _unknown_channels_message(unknown: list[str], source: str, biosemi: bool) -> str:
    parts = []
    egi = {"E1", "E2", "E3"} <= set(unknown)
    for name in unknown[:NAMED_AT_MOST]:
        close = [] if biosemi or egi else difflib.get_close_matches(clean_name(name), _NAME_BY_UPPER, n=3, cutoff=0.5)
        parts.append(f"{name!r}" + (f" (close to {', '.join(_NAME_BY_UPPER[key] for key in close)})" if close else ""))
    if len(unknown) > NAMED_AT_MOST:
        parts.append(f"and {len(unknown) - NAMED_AT_MOST} more")
    hints = ""
    if any(clean_name(name) == "PAD" for name in unknown):
        hints += " 'pad' is reserved for padding."
    if biosemi:
        hints += (
            " The names look like BioSemi labels (A1, A2, A3, ...): positions on the cap, not 10-20 names. MNE's "
            "montages 'biosemi16' to 'biosemi256' say which is which."
        )
    if egi:
        hints += (
            " The names are EGI's numbers (E1, E2, ...), not 10-20 names: MNE's montages 'GSN-HydroCel-...' say which "
            "lies where."
        )
    if any(name.endswith("-0") for name in unknown):
        hints += " MNE adds -0, -1, ... to channels that share a name: keep one of each and rename it."
    return (
        f"{source}: {len(unknown)} channel name(s) not in NeuroLM's vocabulary: {join_words(parts)}.{hints} "
        "Rename them, leave them out, or pass unknown_channels='drop' (--unknown-channels drop) to drop and "
        "report them."
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
# Units
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


def join_words(parts: Iterable[str]) -> str:
    """The parts, separated by commas."""
    return ", ".join(parts)
