"""The arguments of `fit`, checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lepton_train.arguments import check_integer, check_number
from lepton_train.metrics import Metric
from lepton_train.training.early_stopping import EarlyStopping
from lepton_train.training.optimizers import Factory
from lepton_train.training.outputs import Loss

TrainingStep = Callable[[Any, Any], torch.Tensor]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_OP = "fit"


@dataclass(frozen=True)
class Settings:
    """The keyword arguments of `fit`, described there."""

    loss: str | Loss | None
    training_step: TrainingStep | None
    optimizer: str | torch.optim.Optimizer | Factory
    lr: float | None
    optimizer_options: Mapping[str, Any] | None
    schedule: str
    warmup: float
    plateau_patience: int
    plateau_factor: float
    metrics: str | Metric | Iterable[str | Metric]
    monitor: str | None
    epochs: int
    batch_size: int
    shuffle: bool
    group_by_length: bool
    collate: Callable[[list[Any]], Any] | None
    augment: Callable[[Any], Any] | None
    precision: str
    accumulate: int
    clip_norm: float | None
    early_stopping: EarlyStopping | None
    restore_best: bool
    checkpoint: str | os.PathLike[str] | None
    checkpoint_every: int | None
    resume: bool
    seed: int
    device: str | torch.device | None
    distributed: Mapping[str, Any] | None
    callbacks: tuple[Callable[[Mapping[str, Any]], Any], ...]
    progress: bool

    def check(self, model: Any) -> None:
        """Raise for the first argument that is wrong by itself."""
        if not isinstance(model, nn.Module):
            raise TypeError(f"{_OP}: model must be a torch.nn.Module, got {type(model).__name__}")
        for name in ("epochs", "accumulate", "checkpoint_every"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{_OP}: {name} must be a whole number of at least 1, got {value}")
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"{_OP}: precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}"
            )
        if self.clip_norm is not None:
            check_number(_OP, "clip_norm", self.clip_norm)
        check_integer(_OP, "seed", self.seed)
        stopping = self.early_stopping
        if stopping is not None and not isinstance(stopping, EarlyStopping):
            raise TypeError(
                f"{_OP}: early_stopping must be an int or an EarlyStopping, "
                f"got {type(stopping).__name__}"
            )
        for callback in self.callbacks:
            if not callable(callback):
                raise TypeError(
                    f"{_OP}: callbacks must hold callables, got {type(callback).__name__}"
                )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"{_OP}: clip_norm must be positive, got {self.clip_norm}")
        if self.resume and self.checkpoint is None:
            raise ValueError(f"{_OP}: resume=True needs checkpoint, the place to go on from")
        if self.checkpoint_every is not None and self.checkpoint is None:
            raise ValueError(f"{_OP}: checkpoint_every needs checkpoint, the place to write to")
