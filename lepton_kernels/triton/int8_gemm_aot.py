"""The int8 product as the ahead-of-time gate compiles it: every tile, few epilogues."""

from __future__ import annotations

from collections.abc import Iterator

from lepton_kernels.triton.int8_gemm import SUMS_TILE, TILES, int8_gemm_kernel, weight_sums_kernel
from lepton_kernels.triton.launch import FEW_ROWS, NO_PRODUCT, AotCase

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
        mma_sync=FEW_ROWS if shape.rows < 64 else "",
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
        no_matrix=NO_PRODUCT,
        divisible=("weight", "group_inputs", "weight_stride"),
    )
