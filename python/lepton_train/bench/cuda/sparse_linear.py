"""Benchmark of sparse_linear on a GPU: pruned weights beside the same weights, dense and packed."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

import lepton_kernels as lk
from lepton_train.bench import shapes, sparse_linear
from lepton_train.bench.cuda import linear
from lepton_train.bench.cuda.device import stage_of
from lepton_train.bench.cuda.implementation import Implementation, builders, chosen, roles
from lepton_train.bench.cuda.linear import Placed
from lepton_train.bench.measure import Case, Missing, Prepared, measure
from lepton_train.bench.options import Options
from lepton_train.bench.problem import Built, Layer, Problem, bf16_built
from lepton_train.bench.rows import Row
from lepton_train.bench.sparse_linear import Weights

FAMILY = "sparse_linear"
_VALUES = {"int8": torch.int8, "bf16": torch.bfloat16}
_BSR_BLOCK = 16


@dataclass
class PlacedSparse(Placed):
    """A problem whose weight is pruned and stored as `weights` says."""

    weights: Weights


def _packed(placed: PlacedSparse) -> list[lk.SparseWeight]:
    layout, values = placed.weights.layout, _VALUES[placed.weights.values]
    first: lk.SparseWeight = placed.once(
        placed.weights.name, lambda: lk.pack_sparse(placed.weight, layout, dtype=values)
    )

    def copy() -> lk.SparseWeight:
        return lk.SparseWeight(first.packed.clone())

    return placed.copies(f"copies {placed.weights.name}", first.nbytes, copy)


def _lepton(placed: PlacedSparse) -> Prepared:
    calls = [functools.partial(lk.sparse_linear, placed.x, w, placed.bias) for w in _packed(placed)]
    if placed.weights.values == "int8":
        return linear.int8_built(placed, calls)
    return placed.prepared(bf16_built(calls))


def _dense_int8(placed: PlacedSparse) -> Prepared:
    if placed.weights.values != "int8":
        raise Missing("a peer of int8 weights")
    return linear.lepton_int8(placed)


def _semi_structured(placed: PlacedSparse) -> Prepared:
    """torch's 2:4 weights: cuSPARSELt, or CUTLASS where that is not there."""
    from torch.sparse import to_sparse_semi_structured

    if placed.weights.layout != "n:m" or placed.weights.values != "bf16":
        raise Missing("a peer of 2:4 weights in bfloat16")
    if not placed.x.is_cuda:
        raise Missing("torch has 2:4 weights on GPUs only")
    weight = placed.weight.bfloat16()
    copies = placed.copies("2:4", weight.numel(), lambda: to_sparse_semi_structured(weight))
    x, bias = placed.x.bfloat16(), placed.bias.bfloat16()
    calls: list[Any] = [functools.partial(functional.linear, x, w, bias) for w in copies]
    return placed.prepared(bf16_built(calls))


def _bsr(placed: PlacedSparse) -> Prepared:
    """torch's block sparse rows."""
    if placed.weights.layout != "block" or placed.weights.values != "bf16":
        raise Missing("a peer of block sparse weights in bfloat16")
    if not placed.x.is_cuda:
        raise Missing("torch has products of BSR in bfloat16 on GPUs only")
    weight = placed.weight.bfloat16()
    with warnings.catch_warnings():  # torch calls BSR a beta
        warnings.simplefilter("ignore")
        first = placed.once("bsr", lambda: weight.to_sparse_bsr((_BSR_BLOCK, _BSR_BLOCK)))
        copies = placed.copies("copies bsr", 2 * first.values().numel(), first.clone)
    x, bias = placed.x.bfloat16(), placed.bias.bfloat16()
    calls: list[Any] = [functools.partial(functional.linear, x, w, bias) for w in copies]
    return placed.prepared(Built(calls, rounding=2.0**-8))


IMPLEMENTATIONS: list[Implementation[PlacedSparse]] = [
    Implementation("lepton", "ours", _lepton, backend="cuda"),
    Implementation("lepton_triton", "ours", _lepton, backend="triton"),
    Implementation("lepton_dense_int8", "peer", _dense_int8, backend="cuda"),
    Implementation("cublas_bf16", "peer", linear.bf16),
    Implementation("torch_2:4", "peer", _semi_structured),
    Implementation("torch_bsr", "peer", _bsr),
]
ROLES = roles(IMPLEMENTATIONS)


def case_of(problem: Problem, weights: Weights, packed: lk.SparseWeight) -> Case:
    """The row keys of a problem: work is what the kept weights need."""
    layer = problem.layer
    return Case(
        family=FAMILY,
        name=f"{layer.name}/{weights.name}/M{problem.m}",
        shape={
            "M": problem.m, "K": layer.k, "N": layer.n, "layout": weights.layout,
            "values": weights.values, "sparsity": weights.sparsity / 100,
        },
        dtype="bf16",
        operations=2.0 * problem.m * packed.stored_values,
        read_bytes=float(packed.nbytes),
        ceiling_kind=weights.values,
    )  # fmt: skip


def problems(options: Options) -> list[tuple[dict[str, Any], Weights, int]]:
    """(layer, weights, M) of every case that the options ask for; inputs are bfloat16.

    Raises:
        ValueError: another dtype is asked for.
    """
    if "bf16" not in options.dtypes:
        raise ValueError("bench: sparse_linear on a GPU is measured in bf16")
    data = shapes.load(FAMILY, options.shapes, "cuda")
    part = data["dry_run"] if options.dry_run else data["quick"] if options.quick else data
    return [
        (layer, weights, m)
        for layer in part["layers"]
        for kind in data["weights"]
        for weights in (Weights(kind["layout"], kind["values"], s) for s in kind["sparsity"])
        for m in part["m"]
        if options.pattern.search(f"{layer['name']}/{weights.name}/M{m}")
    ]


def bench(options: Options) -> Iterator[list[Row]]:
    """Rows case by case."""
    taking_part, device = chosen(IMPLEMENTATIONS, options), stage_of(options)
    layer: Layer | None = None
    made_for: tuple[str, Weights] | None = None
    for spec, weights, m in problems(options):
        if layer is None or made_for != (spec["name"], weights):
            layer = None  # frees the weights of the layer before
            layer = sparse_linear.pruned_layer(spec["name"], spec["k"], spec["n"], weights, options)
            made_for = (spec["name"], weights)
        placed = PlacedSparse(Problem(layer, m, torch.bfloat16), device, weights)
        pack = functools.partial(
            lk.pack_sparse, layer.weight, weights.layout, dtype=_VALUES[weights.values]
        )
        packed = layer.once("stored", pack)
        case = case_of(placed.problem, weights, packed)
        yield measure(case, builders(taking_part, placed, device), options.budget_s, device)
