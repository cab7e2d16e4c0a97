"""The module of `evaluate` opens from its file, without the Hub, and says what `neurolm_hf.metrics` says."""

import socket

import evaluate
import numpy as np
import pytest

from neurolm_hf import answer_metrics
from neurolm_hf.metrics import answer_metric, metrics_of


def answers(classes, windows=60):
    rng = np.random.default_rng(0)
    return rng.integers(classes, size=windows), rng.dirichlet([1] * classes, size=windows)


@pytest.mark.parametrize("classes", [2, 5])
def test_all_metrics_that_the_number_of_classes_allows(classes):
    labels, probabilities = answers(classes)
    module = evaluate.load(answer_metrics.__file__, keep_in_memory=True)
    values = module.compute(predictions=probabilities, references=labels)
    assert list(values) == metrics_of(classes)
    for name, value in values.items():
        metric, given = answer_metric(name, probabilities)
        assert value == metric(labels, given)


def test_one_metric_by_its_name_in_batches():
    labels, probabilities = answers(3)
    module = evaluate.load(answer_metrics.__file__, "cohen_kappa", keep_in_memory=True)
    for start in (0, 20, 40):
        module.add_batch(predictions=probabilities[start : start + 20], references=labels[start : start + 20])
    metric, given = answer_metric("cohen_kappa", probabilities)
    assert module.compute() == {"cohen_kappa": metric(labels, given)}


def test_what_is_undefined_is_no_number():
    module = evaluate.load(answer_metrics.__file__, keep_in_memory=True)
    values = module.compute(predictions=[[0.4, 0.6], [0.7, 0.3]], references=[1, 1])
    assert {name for name, value in values.items() if np.isnan(value)} == {"roc_auc", "pr_auc"}
    assert values["accuracy"] == 0.5


def test_an_unknown_name_is_told():
    with pytest.raises(ValueError, match="no metric 'f1'; there are accuracy"):
        evaluate.load(answer_metrics.__file__, "f1")


def test_it_needs_no_network(monkeypatch, tmp_path):
    def connect(*_):
        raise AssertionError("a connection is opened")

    monkeypatch.setattr(socket.socket, "connect", connect)
    module = evaluate.load(answer_metrics.__file__, "accuracy", cache_dir=str(tmp_path))
    assert module.name == "answer_metrics"
    assert module.compute(predictions=[[0.9, 0.1]], references=[0]) == {"accuracy": 1.0}
