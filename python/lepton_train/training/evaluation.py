"""How good, how fast and how large a model is: `evaluate`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lepton_train import metrics as metrics_
from lepton_train.metrics import Metric, WeightedMetric
from lepton_train.report import kilobytes, tensor_bytes, text_table
from lepton_train.timing import interleaved
from lepton_train.training.batches import Batches, labelled, rows_of, to_device
from lepton_train.training.outputs import Loss, call, check_range, choose_loss, predictions_of
from lepton_train.training.processes import Processes


@dataclass
class Evaluation:
    """Scores, speed and size of a model; `str()` gives a table.

    Args:
        examples (int): how many were evaluated.
        loss (float): mean over the examples.
        scores (dict): value of each metric by name.
        weights (dict): of the parts of each weighted metric, by its name.
        latency_ms (float, optional): median for one batch.
        batch_size (int): examples in that batch.
        throughput (float, optional): examples a second at that batch.
        latency_ms_single (float, optional): median for one example.
        size_bytes (int): parameters and buffers in memory.
        confusion (list of lists of int): row: true class, column: predicted; empty for numbers.
    """

    examples: int
    loss: float
    scores: dict[str, float] = field(default_factory=dict)
    weights: dict[str, dict[str, float]] = field(default_factory=dict)
    latency_ms: float | None = None
    batch_size: int = 0
    throughput: float | None = None
    latency_ms_single: float | None = None
    size_bytes: int = 0
    confusion: list[list[int]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The evaluation as plain values, ready for JSON."""
        return asdict(self)

    def plot_confusion(
        self, path: str | os.PathLike[str], classes: Iterable[str] | None = None
    ) -> Path:
        """Draw the confusion matrix into a picture.

        Args:
            path (str or path): `.png`, `.svg` or `.pdf`.
            classes (iterable of str, optional): their names. Default: None (numbers).

        Returns:
            Path: the picture.

        Raises:
            ValueError: the labels are no classes.
            MissingPackageError: matplotlib is not installed.
        """
        from lepton_train.plots import confusion_picture

        if not self.confusion:
            raise ValueError("plot_confusion: the labels are no classes")
        return confusion_picture(self.confusion, path, classes)

    def __str__(self) -> str:
        rows = [("examples", str(self.examples)), ("loss", f"{self.loss:.5g}")]
        rows += [(name, f"{value:.5g}") for name, value in self.scores.items()]
        if self.latency_ms is not None and self.throughput is not None:
            rows.append((f"latency, batch of {self.batch_size}", f"{self.latency_ms:.3f} ms"))
            rows.append(("throughput", f"{self.throughput:.1f} examples/s"))
        if self.latency_ms_single is not None:
            rows.append(("latency, one example", f"{self.latency_ms_single:.3f} ms"))
        rows.append(("size", kilobytes(self.size_bytes)))
        return text_table(("what", "value"), rows)


