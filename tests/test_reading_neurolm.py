"""Channel names, units and files: what a recording is before anything is done to it."""

import json
import shutil
import sys
import warnings
from functools import partial
from pathlib import Path

import mne
import numpy as np
import pytest
from recording_files import (
    RECORDINGS,
    SHARED,
    make_eeg,
    needs_recordings,
    needs_shared,
    write_brainvision,
    write_cnt,
    write_edf,
    write_gdf,
    write_mff,
    write_mixed_edf,
    write_nihon,
    write_persyst,
    write_set,
)

from neurolm_hf.channels_neurolm import (
    CHANNEL_VOCABULARY,
    PAD_CHANNEL_ID,
    microvolts_per,
    resolve_channel,
    resolve_montage,
)
from neurolm_hf.processing_neurolm import EEGFeatureExtractor
from neurolm_hf.reading_neurolm import (
    RECORDING_SUFFIXES,
    excluded_rows,
    open_recording,
    read_edf_header,
    read_samples,
    recording_format,
)


def make_extractor(**options):
    """One that changes nothing but the unit, unless asked to."""
    return EEGFeatureExtractor(**{"do_filter": False, "do_notch": False, **options})


def opened(path):
    """The recording at a path, with what is to be said about it as warnings."""
    raw, notes = open_recording(path)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return raw


# Channel names ------------------------------------------------------------------------------------------------------


def test_the_vocabulary_has_its_139_names_and_padding_at_136():
    assert len(CHANNEL_VOCABULARY) == len(set(CHANNEL_VOCABULARY)) == 139
    assert PAD_CHANNEL_ID == 136
    assert CHANNEL_VOCABULARY[136] == "pad"


@needs_shared
def test_the_vocabulary_is_the_released_one():
    assert list(CHANNEL_VOCABULARY) == json.loads((SHARED / "facts" / "channel_vocabulary.json").read_text())


def test_every_name_of_the_vocabulary_is_itself_in_any_case():
    for name in CHANNEL_VOCABULARY:
        if name != "pad":
            assert {resolve_channel(n) for n in (name, name.upper(), name.lower(), f"EEG {name}-REF")} == {name}
            montage = resolve_montage([name])
            assert (montage.names, montage.ids.tolist()) == ([name], [CHANNEL_VOCABULARY.index(name)])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Fc5.", "FC5"),
        ("C5..", "C5"),
        ("EEG Fp1", "FP1"),
        ("POL Cz", "CZ"),
        ("EEG FP1-REF", "FP1"),
        ("eeg fp1-le", "FP1"),
        ("EEG A1-REF", "A1"),
        ("O2-AVG", "O2"),
        ("Pz - AR", "PZ"),
        ("EEG F4-M1", "F4"),
        ("EEG C3-M2", "C3"),
        ("T3-A2", "T3"),
        ("ftt9H", "FTT9h"),
        ("LM", "M1"),
        ("T3", "T3"),
        ("T4", "T4"),
        ("T5", "T5"),
        ("T6", "T6"),
        ("EEG T5-REF", "T5"),
        ("T7", "T7"),
        ("Fp1 - F7", "FP1-F7"),
        ("F7-T3", "F7-T7"),
        ("T3-T5", "T7-P7"),
        ("EEG T5-O1", "P7-O1"),
        ("F8-T4", "F8-T8"),
        ("T4-T6", "T8-P8"),
        ("T6 - O2", "P8-O2"),
        ("FP1\u2013F3", "FP1-F3"),
        ("F3-CZ", None),
        ("F7-FP1", None),
        ("FP1-F7-F3", None),
        ("A2-A1", None),
        ("EEG A2-A1", None),
        ("ECG", None),
        ("pad", None),
        ("PAD", None),
        ("", None),
    ],
)
def test_names_are_resolved(name, expected):
    assert resolve_channel(name) == expected


NON_EEG = """ECG|ECG ECG|EEG EKG1-REF|EKG|EOG|EOG E1-M2|VEOG|HEOG|VEO|HEO|EOG left|EMG chin|EMG-REF|RESP
Resp oro-nasal|STATUS|STI 014|STI014|Trigger|DIG DTRIG|PHOTIC-REF|Photic|Event|EDF Annotations|BDF Annotations|SpO2
SaO2|DC1|IBI|BURSTS|EEG LOC-REF|EEG ROC-REF|Pulse|EEG A2-A1|M1-M2"""


@pytest.mark.parametrize("name", NON_EEG.replace("\n", "|").split("|"))
def test_what_is_no_eeg_is_left_out_and_reported(name):
    montage = resolve_montage(["CZ", name])
    assert montage.names == ["CZ"]
    assert [channel.original for channel in montage.dropped] == [name]
    assert "not EEG" in montage.dropped[0].reason or "reference" in montage.dropped[0].reason


