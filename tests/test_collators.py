"""Batches from rows: padding, labels, prompts, texts that join, and what a row's draw decides."""

import copy

import numpy as np
import pytest
import torch
from small_trainings import language_model
from tiny import vq_config
from tokenizers.processors import TemplateProcessing

from neurolm_hf import NeuroLMVQForPreTraining, NeuroLMVQModel
from neurolm_hf.channels_neurolm import CHANNEL_VOCABULARY
from neurolm_hf.collators import (
    ClassificationCollator,
    EEGCollator,
    InstructionCollator,
    MaskedCollator,
    PretrainingCollator,
    checked_signal,
    drop_channels,
    window_segment,
)
from neurolm_hf.modeling_labram import masked_counts
from neurolm_hf.processing_neurolm import (
    LABRAM_LAYOUT,
    EEGFeatureExtractor,
    NeuroLMProcessor,
    train_text_tokenizer,
)
from neurolm_hf.storage import encode_row
from neurolm_hf.tasks import load_task
from neurolm_hf.training_set import TrainingSet


TASK = load_task("Workload")
TEXTS = ["Alpha fades during work.", "Theta grows over the midline."]


def row(channels: tuple[str, ...] = ("C3", "C4", "CZ"), seconds: int = 2, answer: str = "Yes", seed: int = 0) -> dict:
    signal = np.random.default_rng(seed).normal(size=(len(channels), 200 * seconds)).astype(np.float32)
    return {"signal": signal, "channels": list(channels), "answer": answer, "label": TASK.answers[answer]}


HOLE = np.where(np.arange(1200).reshape(3, 400) == 450, np.nan, 0.5)
ROWS = [
    row(),
    row(("FP1", "O2"), 3, "No", seed=1),
    row(("PZ",), 2, "Yes", seed=2),
    row(("FP1", "CZ"), 2, "No", seed=3),
]


@pytest.fixture(scope="module")
def processor() -> NeuroLMProcessor:
    texts = [*TEXTS, *(TASK.training_text(answer) for answer in TASK.classes)]
    return NeuroLMProcessor(EEGFeatureExtractor(), train_text_tokenizer(texts, vocab_size=320))


def tensors(batch: dict) -> dict[str, torch.Tensor]:
    """What the models read of a batch."""
    return {name: value for name, value in batch.items() if name != "rows"}


def test_window_is_time_major_with_the_vocabulary_s_ids() -> None:
    segment = window_segment(EEGFeatureExtractor(), ROWS[1])
    assert segment.time_ids.tolist() == [0, 0, 1, 1, 2, 2]
    assert [CHANNEL_VOCABULARY[index] for index in segment.channel_ids] == ["FP1", "O2"] * 3
    np.testing.assert_array_equal(segment.values[3], ROWS[1]["signal"][1, 200:400])


def test_the_same_rows_come_as_labram_reads_them() -> None:
    extractor = EEGFeatureExtractor(**LABRAM_LAYOUT)
    segment = window_segment(extractor, ROWS[1])
    assert segment.time_ids.tolist() == [0, 1, 2] * 2
    assert [CHANNEL_VOCABULARY[index - 1] for index in segment.channel_ids] == ["FP1"] * 3 + ["O2"] * 3
    np.testing.assert_array_equal(segment.values[3], ROWS[1]["signal"][1, :200])
    batch = ClassificationCollator(NeuroLMProcessor(extractor))([ROWS[1], ROWS[2]])
    assert list(batch) == ["input_values", "eeg_channel_ids", "eeg_time_ids", "eeg_attention_mask", "rows", "labels"]
    pz = CHANNEL_VOCABULARY.index("PZ") + 1
    assert batch["eeg_channel_ids"].tolist() == [segment.channel_ids.tolist(), [pz, pz, 0, 0, 0, 0]]
    assert batch["eeg_attention_mask"].sum(1).tolist() == [6, 2]


@pytest.mark.parametrize("with_draw", [False, True])
def test_what_the_model_has_no_row_for_is_named(with_draw: bool) -> None:
    labram, neurolm = EEGFeatureExtractor(**LABRAM_LAYOUT), EEGFeatureExtractor()
    pairs = row(("P8-O2", "FP1-F3", "I1"))
    for given, message in (
        (pairs, r"b.edf at 2 s: this model has no row for FP1-F3, I1: .* first 128 names .*`drop_channels`"),
        (row(("CZ",), seconds=17), r"b.edf at 2 s: the window has 17 s, and this model reads 16 s at most"),
    ):
        given = {**given, "recording": "b.edf", "start": 2.0}
        window_segment(neurolm, given)
        with pytest.raises(ValueError, match=message):
            TrainingSet([([given], None)], labram)[0] if with_draw else window_segment(labram, given)
    assert len(window_segment(labram, row(("CZ",), seconds=16)).values) == 16


