"""Metrics of classification, all from one confusion matrix; values as scikit-learn's."""

from __future__ import annotations

from typing import Any

import torch

AVERAGES = ("binary", "macro", "micro", "weighted")


def as_tensor(op: str, argument: str, values: Any) -> torch.Tensor:
    """Numbers of any kind as a tensor without gradients; TypeError for anything else."""
    try:
        return torch.as_tensor(values).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(
            f"{op}: {argument} must be a Tensor or a sequence of numbers, "
            f"got {type(values).__name__}"
        ) from None


def classes_of(op: str, predictions: Any, targets: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted and true classes as int64 tensors of shape (items,).

    Args:
        op (str): the caller's name, for messages.
        predictions (Tensor or sequence): classes (items,), integer or bool; scores
            (items, classes), of which the largest counts; or probabilities (items,) of class 1,
            float, cut at 0.5.
        targets (Tensor or sequence): true classes (items,), integer or bool.

    Raises:
        ValueError: there are no items, or the shapes do not match, or a class is negative.
        TypeError: targets are not integers, or an argument is no tensor nor a sequence of numbers.
    """
    predicted = as_tensor(op, "predictions", predictions)
    true = as_tensor(op, "targets", targets)
    if true.numel() == 0 and predicted.numel() == 0:
        raise ValueError(f"{op}: predictions and targets must hold at least one item, got none")
    if true.is_floating_point():
        raise TypeError(f"{op}: targets must be integer classes, got {true.dtype}")
    if predicted.ndim == true.ndim + 1:
        predicted = predicted.argmax(-1)
    elif predicted.is_floating_point():
        predicted = predicted > 0.5
    if predicted.shape != true.shape:
        raise ValueError(
            f"{op}: predictions must have shape {tuple(true.shape)} or one more dimension of "
            f"scores, to match targets; got {tuple(predicted.shape)}"
        )
    if true.numel() == 0:
        raise ValueError(f"{op}: predictions and targets must hold at least one item, got none")
    predicted, true = predicted.reshape(-1).long().cpu(), true.reshape(-1).long().cpu()
    lowest = min(int(predicted.min()), int(true.min()))
    if lowest < 0:
        raise ValueError(f"{op}: classes must be 0 or larger, got {lowest}")
    return predicted, true


def confusion_matrix(predictions: Any, targets: Any, classes: int | None = None) -> torch.Tensor:
    """Count each pair of true and predicted class.

    Args:
        predictions, targets: as in `accuracy`.
        classes (int, optional): number of classes. Default: None (the largest seen, plus 1).

    Returns:
        Tensor: int64, shape (classes, classes); row: true class, column: predicted class.

    Raises:
        ValueError: a class is outside [0, classes), or as `accuracy`.

    Example:
        >>> confusion_matrix([0, 1, 1], [0, 1, 0]).tolist()
        [[1, 1], [0, 1]]
    """
    op = "confusion_matrix"
    predicted, true = classes_of(op, predictions, targets)
    scores = torch.as_tensor(predictions)
    width = scores.shape[-1] if scores.ndim == torch.as_tensor(targets).ndim + 1 else 0
    largest = max(int(predicted.max()), int(true.max()))
    count = max(largest + 1, width) if classes is None else classes
    if largest >= count:
        raise ValueError(f"{op}: class {largest} is outside [0, {count})")
    return torch.bincount(true * count + predicted, minlength=count * count).view(count, count)


def accuracy(predictions: Any, targets: Any) -> float:
    """Share of items whose class is right.

    Args:
        predictions (Tensor or sequence): classes (items,), integer or bool; scores
            (items, classes), of which the largest counts; or probabilities (items,) of class 1,
            float, cut at 0.5.
        targets (Tensor or sequence): true classes (items,), integer or bool.

    Returns:
        float: 0 to 1.

    Raises:
        ValueError: there are no items, or the shapes do not match, or a class is negative.
        TypeError: targets are not integers.

    Example:
        >>> accuracy([0, 1, 1, 0], [0, 1, 0, 0])
        0.75
    """
    predicted, true = classes_of("accuracy", predictions, targets)
    return int((predicted == true).sum()) / true.numel()


def precision(predictions: Any, targets: Any, *, average: str = "binary") -> float:
    """Share of right ones among the items predicted to be of a class.

    Args:
        predictions, targets: as in `accuracy`.
        average (str): over classes. "binary": class 1 of two; "macro": plain mean of the classes
            that occur; "micro": all items together; "weighted": mean by the number of true items.
            Default: "binary".

    Returns:
        float: 0 to 1; a class that is never predicted counts 0.

    Raises:
        ValueError: average is unknown, or "binary" with a class above 1, or as `accuracy`.

    Example:
        >>> precision([0, 1, 1, 0], [0, 1, 0, 0])
        0.5
    """
    return _averaged("precision", predictions, targets, average)


def recall(predictions: Any, targets: Any, *, average: str = "binary") -> float:
    """Share of the items of a class that are found.

    Args:
        predictions, targets, average: as in `precision`.

    Returns:
        float: 0 to 1; a class without true items counts 0.

    Raises:
        ValueError: as `precision`.

    Example:
        >>> recall([0, 1, 1, 0], [0, 1, 0, 0])
        1.0
    """
    return _averaged("recall", predictions, targets, average)


def f1(predictions: Any, targets: Any, *, average: str = "binary") -> float:
    """Harmonic mean of precision and recall.

    Args:
        predictions, targets, average: as in `precision`.

    Returns:
        float: 0 to 1.

    Raises:
        ValueError: as `precision`.

    Source: van Rijsbergen, "Information Retrieval", 1979.

    Example:
        >>> round(f1([0, 1, 1, 0], [0, 1, 0, 0]), 4)
        0.6667
    """
    return _averaged("f1", predictions, targets, average)


def _averaged(op: str, predictions: Any, targets: Any, average: str) -> float:
    if average not in AVERAGES:
        raise ValueError(f"{op}: average must be one of {', '.join(AVERAGES)}; got {average!r}")
    predicted, true = classes_of(op, predictions, targets)
    largest = max(int(predicted.max()), int(true.max()))
    if average == "binary" and largest > 1:
        raise ValueError(
            f'{op}: average "binary" needs classes 0 and 1, got class {largest}; '
            "use macro, micro or weighted"
        )
    matrix = torch.bincount(true * (largest + 1) + predicted, minlength=(largest + 1) ** 2)
    matrix = matrix.view(largest + 1, largest + 1).double()
    right, guessed, real = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
    if average == "micro":
        # Each item has one class: precision, recall and F1 are all the accuracy.
        return float(right.sum() / matrix.sum())
    below = {"precision": guessed, "recall": real, "f1": (guessed + real) / 2}[op]
    scores = torch.where(below > 0, right / below.clamp(min=0.5), torch.zeros_like(right))
    if average == "binary":
        return float(scores[1]) if largest == 1 else 0.0
    if average == "weighted":
        return float((scores * real).sum() / real.sum())
    occurs = (guessed + real) > 0
    return float(scores[occurs].mean())
