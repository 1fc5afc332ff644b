"""Federated averaging of model states, over flat buckets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

import lepton_kernels as lk
from lepton_train.arguments import check_number

State = dict[str, torch.Tensor]
_FUSED = (torch.float32, torch.bfloat16, torch.float16)
# Enough for one pass at full speed, little enough that all clients' buckets fit in memory.
_BUCKET_BYTES = 8 << 20


def fedavg(
    states: Sequence[Mapping[str, torch.Tensor]], weights: Sequence[float] | None = None
) -> State:
    """Weighted mean of model states.

    Float tensors go through flat buckets: one pass scales and casts each client's part, one adds
    them up in fp32 in the order of the clients and rounds once. Whole-number counters (int32,
    int64) are averaged and rounded; masks and codes (bool, int8, uint8) must be equal, since a
    mean of them has no meaning.

    Args:
        states (sequence of mapping): state dicts with the same keys, shapes and dtypes.
        weights (sequence of float, optional): one for each state, not negative, such as the numbers
            of examples; only their ratios count. Default: None (all equal).

    Returns:
        dict: new tensors, of the keys, shapes, dtypes and device of the first state.

    Raises:
        ValueError: no states, keys or shapes that differ, bad weights, codes that differ, or NaN
            or infinity in a state (it says whose).
        TypeError: a value that is no tensor, or dtypes that differ.

    Source: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized
    Data", 2017.

    Example:
        >>> states = [{"w": torch.tensor([0.0, 4.0])}, {"w": torch.tensor([2.0, 0.0])}]
        >>> fedavg(states, [1, 3])["w"]
        tensor([1.5000, 1.0000])
    """
    states = list(states)
    shares = shares_of("fedavg", len(states), weights)
    _check_states(states)
    first = states[0]
    result: State = {}
    fused: list[str] = []
    for name, tensor in first.items():
        values = [state[name] for state in states]
        if tensor.dtype in _FUSED and tensor.device.type == "cpu":
            fused.append(name)
        elif tensor.is_floating_point() or tensor.is_complex():
            _check_finite(name, values)
            wide = tensor.dtype if tensor.is_complex() else torch.float64
            total = torch.zeros_like(tensor, dtype=wide)
            for value, share in zip(values, shares, strict=True):
                total += value.to(wide) * share
            result[name] = total.to(tensor.dtype)
        elif tensor.dtype in (torch.int32, torch.int64):
            mean = sum(v.double() * s for v, s in zip(values, shares, strict=True))
            assert isinstance(mean, torch.Tensor)
            result[name] = mean.round().to(tensor.dtype)
        else:
            if not all(torch.equal(tensor, value) for value in values[1:]):
                raise ValueError(
                    f"fedavg: {name!r} is {tensor.dtype} and differs between states: masks and "
                    "quantised weights have no mean; average the float weights"
                )
            result[name] = tensor.clone()
    for bucket in _buckets(first, fused):
        result |= _average_bucket(states, shares, bucket)
    return {name: result[name] for name in first}


def shares_of(op: str, count: int, weights: Sequence[float] | None) -> list[float]:
    """Weights that add up to 1.

    Raises:
        ValueError: none, too few, negative, not finite, or all zero.
        TypeError: a weight is no number.
    """
    if count == 0:
        raise ValueError(f"{op}: states must hold at least one state")
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count:
        raise ValueError(
            f"{op}: weights must have {count} values, one for each state, got {len(given)}"
        )
    for index, weight in enumerate(given):
        if isinstance(weight, torch.Tensor) and weight.numel() == 1:
            given[index] = weight = weight.item()
        check_number(op, f"weights[{index}]", weight)
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(
                f"{op}: weights[{index}] must be finite and not negative, got {weight}"
            )
    total = math.fsum(given)
    if total <= 0:
        raise ValueError(f"{op}: weights must not all be 0")
    return [float(weight) / total for weight in given]


def _check_states(states: Sequence[Mapping[str, torch.Tensor]]) -> None:
    first = states[0]
    for index, state in enumerate(states):
        if not isinstance(state, Mapping):
            raise TypeError(
                f"fedavg: states[{index}] must be a state dict, got {type(state).__name__}"
            )
        if set(state) != set(first):
            name = sorted(set(state) ^ set(first))[0]
            where = "lacks" if name in first else "has, but states[0] lacks,"
            raise ValueError(f"fedavg: states[{index}] {where} {name!r}")
        for name, value in state.items():
            if not isinstance(value, torch.Tensor):
                raise TypeError(
                    f"fedavg: states[{index}][{name!r}] must be a Tensor, "
                    f"got {type(value).__name__}"
                )
            if value.shape != first[name].shape:
                raise ValueError(
                    f"fedavg: states[{index}][{name!r}] must have shape "
                    f"{tuple(first[name].shape)} as in states[0], got {tuple(value.shape)}"
                )
            if value.dtype != first[name].dtype:
                raise TypeError(
                    f"fedavg: states[{index}][{name!r}] must be {first[name].dtype} as in "
                    f"states[0], got {value.dtype}"
                )


def _check_finite(name: str, values: Sequence[torch.Tensor]) -> None:
    for index, value in enumerate(values):
        if not torch.isfinite(value).all():
            raise ValueError(f"fedavg: states[{index}][{name!r}] must be finite")


def _buckets(state: Mapping[str, torch.Tensor], names: Sequence[str]) -> list[list[str]]:
    """Names in runs of one dtype and about the size of a bucket."""
    buckets: list[list[str]] = []
    size = 0
    for name in sorted(names, key=lambda each: str(state[each].dtype)):
        own = state[name].numel() * 4
        same = buckets and state[buckets[-1][0]].dtype == state[name].dtype
        if not same or size + own > _BUCKET_BYTES:
            buckets.append([])
            size = 0
        buckets[-1].append(name)
        size += own
    return buckets


def _average_bucket(
    states: Sequence[Mapping[str, torch.Tensor]], shares: Sequence[float], names: Sequence[str]
) -> State:
    parts = []
    for index, (state, share) in enumerate(zip(states, shares, strict=True)):
        tensors = [state[name].detach() for name in names]
        if not math.isfinite(float(lk.bucket_squares(tensors).sum())):
            # A square may overflow where its tensor does not.
            for name in names:
                if not torch.isfinite(state[name]).all():
                    raise ValueError(f"fedavg: states[{index}][{name!r}] must be finite")
        parts.append(lk.bucket_flatten(tensors, dtype=torch.float32, factor=share))
    total, _ = lk.bucket_reduce(parts)
    averaged = [
        torch.empty_like(states[0][name], memory_format=torch.contiguous_format).detach()
        for name in names
    ]
    lk.bucket_unflatten_(averaged, total)
    return dict(zip(names, averaged, strict=True))
