"""What the shared-memory communicator takes: dtypes, operations, and the checks of tensors."""

from __future__ import annotations

import torch

TYPES = {
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.int8: 3,
    torch.int64: 4,
}
_OPS = {"sum": 0, "avg": 1}
NAMES = ", ".join(str(dtype).removeprefix("torch.") for dtype in TYPES)


def op_number(name: str, op: str, tensor: torch.Tensor) -> int:
    """Number of the operation; ValueError or NotImplementedError."""
    if op not in _OPS:
        raise ValueError(f"ShmCommunicator.{name}: op must be 'sum' or 'avg', got {op!r}")
    if op == "avg" and not tensor.dtype.is_floating_point:
        raise NotImplementedError(
            f"ShmCommunicator.{name}: op 'avg' takes float32, bfloat16 or float16, "
            f"got {tensor.dtype}; use 'sum' and divide"
        )
    return _OPS[op]


def flat(name: str, argument: str, tensor: torch.Tensor) -> tuple[int, int, int]:
    """(address, elements, number of the dtype) of a contiguous CPU tensor; or else it raises."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"ShmCommunicator.{name}: {argument} must be a Tensor, got {type(tensor).__name__}"
        )
    if tensor.device.type != "cpu" or tensor.dtype not in TYPES:
        raise TypeError(
            f"ShmCommunicator.{name}: {argument} must be a CPU tensor of {NAMES}, got "
            f"{tensor.dtype} on {tensor.device}"
        )
    if not tensor.is_contiguous():
        raise ValueError(
            f"ShmCommunicator.{name}: {argument} must be contiguous, got shape "
            f"{tuple(tensor.shape)} with strides {tensor.stride()}"
        )
    return tensor.data_ptr(), tensor.numel(), TYPES[tensor.dtype]


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as int8 in one dimension, without a copy."""
    if not isinstance(tensor, torch.Tensor) or not tensor.is_contiguous():
        return tensor  # flat says what is wrong
    return tensor.detach().reshape(-1).view(torch.int8)


def check_pair(
    name: str,
    large_name: str,
    large: torch.Tensor,
    small_name: str,
    small: torch.Tensor,
    size: int,
) -> None:
    """TypeError or ValueError unless `large` holds `size` of `small`."""
    if large.dtype != small.dtype:
        raise TypeError(
            f"ShmCommunicator.{name}: {large_name} and {small_name} must have one dtype, got "
            f"{large.dtype} and {small.dtype}"
        )
    if large.numel() != small.numel() * size:
        raise ValueError(
            f"ShmCommunicator.{name}: {large_name} must have {size} times the elements of "
            f"{small_name}, {small.numel() * size}, got {large.numel()}"
        )


def check_factors(
    name: str, product: torch.Tensor, left: torch.Tensor, right: torch.Tensor
) -> None:
    """TypeError or ValueError unless left^T right has the shape of `product`."""
    if not product.dtype.is_floating_point:
        raise TypeError(f"ShmCommunicator.{name}: product must be of floats, got {product.dtype}")
    if product.dim() != 2:
        raise ValueError(
            f"ShmCommunicator.{name}: product must have shape (rows, columns), got "
            f"{tuple(product.shape)}"
        )
    capacity = left.shape[0] if left.dim() == 2 else "capacity"
    for argument, factor, width in (
        ("left", left, product.shape[0]),
        ("right", right, product.shape[1]),
    ):
        if factor.dtype != product.dtype:
            raise TypeError(
                f"ShmCommunicator.{name}: {argument} must be {product.dtype} like product, got "
                f"{factor.dtype}"
            )
        if tuple(factor.shape) != (capacity, width):
            raise ValueError(
                f"ShmCommunicator.{name}: {argument} must have shape ({capacity}, {width}), got "
                f"{tuple(factor.shape)}"
            )
