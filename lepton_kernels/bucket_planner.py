"""Which gradient goes into which bucket."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lepton_kernels._backend import LIBRARY

_native: Any = None
if LIBRARY is not None:
    _native = importlib.import_module("lepton_kernels._native")


@dataclass(frozen=True)
class PlannedBucket:
    """One bucket: indices of its gradients, where each begins, elements in all, dtype."""

    members: list[int]
    offsets: list[int]
    elements: int
    dtype: torch.dtype


def plan_buckets(
    elements: Sequence[int],
    dtypes: Sequence[torch.dtype],
    *,
    order: Sequence[int] | None = None,
    first_bytes: int = 1 << 20,
    cap_bytes: int = 25 << 20,
) -> list[PlannedBucket]:
    """Fill buckets with gradients in the order in which they become ready.

    Args:
        elements (Sequence[int]): of each gradient.
        dtypes (Sequence[torch.dtype]): of each; a bucket holds one dtype.
        order (Sequence[int], optional): indices of the gradients as they become ready.
            Default: None, from the last to the first.
        first_bytes (int): cap of the first bucket: small, so that communication starts early.
            Default: 1 MiB.
        cap_bytes (int): cap of the others; a larger gradient has a bucket of its own.
            Default: 25 MiB.

    Returns:
        list[PlannedBucket]: in the order in which they fill. Offsets are multiples of 64 bytes.

    Raises:
        ValueError: lengths differ, a cap is not positive, or order is not a permutation.
        RuntimeError: the compiled library is absent.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> [b.members for b in lk.plan_buckets([10, 20], [torch.float32] * 2)]
        [[1, 0]]
    """
    if _native is None:
        raise RuntimeError("plan_buckets: needs the compiled library, which is absent")
    numbers = {dtype: i for i, dtype in enumerate(dict.fromkeys(dtypes))}
    order = range(len(elements))[::-1] if order is None else order
    plan = _native.plan_buckets(
        list(elements),
        [dtype.itemsize for dtype in dtypes],
        [numbers[dtype] for dtype in dtypes],
        list(order),
        first_bytes,
        cap_bytes,
    )
    return [
        PlannedBucket(members, offsets, count, dtypes[members[0]])
        for members, offsets, count in plan
    ]


def tuned_bucket_bytes(latency: float, bandwidth: float, *, overhead: float = 0.05) -> int:
    """Size of bucket at which latency costs `overhead` of the time that bandwidth alone takes.

    Args:
        latency (float): seconds that an empty message takes.
        bandwidth (float): bytes a second of a large one.
        overhead (float): share that is accepted. Default: 0.05.

    Returns:
        int: bytes, between 256 KiB and 64 MiB.

    Raises:
        ValueError: an argument is not positive. RuntimeError: no compiled library.
    """
    if _native is None:
        raise RuntimeError("tuned_bucket_bytes: needs the compiled library, which is absent")
    return _native.tuned_bucket_bytes(latency, bandwidth, overhead)
