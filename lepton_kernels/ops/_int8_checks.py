"""What `int8_linear` accepts, on any backend."""

from __future__ import annotations

import torch

from lepton_kernels.ops._checks import (
    FLOATS,
    check_device,
    check_dtype,
    check_tensor,
    shape_error,
)
from lepton_kernels.reference.int8_linear import ACTIVATIONS
from lepton_kernels.reference.packed_weight import read_shape

ACTIVATION_NUMBERS: dict[str | None, int] = {
    None: 0,
    **{name: number for number, name in enumerate(ACTIVATIONS)},
}
# 255 * 128 * K must fit an int32.
MAX_GROUP = 65536
OUT_DTYPES = (*FLOATS, torch.int8)


def activation_number(op: str, activation: str | None) -> int:
    """Number of an activation in the op's schema; ValueError for an unknown name."""
    try:
        return ACTIVATION_NUMBERS[activation]
    except (KeyError, TypeError):
        raise ValueError(
            f"{op}: activation must be None or one of {', '.join(ACTIVATIONS)}, got {activation!r}"
        ) from None


def check_int8_linear(
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
) -> int:
    """Check everything that shapes and dtypes can tell; returns out_features."""
    op = "int8_linear"
    for name, value in (("x", x), ("weight", weight), ("weight_scale", weight_scale)):
        check_tensor(op, name, value)
    check_dtype(op, "x", x, (*FLOATS, torch.float64, torch.int8))
    check_dtype(op, "weight_scale", weight_scale, (*FLOATS, torch.float64))
    if x.dim() == 0:
        shape_error(op, "x", "(..., in_features)", x.shape)
    in_features = x.shape[-1]
    if weight.dtype == torch.int8:
        if weight.dim() != 2 or weight.shape[1] != in_features:
            shape_error(op, "weight", f"(out_features, {in_features})", weight.shape, "to match x")
        out_features = weight.shape[0]
    elif weight.dtype == torch.uint8 and weight.dim() == 1:
        if weight_scale.dim() == 0:
            shape_error(op, "weight_scale", "(out_features,) with a packed weight", ())
        out_features = weight_scale.shape[0]
    else:
        raise TypeError(
            f"{op}: weight must be int8 (out_features, in_features) or come from "
            f"pack_int8_weight, got {weight.dtype} of shape {tuple(weight.shape)}"
        )
    groups = weight_scale.shape[1] if weight_scale.dim() == 2 else 1
    if (
        weight_scale.dim() > 2
        or (weight_scale.dim() > 0 and weight_scale.shape[0] != out_features)
        or groups == 0
    ):
        shape_error(
            op,
            "weight_scale",
            f"({out_features},) or ({out_features}, groups)",
            weight_scale.shape,
            "to match out_features",
        )
    if in_features % groups != 0:
        raise ValueError(
            f"{op}: weight_scale has {groups} groups, which do not divide in_features {in_features}"
        )
    if in_features // groups > MAX_GROUP and not weight_only:
        raise NotImplementedError(
            f"{op}: in_features {in_features} in one group can overflow int32; supported: groups "
            f"of at most {MAX_GROUP} (quantize_int8(weight, group_size=...))"
        )
    if bias is not None:
        check_tensor(op, "bias", bias)
        check_dtype(op, "bias", bias, (*FLOATS, torch.float64))
        if bias.shape != (out_features,):
            shape_error(op, "bias", f"({out_features},)", bias.shape, "to match out_features")
    if residual is not None:
        check_tensor(op, "residual", residual)
        check_dtype(op, "residual", residual, (*FLOATS, torch.float64))
        expected = (*x.shape[:-1], out_features)
        if residual.shape != expected:
            shape_error(op, "residual", str(tuple(expected)), residual.shape, "like the output")
    if out_dtype not in (*OUT_DTYPES, torch.float64):
        raise TypeError(
            f"{op}: out_dtype must be float32, bfloat16, float16 or int8, got {out_dtype!r}"
        )
    if (out_dtype == torch.int8) != (out_scale is not None):
        raise ValueError(
            f"{op}: out_scale must be given exactly when out_dtype is int8, got out_dtype "
            f"{out_dtype} and out_scale {'given' if out_scale is not None else 'None'}"
        )
    if weight_only:
        if x.dtype == torch.int8 or x_scale is not None or x_zero_point is not None:
            raise ValueError(f"{op}: weight_only takes a float x and no x_scale or x_zero_point")
    elif x.dtype == torch.int8 and x_scale is None:
        raise ValueError(f"{op}: x is int8, so x_scale must be given")
    elif x_zero_point is not None and x_scale is None:
        raise ValueError(f"{op}: x_zero_point needs x_scale")
    _check_quantizers(x, x_scale, x_zero_point, out_scale, out_zero_point)
    others = (weight, weight_scale, bias, residual, x_scale, x_zero_point, out_scale)
    for name, tensor in zip(
        ("weight", "weight_scale", "bias", "residual", "x_scale", "x_zero_point", "out_scale"),
        others,
        strict=True,
    ):
        if tensor is not None:
            check_device(op, name, tensor, x)
    return out_features


