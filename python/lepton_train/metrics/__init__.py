"""Standard metrics: how well predictions match targets.

Every metric is `metric(predictions, targets) -> float`, in the order of torch's losses. By name:
`get("f1_macro")`; the names are those of scikit-learn's scorers where it has one.
"""

from lepton_train.metrics.classification import (
    accuracy,
    confusion_matrix,
    f1,
    precision,
    recall,
)
from lepton_train.metrics.named import NAMES, Metric, get, higher_is_better, name_of
from lepton_train.metrics.regression import mean_squared_error, pearson, perplexity
from lepton_train.metrics.weighted import WeightedMetric, weighted

__all__ = [
    "NAMES",
    "Metric",
    "WeightedMetric",
    "accuracy",
    "confusion_matrix",
    "f1",
    "get",
    "higher_is_better",
    "mean_squared_error",
    "name_of",
    "pearson",
    "perplexity",
    "precision",
    "recall",
    "weighted",
]
