"""PowerSGD by torch's own hook, for buckets that are not torch's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

_RANK = 1
_EXACT_STEPS = 2  # the hook wants two at least before error feedback and warm start


class _HookBucket:
    """What torch's hook asks a GradBucket for."""

    def __init__(self, index: int, flat: torch.Tensor, gradients: list[torch.Tensor]) -> None:
        self._index = index
        self._flat = flat
        self._gradients = gradients

    def index(self) -> int:
        return self._index

    def buffer(self) -> torch.Tensor:
        return self._flat

    def gradients(self) -> list[torch.Tensor]:
        return self._gradients

    def is_last(self) -> bool:
        return False  # PowerSgd counts the steps


class PowerSgd:
    """Low-rank averages (rank 1, warm start, error feedback); exact in the first two steps.

    Source: Vogels et al., "PowerSGD: Practical Low-Rank Gradient Compression for Distributed
    Optimization", 2019; torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook.
    """

    def __init__(self, group: dist.ProcessGroup | None) -> None:
        from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as power_sgd

        self._hook = power_sgd.powerSGD_hook
        self._group = group
        self._world = dist.get_world_size(group)
        self._state: Any = power_sgd.PowerSGDState(
            process_group=group,
            matrix_approximation_rank=_RANK,
            start_powerSGD_iter=_EXACT_STEPS,
        )

    def average_(
        self, flat: torch.Tensor, index: int, payload: int, views: Sequence[torch.Tensor]
    ) -> None:
        """Average `flat` in place; what lies behind `payload` exactly."""
        exact = flat[payload:].div_(self._world)
        pending = dist.all_reduce(exact, group=self._group, async_op=True)
        gradients = [_dense(view) for view in views]
        self._hook(self._state, _HookBucket(index, flat[:payload], gradients)).wait()  # type: ignore[arg-type]
        pending.wait()

    def end_step(self) -> None:
        """After the last bucket of a step."""
        if self._state.iter < _EXACT_STEPS:
            self._state.iter += 1


def _dense(view: torch.Tensor) -> torch.Tensor:
    """The elements of a gradient in the order of memory: a matrix where it is one."""
    if view.dim() == 0:
        return view.reshape(1)
    if view.is_contiguous():
        return view
    return view.as_strided((view.numel(),), (1,))
