"""Packed sparse weights: `SparseWeight`, `pack_sparse` and `unpack_sparse`."""

from __future__ import annotations

from typing import Any

import torch

from lepton_kernels import _dispatch
from lepton_kernels.ops._checks import (
    FLOATS,
    check_device,
    check_dtype,
    check_integer,
    check_tensor,
    shape_error,
)
from lepton_kernels.ops.quantize_int8 import quantize_int8
from lepton_kernels.reference import sparse_weight as reference

LAYOUTS = reference.LAYOUTS
_UNPACKED = (*FLOATS, torch.float64, torch.int8)
# Blocks are found by 16 bits of input feature / 4.
MAX_BLOCK_INPUTS = 4 * 65536


def _fake_pack(
    weight: torch.Tensor,
    mask: torch.Tensor,
    scale: torch.Tensor | None,
    layout: int,
    n: int,
    m: int,
) -> torch.Tensor:
    return weight.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.uint8)


def _fake_unpack(
    packed: torch.Tensor, out_features: int, in_features: int, dtype: torch.dtype
) -> torch.Tensor:
    return packed.new_empty((out_features, in_features), dtype=dtype)


_dispatch.define_op(
    "pack_sparse",
    "(Tensor weight, Tensor mask, Tensor? scale, int layout, int n, int m) -> Tensor",
    reference=reference.pack_sparse,
    fake=_fake_pack,
)
_dispatch.define_op(
    "unpack_sparse",
    "(Tensor packed, int out_features, int in_features, ScalarType dtype) -> Tensor",
    reference=reference.unpack_sparse,
    fake=_fake_unpack,
)
_pack = _dispatch.OpCaller("pack_sparse")
_unpack = _dispatch.OpCaller("unpack_sparse")


class SparseWeight:
    """A pruned weight laid out for the kernels; made by `pack_sparse`.

    The layout is the same on every machine, but may change between releases: a checkpoint should
    hold `values()` and `mask()`. Pickles and deep copies carry the packed bytes, which are checked
    when they come back.

    Args:
        packed (Tensor): uint8, 1-D, as `pack_sparse` lays it out.

    Raises:
        ValueError: `packed` is damaged, truncated or of another version.
    """

    def __init__(self, packed: torch.Tensor) -> None:
        check_tensor("SparseWeight", "packed", packed)
        self._describe(packed, reference.check_packed("SparseWeight", packed))

    def _describe(self, packed: torch.Tensor, header: reference.SparseHeader) -> None:
        self.packed = packed
        self.header = header
        self.shape = torch.Size((header.out_features, header.in_features))
        self.dtype = header.value_dtype
        self.layout = LAYOUTS[header.layout]
        self.pattern = (header.n, header.m) if self.layout == "n:m" else None
        elements = reference.STRIP * reference.BLOCK_INPUTS if header.is_block else 1
        self.stored_values = header.stored * elements

    def _traced(self, packed: torch.Tensor) -> SparseWeight:
        """The same weight over `packed`, the tensor that a trace has for its bytes: no data."""
        weight = SparseWeight.__new__(SparseWeight)
        weight._describe(packed, self.header)
        return weight

    @property
    def device(self) -> torch.device:
        """Where the packed bytes are."""
        return self.packed.device

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weight, header, pattern and padding included."""
        return self.packed.numel()

    @property
    def sparsity(self) -> float:
        """Share of the elements that are not stored, from 0 to 1."""
        # Blocks at the edges reach over it.
        return max(0.0, 1.0 - self.stored_values / max(self.shape.numel(), 1))

    def to_dense(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight (out_features, in_features) with its zeros.

        Args:
            dtype (torch.dtype, optional): a float dtype, or torch.int8 for the stored bytes of an
                int8 weight. Default: None, the stored dtype, float32 for an int8 weight.

        Returns:
            Tensor: shape (out_features, in_features), dtype `dtype`.

        Raises:
            TypeError: dtype is int8 and the values are not, or it is no float dtype.
        """
        if dtype is None:
            dtype = torch.float32 if self.dtype == torch.int8 else self.dtype
        return unpack_sparse(self, dtype=dtype)

    def mask(self) -> torch.Tensor:
        """Where values are stored: bool (out_features, in_features)."""
        return reference.unpack_mask(self.packed)

    def values(self) -> torch.Tensor:
        """The stored values of the weight in row-major order, 1-D, of dtype `dtype`."""
        return self.to_dense(self.dtype)[self.mask()]

    def scale(self) -> torch.Tensor | None:
        """Steps of an int8 weight, float32 (out_features,); None for float values."""
        return reference.read_scale(self.packed) if self.dtype == torch.int8 else None

    def to(self, device: torch.device | str) -> SparseWeight:
        """The weight on another device.

        Args:
            device (torch.device or str): where to.

        Returns:
            SparseWeight: itself where it is there already.

        Raises:
            RuntimeError: there is no such device.
        """
        packed = self.packed.to(device)
        return self if packed is self.packed else SparseWeight(packed)

    def __getstate__(self) -> dict[str, Any]:
        return {"packed": self.packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["packed"])  # type: ignore[misc]

    def __repr__(self) -> str:
        return (
            f"SparseWeight(shape={tuple(self.shape)}, layout={self.layout!r}, dtype={self.dtype}, "
            f"sparsity={self.sparsity:.3f}, nbytes={self.nbytes})"
        )


