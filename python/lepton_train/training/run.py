"""One run of `fit`: its state, its steps, its epochs."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from torch import nn

from lepton_train.distributed import BucketedDataParallel
from lepton_train.metrics import higher_is_better
from lepton_train.progress import Progress
from lepton_train.training.batches import Batches, labelled, rows_of, to_device
from lepton_train.training.checkpoint import CheckpointFiles
from lepton_train.training.early_stopping import Best
from lepton_train.training.evaluation import as_metrics, predict
from lepton_train.training.learning_rate import LearningRate
from lepton_train.training.optimizers import make_optimizer
from lepton_train.training.outputs import call, check_range, choose_loss
from lepton_train.training.processes import Processes
from lepton_train.training.randomness import random_state, set_random_state
from lepton_train.training.result import FitResult
from lepton_train.training.saved_run import resume_run, save_run
from lepton_train.training.settings import PRECISIONS, Settings

# On a GPU the loss is looked at only now and then: a look waits for the device.
_LOOK_EVERY = 50
_OP = "fit"


class Run:
    """Everything that a run of `fit` holds between two steps."""

    def __init__(
        self, model: nn.Module, train_data: Any, val_data: Any, settings: Settings
    ) -> None:
        self.settings = s = settings
        self.here = Processes.here(s.device)
        self.model = _inside(model)
        self._wrapped = model
        self.model.to(self.here.device)
        share: dict[str, Any] = {
            "rank": self.here.rank,
            "world": self.here.world,
            "collate": s.collate,
        }
        self.batches = Batches(
            _OP,
            train_data,
            s.batch_size,
            shuffle=s.shuffle,
            seed=s.seed,
            group_by_length=s.group_by_length,
            **share,
        )
        self.validation = (
            None
            if val_data is None
            else Batches(f"{_OP}: val_data", val_data, s.batch_size, even=False, **share)
        )
        self.metrics = as_metrics(s.metrics)
        self._loss = choose_loss(_OP, s.loss)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(_OP, s.optimizer, parameters, s.lr, s.optimizer_options)
        count = self.batches.count
        self.steps_per_epoch = None if count is None else math.ceil(count / s.accumulate)
        total = None if self.steps_per_epoch is None else self.steps_per_epoch * s.epochs
        self.rate = LearningRate(
            self.optimizer,
            s.schedule,
            s.warmup,
            total,
            patience=s.plateau_patience,
            factor=s.plateau_factor,
        )
        # Scales the loss in fp16 only; otherwise it hands everything through.
        self.scaler = torch.amp.GradScaler(self.here.device.type, enabled=s.precision == "fp16")
        self.best = self._new_best()
        self.history: list[dict[str, Any]] = []
        self.epoch = self.batch = self.step = 0
        self.loss_sum: float | torch.Tensor = 0.0
        self.loss_rows, self.seconds = 0, 0.0
        self.epoch_random = self.random()
        self.best_weights: dict[str, torch.Tensor] | None = None
        self.files = None if s.checkpoint is None else CheckpointFiles(s.checkpoint)
        resumed = resume_run(self)
        self._parallel = self._wrap()
        if not resumed and self.here.world > 1:
            # Replicas are equal now; dropout and augmentation shall differ.
            torch.manual_seed(s.seed + self.here.rank)

    def _new_best(self) -> Best:
        s = self.settings
        if s.monitor is not None:
            metric = self.metrics.get(s.monitor)
            known = higher_is_better(metric) if metric is not None else None
            higher = not s.monitor.endswith("loss") if known is None else known
            return Best(s.monitor, higher, s.early_stopping)
        if self.validation is None:
            return Best("train_loss", False, s.early_stopping)
        if self.metrics:
            name, metric = next(iter(self.metrics.items()))
            return Best(name, higher_is_better(metric), s.early_stopping)
        return Best("val_loss", False, s.early_stopping)

    def _wrap(self) -> nn.Module:
        """The model as it is called in training."""
        if self.here.world == 1 or self._wrapped is not self.model:
            return self._wrapped
        return BucketedDataParallel(self.model, **(self.settings.distributed or {}))

    def close(self) -> None:
        """Leave the other processes."""
        parallel = getattr(self, "_parallel", None)
        if isinstance(parallel, BucketedDataParallel) and parallel is not self._wrapped:
            parallel.close()

    # --- training

    def train(self) -> FitResult:
        """Run the epochs that are left."""
        s = self.settings
        stopped = False
        bar = self._bar()
        with bar if bar is not None else nullcontext():
            while self.epoch < s.epochs and not self.best.stop:
                row = self._train_epoch(bar)
                stopped = self._end_epoch(row)
                if stopped:
                    break
        if s.restore_best and self.best_weights is not None:
            self.model.load_state_dict(self.best_weights)
        self.model.eval()
        return FitResult(
            self.history,
            self.best.to_dict(),
            self.step,
            self.seconds,
            stopped or self.best.stop,
            None if self.files is None else self.files.last,
        )

    def _bar(self) -> Progress | None:
        """A bar on a terminal; elsewhere lines are written after each epoch."""
        wanted = self.settings.progress and self.here.rank == 0 and sys.stderr.isatty()
        if not wanted or importlib.util.find_spec("rich") is None:
            return None
        total = (self.steps_per_epoch or 1) * self.settings.epochs
        bar = Progress(total, "the progress bar of fit")
        bar.done = self.step
        return bar

    def _groups(self) -> Iterator[list[Any]]:
        """The batches of each optimiser step that is left in this epoch."""
        if self.batch == 0:
            self.epoch_random = self.random()
            batches = self.batches.epoch(self.epoch)
        else:
            # A DataLoader goes again, from the start of the epoch to where it was.
            present = self.random()
            self.set_random(self.epoch_random)
            batches = self.batches.epoch(self.epoch, self.batch)
            self.set_random(present)
        while group := list(islice(batches, self.settings.accumulate)):
            yield group

    def _train_epoch(self, bar: Progress | None) -> dict[str, Any]:
        s = self.settings
        begin = time.perf_counter()
        self._parallel.train()
        rate = 0.0
        for group in self._groups():
            rate = self.rate.apply(self.step)
            self._step(group)
            self.step += 1
            self.batch += len(group)
            if bar is not None:
                loss = float(self.loss_sum) / max(self.loss_rows, 1)
                bar.step(f"epoch {self.epoch + 1}/{s.epochs}, loss {loss:.4f}")
            if s.checkpoint_every is not None and self.step % s.checkpoint_every == 0:
                self.seconds += time.perf_counter() - begin
                begin = time.perf_counter()
                save_run(self)
        sums = self.here.gather((float(self.loss_sum), self.loss_rows))
        rows = sum(count for _, count in sums)
        if rows == 0:
            raise ValueError(f"{_OP}: train_data must hold at least one example, got none")
        self.seconds += time.perf_counter() - begin
        loss = sum(total for total, _ in sums) / rows
        self._check_finite(loss)
        return {
            "epoch": self.epoch + 1,
            "train_loss": loss,
            "lr": rate,
            "seconds": time.perf_counter() - begin,
        }

    def _step(self, group: list[Any]) -> None:
        """One optimiser step over a group of batches."""
        s = self.settings
        rows = [rows_of(batch) for batch in group]
        total = max(sum(rows), 1)
        self.optimizer.zero_grad()
        for place, (batch, count) in enumerate(zip(group, rows, strict=True)):
            last = place == len(group) - 1
            # Gradients are reduced once, at the end of the last batch.
            local = nullcontext() if last else getattr(self._parallel, "no_sync", nullcontext)()
            with local:
                loss = self._loss_of(batch)
                self.scaler.scale(loss * (count / total)).backward()
            self._count(loss.detach(), count)
        if s.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            self._clip(s.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _autocast(self) -> torch.autocast:
        s = self.settings
        return torch.autocast(
            self.here.device.type, dtype=PRECISIONS[s.precision], enabled=s.precision != "fp32"
        )

    def _loss_of(self, batch: Any) -> torch.Tensor:
        s = self.settings
        device = self.here.device
        with self._autocast():
            if s.training_step is not None:
                loss = s.training_step(self._parallel, to_device(batch, device))
            else:
                inputs, labels = labelled(_OP, batch)
                moved = to_device(inputs, device)
                if s.augment is not None:
                    moved = s.augment(moved)
                output = call(self._parallel, moved)
                check_range(_OP, output, labels)
                loss = self._loss(output, labels.to(device))
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise TypeError(f"{_OP}: the loss must be a Tensor with one number")
        return loss.reshape(())

    def _count(self, loss: torch.Tensor, rows: int) -> None:
        """Add to the mean of the epoch."""
        if loss.device.type == "cpu":
            value = float(loss)
            self._check_finite(value)
            self.loss_sum += value * rows
        else:
            self.loss_sum = self.loss_sum + loss.double() * rows
            if self.step % _LOOK_EVERY == 0:
                self._check_finite(float(loss))
        self.loss_rows += rows

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"{_OP}: the loss became {loss} in epoch {self.epoch + 1}, step {self.step + 1}; a "
                "lower lr, warmup or clip_norm may help; look for NaN in the inputs"
            )

    def _clip(self, norm: float) -> None:
        if isinstance(self._parallel, BucketedDataParallel) and not self.scaler.is_enabled():
            self._parallel.clip_grad_norm_(norm)
        else:
            # Unscaling has changed the gradients since the buckets were summed.
            nn.utils.clip_grad_norm_(self.model.parameters(), norm)

    # --- between epochs

    def _end_epoch(self, row: dict[str, Any]) -> bool:
        """Validate, record, save; returns whether a callback ends training."""
        s = self.settings
        begin = time.perf_counter()
        if self.validation is not None:
            op = f"{_OP}: val_data"
            with self._autocast():
                predictions, labels, loss = predict(
                    op, self.model, self.validation, self.here, self._loss
                )
            row["val_loss"] = loss
            if not self.metrics:
                self.metrics = as_metrics((), labels)
                if not self.history and s.monitor is None:
                    self.best = self._new_best()
            for name, metric in self.metrics.items():
                row[name] = float(metric(predictions, labels))
        if self.best.monitor not in row:
            raise ValueError(
                f"{_OP}: monitor must be one of {', '.join(k for k in row if k != 'epoch')}; got "
                f"{self.best.monitor!r}"
            )
        self.seconds += time.perf_counter() - begin
        row["seconds"] = round(self.seconds - sum(r["seconds"] for r in self.history), 3)
        self.history.append(row)
        better = self.best.see(row)
        self.rate.epoch_ended(better)
        if better and s.restore_best:
            self.best_weights = copy.deepcopy(self.model.state_dict())
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.loss_rows = 0.0, 0
        save_run(self, better)
        self._say(row)
        # Every callback gets the row, also after one that ends training.
        answers = [callback(row) for callback in s.callbacks]
        return any(answer is True for answer in answers)

    def _say(self, row: dict[str, Any]) -> None:
        if self.settings.progress and self.here.rank == 0:
            values = ", ".join(
                f"{key} {value:.5g}" for key, value in row.items() if isinstance(value, float)
            )
            print(f"epoch {row['epoch']}/{self.settings.epochs}: {values}", file=sys.stderr)

    # --- random generators

    def random(self) -> dict[str, Any]:
        """State of every random generator of this process."""
        own = [generator.get_state() for generator in self.batches.generators()]
        return {"global": random_state(), "loader": own}

    def set_random(self, state: dict[str, Any]) -> None:
        """Give the generators a state that `random` gave."""
        set_random_state(state["global"])
        for generator, value in zip(self.batches.generators(), state["loader"], strict=True):
            generator.set_state(value)


def _inside(model: nn.Module) -> nn.Module:
    """The module in a wrapper for data-parallel training."""
    if isinstance(model, BucketedDataParallel | nn.parallel.DistributedDataParallel):
        module: nn.Module = model.module
        return module
    return model
