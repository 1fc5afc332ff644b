"""Metrics of numbers and of language models."""

from __future__ import annotations

import math
from typing import Any

import torch

from lepton_train.metrics.classification import as_tensor


def _pair(op: str, predictions: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
    predicted = as_tensor(op, "predictions", predictions).double().cpu()
    true = as_tensor(op, "targets", targets).double().cpu()
    if predicted.ndim == true.ndim + 1 and predicted.shape[-1] == 1:
        predicted = predicted.squeeze(-1)
    if predicted.shape != true.shape:
        raise ValueError(
            f"{op}: predictions must have shape {tuple(true.shape)} to match targets, "
            f"got {tuple(predicted.shape)}"
        )
    if true.numel() == 0:
        raise ValueError(f"{op}: predictions and targets must hold at least one item, got none")
    return predicted.reshape(-1), true.reshape(-1)


def mean_squared_error(predictions: Any, targets: Any) -> float:
    """Mean of the squared differences.

    Args:
        predictions (Tensor or sequence): numbers, any shape; (items, 1) for targets (items,).
        targets (Tensor or sequence): numbers, the same shape.

    Returns:
        float: in float64.

    Raises:
        ValueError: the shapes do not match, or there is nothing.

    Example:
        >>> mean_squared_error([1.0, 2.0], [1.0, 4.0])
        2.0
    """
    predicted, true = _pair("mean_squared_error", predictions, targets)
    return float((predicted - true).square().mean())


def pearson(predictions: Any, targets: Any) -> float:
    """Pearson's correlation of two lists of numbers.

    Args:
        predictions, targets: as in `mean_squared_error`, two items at least.

    Returns:
        float: -1 to 1; 0 where one of the two is constant.

    Raises:
        ValueError: the shapes do not match, or there are fewer than two items.

    Example:
        >>> round(pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.5]), 4)
        0.9979
    """
    predicted, true = _pair("pearson", predictions, targets)
    if true.numel() < 2:
        raise ValueError("pearson: predictions and targets must hold at least two items, got one")
    x, y = predicted - predicted.mean(), true - true.mean()
    below = math.sqrt(float(x.square().sum()) * float(y.square().sum()))
    return float(x @ y) / below if below > 0.0 else 0.0


def perplexity(predictions: Any, targets: Any, *, ignore_index: int = -100) -> float:
    """Exponential of the mean negative log likelihood of the targets.

    Args:
        predictions (Tensor): logits, float, (..., classes).
        targets (Tensor): classes, int64, shape (...); `ignore_index` where none counts. For a
            causal language model both are already shifted against each other.
        ignore_index (int): Default: -100.

    Returns:
        float: 1 or larger.

    Raises:
        ValueError: the shapes do not match, no target counts, or one is outside the classes.

    Example:
        >>> round(perplexity(torch.zeros(4, 10), torch.tensor([0, 3, 5, 9])), 6)
        10.0
    """
    op = "perplexity"
    logits, true = as_tensor(op, "predictions", predictions), as_tensor(op, "targets", targets)
    if logits.shape[:-1] != true.shape:
        raise ValueError(
            f"{op}: predictions must have shape {(*true.shape, 'classes')} to match targets, "
            f"got {tuple(logits.shape)}"
        )
    true = true.reshape(-1)
    logits = logits.reshape(true.numel(), -1)
    counts = true != ignore_index
    if not bool(counts.any()):
        raise ValueError(f"{op}: at least one target must count, got none")
    true, logits = true[counts], logits[counts]
    if int(true.min()) < 0 or int(true.max()) >= logits.shape[1]:
        bad = int(true.min()) if int(true.min()) < 0 else int(true.max())
        raise ValueError(f"{op}: target {bad} is outside [0, {logits.shape[1]})")
    loss = torch.nn.functional.cross_entropy(logits.double(), true)
    return math.exp(min(float(loss), 700.0))
