"""Where scores become metrics: the same functions for a model, for the baseline, for every task."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Interval(NamedTuple):
    """A percentile interval."""

    low: float
    high: float


def balanced_accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Mean over the classes that occur in `labels` of the share of their samples predicted right.

    Args:
        labels: true class index of each sample.
        predictions: predicted class index of each sample.

    Raises:
        ValueError: no sample, or different lengths.
    """
    truth, guess = _one_dimensional(labels, predictions)
    return float(np.mean([np.mean(guess[truth == label] == label) for label in np.unique(truth)]))


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve of a binary task: how often a positive sample scores above a negative one, ties half.

    Args:
        labels: 0 or 1 for each sample.
        scores: larger for more likely positive.

    Raises:
        ValueError: no sample, different lengths, labels other than 0 and 1, one class only, or scores not finite.
    """
    truth, values = _one_dimensional(labels, scores)
    classes = np.unique(truth).tolist()
    if classes != [0, 1]:
        raise ValueError(f"AUROC needs samples of class 0 and of class 1, got classes {classes}.")
    if not np.isfinite(values).all():
        raise ValueError("AUROC needs finite scores.")
    negatives = np.sort(values[truth == 0])
    positives = values[truth == 1]
    below = np.searchsorted(negatives, positives, side="left")
    not_above = np.searchsorted(negatives, positives, side="right")
    return float(np.mean(below + not_above) / (2 * len(negatives)))


def interval_over_subjects(
    metric: Callable[[ArrayLike, ArrayLike], float],
    labels: ArrayLike,
    scores: ArrayLike,
    subjects: ArrayLike,
    *,
    seed: int = 0,
) -> Interval:
    """95% bootstrap interval of a metric, drawing whole subjects with replacement (their windows are not independent).

    Args:
        metric: `balanced_accuracy` (`scores` are predictions then), `auroc`, or another of the same arguments.
        labels: true class index of each sample.
        scores: what the metric takes, one a sample.
        subjects: the subject of each sample.
        seed: of the draws.

    Raises:
        ValueError: fewer than two subjects, or different lengths; what the metric raises, which for `auroc` includes a
            draw of subjects that all have one class.
    """
    truth, values = _one_dimensional(labels, scores)
    owners, _ = _one_dimensional(subjects, labels)
    rows = [np.flatnonzero(owners == subject) for subject in np.unique(owners)]
    if len(rows) < 2:
        raise ValueError("An interval over subjects needs two subjects at least.")
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(1000):
        drawn = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        draws.append(metric(truth[drawn], values[drawn]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(low), float(high))


def _one_dimensional(first: ArrayLike, second: ArrayLike) -> tuple[NDArray, NDArray]:
    """Both as arrays of one dimension and the same length, not empty."""
    a, b = np.asarray(first), np.asarray(second)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"Metrics need two lists of the same length, not empty; got shapes {a.shape} and {b.shape}.")
    return a, b