def pack_sparse(
    weight: torch.Tensor,
    layout: str = "bitmask",
    *,
    dtype: torch.dtype | None = None,
    mask: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    n: int = 2,
    m: int = 4,
) -> SparseWeight:
    """Lay a pruned weight out for `sparse_linear`, once.

    Args:
        weight (Tensor): float32, bfloat16, float16, or int8 with `scale`; shape
            (out_features, in_features), any stride, finite.
        layout (str): "bitmask" for zeros anywhere; "n:m", the same bytes with at most `n` values
            in each `m` inputs of a row, checked; "block", which stores whole blocks of 16 output
            features x 4 input features that hold any value. Default: "bitmask".
        dtype (torch.dtype, optional): of the stored values: float32, bfloat16, float16 or int8
            (quantised per output feature, as by `quantize_int8`). Default: dtype of `weight`.
        mask (Tensor, optional): bool, or any dtype holding 0 and 1; shape of `weight`; where
            values are kept. Default: None, where `weight` is not zero.
        scale (Tensor, optional): float, shape (out_features,), with an int8 `weight`: its steps.
            Default: None.
        n (int): values kept in each group of `m`, for layout "n:m". Default: 2.
        m (int): size of a group. Default: 4.

    Returns:
        SparseWeight: the packed weight.

    Raises:
        TypeError: weight, mask or scale has the wrong type or dtype.
        ValueError: unknown layout; a shape does not match; the mask is not 0 or 1; weight is not
            finite, or int8 and holds -128; the weight does not have the pattern `n`:`m`.
        NotImplementedError: layout "block" with more than 262,144 input features.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> weight = torch.tensor([[0.0, 1.5], [2.0, 0.0]])
        >>> packed = lk.pack_sparse(weight)
        >>> packed.sparsity, torch.equal(packed.to_dense(), weight)
        (0.5, True)
    """
    op = "pack_sparse"
    check_tensor(op, "weight", weight)
    check_dtype(op, "weight", weight, (*FLOATS, torch.int8))
    if weight.dim() != 2:
        shape_error(op, "weight", "(out_features, in_features)", weight.shape)
    if layout not in LAYOUTS:
        raise ValueError(f"{op}: layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    if layout == "block" and weight.shape[1] > MAX_BLOCK_INPUTS:
        raise NotImplementedError(
            f"{op}: layout block takes at most {MAX_BLOCK_INPUTS} input features, "
            f"got {weight.shape[1]}; supported: layout bitmask"
        )
    dtype = weight.dtype if dtype is None else dtype
    if dtype not in reference.DTYPES:
        raise TypeError(f"{op}: dtype must be float32, bfloat16, float16 or int8, got {dtype!r}")
    kept = _kept(weight, mask)
    if layout == "n:m":
        _check_pattern(kept, n, m)
    values, steps = _values(weight.detach(), kept, dtype, scale)
    pattern = (n, m) if layout == "n:m" else (0, 0)
    return SparseWeight(_pack((values, kept, steps), LAYOUTS.index(layout), *pattern))


def _kept(weight: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    op = "pack_sparse"
    if weight.is_floating_point() and not torch.isfinite(weight).all():
        raise ValueError(f"{op}: weight must be finite, got NaN or infinity in it")
    if mask is None:
        return weight.detach() != 0
    check_tensor(op, "mask", mask)
    if mask.shape != weight.shape:
        shape_error(op, "mask", str(tuple(weight.shape)), mask.shape, "to match weight")
    check_device(op, "mask", mask, weight)
    kept = mask.to(torch.bool)
    if mask.dtype != torch.bool and not torch.equal(kept.to(mask.dtype), mask):
        raise ValueError(f"{op}: mask must hold only 0 and 1")
    return kept


def _check_pattern(kept: torch.Tensor, n: int, m: int) -> None:
    op = "pack_sparse"
    check_integer(op, "n", n)
    check_integer(op, "m", m)
    if not 0 < n <= m:
        raise ValueError(f"{op}: n and m must satisfy 0 < n <= m, got {n}:{m}")
    if kept.shape[1] % m:
        raise ValueError(f"{op}: in_features {kept.shape[1]} is not a multiple of m = {m}")
    most = kept.unflatten(1, (kept.shape[1] // m, m)).sum(-1)
    if bool((most > n).any()):
        row, group = (most > n).nonzero()[0].tolist()
        raise ValueError(
            f"{op}: weight does not have the pattern {n}:{m}: row {row}, columns {group * m} to "
            f"{group * m + m - 1} hold {int(most[row, group])} values; prune to it first, or use "
            f"layout bitmask"
        )


def _values(
    weight: torch.Tensor, kept: torch.Tensor, dtype: torch.dtype, scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Values to store, and the steps of int8 ones."""
    op = "pack_sparse"
    if weight.dtype == torch.int8:
        if dtype != torch.int8:
            raise TypeError(f"{op}: an int8 weight is stored as int8, got dtype {dtype}")
        if scale is None:
            raise ValueError(f"{op}: an int8 weight needs scale")
        check_tensor(op, "scale", scale)
        check_dtype(op, "scale", scale, FLOATS)
        check_device(op, "scale", scale, weight)
        if scale.shape != weight.shape[:1]:
            shape_error(op, "scale", f"({weight.shape[0]},)", scale.shape, "to match weight")
        if not torch.isfinite(scale).all():
            raise ValueError(f"{op}: scale must be finite, got NaN or infinity in it")
        # -128 has no negative: kernels move the sign of the input to the weight.
        if bool((weight == -128).any()):
            raise ValueError(f"{op}: an int8 weight must lie within -127 and 127, got -128")
        return weight, scale.to(torch.float32)
    if scale is not None:
        raise ValueError(f"{op}: scale is for an int8 weight, got a weight of {weight.dtype}")
    if dtype != torch.int8:
        values = weight.to(dtype)
        if not torch.isfinite(values).all():
            raise ValueError(f"{op}: weight does not fit {dtype}: it would become infinite")
        return values, None
    # A value that is not kept must not set the step.
    masked = torch.where(kept, weight, torch.zeros_like(weight))
    quantized, steps = quantize_int8(masked)[:2]
    return quantized, steps.reshape(weight.shape[0])


def unpack_sparse(weight: SparseWeight, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The dense weight of a packed one.

    Args:
        weight (SparseWeight): from `pack_sparse`.
        dtype (torch.dtype): a float dtype, or torch.int8 for the stored bytes of an int8 weight.
            Default: torch.float32.

    Returns:
        Tensor: shape (out_features, in_features), dtype `dtype`.

    Raises:
        TypeError: weight is no SparseWeight, or dtype is int8 and the values are not.
    """
    op = "unpack_sparse"
    if not isinstance(weight, SparseWeight):
        raise TypeError(f"{op}: weight must be a SparseWeight, got {type(weight).__name__}")
    if dtype not in _UNPACKED or (dtype == torch.int8 and weight.dtype != torch.int8):
        raise TypeError(f"{op}: {weight.dtype} values can't be given as {dtype}")
    return _unpack((weight.packed,), *weight.shape, dtype)
