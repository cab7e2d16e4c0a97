"""Scores beside baseline and chance: against the metrics themselves, and what happens where something is missing."""

import dataclasses

import numpy as np
import pytest
import torch
from prepared_folders import write_prepared
from stage_folders import TASKS, write_sets
from tiny import randomize, text_config, vq_config

from neurolm_hf import (
    EEGFeatureExtractor,
    NeuroLMConfig,
    NeuroLMForCausalLM,
    NeuroLMProcessor,
    NeuroLMVQForSequenceClassification,
)
from neurolm_hf import evaluation as module
from neurolm_hf.answering import Answering, Classifying, open_set
from neurolm_hf.baseline import baseline_probabilities
from neurolm_hf.collators import EEGCollator
from neurolm_hf.evaluation import PublishedFigures, Score, Windows, ask, evaluate_set, judge
from neurolm_hf.metrics import (
    ANSWER_METRICS,
    accuracy,
    answer_metric,
    auroc,
    draws_over_subjects,
    interval_of_draws,
    interval_over_subjects,
)
from neurolm_hf.processing_neurolm import train_text_tokenizer
from neurolm_hf.published_protocol import PUBLISHED_WINDOWS
from neurolm_hf.scoring import answer_probabilities
from neurolm_hf.storage import load_prepared, row_signal
from neurolm_hf.tasks import load_task


SPLITS = {"train": 8, "test": 6}
OF_SEVERAL = ["accuracy", "balanced_accuracy", "cohen_kappa", "f1_weighted", "expected_calibration_error"]


@pytest.fixture(scope="module")
def answering():
    """A tiny model of the recipe of `write_sets`, tuned on Workload as it says."""
    tasks = [load_task(name) for name in TASKS]
    texts = [task.training_text(answer) for task in tasks for answer in task.classes]
    processor = NeuroLMProcessor(EEGFeatureExtractor(notch_frequency=50), train_text_tokenizer(texts, vocab_size=400))
    torch.manual_seed(0)
    config = NeuroLMConfig(
        eeg_config=vq_config(num_channel_embeddings=256).to_dict(),
        text_config=text_config(vocab_size=len(processor.tokenizer), n_positions=256),
        eeg_token_id=processor.eeg_token_id,
        stage="instruction-tuned",
        tasks=[load_task("Workload").config_entry()],
    )
    model = randomize(NeuroLMForCausalLM(config))
    return Answering("tiny", model, processor, model.config)


@pytest.fixture(scope="module")
def classifying():
    """A tiny classifier of Workload."""
    torch.manual_seed(1)
    labels = {"id2label": {0: "No", 1: "Yes"}, "label2id": {"No": 0, "Yes": 1}}
    model = randomize(NeuroLMVQForSequenceClassification(vq_config(num_channel_embeddings=256, **labels)))
    return Classifying("head", model, NeuroLMProcessor(EEGFeatureExtractor(notch_frequency=50)), model.config)


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    """Six test subjects of two windows each, every subject of one class."""
    return open_set(str(write_sets(tmp_path_factory.mktemp("set") / "workload", splits=SPLITS)))


def signals(rows):
    return np.stack([row_signal(row) for row in rows])


def values(scores):
    return {name: score.value for name, score in scores.items()}


def known(name, labels, probabilities):
    metric, given = answer_metric(name, probabilities)
    return metric(labels, given)


def windows_of(labels, subjects, classes=("No", "Yes")):
    return Windows(np.asarray(labels), np.asarray(subjects), classes)


def test_judging():
    rng = np.random.default_rng(0)
    labels, subjects = rng.integers(2, size=80), np.repeat(list("abcdefgh"), 10)
    probabilities = rng.dirichlet([1, 1], size=80)
    scores = judge(windows_of(labels, subjects), probabilities, ANSWER_METRICS).scores
    assert list(scores) == list(ANSWER_METRICS)
    for name, score in scores.items():
        metric, given = answer_metric(name, probabilities)
        assert score.value == metric(labels, given)
        assert (score.low, score.high) == interval_over_subjects(metric, labels, given, subjects)
        assert score.undefined_draws == 0


