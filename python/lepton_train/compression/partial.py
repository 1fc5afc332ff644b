"""Partial quantisation: as many layers as an accuracy budget allows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from lepton_train.report import QuantizationReport
from lepton_train.sensitivity import sensitivity

Apply = Callable[[nn.Module, Sequence[str]], QuantizationReport]


def quantize_within(
    model: nn.Module,
    apply: Apply,
    good: Callable[[nn.Module], float],
    budget: float,
    rank: Callable[[], list[str]],
) -> tuple[nn.Module, QuantizationReport, dict[str, Any]]:
    """Quantise all layers but the fewest of the most sensitive ones that keep the score.

    Args:
        model (nn.Module): left as it is.
        apply (callable): `apply(model, exclude)` quantises in place, but for the layers named.
        good (callable): `good(model)` -> score, higher is better.
        budget (float): how much the score may fall.
        rank (callable): gives the names of layers, the one that loses most first.

    Returns:
        (nn.Module, QuantizationReport, dict): a quantised copy, its report, and how the choice was
        made: `baseline`, `score`, `budget`, `excluded`, `tried` and `kept_budget`.
    """
    baseline = good(model)
    tried: dict[int, float] = {}
    found: dict[int, tuple[nn.Module, QuantizationReport]] = {}
    order: list[str] = []

    def holds(count: int) -> bool:
        twin = copy.deepcopy(model)
        report = apply(twin, order[:count])
        tried[count] = good(twin)
        within = baseline - tried[count] <= budget
        if within or count == 0:
            found[count] = (twin, report)
        return within

    if holds(0):
        best = 0
    else:
        order = rank()
        # The least number that holds, supposing that more float layers never lose more.
        low, high = 1, len(order) - 1
        best = -1
        while low <= high:
            middle = (low + high) // 2
            if holds(middle):
                best, high = middle, middle - 1
            else:
                low = middle + 1
    about = {
        "baseline": baseline,
        "budget": budget,
        "excluded": order[: max(best, 0)],
        "tried": {str(count): value for count, value in tried.items()},
        "kept_budget": best >= 0,
    }
    if best < 0:
        # Not even one layer could go: the model stays in float.
        about["score"] = baseline
        about["excluded"] = order
        return copy.deepcopy(model), QuantizationReport("none"), about
    about["score"] = tried[best]
    twin, report = found[best]
    return twin, report, about


def ranked(
    model: nn.Module,
    good: Callable[[nn.Module], float],
    apply: Apply,
    mode: str,
    names: Sequence[str],
    **options: Any,
) -> list[str]:
    """Names of layers, the one that loses most when it alone is quantised first.

    Args:
        model (nn.Module): left as it is.
        good (callable): `good(model)` -> score, higher is better.
        apply (callable): as in `quantize_within`, for modes that `lt.sensitivity` lacks.
        mode (str): of `lt.sensitivity`, or a format of `lower_`.
        names (sequence of str): layers to rank.
        **options: of `lt.sensitivity`.
    """
    if mode in ("dynamic", "static", "weight_only"):
        table = sensitivity(model, None, lambda m, _: good(m), mode=mode, **options)
        return [row.name for row in table.rows]
    scores = {}
    for name in names:
        twin = copy.deepcopy(model)
        apply(twin, [other for other in names if other != name])
        scores[name] = good(twin)
    return sorted(names, key=lambda name: scores[name])