def stored(given: dict) -> dict:
    """The row as a prepared set holds it."""
    place = {"subject": "s", "recording": "a.edf", "start": 0.0}
    recipe = {"sampling_rate": 200, "unit": "100uV", "recipe_id": EEGFeatureExtractor().recipe_id}
    row = encode_row(given["signal"], given["channels"], **place, **recipe, task=TASK, answer=given["answer"])
    return {**row, "signal": np.asarray(row["signal"], np.float32), "channels": np.array(row["channels"], object)}


@pytest.mark.parametrize("index", range(4))
def test_stored_rows_give_the_batches_of_plain_ones(processor: NeuroLMProcessor, index: int) -> None:
    rounded = [{**one, "signal": one["signal"].astype(np.float16)} for one in ROWS]
    collate = collators(processor)[index]
    plain, read = collate(rounded), collate([stored(one) for one in ROWS])
    assert plain.keys() == read.keys()
    assert all(torch.equal(value, read[name]) for name, value in tensors(plain).items())


def test_channels_of_a_stored_row_are_dropped_with_their_signal() -> None:
    kept = drop_channels(stored(ROWS[0]), 0.5, np.random.default_rng(0))
    assert 0 < len(kept["channels"]) < 3
    for name, signal in zip(kept["channels"], kept["signal"], strict=True):
        np.testing.assert_allclose(signal, ROWS[0]["signal"][ROWS[0]["channels"].index(name)], rtol=1e-3, atol=1e-6)


def test_eeg_collator_pads_different_montages() -> None:
    batch = EEGCollator(EEGFeatureExtractor())(ROWS)
    assert batch["input_values"].shape == (4, 6, 200)
    assert batch["eeg_attention_mask"].sum(1).tolist() == [6, 6, 2, 4]
    assert set(batch) == {"input_values", "eeg_channel_ids", "eeg_time_ids", "eeg_attention_mask", "rows"}
    NeuroLMVQModel(vq_config(num_channel_embeddings=256))(**tensors(batch))


def test_pretraining_labels_are_every_patch_and_the_text(processor: NeuroLMProcessor) -> None:
    batch = PretrainingCollator(processor, TEXTS, texts_per_row=0.5)(ROWS)
    is_eeg = batch["input_ids"] == processor.eeg_token_id
    assert is_eeg.sum(1).tolist() == [6, 6, 2, 4]
    assert torch.equal(batch["labels"] == processor.eeg_token_id, is_eeg)
    # no wider than the EEG, whatever the texts
    assert batch["input_ids"].shape == (4, 6)
    assert len(batch["text_input_ids"]) == 2
    for text in texts_of(processor, batch):
        assert text.removesuffix("<|endoftext|>") in TEXTS
        assert text.endswith("<|endoftext|>")
    outputs = language_model(processor)(**tensors(batch))
    assert outputs.eeg_loss is not None
    assert outputs.text_loss is not None


def texts_of(processor: NeuroLMProcessor, batch: dict) -> list[str]:
    real = batch["text_attention_mask"].bool()
    return [processor.decode(ids[mask]) for ids, mask in zip(batch["text_input_ids"], real, strict=True)]


