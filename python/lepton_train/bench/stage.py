"""Where a case is measured: the CPU, a GPU, or nowhere (a dry run)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

import lepton_kernels as lk
from lepton_train.bench import ceilings, harness, machine

Calls = Sequence[Callable[[], Any]]


class Stage(Protocol):
    """What `measure` needs to know of the place.

    Attributes:
        without_time: the note of an implementation that matches, where nothing is timed.
    """

    without_time: str

    def isa(self) -> str:
        """Instruction set or architecture, as in the row."""

    def threads(self) -> int:
        """CPU threads of an implementation."""

    def machine(self) -> str:
        """Description, as in the row."""

    def roofline(self, operations: float, read_bytes: float, kind: str) -> ceilings.Roofline:
        """The least time that a case can take."""

    def medians(self, calls: Mapping[str, Calls], budget_s: float) -> dict[str, float]:
        """Median seconds of one call of each implementation, timed in turn."""


class Cpu:
    """The CPU, with torch's threads."""

    without_time = ""

    def isa(self) -> str:
        """The instruction set of lepton's kernels."""
        isa: str = lk.info()["isa"]
        return isa

    def threads(self) -> int:
        """torch's."""
        return torch.get_num_threads()

    def machine(self) -> str:
        """CPU model, cores and caches."""
        return machine.description()

    def roofline(self, operations: float, read_bytes: float, kind: str) -> ceilings.Roofline:
        """From ceilings measured in this process."""
        return ceilings.roofline(operations, read_bytes, kind, self.isa(), self.threads())

    def medians(self, calls: Mapping[str, Calls], budget_s: float) -> dict[str, float]:
        """By the wall clock."""
        candidates = [harness.Candidate(name, each) for name, each in calls.items()]
        return harness.interleave(candidates, budget_s)
