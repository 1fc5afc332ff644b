"""Fair timing: several functions in turn, round after round, in one process."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Times of one function over all rounds.

    Args:
        median_ms (float): median, in milliseconds.
        low_ms (float): first quartile.
        high_ms (float): third quartile.
        rounds (int): how many times it was timed.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    rounds: int

    def throughput(self, items: int) -> float:
        """Items a second when one call handles `items` of them."""
        return 1000.0 * items / self.median_ms


def interleaved(
    functions: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 15,
    warmup: int = 2,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Timing]:
    """Time functions in turn, so that noise of the machine meets all of them alike.

    Args:
        functions (mapping): name to a function without arguments.
        rounds (int): how often each one is timed. Default: 15.
        warmup (int): calls of each before the first timed one. Default: 2.
        progress (callable, optional): called with the name before each call. Default: None.

    Returns:
        dict: name to `Timing`.

    Raises:
        ValueError: rounds is below 1.

    Example:
        >>> times = interleaved({"sum": lambda: sum(range(1000))}, rounds=3)
        >>> times["sum"].rounds
        3
    """
    if rounds < 1:
        raise ValueError(f"interleaved: rounds must be at least 1, got {rounds}")
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for number in range(warmup + rounds):
        # Another one goes first in each round: who follows whom must not decide.
        start = number % len(names) if names else 0
        for name in names[start:] + names[:start]:
            if progress is not None:
                progress(name)
            begin = time.perf_counter_ns()
            functions[name]()
            elapsed = time.perf_counter_ns() - begin
            if number >= warmup:
                times[name].append(elapsed / 1e6)
    return {name: _summary(values) for name, values in times.items()}


def _summary(values: list[float]) -> Timing:
    if len(values) == 1:
        return Timing(values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high, len(values))
