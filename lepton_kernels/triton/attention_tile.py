# mypy: ignore-errors
# Kernels are in Triton's language, which has other types than Python.
"""What the attention kernels share: tiles in and out, scores with masks, dropout, the key range.

Scores are kept in log2 units, so that a probability is exp2(score - log-sum-exp / ln 2). `rows`
are queries and `cols` keys of one sequence, counted from its begin.
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_BIAS = 0
BOOL_BIAS = 1
FLOAT_BIAS = 2
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def load_rows(
    base, rows, stride, limit, DIM: tl.constexpr, BLOCK: tl.constexpr, INSIDE: tl.constexpr
):
    """Tile (rows, BLOCK); zero beyond DIM, and beyond row `limit` unless all rows are INSIDE."""
    dims = tl.arange(0, BLOCK)
    at = base + rows.to(tl.int64)[:, None] * stride + dims[None, :]
    if INSIDE:
        if DIM == BLOCK:
            tile = tl.load(at)
        else:
            tile = tl.load(at, mask=dims[None, :] < DIM, other=0.0)
    elif DIM == BLOCK:
        tile = tl.load(at, mask=rows[:, None] < limit, other=0.0)
    else:
        tile = tl.load(at, mask=(rows[:, None] < limit) & (dims[None, :] < DIM), other=0.0)
    return tile


@triton.jit
def store_rows(base, rows, stride, limit, tile, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """Store a tile (rows, BLOCK) up to row `limit` and dimension DIM."""
    dims = tl.arange(0, BLOCK)
    at = base + rows.to(tl.int64)[:, None] * stride + dims[None, :]
    inside = rows[:, None] < limit
    if DIM != BLOCK:
        inside = inside & (dims[None, :] < DIM)
    tl.store(at, tile.to(base.dtype.element_ty), mask=inside)


@triton.jit
def tanh(x):
    """Taylor near 0, where the quotient would cancel; as csrc/cpu/attention_math.h."""
    a = tl.abs(x)
    e = tl.exp2(a * (-2.0 * LOG2E))
    far = (1.0 - e) / (1.0 + e)
    square = x * x
    p = square * (62.0 / 2835.0) - 17.0 / 315.0
    p = p * square + 2.0 / 15.0
    p = p * square - 1.0 / 3.0
    near = a + a * square * p
    size = tl.where(a < 0.3, near, far)
    return tl.where(x < 0, -size, size)


@triton.jit
def scores(
    products, rows, cols, q_len, k_len, shift,
    score_scale, cap, slope, window_left, window_right,
    bias, stride_bias_row, stride_bias_col,
    MASKED: tl.constexpr, LEFT: tl.constexpr, RIGHT: tl.constexpr,
    SOFTCAP: tl.constexpr, ALIBI: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Scores in log2 units, -inf where hidden, and tanh of the capped ones (for the gradient).

    `rows` and `cols` broadcast to `products`, in either orientation. Without MASKED every key of
    the tile exists and is inside the window of every row.
    """
    s = products * score_scale
    capped = s
    if SOFTCAP:
        capped = tanh(s)
        s = capped * cap
    distance = cols - rows - shift
    if ALIBI:
        s -= slope * tl.abs(distance).to(tl.float32)
    if BIAS != 0:
        at = bias + rows.to(tl.int64) * stride_bias_row + cols.to(tl.int64) * stride_bias_col
        inside = (rows < q_len) & (cols < k_len)
        if BIAS == 1:
            s = tl.where(tl.load(at, mask=inside, other=0) != 0, s, float("-inf"))
        else:
            s += tl.load(at, mask=inside, other=0.0).to(tl.float32) * LOG2E
    if MASKED:
        seen = (cols < k_len) & (rows < q_len)
        if LEFT:
            seen = seen & (distance >= -window_left)
        if RIGHT:
            seen = seen & (distance <= window_right)
        s = tl.where(seen, s, float("-inf"))
    return s, capped


@triton.jit
def dropout_keep(
    rng_state, plane, rows, first_col, below, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr
):
    """Boolean (BLOCK_M, BLOCK_N): word j % 4 of Philox counter (j // 4, i, plane, offset).

    The same bits as `lepton_kernels.reference.attention.dropout_keep`.
    """
    seed = tl.load(rng_state).to(tl.uint64)
    offset = tl.load(rng_state + 1).to(tl.uint32)
    quads = (first_col // 4 + tl.arange(0, BLOCK_N // 4)).to(tl.uint32)
    shape = tl.zeros((BLOCK_M, BLOCK_N // 4), tl.uint32)
    w0, w1, w2, w3 = tl.philox(
        seed,
        quads[None, :] + shape,
        rows.to(tl.uint32)[:, None] + shape,
        plane.to(tl.uint32) + shape,
        offset + shape,
    )
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    return tl.reshape(words, (BLOCK_M, BLOCK_N)) >= below.to(tl.uint32)


@triton.jit
def key_range(
    first, last, k_len, shift, window_left, window_right,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Bounds (begin, full_end, end) of the keys that queries first to last see.

    Without LEFT the blocks from begin to full_end need no mask.
    """
    begin = 0
    end = k_len
    full_end = k_len
    if LEFT:
        begin = tl.maximum(first + shift - window_left, 0) // BLOCK * BLOCK
    if RIGHT:
        end = tl.minimum(k_len, last + shift + window_right + 1)
        full_end = tl.minimum(k_len, first + shift + window_right + 1)
    full_end = tl.maximum(full_end, 0) // BLOCK * BLOCK
    return begin, full_end, end


@triton.jit
def query_range(
    first, last, q_len, shift, window_left, window_right,
    LEFT: tl.constexpr, RIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Bounds (begin, full_begin, end) of the queries that see keys first to last.

    Without LEFT the blocks from full_begin to end need no mask.
    """
    begin = 0
    full_begin = 0
    end = q_len
    if RIGHT:
        begin = tl.maximum(first - shift - window_right, 0) // BLOCK * BLOCK
        full_begin = (tl.maximum(last - shift - window_right, 0) + BLOCK - 1) // BLOCK * BLOCK
    if LEFT:
        end = tl.minimum(q_len, last - shift + window_left + 1)
    return begin, tl.minimum(full_begin, tl.maximum(end, begin)), end


@triton.jit
def sequence_bounds(cu_seqlens, sequence, total):
    """Begin and length of a sequence; kept inside its tensor whatever cu_seqlens holds."""
    begin = tl.minimum(tl.maximum(tl.load(cu_seqlens + sequence), 0), total)
    end = tl.minimum(tl.load(cu_seqlens + sequence + 1), total)
    return begin, tl.maximum(end - begin, 0)
