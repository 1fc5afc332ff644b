"""sparse_linear: forward against the dense weight, on every instruction set and layout."""

from __future__ import annotations

import pytest
import torch

import lepton_kernels as lk

LAYOUTS = ("bitmask", "n:m", "block")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, torch.int8)
ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")


def pruned(out_features: int, in_features: int, density: float, layout: str) -> torch.Tensor:
    """A random weight with the zeros of a layout."""
    weight = torch.randn(out_features, in_features)
    if layout == "n:m":
        order = torch.rand(out_features, in_features // 4, 4).argsort(-1)
        return weight * (order < 2).view(out_features, in_features)
    if layout == "block":
        kept = torch.rand(-(-out_features // 16), -(-in_features // 4)) < density
        mask = kept.repeat_interleave(16, 0).repeat_interleave(4, 1)
        return weight * mask[:out_features, :in_features]
    return weight * (torch.rand(out_features, in_features) < density)


def float_bound(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Error of a float32 sum of K products, each step rounded once: K u |x| |w|."""
    u = torch.finfo(torch.float32).eps
    return (x.shape[-1] + 4) * u * (x.abs().double() @ weight.abs().double().t()) + 1e-30


def check(x: torch.Tensor, weight: torch.Tensor, layout: str, dtype: torch.dtype, compare, **rest):
    packed = lk.pack_sparse(weight, layout, dtype=dtype)
    actual = lk.sparse_linear(x, packed, **rest)
    if dtype == torch.int8:
        expected = lk.int8_linear(x, packed.to_dense(torch.int8), packed.scale(), **rest)
        compare.same_bits(actual, expected)
        return
    dense = packed.to_dense(torch.float64)
    expected = x.double() @ dense.t()
    assert actual.dtype == x.dtype
    error = (actual.double() - expected).abs()
    rounding = torch.finfo(x.dtype).eps / 2 * expected.abs() if x.dtype != torch.float32 else 0.0
    tiny = torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps
    assert bool((error <= float_bound(x, dense) + rounding + tiny).all())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 33])
def test_forward(implementation, compare, layout, dtype, rows):
    check(torch.randn(rows, 136), pruned(52, 136, 0.4, layout), layout, dtype, compare)


@pytest.mark.parametrize("layout", ["bitmask", "block"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(0, 8, 8), (3, 0, 8), (3, 8, 0), (1, 1, 1), (63, 17, 123), (200, 300, 1000), (2, 16, 64)],
)
def test_odd_shapes(implementation, compare, layout, dtype, shape):
    m, n, k = shape
    check(torch.randn(m, k), pruned(n, k, 0.3, layout), layout, dtype, compare)


@pytest.mark.parametrize("layout", ["bitmask", "block"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("rows", [1, 9])
def test_all_zero_to_all_dense(isa, compare, layout, dtype, density, rows):
    check(torch.randn(rows, 200), pruned(40, 200, density, layout), layout, dtype, compare)


@pytest.mark.parametrize("together", [1, 2, 3, 4])
@pytest.mark.parametrize("rows", [16, 31, 70])
def test_strips_that_keep_the_same_blocks(isa, compare, together, rows):
    """AMX multiplies 2 or 4 such strips together; 11 strips leave a rest of every kind."""
    kept = (torch.rand(-(-11 // together), 50) < 0.4).repeat_interleave(together, 0)[:11]
    weight = (
        torch.randn(170, 198) * kept.repeat_interleave(16, 0).repeat_interleave(4, 1)[:170, :198]
    )
    check(torch.randn(rows, 198), weight, "block", torch.int8, compare, bias=torch.randn(170))


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("rows", [16, 37, 100])
@pytest.mark.parametrize("in_features", [256, 330])
def test_blocks_that_are_tiles(isa, compare, together, rows, in_features):
    """AMX multiplies 16 x 64 blocks as they are stored; the last one may be narrower."""
    tiles = -(-in_features // 64)
    kept = (torch.rand(-(-7 // together), tiles) < 0.5).repeat_interleave(together, 0)[:7]
    mask = kept.repeat_interleave(16, 0).repeat_interleave(64, 1)[:106, :in_features]
    weight, x = torch.randn(106, in_features) * mask, torch.randn(rows, in_features)
    check(x, weight, "block", torch.int8, compare, bias=torch.randn(106))
    rest = {"residual": torch.randn(rows, 106), "activation": "gelu", "out_dtype": torch.bfloat16}
    check(x, weight, "block", torch.int8, compare, **rest)


def test_tiles_with_large_outputs(isa, compare):
    """Outputs that are written past the caches, in whole lines; a few blocks are missing."""
    kept = torch.rand(32, 4) < 0.5
    mask = kept.repeat_interleave(16, 0).repeat_interleave(64, 1)
    mask[:64, 20:24] = False
    check(torch.randn(600, 256), torch.randn(512, 256) * mask, "block", torch.int8, compare)


@pytest.mark.parametrize("density", [0.03, 1.0])
def test_long_rows(isa, compare, density):
    """Rows that the L2 does not hold together, and strips that fill the buffer of weights."""
    weight = pruned(40, 16500, density, "block")
    check(torch.randn(70, 16500), weight, "block", torch.int8, compare)


@pytest.mark.parametrize("x_dtype", FLOATS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_of_x(isa, compare, x_dtype, dtype):
    x = torch.randn(7, 100).to(x_dtype)
    check(x, pruned(24, 100, 0.5, "bitmask"), "bitmask", dtype, compare)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["bitmask", "block"])
@pytest.mark.parametrize("rows", [2, 20])
def test_epilogue_int8(isa, compare, layout, activation, rows):
    rest = {
        "bias": torch.randn(50),
        "residual": torch.randn(rows, 50).bfloat16(),
        "activation": activation,
        "out_dtype": torch.float16,
    }
    check(torch.randn(rows, 70), pruned(50, 70, 0.3, layout), layout, torch.int8, compare, **rest)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_epilogue_float(isa, activation):
    x, weight, bias = torch.randn(9, 70), pruned(50, 70, 0.3, "bitmask"), torch.randn(50)
    residual = torch.randn(9, 50)
    y = lk.sparse_linear(x, lk.pack_sparse(weight), bias, residual=residual, activation=activation)
    with lk.force_backend("reference"):
        expected = lk.sparse_linear(
            x.double(),
            lk.pack_sparse(weight),
            bias.double(),
            residual=residual.double(),
            activation=activation,
        )
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["bitmask", "block"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rows", [3, 30, 400])
def test_floats_have_the_same_bits_everywhere(cpu_backend, compare, layout, dtype, rows):
    x = torch.randn(rows, 600)
    packed = lk.pack_sparse(pruned(290, 600, 0.3, layout), layout, dtype=dtype)
    results = []
    for name in lk.info()["isa_present"]:
        with lk.force_isa(name):
            results.append(lk.sparse_linear(x, packed))
    for result in results[1:]:
        compare.same_bits(result, results[0])
    one_by_one = torch.cat([lk.sparse_linear(row[None], packed) for row in x])
    compare.same_bits(one_by_one, results[0])


def test_strides(isa, compare):
    wide = torch.randn(5, 3, 300)
    weight = pruned(33, 100, 0.3, "bitmask")
    for dtype in (torch.float32, torch.int8):
        packed = lk.pack_sparse(weight, dtype=dtype)
        strided = (wide[:, :, 100:200], wide[:, :, ::3], wide.permute(1, 0, 2)[..., :100])
        for x in strided:
            got = lk.sparse_linear(x, packed)
            compare.same_bits(got, lk.sparse_linear(x.contiguous(), packed))


def test_one_dimension(isa, compare):
    packed = lk.pack_sparse(pruned(33, 100, 0.3, "bitmask"))
    x = torch.randn(100)
    compare.same_bits(lk.sparse_linear(x, packed), lk.sparse_linear(x[None], packed)[0])


def test_rows_that_are_not_finite(isa):
    x = torch.randn(6, 80)
    x[1, 3], x[4, 0] = torch.nan, torch.inf
    packed = lk.pack_sparse(pruned(20, 80, 0.5, "bitmask"), dtype=torch.int8)
    y = lk.sparse_linear(x, packed)
    assert y.isnan().all(1).tolist() == [False, True, False, False, True, False]


def test_more_rows_than_one_buffer(cpu_backend, compare):
    x = torch.randn(5000, 2000)
    packed = lk.pack_sparse(pruned(40, 2000, 0.1, "bitmask"), dtype=torch.int8)
    got = lk.sparse_linear(x, packed)
    compare.same_bits(got, lk.int8_linear(x, packed.to_dense(torch.int8), packed.scale()))


def test_threads_do_not_change_bits(isa, compare):
    x = torch.randn(40, 256)
    threads = torch.get_num_threads()
    for layout in ("bitmask", "block"):
        for dtype in (torch.float32, torch.int8):
            packed = lk.pack_sparse(pruned(700, 256, 0.3, layout), layout, dtype=dtype)
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(lk.sparse_linear(x, packed))
            torch.set_num_threads(threads)
            compare.same_bits(results[1], results[0])
            compare.same_bits(results[2], results[0])