def evaluate(
    model: nn.Module,
    data: Any,
    *,
    metrics: str | Metric | Iterable[str | Metric] = (),
    loss: str | Loss | None = None,
    batch_size: int = 32,
    latency: bool = False,
    rounds: int = 15,
    device: str | torch.device | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Evaluation:
    """Run a model over labelled data in evaluation mode.

    Under torchrun every process evaluates its part, and all get the scores of the whole.

    Args:
        model (nn.Module): it is back in its mode afterwards.
        data (any): as in `fit`.
        metrics (str, callable, or iterable of them): as `lt.metrics.get` takes. Default: (),
            which is accuracy for classes and the mean squared error for numbers.
        loss (str or callable, optional): as in `fit`. Default: None, by the kind of labels.
        batch_size (int): Default: 32.
        latency (bool): time the model also, on the first batch and on one example. Default: False.
        rounds (int): timed calls. Default: 15.
        device (str or torch.device, optional): where to compute. Default: None (where the model
            is).
        collate (callable, optional): as in `fit`. Default: None.

    Returns:
        Evaluation: loss, scores, confusion matrix, size, and latency if asked for.

    Raises:
        ValueError: data are empty or unlabelled, a label is outside the classes, or a metric is
            unknown.
        TypeError: an argument has the wrong type.

    Example:
        >>> import torch, lepton_train as lt
        >>> x = torch.eye(4)
        >>> result = lt.evaluate(torch.nn.Identity(), (x, torch.tensor([0, 1, 2, 0])))
        >>> result.scores
        {'accuracy': 0.75}
    """
    op = "evaluate"
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")
    place = torch.device(device) if device is not None else device_of(model)
    here = Processes.here(place)
    batches = Batches(
        op, data, batch_size, rank=here.rank, world=here.world, even=False, collate=collate
    )
    predictions, labels, total = predict(op, model, batches, here, choose_loss(op, loss))
    chosen = as_metrics(metrics, labels)
    result = Evaluation(len(labels), total, size_bytes=tensor_bytes(model))
    for name, metric in chosen.items():
        result.scores[name] = float(metric(predictions, labels))
        if isinstance(metric, WeightedMetric):
            result.weights[name] = metric.weights
            result.scores.update(metric.parts(predictions, labels))
    if not labels.is_floating_point() and labels.ndim == 1:
        result.confusion = metrics_.confusion_matrix(predictions, labels).tolist()
    if latency:
        _time(model, batches, place, rounds, result)
    return result


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter or buffer of a model is; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def as_metrics(
    metrics: str | Metric | Iterable[str | Metric], labels: torch.Tensor | None = None
) -> dict[str, Metric]:
    """Metrics by name; without any, the standard one for the kind of labels."""
    if isinstance(metrics, str) or callable(metrics):
        metrics = (metrics,)
    chosen = {metrics_.name_of(metric): metrics_.get(metric) for metric in metrics}
    if not chosen and labels is not None:
        usual = "mean_squared_error" if labels.is_floating_point() else "accuracy"
        chosen = {usual: metrics_.get(usual)}
    return chosen


def predict(
    op: str, model: nn.Module, batches: Batches, here: Processes, loss: Loss
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Predictions and labels of all examples on the CPU, and the mean loss; collective."""
    parts: list[torch.Tensor] = []
    truths: list[torch.Tensor] = []
    total, count = 0.0, 0
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches.epoch(0):
                inputs, labels = labelled(op, batch)
                output = call(model, to_device(inputs, here.device))
                check_range(op, output, labels)
                rows = rows_of(labels)
                total += rows * float(loss(output, labels.to(here.device)))
                count += rows
                parts.append(predictions_of(output, labels))
                truths.append(labels.cpu())
    finally:
        model.train(mode)
    if here.world > 1 and batches.loader is None:
        everything = here.gather((parts, truths, total, count))
        parts = [part for each in everything for part in each[0]]
        truths = [part for each in everything for part in each[1]]
        total = sum(each[2] for each in everything)
        count = sum(each[3] for each in everything)
    if not parts:
        raise ValueError(f"{op}: data must hold at least one example, got none")
    return torch.cat(parts), torch.cat(truths), total / count


def _time(
    model: nn.Module, batches: Batches, place: torch.device, rounds: int, result: Evaluation
) -> None:
    inputs, labels = labelled("evaluate", next(iter(batches.epoch(0))))
    rows = rows_of(labels)
    whole, one = to_device(inputs, place), to_device(_first(inputs, rows), place)
    wait: Callable[[], Any] = torch.cuda.synchronize if place.type == "cuda" else lambda: None

    def timed(values: Any) -> Callable[[], Any]:
        return lambda: (call(model, values), wait())

    mode = model.training
    model.eval()
    try:
        with torch.inference_mode():
            times = interleaved({"batch": timed(whole), "single": timed(one)}, rounds=rounds)
    finally:
        model.train(mode)
    result.latency_ms = times["batch"].median_ms
    result.throughput = times["batch"].throughput(rows)
    result.latency_ms_single = times["single"].median_ms
    result.batch_size = rows


def _first(inputs: Any, rows: int) -> Any:
    """The first example of a batch, as a batch of one."""
    if isinstance(inputs, torch.Tensor):
        return inputs[:1] if inputs.ndim and inputs.shape[0] == rows else inputs
    if isinstance(inputs, Mapping):
        return {key: _first(value, rows) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(_first(value, rows) for value in inputs)
    return inputs
