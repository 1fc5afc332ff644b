# mypy: ignore-errors
# Kernels are in Triton's language, which has other types than Python.
"""Kernels of the attention backward. No atomics: each result is summed in one program, in order.

`delta` is rowsum(grad_out * out) - grad_lse, after Dao, "FlashAttention-2", 2023. Gradients of
queries, and of keys and values, have a kernel each, which computes the probabilities anew.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lepton_kernels.triton.attention_tile import (
    LOG2E,
    dropout_keep,
    key_range,
    load_rows,
    query_range,
    scores,
    sequence_bounds,
    store_rows,
)


@triton.jit
def attention_delta_kernel(
    grad_out, out, grad_lse, delta, heads, rows_total, row_tiles,
    stride_g_batch, stride_g_row, stride_g_head, stride_out_batch, stride_out_row,
    VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr,
    GRAD_LSE: tl.constexpr,
):  # fmt: skip
    """Grid: (row tiles * heads * batch,); grad_lse and delta (B, H, L) are dense."""
    program = tl.program_id(0).to(tl.int64)
    rows = (program % row_tiles).to(tl.int32) * BLOCK_M + tl.arange(0, BLOCK_M)
    head = program // row_tiles % heads
    batch = program // row_tiles // heads
    g_base = grad_out + batch * stride_g_batch + head * stride_g_head
    out_base = out + batch * stride_out_batch + head * VALUE_DIM
    g = load_rows(g_base, rows, stride_g_row, rows_total, VALUE_DIM, BLOCK_DV, False)
    o = load_rows(out_base, rows, stride_out_row, rows_total, VALUE_DIM, BLOCK_DV, False)
    total = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
    at = (batch * heads + head) * rows_total + rows
    inside = rows < rows_total
    if GRAD_LSE:
        total -= tl.load(grad_lse + at, mask=inside, other=0.0)
    tl.store(delta + at, total, mask=inside)


@triton.jit
def row_values(base, rows, limit, scale):
    """lse or delta of rows; -inf, of rows that see nothing, as 0 (their scores are -inf)."""
    x = tl.load(base + rows, mask=rows < limit, other=0.0)
    return tl.where(x == float("-inf"), 0.0, x) * scale


@triton.jit
def _query_steps(
    grad_q, q, g, lse2, delta_rows, key_base, value_base, stride_k_row, stride_v_row, bias_base,
    stride_bias_row, stride_bias_col, rng_state, plane, rows, begin, end, q_len, k_len, shift,
    score_scale, cap, slope, window_left, window_right, dropout_below, dropout_scale,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, MASKED: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, BIAS: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    for first_col in range(begin, end, BLOCK_N):
        cols = first_col + tl.arange(0, BLOCK_N)
        k = load_rows(key_base, cols, stride_k_row, k_len, HEAD_DIM, BLOCK_D, not MASKED)
        v = load_rows(value_base, cols, stride_v_row, k_len, VALUE_DIM, BLOCK_DV, not MASKED)
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s, capped = scores(
            products, rows[:, None], cols[None, :], q_len, k_len, shift, score_scale, cap, slope,
            window_left, window_right, bias_base, stride_bias_row, stride_bias_col,
            MASKED, LEFT, RIGHT, SOFTCAP, ALIBI, BIAS,
        )  # fmt: skip
        p = tl.exp2(s - lse2[:, None])
        grad_p = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            keep = dropout_keep(rng_state, plane, rows, first_col, dropout_below, BLOCK_M, BLOCK_N)
            grad_p = tl.where(keep, grad_p * dropout_scale, 0.0)
        grad_s = p * (grad_p - delta_rows[:, None])
        if SOFTCAP:
            grad_s = grad_s * (1.0 - capped * capped)
        grad_q = tl.dot(grad_s.to(k.dtype), k, grad_q, input_precision=PRECISION)
    return grad_q


@triton.jit
def attention_backward_query_kernel(
    query, key, value, bias, alibi_slopes, rng_state, grad_out, lse, delta, grad_query,
    cu_seqlens_q, cu_seqlens_k, tile_sequence, tile_row,
    scale, score_scale, cap, window_left, window_right, dropout_below, dropout_scale,
    heads, group, q_len, k_len, row_tiles,
    stride_q_batch, stride_q_row, stride_q_head, stride_k_batch, stride_k_row, stride_k_head,
    stride_v_batch, stride_v_row, stride_v_head, stride_g_batch, stride_g_row, stride_g_head,
    stride_gq_batch, stride_gq_row,
    stride_bias_batch, stride_bias_head, stride_bias_row, stride_bias_col, stride_alibi_batch,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, VARLEN: tl.constexpr,
    BOTTOM_RIGHT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr, ONE_LOOP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (row tiles * heads * batch,); grad_query (B, L, H, D) is dense."""
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
    g_base = grad_out + batch * stride_g_batch + row_begin * stride_g_row + head * stride_g_head
    key_base = key + batch * stride_k_batch + key_begin * stride_k_row + key_head * stride_k_head
    value_base = (
        value + batch * stride_v_batch + key_begin * stride_v_row + key_head * stride_v_head
    )
    bias_base = bias + batch * stride_bias_batch + head * stride_bias_head
    q = load_rows(q_base, rows, stride_q_row, q_len, HEAD_DIM, BLOCK_D, False)
    g = load_rows(g_base, rows, stride_g_row, q_len, VALUE_DIM, BLOCK_DV, False)
    row_base = (batch * heads + head) * q_total + row_begin
    lse2 = row_values(lse + row_base, rows, q_len, LOG2E)
    delta_rows = row_values(delta + row_base, rows, q_len, 1.0)
    slope = 0.0
    if ALIBI:
        slope = tl.load(alibi_slopes + sequence * stride_alibi_batch + head) * LOG2E

    grad_q = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    last_row = tl.minimum(first_row + BLOCK_M, q_len) - 1
    begin, full_end, end = key_range(
        first_row, last_row, k_len, shift, window_left, window_right, LEFT, RIGHT, BLOCK_N
    )
    if ONE_LOOP:
        full_end = begin
    else:
        grad_q = _query_steps(
            grad_q, q, g, lse2, delta_rows, key_base, value_base, stride_k_row, stride_v_row,
            bias_base, stride_bias_row, stride_bias_col, rng_state, plane, rows, begin, full_end,
            q_len, k_len, shift, score_scale, cap, slope, window_left, window_right,
            dropout_below, dropout_scale, HEAD_DIM, VALUE_DIM, BLOCK_M, BLOCK_N, BLOCK_D,
            BLOCK_DV, False, LEFT, RIGHT, SOFTCAP, ALIBI, BIAS, DROPOUT, PRECISION,
        )  # fmt: skip
    grad_q = _query_steps(
        grad_q, q, g, lse2, delta_rows, key_base, value_base, stride_k_row, stride_v_row,
        bias_base, stride_bias_row, stride_bias_col, rng_state, plane, rows, full_end, end,
        q_len, k_len, shift, score_scale, cap, slope, window_left, window_right,
        dropout_below, dropout_scale, HEAD_DIM, VALUE_DIM, BLOCK_M, BLOCK_N, BLOCK_D,
        BLOCK_DV, True, LEFT, RIGHT, SOFTCAP, ALIBI, BIAS, DROPOUT, PRECISION,
    )  # fmt: skip
    gq_base = grad_query + batch * stride_gq_batch + row_begin * stride_gq_row + head * HEAD_DIM
    store_rows(gq_base, rows, stride_gq_row, q_len, grad_q * scale, HEAD_DIM, BLOCK_D)


