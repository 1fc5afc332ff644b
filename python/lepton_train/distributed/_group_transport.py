"""Buckets averaged by torch.distributed (gloo, NCCL, MPI)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist

import lepton_kernels as lk
from lepton_train.distributed._factor_messages import FactorExchange, FactorMessage
from lepton_train.distributed._factors import (
    PRODUCT,
    FactoredBucket,
    Factors,
    most_rows_between_hosts,
)
from lepton_train.distributed._power_sgd import PowerSgd
from lepton_train.distributed._two_shot import InOrder, Pipeline, all_gather_flat

POWER_SGD = "powersgd"
_LINE = 64  # elements: whole cache lines
_SENT_BYTES = {"int8": 1.0, "bf16": 2.0}  # of an element
_Item = TypeVar("_Item")


def split_started(started: list[_Item], count: int | None) -> tuple[list[_Item], list[_Item]]:
    """The first `count`, or all, and the rest."""
    count = len(started) if count is None else count
    return started[:count], started[count:]


def _same_bits_everywhere() -> bool:
    """Whether products are computed by the kernels here, not by a library whose bits depend on the
    CPU."""
    return lk.info()["ops"]["bucket_outer_"] != "reference"


class OfGroup:
    """What torch.distributed does alike for one host and several."""

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

    def gather(self, numbers: torch.Tensor) -> torch.Tensor:
        """See Transport."""
        numbers = numbers.to(self._device)
        world = dist.get_world_size(self._group)
        everyone = numbers.new_empty(world * numbers.numel())
        all_gather_flat(everyone, numbers, self._group)
        return everyone.view(world, -1)


class _Reduce:
    """An all-reduce on its way."""

    def __init__(self, waits: Sequence[Any], flat: torch.Tensor, payload: int) -> None:
        self._waits, self._flat, self._payload = waits, flat, payload

    def finish(self) -> float:
        """Wait; the sum of squares of the average."""
        for pending in self._waits:
            pending.wait()
        return lk.bucket_squares([self._flat[: self._payload]]).item()


class _Outer:
    """An average of factors on its way."""

    def __init__(self, bucket: FactoredBucket, exchange: FactorExchange, world: int) -> None:
        self._bucket, self._exchange, self._world = bucket, exchange, world
        self._done = False

    def progress(self) -> None:
        """Compute if all factors have come: while other messages travel."""
        if not self._done and self._exchange.is_here():
            self._multiply()

    def finish(self) -> float:
        """Wait; the sum of squares of the average."""
        product = self._bucket.view
        if not self._done and not self._multiply():
            # Only here, where all ranks finish all in one order.
            self._exchange.average_products(product)
        return lk.bucket_squares([product]).item()

    def _multiply(self) -> bool:
        everyone = self._exchange.factors()
        self._bucket.flags[0] = PRODUCT
        if everyone is None:
            return False
        lefts, rights = [one.left for one in everyone], [one.right for one in everyone]
        self._bucket.flags[0] = float(any(left.shape[0] for left in lefts))
        lk.bucket_outer_(self._bucket.view, lefts, rights, divisor=self._world)
        self._done = True
        return True


class GroupTransport(OfGroup):
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
        self._compression = compression
        self.same_bits = device.type == "cpu" and _same_bits_everywhere()
        self._started: list[_Reduce | _Outer] = []
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
        self._started.append(_Reduce(waits, flat, payload))

    def most_rows(self, weight: torch.Tensor, wanted: bool | None) -> int:
        """See Transport."""
        if self._power is not None or not self.same_bits:
            return 0
        return most_rows_between_hosts(weight, self._world, self.sent_bytes(weight), wanted)

    def sent_bytes(self, weight: torch.Tensor) -> float:
        """That an element of its gradient travels as."""
        size = weight.dtype.itemsize
        return min(_SENT_BYTES.get(self._compression or "", size), size)

    def allocate_factors(self, weight: torch.Tensor, capacity: int) -> Factors:
        """See Transport."""
        return FactorMessage.allocate(weight, capacity, self._world)

    def release_factors(self, factors: Factors) -> None:
        """See Transport: torch frees them."""

    def start_factors(self, bucket: FactoredBucket, terms: int | None) -> None:
        """See Transport."""
        assert isinstance(bucket.factors, FactorMessage)
        exchange = FactorExchange(bucket.factors, terms, self._group)
        self._started.append(_Outer(bucket, exchange, self._world))

    def progress(self) -> None:
        """See Transport: torch's own threads send."""
        for started in self._started:
            if isinstance(started, _Outer):
                started.progress()

    def finish(self, count: int | None = None) -> list[float]:
        """See Transport."""
        started, self._started = split_started(self._started, count)
        squares = [one.finish() for one in started]
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
