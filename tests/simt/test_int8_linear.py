"""int8_linear, int8_mm and quantize_int8 on CUDA, in the emulator: the bits of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from matrix_calls import ACTIVATIONS, DTYPES, SCRATCH_BYTES, SIZES, aligned, poisoned, scratch

import lepton_kernels as lk


def dequantizer(value: torch.Tensor | None) -> tuple[torch.Tensor | None, int]:
    """A quantiser's parameter, and its stride between rows."""
    return (None, 0) if value is None else (aligned(value), int(value.numel() > 1))


def simulate(
    simt: Any,
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor | None,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    x_scale: torch.Tensor | None = None,
    x_zero_point: torch.Tensor | None = None,
    out_scale: torch.Tensor | None = None,
    out_zero_point: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    weight_only: bool = False,
    packed: torch.Tensor | None = None,
    processors: int = 1,
    size: str = "choose",
    splits: int = 0,
    seed: int = 0,
) -> torch.Tensor:
    """int8_linear of a matrix x; no weight_scale gives the int32 sums of int8_mm."""
    (m, k), n = x.shape, weight.shape[0]
    groups = weight_scale.shape[1] if weight_scale is not None and weight_scale.dim() == 2 else 1
    out_dtype = out_dtype or (torch.int32 if weight_scale is None else x.dtype)
    out = poisoned((m, n), out_dtype)
    scale_stride = 0 if weight_scale is None or weight_scale.dim() == 0 else groups
    report = simt.call(
        "simt_int8_linear", m, n, k, groups, x, x.stride(0), DTYPES[x.dtype],
        *dequantizer(x_scale), *dequantizer(x_zero_point), weight_only,
        None if packed is not None else weight, weight.stride(0), weight.stride(1), packed,
        weight_scale, scale_stride, bias, ACTIVATIONS.index(activation),
        residual, 0 if residual is None else residual.stride(0),
        0 if residual is None else DTYPES[residual.dtype],
        simt.out(out), DTYPES[out_dtype], out_scale, out_zero_point,
        simt.out(scratch()), SCRATCH_BYTES, processors, SIZES.index(size), splits, seed=seed,
    )  # fmt: skip
    assert report.shared_conflicts == 0
    return out


def values(*shape: int) -> torch.Tensor:
    return aligned(torch.randint(-128, 128, shape, dtype=torch.int8))


def like(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, **options: Any
) -> torch.Tensor:
    """What the CPU computes."""
    bias = options.pop("bias", None)
    return lk.int8_linear(x, weight, scale, bias, **options)


