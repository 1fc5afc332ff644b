"""Gradient buckets: contract of the ops that fill, reduce, scale, measure and compress them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lepton_kernels import _dispatch
from lepton_kernels.ops._bucket_checks import (
    check_factors,
    check_flat,
    check_floats,
    check_one_dtype,
    check_quantized,
    check_values,
)
from lepton_kernels.ops._checks import FLOATS, check_dtype, check_tensor
from lepton_kernels.reference import bucket as reference

DEFAULT_BLOCK = 256


def _fake_flatten(
    tensors: Sequence[torch.Tensor], dtype: torch.dtype, factor: float
) -> torch.Tensor:
    check_floats("bucket_flatten", "tensors", tensors)
    device = tensors[0].device if tensors else None
    return torch.empty(reference.offsets_of(tensors, dtype)[1], dtype=dtype, device=device)


def _fake_unflatten(tensors: Sequence[torch.Tensor], flat: torch.Tensor, factor: float) -> None:
    check_floats("bucket_unflatten_", "tensors", tensors)
    check_flat("bucket_unflatten_", flat, reference.offsets_of(tensors, flat.dtype)[1])


def _fake_reduce(
    inputs: Sequence[torch.Tensor], average: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    check_one_dtype("bucket_reduce", "inputs", inputs)
    return inputs[0].new_empty(inputs[0].shape, dtype=dtype), inputs[0].new_empty(
        (), dtype=torch.float64
    )


def _fake_unscale(
    tensors: Sequence[torch.Tensor], found_inf: torch.Tensor, inverse: torch.Tensor
) -> None:
    check_floats("bucket_unscale_", "tensors", tensors)


def _fake_squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    check_floats("bucket_squares", "tensors", tensors)
    device = tensors[0].device if tensors else None
    return torch.empty(len(tensors), dtype=torch.float64, device=device)


def _fake_quantize(
    x: torch.Tensor, residual: torch.Tensor | None, block: int, fp8: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    check_values("bucket_quantize", x, residual, block)
    blocks = (x.shape[0] + block - 1) // block
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty((blocks,), dtype=torch.float32)


def _fake_dequantize(
    out: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    block: int,
    fp8: bool,
    factor: float,
    accumulate: bool,
) -> None:
    check_quantized("bucket_dequantize_", out, q, scale, block)


def _fake_outer(
    out: torch.Tensor,
    left: Sequence[torch.Tensor],
    right: Sequence[torch.Tensor],
    divisor: float,
) -> None:
    check_factors("bucket_outer_", out, left, right)


def _checked(fake: Any, body: Any) -> Any:
    def run(*arguments: Any) -> Any:
        fake(*arguments)
        return body(*arguments)

    return run


_CONTRACTS = (
    (
        "bucket_flatten",
        "(Tensor[] tensors, ScalarType dtype, float factor) -> Tensor",
        reference.bucket_flatten,
        _fake_flatten,
    ),
    (
        "bucket_unflatten_",
        "(Tensor(a!)[] tensors, Tensor flat, float factor) -> ()",
        reference.bucket_unflatten_,
        _fake_unflatten,
    ),
    (
        "bucket_reduce",
        "(Tensor[] inputs, bool average, ScalarType dtype) -> (Tensor reduced, Tensor squares)",
        reference.bucket_reduce,
        _fake_reduce,
    ),
    (
        "bucket_unscale_",
        "(Tensor(a!)[] tensors, Tensor(b!) found_inf, Tensor inverse) -> ()",
        reference.bucket_unscale_,
        _fake_unscale,
    ),
    ("bucket_squares", "(Tensor[] tensors) -> Tensor", reference.bucket_squares, _fake_squares),
    (
        "bucket_quantize",
        "(Tensor x, Tensor(a!)? residual, int block, bool fp8) -> (Tensor q, Tensor scale)",
        reference.bucket_quantize,
        _fake_quantize,
    ),
    (
        "bucket_dequantize_",
        "(Tensor(a!) out, Tensor q, Tensor scale, int block, bool fp8, float factor,"
        " bool accumulate) -> ()",
        reference.bucket_dequantize_,
        _fake_dequantize,
    ),
    (
        "bucket_outer_",
        "(Tensor(a!) out, Tensor[] left, Tensor[] right, float divisor) -> ()",
        reference.bucket_outer_,
        _fake_outer,
    ),
)
for _name, _schema, _body, _fake in _CONTRACTS:
    _dispatch.define_op(_name, _schema, reference=_checked(_fake, _body), fake=_fake)
_call = {name: _dispatch.OpCaller(name) for name, *_ in _CONTRACTS}


def bucket_flatten(
    tensors: Sequence[torch.Tensor], *, dtype: torch.dtype | None = None, factor: float = 1.0
) -> torch.Tensor:
    """Lay tensors side by side in one bucket, in one pass that also scales and casts.

    Args:
        tensors (Sequence[Tensor]): float32, bfloat16 or float16, mixed as you like, any shapes.
        dtype (torch.dtype, optional): of the bucket. Default: None, that of the first tensor.
        factor (float): multiplies every element, in fp32. Default: 1.

    Returns:
        Tensor: 1-D. Each tensor begins at a multiple of 64 bytes; the gaps are zero.

    Raises:
        TypeError: not tensors, or another dtype. ValueError: no tensors and no dtype, or several
            devices.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> lk.bucket_flatten([torch.ones(2), torch.ones(3)]).shape
        torch.Size([32])
    """
    op = "bucket_flatten"
    tensors = check_floats(op, "tensors", tensors)
    if dtype is None:
        if not tensors:
            raise ValueError(f"{op}: dtype must be given where there are no tensors")
        dtype = tensors[0].dtype
    _check_float_dtype(op, "dtype", dtype)
    return _call[op]((), tensors, dtype, factor)


def bucket_unflatten_(
    tensors: Sequence[torch.Tensor], flat: torch.Tensor, *, factor: float = 1.0
) -> None:
    """Copy a bucket's parts back into tensors laid out as by `bucket_flatten`, scaled and cast.

    Args:
        tensors (Sequence[Tensor]): written; shapes as given to `bucket_flatten`, contiguous.
        flat (Tensor): 1-D, contiguous, a float dtype, of the length that `bucket_flatten` gives.
        factor (float): multiplies every element, in fp32. Default: 1.

    Raises:
        TypeError: dtype. ValueError: lengths do not fit, or a tensor is not contiguous.
    """
    op = "bucket_unflatten_"
    tensors = check_floats(op, "tensors", tensors, written=True)
    check_tensor(op, "flat", flat)
    check_dtype(op, "flat", flat, FLOATS)
    check_flat(op, flat, reference.offsets_of(tensors, flat.dtype)[1])
    with torch.no_grad():
        _call[op]((), tensors, flat, factor)


def bucket_reduce(
    inputs: Sequence[torch.Tensor], *, average: bool = False, dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum or mean of tensors of one shape, in the order given, with the norm on the way.

    Args:
        inputs (Sequence[Tensor]): at least one; float32, bfloat16 or float16; one dtype and
            shape.
        average (bool): divide by their number. Default: False.
        dtype (torch.dtype, optional): of the result. Default: None, that of the inputs.

    Returns:
        (Tensor, Tensor): the result, added up in fp32 and rounded once; and the sum of squares
        before that rounding, float64 of shape ().

    Raises:
        TypeError, ValueError: what the inputs must be.
    """
    op = "bucket_reduce"
    inputs = check_one_dtype(op, "inputs", inputs)
    dtype = inputs[0].dtype if dtype is None else dtype
    _check_float_dtype(op, "dtype", dtype)
    return _call[op]((), inputs, average, dtype)


