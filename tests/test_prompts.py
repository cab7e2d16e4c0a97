"""Prompts and answers as ids, with tokenizers as GPT-2's and as Llama 2's: what is trained on is what is scored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_trainings import language_model, row
from stage_folders import write_metaspace_tokenizer, write_tokenizer
from tokenizers.processors import TemplateProcessing

from neurolm_hf.collators import InstructionCollator
from neurolm_hf.processing_neurolm import EEGFeatureExtractor, NeuroLMProcessor, build_text_tokenizer
from neurolm_hf.prompts import completion_ids, prompt_ids
from neurolm_hf.scoring import answer_probabilities
from neurolm_hf.tasks import load_task
from neurolm_hf.validation import answer_counts


LETTERED, PLAIN = load_task("HMC"), load_task("Workload")
TASKS = (LETTERED, PLAIN)
WINDOWS = [row(seed=1), row(("FP1", "O2"), 3, seed=2)]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    write = {"gpt2": write_tokenizer, "llama": write_metaspace_tokenizer}[request.param]
    return build_text_tokenizer(write(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def processor(tokenizer: Any) -> NeuroLMProcessor:
    return NeuroLMProcessor(EEGFeatureExtractor(), tokenizer)


def test_a_byte_level_tokenizer_gives_the_tokens_of_the_whole_text(tmp_path: Path) -> None:
    tokenizer = build_text_tokenizer(write_tokenizer(tmp_path))
    for task in TASKS:
        for answer in task.classes:
            ids = prompt_ids(tokenizer, task) + completion_ids(tokenizer, task, answer)
            assert ids == tokenizer(task.training_text(answer))["input_ids"]


def test_a_metaspace_tokenizer_would_join_prompt_and_answer(tmp_path: Path) -> None:
    """What the other tests are about does happen with this tokenizer."""
    tokenizer: Any = build_text_tokenizer(write_metaspace_tokenizer(tmp_path))
    whole = tokenizer(LETTERED.training_text("(B)", "</s>"))["input_ids"]
    prompt = tokenizer(LETTERED.prompt())["input_ids"]
    assert whole[: len(prompt)] != prompt
    assert prompt[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("task", TASKS, ids=["lettered", "plain"])
def test_answers_differ_and_end_with_the_tokenizer_s_end_of_text(tokenizer: Any, task: Any) -> None:
    answers = [completion_ids(tokenizer, task, answer) for answer in task.classes]
    assert len({tuple(ids) for ids in answers}) == len(answers)
    for ids, answer in zip(answers, task.classes, strict=True):
        assert ids.count(tokenizer.eos_token_id) == 1
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.bos_token_id == tokenizer.eos_token_id or tokenizer.bos_token_id not in ids
        assert answer.removeprefix("(") in tokenizer.decode(ids)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("task", TASKS, ids=["lettered", "plain"])
def test_rows_are_the_processor_s_prompt_and_the_answer(processor: NeuroLMProcessor, task: Any, side: str) -> None:
    rows = [{**WINDOWS[index % 2], "answer": answer} for index, answer in enumerate(task.classes)]
    processor.tokenizer.padding_side = side
    batch = InstructionCollator(processor, task)(rows)
    processor.tokenizer.padding_side = "left"
    for given, ids, labels, mask in zip(
        rows, batch["input_ids"], batch["labels"], batch["attention_mask"].bool(), strict=True
    ):
        asked = processor(
            eeg=given["signal"],
            text=task.prompt(),
            ch_names=given["channels"],
            prepared_by=processor.feature_extractor.recipe_id,
        )["input_ids"][0]
        answer = completion_ids(processor.tokenizer, task, given["answer"])
        assert ids[mask].tolist() == asked + answer
        assert asked[-len(prompt_ids(processor.tokenizer, task)) :] == prompt_ids(processor.tokenizer, task)
        assert labels[mask].tolist() == [-100] * len(asked) + answer
        assert (labels[~mask] == -100).all()


@pytest.mark.parametrize("task", TASKS, ids=["lettered", "plain"])
def test_scores_are_the_likelihoods_of_what_is_trained_on(processor: NeuroLMProcessor, task: Any) -> None:
    model = language_model(processor).eval()
    collate = InstructionCollator(processor, task)
    likelihoods = np.empty((len(WINDOWS), len(task.classes)))
    for window, given in enumerate(WINDOWS):
        for index, answer in enumerate(task.classes):
            batch = collate([{**given, "answer": answer}])
            batch.pop("rows")
            with torch.no_grad():
                outputs = model(**batch)
            # among text tokens, as scores are
            logits = outputs.logits[outputs.targets != -100][:, : model.lm_head.out_features]
            targets = outputs.targets[outputs.targets != -100]
            likelihoods[window, index] = -torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    expected = np.exp(likelihoods) / np.exp(likelihoods).sum(1, keepdims=True)
    probabilities = answer_probabilities(
        model,
        processor,
        [given["signal"] for given in WINDOWS],
        task,
        ch_names=[given["channels"] for given in WINDOWS],
        prepared_by=processor.feature_extractor.recipe_id,
    )
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4)
    # and so does validation answer
    rows = [{**given, "answer": task.classes[0]} for given in WINDOWS]
    counts = answer_counts(model, processor, task, rows, batch_size=2)
    assert counts[0].tolist() == np.bincount(expected.argmax(1), minlength=len(task.classes)).tolist()


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizer: Any = build_text_tokenizer(write_metaspace_tokenizer(tmp_path))
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no end of text"):
        completion_ids(tokenizer, PLAIN, "Yes")


def test_a_tokenizer_that_ends_every_text_is_refused(tmp_path: Path) -> None:
    tokenizer: Any = build_text_tokenizer(write_metaspace_tokenizer(tmp_path))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A </s>", None, [("<s>", 1), ("</s>", 2)])
    with pytest.raises(ValueError, match="ends every text by itself"):
        completion_ids(tokenizer, PLAIN, "Yes")
