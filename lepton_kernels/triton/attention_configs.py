"""Named configurations of the attention kernels, and which one a call gets.

The choice depends on dtype, head dimension, options and architecture, never on a timing: the same
inputs give the same bits in every run. Each configuration compiles without spills where it is used
(`aot_cases`, checked by the ahead-of-time gate).
"""

from __future__ import annotations

import dataclasses

import torch


@dataclasses.dataclass(frozen=True)
class Tile:
    """Rows of queries and keys of a tile, warps of a program, depth of the pipeline."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


# By kernel, then by the padded head dimension.
FAST = {
    "forward": {64: Tile(128, 64, 4, 3), 128: Tile(128, 64, 8, 2), 256: Tile(64, 32, 8, 2)},
    "query": {64: Tile(64, 64, 4, 2), 128: Tile(64, 64, 8, 2), 256: Tile(32, 32, 4, 1)},
    "key": {64: Tile(32, 64, 4, 2), 128: Tile(32, 64, 8, 1), 256: Tile(32, 32, 8, 1)},
}
# In their place but on sm_90, where the sums of wgmma lie in registers, and 64 rows would spill.
FAST_256 = {"query": Tile(64, 32, 8, 1), "key": Tile(16, 64, 8, 1)}
# With options that take registers: window, softcap, ALiBi, bias, dropout.
DEMANDING = {
    "forward": {64: Tile(64, 32, 4, 2), 128: Tile(64, 32, 8, 1), 256: Tile(64, 16, 8, 1)},
    "query": {64: Tile(64, 32, 8, 1), 128: Tile(64, 32, 8, 1), 256: Tile(32, 32, 8, 1)},
    "key": {64: Tile(16, 64, 4, 1), 128: Tile(16, 64, 8, 1), 256: Tile(16, 32, 8, 1)},
    "bias": {64: Tile(64, 32, 8, 1), 128: Tile(64, 32, 8, 1), 256: Tile(64, 16, 8, 1)},
}
FLOAT32 = {
    "forward": {64: Tile(32, 16, 8, 1), 128: Tile(32, 16, 8, 1), 256: Tile(16, 16, 8, 1)},
    "query": {64: Tile(32, 32, 4, 1), 128: Tile(16, 16, 4, 1), 256: Tile(16, 16, 4, 1)},
    "key": {64: Tile(32, 16, 8, 1), 128: Tile(32, 16, 8, 1), 256: Tile(16, 16, 16, 1)},
    "bias": {64: Tile(32, 32, 8, 1), 128: Tile(32, 16, 8, 1), 256: Tile(16, 16, 8, 1)},
}
# float32 whose products may be TF32.
TF32 = {
    "forward": {64: Tile(64, 32, 8, 1), 128: Tile(64, 32, 8, 1), 256: Tile(32, 16, 8, 1)},
    "query": {64: Tile(64, 16, 8, 1), 128: Tile(64, 16, 8, 1), 256: Tile(32, 16, 8, 1)},
    "key": {64: Tile(16, 64, 4, 1), 128: Tile(16, 32, 8, 1), 256: Tile(16, 16, 8, 1)},
    "bias": {64: Tile(64, 32, 8, 1), 128: Tile(64, 16, 8, 1), 256: Tile(16, 16, 8, 1)},
}


def padded(dim: int) -> int:
    """A power of two, at least 16, as tiles have it."""
    return max(16, 1 << max(dim - 1, 0).bit_length())


def precision(dtype: torch.dtype) -> str:
    """How float32 products are taken: as torch's own, exact unless the user allows TF32."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return "ieee"


def choose(
    kernel: str,
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    demanding: bool,
    capability: int = 80,
) -> Tile:
    """The configuration of `kernel` ("forward", "query", "key" or "bias") for a call."""
    width = max(padded(head_dim), padded(value_dim), 64)
    if dtype == torch.float32:
        return (TF32 if precision(dtype) == "tf32" else FLOAT32)[kernel][width]
    if demanding:
        return DEMANDING[kernel][width]
    if width == 256 and capability // 10 != 9:
        return FAST_256.get(kernel, FAST[kernel][width])
    return FAST[kernel][width]


# By the number of queries and heads that share a key, then by the padded head dimension.
CACHED = {
    16: {64: Tile(16, 64, 4, 3), 128: Tile(16, 64, 4, 1), 256: Tile(16, 32, 4, 1)},
    64: {64: Tile(64, 64, 4, 2), 128: Tile(64, 64, 8, 1), 256: Tile(64, 16, 8, 1)},
}
CACHED_FLOAT32 = {64: Tile(16, 32, 8, 1), 128: Tile(16, 32, 4, 1), 256: Tile(16, 16, 8, 1)}


def cached_tile(dtype: torch.dtype, head_dim: int, value_dim: int, rows: int) -> Tile:
    """The configuration of attention over a cache; `rows` queries and heads share a key."""
    width = max(padded(head_dim), padded(value_dim), 64)
    if dtype == torch.float32:
        return CACHED_FLOAT32[width]
    return CACHED[16 if rows <= 16 else 64][width]
