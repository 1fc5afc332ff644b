"""A linear layer on a GPU: the data of `bench.problem`, moved, and the peers that any layer has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

import lepton_kernels as lk
from lepton_train.bench import harness
from lepton_train.bench.cuda.device import Device
from lepton_train.bench.measure import Prepared
from lepton_train.bench.problem import Built, Problem, bf16_built

_MOST_COPIES = 512


@dataclass
class Placed:
    """A problem whose input and bias lie on the device; weights by `copies`."""

    problem: Problem
    device: Device

    def __post_init__(self) -> None:
        """Move what every implementation takes."""
        self.x = self.problem.x.to(self.device.device)
        self.bias = self.problem.layer.bias.to(self.device.device)

    @property
    def weight(self) -> torch.Tensor:
        """The float32 weight, on the device."""
        return self.once("weight", lambda: self.problem.layer.weight.to(self.device.device))

    def once(self, key: str, make: Callable[[], Any]) -> Any:
        """Built once per layer and backend in force."""
        return self.problem.layer.once(f"{key} {lk.info()['forced_backend']}", make)

    def copies(self, key: str, nbytes: int, make: Callable[[], Any]) -> list[Any]:
        """Copies of a weight that together outgrow the L2."""
        count = min(harness.copies(nbytes, self.device.rotate_bytes), _MOST_COPIES)
        copies: list[Any] = self.once(key, lambda: [make() for _ in range(count)])
        return copies

    def prepared(self, built: Built) -> Prepared:
        """`built` with the check of the problem."""

        def check(out: torch.Tensor) -> str:
            return self.problem.problem_with(out.cpu(), built)

        return Prepared(built.calls, check)


def bf16(placed: Placed) -> Prepared:
    """`torch.nn.functional.linear` in bfloat16: cuBLAS."""
    weight = placed.weight
    copies = placed.copies("bf16", 2 * weight.numel(), lambda: weight.to(torch.bfloat16, copy=True))
    x, bias = placed.x.to(torch.bfloat16), placed.bias.to(torch.bfloat16)
    calls = [functools.partial(functional.linear, x, w, bias) for w in copies]
    return placed.prepared(bf16_built(calls))


def int8_weight(placed: Placed) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 weight and its scales on the device, the same for every implementation."""
    layer = placed.problem.layer

    def make() -> tuple[torch.Tensor, torch.Tensor]:
        scale = layer.weight.abs().amax(1) / 127
        weight = (layer.weight / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
        return weight.to(placed.device.device), scale.to(placed.device.device)

    made: tuple[torch.Tensor, torch.Tensor] = placed.once("int8", make)
    return made


def int8_built(placed: Placed, calls: list[Any], x_step: torch.Tensor | None = None) -> Prepared:
    """With the steps of the int8 weight, and of x by rows if not given."""
    steps = placed.problem.amax / 127 if x_step is None else x_step
    return placed.prepared(Built(calls, steps.cpu(), int8_weight(placed)[1].cpu()))


def lepton_int8(placed: Placed) -> Prepared:
    """lepton's int8_linear, each row quantised in the call."""
    packed, scale = packed_int8(placed)
    x, bias = placed.x, placed.bias
    return int8_built(placed, [lambda w=w: lk.int8_linear(x, w, scale, bias) for w in packed])


def packed_int8(placed: Placed) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Copies of the weight, packed by the backend in force, and its scales."""
    weight, scale = int8_weight(placed)
    packed = placed.once("packed", lambda: lk.pack_int8_weight(weight))
    return placed.copies("lepton", packed.numel(), packed.clone), scale