def test_a_difference_is_of_the_same_draws_of_subjects():
    rng = np.random.default_rng(1)
    labels, subjects = rng.integers(2, size=80), np.repeat(list("abcdefgh"), 10)
    windows = windows_of(labels, subjects)
    better, worse = (np.column_stack([1 - given, given]) for given in (labels * 0.6 + 0.2, rng.random(80)))
    names = ["accuracy", "roc_auc"]
    one, other = judge(windows, better, names), judge(windows, worse, names)
    found = one.less(other).scores
    for name in names:
        metric = {"accuracy": accuracy, "roc_auc": auroc}[name]
        taken = [given.argmax(1) if name == "accuracy" else given[:, 1] for given in (better, worse)]
        draws = draws_over_subjects(
            lambda truth, both, metric=metric: metric(truth, both[:, 0]) - metric(truth, both[:, 1]),
            labels,
            np.column_stack(taken),
            subjects,
        )
        assert found[name].value == metric(labels, taken[0]) - metric(labels, taken[1])
        assert (found[name].low, found[name].high) == interval_of_draws(draws)
    assert (found["roc_auc"].low > 0, other.scores["roc_auc"].low < 0.5) == (True, True)
    itself = one.less(one).scores["roc_auc"]
    assert (itself.value, itself.low, itself.high) == (0, 0, 0)


def test_a_difference_needs_both_values():
    labels, subjects, scores = [1, 1, 0], ["a", "b", "b"], np.full((3, 2), 0.5)
    two = judge(windows_of(labels, subjects), scores, ["roc_auc"])
    one_class = judge(windows_of([1, 1, 1], subjects), scores, ["roc_auc"])
    assert two.less(one_class).scores["roc_auc"] == Score(None)
    alone = judge(windows_of(labels, ["a"] * 3), scores, ["roc_auc"])
    assert alone.less(alone).scores["roc_auc"] == Score(0)
    # undefined in the draws that leave either of them undefined
    assert two.less(two).scores["roc_auc"].undefined_draws == two.scores["roc_auc"].undefined_draws > 0


def test_draws_without_a_value_are_counted():
    labels, subjects = np.repeat([0, 0, 1], 4), np.repeat(["a", "b", "c"], 4)
    scores = np.random.default_rng(0).dirichlet([1, 1], size=12)
    judged = judge(windows_of(labels, subjects), scores, ["roc_auc", "accuracy"]).scores
    with pytest.warns(UserWarning, match=f"undefined in {judged['roc_auc'].undefined_draws} of 1000"):
        assert interval_over_subjects(auroc, labels, scores[:, 1], subjects) == (
            judged["roc_auc"].low,
            judged["roc_auc"].high,
        )
    assert judged["accuracy"].undefined_draws == 0


def test_one_subject_has_no_interval_and_one_class_no_ranking():
    probabilities = np.full((4, 2), 0.5)
    alone = judge(windows_of([0, 1, 0, 1], ["a"] * 4), probabilities, ["roc_auc", "accuracy"]).scores
    assert [(one.value, one.low, one.high) for one in alone.values()] == [(0.5, None, None)] * 2
    one_class = judge(windows_of([1, 1], ["a", "b"]), probabilities[:2], ["roc_auc", "accuracy"]).scores
    assert one_class["roc_auc"].value is None
    assert one_class["accuracy"].value == 0
    assert (one_class["accuracy"].low, one_class["accuracy"].high) == (0, 0)


