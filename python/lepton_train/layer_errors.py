"""Which layer could not take its input: in place of torch's message, which names none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


class LayerInputError(ValueError):
    """A layer can't take the input that it got."""


@contextmanager
def layers_named(model: Any) -> Iterator[None]:
    """Run a model inside: where a layer's input does not fit it, the error names both.

    Args:
        model (any): whose `named_modules`, if it has them, give the layer's name.

    Raises:
        LayerInputError: a linear layer or convolution got an input of another width or dtype, or an
            embedding an index that it does not have. Other errors pass as they are.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 2))
        >>> try:
        ...     with layers_named(model):
        ...         model(torch.zeros(3, 5))
        ... except ValueError as error:
        ...     print(error)
        layer '0' (Linear) takes 4 features, got an input of shape (3, 5)
    """
    try:
        yield
    except (RuntimeError, IndexError) as error:
        found = _explain(model, error)
        if found is None:
            raise
        raise LayerInputError(found) from error


def _explain(model: Any, error: BaseException) -> str | None:
    """What did not fit, from the layer whose frame the error came through; None: something else."""
    trace = error.__traceback__
    layer: Any = None
    x: Any = None
    while trace is not None:
        values = trace.tb_frame.f_locals
        module = values.get("self")
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Embedding):
            layer, x = module, values.get("input")
        trace = trace.tb_next
    if layer is None or not isinstance(x, torch.Tensor):
        return None
    problem = _mismatch(layer, x)
    if problem is None:
        return None
    named = model.named_modules() if isinstance(model, nn.Module) else ()
    name = next((repr(name) for name, module in named if module is layer and name), "of the model")
    return f"layer {name} ({type(layer).__name__}) {problem}"


def _mismatch(layer: Any, x: torch.Tensor) -> str | None:
    if isinstance(layer, nn.Embedding):
        outside = x.numel() > 0 and not x.is_floating_point()
        if outside and (int(x.max()) >= layer.num_embeddings or int(x.min()) < 0):
            worst = int(x.max()) if int(x.max()) >= layer.num_embeddings else int(x.min())
            return f"takes indices in [0, {layer.num_embeddings}), got {worst}"
        return None
    shape = f"got an input of shape {tuple(x.shape)}"
    if isinstance(layer, nn.Linear):
        if x.ndim == 0 or x.shape[-1] != layer.in_features:
            return f"takes {layer.in_features} features, {shape}"
    else:
        place = layer.weight.ndim - 1
        if x.ndim not in (place, place + 1) or x.shape[-place] != layer.in_channels:
            return f"takes {layer.in_channels} channels and {place - 1} more dimensions, {shape}"
    if x.dtype != layer.weight.dtype and not torch.is_autocast_enabled(x.device.type):
        return f"has weights of {layer.weight.dtype}, got an input of {x.dtype}; convert one"
    return None
