"""Straight-through gradients against autograd on an explicit fake-quantised model."""

import pytest
import torch
import torch.nn.functional as F

import lepton_kernels as lk

ACTIVATIONS = {
    None: lambda y: y,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
}
EVERY_ACTIVATION = pytest.mark.parametrize("activation", ACTIVATIONS)
MODES = ["dynamic", "static", "static_zero", "static_rows"]


def fake_quantised(x, x_scale, x_zero):
    """x as the forward sees it; rounding passes the gradient, clipping stops it."""
    if x_scale is None:
        q, scale = lk.quantize_int8(x.detach())
        return x + (q * scale[..., None] - x).detach()
    scale = x_scale.detach().reshape(-1, 1)
    zero = torch.zeros(1, 1) if x_zero is None else x_zero.reshape(-1, 1).float()
    level = torch.round(x.detach().float() * (1 / scale)) + zero
    seen = (level.clamp(-128, 127) - zero) * scale
    inside = (level >= -128) & (level <= 127)
    straight = torch.where(inside, x, 0)
    return straight + (seen - straight).detach()


def model(x, weight, scale, bias, residual, x_scale, x_zero, activation, dtype):
    """Everything behind the quantisation in `dtype`."""
    seen = fake_quantised(x, x_scale, x_zero).to(dtype)
    matrix = weight.to(dtype).reshape(*scale.shape, -1) * scale.to(dtype)[..., None]
    y = F.linear(seen, matrix.reshape(weight.shape), bias.to(dtype))
    return ACTIVATIONS[activation](y) + residual.to(dtype)


def close(got, in_float32, in_float64):
    """|out - ref64| <= 2 |torch's own - ref64| + atol, by the largest of each tensor.

    atol: eight units of the dtype at the largest value, where torch happens to be exact.
    """
    atol = 8 * torch.finfo(got.dtype).eps * in_float64.abs().max()
    error = (in_float32.double() - in_float64).abs().max()
    assert (got.double() - in_float64).abs().max() <= 2 * error + atol


