"""Comparison of tensors by bits and by units in the last place."""

from __future__ import annotations

import torch

BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}
NAN_DISTANCE = 2**63 - 1


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bits as integers; every NaN becomes the same one."""
    if not tensor.dtype.is_floating_point:
        return tensor
    quiet = torch.where(tensor.isnan(), torch.full_like(tensor, torch.nan), tensor)
    return quiet.contiguous().view(BITS[tensor.dtype])


def same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """AssertionError unless shape, dtype and bits are equal; NaN equals NaN, 0 is not -0."""
    assert actual.dtype == expected.dtype, f"{actual.dtype} is not {expected.dtype}"
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    differs = bits(actual) != bits(expected)
    if differs.any():
        where = tuple(differs.nonzero()[0].tolist())
        raise AssertionError(
            f"{int(differs.sum())} of {differs.numel()} differ, first at {where}: "
            f"{actual[where].item()!r} is not {expected[where].item()!r}"
        )


def ulps(actual: torch.Tensor, expected: torch.Tensor) -> int:
    """Largest distance in representable numbers of the dtype; 0 and -0 are one number.

    NaN against NaN counts as 0, NaN against a number as NAN_DISTANCE.
    """
    assert actual.dtype == expected.dtype, f"{actual.dtype} is not {expected.dtype}"
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    if actual.numel() == 0:
        return 0
    if bool((actual.isnan() != expected.isnan()).any()):
        return NAN_DISTANCE
    ranks = []
    for tensor in (actual, expected):
        whole = bits(tensor).to(torch.int64)
        magnitude = whole & torch.iinfo(BITS[tensor.dtype]).max
        ranks.append(torch.where(whole < 0, -magnitude, magnitude))
    return int((ranks[0] - ranks[1]).abs().max())
