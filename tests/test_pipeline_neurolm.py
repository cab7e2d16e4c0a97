"""The pipeline: against scores of every answer read alone, on every kind of input, and as it is saved with a model."""

from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas
import pytest
import torch
from tiny_pipeline import (
    CHANNELS,
    RATE,
    TASKS,
    WORKLOAD,
    as_dict,
    as_raw,
    microvolts,
    tiny_answerer,
    tiny_processor,
)
from transformers import pipeline

from neurolm_hf import EEGQuestionAnsweringPipeline, NeuroLMConfig, NeuroLMForCausalLM
from neurolm_hf.pipeline_neurolm import EEGAnswers, parse_answer
from neurolm_hf.processing_neurolm import (
    EEGFeatureExtractor,
    NeuroLMProcessor,
    continuation_ids,
    write_completion,
    write_prompt,
)


NAME = "eeg-question-answering"


@pytest.fixture(scope="module")
def processor() -> NeuroLMProcessor:
    return tiny_processor()


@pytest.fixture(scope="module")
def model(processor: NeuroLMProcessor) -> NeuroLMForCausalLM:
    return tiny_answerer(processor)


@pytest.fixture(scope="module")
def pipe(model: NeuroLMForCausalLM, processor: NeuroLMProcessor) -> EEGQuestionAnsweringPipeline:
    return pipeline(NAME, model=model, processor=processor, device="cpu")


@torch.no_grad()
def likelihoods_alone(pipe: Any, segments: list, prefix: list[int], question: str, answers: list[str]) -> torch.Tensor:
    """Of each answer, read in a sequence of its own."""
    tokenizer, found = pipe.processor.tokenizer, []
    for answer in answers:
        prompt = continuation_ids(tokenizer, write_prompt(question, answers))
        completion = continuation_ids(tokenizer, write_completion(answer, tokenizer.eos_token))
        ids = [*prefix, pipe.processor.eeg_token_id, *prompt, *completion]
        inputs = pipe.processor.interleave([(ids, segments)])
        logits = pipe.model(**inputs, text_logits_only=True).logits[0, -len(completion) - 1 : -1]
        found.append(logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None]).sum())
    return torch.stack(found)


def segments_of(pipe: Any, recording: Any, seconds: float, channels: list[str] = CHANNELS) -> list:
    extractor = EEGFeatureExtractor.from_dict(pipe.processor.feature_extractor.to_dict())
    extractor.window_seconds = seconds
    (prepared,) = extractor.prepare(recording)
    return extractor.cut(prepared.pick(channels))


def assert_same(given: EEGAnswers, wanted: EEGAnswers, tolerance: float = 1e-5) -> None:
    assert [(one["start"], one["end"], one["answer"]) for one in given] == [
        (one["start"], one["end"], one["answer"]) for one in wanted
    ]
    for one, other in zip(given, wanted, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=tolerance)


# --- answers


@pytest.mark.parametrize(("task", "seconds", "channels"), [("Workload", 2, CHANNELS), ("Sleep", 3, ["C3", "O2"])])
def test_each_window_has_the_probabilities_of_answers_read_alone(
    pipe: Any, task: str, seconds: float, channels: list[str]
) -> None:
    raw = as_raw(9)
    entry = next(one for one in TASKS if one["name"] == task)
    answers = pipe(raw, task=task)
    assert [(one["start"], one["end"]) for one in answers] == [
        (start, start + seconds) for start in range(0, 10 - seconds, seconds)
    ]
    for window, segment in zip(answers, segments_of(pipe, raw, seconds, channels), strict=True):
        alone = likelihoods_alone(pipe, [segment], [], entry["question"], entry["answers"])
        expected = dict(zip(entry["answers"], alone.softmax(0).tolist(), strict=True))
        assert window["probabilities"] == pytest.approx(expected, abs=1e-5)
        assert sum(window["probabilities"].values()) == pytest.approx(1)
        assert window["answer"] == max(expected, key=expected.get)
    assert len({one["probabilities"][entry["answers"][0]] for one in answers}) == len(answers)


def test_any_question_with_candidates(pipe: Any) -> None:
    raw, candidates = as_raw(4), ["Yes", "No", "More high workload"]
    (window,) = pipe(raw, question="Is it high?", candidate_answers=candidates)
    (segment,) = segments_of(pipe, raw, 4)
    alone = likelihoods_alone(pipe, [segment], [], "Question: Is it high?", candidates)
    assert list(window["probabilities"].values()) == pytest.approx(alone.softmax(0).tolist(), abs=1e-5)
    assert_same([window], pipe(raw, question="Question: Is it high?", candidate_answers=candidates))


