"""Optimisers by name: torch's fused ones, and ours where torch has none for the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lepton_train.training import blocked_optimizers

_CLASSES: dict[str, tuple[type[torch.optim.Optimizer], float, dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, 1e-3, {}),
    "adam": (torch.optim.Adam, 1e-3, {}),
    "adadelta": (torch.optim.Adadelta, 1.0, {}),
    "rmsprop": (torch.optim.RMSprop, 1e-3, {}),
    "sgd": (torch.optim.SGD, 1e-2, {"momentum": 0.9}),
}
NAMES = tuple(_CLASSES)
_FUSED = frozenset({"adamw", "adam", "sgd"})
_BLOCKED: dict[str, type[torch.optim.Optimizer]] = {
    "adadelta": blocked_optimizers.Adadelta,
    "rmsprop": blocked_optimizers.RMSprop,
}
# Arguments that choose another way through torch's own class.
_WAYS = frozenset({"foreach", "capturable", "differentiable"})
Factory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def make_optimizer(
    op: str,
    optimizer: str | torch.optim.Optimizer | Factory,
    parameters: list[nn.Parameter],
    lr: float | None,
    options: Mapping[str, Any] | None,
) -> torch.optim.Optimizer:
    """An optimiser for parameters.

    Args:
        op (str): the caller's name, for messages.
        optimizer (str, Optimizer or callable): "adamw", "adam", "adadelta", "rmsprop" or "sgd"
            (with momentum 0.9), in any case; a class of torch's or with its arguments; an
            optimiser; or a function of the parameters that makes one.
        parameters (list of Parameter): those that train.
        lr (float, optional): Default: None (1e-3; adadelta 1, sgd 1e-2).
        options (mapping, optional): further arguments of torch's class, such as weight_decay.

    Raises:
        ValueError: the name is unknown, lr is not positive, there is nothing to train, or lr and
            options come with a finished optimiser.
        TypeError: optimizer is none of these, or an option is unknown.
    """
    if not parameters:
        raise ValueError(f"{op}: no parameter of the model requires a gradient")
    if lr is not None and (not isinstance(lr, int | float) or isinstance(lr, bool)):
        raise TypeError(f"{op}: lr must be a number, got {lr!r}")
    if lr is not None and not lr > 0:
        raise ValueError(f"{op}: lr must be positive, got {lr}")
    if isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer):
        given: dict[str, Any] = {} if lr is None else {"lr": lr}
        try:
            return optimizer(parameters, **given, **(options or {}))
        except TypeError as error:
            raise TypeError(f"{op}: optimizer_options: {error}") from None
    if isinstance(optimizer, str):
        optimizer = optimizer.lower()
        if optimizer not in _CLASSES:
            raise ValueError(
                f"{op}: optimizer must be one of {', '.join(NAMES)}, or a torch optimizer; "
                f"got {optimizer!r}"
            )
        kind, usual, defaults = _CLASSES[optimizer]
        chosen = {"lr": usual if lr is None else lr, **defaults, **(options or {})}
        if optimizer in _FUSED and "foreach" not in chosen:
            chosen.setdefault("fused", all(_fuses(parameter) for parameter in parameters))
        if optimizer in _BLOCKED and not _WAYS & set(chosen) and all(map(_blocks, parameters)):
            kind = _BLOCKED[optimizer]
        try:
            return kind(parameters, **chosen)
        except TypeError as error:
            raise TypeError(f"{op}: optimizer_options: {error}") from None
    if lr is not None or options:
        raise ValueError(
            f"{op}: lr and optimizer_options go with an optimizer given by name or as a class"
        )
    if isinstance(optimizer, torch.optim.Optimizer):
        return optimizer
    if not callable(optimizer):
        raise TypeError(
            f"{op}: optimizer must be a name, a torch optimizer or a function that makes one, "
            f"got {type(optimizer).__name__}"
        )
    make: Any = optimizer
    made = make(parameters)
    if not isinstance(made, torch.optim.Optimizer):
        raise TypeError(f"{op}: optimizer(parameters) must give a torch optimizer")
    return made


def _blocks(parameter: nn.Parameter) -> bool:
    return parameter.dtype == torch.float32 and parameter.device.type == "cpu"


def _fuses(parameter: nn.Parameter) -> bool:
    return parameter.dtype == torch.float32 and parameter.device.type in ("cpu", "cuda")
