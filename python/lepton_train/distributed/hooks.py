"""Communication hooks for torch's own DistributedDataParallel.

Annotations are evaluated here, not postponed: DDP compares them with the types that it expects.
"""

from typing import Any

import torch
import torch.distributed as dist

from lepton_train.distributed._two_shot import Pipeline

# By (state, kind): DDP uses its group for other things at the same time, a pipeline has its own.
_PIPELINES: dict[tuple[Any, str], Pipeline] = {}


def _hook(
    kind: str, state: dist.ProcessGroup | None, bucket: dist.GradBucket
) -> torch.futures.Future[torch.Tensor]:
    if state is not None and not isinstance(state, dist.ProcessGroup):
        raise TypeError(
            f"{kind}_hook: state must be a ProcessGroup or None, got {type(state).__name__}"
        )
    pipeline = _PIPELINES.get((state, kind))
    if pipeline is None:
        pipeline = _PIPELINES[(state, kind)] = Pipeline(kind, state)
    flat = bucket.buffer()
    # DDP numbers the buckets of every model from 0; the parameter tells models apart.
    key = (bucket.parameters()[0].data_ptr(), flat.numel())
    parts = pipeline.submit(flat, key)

    def averaged(done: torch.futures.Future[list[torch.futures.Future[None]]]) -> torch.Tensor:
        for part in done.value():
            part.value()  # raises what the part raised
        return flat

    return torch.futures.collect_all(parts).then(averaged)


def int8_hook(
    state: dist.ProcessGroup | None, bucket: dist.GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket of torch's DDP with int8 both ways: a quarter of the traffic.

    Two-shot (reduce-scatter, then all-gather), a scale for each 256 elements, error feedback on
    both halves, in float32. All ranks end with the same bits. Costs a float32 copy of the
    gradients, and of this rank's share, for what rounding took. The first call makes process
    groups: collective.

    Args:
        state (ProcessGroup, optional): the ranks; None for all.
        bucket (GradBucket): from DDP; float32, bfloat16 or float16.

    Returns:
        Future[Tensor]: the averaged bucket, shape and dtype of `bucket.buffer()`. Raises what
            torch.distributed raises where a rank failed.

    Raises:
        TypeError: state is something else.

    Source: error feedback on both halves as in Tang et al., "DoubleSqueeze", 2019,
    arXiv:1905.05957.

    Example:
        >>> ddp.register_comm_hook(None, lt.distributed.int8_hook)    # doctest: +SKIP
    """
    return _hook("int8", state, bucket)


def bf16_hook(
    state: dist.ProcessGroup | None, bucket: dist.GradBucket
) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket of torch's DDP with bfloat16 both ways: half of the traffic.

    As `int8_hook`, with bfloat16 in place of int8. Unlike with torch's `bf16_compress_hook` sums
    are float32, and what rounding takes is added the next time.

    Args:
        state (ProcessGroup, optional): the ranks; None for all.
        bucket (GradBucket): from DDP; float32, bfloat16 or float16.

    Returns:
        Future[Tensor]: the averaged bucket, shape and dtype of `bucket.buffer()`. Raises what
            torch.distributed raises where a rank failed.

    Raises:
        TypeError: state is something else.

    Source: as `int8_hook`.

    Example:
        >>> ddp.register_comm_hook(None, lt.distributed.bf16_hook)    # doctest: +SKIP
    """
    return _hook("bf16", state, bucket)
