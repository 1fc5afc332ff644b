"""`sparse_linear` on CUDA: reads the header of a packed weight once, then calls the kernels."""

from __future__ import annotations

import weakref

import torch

from lepton_kernels import _dispatch
from lepton_kernels.reference.sparse_weight import SparseHeader, read_header

_OP = "sparse_linear"
# By identity and version: what was read, while the tensor lives and is not written to.
_SEEN: dict[int, tuple[weakref.ref[torch.Tensor], int, SparseHeader]] = {}


def header_of(packed: torch.Tensor) -> SparseHeader:
    """The header of `packed`; waits for the GPU the first time that it sees the tensor."""
    version = 0 if packed.is_inference() else packed._version
    key = id(packed)
    seen = _SEEN.get(key)
    if seen is not None and seen[0]() is packed and seen[1] == version:
        return seen[2]
    header = read_header(_OP, packed)

    def forget(reference: weakref.ref[torch.Tensor]) -> None:
        if key in _SEEN and _SEEN[key][0] is reference:
            del _SEEN[key]

    _SEEN[key] = (weakref.ref(packed, forget), version, header)
    return header


def _linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out_features: int,
    activation: int,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    header = header_of(packed)
    if header.out_features != out_features:
        raise RuntimeError(
            f"{_OP}: weight has {header.out_features} output features, asked for {out_features}"
        )
    return torch.ops.lepton.sparse_linear_with_header(
        x, packed, bias, residual, activation, out_dtype, list(header)
    )


def register() -> None:
    """Serve CUDA tensors by the CUDA library, which must be loaded."""
    _dispatch._LIBRARIES[_dispatch.NAMESPACE].impl("sparse_linear", _linear, "CUDA")
