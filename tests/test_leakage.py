"""Leakage: certain, declared and possible ones, each found in the right place, and nothing where there is none."""

import json

import pytest
from prepared_folders import write_prepared

from neurolm_hf.leakage import describe_leaks, find_leaks, read_prepared_set
from scripts.check_leakage import main


def leaks_between(*folders):
    found = find_leaks([read_prepared_set(folder) for folder in folders])
    return [(leak.grade, leak.kind, leak.name, leak.trained_in[1], leak.tested_in[1], leak.reason) for leak in found]


def content(letter, size=5):
    return {"sha256": letter * 64, "bytes": size}


def test_what_a_set_holds(tmp_path):
    folder = write_prepared(
        tmp_path, [("a/S1.edf", "S1", "train", content("a", 7)), ("b/S2.edf", "S2", "test", content("b"))]
    )
    prepared = read_prepared_set(folder)
    assert (prepared.task, prepared.corpus, prepared.by_subject) == ("Workload", False, True)
    (one,) = prepared.recordings["train"]
    assert (one.key, one.subject, one.sha256, one.bytes, one.name) == ("a/S1.edf", "S1", "a" * 64, 7, "s1")
    assert prepared.recordings["validation"] == []


def test_a_clean_set(tmp_path):
    folder = write_prepared(tmp_path, [("1.edf", "A", "train"), ("2.edf", "B", "validation"), ("3.edf", "C", "test")])
    assert leaks_between(folder) == []


def test_a_subject_in_two_parts_of_one_set(tmp_path):
    folder = write_prepared(tmp_path, [("1.edf", "A", "train"), ("2.edf", "A", "validation"), ("3.edf", "A", "test")])
    same = "the same subject"
    assert leaks_between(folder) == [
        ("certain", "subject", "A", "train", "validation", same),
        ("certain", "subject", "A", "train", "test", same),
        ("certain", "subject", "A", "validation", "test", same),
    ]


def test_a_published_split_by_trials_is_declared(tmp_path):
    parts = [("1.cnt", "A", "train", content("a")), ("1.cnt", "A", "test", content("a"))]
    folder = write_prepared(tmp_path / "seed", parts, task="SEED")
    assert leaks_between(folder) == [
        ("declared", "recording", "1.cnt", "train", "test", "the same recording"),
        ("declared", "subject", "A", "train", "test", "the same subject"),
    ]
    # against another set it is as certain as any
    corpus = write_prepared(tmp_path / "corpus", [("x/other.cnt", "A", "train", content("a"))], task="Corpus")
    assert leaks_between(corpus, folder)[:2] == [
        ("certain", "recording", "x/other.cnt", "train", "test", "the same content"),
        ("certain", "subject", "A", "train", "test", "the same subject"),
    ]


def test_the_same_recording_split_by_subject_is_certain(tmp_path):
    folder = write_prepared(tmp_path, [("1.edf", "A", "train"), ("1.edf", "A", "test")])
    assert ("certain", "recording", "1.edf", "train", "test", "the same recording") in leaks_between(folder)


def test_a_copy_within_a_set_is_certain_whatever_the_split(tmp_path):
    parts = [("1.cnt", "A", "train", content("a")), ("copy.cnt", "B", "test", content("a"))]
    folder = write_prepared(tmp_path, parts, task="SEED")
    assert leaks_between(folder) == [("certain", "recording", "1.cnt", "train", "test", "the same content")]


def test_all_of_a_corpus_counts_as_trained_on(tmp_path):
    subjects = {"train": "aaaaaaab", "validation": "aaaaaaac", "test": "aaaaaaad"}
    held_out = [(f"eval/{subject}_1.edf", subject, "test") for subject in subjects.values()]
    corpus = [(f"{subject}_s002_t001.edf", subject, split) for split, subject in subjects.items()]
    tueg = write_prepared(tmp_path / "tueg", corpus, task="TUEG")
    tuab = write_prepared(tmp_path / "tuab", held_out, task="TUAB")
    expected = [
        ("certain", "subject", subject, split, "test", "the same subject") for split, subject in subjects.items()
    ]
    assert leaks_between(tueg, tuab) == expected
    assert leaks_between(tuab, tueg) == expected
    assert leaks_between(tueg) == []  # nothing is tested there


