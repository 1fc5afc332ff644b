# mypy: ignore-errors
# Kernels are in Triton's language, which has other types than Python.
"""Kernels of attention over a key-value cache: contiguous or paged, split along the keys.

Rows of a tile are the queries of all heads that share a key head: row r is query r % q_len of head
key_head * group + r // q_len. After "Flash-Decoding", Dao et al., 2023; pages: Kwon et al., 2023.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lepton_kernels.triton.attention_tile import LN2, LOG2E, key_range, scores, sequence_bounds


@triton.jit
def _places(physical, inside, block_table_row, page, pages, cache_batch, PAGED: tl.constexpr):
    """Batch (or page) and row in the cache of each key, and whether it is there."""
    if PAGED:
        entry = tl.load(block_table_row + physical // page, mask=inside, other=0)
        inside = inside & (entry >= 0) & (entry < pages)
        return entry, physical % page, inside
    else:
        return cache_batch + physical * 0, physical, inside


@triton.jit
def attention_cached_kernel(
    query, key, value, key_scale, value_scale, alibi_slopes, sinks, out, lse,
    cu_seqlens_q, seqlens_k, start_k, batch_index, block_table, tile_sequence, tile_row,
    score_scale, cap, window_left, window_right,
    heads, group, q_len, batch_count, capacity, page, pages, row_tiles, splits,
    stride_q_batch, stride_q_row, stride_q_head, stride_k_batch, stride_k_row, stride_k_head,
    stride_v_batch, stride_v_row, stride_v_head, stride_ks_batch, stride_ks_row, stride_ks_head,
    stride_vs_batch, stride_vs_row, stride_vs_head, stride_out_split, stride_out_batch,
    stride_out_row, stride_lse_split, stride_alibi_batch, stride_block_table,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, VARLEN: tl.constexpr, PAGED: tl.constexpr,
    INT8: tl.constexpr, START: tl.constexpr, INDEXED: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (row tiles * key heads * batch * splits,), batch 1 with VARLEN.

    out (splits, B, L, H, Dv) and lse (splits, B, H, L); each split is normalised by itself.
    """
    program = tl.program_id(0).to(tl.int64)
    key_heads = heads // group
    tile = (program % row_tiles).to(tl.int32)
    key_head = program // row_tiles % key_heads
    split = program // row_tiles // key_heads % splits
    batch = program // row_tiles // key_heads // splits
    q_total = q_len
    row_begin = program * 0
    sequence = batch
    first_row = tile * BLOCK_M
    if VARLEN:
        sequence = tl.load(tile_sequence + tile).to(tl.int64)
        first_row = tl.load(tile_row + tile)
        q_begin, q_len = sequence_bounds(cu_seqlens_q, sequence, q_total)
        row_begin += q_begin
    if first_row >= q_len * group:
        return
    start = 0
    if START:
        start = tl.maximum(tl.load(start_k + sequence), 0)
    k_len = tl.maximum(tl.minimum(tl.load(seqlens_k + sequence), capacity) - start, 0)
    cache_batch = sequence
    if INDEXED:
        cache_batch = tl.load(batch_index + sequence).to(tl.int64)
        cache_batch = tl.minimum(tl.maximum(cache_batch, 0), pages - 1)
    shift = k_len - q_len

    at_row = first_row + tl.arange(0, BLOCK_M)
    exists = at_row < q_len * group
    rows = at_row % q_len
    head = key_head * group + at_row // q_len
    dims = tl.arange(0, BLOCK_D)
    value_dims = tl.arange(0, BLOCK_DV)
    q_at = query + batch * stride_q_batch + (row_begin + rows.to(tl.int64)) * stride_q_row
    q_at += head * stride_q_head
    q_mask = exists[:, None] & (dims[None, :] < HEAD_DIM)
    q = tl.load(q_at[:, None] + dims[None, :], mask=q_mask, other=0.0)
    slope = tl.zeros((BLOCK_M,), tl.float32)
    if ALIBI:
        slope_at = alibi_slopes + sequence * stride_alibi_batch + head
        slope = tl.load(slope_at, mask=exists, other=0.0) * LOG2E
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    if SINKS:
        sink = tl.load(sinks + head, mask=exists, other=0.0) * LOG2E
        sink = tl.where(split == 0, sink, float("-inf"))
        peak = sink
        total = tl.where(sink == float("-inf"), 0.0, 1.0)
    acc = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)

    last_row = tl.minimum(first_row + BLOCK_M, q_len * group) - 1
    one_head = first_row // q_len == last_row // q_len
    begin, _, end = key_range(
        tl.where(one_head, first_row % q_len, 0), tl.where(one_head, last_row % q_len, q_len - 1),
        k_len, shift, window_left, window_right, LEFT, RIGHT, BLOCK_N,
    )  # fmt: skip
    share = (tl.maximum(end - begin, 0) + splits - 1) // splits
    share = (share + BLOCK_N - 1) // BLOCK_N * BLOCK_N
    begin = begin + split.to(tl.int32) * share
    end = tl.minimum(end, begin + share)
    block_table_row = block_table + sequence * stride_block_table
    for first_col in range(begin, end, BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        place, row, inside = _places(
            start + cols, cols < k_len, block_table_row, page, pages, cache_batch, PAGED
        )
        place, row = place.to(tl.int64), row.to(tl.int64)
        k_at = key + place * stride_k_batch + row * stride_k_row + key_head * stride_k_head
        k_mask = inside[:, None] & (dims[None, :] < HEAD_DIM)
        k = tl.load(k_at[:, None] + dims[None, :], mask=k_mask, other=0).to(q.dtype)
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        if INT8:
            # Whole numbers to 127 are exact in every dtype of q; steps come in by columns.
            step = key_scale + place * stride_ks_batch + row * stride_ks_row
            step += key_head * stride_ks_head
            products *= tl.load(step, mask=inside, other=0.0)[None, :]
        s, _ = scores(
            products, rows[:, None], cols[None, :], q_len, k_len, shift, score_scale, cap,
            slope[:, None], window_left, window_right, query, 0, 0,
            True, LEFT, RIGHT, SOFTCAP, ALIBI, 0,
        )  # fmt: skip
        s = tl.where(inside[None, :], s, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(s, 1))
        safe = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        p = tl.exp2(s - safe[:, None])
        shrink = tl.exp2(peak - safe)
        total = total * shrink + tl.sum(p, 1)
        v_at = value + place * stride_v_batch + row * stride_v_row + key_head * stride_v_head
        v_mask = inside[:, None] & (value_dims[None, :] < VALUE_DIM)
        v = tl.load(v_at[:, None] + value_dims[None, :], mask=v_mask, other=0).to(q.dtype)
        if INT8:
            step = value_scale + place * stride_vs_batch + row * stride_vs_row
            step += key_head * stride_vs_head
            p *= tl.load(step, mask=inside, other=0.0)[None, :]
        acc = tl.dot(p.to(q.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        peak = new_peak

    seen = total != 0
    safe_total = tl.where(seen, total, 1.0)
    acc = acc / safe_total[:, None]
    log_sum = tl.where(seen, peak * LN2 + tl.log(safe_total), float("-inf"))
    out_at = out + split * stride_out_split + batch * stride_out_batch
    out_at += (row_begin + rows.to(tl.int64)) * stride_out_row + head * VALUE_DIM
    tl.store(
        out_at[:, None] + value_dims[None, :],
        acc.to(out.dtype.element_ty),
        mask=exists[:, None] & (value_dims[None, :] < VALUE_DIM),
    )
    lse_at = lse + split * stride_lse_split + (batch * heads + head) * q_total + row_begin + rows
    tl.store(lse_at, log_sum, mask=exists)


@triton.jit
def attention_merge_kernel(
    partial, partial_lse, out, lse, splits, heads, q_len, row_count,
    stride_partial_split, stride_lse_split,
    VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr,
):  # fmt: skip
    """Splits into one result, in their order. Grid: (tiles of the B * H * L rows,)."""
    at_row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    exists = at_row < row_count
    head = at_row // q_len % heads
    place = (at_row // q_len // heads * q_len + at_row % q_len) * heads + head
    dims = tl.arange(0, BLOCK_DV)
    inside = exists[:, None] & (dims[None, :] < VALUE_DIM)
    at = place[:, None] * VALUE_DIM + dims[None, :]
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    for split in range(0, splits):
        offset = split * stride_lse_split.to(tl.int64)
        log_sum = tl.load(partial_lse + offset + at_row, mask=exists, other=float("-inf")) * LOG2E
        new_peak = tl.maximum(peak, log_sum)
        safe = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weight, shrink = tl.exp2(log_sum - safe), tl.exp2(peak - safe)
        offset = split * stride_partial_split.to(tl.int64)
        part = tl.load(partial + offset + at, mask=inside, other=0.0)
        # A split without keys may not have been written.
        part = tl.where(log_sum[:, None] == float("-inf"), 0.0, part)
        acc = acc * shrink[:, None] + part * weight[:, None]
        total = total * shrink + weight
        peak = new_peak
    seen = total != 0
    safe_total = tl.where(seen, total, 1.0)
    tl.store(out + at, (acc / safe_total[:, None]).to(out.dtype.element_ty), mask=inside)
    log_sum = tl.where(seen, peak * LN2 + tl.log(safe_total), float("-inf"))
    tl.store(lse + at_row, log_sum, mask=exists)
