"""What a model gives for inputs, and how far that is from the labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lepton_train.data.examples import check_labels
from lepton_train.layer_errors import layers_named

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES = ("cross_entropy", "binary_cross_entropy", "mean_squared_error")


def call(model: Callable[..., Any], inputs: Any) -> torch.Tensor:
    """Output of a model as one tensor.

    Args:
        model (callable): gets a mapping as keyword arguments, a tuple or list as arguments.
        inputs (any): of one batch.

    Returns:
        Tensor: the output itself, its `logits`, or its first element.

    Raises:
        TypeError: the output holds no tensor in one of these places.
        ValueError: a layer can't take its input; the message names both.
    """
    with layers_named(model):
        if isinstance(inputs, Mapping):
            output = model(**inputs)
        elif isinstance(inputs, tuple | list):
            output = model(*inputs)
        else:
            output = model(inputs)
    if not isinstance(output, torch.Tensor):
        if isinstance(output, Mapping) and "logits" in output:
            output = output["logits"]
        elif getattr(output, "logits", None) is not None:
            output = output.logits
        elif isinstance(output, tuple | list) and output:
            output = output[0]
    if not isinstance(output, torch.Tensor):
        raise TypeError(
            f"model must give a Tensor, an object with logits, or a tuple that begins with a "
            f"Tensor; got {type(output).__name__}"
        )
    return output


def choose_loss(op: str, loss: str | Loss | None) -> Loss:
    """The loss function.

    Args:
        op (str): the caller's name, for messages.
        loss (str, callable, optional): one of `LOSSES`; `loss(output, labels)`; or None: cross
            entropy for integer labels (binary where the output is one number an item), mean
            squared error for numbers.

    Raises:
        ValueError: the name is unknown.
        TypeError: loss is neither name nor callable.
    """
    if loss is None:
        return lambda output, labels: standard_loss(op, output, labels)
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"{op}: loss must be one of {', '.join(LOSSES)}; got {loss!r}")
        return lambda output, labels: standard_loss(op, output, labels, loss)
    if not callable(loss):
        raise TypeError(f"{op}: loss must be a name or a callable, got {type(loss).__name__}")
    return loss


def standard_loss(
    op: str, output: torch.Tensor, labels: torch.Tensor, kind: str | None = None
) -> torch.Tensor:
    """Mean loss of a batch; in float32 also under autocast.

    Args:
        op (str): the caller's name, for messages.
        output (Tensor): (items, classes), (items, tokens, classes), or the shape of `labels`.
        labels (Tensor): (items,), (items, tokens) or numbers of the shape of `output`.
        kind (str, optional): one of `LOSSES`. Default: None, by the dtype of the labels.

    Raises:
        ValueError: the shapes do not match, or a label is outside the classes.
    """
    if kind is None:
        kind = _kind(output, labels)
    output = output.float()
    if kind == "cross_entropy":
        if output.ndim != labels.ndim + 1 or output.shape[:-1] != labels.shape:
            raise ValueError(
                f"{op}: output must have shape {(*labels.shape, 'classes')} to match the labels, "
                f"got {tuple(output.shape)}"
            )
        return nn.functional.cross_entropy(output.flatten(0, -2), labels.reshape(-1))
    if output.ndim == labels.ndim + 1 and output.shape[-1] == 1:
        output = output.squeeze(-1)
    if output.shape != labels.shape:
        raise ValueError(
            f"{op}: output must have shape {tuple(labels.shape)} to match the labels, "
            f"got {tuple(output.shape)}"
        )
    if kind == "binary_cross_entropy":
        return nn.functional.binary_cross_entropy_with_logits(output, labels.float())
    return nn.functional.mse_loss(output, labels.float())


def check_range(op: str, output: torch.Tensor, labels: torch.Tensor) -> None:
    """Raise ValueError for a class label that the output has no place for.

    Args:
        op (str): the caller's name, for messages.
        output (Tensor): as in `standard_loss`.
        labels (Tensor): on the CPU, so that no device waits.
    """
    if labels.is_floating_point() or labels.device.type != "cpu":
        return
    if _kind(output, labels) == "binary_cross_entropy":
        check_labels(op, labels, 2)
    elif output.shape[:-1] == labels.shape:
        check_labels(op, labels, output.shape[-1])


def predictions_of(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """What metrics compare with labels: scores of classes, probabilities of class 1, or numbers."""
    output = output.detach().float().cpu()
    if not labels.is_floating_point() and _kind(output, labels) == "binary_cross_entropy":
        return torch.sigmoid(output.reshape(labels.shape))
    return output


def _kind(output: torch.Tensor, labels: torch.Tensor) -> str:
    if labels.is_floating_point():
        return "mean_squared_error"
    single = output.shape == labels.shape or (
        output.ndim == labels.ndim + 1 and output.shape[-1] == 1
    )
    return "binary_cross_entropy" if single else "cross_entropy"