def case(
    m: int, n: int, k: int, dtype: torch.dtype = torch.float32, groups: int = 1
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight and weight_scale."""
    x = aligned((torch.randn(m, k) * 3).to(dtype))
    scale = torch.rand(n, groups) / 50 + 0.001
    return x, values(n, k), aligned(scale if groups > 1 else scale[:, 0])


def same(got: torch.Tensor, expected: torch.Tensor) -> None:
    """The same bits, but for what kind of NaN a NaN is."""
    assert got.dtype == expected.dtype
    if got.dtype.is_floating_point:
        assert torch.equal(got.isnan(), expected.isnan())
        raw = {2: torch.int16, 4: torch.int32}[got.element_size()]
        keep = ~got.isnan()
        got, expected = got[keep].view(raw), expected[keep].view(raw)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("size", ["small", "medium", "large"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (5, 19, 70), (37, 75, 333), (130, 140, 96)])
def test_sums_are_exact(simt, seed, size, m, n, k):
    a, b = values(m, k), values(n, k)
    sums = simulate(simt, a, b, None, size=size, seed=seed)
    assert torch.equal(sums, a.int() @ b.int().T)


@pytest.mark.parametrize(("m", "n", "k"), [(0, 5, 8), (3, 4, 0)])
def test_nothing_to_multiply(simt, m, n, k):
    sums = simulate(simt, values(m, k), values(n, k), None)
    assert torch.equal(sums, torch.zeros(m, n, dtype=torch.int32))


def test_extreme_sums(simt):
    """-128 times -128 over a whole row, in every split."""
    a, b = (torch.full((9, 1100), -128, dtype=torch.int8) for _ in range(2))
    sums = simulate(simt, a, b, None, splits=3, size="small")
    assert torch.equal(sums, torch.full((9, 9), 128 * 128 * 1100, dtype=torch.int32))


def test_strided_operands(simt, seed):
    """b as rows of k, as its transpose, and a row stride that no vector fits."""
    a, b = values(9, 45)[:, 2:40], values(38, 21)
    sums = simulate(simt, a, b.T, None, seed=seed)
    assert torch.equal(sums, a.int() @ b.int())


@pytest.mark.parametrize("size", ["small", "medium", "large"])
@pytest.mark.parametrize("splits", [2, 5])
def test_split_products(simt, seed, size, splits):
    x, weight, scale = case(21, 70, 500)
    got = simulate(simt, x, weight, scale, size=size, splits=splits, seed=seed)
    same(got, like(x, weight, scale))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dynamic_and_epilogue(simt, seed, dtype, activation):
    x, weight, scale = case(19, 72, 130, dtype)
    bias, residual = aligned(torch.randn(72)), aligned(torch.randn(19, 72).to(dtype))
    options = {"bias": bias, "residual": residual, "activation": activation}
    same(simulate(simt, x, weight, scale, **options, seed=seed), like(x, weight, scale, **options))


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
@pytest.mark.parametrize("n", [24, 27])
def test_static_quantisation_and_outputs(simt, seed, out_dtype, n):
    """Zero points of x and of the output, per row and for all rows; whole and odd columns."""
    m, k = 18, 67
    x, weight, scale = case(m, n, k)
    options: dict[str, Any] = {
        "x_scale": torch.rand(m) / 20 + 0.01,
        "x_zero_point": torch.randint(-20, 20, (m,), dtype=torch.int32),
        "bias": aligned(torch.randn(n)),
        "out_dtype": out_dtype,
    }
    if out_dtype == torch.int8:
        options["out_scale"] = torch.tensor(0.7)
        options["out_zero_point"] = torch.tensor(-3, dtype=torch.int32)
    same(simulate(simt, x, weight, scale, **options, seed=seed), like(x, weight, scale, **options))
    options["x_scale"] = torch.tensor(0.03)
    options["x_zero_point"] = torch.tensor(11, dtype=torch.int32)
    same(simulate(simt, x, weight, scale, **options, seed=seed), like(x, weight, scale, **options))


def test_int8_input(simt, seed):
    x, weight, scale = values(7, 51), values(20, 51), torch.rand(20)
    options: dict[str, Any] = {
        "x_scale": torch.rand(7) + 0.1,
        "x_zero_point": torch.randint(-128, 128, (7,), dtype=torch.int32),
        "out_dtype": torch.float32,
    }
    same(simulate(simt, x, weight, scale, **options, seed=seed), like(x, weight, scale, **options))


@pytest.mark.parametrize(("k", "groups"), [(256, 4), (96, 3), (105, 7), (60, 20), (9, 9)])
def test_groups(simt, seed, k, groups):
    """Groups of whole blocks, of whole k-steps, that share words and words of one column."""
    x, weight, scale = case(35, 70, k, groups=groups)
    options: dict[str, Any] = {"bias": aligned(torch.randn(70)), "activation": "silu"}
    same(simulate(simt, x, weight, scale, **options, seed=seed), like(x, weight, scale, **options))
    options["x_scale"] = torch.tensor(0.05)
    options["x_zero_point"] = torch.tensor(-7, dtype=torch.int32)
    same(simulate(simt, x, weight, scale, **options, seed=seed), like(x, weight, scale, **options))


def test_rows_that_are_not_finite(simt):
    x, weight, scale = case(6, 17, 40)
    x[0, 3], x[2, 39], x[3, 0], x[4] = float("nan"), float("inf"), float("-inf"), 0.0
    got = simulate(simt, x, weight, scale)
    same(got, like(x, weight, scale))
    assert got[0].isnan().all()
    assert got[4].eq(0).all()
    options = {"x_scale": torch.tensor(0.05)}
    same(simulate(simt, x, weight, scale, **options), like(x, weight, scale, **options))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [0, 1, 37, 64, 700])
def test_quantize_int8(simt, seed, dtype, symmetric, columns):
    rows = 7
    x = torch.randn(rows, columns + 3).to(dtype)[:, :columns]
    if columns:
        x[1] = 0
        x[2, columns // 2] = float("nan")
        x[3] = x[3].abs() + 1
        x[4] *= 2.0**-14 if dtype == torch.float16 else 1e-30
        x[5, 0] = float("inf")
    q, scale, zero = torch.ops.lepton.quantize_int8(x.contiguous(), symmetric)
    got = [poisoned(t.shape, t.dtype) for t in (q, scale, zero)]
    outs = [simt.out(t) for t in got]
    simt.call(
        "simt_quantize_int8", rows, columns, x, x.stride(0), DTYPES[dtype], symmetric, *outs,
        seed=seed,
    )  # fmt: skip
    for value, expected in zip(got, (q, scale, zero), strict=True):
        same(value, expected)


@pytest.mark.parametrize(
    ("n", "k", "groups"), [(1, 1, 1), (19, 70, 1), (33, 96, 4), (16, 65, 13), (0, 8, 1), (8, 0, 1)]
)
def test_packed_weight_is_that_of_the_cpu(simt, seed, n, k, groups):
    weight = values(n, k)
    packed = lk.pack_int8_weight(weight, group_size=k // groups if groups > 1 else None)
    got = poisoned(packed.shape, torch.uint8)
    simt.call(
        "simt_pack_int8_weight", n, k, k // groups if groups > 1 else 0, weight, k, 1,
        simt.out(got), seed=seed,
    )  # fmt: skip
    assert torch.equal(got, packed)
    x, scale = aligned(torch.randn(5, k)), torch.rand(n, groups)
    y = simulate(simt, x, weight, scale, packed=aligned(packed), seed=seed)
    same(y, like(x, weight, scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("k", "groups"), [(72, 1), (130, 5)])
def test_weight_only(simt, seed, dtype, k, groups):
    """Within the rounding of float32 sums: k + groups + 3 roundings of the sum of magnitudes."""
    x, weight, scale = case(18, 40, k, dtype, groups)
    bias = aligned(torch.randn(40))
    got = simulate(
        simt, x, weight, scale, bias, weight_only=True, out_dtype=torch.float32, seed=seed
    )
    spread = scale.reshape(40, groups).double().repeat_interleave(k // groups, 1)
    exact = x.double() @ (weight.double() * spread).T + bias.double()
    size = x.double().abs() @ (weight.double() * spread).abs().T + bias.double().abs()
    assert ((got.double() - exact).abs() <= size * (3 * k + groups + 3) * 2.0**-24).all()


def test_weight_only_not_finite(simt):
    x, weight, scale = case(3, 20, 33)
    x[0, 2], x[1, 32] = float("inf"), float("nan")
    got = simulate(simt, x, weight, scale, weight_only=True)
    expected = x @ (weight.float() * scale[:, None]).T
    assert torch.equal(got[:2].isnan(), expected[:2].isnan())
    assert torch.equal(got[0].isinf(), expected[0].isinf())
    assert got[2].isfinite().all()
