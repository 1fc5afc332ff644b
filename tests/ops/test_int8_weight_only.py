"""Weight-only products: exact where float32 is, within the error bound elsewhere."""

import pytest
import torch

import lepton_kernels as lk

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(0, 5, 3), (1, 0, 3), (3, 7, 0), (1, 1, 1), (5, 63, 17), (7, 123, 33), (9, 1000, 20)]


def random_int8(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_numbers_are_exact(implementation, shape, dtype):
    """Sums of at most 8 * 128 * 1000 < 2^24: no order of additions rounds."""
    m, k, n = shape
    x = torch.randint(-8, 9, (m, k)).to(dtype)
    weight = random_int8(n, k)
    exact = (x.double() @ weight.double().t()).float()
    for stored in (weight, lk.pack_int8_weight(weight)):
        out = lk.int8_linear(x, stored, torch.ones(n), weight_only=True, out_dtype=torch.float32)
        torch.testing.assert_close(out, exact, rtol=0, atol=0)


@pytest.mark.parametrize(("group", "groups"), [(1, 5), (3, 7), (5, 13), (32, 4), (64, 3), (126, 2)])
def test_groups_are_exact(implementation, group, groups):
    x = torch.randint(-8, 9, (6, group * groups)).float()
    weight = random_int8(19, group * groups)
    scale = 2.0 ** torch.randint(-2, 3, (19, groups))
    wide = weight.double() * scale.double().repeat_interleave(group, 1)
    packed = lk.pack_int8_weight(weight, group_size=group)
    out = lk.int8_linear(x, packed, scale, weight_only=True)
    assert torch.equal(out, (x.double() @ wide.t()).float())


def bound(x, weight, scale, k, groups, bias):
    """Sum of the magnitudes times the roundings that a term can meet (each at most 2^-24)."""
    wide = weight.double() * scale.double().repeat_interleave(k // groups, 1)
    sums = x.double().abs() @ wide.abs().t() + bias.double().abs()
    # k additions and products, a scale and an addition per group, the bias.
    roundings = 2 * k // groups + 2 * groups + 2
    return sums * roundings * 2.0**-24


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("groups", [1, 3])
def test_within_the_error_bound(implementation, dtype, groups):
    k = 123
    x, weight = torch.randn(9, k).to(dtype), random_int8(35, k)
    scale, bias = torch.rand(35, groups) * 0.02, torch.randn(35)
    out = lk.int8_linear(x, weight, scale, bias, weight_only=True, out_dtype=torch.float32)
    wide = weight.double() * scale.double().repeat_interleave(k // groups, 1)
    exact = x.double() @ wide.t() + bias
    assert ((out - exact).abs() <= bound(x, weight, scale, k, groups, bias)).all()


@pytest.mark.parametrize("activation", [None, "relu", "gelu", "gelu_tanh", "silu"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_same_bits_on_every_isa(isa, compare, dtype, activation):
    x, weight = torch.randn(3, 5, 126).to(dtype), random_int8(35, 126)
    scale, bias, residual = torch.rand(35, 2), torch.randn(35), torch.randn(3, 5, 35)

    def call(x):
        return lk.int8_linear(
            x, weight, scale, bias, residual=residual, activation=activation, weight_only=True
        )

    for given in (x, x.transpose(0, 1).contiguous().transpose(0, 1), x[:, :1].expand(-1, 5, -1)):
        out = call(given)
        with lk.force_isa("generic"):
            compare.same_bits(out, call(given))


def test_nan_and_infinity_propagate(implementation):
    x = torch.randn(4, 20)
    x[1, 3], x[2, 4] = torch.nan, torch.inf
    out = lk.int8_linear(x, random_int8(9, 20) | 1, torch.ones(9), weight_only=True)
    assert out[[0, 3]].isfinite().all()
    assert out[1].isnan().all()
    assert not out[2].isfinite().any()


def test_large_group_is_allowed(implementation):
    out = lk.int8_linear(
        torch.ones(1, 65540),
        torch.ones(2, 65540, dtype=torch.int8),
        torch.ones(2),
        weight_only=True,
    )
    assert (out == 65540).all()


@pytest.mark.parametrize("activation", range(5))
def test_gradcheck(activation):
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weight = random_int8(4, 6)
    scale = (torch.rand(4, 2, dtype=torch.float64) * 0.02 + 0.01).requires_grad_()
    bias = (torch.randn(4, dtype=torch.float64) * 2).requires_grad_()
    residual = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    name = [None, "relu", "gelu", "gelu_tanh", "silu"][activation]
    if name == "relu":  # away from its corner
        bias = torch.tensor([50.0, 50.0, -50.0, -50.0], dtype=torch.float64, requires_grad=True)

    def call(x, scale, bias, residual):
        return lk.int8_linear(
            x, weight, scale, bias, residual=residual, activation=name, weight_only=True
        )

    with lk.force_backend("reference"):
        assert torch.autograd.gradcheck(call, (x, scale, bias, residual))


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_opcheck(dtype, gradients):
    x = torch.randn(5, 12).to(dtype).requires_grad_(gradients)
    scale = torch.rand(7, 3).requires_grad_(gradients)
    args = (x, random_int8(7, 12), scale, *[None] * 6, True, 2, dtype)
    torch.library.opcheck(torch.ops.lepton.int8_linear.default, args)
