"""Where scores become metrics: the same functions for a model, for the baseline, for every task."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


Metric = Callable[[ArrayLike, ArrayLike], float]

# Draws of subjects for an interval.
DRAWS = 1000
# Bins of the expected calibration error.
CALIBRATION_BINS = 15


class Interval(NamedTuple):
    """A percentile interval."""

    low: float
    high: float


class UndefinedMetricError(ValueError):
    """These samples give the metric no value, such as a ranking of samples that are all of one class."""


# Metrics of predicted classes --------------------------------------------------


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of samples that are predicted right.

    Args:
        labels: true class index of each sample.
        predictions: predicted class index of each sample.

    Raises:
        ValueError: no sample, or different lengths.
    """
    truth, guess = _one_dimensional(labels, predictions)
    return float(np.mean(truth == guess))


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


def cohen_kappa(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Cohen's kappa: agreement beyond what the frequencies of the classes alone would give; 1 is perfect, 0 is none.

    Args:
        labels: true class index of each sample.
        predictions: predicted class index of each sample.

    Raises:
        UndefinedMetricError: labels and predictions are all one and the same class.
        ValueError: no sample, or different lengths.
    """
    counts = _confusion(labels, predictions)
    total = counts.sum()
    expected = (counts.sum(axis=0) * counts.sum(axis=1)).sum() / total**2
    if expected == 1:
        raise UndefinedMetricError("Cohen's kappa needs more than one class among labels and predictions.")
    return float((np.trace(counts) / total - expected) / (1 - expected))


def f1_weighted(labels: ArrayLike, predictions: ArrayLike) -> float:
    """F1 of each class that occurs in `labels`, averaged by how often it does.

    Args:
        labels: true class index of each sample.
        predictions: predicted class index of each sample.

    Raises:
        ValueError: no sample, or different lengths.
    """
    counts = _confusion(labels, predictions)
    # of every class, true and predicted together: none is 0, for a class here occurs in the one or the other
    f1 = 2 * np.diag(counts) / (counts.sum(axis=0) + counts.sum(axis=1))
    return float(np.average(f1, weights=counts.sum(axis=1)))


# Metrics of probabilities ------------------------------------------------------


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve of a binary task: how often a positive sample scores above a negative one, ties half.

    Args:
        labels: 0 or 1 for each sample.
        scores: larger for more likely positive.

    Raises:
        UndefinedMetricError: samples of one class only.
        ValueError: no sample, different lengths, labels other than 0 and 1, or scores not finite.
    """
    truth, values = _binary("AUROC", labels, scores)
    negatives = np.sort(values[truth == 0])
    positives = values[truth == 1]
    below = np.searchsorted(negatives, positives, side="left")
    not_above = np.searchsorted(negatives, positives, side="right")
    return float(np.mean(below + not_above) / (2 * len(negatives)))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the precision-recall curve of a binary task (AUC-PR), as steps: no line is drawn between thresholds.

    Precision at each score that occurs, taken as threshold, weighted by the recall that is gained there.

    Args:
        labels: 0 or 1 for each sample.
        scores: larger for more likely positive.

    Raises:
        UndefinedMetricError: samples of one class only.
        ValueError: no sample, different lengths, labels other than 0 and 1, or scores not finite.
    """
    truth, values = _binary("AUC-PR", labels, scores)
    order = np.argsort(-values, kind="stable")
    found = np.cumsum(truth[order])
    # samples of equal score come above a threshold together
    last = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    precision = found[last] / (last + 1)
    gained = np.diff(found[last], prepend=0) / found[-1]
    return float((precision * gained).sum())


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """How far the probability of the most likely class is from the share of times that it is right.

    Samples are put into 15 bins of equal width by the probability of their most likely class: (0, 1/15], (1/15, 2/15]
    ... Of each bin the difference between the mean of that probability and the share of right predictions is taken,
    without its sign, and averaged over the bins by the number of their samples. 0 is perfectly calibrated.

    Args:
        labels: true class index of each sample, an integer from 0 up.
        probabilities: (samples, classes).

    Raises:
        ValueError: no sample, shapes that do not fit, or numbers that are no probabilities.
    """
    truth, given = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if truth.ndim != 1 or given.ndim != 2 or len(truth) != len(given) or not given.size:
        raise ValueError(
            f"Calibration needs labels (samples,) and probabilities (samples, classes), got shapes {truth.shape} and "
            f"{given.shape}."
        )
    # also where one is not a number
    if not ((given >= 0) & (given <= 1 + 1e-6)).all():
        raise ValueError("Calibration needs probabilities from 0 to 1.")
    confidence = given.max(axis=1)
    right = given.argmax(axis=1) == truth
    inner_edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
    surplus = np.bincount(np.searchsorted(inner_edges, confidence), weights=confidence - right)
    return float(np.abs(surplus).sum() / len(truth))


# Metrics by name ---------------------------------------------------------------

_RANKINGS: dict[str, Metric] = {"roc_auc": auroc, "pr_auc": average_precision}
_OF_CLASSES: dict[str, Metric] = {
    "accuracy": accuracy,
    "balanced_accuracy": balanced_accuracy,
    "cohen_kappa": cohen_kappa,
    "f1_weighted": f1_weighted,
}
_OF_PROBABILITIES: dict[str, Metric] = {"expected_calibration_error": expected_calibration_error}

# Names, as task files and results have them.
ANSWER_METRICS = (*_OF_CLASSES, *_RANKINGS, *_OF_PROBABILITIES)
BINARY_METRICS = tuple(_RANKINGS)


def metrics_of(classes: int) -> list[str]:
    """Names of the metrics that answers have which are so many."""
    return [name for name in ANSWER_METRICS if classes == 2 or name not in BINARY_METRICS]


def answer_metric(name: str, probabilities: ArrayLike) -> tuple[Metric, NDArray]:
    """A metric by its name, and what it takes besides the labels: `metric(labels, values)`.

    Args:
        name: one of `ANSWER_METRICS`.
        probabilities: (samples, classes).

    Returns:
        The metric, and `values`: predicted classes (samples,), probabilities of class 1 (samples,), or all of them.

    Raises:
        ValueError: no such metric, not two-dimensional, or a metric of binary tasks for other than two classes.
    """
    given = np.asarray(probabilities)
    if given.ndim != 2:
        raise ValueError(f"Probabilities of answers are (samples, classes), got shape {given.shape}.")
    if name in _OF_CLASSES:
        return _OF_CLASSES[name], given.argmax(axis=1)
    if name in _RANKINGS:
        if given.shape[1] != 2:
            raise ValueError(
                f"{name} is a metric of binary tasks; these probabilities are of {given.shape[1]} classes."
            )
        return _RANKINGS[name], given[:, 1]
    if name in _OF_PROBABILITIES:
        return _OF_PROBABILITIES[name], given
    raise ValueError(f"There is no metric {name!r}; there are {', '.join(ANSWER_METRICS)}.")


# Intervals ---------------------------------------------------------------------


def interval_over_subjects(
    metric: Metric, labels: ArrayLike, scores: ArrayLike, subjects: ArrayLike, *, seed: int = 0
) -> Interval:
    """95% bootstrap interval of a metric, drawing whole subjects with replacement (their windows are not independent).

    Draws that leave the metric undefined are left out, with a warning that says how many.

    Args:
        metric: `balanced_accuracy` (`scores` are predictions then), `auroc`, or another of the same arguments.
        labels: true class index of each sample.
        scores: what the metric takes, one a sample.
        subjects: the subject of each sample.
        seed: of the draws.

    Raises:
        UndefinedMetricError: no draw defines the metric.
        ValueError: fewer than two subjects, or different lengths; what the metric raises.
    """
    draws = draws_over_subjects(metric, labels, scores, subjects, seed=seed)
    undefined = int(np.isnan(draws).sum())
    if 0 < undefined < len(draws):
        warnings.warn(
            f"{getattr(metric, '__name__', 'the metric')} is undefined in {undefined} of {len(draws)} draws of "
            "subjects: its interval is that of the others.",
            stacklevel=2,
        )
    return interval_of_draws(draws)


def draws_over_subjects(
    metric: Metric, labels: ArrayLike, scores: ArrayLike, subjects: ArrayLike, *, seed: int = 0
) -> NDArray[np.float64]:
    """The metric of each of 1000 draws of whole subjects, with replacement; NaN where a draw leaves it undefined.

    Args:
        metric, labels, scores, subjects, seed: as in `interval_over_subjects`; `scores` may have further dimensions,
            such as (samples, classes). The same seed draws the same subjects.

    Raises:
        ValueError: fewer than two subjects, or different lengths; what the metric raises.
    """
    truth, owners = _one_dimensional(labels, subjects)
    values = np.asarray(scores)
    if len(values) != len(truth):
        raise ValueError(f"{len(values)} scores for {len(truth)} labels.")
    rows = [np.flatnonzero(owners == subject) for subject in np.unique(owners)]
    if len(rows) < 2:
        raise ValueError("An interval over subjects needs two subjects at least.")
    rng = np.random.default_rng(seed)
    draws = np.full(DRAWS, np.nan)
    for number in range(DRAWS):
        drawn = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        try:
            draws[number] = metric(truth[drawn], values[drawn])
        except UndefinedMetricError:
            continue
    return draws


def interval_of_draws(draws: ArrayLike) -> Interval:
    """95% percentile interval of the draws that are not NaN.

    Raises:
        UndefinedMetricError: all are.
    """
    given = np.asarray(draws, dtype=np.float64)
    defined = given[~np.isnan(given)]
    if not len(defined):
        raise UndefinedMetricError("No draw of subjects defines the metric.")
    low, high = np.quantile(defined, [0.025, 0.975])
    return Interval(float(low), float(high))


def _one_dimensional(first: ArrayLike, second: ArrayLike) -> tuple[NDArray, NDArray]:
    """Both as arrays of one dimension and the same length, not empty."""
    a, b = np.asarray(first), np.asarray(second)
    if a.ndim != 1 or a.shape != b.shape or not len(a):
        raise ValueError(f"Metrics need two lists of the same length, not empty; got shapes {a.shape} and {b.shape}.")
    return a, b


def _binary(metric: str, labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray, NDArray]:
    """Labels 0 and 1, both of them, and finite scores."""
    truth, values = _one_dimensional(labels, scores)
    classes = np.unique(truth).tolist()
    if classes != [0, 1]:
        kind = UndefinedMetricError if set(classes) <= {0, 1} else ValueError
        raise kind(f"{metric} needs samples of class 0 and of class 1, got classes {classes}.")
    if not np.isfinite(values).all():
        raise ValueError(f"{metric} needs finite scores.")
    return truth, values


def _confusion(labels: ArrayLike, predictions: ArrayLike) -> NDArray[np.float64]:
    """(classes, classes) counts of the classes that occur in either; rows are the truth, columns the predictions."""
    truth, guess = _one_dimensional(labels, predictions)
    classes, places = np.unique(np.concatenate([truth, guess]), return_inverse=True)
    rows, columns = places[: len(truth)], places[len(truth) :]
    counts = np.bincount(rows * len(classes) + columns, minlength=len(classes) ** 2)
    return counts.reshape(len(classes), -1).astype(np.float64)
