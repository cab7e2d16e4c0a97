"""Metrics against scikit-learn, and intervals that know that a subject's windows belong together."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    cohen_kappa_score,
    f1_score,
    roc_auc_score,
)

from neurolm_hf.metrics import (
    ANSWER_METRICS,
    BINARY_METRICS,
    UndefinedMetricError,
    accuracy,
    answer_metric,
    auroc,
    average_precision,
    balanced_accuracy,
    cohen_kappa,
    draws_over_subjects,
    expected_calibration_error,
    f1_weighted,
    interval_of_draws,
    interval_over_subjects,
    metrics_of,
)


@pytest.mark.parametrize("seed", range(5))
def test_agreement_with_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=200)
    scores = np.round(labels + rng.standard_normal(200), 1)  # rounded: ties
    truth, guess = rng.integers(4, size=200), rng.integers(5, size=200)  # a class that is only predicted
    truth[truth == 2] = 0  # and one that is never true
    for ours, theirs, given in (
        (auroc, roc_auc_score, (labels, scores)),
        (average_precision, average_precision_score, (labels, scores)),
        (accuracy, accuracy_score, (truth, guess)),
        (cohen_kappa, cohen_kappa_score, (truth, guess)),
        (f1_weighted, lambda *both: f1_score(*both, average="weighted"), (truth, guess)),
    ):
        assert ours(*given) == pytest.approx(theirs(*given), abs=1e-12)
    known = np.where(np.isin(guess, truth), guess, 0)  # theirs warns of classes that are never true
    assert balanced_accuracy(truth, known) == pytest.approx(balanced_accuracy_score(truth, known), abs=1e-12)


def test_calibration_error_has_the_bins_of_scikit_learn():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5, 0.5, 0.5], size=300).round(2)
    probabilities[:, 2] = 1 - probabilities[:, :2].sum(axis=1)
    probabilities = probabilities.clip(0, 1)
    labels = rng.integers(3, size=300)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    shares, means = calibration_curve(right, confidence, n_bins=15)
    counts = np.bincount(np.ceil(np.round(confidence * 15, 9)).astype(int))
    expected = (np.abs(shares - means) * counts[counts > 0]).sum() / 300
    assert expected_calibration_error(labels, probabilities) == pytest.approx(expected, abs=1e-12)


def test_known_values():
    assert balanced_accuracy([0, 0, 0, 1], [0, 0, 0, 0]) == 0.5
    assert balanced_accuracy(["a", "b"], ["a", "b"]) == 1
    assert auroc([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]) == 0.5
    assert auroc([0, 0, 1, 1], [0.4, 0.3, 0.2, 0.1]) == 0
    assert average_precision([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]) == 1
    assert average_precision([0, 1, 0, 0], [0.5, 0.5, 0.5, 0.5]) == 0.25
    assert cohen_kappa(["a", "b"], ["b", "a"]) == -1
    assert cohen_kappa([0, 1, 1], [1, 1, 1]) == 0
    # sure and always right; sure and always wrong; half sure and right half of the time
    assert expected_calibration_error([0, 1], [[1, 0], [0, 1]]) == 0
    assert expected_calibration_error([1, 0], [[1, 0], [0, 1]]) == 1
    assert expected_calibration_error([0, 1], [[0.5, 0.5], [0.5, 0.5]]) == 0


def test_what_is_no_metric():
    for metric in (accuracy, balanced_accuracy, cohen_kappa, f1_weighted, auroc, average_precision):
        for arguments in (([], []), ([0, 1], [0]), ([[0, 1]], [[0, 1]])):
            with pytest.raises(ValueError, match="two lists of the same length, not empty"):
                metric(*arguments)
    for metric in (auroc, average_precision):
        for labels in ([1, 1], [1, 2], [0, 1, 2]):
            with pytest.raises(ValueError, match="class 0 and of class 1") as raised:
                metric(labels, labels)
            assert isinstance(raised.value, UndefinedMetricError) == (labels == [1, 1])
        with pytest.raises(ValueError, match="finite"):
            metric([0, 1], [0.1, np.nan])
    with pytest.raises(UndefinedMetricError, match="more than one class"):
        cohen_kappa([1, 1], [1, 1])
    for labels, probabilities in (([0], [0.5, 0.5]), ([0, 1], [[0.5, 0.5]]), ([], np.empty((0, 2)))):
        with pytest.raises(ValueError, match="probabilities \\(samples, classes\\)"):
            expected_calibration_error(labels, probabilities)
    for wrong in (np.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match="from 0 to 1"):
            expected_calibration_error([0], [[0.5, wrong]])


def test_metrics_by_name_take_what_they_need_of_probabilities():
    labels, probabilities = [0, 1, 1], [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]
    values = {}
    for name in ANSWER_METRICS:
        metric, given = answer_metric(name, probabilities)
        values[name] = metric(labels, given)
    assert values["accuracy"] == pytest.approx(2 / 3)
    assert values["balanced_accuracy"] == 0.75
    assert values["roc_auc"] == values["pr_auc"] == 1
    assert values["expected_calibration_error"] == pytest.approx((0.1 + 0.6 + 0.2) / 3)
    assert metrics_of(2) == list(ANSWER_METRICS)
    assert metrics_of(3) == [name for name in ANSWER_METRICS if name not in ("roc_auc", "pr_auc")]
    for name in BINARY_METRICS:
        with pytest.raises(ValueError, match=f"{name} is a metric of binary tasks.*of 3 classes"):
            answer_metric(name, np.full((2, 3), 1 / 3))
    with pytest.raises(ValueError, match="no metric 'f1'; there are accuracy, balanced_accuracy"):
        answer_metric("f1", probabilities)
    with pytest.raises(ValueError, match=r"got shape \(2,\)"):
        answer_metric("accuracy", [0.5, 0.5])


def test_interval_draws_whole_subjects():
    labels = np.tile([0, 1], 120)
    subjects = np.repeat(np.arange(8), 30)
    predictions = np.where(subjects < 4, labels, 1 - labels)  # right on half of the subjects, wrong on the others
    by_subject = interval_over_subjects(balanced_accuracy, labels, predictions, subjects)
    by_window = interval_over_subjects(balanced_accuracy, labels, predictions, np.repeat(np.arange(120), 2))
    assert by_subject.low <= 0.25 < 0.75 <= by_subject.high
    assert by_window.high - by_window.low < 0.25
    assert by_subject == interval_over_subjects(balanced_accuracy, labels, predictions, subjects)
    assert interval_over_subjects(auroc, labels, labels, subjects) == (1.0, 1.0)


def test_interval_needs_subjects():
    with pytest.raises(ValueError, match="two subjects at least"):
        interval_over_subjects(balanced_accuracy, [0, 1], [0, 1], ["S0", "S0"])


def test_draws_without_a_value_are_left_out_and_told():
    # every subject has one class: a draw of one of the two alone has no ranking
    labels, subjects = np.array([0, 0, 1, 1]), np.array(["a", "a", "b", "b"])
    scores = np.array([0.1, 0.3, 0.2, 0.4])
    draws = draws_over_subjects(auroc, labels, scores, subjects)
    assert 0.4 < np.isnan(draws).mean() < 0.6
    assert set(draws[~np.isnan(draws)]) == {0.75}
    with pytest.warns(UserWarning, match=rf"auroc is undefined in {np.isnan(draws).sum()} of 1000 draws of subjects"):
        assert interval_over_subjects(auroc, labels, scores, subjects) == (0.75, 0.75)
    with pytest.raises(UndefinedMetricError, match="No draw"):
        interval_of_draws([np.nan, np.nan])
    with pytest.raises(UndefinedMetricError, match="No draw"):
        interval_over_subjects(auroc, np.ones(4, int), scores, subjects)


def test_draws_of_what_has_more_dimensions():
    labels, subjects = np.tile([0, 1], 20), np.repeat(np.arange(4), 10)
    probabilities = np.random.default_rng(0).dirichlet([1, 1], size=40)
    whole = draws_over_subjects(expected_calibration_error, labels, probabilities, subjects)
    assert whole.shape == (1000,)
    assert (
        interval_of_draws(whole).low
        < expected_calibration_error(labels, probabilities)
        < interval_of_draws(whole).high
    )
    with pytest.raises(ValueError, match="3 scores for 40 labels"):
        draws_over_subjects(expected_calibration_error, labels, probabilities[:3], subjects)
