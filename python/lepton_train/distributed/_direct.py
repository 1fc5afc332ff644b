"""Weight gradients of linear layers computed straight into their bucket, without a copy.

For a large weight and a small batch the product that gives the gradient does little more than write
it; copying it into the bucket costs as much again. The layers of a wrapped module get a class that
knows where their gradient belongs. Everything else about them stays: a copy of the module, or one
whose wrapper is gone, computes as `nn.Linear` does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F

# Takes a weight, the gradients of its layer's outputs and the inputs, both of shape (rows, width),
# and gives the tensor that holds their product now or will before backward ends; or None.
Target = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], "torch.Tensor | None"]
GradientOf = Callable[[int, torch.Tensor, torch.Tensor], "torch.Tensor | None"]
_TARGET = "_lepton_target"


class _DirectLinear(nn.Linear):
    """nn.Linear whose weight gradient is written to its bucket."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """As nn.Linear."""
        weight = self.weight
        target = None if torch.compiler.is_compiling() else self.__dict__.get(_TARGET)
        if target is None or not _plain(input, weight):
            return F.linear(input, weight, self.bias)
        return _Linear.apply(input, weight, self.bias, target)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles are nn.Linear."""
        parts: Any = super().__reduce_ex__(protocol)
        _, _, state, *rest = parts
        state = {key: value for key, value in state.items() if key != _TARGET}
        return object.__new__, (nn.Linear,), state, *rest


_DirectLinear.__name__ = _DirectLinear.__qualname__ = "Linear"  # as it prints


def _plain(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether autograd alone stands between this call and the product."""
    return (
        torch.is_grad_enabled()
        and type(x) is torch.Tensor
        and type(weight) is nn.Parameter
        and x.dtype == weight.dtype
        and x.dim() > 1
        and x.numel() > 0
        and not torch.is_autocast_enabled(x.device.type)
        and not torch._C._are_functorch_transforms_active()
    )


class _Linear(torch.autograd.Function):
    """F.linear."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        target: Target,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.target = target
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_x = gradient.matmul(weight) if need_x else None
        of_weight = None
        if need_weight:
            inputs = x.reshape(-1, x.shape[-1])
            if not torch.is_grad_enabled():
                of_weight = ctx.target(weight, rows, inputs)
            if of_weight is None:
                of_weight = rows.t().mm(inputs)
        return of_x, of_weight, rows.sum(0) if need_bias else None, None


class DirectGradients:
    """Has the linear layers of a module hand their weights' gradients over as factors.

    Args:
        module (nn.Module): the layers of class nn.Linear itself, of dense weights, are changed.
        index_of (dict): of the parameters that are reduced.
        gradient_of (callable): index and the two factors to the gradient, or None where the
            caller is to compute it.
    """

    def __init__(
        self,
        module: nn.Module,
        index_of: dict[torch.Tensor, int],
        gradient_of: GradientOf,
    ) -> None:
        self._layers: list[nn.Linear] = []
        for layer in module.modules():
            if type(layer) is not nn.Linear or "forward" in layer.__dict__:
                continue
            index = index_of.get(layer.weight)
            if index is None or not layer.weight.is_contiguous():
                continue
            layer.__dict__[_TARGET] = _target(layer.weight, index, gradient_of)
            layer.__class__ = _DirectLinear
            self._layers.append(layer)

    def close(self) -> None:
        """Give the layers their class back."""
        for layer in self._layers:
            layer.__dict__.pop(_TARGET, None)
            layer.__class__ = nn.Linear
        self._layers = []


def _target(weight: torch.Tensor, index: int, gradient_of: GradientOf) -> Target:
    held = weakref.ref(weight)
    method = weakref.WeakMethod(gradient_of)  # a closed wrapper may go
    # Held, the weight has the same node in every graph; asking anew makes a view each time.
    node = get_gradient_edge(weight).node

    def gradient(
        weight: torch.Tensor, rows: torch.Tensor, inputs: torch.Tensor
    ) -> torch.Tensor | None:
        parameter, gradient_of = held(), method()
        if parameter is not weight or gradient_of is None or parameter.grad is not None:
            return None
        try:
            # False or an error in torch.autograd.grad, whose result belongs to the caller.
            if not torch._C._will_engine_execute_node(node):
                return None
        except RuntimeError:
            return None
        return gradient_of(index, rows, inputs)

    return gradient
