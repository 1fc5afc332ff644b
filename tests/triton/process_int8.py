"""int8 family on Triton's interpreter against the reference; test_int8.py runs this process."""

import pytest
import torch

import lepton_kernels as lk

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def both(function):
    """Results on Triton and on the reference."""
    with lk.force_backend("triton"):
        ours = function()
    with lk.force_backend("reference"):
        return ours, function()


def assert_same_bits(ours, reference):
    assert ours.dtype == reference.dtype
    assert ours.shape == reference.shape
    assert torch.equal(torch.isnan(ours), torch.isnan(reference))
    assert torch.equal(ours[~torch.isnan(ours)], reference[~torch.isnan(reference)])


def assert_all_same_bits(ours, reference):
    for one, other in zip(ours, reference, strict=True):
        assert_same_bits(one, other)


LINEAR = [(1, 7, 1, 1), (5, 123, 33, 1), (18, 96, 20, 3), (66, 165, 70, 5), (3, 64, 130, 2)]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (3, 123), (130, 32), (2, 5000), (0, 4), (4, 0)]
)
def test_quantize(rows, columns, symmetric):
    for dtype in DTYPES[:2] if columns > 1000 else DTYPES:
        x = (torch.randn(rows, columns * 2) * 10 ** (8 * torch.rand(rows, 1) - 4)).to(dtype)
        x = x[:, ::2] if columns % 2 else x[:, :columns]
        assert_all_same_bits(*both(lambda x=x: lk.quantize_int8(x, symmetric=symmetric)))


@pytest.mark.parametrize("symmetric", [True, False])
def test_quantize_special_rows(symmetric):
    x = torch.randn(8, 40)
    x[0], x[1, 3], x[2, 5], x[3, 7] = 0, torch.nan, torch.inf, -torch.inf
    x[4] *= 2.0**-125
    x[5] = torch.arange(40) - 19.5
    x[6, :2] = torch.tensor([3e38, -3e38])
    assert_all_same_bits(*both(lambda: lk.quantize_int8(x, symmetric=symmetric)))


@pytest.mark.parametrize(
    ("m", "k", "n"), [(1, 1, 1), (17, 123, 33), (65, 300, 70), (0, 4, 3), (3, 0, 2)]
)
def test_int8_mm(m, k, n):
    a = torch.randint(-128, 128, (m, k), dtype=torch.int8)
    b = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    for x, y in ((a, b.t()), (a.t().contiguous().t(), b.t().contiguous())):
        assert_same_bits(*both(lambda x=x, y=y: lk.int8_mm(x, y)))


def problem(m, k, n, groups, dtype):
    x = torch.randn(m, k).to(dtype)
    weight, scale = lk.quantize_int8(
        torch.randn(n, k), group_size=k // groups if groups > 1 else None
    )
    return x, weight, scale, torch.randn(n).to(dtype), torch.randn(m, n).to(dtype)


# Packed or not, and the dtype of x, vary from shape to shape: each run takes a second or more.
CASES = [
    (*shape, packed, (torch.float32, torch.float16)[(i + packed) % 2])
    for i, shape in enumerate(LINEAR)
    for packed in (False, True)
]


@pytest.mark.parametrize(("m", "k", "n", "groups", "packed", "dtype"), CASES)
def test_int8_linear_same_bits(m, k, n, groups, packed, dtype):
    x, weight, scale, bias, residual = problem(m, k, n, groups, dtype)
    group = k // groups if groups > 1 else None
    matrix = lk.pack_int8_weight(weight, group_size=group) if packed else weight
    steps = torch.rand(m) / 50 + 0.01
    zeros = torch.randint(-128, 128, (m,), dtype=torch.int32)
    out_scale, out_zero = torch.tensor(0.05), torch.tensor(3, dtype=torch.int32)
    byte = torch.randint(-128, 128, (m, k), dtype=torch.int8)
    one = {"x_scale": torch.tensor(0.02), "x_zero_point": torch.tensor(-7, dtype=torch.int32)}
    rows = {"x_scale": steps, "x_zero_point": zeros}
    for keywords in (
        {},
        {"bias": bias, "residual": residual, "activation": "relu"},
        {"bias": bias, "out_dtype": torch.int8, "out_scale": out_scale, "out_zero_point": out_zero},
        one,
        rows | {"bias": bias},
    ):
        assert_same_bits(*both(lambda kw=keywords: lk.int8_linear(x, matrix, scale, **kw)))
    assert_same_bits(*both(lambda: lk.int8_linear(byte, matrix, scale, **rows)))
    assert_same_bits(*both(lambda: lk.int8_linear(byte, matrix, scale, x_scale=steps)))


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu"])
def test_activations(activation):
    # By the bias: one row of outputs takes the interpreter least.
    points = torch.linspace(-15, 15, 800)
    x, weight, steps = torch.zeros(1, 1), torch.ones(800, 1, dtype=torch.int8), torch.ones(800)
    ours, reference = both(
        lambda: lk.int8_linear(x, weight, steps, points, weight_only=True, activation=activation)
    )
    # Both are within 2 ULP of the exact value.
    torch.testing.assert_close(ours, reference, rtol=4 * 2.0**-23, atol=2.0**-140)


