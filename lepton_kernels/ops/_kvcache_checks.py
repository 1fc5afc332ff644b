"""Argument checks of the cached attention op."""

from __future__ import annotations

import torch

from lepton_kernels.ops._attention_checks import (
    ATTENTION_DTYPES,
    Call,
    check_cu_seqlens,
    check_heads,
    check_options,
    check_per_head,
)
from lepton_kernels.ops._checks import check_device, check_dtype, check_tensor, shape_error

_DEFAULT_CALL = Call("attention_cached")


def _check_ints(
    op: str, name: str, value: torch.Tensor | None, batch: int, low: int, high: int, values: bool
) -> None:
    if value is None:
        return
    check_tensor(op, name, value)
    check_dtype(op, name, value, (torch.int32,))
    if tuple(value.shape) != (batch,):
        shape_error(op, name, f"({batch},)", value.shape)
    if values:
        for i, item in enumerate(value.tolist()):
            if not low <= item <= high:
                raise ValueError(f"{op}: {name} must be from {low} to {high}, got {item} at {i}")


def _check_scale(op: str, name: str, scale: torch.Tensor | None, cache: torch.Tensor) -> None:
    if (scale is not None) != (cache.dtype == torch.int8):
        got = "None" if scale is None else f"a Tensor with a {cache.dtype} cache"
        raise TypeError(f"{op}: {name} must be given exactly with an int8 cache, got {got}")
    if scale is not None:
        check_tensor(op, name, scale)
        check_dtype(op, name, scale, (torch.float32,))
        if scale.shape != cache.shape[:3]:
            shape_error(op, name, f"{tuple(cache.shape[:3])}", scale.shape, "to match its cache")


def check_cached(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    seqlens_k: torch.Tensor,
    start_k: torch.Tensor | None,
    batch_index: torch.Tensor | None,
    block_table: torch.Tensor | None,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    scale: float,
    window_left: int,
    window_right: int,
    softcap: float,
    *,
    call: Call = _DEFAULT_CALL,
    values: bool = True,
) -> None:
    """Every error of `attention_cached`; `values` False leaves out what needs data."""
    op = call.op
    named = ((call.query, query), (call.key, key), (call.value, value))
    for name, tensor in named:
        check_tensor(op, name, tensor)
        if tensor.dim() != 4:
            shape_error(op, name, call.layout, tensor.shape)
        check_device(op, name, tensor, query)
    check_dtype(op, call.query, query, ATTENTION_DTYPES)
    for name, cache in named[1:]:
        check_dtype(op, name, cache, (query.dtype, torch.int8))
    if key.dtype != value.dtype:
        raise TypeError(
            f"{op}: {call.value} must be {key.dtype} like {call.key}, got {value.dtype}"
        )
    if key.shape[3] != query.shape[3]:
        raise ValueError(
            f"{op}: {call.key} must have the head dimension {query.shape[3]} of {call.query}, "
            f"got {key.shape[3]}"
        )
    if value.shape[:2] != key.shape[:2]:
        shape_error(op, call.value, f"{tuple(key.shape[:2])} + (heads, head_dim)", value.shape)
    check_heads(call, query.shape[2], key.shape[2], value.shape[2])
    check_options(call, (window_left, window_right), softcap, 0.0, scale)
    _check_scale(op, "k_scale", key_scale, key)
    _check_scale(op, "v_scale", value_scale, value)
    batch = query.shape[0]
    if cu_seqlens_q is not None:
        total = query.shape[1] if values else None
        check_cu_seqlens(op, "cu_seqlens_q", cu_seqlens_q, query, total)
        batch = cu_seqlens_q.shape[0] - 1
    capacity = key.shape[1]
    if block_table is not None:
        check_tensor(op, "block_table", block_table)
        check_dtype(op, "block_table", block_table, (torch.int32,))
        if batch_index is not None:
            raise NotImplementedError(
                f"{op}: cache_batch_idx with block_table does not exist; choose the rows of "
                "block_table instead"
            )
        if block_table.dim() != 2 or block_table.shape[0] != batch:
            shape_error(op, "block_table", f"({batch}, pages)", block_table.shape)
        capacity *= block_table.shape[1]
    elif batch_index is None and key.shape[0] != batch:
        raise ValueError(
            f"{op}: {call.key} must have the batch size {batch} of {call.query}, got {key.shape[0]}"
        )
    _check_ints(op, call.lengths, seqlens_k, batch, 0, capacity, values)
    _check_ints(op, "cache_leftpad", start_k, batch, 0, capacity, values)
    _check_ints(op, "cache_batch_idx", batch_index, batch, 0, key.shape[0] - 1, values)
    check_per_head(call, alibi_slopes, sinks, batch, query.shape[2], query)
    if values and block_table is not None:
        check_pages(op, block_table, seqlens_k, start_k, key.shape[1], key.shape[0])


def check_pages(
    op: str,
    block_table: torch.Tensor,
    seqlens_k: torch.Tensor,
    start_k: torch.Tensor | None,
    page: int,
    pages: int,
) -> None:
    """ValueError if the pages in use are not all in the cache."""
    starts = [0] * len(seqlens_k) if start_k is None else start_k.tolist()
    for b, (start, end) in enumerate(zip(starts, seqlens_k.tolist(), strict=True)):
        if end <= start:
            continue
        for j in range(start // page, (end - 1) // page + 1):
            got = int(block_table[b, j])
            if not 0 <= got < pages:
                raise ValueError(
                    f"{op}: block_table must point to pages 0 to {pages - 1}, got {got} at "
                    f"({b}, {j})"
                )