def _check_quantizers(
    x: torch.Tensor,
    x_scale: torch.Tensor | None,
    x_zero_point: torch.Tensor | None,
    out_scale: torch.Tensor | None,
    out_zero_point: torch.Tensor | None,
) -> None:
    op = "int8_linear"
    rows = tuple(x.shape[:-1])
    for name, tensor, dtype in (
        ("x_scale", x_scale, torch.float32),
        ("x_zero_point", x_zero_point, torch.int32),
        ("out_scale", out_scale, torch.float32),
        ("out_zero_point", out_zero_point, torch.int32),
    ):
        if tensor is None:
            continue
        check_tensor(op, name, tensor)
        check_dtype(op, name, tensor, (dtype,))
        if tensor.numel() == 1 or (name.startswith("x_") and tuple(tensor.shape) == rows):
            continue
        per_row = f" or {rows}, one per row" if name.startswith("x_") else ""
        shape_error(op, name, f"(){per_row}", tensor.shape)
    if out_zero_point is not None and out_scale is None:
        raise ValueError(f"{op}: out_zero_point needs out_scale and out_dtype int8")


def check_int8_values(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    x_scale: torch.Tensor | None,
    x_zero_point: torch.Tensor | None,
    out_scale: torch.Tensor | None,
    out_zero_point: torch.Tensor | None,
) -> None:
    """Check what only the data can tell."""
    op = "int8_linear"
    if not torch.isfinite(weight_scale).all():
        raise ValueError(f"{op}: weight_scale must be finite, got NaN or infinity in it")
    for name, scale in (("x_scale", x_scale), ("out_scale", out_scale)):
        if scale is None:
            continue
        if not (torch.isfinite(scale) & (scale > 0)).all():
            raise ValueError(f"{op}: {name} must be finite and positive, got {scale.tolist()}")
        if not torch.isfinite(1.0 / scale).all():
            raise ValueError(f"{op}: {name} must be above 2^-128, got {scale.tolist()}")
    for name, zero in (("x_zero_point", x_zero_point), ("out_zero_point", out_zero_point)):
        if zero is not None and not ((zero >= -128) & (zero <= 127)).all():
            raise ValueError(f"{op}: {name} must be within -128 and 127, got {zero.tolist()}")
    if weight.dtype == torch.uint8:
        shape = read_shape(op, weight)
        groups = weight_scale.shape[1] if weight_scale.dim() == 2 else 1
        expected = (weight_scale.shape[0], x.shape[-1], groups)
        got = (shape.out_features, shape.in_features, shape.groups)
        if got != expected:
            raise ValueError(
                f"{op}: packed weight has (out_features, in_features, groups) {got}, "
                f"x and weight_scale ask for {expected}"
            )
