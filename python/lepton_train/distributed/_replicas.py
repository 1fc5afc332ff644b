"""Replicas: made equal at the start, and checked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lepton_train.distributed._transport import Transport


def _named(module: nn.Module, with_buffers: bool = True) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in module.named_parameters():
        yield f"parameter {name}", parameter.detach()
    if with_buffers:
        for name, buffer in module.named_buffers():
            yield f"buffer {name}", buffer.detach()


def check_same_module(module: nn.Module, group: dist.ProcessGroup | None) -> None:
    """ValueError on every rank unless all have the same parameters; collective."""
    mine = [
        (name, str(p.dtype), list(p.shape), p.requires_grad)
        for name, p in module.named_parameters()
    ]
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    for rank, theirs in enumerate(everyone):
        if theirs == everyone[0]:
            continue
        for a, b in zip(everyone[0], theirs, strict=False):
            if a != b:
                raise ValueError(
                    f"BucketedDataParallel: ranks have different modules: rank 0 has parameter "
                    f"{_describe(a)}, rank {rank} has {_describe(b)}"
                )
        longer = max(everyone[0], theirs, key=len)
        shorter = min(len(everyone[0]), len(theirs))
        raise ValueError(
            f"BucketedDataParallel: ranks have different modules: rank 0 has {len(everyone[0])} "
            f"parameters, rank {rank} has {len(theirs)}; the first of the rest is "
            f"{_describe(longer[shorter])}"
        )


def _describe(entry: Any) -> str:
    name, dtype, shape, requires_grad = entry
    frozen = "" if requires_grad else ", frozen"
    return f"{name} ({dtype.removeprefix('torch.')}, {tuple(shape)}{frozen})"


@torch.no_grad()
def broadcast_module(module: nn.Module, transport: Transport) -> None:
    """Copy parameters and buffers of rank 0 to all; collective."""
    for _, tensor in _named(module):
        _broadcast(tensor, transport)


@torch.no_grad()
def broadcast_buffers(module: nn.Module, transport: Transport) -> None:
    """Copy buffers of rank 0 to all, those of one dtype in one message; collective."""
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for buffer in module.buffers():
        by_dtype.setdefault(buffer.dtype, []).append(buffer.detach())
    for buffers in by_dtype.values():
        if len(buffers) == 1:
            _broadcast(buffers[0], transport)
            continue
        flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
        transport.broadcast(flat, 0)
        for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
            buffer.copy_(part.view(buffer.shape))


def _broadcast(tensor: torch.Tensor, transport: Transport) -> None:
    if tensor.numel() == 0:
        return
    dense = tensor.contiguous()
    transport.broadcast(dense, 0)
    if dense is not tensor:
        tensor.copy_(dense)


@torch.no_grad()
def check_equal(module: nn.Module, group: dist.ProcessGroup | None, *, with_buffers: bool) -> None:
    """RuntimeError on every rank unless all hold the same bits; collective."""
    named = list(_named(module, with_buffers))
    sums = torch.tensor([_checksum(tensor) for _, tensor in named], dtype=torch.int64)
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, sums.tolist(), group=group)
    for i, (name, _) in enumerate(named):
        values = [theirs[i] for theirs in everyone]
        if len(set(values)) == 1:
            continue
        usual = max(set(values), key=values.count)
        ranks = [rank for rank, value in enumerate(values) if value != usual]
        raise RuntimeError(
            f"BucketedDataParallel: replicas differ: {name} on rank {ranks} is not what most "
            "ranks hold. A gradient or parameter was changed on some ranks only"
        )


def _checksum(tensor: torch.Tensor) -> int:
    """Of all bits and where they are; wraps."""
    data = tensor.contiguous().reshape(-1).view(torch.uint8).to("cpu", torch.int64)
    weight = torch.arange(1, data.numel() + 1) * 0x9E3779B1 ^ 0x5BD1E995
    return int((data * weight).sum().item())