def test_a_montage_keeps_rows_and_ids_together():
    montage = resolve_montage(["ECG", "EEG Cz", "bogus", "EEG T3"], unknown_channels="drop")
    assert montage.rows == [1, 3]
    assert montage.names == ["CZ", "T3"]
    assert montage.ids.tolist() == [CHANNEL_VOCABULARY.index("CZ"), CHANNEL_VOCABULARY.index("T3")]
    assert [(c.original, c.reason) for c in montage.dropped][1] == ("bogus", "unknown name")


def test_unknown_names_raise_with_the_closest_names():
    with pytest.raises(
        ValueError,
        match=r"sub.edf: 2 channel.*'CP 6' \(close to CP6.*'Q1'.*unknown_channels='drop' \(--unknown-channels drop\)",
    ):
        resolve_montage(["CZ", "CP 6", "Q1"], source="sub.edf")
    with pytest.raises(ValueError, match="'pad' is reserved"):
        resolve_montage(["CZ", "pad"])
    with pytest.raises(ValueError, match="MNE adds -0"):
        resolve_montage(["T8-P8-0", "T8-P8-1"])
    with pytest.raises(ValueError, match="not 'ignore'"):
        resolve_montage(["CZ"], unknown_channels="ignore")
    with pytest.raises(TypeError, match="row 1 has 7"):
        resolve_montage(["CZ", 7])


def test_known_names_that_a_model_has_no_row_for():
    names = ["CZ", "EEG C3-P3", "I2"]
    assert resolve_montage(names).names == ["CZ", "C3-P3", "I2"]
    with pytest.raises(
        ValueError, match=r"sub.edf: this model has no row for 2 channel\(s\): 'EEG C3-P3', 'I2'\. .*128"
    ):
        resolve_montage(names, source="sub.edf", known_channels=128)
    with pytest.raises(ValueError, match=r"1 channel name\(s\) not in NeuroLM's vocabulary: 'bogus'"):
        resolve_montage([*names, "bogus"], known_channels=128)
    montage = resolve_montage([*names, "bogus"], unknown_channels="drop", known_channels=128)
    assert montage.names == ["CZ"]
    no_row = "a channel that this model has no row for"
    assert [channel.reason for channel in montage.dropped] == [no_row, no_row, "unknown name"]


def test_two_rows_of_one_name_raise_naming_both():
    with pytest.raises(ValueError, match=r"'EEG Fp1' \(row 0\) and 'FP1-REF' \(row 2\) are both channel FP1"):
        resolve_montage(["EEG Fp1", "CZ", "FP1-REF"])


def test_a_montage_without_eeg_raises():
    with pytest.raises(ValueError, match=r"no EEG channel is left .*'ECG'"):
        resolve_montage(["ECG", "EMG"])


def test_biosemi_labels_are_not_taken_for_ear_lobes_or_central_electrodes():
    names = ["A1", "A2", "A3", "A4", "A5", "C3"]
    with pytest.raises(ValueError, match="BioSemi labels"):
        resolve_montage(names)
    assert resolve_montage([*names, "FZ"], unknown_channels="drop").names == ["FZ"]


def test_the_numbers_of_egi_are_not_taken_for_biosemi_labels():
    with pytest.raises(ValueError, match=r"EGI's numbers \(E1, E2, ...\).*GSN-HydroCel") as caught:
        resolve_montage([f"E{number}" for number in range(1, 65)])
    assert "BioSemi" not in str(caught.value)


# Units --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        *(("V", 1e6), ("v", 1e6), ("volts", 1e6), ("mV", 1e3), ("millivolt", 1e3), ("uV", 1), ("UV", 1), ("µV", 1)),
        *(("μV", 1), ("microvolts", 1), ("nV", 1e-3), ("0.1mV", 100), ("0.1 mV", 100), ("1e-7 V", 0.1), ("10 uV", 10)),
    ],
)
def test_units(unit, factor):
    assert microvolts_per(unit) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("unit", ["", "A", "kV", "0 mV", "n/a", "uA", "u", "-1 V"])
def test_unknown_units_raise(unit):
    with pytest.raises(ValueError, match="is unknown: use 'V'"):
        microvolts_per(unit)


def test_a_unit_is_a_string():
    with pytest.raises(TypeError, match="not 1000"):
        microvolts_per(1000)


# Files --------------------------------------------------------------------------------------------------------------