def test_length_normalization_and_prior(pipe: Any) -> None:
    raw, candidates = as_raw(4), ["Yes", "More high workload"]
    asked = {"question": "Is it high?", "candidate_answers": candidates}
    (segment,) = segments_of(pipe, raw, 4)
    alone = likelihoods_alone(pipe, [segment], [], "Question: Is it high?", candidates).double()
    tokenizer = pipe.processor.tokenizer
    lengths = [len(continuation_ids(tokenizer, write_completion(one, tokenizer.eos_token))) for one in candidates]
    assert lengths[0] < lengths[1]
    (window,) = pipe(raw, **asked, length_normalization=True)
    expected = (alone / torch.tensor(lengths)).softmax(0).tolist()
    assert list(window["probabilities"].values()) == pytest.approx(expected, abs=1e-5)

    references = [as_raw(4, seed) for seed in (1, 2)]
    prior = pipe.measure_prior(references, **asked)
    logs = [[np.log(one["probabilities"][name]) for name in candidates] for (one,) in pipe(references, **asked)]
    geometric = np.exp(np.mean(logs, axis=0))
    assert list(prior.values()) == pytest.approx((geometric / geometric.sum()).tolist(), rel=1e-6)
    (window,) = pipe(raw, **asked, prior=prior)
    expected = alone.softmax(0).numpy() / geometric
    assert list(window["probabilities"].values()) == pytest.approx((expected / expected.sum()).tolist(), abs=1e-5)


def test_examples_stand_before_the_window(pipe: Any) -> None:
    raw, shown = as_raw(4), [(as_raw(2, seed=5), "Yes"), (as_dict(2, seed=6), "No")]
    cut = as_raw(7, seed=7)
    tokenizer = pipe.processor.tokenizer
    prefix, before = [], []
    for recording, answer in shown:
        raw_of = recording if not isinstance(recording, dict) else as_raw(2, seed=6)
        before += segments_of(pipe, raw_of, 2)
        prefix += [pipe.processor.eeg_token_id]
        prefix += continuation_ids(tokenizer, WORKLOAD.prompt())
        prefix += continuation_ids(tokenizer, WORKLOAD.completion(answer, tokenizer.eos_token))
    shown.append((cut, 3, "Yes"))
    before += segments_of(pipe, cut.copy().crop(3, 5, include_tmax=False), 2)
    prefix += [pipe.processor.eeg_token_id, *continuation_ids(tokenizer, WORKLOAD.prompt())]
    prefix += continuation_ids(tokenizer, WORKLOAD.completion("Yes", tokenizer.eos_token))
    answers, plain = pipe(raw, task="Workload", examples=shown), pipe(raw, task="Workload")
    for window, other, segment in zip(answers, plain, segments_of(pipe, raw, 2), strict=True):
        alone = likelihoods_alone(pipe, [*before, segment], prefix, WORKLOAD.question, list(WORKLOAD.classes))
        assert list(window["probabilities"].values()) == pytest.approx(alone.softmax(0).tolist(), abs=1e-5)
        assert window["probabilities"]["Yes"] != pytest.approx(other["probabilities"]["Yes"], abs=1e-6)


