"""Launcher of attention over a key-value cache: `lepton::attention_cached`."""

from __future__ import annotations

import torch
import triton

from lepton_kernels import _dispatch
from lepton_kernels.ops._kvcache_checks import check_cached
from lepton_kernels.triton import launch
from lepton_kernels.triton.attention_cached_kernels import (
    attention_cached_kernel,
    attention_merge_kernel,
)
from lepton_kernels.triton.attention_call import (
    LOG2E,
    NO_LIMIT,
    check_dims,
    check_dtype,
    dense_rows,
    tiles_of,
)
from lepton_kernels.triton.attention_configs import cached_tile, padded, precision

_FEWEST_KEYS = 256  # of a split
_MOST_SPLITS = 64
_INTERPRETED_PROCESSORS = 8


def choose_splits(query: torch.Tensor, programs: int, capacity: int) -> int:
    """Splits of the keys that give every multiprocessor two programs; by shapes alone."""
    processors = _INTERPRETED_PROCESSORS
    if query.is_cuda and torch.cuda.is_available():
        processors = torch.cuda.get_device_properties(query.device).multi_processor_count
    wanted = 2 * processors // max(programs, 1)
    return max(1, min(wanted, capacity // _FEWEST_KEYS, _MOST_SPLITS))


def attention_cached(
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
    splits: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch attention over a cache: the arguments of `lepton::attention_cached`.

    Args:
        query (Tensor): (B, Lq, H, D) and so on, as `lepton_kernels.ops.kvcache` says.
        splits (int, optional): parts of the keys, each with programs of its own. Default: None,
            `choose_splits`.

    Returns:
        tuple: out (B, Lq, H, Dv) in the dtype of query, and lse (B, H, Lq) float32.

    Raises:
        NotImplementedError: float64, or a head dimension above 256.
        TypeError, ValueError: as the public functions. On a GPU the values of cu_seqlens_q,
            seqlens_k, start_k and block_table are not looked at, as that would wait for it: keys
            on pages that do not exist are hidden, and no other memory is read.
    """
    op = "attention_cached"
    check_cached(
        query, key, value, cu_seqlens_q, seqlens_k, start_k, batch_index, block_table, key_scale,
        value_scale, alibi_slopes, sinks, scale, window_left, window_right, softcap,
        values=query.device.type == "cpu",
    )  # fmt: skip
    launch.check_device(op, query)
    check_dtype(op, query)
    check_dims(op, query.shape[3], value.shape[3])
    query, key, value = dense_rows(query), dense_rows(key), dense_rows(value)
    batch, length, heads, head_dim = query.shape
    value_dim, key_heads = value.shape[3], key.shape[2]
    varlen = cu_seqlens_q is not None
    shape, rows = (batch, length, heads, value_dim), (batch, heads, length)
    if varlen:
        out, lse = query.new_zeros(shape), query.new_full(rows, -torch.inf, dtype=torch.float32)
    else:
        out, lse = query.new_empty(shape), query.new_empty(rows, dtype=torch.float32)
    sequences = seqlens_k.shape[0]
    if batch * heads * length == 0 or sequences == 0:
        return out, lse
    group = heads // key_heads
    paged = block_table is not None
    capacity = key.shape[1] * (block_table.shape[1] if block_table is not None else 1)
    tile = cached_tile(query.dtype, head_dim, value_dim, group * length // sequences)
    unused, tile_sequence, tile_row = query, query, query
    if cu_seqlens_q is not None:
        cu_seqlens_q = cu_seqlens_q.contiguous()
        tile_sequence, tile_row, row_tiles = tiles_of(cu_seqlens_q, length, tile.block_m, group)
    else:
        row_tiles = triton.cdiv(length * group, tile.block_m)
    if splits is None:
        splits = choose_splits(query, row_tiles * key_heads * batch, capacity)
    parts, parts_lse = out.unsqueeze(0), lse.unsqueeze(0)
    if splits > 1:
        parts = query.new_empty((splits, *shape), dtype=torch.float32)
        # Rows behind the last sequence are not written.
        parts_lse = query.new_full((splits, *rows), -torch.inf, dtype=torch.float32)
    slopes = None if alibi_slopes is None else alibi_slopes.float().contiguous()

    def or_unused(tensor: torch.Tensor | None) -> torch.Tensor:
        return unused if tensor is None else tensor.contiguous()

    k_steps = (0, 0, 0) if key_scale is None else key_scale.stride()
    v_steps = (0, 0, 0) if value_scale is None else value_scale.stride()
    launch.wrap(attention_cached_kernel)[(row_tiles * key_heads * batch * splits,)](
        query, key, value,
        unused if key_scale is None else key_scale,
        unused if value_scale is None else value_scale,
        unused if slopes is None else slopes,
        unused if sinks is None else sinks.float().contiguous(),
        parts, parts_lse, or_unused(cu_seqlens_q), seqlens_k.contiguous(), or_unused(start_k),
        or_unused(batch_index), or_unused(block_table), tile_sequence, tile_row,
        score_scale=scale / softcap if softcap > 0 else scale * LOG2E,
        cap=softcap * LOG2E,
        window_left=min(window_left, NO_LIMIT),
        window_right=min(window_right, NO_LIMIT),
        heads=heads, group=group, q_len=length, batch_count=sequences, capacity=capacity,
        page=key.shape[1], pages=key.shape[0], row_tiles=row_tiles, splits=splits,
        stride_q_batch=query.stride(0), stride_q_row=query.stride(1), stride_q_head=query.stride(2),
        stride_k_batch=key.stride(0), stride_k_row=key.stride(1), stride_k_head=key.stride(2),
        stride_v_batch=value.stride(0), stride_v_row=value.stride(1), stride_v_head=value.stride(2),
        stride_ks_batch=k_steps[0], stride_ks_row=k_steps[1], stride_ks_head=k_steps[2],
        stride_vs_batch=v_steps[0], stride_vs_row=v_steps[1], stride_vs_head=v_steps[2],
        stride_out_split=parts.stride(0), stride_out_batch=parts.stride(1),
        stride_out_row=parts.stride(2), stride_lse_split=parts_lse.stride(0),
        stride_alibi_batch=heads if slopes is not None and slopes.dim() == 2 else 0,
        stride_block_table=0 if block_table is None else block_table.shape[1],
        HEAD_DIM=head_dim, VALUE_DIM=value_dim, BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        BLOCK_D=padded(head_dim), BLOCK_DV=padded(value_dim), VARLEN=varlen, PAGED=paged,
        INT8=key.dtype == torch.int8, START=start_k is not None, INDEXED=batch_index is not None,
        LEFT=window_left >= 0, RIGHT=window_right >= 0, SOFTCAP=softcap > 0,
        ALIBI=slopes is not None, SINKS=sinks is not None, PRECISION=precision(query.dtype),
        num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    if splits > 1:
        count = batch * heads * length
        launch.wrap(attention_merge_kernel)[(triton.cdiv(count, 4),)](
            parts, parts_lse, out, lse, splits, heads, length, count,
            parts.stride(0), parts_lse.stride(0),
            VALUE_DIM=value_dim, BLOCK_M=4, BLOCK_DV=padded(value_dim), num_warps=4,
        )  # fmt: skip
    return out, lse


_dispatch.register_triton("attention_cached", attention_cached)
