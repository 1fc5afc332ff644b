"""`pack_`: swap in the layers that measured faster on this machine, keep the rest dense."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import nn

import lepton_kernels as lk
from lepton_train.calibration import visit_inputs
from lepton_train.find import (
    FoundLinear,
    Patterns,
    as_patterns,
    check_patterns,
    choice_reason,
    find_linears,
    int8_layers,
    obstacle,
)
from lepton_train.pack_cache import PackCache
from lepton_train.pack_forms import (
    DTYPES,
    bytes_of,
    case_of,
    forms,
    open_cache,
    present_form,
    time_forms,
)
from lepton_train.prune import make_permanent_
from lepton_train.report import kilobytes, text_table

# Share of zeros under which a sparse form of an int8 layer is not tried.
_FEWEST_ZEROS = 0.2


@dataclass(frozen=True)
class PackedRow:
    """One linear layer in a `PackReport`: sizes, milliseconds, bytes, the decision and why."""

    name: str
    in_features: int
    out_features: int
    sparsity: float
    rows: int = 0
    decision: str = "dense"
    reason: str = ""
    ms_before: float | None = None
    ms_after: float | None = None
    bytes_before: int = 0
    bytes_after: int = 0
    measured_ms: dict[str, float] = field(default_factory=dict)
    before: str = "dense"


@dataclass
class PackReport:
    """What `pack_` measured and decided; `str()` gives a table.

    Args:
        rows (list of PackedRow): one for each linear layer.
    """

    rows: list[PackedRow] = field(default_factory=list)

    @property
    def packed(self) -> list[str]:
        """Names of the layers that were swapped."""
        return [row.name for row in self.rows if row.decision not in ("dense", row.before)]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return {"packed": len(self.packed), "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        """A table, one line for each layer."""
        cells = [
            (
                row.name,
                f"{row.out_features} x {row.in_features}",
                f"{row.sparsity:.1%}",
                row.decision,
                "" if row.ms_before is None else f"{row.ms_before:.3f}",
                "" if row.ms_after is None else f"{row.ms_after:.3f}",
                kilobytes(row.bytes_before),
                kilobytes(row.bytes_after),
                row.reason,
            )
            for row in self.rows
        ]
        heads = ("layer", "out x in", "zeros", "form", "ms", "ms after", "bytes", "after", "why")
        return f"{text_table(heads, cells)}\n{len(self.packed)} of {len(self.rows)} layers packed"


def pack_(
    model: nn.Module,
    *,
    example_inputs: Any,
    dtype: torch.dtype | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    rounds: int = 15,
    cache: str | PathLike[str] | bool = True,
) -> PackReport:
    """Time dense and sparse forms of each pruned linear layer and keep the fastest; in place.

    A layer that is int8 already (dynamic) is compared with sparse int8 forms of the same weights.
    Every candidate runs on the input that the layer gets from `example_inputs`, with cold weights,
    in turn with the others. A layer without any zero is not measured. Masks of `prune_` become
    permanent first.

    Args:
        model (nn.Module): changed in place; put it in evaluation mode first.
        example_inputs: one batch as the model will see it: the argument, a tuple or list of
            arguments, or a mapping of keyword arguments. Its number of rows decides what is fast.
        dtype (torch.dtype, optional): of the stored values; torch.int8 quantises weights and
            activations of a packed layer. Default: None, dtype of the weight.
        include (str or iterable, optional): glob patterns of layers to pack. Default: None (all).
        exclude (str or iterable, optional): glob patterns of layers to leave. Default: None.
        rounds (int): how often each candidate is timed. Default: 15.
        cache (path or bool): a file that keeps times of this machine for layers of equal size,
            share of zeros and rows; True: the file that LEPTON_PACK_CACHE names (none if it is
            empty), else lepton/pack.json in the user's cache folder; False: none. Default: True.

    Returns:
        PackReport: per layer sparsity, milliseconds and bytes before and after, decision and why.

    Raises:
        TypeError: model is no nn.Module, or dtype is not supported.
        ValueError: a pattern matches no layer, rounds is below 1, or the model is itself a layer or
            holds none.

    Example:
        >>> import torch, lepton_train as lt
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64)).eval()
        >>> report = lt.pack_(model, example_inputs=torch.randn(1, 64))
        >>> report.rows[0].decision, report.rows[0].reason
        ('dense', 'has no zeros')
    """
    op = "pack_"
    if dtype not in DTYPES:
        raise TypeError(f"{op}: dtype must be float32, bfloat16, float16 or int8, got {dtype}")
    if rounds < 1:
        raise ValueError(f"{op}: rounds must be at least 1, got {rounds}")
    included = as_patterns(op, "include", include)
    excluded = as_patterns(op, "exclude", exclude)
    if isinstance(model, nn.Module):
        make_permanent_(model)
    quantized = int8_layers(model) if isinstance(model, nn.Module) else []
    # A model that is int8 throughout holds no plain linear layer.
    plain = any(isinstance(m, nn.Linear) for m in model.modules()) if quantized else True
    found = [*(find_linears(op, model) if plain else []), *quantized]
    names = [name for each in found for name in each.names]
    check_patterns(op, "include", included, names)
    check_patterns(op, "exclude", excluded, names)
    reasons = {
        f.name: choice_reason(f, included, excluded) or _obstacle(f) or _full(f) for f in found
    }
    chosen = [f for f in found if reasons[f.name] is None]
    inputs = _inputs(model, chosen, example_inputs)
    store = open_cache(cache)
    report = PackReport()
    for each in found:
        reason = reasons[each.name]
        if reason is None and each.name not in inputs:
            reason = "example_inputs never reach it"
        if reason is not None:
            report.rows.append(_row(each, reason=reason))
            continue
        report.rows.append(_decide(model, each, inputs[each.name], dtype, rounds, store))
    store.save()
    return report


def _obstacle(found: FoundLinear) -> str | None:
    module: Any = found.module
    if not isinstance(module, lk.nn.Int8Linear):
        return obstacle(found)
    if module.weight_only or module.x_scale is not None or module.group_size is not None:
        return "int8 with static scales, groups or float inputs has no sparse form"
    if module.activation is not None:
        return "its activation is fused"
    return None


def _full(found: FoundLinear) -> str | None:
    zeros = found.module.weight == 0
    if isinstance(found.module, lk.nn.Int8Linear):
        # Rounding alone makes some zeros.
        return None if float(zeros.float().mean()) >= _FEWEST_ZEROS else "has few zeros"
    return None if bool(zeros.any()) else "has no zeros"


def _inputs(
    model: nn.Module, chosen: list[FoundLinear], example_inputs: Any
) -> dict[str, torch.Tensor]:
    """The first input of each layer."""
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str, x: torch.Tensor) -> None:
        if name not in seen:
            seen[name] = x.clone()

    visit_inputs(model, {f.name: f.module for f in chosen}, [example_inputs], keep)
    return seen


def _row(found: FoundLinear, **rest: Any) -> PackedRow:
    module = found.module
    size, form = bytes_of(module), present_form(module)
    values = {"bytes_before": size, "bytes_after": size, "before": form, "decision": form, **rest}
    share = float((module.weight == 0).float().mean()) if module.weight.numel() else 0.0
    return PackedRow(found.name, module.in_features, module.out_features, share, **values)


def _decide(
    model: nn.Module,
    found: FoundLinear,
    x: torch.Tensor,
    dtype: torch.dtype | None,
    rounds: int,
    store: PackCache,
) -> PackedRow:
    present, candidates = present_form(found.module), forms(found.module, dtype)
    measured = time_forms(candidates, x, rounds, store, case_of(found.module, x, dtype))
    best = min(measured, key=lambda name: measured[name])
    if best == present:
        reason = "no other form measured faster"
    else:
        reason = f"{measured[present] / measured[best]:.2f} times as fast"
        _swap(model, found, candidates[best])
    return _row(
        found,
        rows=x.shape[:-1].numel(),
        decision=best,
        reason=reason,
        ms_before=measured[present],
        ms_after=measured[best],
        bytes_after=bytes_of(candidates[best]),
        measured_ms=measured,
    )


def _swap(model: nn.Module, found: FoundLinear, module: nn.Module) -> None:
    for name in found.names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module)
