"""Kernels over strips of 16 output features of a packed sparse weight: expansion, narrow products.

A bitmask holds one bit per element in the order of the strip; the place of a value is the number of
bits before it. 2:4 and other n:m patterns are the same bytes. Blocks hold 16 outputs x 4 inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from lepton_kernels.triton.float_gemm import FULL, HALF, SPLIT, _product
from lepton_kernels.triton.gemm import store_slices
from lepton_kernels.triton.launch import FEW_ROWS, NO_PRODUCT, AotCase
from lepton_kernels.triton.numeric import count_bits, multiply

STRIP = tl.constexpr(16)
EXPAND_INPUTS = 128
COUNT_WORDS = 1024


@triton.jit
def _words(pattern, first, k, limit, QUADS: tl.constexpr):
    """The word of the pattern that holds input k of the strip whose first word is `first`."""
    # Floats: 16 bits for each input. int8: 64 bits, [row][k % 4], for each four inputs.
    if QUADS:
        words = tl.load(pattern + first + k // 4, mask=k < limit, other=0)
    else:
        words = tl.load(pattern + first + k, mask=k < limit, other=0).to(tl.int32) & 0xFFFF
    return words


@triton.jit
def _bitmask_tile(values, words, base, k, QUADS: tl.constexpr):
    """Values (16 outputs, inputs k), zero where there are none; and how many there are."""
    row = tl.arange(0, STRIP)
    counts = count_bits(words)
    if QUADS:
        # A word counts at the last of its four inputs, so that all four begin at the same place.
        counts = tl.where(k % 4 == 3, counts, 0)
        bit = (row[:, None] * 4 + (k % 4)[None, :]).to(tl.int64)
        one = tl.full((1, 1), 1, tl.int64)
    else:
        bit = row[:, None] + (k * 0)[None, :]
        one = tl.full((1, 1), 1, tl.int32)
    before = tl.cumsum(counts, 0) - counts
    kept = (words[None, :] >> bit) & 1
    below = count_bits(words[None, :] & ((one << bit) - 1))
    place = base + before[None, :] + below
    tile = tl.load(values + place, mask=kept != 0, other=0)
    return tile, tl.sum(counts, 0)


@triton.jit
def expand_bitmask_kernel(
    pattern,
    values,
    offsets,
    dense,
    outputs,
    inputs,
    inputs_padded,
    QUADS: tl.constexpr,
    INPUTS: tl.constexpr,
    COUNTED: tl.constexpr,
):
    """Dense matrix (outputs, inputs) of a bitmask weight: a program for INPUTS of a strip."""
    strip = tl.program_id(0).to(tl.int64)
    start = (tl.program_id(1).to(tl.int64) * INPUTS).to(tl.int32)
    first = strip * (inputs_padded // 4 if QUADS else inputs_padded)
    base = tl.load(offsets + strip)
    # Where the values of these inputs begin: count those of the inputs before.
    step: tl.constexpr = 4 if QUADS else 1
    index = tl.arange(0, COUNTED) * step
    counted = tl.zeros((COUNTED,), tl.int32)
    for at in range(0, start, COUNTED * step):
        counted += count_bits(_words(pattern, first, at + index, start, QUADS))
    base += tl.sum(counted, 0)
    k = start + tl.arange(0, INPUTS)
    words = _words(pattern, first, k, inputs_padded, QUADS)
    tile, _ = _bitmask_tile(values, words, base, k, QUADS)
    output = strip * STRIP + tl.arange(0, STRIP)
    inside = (output < outputs)[:, None] & (k < inputs)[None, :]
    tl.store(dense + (output * inputs)[:, None] + k[None, :], tile, mask=inside)


@triton.jit
def _block_inputs(pattern, block, end, k):
    """Input feature of each of four inputs of each stored block."""
    quad = tl.load(pattern + block + k // 4, mask=block + k // 4 < end, other=0)
    return (quad.to(tl.int32) & 0xFFFF) * 4 + k % 4


@triton.jit
def _block_tile(values, block, end, k, QUADS: tl.constexpr):
    """Values (16 outputs, four inputs of each stored block)."""
    row = tl.arange(0, STRIP)
    in_block = (
        row[:, None] * 4 + (k % 4)[None, :] if QUADS else row[:, None] + (k % 4 * 16)[None, :]
    )
    place = ((block + k // 4) * 64)[None, :] + in_block
    return tl.load(values + place, mask=(block + k // 4 < end)[None, :], other=0)


@triton.jit
def expand_block_kernel(
    pattern,
    values,
    offsets,
    dense,
    outputs,
    inputs,
    QUADS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """Stored blocks of a strip into a dense matrix of zeros (outputs, inputs)."""
    strip = tl.program_id(0).to(tl.int64)
    first = tl.load(offsets + strip)
    end = tl.load(offsets + strip + 1)
    k = tl.arange(0, INPUTS)
    output = strip * STRIP + tl.arange(0, STRIP)
    for block in range(first, end, INPUTS // 4):
        column = _block_inputs(pattern, block, end, k)
        tile = _block_tile(values, block, end, k, QUADS)
        there = (block + k // 4 < end) & (column < inputs)
        inside = (output < outputs)[:, None] & there[None, :]
        tl.store(dense + (output * inputs)[:, None] + column[None, :], tile, mask=inside)


@triton.jit
def strip_product_kernel(
    x,
    pattern,
    values,
    offsets,
    out,
    row_scale,
    weight_scale,
    bias,
    residual,
    rows,
    outputs,
    inputs,
    inputs_padded,
    x_stride,
    ACTIVATION: tl.constexpr,
    BLOCKS: tl.constexpr,
    QUADS: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """out = activation(x weight^T + bias) + residual for few rows: the weight is read once, packed.

    One program for 16 outputs. With int8 values (QUADS) x is quantised and sums are int32.
    """
    strip = tl.program_id(0).to(tl.int64)
    first_row = (tl.program_id(1).to(tl.int64) * ROWS).to(tl.int32)
    row = first_row + tl.arange(0, ROWS)
    x_row = x + (tl.where(row < rows, row, 0).to(tl.int64) * x_stride)[:, None]
    k = tl.arange(0, INPUTS)
    total = tl.zeros((ROWS, STRIP), tl.int32 if QUADS else tl.float32)
    base = tl.load(offsets + strip)
    if BLOCKS:
        end = tl.load(offsets + strip + 1)
        for block in range(base, end, INPUTS // 4):
            column = _block_inputs(pattern, block, end, k)
            there = (block + k // 4 < end) & (column < inputs)
            a = tl.load(x_row + column[None, :], mask=there[None, :], other=0)
            b = _block_tile(values, block, end, k, QUADS)
            if QUADS:
                total = tl.dot(a, tl.trans(b), total, out_dtype=tl.int32)
            else:
                total = _product(a, b, total, DOT, PRECISION)
    else:
        first = strip * (inputs_padded // 4 if QUADS else inputs_padded)
        for start in range(0, inputs, INPUTS):
            words = _words(pattern, first, start + k, inputs_padded, QUADS)
            b, count = _bitmask_tile(values, words, base, k, QUADS)
            base += count
            a = tl.load(x_row + (start + k)[None, :], mask=(start + k < inputs)[None, :], other=0)
            if QUADS:
                total = tl.dot(a, tl.trans(b), total, out_dtype=tl.int32)
            else:
                total = _product(a, b, total, DOT, PRECISION)
    if QUADS:
        output = strip * STRIP + tl.arange(0, STRIP)
        scale = tl.load(weight_scale + output, mask=output < outputs, other=0.0)
        step = tl.load(row_scale + row, mask=row < rows, other=1.0)
        y = multiply(multiply(total.to(tl.float32), scale[None, :]), step[:, None])
    else:
        y = total
    store_slices(
        y, out, bias, residual, None, None, first_row, (strip * STRIP).to(tl.int32), rows, outputs,
        ACTIVATION, 1,
    )  # fmt: skip


_STRIPS = {"pattern": "*i16", "offsets": "*i64", "outputs": "i32", "inputs": "i32"}


def _expansion(name: str, values: str, *, blocks: bool) -> AotCase:
    quads = values == "*i8"
    signature = _STRIPS | {"values": values, "dense": values}
    constants = {"QUADS": quads, "INPUTS": EXPAND_INPUTS}
    if quads and not blocks:
        signature["pattern"] = "*i64"
    if not blocks:
        signature["inputs_padded"] = "i32"
        constants["COUNTED"] = COUNT_WORDS
    return AotCase(
        f"sparse_linear/expand_{name}",
        expand_block_kernel if blocks else expand_bitmask_kernel,
        signature,
        constants,
        num_warps=4,
        num_stages=3,
        no_matrix=NO_PRODUCT,
        divisible=("inputs", "inputs_padded"),
    )


def _product_case(name: str, values: str, rows: int, mode: int, *, blocks: bool) -> AotCase:
    quads = values == "*i8"
    x = "*i8" if quads else "*fp32" if mode != HALF.value else values
    signature = _STRIPS | {
        "x": x,
        "values": values,
        "out": "*bf16" if quads else x,
        "bias": "*fp32",
        "rows": "i32",
        "x_stride": "i64",
        "inputs_padded": "i32",
    }
    constants = {
        "residual": None,
        "ACTIVATION": 2,
        "BLOCKS": blocks,
        "QUADS": quads,
        "DOT": mode,
        "PRECISION": "bf16x6",
        "ROWS": rows,
        "INPUTS": strip_inputs(mode),
    }
    if quads:
        signature |= {"row_scale": "*fp32", "weight_scale": "*fp32"}
        if not blocks:
            signature["pattern"] = "*i64"
    else:
        constants |= {"row_scale": None, "weight_scale": None}
    return AotCase(
        f"sparse_linear/rows{rows}_{name}",
        strip_product_kernel,
        signature,
        constants,
        num_warps=4,
        num_stages=3,
        mma_sync=FEW_ROWS if rows < 64 else "",
        divisible=("inputs", "inputs_padded", "x_stride"),
    )


def strip_inputs(mode: int) -> int:
    """Input features per step of `strip_product_kernel`."""
    return 128 if mode == HALF.value else 64


def aot_cases() -> Iterator[AotCase]:
    """Expansion and narrow products of every layout and kind of values."""
    for values, kind in (("*i8", "int8"), ("*bf16", "bf16")):
        yield _expansion(f"bitmask_{kind}", values, blocks=False)
        yield _expansion(f"block_{kind}", values, blocks=True)
    for blocks, layout in ((False, "bitmask"), (True, "block")):
        for rows in (16, 64):
            yield _product_case(f"{layout}_int8", "*i8", rows, HALF.value, blocks=blocks)
            yield _product_case(f"{layout}_bf16", "*bf16", rows, HALF.value, blocks=blocks)
        yield _product_case(f"{layout}_fp32_bf16", "*bf16", 16, SPLIT.value, blocks=blocks)
        yield _product_case(f"{layout}_fp32", "*fp32", 16, FULL.value, blocks=blocks)
