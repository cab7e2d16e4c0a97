"""Splits: the published rules on hand-made lists of recordings, splits by subject, and what the notes say."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
import task_layouts

from neurolm_hf.recordings import Recording, find_recordings
from neurolm_hf.splits import assign_splits, split_subjects, splits_by_table
from neurolm_hf.tasks import load_task


def recordings(count, per_subject=1, **fields):
    return [
        Recording(Path(f"{number:03d}.edf"), f"{number:03d}.edf", f"S{number // per_subject:02d}", **fields)
        for number in range(count)
    ]


def parts(task, found, **options):
    assigned, notes = assign_splits(load_task(task), found, **options)
    return {one.key: one.split for one in assigned}, notes


class TestPublished:
    def test_workload_counts_all_72_files(self):
        split, notes = parts("Workload", recordings(72, per_subject=2))
        assert list(split.values()) == 52 * ["train"] + 10 * ["validation"] + 10 * ["test"]
        assert notes == []

    def test_hmc_counts_all_151_recordings(self):
        split, notes = parts("HMC", recordings(151)[::-1])
        assert list(split.values()) == 100 * ["train"] + 25 * ["validation"] + 26 * ["test"]
        assert notes == []

    def test_fewer_files_are_refused(self):
        with pytest.raises(ValueError, match=r"Workload.*needs all 72; there are 32\..*--split subject"):
            parts("Workload", recordings(32, per_subject=2))

    def test_counts_that_cut_a_subject_in_two_are_noted(self):
        _, notes = parts("Workload", recordings(72, per_subject=3))
        assert notes == [
            "The split of task Workload is by counts of files, not by subject: 2 of 24 subjects stand in more than "
            "one part."
        ]

    def test_tuab_by_folder_and_class(self, tmp_path):
        found = find_recordings(load_task("TUAB"), task_layouts.tuab(tmp_path))
        split, notes = parts("TUAB", found)
        count = Counter((Path(key).parts[1], Path(key).parts[2], part) for key, part in split.items())
        assert count == {
            ("train", "normal", "train"): 4,
            ("train", "normal", "validation"): 1,
            ("train", "abnormal", "train"): 4,
            ("train", "abnormal", "validation"): 1,
            ("eval", "normal", "test"): 1,
            ("eval", "abnormal", "test"): 1,
        }
        assert notes == [
            "The split of task TUAB is by folders, not by subject: 0 of 12 subjects stand in more than one part."
        ]
        assert parts("TUAB", found[::-1]) == (split, notes)
        assert any(parts("TUAB", found, seed=seed)[0] != split for seed in range(1, 4))

    def test_tuab_s_subjects_of_both_classes_are_noted(self):
        found = [
            Recording(Path(key), key, key[-1], "train", label)
            for label in ("normal", "abnormal")
            for key in (f"{label}/{letter}" for letter in "abcde")
        ]
        notes = [parts("TUAB", found, seed=seed)[1] for seed in range(5)]
        told = "The split of task TUAB is by folders, not by subject: 2 of 5 subjects stand in more than one part."
        assert [told] in notes  # where the two classes hold out different subjects

    def test_tuev_by_folder(self, tmp_path):
        split, notes = parts("TUEV", find_recordings(load_task("TUEV"), task_layouts.tuev(tmp_path)))
        assert Counter(split.values()) == {"train": 4, "validation": 1, "test": 1}
        assert split["edf/eval/000/bckg_000_a_.edf"] == "test"
        assert notes == []

    def test_tusl_by_sorted_files(self, tmp_path):
        split, notes = parts("TUSL", find_recordings(load_task("TUSL"), task_layouts.tusl(tmp_path))[::-1])
        assert list(split.values()) == 6 * ["train"] + 2 * ["test"] + 2 * ["validation"]
        assert notes == [
            "The split of task TUSL is by files, not by subject: 2 of 4 subjects stand in more than one part."
        ]

    @pytest.mark.parametrize(
        ("count", "expected"), [(1, (0, 0, 1)), (4, (2, 1, 1)), (7, (4, 1, 2)), (112, (67, 22, 23))]
    )
    def test_shares_end_where_a_share_of_the_files_rounded_down_ends(self, count, expected):
        split, _ = parts("TUSL", recordings(count))
        assert tuple(list(split.values()).count(part) for part in ("train", "test", "validation")) == expected

    def test_seed_by_trials(self):
        split, notes = parts("SEED", recordings(6, per_subject=3))
        assert set(split.values()) == {None}
        assert notes == [
            "The split of task SEED is by trials, not by subject: 2 of 2 subjects stand in more than one part."
        ]

    def test_unknown_folders(self):
        with pytest.raises(ValueError, match=r"000\.edf: folder 'dev' is no part of task TUEV \(train, eval\)"):
            parts("TUEV", recordings(1, folder="dev"))


TRIALS = {"rule": "trials"}
BY_SUBJECT = task_layouts.TABLE_TASK["split"]


class TestTables:
    def found(self, folder, split, rows=None):
        """The task with that split, and the recordings of a table of these rows; two recordings are there."""
        (folder / "task.json").write_text(json.dumps(task_layouts.TABLE_TASK | {"split": split}))
        if rows is not None:
            for name in ("1.edf", "2.edf"):
                (folder / name).touch()
            (folder / "labels.csv").write_text("\n".join(["file,start,end,label,subject,split", *rows]))
        task = load_task(folder / "task.json")
        return task, find_recordings(task, folder)

    @pytest.mark.parametrize("split", [TRIALS, BY_SUBJECT], ids=["trials", "subject"])
    @pytest.mark.parametrize(("last", "shared"), [("A", 1), ("B", 0)])
    def test_its_column_is_the_split_whatever_the_rule(self, tmp_path, split, last, shared):
        rows = ("1.edf,0,4,awake,A,train", "1.edf,4,8,awake,A,train", f"2.edf,0,4,awake,{last},test")
        task, found = self.found(tmp_path, split, rows)
        assert splits_by_table(found)
        assigned, notes = assign_splits(task, found)
        assert [one.split for one in assigned] == [None, None]
        assert [[row.split for row in one.rows] for one in assigned] == [["train", "train"], ["test"]]
        assert notes == [
            f"The split of task Vigilance is the column split of labels.csv: {shared} of {2 - shared} subjects stand "
            "in more than one part."
        ]

    def test_the_user_may_ask_for_a_split_by_subject(self, tmp_path):
        rows = ("1.edf,0,4,awake,A,train", "1.edf,4,8,awake,A,test", "2.edf,0,4,awake,B,")
        task, found = self.found(tmp_path, BY_SUBJECT, rows)
        assigned, notes = assign_splits(task, found, rule="subject")
        assert ({one.split for one in assigned}, notes) == ({"train", "test"}, [])
        with pytest.raises(ValueError, match=r"rule='subject' too \(--split subject --split-shares 0\.5 0 0\.5\)"):
            assign_splits(task, found, shares={"train": 1})

    def test_some_rows_without_a_split(self, tmp_path):
        task, found = self.found(tmp_path, BY_SUBJECT, ("1.edf,0,4,awake,A,train", "2.edf,0,4,awake,B,"))
        with pytest.raises(ValueError, match=r"labels\.csv, line 3: no split, though other rows have one.*--split"):
            assign_splits(task, found)

    @pytest.mark.parametrize(
        ("first", "second", "overlap"),
        [("0,4", "4,8", False), ("0,4", "3.5,8", True), (",", "4,8", True), ("5,6", "0,9", True)],
    )
    def test_the_same_seconds_in_two_parts(self, tmp_path, first, second, overlap):
        rows = (f"1.edf,{first},awake,A,train", f"1.edf,{second},asleep,A,test", "2.edf,0,9,awake,B,test")
        task, found = self.found(tmp_path, BY_SUBJECT, rows)
        assert assign_splits(task, found, rule="subject")[1] == []
        if not overlap:
            assert [one.split for one in assign_splits(task, found)[0]] == [None, None]
            return
        lines = "(line 2: .*line 3|line 3: .*line 2)"
        with pytest.raises(ValueError, match=rf"{lines} are (train|test), and the two overlap.*--split subject"):
            assign_splits(task, found)

    def test_no_row_has_a_split(self, tmp_path):
        task, found = self.found(task_layouts.table(tmp_path), TRIALS)
        assert not splits_by_table(found)
        with pytest.raises(ValueError, match=r"labels\.csv, line 2: no split, though task Vigilance.*--split subject"):
            assign_splits(task, found)
        assigned, notes = assign_splits(task, found, rule="subject", shares={"test": 1})
        assert [one.split for one in assigned] == ["test", "test"]
        assert notes == [
            "The subjects of 2 recordings are guessed from folder or file names (ann, ben): if one person has "
            "several, add a column subject to the table, or give the task a pattern with (?P<subject>...)."
        ]


class TestGuessedSubjects:
    def test_files_of_a_table_are_not_split_by_their_names(self, tmp_path):
        rows = ("1.edf,,,awake,,", "2.edf,,,awake,B,")
        task, found = TestTables().found(tmp_path, BY_SUBJECT, rows)
        with pytest.raises(
            ValueError,
            match=r"labels\.csv, line 2: a split by subject needs to know whose 1\.edf .*a column subject",
        ):
            assign_splits(task, found)
        # nothing can leak where all are in one part, or where the table says the split
        note = "The subjects of 1 recordings are guessed from folder or file names (1)"
        _, notes = assign_splits(task, found, rule="subject", shares={"train": 1})
        assert [text.partition(":")[0] for text in notes] == [note]
        task, found = TestTables().found(tmp_path, BY_SUBJECT, [f"{rows[0]}train", f"{rows[1]}test"])
        assert note in [text.partition(":")[0] for text in assign_splits(task, found)[1]]

    def test_a_corpus_is_told(self):
        found = [dataclasses.replace(one, guessed_from="file") for one in recordings(3)]
        for options in ({}, {"rule": "subject", "shares": {"train": 0.5, "test": 0.5}}):
            assert parts("Corpus", found, **options)[1] == [
                "The subjects of 3 recordings are guessed from folder or file names (S00, S01, ...): if one person "
                "has several, give the task a pattern with (?P<subject>...)."
            ]


class TestBySubject:
    subjects = [f"Subject{number:02d}" for number in range(16)]

    def test_any_task(self):
        split, notes = parts("Workload", recordings(32, per_subject=2), rule="subject")
        assert Counter(split.values()) == {"train": 20, "validation": 6, "test": 6}
        assert all(split[f"{2 * one:03d}.edf"] == split[f"{2 * one + 1:03d}.edf"] for one in range(16))
        assert notes == []

    def test_shares_of_the_task_and_of_the_user(self):
        assert set(parts("TUEG", recordings(3))[0].values()) == {"train"}
        assert set(parts("TUEG", recordings(3), rule="subject")[0].values()) == {"train"}
        shares = {"train": 0.5, "test": 0.5}
        for rule in ("subject", None):  # the task's own rule is by subject
            split, _ = parts("TUEG", recordings(4), rule=rule, shares=shares)
            assert Counter(split.values()) == {"train": 2, "test": 2}

    def test_deterministic_whatever_the_order(self):
        split = split_subjects(self.subjects)
        assert split == split_subjects(3 * self.subjects[::-1])
        assert split != split_subjects(self.subjects, seed=1)
        assert sorted(split) == self.subjects

    @pytest.mark.parametrize(
        ("subjects", "shares", "counts"),
        [
            (16, {"train": 0.6, "validation": 0.2, "test": 0.2}, {"train": 10, "validation": 3, "test": 3}),
            (3, {"train": 0.98, "validation": 0.01, "test": 0.01}, {"train": 1, "validation": 1, "test": 1}),
            (10, {"train": 0.75, "test": 0.25}, {"train": 8, "test": 2}),
            (10, {"train": 1.0, "test": 0.0}, {"train": 10}),
        ],
    )
    def test_every_part_with_a_share_has_a_subject(self, subjects, shares, counts):
        names = [f"{number}" for number in range(subjects)]
        assert Counter(split_subjects(names, shares=shares).values()) == counts

    def test_refusals(self):
        with pytest.raises(ValueError, match=r"needs 3 subjects at least; there are 1: a.*--split-shares"):
            split_subjects(["a", "a"])
        with pytest.raises(ValueError, match="add up to 1"):
            split_subjects(self.subjects, shares={"train": 0.5})
        with pytest.raises(ValueError, match="must be of train, validation, test; got dev"):
            split_subjects(self.subjects, shares={"dev": 1})
        with pytest.raises(ValueError, match=r"'subject' \(--split subject\), or None .* published\); got 'files'"):
            parts("TUEG", recordings(3), rule="files")
        with pytest.raises(ValueError, match=r"give rule='subject' too \(--split subject --split-shares 0\.5"):
            parts("TUSL", recordings(3), shares={"train": 1})
        with pytest.raises(ValueError, match=r"shares \(--split-shares\) must be 0 or more and add up to 1"):
            parts("TUSL", recordings(3), rule="subject", shares={"train": 2})
