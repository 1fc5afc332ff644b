"""Batches in an order that seed and epoch fix, so that a resumed run sees the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    default_collate,
)

from lepton_train.data.examples import BatchedDataset, Examples

# Batches whose texts are sorted together: enough for like lengths, few enough to stay mixed.
_POOL = 32


class Batches:
    """Batches of a data set, a part for each process.

    Args:
        op (str): the caller's name, for messages.
        data (any): Examples, a torch Dataset, a DataLoader, or a pair (inputs, labels) of tensors
            or arrays.
        batch_size (int): examples in a batch of one process; a DataLoader has its own.
        shuffle (bool): another order in each epoch. Default: False.
        seed (int): of the order. Default: 0.
        group_by_length (bool): batches of texts of about one length. Default: False.
        rank, world (int): which part of how many. Default: 0 and 1.
        even (bool): give every process the same number of examples by repeating some at the end,
            as training needs. Default: True.
        collate (callable, optional): batch from a list of items of a Dataset. Default: None
            (torch's default_collate).

    Raises:
        TypeError: data is none of these.
        ValueError: data is empty or without lengths to group by, or batch_size is below 1, or
            several processes would read the same batches from a DataLoader.
    """

    def __init__(
        self,
        op: str,
        data: Any,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        group_by_length: bool = False,
        rank: int = 0,
        world: int = 1,
        even: bool = True,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"{op}: batch_size must be at least 1, got {batch_size}")
        self.data = as_data(op, data)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.world, self.even = rank, world, even
        self._collate = collate or default_collate
        self.loader = self.data if isinstance(self.data, DataLoader) else None
        if self.loader is not None and world > 1 and even:
            _check_distributed(op, self.loader)
        self.examples = _length(self.data)
        if self.examples == 0:
            raise ValueError(f"{op}: data must hold at least one example, got none")
        self._lengths = _text_lengths(op, self.data) if group_by_length else None

    @property
    def count(self) -> int | None:
        """Batches in an epoch; None where the data have no length."""
        if self.loader is not None:
            try:
                return len(self.loader)
            except TypeError:
                return None
        assert self.examples is not None
        return math.ceil(len(self._order(0)) / self.batch_size)

    def epoch(self, number: int, skip: int = 0) -> Iterator[Any]:
        """Batches of an epoch, from the one at place `skip` on.

        A DataLoader reads the ones before as well, at once: what it draws from the random
        generators belongs to its state.
        """
        if self.loader is None:
            return self._epoch(number, skip)
        if isinstance(self.loader.sampler, DistributedSampler):
            self.loader.sampler.set_epoch(number)
        batches = iter(self.loader)
        for _ in range(skip):
            next(batches, None)
        return batches

    def _epoch(self, number: int, skip: int) -> Iterator[Any]:
        order = self._order(number)
        for begin in range(skip * self.batch_size, len(order), self.batch_size):
            chosen = order[begin : begin + self.batch_size]
            if isinstance(self.data, BatchedDataset):
                yield self.data.batch(chosen)
            else:
                yield self._collate([self.data[index] for index in chosen.tolist()])

    def generators(self) -> list[torch.Generator]:
        """Generators of a DataLoader's own, beside the global ones."""
        if self.loader is None:
            return []
        owners = (self.loader, self.loader.sampler)
        found = {id(g): g for g in (getattr(o, "generator", None) for o in owners) if g is not None}
        return list(found.values())

    def _order(self, epoch: int) -> torch.Tensor:
        assert self.examples is not None
        if self.shuffle:
            # One stream of numbers for each pair of seed and epoch.
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
            order = torch.randperm(self.examples, generator=generator)
        else:
            order = torch.arange(self.examples)
        if self._lengths is not None:
            order = self._grouped(order, epoch)
        if self.world == 1:
            return order
        if self.even:
            missing = -self.examples % self.world
            order = torch.cat([order, order.repeat(1 + missing // self.examples)[:missing]])
        return order[self.rank :: self.world]

    def _grouped(self, order: torch.Tensor, epoch: int) -> torch.Tensor:
        """The order with texts of like length side by side, and the batches of them mixed."""
        assert self._lengths is not None
        step = self.batch_size * self.world
        pools = [pool[self._lengths[pool].argsort()] for pool in order.split(_POOL * step)]
        batches = list(torch.cat(pools).split(step))
        # The one that is not full stays last: in another place it would move all borders.
        last = [] if len(batches[-1]) == step else [batches.pop()]
        if self.shuffle:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch + 1) % 2**63)
            places = torch.randperm(len(batches), generator=generator).tolist()
            batches = [batches[place] for place in places]
        return torch.cat(batches + last)


def _text_lengths(op: str, data: Any) -> torch.Tensor:
    """Tokens of each text."""
    while not isinstance(data, Examples) and hasattr(data, "source"):
        data = data.source
    inputs = data.inputs if isinstance(data, Examples) else None
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if mask is None:
        raise ValueError(
            f"{op}: group_by_length needs Examples of tokens with attention_mask, as "
            "lt.data.tokenize gives"
        )
    return mask.sum(-1)


def as_data(op: str, data: Any) -> Any:
    """Data in a form that `Batches` reads; a pair of tensors becomes Examples."""
    if isinstance(data, Examples | DataLoader):
        return data
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], np.ndarray):
        data = (torch.as_tensor(data[0]), data[1])
    if isinstance(data, tuple | list) and len(data) == 2 and _tensors(data[0]):
        if isinstance(data[1], np.ndarray):
            return as_data(op, (data[0], torch.as_tensor(data[1])))
        if not isinstance(data[1], torch.Tensor):
            raise TypeError(
                f"{op}: data of two tensors must be (inputs, labels), got labels of type "
                f"{type(data[1]).__name__}"
            )
        return Examples(data[0] if isinstance(data[0], torch.Tensor) else dict(data[0]), data[1])
    if isinstance(data, IterableDataset):
        raise TypeError(f"{op}: wrap an IterableDataset in a torch DataLoader")
    listed = isinstance(data, Sized) and hasattr(data, "__getitem__")
    if isinstance(data, Dataset) or (listed and not isinstance(data, str | Mapping | torch.Tensor)):
        return data
    raise TypeError(
        f"{op}: data must be a Dataset, a DataLoader or a pair (inputs, labels) of tensors or "
        f"arrays, got {type(data).__name__}"
    )