def bucket_unscale_(
    tensors: Sequence[torch.Tensor], found_inf: torch.Tensor, inverse: torch.Tensor
) -> None:
    """Multiply tensors by `inverse` in place and note whether anything is not finite.

    As `torch._amp_foreach_non_finite_check_and_unscale_`.

    Args:
        tensors (Sequence[Tensor]): float32, bfloat16 or float16, contiguous; written.
        found_inf (Tensor): float32 with one element; becomes 1 where a product is NaN or
            infinite, else stays.
        inverse (Tensor): float32 with one element.

    Raises:
        TypeError, ValueError: what the arguments must be.
    """
    op = "bucket_unscale_"
    tensors = check_floats(op, "tensors", tensors, written=True)
    for name, value in (("found_inf", found_inf), ("inverse", inverse)):
        check_tensor(op, name, value)
        check_dtype(op, name, value, (torch.float32,))
        if value.numel() != 1:
            raise ValueError(f"{op}: {name} must have one element, got {value.numel()}")
    with torch.no_grad():
        _call[op]((), tensors, found_inf, inverse)


def bucket_squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of squares of each tensor: partial norms, to be added up over ranks.

    Args:
        tensors (Sequence[Tensor]): float32, bfloat16 or float16, any shapes.

    Returns:
        Tensor: float64, shape (len(tensors),).
    """
    op = "bucket_squares"
    return _call[op]((), check_floats(op, "tensors", tensors))


def bucket_quantize(
    x: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    block: int = DEFAULT_BLOCK,
    dtype: torch.dtype = torch.int8,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise a bucket by blocks, one byte an element, with error feedback.

    v = x + residual;  q = round(v * L / amax),  scale = amax / L,  residual = v - q * scale,
    where amax is of the block and L is 127 for int8, 448 for fp8 e4m3.

    Args:
        x (Tensor): 1-D, contiguous; float32, bfloat16 or float16.
        residual (Tensor, optional): float32, shape of x; read and written. Default: None.
        block (int): elements that share a scale. Default: 256.
        dtype (torch.dtype): `torch.int8` or `torch.float8_e4m3fn`. Default: int8.

    Returns:
        (q, scale): q of `dtype`, shape of x; scale float32, shape (ceil(numel / block),). A
        block with NaN or an infinity has scale NaN, q 0 and residual 0; one whose magnitudes are
        all below 2^-110 has scale 1 and q 0.

    Raises:
        TypeError, ValueError: what the arguments must be.

    Source: error feedback as in Karimireddy et al., "Error Feedback Fixes SignSGD and other
    Gradient Compression Schemes", 2019.
    """
    op = "bucket_quantize"
    check_values(op, x, residual, block)
    fp8 = _is_fp8(op, dtype)
    with torch.no_grad():
        q, scale = _call[op]((), x, residual, block, fp8)
    return (q.view(torch.float8_e4m3fn) if fp8 else q), scale