def test_the_model_beside_baseline_and_chance(answering, workload):
    result = evaluate_set(workload, {"tiny": answering}, batch_size=5, written_windows=0)
    labels = np.asarray(workload.rows["label"])
    assert result.windows == {"No": int((labels == 0).sum()), "Yes": int((labels == 1).sum())}
    assert (result.subjects, result.metrics) == (6, list(ANSWER_METRICS))

    probabilities = answer_probabilities(
        answering.model,
        answering.processor,
        [row_signal(row) for row in workload.rows],
        workload.task,
        ch_names=[["FP1", "FP2"]] * len(workload.rows),
        prepared_by=answering.processor.feature_extractor.recipe_id,
    )
    train = load_prepared(workload.folder, "train")
    plain = baseline_probabilities(
        signals(train), np.asarray(train["label"]), signals(workload.rows), sampling_rate=200
    )
    for name in ANSWER_METRICS:
        assert result.models["tiny"].scores[name].value == pytest.approx(known(name, labels, probabilities), abs=1e-5)
        assert result.baseline[name].value == pytest.approx(known(name, labels, plain), abs=1e-9)
        assert (
            result.models["tiny"].less_baseline[name].value
            == result.models["tiny"].scores[name].value - result.baseline[name].value
        )
        assert result.models["tiny"].less_baseline[name].low <= result.models["tiny"].less_baseline[name].high
    prevalence = labels.mean()
    assert values(result.chance) == pytest.approx(
        {
            "accuracy": max(prevalence, 1 - prevalence),
            "balanced_accuracy": 0.5,
            "cohen_kappa": 0,
            "f1_weighted": result.chance["f1_weighted"].value,
            "roc_auc": 0.5,
            "pr_auc": prevalence,
            "expected_calibration_error": 0,
        },
        abs=1e-9,
    )
    assert result.models["tiny"].written is None
    # every subject is of one class
    assert [row["windows"] for row in result.models["tiny"].by_subject] == [2] * 6
    assert {row["subject"] for row in result.models["tiny"].by_subject} == {f"test{index}" for index in range(6)}
    assert all(row["roc_auc"] is None for row in result.models["tiny"].by_subject)
    assert np.mean([row["accuracy"] for row in result.models["tiny"].by_subject]) == pytest.approx(
        result.models["tiny"].scores["accuracy"].value
    )
    plain_right = [row["accuracy"] for row in result.baseline_by_subject]
    assert np.mean(plain_right) == pytest.approx(result.baseline["accuracy"].value)
    assert any("roc_auc is undefined in" in note for note in result.models["tiny"].notes)


def test_models_beside_each_other(answering, classifying, workload):
    """Each is judged as it is alone, and the first is compared with the other within the same draws of subjects."""
    models = {"words": answering, "head": classifying}
    result = evaluate_set(workload, models, batch_size=5, written_windows=2)
    assert list(result.models) == ["words", "head"]
    for name, model in models.items():
        alone = evaluate_set(workload, {"it": model}, written_windows=2)
        own, of_alone = result.models[name], alone.models["it"]
        assert values(own.scores) == pytest.approx(values(of_alone.scores), abs=1e-6)
        assert own.less_baseline["roc_auc"].low == pytest.approx(of_alone.less_baseline["roc_auc"].low, abs=1e-6)
        assert (own.doubts, own.written) == (of_alone.doubts, of_alone.written)
        assert (alone.baseline, alone.chance, alone.notes) == (result.baseline, result.chance, result.notes)
    words, head = result.models.values()
    assert (words.first_less, words.written.windows, head.written) == (None, 2, None)
    assert head.doubts == ["The model does not say which tasks it was trained on."]
    assert words.doubts == []
    windows = module.windows_of(workload)
    assert windows.labels.tolist() == list(workload.rows["label"])
    assert windows.subjects.tolist() == list(workload.rows["subject"])
    judged = [judge(windows, ask(workload, one, written_windows=0).probabilities, ANSWER_METRICS) for one in
              models.values()]  # fmt: skip
    expected = judged[0].less(judged[1]).scores
    for name in ANSWER_METRICS:
        assert head.first_less[name].value == pytest.approx(expected[name].value, abs=1e-6)
        assert head.first_less[name].low == pytest.approx(expected[name].low, abs=1e-6)
        assert head.first_less[name].value == words.scores[name].value - head.scores[name].value
    assert any(abs(one.value) > 1e-3 for one in head.first_less.values())


