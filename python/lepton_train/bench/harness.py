"""Interleaved timing: every implementation of a case in turn, in one process, on cold weights.

A shared machine's speed drifts within seconds. Implementations that take turns meet the same
drift, so that ratios of their medians hold where the times themselves don't.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_BLOCK_S = 2e-3
_MOST_CALLS_IN_BLOCK = 32
# Threads of an OpenMP or ONNX Runtime pool spin for a while after their work, and would take the
# cores from an implementation that runs on another pool. Everybody gets the pause: on a busy
# machine the scheduler favours who has just slept.
_SETTLE_S = 3e-3
_LEAST_ROUNDS = 3


@dataclass
class Candidate:
    """An implementation ready to be timed.

    Attributes:
        name: as in the row.
        calls: one call per copy of the weights; they are used in rotation. One with a method
            `timed`, which returns seconds, runs elsewhere and takes the time itself.
    """

    name: str
    calls: Sequence[Callable[[], object]]
    samples: list[float] = field(default_factory=list)
    _next: int = 0

    def call(self) -> float:
        """Run on the next copy of the weights; seconds."""
        function = self.calls[self._next]
        self._next = (self._next + 1) % len(self.calls)
        timed = getattr(function, "timed", None)
        if timed is not None:
            return float(timed())
        start = time.perf_counter_ns()
        function()
        return (time.perf_counter_ns() - start) * 1e-9


def copies(weight_bytes: int, rotate_bytes: int) -> int:
    """How many copies of a weight make up `rotate_bytes`; at least two."""
    return max(2, math.ceil(rotate_bytes / max(weight_bytes, 1)))


def interleave(candidates: Sequence[Candidate], budget_s: float) -> dict[str, float]:
    """Median seconds of each candidate.

    Args:
        candidates: timed in turn, in short blocks; the order rotates from round to round.
        budget_s: time for the whole case; three rounds are made in any case.

    Returns:
        dict: name to median seconds of one call.
    """
    estimates = [min(c.call() for _ in range(2)) for c in candidates]
    deadline = time.perf_counter() + budget_s
    rounds = 0
    while candidates and (rounds < _LEAST_ROUNDS or time.perf_counter() < deadline):
        for place in range(len(candidates)):
            index = (place + rounds) % len(candidates)
            candidate, estimate = candidates[index], estimates[index]
            time.sleep(_SETTLE_S)
            if estimate < _BLOCK_S:
                candidate.call()  # wakes the threads
            calls = min(max(round(_BLOCK_S / max(estimate, 1e-7)), 1), _MOST_CALLS_IN_BLOCK)
            candidate.samples.extend(candidate.call() for _ in range(calls))
        rounds += 1
    return {c.name: statistics.median(c.samples) for c in candidates}
