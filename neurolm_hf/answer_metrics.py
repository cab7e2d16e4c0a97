"""The metrics of answers as a module of the `evaluate` library, which opens from this file, without the Hub.

    import evaluate
    from neurolm_hf import answer_metrics

    metric = evaluate.load(answer_metrics.__file__, "balanced_accuracy")
    metric.compute(predictions=[[0.7, 0.3], [0.2, 0.8]], references=[0, 1])

Without a name all metrics are computed that the number of classes allows. What they are says `neurolm_hf.metrics`.
"""

# `evaluate` runs a copy of this file and reads its imports line by line: names in full, one a line.
from typing import Any

import datasets
import evaluate
import numpy as np

from neurolm_hf import metrics


DESCRIPTION = """
Metrics of answers about EEG, from the probability of each allowed answer: accuracy, balanced accuracy, Cohen's kappa,
F1 weighted by class, AUROC and AUC-PR (of two classes), and the expected calibration error.
"""
INPUTS = """
Args:
    predictions: for each sample the probability of each class.
    references: true class index of each sample.
Returns:
    name -> value; nan where the samples leave a metric undefined, such as AUROC where all are of one class.
"""


class AnswerMetrics(evaluate.Metric):
    """One of `neurolm_hf.metrics.ANSWER_METRICS`, by the name of the configuration, or all of them (`default`)."""

    def _info(self) -> evaluate.MetricInfo:
        if self.config_name not in ("default", *metrics.ANSWER_METRICS):
            known = ", ".join(metrics.ANSWER_METRICS)
            raise ValueError(f"There is no metric {self.config_name!r}; there are {known}, or none named for all.")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.List(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, *, predictions: Any, references: Any) -> dict[str, float]:
        probabilities = np.asarray(predictions)
        names = [self.config_name]
        if self.config_name == "default":
            names = metrics.metrics_of(probabilities.shape[-1])
        values = {}
        for name in names:
            metric, of_samples = metrics.answer_metric(name, probabilities)
            try:
                values[name] = metric(references, of_samples)
            except metrics.UndefinedMetricError:
                values[name] = float("nan")
        return values