def test_a_classifier_says_of_each_window_what_its_model_says(classifying, workload):
    answers = ask(workload, classifying, batch_size=5)
    with torch.no_grad():
        for row, found in zip(workload.rows, answers.probabilities, strict=True):
            batch = EEGCollator(classifying.processor.feature_extractor)([row])
            batch.pop("rows")
            expected = classifying.model(**batch).logits.double().softmax(1)[0]
            assert found == pytest.approx(expected.numpy(), abs=1e-6)
    assert answers.probabilities.std(0).min() > 1e-4


def test_a_classifier_is_not_scored_as_the_reference_does(answering, classifying, workload, monkeypatch):
    asked = written_by(monkeypatch, [" Yes "])
    with pytest.raises(ValueError, match="head is a classifier, which writes no answers"):
        evaluate_set(workload, {"words": answering, "head": classifying}, as_reference=True)
    assert asked == []  # told before the other has written for hours


def test_rows_without_an_answer_are_refused_before_anything_is_asked(answering, workload, monkeypatch):
    rows = workload.rows.map(lambda row: {**row, "answer": "Maybe"}).with_format("numpy")
    monkeypatch.setattr(module, "ask", None)
    with pytest.raises(ValueError, match="'Maybe' is no answer of task Workload"):
        evaluate_set(dataclasses.replace(workload, rows=rows), {"tiny": answering})


def test_answers_that_are_several(answering, tmp_path):
    given = open_set(str(write_sets(tmp_path / "hmc", "HMC", SPLITS)))
    result = evaluate_set(given, {"tiny": answering}, written_windows=0)
    assert result.metrics == OF_SEVERAL
    assert list(result.baseline) == OF_SEVERAL
    (doubt,) = result.models["tiny"].doubts
    assert doubt.endswith("never tuned on this question; its tasks are Workload.")


@pytest.mark.parametrize("case", ["no training split", "training split", "one class", "other channels", "last class"])
def test_where_no_baseline_can_be_fitted(answering, tmp_path, case):
    folder = tmp_path / "set"
    recordings = [(f"{index}.edf", f"s{index}", "test") for index in range(4)]
    if case in ("training split", "other channels"):
        recordings += [(f"t{index}.edf", f"t{index}", "train") for index in range(4)]
    if case == "one class":
        recordings += [("t.edf", "t", "train")]
    if case == "last class":
        # classes follow the places: these have the first two of HMC
        recordings = [("t0.edf", "t0", "train"), ("t1.edf", "t1", "train"), *recordings]
    write_prepared(folder, recordings, "HMC" if case == "last class" else "Workload")
    given = open_set(f"{folder}:train" if case == "training split" else str(folder))
    if case == "other channels":
        three = given.rows.map(lambda row: {**row, "channels": ["FP1", "FP2", "F3"], "signal": row["signal"][:1200]})
        given = dataclasses.replace(given, rows=three.with_format("numpy"))
    result = evaluate_set(given, {"tiny": answering}, written_windows=0)
    said = {
        "no training split": "has no rows in split 'train'",
        "training split": "judged on the windows that it is fitted on",
        "one class": "must hold two or more classes",
        "other channels": "other channels",
    }
    if case == "last class":
        assert result.baseline["accuracy"].value <= 0.5
        return
    assert (result.baseline, result.baseline_by_subject, result.models["tiny"].less_baseline) == (None, None, None)
    assert any(note.startswith("There is no baseline: ") and said[case] in note for note in result.notes)


def test_windows_of_several_montages_have_no_baseline(workload):
    rows = [workload.rows[0], {**workload.rows[1], "channels": ["FP1", "CZ"]}]
    with pytest.raises(ValueError, match="differ in their channels"):
        module._band_power(rows)


