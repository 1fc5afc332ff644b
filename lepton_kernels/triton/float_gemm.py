"""The float matrix product of weight-only int8 and of sparse values, with the same epilogue."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from lepton_kernels.triton.gemm import NO_EPILOGUE, Epilogue, Tile, store_slices, tile_of
from lepton_kernels.triton.launch import FEW_ROWS, INTERPRETED, AotCase, wrap
from lepton_kernels.triton.numeric import multiply

# HALF: both operands in the 16-bit dtype of x, products exact in float32.
# SPLIT: float32 x as the exact sum of three bfloat16, the weight exact in bfloat16.
# FULL: float32 operands, each product of six bfloat16 ones (Henry, Tang and Heinecke, 2019).
HALF, SPLIT, FULL = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
TILES = {
    "rows16": Tile(16, 32, 128, 4, 4),
    "rows64": Tile(64, 64, 64, 4, 3, 2),
    "square": Tile(128, 128, 64, 8, 3, 4),
    "rows16_fp32": Tile(16, 64, 32, 4, 3),
    "rows64_fp32": Tile(64, 64, 32, 8, 3, 2),
}


@triton.jit
def _leading(x):
    """The leading 8 bits of each float32, as a float32 that bfloat16 holds exactly."""
    return (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)


@triton.jit
def _product(a, b, total, DOT: tl.constexpr, PRECISION: tl.constexpr):
    """total + a b^T in float32."""
    if DOT == HALF:
        total = tl.dot(a, tl.trans(b.to(a.dtype)), total)
    elif DOT == SPLIT:
        weight = tl.trans(b.to(tl.bfloat16))
        high = _leading(a)
        # What is infinite has no rest.
        rest = tl.where(tl.abs(a) < float("inf"), a - high, 0.0)
        middle = _leading(rest)
        total = tl.dot((rest - middle).to(tl.bfloat16), weight, total)
        total = tl.dot(middle.to(tl.bfloat16), weight, total)
        total = tl.dot(high.to(tl.bfloat16), weight, total)
    else:
        left, right = a.to(tl.float32), tl.trans(b.to(tl.float32))
        total = tl.dot(left, right, total, input_precision=PRECISION)
    return total


@triton.jit
def float_gemm_kernel(
    x,
    weight,
    out,
    weight_scale,
    bias,
    residual,
    out_scale,
    out_zero_point,
    rows,
    outputs,
    group_inputs,
    groups,
    x_stride,
    x_input_stride,
    weight_stride,
    weight_input_stride,
    packed_group_inputs,
    scale_stride,
    scale_group_stride,
    ACTIVATION: tl.constexpr,
    GROUPED: tl.constexpr,
    PACKED: tl.constexpr,
    EVEN: tl.constexpr,
    DOT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    SLICES: tl.constexpr,
):
    """out = activation(x weight^T scales + bias) + residual in float32.

    The weight is a matrix (outputs, inputs) of any strides or, with PACKED, in the strips of
    pack_int8_weight.
    """
    row_tile, output_tile = tile_of(rows, outputs, ROWS, OUTPUTS, 8)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    output = output_tile * OUTPUTS + tl.arange(0, OUTPUTS)
    loaded_row = tl.where(row < rows, row, 0).to(tl.int64)
    loaded_output = tl.where(output < outputs, output, 0).to(tl.int64)
    k = tl.arange(0, INPUTS)
    x_tile = x + (loaded_row * x_stride)[:, None] + (k.to(tl.int64) * x_input_stride)[None, :]
    if PACKED:
        in_strip = (loaded_output // 16) * weight_stride + (loaded_output % 16) * 4
        weight_tile = weight + in_strip[:, None] + (k // 4 * 64 + k % 4)[None, :]
        weight_step = tl.full((), 16, tl.int32).to(tl.int64) * weight_input_stride
    else:
        along = k.to(tl.int64) * weight_input_stride
        weight_tile = weight + (loaded_output * weight_stride)[:, None] + along[None, :]
        weight_step = weight_input_stride

    y = tl.zeros((ROWS, OUTPUTS), tl.float32)
    if GROUPED:
        total = tl.zeros((ROWS, OUTPUTS), tl.float32)
        steps = tl.cdiv(group_inputs, INPUTS)
        scale_row = weight_scale + loaded_output * scale_stride
        for step in range(0, steps * groups):
            group = (step // steps).to(tl.int64)
            start = step % steps * INPUTS
            x_at = (group * group_inputs + start) * x_input_stride
            weight_at = (group * packed_group_inputs + start) * weight_step
            inside = (k < group_inputs - start)[None, :]
            a = tl.load(x_tile + x_at, mask=inside, other=0.0)
            b = tl.load(weight_tile + weight_at, mask=inside, other=0)
            total = _product(a, b, total, DOT, PRECISION)
            if start + INPUTS >= group_inputs:
                scale = tl.load(scale_row + group * scale_group_stride).to(tl.float32)
                y += multiply(total, scale[None, :])
                total = tl.zeros((ROWS, OUTPUTS), tl.float32)
    else:
        inputs = tl.full((), INPUTS, tl.int32).to(tl.int64)
        for start in range(0, group_inputs, INPUTS):
            if EVEN:
                a = tl.load(x_tile)
                b = tl.load(weight_tile)
            else:
                inside = (k < group_inputs - start)[None, :]
                a = tl.load(x_tile, mask=inside, other=0.0)
                b = tl.load(weight_tile, mask=inside, other=0)
            y = _product(a, b, y, DOT, PRECISION)
            x_tile += inputs * x_input_stride
            weight_tile += inputs * weight_step
        if weight_scale is not None:
            scale = tl.load(weight_scale + loaded_output * scale_stride).to(tl.float32)
            y = multiply(y, scale[None, :])
    store_slices(
        y, out, bias, residual, out_scale, out_zero_point, row_tile * ROWS,
        output_tile * OUTPUTS, rows, outputs, ACTIVATION, SLICES,
    )  # fmt: skip


def _mode(x: torch.dtype, weight: torch.dtype) -> int:
    if INTERPRETED:
        # The interpreter has no bfloat16 product.
        return FULL.value
    if x in (torch.bfloat16, torch.float16) and weight in (x, torch.int8):
        return HALF.value
    if x == torch.float32 and weight in (torch.int8, torch.bfloat16):
        return SPLIT.value
    return FULL.value


def tile_for(rows: int, outputs: int, mode: int, groups: int, *, transposed: bool) -> Tile:
    """Tile of a product with this many rows of x and output features."""
    if mode != HALF.value:
        narrow = rows <= 16 and mode == SPLIT.value and not transposed
        return TILES["rows16_fp32" if narrow else "rows64_fp32"]
    if rows <= 16:
        return TILES["rows16"]
    return TILES["rows64" if rows <= 64 or outputs <= 64 or groups > 1 else "square"]


def float_gemm(
    x: torch.Tensor,
    matrix: torch.Tensor,
    out: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    packed: bool = False,
    epilogue: Epilogue = NO_EPILOGUE,
    tile: Tile | None = None,
) -> None:
    """Launch `float_gemm_kernel`.

    Args:
        x (Tensor): float, (rows, inputs), any stride.
        matrix (Tensor): int8 or float, (outputs, inputs), any stride; or the strips of a packed
            int8 weight.
        out (Tensor): contiguous, (..., outputs); written.
        scale (Tensor, optional): float, (outputs, groups). Default: None (1).
        packed (bool): `matrix` holds strips. Default: False.
        epilogue (Epilogue): what follows the product.
        tile (Tile, optional): Default: None, by the shape.
    """
    rows, inputs = x.shape
    outputs = out.shape[-1]
    if out.numel() == 0:
        return
    groups = 1 if scale is None else scale.shape[1]
    width = inputs // groups
    mode = _mode(x.dtype, matrix.dtype)
    transposed = not packed and matrix.stride(1) != 1
    tile = tile or tile_for(rows, outputs, mode, groups, transposed=transposed)
    programs = triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs)
    wrap(float_gemm_kernel)[(programs,)](
        x,
        matrix,
        out,
        scale,
        *epilogue.tensors,
        rows,
        outputs,
        width,
        groups,
        x.stride(0),
        x.stride(1),
        matrix.stride(0),
        1 if packed else matrix.stride(1),
        (width + 3) // 4 * 4 if packed else width,
        0 if scale is None else scale.stride(0),
        0 if scale is None else scale.stride(1),
        ACTIVATION=epilogue.activation,
        GROUPED=groups > 1,
        PACKED=packed,
        EVEN=width % tile.inputs == 0,
        DOT=mode,
        PRECISION="ieee" if INTERPRETED else "bf16x6",
        ROWS=tile.rows,
        OUTPUTS=tile.outputs,
        INPUTS=tile.inputs,
        SLICES=tile.slices,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


_SIGNATURE = {
    "x": "*bf16",
    "weight": "*i8",
    "out": "*bf16",
    "weight_scale": "*fp32",
    "bias": "*fp32",
    "residual": "*fp32",
    "rows": "i32",
    "outputs": "i32",
    "group_inputs": "i32",
    "groups": "i32",
    "x_stride": "i64",
    "weight_stride": "i64",
    "packed_group_inputs": "i32",
    "scale_stride": "i32",
    "scale_group_stride": "i32",
}


def _case(
    name: str,
    tile: str,
    x: str,
    weight: str,
    mode: int,
    *,
    grouped: bool = False,
    packed: bool = False,
    transposed: bool = False,
) -> AotCase:
    shape = TILES[tile]
    signature = _SIGNATURE | {"x": x, "weight": weight, "out": x}
    constants = {
        "x_input_stride": 1,
        "weight_input_stride": 1,
        "out_scale": None,
        "out_zero_point": None,
        "ACTIVATION": 0 if transposed else 2,
        "GROUPED": grouped,
        "PACKED": packed,
        "EVEN": not grouped,
        "DOT": mode,
        "PRECISION": "bf16x6",
        "ROWS": shape.rows,
        "OUTPUTS": shape.outputs,
        "INPUTS": shape.inputs,
        "SLICES": shape.slices,
    }
    if transposed:
        del constants["weight_input_stride"]
        signature["weight_input_stride"] = signature.pop("weight_stride")
        constants["weight_stride"] = 1
    if weight != "*i8":
        for argument in ("weight_scale", "bias", "residual"):
            del signature[argument]
            constants[argument] = None
    return AotCase(
        f"float_gemm/{tile}/{name}",
        float_gemm_kernel,
        signature,
        constants,
        shape.num_warps,
        shape.num_stages,
        mma_sync=FEW_ROWS if shape.rows < 64 else "",
        divisible=(
            "outputs",
            "group_inputs",
            "x_stride",
            "weight_stride",
            "weight_input_stride",
            "packed_group_inputs",
        ),
    )


def aot_cases() -> Iterator[AotCase]:
    """Every tile and kind of product: weight-only int8, sparse values, gradient of the input."""
    half, split, full = HALF.value, SPLIT.value, FULL.value
    for tile in ("rows16", "rows64", "square"):
        yield _case("bf16_int8", tile, "*bf16", "*i8", half)
        yield _case("fp16_fp16", tile, "*fp16", "*fp16", half)
        yield _case("bf16_bf16_transposed", tile, "*bf16", "*bf16", half, transposed=True)
    for tile in ("rows16", "rows64"):
        yield _case("bf16_int8_groups", tile, "*bf16", "*i8", half, grouped=True)
        yield _case("bf16_int8_packed", tile, "*bf16", "*i8", half, packed=True)
    for tile in ("rows16_fp32", "rows64_fp32"):
        yield _case("int8", tile, "*fp32", "*i8", split)
        yield _case("int8_groups", tile, "*fp32", "*i8", split, grouped=True)
    yield _case("fp32", "rows64_fp32", "*fp32", "*fp32", full)
    yield _case("fp32_transposed", "rows64_fp32", "*fp32", "*fp32", full, transposed=True)
    yield _case("bf16_transposed", "rows64_fp32", "*fp32", "*bf16", split, transposed=True)
