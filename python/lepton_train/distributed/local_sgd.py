"""Loosely synchronous training: local steps, then one average."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import lepton_kernels as lk
from lepton_train.distributed._transport import choose_transport
from lepton_train.distributed._two_shot import KINDS


class LocalSGD:
    """Average the parameters after every `every` optimiser steps, instead of every gradient.

    With `outer_lr` 1 and `outer_momentum` 0 this is local SGD (post-local averaging). With
    `outer_momentum` the average move of the ranks is taken as a gradient by an outer SGD, as in
    DiLoCo (there: 0.9 with Nesterov, outer_lr 0.7).

    Args:
        module (nn.Module): a plain module, not wrapped; parameters float32, bfloat16 or float16,
            contiguous. Those of rank 0 are copied to all; buffers stay each rank's own.
        every (int): optimiser steps between averages. Default: 8.
        outer_lr (float): learning rate of the outer SGD. Default: 1.
        outer_momentum (float): of the outer SGD. Default: 0.
        nesterov (bool): with momentum: Nesterov's. Default: True.
        process_group (ProcessGroup, optional): the ranks. Default: None, the default group.
        compression (str, optional): `"bf16"` or `"int8"` between hosts. Default: None.
        timeout (float): seconds to wait for a rank. Default: 300.

    Raises:
        ValueError: every is below 1, an unknown compression, the module has no float parameters,
            or torch.distributed has no process group.
        TypeError: dtype of a parameter.
        NotImplementedError: a parameter is not contiguous.

    Source: Stich, "Local SGD Converges Fast and Communicates Little", 2019; Douillard et al.,
    "DiLoCo: Distributed Low-Communication Training of Language Models", 2023.

    Example:
        >>> local = lt.distributed.LocalSGD(model, every=8)    # doctest: +SKIP
        >>> for batch in data:                                 # doctest: +SKIP
        ...     loss(model, batch).backward(); optimizer.step(); optimizer.zero_grad()
        ...     local.step()
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        every: int = 8,
        outer_lr: float = 1.0,
        outer_momentum: float = 0.0,
        nesterov: bool = True,
        process_group: dist.ProcessGroup | None = None,
        compression: str | None = None,
        timeout: float = 300.0,
    ) -> None:
        """See the class."""
        if every < 1:
            raise ValueError(f"LocalSGD: every must be at least 1, got {every}")
        if compression is not None and compression not in KINDS:
            raise ValueError(
                f"LocalSGD: compression must be None, 'bf16' or 'int8', got {compression!r}"
            )
        self._parameters = [p for p in module.parameters() if p.dtype.is_floating_point]
        if not self._parameters:
            raise ValueError("LocalSGD: the module has no float parameters")
        if not all(p.is_contiguous() for p in self._parameters):
            raise NotImplementedError("LocalSGD: supported: contiguous parameters")
        self.every = every
        self.outer_lr = outer_lr
        self.outer_momentum = outer_momentum
        self.nesterov = nesterov
        self.steps = 0
        device = self._parameters[0].device
        self._transport = choose_transport(process_group, compression, device, timeout, None)
        for parameter in self._parameters:
            value = parameter.detach().contiguous()
            self._transport.broadcast(value, 0)
            parameter.detach().copy_(value)
        self._anchor = lk.bucket_flatten(self._values(), dtype=torch.float32)
        self._length = self._anchor.numel()
        self._flat = self._transport.allocate(self._length, torch.float32)
        self._momentum = torch.zeros_like(self._anchor) if outer_momentum else None

    def _values(self) -> list[torch.Tensor]:
        return [parameter.detach() for parameter in self._parameters]

    def step(self) -> bool:
        """Count an optimiser step; average at every `every`-th. Collective then.

        Returns:
            bool: whether the parameters were averaged.

        Raises:
            RuntimeError: a rank failed; on one host ShmError, which names it.
        """
        self.steps += 1
        if self.steps % self.every:
            return False
        self.average()
        return True

    @torch.no_grad()
    def average(self) -> None:
        """Average now, without counting a step; collective.

        Raises:
            RuntimeError: a rank failed; on one host ShmError, which names it.
        """
        flat = self._flat[: self._length]
        flat.copy_(lk.bucket_flatten(self._values(), dtype=torch.float32))
        self._transport.start(0, self._flat, 0)
        self._transport.finish()
        move = self._anchor - flat  # the outer gradient
        if self._momentum is not None:
            self._momentum.mul_(self.outer_momentum).add_(move)
            move = move + self.outer_momentum * self._momentum if self.nesterov else self._momentum
        if self._momentum is None and self.outer_lr == 1.0:
            self._anchor.copy_(flat)
        else:
            self._anchor.sub_(move, alpha=self.outer_lr)
        lk.bucket_unflatten_(self._values(), self._anchor)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on; not collective.

        Returns:
            dict: `"steps"` (int), optimiser steps so far; `"anchor"` (Tensor), the last average,
                float32, 1-D as from `lk.bucket_flatten`; `"momentum"` (Tensor or None), likewise.
                Not copies.
        """
        return {"steps": self.steps, "anchor": self._anchor, "momentum": self._momentum}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; not collective: load on every rank.

        Args:
            state (dict): from `state_dict`, of the same module. Its momentum is left out where
                outer_momentum is 0.

        Raises:
            KeyError: an entry is missing.
            RuntimeError: a tensor's length does not fit.
        """
        self.steps = int(state["steps"])
        self._anchor.copy_(state["anchor"])
        if self._momentum is not None and state["momentum"] is not None:
            self._momentum.copy_(state["momentum"])

    def close(self) -> None:
        """Leave; not collective. Peers that wait for this rank in shared memory fail at once."""
        self._transport.close()
