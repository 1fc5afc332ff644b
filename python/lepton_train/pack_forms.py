"""The forms that a linear layer can take, and how long each needs on this machine."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

import torch
from torch import nn

import lepton_kernels as lk
from lepton_train.pack_cache import PackCache, Times, default_path
from lepton_train.prune_masks import BLOCK
from lepton_train.timing import interleaved

DTYPES = (None, torch.float32, torch.bfloat16, torch.float16, torch.int8)
LAYOUTS = ("bitmask", "block")
# Copies of a layer that together exceed the caches of a core, so that weights come from memory as
# they do inside a model.
_COLD_BYTES = 64 << 20
_MOST_COPIES = 16


def open_cache(cache: str | PathLike[str] | bool) -> PackCache:
    """The cache that an argument `cache` of `pack_` means."""
    if isinstance(cache, bool):
        return PackCache(default_path() if cache else None)
    return PackCache(cache)


def present_form(linear: nn.Module) -> str:
    """Name of the form that a layer has."""
    return "int8" if isinstance(linear, lk.nn.Int8Linear) else "dense"


def forms(
    linear: Any, dtype: torch.dtype | None, layouts: tuple[str, ...] = LAYOUTS
) -> dict[str, nn.Module]:
    """Every form of a layer by name, its present one first."""
    if isinstance(linear, lk.nn.Int8Linear):
        plain = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None)
        # The scale of a row makes its largest weight 127: quantised again it is the same int8.
        plain.weight = nn.Parameter(linear.dequantized_weight(), requires_grad=False)
        plain.register_parameter("bias", linear._parameters["bias"])
        plain.train(linear.training)
        found: dict[str, nn.Module] = {"int8": linear}
        linear, dtype = plain, torch.int8
    else:
        found = {"dense": linear}
        if dtype == torch.int8:
            found["int8"] = lk.nn.Int8Linear.from_linear(linear)
    for layout in layouts:
        found[f"sparse {layout}"] = lk.nn.SparseLinear.from_linear(linear, layout, dtype)
    return found


def case_of(linear: Any, x: torch.Tensor, dtype: torch.dtype | None) -> str:
    """What the times of a layer's forms depend on: sizes, dtypes, zeros to the percent."""
    kept = linear.weight != 0
    rows, columns = kept.shape
    height, width = BLOCK
    padded = kept.new_zeros(-(-rows // height) * height, -(-columns // width) * width)
    padded[:rows, :columns] = kept
    blocks = padded.view(padded.shape[0] // height, height, -1, width).any(3).any(1)
    # Blocks that lie together run faster than the same number of scattered ones.
    filled = blocks.new_zeros(blocks.shape[0], -(-blocks.shape[1] // 16) * 16)
    filled[:, : blocks.shape[1]] = blocks
    tiles = filled.view(blocks.shape[0], -1, 16).any(2)
    parts = (
        present_form(linear),
        f"{rows}x{columns}",
        f"rows {x.shape[:-1].numel()}",
        f"{x.dtype} {linear.weight.dtype} {dtype}",
        "bias" if linear.bias is not None else "no bias",
        f"values {kept.float().mean().item():.2f} blocks {blocks.float().mean().item():.2f} "
        f"tiles {tiles.float().mean().item():.2f}",
    )
    return ", ".join(parts)


def time_forms(
    candidates: Mapping[str, nn.Module],
    x: torch.Tensor,
    rounds: int,
    cache: PackCache,
    case: str,
) -> Times:
    """Milliseconds of each form on `x`, with cold weights; measured unless the cache has them."""
    case = f"{case}: {', '.join(candidates)}"
    known = cache.get(case, set(candidates))
    if known is not None:
        return known
    with torch.inference_mode():
        timings = interleaved(
            {name: _cold(module, x) for name, module in candidates.items()}, rounds=rounds
        )
    times = {name: timing.median_ms for name, timing in timings.items()}
    cache.put(case, times)
    return times


def bytes_of(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def _cold(module: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    """Calls copies of the module in turn."""
    count = min(max(_COLD_BYTES // max(bytes_of(module), 1), 1), _MOST_COPIES)
    copies = itertools.cycle([module, *(copy.deepcopy(module) for _ in range(count))])
    return lambda: next(copies)(x)
