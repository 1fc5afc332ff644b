"""What the bucket ops accept, on any backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lepton_kernels.ops._checks import (
    FLOATS,
    check_device,
    check_dtype,
    check_tensor,
    shape_error,
)


def check_floats(
    op: str, argument: str, tensors: Sequence[torch.Tensor], *, written: bool = False
) -> list[torch.Tensor]:
    """A list of float tensors on one device; contiguous if they are written."""
    tensors = list(tensors)
    for i, tensor in enumerate(tensors):
        check_tensor(op, f"{argument}[{i}]", tensor)
        check_dtype(op, f"{argument}[{i}]", tensor, FLOATS)
        check_device(op, f"{argument}[{i}]", tensor, tensors[0])
        if written and not tensor.is_contiguous():
            raise ValueError(
                f"{op}: {argument}[{i}] must be contiguous, got shape {tuple(tensor.shape)} with "
                f"strides {tensor.stride()}"
            )
    return tensors


def check_one_dtype(op: str, argument: str, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """At least one float tensor; all of one dtype and shape."""
    tensors = check_floats(op, argument, tensors)
    if not tensors:
        raise ValueError(f"{op}: {argument} must hold at least one tensor, got none")
    for i, tensor in enumerate(tensors):
        check_dtype(op, f"{argument}[{i}]", tensor, (tensors[0].dtype,))
        if tensor.shape != tensors[0].shape:
            shape_error(
                op, f"{argument}[{i}]", str(tuple(tensors[0].shape)), tensor.shape, "like the first"
            )
    return tensors


def check_flat(op: str, flat: torch.Tensor, length: int) -> None:
    """A contiguous vector of the bucket's length."""
    if flat.dim() != 1 or flat.shape[0] != length:
        shape_error(op, "flat", f"({length},)", flat.shape, "to hold the tensors")
    _check_contiguous(op, "flat", flat)


def check_values(op: str, x: torch.Tensor, residual: torch.Tensor | None, block: int) -> None:
    """Arguments of quantisation."""
    check_tensor(op, "x", x)
    check_dtype(op, "x", x, FLOATS)
    _check_vector(op, "x", x)
    _check_block(op, block)
    if residual is not None:
        check_tensor(op, "residual", residual)
        check_dtype(op, "residual", residual, (torch.float32,))
        check_device(op, "residual", residual, x)
        if residual.shape != x.shape:
            shape_error(op, "residual", str(tuple(x.shape)), residual.shape, "to match x")
        _check_contiguous(op, "residual", residual)


def check_quantized(
    op: str, out: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, block: int
) -> None:
    """Arguments of dequantisation."""
    check_tensor(op, "out", out)
    check_dtype(op, "out", out, FLOATS)
    _check_vector(op, "out", out)
    _check_block(op, block)
    for name, tensor in (("q", q), ("scale", scale)):
        check_tensor(op, name, tensor)
        check_device(op, name, tensor, out)
    if q.shape != out.shape:
        shape_error(op, "q", str(tuple(out.shape)), q.shape, "to match out")
    blocks = (out.shape[0] + block - 1) // block
    check_dtype(op, "scale", scale, (torch.float32,))
    if tuple(scale.shape) != (blocks,):
        shape_error(op, "scale", f"({blocks},)", scale.shape, f"for blocks of {block}")
    _check_contiguous(op, "q", q)
    _check_contiguous(op, "scale", scale)


def check_factors(
    op: str, out: torch.Tensor, left: Sequence[torch.Tensor], right: Sequence[torch.Tensor]
) -> None:
    """A matrix, and pairs of factors whose products have its shape."""
    check_tensor(op, "out", out)
    check_dtype(op, "out", out, FLOATS)
    if out.dim() != 2:
        shape_error(op, "out", "(rows, columns)", out.shape)
    _check_contiguous(op, "out", out)
    if len(left) != len(right):
        raise ValueError(
            f"{op}: right must hold as many tensors as left, {len(left)}, got {len(right)}"
        )
    for name, factors, side in (("left", left, 0), ("right", right, 1)):
        for i, factor in enumerate(factors):
            argument = f"{name}[{i}]"
            check_tensor(op, argument, factor)
            check_dtype(op, argument, factor, (out.dtype,))
            check_device(op, argument, factor, out)
            terms = left[i].shape[0] if left[i].dim() == 2 else "terms"
            width = out.shape[side]
            if factor.dim() != 2 or (terms, width) != tuple(factor.shape):
                shape_error(op, argument, f"({terms}, {width})", factor.shape, "to match out")


def _check_vector(op: str, argument: str, tensor: torch.Tensor) -> None:
    if tensor.dim() != 1:
        shape_error(op, argument, "(elements,)", tensor.shape)
    _check_contiguous(op, argument, tensor)


def _check_contiguous(op: str, argument: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous():
        raise ValueError(f"{op}: {argument} must be contiguous, got strides {tensor.stride()}")


def _check_block(op: str, block: int) -> None:
    if block < 1:
        raise ValueError(f"{op}: block must be at least 1, got {block}")
