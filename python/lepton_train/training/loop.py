"""`fit`: train any module, on one process or under torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from lepton_train.metrics import Metric
from lepton_train.training.early_stopping import EarlyStopping
from lepton_train.training.optimizers import Factory
from lepton_train.training.outputs import Loss
from lepton_train.training.randomness import seeded
from lepton_train.training.result import FitResult
from lepton_train.training.run import Run
from lepton_train.training.settings import Settings, TrainingStep

Callback = Callable[[Mapping[str, Any]], Any]


def fit(
    model: nn.Module,
    train_data: Any,
    val_data: Any = None,
    *,
    loss: str | Loss | None = None,
    training_step: TrainingStep | None = None,
    optimizer: str | torch.optim.Optimizer | Factory = "adamw",
    lr: float | None = None,
    optimizer_options: Mapping[str, Any] | None = None,
    schedule: str = "constant",
    warmup: float = 0,
    plateau_patience: int = 2,
    plateau_factor: float = 0.1,
    metrics: str | Metric | Iterable[str | Metric] = (),
    monitor: str | None = None,
    epochs: int = 1,
    batch_size: int = 32,
    shuffle: bool = True,
    group_by_length: bool = False,
    collate: Callable[[list[Any]], Any] | None = None,
    augment: Callable[[Any], Any] | None = None,
    precision: str = "fp32",
    accumulate: int = 1,
    clip_norm: float | None = None,
    early_stopping: int | EarlyStopping | None = None,
    restore_best: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    resume: bool = False,
    seed: int = 0,
    device: str | torch.device | None = None,
    distributed: Mapping[str, Any] | None = None,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
) -> FitResult:
    """Train a model, in place.

    The same arguments, data, versions and number of threads give the same bits. A run that was
    interrupted and resumed gives the bits of one that was not, also in the middle of an epoch: the
    order of examples, every random generator, optimiser, schedule and history go on.

    Under torchrun the model is wrapped in `BucketedDataParallel`, a Dataset is divided among the
    processes (`batch_size` is that of each), and metrics are those of all validation data.

    Args:
        model (nn.Module): trained in place; it is in evaluation mode afterwards.
        train_data (any): Examples, a torch Dataset, a DataLoader, or (inputs, labels) of tensors
            or arrays.
            A batch is a pair (inputs, labels) or a mapping with `labels`.
        val_data (any, optional): as train_data. Default: None.
        loss (str or callable, optional): "cross_entropy", "binary_cross_entropy",
            "mean_squared_error", or `loss(output, labels)` -> mean over the batch. Default: None,
            cross entropy for integer labels, mean squared error for numbers.
        training_step (callable, optional): `training_step(model, batch)` -> mean loss, in place of
            model and loss in training, for batches of any kind. Default: None.
        optimizer (str, Optimizer or callable): "adamw", "adam", "adadelta", "rmsprop", "sgd" (with
            momentum 0.9), a class of torch's, a torch optimiser, or a function of the parameters.
            Default: "adamw".
        lr (float, optional): highest learning rate. Default: None (1e-3; adadelta 1, sgd 1e-2).
        optimizer_options (mapping, optional): further arguments of torch's class.
            Default: None.
        schedule (str): "constant", "linear", "cosine" or "plateau". Default: "constant".
        warmup (int or float): steps, or share of all steps if below 1, in which the learning rate
            rises. Default: 0.
        plateau_patience (int): epochs. Default: 2.
        plateau_factor (float): Default: 0.1.
        metrics (str, callable or iterable): of the validation data. Default: (), accuracy or mean
            squared error.
        monitor (str, optional): key of the history that decides what is best, for plateau, early
            stopping and `best.pt`. Default: None (the first metric, or train_loss).
        epochs (int): in all, those before a resume included. Default: 1.
        batch_size (int): Default: 32.
        shuffle (bool): training data in another order each epoch. Default: True.
        group_by_length (bool): batches of texts of about one length, in random order, which saves
            the work on padding; needs tokens with `attention_mask`. Default: False.
        collate (callable, optional): batch from a list of items. Default: None (torch's).
        augment (callable, optional): `augment(inputs)` of each training batch. Default: None.
        precision (str): "fp32"; "bf16" or "fp16" by torch.autocast, in validation too, fp16
            with a scaled loss. Default: "fp32".
        accumulate (int): batches in one optimiser step, weighted by their examples. Default: 1.
        clip_norm (float, optional): largest 2-norm of all gradients. Default: None.
        early_stopping (int or EarlyStopping, optional): patience in epochs. Default: None.
        restore_best (bool): give the model the weights of its best epoch. Default: False.
        checkpoint (str or path, optional): folder for `last.pt` and `best.pt`, or a file for the
            first of them. Default: None.
        checkpoint_every (int, optional): steps between checkpoints; one is written after each epoch
            anyway. Default: None.
        resume (bool): go on from `checkpoint` where there is one. Default: False.
        seed (int): of order, dropout and augmentation. Default: 0.
        device (str or torch.device, optional): Default: None (a GPU where there is one).
        distributed (mapping, optional): arguments of `BucketedDataParallel`. Default: None.
        callbacks (iterable of callables): each gets the row of the history after an epoch; one that
            returns True ends training. Default: ().
        progress (bool): a bar on a terminal, a line for each epoch elsewhere. Default: True.

    Returns:
        FitResult: history, best epoch, steps, seconds.

    Raises:
        ValueError: data are empty or unlabelled, a label is outside the classes, an argument is
            unknown or out of range, the checkpoint belongs to a different run, or there is one and
            resume is False.
        TypeError: an argument has the wrong type.
        FloatingPointError: the loss became NaN or infinite.
        OSError: a checkpoint can't be written; the one before is whole.

    Example:
        >>> import torch, lepton_train as lt
        >>> x = torch.randn(64, 4)
        >>> y = (x[:, 0] > 0).long()
        >>> model = torch.nn.Linear(4, 2)
        >>> result = lt.fit(model, (x, y), (x, y), lr=0.1, epochs=20, progress=False)
        >>> len(result.history), result.best["monitor"], result.best["value"] > 0.8
        (20, 'accuracy', True)
    """
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"fit: callbacks must be an iterable, got {type(callbacks).__name__}")
    if isinstance(early_stopping, int):
        early_stopping = EarlyStopping(early_stopping)
    settings = Settings(
        loss=loss,
        training_step=training_step,
        optimizer=optimizer,
        lr=lr,
        optimizer_options=optimizer_options,
        schedule=schedule,
        warmup=warmup,
        plateau_patience=plateau_patience,
        plateau_factor=plateau_factor,
        metrics=metrics,
        monitor=monitor,
        epochs=epochs,
        batch_size=batch_size,
        shuffle=shuffle,
        group_by_length=group_by_length,
        collate=collate,
        augment=augment,
        precision=precision,
        accumulate=accumulate,
        clip_norm=clip_norm,
        early_stopping=early_stopping,
        restore_best=restore_best,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        resume=resume,
        seed=seed,
        device=device,
        distributed=distributed,
        callbacks=tuple(callbacks),
        progress=progress,
    )
    settings.check(model)
    with seeded(seed):
        run = Run(model, train_data, val_data, settings)
        try:
            return run.train()
        finally:
            run.close()
