"""Factors of a linear layer's gradient as a message that every rank sends to all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

import lepton_kernels as lk
from lepton_train.distributed._factors import FactoredBucket, Factors
from lepton_train.distributed._two_shot import all_gather_flat

_HEADER = 64  # bytes, of which the first eight hold the number of rows
_WHOLE = -1  # in their place: this rank has a product, not factors


@dataclass
class FactorMessage(Factors):
    """Factors inside the bytes that are sent, and room for every rank's."""

    message: torch.Tensor  # uint8
    everyone: torch.Tensor  # uint8, (ranks, bytes)
    capacity: int

    @staticmethod
    def allocate(weight: torch.Tensor, capacity: int, world: int) -> FactorMessage:
        """Room for `capacity` rows of each of `world` ranks."""
        size = Factors.numel(weight, capacity) * weight.dtype.itemsize
        message = torch.zeros(_HEADER + size, dtype=torch.uint8)
        own = Factors.cut(message[_HEADER:].view(weight.dtype), weight, capacity)
        everyone = message.new_zeros((world, message.numel()))
        return FactorMessage(own.left, own.right, message, everyone, capacity)


class FactorExchange:
    """One average of a weight's gradients on its way.

    Args:
        bucket (FactoredBucket): its factors are a FactorMessage.
        terms (int, optional): rows that this rank brings; None: it brings the product.
        group (ProcessGroup, optional): default: None, the default group.
    """

    def __init__(
        self, bucket: FactoredBucket, terms: int | None, group: dist.ProcessGroup | None
    ) -> None:
        assert isinstance(bucket.factors, FactorMessage)
        self._bucket = bucket
        self._own = bucket.factors
        self._group = group
        self._own.message[:8].view(torch.int64)[0] = _WHOLE if terms is None else terms
        self._work: Any = all_gather_flat(
            self._own.everyone.view(-1), self._own.message, group, async_op=True
        )
        self._done = False

    def progress(self) -> None:
        """Compute the average if all factors are there: while other messages travel."""
        if not self._done and self._work.is_completed():
            self._work.wait()
            self._average()

    def finish(self) -> float:
        """Wait for the average; its sum of squares. All ranks finish all in one order."""
        if not self._done:
            self._work.wait()
            self._average()
        if not self._done:
            self._average_products()
        return lk.bucket_squares([self._bucket.view]).item()

    def _average(self) -> None:
        """Unless a rank brings a product: that takes another message, in the ranks' one order."""
        everyone, weight = self._own.everyone, self._bucket.view
        terms = everyone[:, :8].contiguous().view(torch.int64).view(-1).tolist()
        self._bucket.flags[0] = float(any(terms))
        if _WHOLE in terms:
            return
        lefts, rights = [], []
        for rank, count in enumerate(terms):
            theirs = Factors.cut(
                everyone[rank, _HEADER:].view(weight.dtype), weight, self._own.capacity
            )
            lefts.append(theirs.left[:count])
            rights.append(theirs.right[:count])
        lk.bucket_outer_(weight, lefts, rights, divisor=len(terms))
        self._done = True

    def _average_products(self) -> None:
        weight = self._bucket.view
        own = int(self._own.message[:8].view(torch.int64)[0])
        if own == 0:
            weight.zero_()
        elif own != _WHOLE:
            self._own.multiply(own, weight)
        weight.div_(dist.get_world_size(self._group))
        dist.all_reduce(weight, group=self._group)
        self._done = True
