"""What a client does between two averages, with differential privacy where it is asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lepton_train.packages import require

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Privacy:
    """Differential privacy of a client's examples, by DP-SGD (Opacus).

    Args:
        noise_multiplier (float): deviation of the noise over the norm bound. Default: 1.0.
        max_grad_norm (float): bound on each example's gradient. Default: 1.0.
        delta (float): at which epsilon is reported. Default: 1e-5.

    Source: Abadi et al., "Deep Learning with Differential Privacy", 2016.
    """

    noise_multiplier: float = 1.0
    max_grad_norm: float = 1.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        """Check the values."""
        if not (self.noise_multiplier > 0 and self.max_grad_norm > 0 and 0 < self.delta < 1):
            raise ValueError(
                "Privacy: noise_multiplier and max_grad_norm must be above 0, delta between 0 and "
                f"1; got {self.noise_multiplier}, {self.max_grad_norm}, {self.delta}"
            )


@dataclass(frozen=True)
class LocalTraining:
    """SGD on a client's examples; momentum starts anew in each round.

    Args:
        epochs (int): passes in a round. Default: 1.
        batch_size (int): examples in a step. Default: 32.
        learning_rate (float): Default: 0.05.
        momentum (float): Default: 0.9.
        proximal (float): pull towards the state that the server sent (FedProx; Li et al., 2020).
            Default: 0 (none).
        privacy (Privacy, optional): Default: None.
    """

    epochs: int = 1
    batch_size: int = 32
    learning_rate: float = 0.05
    momentum: float = 0.9
    proximal: float = 0.0
    privacy: Privacy | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"LocalTraining: {name} must be at least 1")
        if not (self.learning_rate > 0 and 0 <= self.momentum < 1 and self.proximal >= 0):
            raise ValueError(
                "LocalTraining: learning_rate must be above 0, momentum in [0, 1), proximal not "
                f"negative; got {self.learning_rate}, {self.momentum}, {self.proximal}"
            )


class LocalTrainer:
    """Trains a model on one client's examples, round after round.

    Args:
        inputs (Tensor): dimension 0 the examples.
        labels (Tensor): as many.
        settings (LocalTraining, optional): Default: None (`LocalTraining()`).
        loss (callable, optional): of outputs and labels. Default: None (cross-entropy).
        seed (int): of the order of examples. Default: 0.

    Raises:
        ValueError: no examples, or another number of labels.
        MissingPackageError: privacy without Opacus.
    """

    def __init__(
        self,
        inputs: torch.Tensor,
        labels: torch.Tensor,
        settings: LocalTraining | None = None,
        *,
        loss: Loss | None = None,
        seed: int = 0,
    ) -> None:
        if len(inputs) == 0 or len(inputs) != len(labels):
            raise ValueError(
                f"LocalTrainer: needs examples and as many labels, got {len(inputs)} and "
                f"{len(labels)}"
            )
        self.inputs, self.labels = inputs, labels
        self.settings = settings or LocalTraining()
        self.loss = loss or nn.functional.cross_entropy
        self.generator = torch.Generator().manual_seed(seed)
        self._engine: Any = None
        if self.settings.privacy is not None:
            opacus = require("opacus", "differential privacy", extra="federated")
            self._engine = opacus.PrivacyEngine(accountant="rdp")

    @property
    def epsilon(self) -> float | None:
        """Privacy spent so far, at the delta of the settings; None without privacy."""
        privacy = self.settings.privacy
        if privacy is None:
            return None
        if not self._engine.accountant.history:
            return 0.0
        return float(self._engine.get_epsilon(privacy.delta))

    def train(self, model: nn.Module) -> float:
        """One round on a model, in place.

        Args:
            model (nn.Module): with the weights of the server.

        Returns:
            float: mean loss over the examples seen.
        """
        model.train()
        if self.settings.privacy is not None:
            return self._train_private(model, self.settings.privacy)
        settings = self.settings
        anchor = [p.detach().clone() for p in model.parameters()] if settings.proximal else []
        optimizer = torch.optim.SGD(
            model.parameters(), lr=settings.learning_rate, momentum=settings.momentum
        )
        total = 0.0
        for _ in range(settings.epochs):
            order = torch.randperm(len(self.inputs), generator=self.generator)
            for index in order.split(settings.batch_size):
                optimizer.zero_grad(set_to_none=True)
                loss = self.loss(model(self.inputs[index]), self.labels[index])
                total += float(loss.detach()) * len(index)
                for parameter, start in zip(model.parameters(), anchor, strict=False):
                    loss = loss + settings.proximal / 2 * (parameter - start).square().sum()
                loss.backward()
                optimizer.step()
        return total / (settings.epochs * len(self.inputs))

    def _train_private(self, model: nn.Module, privacy: Privacy) -> float:
        settings = self.settings
        loader = DataLoader(
            TensorDataset(self.inputs, self.labels),
            batch_size=min(settings.batch_size, len(self.inputs)),
            generator=self.generator,
        )
        optimizer = torch.optim.SGD(
            model.parameters(), lr=settings.learning_rate, momentum=settings.momentum
        )
        with warnings.catch_warnings():
            # Opacus notes that its noise is not from a cryptographic generator, at each call.
            warnings.simplefilter("ignore")
            private, optimizer, loader = self._engine.make_private(
                module=model,
                optimizer=optimizer,
                data_loader=loader,
                noise_multiplier=privacy.noise_multiplier,
                max_grad_norm=privacy.max_grad_norm,
                noise_generator=self.generator,
            )
            total, seen = 0.0, 0
            try:
                for _ in range(settings.epochs):
                    for inputs, labels in loader:
                        optimizer.zero_grad(set_to_none=True)
                        # Poisson sampling may draw nobody; the noise is due all the same.
                        outputs = private(inputs)
                        loss = self.loss(outputs, labels) if len(inputs) else outputs.sum()
                        loss.backward()
                        total += float(loss.detach()) * len(inputs)
                        seen += len(inputs)
                        optimizer.step()
            finally:
                private.to_standard_module()
        return total / max(seen, 1)


def accuracy_of(
    model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, batch_size: int = 1000
) -> float:
    """Share of examples whose largest output is at their label.

    Args:
        model (nn.Module): gives scores (examples, classes); put into evaluation mode.
        inputs (Tensor): one example along dimension 0 each.
        labels (Tensor): int64, (examples,).
        batch_size (int): Default: 1000.

    Returns:
        float: 0 to 1.
    """
    model.eval()
    right = 0
    with torch.inference_mode():
        for x, y in zip(inputs.split(batch_size), labels.split(batch_size), strict=True):
            right += int((model(x).argmax(1) == y).sum())
    return right / max(len(labels), 1)
