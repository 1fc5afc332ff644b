"""What the int8 and the float matrix product share: tiles, their order, the epilogue."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from lepton_kernels.triton.numeric import activate, to_level


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


class Epilogue(NamedTuple):
    """What follows a product, as the arguments of the op `int8_linear`: tensors are contiguous."""

    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    out_scale: torch.Tensor | None = None
    out_zero_point: torch.Tensor | None = None
    activation: int = 0

    @property
    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        """The tensors, in the order in which kernels take them."""
        return self[:4]

    def contiguous(self) -> Epilogue:
        """The same with contiguous tensors."""
        bias, residual, scale, zero = (t if t is None else t.contiguous() for t in self.tensors)
        return Epilogue(bias, residual, scale, zero, self.activation)


NO_EPILOGUE = Epilogue()


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
def store_slices(
    y, out, bias, residual, out_scale, out_zero_point, first_row, first_output, rows, outputs,
    ACTIVATION: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """The epilogue on `SLICES` parts of the tile's columns in turn, which keeps registers free."""
    if SLICES > 1:
        halves = tl.reshape(y, (y.shape[0], 2, y.shape[1] // 2))
        left, right = tl.split(tl.permute(halves, (0, 2, 1)))
        store_slices(
            left, out, bias, residual, out_scale, out_zero_point, first_row,
            first_output, rows, outputs, ACTIVATION, SLICES // 2,
        )  # fmt: skip
        store_slices(
            right, out, bias, residual, out_scale, out_zero_point, first_row,
            first_output + y.shape[1] // 2, rows, outputs, ACTIVATION, SLICES // 2,
        )  # fmt: skip
    else:
        row = first_row + tl.arange(0, y.shape[0])
        output = first_output + tl.arange(0, y.shape[1])
        inside = (row < rows)[:, None] & (output < outputs)[None, :]
        at = (row.to(tl.int64) * outputs)[:, None] + output[None, :]
        store_output(
            y, out, bias, residual, out_scale, out_zero_point, output, output < outputs, at, inside,
            ACTIVATION,
        )  # fmt: skip


@triton.jit
def store_output(
    y, out, bias, residual, out_scale, out_zero_point, output, in_outputs, at, inside,
    ACTIVATION: tl.constexpr,
):  # fmt: skip
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
