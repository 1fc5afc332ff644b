"""The ops of the bucket family on Triton: tables of pointers, allocation, launches."""

from __future__ import annotations

import collections
from collections.abc import Sequence

import torch
import triton

from lepton_kernels import _dispatch
from lepton_kernels.ops import bucket as contract
from lepton_kernels.ops._bucket_checks import check_floats, check_one_dtype
from lepton_kernels.reference.bucket import ALIGN_BYTES
from lepton_kernels.triton.bucket_kernels import (
    CHUNK,
    COLUMNS,
    DTYPES,
    dequantize_blocks_kernel,
    flatten_kernel,
    quantize_blocks_kernel,
    reduce_kernel,
    squares_kernel,
    sum_ranges_kernel,
    unflatten_kernel,
    unscale_kernel,
)
from lepton_kernels.triton.launch import check_device, wrap

_CODES = {getattr(torch, name): code for code, name in enumerate(DTYPES)}
_WARPS = 8
# Gradients lie at the same addresses step after step, so their tables are kept.
_KEPT_TABLES = 256
_tables: collections.OrderedDict[tuple[object, ...], torch.Tensor] = collections.OrderedDict()


def _on_device(
    key: tuple[object, ...], rows: Sequence[object], device: torch.device
) -> torch.Tensor:
    """The int64 table of `rows` on the device, from the tables kept if `key` is there."""
    if key in _tables:
        _tables.move_to_end(key)
        return _tables[key]
    table = torch.tensor(rows, dtype=torch.int64)
    if device.type == "cuda":
        table = table.pin_memory().to(device)
    _tables[key] = table
    if len(_tables) > _KEPT_TABLES:
        _tables.popitem(last=False)
    return table


def _identity(tensors: Sequence[torch.Tensor]) -> tuple[object, ...]:
    return tuple((t.data_ptr(), t.numel(), _CODES[t.dtype]) for t in tensors)


