"""The ops `sparse_linear` and its gradients on Triton: what they check, allocate and launch."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton

from lepton_kernels import _dispatch
from lepton_kernels.ops.sparse_linear import LinearArguments, check_arguments, check_header
from lepton_kernels.reference import sparse_weight
from lepton_kernels.reference.int8_linear import _activation_gradient
from lepton_kernels.reference.sparse_weight import SparseHeader, read_header
from lepton_kernels.triton.float_gemm import _mode, float_gemm
from lepton_kernels.triton.gemm import Epilogue
from lepton_kernels.triton.int8_linear import launch_int8_gemm
from lepton_kernels.triton.launch import INTERPRETED, check_device, wrap
from lepton_kernels.triton.once import remembered
from lepton_kernels.triton.quantize_int8 import quantize_rows
from lepton_kernels.triton.sparse_strips import (
    COUNT_WORDS,
    EXPAND_INPUTS,
    expand_bitmask_kernel,
    expand_block_kernel,
    strip_inputs,
    strip_product_kernel,
)

# Up to this many rows the weight is expanded inside the product, beyond it once before.
MOST_NARROW_ROWS = 64


class _Sections(NamedTuple):
    """A packed weight, taken apart."""

    header: SparseHeader
    scale: torch.Tensor
    offsets: torch.Tensor
    pattern: torch.Tensor
    values: torch.Tensor

    @property
    def is_int8(self) -> bool:
        return self.header.value_dtype == torch.int8


def _header(packed: torch.Tensor) -> SparseHeader:
    """What the header says; waits for the GPU the first time that it sees the tensor."""
    return remembered(lambda tensor: read_header("sparse_linear", tensor), packed)


def _sections(packed: torch.Tensor, header: SparseHeader) -> _Sections:
    scale, _, offsets, pattern, values, _ = header.sections
    quads = header.value_dtype == torch.int8 and not header.is_block
    return _Sections(
        header,
        packed[scale : scale + 4 * header.out_features].view(torch.float32),
        packed[offsets : offsets + 8 * (header.strips + 1)].view(torch.int64),
        packed[pattern:values].view(torch.int64 if quads else torch.int16),
        packed[values:].view(header.value_dtype),
    )


def expand(parts: _Sections) -> torch.Tensor:
    """The stored values as a dense matrix (outputs, inputs) of their dtype, int8 without steps."""
    header = parts.header
    shape = (header.out_features, header.in_features)
    make = torch.zeros if header.is_block else torch.empty
    dense = make(shape, dtype=header.value_dtype, device=parts.values.device)
    common = (parts.pattern, parts.values, parts.offsets, dense, *shape)
    if dense.numel() == 0:
        return dense
    if header.is_block:
        wrap(expand_block_kernel)[(header.strips,)](
            *common, QUADS=parts.is_int8, INPUTS=EXPAND_INPUTS, num_warps=4
        )
    else:
        grid = (header.strips, triton.cdiv(header.in_features, EXPAND_INPUTS))
        wrap(expand_bitmask_kernel)[grid](
            *common,
            header.in_padded,
            QUADS=parts.is_int8,
            INPUTS=EXPAND_INPUTS,
            COUNTED=COUNT_WORDS,
            num_warps=4,
        )
    return dense


def _refuse_float64(out_dtype: torch.dtype, *tensors: torch.Tensor | None) -> None:
    if torch.float64 in (out_dtype, *(t.dtype for t in tensors if t is not None)):
        raise NotImplementedError(
            "sparse_linear: float64 has no Triton kernel; supported: float32, bfloat16, float16 "
            "(float64: lepton_kernels.force_backend('reference'))"
        )


def sparse_linear(*values: Any) -> torch.Tensor:
    """The op `sparse_linear` on Triton; see `lepton_kernels.sparse_linear`."""
    return _linear(LinearArguments(*values), _header(values[1]))


def sparse_linear_traced(*values: Any) -> torch.Tensor:
    """The op `sparse_linear_traced` on Triton: what the header says is given."""
    return _linear(LinearArguments(*values[:-1]), SparseHeader(*values[-1]))


def _linear(arguments: LinearArguments, header: SparseHeader) -> torch.Tensor:
    check_arguments(arguments)
    x, packed, bias, residual, out_features, activation, out_dtype = arguments
    check_device("sparse_linear", x)
    _refuse_float64(out_dtype, x, bias, residual)
    check_header(header, x, out_features)
    parts = _sections(packed, header)
    rows = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    out = torch.empty((*x.shape[:-1], out_features), dtype=out_dtype, device=x.device)
    if out.numel() == 0:
        return out
    epilogue = Epilogue(bias, residual, activation=activation).contiguous()
    row_scale = None
    if parts.is_int8:
        rows, row_scale, _ = quantize_rows(rows, pad=16)
    if rows.shape[0] <= MOST_NARROW_ROWS:
        launch_strip_product(parts, rows, out, row_scale, epilogue)
    elif parts.is_int8:
        launch_int8_gemm(
            rows,
            expand(parts),
            out,
            inputs=x.shape[-1],
            scale=parts.scale[:, None],
            row_scale=row_scale,
            epilogue=epilogue,
        )
    else:
        float_gemm(rows, expand(parts), out, epilogue=epilogue)
    return out


def launch_strip_product(
    parts: _Sections,
    x: torch.Tensor,
    out: torch.Tensor,
    row_scale: torch.Tensor | None,
    epilogue: Epilogue,
) -> None:
    """Launch `strip_product_kernel`; `x` is int8 with `row_scale` for int8 values, else float."""
    header = parts.header
    mode = 0 if parts.is_int8 else _mode(x.dtype, header.value_dtype)
    tile_rows = 16 if x.shape[0] <= 16 or mode != 0 else 64
    wrap(strip_product_kernel)[(header.strips, triton.cdiv(x.shape[0], tile_rows))](
        x,
        parts.pattern,
        parts.values,
        parts.offsets,
        out,
        row_scale,
        parts.scale if parts.is_int8 else None,
        epilogue.bias,
        epilogue.residual,
        x.shape[0],
        header.out_features,
        header.in_features,
        header.in_padded,
        x.stride(0),
        ACTIVATION=epilogue.activation,
        BLOCKS=header.is_block,
        QUADS=parts.is_int8,
        DOT=mode,
        PRECISION="ieee" if INTERPRETED else "bf16x6",
        ROWS=tile_rows,
        INPUTS=strip_inputs(mode),
        num_warps=4,
    )


def sparse_linear_backward(*values: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The op `sparse_linear_backward` on Triton: gradients of the input and the bias."""
    grad, x, packed, bias, activation = values
    return _backward(grad, x, packed, bias, activation, _header(packed))


