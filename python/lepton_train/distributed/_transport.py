"""How buckets get averaged: through shared memory, torch.distributed, or one inside the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

import lepton_kernels as lk
from lepton_train.distributed._power_sgd import PowerSgd
from lepton_train.distributed._two_shot import KINDS, InOrder, Pipeline, all_gather_flat

POWER_SGD = "powersgd"
COMPRESSIONS = (*KINDS, POWER_SGD)
_BLOCK = 256
_LINE = 64  # elements: whole cache lines
_Item = TypeVar("_Item")


def _split(started: list[_Item], count: int | None) -> tuple[list[_Item], list[_Item]]:
    count = len(started) if count is None else count
    return started[:count], started[count:]


class Transport(Protocol):
    """Averages buckets over ranks; every rank starts the same buckets in the same order."""

    kind: str

    def allocate(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """A bucket of at least `numel` zeros; collective."""

    def release(self, flat: torch.Tensor) -> None:
        """Give a bucket up, its memory with its last tensor; collective."""

    def start(
        self, index: int, flat: torch.Tensor, payload: int, views: Sequence[torch.Tensor] = ()
    ) -> None:
        """Announce bucket `index`; the norm covers its first `payload` elements, of which `views`
        are the gradients."""

    def progress(self) -> None:
        """Move what was started along, without waiting."""

    def finish(self, count: int | None = None) -> list[float]:
        """Wait for the first `count` started, or all; sums of squares in that order."""

    def shard(self, numel: int) -> tuple[int, int]:
        """Begin and end of this rank's part of a buffer of `numel` from `allocate_shards`."""

    def allocate_shards(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """A buffer of at least `numel` zeros that `gather_shards` takes; collective."""

    def gather_shards(self, flat: torch.Tensor) -> None:
        """Copy every rank's part of a buffer to all, in place; collective."""

    def forget(self) -> None:
        """Drop what error feedback has kept."""

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

    def start(
        self, index: int, flat: torch.Tensor, payload: int, views: Sequence[torch.Tensor] = ()
    ) -> None:
        """See Transport."""
        self._numbers.append(self.comm.start_all_reduce(flat, "avg", norm_of=payload))

    def progress(self) -> None:
        """See Transport."""
        self.comm.progress()

    def shard(self, numel: int) -> tuple[int, int]:
        """See Transport."""
        return self.comm.slice(numel)

    def allocate_shards(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """See Transport."""
        return self.comm.empty(numel, dtype)

    def gather_shards(self, flat: torch.Tensor) -> None:
        """See Transport."""
        self.comm.gather_slices(flat)

    def finish(self, count: int | None = None) -> list[float]:
        """See Transport."""
        numbers, self._numbers = _split(self._numbers, count)
        squares = []
        for number in numbers:
            self.comm.wait(number)
            squares.append(self.comm.squares(number))
        return squares

    def forget(self) -> None:
        """See Transport: nothing is kept."""

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        """See Transport."""
        self.comm.broadcast(tensor, src)

    def close(self) -> None:
        """See Transport."""
        self.comm.close()


class _ShardsOfGroup:
    """Parts of one size, gathered by torch.distributed."""

    _group: dist.ProcessGroup | None
    _device: torch.device

    def shard(self, numel: int) -> tuple[int, int]:
        """See Transport."""
        part = numel // dist.get_world_size(self._group)
        rank = dist.get_rank(self._group)
        return rank * part, (rank + 1) * part

    def allocate_shards(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """See Transport."""
        unit = _LINE * dist.get_world_size(self._group)
        return torch.zeros(math.ceil(numel / unit) * unit, dtype=dtype, device=self._device)

    def gather_shards(self, flat: torch.Tensor) -> None:
        """See Transport."""
        begin, end = self.shard(flat.numel())
        all_gather_flat(flat, flat[begin:end].clone(), self._group)


class GroupTransport(_ShardsOfGroup):
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
        self._started: list[tuple[Sequence[Any], torch.Tensor, int]] = []
        power = compression == POWER_SGD
        self._power = PowerSgd(group) if power else None
        self._thread = InOrder() if power else None
        self._pipeline = Pipeline(compression, group) if compression and not power else None

    def allocate(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        """See Transport."""
        return torch.zeros(numel, dtype=dtype, device=self._device)

    def release(self, flat: torch.Tensor) -> None:
        """See Transport: torch frees it."""

    def start(
        self, index: int, flat: torch.Tensor, payload: int, views: Sequence[torch.Tensor] = ()
    ) -> None:
        """See Transport."""
        waits: Sequence[Any]
        if self._pipeline is not None:
            waits = self._pipeline.submit(flat, index)
        elif self._power is not None and self._thread is not None:
            power = self._power
            job = partial(power.average_, flat, index, payload, views)
            waits = [self._thread.submit(job)]
        else:
            flat.div_(self._world)
            waits = [dist.all_reduce(flat, group=self._group, async_op=True)]
        self._started.append((waits, flat, payload))

    def progress(self) -> None:
        """See Transport: torch's own threads do the work."""

    def finish(self, count: int | None = None) -> list[float]:
        """See Transport."""
        started, self._started = _split(self._started, count)
        squares = []
        for waits, flat, payload in started:
            for pending in waits:
                pending.wait()
            squares.append(lk.bucket_squares([flat[:payload]]).item())
        if self._power is not None:
            self._power.end_step()
        return squares

    def forget(self) -> None:
        """See Transport."""
        if self._pipeline is not None:
            self._pipeline.forget()
        if self._power is not None:
            self._power = PowerSgd(self._group)

    def broadcast(self, tensor: torch.Tensor, src: int) -> None:
        """See Transport."""
        root = dist.get_global_rank(self._group, src) if self._group else src
        dist.broadcast(tensor, root, group=self._group)

    def close(self) -> None:
        """See Transport."""


class HostsTransport(_ShardsOfGroup):
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

    def progress(self) -> None:
        """See Transport."""
        self._comm.progress()

    def finish(self, count: int | None = None) -> list[float]:
        """See Transport."""
        started, self._started = _split(self._started, count)
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
    # PowerSGD looks at whole matrices, not at shares of buckets.
    uneven = len({len(ranks) for ranks in hosts}) > 1
    if uneven or comm.size == 1 or compression == POWER_SGD:
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