@pytest.mark.parametrize(("m", "k", "n", "groups", "packed", "dtype"), CASES)
def test_weight_only(m, k, n, groups, packed, dtype):
    x, weight, scale, bias, residual = problem(m, k, n, groups, dtype)
    group = k // groups if groups > 1 else None
    matrix = lk.pack_int8_weight(weight, group_size=group) if packed else weight

    def run(x):
        return lk.int8_linear(
            x, matrix, scale, bias, residual=residual, weight_only=True, activation="silu",
            out_dtype=torch.float32,
        )  # fmt: skip

    ours, reference = both(lambda: run(x))
    with lk.force_backend("reference"):
        exact = run(x.double())
    bound = 2 * (reference - exact).abs().max() + 1e-5 * exact.abs().max()
    assert (ours - exact).abs().max() <= bound


def test_broken_rows_and_strides():
    x, weight, scale, bias, _ = problem(6, 50, 40, 1, torch.float32)
    x[1, 3], x[2, 0] = torch.nan, torch.inf
    assert_same_bits(*both(lambda: lk.int8_linear(x, weight, scale, bias)))
    wide = torch.randn(2, 3, 100)[..., ::2]
    strided = torch.randint(-127, 128, (50, 40), dtype=torch.int8).t()
    assert_same_bits(*both(lambda: lk.int8_linear(wide, strided, scale, bias)))
    narrow = {"x_scale": torch.tensor(0.1), "out_scale": torch.tensor(0.1), "out_dtype": torch.int8}
    assert_same_bits(*both(lambda: lk.int8_linear(x, weight, scale, bias, **narrow)))


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_gradients(static, grouped):
    x, weight, scale, bias, _ = problem(5, 24, 9, 3 if grouped else 1, torch.float32)
    keywords = {"x_scale": torch.tensor(0.02)} if static else {}

    def run():
        leaves = [t.clone().requires_grad_() for t in (x, scale, bias)]
        y = lk.int8_linear(leaves[0], weight, leaves[1], leaves[2], activation="gelu", **keywords)
        y.backward(torch.ones_like(y))
        return [leaf.grad for leaf in leaves]

    for ours, reference in zip(*both(run), strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("group_size", [None, 8])
def test_quantisation_aware_training(group_size):
    x, weight, bias = torch.randn(5, 24), torch.randn(9, 24), torch.randn(9)

    def run():
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        y = lk.int8_linear_qat(*leaves, group_size=group_size, activation="silu")
        y.square().sum().backward()
        return [y.detach(), *(leaf.grad for leaf in leaves)]

    for ours, reference in zip(*both(run), strict=True):
        torch.testing.assert_close(ours, reference)


def test_bad_arguments():
    x, weight, scale, _, _ = problem(5, 24, 9, 1, torch.float32)
    with lk.force_backend("triton"):
        with pytest.raises(ValueError, match=r"weight_scale must have shape \(9,\)"):
            lk.int8_linear(x, weight, scale[:4])
        with pytest.raises(ValueError, match="weight_scale must be finite"):
            lk.int8_linear(x, weight, torch.full((9,), torch.nan))
        with pytest.raises(ValueError, match="packed weight"):
            lk.int8_linear(x, lk.pack_int8_weight(weight)[:-64], scale)
        with pytest.raises(NotImplementedError, match="float64 has no"):
            lk.int8_linear(x.double(), weight, scale, weight_only=True)
        with pytest.raises(TypeError, match="b must be int8"):
            lk.int8_mm(weight, scale)
