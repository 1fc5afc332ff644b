"""Which epoch was best, and when to give up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EarlyStopping:
    """End training when a value stops improving: `fit(early_stopping=...)`.

    Args:
        patience (int): epochs without improvement that are allowed. Default: 3.
        min_delta (float): a smaller change is no improvement. Default: 0.

    Raises:
        ValueError: patience or min_delta is negative.
    """

    patience: int = 3
    min_delta: float = 0.0

    def __post_init__(self) -> None:
        """Check the arguments."""
        if self.patience < 0 or self.min_delta < 0:
            raise ValueError(
                f"EarlyStopping: patience and min_delta must be at least 0, got {self.patience} "
                f"and {self.min_delta}"
            )


class Best:
    """Follows the monitored value over epochs.

    Args:
        monitor (str): its key in a row of the history.
        higher (bool): whether higher is better.
        stopping (EarlyStopping, optional): Default: None (never stop).
    """

    def __init__(self, monitor: str, higher: bool, stopping: EarlyStopping | None = None) -> None:
        self.monitor, self.higher, self.stopping = monitor, higher, stopping
        self.epoch: int | None = None
        self.value: float | None = None
        self.waited = 0

    def see(self, row: Mapping[str, Any]) -> bool:
        """Take in an epoch's row; returns whether it is the best so far."""
        value = float(row[self.monitor])
        gain = 0.0 if self.value is None else value - self.value
        if not self.higher:
            gain = -gain
        least = self.stopping.min_delta if self.stopping else 0.0
        if self.value is None or gain > least:
            self.epoch, self.value, self.waited = int(row["epoch"]), value, 0
            return True
        self.waited += 1
        return False

    @property
    def stop(self) -> bool:
        """Whether patience has run out."""
        return self.stopping is not None and self.waited > self.stopping.patience

    def to_dict(self) -> dict[str, Any]:
        """Monitor, epoch and value."""
        return {"monitor": self.monitor, "epoch": self.epoch, "value": self.value}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"epoch": self.epoch, "value": self.value, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.epoch, self.value, self.waited = state["epoch"], state["value"], state["waited"]