def test_bad_paths_raise(tmp_path):
    with pytest.raises(ValueError, match=r"gone.edf: there is no such file"):
        opened(tmp_path / "gone.edf")
    with pytest.raises(ValueError, match="is a folder"):
        opened(tmp_path)
    text = tmp_path / "notes.edf"
    text.write_text("these are my notes\n" * 100)
    with pytest.raises(ValueError, match=r"notes.edf is not a valid EDF file"):
        opened(text)
    empty = tmp_path / "empty.bdf"
    empty.touch()
    with pytest.raises(ValueError, match=r"empty.bdf is empty. Get the file again"):
        opened(empty)
    other = tmp_path / "table.fif"
    other.write_text("1,2,3")
    with pytest.raises(ValueError, match=r"table.fif cannot be read as EEG"):
        opened(other)


def test_edf_size_is_checked_against_the_header(tmp_path):
    good = write_edf(tmp_path / "good.edf")
    assert opened(good).get_data().shape == (2, 400)

    content, record = good.read_bytes(), 2 * 100 * 2
    bad = tmp_path / "bad.edf"
    bad.write_bytes(content[:-record])
    with pytest.raises(ValueError, match=f"bad.edf is cut short: {record} bytes fewer"):
        opened(bad)
    bad.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="cut short: 1 bytes fewer"):
        opened(bad)
    bad.write_bytes(content + bytes(record))
    with pytest.raises(ValueError, match=f"damaged: {record} bytes more"):
        opened(bad)
    bad.write_bytes(content + b"\n")
    with pytest.warns(UserWarning, match="1 stray byte"):
        assert opened(bad).n_times == 400
    with pytest.warns(UserWarning, match="1 stray byte"):
        prepared = make_extractor().prepare(bad)[0]
    assert any("stray" in warning for warning in prepared.report.warnings)
    bad.write_bytes(content.replace(b"\n", b"\r\n"))
    assert 0 < bad.stat().st_size - len(content) < record, "few enough to pass for stray bytes"
    with pytest.raises(ValueError, match="line ends"):
        opened(bad)
    with pytest.raises(ValueError, match="0 data records"):
        opened(write_edf(bad, seconds=0))
    # -1 marks a recording that was never closed
    assert open_recording(write_edf(bad, records=-1))[0].n_times == 400


@needs_recordings
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("S001R04_crlf.edf", "damaged: 10853 bytes more.*line ends"),
        ("Subject33_1_damaged.edf", "cut short: 98436 bytes fewer"),
        ("bids_pullstand_header_shifted.edf", "not a valid EDF file.*Get the file again"),
        ("mne_old_test_raw_truncated.fif", "cannot be read as EEG.*Get the file again"),
    ],
)
def test_damaged_recordings_raise(name, message):
    with pytest.raises(ValueError, match=f"(?s){name}.*{message}"):
        make_extractor()(RECORDINGS / "malformed" / name)


@needs_recordings
def test_good_recordings_of_other_projects_are_read():
    folders = ("mne_python_io", "pyedflib", "edf_jl", "bdf_jl", "mne_bids_tiny")
    found = [path for folder in folders for path in sorted((RECORDINGS / folder).rglob("*"))]
    paths = [path for path in found if path.suffix in RECORDING_SUFFIXES]
    assert len(paths) > 30
    said = {}
    for path in paths:
        raw, notes = open_recording(path)
        assert raw.n_times > 0
        assert not raw.preload
        if notes:
            said[path.name] = " ".join(notes)
    assert "1 stray byte" in said.pop("test_uneven_samp.edf") + said.pop("test_uneven_samp.edf", "")
    for name, words in {
        "evt.bdf": "Omitted 624 annotation",
        "testv2.vhdr": "Omitted 3 annotation",
        "test_merged.edf": "discontinuous",
        "duplicate_channel_labels.edf": "not unique, found duplicates for: {'EEG F1-Ref'}",
        "test.vhdr": "unit 'BS' of CP5 is no voltage",
        "test_units.vhdr": "unit 'µS' of CP6 is no voltage",
        "test_partially_disabled_hw_filter.vhdr": "'misc'",
        "test_generator.bdf": "different rates (500 Hz: 'ramp 7Hz'; 800 Hz: 'square 13Hz'",
        "test_generator_datarec_generator_0_5.bdf": "resamples the slower ones to 2000 Hz",
        "test_generator_datarec_generator_2.bdf": "resamples the slower ones to 500 Hz",
    }.items():
        assert words in said.pop(name)
    assert not said


# Every format that can be written here ------------------------------------------------------------------------------

NAMES = ["Fp1", "Fp2", "Cz"]


