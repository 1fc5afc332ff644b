"""The packed sparse weight: one layout for every instruction set, as bytes in a 1-D uint8 tensor.

    128 bytes   header, sixteen int64: magic, version, layout, dtype, out_features, in_features,
                n, m, count (stored values, or stored blocks), zeros
    scale       float32 [padded out], int8 values only: one step per output feature
    sums        int32 [padded out], int8 values only: sum of each row's values
    offsets     int64 [strips + 1]: the first stored value (block) of each strip of 16 rows
    pattern     bitmask: one bit per element of the padded matrix, in the order of the strip;
                block: uint16 [count], the block's first input feature / 4
    values      the kept values, strip after strip; then 64 bytes, so that a kernel may load past
                the last value

Each section begins at a multiple of 64. out_features is padded to a multiple of 16, in_features
to a multiple of 64. The order inside a strip is [k / 4][row][k % 4] for int8, which is that of the
packed int8 weight, and [k][row] for floats; a block is 16 rows x 4 input features in that order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from lepton_kernels.reference.packed_weight import round_up

MAGIC = 0x4553_5253_4E_54_50_4C  # "LPTNSRSE", little endian
VERSION = 1
HEADER_BYTES = 128
STRIP = 16
BLOCK_INPUTS = 4
TAIL_BYTES = 64
LAYOUTS = ("bitmask", "n:m", "block")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


class SparseHeader(NamedTuple):
    """Sizes of a packed sparse weight, and where its sections lie."""

    layout: int
    dtype: int
    out_features: int
    in_features: int
    n: int
    m: int
    stored: int

    @property
    def is_block(self) -> bool:
        """Whether whole blocks are stored."""
        return LAYOUTS[self.layout] == "block"

    @property
    def value_dtype(self) -> torch.dtype:
        """dtype of the stored values."""
        return DTYPES[self.dtype]

    @property
    def strips(self) -> int:
        """Strips of 16 output features."""
        return round_up(self.out_features, STRIP) // STRIP

    @property
    def in_padded(self) -> int:
        """`in_features` up to a multiple of 64."""
        return round_up(self.in_features, 64)

    @property
    def sections(self) -> tuple[int, int, int, int, int, int]:
        """First byte of scale, sums, offsets, pattern and values, and the length of it all."""
        quantized = self.value_dtype == torch.int8
        scale = HEADER_BYTES
        sums = scale + (round_up(4 * STRIP * self.strips, 64) if quantized else 0)
        offsets = sums + (round_up(4 * STRIP * self.strips, 64) if quantized else 0)
        pattern = offsets + round_up(8 * (self.strips + 1), 64)
        pattern_bytes = 2 * (self.stored if self.is_block else self.strips * self.in_padded)
        values = pattern + round_up(pattern_bytes, 64)
        per_item = STRIP * BLOCK_INPUTS if self.is_block else 1
        size = self.stored * per_item * self.value_dtype.itemsize
        return scale, sums, offsets, pattern, values, values + round_up(size, 64) + TAIL_BYTES


def _to_strips(matrix: torch.Tensor, quads: bool) -> torch.Tensor:
    """A padded matrix in the order of the strips: (strips, in_padded * 16)."""
    rows, columns = matrix.shape
    if quads:
        parts = matrix.view(rows // STRIP, STRIP, columns // 4, 4).permute(0, 2, 1, 3)
    else:
        parts = matrix.view(rows // STRIP, STRIP, columns).permute(0, 2, 1)
    return parts.reshape(rows // STRIP, STRIP * columns)


def _from_strips(strips: torch.Tensor, header: SparseHeader, quads: bool) -> torch.Tensor:
    """Inverse of `_to_strips`, without the padding."""
    if quads:
        parts = strips.view(header.strips, header.in_padded // 4, STRIP, 4).permute(0, 2, 1, 3)
    else:
        parts = strips.view(header.strips, header.in_padded, STRIP).permute(0, 2, 1)
    matrix = parts.reshape(header.strips * STRIP, header.in_padded)
    return matrix[: header.out_features, : header.in_features].contiguous()


def pack_sparse(
    weight: torch.Tensor,
    mask: torch.Tensor,
    scale: torch.Tensor | None,
    layout: int,
    n: int,
    m: int,
) -> torch.Tensor:
    """Pack the values of `weight` (N, K) that the bool `mask` keeps."""
    out_features, in_features = weight.shape
    dtype = DTYPES.index(weight.dtype)
    quads = weight.dtype == torch.int8
    shape = SparseHeader(layout, dtype, out_features, in_features, n, m, 0)
    device = weight.device
    padded = weight.new_zeros(shape.strips * STRIP, shape.in_padded)
    padded[:out_features, :in_features] = torch.where(mask, weight, torch.zeros_like(weight))
    kept = torch.zeros(padded.shape, dtype=torch.bool, device=device)
    kept[:out_features, :in_features] = mask
    sums = padded.sum(1, dtype=torch.int32) if quads else None

    if shape.is_block:
        blocks = (shape.strips, shape.in_padded // BLOCK_INPUTS, STRIP * BLOCK_INPUTS)
        order = _to_strips(padded, quads).view(blocks)
        chosen = _to_strips(kept, quads).view(blocks).any(-1)
        values = order[chosen].flatten()
        count = int(chosen.sum())
        index = torch.arange(chosen.shape[1], device=device).expand_as(chosen)[chosen]
        # uint16 by the bits of int16: torch has few operations on uint16.
        signed = torch.where(index < 32768, index, index - 65536).to(torch.int16)
        pattern_bytes = signed.view(torch.uint8)
    else:
        order, chosen = _to_strips(padded, quads), _to_strips(kept, quads)
        values = order[chosen]
        count = values.numel()
        weights = 2 ** torch.arange(8, device=device, dtype=torch.uint8)
        pattern_bytes = (chosen.view(-1, 8).to(torch.uint8) * weights).sum(1, dtype=torch.uint8)

    header = shape._replace(stored=count)
    packed = torch.zeros(header.sections[-1], dtype=torch.uint8, device=device)
    offsets = torch.zeros(header.strips + 1, dtype=torch.int64, device=device)
    offsets[1:] = chosen.sum(1).cumsum(0)
    fields = torch.tensor([MAGIC, VERSION, *header], dtype=torch.int64, device=device)
    at_scale, at_sums, at_offsets, at_pattern, at_values, _ = header.sections
    _write(packed, 0, fields)
    if scale is not None:
        _write(packed, at_scale, scale.to(torch.float32))
    if sums is not None:
        _write(packed, at_sums, sums)
    _write(packed, at_offsets, offsets)
    _write(packed, at_pattern, pattern_bytes)
    _write(packed, at_values, values)
    return packed


def _write(packed: torch.Tensor, at: int, tensor: torch.Tensor) -> None:
    raw = tensor.contiguous().flatten().view(torch.uint8)
    packed[at : at + raw.numel()] = raw


def _read(packed: torch.Tensor, at: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    return packed[at : at + count * dtype.itemsize].clone().view(dtype)


def read_header(op: str, packed: torch.Tensor) -> SparseHeader:
    """Sizes from the header; ValueError if `packed` is no packed sparse weight of this version."""
    if packed.dtype != torch.uint8 or packed.dim() != 1 or packed.numel() < HEADER_BYTES:
        raise ValueError(
            f"{op}: weight must come from pack_sparse, got {packed.dtype} of shape "
            f"{tuple(packed.shape)}"
        )
    fields = packed[:HEADER_BYTES].clone().view(torch.int64).tolist()
    if fields[0] != MAGIC:
        raise ValueError(f"{op}: weight is uint8 but was not made by pack_sparse")
    if fields[1] != VERSION:
        raise ValueError(
            f"{op}: weight was packed as version {fields[1]}, this release reads version "
            f"{VERSION}; pack it again from the canonical values and mask"
        )
    header = SparseHeader(*fields[2:9])
    sane = (
        0 <= header.layout < len(LAYOUTS)
        and 0 <= header.dtype < len(DTYPES)
        and min(header) >= 0
        and max(header[2:]) < 2**40
    )
    if not sane or any(fields[9:]) or header.sections[-1] != packed.numel():
        raise ValueError(
            f"{op}: packed weight is truncated or damaged: {packed.numel()} bytes, its header "
            f"asks for {header.sections[-1] if sane else 'nonsense'}"
        )
    return header


def _pattern(packed: torch.Tensor, header: SparseHeader) -> torch.Tensor:
    """Stored elements (strips, in_padded * 16), or stored blocks (count,) by their first quad."""
    at = header.sections[3]
    if header.is_block:
        return _read(packed, at, header.stored, torch.int16).to(torch.int64) & 0xFFFF
    raw = packed[at : at + 2 * header.strips * header.in_padded]
    shifts = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (raw[:, None] >> shifts & 1).to(torch.bool).view(header.strips, STRIP * header.in_padded)


def check_packed(op: str, packed: torch.Tensor) -> SparseHeader:
    """Check header, offsets and pattern against each other, so that no kernel reads outside."""
    header = read_header(op, packed)
    offsets = _read(packed, header.sections[2], header.strips + 1, torch.int64)
    counts = offsets[1:] - offsets[:-1]
    pattern = _pattern(packed, header)
    if header.is_block:
        good = bool((counts >= 0).all()) and bool((pattern < header.in_padded // 4).all())
        if good and int(counts.sum()) == header.stored:
            # Each strip's blocks come in the order of the inputs.
            strip = torch.repeat_interleave(counts)
            good = bool(((pattern[1:] > pattern[:-1]) | (strip[1:] > strip[:-1])).all())
    else:
        good = torch.equal(counts, pattern.sum(1))
    if not good or int(offsets[0]) != 0 or int(offsets[-1]) != header.stored:
        raise ValueError(f"{op}: packed weight is damaged: its pattern does not match its values")
    return header


def unpack_mask(packed: torch.Tensor) -> torch.Tensor:
    """Where values are stored: bool (N, K)."""
    header = read_header("unpack_sparse", packed)
    return _from_strips(_stored(packed, header), header, header.value_dtype == torch.int8)


def _stored(packed: torch.Tensor, header: SparseHeader) -> torch.Tensor:
    pattern = _pattern(packed, header)
    if not header.is_block:
        return pattern
    offsets = _read(packed, header.sections[2], header.strips + 1, torch.int64)
    strip = torch.repeat_interleave(offsets[1:] - offsets[:-1])
    blocks = torch.zeros(
        header.strips, header.in_padded // 4, dtype=torch.bool, device=packed.device
    )
    blocks[strip, pattern] = True
    return blocks.repeat_interleave(STRIP * BLOCK_INPUTS, 1)


def read_scale(packed: torch.Tensor) -> torch.Tensor:
    """Steps of int8 values: float32 (N,)."""
    header = read_header("unpack_sparse", packed)
    return _read(packed, header.sections[0], header.out_features, torch.float32)


def unpack_sparse(
    packed: torch.Tensor, out_features: int, in_features: int, dtype: torch.dtype
) -> torch.Tensor:
    """Dense weight (N, K): int8 values as they are for dtype int8, else multiplied by the steps."""
    op = "unpack_sparse"
    header = read_header(op, packed)
    if (header.out_features, header.in_features) != (out_features, in_features):
        raise ValueError(
            f"{op}: packed weight has shape {(header.out_features, header.in_features)}, "
            f"expected {(out_features, in_features)}"
        )
    stored = header.value_dtype
    if dtype == torch.int8 and stored != torch.int8:
        raise TypeError(f"{op}: packed weight holds {stored} values, not int8")
    elements = STRIP * BLOCK_INPUTS if header.is_block else 1
    values = _read(packed, header.sections[4], header.stored * elements, stored)
    kept = _stored(packed, header)
    strips = torch.zeros(kept.shape, dtype=stored, device=packed.device)
    strips[kept] = values
    dense = _from_strips(strips, header, stored == torch.int8)
    if stored != torch.int8 or dtype == torch.int8:
        return dense.to(dtype)
    return (dense * read_scale(packed)[:, None]).to(dtype)
