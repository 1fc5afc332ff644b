"""The packed int8 weight: one layout for every instruction set, as bytes in a 1-D uint8 tensor.

    64 bytes    header, eight int64: magic, version, out_features, in_features, group_size,
                padded group, padded in_features, padded out_features
    sums        int32 [groups][padded out_features]: sums of each row's weights over a group
    0-60 bytes  up to a multiple of 64
    tiles       int8 [padded out / 16][padded in / 64][16][16][4]:
                strip, block of k, k / 4 in the block, row, k % 4

A tile of 1 KiB is a B operand of AMX; a 64-byte line of it is an operand of `vpdpbusd`; half a
line, sign-extended, is one of `vpmaddwd`. Groups are padded to multiples of 4 so that no quadruple
of k crosses a group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

MAGIC = 0x38_54_4E_49_4E_54_50_4C  # "LPTNINT8", little endian
VERSION = 1
HEADER_BYTES = 64


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of `multiple` that is not below `value`."""
    return (value + multiple - 1) // multiple * multiple


class PackedShape(NamedTuple):
    """Sizes of a packed weight; `group_size` equals `in_features` where there is one group."""

    out_features: int
    in_features: int
    group_size: int

    @property
    def groups(self) -> int:
        """Number of groups along `in_features`."""
        return self.in_features // self.group_size if self.in_features else 1

    @property
    def group_padded(self) -> int:
        """Group size up to a multiple of 4."""
        return round_up(self.group_size, 4)

    @property
    def in_padded(self) -> int:
        """`in_features` with every group padded, up to a multiple of 64."""
        return round_up(self.groups * self.group_padded, 64)

    @property
    def out_padded(self) -> int:
        """`out_features` up to a multiple of 16."""
        return round_up(self.out_features, 16)

    @property
    def tiles_offset(self) -> int:
        """First byte of the tiles."""
        return HEADER_BYTES + round_up(4 * self.groups * self.out_padded, 64)

    @property
    def bytes(self) -> int:
        """Length of the packed tensor."""
        return self.tiles_offset + self.out_padded * self.in_padded


def pack_int8_weight(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """Pack an int8 weight (N, K); `group_size` 0 means one group."""
    out_features, in_features = weight.shape
    shape = PackedShape(out_features, in_features, group_size or in_features)
    grouped = weight.new_zeros(shape.out_padded, shape.groups, shape.group_padded)
    grouped[:out_features, :, : shape.group_size] = weight.reshape(
        out_features, shape.groups, shape.group_size
    )
    flat = weight.new_zeros(shape.out_padded, shape.in_padded)
    flat[:, : shape.groups * shape.group_padded] = grouped.flatten(1)
    strips, blocks = shape.out_padded // 16, shape.in_padded // 64
    tiles = flat.view(strips, 16, blocks, 16, 4).permute(0, 2, 3, 1, 4)

    header = torch.tensor(
        [
            MAGIC,
            VERSION,
            *shape,
            shape.group_padded,
            shape.in_padded,
            shape.out_padded,
        ],
        dtype=torch.int64,
        device=weight.device,
    )
    sums = grouped.sum(-1, dtype=torch.int32).t().contiguous()
    packed = torch.zeros(shape.bytes, dtype=torch.uint8, device=weight.device)
    packed[:HEADER_BYTES] = header.view(torch.uint8)
    packed[HEADER_BYTES : HEADER_BYTES + 4 * sums.numel()] = sums.flatten().view(torch.uint8)
    packed[shape.tiles_offset :] = tiles.reshape(-1).view(torch.uint8)
    return packed


def read_shape(op: str, packed: torch.Tensor) -> PackedShape:
    """Sizes from the header; ValueError if `packed` is no packed weight of this version."""
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() < HEADER_BYTES:
        raise ValueError(
            f"{op}: weight must be int8 of shape (out_features, in_features) or come from "
            f"pack_int8_weight, got {packed.dtype} of shape {tuple(packed.shape)}"
        )
    header = packed[:HEADER_BYTES].clone().view(torch.int64).tolist()
    if header[0] != MAGIC:
        raise ValueError(f"{op}: weight is uint8 but was not made by pack_int8_weight")
    if header[1] != VERSION:
        raise ValueError(
            f"{op}: weight was packed as version {header[1]}, this release reads version "
            f"{VERSION}; pack it again from the canonical int8 weight"
        )
    shape = PackedShape(*header[2:5])
    sane = min(shape) >= 0 and shape.in_features % max(shape.group_size, 1) == 0
    sane = sane and (shape.group_size > 0 or shape.in_features == 0)
    derived = [shape.group_padded, shape.in_padded, shape.out_padded] if sane else None
    if derived != header[5:] or shape.bytes != packed.numel():
        raise ValueError(
            f"{op}: packed weight is truncated or damaged: {packed.numel()} bytes, its header "
            f"asks for {shape.bytes if sane else 'nonsense'}"
        )
    return shape


def check_unpack(packed: torch.Tensor, out_features: int, in_features: int) -> PackedShape:
    """Sizes from the header; ValueError if it is not that of a weight of this shape."""
    shape = read_shape("unpack_int8_weight", packed)
    if (shape.out_features, shape.in_features) != (out_features, in_features):
        raise ValueError(
            f"unpack_int8_weight: packed weight has shape {tuple(shape[:2])}, "
            f"expected {(out_features, in_features)}"
        )
    return shape


def unpack_int8_weight(packed: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    """Canonical int8 weight (N, K) of a packed one."""
    shape = check_unpack(packed, out_features, in_features)
    tiles = packed[shape.tiles_offset :].view(torch.int8)
    strips, blocks = shape.out_padded // 16, shape.in_padded // 64
    flat = tiles.view(strips, blocks, 16, 16, 4).permute(0, 3, 1, 2, 4)
    flat = flat.reshape(shape.out_padded, shape.in_padded)[:out_features]
    grouped = flat[:, : shape.groups * shape.group_padded].reshape(
        out_features, shape.groups, shape.group_padded
    )
    return grouped[:, :, : shape.group_size].reshape(out_features, in_features).contiguous()
