"""Which rows a training meets, and when: shuffled without state, shared out by weight, bad ones replaced."""

import pickle
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from prepared_folders import write_prepared
from small_trainings import ROWS, GradientCallback, assert_same_steps, fixed, stages
from tiny import vq_config
from torch.utils.data import BatchSampler, DataLoader
from transformers import TrainingArguments

from neurolm_hf import NeuroLMVQModel
from neurolm_hf.collators import EEGCollator, InstructionCollator, RecipeMismatchError, row_name
from neurolm_hf.prepared_set import prepared_recipe_id, prepared_task
from neurolm_hf.processing_neurolm import EEGFeatureExtractor, NeuroLMProcessor, train_text_tokenizer
from neurolm_hf.storage import load_prepared
from neurolm_hf.tasks import load_task
from neurolm_hf.training import CodebookCallback, NeuroLMTrainer
from neurolm_hf.training_set import StepSampler, TrainingSet


EXTRACTOR = EEGFeatureExtractor()
WORKLOAD, SLEEP = load_task("Workload"), load_task("HMC")


def rows(name: str, count: int, **changes: Any) -> list[dict]:
    """Rows whose `start` is their index."""
    signal = np.random.default_rng(count).normal(size=(2, 400)).astype(np.float32)
    place = {"recording": f"{name}.edf", "subject": name}
    return [{"signal": signal, "channels": ["C3", "C4"], **place, "start": float(i), **changes} for i in range(count)]


def spoil(given: list[dict], *indices: int) -> list[dict]:
    """The rows, of which some have a hole in their signal."""
    hole = np.where(np.arange(800).reshape(2, 400) == 450, np.nan, 0.5)
    return [{**row, "signal": hole} if index in indices else row for index, row in enumerate(given)]


def names(given: Any) -> list[str]:
    return [row_name(row) for row in given]


def epoch(training: TrainingSet, number: int) -> list[str]:
    training.set_epoch(number)
    return names(training)


