"""Bucket ops in plain PyTorch: the oracle of every other backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Blocks below this magnitude count as zeros. 2^-110.
SMALLEST_BLOCK = 2.0**-110
INT8_LEVELS = 127.0
FP8_LARGEST = 448.0
# Every tensor of a bucket begins at a multiple of this many bytes.
ALIGN_BYTES = 64


def offsets_of(tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> tuple[list[int], int]:
    """Element at which each tensor begins in a bucket of `dtype`, and the bucket's length."""
    align = ALIGN_BYTES // dtype.itemsize
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(end)
        end += -(-tensor.numel() // align) * align
    return offsets, end


def bucket_flatten(
    tensors: Sequence[torch.Tensor], dtype: torch.dtype, factor: float
) -> torch.Tensor:
    """Tensors side by side, aligned, scaled and cast; gaps are zero."""
    offsets, length = offsets_of(tensors, dtype)
    flat = torch.zeros(length, dtype=dtype, device=tensors[0].device if tensors else None)
    for tensor, at in zip(tensors, offsets, strict=True):
        flat[at : at + tensor.numel()] = (tensor.reshape(-1).float() * factor).to(dtype)
    return flat


def bucket_unflatten_(tensors: Sequence[torch.Tensor], flat: torch.Tensor, factor: float) -> None:
    """The reverse, into given tensors."""
    offsets, _ = offsets_of(tensors, flat.dtype)
    for tensor, at in zip(tensors, offsets, strict=True):
        part = flat[at : at + tensor.numel()].float() * factor
        tensor.copy_(part.view(tensor.shape))


def bucket_reduce(
    inputs: Sequence[torch.Tensor], average: bool, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum or mean in the given order, in fp32; and the sum of its squares."""
    total = inputs[0].float()
    for other in inputs[1:]:
        total = total + other.float()
    if average:
        total = total / len(inputs)
    return total.to(dtype), (total.double() ** 2).sum()


def bucket_unscale_(
    tensors: Sequence[torch.Tensor], found_inf: torch.Tensor, inverse: torch.Tensor
) -> None:
    """Multiply by `inverse`; found_inf becomes 1 where a product is not finite."""
    for tensor in tensors:
        scaled = tensor.float() * inverse.float()
        if not torch.isfinite(scaled).all():
            found_inf.fill_(1.0)
        tensor.copy_(scaled)


def bucket_squares(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sum of squares of each tensor."""
    if not tensors:
        return torch.zeros(0, dtype=torch.float64)
    return torch.stack([(tensor.double() ** 2).sum() for tensor in tensors])


def bucket_quantize(
    x: torch.Tensor, residual: torch.Tensor | None, block: int, fp8: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks to bytes and a scale each; the residual takes what rounding lost."""
    values = x.float() if residual is None else x.float() + residual
    blocks = -(-x.numel() // block)
    padded = torch.nn.functional.pad(values, (0, blocks * block - x.numel())).view(blocks, block)
    amax = padded.abs().amax(1) if blocks else padded.new_empty(0)
    finite = torch.isfinite(amax)
    zero = ~finite | (amax < SMALLEST_BLOCK)
    levels = FP8_LARGEST if fp8 else INT8_LEVELS
    # A tensor of levels: torch turns number / tensor into a reciprocal and a product.
    largest = torch.full_like(amax, levels)
    scale = torch.where(zero, torch.ones_like(amax), amax / largest)
    scale = torch.where(finite, scale, torch.nan)
    inverse = torch.where(zero, torch.zeros_like(amax), largest / amax)
    scaled = torch.where(finite[:, None], padded, 0.0) * inverse[:, None]
    if fp8:
        coded = scaled.clamp(-levels, levels).to(torch.float8_e4m3fn)
        decoded, q = coded.float(), coded.view(torch.int8)
    else:
        decoded = scaled.clamp(-levels, levels).round()
        q = decoded.to(torch.int8)
    if residual is not None:
        left = torch.where(finite[:, None], padded - decoded * scale[:, None], 0.0)
        residual.copy_(left.reshape(-1)[: x.numel()])
    return q.reshape(-1)[: x.numel()].clone(), scale


def bucket_dequantize_(
    out: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    block: int,
    fp8: bool,
    factor: float,
    accumulate: bool,
) -> None:
    """out = q * scale * factor, or out += that, in fp32, rounded once."""
    levels = q.view(torch.float8_e4m3fn).float() if fp8 else q.float()
    values = levels * scale.repeat_interleave(block)[: q.numel()] * factor
    out.copy_(out.float() + values if accumulate else values)


def bucket_outer_(
    out: torch.Tensor,
    left: Sequence[torch.Tensor],
    right: Sequence[torch.Tensor],
    divisor: float,
) -> None:
    """out = (sum of left^T right) / divisor, added in fp32, rounded once."""
    total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    for a, b in zip(left, right, strict=True):
        total.addmm_(a.float().t(), b.float())
    out.copy_(total / divisor)
