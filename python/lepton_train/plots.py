"""Pictures: learning curves, confusion matrix, before and after of a compression."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lepton_train.files import write_whole
from lepton_train.packages import require

_NOT_CURVES = frozenset({"epoch", "lr", "seconds"})


def _figure(width: float, height: float, panels: int) -> tuple[Any, Any]:
    """Figure and its axes, drawn without a display."""
    figure = require("matplotlib.figure", "a picture", "matplotlib").Figure(
        figsize=(width, height), layout="constrained"
    )
    return figure, [figure.add_subplot(1, panels, place + 1) for place in range(panels)]


def _write(figure: Any, path: str | os.PathLike[str]) -> Path:
    return write_whole(path, lambda file: figure.savefig(file, dpi=120))


def learning_curves(history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Draw losses and metrics over epochs.

    Args:
        history (sequence of mappings): rows of `FitResult.history`.
        path (str or path): `.png`, `.svg` or `.pdf`.

    Returns:
        Path: the file.

    Raises:
        ValueError: history is empty.
        MissingPackageError: matplotlib is not installed.
    """
    if not history:
        raise ValueError("learning_curves: history must hold at least one epoch, got none")
    keys = [
        key for key in dict.fromkeys(k for row in history for k in row) if key not in _NOT_CURVES
    ]
    losses = [key for key in keys if key.endswith("loss")]
    others = [key for key in keys if key not in losses]
    groups = [group for group in (losses, others) if group]
    figure, axes = _figure(4.5 * len(groups), 3.4, len(groups))
    for axis, group in zip(axes, groups, strict=True):
        for key in group:
            rows = [row for row in history if key in row]
            axis.plot([r["epoch"] for r in rows], [r[key] for r in rows], marker="o", label=key)
        axis.set_xlabel("epoch")
        axis.locator_params(axis="x", integer=True)
        axis.legend(frameon=False)
        axis.grid(alpha=0.3)
    return _write(figure, path)


def confusion_picture(
    matrix: Sequence[Sequence[int]],
    path: str | os.PathLike[str],
    classes: Iterable[str] | None = None,
) -> Path:
    """Draw a confusion matrix.

    Args:
        matrix (sequence of sequences of int): row: true class, column: predicted class.
        path (str or path): `.png`, `.svg` or `.pdf`.
        classes (iterable of str, optional): their names. Default: None (numbers).

    Returns:
        Path: the file.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    count = len(matrix)
    names = [str(place) for place in range(count)] if classes is None else list(classes)[:count]
    names += [str(place) for place in range(len(names), count)]
    size = max(3.0, 0.45 * count + 1.8)
    figure, (axis,) = _figure(size, size, 1)
    shares = [[value / max(sum(row), 1) for value in row] for row in matrix]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for true, row in enumerate(matrix):
        for predicted, value in enumerate(row):
            colour = "white" if shares[true][predicted] > 0.5 else "black"
            axis.text(predicted, true, value, ha="center", va="center", color=colour, fontsize=8)
    axis.set_xticks(range(count), names, rotation=45, ha="right")
    axis.set_yticks(range(count), names)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    return _write(figure, path)


def before_and_after(
    steps: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], metric: str = "score"
) -> Path:
    """Draw score, size and latency after each step of a compression.

    Args:
        steps (sequence of mappings): with `step`, `score`, `size_mb` and `latency_ms`; where each
            is a list of values, one for each seed, bars show the mean and whiskers the range.
        path (str or path): `.png`, `.svg` or `.pdf`.
        metric (str): name of the score. Default: "score".

    Returns:
        Path: the file.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    figure, axes = _figure(10.5, 3.4, 3)
    panels = (("score", metric), ("size_mb", "MB on disk"), ("latency_ms", "ms a batch"))
    names = [f"{place + 1} {step['step']}" for place, step in enumerate(steps)]
    for axis, (key, title) in zip(axes, panels, strict=True):
        every = [step[key] if isinstance(step[key], list) else [step[key]] for step in steps]
        values = [sum(each) / len(each) for each in every]
        # The mean of three equal numbers may lie a rounding beyond them.
        low = [max(0.0, value - min(each)) for value, each in zip(values, every, strict=True)]
        high = [max(0.0, max(each) - value) for value, each in zip(values, every, strict=True)]
        whiskers = [low, high] if max(map(len, every), default=1) > 1 else None
        colours = ["#8c8c8c"] + ["#2f6fb3"] * (len(names) - 1)
        bars = axis.bar(names, values, color=colours, yerr=whiskers, capsize=3)
        axis.bar_label(bars, fmt="%.3g", fontsize=8)
        axis.set_title(title)
        axis.tick_params(axis="x", rotation=45)
        if key == "score" and values and min(values) > 0:
            spread = max(max(values) - min(values), 0.01)
            axis.set_ylim(max(0.0, min(values) - 2 * spread), max(values) + spread)
    return _write(figure, path)


def training_time(runs: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Draw losses over steps, and a step's time as computation, communication and waiting.

    Args:
        runs (sequence of mappings): of each training `processes`, `seed`, `losses` (a step each)
            and `milliseconds` (of a step, by part).
        path (str or path): `.png`, `.svg` or `.pdf`.

    Returns:
        Path: the file.

    Raises:
        ValueError: there is no run.
        MissingPackageError: matplotlib is not installed.
    """
    if not runs:
        raise ValueError("training_time: runs must hold at least one training, got none")
    figure, (left, right) = _figure(9.0, 3.4, 2)
    for run in runs:
        losses = list(run["losses"])
        width = max(len(losses) // 50, 1)  # means of neighbours: single batches scatter
        means = [
            sum(losses[i : i + width]) / width for i in range(0, len(losses) - width + 1, width)
        ]
        label = f"{run['processes']} process(es), seed {run['seed']}"
        left.plot([width * (i + 0.5) for i in range(len(means))], means, label=label, lw=1.2)
    left.set_xlabel("step")
    left.set_ylabel("loss")
    left.legend(frameon=False, fontsize=8)
    left.grid(alpha=0.3)
    names = [f"{run['processes']}\nseed {run['seed']}" for run in runs]
    bottom = [0.0] * len(runs)
    for part in runs[0]["milliseconds"]:
        heights = [run["milliseconds"][part] for run in runs]
        right.bar(names, heights, bottom=bottom, label=part, width=0.6)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    right.set_xlabel("processes")
    right.set_ylabel("ms a step, median")
    right.legend(frameon=False, fontsize=8)
    return _write(figure, path)
