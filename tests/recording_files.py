"""Recordings for the tests: the real ones beside the repository, and EDF files written field by field."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest


SHARED = Path(__file__).resolve().parents[2] / "shared"
RECORDINGS = SHARED / "recordings"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs ../shared")
needs_recordings = pytest.mark.skipif(not RECORDINGS.is_dir(), reason="needs ../shared/recordings")


def make_eeg(channels=3, seconds=4.0, rate=200, seed=0):
    """Noise of 20 microvolts, (channels, samples)."""
    return np.random.default_rng(seed).normal(0, 20, (channels, round(seconds * rate)))


def write_edf(path, names=("EEG Fp1", "EEG Fp2"), seconds=4, rate=100, unit="uV", records=None, scale=1.0):
    """An EDF file from its definition, one record a second, of 20 microvolts of noise times `scale`."""
    n = len(names)

    def fields(values, width):
        return b"".join(str(value).ljust(width)[:width].encode("latin1") for value in values)

    head = fields(["0"], 8) + fields(["X X X X", "Startdate X X X X"], 80) + b"01.01.2000.00.00"
    head += fields([256 * (n + 1)], 8) + fields([""], 44) + fields([seconds if records is None else records, 1], 8)
    head += fields([n], 4) + fields(names, 16) + fields([""] * n, 80) + fields([unit] * n, 8)
    for value in (-3276.8, 3276.7, -32768, 32767):
        head += fields([value] * n, 8)
    head += fields([""] * n, 80) + fields([rate] * n, 8) + fields([""] * n, 32)
    data = np.round(make_eeg(n, seconds, rate) * 10 * scale).astype("<i2").reshape(n, seconds, rate)
    path.write_bytes(head + data.transpose(1, 0, 2).tobytes())
    return path


def write_mixed_edf(path, rates, seconds=4, units=None, kind=""):
    """An EDF file whose channels have rates of their own: {name: Hz}; a sine of 2 Hz and 20 microvolts in each.

    `kind` is the field that marks EDF+: 'EDF+C' or 'EDF+D'.
    """
    names, n = list(rates), len(rates)

    def fields(values, width):
        return b"".join(str(value).ljust(width)[:width].encode("latin1") for value in values)

    head = fields(["0"], 8) + fields(["X X X X", "Startdate X X X X"], 80) + b"01.01.2000.00.00"
    head += fields([256 * (n + 1)], 8) + fields([kind], 44) + fields([seconds, 1], 8) + fields([n], 4)
    head += fields(names, 16) + fields([""] * n, 80) + fields(units or ["uV"] * n, 8)
    for value in (-3276.8, 3276.7, -32768, 32767):
        head += fields([value] * n, 8)
    head += fields([""] * n, 80) + fields(rates.values(), 8) + fields([""] * n, 32)
    waves = [200 * np.sin(2 * np.pi * 2 * np.arange(seconds * rate) / rate) for rate in rates.values()]
    records = [wave.round().astype("<i2").reshape(seconds, -1) for wave in waves]
    path.write_bytes(head + np.concatenate(records, axis=1).tobytes())
    return path


def write_brainvision(path, data, names, rate=200, unit="µV", orientation="MULTIPLEXED", points=None):
    """A BrainVision triple (16 bits, 0.1 of `unit` a step) from (channels, samples); `path` is the .vhdr."""
    stem = path.stem
    counts = np.round(np.asarray(data) * 10).astype("<i2")
    path.with_suffix(".eeg").write_bytes((counts.T if orientation == "MULTIPLEXED" else counts).tobytes())
    lines = [f"Ch{i + 1}={name},,0.1,{unit}" for i, name in enumerate(names)]
    path.write_text(
        "Brain Vision Data Exchange Header File Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={stem}.eeg\nMarkerFile={stem}.vmrk\nDataFormat=BINARY\nDataOrientation={orientation}\n"
        f"NumberOfChannels={len(names)}\nSamplingInterval={1e6 / rate:g}\n"
        + (f"DataPoints={points}\n" if points else "")
        + "\n[Binary Infos]\nBinaryFormat=INT_16\n\n[Channel Infos]\n"
        + "\n".join(lines)
        + "\n",
        encoding="utf-8",
    )
    path.with_suffix(".vmrk").write_text(
        "Brain Vision Data Exchange Marker File, Version 1.0\n\n[Common Infos]\nCodepage=UTF-8\n"
        f"DataFile={stem}.eeg\n\n[Marker Infos]\nMk1=Stimulus,S  1,101,1,0\n",
        encoding="utf-8",
    )
    return path


def write_cnt(path, counts, names, rate=200, dtype="<i4", n_samples=None):
    """A Neuroscan CNT from (channels, samples) numbers, 0.1 microvolts each, with one event, '7', at sample 99."""
    counts = np.asarray(counts)
    width = np.dtype(dtype).itemsize
    n_channels, length = counts.shape
    head = bytearray(900)
    head[:12] = b"Version 3.0\0"
    head[225:247] = b"01/02/20  10:11:12\0\0\0\0"[:22]
    table = 900 + 75 * n_channels + counts.size * width
    for at, size, value in (
        (370, 2, n_channels),
        (376, 2, rate),
        (864, 4, length if n_samples is None else n_samples),
        (886, 4, table % 2**32),
    ):
        head[at : at + size] = int(value).to_bytes(size, "little")
    electrodes = b""
    for i, name in enumerate(names):
        one = bytearray(75)
        one[: len(name)] = name.encode()
        one[19:27] = np.array([np.cos(i), np.sin(i)], "<f4").tobytes()
        one[59:63] = one[71:75] = np.float32(np.sqrt(0.1 * 204.8)).tobytes()
        electrodes += bytes(one)
    event = (
        (7).to_bytes(2, "little") + b"\0\0" + (900 + 75 * n_channels + 100 * n_channels * width).to_bytes(4, "little")
    )
    tail = b"\x01" + len(event).to_bytes(4, "little") + bytes(4) + event
    path.write_bytes(bytes(head) + electrodes + counts.T.astype(dtype).tobytes() + tail)
    return path


def write_gdf(path, data, names, rate=200, unit="uV"):
    """A GDF 1.25 file from (channels, samples) in `unit`, 16 bits with 0.1 a step, one record a second."""
    n, seconds = len(names), data.shape[1] // rate

    def texts(values, width):
        return b"".join(str(value).ljust(width).encode() for value in values)

    def numbers(values, dtype):
        return np.array(values, dtype).tobytes()

    head = texts(["GDF 1.25"], 8) + texts(["X X", "X"], 80) + b"2020010210111200" + numbers([256 * (n + 1)], "<i8")
    head += bytes(44) + numbers([seconds], "<i8") + numbers([1, 1, n], "<u4")
    head += texts(names, 16) + texts([""] * n, 80) + texts([unit] * n, 8)
    head += numbers([-3276.8] * n + [3276.7] * n, "<f8") + numbers([-32768] * n + [32767] * n, "<i8")
    head += texts([""] * n, 80) + numbers([rate] * n + [3] * n, "<i4") + bytes(32 * n)
    counts = np.round(data * 10).astype("<i2").reshape(n, seconds, rate).transpose(1, 0, 2)
    path.write_bytes(head + counts.tobytes() + bytes(8))
    return path


def write_persyst(path, data, names, rate=200):
    """A Persyst pair (16 bits, 0.1 microvolts a step) from (channels, samples); `path` is the .lay."""
    path.with_suffix(".dat").write_bytes(np.round(data * 10).astype("<i2").T.tobytes())
    channels = "".join(f"{name}-Ref={i + 1}\n" for i, name in enumerate(names))
    path.write_text(
        f"[FileInfo]\nFile={path.stem}.dat\nFileType=Interleaved\nSamplingRate={rate}\nHeaderLength=0\nCalibration=0.1\n"
        f"WaveformCount={len(names)}\nDataType=0\n[Patient]\nFirst=X\nSex=F\nHand=R\nBirthDate=01/01/80\nTestDate=01/02/2020\n"
        f"TestTime=10:11:12\n[ChannelMap]\n{channels}[Comments]\n1.5,0,0,0,eyes closed\n"
    )
    return path


def write_set(path, data, names, rate=200, fdt=True):
    """An EEGLAB .set from (channels, samples) in microvolts, its data in an .fdt or inside."""
    from scipy.io import savemat

    data = np.asarray(data, dtype="<f4")
    if fdt:
        path.with_suffix(".fdt").write_bytes(data.T.tobytes())
    events = np.array([(1.0, "go")], dtype=[("latency", "O"), ("type", "O")])
    places = np.array([(name,) for name in names], dtype=[("labels", "O")])
    fields = {
        **{"setname": "x", "nbchan": len(names), "trials": 1, "pnts": data.shape[1], "srate": float(rate)},
        **{
            "xmin": 0.0,
            "xmax": data.shape[1] / rate,
            "chanlocs": places,
            "event": events,
            "epoch": [],
            "ref": "common",
        },
    }
    savemat(path, {**fields, "data": f"{path.stem}.fdt" if fdt else data, "chaninfo": {"nosedir": "+X"}})
    return path


def write_nihon(path, data, indices=(0, 1, 17), rate=200):
    """A Nihon Kohden .eeg from (channels, samples) in microvolts; `indices` 0, 1, 17 are FP1, FP2, CZ."""
    n, length = data.shape
    step = (3199.902 + 3200) / 65535
    head = bytearray(0x1800)
    head[:16] = head[0x81 : 0x81 + 16] = b"EEG-1100A V01.00"
    head[0x91], head[0x92:0x96], head[0x17FE] = 1, (0x400).to_bytes(4, "little"), 1
    head[0x400 + 17], head[0x400 + 18 : 0x400 + 22] = 1, (0x1800).to_bytes(4, "little")
    block = bytearray(0x27 + 10 * n)
    block[0x1A:0x1C], block[0x26] = rate.to_bytes(2, "little"), n
    block[0x1C:0x20] = (10 * length // rate).to_bytes(4, "little")
    for i, index in enumerate(indices):
        block[0x27 + 10 * i] = index
    counts = np.vstack([np.round(data / step), np.zeros(length)]).astype(int) + 0x8000
    path.write_bytes(bytes(head) + bytes(block) + counts.T.astype("<u2").tobytes())
    return path


def write_mff(path, data, rate=200):
    """An EGI .mff folder from (channels, samples) in microvolts; its channels are E1, E2, ..."""
    from mffpy import Writer
    from mffpy.bin_writer import BinWriter

    signal = BinWriter(sampling_rate=rate, data_type="EEG")
    signal.add_block(np.asarray(data, dtype=np.float32), offset_us=0)
    writer = Writer(str(path))
    writer.addxml("fileInfo", recordTime=datetime(2020, 1, 2, 10, 11, 12, tzinfo=UTC))
    writer.addbin(signal)
    writer.write()
    sensors = "".join(
        f"<sensor><name>E{i}</name><number>{i}</number><type>0</type><x>{i}</x><y>1</y><z>1</z></sensor>"
        for i in range(1, len(data) + 1)
    )
    layout = f"<name>net</name><sensors>{sensors}</sensors>"
    for name, inside in (("sensorLayout", layout), ("coordinates", f"<sensorLayout>{layout}</sensorLayout>")):
        content = f'<{name} xmlns="http://www.egi.com/{name}_mff">{inside}</{name}>'
        (path / f"{name}.xml").write_text(f'<?xml version="1.0" encoding="UTF-8"?>{content}')
    return path
