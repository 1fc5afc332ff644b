"""The size of buckets from what a message costs here."""

from __future__ import annotations

import statistics
import time

import torch

import lepton_kernels as lk
from lepton_train.distributed._transport import Transport

_LARGE_BYTES = 4 << 20
_SMALL = 64
_ROUNDS = 5


def measured_cap_bytes(transport: Transport, dtype: torch.dtype) -> int:
    """Bucket size at which latency costs 5 % of what bandwidth does; collective.

    Returns:
        int: bytes, between 256 KiB and 64 MiB; rank 0's measurement, the same on all ranks.
    """
    flat = transport.allocate(_LARGE_BYTES // dtype.itemsize, dtype)
    few = transport.allocate(_SMALL, dtype)

    def seconds(part: torch.Tensor) -> float:
        times = []
        for _ in range(_ROUNDS):
            begin = time.perf_counter()
            transport.start(0, part, 0)
            transport.finish()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)

    seconds(flat)  # the first touch of the memory is no message
    small, large = seconds(few), seconds(flat)
    bandwidth = _LARGE_BYTES / max(large - small, 1e-9)
    cap = torch.tensor([lk.tuned_bucket_bytes(max(small, 1e-9), bandwidth)], device=flat.device)
    transport.broadcast(cap, 0)
    transport.release(flat)
    transport.release(few)
    transport.forget()
    return int(cap.item())
