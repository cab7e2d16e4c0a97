"""Metrics against scikit-learn, and intervals that know that a subject's windows belong together."""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from neurolm_hf.metrics import auroc, balanced_accuracy, interval_over_subjects


def test_agreement_with_scikit_learn():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=200)
    scores = np.round(labels + rng.standard_normal(200), 1)  # rounded: ties
    assert auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    truth, guess = rng.integers(4, size=(2, 200))
    assert balanced_accuracy(truth, guess) == pytest.approx(balanced_accuracy_score(truth, guess), abs=1e-12)


def test_known_values():
    assert balanced_accuracy([0, 0, 0, 1], [0, 0, 0, 0]) == 0.5
    assert balanced_accuracy(["a", "b"], ["a", "b"]) == 1
    assert auroc([0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]) == 0.5
    assert auroc([0, 0, 1, 1], [0.4, 0.3, 0.2, 0.1]) == 0


def test_what_is_no_metric():
    for metric in (balanced_accuracy, auroc):
        for arguments in (([], []), ([0, 1], [0]), ([[0, 1]], [[0, 1]])):
            with pytest.raises(ValueError, match="two lists of the same length, not empty"):
                metric(*arguments)
    for labels in ([1, 1], [1, 2], [0, 1, 2]):
        with pytest.raises(ValueError, match="class 0 and of class 1"):
            auroc(labels, labels)
    with pytest.raises(ValueError, match="finite"):
        auroc([0, 1], [0.1, np.nan])


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
