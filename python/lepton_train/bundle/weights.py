"""Weights as safetensors: canonical tensors, each once, checked against the model."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from lepton_train.bundle.errors import BundleError
from lepton_train.packages import require

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_MOST_HEADER_BYTES = 100_000_000

Header = dict[str, tuple[torch.dtype, tuple[int, ...]]]


def state_of(model: nn.Module, ties: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The canonical state of a model: on the CPU, contiguous, tied tensors once.

    Raises:
        BundleError: the state holds something that is no tensor, or a weight is not finite.
    """
    state = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise BundleError(
                f"bundle.save: {name!r} in the state is a {type(value).__name__}; only tensors are "
                "saved"
            )
        if name in ties:
            continue
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise BundleError(f"bundle.save: {name!r} must be finite, got NaN or infinity")
        state[name] = value.detach().cpu().contiguous().clone()
    return state


def header_of(path: Path) -> Header:
    """Dtype and shape of every tensor of a safetensors file, without its data.

    Raises:
        BundleError: no such file.
    """
    try:
        with path.open("rb") as file:
            length = struct.unpack("<Q", file.read(8))[0]
            if length > _MOST_HEADER_BYTES:
                raise ValueError(f"its header claims {length} bytes")
            header = json.loads(file.read(length))
        return {
            name: (_DTYPES[item["dtype"]], tuple(int(size) for size in item["shape"]))
            for name, item in header.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError) as error:
        raise BundleError(f"bundle: {path.name} is no safetensors file: {error}") from None


def load_weights(model: nn.Module, path: Path, ties: Mapping[str, str]) -> None:
    """Fill a model from a safetensors file, strictly.

    Raises:
        BundleError: a tensor is missing, left over or of another shape.
    """
    try:
        state = require("safetensors.torch", "a bundle", "safetensors", extra="bundle").load_file(
            path
        )
    except Exception as error:
        raise BundleError(f"bundle: {path.name} can't be read: {error}") from None
    for name, leader in ties.items():
        if leader in state:
            state.setdefault(name, state[leader])
    _take_dtypes(model, state)
    known = set(model.state_dict())
    # A tied tensor may be no part of the state: a packed weight.
    state = {name: value for name, value in state.items() if name in known or name not in ties}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except (RuntimeError, TypeError, ValueError) as error:
        raise BundleError(f"bundle: weights do not fit: {' '.join(str(error).split())}") from None
    if missing or unexpected:
        what = f"lack {missing[0]!r}" if missing else f"have {unexpected[0]!r}, which is not in it"
        raise BundleError(f"bundle: weights do not fit the architecture: they {what}")


def _take_dtypes(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Give float parameters and buffers the dtype that was saved."""
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            saved = state.get(name)
            if saved is None or saved.dtype == tensor.dtype:
                continue
            if saved.is_floating_point() and tensor.is_floating_point():
                tensor.data = tensor.data.to(saved.dtype)
