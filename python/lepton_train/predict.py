"""`predict_sparsity`: from how many zeros on a layer is faster sparse, on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import nn

from lepton_train.pack_cache import PackCache
from lepton_train.pack_forms import DTYPES, case_of, forms, open_cache, time_forms
from lepton_train.prune_masks import block_scores, expand_blocks, unstructured_mask
from lepton_train.report import text_table

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_PATTERNS = {"unstructured": "bitmask", "block": "block"}


@dataclass(frozen=True)
class PredictedRow:
    """One shape and pattern: milliseconds dense and sparse, and where sparse begins to win.

    `wins_from` is the lowest measured sparsity from which on every higher one was faster than the
    best dense form, or None.
    """

    out_features: int
    in_features: int
    rows: int
    pattern: str
    dense_ms: dict[float, float]  # by sparsity
    sparse_ms: dict[float, float]
    wins_from: float | None


@dataclass
class SparsityPrediction:
    """What `predict_sparsity` measured; `str()` gives a table."""

    rows: list[PredictedRow] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The prediction as plain values, ready for JSON."""
        return {"rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        """A table, one line for each shape and pattern: times as fast as dense, by sparsity."""
        levels = sorted({level for row in self.rows for level in row.sparse_ms})
        heads = ("out x in", "rows", "pattern", *(f"{level:.0%}" for level in levels), "wins from")
        cells = []
        for row in self.rows:
            ratios = (
                f"{row.dense_ms[level] / row.sparse_ms[level]:.2f}"
                if level in row.sparse_ms
                else ""
                for level in levels
            )
            wins = "never" if row.wins_from is None else f"{row.wins_from:.0%}"
            shape = f"{row.out_features} x {row.in_features}"
            cells.append((shape, str(row.rows), row.pattern, *ratios, wins))
        return text_table(heads, cells)


def predict_sparsity(
    shapes: Iterable[tuple[int, int]] | nn.Module,
    *,
    rows: int = 1,
    dtype: torch.dtype | None = None,
    patterns: Sequence[str] = ("unstructured", "block"),
    sparsities: Sequence[float] = SPARSITIES,
    rounds: int = 15,
    cache: str | PathLike[str] | bool = True,
) -> SparsityPrediction:
    """Measure random layers, dense and pruned, before any training: where would `pack_` gain?

    Args:
        shapes (iterable or nn.Module): pairs (out_features, in_features), or a model, whose linear
            layers give the shapes, each once.
        rows (int): rows of the input, as batch size times tokens. Default: 1.
        dtype (torch.dtype, optional): of the stored values, as in `pack_`; with torch.int8 the
            dense int8 layer competes too. Default: None (float32).
        patterns (sequence of str): "unstructured", "block". Default: both.
        sparsities (sequence of float): each in [0, 1). Default: 0.5 to 0.95.
        rounds (int): how often each form is timed. Default: 15.
        cache (path or bool): as in `pack_`. Default: True.

    Returns:
        SparsityPrediction: one row for each shape and pattern.

    Raises:
        TypeError: dtype is not supported.
        ValueError: a shape, sparsity, pattern or number is out of range, or the model holds no
            linear layer.

    Example:
        >>> import lepton_train as lt
        >>> prediction = lt.predict_sparsity([(64, 64)], sparsities=[0.9], rounds=1, cache=False)
        >>> [row.pattern for row in prediction.rows]
        ['unstructured', 'block']
    """
    op = "predict_sparsity"
    if dtype not in DTYPES:
        raise TypeError(f"{op}: dtype must be float32, bfloat16, float16 or int8, got {dtype}")
    if rows < 1 or rounds < 1:
        raise ValueError(f"{op}: rows and rounds must be at least 1, got {rows} and {rounds}")
    for level in sparsities:
        if not 0.0 <= level < 1.0:
            raise ValueError(f"{op}: sparsities must lie in [0, 1), got {level}")
    for pattern in patterns:
        if pattern not in _PATTERNS:
            known = ", ".join(_PATTERNS)
            raise ValueError(f"{op}: pattern must be one of {known}, got {pattern!r}")
    store = open_cache(cache)
    prediction = SparsityPrediction()
    for out_features, in_features in _shapes(op, shapes):
        for pattern in patterns:
            row = _predict(
                (out_features, in_features), rows, dtype, pattern, sparsities, rounds, store
            )
            prediction.rows.append(row)
    store.save()
    return prediction


def _shapes(op: str, shapes: Iterable[tuple[int, int]] | nn.Module) -> list[tuple[int, int]]:
    if isinstance(shapes, nn.Module):
        linears = (m for m in shapes.modules() if isinstance(m, nn.Linear))
        found = [(m.out_features, m.in_features) for m in linears]
        if not found:
            raise ValueError(f"{op}: model {type(shapes).__name__} holds no torch.nn.Linear")
    else:
        found = [(int(n), int(k)) for n, k in shapes]
    for n, k in found:
        if n < 1 or k < 1:
            raise ValueError(f"{op}: a shape must be at least (1, 1), got ({n}, {k})")
    return list(dict.fromkeys(found))


def _predict(
    shape: tuple[int, int],
    rows: int,
    dtype: torch.dtype | None,
    pattern: str,
    sparsities: Sequence[float],
    rounds: int,
    store: PackCache,
) -> PredictedRow:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(*shape, generator=generator)
    x = torch.randn(rows, shape[1], generator=generator)
    sparse_name = f"sparse {_PATTERNS[pattern]}"
    dense_ms: dict[float, float] = {}
    sparse_ms: dict[float, float] = {}
    for level in sorted(sparsities):
        linear = nn.Linear(shape[1], shape[0]).requires_grad_(False)
        linear.weight.copy_(weight * _mask(weight, pattern, level))
        candidates = forms(linear, dtype, (_PATTERNS[pattern],))
        times = time_forms(candidates, x, rounds, store, case_of(linear, x, dtype))
        sparse_ms[level] = times[sparse_name]
        dense_ms[level] = min(ms for name, ms in times.items() if name != sparse_name)
    wins_from = None
    for level in sorted(sparse_ms, reverse=True):
        if sparse_ms[level] >= dense_ms[level]:
            break
        wins_from = level
    return PredictedRow(*shape, rows, pattern, dense_ms, sparse_ms, wins_from)


def _mask(weight: torch.Tensor, pattern: str, sparsity: float) -> torch.Tensor:
    if pattern == "unstructured":
        return unstructured_mask(weight.abs(), sparsity, False)
    kept = unstructured_mask(block_scores(weight.abs()), sparsity, False)
    return expand_blocks(kept, weight.shape)
