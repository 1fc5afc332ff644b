"""Ceilings of this machine, measured in the process that is being benchmarked."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

from lepton_train.bench import machine

# Far more than an L2 and, with the L3 of common machines, more than that.
_LEAST_MEMORY = 256 << 20
_MOST_MEMORY = 1 << 30


class CeilingsUnavailable(RuntimeError):
    """There is no compiled `_native` module to measure with."""


@dataclass(frozen=True)
class Roofline:
    """The least time a case can take: products at their peak or bytes at the read bandwidth."""

    name: str
    value: float
    unit: str
    seconds: float

    def to_json(self) -> dict[str, object]:
        """The part that bounds the case, for a row's `ceiling`."""
        return {"name": self.name, "value": round(self.value), "unit": self.unit}


def _native() -> Any:
    try:
        return importlib.import_module("lepton_kernels._native")
    except ImportError as error:
        raise CeilingsUnavailable(
            "ceilings need the compiled part of lepton-kernels (LEPTON_NATIVE=0 leaves it out)"
        ) from error


@functools.cache
def peak(kind: str, isa: str, threads: int) -> float:
    """Operations per second of `kind` (fp32, bf16, int8) on an instruction set.

    An instruction set without an instruction of its own for `kind` (AMX has none for fp32) takes
    the best of those below it.
    """
    native = _native()
    order = ["generic", "avx2", "vnni", "amx"]
    if isa not in order:
        isa = "generic"  # the reference backend
    present = native.peak_isas(kind)
    below = [name for name in order[: order.index(isa) + 1] if name in present]
    if not below:
        raise ValueError(f"peak: no loop for {kind} on {isa}; there are: {', '.join(present)}")
    return native.peak(kind, below[-1], threads, 0.5)


@functools.cache
def read_bandwidth(threads: int) -> float:
    """Bytes per second read from memory by all threads together."""
    total = min(max(_LEAST_MEMORY, 2 * machine.cache_bytes(3)), _MOST_MEMORY)
    return _best_read(max(total // threads, 64 << 20), threads)


@functools.cache
def l2_bandwidth(threads: int) -> float:
    """Bytes per second read by all threads, each from its own L2."""
    return _best_read(machine.cache_bytes(2) // 2, threads)


def _best_read(bytes_per_thread: int, threads: int) -> float:
    native = _native()
    isa = native.read_isas()[-1]
    return native.read_bandwidth(bytes_per_thread, threads, isa, 0.5)


def roofline(operations: float, read_bytes: float, kind: str, isa: str, threads: int) -> Roofline:
    """The bound that takes longer, with its name."""
    top, bandwidth = peak(kind, isa, threads), read_bandwidth(threads)
    if operations / top >= read_bytes / bandwidth:
        return Roofline(f"{kind} multiply-add, {isa}", top, "op/s", operations / top)
    return Roofline("read from memory", bandwidth, "byte/s", read_bytes / bandwidth)