def test_parts_are_called_by_their_names_and_what_is_skipped_is_kept_in_a_file(tmp_path: Path) -> None:
    """By workers too, and by those of a training that is interrupted and started again."""
    parts = [(spoil(rows("a", 4), 1), WORKLOAD), (spoil(rows("b", 4), 2, 3), WORKLOAD)]
    with pytest.raises(ValueError, match=r"Row \d of prepared/[ab]: .*--skip-bad-rows of the scripts"):
        list(TrainingSet(parts, EXTRACTOR, names=["prepared/a", "prepared/b"]))
    file = tmp_path / "skipped.txt"
    file.write_text("Row 9 of prepared/a: met before.\n")
    for workers in (0, 2):
        training = TrainingSet(
            parts, EXTRACTOR, on_bad_row="skip", names=["prepared/a", "prepared/b"], skipped_file=file
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            list(DataLoader(training, batch_size=None, num_workers=workers))
        lines = set(file.read_text().splitlines())
        assert lines == {"Row 9 of prepared/a: met before.", *training.skipped}
        assert {line.partition(":")[0] for line in training.skipped} == {
            *("Row 1 of prepared/a", "Row 2 of prepared/b", "Row 3 of prepared/b")
        }


def test_an_epoch_is_every_row_once_in_an_order_of_its_own() -> None:
    parts = [(rows("a", 30), None), (rows("b", 20), None)]
    training = TrainingSet(parts, EXTRACTOR, seed=3)
    first, second = epoch(training, 0), epoch(training, 1)
    assert len(training) == len(first) == 50
    assert sorted(first) == sorted(second) == sorted(names(parts[0][0]) + names(parts[1][0]))
    assert first != second
    assert [name[0] for name in first] != sorted(name[0] for name in first)
    assert epoch(training, 0) == first
    assert epoch(TrainingSet(parts, EXTRACTOR, seed=3), 1) == second
    other = epoch(TrainingSet(parts, EXTRACTOR, seed=4), 1)
    assert [name[0] for name in other] != [name[0] for name in second]


def test_a_row_does_not_depend_on_those_read_before() -> None:
    """As when a training is resumed in the middle of an epoch."""
    parts = [(rows("a", 7), None), (rows("b", 13), None)]
    training = TrainingSet(parts, EXTRACTOR, weights=[3, 1])
    whole = epoch(training, 4)
    resumed = TrainingSet(parts, EXTRACTOR, weights=[3, 1])
    resumed.set_epoch(4)
    assert [row_name(resumed[index]) for index in (19, 3, 11)] == [whole[index] for index in (19, 3, 11)]


def test_weights_share_an_epoch_and_parts_are_walked_through_before_they_repeat() -> None:
    training = TrainingSet([(rows("a", 10), None), (rows("b", 90), None)], EXTRACTOR, weights=[0.6, 0.2])
    seen: Counter[str] = Counter()
    orders = set()
    for number in range(3):
        order = epoch(training, number)
        assert Counter(name[0] for name in order) == {"a": 75, "b": 25}
        seen.update(order)
        orders.add(tuple(order))
        # 75 rows an epoch out of 10, 25 out of 90: no row is a pass ahead of another
        for part in ("a", "b"):
            counts = [seen[name] for name in names(rows(part, 10 if part == "a" else 90))]
            assert max(counts) - min(counts) <= 1
    assert len(orders) == 3
    other = TrainingSet(training.parts, EXTRACTOR, weights=[0.6, 0.2], seed=1)
    assert {name for name in epoch(other, 0) if name[0] == "b"} != {
        name for name in epoch(training, 0) if name[0] == "b"
    }


def test_shares_are_rounded_to_whole_rows() -> None:
    training = TrainingSet([(rows(name, 10), None) for name in "abc"], EXTRACTOR, weights=[1, 1, 5])
    assert Counter(name[0] for name in epoch(training, 0)) == {"a": 4, "b": 4, "c": 22}


def test_a_row_brings_its_task_and_its_draw() -> None:
    training = TrainingSet([(rows("a", 3), WORKLOAD), (rows("b", 3), None)], EXTRACTOR, seed=5)
    training.set_epoch(2)
    assert training.epoch == 2
    for index, row in enumerate(training):
        assert row["draw"] == (5, 2, index)
        assert row["task"] is (WORKLOAD if row["recording"] == "a.edf" else None)
        assert row["signal"].shape == (2, 400)
    with pytest.raises(IndexError):
        training[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": []}, "needs rows; these have no part"),
        ({"parts": [(rows("a", 2), None), ([], None)]}, r"needs rows; these have \[2, 0\]"),
        ({"weights": [1]}, "1 weights for 2 parts"),
        ({"weights": [1, 0]}, "above 0"),
        ({"weights": [1, float("nan")]}, "above 0"),
        ({"weights": [1, 1000]}, "leave part 0 without a row in an epoch of 8"),
        ({"seed": -1}, "0 or more, got -1"),
        ({"on_bad_row": "drop"}, "'raise' or 'skip', not 'drop'"),
    ],
)
def test_what_makes_no_training_set(changes: dict, message: str) -> None:
    given = {"parts": [(rows("a", 4), None), (rows("b", 4), None)], **changes}
    with pytest.raises(ValueError, match=message):
        TrainingSet(feature_extractor=EXTRACTOR, **given)