def test_examples_are_prepared_once_a_call(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, prepare = [], EEGFeatureExtractor.prepare

    def count(self: Any, recording: Any, *given: Any, **named: Any) -> Any:
        prepared.append(recording)
        return prepare(self, recording, *given, **named)

    monkeypatch.setattr(EEGFeatureExtractor, "prepare", count)
    pipe([as_raw(2, seed=1), as_raw(4, seed=2)], task="Workload", examples=[(as_raw(2, seed=5), "Yes")])
    assert len(prepared) == 3


def test_more_examples_than_the_model_has_positions(pipe: Any) -> None:
    shown = [(as_raw(2, seed=5), "Yes")] * 20
    with pytest.raises(ValueError, match=r"takes \d+ positions .* has 256: .* fewer examples"):
        pipe(as_raw(2), task="Workload", examples=shown)


def test_written_answers_stand_beside(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = as_raw(4)
    answers = pipe(raw, task="Workload", generate=True)
    assert_same(answers, pipe(raw, task="Workload"))
    prompt = continuation_ids(pipe.processor.tokenizer, WORKLOAD.prompt())
    for window, segment in zip(answers, segments_of(pipe, raw, 2), strict=True):
        inputs = pipe.processor.interleave([([pipe.processor.eeg_token_id, *prompt], [segment])])
        longest = 1 + max(len(continuation_ids(pipe.processor.tokenizer, f" {one} ")) for one in WORKLOAD.classes)
        written = pipe.model.generate(**inputs, max_new_tokens=longest, do_sample=False)
        text = pipe.processor.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert window["written"] == text.strip()
        assert window["parsed"] == parse_answer(text, WORKLOAD.classes)
    (free,) = pipe(raw, question="What is it?", window_seconds=4)
    assert free.keys() == {"start", "end", "written"}


@pytest.mark.parametrize(
    ("written", "answers", "expected"),
    [
        ("Yes", ("No", "Yes"), "Yes"),
        (" yes. ", ("No", "Yes"), "Yes"),
        ("Yes and no", ("No", "Yes"), None),
        ("", ("No", "Yes"), None),
        ("B)", ("(A)", "(B)"), "(B)"),
        ("(b)", ("(A)", "(B)"), "(B)"),
        ("B", ("(A)", "(B)"), None),
        ("A) or B)", ("(A)", "(B)"), None),
    ],
)
def test_parsing_guesses_nothing(written: str, answers: tuple[str, ...], expected: str | None) -> None:
    assert parse_answer(written, answers) == expected


# --- inputs


def test_paths_raws_arrays_and_epochs(pipe: Any, tmp_path: Path) -> None:
    raw = as_raw(6)
    expected = pipe(raw, task="Workload")
    assert_same(pipe(as_dict(6), task="Workload"), expected)
    raw.save(tmp_path / "night_raw.fif", verbose=False)
    assert_same(pipe(tmp_path / "night_raw.fif", task="Workload"), expected, 1e-4)
    assert_same(pipe(str(tmp_path / "night_raw.fif"), task="Workload"), expected, 1e-4)
    epochs = mne.make_fixed_length_epochs(raw, 2, preload=True, verbose=False)
    answers = pipe(epochs, task="Workload")
    assert [(one["epoch"], one["start"], one["end"]) for one in answers] == [(i, 0, 2) for i in range(3)]


def test_a_prepared_recording_is_read_no_more(pipe: Any) -> None:
    raw = as_raw(9)
    (prepared,) = pipe.processor.feature_extractor.prepare(raw)
    for task in ("Workload", "Sleep"):
        assert_same(pipe(prepared, task=task), pipe(raw, task=task))
    with pytest.raises(ValueError, match="leave unit='uV' out"):
        pipe(prepared, task="Sleep", unit="uV")


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_lists_and_generators_in_batches(pipe: Any, batch_size: int) -> None:
    recordings = [as_raw(4, seed=1), as_raw(7, seed=2), as_raw(1.5, seed=3)]
    expected = [pipe(one, task="Workload") for one in recordings]
    assert [len(one) for one in expected] == [2, 3, 1]
    given = pipe(recordings, task="Workload", batch_size=batch_size)
    assert isinstance(given, list)
    streamed = pipe((one for one in recordings), task="Workload", batch_size=batch_size)
    assert not isinstance(streamed, list)
    for answers in (given, list(streamed)):
        for one, other in zip(answers, expected, strict=True):
            assert isinstance(one, EEGAnswers)
            assert_same(one, other)


def test_sliding_windows(pipe: Any) -> None:
    answers = pipe(as_raw(6), task="Workload", window_seconds=3, stride_seconds=1)
    assert [(one["start"], one["end"]) for one in answers] == [(0, 3), (1, 4), (2, 5), (3, 6)]
    assert pipe.processor.feature_extractor.window_seconds == 4


def test_arguments_of_the_pipeline_hold_for_all_calls(model: Any, processor: Any) -> None:
    raw = as_raw(4)
    given = {"question": "Is it high?", "candidate_answers": ["Yes", "No"], "window_seconds": 2}
    fixed = model.as_pipeline(processor, device="cpu", batch_size=2, **given)
    plain = pipeline(NAME, model=model, processor=processor, device="cpu")
    assert_same(fixed(raw), plain(raw, **given))
    assert_same(fixed(raw, task="Sleep"), plain(raw, task="Sleep", window_seconds=2))


def test_a_pipeline_in_bfloat16_can_be_saved_and_opened(model: Any, processor: Any, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    half = pipeline(NAME, model=str(tmp_path / "model"), dtype="bfloat16", trust_remote_code=True, device="cpu")
    half.save_pretrained(tmp_path / "half")
    again = pipeline(NAME, model=str(tmp_path / "half"), trust_remote_code=True, device="cpu")
    assert again.model.dtype == torch.bfloat16
    assert_same(again(as_raw(4), task="Workload"), half(as_raw(4), task="Workload"))


def test_with_the_package_a_folder_s_code_needs_no_trust(pipe: Any, tmp_path: Path) -> None:
    pipe.model.save_pretrained(tmp_path)
    pipe.processor.save_pretrained(tmp_path)
    (tmp_path / "pipeline_neurolm.py").write_text("raise RuntimeError('this was run')")
    opened = pipeline(NAME, model=str(tmp_path), device="cpu")
    assert type(opened) is EEGQuestionAnsweringPipeline
    assert_same(opened(as_raw(4), task="Workload"), pipe(as_raw(4), task="Workload"))


def test_names_outside_the_vocabulary_as_the_task_says(model: Any, processor: Any) -> None:
    array = as_dict(2) | {"ch_names": ["C3", "C4", "Elbow"]}
    for entry, is_read in (({"unknown_channels": "drop"}, True), ({"unknown_channels": "raise"}, False), ({}, False)):
        plain = {name: value for name, value in TASKS[0].items() if name != "unknown_channels"}
        asked = NeuroLMForCausalLM(NeuroLMConfig.from_dict(model.config.to_dict() | {"tasks": [plain | entry]}))
        asks = pipeline(NAME, model=asked, processor=processor, device="cpu")
        if is_read:
            assert len(asks(array)) == 1
        else:
            with pytest.raises(ValueError, match="Elbow"):
                asks(array)


# --- tables and annotations


def test_a_table(pipe: Any, tmp_path: Path) -> None:
    answers = pipe(as_raw(6), task="Workload", generate=True)
    frame = answers.to_frame()
    assert list(frame.columns) == ["start", "end", "answer", "written", "parsed", "p(No)", "p(Yes)"]
    assert frame["p(Yes)"].tolist() == [one["probabilities"]["Yes"] for one in answers]
    answers.to_csv(tmp_path / "answers.csv")
    again = pandas.read_csv(tmp_path / "answers.csv")
    assert again["p(No)"].tolist() == pytest.approx(frame["p(No)"].tolist())
    assert list(again.columns) == list(frame.columns)
    assert EEGAnswers().to_frame().empty


def test_annotations_lie_where_the_windows_are(pipe: Any, tmp_path: Path) -> None:
    raw = as_raw(10)
    raw.set_meas_date(1_700_000_000)
    raw.set_annotations(mne.Annotations([0.5], [0.1], ["before"]))
    raw = raw.crop(3, 9.5)  # a recording whose samples do not count from 0
    answers = pipe(raw, task="Workload")
    answers.annotate(raw)
    assert len(raw.annotations) == len(answers)
    labels = [f"{one['answer']} {one['probabilities'][one['answer']]:.2f}" for one in answers]
    assert raw.annotations.description.tolist() == labels
    # cut out by MNE itself, they begin where the windows begin
    for window, piece in zip(answers, raw.crop_by_annotations(verbose=False), strict=True):
        expected = raw.get_data(start=round(window["start"] * RATE), stop=round(window["start"] * RATE) + 10)
        np.testing.assert_array_equal(piece.get_data()[:, :10], expected)
        assert piece.times[-1] == pytest.approx(2, abs=2 / RATE)
    with pytest.raises(ValueError, match="reach until 6 s, this recording ends at 2"):
        answers.annotate(as_raw(2))
    with pytest.raises(ValueError, match="epochs"):
        EEGAnswers([{"start": 0, "end": 1, "epoch": 0}]).annotate(raw)


# --- what is refused


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "Say which task .* Workload, Sleep"),
        ({"task": "Moods"}, "knows no task 'Moods'; its tasks are Workload, Sleep"),
        ({"task": "Sleep", "question": "Why?"}, "not both"),
        ({"candidate_answers": ["Yes", "No"]}, "belong to a question"),
        ({"question": "Why?", "candidate_answers": ["Yes"]}, "two or more different"),
        ({"question": "Why?", "candidate_answers": ["Yes", "Yes"]}, "two or more different"),
        ({"question": "Why?", "candidate_answers": ["(A)", "No"]}, "letters like"),
        ({"task": "Workload", "examples": [(as_raw(2), "Maybe")]}, "'Maybe' of example 0"),
        ({"task": "Workload", "examples": [(as_raw(5), "Yes")]}, "example 0 makes 2 windows"),
        ({"task": "Workload", "prior": {"Yes": 1.0}}, "prior must give each of No, Yes"),
        ({"task": "Workload", "prior": {"Yes": 1.0, "No": float("nan")}}, "prior must give each of No, Yes"),
        ({"question": "Why?", "candidate_answers": "Yes"}, "a list of texts"),
        ({"question": "Why?", "candidate_answers": [1, 2]}, "are texts, got"),
        ({"task": "Workload", "examples": [(as_raw(2), "x", "Yes")]}, "start of example 0 is a number of seconds"),
        ({"task": "Workload", "examples": [("Yes",)]}, "example 0 is .recording, answer. or"),
        ({"task": "Workload", "stride_seconds": 0}, "stride_seconds is a whole number of samples"),
        ({"task": "Workload", "window_seconds": 2.5}, "window_seconds is a whole number of at least 1"),
        ({"task": "Workload", "window_seconds": 0}, "window_seconds is a whole number of at least 1"),
    ],
)
def test_what_cannot_be_asked_is_said(pipe: Any, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipe(as_raw(4), **asked)


def test_wrong_arguments_and_arrays_are_named(pipe: Any) -> None:
    with pytest.raises(TypeError, match=r"unknown argument.* windows_seconds"):
        pipe(as_raw(4), windows_seconds=2)
    with pytest.raises(ValueError, match="missing or unknown: unit"):
        pipe({"eeg": microvolts(4), "ch_names": CHANNELS, "sampling_rate": RATE}, task="Workload")
    with pytest.raises(ValueError, match="give a dict with eeg"):
        pipe(microvolts(4), task="Workload")
    with pytest.raises(ValueError, match="no channel O2"):
        pipe(as_raw(4).pick(["C3", "C4"]), task="Sleep")


def test_a_prior_is_measured_without_the_one_that_is_set(model: Any, processor: Any) -> None:
    given = {"question": "Is it high?", "candidate_answers": ["Yes", "No"]}
    plain = model.as_pipeline(processor, device="cpu", **given)
    prior = plain.measure_prior([as_raw(4)])
    again = model.as_pipeline(processor, device="cpu", prior={"Yes": 0.9, "No": 0.1}, **given)
    assert again.measure_prior([as_raw(4)]) == pytest.approx(prior)
    assert again(as_raw(4))[0]["probabilities"]["Yes"] < plain(as_raw(4))[0]["probabilities"]["Yes"]
    with pytest.raises(ValueError, match="at least one"):
        plain.measure_prior([])
    with pytest.raises(ValueError, match="allowed answers"):
        model.as_pipeline(processor, device="cpu").measure_prior([as_raw(4)], question="What is it?")


def test_units_and_models_that_are_not_what_they_seem(pipe: Any, model: Any, processor: Any) -> None:
    wrong = mne.io.RawArray(microvolts(4), mne.create_info(CHANNELS, RATE, "eeg"), verbose=False)
    with pytest.raises(ValueError, match="unit='uV'"):
        pipe(wrong, task="Workload")
    assert_same(pipe(wrong, task="Workload", unit="uV"), pipe(as_raw(4), task="Workload"))
    of_classes = NeuroLMForCausalLM(NeuroLMConfig.from_dict(model.config.to_dict()))
    of_classes.config.architectures = ["NeuroLMForSequenceClassification"]
    with pytest.raises(ValueError, match="NeuroLMForSequenceClassification, which has no words"):
        of_classes.as_pipeline(processor, device="cpu")


def test_an_untuned_model_warns(model: Any, processor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("neurolm_hf.modeling_neurolm.logger.warning_once", said.append)
    monkeypatch.setattr(model.config, "stage", "pretrained")
    model.as_pipeline(processor, device="cpu")(as_raw(2), task="Workload")
    assert "never instruction-tuned" in said[0]


# --- in parts


def test_a_call_in_parts_says_the_same(model: Any, processor: Any) -> None:
    prior = {"No": 0.2, "Yes": 0.8}
    fixed = model.as_pipeline(processor, device="cpu", prior=prior, window_seconds=3)
    shown = [(as_raw(2, seed=5), 0, "Yes")]
    asked, extractor, (prepared,) = fixed.prepare(as_raw(9), task="Workload", examples=shown, window_seconds=2)
    segments = extractor.cut(prepared)
    assert {segment.n_seconds for segment in segments} == {2}
    scores = fixed.score(asked, segments)
    assert (scores.shape, scores.dtype) == ((4, 2), torch.float64)
    answers = fixed(as_raw(9), task="Workload", examples=shown, window_seconds=2)
    expected = [list(window["probabilities"].values()) for window in answers]
    np.testing.assert_allclose(scores.softmax(1), expected, atol=1e-6)
    assert [one.ch_names for one in fixed.prepare(as_raw(3), task="Sleep")[2]] == [["C3", "O2"]]
