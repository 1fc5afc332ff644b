"""How buckets get averaged: through shared memory, torch.distributed, or one inside the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist

import lepton_kernels as lk
from lepton_train.distributed._factors import FactoredBucket, Factors, most_rows_on_a_host
from lepton_train.distributed._group_transport import POWER_SGD, GroupTransport, split_started
from lepton_train.distributed._hosts_transport import HostsTransport
from lepton_train.distributed._two_shot import KINDS

COMPRESSIONS = (*KINDS, POWER_SGD)


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

    def most_rows(self, weight: torch.Tensor, wanted: bool | None) -> int:
        """Rows of a rank's batch up to which the gradient of a linear layer's weight travels as
        factors; 0: never. The same on every rank."""

    def allocate_factors(self, weight: torch.Tensor, capacity: int) -> Factors:
        """Memory for factors of up to `capacity` rows; collective."""

    def start_factors(self, bucket: FactoredBucket, terms: int | None) -> None:
        """Announce the average of a weight's gradients: this rank has left `terms` rows in the
        bucket's factors, or for None the product in the bucket."""

    def gather(self, numbers: torch.Tensor) -> torch.Tensor:
        """Every rank's vector of int64, shape (ranks, numel); collective."""

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

    def most_rows(self, weight: torch.Tensor, wanted: bool | None) -> int:
        """See Transport."""
        return most_rows_on_a_host(weight, self.comm.size, wanted)

    def allocate_factors(self, weight: torch.Tensor, capacity: int) -> Factors:
        """See Transport."""
        memory = self.comm.empty(Factors.numel(weight, capacity), weight.dtype)
        return Factors.cut(memory, weight, capacity)

    def start_factors(self, bucket: FactoredBucket, terms: int | None) -> None:
        """See Transport."""
        factors = bucket.factors
        if bucket.start is None:
            bucket.start = self.comm.prepare_outer(
                bucket.view, factors.left, factors.right, bucket.flags
            )
        self._numbers.append(bucket.start(terms))

    def gather(self, numbers: torch.Tensor) -> torch.Tensor:
        """See Transport."""
        everyone = numbers.new_empty(self.comm.size * numbers.numel())
        return self.comm.all_gather(everyone, numbers).view(self.comm.size, -1)

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
        numbers, self._numbers = split_started(self._numbers, count)
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
