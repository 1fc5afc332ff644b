"""Inputs of different length: ranks that have finished go on taking part with zeros."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

_FINISHED, _LOCAL, _SYNCHRONISED, _STEP = range(4)  # _STEP + i: of the optimiser i


class JoinState:
    """One small message before each forward, and each step of an optimiser in parts: who still has
    data, and what it is about to do."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group

    def _exchange(self, state: int) -> tuple[int, int]:
        """The largest and the smallest state of all ranks."""
        value = torch.tensor([state, -state])
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self._group)
        largest, smallest = value.tolist()
        return largest, -smallest

    def announce(self, synchronised: bool) -> None:
        """Before a forward with data."""
        self._exchange(_SYNCHRONISED if synchronised else _LOCAL)

    def announce_step(self, number: int) -> bool:
        """Before a step of the optimiser `number`; whether a rank without data is to follow it."""
        return self._exchange(_STEP + number)[1] == _FINISHED

    def follow(self, reduce_nothing: Callable[[], None], step: Callable[[int], None]) -> None:
        """Without data: follow the others until none has any."""
        while (state := self._exchange(_FINISHED)[0]) != _FINISHED:
            if state == _SYNCHRONISED:
                reduce_nothing()
            elif state >= _STEP:
                step(state - _STEP)
