"""Quantisation of rows to int8: one pass over a row for its range, one for its values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl

from lepton_kernels import _dispatch
from lepton_kernels.ops.quantize_int8 import _check
from lepton_kernels.reference.int8_linear import SMALLEST_RANGE
from lepton_kernels.triton.launch import NO_PRODUCT, AotCase, check_device, wrap
from lepton_kernels.triton.numeric import is_finite, multiply, round_even, to_level

_SMALLEST_RANGE = tl.constexpr(SMALLEST_RANGE)
# Elements of a program's tile; each of its 4 warps has 32 of them per thread.
TILE = 4096
SIGNATURE = {
    "x": "*fp32",
    "given_scale": "*fp32",
    "given_zero_point": "*i32",
    "q": "*i8",
    "scale": "*fp32",
    "zero_point": "*i32",
    "rows": "i32",
    "columns": "i32",
    "columns_written": "i32",
    "x_stride": "i64",
    "q_stride": "i64",
    "given_stride": "i32",
}


@triton.jit
def quantize_rows_kernel(
    x,
    given_scale,
    given_zero_point,
    q,
    scale,
    zero_point,
    rows,
    columns,
    columns_written,
    x_stride,
    q_stride,
    given_stride,
    SYMMETRIC: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Rows of `x` to int8, their scale and zero point; with `given_scale`, by given parameters.

    Columns from `columns` to `columns_written` become 0. A row that is not finite gets a scale of
    NaN and values of 0.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    in_rows = row < rows
    column = tl.arange(0, BLOCK)
    source = x + (row * x_stride)[:, None] + column[None, :]
    low = tl.zeros((ROWS,), tl.float32)
    high = tl.zeros((ROWS,), tl.float32)
    for start in range(0, columns, BLOCK):
        inside = in_rows[:, None] & (column < columns - start)[None, :]
        values = tl.load(source + start, mask=inside, other=0.0).to(tl.float32)
        # tl.max ignores NaN, infinity it keeps.
        values = tl.where(values == values, values, float("inf"))
        if SYMMETRIC or given_scale is not None:
            high = tl.maximum(high, tl.max(tl.abs(values), 1))
        else:
            high = tl.maximum(high, tl.max(values, 1))
            low = tl.minimum(low, tl.min(values, 1))
    extent = high - low
    broken = is_finite(extent) == 0
    if given_scale is not None:
        step = tl.load(given_scale + row * given_stride, mask=in_rows, other=1.0)
        inverse = tl.div_rn(tl.full((ROWS,), 1.0, tl.float32), step)
        zero = tl.zeros((ROWS,), tl.float32)
        if given_zero_point is not None:
            given = given_zero_point + row * given_stride
            zero = tl.load(given, mask=in_rows, other=0).to(tl.float32)
        lowest = -128.0
    else:
        steps = tl.full((ROWS,), 127.0 if SYMMETRIC else 255.0, tl.float32)
        none = extent < _SMALLEST_RANGE
        safe = tl.where(none | broken, 1.0, extent)
        inverse = tl.where(none | broken, 0.0, tl.div_rn(steps, safe))
        step = tl.where(none, 1.0, tl.div_rn(safe, steps))
        zero = tl.zeros((ROWS,), tl.float32)
        if not SYMMETRIC:
            # Between -128 and 127: |low| is at most the range.
            zero = tl.where(none | broken, 0.0, -128.0 - round_even(multiply(low, inverse)))
        lowest = -127.0 if SYMMETRIC else -128.0
    tl.store(scale + row, tl.where(broken, float("nan"), step), mask=in_rows)
    if zero_point is not None:
        tl.store(zero_point + row, zero.to(tl.int32), mask=in_rows)
    target = q + (row * q_stride)[:, None] + column[None, :]
    for start in range(0, columns_written, BLOCK):
        inside = in_rows[:, None] & (column < columns - start)[None, :]
        values = tl.load(source + start, mask=inside, other=0.0).to(tl.float32)
        level = to_level(values, inverse[:, None]) + zero[:, None]
        level = tl.where(level > 127.0, 127.0, level)
        level = tl.where(level < lowest, lowest, level)
        level = tl.where(inside & (broken == 0)[:, None], level, 0.0)
        written = in_rows[:, None] & (column < columns_written - start)[None, :]
        tl.store(target + start, level.to(tl.int32).to(tl.int8), mask=written)


def _tile(rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a program's tile."""
    block = 32
    while block < columns and block < TILE:
        block *= 2
    return TILE // block, block


def quantize_rows(
    x: torch.Tensor,
    symmetric: bool = True,
    given_scale: torch.Tensor | None = None,
    given_zero_point: torch.Tensor | None = None,
    *,
    pad: int = 1,
    with_zero_point: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Launch `quantize_rows_kernel`.

    Args:
        x (Tensor): float, shape (rows, columns), columns adjacent.
        symmetric (bool): no zero point. Default: True.
        given_scale (Tensor, optional): float32, (1,) or (rows,): static quantisation.
        given_zero_point (Tensor, optional): int32, shape of `given_scale`.
        pad (int): the rows of q are this multiple apart, with zeros between. Default: 1.
        with_zero_point (bool): return the zero points. Default: False.

    Returns:
        (q, scale, zero_point): int8 (rows, columns), float32 (rows,), int32 (rows,) or None.
    """
    rows, columns = x.shape
    padded = (columns + pad - 1) // pad * pad
    q = torch.empty((rows, padded), dtype=torch.int8, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    zero = torch.empty(rows, dtype=torch.int32, device=x.device) if with_zero_point else None
    if rows:
        tile_rows, block = _tile(rows, columns)
        per_row = given_scale is not None and given_scale.numel() > 1
        wrap(quantize_rows_kernel)[(triton.cdiv(rows, tile_rows),)](
            x,
            given_scale,
            given_zero_point,
            q,
            scale,
            zero,
            rows,
            columns,
            padded,
            x.stride(0),
            padded,
            int(per_row),
            SYMMETRIC=symmetric,
            ROWS=tile_rows,
            BLOCK=block,
            num_warps=4,
        )
    return q[:, :columns], scale, zero


def quantize_int8(
    x: torch.Tensor, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The op `quantize_int8` on Triton; see `lepton_kernels.quantize_int8`."""
    _check(x, symmetric)
    check_device("quantize_int8", x)
    x = x if x.stride(1) == 1 else x.contiguous()
    q, scale, zero = quantize_rows(x, symmetric, with_zero_point=True)
    assert zero is not None
    return q, scale, zero


_dispatch.register_triton("quantize_int8", quantize_int8)


def aot_cases() -> Iterator[AotCase]:
    """Every form of the kernel: dynamic and static, narrow and wide rows."""
    for name, dtype, symmetric, static, block in (
        ("symmetric_bf16", "*bf16", True, False, 4096),
        ("asymmetric_fp32", "*fp32", False, False, 4096),
        ("groups_fp32", "*fp32", True, False, 64),
        ("static_fp16", "*fp16", True, True, 4096),
    ):
        signature = SIGNATURE | {"x": dtype}
        constants: dict[str, Any] = {"SYMMETRIC": symmetric, "ROWS": TILE // block, "BLOCK": block}
        absent = ["zero_point"] if static else ["given_scale", "given_zero_point"]
        for argument in absent:
            del signature[argument]
            constants[argument] = None
        yield AotCase(
            f"quantize_int8/{name}",
            quantize_rows_kernel,
            signature,
            constants,
            num_warps=4,
            num_stages=3,
            no_matrix=NO_PRODUCT,
            divisible=("x", "q", "scale", "columns", "columns_written", "x_stride", "q_stride"),
        )
