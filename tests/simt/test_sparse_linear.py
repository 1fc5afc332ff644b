"""sparse_linear on CUDA, in the emulator: int8 has the bits of the CPU, floats a derived bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matrix_calls import ACTIVATIONS, DTYPES, SCRATCH_BYTES, SIZES, aligned, poisoned, scratch

import lepton_kernels as lk

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
LAYOUTS = ("bitmask", "n:m", "block")


def simulate(
    simt: Any,
    x: torch.Tensor,
    weight: lk.SparseWeight,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
    processors: int = 1,
    size: str = "choose",
    splits: int = 0,
    seed: int = 0,
) -> torch.Tensor:
    """sparse_linear of a matrix x."""
    (m, k), n = x.shape, weight.shape[0]
    out_dtype = out_dtype or x.dtype
    out = poisoned((m, n), out_dtype)
    packed = aligned(weight.packed)
    count = int(packed[:128].view(torch.int64)[8])
    report = simt.call(
        "simt_sparse_linear", m, n, k, x, x.stride(0), DTYPES[x.dtype],
        packed, LAYOUTS.index(weight.layout), weight.pattern == (2, 4), DTYPES[weight.dtype],
        count, bias, ACTIVATIONS.index(activation),
        residual, 0 if residual is None else residual.stride(0),
        0 if residual is None else DTYPES[residual.dtype], simt.out(out), DTYPES[out_dtype],
        simt.out(scratch()), SCRATCH_BYTES, processors, SIZES.index(size), splits, seed=seed,
    )  # fmt: skip
    assert report.shared_conflicts == 0
    return out


def whole_groups(k: int, layout: str) -> int:
    """The layout n:m takes whole groups of inputs."""
    return k + -k % 4 if layout == "n:m" else k


def pruned(n: int, k: int, layout: str, dtype: torch.dtype) -> lk.SparseWeight:
    """A random weight of a layout; some groups of four keep fewer than two."""
    weight = torch.randn(n, k)
    if layout == "n:m":
        order = torch.rand(n, k // 4, 4).argsort(-1).argsort(-1)
        mask = (order < torch.randint(0, 3, (n, k // 4, 1))).view(n, k)
    elif layout == "block":
        blocks = torch.rand(-(-n // 16), -(-k // 4)) < 0.4
        mask = blocks.repeat_interleave(16, 0).repeat_interleave(4, 1)[:n, :k]
    else:
        mask = torch.rand(n, k) < 0.4
    return lk.pack_sparse(weight * mask, layout, dtype=dtype, mask=mask)


def check(
    got: torch.Tensor, x: torch.Tensor, weight: lk.SparseWeight, bias: torch.Tensor | None = None
) -> None:
    """Floats: sums of six terms, rounded in any order, and what lies below the third plane."""
    dense = weight.to_dense(torch.float64)
    exact = x.double() @ dense.T
    size = x.double().abs() @ dense.abs().T
    if bias is not None:
        exact, size = exact + bias.double(), size + bias.double().abs()
    allowed = size * (6 * x.shape[1] + 16) * 2.0**-24
    assert ((got.double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", ["small", "medium", "large"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (19, 70, 203)])
def test_int8_has_the_bits_of_the_cpu(simt, seed, layout, size, m, n, k):
    k = whole_groups(k, layout)
    x, weight = aligned(torch.randn(m, k)), pruned(n, k, layout, torch.int8)
    got = simulate(simt, x, weight, size=size, seed=seed)
    assert torch.equal(got, lk.sparse_linear(x, weight))


@pytest.mark.parametrize("layout", ["bitmask", "n:m"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 40, 300), (8, 3, 64), (9, 17, 130), (16, 33, 520)])
def test_few_rows(simt, seed, layout, m, n, k):
    """The weight is expanded in shared memory: one or two eights of rows."""
    k = whole_groups(k, layout)
    x, weight = aligned(torch.randn(m, k)), pruned(n, k, layout, torch.int8)
    bias = aligned(torch.randn(n))
    got = simulate(simt, x, weight, bias, activation="gelu", seed=seed)
    assert torch.equal(got, lk.sparse_linear(x, weight, bias, activation="gelu"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_many_strips_and_splits(simt, seed, layout):
    x, weight = aligned(torch.randn(21, 700)), pruned(150, 700, layout, torch.int8)
    got = simulate(simt, x, weight, splits=3, seed=seed)
    assert torch.equal(got, lk.sparse_linear(x, weight))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value_dtype", FLOATS)
@pytest.mark.parametrize("x_dtype", FLOATS)
def test_floats(simt, seed, layout, value_dtype, x_dtype):
    m, n, k = 9, 37, whole_groups(75, layout)
    x, weight = aligned(torch.randn(m, k).to(x_dtype)), pruned(n, k, layout, value_dtype)
    bias = aligned(torch.randn(n))
    got = simulate(simt, x, weight, bias, out_dtype=torch.float32, seed=seed)
    check(got, x, weight, bias)


@pytest.mark.parametrize("layout", ["bitmask", "n:m"])
@pytest.mark.parametrize("size", ["medium", "large"])
def test_float_tiles_and_splits(simt, seed, layout, size):
    x = aligned(torch.randn(70, 260).to(torch.bfloat16))
    weight = pruned(90, 260, layout, torch.bfloat16)
    whole = simulate(simt, x, weight, size=size, out_dtype=torch.float32, seed=seed)
    check(whole, x, weight)
    split = simulate(simt, x, weight, size=size, splits=2, out_dtype=torch.float32, seed=seed)
    check(split, x, weight)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("out_dtype", FLOATS)
def test_epilogue(simt, seed, activation, out_dtype):
    x, weight = aligned(torch.randn(5, 68)), pruned(24, 68, "n:m", torch.int8)
    bias, residual = aligned(torch.randn(24)), aligned(torch.randn(5, 24).to(torch.bfloat16))
    options: dict[str, Any] = {
        "residual": residual, "activation": activation, "out_dtype": out_dtype,
    }  # fmt: skip
    got = simulate(simt, x, weight, bias, **options, seed=seed)
    assert torch.equal(got, lk.sparse_linear(x, weight, bias, **options))


def test_nothing_kept_and_rows_that_are_not_finite(simt):
    for layout in LAYOUTS:
        weight = lk.pack_sparse(torch.zeros(20, 40), layout, dtype=torch.int8)
        x = aligned(torch.randn(3, 40))
        x[1, 5] = float("inf")
        got = simulate(simt, x, weight)
        assert got[1].isnan().all()
        assert got[::2].eq(0).all()


def test_strided_rows(simt):
    x, weight = torch.randn(6, 50)[:, 3:40], pruned(18, 37, "bitmask", torch.int8)
    assert torch.equal(simulate(simt, x, weight), lk.sparse_linear(x, weight))
