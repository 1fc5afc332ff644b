"""The bound of an all-reduce between processes of one host: one pass of threads of one process."""

from __future__ import annotations

import torch

from lepton_kernels import _shm_arguments as arguments
from lepton_kernels import _shm_memory


def bucket_pass_seconds(
    numel: int, dtype: torch.dtype, *, threads: int = 2, rounds: int = 10
) -> float:
    """Seconds in which threads of this process add two buckets and write the sum to both.

    What no all-reduce between two processes of a host can beat: the same sums and the same
    traffic, without a message.

    Args:
        numel (int): elements of each bucket.
        dtype (torch.dtype): float32, bfloat16, float16, int8 or int64.
        threads (int): Default: 2.
        rounds (int): passes that the mean is taken of. Default: 10.

    Returns:
        float: seconds of a pass.

    Raises:
        ShmUnavailable: no compiled library. TypeError: dtype. ValueError: not positive.
    """
    if dtype not in arguments.TYPES:
        raise TypeError(f"bucket_pass_seconds: dtype must be one of {arguments.NAMES}, got {dtype}")
    size = numel * dtype.itemsize
    native = _shm_memory.native_module()
    return native.bucket_pass_seconds(
        size, arguments.TYPES[dtype], threads, rounds, _shm_memory.kernels_address()
    )
