# mypy: ignore-errors
# Kernels are in Triton's language, which has other types than Python.
"""Kernel of the attention forward: one program per block of queries and head.

Online softmax after Milakov and Gimelshein, 2018; tiling after Dao, "FlashAttention-2", 2023.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lepton_kernels.triton.attention_tile import (
    LN2,
    LOG2E,
    dropout_keep,
    key_range,
    load_rows,
    scores,
    sequence_bounds,
    store_rows,
)


@triton.jit
def _attend(
    acc, peak, total, q, key_base, value_base, stride_k_row, stride_v_row, bias_base,
    stride_bias_row, stride_bias_col, rng_state, plane, rows, begin, end,
    q_len, k_len, shift, score_scale, cap, slope, window_left, window_right, dropout_below,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, MASKED: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, BIAS: tl.constexpr,
    DROPOUT: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Blocks of keys from begin to end, taken into the running output, maximum and sum.

    PLAIN: a score is its product times a positive scale, which a multiply-add takes into exp2.
    """
    for first_col in range(begin, end, BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        k = load_rows(key_base, cols, stride_k_row, k_len, HEAD_DIM, BLOCK_D, not MASKED)
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s, _ = scores(
            products, rows[:, None], cols[None, :], q_len, k_len, shift,
            1.0 if PLAIN else score_scale, cap, slope, window_left, window_right,
            bias_base, stride_bias_row, stride_bias_col, MASKED, LEFT, RIGHT, SOFTCAP, ALIBI, BIAS,
        )  # fmt: skip
        block_peak = tl.max(s, 1)
        if PLAIN:
            block_peak = block_peak * score_scale
        new_peak = tl.maximum(peak, block_peak)
        # A row that has seen nothing keeps -inf; subtract 0 there, as inf - inf is no number.
        safe = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        if PLAIN:
            p = tl.exp2(s * score_scale - safe[:, None])
        else:
            p = tl.exp2(s - safe[:, None])
        shrink = tl.exp2(peak - safe)
        total = total * shrink + tl.sum(p, 1)
        if DROPOUT:
            keep = dropout_keep(rng_state, plane, rows, first_col, dropout_below, BLOCK_M, BLOCK_N)
            p = tl.where(keep, p, 0.0)
        v = load_rows(value_base, cols, stride_v_row, k_len, VALUE_DIM, BLOCK_DV, not MASKED)
        acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None], input_precision=PRECISION)
        peak = new_peak
    return acc, peak, total


@triton.jit
def attention_forward_kernel(
    query, key, value, bias, alibi_slopes, sinks, rng_state, out, lse,
    cu_seqlens_q, cu_seqlens_k, tile_sequence, tile_row,
    score_scale, cap, window_left, window_right, dropout_below, dropout_scale,
    heads, group, q_len, k_len, row_tiles,
    stride_q_batch, stride_q_row, stride_q_head, stride_k_batch, stride_k_row, stride_k_head,
    stride_v_batch, stride_v_row, stride_v_head, stride_out_batch, stride_out_row,
    stride_bias_batch, stride_bias_head, stride_bias_row, stride_bias_col, stride_alibi_batch,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, VARLEN: tl.constexpr,
    BOTTOM_RIGHT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, BIAS: tl.constexpr, SINKS: tl.constexpr, DROPOUT: tl.constexpr,
    ONE_LOOP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (row tiles * heads * batch,); out (B, L, H, Dv) and lse (B, H, L) are dense."""
    program = tl.program_id(0).to(tl.int64)
    tile = (program % row_tiles).to(tl.int32)
    head = program // row_tiles % heads
    batch = program // row_tiles // heads
    q_total = q_len
    if VARLEN:
        sequence = tl.load(tile_sequence + tile)
        first_row = tl.load(tile_row + tile)
        q_begin, q_len = sequence_bounds(cu_seqlens_q, sequence, q_total)
        k_begin, k_len = sequence_bounds(cu_seqlens_k, sequence, k_len)
        plane = sequence * heads + head
    else:
        # Late queries see most keys under a causal mask: the longest programs go first.
        first_row = (row_tiles - 1 - tile) * BLOCK_M
        sequence = batch
        q_begin = 0
        k_begin = 0
        plane = batch * heads + head
    if first_row >= q_len:
        return
    rows = first_row + tl.arange(0, BLOCK_M)
    shift = k_len - q_len if BOTTOM_RIGHT else 0
    row_begin = q_begin.to(tl.int64) if VARLEN else program * 0
    key_begin = k_begin.to(tl.int64) if VARLEN else program * 0
    key_head = head // group
    q_base = query + batch * stride_q_batch + row_begin * stride_q_row + head * stride_q_head
    key_base = key + batch * stride_k_batch + key_begin * stride_k_row + key_head * stride_k_head
    value_base = (
        value + batch * stride_v_batch + key_begin * stride_v_row + key_head * stride_v_head
    )
    bias_base = bias + batch * stride_bias_batch + head * stride_bias_head
    q = load_rows(q_base, rows, stride_q_row, q_len, HEAD_DIM, BLOCK_D, False)
    slope = 0.0
    if ALIBI:
        slope = tl.load(alibi_slopes + sequence * stride_alibi_batch + head) * LOG2E

    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    if SINKS:
        sink = tl.load(sinks + head) * LOG2E
        peak = tl.zeros((BLOCK_M,), tl.float32) + sink
        total += tl.where(sink == float("-inf"), 0.0, 1.0)
    acc = tl.zeros((BLOCK_M, BLOCK_DV), tl.float32)
    last_row = tl.minimum(first_row + BLOCK_M, q_len) - 1
    begin, full_end, end = key_range(
        first_row, last_row, k_len, shift, window_left, window_right, LEFT, RIGHT, BLOCK_N
    )
    if ONE_LOOP:
        full_end = begin
    else:
        acc, peak, total = _attend(
            acc, peak, total, q, key_base, value_base, stride_k_row, stride_v_row, bias_base,
            stride_bias_row, stride_bias_col, rng_state, plane, rows, begin, full_end,
            q_len, k_len, shift, score_scale, cap, slope, window_left, window_right, dropout_below,
            HEAD_DIM, VALUE_DIM, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, False, LEFT, RIGHT,
            SOFTCAP, ALIBI, BIAS, DROPOUT, not ONE_LOOP, PRECISION,
        )  # fmt: skip
    acc, peak, total = _attend(
        acc, peak, total, q, key_base, value_base, stride_k_row, stride_v_row, bias_base,
        stride_bias_row, stride_bias_col, rng_state, plane, rows, full_end, end,
        q_len, k_len, shift, score_scale, cap, slope, window_left, window_right, dropout_below,
        HEAD_DIM, VALUE_DIM, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, True, LEFT, RIGHT,
        SOFTCAP, ALIBI, BIAS, DROPOUT, not ONE_LOOP, PRECISION,
    )  # fmt: skip

    seen = total != 0
    safe_total = tl.where(seen, total, 1.0)
    acc = acc / safe_total[:, None]
    if DROPOUT:
        acc = acc * dropout_scale
    out_base = out + batch * stride_out_batch + row_begin * stride_out_row + head * VALUE_DIM
    store_rows(out_base, rows, stride_out_row, q_len, acc, VALUE_DIM, BLOCK_DV)
    log_sum = tl.where(seen, peak * LN2 + tl.log(safe_total), float("-inf"))
    lse_base = lse + (batch * heads + head) * q_total + row_begin
    tl.store(lse_base + rows, log_sum, mask=rows < q_len)
