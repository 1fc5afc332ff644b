"""Factors of a linear layer's gradient as a message that every rank sends to all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from lepton_train.distributed._factors import Factors
from lepton_train.distributed._two_shot import all_gather_flat

_HEADER = 64  # bytes, of which the first eight hold the number of rows
_WHOLE = -1  # in their place: this rank has a product, not factors


@dataclass
class FactorMessage(Factors):
    """Factors inside the bytes that are sent, and room for every rank's."""

    weight: torch.Tensor  # for its shape and dtype
    message: torch.Tensor  # uint8
    everyone: torch.Tensor  # uint8, (ranks, bytes)

    @staticmethod
    def allocate(weight: torch.Tensor, capacity: int, world: int) -> FactorMessage:
        """Room for `capacity` rows of each of `world` ranks."""
        size = Factors.numel(weight, capacity) * weight.dtype.itemsize
        message = torch.zeros(_HEADER + size, dtype=torch.uint8)
        own = Factors.cut(message[_HEADER:].view(weight.dtype), weight, capacity)
        everyone = message.new_zeros((world, message.numel()))
        return FactorMessage(own.left, own.right, weight, message, everyone)


class FactorExchange:
    """One message of each rank on its way to all.

    Args:
        own (FactorMessage): what this rank's backward has left.
        terms (int, optional): rows that this rank brings; None: it brings the product.
        group (ProcessGroup, optional): default: None, the default group.
    """

    def __init__(
        self, own: FactorMessage, terms: int | None, group: dist.ProcessGroup | None
    ) -> None:
        self._own = own
        self._terms = terms
        self._group = group
        own.message[:8].view(torch.int64)[0] = _WHOLE if terms is None else terms
        self._work: Any = all_gather_flat(own.everyone.view(-1), own.message, group, async_op=True)

    def is_here(self) -> bool:
        """Whether all messages have come."""
        return self._work.is_completed()

    def factors(self) -> list[Factors] | None:
        """Every rank's, of as many rows as it brings, or None where one brings a product; waits."""
        self._work.wait()
        everyone, weight = self._own.everyone, self._own.weight
        terms = everyone[:, :8].contiguous().view(torch.int64).view(-1).tolist()
        if _WHOLE in terms:
            return None
        found = []
        for rank, count in enumerate(terms):
            memory = everyone[rank, _HEADER:].view(weight.dtype)
            theirs = Factors.cut(memory, weight, self._own.left.shape[0])
            found.append(Factors(theirs.left[:count], theirs.right[:count]))
        return found

    def add_products(self, product: torch.Tensor) -> None:
        """The sum of all ranks' products, which all must ask for: a message of its own."""
        if self._terms == 0:
            product.zero_()
        elif self._terms is not None:
            self._own.multiply(self._terms, product)
        dist.all_reduce(product, group=self._group)
