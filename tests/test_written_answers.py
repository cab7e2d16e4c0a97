"""What a model writes, and how the reference reads it: by the number of a word, with its fallbacks."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score
from small_trainings import ROWS, TASK, language_model, make_processor
from stage_folders import TASKS, write_metaspace_tokenizer, write_tokenizer

from neurolm_hf.metrics import answer_metric
from neurolm_hf.pipeline_neurolm import parse_answer
from neurolm_hf.processing_neurolm import SEP_TOKEN, NeuroLMProcessor, build_text_tokenizer
from neurolm_hf.prompts import completion_ids, prompt_ids
from neurolm_hf.tasks import load_task
from neurolm_hf.written_answers import NO_ANSWER, reference_class, reference_scores, write_answers


END = "<|endoftext|>"
# Of the answer, among the words of the decoded text without [SEP], as the reference has them.
WORDS = {"TUAB": 7, "SEED": 11, "TUEV": 34, "TUSL": 17, "HMC": 22, "Workload": 9}
# What is written after the prompt, and what the reference makes of it.
WORDY = [
    (f" Yes {END}", 1),
    (f" No {END} and", 0),
    (" Yes", 1),
    (" Yes No", 1),
    (f" Yes{END}", NO_ANSWER),
    (" Yes.", NO_ANSWER),
    (" yes ", NO_ANSWER),
    ("  Yes ", NO_ANSWER),
    ("Yes ", NO_ANSWER),
    (" Maybe Yes", NO_ANSWER),
    # what stands before the first space belongs to the word `Answer:`
    (f"{END} Yes", 1),
    ("", NO_ANSWER),
]
LETTERED = [
    (f"A) {END}", 0),
    (f"E) {END}", 4),
    ("A)", 0),
    (f"B){END}", 1),
    ("C).", 2),
    ("C)D) ", 2),
    ("(A) ", NO_ANSWER),
    (" A) ", NO_ANSWER),
    ("F) ", NO_ANSWER),
    ("a) ", NO_ANSWER),
    ("A ", NO_ANSWER),
    ("", NO_ANSWER),
]


@pytest.mark.parametrize("name", WORDS)
def test_the_answer_is_the_word_that_the_reference_takes(name):
    task = load_task(name)
    for number, answer in enumerate(task.classes):
        written = task.completion(answer, END)
        words = (task.prompt().removeprefix(SEP_TOKEN) + written).split(" ")
        assert words[WORDS[name]] == answer
        assert reference_class(task, written) == number
        # one word later, it is not found
        assert reference_class(task, f"{' ' if not task.lettered else 'no '}so {written}") == NO_ANSWER


@pytest.mark.parametrize(("written", "expected"), WORDY)
def test_answers_in_words(written, expected):
    for name in ("Workload", "TUAB"):
        assert reference_class(load_task(name), written) == expected


@pytest.mark.parametrize(("written", "expected"), LETTERED)
def test_answers_in_letters(written, expected):
    assert reference_class(load_task("HMC"), written) == expected


def test_words_of_seed():
    task = load_task("SEED")
    texts = [f" Positive {END}", " Neutral", " Negative ", " negative", " Neutral,", " (Neutral)"]
    assert [reference_class(task, text) for text in texts] == [0, 1, 2, *[NO_ANSWER] * 3]


def test_no_answer_of_several_counts_as_the_last():
    task = load_task("HMC")
    scores = reference_scores(task, [0, 4, NO_ANSWER])
    np.testing.assert_array_equal(scores.argmax(axis=1), [0, 4, 4])
    np.testing.assert_array_equal(scores, np.eye(5)[[0, 4, 4]])


def test_no_answer_of_two_is_a_no_that_ranks_below_all():
    labels, classes = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, NO_ANSWER, 1, 1, NO_ANSWER])
    scores = reference_scores(load_task("Workload"), classes)
    expected = {
        "roc_auc": roc_auc_score(labels, classes),
        "accuracy": accuracy_score(labels, classes > 0.5),
        "balanced_accuracy": balanced_accuracy_score(labels, classes > 0.5),
    }
    for name, value in expected.items():
        metric, given = answer_metric(name, scores)
        assert metric(labels, given) == pytest.approx(value), name


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def model(processor):
    return language_model(processor).eval()


@pytest.mark.parametrize("as_reference", [False, True])
def test_what_is_written_does_not_depend_on_the_batch(model, processor, as_reference):
    alone, together = (write_answers(model, processor, ROWS, TASK, size, as_reference) for size in (1, len(ROWS)))
    assert alone == together
    assert len(set(alone)) > 1


def test_it_is_the_most_likely_text(model, processor):
    """Token by token, from the whole sequence each time."""
    row = ROWS[0]
    tokenizer = processor.tokenizer
    text, tokens = TASK.prompt(), []
    for _ in range(5):
        inputs = processor(
            eeg=row["signal"],
            text=text,
            ch_names=row["channels"],
            prepared_by=processor.feature_extractor.recipe_id,
            return_tensors="pt",
        )
        new = torch.tensor([tokens], dtype=torch.long)
        inputs = {
            **inputs,
            "input_ids": torch.cat([inputs["input_ids"], new], dim=1),
            "attention_mask": torch.cat([inputs["attention_mask"], torch.ones_like(new)], dim=1),
            "mm_token_type_ids": torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(new)], dim=1),
        }
        with torch.no_grad():
            logits = model(**inputs).logits[0, -1, : model.lm_head.out_features]
        logits[model.generation_config.suppress_tokens or []] = -torch.inf
        logits[processor.eeg_token_id] = -torch.inf
        tokens.append(int(logits.argmax()))
    prompt = prompt_ids(tokenizer, TASK)
    expected = tokenizer.decode(prompt + tokens)[len(tokenizer.decode(prompt)) :]
    assert write_answers(model, processor, [row], TASK, 1, as_reference=True) == [expected]


def test_special_tokens_are_spelt_out_for_the_reference_alone(model, processor, monkeypatch):
    tokenizer = processor.tokenizer
    answer = tokenizer(" Yes ", add_special_tokens=False)["input_ids"]
    new = torch.tensor([[*answer, tokenizer.eos_token_id, tokenizer.eos_token_id]])

    def generate(**inputs):
        return torch.cat([inputs["input_ids"], new.expand(len(inputs["input_ids"]), -1)], dim=1)

    monkeypatch.setattr(model, "generate", generate)
    end = tokenizer.eos_token
    assert write_answers(model, processor, ROWS[:1], TASK, 1, as_reference=True) == [f" Yes {end}{end}"]
    assert write_answers(model, processor, ROWS[:1], TASK, 1) == [" Yes "]


@pytest.mark.parametrize("write", [write_tokenizer, write_metaspace_tokenizer])
@pytest.mark.parametrize("name", TASKS)
def test_what_was_taught_is_read_back(write, name, model, processor, monkeypatch, tmp_path):
    """Whatever the text tokenizer does with a space at the beginning of a text."""
    tokenizer, task = build_text_tokenizer(write(tmp_path)), load_task(name)
    asked = NeuroLMProcessor(processor.feature_extractor, tokenizer)
    for number, answer in enumerate(task.classes):
        new = torch.tensor([completion_ids(tokenizer, task, answer)])

        def generate(new=new, **inputs):
            return torch.cat([inputs["input_ids"], new], dim=1)

        monkeypatch.setattr(model, "generate", generate)
        (written,) = write_answers(model, asked, ROWS[:1], task, 1)
        assert parse_answer(written, task.classes) == answer
        # the reference knows GPT-2's text tokenizer only; others may write a space where a text begins
        if write is write_tokenizer:
            (written,) = write_answers(model, asked, ROWS[:1], task, 1, as_reference=True)
            assert reference_class(task, written) == number
