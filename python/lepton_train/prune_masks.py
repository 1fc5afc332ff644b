"""Masks of pruned layers: which weights a pattern keeps, and how a layer carries its mask."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

# The block of lepton_kernels' layout "block": output features x input features.
BLOCK = (16, 4)


class Mask(nn.Module):
    """Parametrisation of a weight: weight * mask. The mask is a buffer and lands in state dicts.

    Args:
        mask (Tensor): bool, shape of the weight.
    """

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight with zeros where the mask has none."""
        # where, not a product: it stops NaN and -0 in what is pruned.
        return torch.where(self.mask, weight, torch.zeros_like(weight))


def mask_of(linear: nn.Module) -> Mask | None:
    """The mask that `prune_` put on a layer, or None."""
    if not parametrize.is_parametrized(linear, "weight"):
        return None
    for part in linear.parametrizations.weight:  # type: ignore[union-attr]
        if isinstance(part, Mask):
            return part
    return None


def set_mask(linear: nn.Linear, mask: torch.Tensor) -> None:
    """Put a mask on a layer, or change the one it has. The parameter stays the same object."""
    carried = mask_of(linear)
    if carried is None:
        parametrize.register_parametrization(linear, "weight", Mask(mask))
    else:
        carried.mask.copy_(mask)


def _keep_best(scores: torch.Tensor, keep: int) -> torch.Tensor:
    """True at the `keep` largest of each row."""
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    if keep > 0:
        mask.scatter_(-1, scores.topk(keep, dim=-1).indices, True)
    return mask


def kept_count(total: int, sparsity: float) -> int:
    """How many of `total` units a sparsity keeps: rounded to the nearest, at least one."""
    return max(total - math.floor(total * sparsity + 0.5), min(total, 1))


def n_of_m_mask(scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """The best `n` of each `m` neighbouring inputs of a row."""
    rows, columns = scores.shape
    return _keep_best(scores.view(rows, columns // m, m), n).view(rows, columns)


def unstructured_mask(scores: torch.Tensor, sparsity: float, by_row: bool) -> torch.Tensor:
    """The best weights of the layer, or of each row."""
    units = scores if by_row else scores.reshape(1, -1)
    return _keep_best(units, kept_count(units.shape[-1], sparsity)).view(scores.shape)


def block_scores(
    scores: torch.Tensor, outputs: int = BLOCK[0], inputs: int = BLOCK[1]
) -> torch.Tensor:
    """Sums over blocks of `outputs` x `inputs`; blocks at the edges hold fewer weights."""
    rows, columns = scores.shape
    padded = scores.new_zeros(-(-rows // outputs) * outputs, -(-columns // inputs) * inputs)
    padded[:rows, :columns] = scores
    return padded.view(padded.shape[0] // outputs, outputs, -1, inputs).sum((1, 3))


def expand_blocks(
    blocks: torch.Tensor, shape: torch.Size, outputs: int = BLOCK[0], inputs: int = BLOCK[1]
) -> torch.Tensor:
    """A mask of blocks as a mask of weights."""
    wide = blocks.repeat_interleave(outputs, 0).repeat_interleave(inputs, 1)
    return wide[: shape[0], : shape[1]]