def check_reads_as(path, expected, step, names=NAMES, rate=200):
    """The recording has these names and microvolts, to within half a step, whichever way it is read."""
    raw, notes = open_recording(path)
    assert (raw.ch_names, raw.info["sfreq"], raw.preload) == (names, rate, False)
    whole = read_samples(raw, range(len(names)), 0, raw.n_times, "x")
    assert (whole.dtype, whole.shape) == (np.float64, expected.shape)
    assert np.abs(whole * 1e6 - expected).max() <= step
    part = read_samples(raw, [2, 0], 333, 477, "x")
    assert np.array_equal(part, whole[[2, 0], 333:477])
    return raw, notes


WRITERS = {
    "a.vhdr": write_brainvision,
    "vectorized.vhdr": partial(write_brainvision, orientation="VECTORIZED", points=800),
    "a.gdf": write_gdf,
    "a.lay": write_persyst,
    "a.set": write_set,
    "inside.set": partial(write_set, fdt=False),
}


@pytest.mark.parametrize("name", WRITERS)
def test_formats(tmp_path, name):
    data = make_eeg(3, 4)
    names = ["FP1", "FP2", "CZ"] if name == "a.lay" else NAMES  # MNE's reader writes them so
    raw, notes = check_reads_as(WRITERS[name](tmp_path / name, data, NAMES), data, 0.051, names)
    assert notes == []
    events = {".vhdr": ["Stimulus/S  1"], ".lay": ["eyes closed"], ".set": ["go"], ".gdf": []}
    assert list(raw.annotations.description) == events[Path(name).suffix]


@pytest.mark.parametrize("name", ["a_raw.fif", "a_raw.fif.gz"])
def test_fif(tmp_path, name):
    data = make_eeg(3, 4)
    mne.io.RawArray(data * 1e-6, mne.create_info(NAMES, 200, "eeg"), verbose="ERROR").save(tmp_path / name)
    check_reads_as(tmp_path / name, data, 1e-4)


def test_edf_and_bdf_of_another_writer(tmp_path):
    edfio = pytest.importorskip("edfio")
    data = make_eeg(3, 4)
    for name, make, signal in (("a.edf", edfio.Edf, edfio.EdfSignal), ("a.bdf", edfio.Bdf, edfio.BdfSignal)):
        rows = [
            signal(row, 200, label=label, physical_dimension="uV", physical_range=(-500, 500))
            for row, label in zip(data, NAMES, strict=True)
        ]
        make(rows, annotations=[edfio.EdfAnnotation(1.5, None, "blink")]).write(tmp_path / name)
        raw, notes = check_reads_as(tmp_path / name, data, 0.02)
        assert (list(raw.annotations.description), notes) == (["blink"], [])
        assert recording_format(tmp_path / name) == name[2:].upper()
        assert read_edf_header(tmp_path / name).kind == f"{name[2:].upper()}+C"


def test_nihon_kohden_and_egi(tmp_path, capsys):
    data = make_eeg(3, 4)
    _, notes = check_reads_as(write_nihon(tmp_path / "a.eeg", data), data, 0.15, ["FP1", "FP2", "CZ"])
    assert recording_format(tmp_path / "a.eeg") == "Nihon Kohden"
    assert any("21E containing channel definitions; Default channel names are chosen" in note for note in notes)
    _, notes = check_reads_as(write_mff(tmp_path / "a.mff", data), data, 1e-4, ["E1", "E2", "E3"])
    assert (notes, recording_format(tmp_path / "a.mff")) == ([], "EGI MFF")
    assert capsys.readouterr().out == "", "mffpy prints, and a program's output is not its place"


def test_eximia(tmp_path):
    path = tmp_path / "a.nxe"
    counts = np.arange(64 * 1450).reshape(1450, 64) % 1000 - 500
    path.write_bytes(counts.astype("<i2").tobytes())
    raw, _ = open_recording(path)
    assert (len(raw.ch_names), raw.info["sfreq"], raw.n_times) == (64, 1450, 1450)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"a.nxe.* damaged or cut short: 185597 bytes are no whole number"):
        open_recording(path)


# Neuroscan and ANT CNT ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<i2", "<i4"])
@pytest.mark.parametrize("n_samples", [None, 5, 0])
def test_a_cnt_is_read_in_its_own_width(tmp_path, dtype, n_samples):
    names = ["Fp1", "Fp2", "Cz", "VEOG-L"]
    data = make_eeg(4, 4)
    path = write_cnt(tmp_path / "a.cnt", data * 10, names, dtype=dtype, n_samples=n_samples)
    raw, notes = check_reads_as(path, data, 0.101, names)
    assert (list(raw.annotations.description), raw.annotations.onset[0]) == (["7"], 0.495)
    assert raw.info["bads"] == [], "MNE takes the fifth letter of a label for the mark of a bad channel"
    if n_samples is None:
        assert notes == []
    else:
        bits = 16 if dtype == "<i2" else 32
        assert f"counts {n_samples} samples" in notes[0]
        assert f"{bits} bits, and all 800 samples" in notes[0]


