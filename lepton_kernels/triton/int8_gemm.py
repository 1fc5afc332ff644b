"""The int8 matrix product with its fused epilogue, and the tiles that it runs in."""

from __future__ import annotations

import triton
import triton.language as tl

from lepton_kernels.triton.gemm import Tile, store_slices, tile_of
from lepton_kernels.triton.numeric import multiply

# Each compiles without spills on the architectures that use it. Hopper and Blackwell want two warp
# groups for the large tiles.
TILES = {
    "rows16": Tile(16, 32, 256, 4, 4),
    "rows64": Tile(64, 64, 128, 4, 4),
    "groups64": Tile(64, 64, 128, 8, 4),
    "square_sm80": Tile(128, 128, 64, 4, 4, 4, (80,)),
    "square_sm90": Tile(128, 128, 128, 8, 3, 4, (90, 100)),
    "groups_sm80": Tile(128, 128, 64, 8, 4, 2, (80,)),
    "groups_sm90": Tile(128, 64, 64, 8, 4, 1, (90, 100)),
    "wide": Tile(128, 256, 128, 8, 3, 8, (80, 90)),
}
SUMS_TILE = {"OUTPUTS": 16, "INPUTS": 512}


def tile_for(
    rows: int, outputs: int, capability: int, *, packed: bool = False, grouped: bool = False
) -> Tile:
    """Tile of a product with this many rows of x and output features."""
    if rows <= 16:
        return TILES["rows16"]
    if rows <= 64 or outputs <= 64:
        return TILES["groups64" if grouped else "rows64"]
    generation = "sm90" if capability >= 90 else "sm80"
    if grouped:
        # Sums of a group in int32 and of all in float32: half the tile for each warp.
        return TILES[f"groups_{generation}"]
    # The widest tile needs enough of them to fill the GPU, and a weight that loads by 16 bytes.
    wide = capability < 100 and not packed
    wide = wide and triton.cdiv(rows, 128) * triton.cdiv(outputs, 256) >= 128
    return TILES["wide" if wide else f"square_{generation}"]