def test_files_of_one_archive_are_known_by_name(tmp_path):
    tueg = write_prepared(tmp_path / "tueg", [("edf/aaaaaaab_s001_t000.edf", "aaaaaaab", "train")], task="TUEG")
    tuab = write_prepared(
        tmp_path / "tuab", [("eval/AAAAAAAB_s001_t000.edf", "aaaaaaab", "test", content("z"))], task="TUAB"
    )
    assert leaks_between(tueg, tuab)[0] == (
        "certain", "recording", "edf/aaaaaaab_s001_t000.edf", "train", "test", "the same file name",
    )  # fmt: skip


def test_a_common_name_in_unrelated_sets_is_possible_only(tmp_path):
    corpus = write_prepared(tmp_path / "one", [("S001/rest.edf", "S001", "train", content("a", 10))], task="EEGMMIDB")
    other = write_prepared(tmp_path / "two", [("sub/rest.edf", "S001", "test", content("b", 11))], task="Workload")
    assert leaks_between(corpus, other) == [
        ("possible", "recording", "S001/rest.edf", "train", "test", "the same file name"),
        ("possible", "subject", "S001", "train", "test", "the same name for a subject, maybe of another person"),
    ]


def test_the_same_name_and_size_is_certain(tmp_path):
    one = write_prepared(tmp_path / "one", [("rest.edf", "X", "train", content("a", 10))], task="Corpus")
    two = write_prepared(tmp_path / "two", [("rest.edf", "Y", "test", content("b", 10))], task="Workload")
    assert leaks_between(one, two) == [
        ("certain", "recording", "rest.edf", "train", "test", "the same file name and size"),
    ]


def test_sets_that_share_a_file_share_their_subjects(tmp_path):
    shared = ("both.edf", "S9", "train", content("s"))
    one = write_prepared(tmp_path / "one", [shared, ("a.edf", "S1", "train", content("a"))], task="Corpus")
    two = write_prepared(tmp_path / "two", [shared, ("b.edf", "S1", "test", content("b"))], task="Workload")
    assert leaks_between(one, two) == [("certain", "subject", "S1", "train", "test", "the same subject")]


def test_the_same_task_prepared_twice(tmp_path):
    one = write_prepared(tmp_path / "one", [("1.edf", "A", "train", content("a"))])
    two = write_prepared(tmp_path / "two", [("2.edf", "A", "test", content("b"))])
    assert leaks_between(one, two) == [("certain", "subject", "A", "train", "test", "the same subject")]
    assert leaks_between(two, one) == leaks_between(one, two)


@pytest.mark.parametrize(
    ("one", "other"), [("S001", "sub-01"), ("Subject 7", "7"), ("SN012", "sn012"), ("sub-AB", "ab"), ("0", "S0")]
)
def test_a_subject_in_another_writing_is_possible(tmp_path, one, other):
    train = write_prepared(tmp_path / "train", [("a.edf", one, "train"), ("b.edf", "X9", "train")])
    test = write_prepared(tmp_path / "test", [("c.edf", other, "test"), ("d.edf", "Y9", "test")])
    reason = "names that differ in their writing, or begin file names, maybe of another person"
    assert leaks_between(train, test) == [("possible", "subject", one, "train", "test", reason)]


def test_the_beginning_of_a_file_name_may_be_a_subject(tmp_path):
    train = write_prepared(tmp_path / "train", [("data/S03_rest.edf", "data", "train")])
    test = write_prepared(tmp_path / "test", [("x.edf", "s3", "test"), ("rest_y.edf", "s4", "test")], task="HMC")
    (leak,) = find_leaks([read_prepared_set(train), read_prepared_set(test)])
    assert (leak.grade, leak.name, leak.tested_name) == ("possible", "s03", "s3")