def test_pretraining_collator_needs_texts_to_draw_from(processor: NeuroLMProcessor) -> None:
    with pytest.raises(ValueError, match="needs `texts`"):
        PretrainingCollator(processor, texts_per_row=1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_instruction_labels_are_what_follows_the_prompt(processor: NeuroLMProcessor, side: str) -> None:
    processor.tokenizer.padding_side = side
    batch = InstructionCollator(processor, TASK)(ROWS)
    processor.tokenizer.padding_side = "left"
    for given, labels in zip(ROWS, batch["labels"], strict=True):
        assert processor.tokenizer.decode(labels[labels != -100]) == f" {given['answer']} <|endoftext|>"
    prompts = batch["input_ids"].masked_fill((batch["labels"] != -100) | (batch["attention_mask"] == 0), 0)
    for ids, mask, labels in zip(prompts, batch["attention_mask"], batch["labels"], strict=True):
        kept = ids[mask.bool() & (labels == -100) & (ids != processor.eeg_token_id)]
        assert processor.tokenizer.decode(kept) == TASK.prompt()


def test_classes_values_and_several_labels(processor: NeuroLMProcessor) -> None:
    collate = ClassificationCollator(processor)
    for labels in ([1, 0, 1, 0], [np.int64(1), 0, 1, 0]):
        batch = collate([{**one, "label": label} for one, label in zip(ROWS, labels, strict=True)])
        assert batch["labels"].dtype == torch.int64
        assert batch["labels"].tolist() == labels
    values = collate([{**one, "label": -1.0 + place} for place, one in enumerate(ROWS)])["labels"]
    assert (values.dtype, values.tolist()) == (torch.float32, [-1.0, 0.0, 1.0, 2.0])
    several = collate([{**one, "label": [0.0, 1.0, 1.0]} for one in ROWS])["labels"]
    assert (several.dtype, several.shape) == (torch.float32, (4, 3))
    for label in ({"label": -1}, {"label": None}):
        with pytest.raises(ValueError, match="a window at 0 s has no label"):
            collate([ROWS[0], {**ROWS[1], **label}])


def test_a_classifier_reads_eeg_with_or_without_the_question(processor: NeuroLMProcessor) -> None:
    plain = ClassificationCollator(processor)(ROWS)
    is_eeg = plain["input_ids"] == processor.eeg_token_id
    assert torch.equal(is_eeg, plain["attention_mask"].bool())
    assert is_eeg.sum(1).tolist() == [6, 6, 2, 4]
    asked = ClassificationCollator(processor, with_question=True, task=load_task("TUSL"))
    batch = asked([ROWS[0], {**ROWS[1], "task": TASK}])
    kept = (batch["attention_mask"] == 1) & (batch["input_ids"] != processor.eeg_token_id)
    prompts = [processor.tokenizer.decode(ids[mask]) for ids, mask in zip(batch["input_ids"], kept, strict=True)]
    assert prompts == [load_task("TUSL").prompt(), TASK.prompt()]
    # without a text tokenizer, what the neural tokenizer reads
    alone = NeuroLMProcessor(processor.feature_extractor)
    of_tokenizer = ClassificationCollator(alone)(ROWS)
    assert of_tokenizer.keys() == {*EEGCollator(alone.feature_extractor)(ROWS), "labels"}
    with pytest.raises(ValueError, match="A question needs a text tokenizer"):
        ClassificationCollator(alone, with_question=True)
    with pytest.raises(ValueError, match="no task whose question could be asked"):
        ClassificationCollator(processor, with_question=True)(ROWS)


def test_a_classifier_s_rows_lose_channels_by_their_draw(processor: NeuroLMProcessor) -> None:
    rows = [{**one, "draw": (0, 0, place)} for place, one in enumerate(ROWS * 4)]
    collate = ClassificationCollator(processor, channel_dropout=0.5)
    first, again = collate(rows), collate(rows)
    assert torch.equal(first["input_values"], again["input_values"])
    lengths = first["eeg_attention_mask"].sum(1)
    full = torch.tensor([6, 6, 2, 4] * 4)
    assert (lengths <= full).all()
    assert (lengths < full).any()
    assert (lengths > 0).all()


def test_instruction_labels_of_lettered_answers(processor: NeuroLMProcessor) -> None:
    lettered = load_task("TUSL")
    batch = InstructionCollator(processor, lettered)([{**ROWS[0], "answer": "(B)"}])
    labels = batch["labels"][0]
    assert processor.tokenizer.decode(labels[labels != -100]) == "B) <|endoftext|>"


def test_channel_dropout_keeps_signal_and_name_together() -> None:
    generator = np.random.default_rng(0)
    full = row(tuple(CHANNEL_VOCABULARY[:20]))
    counts = []
    for _ in range(200):
        kept = drop_channels(full, 0.3, generator)
        counts.append(len(kept["channels"]))
        for name, signal in zip(kept["channels"], kept["signal"], strict=True):
            np.testing.assert_array_equal(signal, full["signal"][full["channels"].index(name)])
    assert 13 < np.mean(counts) < 15
    assert drop_channels(full, 0.0, generator) is full
    assert len(drop_channels(row(("CZ",)), 1.0, generator)["channels"]) == 1


def collators(processor: NeuroLMProcessor) -> list:
    extractor = processor.feature_extractor
    of_language = [PretrainingCollator(processor), InstructionCollator(processor, TASK)]
    return [EEGCollator(extractor), *of_language, ClassificationCollator(processor)]


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        ({"recipe_id": "deadbeef0000"}, "a.edf at 4 s: prepared by recipe deadbeef0000"),
        ({"channels": ["C3", "Fp1", "CZ"]}, "a.edf at 4 s: Fp1"),
        ({"channels": ["C3", "C4"]}, "3 rows of signal for 2 channels"),
        (
            {"signal": HOLE},
            r"channel C4 is not finite at 4\.25",
        ),
    ],
)
def test_a_spoilt_window_is_named(processor: NeuroLMProcessor, index: int, spoilt: dict, message: str) -> None:
    bad = {**row(), "recording": "a.edf", "start": 4.0, **spoilt}
    with pytest.raises(ValueError, match=message):
        collators(processor)[index]([ROWS[0], bad])


