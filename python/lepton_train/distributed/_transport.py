"""How buckets get averaged: through shared memory, torch.distributed, or one inside the other."""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
import torch.distributed as dist

import lepton_kernels as lk
from lepton_train.distributed._two_shot import InOrder, TwoShot

_BLOCK = 256


class Transport(Protocol):
    """Averages buckets over ranks; every rank starts the same buckets in the same order."""

    kind: str

    def allocate(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """A bucket of at least `numel` zeros; collective."""

    def release(self, flat: torch.Tensor) -> None:
        """Give a bucket up, its memory with its last tensor; collective."""

    def start(self, index: int, flat: torch.Tensor, payload: int) -> None:
        """Announce bucket `index`; the norm covers its first `payload` elements."""

    def progress(self) -> None:
        """Move what was started along, without waiting."""

    def finish(self) -> list[float]:
        """Wait for all started; sums of squares in the order of starting."""

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        """Copy a contiguous tensor of group rank `src` to all."""

    def close(self) -> None:
        """Leave."""


class ShmTransport:
    """All ranks on one host: buckets live in shared memory and move in one pass."""

    kind = "shared memory"

    def __init__(self, comm: lk.ShmCommunicator) -> None:
        self.comm = comm
        self._numbers: list[int] = []

    def allocate(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """See Transport."""
        return self.comm.empty(numel, dtype)

    def release(self, flat: torch.Tensor) -> None:
        """See Transport."""
        self.comm.free(flat)

    def start(self, index: int, flat: torch.Tensor, payload: int) -> None:
        """See Transport."""
        self._numbers.append(self.comm.start_all_reduce(flat, "avg", norm_of=payload))

    def progress(self) -> None:
        """See Transport."""
        self.comm.progress()

    def finish(self) -> list[float]:
        """See Transport."""
        numbers, self._numbers = self._numbers, []
        squares = []
        for number in numbers:
            self.comm.wait(number)
            squares.append(self.comm.squares(number))
        return squares

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        """See Transport."""
        self.comm.broadcast(tensor, src)

    def close(self) -> None:
        """See Transport."""
        self.comm.close()


class GroupTransport:
    """torch.distributed (gloo, NCCL, MPI), compressed where asked for."""

    def __init__(
        self,
        group: dist.ProcessGroup | None,
        compression: str | None,
        device: torch.device,
    ) -> None:
        self.kind = f"torch.distributed ({dist.get_backend(group)})"
        self._group = group
        self._world = dist.get_world_size(group)
        self._device = device
        self._started: list[tuple[Any, torch.Tensor, int]] = []
        self._two_shot = TwoShot(compression, group) if compression else None
        self._thread = InOrder() if compression else None

    def allocate(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """See Transport."""
        return torch.zeros(numel, dtype=dtype, device=self._device)

    def release(self, flat: torch.Tensor) -> None:
        """See Transport: torch frees it."""

    def start(self, index: int, flat: torch.Tensor, payload: int) -> None:
        """See Transport."""
        if self._two_shot is not None and self._thread is not None:
            two_shot = self._two_shot
            future: Any = self._thread.submit(lambda: two_shot.average_(flat, index))
        else:
            flat.div_(self._world)
            future = dist.all_reduce(flat, group=self._group, async_op=True)
        self._started.append((future, flat, payload))

    def progress(self) -> None:
        """See Transport: torch's own threads do the work."""

    def finish(self) -> list[float]:
        """See Transport."""
        started, self._started = self._started, []
        squares = []
        for future, flat, payload in started:
            future.wait()
            squares.append(lk.bucket_squares([flat[:payload]]).item())
        return squares

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        """See Transport."""
        root = dist.get_global_rank(self._group, src) if self._group else src
        dist.broadcast(tensor, root, group=self._group)

    def close(self) -> None:
        """See Transport."""


class HostsTransport:
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
        self._between = GroupTransport(across, compression, torch.device("cpu"))
        self._started: list[tuple[int, int, torch.Tensor, int]] = []

    def allocate(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """See Transport; a whole number of shares."""
        unit = _BLOCK * self._comm.size  # no block of compression spans two shares
        return self._comm.empty(math.ceil(numel / unit) * unit, dtype)

    def release(self, flat: torch.Tensor) -> None:
        """See Transport."""
        self._comm.free(flat)

    def start(self, index: int, flat: torch.Tensor, payload: int) -> None:
        """See Transport."""
        self._started.append((self._comm.start_all_reduce(flat, "avg"), index, flat, payload))

    def progress(self) -> None:
        """See Transport."""
        self._comm.progress()

    def finish(self) -> list[float]:
        """See Transport."""
        started, self._started = self._started, []
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

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        """See Transport."""
        root = dist.get_global_rank(self._group, src) if self._group else src
        dist.broadcast(tensor, root, group=self._group)

    def close(self) -> None:
        """See Transport."""
        self._comm.close()


def choose_transport(
    group: dist.ProcessGroup | None,
    compression: str | None,
    device: torch.device,
    timeout: float,
    shared_memory: bool | None,
) -> Transport:
    """The fastest way between these ranks; collective.

    Raises:
        ShmUnavailable: shared_memory is True and the ranks cannot share memory.
    """
    world = dist.get_world_size(group)
    if shared_memory is False or (device.type != "cpu" and shared_memory is None):
        return GroupTransport(group, compression, device)
    try:
        comm = lk.ShmCommunicator(group, timeout=timeout)
    except lk.ShmUnavailable:
        if shared_memory:
            raise
        return GroupTransport(group, compression, device)
    if comm.size == world:
        return ShmTransport(comm)
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, comm.ranks, group=group)
    hosts = [list(ranks) for ranks in dict.fromkeys(tuple(ranks) for ranks in everyone)]
    if len({len(ranks) for ranks in hosts}) > 1 or comm.size == 1:
        comm.close()
        return GroupTransport(group, compression, device)
    mine: dist.ProcessGroup | None = None
    for like in zip(*hosts, strict=True):
        names = [dist.get_global_rank(group, r) if group else r for r in like]
        across = dist.new_group(names, use_local_synchronization=False)
        if dist.get_rank(group) in like:
            mine = across  # type: ignore[assignment]  # never a non-member here
    assert mine is not None
    return HostsTransport(comm, group, mine, compression)
