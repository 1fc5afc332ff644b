"""Argument checks: op, argument, what was expected, what came."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import NoReturn

import torch

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def names(dtypes: Sequence[torch.dtype]) -> str:
    """Readable list of dtypes."""
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def check_tensor(op: str, argument: str, value: object) -> None:
    """TypeError unless `value` is a tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{op}: {argument} must be a Tensor, got {type(value).__name__}")


def check_number(op: str, argument: str, value: object) -> None:
    """TypeError unless `value` is a real number."""
    if not isinstance(value, (numbers.Real, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{op}: {argument} must be a number, got {type(value).__name__}")


def check_integer(op: str, argument: str, value: object) -> None:
    """TypeError unless `value` is an integer."""
    if not isinstance(value, (numbers.Integral, torch.SymInt)):
        raise TypeError(f"{op}: {argument} must be an int, got {type(value).__name__}")


def check_dtype(
    op: str, argument: str, tensor: torch.Tensor, allowed: Sequence[torch.dtype]
) -> None:
    """TypeError unless the tensor has one of the allowed dtypes."""
    if tensor.dtype not in allowed:
        raise TypeError(f"{op}: {argument} must be {names(allowed)}, got {names([tensor.dtype])}")


def check_device(op: str, argument: str, tensor: torch.Tensor, like: torch.Tensor) -> None:
    """ValueError unless both tensors are on one device."""
    if tensor.device != like.device:
        raise ValueError(
            f"{op}: {argument} must be on {like.device} like the first argument, "
            f"got {tensor.device}"
        )


def shape_error(
    op: str, argument: str, expected: str, got: Sequence[int | torch.SymInt], why: str = ""
) -> NoReturn:
    """Raise the ValueError for a shape."""
    reason = f" {why}" if why else ""
    raise ValueError(f"{op}: {argument} must have shape {expected}{reason}, got {tuple(got)}")
