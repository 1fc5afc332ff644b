"""Gradients that arrive a few steps late: communication behind computation, within a bound."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

import lepton_kernels as lk
from lepton_train.distributed import _replicas
from lepton_train.distributed._transport import choose_transport
from lepton_train.distributed._two_shot import KINDS


class StaleGradients:
    """Average gradients asynchronously: each step applies the average of `staleness` steps ago.

    A rank goes on computing while its gradients travel, and waits only if it is more than
    `staleness` steps ahead of the slowest: delays of single steps even out, and communication
    hides behind whole steps. All ranks apply the same averages in the same order, so replicas
    stay equal to the bit. Late gradients want a smaller learning rate, about 1 / (1 + staleness)
    of what is stable without delay.

    Args:
        module (nn.Module): a plain module, not wrapped; parameters and buffers of rank 0 are
            copied to all. Parameters float32, bfloat16 or float16, dense.
        staleness (int): steps, from 0 (none late). Default: 1.
        process_group (ProcessGroup, optional): the ranks. Default: None, the default group.
        compression (str, optional): `"bf16"` or `"int8"` between hosts. Default: None.
        timeout (float): seconds to wait for a rank. Default: 300.

    Raises:
        ValueError: staleness is negative, an unknown compression, no parameter requires a
            gradient, ranks have different modules, or torch.distributed has no process group.
        TypeError: dtype of a parameter.

    Source: Ho et al., "More Effective Distributed ML via a Stale Synchronous Parallel Parameter
    Server", 2013; Lian et al., "Asynchronous Parallel Stochastic Gradient for Nonconvex
    Optimization", 2015.

    Example:
        >>> stale = lt.distributed.StaleGradients(model, staleness=2)    # doctest: +SKIP
        >>> for batch in data:                                           # doctest: +SKIP
        ...     optimizer.zero_grad(); loss(model, batch).backward()
        ...     if stale.exchange(): optimizer.step()
        >>> while stale.drain(): optimizer.step()                        # doctest: +SKIP
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        staleness: int = 1,
        process_group: dist.ProcessGroup | None = None,
        compression: str | None = None,
        timeout: float = 300.0,
    ) -> None:
        """See the class."""
        if staleness < 0:
            raise ValueError(f"StaleGradients: staleness must be at least 0, got {staleness}")
        if compression is not None and compression not in KINDS:
            raise ValueError(
                f"StaleGradients: compression must be None, 'bf16' or 'int8', got {compression!r}"
            )
        self._parameters = [p for p in module.parameters() if p.requires_grad]
        if not self._parameters:
            raise ValueError("StaleGradients: no parameter of the module requires a gradient")
        _replicas.check_same_module(module, process_group)
        self.staleness = staleness
        device = self._parameters[0].device
        self._transport = choose_transport(process_group, compression, device, timeout, None)
        _replicas.broadcast_module(module, self._transport)
        size = lk.bucket_flatten([p.detach() for p in self._parameters], dtype=torch.float32)
        self._length = size.numel()
        self._ring = [
            self._transport.allocate(self._length, torch.float32) for _ in range(staleness + 1)
        ]
        self._sent = self._applied = 0

    @torch.no_grad()
    def exchange(self) -> bool:
        """Send this step's gradients, and put the average of `staleness` steps ago in `.grad`.

        Collective; call it once a step, after backward. A parameter without a gradient counts
        as zeros.

        Returns:
            bool: whether `.grad` holds an average; False in the first `staleness` steps.

        Raises:
            ValueError: a gradient is not contiguous.
            RuntimeError: a rank failed; on one host ShmError, which names it.
        """
        flat = self._ring[self._sent % len(self._ring)]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        flat[: self._length].copy_(lk.bucket_flatten(gradients, dtype=torch.float32))
        self._transport.start(self._sent % len(self._ring), flat, 0)
        self._sent += 1
        self._transport.progress()
        return self._sent - self._applied > self.staleness and self._apply()

    @torch.no_grad()
    def drain(self) -> bool:
        """After the last step: put the next average that is left in `.grad`; collective.

        Returns:
            bool: whether `.grad` holds an average; False if none was left.

        Raises:
            ValueError: a gradient is not contiguous.
            RuntimeError: a rank failed; on one host ShmError, which names it.
        """
        return self._sent > self._applied and self._apply()

    def _apply(self) -> bool:
        self._transport.finish(1)
        flat = self._ring[self._applied % len(self._ring)]
        self._applied += 1
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._parameters]
        lk.bucket_unflatten_(gradients, flat[: self._length])  # type: ignore[arg-type]
        return True

    def close(self) -> None:
        """Leave; not collective. Peers that wait for this rank in shared memory fail at once."""
        self._transport.close()
