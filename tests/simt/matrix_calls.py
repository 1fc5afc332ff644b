"""Tensors and numbers for the entry points of the matrix kernels."""

from __future__ import annotations

import torch

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, torch.int32: 4}
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")
SIZES = ("choose", "small", "medium", "large")
SCRATCH_BYTES = 4 << 20


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that begins at a multiple of 256 bytes, as torch's tensors do on CUDA."""
    item = tensor.element_size()
    room = torch.empty(tensor.numel() * item + 512, dtype=torch.uint8)
    begin = -room.data_ptr() % 256
    copy = room[begin : begin + tensor.numel() * item].view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)


def scratch() -> torch.Tensor:
    """Scratch memory full of bytes that no kernel should take for data."""
    return aligned(torch.full((SCRATCH_BYTES,), 0x5B, dtype=torch.uint8))


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An output full of NaN, or of the largest integer."""
    value = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max
    return aligned(torch.full(shape, value, dtype=dtype))
