"""Exact int8 matrix product: contract of `int8_mm`."""

from __future__ import annotations

import torch

from lepton_kernels import _dispatch
from lepton_kernels.ops._checks import check_device, check_dtype, check_tensor, shape_error
from lepton_kernels.reference import int8_linear as reference


def _check(a: torch.Tensor, b: torch.Tensor) -> None:
    op = "int8_mm"
    for name, tensor in (("a", a), ("b", b)):
        check_tensor(op, name, tensor)
        check_dtype(op, name, tensor, (torch.int8,))
        if tensor.dim() != 2:
            shape_error(op, name, "(M, K)" if name == "a" else "(K, N)", tensor.shape)
    if b.shape[0] != a.shape[1]:
        shape_error(op, "b", f"({a.shape[1]}, N)", b.shape, "to match a")
    check_device(op, "b", b, a)


def _reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    _check(a, b)
    return reference.int8_mm(a, b)


def _fake(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    _check(a, b)
    return a.new_empty((a.shape[0], b.shape[1]), dtype=torch.int32)


_dispatch.define_op("int8_mm", "(Tensor a, Tensor b) -> Tensor", reference=_reference, fake=_fake)
_mm = _dispatch.OpCaller("int8_mm")


def int8_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Exact matrix product of int8 matrices with int32 sums, as `torch._int_mm` without its limits.

    Args:
        a (Tensor): int8, shape (M, K), any stride.
        b (Tensor): int8, shape (K, N), any stride.

    Returns:
        Tensor: int32, shape (M, N), contiguous. Exact for K up to 131,071 whatever the values;
        beyond, sums wrap modulo 2^32.

    Raises:
        TypeError: an argument is not an int8 tensor.
        ValueError: an argument is not 2-D, the inner sizes differ, or the devices do.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> a = torch.tensor([[127, -128]], dtype=torch.int8)
        >>> lk.int8_mm(a, a.t()).item()
        32513
    """
    try:
        return _mm((a, b))
    except (RuntimeError, AttributeError, TypeError):
        # The exact error is worked out only once a kernel has refused.
        _check(a, b)
        raise
