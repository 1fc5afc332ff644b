"""Inputs of different length: ranks that have finished go on taking part with zeros."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist

_FINISHED, _LOCAL, _SYNCHRONISED = 0, 1, 2


class JoinState:
    """One small message before each forward: who still has data, and whether backward reduces."""

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        self._group = group

    def _exchange(self, state: int) -> int:
        """The largest state of all ranks."""
        value = torch.tensor([state])
        dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self._group)
        return int(value.item())

    def announce(self, synchronised: bool) -> None:
        """Before a forward with data."""
        self._exchange(_SYNCHRONISED if synchronised else _LOCAL)

    def follow(self, reduce_nothing: Callable[[], None]) -> None:
        """Without data: follow the others until none has any."""
        while (state := self._exchange(_FINISHED)) != _FINISHED:
            if state == _SYNCHRONISED:
                reduce_nothing()
