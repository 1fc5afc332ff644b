"""The int8 matrix product with its fused epilogue, and the tiles that it runs in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import triton
import triton.language as tl

from lepton_kernels.triton.launch import AotCase
from lepton_kernels.triton.numeric import activate, multiply, to_level


@dataclasses.dataclass(frozen=True)
class Tile:
    """Sizes of a program: rows of x, output features, input features per step.

    The epilogue works on `slices` parts of the output features in turn.
    """

    rows: int
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int
    slices: int = 1
    capabilities: tuple[int, ...] = (80, 90, 100)


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
def tile_of(rows, outputs, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, BAND: tl.constexpr):
    """Which tile this program computes: bands of `BAND` tiles of rows keep the weight in L2."""
    program = tl.program_id(0).to(tl.int64)
    row_tiles = tl.cdiv(rows, ROWS)
    in_band = BAND * tl.cdiv(outputs, OUTPUTS)
    first = program // in_band * BAND
    height = tl.minimum(row_tiles - first, BAND)
    row_tile = first + program % in_band % height
    return row_tile.to(tl.int32), (program % in_band // height).to(tl.int32)


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
            y,
            out,
            bias,
            residual,
            out_scale,
            out_zero_point,
            row_tile * ROWS,
            output_tile * OUTPUTS,
            rows,
            outputs,
            ACTIVATION,
            SLICES,
        )


@triton.jit
def store_slices(
    y,
    out,
    bias,
    residual,
    out_scale,
    out_zero_point,
    first_row,
    first_output,
    rows,
    outputs,
    ACTIVATION: tl.constexpr,
    SLICES: tl.constexpr,
):
    """The epilogue on `SLICES` parts of the tile's columns in turn, which keeps registers free."""
    if SLICES > 1:
        halves = tl.reshape(y, (y.shape[0], 2, y.shape[1] // 2))
        left, right = tl.split(tl.permute(halves, (0, 2, 1)))
        store_slices(
            left,
            out,
            bias,
            residual,
            out_scale,
            out_zero_point,
            first_row,
            first_output,
            rows,
            outputs,
            ACTIVATION,
            SLICES // 2,
        )
        store_slices(
            right,
            out,
            bias,
            residual,
            out_scale,
            out_zero_point,
            first_row,
            first_output + y.shape[1] // 2,
            rows,
            outputs,
            ACTIVATION,
            SLICES // 2,
        )
    else:
        row = first_row + tl.arange(0, y.shape[0])
        output = first_output + tl.arange(0, y.shape[1])
        inside = (row < rows)[:, None] & (output < outputs)[None, :]
        at = (row.to(tl.int64) * outputs)[:, None] + output[None, :]
        store_output(
            y,
            out,
            bias,
            residual,
            out_scale,
            out_zero_point,
            output,
            output < outputs,
            at,
            inside,
            ACTIVATION,
        )


@triton.jit
def store_output(
    y,
    out,
    bias,
    residual,
    out_scale,
    out_zero_point,
    output,
    in_outputs,
    at,
    inside,
    ACTIVATION: tl.constexpr,
):
    """Bias, activation, residual; then the output in its dtype, quantised by `out_scale`."""
    if bias is not None:
        y = y + tl.load(bias + output, mask=in_outputs, other=0.0).to(tl.float32)[None, :]
    y = activate(y, ACTIVATION)
    if residual is not None:
        y = y + tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    if out_scale is not None:
        one = tl.full((1,), 1.0, tl.float32)
        inverse = tl.div_rn(one, tl.load(out_scale + tl.arange(0, 1)))
        level = to_level(tl.where(y == y, y, float("-inf")), inverse[:, None])
        if out_zero_point is not None:
            level = level + tl.load(out_zero_point).to(tl.float32)
        level = tl.where(level > 127.0, 127.0, level)
        level = tl.where(level < -128.0, -128.0, level)
        tl.store(out + at, level.to(tl.int32).to(tl.int8), mask=inside)
    else:
        tl.store(out + at, y.to(out.dtype.element_ty), mask=inside)


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


_SIGNATURE = {
    "x": "*i8",
    "weight": "*i8",
    "out": "*bf16",
    "row_scale": "*fp32",
    "row_zero_point": "*i32",
    "weight_scale": "*fp32",
    "weight_sums": "*i32",
    "bias": "*bf16",
    "residual": "*bf16",
    "out_scale": "*fp32",
    "out_zero_point": "*i32",
    "rows": "i32",
    "outputs": "i32",
    "group_inputs": "i32",
    "groups": "i32",
    "x_stride": "i64",
    "weight_stride": "i64",
    "packed_group_inputs": "i32",
    "row_scale_stride": "i32",
    "row_zero_stride": "i32",
    "scale_stride": "i32",
    "scale_group_stride": "i32",
    "sums_stride": "i32",
}
_DIVISIBLE = (
    "x",
    "weight",
    "out",
    "bias",
    "residual",
    "outputs",
    "group_inputs",
    "x_stride",
    "weight_stride",
    "packed_group_inputs",
)
_EPILOGUE = (
    "row_scale",
    "row_zero_point",
    "weight_scale",
    "weight_sums",
    "bias",
    "residual",
    "out_scale",
    "out_zero_point",
)


def _case(
    name: str,
    tile: str,
    absent: tuple[str, ...],
    *,
    out: str = "*bf16",
    activation: int = 0,
    grouped: bool = False,
    packed: bool = False,
) -> AotCase:
    signature = {k: v for k, v in _SIGNATURE.items() if k not in absent} | {"out": out}
    shape = TILES[tile]
    constants = {
        **dict.fromkeys(absent),
        "ACTIVATION": activation,
        "GROUPED": grouped,
        "PACKED": packed,
        "EVEN": True,
        "ROWS": shape.rows,
        "OUTPUTS": shape.outputs,
        "INPUTS": shape.inputs,
        "SLICES": shape.slices,
    }
    return AotCase(
        f"int8_gemm/{tile}/{name}",
        int8_gemm_kernel,
        signature,
        constants,
        shape.num_warps,
        shape.num_stages,
        capabilities=shape.capabilities,
        divisible=_DIVISIBLE,
    )


def aot_cases() -> Iterator[AotCase]:
    """Every tile with the plain product and the fullest epilogue; groups and packed weights."""
    quantized = ("out_scale", "out_zero_point")
    no_zero = ("row_zero_point", "weight_sums")
    for tile in TILES:
        if not tile.startswith("groups"):
            yield _case("mm", tile, _EPILOGUE, out="*i32")
            yield _case("gelu_residual", tile, (*quantized, *no_zero), activation=2)
            yield _case("requantized", tile, (), out="*i8", activation=4)
        if tile.startswith(("rows16", "groups")):
            yield _case("grouped", tile, quantized, grouped=True, activation=3)
            yield _case("grouped_packed", tile, (*quantized, *no_zero), grouped=True, packed=True)
        if tile.startswith(("rows", "square")):
            yield _case("packed", tile, quantized, packed=True, activation=3)
    yield AotCase(
        "int8_gemm/weight_sums",
        weight_sums_kernel,
        {
            "weight": "*i8",
            "sums": "*i32",
            "outputs": "i32",
            "group_inputs": "i32",
            "weight_stride": "i64",
        },
        SUMS_TILE,
        num_warps=4,
        num_stages=3,
        matrix=False,
        divisible=("weight", "group_inputs", "weight_stride"),
    )
