"""How each kind of step of a recipe changes a model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn

from lepton_train import find
from lepton_train.architectures import shallower
from lepton_train.compression.partial import quantize_within, ranked
from lepton_train.compression.recipe import Distill, Pack, Prune, Quantize, Training
from lepton_train.compression.score import Score
from lepton_train.distill import Distiller
from lepton_train.low_precision import FORMATS, lower_
from lepton_train.pack import pack_
from lepton_train.prune import PruningSchedule, make_permanent_, prune_
from lepton_train.quantize import convert_, quantize_
from lepton_train.report import QuantizationReport
from lepton_train.training import fit
from lepton_train.training.batches import Batches, labelled, to_device
from lepton_train.training.evaluation import device_of
from lepton_train.training.outputs import call, choose_loss

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


class Workshop:
    """Model, data and score between the steps of a compression.

    Args:
        model (nn.Module): changed or replaced by the steps.
        train, val (any): data as in `fit`; val decides.
        score (Score): of the model.
        seed (int): of training.
        batch_size (int): of training and of batches shown to the model.
        teacher (nn.Module, optional): for `distill`. Default: None, the model before its first
            pruning or distillation.
        progress (bool): lines from `fit`.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Any,
        val: Any,
        score: Score,
        *,
        seed: int,
        batch_size: int,
        teacher: nn.Module | None = None,
        progress: bool = True,
    ) -> None:
        self.model, self.train_data, self.val_data = model, train, val
        self.score, self.seed, self.batch_size = score, seed, batch_size
        self.teacher, self.progress = teacher, progress
        self.done = 0

    def run(self, kind: str, settings: Any) -> dict[str, Any]:
        """Carry out a step; returns what it reports."""
        steps: dict[str, Callable[[Any], dict[str, Any]]] = {
            "train": self.train,
            "prune": self.prune,
            "distill": self.distill,
            "quantize": self.quantize,
            "pack": self.pack,
        }
        if kind in ("prune", "distill") and self.teacher is None:
            self.teacher = copy.deepcopy(self.model).eval()
        details = steps[kind](settings)
        self.model.eval()
        self.done += 1
        return details

    # --- data

    def inputs(self, data: Any, count: int, shuffle: bool = False) -> list[Any]:
        """Inputs of the first batches."""
        return [labelled("compress", batch)[0] for batch in self._some(data, count, shuffle)]

    def _some(self, data: Any, count: int, shuffle: bool) -> Iterator[Any]:
        batches = Batches("compress", data, self.batch_size, shuffle=shuffle, seed=self.seed)
        device = device_of(self.model)
        for batch in islice(batches.epoch(self.done), count):
            yield to_device(batch, device)

    def _options(self, settings: Training) -> dict[str, Any]:
        """Keyword arguments of `fit` for a step."""
        metric = [] if not self.score.standard else [self.score.metric]
        return {
            **settings.options(),
            "batch_size": self.batch_size,
            "metrics": metric,
            # Each step sees the data in an order of its own.
            "seed": self.seed * 1000 + self.done,
            "progress": self.progress,
            "device": device_of(self.model),
        }

    # --- steps

    def train(self, settings: Training) -> dict[str, Any]:
        """Plain training."""
        result = fit(self.model, self.train_data, self.val_data, **self._options(settings))
        return {"history": result.history, "best": result.best}

    def prune(self, settings: Prune) -> dict[str, Any]:
        """Prune in rounds, each followed by training."""
        ramp = PruningSchedule(settings.ramp, steps=settings.rounds)
        loss = choose_loss("compress", None)

        def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
            inputs, labels = labelled("compress", batch)
            return loss(call(model, inputs), labels)

        history: list[dict[str, Any]] = []
        for _ in range(settings.rounds):
            data: Any = None
            if settings.criterion == "wanda":
                data = self.inputs(self.train_data, settings.batches, shuffle=True)
            elif settings.criterion != "magnitude":
                data = list(self._some(self.train_data, settings.batches, shuffle=True))
            self.model.eval()
            report = prune_(
                self.model,
                settings.sparsity,
                criterion=settings.criterion,
                pattern=settings.pattern,
                scope=settings.scope,
                include=settings.include,
                exclude=settings.exclude,
                data=data,
                loss=loss_of if settings.criterion in ("gradient", "movement") else None,
                schedule=ramp,
                n=settings.n,
                m=settings.m,
                outputs=settings.outputs,
                inputs=settings.inputs,
            )
            if settings.epochs:
                history += self.train(settings)["history"]
        return {**report.to_dict(), "history": history}

    def distill(self, settings: Distill) -> dict[str, Any]:
        """Learn from the teacher; first become shallower, if asked for."""
        assert self.teacher is not None
        if settings.depth is not None:
            self.model = shallower(self.model, settings.depth)
        distiller = Distiller(
            self.teacher,
            self.model,
            labels=settings.labels,
            temperature=settings.temperature,
            alpha=settings.alpha,
            soft_loss=settings.soft_loss,
            layers=settings.layers,
            layer_weight=settings.layer_weight,
        )
        data = self.train_data
        if settings.cache and hasattr(data, "__len__") and hasattr(data, "__getitem__"):
            data = distiller.cache(data, batch_size=self.batch_size)
        result = distiller.fit(data, self.val_data, **_without_device(self._options(settings)))
        return {"history": result.history, "best": result.best}

    def quantize(self, settings: Quantize) -> dict[str, Any]:
        """Quantise the layers that the budget allows."""
        self.model.eval()
        make_permanent_(self.model)
        calibration = None
        if settings.mode in ("static", "qat"):
            calibration = self.inputs(self.train_data, settings.batches, shuffle=True)
        if settings.mode == "qat":
            quantize_(
                self.model,
                "qat",
                calibration=calibration,
                include=settings.include,
                exclude=settings.exclude,
                observer=settings.observer,
                group_size=settings.group_size,
            )
            result = self.train(settings)
            return {**convert_(self.model).to_dict(), "history": result["history"]}
        options: dict[str, Any] = {"observer": settings.observer, "group_size": settings.group_size}
        given = _listed(settings.exclude)

        def apply(model: nn.Module, exclude: Any) -> QuantizationReport:
            names = [name.translate({ord("["): "[[]"}) for name in exclude]
            rest: dict[str, Any] = {"include": settings.include, "exclude": [*given, *names]}
            if settings.mode in FORMATS:
                return lower_(model, settings.mode, **rest)
            return quantize_(model, settings.mode, calibration=calibration, **rest, **options)

        if settings.budget is None:
            return apply(self.model, ()).to_dict()

        def good(model: nn.Module) -> float:
            return self.score.good(model, self.val_data)

        def rank() -> list[str]:
            probe = apply(copy.deepcopy(self.model), ()).quantized
            return ranked(
                self.model,
                good,
                apply,
                settings.mode,
                probe,
                calibration=calibration,
                include=settings.include,
                exclude=given or None,
                **options,
            )

        self.model, report, about = quantize_within(self.model, apply, good, settings.budget, rank)
        return {**report.to_dict(), **about}

    def pack(self, settings: Pack) -> dict[str, Any]:
        """Keep the forms of layers that measure fastest."""
        self.model.eval()
        if not any(isinstance(m, nn.Linear) for m in self.model.modules()) and not find.int8_layers(
            self.model
        ):
            return {"packed": 0, "rows": [], "note": "no layer is left that has another form"}
        return pack_(
            self.model,
            example_inputs=self.inputs(self.val_data, 1)[0],
            dtype=None if settings.dtype is None else _DTYPES[settings.dtype],
            include=settings.include,
            exclude=settings.exclude,
            rounds=settings.rounds,
        ).to_dict()


def _listed(patterns: str | list[str] | None) -> list[str]:
    return [] if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns)


def _without_device(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "device"}
