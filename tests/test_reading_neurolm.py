"""Channel names, units and files: what a recording is before anything is done to it."""

import json
import warnings

import pytest
from recording_files import RECORDINGS, SHARED, needs_recordings, needs_shared, write_edf

from neurolm_hf.processing_neurolm import EEGFeatureExtractor
from neurolm_hf.reading_neurolm import (
    CHANNEL_VOCABULARY,
    PAD_CHANNEL_ID,
    microvolts_per,
    open_recording,
    resolve_channel,
    resolve_montage,
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
    with pytest.raises(ValueError, match=r"sub.edf: 2 channel.*'CP 6' \(close to CP6.*'Q1'.*unknown_channels='drop'"):
        resolve_montage(["CZ", "CP 6", "Q1"], source="sub.edf")
    with pytest.raises(ValueError, match="'pad' is reserved"):
        resolve_montage(["CZ", "pad"])
    with pytest.raises(ValueError, match="MNE adds -0"):
        resolve_montage(["T8-P8-0", "T8-P8-1"])
    with pytest.raises(ValueError, match="not 'ignore'"):
        resolve_montage(["CZ"], unknown_channels="ignore")
    with pytest.raises(TypeError, match="row 1 has 7"):
        resolve_montage(["CZ", 7])


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
    with pytest.raises(ValueError, match=r"empty.bdf is not a valid BDF file"):
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
    assert opened(write_edf(bad, records=-1)).n_times == 400


@needs_recordings
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("S001R04_crlf.edf", "damaged: 10853 bytes more.*line ends"),
        ("Subject33_1_damaged.edf", "cut short: 98436 bytes fewer"),
        ("bids_pullstand_header_shifted.edf", "not a valid EDF file"),
        ("mne_old_test_raw_truncated.fif", "cannot be read as EEG"),
    ],
)
def test_damaged_recordings_raise(name, message):
    with pytest.raises(ValueError, match=f"(?s){name}.*{message}"):
        make_extractor()(RECORDINGS / "malformed" / name)


@needs_recordings
def test_good_recordings_of_other_projects_are_read():
    suffixes = {".edf", ".bdf", ".vhdr", ".raw", ".data"}
    folders = ("mne_python_io", "pyedflib", "edf_jl", "bdf_jl", "mne_bids_tiny")
    paths = [p for folder in folders for p in sorted((RECORDINGS / folder).rglob("*")) if p.suffix in suffixes]
    assert len(paths) > 20
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for path in paths:
            assert opened(path).n_times > 0
    said = [str(one.message) for one in caught if one.category is UserWarning]
    assert sum("1 stray byte" in message for message in said) == 1
    assert sum("discontinuous" in message for message in said) == 1
    assert len(said) == 2
