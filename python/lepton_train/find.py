"""Linear layers of any model: where they are, which patterns name them, which must be left."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lepton_kernels.nn.int8_linear import Int8Linear
from lepton_train.prune_masks import mask_of

Patterns = str | Iterable[str] | None


@dataclass(frozen=True)
class FoundLinear:
    """A linear layer in a model.

    Args:
        names (tuple of str): every name under which the model holds this very module.
        module (nn.Linear): the layer.
    """

    names: tuple[str, ...]
    module: nn.Linear

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]


def find_linears(op: str, model: nn.Module) -> list[FoundLinear]:
    """Every `nn.Linear` of a model, subclasses included, each once.

    Args:
        op (str): the caller's name, for messages.
        model (nn.Module): any model.

    Raises:
        TypeError: model is no nn.Module, or is a TorchScript module.
        ValueError: model is itself a linear layer, or holds none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(f"{op}: model must not be a TorchScript module; change it before scripting")
    if isinstance(model, nn.Linear):
        raise ValueError(
            f"{op}: model is itself a {type(model).__name__} and can't be replaced in place; use "
            "lepton_kernels.nn.Int8Linear.from_linear(model), or wrap it: nn.Sequential(model)"
        )
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Linear] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            names.setdefault(id(module), []).append(name)
            modules[id(module)] = module
    if not modules:
        raise ValueError(f"{op}: model {type(model).__name__} holds no torch.nn.Linear")
    return [FoundLinear(tuple(names[key]), module) for key, module in modules.items()]


def int8_layers(model: nn.Module) -> list[FoundLinear]:
    """Every `Int8Linear` of a model, each once, with all its names."""
    names: dict[int, list[str]] = {}
    modules: dict[int, Any] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, Int8Linear) and name:
            names.setdefault(id(module), []).append(name)
            modules[id(module)] = module
    return [FoundLinear(tuple(names[key]), module) for key, module in modules.items()]


def as_patterns(op: str, argument: str, patterns: Patterns) -> tuple[str, ...]:
    """Patterns as a tuple of strings; raises TypeError for anything else."""
    if patterns is None:
        return ()
    if not isinstance(patterns, Iterable):
        raise TypeError(
            f"{op}: {argument} must be a string or strings, got {type(patterns).__name__}"
        )
    listed = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in listed:
        if not isinstance(pattern, str):
            raise TypeError(f"{op}: {argument} must hold strings, got {type(pattern).__name__}")
    return listed


def matches(pattern: str, name: str) -> bool:
    """Whether a glob pattern names a module or one of the modules around it.

    Example:
        >>> matches("encoder.layer.0", "encoder.layer.0.output.dense")
        True
        >>> matches("*.query", "encoder.layer.0.output.dense")
        False
    """
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(len(parts), 0, -1))


def check_patterns(op: str, argument: str, patterns: Sequence[str], names: Sequence[str]) -> None:
    """Raise ValueError for a pattern that matches no name, with the nearest names."""
    for pattern in patterns:
        if not any(matches(pattern, name) for name in names):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise ValueError(
                f"{op}: {argument} pattern {pattern!r} matches no linear layer; "
                f"nearest names: {', '.join(near)}"
            )


def choice_reason(found: FoundLinear, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    """Why the patterns leave a layer out, or None if they choose it."""
    for pattern in exclude:
        if any(matches(pattern, name) for name in found.names):
            return f"excluded by {pattern!r}"
    if include and not any(matches(pattern, name) for pattern in include for name in found.names):
        return "not named by include"
    return None


def obstacle(found: FoundLinear) -> str | None:
    """Why a layer can't be replaced by an int8 one, or None if it can."""
    module = found.module
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "torch.nn.MultiheadAttention reads its weight directly and never calls it"
    if type(module) is not nn.Linear and not _only_masked(module):
        return f"{type(module).__name__} is a subclass of nn.Linear and may compute something else"
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "has hooks (pruning, weight_norm or yours), which a swap would drop"
    if module.weight.is_meta:
        return "its weight is on the meta device; load the weights first"
    if module.weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        dtype = str(module.weight.dtype).removeprefix("torch.")
        return f"its weight is {dtype}, not a float of 16 or 32 bits"
    if module.weight.numel() == 0:
        return "its weight is empty"
    return None


def _only_masked(module: nn.Linear) -> bool:
    """Whether a layer is an nn.Linear with a mask of `prune_` and nothing else."""
    parts: Any = getattr(module, "parametrizations", {})
    return (
        mask_of(module) is not None
        and type(module).__bases__ == (nn.Linear,)
        and list(parts) == ["weight"]
        and len(parts["weight"]) == 1
    )


def named_outright(found: FoundLinear, include: Sequence[str]) -> bool:
    """Whether include holds this layer's very name, so that leaving it must be an error."""
    return any(name in include for name in found.names)


def parameter_owners(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """Identity of each parameter to the (full name, module) pairs that hold it."""
    owners: dict[int, list[tuple[str, nn.Module]]] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(id(parameter), []).append((f"{prefix}.{name}".strip("."), module))
    return owners
