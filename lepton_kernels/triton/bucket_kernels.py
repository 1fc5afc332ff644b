"""Kernels of the bucket family: one launch for any number of tensors, by a table of pointers."""

from __future__ import annotations

from collections.abc import Iterator

import triton
import triton.language as tl

from lepton_kernels.reference.bucket import FP8_LARGEST, INT8_LEVELS, SMALLEST_BLOCK
from lepton_kernels.triton.launch import NO_PRODUCT, AotCase
from lepton_kernels.triton.numeric import is_finite, multiply, round_even

# Elements of a chunk: one program's share.
CHUNK = 4096
# Columns of the table: address, elements, place in the bucket, elements written there, dtype.
COLUMNS = 5
DTYPES = ("float32", "bfloat16", "float16")
_COLUMNS = tl.constexpr(COLUMNS)
_SMALLEST_BLOCK = tl.constexpr(SMALLEST_BLOCK)
_INT8_LEVELS = tl.constexpr(INT8_LEVELS)
_FP8_LARGEST = tl.constexpr(FP8_LARGEST)


@triton.jit
def _load_as(address, dtype, at, inside):
    """Elements at a numeric address, of the dtype of that number in DTYPES, as float32."""
    # No name for the pointer: a variable has one type in all branches.
    if dtype == 0:
        values = tl.load(address.to(tl.pointer_type(tl.float32)) + at, mask=inside, other=0.0)
    elif dtype == 1:
        halves = tl.load(address.to(tl.pointer_type(tl.int16)) + at, mask=inside, other=0)
        values = halves.to(tl.bfloat16, bitcast=True).to(tl.float32)
    else:
        halves = tl.load(address.to(tl.pointer_type(tl.int16)) + at, mask=inside, other=0)
        values = halves.to(tl.float16, bitcast=True).to(tl.float32)
    return values


@triton.jit
def _store_as(address, dtype, at, values, inside):
    if dtype == 0:
        tl.store(address.to(tl.pointer_type(tl.float32)) + at, values, mask=inside)
    elif dtype == 1:
        halves = values.to(tl.bfloat16).to(tl.int16, bitcast=True)
        tl.store(address.to(tl.pointer_type(tl.int16)) + at, halves, mask=inside)
    else:
        halves = values.to(tl.float16).to(tl.int16, bitcast=True)
        tl.store(address.to(tl.pointer_type(tl.int16)) + at, halves, mask=inside)


@triton.jit
def flatten_kernel(table, flat, factor, CHUNK: tl.constexpr):
    """Chunks of tensors into the bucket, scaled and cast; the gap after a tensor becomes 0."""
    row = table + tl.program_id(0).to(tl.int64) * _COLUMNS
    at = tl.arange(0, CHUNK)
    values = _load_as(tl.load(row), tl.load(row + 4), at, at < tl.load(row + 1))
    written = at < tl.load(row + 3)
    target = flat + tl.load(row + 2) + at
    tl.store(target, (values * factor).to(flat.dtype.element_ty), mask=written)


@triton.jit
def unflatten_kernel(table, flat, factor, CHUNK: tl.constexpr):
    """Chunks of the bucket into tensors, scaled and cast."""
    row = table + tl.program_id(0).to(tl.int64) * _COLUMNS
    at = tl.arange(0, CHUNK)
    inside = at < tl.load(row + 1)
    values = tl.load(flat + tl.load(row + 2) + at, mask=inside, other=0.0).to(tl.float32)
    _store_as(tl.load(row), tl.load(row + 4), at, values * factor, inside)


@triton.jit
def unscale_kernel(table, found_inf, inverse, CHUNK: tl.constexpr):
    """Chunks times `inverse` in place; found_inf becomes 1 where a product is not finite."""
    row = table + tl.program_id(0).to(tl.int64) * _COLUMNS
    at = tl.arange(0, CHUNK)
    inside = at < tl.load(row + 1)
    address, dtype = tl.load(row), tl.load(row + 4)
    values = _load_as(address, dtype, at, inside) * tl.load(inverse)
    _store_as(address, dtype, at, values, inside)
    # An element past the end may be 0 times infinity.
    broken = tl.max((inside & (is_finite(values) == 0)).to(tl.int32), 0)
    # Every program that stores here stores the same.
    tl.store(found_inf, 1.0, mask=broken != 0)