@triton.jit
def _key_steps(
    grad_k, grad_v, k, v, q_base, g_base, stride_q_row, stride_g_row, lse_base, delta_base,
    bias_base, stride_bias_row, stride_bias_col, rng_state, plane, first_col, begin, end,
    q_len, k_len, shift, score_scale, cap, slope, window_left, window_right,
    dropout_below, dropout_scale,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, MASKED: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, BIAS: tl.constexpr,
    DROPOUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    # Tiles of scores lie transposed here, so that no product needs to turn one in registers.
    cols = first_col + tl.arange(0, BLOCK_N)
    for first_row in range(begin, end, BLOCK_M):
        rows = first_row + tl.arange(0, BLOCK_M)
        # Rows behind the last are zero, and add nothing also where their scores are not masked.
        q = load_rows(q_base, rows, stride_q_row, q_len, HEAD_DIM, BLOCK_D, False)
        g = load_rows(g_base, rows, stride_g_row, q_len, VALUE_DIM, BLOCK_DV, False)
        lse2 = row_values(lse_base, rows, q_len, LOG2E)
        delta_rows = row_values(delta_base, rows, q_len, 1.0)
        products = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        s, capped = scores(
            products, rows[None, :], cols[:, None], q_len, k_len, shift, score_scale, cap, slope,
            window_left, window_right, bias_base, stride_bias_row, stride_bias_col,
            MASKED, LEFT, RIGHT, SOFTCAP, ALIBI, BIAS,
        )  # fmt: skip
        p = tl.exp2(s - lse2[None, :])
        grad_p = tl.dot(v, tl.trans(g), input_precision=PRECISION)
        kept = p
        if DROPOUT:
            keep = tl.trans(
                dropout_keep(rng_state, plane, rows, first_col, dropout_below, BLOCK_M, BLOCK_N)
            )
            kept = tl.where(keep, p * dropout_scale, 0.0)
            grad_p = tl.where(keep, grad_p * dropout_scale, 0.0)
        grad_v = tl.dot(kept.to(g.dtype), g, grad_v, input_precision=PRECISION)
        grad_s = p * (grad_p - delta_rows[None, :])
        if SOFTCAP:
            grad_s = grad_s * (1.0 - capped * capped)
        grad_k = tl.dot(grad_s.to(q.dtype), q, grad_k, input_precision=PRECISION)
    return grad_k, grad_v


@triton.jit
def attention_backward_key_kernel(
    query, key, value, bias, alibi_slopes, rng_state, grad_out, lse, delta, grad_key, grad_value,
    cu_seqlens_q, cu_seqlens_k, tile_sequence, tile_row,
    scale, score_scale, cap, window_left, window_right, dropout_below, dropout_scale,
    heads, group, q_len, k_len, key_tiles,
    stride_q_batch, stride_q_row, stride_q_head, stride_k_batch, stride_k_row, stride_k_head,
    stride_v_batch, stride_v_row, stride_v_head, stride_g_batch, stride_g_row, stride_g_head,
    stride_gk_batch, stride_gk_row, stride_gv_batch, stride_gv_row,
    stride_bias_batch, stride_bias_head, stride_bias_row, stride_bias_col, stride_alibi_batch,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, VARLEN: tl.constexpr,
    BOTTOM_RIGHT: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr, SOFTCAP: tl.constexpr,
    ALIBI: tl.constexpr, BIAS: tl.constexpr, DROPOUT: tl.constexpr, ONE_LOOP: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (key tiles * key heads * batch,); grad_key and grad_value are dense."""
    program = tl.program_id(0).to(tl.int64)
    tile = (program % key_tiles).to(tl.int32)
    key_heads = heads // group
    key_head = program // key_tiles % key_heads
    batch = program // key_tiles // key_heads
    q_total = q_len
    if VARLEN:
        sequence = tl.load(tile_sequence + tile)
        first_col = tl.load(tile_row + tile)
        q_begin, q_len = sequence_bounds(cu_seqlens_q, sequence, q_total)
        k_begin, k_len = sequence_bounds(cu_seqlens_k, sequence, k_len)
    else:
        first_col = tile * BLOCK_N
        sequence = batch
        q_begin = 0
        k_begin = 0
    if first_col >= k_len:
        return
    cols = first_col + tl.arange(0, BLOCK_N)
    shift = k_len - q_len if BOTTOM_RIGHT else 0
    row_begin = q_begin.to(tl.int64) if VARLEN else program * 0
    key_begin = k_begin.to(tl.int64) if VARLEN else program * 0
    key_base = key + batch * stride_k_batch + key_begin * stride_k_row + key_head * stride_k_head
    value_base = (
        value + batch * stride_v_batch + key_begin * stride_v_row + key_head * stride_v_head
    )
    k = load_rows(key_base, cols, stride_k_row, k_len, HEAD_DIM, BLOCK_D, False)
    v = load_rows(value_base, cols, stride_v_row, k_len, VALUE_DIM, BLOCK_DV, False)
    grad_k = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    grad_v = tl.zeros((BLOCK_N, BLOCK_DV), tl.float32)
    last_col = tl.minimum(first_col + BLOCK_N, k_len) - 1
    begin, full_begin, end = query_range(
        first_col, last_col, q_len, shift, window_left, window_right, LEFT, RIGHT, BLOCK_M
    )
    if ONE_LOOP:
        full_begin = end
    for member in range(0, group):
        head = key_head * group + member
        q_base = query + batch * stride_q_batch + row_begin * stride_q_row + head * stride_q_head
        g_base = grad_out + batch * stride_g_batch + row_begin * stride_g_row + head * stride_g_head
        bias_base = bias + batch * stride_bias_batch + head * stride_bias_head
        row_base = (batch * heads + head) * q_total + row_begin
        plane = sequence * heads + head
        slope = 0.0
        if ALIBI:
            slope = tl.load(alibi_slopes + sequence * stride_alibi_batch + head) * LOG2E
        if ONE_LOOP or RIGHT:
            grad_k, grad_v = _key_steps(
                grad_k, grad_v, k, v, q_base, g_base, stride_q_row, stride_g_row, lse + row_base,
                delta + row_base, bias_base, stride_bias_row, stride_bias_col, rng_state, plane,
                first_col, begin, full_begin, q_len, k_len, shift, score_scale, cap, slope,
                window_left, window_right, dropout_below, dropout_scale, HEAD_DIM, VALUE_DIM,
                BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, True, LEFT, RIGHT, SOFTCAP, ALIBI, BIAS,
                DROPOUT, PRECISION,
            )  # fmt: skip
        if not ONE_LOOP:
            grad_k, grad_v = _key_steps(
                grad_k, grad_v, k, v, q_base, g_base, stride_q_row, stride_g_row, lse + row_base,
                delta + row_base, bias_base, stride_bias_row, stride_bias_col, rng_state, plane,
                first_col, full_begin, end, q_len, k_len, shift, score_scale, cap, slope,
                window_left, window_right, dropout_below, dropout_scale, HEAD_DIM, VALUE_DIM,
                BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV, False, LEFT, RIGHT, SOFTCAP, ALIBI, BIAS,
                DROPOUT, PRECISION,
            )  # fmt: skip
    gk_base = grad_key + batch * stride_gk_batch + key_begin * stride_gk_row + key_head * HEAD_DIM
    gv_base = (
        grad_value + batch * stride_gv_batch + key_begin * stride_gv_row + key_head * VALUE_DIM
    )
    store_rows(gk_base, cols, stride_gk_row, k_len, grad_k * scale, HEAD_DIM, BLOCK_D)
    store_rows(gv_base, cols, stride_gv_row, k_len, grad_v, VALUE_DIM, BLOCK_DV)


@triton.jit
def attention_backward_bias_kernel(
    query, key, value, bias, alibi_slopes, rng_state, grad_out, lse, delta, partial,
    score_scale, cap, window_left, window_right, dropout_below, dropout_scale,
    batch_count, heads, group, q_len, k_len, row_tiles, key_tiles, bias_heads,
    stride_q_batch, stride_q_row, stride_q_head, stride_k_batch, stride_k_row, stride_k_head,
    stride_v_batch, stride_v_row, stride_v_head, stride_g_batch, stride_g_row, stride_g_head,
    stride_bias_batch, stride_bias_head, stride_bias_row, stride_bias_col, stride_alibi_batch,
    stride_p_plane, stride_p_row,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr, BOTTOM_RIGHT: tl.constexpr, LEFT: tl.constexpr,
    RIGHT: tl.constexpr, SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, DROPOUT: tl.constexpr,
    PRECISION: tl.constexpr, ALL_BATCHES: tl.constexpr, ALL_HEADS: tl.constexpr,
    ALL_ROWS: tl.constexpr, ALL_COLS: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient of scores over what the bias is broadcast along, tile by tile.

    Grid: (key tiles * row tiles * bias heads * bias batches,). ALL_BATCHES and ALL_HEADS: the bias
    has size 1 there, and a program loops over them. ALL_ROWS and ALL_COLS: likewise, and `partial`
    has one entry per tile instead of one per row or column; the launcher sums them.
    """
    program = tl.program_id(0).to(tl.int64)
    key_tile = (program % key_tiles).to(tl.int32)
    row_tile = (program // key_tiles % row_tiles).to(tl.int32)
    plane = program // key_tiles // row_tiles
    first_row = row_tile * BLOCK_M
    first_col = key_tile * BLOCK_N
    rows = first_row + tl.arange(0, BLOCK_M)
    cols = first_col + tl.arange(0, BLOCK_N)
    shift = k_len - q_len if BOTTOM_RIGHT else 0
    # Distances of the tile's corners say whether the window leaves anything of it.
    visible = first_col < k_len
    if RIGHT:
        visible = visible & (first_col - (first_row + BLOCK_M - 1) - shift <= window_right)
    if LEFT:
        visible = visible & (first_col + BLOCK_N - 1 - first_row - shift >= -window_left)
    batches = batch_count if ALL_BATCHES else 1
    members = heads if ALL_HEADS else 1
    count = tl.where(visible, batches * members, 0)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for i in range(0, count):
        batch = (i // members).to(tl.int64) if ALL_BATCHES else plane // bias_heads
        head = (i % members).to(tl.int64) if ALL_HEADS else plane % bias_heads
        key_head = head // group
        q_base = query + batch * stride_q_batch + head * stride_q_head
        g_base = grad_out + batch * stride_g_batch + head * stride_g_head
        key_base = key + batch * stride_k_batch + key_head * stride_k_head
        value_base = value + batch * stride_v_batch + key_head * stride_v_head
        bias_base = bias + batch * stride_bias_batch + head * stride_bias_head
        q = load_rows(q_base, rows, stride_q_row, q_len, HEAD_DIM, BLOCK_D, False)
        k = load_rows(key_base, cols, stride_k_row, k_len, HEAD_DIM, BLOCK_D, False)
        row_base = (batch * heads + head) * q_len
        lse2 = row_values(lse + row_base, rows, q_len, LOG2E)
        delta_rows = row_values(delta + row_base, rows, q_len, 1.0)
        slope = 0.0
        if ALIBI:
            slope = tl.load(alibi_slopes + batch * stride_alibi_batch + head) * LOG2E
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        s, _ = scores(
            products, rows[:, None], cols[None, :], q_len, k_len, shift, score_scale, cap, slope,
            window_left, window_right, bias_base, stride_bias_row, stride_bias_col,
            True, LEFT, RIGHT, SOFTCAP, ALIBI, 2,
        )  # fmt: skip
        p = tl.exp2(s - lse2[:, None])
        g = load_rows(g_base, rows, stride_g_row, q_len, VALUE_DIM, BLOCK_DV, False)
        v = load_rows(value_base, cols, stride_v_row, k_len, VALUE_DIM, BLOCK_DV, False)
        grad_p = tl.dot(g, tl.trans(v), input_precision=PRECISION)
        if DROPOUT:
            keep = dropout_keep(
                rng_state, batch * heads + head, rows, first_col, dropout_below, BLOCK_M, BLOCK_N
            )
            grad_p = tl.where(keep, grad_p * dropout_scale, 0.0)
        acc += p * (grad_p - delta_rows[:, None])
    base = partial + plane * stride_p_plane
    if ALL_ROWS and ALL_COLS:
        at = base + row_tile.to(tl.int64) * stride_p_row + key_tile
        tl.store(at, tl.sum(tl.sum(acc, 1), 0))
    elif ALL_ROWS:
        at = base + row_tile.to(tl.int64) * stride_p_row + cols
        tl.store(at, tl.sum(acc, 0), mask=cols < k_len)
    elif ALL_COLS:
        at = base + rows.to(tl.int64) * stride_p_row + key_tile
        tl.store(at, tl.sum(acc, 1), mask=rows < q_len)
    else:
        at = base + rows.to(tl.int64)[:, None] * stride_p_row + cols[None, :]
        tl.store(at, acc, mask=(rows[:, None] < q_len) & (cols[None, :] < k_len))