@EVERY_ACTIVATION
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_straight_through(dtype, groups, mode, activation):
    m, k, n = 9, 66, 18
    x = torch.randn(m, k).to(dtype).requires_grad_()
    weight = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    scale = (torch.rand(n, groups) * 0.01 + 1e-3).requires_grad_()
    bias, residual = torch.randn(n, requires_grad=True), torch.randn(m, n, requires_grad=True)
    rows = (m,) if mode == "static_rows" else ()
    # About a tenth of the values are clipped.
    x_scale = None if mode == "dynamic" else torch.rand(rows) * 0.004 + 0.01
    x_zero = None
    if mode in ("static_zero", "static_rows"):
        x_zero = torch.randint(-60, 60, rows, dtype=torch.int32)
    tensors = (x, weight, scale, bias, residual, x_scale, x_zero)
    leaves = (x, scale, bias, residual)

    out = lk.int8_linear(
        x, lk.pack_int8_weight(weight, group_size=k // groups), scale, bias,
        x_scale=x_scale, x_zero_point=x_zero, residual=residual, activation=activation,
    )  # fmt: skip
    upstream = torch.randn_like(out)
    if activation == "relu":
        # float32 and float64 may disagree on which side of the corner a sum near 0 lies.
        with torch.no_grad():
            sums = model(*tensors[:4], torch.zeros(1), x_scale, x_zero, None, torch.float64)
            upstream = torch.where(sums.abs() < 1e-4, 0, upstream)
    got = torch.autograd.grad(out, leaves, upstream)
    single = model(*tensors, activation, torch.float32)
    single = torch.autograd.grad(single, leaves, upstream.to(single.dtype))
    double = model(*tensors, activation, torch.float64)
    double = torch.autograd.grad(double, leaves, upstream.double())
    for mine, torchs, exact, leaf in zip(got, single, double, leaves, strict=True):
        assert mine.dtype == leaf.dtype
        assert mine.shape == leaf.shape
        # autograd hands the gradient of a bfloat16 leaf over in bfloat16, in each of the models.
        close(mine, torchs, exact.double())


@EVERY_ACTIVATION
@pytest.mark.parametrize("mode", MODES[:3])
@pytest.mark.parametrize("group_size", [None, 22])
def test_quantisation_aware(group_size, mode, activation):
    m, k, n = 9, 66, 18
    x, weight = torch.randn(m, k, requires_grad=True), torch.randn(n, k, requires_grad=True)
    bias = torch.randn(n, requires_grad=True)
    x_scale = None if mode == "dynamic" else torch.tensor(0.015)
    x_zero = torch.tensor(20, dtype=torch.int32) if mode == "static_zero" else None
    keywords = {"x_scale": x_scale, "x_zero_point": x_zero, "activation": activation}
    out = lk.int8_linear_qat(x, weight, bias, group_size=group_size, **keywords)
    q, scale = lk.quantize_int8(weight.detach(), group_size=group_size)
    assert torch.equal(out, lk.int8_linear(x, q, scale, bias, **keywords))

    upstream = torch.randn_like(out)
    matrix = scale.reshape(n, -1)[:, :, None] * q.reshape(n, 1 if group_size is None else 3, -1)
    matrix = matrix.reshape(n, k)

    def explicit(dtype):
        seen = fake_quantised(x, x_scale, x_zero).to(dtype)
        straight = weight + (matrix - weight).detach()
        # The value of the sum weight + (matrix - weight) is off by a rounding: use the exact one.
        straight = straight + (matrix - straight).detach()
        return ACTIVATIONS[activation](F.linear(seen, straight.to(dtype), bias.to(dtype)))

    if activation == "relu":
        upstream = torch.where(out.detach().abs() < 1e-4, 0, upstream)
    leaves = (x, weight, bias)
    got = torch.autograd.grad(out, leaves, upstream)
    single = torch.autograd.grad(explicit(torch.float32), leaves, upstream)
    double = torch.autograd.grad(explicit(torch.float64), leaves, upstream.double())
    for mine, torchs, exact in zip(got, single, double, strict=True):
        close(mine, torchs, exact.double())


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_backends_agree(backend):
    if backend not in lk.info()["backends"]:
        pytest.skip("no compiled operators in this installation")
    x, weight = torch.randn(9, 66), torch.randint(-128, 128, (18, 66), dtype=torch.int8)
    results = []
    for name in (backend, "reference"):
        leaf, scale = x.clone().requires_grad_(), torch.full((18,), 0.01).requires_grad_()
        with lk.force_backend(name):
            lk.int8_linear(leaf, weight, scale, activation="silu").sum().backward()
        results.append((leaf.grad, scale.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_int8_x_gives_gradients_to_the_rest():
    scale, bias = torch.rand(7, requires_grad=True), torch.randn(7, requires_grad=True)
    x = torch.randint(-128, 128, (3, 8), dtype=torch.int8)
    out = lk.int8_linear(x, torch.ones(7, 8, dtype=torch.int8), scale, bias,
                         x_scale=torch.tensor(0.5))  # fmt: skip
    out.sum().backward()
    assert torch.equal(bias.grad, torch.full((7,), 3.0))
    assert torch.equal(scale.grad, torch.full((7,), float(x.sum()) * 0.5))


@pytest.mark.parametrize("m", [0, 5])
@pytest.mark.parametrize("activation", [0, 2])
def test_opchecks(m, activation):
    x, weight = torch.randn(m, 12), torch.randint(-128, 128, (7, 12), dtype=torch.int8)
    scale, bias, grad = torch.rand(7), torch.randn(7), torch.randn(m, 7)
    torch.library.opcheck(
        torch.ops.lepton.int8_linear_backward.default,
        (grad, x, weight, scale, bias, None, None, False, activation),
    )
    qat = (x, torch.randn(7, 12), bias, None, None, 4, activation)
    torch.library.opcheck(torch.ops.lepton.int8_linear_qat_backward.default, (grad, *qat))
    learned = tuple(t.clone().requires_grad_() for t in qat[:3])
    torch.library.opcheck(torch.ops.lepton.int8_linear_qat.default, (*learned, *qat[3:]))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_quantisation_aware(backend):
    x, weight = torch.randn(5, 12), torch.randn(7, 12, requires_grad=True)

    def loss(x, weight):
        return lk.int8_linear_qat(x, weight, activation="relu").sum()

    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    expected = torch.autograd.grad(loss(x, weight), weight)[0]
    assert torch.equal(torch.autograd.grad(compiled(x, weight), weight)[0], expected)