@triton.jit
def int8_gemm_kernel(
    x,
    weight,
    out,
    row_scale,
    row_zero_point,
    weight_scale,
    weight_sums,
    bias,
    residual,
    out_scale,
    out_zero_point,
    rows,
    outputs,
    group_inputs,
    groups,
    x_stride,
    weight_stride,
    packed_group_inputs,
    row_scale_stride,
    row_zero_stride,
    scale_stride,
    scale_group_stride,
    sums_stride,
    ACTIVATION: tl.constexpr,
    GROUPED: tl.constexpr,
    PACKED: tl.constexpr,
    EVEN: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    SLICES: tl.constexpr,
):
    """out = activation(x weight^T scales + bias) + residual; int32 sums where `row_scale` is None.

    The weight is row-major (outputs, inputs) or, with PACKED, in the strips of pack_int8_weight.
    """
    row_tile, output_tile = tile_of(rows, outputs, ROWS, OUTPUTS, 8)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    output = output_tile * OUTPUTS + tl.arange(0, OUTPUTS)
    # Rows past the end load the first one: a mask in the loop would cost more.
    loaded_row = tl.where(row < rows, row, 0).to(tl.int64)
    loaded_output = tl.where(output < outputs, output, 0).to(tl.int64)
    k = tl.arange(0, INPUTS)
    x_tile = x + (loaded_row * x_stride)[:, None] + k[None, :]
    if PACKED:
        # 16 rows side by side, four input features of each at a time.
        in_strip = (loaded_output // 16) * weight_stride + (loaded_output % 16) * 4
        weight_tile = weight + in_strip[:, None] + (k // 4 * 64 + k % 4)[None, :]
    else:
        weight_tile = weight + (loaded_output * weight_stride)[:, None] + k[None, :]
    weight_step: tl.constexpr = 16 if PACKED else 1

    total = tl.zeros((ROWS, OUTPUTS), tl.int32)
    if row_zero_point is not None:
        zero = tl.load(
            row_zero_point + row.to(tl.int64) * row_zero_stride, mask=row < rows, other=0
        )
    # The weight is loaded as it lies and transposed in the product. Loaded as (inputs, outputs),
    # Triton 3.8 prefetches it into registers on sm_80, which spill: 12.5 instead of 2.0
    # instructions for each matrix instruction.
    if GROUPED:
        y = tl.zeros((ROWS, OUTPUTS), tl.float32)
        steps = tl.cdiv(group_inputs, INPUTS)
        scale_row = weight_scale + loaded_output * scale_stride
        for step in range(0, steps * groups):
            group = (step // steps).to(tl.int64)
            start = step % steps * INPUTS
            x_at = group * group_inputs + start
            weight_at = (group * packed_group_inputs + start) * weight_step
            if EVEN:
                a = tl.load(x_tile + x_at)
                b = tl.load(weight_tile + weight_at)
            else:
                inside = (k < group_inputs - start)[None, :]
                a = tl.load(x_tile + x_at, mask=inside, other=0)
                b = tl.load(weight_tile + weight_at, mask=inside, other=0)
            total = tl.dot(a, tl.trans(b), total, out_dtype=tl.int32)
            if start + INPUTS >= group_inputs:
                if row_zero_point is not None:
                    sums = tl.load(weight_sums + group * sums_stride + loaded_output)
                    total -= zero[:, None] * sums[None, :]
                scale = tl.load(scale_row + group * scale_group_stride).to(tl.float32)
                y += multiply(total.to(tl.float32), scale[None, :])
                total = tl.zeros((ROWS, OUTPUTS), tl.int32)
    else:
        for start in range(0, group_inputs, INPUTS):
            if EVEN:
                a = tl.load(x_tile)
                b = tl.load(weight_tile)
            else:
                inside = (k < group_inputs - start)[None, :]
                a = tl.load(x_tile, mask=inside, other=0)
                b = tl.load(weight_tile, mask=inside, other=0)
            total = tl.dot(a, tl.trans(b), total, out_dtype=tl.int32)
            x_tile += INPUTS
            weight_tile += INPUTS * weight_step

    inside = (row < rows)[:, None] & (output < outputs)[None, :]
    at = (row.to(tl.int64) * outputs)[:, None] + output[None, :]
    if row_scale is None:
        tl.store(out + at, total, mask=inside)
    else:
        if not GROUPED:
            if row_zero_point is not None:
                sums = tl.load(weight_sums + loaded_output)
                total -= zero[:, None] * sums[None, :]
            scale = tl.load(weight_scale + loaded_output * scale_stride).to(tl.float32)
            y = multiply(total.to(tl.float32), scale[None, :])
        step = tl.load(row_scale + row.to(tl.int64) * row_scale_stride, mask=row < rows, other=1.0)
        y = multiply(y, step[:, None])
        store_slices(
            y, out, bias, residual, out_scale, out_zero_point, row_tile * ROWS,
            output_tile * OUTPUTS, rows, outputs, ACTIVATION, SLICES,
        )  # fmt: skip


@triton.jit
def weight_sums_kernel(
    weight,
    sums,
    outputs,
    group_inputs,
    weight_stride,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """Sum of each row of a row-major int8 weight over each group: (groups, outputs)."""
    output = tl.program_id(0).to(tl.int64) * OUTPUTS + tl.arange(0, OUTPUTS)
    group = tl.program_id(1).to(tl.int64)
    k = tl.arange(0, INPUTS)
    first = weight + output * weight_stride + group * group_inputs
    total = tl.zeros((OUTPUTS,), tl.int32)
    for start in range(0, group_inputs, INPUTS):
        inside = (output < outputs)[:, None] & (k < group_inputs - start)[None, :]
        values = tl.load(first[:, None] + (start + k)[None, :], mask=inside, other=0)
        total += tl.sum(values.to(tl.int32), 1)
    tl.store(sums + group * outputs + output, total, mask=output < outputs)
