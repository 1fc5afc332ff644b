"""The ops of the int8 family on Triton: what they check, allocate and launch."""

from __future__ import annotations

from typing import Any

import torch
import triton

from lepton_kernels import _dispatch
from lepton_kernels.ops._int8_checks import check_int8_linear, check_int8_values
from lepton_kernels.ops.int8_mm import _check as check_int8_mm
from lepton_kernels.reference import int8_linear as reference
from lepton_kernels.reference.packed_weight import HEADER_BYTES, PackedShape
from lepton_kernels.triton.float_gemm import float_gemm
from lepton_kernels.triton.gemm import NO_EPILOGUE, Epilogue, Tile
from lepton_kernels.triton.int8_gemm import (
    SUMS_TILE,
    int8_gemm_kernel,
    tile_for,
    weight_sums_kernel,
)
from lepton_kernels.triton.launch import capability, check_device, wrap
from lepton_kernels.triton.once import checked_once
from lepton_kernels.triton.quantize_int8 import quantize_rows


def int8_mm(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The op `int8_mm` on Triton; operands with other strides are copied first."""
    check_int8_mm(a, b)
    check_device("int8_mm", a)
    a = a if a.stride(1) == 1 else a.contiguous()
    weight = b.t() if b.stride(0) == 1 else b.t().contiguous()
    out = torch.empty((a.shape[0], b.shape[1]), dtype=torch.int32, device=a.device)
    launch_int8_gemm(a, weight, out, inputs=a.shape[1])
    return out


def int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    x_scale: torch.Tensor | None,
    x_zero_point: torch.Tensor | None,
    out_scale: torch.Tensor | None,
    out_zero_point: torch.Tensor | None,
    weight_only: bool,
    activation: int,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """The op `int8_linear` on Triton; see `lepton_kernels.int8_linear`."""
    quantizers = (x_scale, x_zero_point, out_scale, out_zero_point)
    outputs = check_int8_linear(
        x, weight, weight_scale, bias, residual, *quantizers, weight_only, activation, out_dtype
    )
    check_device("int8_linear", x)
    _refuse_float64(out_dtype, x, weight_scale, bias, residual)
    checked_once(check_int8_values, x, weight, weight_scale, *quantizers)
    inputs = x.shape[-1]
    rows = x.reshape(x.shape[:-1].numel(), inputs)
    out = torch.empty((*x.shape[:-1], outputs), dtype=out_dtype, device=x.device)
    if out.numel() == 0:
        return out
    scale = weight_scale.expand(outputs) if weight_scale.dim() == 0 else weight_scale
    scale = scale.reshape(outputs, -1)
    matrix, sums = _operand(weight, outputs, inputs, scale.shape[1])
    epilogue = Epilogue(bias, residual, out_scale, out_zero_point, activation).contiguous()
    if weight_only:
        float_gemm(rows, matrix, out, scale=scale, packed=sums is not None, epilogue=epilogue)
        return out
    quantized, row_scale, row_zero = _quantized(rows, x_scale, x_zero_point)
    if row_zero is not None and sums is None:
        sums = _weight_sums(matrix, scale.shape[1])
    launch_int8_gemm(
        quantized,
        matrix,
        out,
        inputs=inputs,
        packed=weight.dtype != torch.int8,
        scale=scale,
        row_scale=row_scale,
        row_zero_point=row_zero,
        sums=sums,
        epilogue=epilogue,
    )
    return out


def _refuse_float64(out_dtype: torch.dtype, *tensors: torch.Tensor | None) -> None:
    if torch.float64 in (out_dtype, *(t.dtype for t in tensors if t is not None)):
        raise NotImplementedError(
            "int8_linear: float64 has no Triton kernel; supported: float32, bfloat16, float16 "
            "(float64: lepton_kernels.force_backend('reference'))"
        )


def _operand(
    weight: torch.Tensor, outputs: int, inputs: int, groups: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The int8 matrix (of a packed weight: its strips), and the sums that a packed weight holds."""
    if weight.dtype == torch.int8:
        return (weight if weight.stride(1) == 1 else weight.contiguous()), None
    shape = PackedShape(outputs, inputs, inputs // groups)
    if weight.numel() != shape.bytes:
        raise ValueError(
            f"int8_linear: packed weight has {weight.numel()} bytes, x and weight_scale ask for "
            f"{shape.bytes}"
        )
    strips = weight[shape.tiles_offset :].view(torch.int8).view(-1, 16 * shape.in_padded)
    sums = weight[HEADER_BYTES : HEADER_BYTES + 4 * shape.groups * shape.out_padded]
    return strips, sums.view(torch.int32).view(shape.groups, shape.out_padded)


def _quantized(
    rows: torch.Tensor, x_scale: torch.Tensor | None, x_zero_point: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """int8 rows, their scales and zero points."""
    scale = None if x_scale is None else x_scale.reshape(-1)
    zero = None if x_zero_point is None else x_zero_point.reshape(-1)
    if rows.dtype == torch.int8:
        assert scale is not None
        return (rows if rows.stride(1) == 1 else rows.contiguous()), scale, zero
    if scale is not None and zero is not None and scale.numel() != zero.numel():
        scale = scale.expand(rows.shape[0]).contiguous()
        zero = zero.expand(rows.shape[0]).contiguous()
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    quantized, row_scale, _ = quantize_rows(rows, True, scale, zero, pad=16)
    return quantized, row_scale, zero


def _weight_sums(matrix: torch.Tensor, groups: int) -> torch.Tensor:
    """Sums over each group of a row-major weight: int32 (groups, outputs)."""
    outputs, inputs = matrix.shape
    sums = torch.empty((groups, outputs), dtype=torch.int32, device=matrix.device)
    grid = (triton.cdiv(outputs, SUMS_TILE["OUTPUTS"]), groups)
    wrap(weight_sums_kernel)[grid](
        matrix, sums, outputs, inputs // groups, matrix.stride(0), **SUMS_TILE, num_warps=4
    )
    return sums


def launch_int8_gemm(
    x: torch.Tensor,
    matrix: torch.Tensor,
    out: torch.Tensor,
    *,
    inputs: int,
    packed: bool = False,
    scale: torch.Tensor | None = None,
    row_scale: torch.Tensor | None = None,
    row_zero_point: torch.Tensor | None = None,
    sums: torch.Tensor | None = None,
    epilogue: Epilogue = NO_EPILOGUE,
    tile: Tile | None = None,
) -> None:
    """Launch `int8_gemm_kernel` on operands as it takes them.

    Args:
        x (Tensor): int8, (rows, inputs), inputs adjacent.
        matrix (Tensor): int8, (outputs, inputs), inputs adjacent; or the strips of a packed weight.
        out (Tensor): contiguous, (..., outputs); written. int32 without `row_scale`.
        inputs (int): input features.
        packed (bool): `matrix` holds strips. Default: False.
        scale (Tensor, optional): float, (outputs, groups): steps of the weight.
        row_scale (Tensor, optional): float32, (rows,) or (1,): steps of x.
        row_zero_point (Tensor, optional): int32, (rows,) or (1,); needs `sums`.
        sums (Tensor, optional): int32, (groups, outputs or more): sums of the weight.
        epilogue (Epilogue): what follows the product.
        tile (Tile, optional): Default: None, by the shape.
    """
    rows, outputs = x.shape[0], out.shape[-1]
    if out.numel() == 0:
        return
    groups = 1 if scale is None else scale.shape[1]
    width = inputs // groups
    stored_width = (width + 3) // 4 * 4 if packed else width
    tile = tile or tile_for(rows, outputs, capability(x), packed=packed, grouped=groups > 1)
    arguments: dict[str, Any] = {
        "ACTIVATION": epilogue.activation,
        "GROUPED": groups > 1,
        "PACKED": packed,
        "EVEN": width % tile.inputs == 0,
        "ROWS": tile.rows,
        "OUTPUTS": tile.outputs,
        "INPUTS": tile.inputs,
        "SLICES": tile.slices,
    }
    programs = triton.cdiv(rows, tile.rows) * triton.cdiv(outputs, tile.outputs)
    wrap(int8_gemm_kernel)[(programs,)](
        x,
        matrix,
        out,
        row_scale,
        row_zero_point,
        scale,
        sums if row_zero_point is not None else None,
        *epilogue.tensors,
        rows,
        outputs,
        width,
        groups,
        x.stride(0),
        matrix.stride(0),
        stored_width,
        int(row_scale is not None and row_scale.numel() > 1),
        int(row_zero_point is not None and row_zero_point.numel() > 1),
        0 if scale is None else scale.stride(0),
        0 if scale is None else scale.stride(1),
        0 if sums is None else sums.stride(0),
        **arguments,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def int8_linear_qat(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    x_scale: torch.Tensor | None,
    x_zero_point: torch.Tensor | None,
    group_size: int,
    activation: int,
) -> torch.Tensor:
    """The op `int8_linear_qat` on Triton: quantises the float weight, then `int8_linear`."""
    grouped = weight.reshape(-1, group_size) if group_size else weight
    q, scale, _ = quantize_rows(grouped.contiguous())
    scale = scale.reshape(weight.shape[0], -1)
    quantizers = (x_scale, x_zero_point, None, None)
    q = q.reshape(weight.shape)
    return int8_linear(x, q, scale, bias, None, *quantizers, False, activation, x.dtype)


_dispatch.register_triton("int8_mm", int8_mm)
_dispatch.register_triton("int8_linear", int8_linear)
_dispatch.register_triton("int8_linear_qat", int8_linear_qat)
# Gradients are float products, which torch's own matmul serves, and packing moves bytes: plain
# torch, on any device. Those that read the header of a packed weight can't be traced.
_dispatch.register_triton("int8_linear_qat_backward", reference.int8_linear_qat_backward)
_dispatch.register_triton("int8_linear_backward", reference.int8_linear_backward, traced=False)
_dispatch.register_triton("pack_int8_weight", reference.pack_int8_weight, traced=False)
_dispatch.register_triton("unpack_int8_weight", reference.unpack_int8_weight, traced=False)
