"""A linear layer to be benchmarked: data, float64 reference, tolerance, and what is built of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lepton_train.bench.measure import Missing

_CHECKED_ROWS = 64
# Rounding errors are independent of one another, so their sum over K is nearly normal: beyond 8
# standard deviations lies less than 1e-15 of it.
_DEVIATIONS = 8.0
_BF16_STEP = 2.0**-8
_FP32_STEP = 2.0**-23


@dataclass
class Built:
    """An implementation on one problem.

    Attributes:
        calls: one per copy of the weights, each returning (M, N).
        x_step: step of the quantised input, a scalar or (M, 1); 0 for floating point.
        w_step: step of the quantised weight, a scalar or (N,); 0 for floating point.
        rounding: relative rounding of weights and output.
    """

    calls: Sequence[Callable[[], Any]]
    x_step: torch.Tensor | float = 0.0
    w_step: torch.Tensor | float = 0.0
    rounding: float = _FP32_STEP


@dataclass
class Layer:
    """Weights of one layer, and whatever implementations keep between the Ms of that layer."""

    name: str
    k: int
    n: int
    rotate_bytes: int
    threads: int
    weight: torch.Tensor = field(init=False)
    bias: torch.Tensor = field(init=False)
    _kept: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Draw the weights, the same ones every time."""
        generator = torch.Generator().manual_seed(self.k * 65537 + self.n)
        self.weight = torch.randn(self.n, self.k, generator=generator) / self.k**0.5
        self.bias = torch.randn(self.n, generator=generator) * 0.1

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """The result of `make`, built once per layer; what it raises is kept too."""
        if key not in self._kept:
            try:
                self._kept[key] = make()
            except Missing as reason:
                self._kept[key] = reason
        kept = self._kept[key]
        if isinstance(kept, Missing):
            raise kept
        return kept


class Problem:
    """One case: a layer, M rows of input, a dtype of input and output."""

    def __init__(self, layer: Layer, m: int, dtype: torch.dtype) -> None:
        """Draw x, the same one every time, and work out the float64 result of some rows."""
        self.layer, self.m, self.dtype = layer, m, dtype
        generator = torch.Generator().manual_seed(m)
        self.x = torch.randn(m, layer.k, generator=generator).to(dtype)
        picked = torch.linspace(0, m - 1, min(m, _CHECKED_ROWS)).round().long().unique()
        self._rows = picked
        self._x64 = self.x[picked].double()
        w64 = layer.once("weight64", layer.weight.double)
        self._reference = self._x64 @ w64.T + layer.bias.double()
        self._w_squares = layer.once("w_squares", lambda: (w64 * w64).sum(1))

    @property
    def amax(self) -> torch.Tensor:
        """Largest magnitude of each row of x, (M, 1)."""
        return self.x.float().abs().amax(1, keepdim=True)

    def problem_with(self, out: Any, built: Built) -> str:
        """Why `out` is not the layer's result, or an empty string.

        Each rounding of a quantised value is off by at most half a step, evenly spread: a variance
        of step squared over 12. The sum over K gives the standard deviation of an output.
        """
        out = torch.as_tensor(out)
        if tuple(out.shape) != (self.m, self.layer.n):
            return f"shape {tuple(out.shape)}, not {(self.m, self.layer.n)}"
        x_step = torch.as_tensor(built.x_step, dtype=torch.float64)
        x_step = x_step[self._rows] if x_step.dim() == 2 else x_step.reshape(1, 1)
        w_step = torch.as_tensor(built.w_step, dtype=torch.float64).reshape(1, -1)
        x_squares = (self._x64 * self._x64).sum(1, keepdim=True)
        variance = (
            x_squares * w_step**2 / 12
            + self._w_squares * x_step**2 / 12
            + self.layer.k * (x_step * w_step) ** 2 / 144
        )
        norms = (x_squares * self._w_squares).sqrt()
        out_rounding = _BF16_STEP if out.dtype == torch.bfloat16 else _FP32_STEP
        bound = (
            _DEVIATIONS * variance.sqrt()
            + (out_rounding + built.rounding) * self._reference.abs()
            + _DEVIATIONS * built.rounding * norms / self.layer.k**0.5
            + _DEVIATIONS * _FP32_STEP * norms
        )
        error = (out[self._rows].double() - self._reference).abs()
        excess = (error / bound).nan_to_num(nan=float("inf")).max().item()
        return "" if excess <= 1 else f"error is {excess:.3g} times the bound of its rounding"


def bf16_built(calls: Sequence[Callable[[], Any]]) -> Built:
    """An implementation whose weights are rounded to bfloat16."""
    return Built(calls, rounding=_BF16_STEP)
