"""Benchmark of bucket on one GPU: flatten, norms, unscale, quantise, beside torch's own ops."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import lepton_kernels as lk
from lepton_train.bench import shapes
from lepton_train.bench.cuda.device import Device, stage_of
from lepton_train.bench.cuda.implementation import Implementation, builders, chosen, roles
from lepton_train.bench.measure import Case, Missing, Prepared, measure
from lepton_train.bench.options import Options
from lepton_train.bench.rows import Row

FAMILY = "bucket"
_TASKS = ("flatten", "unflatten", "squares", "unscale", "quantize")
_BLOCK = 256


@dataclass
class Gradients:
    """A task on float32 gradients of the given shapes."""

    task: str
    name: str
    sizes: list[list[int]]
    device: Device
    tensors: list[torch.Tensor] = field(init=False)
    flat: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Draw the gradients, the same every time."""
        generator = torch.Generator().manual_seed(len(self.sizes))
        drawn = [torch.randn(size, generator=generator) for size in self.sizes]
        self.tensors = [t.to(self.device.device) for t in drawn]
        self.flat = _cat(self.tensors)

    def case(self) -> Case:
        """The row keys; bytes are what must be read and written at least."""
        count = float(self.flat.numel())
        written = {"squares": 0.0, "quantize": count * (1 + 4 / _BLOCK)}.get(self.task, 4 * count)
        shape = {"tensors": len(self.sizes), "elements": int(count)}
        total = 4 * count + written
        return Case(FAMILY, f"{self.task}/{self.name}", shape, "fp32", count, total, "fp32")


def _same(want: torch.Tensor, out: torch.Tensor, tolerance: float) -> str:
    error = float((out.double() - want.double()).abs().max())
    return "" if error <= tolerance else f"off by {error:.3g}, {tolerance:.3g} allowed"


def _flat_of(run: Callable[..., Any]) -> Callable[[list[torch.Tensor]], torch.Tensor]:
    """lepton aligns the tensors of a bucket; torch's lie next to each other."""
    return lk.bucket_flatten if run is lk.bucket_unflatten_ else _cat


def _cat(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _flatten(run: Callable[..., torch.Tensor], problem: Gradients) -> Prepared:
    def check(out: torch.Tensor) -> str:
        layout = lk.bucket_flatten if run is lk.bucket_flatten else _cat
        return _same(layout([t.cpu() for t in problem.tensors]), out.cpu(), 0.0)

    return Prepared([functools.partial(run, problem.tensors)], check)


def _unflatten(run: Callable[..., Any], problem: Gradients) -> Prepared:
    targets = [torch.full_like(t, torch.nan) for t in problem.tensors]
    flat = _flat_of(run)(problem.tensors)

    def call() -> list[torch.Tensor]:
        run(targets, flat)
        return targets

    return Prepared([call], lambda out: _same(problem.flat, _cat(out), 0.0))


def _squares(run: Callable[..., torch.Tensor], problem: Gradients) -> Prepared:
    want = torch.stack([t.double().square().sum() for t in problem.tensors])
    bound = float(want.max()) * 2.0**-20
    return Prepared([functools.partial(run, problem.tensors)], lambda out: _same(want, out, bound))


def _unscale(run: Callable[..., Any], problem: Gradients) -> Prepared:
    found = torch.zeros(1, device=problem.device.device)
    one = torch.ones(1, device=problem.device.device)
    tensors = [t.clone() for t in problem.tensors]

    def call() -> torch.Tensor:
        run(tensors, found, one)
        return found

    return Prepared([call], lambda out: "" if float(out) == 0 else "found what is finite infinite")


def _quantize(run: Callable[..., Any], problem: Gradients) -> Prepared:
    def check(out: tuple[torch.Tensor, torch.Tensor]) -> str:
        q, scale = out
        back = q.float() * scale.repeat_interleave(_BLOCK)[: q.numel()]
        return _same(problem.flat, back, float(scale.max()) * 0.501)

    return Prepared([functools.partial(run, problem.flat)], check)


_SHELLS: dict[str, Callable[[Any, Gradients], Prepared]] = {
    "flatten": _flatten,
    "unflatten": _unflatten,
    "squares": _squares,
    "unscale": _unscale,
    "quantize": _quantize,
}


def _torch_quantize(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % _BLOCK)).view(-1, _BLOCK)
    scale = blocks.abs().amax(1, keepdim=True) / 127
    q = (blocks / scale).round_().to(torch.int8)
    return q.view(-1)[: flat.numel()], scale.view(-1)


def _views(flat: torch.Tensor, like: list[torch.Tensor]) -> list[torch.Tensor]:
    parts = flat.split([t.numel() for t in like])
    return [part.view_as(t) for part, t in zip(parts, like, strict=True)]


_LEPTON = {
    "flatten": lk.bucket_flatten,
    "unflatten": lk.bucket_unflatten_,
    "squares": lk.bucket_squares,
    "unscale": lk.bucket_unscale_,
    "quantize": functools.partial(lk.bucket_quantize, block=_BLOCK),
}
_TORCH: dict[str, Callable[..., Any]] = {
    "flatten": _cat,
    "unflatten": lambda to, flat: torch._foreach_copy_(to, _views(flat, to)),
    "squares": lambda tensors: torch.stack(torch._foreach_norm(tensors)).square(),
    "unscale": torch._amp_foreach_non_finite_check_and_unscale_,
    "quantize": _torch_quantize,
}


def _by(runs: dict[str, Any], problem: Gradients) -> Prepared:
    return _SHELLS[problem.task](runs[problem.task], problem)


def _compiled(problem: Gradients) -> Prepared:
    if problem.task != "quantize":
        raise Missing("torch.compile is a peer of quantize")
    return _quantize(torch.compile(_torch_quantize), problem)


IMPLEMENTATIONS: list[Implementation[Gradients]] = [
    Implementation("lepton", "ours", functools.partial(_by, _LEPTON), backend="cuda"),
    Implementation("lepton_triton", "ours", functools.partial(_by, _LEPTON), backend="triton"),
    Implementation("torch_foreach", "peer", functools.partial(_by, _TORCH)),
    Implementation("torch_compiled", "peer", _compiled, compiled=True),
]
ROLES = roles(IMPLEMENTATIONS)


def problems(options: Options) -> list[tuple[str, str, list[list[int]]]]:
    """(task, name, shapes) of every case that the options ask for.

    Raises:
        ValueError: another dtype than float32 is asked for.
    """
    if "fp32" not in options.dtypes:
        raise ValueError("bench: bucket on a GPU is measured in fp32")
    data = shapes.load(FAMILY, options.shapes, "cuda")
    part = data["dry_run"] if options.dry_run else data["quick"] if options.quick else data
    return [
        (task, name, model["layer"] * model["layers"])
        for name, model in part["models"].items()
        for task in _TASKS
        if options.pattern.search(f"{task}/{name}")
    ]


def bench(options: Options) -> Iterator[list[Row]]:
    """Rows case by case."""
    taking_part, device = chosen(IMPLEMENTATIONS, options), stage_of(options)
    for task, name, sizes in problems(options):
        problem = Gradients(task, name, sizes, device)
        ready = builders(taking_part, problem, device)
        yield measure(problem.case(), ready, options.budget_s, device)
