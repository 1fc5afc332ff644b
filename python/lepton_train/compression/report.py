"""What each step of a compression did to score, size and latency."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lepton_train.report import text_table


@dataclass
class StepRow:
    """The model after one step.

    Args:
        step (str): kind of the step; "start" for the model as it came.
        score (float): on the test data, or the validation data where there are none.
        size_mb (float): weights as they are saved, in MB (1e6 bytes).
        latency_ms (float): median for one batch; all rows were timed in turn, in one process.
        latency_low_ms, latency_high_ms (float): first and third quartile.
        throughput (float): examples a second.
        sparsity (float): share of zeros in the weights of linear layers.
        seconds (float): that the step took.
        details (dict): what the step itself reports.
    """

    step: str
    score: float
    size_mb: float
    latency_ms: float = 0.0
    latency_low_ms: float = 0.0
    latency_high_ms: float = 0.0
    throughput: float = 0.0
    sparsity: float = 0.0
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class CompressionReport:
    """Score, size and latency by step; `str()` gives a table.

    Args:
        name (str): of the recipe.
        metric (str): name of the score.
        batch_size (int): examples in the timed batch.
        scored_on (str): "test" or "val".
        seed (int): of the recipe.
        rows (list of StepRow): the model as it came, then after each step.
    """

    name: str
    metric: str
    batch_size: int
    scored_on: str
    seed: int = 0
    rows: list[StepRow] = field(default_factory=list)

    @property
    def before(self) -> StepRow:
        """The model before it was compressed: after the training steps that come first."""
        place = 0
        while place + 1 < len(self.rows) and self.rows[place + 1].step == "train":
            place += 1
        return self.rows[place]

    @property
    def after(self) -> StepRow:
        """The model at the end."""
        return self.rows[-1]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        before, after = asdict(self.before), asdict(self.after)
        for row in (before, after):
            del row["details"]
        return {
            **asdict(self),
            "before": before,
            "after": after,
            "speedup": self.before.latency_ms / self.after.latency_ms,
            "shrink": self.before.size_mb / self.after.size_mb,
        }

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw score, size and latency by step into a picture.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        from lepton_train.plots import before_and_after

        return before_and_after([asdict(row) for row in self.rows], path, self.metric)

    def __str__(self) -> str:
        cells = [
            (
                row.step,
                f"{row.score:.4f}",
                f"{row.size_mb:.3f}",
                f"{row.latency_ms:.3f}",
                f"{row.latency_low_ms:.3f}-{row.latency_high_ms:.3f}",
                f"{row.throughput:.0f}",
                f"{row.sparsity:.1%}",
                f"{row.seconds:.1f}",
            )
            for row in self.rows
        ]
        heads = ("step", self.metric, "MB", "ms", "quartiles", "items/s", "zeros", "seconds")
        speedup = self.before.latency_ms / self.after.latency_ms
        return (
            f"{text_table(heads, cells)}\n{self.name}: {self.metric} {self.before.score:.4f} -> "
            f"{self.after.score:.4f} ({self.scored_on}), "
            f"{self.before.size_mb / self.after.size_mb:.2f} times smaller, {speedup:.2f} times as "
            f"fast for a batch of {self.batch_size}"
        )