def test_a_fif_with_damaged_channels_raises(tmp_path):
    path = tmp_path / "night_raw.fif"
    info = mne.create_info(["C3", "C4", "Oz"], 200, "eeg")
    mne.io.RawArray(make_eeg(), info, verbose=False).save(path, verbose=False)
    content = bytearray(path.read_bytes())
    # the kind of a channel stands 72 bytes before its name
    kind = content.index(b"Oz\0") - 72
    assert content[kind : kind + 4] == b"\0\0\0\2"
    content[kind] = 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as EEG, it may be damaged"):
        open_recording(path)


def test_a_damaged_cnt_raises(tmp_path):
    path = write_cnt(tmp_path / "a.cnt", make_eeg(3, 4) * 10, NAMES)
    content = path.read_bytes()
    path.write_bytes(content[:-1000])
    with pytest.raises(ValueError, match=r"a.cnt is cut short: 983 bytes fewer"):
        open_recording(path)
    path.write_bytes(content[:500])
    with pytest.raises(ValueError, match="cut short or damaged"):
        open_recording(path)
    path.write_bytes(b"not a cnt" * 200)
    with pytest.raises(ValueError, match="begins neither as Neuroscan's nor as ANT's"):
        open_recording(path)
    flat = write_cnt(tmp_path / "flat.cnt", np.zeros((4, 800)), [*NAMES, "Pz"], dtype="<i2", n_samples=5)
    with pytest.raises(ValueError, match="nothing tells whether its numbers have 16 or 32 bits"):
        open_recording(flat)


# A part, a package or a file that is missing ------------------------------------------------------------------------


def test_parts_lead_to_their_header(tmp_path):
    write_brainvision(tmp_path / "a.vhdr", make_eeg(3, 4), NAMES)
    for suffix in (".eeg", ".vmrk"):
        raw, notes = open_recording(tmp_path / f"a{suffix}")
        assert (raw.n_times, recording_format(tmp_path / f"a{suffix}")) == (800, "BrainVision")
        assert notes == [f"{tmp_path / f'a{suffix}'} is a part of a.vhdr, which is opened."]
    write_set(tmp_path / "b.set", make_eeg(3, 4), NAMES)
    assert open_recording(tmp_path / "b.fdt")[0].n_times == 800
    write_persyst(tmp_path / "c.lay", make_eeg(3, 4), NAMES)
    assert open_recording(tmp_path / "c.dat")[0].n_times == 800
    (tmp_path / "a.vhdr").unlink()
    with pytest.raises(
        ValueError, match=r"a.eeg is a part of a BrainVision .* a.vhdr is missing, nor .* Nihon Kohden"
    ):
        open_recording(tmp_path / "a.eeg")
    (tmp_path / "nk.eeg").write_bytes(b"EEG-1100A V01.00" + bytes(300))
    assert recording_format(tmp_path / "nk.eeg") == "Nihon Kohden"
    with pytest.raises(ValueError, match=r"nk.eeg cannot be read as EEG.*Nihon Kohden"):
        open_recording(tmp_path / "nk.eeg")


@pytest.mark.parametrize(
    ("file", "part", "message"),
    [
        ("a.vhdr", "a.eeg", r"a.vhdr: its data file 'a.eeg' is missing"),
        ("a.lay", "a.dat", r"a.lay: its data file 'a.dat' is missing"),
        ("a.set", "a.fdt", r"a.set cannot be read as EEG.*\.fdt"),
    ],
)
def test_a_missing_data_file_is_named(tmp_path, file, part, message):
    WRITERS[file](tmp_path / file, make_eeg(3, 4), NAMES)
    (tmp_path / part).unlink()
    with pytest.raises(ValueError, match=message):
        open_recording(tmp_path / file)


def test_missing_markers_are_noted(tmp_path):
    path = write_brainvision(tmp_path / "a.vhdr", make_eeg(3, 4), NAMES)
    path.with_suffix(".vmrk").unlink()
    raw, notes = open_recording(path)
    assert len(raw.annotations) == 0
    assert "'a.vmrk' not found" in notes[0]


