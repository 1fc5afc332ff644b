"""Benchmark of sparse_linear: pruned weights beside the same ones dense, in CSR, in DeepSparse."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import lepton_kernels as lk
from lepton_train.bench import deepsparse_peer, machine, shapes
from lepton_train.bench import int8_linear as dense
from lepton_train.bench import int8_linear_torch as here
from lepton_train.bench.measure import Case, Missing, Prepared, measure
from lepton_train.bench.options import Options
from lepton_train.bench.problem import Built, Layer, Problem
from lepton_train.bench.rows import Row
from lepton_train.prune_masks import (
    block_scores,
    expand_blocks,
    n_of_m_mask,
    unstructured_mask,
)

FAMILY = "sparse_linear"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_VALUES = {"int8": torch.int8, "fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Weights:
    """How the weights of a case are pruned and stored."""

    layout: str
    values: str
    sparsity: int
    outputs: int = 16  # of a block
    inputs: int = 4

    @property
    def name(self) -> str:
        """As in the case's name."""
        wide = f"x{self.outputs}" if self.outputs > 16 or self.inputs > 4 else ""
        if self.inputs > 4:
            wide += f"x{self.inputs}"
        return f"{self.layout.replace(':', '')}{self.sparsity}{wide}.{self.values}"


def _sparse_weights(layer: Layer, weights: Weights) -> list[lk.SparseWeight]:
    def pack() -> lk.SparseWeight:
        return lk.pack_sparse(layer.weight, weights.layout, dtype=_VALUES[weights.values])

    first: lk.SparseWeight = layer.once(weights.name, pack)
    return here.rotating(
        layer, f"copies {weights.name}", first.nbytes, lambda: lk.SparseWeight(first.packed.clone())
    )


def _lepton(problem: Problem, weights: Weights) -> Built:
    copies = _sparse_weights(problem.layer, weights)
    x, bias = problem.x, problem.layer.bias
    calls = [functools.partial(lk.sparse_linear, x, w, bias) for w in copies]
    if weights.values == "int8":
        scale = problem.layer.weight.abs().amax(1) / 127
        return Built(calls, problem.amax / 127, scale)
    return Built(calls, rounding=2.0**-8 if weights.values == "bf16" else 2.0**-23)


def _csr(problem: Problem, weights: Weights) -> Built:
    if weights.values != "fp32" or problem.dtype != torch.float32:
        raise Missing("torch has no CSR product of this dtype on the CPU")
    layer = problem.layer
    with warnings.catch_warnings():  # torch calls CSR a beta
        warnings.simplefilter("ignore")
        first = layer.once("csr", layer.weight.to_sparse_csr)
        nbytes = sum(t.numel() * t.element_size() for t in _csr_parts(first))
        copies = here.rotating(layer, "copies csr", nbytes, first.clone)
    x, bias = problem.x, layer.bias

    def call(weight: torch.Tensor) -> torch.Tensor:
        return torch.addmm(bias[:, None], weight, x.T).T

    return Built([functools.partial(call, weight) for weight in copies])


