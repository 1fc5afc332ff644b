"""`prune_`: set weights of linear layers to zero, once or step by step."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lepton_train.arguments import check_integer, check_number
from lepton_train.find import Patterns, as_patterns, check_patterns, matches
from lepton_train.prune_masks import (
    block_scores,
    expand_blocks,
    kept_count,
    mask_of,
    n_of_m_mask,
    set_mask,
    unstructured_mask,
)
from lepton_train.prune_scores import CRITERIA, Loss, scores_of
from lepton_train.report import text_table

PATTERNS = ("unstructured", "2:4", "n:m", "block")
SCHEDULES = ("one-shot", "linear", "cubic")


@dataclass
class PruningSchedule:
    """How sparsity grows over a training run: pass it to every call of `prune_`.

    Args:
        kind (str): "one-shot" (all at once at `begin`), "linear", or "cubic" (fast, then slow:
            Zhu and Gupta, 2017, arXiv 1710.01878). Default: "cubic".
        steps (int): calls over which sparsity grows, at least 1. Default: 1.
        begin (int): calls before the first pruning. Default: 0.
        done (int): calls made so far; save it with a checkpoint. Default: 0.

    Example:
        >>> schedule = PruningSchedule("linear", steps=4)
        >>> [schedule.step(0.8) for _ in range(5)]
        [0.2, 0.4, 0.6000000000000001, 0.8, 0.8]
    """

    kind: str = "cubic"
    steps: int = 1
    begin: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.kind not in SCHEDULES:
            raise ValueError(
                f"PruningSchedule: kind must be one of {', '.join(SCHEDULES)}, got {self.kind!r}"
            )
        for name in ("steps", "begin", "done"):
            check_integer("PruningSchedule", name, getattr(self, name))
        if self.steps < 1 or self.begin < 0 or self.done < 0:
            raise ValueError(
                f"PruningSchedule: steps must be at least 1, begin and done at least 0, got "
                f"{self.steps}, {self.begin} and {self.done}"
            )

    def at(self, call: int, final: float) -> float:
        """Sparsity after some calls.

        Args:
            call (int): number of calls.
            final (float): where it shall end, in [0, 1).

        Returns:
            float: 0 to `final`.
        """
        progress = min(max((call - self.begin) / self.steps, 0.0), 1.0)
        if self.kind == "one-shot":
            return final if call > self.begin else 0.0
        return final * (progress if self.kind == "linear" else 1.0 - (1.0 - progress) ** 3)

    def step(self, final: float) -> float:
        """Count one call.

        Args:
            final (float): where sparsity shall end, in [0, 1).

        Returns:
            float: the sparsity to prune to now.
        """
        self.done += 1
        return self.at(self.done, final)


@dataclass(frozen=True)
class PrunedRow:
    """One linear layer in a `PruningReport`: its sizes, share of zeros, and why it was left."""

    name: str
    in_features: int
    out_features: int
    sparsity: float
    action: str
    reason: str = ""


@dataclass
class PruningReport:
    """What `prune_` did; `str()` gives a table.

    Args:
        sparsity (float): what was asked for in this call.
        pattern (str): as in `prune_`.
        rows (list of PrunedRow): one for each linear layer.
    """

    sparsity: float
    pattern: str
    rows: list[PrunedRow] = field(default_factory=list)

    @property
    def pruned(self) -> list[str]:
        """Names of the layers that have a mask now."""
        return [row.name for row in self.rows if row.action == "pruned"]

    @property
    def reached(self) -> float:
        """Share of zeros in the weights of all pruned layers."""
        sizes = [(r.in_features * r.out_features, r) for r in self.rows if r.action == "pruned"]
        total = sum(size for size, _ in sizes)
        return sum(size * row.sparsity for size, row in sizes) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return {**asdict(self), "reached": self.reached}

    def __str__(self) -> str:
        """A table, one line for each layer."""
        cells = [
            (r.name, f"{r.out_features} x {r.in_features}", r.action, f"{r.sparsity:.1%}", r.reason)
            for r in self.rows
        ]
        table = text_table(("layer", "out x in", "action", "zeros", "note"), cells)
        return (
            f"{table}\n{self.pattern}: {len(self.pruned)} of {len(self.rows)} linear layers "
            f"pruned, {self.reached:.1%} of their weights are zero"
        )


def prune_(
    model: nn.Module,
    sparsity: float,
    *,
    criterion: str = "magnitude",
    pattern: str = "unstructured",
    scope: str = "layer",
    include: Patterns = None,
    exclude: Patterns = None,
    data: Any = None,
    loss: Loss | None = None,
    schedule: PruningSchedule | None = None,
    n: int = 2,
    m: int = 4,
    outputs: int = 16,
    inputs: int = 4,
) -> PruningReport:
    """Mask the weights of linear layers that matter least; in place, again and again.

    A mask is a parametrisation of the layer (`torch.nn.utils.parametrize`): the parameter object
    stays, so optimisers keep working; gradients of masked weights are zero; the mask is part of the
    state dict and of copies. What is masked stays masked in later calls. `make_permanent_` turns
    the layers back into plain `nn.Linear` with zeros.

    Args:
        model (nn.Module): changed in place.
        sparsity (float): share of zeros to reach, in [0, 1). With a pattern of n of m it must be
            1 - n / m, or less with a schedule, during which the pattern is unstructured.
        criterion (str): "magnitude"; "gradient", |weight * gradient| (first-order Taylor);
            "movement", -weight * gradient (Sanh et al., 2020); "wanda", |weight| * norm of its
            input, compared within each output feature. Default: "magnitude".
        pattern (str): "unstructured"; "2:4"; "n:m" with arguments `n` and `m`; "block", blocks of
            `outputs` x `inputs` features, which `sparse_linear` runs fastest. Default:
            "unstructured".
        scope (str): "layer", the same sparsity in each; "global", one threshold for all, for
            patterns unstructured and block, but that every layer keeps a weight, and every group of
            `outputs` a block. Default: "layer".
        include (str or iterable, optional): glob patterns of layers to prune. Default: None (all).
        exclude (str or iterable, optional): glob patterns of layers to leave. Default: None.
        data (iterable or callable, optional): for wanda, as the calibration of `quantize_`; for
            gradient and movement, an iterable of batches for `loss`. Default: None.
        loss (callable, optional): `loss(model, batch)` gives a scalar tensor. Default: None, that
            of `fit` for batches (inputs, labels).
        schedule (PruningSchedule, optional): how far this call goes. Default: None (all the way).
        n (int): weights kept in each group of `m`. Default: 2.
        m (int): size of a group. Default: 4.
        outputs (int): output features of a block: 16, 32 or 64. More cost accuracy and are faster
            with int8 values on AMX. Default: 16.
        inputs (int): input features of a block: 4 or 64. Blocks of 16 x 64 are tiles of AMX and
            cost nothing but the products that are kept: by far the fastest with int8 values and 16
            rows or more. Default: 4.

    Returns:
        PruningReport: the layers, their share of zeros, and why some were left.

    Raises:
        TypeError: model is no nn.Module, or an argument has the wrong type.
        ValueError: a value is out of range or unknown; a pattern matches no layer; data is missing;
            no layer can be pruned; in_features of a layer is not a multiple of m; scope "global"
            would leave fewer weights or blocks than every layer needs to give anything.

    Example:
        >>> import torch, lepton_train as lt
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU())
        >>> lt.prune_(model, 0.75).reached
        0.75
    """
    n, m = (2, 4) if pattern == "2:4" else (n, m)
    _check(sparsity, criterion, pattern, scope, n, m)
    if outputs not in (16, 32, 64):
        raise ValueError(f"prune_: outputs must be 16, 32 or 64, got {outputs}")
    if inputs not in (4, 64):
        raise ValueError(f"prune_: inputs must be 4 or 64, got {inputs}")
    layers, rows = _choose(model, include, exclude)
    _check_shapes(layers, pattern, m)
    if schedule is not None:
        if not isinstance(schedule, PruningSchedule):
            raise TypeError(
                f"prune_: schedule must be a PruningSchedule, got {type(schedule).__name__}"
            )
        now = schedule.step(sparsity)
    else:
        now = sparsity
    scores = scores_of(criterion, model, layers, data, loss)
    grouped = pattern in ("2:4", "n:m")
    structured = grouped and now >= sparsity
    for name, layer in layers.items():
        carried = mask_of(layer)
        if carried is not None:
            # Below every other score: what is gone stays gone.
            scores[name] = scores[name].masked_fill(~carried.mask, -math.inf)
        if grouped and not structured:
            # On the way to n:m a group must not lose more than m - n weights.
            best = n_of_m_mask(scores[name], n, m)
            scores[name] = scores[name].masked_fill(best, math.inf)
    if structured:
        masks = {name: n_of_m_mask(score, n, m) for name, score in scores.items()}
    elif pattern == "block":
        masks = _block_masks(scores, now, scope, (outputs, inputs))
    elif scope == "global":
        held = {name: _best(score.view(1, -1)).view_as(score) for name, score in scores.items()}
        masks = _global_masks(scores, now, held)
    else:
        masks = {
            name: unstructured_mask(score, now, criterion == "wanda")
            for name, score in scores.items()
        }
    for name, layer in layers.items():
        carried = mask_of(layer)
        set_mask(layer, masks[name] if carried is None else masks[name] & carried.mask)
    report = PruningReport(now, pattern)
    for row_name, linear, reason in rows:
        carried = mask_of(linear)
        share = 0.0 if carried is None else 1.0 - carried.mask.float().mean().item()
        action = "left" if reason else "pruned"
        sizes = (linear.in_features, linear.out_features)
        report.rows.append(PrunedRow(row_name, *sizes, share, action, reason))
    return report


def _check(sparsity: float, criterion: str, pattern: str, scope: str, n: int, m: int) -> None:
    op = "prune_"
    check_number(op, "sparsity", sparsity)
    check_integer(op, "n", n)
    check_integer(op, "m", m)
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(f"{op}: sparsity must lie in [0, 1), got {sparsity}")
    for name, value, known in (
        ("criterion", criterion, CRITERIA),
        ("pattern", pattern, PATTERNS),
        ("scope", scope, ("layer", "global")),
    ):
        if value not in known:
            raise ValueError(f"{op}: {name} must be one of {', '.join(known)}, got {value!r}")
    if pattern in ("2:4", "n:m"):
        if not 0 < n <= m:
            raise ValueError(f"{op}: n and m must satisfy 0 < n <= m, got {n}:{m}")
        if abs(sparsity - (1 - n / m)) > 1e-6:
            raise ValueError(
                f"{op}: pattern {n}:{m} has a sparsity of {1 - n / m:g}, got {sparsity}"
            )
        if scope == "global":
            raise ValueError(f"{op}: pattern {n}:{m} is the same everywhere; use scope 'layer'")


def _choose(
    model: nn.Module, include: Patterns, exclude: Patterns
) -> tuple[dict[str, nn.Linear], list[tuple[str, nn.Linear, str]]]:
    """Layers to prune by name, and every linear layer with the reason why it is left."""
    op = "prune_"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
    included = as_patterns(op, "include", include)
    excluded = as_patterns(op, "exclude", exclude)
    modules = model.named_modules()
    found = [(name or "(model)", x) for name, x in modules if isinstance(x, nn.Linear)]
    names = [name for name, _ in found]
    if not found:
        raise ValueError(f"{op}: model {type(model).__name__} holds no torch.nn.Linear")
    check_patterns(op, "include", included, names)
    check_patterns(op, "exclude", excluded, names)
    layers: dict[str, nn.Linear] = {}
    rows = []
    for name, linear in found:
        reason = _reason(name, linear, included, excluded)
        rows.append((name, linear, reason))
        if not reason:
            layers[name] = linear
    if not layers:
        reasons = "; ".join(f"{name}: {reason}" for name, _, reason in rows)
        raise ValueError(f"{op}: no linear layer can be pruned ({reasons})")
    return layers, rows


def _reason(
    name: str, linear: nn.Linear, include: tuple[str, ...], exclude: tuple[str, ...]
) -> str:
    for pattern in exclude:
        if matches(pattern, name):
            return f"excluded by {pattern!r}"
    if include and not any(matches(pattern, name) for pattern in include):
        return "not named by include"
    if parametrize.is_parametrized(linear, "weight") and mask_of(linear) is None:
        return "its weight has a parametrisation of another kind"
    if not linear.weight.is_floating_point() or linear.weight.numel() == 0:
        return "its weight is empty or not float"
    return ""


def _check_shapes(layers: dict[str, nn.Linear], pattern: str, m: int) -> None:
    if pattern not in ("2:4", "n:m"):
        return
    for name, layer in layers.items():
        if layer.in_features % m:
            raise ValueError(
                f"prune_: {name} has {layer.in_features} input features, no multiple of {m}; "
                f"exclude it"
            )


def _global_masks(
    scores: dict[str, torch.Tensor], sparsity: float, held: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The best units of all layers together, among them those that are `held`."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    keep, least = kept_count(flat.numel(), sparsity), sum(int(h.sum()) for h in held.values())
    if least > keep:
        name = max(held, key=lambda name: held[name].float().mean().item())
        raise ValueError(
            f"prune_: a sparsity of {sparsity:g} leaves {keep} of {flat.numel()} weights or "
            f"blocks, fewer than the {least} that hold every layer open; lower it, exclude small "
            f"layers such as {name}, or use scope 'layer'"
        )
    flat = flat.masked_fill(torch.cat([h.flatten() for h in held.values()]), math.inf)
    mask = unstructured_mask(flat[None], sparsity, True)[0]
    parts = mask.split([score.numel() for score in scores.values()])
    return {n: p.view(s.shape) for (n, s), p in zip(scores.items(), parts, strict=True)}


def _best(scores: torch.Tensor) -> torch.Tensor:
    """True at the best unit of each row that has any left: without it the row gives nothing."""
    best = torch.zeros_like(scores, dtype=torch.bool)
    if scores.numel():
        best.scatter_(1, scores.argmax(1, keepdim=True), True)
    return best & (scores > -math.inf)


def _block_masks(
    scores: dict[str, torch.Tensor], sparsity: float, scope: str, block: tuple[int, int]
) -> dict[str, torch.Tensor]:
    blocks = {name: block_scores(score, *block) for name, score in scores.items()}
    if scope == "global":
        chosen = _global_masks(blocks, sparsity, {name: _best(b) for name, b in blocks.items()})
    else:
        chosen = {name: unstructured_mask(b, sparsity, False) for name, b in blocks.items()}
    return {name: expand_blocks(chosen[name], s.shape, *block) for name, s in scores.items()}


def make_permanent_(model: nn.Module) -> nn.Module:
    """Turn every masked layer back into a plain `nn.Linear` whose weight holds the zeros.

    Args:
        model (nn.Module): changed in place. The weights are new values in the same parameters.

    Returns:
        nn.Module: the model.
    """
    for module in model.modules():
        if mask_of(module) is not None:
            # A copy shares its class with the original, which removal would strip of `weight`.
            kind: Any = type(module)
            own = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
            module.__class__ = type(kind.__name__, kind.__bases__, own)
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return model
