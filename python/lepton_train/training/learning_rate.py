"""Learning-rate schedules: warm-up, then constant, linear, cosine, or lower on a plateau."""

from __future__ import annotations

import math
from typing import Any

import torch

SCHEDULES = ("constant", "linear", "cosine", "plateau")


class LearningRate:
    """Sets the learning rate of an optimiser before each step.

    Args:
        optimizer (Optimizer): its present rates are the highest that are reached.
        kind (str): "constant"; "linear" or "cosine", falling to 0 at the last step; "plateau",
            times `factor` when the monitored value has not improved for `patience` epochs.
        warmup (int or float): steps, or share of all steps if below 1, over which the rate rises
            from 0.
        total (int, optional): steps of the whole run; needed for linear and cosine and for a share.
        patience (int): Default: 2.
        factor (float): Default: 0.1.

    Raises:
        ValueError: kind is unknown, warmup is negative or longer than the run, or total is missing.

    Source: Loshchilov and Hutter, "SGDR", 2017 (cosine); Goyal et al., "Accurate, Large Minibatch
    SGD", 2017 (warm-up).
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        kind: str,
        warmup: float,
        total: int | None,
        *,
        patience: int = 2,
        factor: float = 0.1,
    ) -> None:
        op = "fit"
        if kind not in SCHEDULES:
            raise ValueError(f"{op}: schedule must be one of {', '.join(SCHEDULES)}; got {kind!r}")
        if total is None and (kind in ("linear", "cosine") or 0 < warmup < 1):
            raise ValueError(
                f"{op}: schedule {kind!r} with warmup {warmup} needs data of known length; use "
                "constant or plateau, and whole steps of warmup"
            )
        steps = round(warmup * (total or 0)) if 0 < warmup < 1 else int(warmup)
        if warmup < 0 or (total is not None and steps > total):
            raise ValueError(
                f"{op}: warmup must lie between 0 and the {total} steps of the run, got {warmup}"
            )
        if patience < 0 or not 0 < factor < 1:
            raise ValueError(
                f"{op}: plateau_patience must be at least 0 and plateau_factor between 0 and 1, "
                f"got {patience} and {factor}"
            )
        self._optimizer = optimizer
        self._base = [_number(group["lr"]) for group in optimizer.param_groups]
        self.kind, self.warmup, self.total = kind, steps, total
        self.patience, self.factor = patience, factor
        self.scale = 1.0
        self.waited = 0

    def at(self, step: int) -> float:
        """Factor of the highest rate at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.kind in ("constant", "plateau"):
            return self.scale
        length = max((self.total or 0) - self.warmup, 1)
        share = min((step - self.warmup) / length, 1.0)
        return 1.0 - share if self.kind == "linear" else 0.5 * (1.0 + math.cos(math.pi * share))

    def apply(self, step: int) -> float:
        """Set the rate for a step; returns that of the first group."""
        factor = self.at(step)
        for group, base in zip(self._optimizer.param_groups, self._base, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(base * factor)
            else:
                group["lr"] = base * factor
        return self._base[0] * factor

    def epoch_ended(self, improved: bool) -> bool:
        """Count an epoch for "plateau"; returns whether the rate is lowered now."""
        if self.kind != "plateau":
            return False
        self.waited = 0 if improved else self.waited + 1
        if self.waited <= self.patience:
            return False
        self.scale *= self.factor
        self.waited = 0
        return True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"base": self._base, "scale": self.scale, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._base = list(state["base"])
        self.scale, self.waited = state["scale"], state["waited"]


def _number(value: Any) -> float:
    return float(value.item() if isinstance(value, torch.Tensor) else value)