def test_a_tuh_subject_counts_wherever_it_stands(tmp_path):
    corpus = write_prepared(tmp_path / "a", [("edf/aaaaaaaq_s001_t000.edf", "edf", "train")], task="Corpus")
    test = write_prepared(tmp_path / "b", [("01/aaaaaaaq/x.edf", "aaaaaaaq", "test")], task="TUAB")
    assert leaks_between(corpus, test) == [("certain", "subject", "aaaaaaaq", "train", "test", "the same subject")]


def test_every_file_of_a_name_counts(tmp_path):
    train = write_prepared(tmp_path / "a", [("1/rec.edf", "A", "train", content("a", 5))])
    files = [("1/rec.edf", "B", "test", content("b", 5)), ("2/rec.edf", "C", "test", content("c", 6))]
    test = write_prepared(tmp_path / "b", files, task="HMC")
    assert [(leak[0], leak[-1]) for leak in leaks_between(train, test)] == [
        ("certain", "the same file name and size"),
        ("possible", "the same file name"),
    ]
    copies = [("1.edf", "B", "test", content("a")), ("2.edf", "C", "test", content("a"))]
    both = write_prepared(tmp_path / "c", copies, task="HMC")
    assert [leak[:2] for leak in leaks_between(train, both)] == [("certain", "recording")] * 2


def test_a_set_that_is_not_complete_is_refused(tmp_path):
    folder = write_prepared(tmp_path, [("1.edf", "A", "train")], missing=["2.edf", "3.edf"])
    with pytest.raises(
        ValueError, match=r"2 recordings are not prepared yet, 2\.edf among them.*run the other shards"
    ):
        read_prepared_set(folder)


def test_one_subject_for_all_is_said(tmp_path, capsys):
    assert run(write_prepared(tmp_path, [("1.edf", "edf", "train"), ("2.edf", "edf", "train")])) == 0
    assert "all are of one subject, 'edf': a leak by subject cannot be seen" in capsys.readouterr().out


def test_table(tmp_path):
    many = [(f"{i}.edf", f"S{i:02d}", split) for i in range(25) for split in ("train", "test")]
    found = find_leaks([read_prepared_set(write_prepared(tmp_path, many))])
    lines = describe_leaks(found).splitlines()
    assert lines[22] == f"certain: 25 subjects of {tmp_path} [train] in {tmp_path} [test], the same subject"
    assert lines[23:] == [*(f"    S{i:02d}" for i in range(20)), "    and 5 more"]


def run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    return stopped.value.code


def test_script(tmp_path, capsys):
    clean = write_prepared(tmp_path / "clean", [("1.edf", "A", "train"), ("2.edf", "B", "test", content("b"))])
    leaky = write_prepared(tmp_path / "leaky", [("9.edf", "B", "train", content("c"))])
    assert run(clean) == 0
    assert "task Workload; recordings: train 1, test 1\n0 certain leaks" in capsys.readouterr().out
    assert run(clean, leaky) == 1
    said = capsys.readouterr().out
    assert f"certain: 1 subject of {leaky} [train] in {clean} [test], the same subject\n    B\n" in said
    assert run("--json", clean, leaky) == 1
    (leak,) = json.loads(capsys.readouterr().out)
    assert leak["tested_in"] == [str(clean), "test"]
    assert leak["grade"] == "certain"
    assert run() == 2
    assert "holds no finished prepared set" in run(clean, tmp_path)


def test_only_two_columns_are_read(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    folder, asked = write_prepared(tmp_path, [("1.edf", "A", "train")]), []
    read = pq.read_table

    def watched(source, columns=None):
        asked.append(columns)
        return read(source, columns=columns)

    monkeypatch.setattr(pq, "read_table", watched)
    read_prepared_set(folder)
    assert asked == [["recording", "subject"]]
