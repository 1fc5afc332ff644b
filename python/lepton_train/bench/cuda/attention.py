"""Benchmark of attention on a GPU: forward, and forward with backward."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from lepton_train.bench import attention as here
from lepton_train.bench import shapes
from lepton_train.bench.attention import Problem, Shape
from lepton_train.bench.cuda.device import stage_of
from lepton_train.bench.cuda.implementation import (
    Implementation,
    builders,
    chosen,
    package,
    roles,
)
from lepton_train.bench.measure import Missing, Prepared, measure
from lepton_train.bench.options import Options
from lepton_train.bench.rows import Row

FAMILY = "attention"
_DTYPE = torch.bfloat16
_MOST_CHECKED = 1 << 27
_Attend = Callable[..., torch.Tensor]


def _sdpa_of(backend: str) -> Callable[[Problem], _Attend]:
    """torch's SDPA, held to one of its own kernels."""

    def build(problem: Problem) -> _Attend:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        wanted, attend = getattr(SDPBackend, backend), here.sdpa(problem)
        if backend == "FLASH_ATTENTION" and problem.shape.window >= 0:
            raise Missing("torch's flash kernel takes no mask")

        def call(*tensors: torch.Tensor) -> torch.Tensor:
            with sdpa_kernel(wanted):
                return attend(*tensors)

        return call

    return build


def _flash_attn(problem: Problem) -> _Attend:
    """flash-attn 2, on its own layout (B, L, H, D): the transposition is a view."""
    from flash_attn import flash_attn_func

    shape = problem.shape
    window = (shape.window, 0 if shape.causal else -1)

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        out: torch.Tensor = flash_attn_func(q, k, v, causal=shape.causal, window_size=window)
        return out.transpose(1, 2)

    return call


def _by(attend: Callable[[Problem], _Attend]) -> Callable[[Problem], Prepared]:
    return functools.partial(here.prepare, attend)


IMPLEMENTATIONS: list[Implementation[Problem]] = [
    Implementation("lepton", "ours", _by(here.lepton), backend="cuda"),
    Implementation("lepton_triton", "ours", _by(here.lepton), backend="triton"),
    Implementation("torch_sdpa", "peer", _by(here.sdpa)),
    Implementation("torch_sdpa_flash", "peer", _by(_sdpa_of("FLASH_ATTENTION"))),
    Implementation("torch_sdpa_cudnn", "peer", _by(_sdpa_of("CUDNN_ATTENTION"))),
    Implementation("flash_attn", "peer", _by(_flash_attn), absent=package("flash_attn")),
    Implementation("torch_flex_compiled", "peer", _by(here.flex), compiled=True),
]
ROLES = roles(IMPLEMENTATIONS)


def problems(options: Options) -> list[tuple[Shape, bool]]:
    """(shape, training) of every case that the options ask for; all in bfloat16.

    Raises:
        ValueError: another dtype is asked for.
    """
    if "bf16" not in options.dtypes:
        raise ValueError("bench: attention on a GPU is measured in bf16")
    data = shapes.load(FAMILY, options.shapes, "cuda")
    names = [case["name"] for case in data["cases"]]
    if options.dry_run:
        names = data["dry_run"]["cases"]
    elif options.quick:
        names = data["quick"]["cases"]
    every = [Shape(**case) for case in data["cases"] + data["dry_run"].get("only", [])]
    return [
        (shape, kind == "training")
        for shape in every
        for kind in data["passes"]
        if shape.name in names
        and not (kind == "training" and shape.queries)
        and options.pattern.search(f"{shape.name}/{kind}")
    ]


def bench(options: Options) -> Iterator[list[Row]]:
    """Rows case by case."""
    taking_part, device = chosen(IMPLEMENTATIONS, options), stage_of(options)
    for shape, training in problems(options):
        problem = Problem(shape, _DTYPE, training, device.device, _MOST_CHECKED)
        case = here.case_of(problem, "bf16", "bf16")
        yield measure(case, builders(taking_part, problem, device), options.budget_s, device)
