"""Buckets of gradients: flat memory, a view for each parameter, and a flag for each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import lepton_kernels as lk
from lepton_train.distributed._transport import Transport

# Flags begin a block of compression of their own: beside them gradients would round to nothing.
FLAG_ALIGN = 256


class Bucket:
    """Gradients side by side, and behind them one flag each: 1 where this rank has a gradient.

    Flags are averaged with the gradients. So every rank learns which parameters no rank has
    used, without a message of its own.
    """

    def __init__(self, plan: lk.PlannedBucket, flat: torch.Tensor) -> None:
        self.members = plan.members
        self.payload = payload_of(plan)
        self.flat = flat
        self.flags = flat[self.payload : self.payload + len(plan.members)]


def payload_of(plan: lk.PlannedBucket) -> int:
    """Element at which the flags begin."""
    return -(-plan.elements // FLAG_ALIGN) * FLAG_ALIGN


class BucketSet:
    """All buckets of a model, in the order in which they are reduced."""

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        transport: Transport,
        order: Sequence[int],
        first_bytes: int,
        cap_bytes: int,
    ) -> None:
        plans = lk.plan_buckets(
            [parameter.numel() for parameter in parameters],
            [parameter.dtype for parameter in parameters],
            order=order,
            first_bytes=first_bytes,
            cap_bytes=cap_bytes,
        )
        self.buckets: list[Bucket] = []
        self.bucket_of = [0] * len(parameters)
        self.views: list[torch.Tensor] = [torch.empty(0)] * len(parameters)
        for plan in plans:
            flat = transport.allocate(payload_of(plan) + len(plan.members), plan.dtype)
            bucket = Bucket(plan, flat)
            for member, offset in zip(plan.members, plan.offsets, strict=True):
                self.bucket_of[member] = len(self.buckets)
                self.views[member] = _view_like(parameters[member], flat, offset)
            self.buckets.append(bucket)


def _view_like(parameter: torch.Tensor, flat: torch.Tensor, offset: int) -> torch.Tensor:
    """Part of `flat` with the parameter's shape, and its strides where they fill the part."""
    part = flat[offset : offset + parameter.numel()]
    dense = torch.empty_like(parameter, memory_format=torch.preserve_format, device="meta")
    if dense.stride() == parameter.stride():
        return part.as_strided(parameter.shape, parameter.stride())
    return part.view(parameter.shape)
