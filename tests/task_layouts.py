"""The original folder layout of each task in miniature: EDF and CNT files with the channel names of the originals, and
their label files. Every function fills a folder and returns it."""

import struct

import numpy as np
from recording_files import make_eeg, write_edf


TUH_ELECTRODES = (
    *("FP1", "FP2", "F3", "F4", "C3", "C4", "P3", "P4", "O1", "O2", "F7", "F8"),
    *("T3", "T4", "T5", "T6", "A1", "A2", "FZ", "CZ", "PZ"),
)
TUH_NAMES = (*(f"EEG {name}-REF" for name in TUH_ELECTRODES), "EEG EKG1-REF", "EEG T1-REF", "EEG T2-REF", "PHOTIC-REF")
SEED_ELECTRODES = (
    *("FP1", "FPZ", "FP2", "AF3", "AF4", "F7", "F5", "F3", "F1", "FZ", "F2", "F4", "F6", "F8", "FT7", "FC5"),
    *("FC3", "FC1", "FCZ", "FC2", "FC4", "FC6", "FT8", "T7", "C5", "C3", "C1", "CZ", "C2", "C4", "C6", "T8"),
    *("TP7", "CP5", "CP3", "CP1", "CPZ", "CP2", "CP4", "CP6", "TP8", "P7", "P5", "P3", "P1", "PZ", "P2", "P4"),
    *("P6", "P8", "PO7", "PO5", "PO3", "POZ", "PO4", "PO6", "PO8", "CB1", "O1", "OZ", "O2", "CB2"),
)
SEED_NAMES = (*SEED_ELECTRODES[:32], "M1", *SEED_ELECTRODES[32:40], "M2", *SEED_ELECTRODES[40:], "VEO", "HEO")
HMC_NAMES = (
    *("EEG F4-M1", "EEG C4-M1", "EEG O2-M1", "EEG C3-M2"),
    *("EMG chin", "EOG E1-M2", "EOG E2-M2", "ECG"),
)


def put_edf(folder, key, names, seconds, rate=200):
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_edf(path, names, seconds=seconds, rate=rate)


def put_text(folder, key, text):
    path = folder / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_cnt(path, names, seconds, rate):
    """A Neuroscan file of 32-bit values, one microvolt each, with an empty event table."""
    head = bytearray(900)
    head[:12] = b"Version 3.0\0"
    head[225:243] = b"01/01/00\0\0" + b"00:00:00"
    values = np.round(make_eeg(len(names), seconds, rate)).astype("<i4").T.tobytes()
    for offset, form, value in (
        (370, "<H", len(names)),
        (376, "<H", rate),
        (864, "<i", seconds * rate),
        (886, "<i", 900 + 75 * len(names) + len(values)),
    ):
        struct.pack_into(form, head, offset, value)
    electrodes = b""
    for place, name in enumerate(names):
        electrode = bytearray(75)
        electrode[: len(name)] = name.encode()
        struct.pack_into("<2f", electrode, 19, place, 1.0)  # MNE divides by the spread of the positions
        struct.pack_into("<f", electrode, 59, 1.0)
        struct.pack_into("<f", electrode, 71, 204.8)
        electrodes += electrode
    path.write_bytes(bytes(head) + electrodes + values + struct.pack("<Bii", 1, 0, 0))
    return path


def tuab(folder):
    """Five subjects a class to train on, one a class to test on, 25 s each."""
    for label, letters in (("normal", "abcde"), ("abnormal", "fghij")):
        for letter in letters:
            put_edf(folder, f"edf/train/{label}/01_tcp_ar/aaaaaaa{letter}_s001_t000.edf", TUH_NAMES, 25)
    put_edf(folder, "edf/eval/normal/01_tcp_ar/aaaaaaak_s002_t001.edf", TUH_NAMES, 25)
    put_edf(folder, "edf/eval/abnormal/01_tcp_ar/aaaaaaal_s002_t001.edf", TUH_NAMES, 31)
    return folder


TUEV_EVENTS = """0,0.5,1.5,6
1,0.5,1.5,6
2,10.1,11.1,1
3,18.6,19.6,4
"""


def tuev(folder):
    """Five subjects to train on, one to test on, 20 s each."""
    for letter in "abcde":
        put_edf(folder, f"edf/train/aaaaaaa{letter}/aaaaaaa{letter}_00000001.edf", TUH_NAMES, 20)
        put_text(folder, f"edf/train/aaaaaaa{letter}/aaaaaaa{letter}_00000001.rec", TUEV_EVENTS)
    put_edf(folder, "edf/eval/000/bckg_000_a_.edf", TUH_NAMES, 20)
    put_text(folder, "edf/eval/000/bckg_000_a_.rec", "5,3.0,4.0,2\n6,19.5,20.5,3\n")
    return folder