def test_band_power_does_not_depend_on_the_portions(workload, monkeypatch):
    whole, montage = module._band_power(workload.rows)
    assert montage == (("FP1", "FP2"), 800)
    monkeypatch.setattr(module, "ROWS_AT_A_TIME", 5)
    np.testing.assert_array_equal(module._band_power(workload.rows)[0], whole)


def written_by(monkeypatch, texts):
    """Lets the model write these texts; returns what it was asked."""
    asked = []

    def write_answers(model, processor, rows, task, batch_size, as_reference=False):
        asked.append((len(rows), [float(row["start"]) for row in rows], as_reference))
        return [texts[index % len(texts)] for index in range(len(rows))]

    monkeypatch.setattr(module, "write_answers", write_answers)
    return asked


def test_texts_that_are_no_answer(answering, workload, monkeypatch):
    asked = written_by(monkeypatch, [" Yes", " no.", " Yes Yes", " work"])
    result = evaluate_set(workload, {"tiny": answering}, written_windows=8)
    assert asked[0][0] == 8
    assert not asked[0][2]
    assert (result.models["tiny"].written.windows, result.models["tiny"].written.unparseable) == (8, 0.5)
    assert result.models["tiny"].written.examples == [" Yes Yes", " work"]
    evaluate_set(workload, {"tiny": answering}, written_windows=1000)
    assert asked[1][0] == 12


def test_scoring_as_the_reference_does(answering, workload, monkeypatch):
    end = "<|endoftext|>"
    texts = [f" Yes {end}", f" No {end}", " Maybe ", f" Yes{end}"]
    asked = written_by(monkeypatch, texts)
    result = evaluate_set(workload, {"tiny": answering}, as_reference=True)
    assert [one[::2] for one in asked] == [(12, True)]
    assert result.metrics == ["accuracy", "balanced_accuracy", "roc_auc", "pr_auc"]
    labels, hard = np.asarray(workload.rows["label"]), np.tile([1, 0, -1, -1], 3)
    assert result.models["tiny"].scores["accuracy"].value == np.mean((hard == 1) == labels)
    assert result.models["tiny"].scores["roc_auc"].value == auroc(labels, hard)
    assert (
        result.models["tiny"].scores["roc_auc"].low
        <= result.models["tiny"].scores["roc_auc"].value
        <= result.models["tiny"].scores["roc_auc"].high
    )
    assert (result.models["tiny"].written.windows, result.models["tiny"].written.unparseable) == (12, 0.5)
    assert result.models["tiny"].written.examples == [" Maybe ", f" Yes{end}"]
    assert any("of hard answers" in note for note in result.notes)
    # of two hard answers, the area under the curve is the balanced accuracy
    assert result.baseline["roc_auc"].value == pytest.approx(result.baseline["balanced_accuracy"].value)


def test_published_figures_stand_beside_the_published_set_only(answering, workload, monkeypatch):
    written_by(monkeypatch, [" Yes "])
    figures = [
        PublishedFigures("A", "table 1", "Workload", {"accuracy": 0.6}),
        PublishedFigures("A", "table 1", "HMC", {"accuracy": 0.5}),
    ]
    other_number = evaluate_set(workload, {"tiny": answering}, as_reference=True, published=figures)
    assert other_number.published == []
    assert other_number.protocol.departures == ["the set has another number of windows"]
    monkeypatch.setitem(PUBLISHED_WINDOWS, "Workload", 28)
    assert evaluate_set(workload, {"tiny": answering}, as_reference=True, published=figures).published == figures[:1]
    assert evaluate_set(workload, {"tiny": answering}, published=figures, written_windows=0).published == []
    files = [{**entry, "error": "damaged"} for entry in workload.summary["files"]]
    failed = dataclasses.replace(workload, summary={**workload.summary, "files": files})
    assert evaluate_set(failed, {"tiny": answering}, as_reference=True, published=figures).published == []
    with pytest.raises(ValueError, match="metrics has f1; there are accuracy"):
        PublishedFigures("A", "table 1", "Workload", {"f1": 0.6})