def _csr_parts(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return weight.crow_indices(), weight.col_indices(), weight.values()


def _deepsparse(problem: Problem, weights: Weights) -> Built:
    return deepsparse_peer.deepsparse(problem)


def _only(values: str, build: Callable[[Problem], Built]) -> Callable[[Problem, Weights], Built]:
    def checked(problem: Problem, weights: Weights) -> Built:
        if weights.values != values:
            raise Missing(f"a peer of {values} weights")
        return build(problem)

    return checked


_BUILD: dict[str, tuple[str, Callable[[Problem, Weights], Built]]] = {
    "lepton": ("ours", _lepton),
    "lepton_dense_int8": ("peer", _only("int8", here.lepton)),
    "torch_dynamic_x86": ("peer", _only("int8", here.torch_x86)),
    "torch_fp32": ("peer", lambda problem, weights: here.torch_fp32(problem)),
    "torch_bf16": ("float", lambda problem, weights: here.torch_bf16(problem)),
    "torch_csr": ("peer", _csr),
    "deepsparse": ("peer", _deepsparse),
}
ROLES = {name: role for name, (role, _) in _BUILD.items()}


def pruned_layer(name: str, k: int, n: int, weights: Weights, options: Options) -> Layer:
    """A layer whose smallest weights are zero, in the pattern that the layout asks for."""
    layer = Layer(name, k, n, dense.rotate_bytes(options), torch.get_num_threads())
    layer.weight = layer.weight * _mask(layer.weight.abs(), weights)
    return layer


def _mask(scores: torch.Tensor, weights: Weights) -> torch.Tensor:
    sparsity = weights.sparsity / 100
    if weights.layout == "n:m":
        return n_of_m_mask(scores, 2, 4)
    if weights.layout == "block":
        block = weights.outputs, weights.inputs
        kept = unstructured_mask(block_scores(scores, *block), sparsity, by_row=False)
        return expand_blocks(kept, scores.shape, *block)
    return unstructured_mask(scores, sparsity, by_row=False)


def case_of(problem: Problem, weights: Weights, dtype: str) -> Case:
    """The row keys of a problem: work is what the kept weights need."""
    layer = problem.layer
    packed = _sparse_weights(layer, weights)[0]
    kept = float(packed.stored_values)
    total = packed.nbytes * max(2, -(-layer.rotate_bytes // packed.nbytes))
    colder_than = "L3" if total > machine.cache_bytes(3) else "L2"
    return Case(
        family=FAMILY,
        name=f"{layer.name}/{weights.name}/M{problem.m}",
        shape={
            "M": problem.m, "K": layer.k, "N": layer.n, "layout": weights.layout,
            "values": weights.values, "sparsity": weights.sparsity / 100,
            "block_outputs": weights.outputs,
            "block_inputs": weights.inputs,
            "weights_exceed": colder_than,
        },
        dtype=dtype,
        operations=2.0 * problem.m * kept,
        read_bytes=float(packed.nbytes),
        ceiling_kind="int8" if weights.values == "int8" else "fp32",
    )  # fmt: skip


def problems(options: Options) -> list[tuple[dict[str, Any], Weights, int, str]]:
    """(layer, weights, M, dtype) of every case that the options ask for."""
    data = shapes.load(FAMILY, options.shapes)
    rows, names = data["m"], [layer["name"] for layer in data["layers"]]
    if options.quick:
        rows, names = data["quick"]["m"], data["quick"]["layers"]
    return [
        (layer, weights, m, dtype)
        for layer in data["layers"]
        if layer["name"] in names
        for kind in data["weights"]
        for weights in (
            Weights(
                kind["layout"],
                kind["values"],
                sparsity,
                kind.get("outputs", 16),
                kind.get("inputs", 4),
            )
            for sparsity in kind["sparsity"]
        )
        for dtype in options.dtypes
        for m in rows
        if options.pattern.search(f"{layer['name']}/{weights.name}/M{m}")
    ]


def _prepare(name: str, problem: Problem, weights: Weights) -> Prepared:
    built = _BUILD[name][1](problem, weights)
    return Prepared(built.calls, functools.partial(problem.problem_with, built=built))


def bench(options: Options) -> Iterator[list[Row]]:
    """Rows case by case."""
    try:
        yield from _cases(options, options.chosen(ROLES))
    finally:
        deepsparse_peer.close()


def _cases(options: Options, names: list[str]) -> Iterator[list[Row]]:
    layer: Layer | None = None
    made_for: tuple[str, Weights] | None = None
    for spec, weights, m, dtype in problems(options):
        if layer is None or made_for != (spec["name"], weights):
            layer = None  # frees the weights of the layer before
            layer = pruned_layer(spec["name"], spec["k"], spec["n"], weights, options)
            made_for = (spec["name"], weights)
        problem = Problem(layer, m, _DTYPES[dtype])
        builders = {name: functools.partial(_prepare, name, problem, weights) for name in names}
        yield measure(case_of(problem, weights, dtype), builders, options.budget_s)
