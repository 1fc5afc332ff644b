"""Metrics by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from lepton_train.metrics import classification, regression

Metric = Callable[[Any, Any], float]

_LOWER = frozenset({"mean_squared_error", "perplexity"})


def _all() -> dict[str, Metric]:
    metrics: dict[str, Metric] = {"accuracy": classification.accuracy}
    for name in ("precision", "recall", "f1"):
        function = getattr(classification, name)
        metrics[name] = function
        for average in ("macro", "micro", "weighted"):
            metrics[f"{name}_{average}"] = partial(function, average=average)
    for name in ("mean_squared_error", "pearson", "perplexity"):
        metrics[name] = getattr(regression, name)
    return metrics


_METRICS = _all()
NAMES = tuple(_METRICS)


def get(metric: str | Metric) -> Metric:
    """A metric by its name; a callable is returned as it is.

    Args:
        metric (str or callable): one of `NAMES`, or `metric(predictions, targets) -> float`.

    Returns:
        callable: `metric(predictions, targets) -> float`.

    Raises:
        ValueError: the name is unknown; the message gives the nearest ones.
        TypeError: neither name nor callable.

    Example:
        >>> get("f1_macro")([0, 1, 2], [0, 1, 1])
        0.5555555555555555
    """
    if isinstance(metric, str):
        if metric not in _METRICS:
            near = difflib.get_close_matches(metric, NAMES, n=3, cutoff=0.0)
            raise ValueError(f"metric {metric!r} is unknown; nearest names: {', '.join(near)}")
        return _METRICS[metric]
    if not callable(metric):
        raise TypeError(f"metric must be a name or a callable, got {type(metric).__name__}")
    return metric


def name_of(metric: str | Metric) -> str:
    """Name of a metric for reports.

    Args:
        metric (str or callable): as in `get`.

    Returns:
        str: its own in `NAMES`, else that of the callable.
    """
    if isinstance(metric, str):
        return metric
    for name, known in _METRICS.items():
        if known is metric:
            return name
    return getattr(metric, "__name__", type(metric).__name__)


def higher_is_better(metric: str | Metric) -> bool:
    """Whether a larger value is the better one.

    Args:
        metric (str or callable): as in `get`; a callable may say so by an attribute
            `higher_is_better`.

    Returns:
        bool: True for a callable that says nothing.
    """
    declared = getattr(metric, "higher_is_better", None)
    return bool(declared) if declared is not None else name_of(metric) not in _LOWER