def seed(folder):
    """One session that was broken off after 300 of its 3807 s, at 100 Hz."""
    path = folder / "SEED_RAW_EEG" / "1_1.cnt"
    path.parent.mkdir(parents=True)
    write_cnt(path, SEED_NAMES, 300, 100)
    return folder


HMC_SCORING = """Date, Time, Recording onset, Duration, Annotation, Linked channel
2001-01-01, 23:00:00, 0, 30, Sleep stage W, -
2001-01-01, 23:00:12, 12, 0, Lights off@@EEG F4-A1, EEG F4-M1
2001-01-01, 23:00:30, 30, 30, Sleep stage N2, -
2001-01-01, 23:01:00, 60, 30, Sleep stage R, -
"""


def hmc(folder):
    """One night of 95 s."""
    put_edf(folder, "recordings/SN001.edf", HMC_NAMES, 95)
    put_text(folder, "recordings/SN001_sleepscoring.txt", HMC_SCORING)
    return folder


TUSL_EVENTS = """version = tse_v1.0.0

2.0000 12.0000 seiz 1.0000
15.5000 25.5000 bckg 1.0000
26.0000 29.0000 slow 1.0000
"""


def tusl(folder):
    """Ten files of four subjects, 30 s each."""
    for subject, files in (("aaaaaaju", 4), ("aaaaalmg", 3), ("aaaaalnv", 2), ("aaaaamoa", 1)):
        for number in range(files):
            stem = f"edf/{subject}/s00{number}_2010/01_tcp_ar/{subject}_s00{number}_t000"
            put_edf(folder, f"{stem}.edf", TUH_NAMES, 30)
            put_text(folder, f"{stem}.tse_agg", TUSL_EVENTS)
    return folder


def tueg(folder):
    """One recording against the common reference, one against linked ears, 100 s each."""
    reference = "edf/000/aaaaaaaa/s001_2015/01_tcp_ar/aaaaaaaa_s001_t000.edf"
    put_edf(folder, reference, TUH_NAMES, 100)
    ears = [name.replace("-REF", "-LE") for name in TUH_NAMES]
    put_edf(folder, "edf/000/aaaaaaab/s001_2002/02_tcp_le/aaaaaaab_s001_t000.edf", ears, 100)
    return folder


def eegmmidb(folder):
    """A run of each kind of imagery of one subject, with one trial a kind, at 160 Hz."""
    import edfio

    for run in ("03", "04", "06"):
        signals = [
            edfio.EdfSignal(row, 160, label=name, physical_dimension="uV", physical_range=(-3000, 3000))
            for name, row in zip(("Fc5.", "Cz..", "Iz.."), make_eeg(3, 15, 160), strict=True)
        ]
        notes = [(0.0, 4.2, "T0"), (4.2, 4.1, "T2"), (8.3, 4.1, "T1"), (12.4, 2.0, "T1")]
        path = folder / "S001" / f"S001R{run}.edf"
        path.parent.mkdir(exist_ok=True)
        edfio.Edf(signals, annotations=[edfio.EdfAnnotation(*note) for note in notes]).write(path)
    return folder


def table(folder):
    """Two recordings in folders of their own and a table about them."""
    put_edf(folder, "ann/monday.edf", ("Fp1", "Cz"), 30)
    put_edf(folder, "ben/monday.edf", ("Fp1", "Cz"), 30)
    rows = "ann/monday.edf,3,14,awake\nann/monday.edf,20,24.5,asleep\nben/monday.edf,,,awake\nben/monday.edf,1,9,?\n"
    put_text(folder, "labels.csv", "file,start,end,label\n" + rows)
    return folder


TABLE_TASK = {
    "name": "Vigilance",
    "question": "Question: Is the subject awake in this EEG segment?",
    "answers": {"No": 0, "Yes": 1},
    "metrics": ["balanced_accuracy"],
    "channels": ["FP1", "CZ"],
    "notch_hz": 50,
    "recordings": {"layout": "SUBJECT/DAY.edf"},
    "labels": {"source": "table", "file": "labels.csv", "map": {"awake": "Yes", "asleep": "No", "?": None}},
    "windows": {"seconds": 4, "stride_seconds": 3},
    "split": {"rule": "subject", "shares": {"train": 0.5, "test": 0.5}},
}
BIDS_TASK = TABLE_TASK | {
    "name": "Stimulus",
    "channels": None,
    "recordings": {
        "layout": "BIDS",
        "pattern": r"sub-(?P<subject>[^/_]+)/(?:.*/)?[^/]+_eeg\.(?:edf|bdf|vhdr|set|fif)",
    },
    "labels": {"source": "annotations", "map": {"show_stimulus": "Yes", "*": None}},
    "windows": {"seconds": 1, "after_seconds": 1},
    "split": {"rule": "subject", "shares": {"train": 1}},
}
