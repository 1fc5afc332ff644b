"""Buckets averaged through shared memory inside a host and torch.distributed between hosts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

import lepton_kernels as lk
from lepton_train.distributed._factor_messages import FactorExchange, FactorMessage
from lepton_train.distributed._factors import FactoredBucket, Factors, most_rows_between_hosts
from lepton_train.distributed._group_transport import GroupTransport, OfGroup, split_started

_BLOCK = 256


@dataclass
class _HostFactors(FactorMessage):
    """A message to this rank's like on other hosts, and memory of this host for all of theirs."""

    shared: Factors


@dataclass
class _Shares:
    """An average on its way: its sum inside the host has started."""

    number: int
    index: int
    flat: torch.Tensor
    payload: int


@dataclass
class _Outer:
    """An average of factors on its way to this rank's like on other hosts and back."""

    bucket: FactoredBucket
    exchange: FactorExchange


class HostsTransport(OfGroup):
    """Several hosts with as many ranks each: sums through shared memory inside a host, then each
    rank averages its share with its like on the other hosts, then the shares are gathered.

    Of factors, each rank first gathers those of its like on other hosts; then the ranks of a host
    add up all products in shared memory, each its share of the rows."""

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
        self._across = across
        self._hosts = dist.get_world_size(across)
        self._started: list[_Shares | _Outer] = []

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
        number = self._comm.start_all_reduce(flat, "avg")
        self._started.append(_Shares(number, index, flat, payload))

    def most_rows(self, weight: torch.Tensor, wanted: bool | None) -> int:
        """See Transport."""
        if not self._between.same_bits:
            return 0
        world = self._comm.size * self._hosts
        return most_rows_between_hosts(weight, world, self._between.sent_bytes(weight), wanted)

    def allocate_factors(self, weight: torch.Tensor, capacity: int) -> Factors:
        """See Transport."""
        room = capacity * self._hosts
        memory = self._comm.empty(Factors.numel(weight, room), weight.dtype)
        own = FactorMessage.allocate(weight, capacity, self._hosts)
        shared = Factors.cut(memory, weight, room)
        return _HostFactors(own.left, own.right, weight, own.message, own.everyone, shared)

    def start_factors(self, bucket: FactoredBucket, terms: int | None) -> None:
        """See Transport."""
        assert isinstance(bucket.factors, _HostFactors)
        exchange = FactorExchange(bucket.factors, terms, self._across)
        self._started.append(_Outer(bucket, exchange))

    def release_factors(self, factors: Factors) -> None:
        """See Transport."""
        assert isinstance(factors, _HostFactors)
        self._comm.free(factors.shared.left)

    def _start_outer(self, outer: _Outer) -> int:
        """Bring what this rank and its like on other hosts have to the sum inside the host."""
        bucket = outer.bucket
        factors = bucket.factors
        assert isinstance(factors, _HostFactors)
        if bucket.start is None:
            bucket.start = self._comm.prepare_outer(
                bucket.view, factors.shared.left, factors.shared.right, bucket.flags
            )
        everyone = outer.exchange.factors()
        if everyone is None:
            outer.exchange.average_products(bucket.view)
            return bucket.start(None)
        terms = 0
        for theirs in everyone:
            count = theirs.left.shape[0]
            # An average over hosts here, as of products, and one over this host's ranks there.
            torch.div(theirs.left, self._hosts, out=factors.shared.left[terms : terms + count])
            factors.shared.right[terms : terms + count].copy_(theirs.right)
            terms += count
        return bucket.start(terms)

    def progress(self) -> None:
        """See Transport."""
        self._comm.progress()

    def finish(self, count: int | None = None) -> list[float]:
        """See Transport."""
        started, self._started = split_started(self._started, count)
        numbers, shares = [], {}
        for one in started:
            if isinstance(one, _Outer):
                # Only here: progress would begin them in another order from rank to rank.
                numbers.append(self._start_outer(one))
                continue
            self._comm.wait(one.number)
            numbers.append(one.number)
            part = one.flat.numel() // self._comm.size
            share = one.flat[self._comm.rank * part : (self._comm.rank + 1) * part]
            shares[one.number] = share
            self._between.start(one.index, share, 0)
        self._between.finish()
        squares = []
        for number, one in zip(numbers, started, strict=True):
            if isinstance(one, _Outer):
                self._comm.wait(number)
                squares.append(self._comm.squares(number))
            else:
                self._comm.all_gather(one.flat, shares[number])
                squares.append(lk.bucket_squares([one.flat[: one.payload]]).item())
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
