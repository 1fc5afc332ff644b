"""Quantisation-aware training of a linear layer: contract of `int8_linear_qat`."""

from __future__ import annotations

from typing import Any

import torch

from lepton_kernels import _dispatch
from lepton_kernels.ops._checks import FLOATS, check_dtype, check_tensor, shape_error
from lepton_kernels.ops._int8_checks import (
    activation_number,
    check_int8_linear,
    check_int8_values,
)
from lepton_kernels.reference import int8_linear as reference


def _fake_qat(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_qat_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *rest: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        x.new_empty((weight.shape[0],), dtype=x.dtype if bias is None else bias.dtype),
    )


def _setup_qat_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, group_size, activation = inputs
    ctx.save_for_backward(*tensors)
    ctx.group_size, ctx.activation = group_size, activation


def _qat_backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    gradients = torch.ops.lepton.int8_linear_qat_backward(
        grad, *ctx.saved_tensors, ctx.group_size, ctx.activation
    )
    needed = (
        gradient if need else None
        for gradient, need in zip(gradients, ctx.needs_input_grad, strict=False)
    )
    return (*needed, None, None, None, None)


_dispatch.define_op(
    "int8_linear_qat",
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? x_scale, Tensor? x_zero_point,"
    " int group_size, int activation) -> Tensor",
    reference=reference.int8_linear_qat,
    fake=_fake_qat,
    setup_context=_setup_qat_context,
    backward=_qat_backward,
)
_dispatch.define_op(
    "int8_linear_qat_backward",
    "(Tensor grad, Tensor x, Tensor weight, Tensor? bias, Tensor? x_scale, Tensor? x_zero_point,"
    " int group_size, int activation) -> (Tensor grad_x, Tensor grad_weight, Tensor grad_bias)",
    reference=reference.int8_linear_qat_backward,
    fake=_fake_qat_backward,
)

_linear_qat = _dispatch.OpCaller("int8_linear_qat")


def int8_linear_qat(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    x_scale: torch.Tensor | None = None,
    x_zero_point: torch.Tensor | None = None,
    group_size: int | None = None,
    activation: str | None = None,
) -> torch.Tensor:
    """Linear layer for quantisation-aware training: float weight, int8 arithmetic.

    The forward quantises `weight` per output feature (or group) and runs `int8_linear`, so that
    training sees exactly what inference will compute. The backward counts rounding as the
    identity, and clipping of a static `x` as a zero gradient.

    Args:
        x (Tensor): float32, bfloat16 or float16, shape (..., in_features).
        weight (Tensor): float, shape (out_features, in_features).
        bias (Tensor, optional): float, shape (out_features,). Default: None.
        x_scale (Tensor, optional): float32, shape (); static step of x. Default: None (dynamic).
        x_zero_point (Tensor, optional): int32, shape (). Default: None (0).
        group_size (int, optional): input features that share a weight scale. Default: None (all).
        activation (str, optional): as in `int8_linear`. Default: None.

    Returns:
        Tensor: shape (..., out_features), dtype of `x`.

    Raises:
        TypeError, ValueError: as `int8_linear`.

    Source: Jacob et al., 2018; straight-through gradient: Bengio et al., 2013.
    """
    op = "int8_linear_qat"
    check_tensor(op, "x", x)
    check_tensor(op, "weight", weight)
    check_dtype(op, "x", x, FLOATS)
    check_dtype(op, "weight", weight, FLOATS)
    if x.dim() == 0 or weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        in_features = x.shape[-1] if x.dim() else "in_features"
        shape_error(op, "weight", f"(out_features, {in_features})", weight.shape, "to match x")
    if group_size is not None and (group_size < 1 or weight.shape[1] % group_size != 0):
        raise ValueError(
            f"{op}: group_size must divide in_features {weight.shape[1]}, got {group_size}"
        )
    number = activation_number(op, activation)
    try:
        return _linear_qat((x, weight, bias, x_scale, x_zero_point), group_size or 0, number)
    except (RuntimeError, AttributeError, TypeError):
        # The exact error is worked out only once int8_linear has refused.
        q = torch.empty_like(weight, dtype=torch.int8)
        scale = torch.ones(weight.shape[0], device=weight.device)
        check_int8_linear(
            x, q, scale, bias, None, x_scale, x_zero_point, None, None, False, number, x.dtype
        )
        check_int8_values(x, q, scale, x_scale, x_zero_point, None, None)
        raise