def test_a_batch_names_its_windows(processor: NeuroLMProcessor) -> None:
    named = [{**ROWS[0], "recording": "a.edf", "start": 4.0, "subject": "s01"}, ROWS[2]]
    for collate in collators(processor):
        assert collate(named)["rows"] == ["a.edf at 4 s (s01)", "a window at 0 s"]


BLOCKS = [{"input_ids": np.arange(index, index + 40, dtype=np.uint16)} for index in range(5)]


def test_text_for_the_adversary() -> None:
    rows = [{**one, "draw": (0, 0, index)} for index, one in enumerate(ROWS)]
    collate = EEGCollator(EEGFeatureExtractor(), text_blocks=BLOCKS, texts_per_row=0.75)
    batch = collate(rows)
    assert batch["text_input_ids"].shape == (3, 40)
    assert all(text.tolist() in [block["input_ids"].tolist() for block in BLOCKS] for text in batch["text_input_ids"])
    assert torch.equal(collate(rows)["text_input_ids"], batch["text_input_ids"])
    drawn = {
        tuple(collate([{**one, "draw": (0, epoch, i)} for i, one in enumerate(ROWS)])["text_input_ids"][:, 0].tolist())
        for epoch in range(20)
    }
    assert len(drawn) > 10
    model = NeuroLMVQForPreTraining(vq_config(num_channel_embeddings=256))
    assert model(**tensors(batch)).text_alignment_loss is not None


@pytest.mark.parametrize("side", ["left", "right"])
def test_blocks_of_text_stand_beside_the_eeg(processor: NeuroLMProcessor, side: str) -> None:
    """Padded on the right whatever the side of the EEG, whose rows are those of a batch without text."""
    blocks = [{"input_ids": list(range(length))} for length in (12, 40)]
    rows = [{**one, "draw": (0, 0, index)} for index, one in enumerate(ROWS)]
    processor.tokenizer.padding_side = side
    collators_of = [PretrainingCollator(processor), InstructionCollator(processor, TASK)]
    with_text = [
        PretrainingCollator(processor, text_blocks=blocks, texts_per_row=1),
        InstructionCollator(processor, TASK, text_blocks=blocks, texts_per_row=1),
        EEGCollator(processor.feature_extractor, blocks, 1),
    ]
    alone = [tensors(collate(rows)) for collate in collators_of]
    batches = [tensors(collate(rows)) for collate in with_text]
    processor.tokenizer.padding_side = "left"
    for batch in batches:
        ids, mask = batch.pop("text_input_ids"), batch.pop("text_attention_mask")
        assert ids.shape == mask.shape == (4, 40)
        lengths = mask.sum(1).tolist()
        assert set(lengths) == {12, 40}
        for text, length in zip(ids.tolist(), lengths, strict=True):
            assert text[:length] == list(range(length))
        assert all(row == sorted(row, reverse=True) for row in mask.tolist())
    for batch, without in zip(batches, alone, strict=False):
        assert batch.keys() == without.keys()
        assert all(torch.equal(value, without[name]) for name, value in batch.items())


