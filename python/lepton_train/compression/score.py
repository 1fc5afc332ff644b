"""One figure for how good a model is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from lepton_train import metrics as metrics_
from lepton_train.metrics import Metric
from lepton_train.training import evaluate


class Score:
    """A metric as a function of model and data.

    Args:
        metric (str, metric of lt.metrics, or callable): a callable of another kind is
            `metric(model, data)` -> float, higher is better, as in `lt.sensitivity`.
        batch_size (int): of the evaluation. Default: 32.

    Raises:
        ValueError: the name is unknown.
        TypeError: metric is neither name nor callable.
    """

    def __init__(
        self, metric: str | Metric | Callable[[nn.Module, Any], float], batch_size: int = 32
    ) -> None:
        self.name = metrics_.name_of(metric)
        self.higher = metrics_.higher_is_better(metric)
        standard = isinstance(metric, str | metrics_.WeightedMetric) or self.name in metrics_.NAMES
        self.metric: Any = metrics_.get(metric)
        self.standard = standard
        self._batch_size = batch_size

    def __call__(self, model: nn.Module, data: Any) -> float:
        """The value of the metric."""
        if not self.standard:
            return float(self.metric(model, data))
        result = evaluate(model, data, metrics=[self.metric], batch_size=self._batch_size)
        return result.scores[self.name]

    def good(self, model: nn.Module, data: Any) -> float:
        """The value, with its sign such that higher is better."""
        return self(model, data) if self.higher else -self(model, data)
