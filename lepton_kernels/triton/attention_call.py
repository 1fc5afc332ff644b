"""The arguments that every attention kernel takes, worked out from those of the op."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import triton

from lepton_kernels.reference.attention import dropout_threshold
from lepton_kernels.triton import launch
from lepton_kernels.triton.attention_configs import Tile, choose, padded, precision
from lepton_kernels.triton.attention_tile import BOOL_BIAS, FLOAT_BIAS, NO_BIAS

LARGEST_HEAD_DIM = 256
LOG2E = 1.0 / math.log(2.0)
NO_LIMIT = 1 << 30  # windows beyond any length, far from overflow


def check_dims(op: str, *dims: int) -> None:
    """NotImplementedError for head dimensions that no tile holds."""
    for dim in dims:
        if dim > LARGEST_HEAD_DIM:
            raise NotImplementedError(
                f"{op}: the triton backend supports head dimensions 0 to {LARGEST_HEAD_DIM}, "
                f"got {dim}; force_backend('reference') has no limit"
            )


def check_dtype(op: str, query: torch.Tensor) -> None:
    """NotImplementedError for dtypes that the kernels lack."""
    if query.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise NotImplementedError(
            f"{op}: the triton backend supports float32, float16 and bfloat16, got "
            f"{str(query.dtype).removeprefix('torch.')}"
        )


def dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with a last dimension of stride 1; a copy only where it has another."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def tiles_of(
    cu_seqlens: torch.Tensor, total: int, block: int, group: int = 1
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Sequence and first row of every tile of `block` rows, and a bound on their number.

    A sequence has `group` rows for each of its `total` positions.

    Tiles beyond the last sequence start behind its end. Nothing waits for the device.
    """
    lengths = cu_seqlens.diff().clamp(min=0) * group
    counts = (lengths + (block - 1)) // block
    ends = counts.cumsum(0)
    bound = total * group // block + lengths.shape[0]
    tiles = torch.arange(bound, device=cu_seqlens.device)
    sequence = torch.searchsorted(ends, tiles, right=True).clamp(max=lengths.shape[0] - 1)
    first = (tiles - (ends - counts)[sequence]) * block
    return sequence.int(), first.int(), bound


