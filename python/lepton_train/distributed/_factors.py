"""Gradients of linear layers that travel as two factors.

A linear layer's weight gradient is left^T right: the gradients of its outputs and its inputs, one
row each for every row of the batch. Where rows are few the factors are much smaller than the
product. Ranks then share factors and compute the average of all products from them, instead of
computing a product each and averaging those: no rounding more, no error feedback, and fewer bytes
than any compression of the product.

Sufficient factors: Xie et al., 2015, arXiv:1511.08486.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

# Below this a weight shares a bucket with others: a message of its own costs more than it saves.
LEAST_BYTES = 1 << 19
# In the flag of a bucket, where others have 1: a rank brought a product, not factors.
PRODUCT = 2.0
_LINE = 64  # elements: whole cache lines
# Rows up to which the products of all ranks are computed on every rank without being asked for:
# some 50 GFLOP/s then keep up with 10 Gbit/s.
_ROWS_BETWEEN_HOSTS = 64


@dataclass
class Factors:
    """Memory for a rank's factors of up to `capacity` rows."""

    left: torch.Tensor  # (capacity, rows of the weight)
    right: torch.Tensor  # (capacity, columns of the weight)

    @staticmethod
    def numel(weight: torch.Tensor, capacity: int) -> int:
        """Elements of memory that `cut` takes."""
        rows, columns = weight.shape
        return -(-capacity * rows // _LINE) * _LINE + capacity * columns

    @staticmethod
    def cut(memory: torch.Tensor, weight: torch.Tensor, capacity: int) -> Factors:
        """Both factors side by side, each from the start of a cache line."""
        rows, columns = weight.shape
        split = -(-capacity * rows // _LINE) * _LINE
        left = memory[: capacity * rows].view(capacity, rows)
        return Factors(left, memory[split : split + capacity * columns].view(capacity, columns))

    def multiply(self, rows: int, product: torch.Tensor) -> None:
        """product = left^T right of the first `rows` rows: the gradient of this rank alone."""
        torch.mm(self.left[:rows].t(), self.right[:rows], out=product)


class FactoredBucket:
    """A bucket that holds the gradient of one weight, averaged from factors.

    Stands where a `Bucket` stands. `taken` is the number of rows that this rank's backward has
    left in `factors`; None: its gradient, if it has one, is in `flat`.
    """

    def __init__(
        self, member: int, flat: torch.Tensor, view: torch.Tensor, factors: Factors
    ) -> None:
        self.members = [member]
        self.payload = view.numel()
        self.flat = flat
        self.view = view
        self.flags = torch.zeros(1)
        self.factors = factors
        self.taken: int | None = None
        # Where all ranks map the same memory: announces an average of so many rows.
        self.start: Callable[[int | None], int] | None = None
        self._products = 0

    @property
    def room(self) -> int:
        """Rows that there is memory for."""
        return self.factors.left.shape[0]

    def take(self, left: torch.Tensor, right: torch.Tensor) -> bool:
        """Keep factors in place of their product; False if there are too many rows."""
        rows = left.shape[0]
        # The dtype: a module that was cast after the buckets were filled.
        if rows > self.room or left.dtype != self.view.dtype:
            return False
        self.factors.left[:rows].copy_(left)
        self.factors.right[:rows].copy_(right)
        self.taken = rows
        return True

    def count_products(self) -> int:
        """After an average: steps in a row in which some rank brought a product."""
        self._products = self._products + 1 if self.flags.item() == PRODUCT else 0
        return self._products

    def multiply(self) -> None:
        """Compute the product after all: another summand comes, or no average."""
        if self.taken is not None:
            self.factors.multiply(self.taken, self.view)
            self.taken = None


def most_rows_on_a_host(weight: torch.Tensor, world: int, wanted: bool | None) -> int:
    """Rows of a rank up to which factors are worth it where all map the same memory; 0: none.

    A product costs a rank three passes over the weight, of which one is left; all ranks' factors
    must be well below the other two.
    """
    rows, columns = weight.shape
    if wanted is False or (wanted is None and weight.nbytes < LEAST_BYTES):
        return 0
    return rows * columns // ((1 if wanted else 2) * world * (rows + columns))


def most_rows_between_hosts(
    weight: torch.Tensor, world: int, sent_bytes: float, wanted: bool | None
) -> int:
    """The same where a product travels at `sent_bytes` an element and factors as they are.

    An all-reduce sends 2 (p - 1) / p products, an all-gather p - 1 pairs of factors.
    """
    rows, columns = weight.shape
    if wanted is False or (wanted is None and weight.nbytes < LEAST_BYTES):
        return 0
    size = weight.dtype.itemsize
    fewer = int(2 * sent_bytes * rows * columns / (world * size * (rows + columns)))
    return fewer if wanted else min(fewer // 2, _ROWS_BETWEEN_HOSTS)


def agreed_rows(everyone: torch.Tensor) -> dict[int, int]:
    """Parameters whose gradients travel as factors, with the room for their rows.

    Args:
        everyone (Tensor): int64, shape (ranks, parameters): rows of the one product that gave a
            parameter's gradient; 0 where something else did, or more rows than pay.
    """
    least, most = everyone.amin(0).tolist(), everyone.amax(0).tolist()
    return {i: most[i] for i, rows in enumerate(least) if rows > 0}
