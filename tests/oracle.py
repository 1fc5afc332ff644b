"""The int8 family in numpy, from the documentation alone: whole numbers in int64, float32 steps.

Nothing here is shared with lepton_kernels, so that one mistake is not made twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

F32 = np.float32


def to_f32(tensor: torch.Tensor) -> np.ndarray:
    """Floats of any dtype as float32 (exact for bfloat16 and float16)."""
    return tensor.detach().to(torch.float32).numpy()


def from_f32(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """float32 rounded once, to nearest even, to `dtype`; bfloat16 by its bits."""
    values = np.ascontiguousarray(values, F32)
    if dtype == torch.float32:
        return torch.from_numpy(values.copy())
    if dtype == torch.float16:
        with np.errstate(over="ignore"):
            return torch.from_numpy(values.astype(np.float16))
    assert dtype == torch.bfloat16
    raw = values.view(np.uint32).astype(np.uint64)
    rounded = (raw + 0x7FFF + (raw >> 16 & 1)) >> 16
    rounded = np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
    return torch.from_numpy(rounded.view(np.int16).copy()).view(torch.bfloat16)


def quantize_rows(x: np.ndarray, symmetric: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """quantize_int8 of a float32 matrix, row by row, a number at a time where it matters."""
    rows, columns = x.shape
    q = np.zeros((rows, columns), np.int64)
    scale = np.ones(rows, F32)
    zero = np.zeros(rows, np.int64)
    steps = F32(127 if symmetric else 255)
    for r in range(rows if columns else 0):
        row = x[r].astype(F32)
        with np.errstate(all="ignore"):
            if symmetric:
                extent = F32(np.max(np.abs(row)))
                low = F32(0)
            else:
                low = F32(min(F32(0), np.min(row))) if not np.isnan(row).any() else F32(np.nan)
                extent = F32(F32(max(F32(0), np.max(row))) - low)
        if not np.isfinite(row).all() or not np.isfinite(extent):
            scale[r] = F32(np.nan)
            continue
        if extent < F32(2.0**-120):
            continue
        inverse = F32(steps / extent)
        scale[r] = F32(extent / steps)
        if not symmetric:
            zero[r] = -128 - int(np.rint(F32(low * inverse)))
        level = np.rint((row * inverse).astype(F32)).astype(np.int64) + zero[r]
        q[r] = np.clip(level, -127 if symmetric else -128, 127)
    return q, scale, zero


def quantize_rows_with(
    x: np.ndarray, scale: np.ndarray, zero: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Static quantisation of rows; a row that is not finite gets q = 0 and scale NaN."""
    finite = np.isfinite(x).all(1) if x.shape[1] else np.ones(x.shape[0], bool)
    with np.errstate(all="ignore"):
        level = np.rint((x * (F32(1) / scale)[:, None]).astype(F32)).astype(np.float64)
    level = np.clip(np.where(finite[:, None], level, 0) + zero[:, None], -128, 127)
    q = np.where(finite[:, None], level, 0).astype(np.int64)
    return q, np.where(finite, scale, F32(np.nan)).astype(F32)


def per_row(value: torch.Tensor | None, rows: int, default: float, dtype: Any) -> np.ndarray:
    """A scale or zero point as one value per row."""
    if value is None:
        return np.full(rows, default, dtype)
    return np.broadcast_to(value.detach().numpy().reshape(-1), (rows,)).astype(dtype)


def round_to_int8(y: np.ndarray, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
    """Requantised output; NaN ends as -128."""
    with np.errstate(all="ignore"):
        inverse = F32(1) / F32(scale.item())
        level = np.rint((y * inverse).astype(F32)).astype(np.float64)
    level = level + (0 if zero is None else int(zero.item()))
    clipped = np.where(np.isnan(level), -128, np.clip(level, -128, 127))
    return torch.from_numpy(clipped.astype(np.int8))


def int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    x_scale: torch.Tensor | None = None,
    x_zero_point: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
    out_scale: torch.Tensor | None = None,
    out_zero_point: torch.Tensor | None = None,
) -> torch.Tensor:
    """int8_linear with an unpacked weight, without weight_only; activation None or "relu"."""
    in_features, out_features = x.shape[-1], weight.shape[0]
    count = int(np.prod(x.shape[:-1], dtype=np.int64))
    rows = (x if x.dtype == torch.int8 else x.to(torch.float32)).reshape(count, in_features).numpy()
    if x.dtype == torch.int8:
        q = rows.astype(np.int64)
        row_scale = per_row(x_scale, count, 1, F32)
        zero = per_row(x_zero_point, count, 0, np.int64)
    elif x_scale is not None:
        zero = per_row(x_zero_point, count, 0, np.int64)
        q, row_scale = quantize_rows_with(rows, per_row(x_scale, count, 1, F32), zero)
    else:
        q, row_scale, zero = quantize_rows(rows, symmetric=True)

    scale = to_f32(weight_scale)
    scale = np.broadcast_to(
        scale.reshape(-1, 1) if scale.ndim < 2 else scale,
        (out_features, scale.shape[1] if scale.ndim == 2 else 1),
    )
    groups = scale.shape[1]
    width = in_features // groups
    w = weight.numpy().astype(np.int64)
    y = np.zeros((count, out_features), F32)
    with np.errstate(all="ignore"):
        for g in range(groups):
            part = slice(g * width, (g + 1) * width)
            exact = (q[:, part] - zero[:, None]) @ w[:, part].T
            scaled = (exact.astype(F32) * scale[:, g]).astype(F32)
            y = scaled if g == 0 else (y + scaled).astype(F32)
        y = (y * row_scale[:, None]).astype(F32)
        if bias is not None:
            y = (y + to_f32(bias)).astype(F32)
        if activation == "relu":
            # A sum that is -0 may stay so: max(-0, 0) has no one answer; -0 is kept.
            y = np.where(y < 0, F32(0), y)
        else:
            assert activation is None
        if residual is not None:
            y = (y + to_f32(residual).reshape(y.shape)).astype(F32)
    dtype = out_dtype or (torch.float32 if x.dtype == torch.int8 else x.dtype)
    if dtype == torch.int8:
        assert out_scale is not None
        out = round_to_int8(y, out_scale, out_zero_point)
    else:
        out = from_f32(y, dtype)
    return out.reshape(*x.shape[:-1], out_features)
