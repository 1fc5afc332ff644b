"""`compress`: one recipe from a trained model to a small and fast one, with a report by step."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from lepton_train.data.split import Splits
from lepton_train.metrics import Metric
from lepton_train.packages import require
from lepton_train.prune import make_permanent_
from lepton_train.timing import interleaved
from lepton_train.training.batches import Batches, rows_of
from lepton_train.training.outputs import call

_OP = "compress"


def compress(
    model: nn.Module,
    recipe: Any,
    *,
    data: Any,
    metric: str | Metric | Callable[[nn.Module, Any], float] = "accuracy",
    teacher: nn.Module | None = None,
    rounds: int = 15,
    progress: bool = True,
) -> tuple[nn.Module, Any]:
    """Prune, train, distil, quantise and pack a model by a recipe.

    Decisions (the accuracy budget, the best epoch) use the validation data; the report's score is
    of the test data where there are any. The models of all steps are timed at the end, in turn.

    Args:
        model (nn.Module): left as it is.
        recipe (mapping, path, str or Recipe): steps in order; see `lepton_train.compression.Recipe`
            and docs/training.md.
        data (Splits, mapping or pair): `train` and `val`, and if there is one `test`, each as in
            `fit`; a pair is (train, val).
        metric (str, metric or callable): the score; a callable that is no metric of `lt.metrics` is
            `metric(model, data)`, higher is better. Default: "accuracy".
        teacher (nn.Module, optional): for distillation. Default: None (the model before it is
            pruned or made shallower).
        rounds (int): timed calls of each model. Default: 15.
        progress (bool): lines on standard error. Default: True.

    Returns:
        (nn.Module, CompressionReport): the compressed copy in evaluation mode; score, size and
        latency by step.

    Raises:
        ValueError: the recipe has an unknown key (the message gives the nearest known), a value out
            of range or an impossible order; data lack a part or are empty or unlabelled.
        TypeError: an argument has the wrong type.
        MissingPackageError: pydantic is not installed.

    Example:
        >>> import torch, lepton_train as lt
        >>> x = torch.randn(64, 32)
        >>> data = {"train": (x, (x[:, 0] > 0).long()), "val": (x, (x[:, 0] > 0).long())}
        >>> model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.Linear(64, 2))
        >>> recipe = {"steps": [{"prune": {"sparsity": 0.5, "epochs": 1}}, "quantize"]}
        >>> small, report = lt.compress(model, recipe, data=data, rounds=1, progress=False)
        >>> [row.step for row in report.rows], type(small[0]).__name__
        (['start', 'prune', 'quantize'], 'Int8Linear')
    """
    require("pydantic", "lt.compress")
    from lepton_train.compression.recipe import Recipe
    from lepton_train.compression.report import CompressionReport, StepRow
    from lepton_train.compression.score import Score
    from lepton_train.compression.steps import Workshop

    if not isinstance(model, nn.Module):
        raise TypeError(f"{_OP}: model must be a torch.nn.Module, got {type(model).__name__}")
    plan = Recipe.of(recipe)
    parts = _parts(data)
    score = Score(metric, plan.batch_size)
    judged = "test" if "test" in parts else "val"
    shop = Workshop(
        copy.deepcopy(model).eval(),
        parts["train"],
        parts["val"],
        score,
        seed=plan.seed,
        batch_size=plan.batch_size,
        teacher=teacher,
        progress=progress,
    )
    report = CompressionReport(plan.name, score.name, plan.batch_size, judged, plan.seed)
    models: list[nn.Module] = []

    def record(step: str, seconds: float, details: dict[str, Any]) -> None:
        kept = make_permanent_(copy.deepcopy(shop.model)).eval()
        models.append(kept)
        value = score(kept, parts[judged])
        row = StepRow(step, value, saved_bytes(kept) / 1e6, sparsity=zeros_of(kept))
        row.seconds, row.details = seconds, details
        report.rows.append(row)
        if progress:
            print(
                f"[{len(models) - 1}/{len(plan.steps)}] {step}: {score.name} {value:.4f}, "
                f"{row.size_mb:.3f} MB",
                file=sys.stderr,
            )

    record("start", 0.0, {})
    for kind, settings in plan.steps:
        begin = time.perf_counter()
        details = shop.run(kind, settings)
        record(kind, time.perf_counter() - begin, details)
    _time(models, shop.inputs(parts["val"], 1)[0], rounds, report.rows)
    return shop.model, report


def _parts(data: Any) -> dict[str, Any]:
    """Train, val and maybe test."""
    if isinstance(data, Splits):
        parts = {name: part for name, part in data.parts.items() if len(part)}
    elif isinstance(data, Mapping):
        parts = {name: part for name, part in data.items() if part is not None}
    elif isinstance(data, tuple | list) and len(data) in (2, 3):
        parts = dict(zip(("train", "val", "test"), data, strict=False))
    else:
        raise TypeError(
            f"{_OP}: data must be Splits, a mapping with train and val, or a pair (train, val); "
            f"got {type(data).__name__}"
        )
    missing = [name for name in ("train", "val") if name not in parts]
    if missing:
        raise ValueError(
            f"{_OP}: data must have train and val; {' and '.join(missing)} missing or empty"
        )
    for name, part in parts.items():
        # Raises for what holds no examples or is no data.
        Batches(f"{_OP}: {name}", part, 1)
    return parts


def saved_bytes(model: nn.Module) -> int:
    """Bytes of a model's state dict as it is saved; tensors that share memory count once."""
    sizes = {}
    for value in model.state_dict().values():
        if isinstance(value, torch.Tensor):
            sizes[(value.data_ptr() or id(value), value.numel())] = value.nbytes
    return sum(sizes.values())


def zeros_of(model: nn.Module) -> float:
    """Share of zeros in the weights of linear layers, whatever their form."""
    zeros = total = 0.0
    module: Any
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(module, "sparsity") and hasattr(module, "in_features"):
            count = module.in_features * module.out_features
            zeros, total = zeros + module.sparsity * count, total + count
        elif hasattr(module, "in_features") and isinstance(weight, torch.Tensor):
            zeros += float((weight.float() == 0).sum())
            total += weight.numel()
    return zeros / total if total else 0.0


def _time(
    models: list[nn.Module],
    inputs: Any,
    rounds: int,
    rows: list[Any],
) -> None:
    functions = {
        str(place): (lambda m=model: call(m, inputs)) for place, model in enumerate(models)
    }
    with torch.inference_mode():
        times = interleaved(functions, rounds=rounds)
    count = rows_of(inputs)
    for place, row in enumerate(rows):
        timing = times[str(place)]
        row.latency_ms, row.throughput = timing.median_ms, timing.throughput(count)
        row.latency_low_ms, row.latency_high_ms = timing.low_ms, timing.high_ms