@pytest.mark.parametrize(
    ("name", "content", "package"),
    [
        ("a.cnt", b"RIFF" + bytes(400), "antio"),
        ("a.cdt", bytes(400), "curryreader"),
        ("a.set", b"MATLAB 7.3 MAT-file" + bytes(600), "pymatreader"),
        ("a.mff", None, "mffpy"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, name, content, package):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read as EEG"):
        open_recording(path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{name} \(.*\) needs {package}: pip install {package}$"):
        open_recording(path)


@needs_recordings
def test_a_bids_dataset_has_its_say(tmp_path, monkeypatch):
    root = tmp_path / "set"
    shutil.copytree(RECORDINGS / "mne_bids_tiny", root)
    path = root / "sub-01/ses-eeg/eeg/sub-01_ses-eeg_task-rest_eeg.vhdr"
    table = path.with_name("sub-01_ses-eeg_task-rest_channels.tsv")
    lines = table.read_text().splitlines()
    columns = lines[0].split("\t")
    cells = lines[1].split("\t")
    name, cells[columns.index("status")] = cells[0], "bad"
    other = lines[2].split("\t")
    other[columns.index("type")] = "EOG"
    table.write_text("\n".join([lines[0], "\t".join(cells), "\t".join(other), *lines[3:]]) + "\n")
    raw, _ = open_recording(path)
    excluded = excluded_rows(raw)
    assert excluded[0] == "marked bad in info['bads']"
    assert excluded[1] == "MNE channel type 'eog'"
    assert {row for row, line in enumerate(lines[1:]) if "\tbad" in line} | {0} == {
        row for row, reason in excluded.items() if "bad" in reason
    }
    assert raw.ch_names[:2] == [name, other[0]]
    assert len(raw.annotations) > 0
    monkeypatch.setitem(sys.modules, "mne_bids", None)
    with pytest.raises(ImportError, match=r"\(BIDS\) needs mne-bids: pip install mne-bids$"):
        open_recording(path)
    (root / "dataset_description.json").unlink()
    assert open_recording(path)[0].info["bads"] == []


def test_the_units_of_a_bids_dataset_count_where_the_file_has_none(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.8.0"}')
    folder = tmp_path / "sub-01" / "eeg"
    folder.mkdir(parents=True)
    path = write_edf(folder / "sub-01_task-rest_eeg.edf", names=("Fp1", "Fp2"), unit="")
    (folder / "sub-01_task-rest_channels.tsv").write_text("name\ttype\tunits\nFp1\tEEG\tuV\nFp2\tEEG\tn/a\n")
    raw, notes = open_recording(path)
    data = read_samples(raw, [0, 1], 0, 400, "x")
    assert np.abs(data[0] * 1e6 - make_eeg(2, 4, 100)[0]).max() < 0.06
    assert np.abs(data[1] - make_eeg(2, 4, 100)[1]).max() < 0.06, "MNE's volts"
    assert any("'' of Fp1 is read" in note or "unit 'uV' of Fp1" in note for note in notes)
    assert any("unit 'n/a' of Fp2 is no voltage" in note for note in notes)


# Where MNE would be silently wrong ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "factor"), [("UV", 1.0), ("nV", 1e-3), ("microV", 1.0), ("0.1mV", 100.0), ("V", 1e6)]
)
def test_units_that_only_we_know_are_corrected(tmp_path, unit, factor):
    expected = make_eeg(2, 4, 100) * factor
    raw, notes = open_recording(write_edf(tmp_path / "a.edf", unit=unit))
    assert np.allclose(read_samples(raw, [0, 1], 0, 400, "x") * 1e6, expected, atol=0.06 * factor)
    assert np.allclose(raw.copy().pick([1]).get_data() * 1e6, expected[1:], atol=0.06 * factor)
    said = f"{tmp_path / 'a.edf'}: the unit {unit!r} of EEG Fp1, EEG Fp2 is read as {factor:g} uV, which MNE by itself"
    assert [note.startswith(said) for note in notes] == ([] if unit == "V" else [True])


@pytest.mark.parametrize(
    ("unit", "said"), [("", "no unit is given for"), ("n/a", "unit 'n/a' of"), ("mmHg", "unit 'mmHg'")]
)
def test_units_that_nobody_knows_are_noted(tmp_path, unit, said):
    raw, notes = open_recording(write_edf(tmp_path / "a.edf", names=("Fp1", "SpO2"), unit=unit))
    assert np.abs(raw.get_data()[0] - make_eeg(2, 4, 100)[0]).max() < 0.06, "MNE's volts"
    (note,) = notes
    assert said in note
    assert "SpO2" not in note
    assert note.endswith("MNE takes the numbers for volts. If they are microvolts, pass unit='uV' (--unit uV).")


def test_a_mu_in_utf8_is_a_mu(tmp_path):
    path = write_edf(tmp_path / "a.edf", unit="uV")
    path.write_bytes(path.read_bytes().replace(b"uV      ", "µV     ".encode()))
    raw, _ = open_recording(path)
    assert np.abs(raw.get_data() * 1e6 - make_eeg(2, 4, 100)).max() < 0.06


@pytest.mark.parametrize(("unit", "factor"), [("UV", 1.0), ("microvolt", 1.0), ("mV", 1e3)])
def test_brainvision_units(tmp_path, unit, factor):
    data = make_eeg(3, 4)
    raw, notes = open_recording(write_brainvision(tmp_path / "a.vhdr", data, NAMES, unit=unit))
    assert raw.get_channel_types() == ["eeg"] * 3
    assert np.abs(raw.get_data() * 1e6 - data * factor).max() < 0.051 * factor
    assert ["is read as 1 uV" in note for note in notes] == ([] if unit == "mV" else [True])


def test_brainvision_units_that_nobody_knows(tmp_path):
    raw, notes = open_recording(write_brainvision(tmp_path / "a.vhdr", make_eeg(3, 4), NAMES, unit="n/a"))
    assert raw.get_channel_types() == ["misc"] * 3
    assert "unit 'n/a' of Fp1, Fp2, Cz is no voltage: MNE makes it channel type 'misc'" in notes[0]


def test_gdf_units(tmp_path):
    data = make_eeg(3, 4)
    raw, notes = open_recording(write_gdf(tmp_path / "a.gdf", data, NAMES, unit="mV"))
    assert np.abs(raw.get_data() * 1e3 - data).max() < 0.051
    assert "unit 'mV' of Fp1, Fp2, Cz is read as 1000 uV" in notes[0]
    assert "no unit is given" in open_recording(write_gdf(tmp_path / "b.gdf", data, NAMES, unit=""))[1][0]


def test_slower_eeg_keeps_its_own_rate(tmp_path):
    path = write_mixed_edf(tmp_path / "a.edf", {"EEG Cz": 100, "ECG": 200, "EEG Pz": 100, "Resp": 25})
    raw, (note,) = open_recording(path)
    assert (raw.ch_names, raw.info["sfreq"], raw.n_times) == (["EEG Cz", "EEG Pz"], 100, 400)
    expected = 20 * np.sin(2 * np.pi * 2 * np.arange(400) / 100)
    assert np.abs(read_samples(raw, [1], 150, 250, "x") * 1e6 - expected[150:250]).max() < 0.06
    assert "than the EEG (100 Hz): 'ECG' (200 Hz), 'Resp' (25 Hz)" in note


def test_eeg_of_several_rates_is_noted(tmp_path):
    raw, (note,) = open_recording(write_mixed_edf(tmp_path / "a.edf", {"Cz": 100, "ECG": 50, "Pz": 200, "EEG x": 100}))
    assert raw.info["sfreq"] == 200
    assert "EEG channels are sampled at different rates (100 Hz: 'Cz', 'EEG x'; 200 Hz: 'Pz')" in note


def test_annotations_alone_are_no_recording(tmp_path):
    path = write_mixed_edf(tmp_path / "a.edf", {"EDF Annotations": 60}, kind="EDF+C")
    with pytest.raises(ValueError, match=r"a.edf holds annotations only, no signals"):
        open_recording(path)


def test_a_wrong_suffix_is_told(tmp_path):
    path = write_edf(tmp_path / "a.bdf")
    with pytest.raises(ValueError, match=r"a.bdf is EDF by its content.*Rename it to .edf"):
        open_recording(path)


def test_discontinuous_and_unclosed_and_doubled(tmp_path):
    _, notes = open_recording(write_mixed_edf(tmp_path / "a.edf", {"Cz": 100}, kind="EDF+D"))
    assert "discontinuous" in notes[0]
    _, notes = open_recording(write_edf(tmp_path / "b.edf", records=-1))
    assert "never closed by its recorder: all 4 whole records" in notes[0]
    raw, notes = open_recording(write_edf(tmp_path / "c.edf", names=("Cz", "Cz")))
    assert raw.ch_names == ["Cz-0", "Cz-1"]
    assert "not unique, found duplicates for: {'Cz'}" in notes[0]


@pytest.mark.parametrize("points", [None, 800])
def test_a_damaged_brainvision_file_raises(tmp_path, points):
    path = write_brainvision(tmp_path / "a.vhdr", make_eeg(3, 4), NAMES, points=points)
    data = path.with_suffix(".eeg")
    content = data.read_bytes()
    data.write_bytes(content[:-5])
    with pytest.raises(ValueError, match=r"a.vhdr: its data \(a.eeg\) are (damaged or )?cut short"):
        open_recording(path)
    crlf = content.replace(b"\n", b"\r\n")
    assert len(crlf) % 6 != 0
    data.write_bytes(crlf)
    with pytest.raises(ValueError, match="conversion of line ends"):
        open_recording(path)
    data.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.vhdr.*(no samples|cut short)"):
        open_recording(path)


def test_brainvision_data_beyond_the_header(tmp_path):
    path = write_brainvision(tmp_path / "a.vhdr", make_eeg(3, 4), NAMES, points=700)
    raw, (note,) = open_recording(path)
    assert (raw.n_times, "100 samples more than its header says" in note) == (800, True)
    path = write_brainvision(tmp_path / "b.vhdr", make_eeg(3, 4), NAMES, orientation="VECTORIZED", points=700)
    with pytest.raises(ValueError, match="where each begins is lost"):
        open_recording(path)


@pytest.mark.parametrize(("name", "part"), [("a.set", "a.fdt"), ("a.gdf", "a.gdf"), ("a.lay", "a.dat")])
def test_files_cut_short_raise(tmp_path, name, part):
    path = WRITERS[name](tmp_path / name, make_eeg(3, 4), NAMES)
    content = (tmp_path / part).read_bytes()
    (tmp_path / part).write_bytes(content[:-1001])
    with pytest.raises(ValueError, match=rf"{name}.*(cut short|damaged)"):
        open_recording(path)


@pytest.mark.parametrize("cut", [100, 4000, 15000])
def test_a_fif_cut_short_raises(tmp_path, cut):
    path = tmp_path / "a_raw.fif"
    raw = mne.io.RawArray(make_eeg(3, 20) * 1e-6, mne.create_info(NAMES, 200, "eeg"), verbose="ERROR")
    raw.save(path, buffer_size_sec=1, verbose="ERROR")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=r"a_raw.fif (cannot be read|is cut short).*Get the file again"):
        open_recording(path)


def test_a_fif_cut_between_two_buffers_raises(tmp_path):
    path = tmp_path / "a_raw.fif"
    raw = mne.io.RawArray(make_eeg(3, 20) * 1e-6, mne.create_info(NAMES, 200, "eeg"), verbose="ERROR")
    raw.save(path, buffer_size_sec=5, verbose="ERROR")
    # four buffers of three channels, 1000 float32 each, with a tag of 16 bytes before; kind 300, type 4
    tag = bytes.fromhex("0000012c00000004") + (3 * 1000 * 4).to_bytes(4, "big")
    content = path.read_bytes()
    assert content.count(tag) == 4
    path.write_bytes(content[: content.rindex(tag)])
    with pytest.raises(ValueError, match=r"a_raw.fif is cut short or damaged: .*Get the file again"):
        open_recording(path)


def _gdf_with_events(path, mode):
    """The GDF file of `write_gdf` with two events in its table: at samples 3 and 10, of type 7."""
    write_gdf(path, make_eeg(3, 4), NAMES)
    events = np.array([3, 10], "<u4").tobytes() + np.array([7, 7], "<u2").tobytes()
    events += (np.zeros(2, "<u2").tobytes() + np.ones(2, "<u4").tobytes()) if mode == 3 else b""
    path.write_bytes(path.read_bytes()[:-8] + bytes([mode, 200, 0, 0, 2, 0, 0, 0]) + events)
    return path


@pytest.mark.parametrize("mode", [1, 3])
def test_a_gdf_is_checked_against_its_header(tmp_path, mode):
    path = _gdf_with_events(tmp_path / "a.gdf", mode)
    raw, notes = open_recording(path)
    assert (raw.n_times, notes, list(raw.annotations.description)) == (800, [], ["7", "7"])
    content = path.read_bytes()
    path.write_bytes(content + bytes(100))
    assert open_recording(path)[1] == [], "more than the header says is no harm"
    path.write_bytes(content[:-5])
    with pytest.raises(
        ValueError, match=r"a.gdf is cut short: 5 bytes fewer than its header says. Get the file again"
    ):
        open_recording(path)
    assert content.count(b"\n") > 2
    path.write_bytes(content.replace(b"\n", b"\r\n"))
    with pytest.raises(ValueError, match=r"a.gdf is damaged: .*line ends .*Get the file again as binary"):
        open_recording(path)


def test_damage_met_while_reading_names_the_seconds(tmp_path):
    path = write_brainvision(tmp_path / "a.vhdr", make_eeg(3, 4), NAMES)
    raw, _ = open_recording(path)
    path.with_suffix(".eeg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"a.vhdr cannot be read from 1.0 to 2.5 s, it may be damaged"):
        read_samples(raw, [0], 200, 500, str(path))
    with pytest.raises(ValueError, match=r"x cannot be read from 3.5 to 4.5 s"):
        read_samples(raw, [0], 700, 900, "x")