def bucket_dequantize_(
    out: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    *,
    block: int = DEFAULT_BLOCK,
    factor: float = 1.0,
    accumulate: bool = False,
) -> torch.Tensor:
    """Write what `bucket_quantize` coded to `out`, or add it.

    Args:
        out (Tensor): 1-D, contiguous; float32, bfloat16 or float16; written.
        q (Tensor): int8 or float8_e4m3fn, shape of out, contiguous.
        scale (Tensor): float32, shape (ceil(numel / block),), contiguous.
        block (int): as given to `bucket_quantize`. Default: 256.
        factor (float): multiplies what is written or added, in fp32. Default: 1.
        accumulate (bool): add to out. Default: False.

    Returns:
        Tensor: `out`.

    Raises:
        TypeError, ValueError: what the arguments must be.
    """
    op = "bucket_dequantize_"
    check_tensor(op, "q", q)
    fp8 = _is_fp8(op, q.dtype)
    q = q.view(torch.int8)
    check_quantized(op, out, q, scale, block)
    with torch.no_grad():
        _call[op]((), out, q, scale, block, fp8, factor, accumulate)
    return out


def bucket_outer_(
    out: torch.Tensor,
    left: Sequence[torch.Tensor],
    right: Sequence[torch.Tensor],
    *,
    divisor: float = 1.0,
) -> torch.Tensor:
    """Add up products of factors: the gradient of a linear layer's weight over several ranks.

    With few rows in a batch a rank's two factors are smaller than its gradient, and cheaper to
    send. On the CPU every element is added up term by term with one fused multiply-add each: the
    same bits on every CPU and for any number of threads.

    Args:
        out (Tensor): what to write, float32, bfloat16 or float16, shape (rows, columns),
            contiguous.
        left (Sequence[Tensor]): a rank's gradients of the layer's outputs, dtype of out, shape
            (terms, rows); terms may differ from rank to rank.
        right (Sequence[Tensor]): its inputs, dtype of out, shape (terms, columns).
        divisor (float): of the sum. Default: 1.

    Returns:
        Tensor: `out`, the sum of left^T right divided by divisor; added in fp32, rounded once.

    Raises:
        TypeError: not tensors, or another dtype. ValueError: shapes, strides or devices.

    Source: sufficient factors, Xie et al., 2015, arXiv:1511.08486.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> lk.bucket_outer_(torch.empty(1, 2), [torch.ones(3, 1)], [torch.ones(3, 2)])
        tensor([[3., 3.]])
    """
    check_factors("bucket_outer_", out, left, right)
    with torch.no_grad():
        _call["bucket_outer_"]((), out, list(left), list(right), divisor)
    return out


def _is_fp8(op: str, dtype: torch.dtype) -> bool:
    if dtype not in (torch.int8, torch.float8_e4m3fn):
        raise TypeError(f"{op}: dtype must be int8 or float8_e4m3fn, got {dtype}")
    return dtype == torch.float8_e4m3fn


def _check_float_dtype(op: str, argument: str, dtype: torch.dtype) -> None:
    if dtype not in FLOATS:
        raise TypeError(f"{op}: {argument} must be float32, bfloat16 or float16, got {dtype}")
