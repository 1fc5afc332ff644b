"""Labelled examples: the one form in which data travels from a source to a training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset

Inputs = torch.Tensor | list[str] | dict[str, torch.Tensor]


class BatchedDataset(Dataset[Any], ABC):
    """A data set that gives a whole batch at once."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abstractmethod
    def batch(self, indices: Sequence[int] | torch.Tensor) -> Any:
        """The examples at some places as one batch."""


@dataclass(frozen=True)
class Examples(BatchedDataset):
    """Inputs with labels; a torch data set whose items are `(input, label)`.

    Args:
        inputs (Tensor, list of str, or dict of Tensors): one input per example along dimension 0.
        labels (Tensor): int64 classes (examples,), or float numbers (examples, ...).
        classes (tuple of str): name of each class; empty for numbers. Default: ().
        name (str): of the data set, for reports. Default: "".
        source (str): where it comes from, for the data card. Default: "".
        licence (str): Default: "" (unknown).

    Raises:
        ValueError: numbers of inputs and labels differ, or a label is outside the classes.
        TypeError: inputs or labels have the wrong type.

    Example:
        >>> data = Examples(["good", "bad", "fine"], torch.tensor([1, 0, 1]), ("no", "yes"))
        >>> len(data), data[1], data.subset([0, 2]).inputs
        (3, ('bad', tensor(0)), ['good', 'fine'])
    """

    inputs: Inputs
    labels: torch.Tensor
    classes: tuple[str, ...] = ()
    name: str = ""
    source: str = ""
    licence: str = ""

    def __post_init__(self) -> None:
        """Check the arguments."""
        if not isinstance(self.labels, torch.Tensor):
            raise TypeError(f"Examples: labels must be a Tensor, got {type(self.labels).__name__}")
        sizes = {len(part) for part in self._parts()} | {len(self.labels)}
        if len(sizes) != 1:
            raise ValueError(
                f"Examples: inputs and labels must have one entry per example, got "
                f"{', '.join(str(len(part)) for part in self._parts())} and {len(self.labels)}"
            )
        if self.classes:
            check_labels("Examples", self.labels, len(self.classes))

    def _parts(self) -> list[Any]:
        if isinstance(self.inputs, Mapping):
            return list(self.inputs.values())
        if isinstance(self.inputs, torch.Tensor | list):
            return [self.inputs]
        raise TypeError(
            "Examples: inputs must be a Tensor, a list of str or a dict of Tensors, "
            f"got {type(self.inputs).__name__}"
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor]:
        if isinstance(self.inputs, Mapping):
            return {key: value[index] for key, value in self.inputs.items()}, self.labels[index]
        return self.inputs[index], self.labels[index]

    def __iter__(self) -> Iterator[tuple[Any, torch.Tensor]]:
        return (self[index] for index in range(len(self)))

    def batch(self, indices: Sequence[int] | torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Inputs and labels of several examples at once.

        Tokens are cut to the longest text of the batch by their `attention_mask`.

        Args:
            indices (sequence of int, or Tensor): places, from 0 on.

        Returns:
            tuple: inputs, and labels as a Tensor.
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        labels = self.labels[chosen]
        if isinstance(self.inputs, Mapping):
            return _trim({key: value[chosen] for key, value in self.inputs.items()}), labels
        if isinstance(self.inputs, torch.Tensor):
            return self.inputs[chosen], labels
        return [self.inputs[index] for index in chosen.tolist()], labels

    def subset(self, indices: Iterable[int] | torch.Tensor) -> Examples:
        """The examples at some places, in that order.

        Args:
            indices (iterable of int, or Tensor): places, from 0 on.

        Returns:
            Examples: copies of them.

        Raises:
            IndexError: a place is outside.
        """
        places = indices if isinstance(indices, torch.Tensor) else list(indices)
        chosen = torch.as_tensor(places, dtype=torch.int64)
        if isinstance(self.inputs, Mapping):
            inputs: Inputs = {key: value[chosen] for key, value in self.inputs.items()}
        else:
            inputs = self.batch(chosen)[0]
        return replace(self, inputs=inputs, labels=self.labels[chosen])

    def with_inputs(self, inputs: Inputs) -> Examples:
        """The same examples with other inputs: tokens for texts, say.

        Args:
            inputs (Tensor, list of str, or dict of Tensors): one per example.

        Returns:
            Examples: with the labels of these.

        Raises:
            ValueError: there are more or fewer inputs than labels.
        """
        return replace(self, inputs=inputs)

    def counts(self) -> dict[str, int]:
        """Number of examples by class name; empty for numbers."""
        if self.labels.is_floating_point():
            return {}
        names = self.classes or tuple(
            map(str, range(int(self.labels.max()) + 1 if len(self) else 0))
        )
        counts = torch.bincount(self.labels.reshape(-1), minlength=len(names)).tolist()
        return dict(zip(names, counts, strict=True))


def _trim(tokens: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tokens without the columns in which every text is padding."""
    mask = tokens.get("attention_mask")
    if mask is None or mask.ndim != 2 or mask.numel() == 0:
        return tokens
    used = mask.any(0).nonzero()
    length = int(used[-1]) + 1 if len(used) else 1
    if length == mask.shape[1]:
        return tokens
    return {
        key: value[:, :length] if value.ndim >= 2 and value.shape[1] == mask.shape[1] else value
        for key, value in tokens.items()
    }


def check_labels(op: str, labels: torch.Tensor, classes: int, ignore_index: int = -100) -> None:
    """Raise ValueError for the first class label outside [0, classes).

    Args:
        op (str): the caller's name, for messages.
        labels (Tensor): int64, any shape; other dtypes pass.
        classes (int): number of classes.
        ignore_index (int): a label that is allowed. Default: -100.
    """
    if labels.is_floating_point():
        return
    bad = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if bool(bad.any()):
        place = int(bad.reshape(-1).nonzero()[0])
        raise ValueError(
            f"{op}: labels must lie in [0, {classes}), got "
            f"{int(labels.reshape(-1)[place])} at example {place}"
        )
