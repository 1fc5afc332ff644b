"""The modules of `torch.nn` that a bundle can name, and how to ask one for its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lepton_train.bundle.errors import BundleError

# Constructors that take plain values and keep them under the same names.
_PLAIN = (
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d "
    "AlphaDropout AvgPool1d AvgPool2d AvgPool3d BatchNorm1d BatchNorm2d BatchNorm3d Bilinear CELU "
    "ChannelShuffle Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d "
    "CosineSimilarity Dropout Dropout1d Dropout2d Dropout3d ELU Embedding Flatten GELU GLU "
    "GroupNorm Hardsigmoid Hardswish Hardtanh Identity InstanceNorm1d InstanceNorm2d "
    "InstanceNorm3d LayerNorm LeakyReLU Linear LocalResponseNorm LogSigmoid LogSoftmax MaxPool1d "
    "MaxPool2d MaxPool3d Mish PReLU PixelShuffle PixelUnshuffle RMSNorm ReLU ReLU6 "
    "ReflectionPad1d ReflectionPad2d ReplicationPad1d ReplicationPad2d SELU SiLU Sigmoid Softmax "
    "Softmax2d Softmin Softplus Softsign Tanh Tanhshrink Unflatten Upsample ZeroPad2d"
)
PLAIN = frozenset(name for name in _PLAIN.split() if hasattr(nn, name))
RECURRENT = frozenset(("RNN", "LSTM", "GRU"))
CONTAINERS = frozenset(("Sequential", "ModuleList", "ModuleDict"))


def known(module_type: type) -> bool:
    """Whether a class is one of `torch.nn` that a bundle can name."""
    name = module_type.__name__
    return getattr(nn, name, None) is module_type and name in (
        PLAIN | RECURRENT | CONTAINERS | set(_SPECIAL)
    )


def arguments_of(module: nn.Module, module_type: type) -> dict[str, Any]:
    """Constructor arguments of a module, as plain JSON values.

    Example:
        >>> arguments_of(nn.Linear(4, 2, bias=False), nn.Linear)
        {'in_features': 4, 'out_features': 2, 'bias': False}
    """
    name = module_type.__name__
    if name in CONTAINERS:
        return {}
    if name in _SPECIAL:
        values = _SPECIAL[name](module)
    elif name in RECURRENT:
        names = [
            "input_size",
            "hidden_size",
            "num_layers",
            "bias",
            "batch_first",
            "dropout",
            "bidirectional",
        ]
        names += {"RNN": ["nonlinearity"], "LSTM": ["proj_size"], "GRU": []}[name]
        values = {each: getattr(module, each) for each in names}
    else:
        values = {}
        for each in inspect.signature(module_type.__init__).parameters:  # type: ignore[misc]
            if each in ("self", "device", "dtype", "args", "kwargs") or each.startswith("_"):
                continue
            value = getattr(module, each, None)
            values[each] = value is not None if each == "bias" else value
        if name == "PReLU":
            values = {"num_parameters": module.num_parameters}
    return {each: plain(value, f"{name}.{each}") for each, value in values.items()}


def plain(value: Any, place: str) -> Any:
    """A value as JSON has it; tuples become lists.

    Raises:
        BundleError: it can't be one, such as a function.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and value - value == 0:
        return value
    if isinstance(value, (tuple, list)):
        return [plain(each, place) for each in value]
    raise BundleError(f"bundle.save: {place} must be a plain value, got {value!r}")


def make(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a module by its class name and arguments.

    Raises:
        BundleError: not in the list, or the constructor refuses the arguments.
    """
    kind = getattr(nn, name, None)
    if not isinstance(kind, type) or not known(kind) or name in CONTAINERS:
        raise BundleError(
            f"bundle: torch.nn.{name} is not among the modules that a bundle may name"
        )
    values = {key: _tuple(value) for key, value in arguments.items()}
    if name in PLAIN:
        allowed = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
        values = {key: value for key, value in values.items() if key in allowed or _given(value)}
    if name == "TransformerEncoder":
        layer = nn.TransformerEncoderLayer(2, 2, batch_first=True)
        built: nn.Module = nn.TransformerEncoder(layer, 0, **values)
        return built
    try:
        return kind(**values)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise BundleError(f"bundle: torch.nn.{name} refuses its arguments: {error}") from None


def _given(value: Any) -> bool:
    # An argument that a newer torch has and this one lacks: harmless where it says nothing.
    return value not in (None, False)


def _tuple(value: Any) -> Any:
    return tuple(_tuple(each) for each in value) if isinstance(value, list) else value


def _attention(module: Any) -> dict[str, Any]:
    return {
        "embed_dim": module.embed_dim,
        "num_heads": module.num_heads,
        "dropout": module.dropout,
        "bias": module.in_proj_bias is not None,
        "add_bias_kv": module.bias_k is not None,
        "add_zero_attn": module.add_zero_attn,
        "kdim": module.kdim,
        "vdim": module.vdim,
        "batch_first": module.batch_first,
    }


def _encoder_layer(module: Any) -> dict[str, Any]:
    activation = {nn.functional.relu: "relu", nn.functional.gelu: "gelu"}.get(module.activation)
    activation = activation or {nn.ReLU: "relu", nn.GELU: "gelu"}.get(type(module.activation))
    if activation is None:
        raise BundleError(
            "bundle.save: TransformerEncoderLayer: activation must be relu or gelu, "
            f"got {module.activation!r}"
        )
    return {
        "d_model": module.self_attn.embed_dim,
        "nhead": module.self_attn.num_heads,
        "dim_feedforward": module.linear1.out_features,
        "dropout": module.dropout.p,
        "activation": activation,
        "layer_norm_eps": module.norm1.eps,
        "batch_first": module.self_attn.batch_first,
        "norm_first": module.norm_first,
        "bias": module.linear1.bias is not None,
    }


def _encoder(module: Any) -> dict[str, Any]:
    return {"enable_nested_tensor": module.enable_nested_tensor, "mask_check": module.mask_check}


def attention_arguments(module: torch.nn.MultiheadAttention) -> dict[str, Any]:
    """Constructor arguments of a `MultiheadAttention`."""
    return {key: plain(value, key) for key, value in _attention(module).items()}


_SPECIAL: dict[str, Callable[[Any], dict[str, Any]]] = {
    "MultiheadAttention": _attention,
    "TransformerEncoderLayer": _encoder_layer,
    "TransformerEncoder": _encoder,
}
