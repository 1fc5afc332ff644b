"""Quantisation to int8: contract of `quantize_int8`."""

from __future__ import annotations

import torch

from lepton_kernels import _dispatch
from lepton_kernels.ops._checks import FLOATS, check_dtype, check_integer, check_tensor, shape_error
from lepton_kernels.reference import int8_linear as reference


def _check(x: torch.Tensor, symmetric: bool) -> None:
    check_dtype("quantize_int8", "x", x, FLOATS)
    if x.dim() != 2:
        shape_error("quantize_int8", "x", "(rows, columns)", x.shape)


def _reference(x: torch.Tensor, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _check(x, symmetric)
    return reference.quantize_int8(x, symmetric)


def _fake(x: torch.Tensor, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    _check(x, symmetric)
    rows = (x.shape[0],)
    return (
        x.new_empty(x.shape, dtype=torch.int8),
        x.new_empty(rows, dtype=torch.float32),
        x.new_empty(rows, dtype=torch.int32),
    )


_dispatch.define_op(
    "quantize_int8",
    "(Tensor x, bool symmetric) -> (Tensor q, Tensor scale, Tensor zero_point)",
    reference=_reference,
    fake=_fake,
)
_quantize_rows = _dispatch.OpCaller("quantize_int8")


def quantize_int8(
    x: torch.Tensor,
    *,
    dim: int | None = -1,
    symmetric: bool = True,
    group_size: int | None = None,
) -> tuple[torch.Tensor, ...]:
    """Quantise to int8 with one scale per token, channel, group or tensor.

    symmetric:   q = round(x * (127 / amax)) in [-127, 127], scale = amax / 127
    asymmetric:  q = round(x * (255 / range)) + zero_point in [-128, 127], scale = range / 255,
                 where low = min(x, 0), range = max(x, 0) - low,
                 zero_point = -128 - round(low * 255 / range)

    Everything is float32, rounding is to nearest even. x is near (q - zero_point) * scale.

    Args:
        x (Tensor): float32, bfloat16 or float16, any shape and stride.
        dim (int, optional): the dimension whose elements share a scale: -1 is per token for
            activations (tokens, features) and per channel for weights (out, in). None: one scale
            for the whole tensor. Default: -1.
        symmetric (bool): no zero point. Default: True.
        group_size (int, optional): along `dim`, every `group_size` elements get a scale of their
            own. Must divide the length of `dim`. Default: None (the whole dimension).

    Returns:
        (q, scale), or (q, scale, zero_point) when not symmetric. q: int8, shape of x. scale:
        float32, and zero_point: int32, shape of x without `dim` (with `dim` of length
        groups where `group_size` is given; () for dim=None). Where the elements that share a
        scale hold NaN or an infinity, scale is NaN and q is 0, so that everything computed from
        them is NaN. Where all are below 2^-120 in magnitude, scale is 1 and q is 0.

    Raises:
        TypeError: x is not a tensor of one of the dtypes.
        ValueError: group_size does not divide the dimension, or is given with dim=None.
        IndexError: dim is out of range.

    Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2018.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> q, scale = lk.quantize_int8(torch.tensor([[1.0, -2.0, 0.5]]))
        >>> q.tolist(), round(scale.item(), 6)
        ([[64, -127, 32]], 0.015748)
    """
    op = "quantize_int8"
    check_tensor(op, "x", x)
    check_dtype(op, "x", x, FLOATS)
    for name, number in (("dim", dim), ("group_size", group_size)):
        if number is not None:
            check_integer(op, name, number)
    if dim is None or x.dim() == 0:
        if group_size is not None:
            raise ValueError(f"{op}: group_size needs a dim, got dim=None")
        q, scale, zero = _quantize_rows((x.reshape(1, -1),), symmetric)
        shape: tuple[int, ...] = ()
        q = q.reshape(x.shape)
    else:
        if not -x.dim() <= dim < x.dim():
            raise IndexError(f"{op}: dim must be within -{x.dim()} and {x.dim() - 1}, got {dim}")
        moved = x.movedim(dim, -1)
        length = moved.shape[-1]
        if group_size is None:
            shape, columns, groups = tuple(moved.shape[:-1]), length, 1
        else:
            if group_size < 1 or length % group_size != 0:
                raise ValueError(
                    f"{op}: group_size must divide the length {length} of dim {dim}, "
                    f"got {group_size}"
                )
            shape = (*moved.shape[:-1], length // group_size)
            columns, groups = group_size, length // group_size
        rows = moved.shape[:-1].numel() * groups
        q, scale, zero = _quantize_rows((moved.reshape(rows, columns),), symmetric)
        q = q.reshape(moved.shape).movedim(-1, dim)
    scale, zero = scale.reshape(shape), zero.reshape(shape)
    if group_size is not None:
        scale, zero = scale.movedim(-1, dim), zero.movedim(-1, dim)
    return (q, scale) if symmetric else (q, scale, zero)
