"""How much each weight matters: magnitude, gradient, movement and Wanda."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lepton_train.calibration import visit_inputs

CRITERIA = ("magnitude", "gradient", "movement", "wanda")
Loss = Callable[[nn.Module, Any], torch.Tensor]


def scores_of(
    criterion: str,
    model: nn.Module,
    layers: Mapping[str, nn.Linear],
    data: Any,
    loss: Loss | None,
) -> dict[str, torch.Tensor]:
    """Scores of every weight of `layers`, float32, larger for those to keep.

    Args:
        criterion (str): one of `CRITERIA`.
        model (nn.Module): run over `data` where the criterion needs it; its gradients are kept.
        layers (mapping): name to layer.
        data: as in `lepton_train.prune_`.
        loss (callable, optional): as in `lepton_train.prune_`.

    Raises:
        ValueError: data or loss is missing, or a score is not finite.
    """
    if criterion != "magnitude" and data is None:
        raise ValueError(f"prune_: criterion {criterion!r} needs data, got None")
    if criterion in ("gradient", "movement") and loss is None:
        loss = _usual_loss
    if criterion == "magnitude":
        scores = {name: layer.weight.detach().float().abs() for name, layer in layers.items()}
    elif criterion == "wanda":
        scores = _wanda(model, layers, data)
    else:
        assert loss is not None
        products = _weight_times_gradient(model, layers, data, loss)
        # Taylor: the loss changes by |w g| when w goes. Movement: training drives w away from zero
        # where w g is negative.
        sign = torch.abs if criterion == "gradient" else torch.neg
        scores = {name: sign(product) for name, product in products.items()}
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise ValueError(f"prune_: {name}: weights, data or gradients hold NaN or infinity")
    return scores


def _usual_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    """The loss of `fit` for a batch with labels."""
    # Training imports what prunes.
    from lepton_train.training.batches import labelled
    from lepton_train.training.outputs import call, check_range, standard_loss

    inputs, labels = labelled("prune_", batch)
    output = call(model, inputs)
    check_range("prune_", output, labels.cpu())
    return standard_loss("prune_", output, labels)


def _wanda(model: nn.Module, layers: Mapping[str, nn.Linear], data: Any) -> dict[str, torch.Tensor]:
    """|w| times the norm of the input it meets (Sun et al., 2023, arXiv 2306.11695)."""
    squares = {name: torch.zeros(layer.in_features) for name, layer in layers.items()}

    def add(name: str, x: torch.Tensor) -> None:
        rows = x.float().reshape(-1, x.shape[-1])
        squares[name] = squares[name].to(rows.device) + rows.square().sum(0)

    visit_inputs(model, layers, data, add)
    return {
        name: layer.weight.detach().float().abs() * squares[name].sqrt()
        for name, layer in layers.items()
    }


def _weight_times_gradient(
    model: nn.Module, layers: Mapping[str, nn.Linear], data: Iterable[Any], loss: Loss
) -> dict[str, torch.Tensor]:
    """Sum over batches of weight * gradient of the loss (Molchanov et al., 2019)."""
    weights = {name: _parameter(layer) for name, layer in layers.items()}
    sums = {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
    batches = 0
    with torch.enable_grad():
        for batch in data:
            # A layer that the loss does not reach has no say: all its scores stay 0.
            grads = torch.autograd.grad(
                loss(model, batch), list(weights.values()), allow_unused=True
            )
            for (name, weight), grad in zip(weights.items(), grads, strict=True):
                if grad is not None:
                    sums[name] += (weight.detach() * grad).float()
            batches += 1
    if batches == 0:
        raise ValueError("prune_: data must hold at least one batch, got none")
    return sums


def _parameter(layer: nn.Linear) -> torch.Tensor:
    """The parameter behind the weight, below a mask."""
    parametrizations = getattr(layer, "parametrizations", None)
    weight = layer.weight if parametrizations is None else parametrizations.weight.original
    if not weight.requires_grad:
        raise ValueError("prune_: gradient and movement need weights that require gradients")
    return weight
