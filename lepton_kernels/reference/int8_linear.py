"""int8 family in plain PyTorch: the order of operations here is the one of every kernel."""

from __future__ import annotations

import torch

from lepton_kernels.reference.packed_weight import (
    pack_int8_weight,
    unpack_int8_weight,
)

__all__ = [
    "apply_activation",
    "int8_linear",
    "int8_linear_backward",
    "int8_linear_qat",
    "int8_linear_qat_backward",
    "int8_mm",
    "pack_int8_weight",
    "quantize_int8",
    "unpack_int8_weight",
]

# Rows below this magnitude count as zeros: 127 / amax would overflow.
SMALLEST_RANGE = 2.0**-120
ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")


def quantize_int8(
    x: torch.Tensor, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantise each row of a matrix; returns int8 (R, C), scale (R,), zero point (R,)."""
    x = x.to(torch.float32)
    rows = x.shape[0]
    if x.shape[1] == 0:
        ones = x.new_ones(rows)
        return x.to(torch.int8), ones, ones.new_zeros(rows, dtype=torch.int32)
    if symmetric:
        low, extent = None, x.abs().amax(1)
    else:
        low = x.amin(1).clamp(max=0.0)
        extent = x.amax(1).clamp(min=0.0) - low
    # Divisions between tensors: torch turns a number over a tensor into two roundings.
    steps = torch.full_like(extent, 127.0 if symmetric else 255.0)
    zero = extent < SMALLEST_RANGE
    broken = ~torch.isfinite(extent)
    safe = torch.where(zero | broken, 1.0, extent)
    inverse = torch.where(zero | broken, 0.0, steps / safe)
    scale = torch.where(broken, torch.nan, torch.where(zero, 1.0, safe / steps))
    if low is None:
        zero_point = torch.zeros_like(scale)
        lowest = -127.0
    else:
        zero_point = torch.where(broken | zero, 0.0, -128.0 - torch.round(low * inverse))
        lowest = -128.0
    q = torch.round(x * inverse[:, None]) + zero_point[:, None]
    q = torch.where(broken[:, None], 0.0, q.clamp(lowest, 127.0))
    return q.to(torch.int8), scale, zero_point.to(torch.int32)


def _quantize_with(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Quantise rows with given parameters; a row that is not finite gets a scale of NaN."""
    x = x.to(torch.float32)
    rows = x.shape[0]
    scale = scale.to(torch.float32).reshape(-1).expand(rows)
    zero = torch.zeros((), dtype=torch.int32, device=x.device) if zero_point is None else zero_point
    zero = zero.reshape(-1).expand(rows)
    broken = ~torch.isfinite(x).all(1)
    q = torch.round(x * (1.0 / scale)[:, None]) + zero[:, None].to(torch.float32)
    q = torch.where(broken[:, None], 0.0, q.clamp(-128.0, 127.0))
    return q.to(torch.int8), torch.where(broken, torch.nan, scale), zero


def int8_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Exact product of int8 matrices, modulo 2^32 as int32 arithmetic is."""
    # float64 holds every partial sum of products of bytes exactly (K < 2^37).
    exact = a.to(torch.float64) @ b.to(torch.float64)
    return exact.to(torch.int64).to(torch.int32)


def apply_activation(y: torch.Tensor, activation: int) -> torch.Tensor:
    """Activation by its number; evaluated in float64 and rounded once (relu is exact anyway)."""
    name = ACTIVATIONS[activation]
    if name == "none":
        return y
    if name == "relu":
        return torch.relu(y)
    wide = y.to(torch.float64)
    if name == "gelu":
        # x Phi(x) by erfc: no cancellation for negative x.
        wide = 0.5 * wide * torch.special.erfc(-wide * 0.5**0.5)
    elif name == "gelu_tanh":
        # (1 + tanh u) / 2 is the logistic function of 2u.
        inner = (2.0 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)
        wide = wide * torch.sigmoid(2.0 * inner)
    else:
        wide = wide * torch.sigmoid(wide)
    # x = -inf: 0 * -inf above.
    wide = torch.where(y == -torch.inf, 0.0, wide)
    return wide.to(y.dtype)


def _weight_of(weight: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    if weight.dtype == torch.int8:
        return weight
    return unpack_int8_weight(weight, out_features, in_features)


def _scale_matrix(
    weight_scale: torch.Tensor, out_features: int, dtype: torch.dtype
) -> torch.Tensor:
    """Weight scale as (N, groups)."""
    scale = weight_scale.to(dtype)
    if scale.dim() == 0:
        scale = scale.expand(out_features)
    return scale.reshape(out_features, scale.shape[1] if scale.dim() == 2 else 1)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x as a matrix of rows of its last dimension, also where a size is 0."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _out_features(weight: torch.Tensor, weight_scale: torch.Tensor) -> int:
    return weight.shape[0] if weight.dtype == torch.int8 else weight_scale.shape[0]


def int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    x_scale: torch.Tensor | None,
    x_zero_point: torch.Tensor | None,
    out_scale: torch.Tensor | None,
    out_zero_point: torch.Tensor | None,
    weight_only: bool,
    activation: int,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """Linear layer with an int8 weight; see `lepton_kernels.int8_linear`."""
    in_features = x.shape[-1]
    out_features = _out_features(weight, weight_scale)
    # float64 is for gradcheck: only a weight-only product has anything to differentiate there.
    work = torch.float64 if weight_only and x.dtype == torch.float64 else torch.float32
    scale = _scale_matrix(weight_scale, out_features, work)
    groups = scale.shape[1]
    rows = _rows(x)
    width = in_features // groups
    matrix = _weight_of(weight, out_features, in_features).reshape(out_features, groups, width)

    if weight_only:
        parts = [
            (rows.reshape(rows.shape[0], groups, width)[:, g].to(work) @ matrix[:, g].to(work).t())
            * scale[:, g]
            for g in range(groups)
        ]
        y = sum(parts[1:], parts[0])
    else:
        if x.dtype == torch.int8:
            assert x_scale is not None
            row_scale = x_scale.to(torch.float32).reshape(-1).expand(rows.shape[0])
            quantized = rows
            zero = torch.zeros((), dtype=torch.int32, device=x.device)
            row_zero = zero if x_zero_point is None else x_zero_point
            row_zero = row_zero.reshape(-1).expand(rows.shape[0])
        elif x_scale is not None:
            quantized, row_scale, row_zero = _quantize_with(rows, x_scale, x_zero_point)
        else:
            quantized, row_scale, row_zero = quantize_int8(rows, True)
        centered = quantized.to(torch.float64) - row_zero[:, None].to(torch.float64)
        centered = centered.reshape(rows.shape[0], groups, width)
        parts = [
            (centered[:, g] @ matrix[:, g].to(torch.float64).t()).to(torch.float32) * scale[:, g]
            for g in range(groups)
        ]
        y = sum(parts[1:], parts[0])
        y = y * row_scale[:, None]

    if bias is not None:
        y = y + bias.to(y.dtype)
    y = apply_activation(y, activation)
    if residual is not None:
        y = y + residual.reshape(y.shape).to(y.dtype)
    if out_dtype == torch.int8:
        assert out_scale is not None
        y = torch.round(y * (1.0 / out_scale.to(torch.float32)))
        if out_zero_point is not None:
            y = y + out_zero_point.to(torch.float32)
        y = torch.nan_to_num(y.clamp(-128.0, 127.0), nan=-128.0)
    return y.to(out_dtype).reshape(*x.shape[:-1], out_features)


def _activation_gradient(pre: torch.Tensor, grad: torch.Tensor, activation: int) -> torch.Tensor:
    name = ACTIVATIONS[activation]
    if name == "none":
        return grad
    if name == "relu":
        return torch.where(pre > 0, grad, 0.0)
    if name == "silu":
        return torch.ops.aten.silu_backward(grad, pre)
    approximate = "tanh" if name == "gelu_tanh" else "none"
    return torch.ops.aten.gelu_backward(grad, pre, approximate=approximate)


def _inside_range(
    x: torch.Tensor, x_scale: torch.Tensor | None, x_zero_point: torch.Tensor | None
) -> torch.Tensor | None:
    """Where static quantisation did not clip: the straight-through gradient passes only there."""
    if x_scale is None or x.dtype == torch.int8:
        return None
    scale = x_scale.to(torch.float32).reshape(-1, 1)
    zero = 0.0 if x_zero_point is None else x_zero_point.reshape(-1, 1).to(torch.float32)
    level = torch.round(x.to(torch.float32) * (1.0 / scale)) + zero
    return (level >= -128.0) & (level <= 127.0)


def _dequantized_input(
    rows: torch.Tensor,
    x_scale: torch.Tensor | None,
    x_zero_point: torch.Tensor | None,
    weight_only: bool,
    work: torch.dtype,
) -> torch.Tensor:
    """The input as the forward saw it, after quantisation."""
    if weight_only:
        return rows.to(work)
    if rows.dtype == torch.int8:
        assert x_scale is not None
        q, scale = rows, x_scale.reshape(-1, 1).to(work)
        zero = 0 if x_zero_point is None else x_zero_point.reshape(-1, 1)
        return (q.to(work) - zero) * scale
    if x_scale is not None:
        q, scale, zero = _quantize_with(rows, x_scale, x_zero_point)
    else:
        q, scale, zero = quantize_int8(rows, True)
    return (q.to(work) - zero[:, None]) * scale[:, None].to(work)


def int8_linear_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    x_scale: torch.Tensor | None,
    x_zero_point: torch.Tensor | None,
    weight_only: bool,
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Straight-through gradients of the input, the weight scale and the bias.

    Rounding counts as the identity, clipping of a static quantiser as zero gradient outside its
    range. The product runs in float: torch's own matmul serves it.
    """
    in_features = x.shape[-1]
    out_features = _out_features(weight, weight_scale)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale = _scale_matrix(weight_scale, out_features, work)
    groups = scale.shape[1]
    width = in_features // groups
    rows = _rows(x)
    grad = grad.reshape(rows.shape[0], out_features).to(work)
    matrix = _weight_of(weight, out_features, in_features)
    dequantized = (
        matrix.reshape(out_features, groups, width).to(work) * scale[:, :, None]
    ).reshape(out_features, in_features)
    seen = _dequantized_input(rows, x_scale, x_zero_point, weight_only, work)

    if ACTIVATIONS[activation] != "none":
        pre = seen @ dequantized.t()
        if bias is not None:
            pre = pre + bias.to(work)
        grad = _activation_gradient(pre, grad, activation)

    grad_x = grad @ dequantized
    inside = None if weight_only else _inside_range(rows, x_scale, x_zero_point)
    if inside is not None:
        grad_x = torch.where(inside, grad_x, 0.0)
    weight_gradient = (grad.t() @ seen).reshape(out_features, groups, width)
    grad_scale = (weight_gradient * matrix.reshape(out_features, groups, width).to(work)).sum(-1)
    if weight_scale.dim() == 0:
        grad_scale = grad_scale.sum()
    grad_scale = grad_scale.reshape(weight_scale.shape)
    float_dtype = x.dtype if x.dtype.is_floating_point else torch.float32
    return (
        grad_x.reshape(x.shape).to(float_dtype),
        grad_scale.to(weight_scale.dtype),
        grad.sum(0).to(float_dtype if bias is None else bias.dtype),
    )


def _quantize_weight(weight: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    grouped = weight.reshape(-1, group_size) if group_size else weight
    q, scale, _ = torch.ops.lepton.quantize_int8(grouped, True)
    return q.reshape(weight.shape), scale.reshape(weight.shape[0], -1)


def int8_linear_qat(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    x_scale: torch.Tensor | None,
    x_zero_point: torch.Tensor | None,
    group_size: int,
    activation: int,
) -> torch.Tensor:
    """Forward of quantisation-aware training: the float weight is quantised, then int8_linear."""
    q, scale = _quantize_weight(weight, group_size)
    return torch.ops.lepton.int8_linear(
        x, q, scale, bias, None, x_scale, x_zero_point, None, None, False, activation, x.dtype
    )


def int8_linear_qat_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    x_scale: torch.Tensor | None,
    x_zero_point: torch.Tensor | None,
    group_size: int,
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Straight-through gradients of the input, the float weight and the bias."""
    q, scale = _quantize_weight(weight, group_size)
    groups = scale.shape[1]
    grouped = q.reshape(weight.shape[0], groups, -1).to(torch.float32) * scale[:, :, None]
    dequantized = grouped.reshape(weight.shape)
    rows = _rows(x)
    grad = grad.reshape(rows.shape[0], weight.shape[0]).to(torch.float32)
    seen = _dequantized_input(rows, x_scale, x_zero_point, False, torch.float32)
    if ACTIVATIONS[activation] != "none":
        pre = seen @ dequantized.t()
        if bias is not None:
            pre = pre + bias.to(torch.float32)
        grad = _activation_gradient(pre, grad, activation)
    grad_x = grad @ dequantized
    inside = _inside_range(rows, x_scale, x_zero_point)
    if inside is not None:
        grad_x = torch.where(inside, grad_x, 0.0)
    return (
        grad_x.reshape(x.shape).to(x.dtype),
        (grad.t() @ seen).to(weight.dtype),
        grad.sum(0).to(x.dtype if bias is None else bias.dtype),
    )
