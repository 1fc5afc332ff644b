"""Drift of inputs: how far what a server sees lies from what the model was trained on.

Source: population stability index, Siddiqi, "Credit Risk Scorecards", 2006; by its usual reading
below 0.1 is stable, from 0.1 a shift to look at, from 0.25 another population.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lepton_train.bundle.golden import named_inputs
from lepton_train.bundle.manifest import Feature

BINS = 10
_MOST_COLUMNS = 64
# An empty bin would make the index infinite.
_LEAST_SHARE = 1e-4


def numbers_of(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The numbers of each sample that are watched.

    Args:
        inputs (mapping): the model's inputs by name, dimension 0 the batch.

    Returns:
        dict: name -> float64, shape (samples,). A float input gives its mean and deviation and, as
        a matrix of at most 64 columns, each column; token numbers give their count and the mean
        logarithm (rare tokens have high numbers).
    """
    found: dict[str, torch.Tensor] = {}
    mask = inputs.get("attention_mask")
    for name, value in inputs.items():
        if value is mask or value.dim() == 0:
            continue
        rows = value.reshape(value.shape[0], -1).double()
        if value.is_floating_point():
            found[f"{name}.mean"] = rows.mean(1)
            found[f"{name}.std"] = rows.std(1, correction=0)
            if value.dim() <= 2 and rows.shape[1] <= _MOST_COLUMNS:
                found |= {f"{name}[{i}]": rows[:, i] for i in range(rows.shape[1])}
        elif value.dtype != torch.bool:
            kept = torch.ones_like(rows)
            if mask is not None and mask.shape == value.shape:
                kept = mask.reshape(rows.shape).double()
            count = kept.sum(1)
            found[f"{name}.count"] = count
            logarithms = torch.log1p(rows.clamp(min=0)) * kept
            found[f"{name}.log_mean"] = logarithms.sum(1) / count.clamp(min=1)
    return found


def statistics(batches: Any, bins: int = BINS) -> list[Feature]:
    """Distribution of training inputs, for `bundle.save(input_statistics=...)`.

    Args:
        batches: the model's inputs, as `example_inputs` of `bundle.save`, or an iterable of them.
        bins (int): of equal share, besides one below and one above all that was seen.
            Default: 10.

    Returns:
        list of Feature: edges and shares of each watched number.

    Raises:
        ValueError: no inputs, or a value that is not finite.

    Example:
        >>> x = torch.linspace(0, 1, 1000).reshape(-1, 1)
        >>> feature = statistics(x)[-1]
        >>> feature.name, len(feature.edges), round(feature.shares[1], 2)
        ('input_0[0]', 11, 0.1)
    """
    if bins < 2:
        raise ValueError(f"statistics: bins must be at least 2, got {bins}")
    single = isinstance(batches, (torch.Tensor, Mapping)) or (
        isinstance(batches, tuple) and all(isinstance(each, torch.Tensor) for each in batches)
    )
    collected: dict[str, list[torch.Tensor]] = {}
    for batch in [batches] if single else batches:
        for name, values in numbers_of(named_inputs(batch)[1]).items():
            collected.setdefault(name, []).append(values)
    if not collected:
        raise ValueError("statistics: there are no inputs")
    return [_feature(name, torch.cat(parts), bins) for name, parts in collected.items()]


def _feature(name: str, values: torch.Tensor, bins: int) -> Feature:
    if not torch.isfinite(values).all():
        raise ValueError(f"statistics: {name} must be finite, got NaN or infinity")
    steps = torch.arange(1, bins, dtype=torch.float64) / bins
    # torch.quantile takes at most 16 million values.
    ordered = values.sort().values
    inner = ordered[(steps * (len(ordered) - 1)).round().long()]
    beyond = torch.nextafter(ordered[-1:], ordered.new_full((1,), math.inf))
    edges = torch.cat([ordered[:1], inner, beyond]).unique()
    counts = torch.bincount(
        torch.searchsorted(edges, values, right=True), minlength=len(edges) + 1
    ).double()
    # The bins below and above all that was seen hold one sample, as by Laplace's rule.
    counts[0] += 1
    counts[-1] += 1
    shares = counts / (len(values) + 2)
    return Feature(name=name, edges=edges.tolist(), shares=shares.tolist(), count=len(values))


def population_stability_index(expected: Iterable[float], found: Iterable[float]) -> float:
    """Sum of (found - expected) * log(found / expected) over the bins.

    Args:
        expected (iterable of float): shares in training.
        found (iterable of float): shares now; as many.

    Returns:
        float: 0 for equal shares; from 0.25 on another population.

    Raises:
        ValueError: there are not as many of both.

    Example:
        >>> population_stability_index([0.5, 0.5], [0.5, 0.5])
        0.0
        >>> round(population_stability_index([0.5, 0.5], [0.9, 0.1]), 3)
        0.879
    """
    total = 0.0
    for one, other in zip(expected, found, strict=True):
        one, other = max(one, _LEAST_SHARE), max(other, _LEAST_SHARE)
        total += (other - one) * math.log(other / one)
    return total


class Drift:
    """The last samples that a server saw, against the training statistics.

    Args:
        features (iterable of Feature): from the manifest.
        window (int): samples to look back on. Default: 1000.
        least (int): samples below which nothing is said: by chance alone the index is about
            (bins - 1) / samples. Default: 100.
    """

    def __init__(self, features: Iterable[Feature], window: int = 1000, least: int = 100) -> None:
        self.features = {feature.name: feature for feature in features}
        self.least = least
        self._seen: dict[str, deque[int]] = {name: deque(maxlen=window) for name in self.features}

    def add(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Count a batch of the model's inputs."""
        for name, values in numbers_of(inputs).items():
            if name in self.features:
                edges = self.features[name].edges
                self._seen[name].extend(bisect.bisect_right(edges, v) for v in values.tolist())

    def indices(self) -> dict[str, float]:
        """Population stability index by feature; empty until enough samples were seen."""
        result = {}
        for name, seen in self._seen.items():
            if len(seen) >= self.least:
                feature = self.features[name]
                counts = [0] * len(feature.shares)
                for index, group in itertools.groupby(sorted(seen)):
                    counts[index] = len(list(group))
                # As in `statistics`, so that both are equally careful about what is rare.
                counts[0] += 1
                counts[-1] += 1
                found = [count / (len(seen) + 2) for count in counts]
                result[name] = population_stability_index(feature.shares, found)
        return result