def _tensors(inputs: Any) -> bool:
    if isinstance(inputs, Mapping):
        return bool(inputs) and all(isinstance(v, torch.Tensor) for v in inputs.values())
    return isinstance(inputs, torch.Tensor)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None


def _check_distributed(op: str, loader: DataLoader[Any]) -> None:
    if isinstance(loader.dataset, IterableDataset):
        return
    if not isinstance(loader.sampler, DistributedSampler):
        raise ValueError(
            f"{op}: with several processes give a Dataset, which is divided among them, or a "
            f"DataLoader with a DistributedSampler; got a {type(loader.sampler).__name__}"
        )


def labelled(op: str, batch: Any) -> tuple[Any, torch.Tensor]:
    """Inputs and labels of a batch.

    Args:
        op (str): the caller's name, for messages.
        batch (any): a pair (inputs, labels), or a mapping with `labels` (or `label`).

    Raises:
        ValueError: there are no labels.
    """
    if isinstance(batch, Mapping):
        for key in ("labels", "label"):
            if key in batch:
                return {k: v for k, v in batch.items() if k != key}, batch[key]
    pair = isinstance(batch, tuple | list) and len(batch) == 2
    if pair and isinstance(batch[1], torch.Tensor):
        return batch[0], batch[1]
    raise ValueError(
        f"{op}: a batch must be a pair (inputs, labels) or a mapping with 'labels', got "
        f"{_describe(batch)}; the data are unlabelled"
    )


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"a mapping with {', '.join(map(str, batch))}"
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of {len(batch)}"
    return type(batch).__name__


def rows_of(batch: Any) -> int:
    """Number of examples in a batch: the length of the first tensor in it; 1 if there is none."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(parts, tuple | list) or isinstance(batch, Mapping):
        for part in parts:
            if isinstance(part, torch.Tensor | Mapping | tuple | list):
                return rows_of(part)
    return 1


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on a device; containers keep their kind."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(value, device) for value in batch)
    return batch
