"""Benchmark of int8_linear: its cases and who takes part."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import lepton_kernels as lk
from lepton_train.bench import int8_linear_others as others
from lepton_train.bench import int8_linear_torch as here
from lepton_train.bench import machine, shapes
from lepton_train.bench.measure import Case, Prepared, measure
from lepton_train.bench.options import Options
from lepton_train.bench.problem import Built, Layer, Problem
from lepton_train.bench.rows import Row

FAMILY = "int8_linear"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_L2S = 4


@dataclass(frozen=True)
class Implementation:
    """Who takes part, and as what.

    `role` is "ours"; "peer", int8 with the quantisation of the input included; "float", what a
    layer costs before quantisation; or "prequantized", given int8 input and so doing less.
    """

    build: Callable[[Problem], Built]
    role: str
    compiled: bool = False


IMPLEMENTATIONS = {
    "lepton": Implementation(here.lepton, "ours"),
    "lepton_static": Implementation(here.lepton_static, "ours"),
    "torch_fp32": Implementation(here.torch_fp32, "float"),
    "torch_bf16": Implementation(here.torch_bf16, "float"),
    "torch_dynamic_x86": Implementation(here.torch_x86, "peer"),
    "torch_dynamic_onednn": Implementation(here.torch_onednn, "peer"),
    "onednn_qlinear": Implementation(here.onednn_qlinear, "peer"),
    "torch_int_mm": Implementation(here.torch_int_mm, "peer"),
    "torchao": Implementation(others.torchao, "peer"),
    "torchao_compiled": Implementation(others.torchao_compiled, "peer", compiled=True),
    "onnxruntime": Implementation(others.onnxruntime, "peer"),
    "lepton_int8_input": Implementation(here.lepton_prequantized, "prequantized"),
    "onednn_qlinear_uint8_input": Implementation(here.onednn_qlinear_prequantized, "prequantized"),
}
ROLES = {name: implementation.role for name, implementation in IMPLEMENTATIONS.items()}


def chosen(options: Options) -> dict[str, Implementation]:
    """The implementations that the options ask for.

    Raises:
        ValueError: `--only` names one that does not exist.
    """
    compiled = [name for name, one in IMPLEMENTATIONS.items() if one.compiled]
    return {name: IMPLEMENTATIONS[name] for name in options.chosen(IMPLEMENTATIONS, compiled)}


def _prepare(implementation: Implementation, problem: Problem) -> Prepared:
    built = implementation.build(problem)
    check = functools.partial(problem.problem_with, built=built)
    return Prepared(built.calls, check)


def isa_in_use() -> str:
    """The instruction set of lepton's kernels."""
    isa: str = lk.info()["isa"]
    return isa


def rotate_bytes(options: Options) -> int:
    """How much memory the copies of a weight take together."""
    if options.cold_mib is not None:
        return int(options.cold_mib * 2**20)
    return _L2S * machine.cache_bytes(2) * torch.get_num_threads()


def case_of(problem: Problem, dtype: str) -> Case:
    """The row keys of a problem."""
    layer = problem.layer
    weight_bytes = layer.k * layer.n
    total = weight_bytes * max(2, -(-layer.rotate_bytes // weight_bytes))
    colder_than = "L3" if total > machine.cache_bytes(3) else "L2"
    return Case(
        family=FAMILY,
        name=f"{layer.name}/M{problem.m}",
        shape={"M": problem.m, "K": layer.k, "N": layer.n, "weights_exceed": colder_than},
        dtype=dtype,
        operations=2.0 * problem.m * layer.k * layer.n,
        read_bytes=float(weight_bytes),
        ceiling_kind="int8",
    )


def problems(options: Options) -> list[tuple[str, int, int, int, str]]:
    """(layer, K, N, M, dtype) of every case that the options ask for."""
    data = shapes.load(FAMILY, options.shapes)
    rows, names = data["m"], [layer["name"] for layer in data["layers"]]
    if options.quick:
        rows, names = data["quick"]["m"], data["quick"]["layers"]
    return [
        (layer["name"], layer["k"], layer["n"], m, dtype)
        for layer in data["layers"]
        if layer["name"] in names
        for dtype in options.dtypes
        for m in rows
        if options.pattern.search(f"{layer['name']}/M{m}")
    ]


def bench(options: Options) -> Iterator[list[Row]]:
    """Rows case by case."""
    implementations = chosen(options)
    layer: Layer | None = None
    for name, k, n, m, dtype in problems(options):
        if layer is None or layer.name != name:
            layer = None  # frees the weights of the layer before
            layer = Layer(name, k, n, rotate_bytes(options), torch.get_num_threads())
        problem = Problem(layer, m, _DTYPES[dtype])
        builders = {
            key: functools.partial(_prepare, implementation, problem)
            for key, implementation in implementations.items()
        }
        yield measure(case_of(problem, dtype), builders, options.budget_s)
