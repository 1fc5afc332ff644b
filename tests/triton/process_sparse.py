"""Sparse family on Triton's interpreter against the reference; test_sparse.py runs this process."""

import pytest
import torch

import lepton_kernels as lk

SHAPES = [(1, 5, 1), (5, 123, 33), (70, 200, 48), (17, 300, 16)]
LAYOUTS = ["bitmask", "n:m", "block"]


def both(function):
    """Results on Triton and on the reference."""
    with lk.force_backend("triton"):
        ours = function()
    with lk.force_backend("reference"):
        return ours, function()


def pruned(n, k, layout):
    """A weight with the pattern of the layout, some rows of it empty and some full."""
    weight = torch.randn(n, k)
    if layout == "n:m":
        order = torch.rand(n, k // 4, 4).argsort(-1)
        return torch.where((order < 2).reshape(n, k), weight, 0.0)
    if layout == "block":
        kept = torch.rand(-(-n // 16), -(-k // 4)) < 0.3
        return weight * kept.repeat_interleave(16, 0).repeat_interleave(4, 1)[:n, :k]
    weight = weight * (torch.rand(n, k) < 0.3)
    weight[::7] = 0
    weight[3::11] = 1.5
    return weight


def problem(m, k, n, layout, dtype):
    k = k // 4 * 4 if layout == "n:m" else k
    k = max(k, 4)
    weight = lk.pack_sparse(pruned(n, k, layout), layout, dtype=dtype)
    return torch.randn(m, k), weight, torch.randn(n), torch.randn(m, n)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_int8_same_bits(m, k, n, layout):
    x, weight, bias, residual = problem(m, k, n, layout, torch.int8)
    x[0, 0] = torch.nan
    for x_typed in (x, x.half()):
        ours, reference = both(
            lambda x=x_typed: lk.sparse_linear(
                x, weight, bias, residual=residual, activation="relu", out_dtype=torch.float32
            )
        )
        assert torch.equal(ours.nan_to_num(nan=7e30), reference.nan_to_num(nan=7e30))


@pytest.mark.parametrize("values", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("m", "k", "n"), SHAPES)
def test_float_values(m, k, n, layout, values):
    x, weight, bias, residual = problem(m, k, n, layout, values)
    if values == torch.float16:
        x = x.half()

    def run(x):
        return lk.sparse_linear(
            x, weight, bias, residual=residual, activation="gelu", out_dtype=torch.float32
        )

    ours, reference = both(lambda: run(x))
    with lk.force_backend("reference"):
        exact = run(x.double())
    bound = 2 * (reference - exact).abs().max() + 1e-5 * exact.abs().max()
    assert (ours - exact).abs().max() <= bound


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("values", [torch.float32, torch.int8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_backward(layout, values, activation):
    x, weight, bias, _ = problem(5, 123, 33, layout, values)
    number = 0 if activation is None else 4
    arguments = (torch.randn(5, 33), x, weight.packed, bias, number)
    ours = torch.ops.lepton_triton.sparse_linear_backward(*arguments)
    reference = torch.ops.lepton_reference.sparse_linear_backward(*arguments)
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_autograd_batches_and_bad_weights():
    x, weight, bias, _ = problem(6, 40, 20, "bitmask", torch.float32)
    leaf = x.reshape(2, 3, 40).clone().requires_grad_()
    with lk.force_backend("triton"):
        y = lk.sparse_linear(leaf, weight, bias)
        y.square().sum().backward()
    exact, dense, added = x.double(), weight.to_dense().double(), bias.double()
    expected = (2 * (exact @ dense.t() + added)) @ dense
    # Sums of 40 products, then of 20: each rounding is at most eps of what is summed.
    summed = (2 * (exact.abs() @ dense.abs().t() + added.abs())) @ dense.abs()
    bound = (40 + 20 + 4) * torch.finfo(torch.float32).eps * summed
    assert ((leaf.grad.reshape(6, 40) - expected).abs() <= bound).all()
    with lk.force_backend("triton"):
        with pytest.raises(ValueError, match="x asks for"):
            lk.sparse_linear(x[:, :-1], weight)
        with pytest.raises(NotImplementedError, match="float64 has no"):
            lk.sparse_linear(x.double(), weight)
        assert lk.sparse_linear(x[:0], weight).shape == (0, 20)