def sparse_linear_traced_backward(*values: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The op `sparse_linear_traced_backward` on Triton: what the header says is given."""
    grad, x, packed, bias, activation, header = values
    return _backward(grad, x, packed, bias, activation, SparseHeader(*header))


def _backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    activation: int,
    header: SparseHeader,
) -> tuple[torch.Tensor, torch.Tensor]:
    check_device("sparse_linear", x)
    _refuse_float64(grad.dtype, x, bias)
    parts = _sections(packed, header)
    outputs, inputs = grad.shape[-1], x.shape[-1]
    rows = x.reshape(x.shape[:-1].numel(), inputs)
    grad = grad.reshape(rows.shape[0], outputs)
    weight = expand(parts)
    if activation:
        pre = torch.empty(grad.shape, dtype=torch.float32, device=x.device)
        scale = parts.scale[:, None] if parts.is_int8 else None
        # int8 values: the quantisation of x passes straight through, so x stays float here.
        float_gemm(rows, weight, pre, scale=scale, epilogue=Epilogue(bias))
        grad = _activation_gradient(pre, grad.to(torch.float32), activation)
    grad_bias = grad.sum(0, dtype=torch.float32)
    grad_bias = grad_bias.to(x.dtype if bias is None else bias.dtype)
    if parts.is_int8:
        grad = grad.to(torch.float32) * parts.scale
    grad_x = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    float_gemm(grad, weight.t(), grad_x)
    return grad_x.reshape(x.shape), grad_bias


# The header of the packed weight says which kernel runs: where it must be read, torch.compile calls
# the op as it is.
for _launcher in (sparse_linear, sparse_linear_backward):
    _dispatch.register_triton(_launcher.__name__, _launcher, traced=False)
for _launcher in (sparse_linear_traced, sparse_linear_traced_backward):
    _dispatch.register_triton(_launcher.__name__, _launcher)
# Packing moves bytes: plain torch, on any device.
_dispatch.register_triton("pack_sparse", sparse_weight.pack_sparse, traced=False)
_dispatch.register_triton("unpack_sparse", sparse_weight.unpack_sparse, traced=False)
