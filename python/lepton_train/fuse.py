"""Fusion of what surrounds an int8 layer into its kernel: activation and residual addition."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from lepton_kernels.nn.int8_linear import Int8Linear

# Hugging Face blocks that compute LayerNorm(dropout(dense(x)) + residual).
_RESIDUAL_BLOCKS = frozenset(
    family + part
    for family in ("Bert", "Roberta", "XLMRoberta", "Electra", "Camembert")
    for part in ("SelfOutput", "Output")
)
_ACTIVATION_NAMES = ("intermediate_act_fn", "act", "activation", "activation_fn")


@dataclass
class FusionReport:
    """What `fuse_` has fused.

    Args:
        activations (list of str): names of int8 layers that now apply the activation after them.
        residuals (list of str): names of int8 layers that now add the residual.
    """

    activations: list[str] = field(default_factory=list)
    residuals: list[str] = field(default_factory=list)


class ResidualNorm(nn.Module):
    """LayerNorm(dropout(dense(x)) + residual) with the addition inside the int8 layer.

    Keeps the names `dense`, `LayerNorm` and `dropout`, so state dicts stay as they were. With
    dropout at work (training mode) it computes step by step.

    Shapes:
        hidden_states (..., in_features), input_tensor (..., out_features) -> as input_tensor.
    """

    def __init__(self, dense: Int8Linear, norm: nn.Module, dropout: nn.Module) -> None:
        super().__init__()
        self.dense = dense
        self.LayerNorm = norm
        self.dropout = dropout

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        """Apply the block."""
        if self.training:
            return self.LayerNorm(self.dropout(self.dense(hidden_states)) + input_tensor)
        return self.LayerNorm(self.dense(hidden_states, residual=input_tensor))


def fuse_(model: nn.Module) -> FusionReport:
    """Let int8 layers apply the activation and add the residual that follow them, in place.

    Known places: an `Int8Linear` followed by ReLU, GELU or SiLU in an `nn.Sequential`; Hugging
    Face blocks of the BERT family. Everything else stays as it is.

    Args:
        model (nn.Module): after `quantize_`.

    Returns:
        FusionReport: names of the layers that took something over.

    Raises:
        TypeError: model is no nn.Module.

    Example:
        >>> import torch, lepton_train as lt
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.GELU())
        >>> _ = lt.quantize_(model)
        >>> lt.fuse_(model).activations
        ['0']
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse_: model must be a torch.nn.Module, got {type(model).__name__}")
    report = FusionReport()
    places: dict[int, int] = {}
    for _, module in model.named_modules(remove_duplicate=False):
        places[id(module)] = places.get(id(module), 0) + 1
    for name, module in list(model.named_modules()):
        prefix = f"{name}." if name else ""
        for linear_name, act_name in _neighbours(module):
            linear, act = getattr(module, linear_name), getattr(module, act_name)
            fused = activation_name(act)
            # A layer used in several places would apply the activation in all of them.
            if fused is None or not _plain(linear) or places[id(linear)] > 1:
                continue
            linear.activation = fused
            setattr(module, act_name, nn.Identity())
            report.activations.append(prefix + linear_name)
        if type(module).__name__ in _RESIDUAL_BLOCKS and _is_residual_block(module):
            parent_name, _, leaf = name.rpartition(".")
            block = ResidualNorm(
                _child(module, "dense"), _child(module, "LayerNorm"), _child(module, "dropout")
            )
            setattr(model.get_submodule(parent_name), leaf, block.train(module.training))
            report.residuals.append(prefix + "dense")
    return report


def activation_name(act: Any) -> str | None:
    """Name by which `int8_linear` knows an activation module, or None.

    Example:
        >>> activation_name(nn.GELU(approximate="tanh")), activation_name(nn.Tanh())
        ('gelu_tanh', None)
    """
    kind = type(act)
    if kind is nn.ReLU:
        return "relu"
    if kind is nn.GELU:
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    if kind is nn.SiLU or kind.__name__ == "SiLUActivation":
        return "silu"
    if kind.__name__ == "GELUActivation" and getattr(act, "act", None) is nn.functional.gelu:
        return "gelu"
    if kind.__name__ == "GELUTanh":
        return "gelu_tanh"
    return None


def _neighbours(module: nn.Module) -> list[tuple[str, str]]:
    names = list(module._modules)
    if type(module) is nn.Sequential:
        return list(pairwise(names))
    if type(module).__name__.endswith("Intermediate") and "dense" in names:
        return [("dense", name) for name in _ACTIVATION_NAMES if name in names]
    return []


def _plain(linear: Any) -> bool:
    return isinstance(linear, Int8Linear) and linear.activation is None


def _is_residual_block(module: nn.Module) -> bool:
    return set(module._modules) == {"dense", "LayerNorm", "dropout"} and _plain(module.dense)


def _child(module: nn.Module, name: str) -> Any:
    return module.get_submodule(name)
