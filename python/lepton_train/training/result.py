"""What a training run gives back."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lepton_train.report import text_table


@dataclass
class FitResult:
    """History and best epoch of `fit`; `str()` gives a table.

    Args:
        history (list of dict): one row an epoch: `epoch` (from 1), `train_loss`, `lr`, `seconds`,
            and with validation data `val_loss` and each metric by its name.
        best (dict): `monitor`, the key that was followed, and its best `epoch` and `value`.
        steps (int): optimiser steps.
        seconds (float): time of training, also before an interruption.
        stopped_early (bool): whether early stopping ended it.
        checkpoint (Path, optional): file of the last checkpoint.
    """

    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    seconds: float = 0.0
    stopped_early: bool = False
    checkpoint: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, ready for JSON."""
        values = asdict(self)
        values["checkpoint"] = None if self.checkpoint is None else str(self.checkpoint)
        return values

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw the learning curves into a picture.

        Args:
            path (str or path): `.png`, `.svg` or `.pdf`.

        Returns:
            Path: the picture.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        from lepton_train.plots import learning_curves

        return learning_curves(self.history, path)

    def __str__(self) -> str:
        heads = list(dict.fromkeys(key for row in self.history for key in row))
        cells = [
            ["" if key not in row else _text(row[key]) for key in heads] for row in self.history
        ]
        best = (
            f"best {self.best['monitor']} {_text(self.best['value'])} in epoch {self.best['epoch']}"
            if self.best.get("epoch") is not None
            else "no epoch"
        )
        early = ", stopped early" if self.stopped_early else ""
        table = text_table(heads, cells)
        return f"{table}\n{best}; {self.steps} steps in {self.seconds:.1f} s{early}"


def _text(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