def test_a_batch_without_a_text_has_one_that_teaches_nothing(processor: NeuroLMProcessor) -> None:
    """All processes make the same passes, and none is taught to end a text, or judged on it."""
    row = {**ROWS[0], "draw": (0, 0, 0)}
    model = language_model(processor)
    given = {"texts": TEXTS, "texts_per_row": 0.5}
    for collate in (PretrainingCollator(processor, **given), InstructionCollator(processor, TASK, **given)):
        batch = tensors(collate([row]))
        assert batch["text_input_ids"].tolist() == [[processor.tokenizer.eos_token_id]]
        assert batch["text_attention_mask"].tolist() == [[1]]
        assert model(**batch).text_loss is None
        assert model.count_loss_items(**batch)[2] == 0
    adversary = NeuroLMVQForPreTraining(vq_config(num_channel_embeddings=256))
    batch = tensors(EEGCollator(processor.feature_extractor, BLOCKS, 0.5)([row]))
    assert batch["text_attention_mask"].tolist() == [[0]]
    assert adversary.count_loss_items(**batch)[2] == 0
    outputs = adversary(**batch)
    assert outputs.text_alignment_loss == 0
    batch.pop("text_input_ids")
    torch.testing.assert_close(outputs.loss, adversary(**batch).loss)


def test_texts_join_where_the_tokenizer_begins_every_text_with_a_token(processor: NeuroLMProcessor) -> None:
    """As Llama's does: blocks stay as they were prepared, and the token counts as part of a prompt."""
    begin = processor.tokenizer.convert_tokens_to_ids("[SEP]")
    tokenizer = copy.deepcopy(processor.tokenizer)
    template = TemplateProcessing(single="[SEP] $A", special_tokens=[("[SEP]", begin)])
    tokenizer.backend_tokenizer.post_processor = template
    other = NeuroLMProcessor(processor.feature_extractor, tokenizer)
    batch = InstructionCollator(other, TASK, text_blocks=BLOCKS, texts_per_row=0.25)(ROWS)
    assert batch["input_ids"][1][batch["attention_mask"][1].bool()][0] == begin
    assert batch["text_input_ids"][0].tolist() in [block["input_ids"].tolist() for block in BLOCKS]
    for given, labels in zip(ROWS, batch["labels"], strict=True):
        assert tokenizer.decode(labels[labels != -100]) == TASK.completion(given["answer"], "<|endoftext|>")


def test_sentences_join_instructions(processor: NeuroLMProcessor) -> None:
    batch = InstructionCollator(processor, TASK, texts=TEXTS, texts_per_row=0.25)(ROWS)
    (text,) = texts_of(processor, batch)
    assert text.removesuffix("<|endoftext|>") in TEXTS


def first_tokens(batch: dict) -> list[int]:
    """Of the texts in a batch; a single token is none."""
    return batch["text_input_ids"][batch["text_attention_mask"].sum(1) > 1, 0].tolist()


@pytest.mark.parametrize("texts_per_row", [0.25, 1 / 3, 1.0, 1.5])
def test_texts_do_not_depend_on_how_rows_fall_into_batches(processor: NeuroLMProcessor, texts_per_row: float) -> None:
    rows = [{**ROWS[index % 4], "draw": (3, 1, index)} for index in range(5, 17)]
    blocks = [{"input_ids": [number] * 8} for number in range(250)]
    adversary = EEGCollator(processor.feature_extractor, blocks, texts_per_row)
    pretraining = PretrainingCollator(processor, text_blocks=blocks, texts_per_row=texts_per_row)

    def drawn(size: int) -> list[tuple]:
        found: list[tuple] = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            ids, texts = (first_tokens(collate(part)) for collate in (pretraining, adversary))
            assert ids == texts
            found += ids
        return found

    whole = drawn(12)
    # texts of the rows before them
    assert len(whole) == int(17 * texts_per_row + 1e-9) - int(5 * texts_per_row + 1e-9)
    assert len(set(whole)) > len(whole) / 2
    for size in (1, 2, 3, 5):
        assert drawn(size) == whole


def test_rows_without_a_draw_bring_texts_by_their_place_in_the_batch(processor: NeuroLMProcessor) -> None:
    collate = PretrainingCollator(processor, TEXTS, texts_per_row=0.5)
    assert [len(first_tokens(collate(ROWS[:count]))) for count in (1, 2, 3, 4)] == [0, 1, 1, 2]