@triton.jit
def squares_kernel(table, partial, CHUNK: tl.constexpr):
    """Sum of squares of each chunk, in float64."""
    program = tl.program_id(0).to(tl.int64)
    row = table + program * _COLUMNS
    at = tl.arange(0, CHUNK)
    values = _load_as(tl.load(row), tl.load(row + 4), at, at < tl.load(row + 1)).to(tl.float64)
    tl.store(partial + program, tl.sum(values * values, 0))


@triton.jit
def sum_ranges_kernel(partial, first, out, BLOCK: tl.constexpr):
    """out[i] = sum of partial[first[i] : first[i + 1]], in the same order at every run."""
    program = tl.program_id(0).to(tl.int64)
    begin = tl.load(first + program)
    end = tl.load(first + program + 1)
    at = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(begin, end, BLOCK):
        total += tl.load(partial + start + at, mask=start + at < end, other=0.0)
    tl.store(out + program, tl.sum(total, 0))


@triton.jit
def reduce_kernel(
    table, reduced, partial, count, elements, AVERAGE: tl.constexpr, DTYPE: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """Sum or mean of `count` tensors in order, and the sum of its squares in each chunk."""
    program = tl.program_id(0).to(tl.int64)
    at = program * CHUNK + tl.arange(0, CHUNK)
    inside = at < elements
    total = _load_as(tl.load(table), DTYPE, at, inside)
    for i in range(1, count):
        total += _load_as(tl.load(table + i), DTYPE, at, inside)
    if AVERAGE:
        total = tl.div_rn(total, tl.zeros((CHUNK,), tl.float32) + count)
    tl.store(reduced + at, total.to(reduced.dtype.element_ty), mask=inside)
    wide = total.to(tl.float64)
    tl.store(partial + program, tl.sum(wide * wide, 0))


@triton.jit
def _encode_fp8(values):
    """float8 e4m3 code of |values| <= 448 to the nearest, ties to even; without a sign."""
    bits = values.to(tl.int32, bitcast=True)
    normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - 960
    # Below 2^-6 codes count steps of 2^-9; 8 steps are the code of 2^-6.
    small = round_even(values * 512.0).to(tl.int32)
    return tl.where(values < 0.015625, small, normal)


@triton.jit
def _decode_fp8(code):
    """float32 of float8 e4m3 codes."""
    magnitude = code & 0x7F
    normal = ((magnitude + 960) << 20).to(tl.float32, bitcast=True)
    values = tl.where(magnitude < 8, magnitude.to(tl.float32) * 0.001953125, normal)
    values = tl.where(magnitude == 0x7F, float("nan"), values)
    return tl.where((code & 0x80) != 0, -values, values)


@triton.jit
def _block_values(x, residual, at, inside):
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        values += tl.load(residual + at, mask=inside, other=0.0)
    return values


@triton.jit
def quantize_blocks_kernel(
    x, residual, q, scale, elements, blocks, block, FP8: tl.constexpr, ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Blocks to a byte an element and a scale each; the residual takes what rounding lost."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    first = row * block
    largest = tl.zeros((ROWS,), tl.float32)
    for start in range(0, block, BLOCK):
        at = first[:, None] + (start + column)[None, :]
        inside = (start + column < block)[None, :] & (at < elements)
        values = tl.abs(_block_values(x, residual, at, inside))
        # tl.max ignores NaN, infinity it keeps.
        values = tl.where(values == values, values, float("inf"))
        largest = tl.maximum(largest, tl.max(values, 1))
    finite = is_finite(largest)
    none = (finite == 0) | (largest < _SMALLEST_BLOCK)
    levels: tl.constexpr = _FP8_LARGEST if FP8 else _INT8_LEVELS
    steps = tl.full((ROWS,), levels, tl.float32)
    safe = tl.where(none, 1.0, largest)
    step = tl.where(none, 1.0, tl.div_rn(safe, steps))
    inverse = tl.where(none, 0.0, tl.div_rn(steps, safe))
    tl.store(scale + row, tl.where(finite, step, float("nan")), mask=row < blocks)
    for start in range(0, block, BLOCK):
        at = first[:, None] + (start + column)[None, :]
        inside = (start + column < block)[None, :] & (at < elements)
        values = tl.where(finite[:, None], _block_values(x, residual, at, inside), 0.0)
        # Not `multiply`: -0 must stay, and the limits keep the product from being contracted.
        scaled = values * inverse[:, None]
        scaled = tl.where(scaled > levels, levels, scaled)
        scaled = tl.where(scaled < -levels, -levels, scaled)
        if FP8:
            # By the sign bit: -0 has a code too.
            sign = (scaled.to(tl.int32, bitcast=True) >> 24) & 0x80
            code = _encode_fp8(tl.abs(scaled)) | sign
            decoded = _decode_fp8(code)
        else:
            decoded = round_even(scaled)
            code = decoded.to(tl.int32)
        tl.store(q + at, code.to(tl.int8), mask=inside)
        if residual is not None:
            left = values - multiply(decoded, step[:, None])
            tl.store(residual + at, left, mask=inside)


@triton.jit
def dequantize_blocks_kernel(
    out, q, scale, elements, block, factor, FP8: tl.constexpr, ACCUMULATE: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """out = q scale factor, or out += that, in float32, rounded once."""
    at = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    inside = at < elements
    code = tl.load(q + at, mask=inside, other=0).to(tl.int32)
    if FP8:
        levels = _decode_fp8(code)
    else:
        levels = code.to(tl.float32)
    step = tl.load(scale + at // block, mask=inside, other=0.0)
    values = multiply(multiply(levels, step), factor)
    if ACCUMULATE:
        values = tl.load(out + at, mask=inside, other=0.0).to(tl.float32) + values
    tl.store(out + at, values.to(out.dtype.element_ty), mask=inside)


def aot_cases() -> Iterator[AotCase]:
    """Every kernel; of those that take options, each option once."""
    table = {"table": "*i64"}
    chunk = {"CHUNK": CHUNK}
    blocks = {"elements": "i64", "block": "i32"}
    fp8 = {"FP8": True}
    for name, kernel, signature, constants in (
        ("flatten", flatten_kernel, table | {"flat": "*bf16", "factor": "fp32"}, chunk),
        ("unflatten", unflatten_kernel, table | {"flat": "*bf16", "factor": "fp32"}, chunk),
        ("unscale", unscale_kernel, table | {"found_inf": "*fp32", "inverse": "*fp32"}, chunk),
        ("squares", squares_kernel, table | {"partial": "*fp64"}, chunk),
        (
            "sum_ranges",
            sum_ranges_kernel,
            {"partial": "*fp64", "first": "*i64", "out": "*fp64"},
            {"BLOCK": 256},
        ),
        (
            "reduce",
            reduce_kernel,
            {
                **table,
                "reduced": "*bf16",
                "partial": "*fp64",
                "count": "i32",
                "elements": "i64",
            },
            chunk | {"AVERAGE": True, "DTYPE": 1},
        ),
        (
            "quantize_int8",
            quantize_blocks_kernel,
            {**blocks, "x": "*bf16", "residual": "*fp32", "q": "*i8", "scale": "*fp32"}
            | {"blocks": "i32"},
            {"FP8": False, "ROWS": 16, "BLOCK": 256},
        ),
        (
            "quantize_fp8",
            quantize_blocks_kernel,
            {**blocks, "x": "*fp32", "q": "*i8", "scale": "*fp32", "blocks": "i32"},
            {"residual": None, "ROWS": 16, "BLOCK": 256} | fp8,
        ),
        (
            "dequantize_fp8",
            dequantize_blocks_kernel,
            {**blocks, "out": "*bf16", "q": "*i8", "scale": "*fp32", "factor": "fp32"},
            chunk | fp8 | {"ACCUMULATE": True},
        ),
    ):
        yield AotCase(
            f"bucket/{name}",
            kernel,
            signature,
            constants,
            num_warps=8,
            num_stages=1,
            no_matrix=NO_PRODUCT,
        )
