"""Buckets of gradients: flat memory, a view for each parameter, and a flag for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

import lepton_kernels as lk
from lepton_train.distributed._factors import FactoredBucket
from lepton_train.distributed._transport import Transport

# Flags begin a block of compression of their own: beside them gradients would round to nothing.
FLAG_ALIGN = 256


class Bucket:
    """Gradients side by side, and behind them one flag each: 1 where this rank has a gradient.

    Flags are averaged with the gradients. So every rank learns which parameters no rank has
    used, without a message of its own.
    """

    def __init__(self, members: list[int], payload: int, flat: torch.Tensor) -> None:
        self.members = members
        self.payload = payload
        self.flat = flat
        self.flags = flat[payload : payload + len(members)]


def payload_of(plan: lk.PlannedBucket) -> int:
    """Element at which the flags begin."""
    return -(-plan.elements // FLAG_ALIGN) * FLAG_ALIGN


class BucketSet:
    """All buckets of a model, in the order in which they are reduced: that in which they fill.

    Args:
        parameters (Sequence[Parameter]): what has gradients.
        transport (Transport): allocates.
        order (Sequence[int]): in which gradients arrive.
        first_bytes, cap_bytes (int): sizes that the first bucket and the others should not exceed.
        factor_rows (Mapping[int, int]): parameters whose gradients travel as factors, in buckets
            of their own, and the most rows of theirs. Default: none.
    """

    def __init__(
        self,
        parameters: Sequence[torch.nn.Parameter],
        transport: Transport,
        order: Sequence[int],
        first_bytes: int,
        cap_bytes: int,
        factor_rows: Mapping[int, int] | None = None,
    ) -> None:
        factor_rows = factor_rows or {}
        together = [i for i in order if i not in factor_rows]
        plans = lk.plan_buckets(
            [parameters[i].numel() for i in together],
            [parameters[i].dtype for i in together],
            order=range(len(together)),
            first_bytes=first_bytes,
            cap_bytes=cap_bytes,
        )
        self.bucket_of = [0] * len(parameters)
        self.views: list[torch.Tensor] = [torch.empty(0)] * len(parameters)
        made: list[Bucket | FactoredBucket] = []
        for plan in plans:
            members = [together[i] for i in plan.members]
            payload = payload_of(plan)
            flat = transport.allocate(payload + len(members), plan.dtype)
            for member, offset in zip(members, plan.offsets, strict=True):
                self.views[member] = _view_like(parameters[member], flat, offset)
            made.append(Bucket(members, payload, flat))
        for i, rows in factor_rows.items():
            flat = transport.allocate(parameters[i].numel(), parameters[i].dtype)
            self.views[i] = _view_like(parameters[i], flat, 0)
            factors = transport.allocate_factors(parameters[i], rows)
            made.append(FactoredBucket(i, flat, self.views[i], factors))
        place = {index: at for at, index in enumerate(order)}
        self.buckets = sorted(made, key=lambda bucket: max(place[i] for i in bucket.members))
        for at, bucket in enumerate(self.buckets):
            for i in bucket.members:
                self.bucket_of[i] = at


def _view_like(parameter: torch.Tensor, flat: torch.Tensor, offset: int) -> torch.Tensor:
    """Part of `flat` with the parameter's shape, and its strides where they fill the part."""
    part = flat[offset : offset + parameter.numel()]
    dense = torch.empty_like(parameter, memory_format=torch.preserve_format, device="meta")
    if dense.stride() == parameter.stride():
        return part.as_strided(parameter.shape, parameter.stride())
    return part.view(parameter.shape)