def test_rounding_loses_no_text(processor: NeuroLMProcessor) -> None:
    assert 49 * (1 / 49) < 1
    collate = PretrainingCollator(processor, TEXTS, texts_per_row=1 / 49)
    assert [len(first_tokens(collate([{**ROWS[0], "draw": (0, 0, i)}]))) for i in (47, 48, 49)] == [0, 1, 0]


def test_rows_of_a_training_set_are_checked_once(processor: NeuroLMProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = TrainingSet([(ROWS, TASK)], processor.feature_extractor)
    checked = []
    check = checked_signal
    for module in ("collators", "training_set"):
        monkeypatch.setattr(f"neurolm_hf.{module}.checked_signal", lambda *given: checked.append(1) or check(*given))
    for collate in collators(processor):
        collate([rows[index] for index in range(4)])
    assert len(checked) == 16
    # the recipe is another matter: it must be the collator's
    other = EEGCollator(EEGFeatureExtractor(scale=10.0))
    with pytest.raises(ValueError, match="prepared by recipe"):
        other([{**rows[0], "recipe_id": processor.feature_extractor.recipe_id}])


def test_text_of_another_tokenizer(processor: NeuroLMProcessor) -> None:
    blocks = [{"input_ids": [5, 50256]}]
    with pytest.raises(ValueError, match="token 50256, but the tokenizer has"):
        PretrainingCollator(processor, text_blocks=blocks, texts_per_row=1)(ROWS)


def test_texts_are_given_once_and_to_draw_from(processor: NeuroLMProcessor) -> None:
    with pytest.raises(ValueError, match="not both"):
        PretrainingCollator(processor, TEXTS, 1, text_blocks=BLOCKS)
    with pytest.raises(ValueError, match=r"0 or more, got -0\.5"):
        EEGCollator(EEGFeatureExtractor(), BLOCKS, texts_per_row=-0.5)
    with pytest.raises(ValueError, match="needs `texts`"):
        EEGCollator(EEGFeatureExtractor(), texts_per_row=1)
    with pytest.raises(ValueError, match="needs `texts`"):
        InstructionCollator(processor, TASK, texts_per_row=1)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_mixes_tasks(processor: NeuroLMProcessor, side: str) -> None:
    lettered = load_task("TUSL")
    mixed = [{**ROWS[0], "task": lettered, "answer": "(B)"}, {**ROWS[1], "task": None}, {**ROWS[2], "task": TASK}]
    processor.tokenizer.padding_side = side
    batch = InstructionCollator(processor, TASK)(mixed)
    processor.tokenizer.padding_side = "left"
    for one, ids, labels, mask in zip(
        mixed, batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True
    ):
        task = one["task"] or TASK
        assert processor.decode(ids[mask]) == task.training_text(one["answer"])
        assert processor.decode(labels[labels != -100]) == task.completion(one["answer"], "<|endoftext|>")


def test_shuffled_options_keep_what_is_meant(processor: NeuroLMProcessor) -> None:
    task = load_task("TUSL")
    meant = {"(A)": "background", "(B)": "seizure", "(C)": "slowing"}
    collate = InstructionCollator(processor, task, shuffle_options=True)
    rows = [{**ROWS[i % 4], "answer": task.classes[i % 3], "draw": (0, 0, i)} for i in range(30)]
    batch = collate(rows)
    letters = set()
    for one, ids, labels, mask in zip(
        rows, batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True
    ):
        letter = processor.decode(labels[labels != -100])[0]
        letters.add((one["answer"], letter))
        text = processor.decode(ids[mask])
        assert f"({letter}) {meant[one['answer']]}." in text
        assert text.endswith(f" Answer: ({letter}) <|endoftext|>")
    assert len(letters) == 9


def test_a_draw_decides_all_that_is_random_about_a_row(processor: NeuroLMProcessor) -> None:
    """Wherever the row stands, and whatever torch's generator has been through."""
    collate = InstructionCollator(processor, load_task("TUSL"), channel_dropout=0.5, shuffle_options=True)
    rows = [{**row(tuple(CHANNEL_VOCABULARY[:12])), "answer": "(A)", "draw": (1, 2, index)} for index in range(8)]

    def shown(batch: dict) -> list:
        names = ("eeg_channel_ids", "eeg_attention_mask", "input_ids", "attention_mask")
        return [
            (channels[real.bool()].tolist(), processor.decode(ids[mask.bool()]))
            for channels, real, ids, mask in zip(*(batch[name] for name in names), strict=True)
        ]

    before = shown(collate(rows))
    torch.manual_seed(5)
    assert shown(collate(rows[::-1])) == before[::-1]
    assert len({str(one) for one in before}) == 8
    later = shown(collate([{**one, "draw": (1, 3, one["draw"][2])} for one in rows]))
    assert all(one != other for one, other in zip(before, later, strict=True))


def test_torch_s_generator_decides_where_there_is_no_draw(processor: NeuroLMProcessor) -> None:
    collate = InstructionCollator(processor, TASK, channel_dropout=0.5)
    rows = [row(tuple(CHANNEL_VOCABULARY[:12]))] * 3
    batches = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        batches.append(collate(rows)["eeg_attention_mask"].sum(1).tolist() + collate(rows)["input_ids"].tolist())
    assert batches[0] == batches[1] != batches[2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"answer": "Maybe"},
            r"a\.edf at 4 s \(s01\): 'Maybe' is no answer of task Workload; its answers are No, Yes",
        ),
        ({"answer": None}, r"a\.edf at 4 s \(s01\): None is no answer"),
        ({"task": load_task("Corpus")}, r"a\.edf at 4 s \(s01\): 'Yes' is no answer of task Corpus"),
    ],
)
def test_an_answer_that_is_none_is_named(processor: NeuroLMProcessor, changes: dict, message: str) -> None:
    bad = {**ROWS[0], "recording": "a.edf", "start": 4.0, "subject": "s01", **changes}
    with pytest.raises(ValueError, match=message):
        InstructionCollator(processor, TASK)([ROWS[0], bad])


