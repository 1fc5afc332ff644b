"""Whether a machine has what a bundle needs."""

from __future__ import annotations

import importlib.metadata
import os
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import lepton_kernels as lk
from lepton_train.bundle.manifest import Requirements
from lepton_train.report import tensor_bytes

_OPERATORS = {
    lk.nn.Int8Linear: "int8_linear",
    lk.nn.Int8LinearQAT: "int8_linear_qat",
    lk.nn.SparseLinear: "sparse_linear",
    lk.nn.MultiheadAttention: "attention",
}
# The wheel runs with torch from 2.10 on; a bundle asks for no more than that.
_LOWEST_TORCH = "2.10"


@dataclass(frozen=True)
class Check:
    """One line of a verification.

    Args:
        name (str): what was checked.
        required (str): what must be.
        found (str): what is.
        ok (bool): whether it will do.
    """

    name: str
    required: str
    found: str
    ok: bool


def requirements_of(model: nn.Module, weight_bytes: int) -> Requirements:
    """What a machine must have to load and run a model.

    Args:
        model (nn.Module): the model.
        weight_bytes (int): size of the file of weights.
    """
    info = lk.info()
    packages = {}
    if any(type(module).__module__.startswith("transformers.") for module in model.modules()):
        version = importlib.metadata.version("transformers")
        packages["transformers"] = ".".join(version.split(".")[:1])
    operators = {
        operator
        for module in model.modules()
        for kind, operator in _OPERATORS.items()
        if isinstance(module, kind)
    }
    return Requirements(
        torch=_LOWEST_TORCH,
        lepton_kernels=".".join(lk.__version__.split(".")[:2]),
        packages=packages,
        # The file's tensors, and the model that they are copied and packed into.
        memory_bytes=weight_bytes + tensor_bytes(model),
        operators=sorted(operators),
        saved_with={
            "cpu": info["cpu"],
            "isa": info["isa"],
            "threads": info["threads"],
            "torch": torch.__version__,
            "lepton_kernels": lk.__version__,
            "python": info["versions"]["python"],
        },
    )


def fit(requirements: Requirements) -> list[Check]:
    """Compare what a bundle needs with this machine."""
    checks = [
        _version("torch", requirements.torch, torch.__version__),
        _version("lepton_kernels", requirements.lepton_kernels, lk.__version__),
    ]
    for package, lowest in requirements.packages.items():
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found = ""
        checks.append(_version(package, lowest, found))
    free = available_memory()
    checks.append(
        Check(
            "memory",
            f"{requirements.memory_bytes / 1e6:.1f} MB",
            "unknown" if free is None else f"{free / 1e6:.0f} MB available",
            free is None or free >= requirements.memory_bytes,
        )
    )
    device = requirements.device
    there = device == "cpu" or (device == "cuda" and torch.cuda.is_available())
    checks.append(Check("device", device, device if there else "none", there))
    info = lk.info()
    names = info["ops"]
    for operator in requirements.operators:
        served = sorted({by for name, by in names.items() if name.startswith(operator)})
        found = f"by {', '.join(served)}, {info['isa']}" if served else "absent"
        checks.append(Check(f"operator {operator}", "present", found, bool(served)))
    return checks


def _version(name: str, lowest: str, found: str) -> Check:
    return Check(name, f">= {lowest}", found or "not installed", _number(found) >= _number(lowest))


def _number(version: str) -> tuple[int, ...]:
    """Leading numbers of a version; those of a pre-release count as the release.

    Example:
        >>> _number("2.14.1+cu130")
        (2, 14, 1)
    """
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else (-1,)


def available_memory() -> int | None:
    """Bytes of memory that can be had now; None where the system does not say."""
    limits = []
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123
            for line in file:
                if line.startswith("MemAvailable:"):
                    limits.append(int(line.split()[1]) * 1024)
    except (OSError, ValueError):
        pass
    if not limits:
        try:
            limits.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        except (ValueError, OSError, AttributeError):
            return None
    return min(limits)


def as_dict(check: Check) -> dict[str, Any]:
    """A check as plain values."""
    return {
        "name": check.name,
        "required": check.required,
        "found": check.found,
        "ok": check.ok,
    }
