"""`recover_`: move what pruning took from a layer onto the weights that it kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from lepton_train.calibration import Calibration, visit_inputs
from lepton_train.find import Patterns, as_patterns, check_patterns, matches
from lepton_train.prune_masks import mask_of
from lepton_train.report import text_table

# Steps of conjugate gradients where rows have masks of their own: within a hundredth of the least
# error at condition numbers that inputs have once scaled.
_STEPS = 16
# Masks in a layer for which factorising each is no slower, and exact.
_FACTORISATIONS = 64


@dataclass(frozen=True)
class RecoveredRow:
    """One layer: squared error of its output over that of the dense layer, before and after."""

    name: str
    error_before: float
    error_after: float


@dataclass
class RecoveryReport:
    """What `recover_` did; `str()` gives a table."""

    rows: list[RecoveredRow] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """A table, one line for each layer."""
        cells = [(r.name, f"{r.error_before:.3%}", f"{r.error_after:.3%}") for r in self.rows]
        return text_table(("layer", "output error pruned", "recovered"), cells)


def recover_(
    model: nn.Module,
    data: Calibration,
    *,
    damping: float = 0.01,
    passes: int = 1,
    include: Patterns = None,
    exclude: Patterns = None,
) -> RecoveryReport:
    """Solve for the kept weights of pruned layers, so that outputs come nearest to the dense ones.

    To be called once after one-shot pruning by `prune_`, before training goes on: below its mask a
    layer still holds the dense weights. Each output feature is a least-squares problem on the
    inputs that the layer sees in the pruned model; masks stay as they are. Layers whose rows share
    masks, and those of few rows, are solved exactly; others by conjugate gradients, all at once.

    Args:
        model (nn.Module): pruned by `prune_`; changed in place.
        data (iterable or callable): batches for the model, or a function that runs it, as the
            calibration of `quantize_`. Some thousand rows for each layer, more than its inputs.
        damping (float): added to the diagonal of the second moments of the inputs, relative to its
            mean; holds weights near the dense ones where data says little. Default: 0.01.
        passes (int): groups in which layers are solved, in the order of their registration, each
            with a run over the data: later layers then see what earlier ones give once recovered.
            Data must be readable again and again. Worth the time at high sparsity. Default: 1.
        include (str or iterable, optional): glob patterns of layers. Default: None (all masked).
        exclude (str or iterable, optional): glob patterns of layers to leave. Default: None.

    Returns:
        RecoveryReport: the error of each layer's output, before and after.

    Raises:
        TypeError: model is no nn.Module.
        ValueError: no layer has a mask; a pattern matches none; damping is not above 0; passes is
            below 1; a layer saw no data, or data that is not finite.

    Source: the closed form of Hassibi and Stork, "Optimal brain surgeon", 1993, for a whole mask at
    once, layer by layer as in Frantar and Alistarh, "SparseGPT", 2023 (arXiv 2301.00774).

    Example:
        >>> import torch, lepton_train as lt
        >>> model = torch.nn.Sequential(torch.nn.Linear(32, 8))
        >>> x = torch.randn(256, 32) @ torch.randn(32, 32)
        >>> _ = lt.prune_(model, 0.5)
        >>> row = lt.recover_(model, [x]).rows[0]
        >>> row.error_after < row.error_before
        True
    """
    if not damping > 0.0:
        raise ValueError(f"recover_: damping must be above 0, got {damping}")
    if passes < 1:
        raise ValueError(f"recover_: passes must be at least 1, got {passes}")
    layers = list(_masked_layers(model, include, exclude).items())
    report = RecoveryReport()
    for number in range(passes):
        start, end = (len(layers) * place // passes for place in (number, number + 1))
        group = dict(layers[start:end])
        moments = _second_moments(model, group, data) if group else {}
        for name, layer in group.items():
            report.rows.append(_recover_layer(name, layer, moments.pop(name), damping))
    return report


def _masked_layers(model: nn.Module, include: Patterns, exclude: Patterns) -> dict[str, nn.Linear]:
    op = "recover_"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
    masked = {
        name or "(model)": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and mask_of(module) is not None
    }
    if not masked:
        raise ValueError(f"{op}: no layer of the model has a mask; call prune_ first")
    included = as_patterns(op, "include", include)
    excluded = as_patterns(op, "exclude", exclude)
    check_patterns(op, "include", included, list(masked))
    check_patterns(op, "exclude", excluded, list(masked))
    return {
        name: layer
        for name, layer in masked.items()
        if not any(matches(pattern, name) for pattern in excluded)
        and (not included or any(matches(pattern, name) for pattern in included))
    }


def _second_moments(
    model: nn.Module, layers: dict[str, nn.Linear], data: Calibration
) -> dict[str, torch.Tensor]:
    """Sum of x x^T over all rows that each layer sees, float64."""
    moments: dict[str, torch.Tensor] = {}

    def add(name: str, x: torch.Tensor) -> None:
        rows = x.reshape(-1, x.shape[-1]).float()
        # Data may run in mixed precision; sums over thousands of rows may not.
        with torch.autocast(rows.device.type, enabled=False):
            product = (rows.T @ rows).double()
        moments[name] = moments[name] + product if name in moments else product

    visit_inputs(model, layers, data, add)
    for name in layers:
        if name not in moments:
            raise ValueError(f"recover_: {name}: the data never reached this layer")
        if not torch.isfinite(moments[name]).all():
            raise ValueError(f"recover_: {name}: its input holds NaN, infinity, or overflows")
    return moments


def _recover_layer(
    name: str, layer: nn.Linear, moment: torch.Tensor, damping: float
) -> RecoveredRow:
    carried = mask_of(layer)
    assert carried is not None
    parametrizations: Any = layer.parametrizations
    original = parametrizations.weight.original
    dense, mask = original.detach().double(), carried.mask
    damped = moment + damping * moment.diagonal().mean() * torch.eye(
        len(moment), dtype=moment.dtype, device=moment.device
    )
    with torch.autocast(moment.device.type, enabled=False), torch.no_grad():
        # Rows of a block share their mask, and so the factorisation.
        patterns, owner = torch.unique(mask, dim=0, return_inverse=True)
        if len(patterns) <= max(_FACTORISATIONS, len(mask) // 16):
            original.copy_(_solve(dense, patterns, owner, damped))
        else:
            original.copy_(_descend(dense, mask, damped))
        total = _energy(dense, moment).clamp_min(torch.finfo(torch.float64).tiny)
        before = _energy(dense - dense * mask, moment) / total
        after = _energy(dense - original.detach().double() * mask, moment) / total
    return RecoveredRow(name, before.item(), after.item())


def _solve(
    dense: torch.Tensor, patterns: torch.Tensor, owner: torch.Tensor, damped: torch.Tensor
) -> torch.Tensor:
    """The best weights, from the normal equations of each pattern of kept inputs."""
    solved = dense.clone()
    for number, pattern in enumerate(patterns):
        kept, rows = pattern.nonzero()[:, 0], (owner == number).nonzero()[:, 0]
        if len(kept) in (0, len(pattern)):
            continue
        factor = torch.linalg.cholesky(damped[kept[:, None], kept])
        target = damped[kept] @ dense[rows].T
        solved[rows[:, None], kept] = torch.cholesky_solve(target, factor).T
    return solved


def _descend(dense: torch.Tensor, mask: torch.Tensor, damped: torch.Tensor) -> torch.Tensor:
    """Nearly the best weights: conjugate gradients on all rows at once, never worse than before.

    Inputs are scaled to one size, which is the preconditioner; float32, one product a step.
    """
    scale = damped.diagonal().sqrt()
    system = (damped / scale / scale[:, None]).float()
    target, kept = (dense * scale).float(), mask.float()
    found = target * kept
    residual = ((target - found) @ system).mul_(kept)
    direction, product = residual.clone(), torch.empty_like(residual)
    size = _dots(residual, residual)
    tiny = torch.finfo(torch.float32).tiny
    for _ in range(_STEPS):
        torch.mm(direction, system, out=product).mul_(kept)
        step = size / _dots(direction, product).clamp_min_(tiny)
        found.addcmul_(step, direction)
        residual.addcmul_(step, product, value=-1.0)
        before, size = size, _dots(residual, residual)
        direction.mul_(size / before.clamp_min_(tiny)).add_(residual)
    # Below the mask the dense weights stay, as everywhere.
    return torch.where(mask, found.double() / scale, dense)


def _dots(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Product of each row of `a` with that of `b`, (rows, 1)."""
    return (a * b).sum(1, keepdim=True)


def _energy(weight: torch.Tensor, moment: torch.Tensor) -> torch.Tensor:
    """Sum of squares of x @ weight.T over all rows x behind `moment`."""
    return (weight @ moment * weight).sum()
