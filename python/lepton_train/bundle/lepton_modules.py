"""The modules of this package that a bundle can name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

import lepton_kernels as lk
from lepton_kernels.nn.int8_linear import Int8LinearQAT
from lepton_train.bundle import torch_modules
from lepton_train.bundle.errors import BundleError
from lepton_train.fuse import ResidualNorm
from lepton_train.models import SentenceEncoder

KINDS: dict[type[nn.Module], str] = {
    lk.nn.Int8Linear: "Int8Linear",
    Int8LinearQAT: "Int8LinearQAT",
    lk.nn.SparseLinear: "SparseLinear",
    lk.nn.MultiheadAttention: "MultiheadAttention",
    ResidualNorm: "ResidualNorm",
    SentenceEncoder: "SentenceEncoder",
}
COMPOSITES = frozenset(("ResidualNorm", "SentenceEncoder"))
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.int8)
}


def arguments_of(module: Any, place: str) -> dict[str, Any]:
    """Constructor arguments of a module of this package, as plain JSON values.

    Raises:
        BundleError: a sparse layer that is being fine-tuned.
    """
    if isinstance(module, lk.nn.MultiheadAttention):
        return torch_modules.attention_arguments(module)
    if isinstance(module, (ResidualNorm, SentenceEncoder)):
        return {}
    sizes = {
        "in_features": module.in_features,
        "out_features": module.out_features,
        "bias": module.bias is not None,
    }
    if isinstance(module, Int8LinearQAT):
        zero = module.x_zero_point
        return sizes | {
            "group_size": module.group_size,
            "x_scale": None if module.x_scale is None else float(module.x_scale),
            "x_zero_point": None if zero is None else int(zero),
        }
    if isinstance(module, lk.nn.Int8Linear):
        return sizes | {
            "group_size": module.group_size,
            "weight_only": module.weight_only,
            "activation": module.activation,
        }
    if module.values is not None:
        raise BundleError(f"bundle.save: {place!r} is being fine-tuned: call its pack() first")
    return sizes | {
        "layout": module.layout,
        "dtype": str(module.dtype).removeprefix("torch."),
        "activation": module.activation,
        "n": module.n,
        "m": module.m,
    }


def make(name: str, arguments: Mapping[str, Any], children: dict[str, nn.Module]) -> nn.Module:
    """Build a module of this package.

    Raises:
        BundleError: an unknown class, or arguments or children that do not fit it.
    """
    values = dict(arguments)
    try:
        if name == "ResidualNorm":
            dense = children["dense"]
            if not isinstance(dense, lk.nn.Int8Linear):
                raise BundleError("bundle: ResidualNorm: dense must be an Int8Linear")
            return ResidualNorm(dense, children["LayerNorm"], children["dropout"])
        if name == "SentenceEncoder":
            return SentenceEncoder(children["encoder"])
        if name == "MultiheadAttention":
            return lk.nn.MultiheadAttention(**values)
        if name == "Int8Linear":
            return lk.nn.Int8Linear(**values)
        if name == "Int8LinearQAT":
            return _qat(values)
        if name == "SparseLinear":
            values["dtype"] = _DTYPES[values["dtype"]]
            return lk.nn.SparseLinear(**values)
    except (TypeError, ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        if isinstance(error, BundleError):
            raise
        raise BundleError(f"bundle: {name} refuses its arguments: {error}") from None
    raise BundleError(f"bundle: {name!r} is no module of lepton_kernels that a bundle may name")


def _qat(values: dict[str, Any]) -> Int8LinearQAT:
    layer = Int8LinearQAT(values["in_features"], values["out_features"], values["bias"])
    layer.group_size = values["group_size"]
    if values["x_scale"] is not None:
        layer.x_scale = torch.tensor(values["x_scale"], dtype=torch.float32)
    if values["x_zero_point"] is not None:
        layer.x_zero_point = torch.tensor(values["x_zero_point"], dtype=torch.int32)
    return layer
