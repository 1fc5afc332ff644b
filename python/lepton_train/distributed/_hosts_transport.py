"""Buckets averaged through shared memory inside a host and torch.distributed between hosts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist

import lepton_kernels as lk
from lepton_train.distributed._factors import FactoredBucket, Factors
from lepton_train.distributed._group_transport import GroupTransport, OfGroup, split_started

_BLOCK = 256


class HostsTransport(OfGroup):
    """Several hosts with as many ranks each: sums through shared memory inside a host, then each
    rank averages its share with its like on the other hosts, then the shares are gathered."""

    def __init__(
        self,
        comm: lk.ShmCommunicator,
        group: dist.ProcessGroup | None,
        across: dist.ProcessGroup,
        compression: str | None,
    ) -> None:
        self.kind = "shared memory inside, torch.distributed between hosts"
        self._comm = comm
        self._group = group
        self._device = torch.device("cpu")
        self._between = GroupTransport(across, compression, torch.device("cpu"))
        self._started: list[tuple[int, int, torch.Tensor, int]] = []

    def allocate(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """See Transport; a whole number of shares."""
        unit = _BLOCK * self._comm.size  # no block of compression spans two shares
        return self._comm.empty(math.ceil(numel / unit) * unit, dtype)

    def release(self, flat: torch.Tensor) -> None:
        """See Transport."""
        self._comm.free(flat)

    def start(
        self, index: int, flat: torch.Tensor, payload: int, views: Sequence[torch.Tensor] = ()
    ) -> None:
        """See Transport."""
        self._started.append((self._comm.start_all_reduce(flat, "avg"), index, flat, payload))

    def most_rows(self, weight: torch.Tensor, wanted: bool | None) -> int:
        """See Transport: between hosts a host's sum would be many ranks' rows."""
        return 0

    def allocate_factors(self, weight: torch.Tensor, capacity: int) -> Factors:
        """See Transport."""
        raise NotImplementedError(f"{self.kind}: gradients do not travel as factors")

    def start_factors(self, bucket: FactoredBucket, terms: int | None) -> None:
        """See Transport."""
        raise NotImplementedError(f"{self.kind}: gradients do not travel as factors")

    def progress(self) -> None:
        """See Transport."""
        self._comm.progress()

    def finish(self, count: int | None = None) -> list[float]:
        """See Transport."""
        started, self._started = split_started(self._started, count)
        shares = []
        for number, index, flat, _ in started:
            self._comm.wait(number)
            count = flat.numel() // self._comm.size
            shares.append(flat[self._comm.rank * count : (self._comm.rank + 1) * count])
            self._between.start(index, shares[-1], 0)
        self._between.finish()
        squares = []
        for (_, _, flat, payload), share in zip(started, shares, strict=True):
            self._comm.all_gather(flat, share)
            squares.append(lk.bucket_squares([flat[:payload]]).item())
        return squares

    def forget(self) -> None:
        """See Transport."""
        self._between.forget()

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        """See Transport."""
        root = dist.get_global_rank(self._group, src) if self._group else src
        dist.broadcast(tensor, root, group=self._group)

    def close(self) -> None:
        """See Transport."""
        self._comm.close()