class Unreadable(list):
    """Rows of which one cannot be read from the disk."""

    def __getitem__(self, index: Any) -> Any:
        if index == 1:
            raise OSError("Input/output error")
        return super().__getitem__(index)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            spoil(rows("a", 2), 1),
            r"Row 1 of part 0 \(Workload\): a\.edf at 1 s \(a\): channel C4 is not finite at 1\.25",
        ),
        (Unreadable(rows("a", 2)), r"Row 1 of part 0 \(Workload\): Input/output error"),
        ([*rows("a", 1), {"signal": np.zeros(4)}], r"Row 1 of part 0 \(Workload\): KeyError: 'channels'"),
        ([*rows("a", 1), None], r"Row 1 of part 0 \(Workload\): TypeError"),
    ],
)
def test_a_bad_row_is_named(given: list, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*on_bad_row='skip'"):
        list(TrainingSet([(given, WORKLOAD)], EXTRACTOR))
    training = TrainingSet([(given, WORKLOAD)], EXTRACTOR, on_bad_row="skip")
    with pytest.warns(UserWarning, match=f"{message}.*is skipped"):
        assert names(training) == ["a.edf at 0 s (a)"] * 2


def test_another_row_of_the_part_takes_the_place_of_a_bad_one() -> None:
    parts = [(spoil(rows("a", 10), 2, 3, 4), None), (rows("b", 10), None)]
    clean = epoch(TrainingSet([(rows("a", 10), None), parts[1]], EXTRACTOR), 1)
    training = TrainingSet(parts, EXTRACTOR, on_bad_row="skip")
    assert training.skipped == []
    with pytest.warns(UserWarning, match="is skipped") as warned:
        replaced = epoch(training, 1)
    assert len(warned) == len(training.skipped) == 3
    assert all("is not finite" in message for message in training.skipped)
    bad = {f"a.edf at {index} s (a)" for index in (2, 3, 4)}
    for was, now in zip(clean, replaced, strict=True):
        assert now == was if was not in bad else now[0] == "a" and now not in bad
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        assert epoch(training, 1) == replaced
        later = [epoch(training, number) for number in range(2, 32)]
    # in thirty epochs each of the seven others has stood in for a bad one
    assert len({name for order in later for name, times in Counter(order).items() if times > 1}) == 7
    resumed = TrainingSet(parts, EXTRACTOR, on_bad_row="skip")
    resumed.set_epoch(1)
    with pytest.warns(UserWarning, match="is skipped"):
        assert [row_name(resumed[index]) for index in reversed(range(20))] == replaced[::-1]


def test_a_part_without_a_usable_row() -> None:
    training = TrainingSet([(spoil(rows("a", 2), 0, 1), WORKLOAD)], EXTRACTOR, on_bad_row="skip")
    with (
        pytest.warns(UserWarning, match="is skipped"),
        pytest.raises(ValueError, match=r"None of the 2 rows of part 0 \(Workload\) can be used"),
    ):
        training[0]


def test_another_recipe_is_no_row_to_skip() -> None:
    training = TrainingSet([(rows("a", 2, recipe_id="deadbeef0000"), None)], EXTRACTOR, on_bad_row="skip")
    with pytest.raises(RecipeMismatchError, match=r"a\.edf at . s \(a\): prepared by recipe deadbeef0000"):
        training[0]


def test_workers_that_live_on_follow_the_epoch_and_report_what_they_skip() -> None:
    parts = [(spoil(rows("a", 8), 5), None)]
    training = TrainingSet(parts, EXTRACTOR, on_bad_row="skip")
    plain = TrainingSet(parts, EXTRACTOR, on_bad_row="skip")
    loader = DataLoader(training, batch_size=2, num_workers=2, persistent_workers=True, collate_fn=names)
    for number in range(3):
        training.set_epoch(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert [name for batch in loader for name in batch] == epoch(plain, number)
    assert training.skipped == plain.skipped
    assert len(training.skipped) == 1


def test_a_training_set_can_be_handed_to_another_process() -> None:
    training = TrainingSet([(rows("a", 5), WORKLOAD)], EXTRACTOR)
    training.set_epoch(1)
    assert names(pickle.loads(pickle.dumps(training))) == names(training)


def test_prepared_sets_are_mixed(tmp_path: Path) -> None:
    recordings = [("a.edf", "a", "train"), ("b.edf", "b", "train"), ("c.edf", "c", "test")]
    folders = [write_prepared(tmp_path / task.name, recordings, task.name) for task in (WORKLOAD, SLEEP)]
    extractor = EEGFeatureExtractor(notch_frequency=50)
    assert {prepared_recipe_id(folder) for folder in folders} == {extractor.recipe_id}
    parts = [(load_prepared(folder, "train"), prepared_task(folder)) for folder in folders]
    training = TrainingSet(parts, extractor, weights=[3, 1])
    texts = [task.training_text(answer) for task in (WORKLOAD, SLEEP) for answer in task.classes]
    processor = NeuroLMProcessor(extractor, train_text_tokenizer(texts, vocab_size=400))
    batch = InstructionCollator(processor)(list(training))
    asked = Counter("workload" in processor.decode(ids) for ids in batch["input_ids"])
    assert asked == {True: 6, False: 2}
    assert set(batch["rows"]) <= {f"{name}.edf at {start} s ({name})" for name in "ab" for start in (0, 4)}


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    given = {"per_device_train_batch_size": 2, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 4}
    plain = {"report_to": [], "remove_unused_columns": False, "use_cpu": True, "disable_tqdm": True}
    return TrainingArguments(str(folder), **{**given, **plain, **changes})


@pytest.mark.parametrize("workers", [0, 1])
def test_the_trainer_reads_epochs_in_order_and_goes_on_where_it_stopped(tmp_path: Path, workers: int) -> None:
    """Its sampler must be sequential, `set_epoch` must reach the set, and a resumed training must meet the rest."""
    parts = [(rows("a", 4), None), (rows("b", 2), None)]
    seen: list[str] = []

    class Recorded(NeuroLMTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
            seen.extend(inputs["rows"])
            return super().training_step(model, inputs, *args, **kwargs)

    def train(**resume: Any) -> list[str]:
        seen.clear()
        Recorded(
            model=NeuroLMVQModel(vq_config(num_channel_embeddings=256)),
            args=arguments(tmp_path, dataloader_num_workers=workers, dataloader_persistent_workers=workers > 0),
            train_dataset=TrainingSet(parts, EXTRACTOR, seed=1),
            data_collator=EEGCollator(EXTRACTOR),
            callbacks=[CodebookCallback()],
        ).train(**resume)
        return list(seen)

    expected = [name for number in range(3) for name in epoch(TrainingSet(parts, EXTRACTOR, seed=1), number)]
    assert train() == expected
    assert train(resume_from_checkpoint=str(tmp_path / "checkpoint-4")) == expected[8:]


def mixed(count: int = 48) -> list[dict]:
    """Windows of one to six seconds."""
    seconds = np.random.default_rng(0).integers(1, 7, size=count).tolist()
    return [
        {**row, "signal": np.ones((2, 200 * length), np.float32)}
        for row, length in zip(rows("a", count), seconds, strict=True)
    ]


def grouped(training: TrainingSet, number: int, *given: Any) -> list[int]:
    training.set_epoch(number)
    sampler = StepSampler(training, *given)
    places = list(sampler)
    assert len(sampler) == len(places)
    return places


def padding(training: TrainingSet, places: list[int], batch_size: int) -> float:
    """Share of the patches of an epoch's batches that is padding."""
    lengths = training.lengths()[places]
    batches = [lengths[start : start + batch_size] for start in range(0, len(lengths), batch_size)]
    return 1 - lengths.sum() / sum(len(batch) * batch.max() for batch in batches)


def test_windows_of_a_step_are_grouped_by_length_and_the_step_stays_as_drawn() -> None:
    training = TrainingSet([(mixed(), None)], EXTRACTOR, seed=2)
    assert grouped(training, 4, 4, 1, 4) != grouped(training, 3, 4, 1, 4)
    places = grouped(training, 3, 4, 1, 4)
    lengths = training.lengths()
    assert lengths.tolist() == [row["signal"].size // 200 for row in training]
    for start in range(0, 48, 16):
        step = places[start : start + 16]
        assert sorted(step) == list(range(start, start + 16))
        assert lengths[step].tolist() == sorted(lengths[step].tolist())
    # a place keeps its draw, and so its texts and its augmentation
    assert [training[place]["draw"] for place in places[:3]] == [(2, 3, place) for place in places[:3]]
    assert padding(training, list(range(48)), 4) > 0.25
    assert padding(training, places, 4) < 0.15


def test_what_cannot_be_grouped_stays_as_it_was_drawn() -> None:
    """A step of one micro-batch; the first step, whose first micro-batch places the codebook."""
    training = TrainingSet([(mixed(), None)], EXTRACTOR)
    assert grouped(training, 2, 16) == list(range(48))
    first = grouped(training, 0, 4, 1, 4)
    assert first[:16] == list(range(16))
    assert first[16:] != list(range(16, 48))
    assert grouped(training, 1, 4, 1, 4)[:16] != list(range(16))


def test_steps_in_which_k_means_places_a_codebook_stay_as_drawn() -> None:
    training = TrainingSet([(mixed(), None)], EXTRACTOR, seed=2)
    # three steps of 16 an epoch: the second step of the second epoch is step 4
    for number, drawn in ((0, 0), (1, 1), (2, None)):
        places = grouped(training, number, 4, 1, 4, False, {0, 4})
        lengths = training.lengths()
        for step in range(3):
            given = places[16 * step : 16 * step + 16]
            if step == drawn:
                assert given == list(range(16 * step, 16 * step + 16))
            else:
                assert lengths[given].tolist() == sorted(lengths[given].tolist())


@pytest.mark.parametrize("count", [48, 45, 3])
@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("devices", [1, 2])
def test_an_epoch_ends_with_the_windows_that_it_would_end_with_without_groups(
    count: int, drop: bool, devices: int
) -> None:
    """Filled up by the first windows where several devices need equally many (accelerate would take the shortest)."""
    training = TrainingSet([(mixed(count), None)], EXTRACTOR)
    plain = BatchSampler(range(count), 4, drop)
    expected = [list(BatchSamplerShard(plain, devices, rank)) for rank in range(devices)]
    own = BatchSampler(StepSampler(training, 4, devices, 3, drop), 4, drop)
    given = [list(BatchSamplerShard(own, devices, rank)) for rank in range(devices)]
    assert len(given[0]) == len(given[-1])
    for step in range(0, len(expected[0]), 3):
        ours, theirs = (
            sorted(place for rank in ranks for batch in rank[step : step + 3] for place in batch)
            for ranks in (given, expected)
        )
        assert ours == theirs


def test_lengths_of_prepared_sets_are_those_of_their_rows(tmp_path: Path) -> None:
    recordings = [("a.edf", "a", "train"), ("b.edf", "b", "train")]
    read = load_prepared(write_prepared(tmp_path, recordings), "train")
    parts = [(read, WORKLOAD), (read.select([3, 1]), WORKLOAD), (mixed(5), None), ([*rows("c", 1), None], None)]
    training = TrainingSet(parts, EEGFeatureExtractor(notch_frequency=50), on_bad_row="skip")
    training.set_epoch(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [row["signal"].size // 200 for row in training]
    bad = [index for index, length in enumerate(training.lengths()) if length == 0]
    assert len(bad) == 1
    assert [n for i, n in enumerate(training.lengths()) if i not in bad] == [
        n for i, n in enumerate(expected) if i not in bad
    ]


def steps_of(folder: Path, groups: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[list[dict], list[float], list[int]]:
    """Gradients, losses and padded patches of the steps of two epochs, five or six windows in micro-batches of two."""
    training = TrainingSet([(ROWS * 3, None)], EXTRACTOR, seed=1)
    kept, patches = GradientCallback(), []
    stage = stages()["pretraining"]
    collate = stage.collator(0.5)

    def counted(rows: Any) -> dict:
        batch = collate(rows)
        patches.append(batch["eeg_attention_mask"].numel())
        return batch

    with monkeypatch.context() as context:
        if not groups:
            context.setattr(StepSampler, "__iter__", lambda self: iter(range(len(self))))
        trainer = NeuroLMTrainer(
            model=stage.model(),
            args=fixed(folder, max_steps=8, gradient_accumulation_steps=3),
            train_dataset=training,
            data_collator=counted,
            callbacks=[kept],
        )
        trainer.train()
    return kept.steps, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry], patches


def test_groups_change_neither_a_step_s_gradient_nor_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, losses, patches = steps_of(tmp_path, True, monkeypatch)
    expected, expected_losses, more_patches = steps_of(tmp_path, False, monkeypatch)
    assert len(given) == 8
    assert_same_steps(given, expected)
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    assert sum(patches) < 0.9 * sum(more_patches)


def test_groups_go_on_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    seen: list[tuple] = []

    class Recorded(TrainingSet):
        def __getitem__(self, index: int) -> Any:
            seen.append((self.epoch, index))
            return super().__getitem__(index)

    def train(**resume: Any) -> list[tuple]:
        seen.clear()
        NeuroLMTrainer(
            model=NeuroLMVQModel(vq_config(num_channel_embeddings=256)),
            args=arguments(tmp_path, gradient_accumulation_steps=3, save_steps=1, num_train_epochs=2),
            train_dataset=Recorded([(mixed(16), None)], EXTRACTOR),
            data_collator=EEGCollator(EXTRACTOR),
            callbacks=[CodebookCallback()],
        ).train(**resume)
        return list(seen)

    whole = train()
    assert whole[16:] != sorted(whole[16:])
    assert train(resume_from_checkpoint=str(tmp_path / "checkpoint-4")) == whole[16 + 6 :]


def test_windows_of_an_evaluation_are_sorted_by_length(tmp_path: Path) -> None:
    seen: list[int] = []

    def collate(rows: Any) -> dict:
        seen.extend(row["signal"].size for row in rows)
        return EEGCollator(EXTRACTOR)(rows)

    trainer = NeuroLMTrainer(
        model=NeuroLMVQModel(vq_config(num_channel_embeddings=256)),
        args=arguments(tmp_path, per_device_eval_batch_size=4),
        eval_dataset=TrainingSet([(mixed(10), None)], EXTRACTOR),
        data_collator=collate,
    )
    metrics = trainer.evaluate()
    assert seen == sorted(row["signal"].size for row in mixed(10))
    plain = NeuroLMTrainer(
        model=trainer.model, args=trainer.args, eval_dataset=mixed(10), data_collator=EEGCollator(EXTRACTOR)
    ).evaluate()
    for name in ("eval_loss", "eval_frequency_loss", "eval_raw_loss"):
        assert metrics[name] == pytest.approx(plain[name], rel=1e-6)
