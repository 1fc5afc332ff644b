"""Benchmark of int8_linear on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

import lepton_kernels as lk
from lepton_train.bench import shapes
from lepton_train.bench.cuda import linear
from lepton_train.bench.cuda.device import Device, stage_of
from lepton_train.bench.cuda.implementation import (
    Implementation,
    builders,
    chosen,
    package,
    roles,
)
from lepton_train.bench.cuda.linear import Placed
from lepton_train.bench.measure import Case, Missing, Prepared, measure
from lepton_train.bench.options import Options
from lepton_train.bench.problem import Built, Layer, Problem
from lepton_train.bench.rows import Row

FAMILY = "int8_linear"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_FP8_ROUNDING = 2.0**-3  # both factors have three bits of mantissa


def _lepton_static(placed: Placed) -> Prepared:
    packed, scale = linear.packed_int8(placed)
    x, bias, step = placed.x, placed.bias, placed.problem.amax.max() / 127
    x_scale = step.to(x.device)
    calls = [lambda w=w: lk.int8_linear(x, w, scale, bias, x_scale=x_scale) for w in packed]
    return linear.int8_built(placed, calls, step)


def _int8_input(placed: Placed) -> tuple[torch.Tensor, torch.Tensor]:
    x_scale = placed.problem.amax.to(placed.x.device) / 127
    xq = (placed.x.float() / x_scale).round().clamp(-127, 127).to(torch.int8)
    return xq, x_scale


def _lepton_prequantized(placed: Placed) -> Prepared:
    packed, scale = linear.packed_int8(placed)
    (xq, x_scale), dtype, bias = _int8_input(placed), placed.problem.dtype, placed.bias
    calls = [
        lambda w=w: lk.int8_linear(xq, w, scale, bias, x_scale=x_scale, out_dtype=dtype)
        for w in packed
    ]
    return linear.int8_built(placed, calls)


def _scaled_int_mm(
    xq: torch.Tensor, x_scale: torch.Tensor, w: torch.Tensor, placed: Placed
) -> torch.Tensor:
    scale = linear.int8_weight(placed)[1]
    sums = torch._int_mm(xq, w)
    return torch.addcmul(placed.bias, sums * x_scale, scale).to(placed.problem.dtype)


def _transposed(placed: Placed) -> list[torch.Tensor]:
    if placed.x.is_cuda and placed.problem.m <= 16:
        raise Missing("torch._int_mm takes more than 16 rows on a GPU")
    weight, _ = linear.int8_weight(placed)
    return placed.copies("int_mm", weight.numel(), lambda: weight.clone().t())


def _int_mm(placed: Placed, compiled: bool = False) -> Prepared:
    """Quantisation, cuBLAS and scales; `compiled` lets Inductor fuse what is around the product."""
    weights, x = _transposed(placed), placed.x

    def call(w: torch.Tensor) -> torch.Tensor:
        x_scale = x.abs().amax(1, keepdim=True).float() / 127
        xq = torch.round(x / x_scale).clamp_(-127, 127).to(torch.int8)
        return _scaled_int_mm(xq, x_scale, w, placed)

    run: Callable[[torch.Tensor], torch.Tensor] = torch.compile(call) if compiled else call
    return linear.int8_built(placed, [functools.partial(run, w) for w in weights])


def _int_mm_prequantized(placed: Placed) -> Prepared:
    weights, (xq, x_scale) = _transposed(placed), _int8_input(placed)
    calls = [lambda w=w: _scaled_int_mm(xq, x_scale, w, placed) for w in weights]
    return linear.int8_built(placed, calls)


def _scaled_mm(placed: Placed) -> Prepared:
    """fp8 with a scale per row and per column, and the quantisation of the input: as many bytes."""
    if placed.x.is_cuda and torch.cuda.get_device_capability() < (8, 9):
        raise Missing("fp8 products need compute capability 8.9")
    fp8, most, x = torch.float8_e4m3fn, 448.0, placed.x
    w_scale = placed.weight.abs().amax(1, keepdim=True) / most
    weight = (placed.weight / w_scale).to(fp8)
    weights = placed.copies("scaled_mm", weight.numel(), lambda: weight.clone().t())
    bias, out_dtype, scale_b = placed.bias.bfloat16(), placed.problem.dtype, w_scale.t()

    def call(w: torch.Tensor) -> torch.Tensor:
        scale_a = x.abs().amax(1, keepdim=True).float() / most
        xq = (x / scale_a).to(fp8)
        out = torch._scaled_mm(
            xq, w, scale_a=scale_a, scale_b=scale_b, bias=bias, out_dtype=torch.bfloat16
        )
        return out.to(out_dtype)

    calls = [functools.partial(call, w) for w in weights]
    return placed.prepared(Built(calls, rounding=_FP8_ROUNDING))


def _torchao(placed: Placed) -> Prepared:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    layer, x = placed.problem.layer, placed.x

    def make() -> torch.nn.Linear:
        module = torch.nn.Linear(layer.k, layer.n, device="meta").to_empty(device=x.device)
        with torch.no_grad():
            module.weight.copy_(layer.weight)
            module.bias.copy_(layer.bias)
        module = module.to(placed.problem.dtype)
        quantize_(module, Int8DynamicActivationInt8WeightConfig())
        return module

    modules = placed.copies(f"torchao {placed.problem.dtype}", layer.k * layer.n, make)
    calls: list[Any] = [functools.partial(module, x) for module in modules]
    # It may divide by 127 or by 127.5, and rounds the weights to the dtype first.
    steps = placed.problem.amax / 126, linear.int8_weight(placed)[1].cpu() * 1.01
    return placed.prepared(Built(calls, *steps, rounding=2.0**-8))


IMPLEMENTATIONS: list[Implementation[Placed]] = [
    Implementation("lepton", "ours", linear.lepton_int8, backend="cuda"),
    Implementation("lepton_static", "ours", _lepton_static, backend="cuda"),
    Implementation("lepton_triton", "ours", linear.lepton_int8, backend="triton"),
    Implementation("cublas_bf16", "float", linear.bf16),
    Implementation("torch_int_mm", "peer", _int_mm),
    Implementation(
        "torch_int_mm_compiled", "peer", functools.partial(_int_mm, compiled=True), compiled=True
    ),
    Implementation("torch_scaled_mm_fp8", "peer", _scaled_mm),
    Implementation("torchao", "peer", _torchao, absent=package("torchao")),
    Implementation("lepton_int8_input", "prequantized", _lepton_prequantized, backend="cuda"),
    Implementation("torch_int_mm_int8_input", "prequantized", _int_mm_prequantized),
]
ROLES = roles(IMPLEMENTATIONS)


def case_of(problem: Problem, dtype: str, device: Device) -> Case:
    """The row keys of a problem."""
    layer = problem.layer
    return Case(
        family=FAMILY,
        name=f"{layer.name}/M{problem.m}",
        shape={"M": problem.m, "K": layer.k, "N": layer.n, "rotated_bytes": device.rotate_bytes},
        dtype=dtype,
        operations=2.0 * problem.m * layer.k * layer.n,
        read_bytes=float(layer.k * layer.n),
        ceiling_kind="int8",
    )


def problems(options: Options) -> list[tuple[str, int, int, int, str]]:
    """(layer, K, N, M, dtype) of every case that the options ask for."""
    data = shapes.load(FAMILY, options.shapes, "cuda")
    chosen_part = data["dry_run"] if options.dry_run else data["quick"] if options.quick else data
    return [
        (layer["name"], layer["k"], layer["n"], m, dtype)
        for layer in chosen_part["layers"]
        for dtype in options.dtypes
        for m in chosen_part["m"]
        if options.pattern.search(f"{layer['name']}/M{m}")
    ]


def bench(options: Options) -> Iterator[list[Row]]:
    """Rows case by case."""
    taking_part, device = chosen(IMPLEMENTATIONS, options), stage_of(options)
    layer: Layer | None = None
    for name, k, n, m, dtype in problems(options):
        if layer is None or layer.name != name:
            layer = None  # frees the weights of the layer before
            layer = Layer(name, k, n, device.rotate_bytes, torch.get_num_threads())
        placed = Placed(Problem(layer, m, _DTYPES[dtype]), device)
        case = case_of(placed.problem, dtype, device)
        yield measure(case, builders(taking_part, placed, device), options.budget_s, device)