@dataclasses.dataclass
class Call:
    """One call of an attention op."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    bias: torch.Tensor | None
    alibi_slopes: torch.Tensor | None
    cu_seqlens_q: torch.Tensor | None
    cu_seqlens_k: torch.Tensor | None
    rng_state: torch.Tensor | None
    scale: float
    window_left: int
    window_right: int
    bottom_right: bool
    softcap: float
    dropout_p: float

    def __post_init__(self) -> None:
        self.query, self.key, self.value = (
            dense_rows(t) for t in (self.query, self.key, self.value)
        )
        if self.alibi_slopes is not None:
            self.alibi_slopes = self.alibi_slopes.float().contiguous()
        for name in ("cu_seqlens_q", "cu_seqlens_k"):
            cu_seqlens = getattr(self, name)
            if cu_seqlens is not None:
                setattr(self, name, cu_seqlens.contiguous())
        if self.rng_state is not None:
            self.rng_state = self.rng_state.to(self.query.device).contiguous()
        if self.bias is not None and self.bias.dtype == torch.float64:
            self.bias = self.bias.float()

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.query.shape[2] // max(self.key.shape[2], 1)

    @property
    def varlen(self) -> bool:
        """Whether sequences are given by cu_seqlens."""
        return self.cu_seqlens_q is not None

    def tensors(self) -> dict[str, Any]:
        """Pointers; an absent tensor is a pointer that is never read."""
        unused = self.query
        bias = self.bias
        if bias is not None and bias.dtype == torch.bool:
            bias = bias.view(torch.uint8)
        return {
            "query": self.query,
            "key": self.key,
            "value": self.value,
            "bias": unused if bias is None else bias,
            "alibi_slopes": unused if self.alibi_slopes is None else self.alibi_slopes,
            "rng_state": unused if self.rng_state is None else self.rng_state,
        }

    def numbers(self) -> dict[str, Any]:
        """Scalars."""
        capped = self.softcap > 0
        dropping = self.dropout_p > 0
        return {
            "score_scale": self.scale / self.softcap if capped else self.scale * LOG2E,
            "cap": self.softcap * LOG2E,
            "window_left": min(self.window_left, NO_LIMIT),
            "window_right": min(self.window_right, NO_LIMIT),
            "dropout_below": dropout_threshold(self.dropout_p) if dropping else 0,
            "dropout_scale": 1.0 / (1.0 - self.dropout_p),
            "heads": self.query.shape[2],
            "group": self.group,
            "q_len": self.query.shape[1],
            "k_len": self.key.shape[1],
        }

    def strides(self) -> dict[str, int]:
        """Strides of the inputs; 0 along what the bias is broadcast."""
        found = {}
        for letter, tensor in (("q", self.query), ("k", self.key), ("v", self.value)):
            for dim, name in enumerate(("batch", "row", "head")):
                found[f"stride_{letter}_{name}"] = tensor.stride(dim)
        names = ("batch", "head", "row", "col")
        for dim, name in enumerate(names):
            broadcast = self.bias is None or self.bias.shape[dim] == 1
            found[f"stride_bias_{name}"] = 0 if broadcast else self.bias.stride(dim)  # type: ignore[union-attr]
        slopes = self.alibi_slopes
        found["stride_alibi_batch"] = (
            slopes.stride(0) if slopes is not None and slopes.dim() == 2 else 0
        )
        return found

    def options(self, tile: Tile) -> dict[str, Any]:
        """Constants of the kernel, and how it is launched."""
        head_dim, value_dim = self.query.shape[3], self.value.shape[3]
        return {
            "HEAD_DIM": head_dim,
            "VALUE_DIM": value_dim,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "BLOCK_D": padded(head_dim),
            "BLOCK_DV": padded(value_dim),
            "BOTTOM_RIGHT": self.bottom_right,
            "LEFT": self.window_left >= 0,
            "RIGHT": self.window_right >= 0,
            "SOFTCAP": self.softcap > 0,
            "ALIBI": self.alibi_slopes is not None,
            "DROPOUT": self.dropout_p > 0 and self.rng_state is not None,
            "ONE_LOOP": self.demanding,
            "PRECISION": precision(self.query.dtype),
            "num_warps": tile.num_warps,
            "num_stages": tile.num_stages,
        }

    @property
    def demanding(self) -> bool:
        """Whether scores are more than products times a positive scale, masked by position.

        Such options take registers: tiles are smaller, and one loop masks all blocks.
        """
        return (
            self.window_left >= 0
            or self.softcap > 0
            or self.bias is not None
            or self.alibi_slopes is not None
            or self.dropout_p > 0
            or self.scale <= 0
        )

    def tile(self, kernel: str) -> Tile:
        """The configuration of `kernel`, as `choose` names it."""
        dims = (self.query.shape[3], self.value.shape[3])
        capability = launch.capability(self.query)
        return choose(kernel, self.query.dtype, *dims, self.demanding, capability)

    @property
    def bias_kind(self) -> int:
        """`BIAS` of the kernels."""
        if self.bias is None:
            return NO_BIAS
        return BOOL_BIAS if self.bias.dtype == torch.bool else FLOAT_BIAS

    def tile_tensors(self, of_keys: bool, block: int) -> tuple[dict[str, Any], int]:
        """Where tiles start, and their number per head and batch."""
        total = (self.key if of_keys else self.query).shape[1]
        cu_seqlens = self.cu_seqlens_k if of_keys else self.cu_seqlens_q
        if cu_seqlens is None:
            unused = self.query
            tensors = ("cu_seqlens_q", "cu_seqlens_k", "tile_sequence", "tile_row")
            return dict.fromkeys(tensors, unused), triton.cdiv(total, block)
        sequence, row, count = tiles_of(cu_seqlens, total, block)
        return {
            "cu_seqlens_q": self.cu_seqlens_q,
            "cu_seqlens_k": self.cu_seqlens_k,
            "tile_sequence": sequence,
            "tile_row": row,
        }, count

    def no_sequences(self) -> bool:
        """Whether cu_seqlens names no sequence at all."""
        return self.cu_seqlens_q is not None and self.cu_seqlens_q.shape[0] == 1