def _chunks(tensors: Sequence[torch.Tensor], align: int = 1) -> tuple[torch.Tensor, int]:
    """Table of the chunks of contiguous tensors that lie `align`ed in a bucket, and its length."""
    rows: list[list[int]] = []
    place = 0
    for tensor in tensors:
        code, size, address = _CODES[tensor.dtype], tensor.itemsize, tensor.data_ptr()
        count = tensor.numel()
        padded = -(-count // align) * align
        for start in range(0, count, CHUNK):
            inside = min(CHUNK, count - start)
            written = min(CHUNK, padded - start)
            rows.append([address + start * size, inside, place + start, written, code])
        place += padded
    key = ("chunks", align, str(tensors[0].device), _identity(tensors))
    table = _on_device(key, rows, tensors[0].device) if rows else torch.empty((0, COLUMNS))
    return table, place


def _contiguous(op: str, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    for tensor in tensors:
        check_device(op, tensor)
    return [tensor.contiguous() for tensor in tensors]


def bucket_flatten(
    tensors: Sequence[torch.Tensor], dtype: torch.dtype, factor: float
) -> torch.Tensor:
    """The op `bucket_flatten` on Triton; see `lepton_kernels.bucket_flatten`."""
    check_floats("bucket_flatten", "tensors", tensors)
    if not tensors:
        return torch.zeros(0, dtype=dtype)
    sources = _contiguous("bucket_flatten", tensors)
    table, length = _chunks(sources, ALIGN_BYTES // dtype.itemsize)
    flat = torch.empty(length, dtype=dtype, device=tensors[0].device)
    if table.shape[0]:
        flatten_kernel[(table.shape[0],)](table, flat, factor, CHUNK=CHUNK, num_warps=_WARPS)
    return flat


def bucket_unflatten_(tensors: Sequence[torch.Tensor], flat: torch.Tensor, factor: float) -> None:
    """The op `bucket_unflatten_` on Triton."""
    contract._fake_unflatten(tensors, flat, factor)
    if not tensors:
        return
    check_device("bucket_unflatten_", flat)
    table, _ = _chunks(tensors, ALIGN_BYTES // flat.dtype.itemsize)
    if table.shape[0]:
        unflatten_kernel[(table.shape[0],)](table, flat, factor, CHUNK=CHUNK, num_warps=_WARPS)


def bucket_reduce(
    inputs: Sequence[torch.Tensor], average: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op `bucket_reduce` on Triton."""
    inputs = check_one_dtype("bucket_reduce", "inputs", inputs)
    sources = _contiguous("bucket_reduce", inputs)
    device = sources[0].device
    reduced = torch.empty(sources[0].shape, dtype=dtype, device=device)
    programs = triton.cdiv(reduced.numel(), CHUNK)
    partial = torch.empty(programs, dtype=torch.float64, device=device)
    if programs:
        key = ("pointers", str(device), _identity(sources))
        table = _on_device(key, [t.data_ptr() for t in sources], device)
        reduce_kernel[(programs,)](
            table,
            reduced,
            partial,
            len(sources),
            reduced.numel(),
            AVERAGE=average,
            DTYPE=_CODES[sources[0].dtype],
            CHUNK=CHUNK,
            num_warps=_WARPS,
        )
    return reduced, partial.sum()


def bucket_unscale_(
    tensors: Sequence[torch.Tensor], found_inf: torch.Tensor, inverse: torch.Tensor
) -> None:
    """The op `bucket_unscale_` on Triton."""
    contract._fake_unscale(tensors, found_inf, inverse)
    if not tensors:
        return
    check_device("bucket_unscale_", found_inf)
    table, _ = _chunks(tensors)
    if table.shape[0]:
        unscale_kernel[(table.shape[0],)](table, found_inf, inverse, CHUNK=CHUNK, num_warps=_WARPS)


def bucket_squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The op `bucket_squares` on Triton."""
    check_floats("bucket_squares", "tensors", tensors)
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    sources = _contiguous("bucket_squares", tensors)
    device = sources[0].device
    table, _ = _chunks(sources)
    out = torch.zeros(len(sources), dtype=torch.float64, device=device)
    if table.shape[0]:
        first = [0]
        for tensor in sources:
            first.append(first[-1] + triton.cdiv(tensor.numel(), CHUNK))
        partial = torch.empty(table.shape[0], dtype=torch.float64, device=device)
        squares_kernel[(table.shape[0],)](table, partial, CHUNK=CHUNK, num_warps=_WARPS)
        ranges = _on_device(("ranges", str(device), *first), first, device)
        sum_ranges_kernel[(len(sources),)](partial, ranges, out, BLOCK=256, num_warps=_WARPS)
    return out


def bucket_quantize(
    x: torch.Tensor, residual: torch.Tensor | None, block: int, fp8: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The op `bucket_quantize` on Triton; float8 by integer arithmetic, so on sm_80 too."""
    q, scale = contract._fake_quantize(x, residual, block, fp8)
    check_device("bucket_quantize", x)
    if x.numel():
        columns = min(triton.next_power_of_2(block), CHUNK)
        rows = CHUNK // columns
        wrap(quantize_blocks_kernel)[(triton.cdiv(scale.numel(), rows),)](
            x,
            residual,
            q,
            scale,
            x.numel(),
            scale.numel(),
            block,
            FP8=fp8,
            ROWS=rows,
            BLOCK=columns,
            num_warps=_WARPS,
        )
    return q, scale


def bucket_dequantize_(
    out: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    block: int,
    fp8: bool,
    factor: float,
    accumulate: bool,
) -> None:
    """The op `bucket_dequantize_` on Triton."""
    contract._fake_dequantize(out, q, scale, block, fp8, factor, accumulate)
    check_device("bucket_dequantize_", out)
    if out.numel():
        wrap(dequantize_blocks_kernel)[(triton.cdiv(out.numel(), CHUNK),)](
            out,
            q,
            scale,
            out.numel(),
            block,
            factor,
            FP8=fp8,
            ACCUMULATE=accumulate,
            CHUNK=CHUNK,
            num_warps=_WARPS,
        )


# Tables hold the addresses of tensors, which exist only when a graph runs: torch.compile calls
# these ops as they are. One launch for each tensor could be traced, but is what they save.
for _launcher in (
    bucket_flatten,
    bucket_unflatten_,
    bucket_reduce,
    bucket_unscale_,
    bucket_squares,
):
    _dispatch.register_triton(_launcher.__name__, _launcher, traced=False)
_dispatch.register_triton("bucket_quantize", bucket_quantize)
_dispatch.register_triton("bucket_dequantize_", bucket_dequantize_)