def test_a_row_without_a_task(processor: NeuroLMProcessor) -> None:
    with pytest.raises(ValueError, match="a window at 0 s: no task to ask"):
        InstructionCollator(processor)([ROWS[0]])


def test_a_half_of_the_real_patches_is_masked_rounded_up() -> None:
    rows = [row(("C3", "C4", "CZ"), 3), row(("PZ",), 1), row(("FP1", "O2"), 2), row(("C3",), 5)]
    batch = MaskedCollator(EEGFeatureExtractor())(rows)
    masked, real = batch["masked"], batch["eeg_attention_mask"].bool()
    assert masked.dtype == torch.bool
    assert real.sum(1).tolist() == [9, 1, 4, 5]
    assert masked.sum(1).tolist() == [5, 1, 2, 3]
    assert not (masked & ~real).any()
    assert MaskedCollator(EEGFeatureExtractor(), 0.25)(rows)["masked"].sum(1).tolist() == [3, 1, 1, 2]


def test_the_collator_masks_as_many_as_the_model() -> None:
    rows = [row(("C3",), seconds) for seconds in range(1, 17)]
    for share in (0.2, 0.5, 0.8):
        batch = MaskedCollator(EEGFeatureExtractor(), share)(rows)
        counts = masked_counts(batch["eeg_attention_mask"].bool(), share)
        assert torch.equal(batch["masked"].sum(1), counts)


def test_a_mask_is_its_row_s_own() -> None:
    """Whatever batch the row falls into, again when it is read again, another in each epoch."""
    collate, rows = MaskedCollator(EEGFeatureExtractor()), TrainingSet([(ROWS, None)], EEGFeatureExtractor(), seed=3)
    first = [rows[place] for place in range(len(rows))]
    whole = collate(first)["masked"]
    for place, one in enumerate(first):
        alone = collate([one])["masked"][0]
        assert torch.equal(whole[place, : len(alone)], alone)
    again = TrainingSet([(ROWS, None)], EEGFeatureExtractor(), seed=3)
    assert torch.equal(collate([again[place] for place in range(len(again))])["masked"], whole)
    masks = set()
    for epoch in range(20):
        rows.set_epoch(epoch)
        of_epoch = next(one for one in (rows[place] for place in range(len(rows))) if one["channels"][0] == "C3")
        masks.add(tuple(collate([of_epoch])["masked"][0].tolist()))
    # 20 ways to choose three of six patches
    assert len(masks) > 5


def test_all_patches_are_masked_equally_often() -> None:
    window = row(("C3", "C4"), 3)
    draws = [{**window, "draw": (0, epoch, 0)} for epoch in range(400)]
    share = MaskedCollator(EEGFeatureExtractor())(draws)["masked"].float().mean(0)
    assert (share - 0.5).abs().max() < 0.1  # four standard deviations
