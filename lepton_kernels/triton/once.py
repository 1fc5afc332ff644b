"""Checks that read data from the GPU, done once for each tensor instead of at every call."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

_SEEN: dict[int, tuple[weakref.ref[torch.Tensor], int, Any]] = {}


def tracing(*tensors: torch.Tensor | None) -> bool:
    """Whether the data can't be read: torch.compile traces, or a CUDA graph is being captured."""
    if torch.compiler.is_compiling():
        return True
    given = [t for t in tensors if t is not None]
    if any(type(t) not in (torch.Tensor, torch.nn.Parameter) for t in given):
        return True
    return any(t.is_cuda for t in given) and torch.cuda.is_current_stream_capturing()


def _is_known(tensor: torch.Tensor) -> bool:
    entry = _SEEN.get(id(tensor))
    if entry is None or entry[0]() is not tensor:
        return False
    return entry[1] == _version(tensor)


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _remember(tensor: torch.Tensor, value: Any = None) -> None:
    key = id(tensor)

    def forget(reference: weakref.ref[torch.Tensor]) -> None:
        if key in _SEEN and _SEEN[key][0] is reference:
            del _SEEN[key]

    _SEEN[key] = (weakref.ref(tensor, forget), _version(tensor), value)


def checked_once(check: Callable[..., Any], *tensors: torch.Tensor | None) -> None:
    """Run `check(*tensors)`, unless it has passed for these very tensors as they are.

    The first tensor is the input: new at every call and not looked at. Nothing is checked while
    torch.compile traces or a CUDA graph is captured.
    """
    if tracing(*tensors):
        return
    lasting = [t for t in tensors[1:] if t is not None]
    if all(_is_known(t) for t in lasting):
        return
    check(*tensors)
    for tensor in lasting:
        _remember(tensor)


def remembered(read: Callable[[torch.Tensor], Any], tensor: torch.Tensor) -> Any:
    """`read(tensor)`, done once for the tensor as it is."""
    if _is_known(tensor) and _SEEN[id(tensor)][2] is not None:
        return _SEEN[id(tensor)][2]
    value = read(tensor)
    _remember(tensor, value)
    return value
