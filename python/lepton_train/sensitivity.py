"""Which layers lose how much when they alone are quantised: `sensitivity`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from lepton_train import find
from lepton_train.calibration import Calibration
from lepton_train.find import Patterns
from lepton_train.metrics import NAMES, Metric, WeightedMetric, get
from lepton_train.quantize import choose, put_in, quantize_
from lepton_train.report import text_table


@dataclass(frozen=True)
class SensitivityRow:
    """One linear layer in a `SensitivityTable`.

    Args:
        name (str): the layer.
        score (float): the metric when only this layer is quantised.
        loss (float): metric of the float model minus `score`; negative if it got better.
        weights (int): number of weights of the layer.
    """

    name: str
    score: float
    loss: float
    weights: int


@dataclass
class SensitivityTable:
    """Layers by what they lose, worst first; `str()` gives a table.

    Args:
        mode (str): the kind of quantisation.
        baseline (float): the metric of the float model.
        rows (list of SensitivityRow): by falling loss.
    """

    mode: str
    baseline: float
    rows: list[SensitivityRow] = field(default_factory=list)

    def worst(self, count: int) -> list[str]:
        """Names of the `count` layers that lose most, to pass to `quantize_(exclude=...)`."""
        return [row.name for row in self.rows[:count]]

    def to_dict(self) -> dict[str, Any]:
        """The table as plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        cells = [
            (row.name, f"{row.score:.6f}", f"{row.loss:+.6f}", str(row.weights))
            for row in self.rows
        ]
        table = text_table(("layer", "score", "loss", "weights"), cells)
        return f"{table}\n{self.mode}, one layer at a time; float model {self.baseline:.6f}"


def sensitivity(
    model: nn.Module,
    data: Any,
    metric: str | Metric | Callable[[nn.Module, Any], float],
    *,
    mode: str = "dynamic",
    calibration: Calibration | None = None,
    include: Patterns = None,
    exclude: Patterns = None,
    observer: str = "minmax",
    group_size: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> SensitivityTable:
    """Quantise one linear layer at a time and measure what that costs.

    Args:
        model (nn.Module): put it into the mode the metric needs (`model.eval()`); afterwards it
            holds the very same modules as before, also after an error.
        data (any): handed to `metric`; with a name or a metric of `lt.metrics`, as in `evaluate`.
        metric (str, metric of lt.metrics or callable): metric(model, data) -> float, higher is
            better; runs without gradients, once per layer and once for the float model. Where lower
            is better, as for a mean squared error, its negative is the score.
        mode (str): `"dynamic"`, `"static"` or `"weight_only"`. Default: "dynamic".
        calibration (callable or iterable, optional): as in `quantize_`; an iterable is read once
            for every layer, so not a generator. Default: None.
        include, exclude (str or iterable of str, optional): as in `quantize_`.
        observer (str): as in `quantize_`. Default: "minmax".
        group_size (int, optional): as in `quantize_`. Default: None.
        progress (callable, optional): called with the name of each layer in turn. Default: None.

    Returns:
        SensitivityTable: rows by falling loss.

    Raises:
        ValueError: mode is "qat", the metric's name is unknown, or as `quantize_`.
        TypeError: metric gives no number, or as `quantize_`.

    Example:
        >>> import torch, lepton_train as lt
        >>> model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 1))
        >>> x = torch.randn(8, 16)
        >>> target = model(x).detach()
        >>> table = lt.sensitivity(model, x, lambda m, x: -float((m(x) - target).abs().mean()))
        >>> table.baseline, sorted(row.name for row in table.rows)
        (-0.0, ['0', '1'])
    """
    op = "sensitivity"
    if mode == "qat":
        raise ValueError(f'{op}: mode must be dynamic, static or weight_only; got "qat"')
    named = isinstance(metric, str | WeightedMetric)
    if named or any(metric is get(name) for name in NAMES):
        # Evaluation is part of training, which quantises.
        from lepton_train.compression.score import Score

        judge: Callable[[Any, Any], Any] = Score(metric).good
    else:
        if not callable(metric):
            raise TypeError(
                f"{op}: metric must be a name or a callable, got {type(metric).__name__}"
            )
        judge = metric
    chosen, _ = choose(op, find.find_linears(op, model), include, exclude)

    def measure() -> float:
        with torch.no_grad():
            value = judge(model, data)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise TypeError(
                f"{op}: metric must give a number, got {type(value).__name__}"
            ) from None

    table = SensitivityTable(mode, measure())
    for found in chosen:
        if progress is not None:
            progress(found.name)
        fast_paths = [
            (layer, layer.activation_relu_or_gelu)
            for layer in model.modules()
            if isinstance(layer, nn.TransformerEncoderLayer)
        ]
        try:
            report = quantize_(
                model,
                mode,
                calibration=calibration,
                # A name may hold characters that mean something in a pattern.
                include=found.name.translate({ord("["): "[[]"}),
                observer=observer,
                group_size=group_size,
            )
            score = measure() if found.name in report.quantized else table.baseline
        finally:
            put_in(model, found, found.module)
            for layer, value in fast_paths:
                layer.activation_relu_or_gelu = value
        weights = found.module.weight.numel()
        table.rows.append(SensitivityRow(found.name, score, table.baseline - score, weights))
    table.rows.sort(key=lambda row: row.loss, reverse=True)
    return table
