"""One figure of several metrics, whose weights stay visible."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lepton_train.arguments import check_number
from lepton_train.metrics.named import Metric, get, higher_is_better, name_of


class WeightedMetric:
    """Weighted mean of metrics; made by `weighted`.

    Attributes:
        weights (dict): name to weight, which add up to 1.
    """

    higher_is_better = True

    def __init__(self, metrics: Mapping[str, Metric], weights: Mapping[str, float]) -> None:
        self.metrics = dict(metrics)
        self.weights = dict(weights)

    @property
    def __name__(self) -> str:
        """Metrics and weights, for tables."""
        return "+".join(f"{weight:g}*{name}" for name, weight in self.weights.items())

    def parts(self, predictions: Any, targets: Any) -> dict[str, float]:
        """Each metric by itself.

        Args:
            predictions, targets: as the metrics take them.

        Returns:
            dict: name to value.
        """
        return {name: metric(predictions, targets) for name, metric in self.metrics.items()}

    def total(self, scores: Mapping[str, float]) -> float:
        """The weighted mean of scores that are known already.

        Args:
            scores (mapping): name to value; other names are ignored.

        Returns:
            float: the mean.

        Raises:
            ValueError: a metric with a weight is missing.
        """
        missing = [name for name in self.weights if name not in scores]
        if missing:
            raise ValueError(f"weighted: scores must hold {', '.join(missing)}")
        return sum(weight * scores[name] for name, weight in self.weights.items())

    def report(self, predictions: Any, targets: Any) -> dict[str, Any]:
        """Total, each metric, and the weights.

        Args:
            predictions, targets: as the metrics take them.

        Returns:
            dict: `total`, `scores` and `weights`.
        """
        scores = self.parts(predictions, targets)
        return {"total": self.total(scores), "scores": scores, "weights": self.weights}

    def __call__(self, predictions: Any, targets: Any) -> float:
        """The weighted mean."""
        return self.total(self.parts(predictions, targets))

    def __repr__(self) -> str:
        """As it was made."""
        return f"weighted({self.weights})"


def weighted(weights: Mapping[str | Metric, float]) -> WeightedMetric:
    """One metric out of several: their mean by weight.

    Args:
        weights (mapping): name of a metric, or the metric, to its weight; they are divided by
            their sum. Every metric must be one where higher is better.

    Returns:
        WeightedMetric: a metric like others, with `parts`, `total`, `report` and `weights`.

    Raises:
        ValueError: there is no metric, a weight is not positive and finite, or lower is better for
            a metric.
        TypeError: weights is no mapping, a key is no metric, or a weight is no number.

    Example:
        >>> metric = weighted({"accuracy": 3, "f1": 1})
        >>> metric([0, 1, 1, 0], [0, 1, 1, 1]), metric.weights
        (0.7625, {'accuracy': 0.75, 'f1': 0.25})
    """
    if not isinstance(weights, Mapping):
        raise TypeError(
            f"weighted: weights must map metrics to numbers, got {type(weights).__name__}"
        )
    if not weights:
        raise ValueError("weighted: weights must name at least one metric, got none")
    metrics: dict[str, Metric] = {}
    values: dict[str, float] = {}
    for key, value in weights.items():
        metric = get(key)
        name = key if isinstance(key, str) else name_of(metric)
        check_number("weighted", f"weight of {name}", value)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"weighted: weight of {name} must be positive, got {value}")
        if not higher_is_better(metric):
            raise ValueError(
                f"weighted: lower is better for {name}, so it can't be part of a weighted total"
            )
        metrics[name], values[name] = metric, float(value)
    total = sum(values.values())
    return WeightedMetric(metrics, {name: value / total for name, value in values.items()})
