"""sparse_linear: gradients, opcheck, compile, error messages."""

from __future__ import annotations

import pytest
import torch

import lepton_kernels as lk

ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu")


def pruned(out_features: int, in_features: int, density: float = 0.4) -> torch.Tensor:
    keep = torch.rand(out_features, in_features) < density
    return torch.randn(out_features, in_features) * keep


def activate(y: torch.Tensor, activation: str | None) -> torch.Tensor:
    functional = torch.nn.functional
    if activation is None:
        return y
    if activation == "gelu_tanh":
        return functional.gelu(y, approximate="tanh")
    return getattr(functional, activation)(y)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["bitmask", "block"])
def test_gradients_are_those_of_the_dense_weight(cpu_backend, layout, activation):
    packed = lk.pack_sparse(pruned(24, 50), layout)
    dense = packed.to_dense(torch.float64)
    x, bias = torch.randn(3, 4, 50), torch.randn(24)
    residual, grad = torch.randn(3, 4, 24), torch.randn(3, 4, 24)
    inputs = [t.clone().requires_grad_() for t in (x, bias, residual)]
    y = lk.sparse_linear(inputs[0], packed, inputs[1], residual=inputs[2], activation=activation)
    y.backward(grad)
    wide = [t.double().requires_grad_() for t in (x, bias, residual)]
    expected = activate(torch.nn.functional.linear(wide[0], dense, wide[1]), activation) + wide[2]
    expected.backward(grad.double())
    for got, want in zip(inputs, wide, strict=True):
        torch.testing.assert_close(got.grad.double(), want.grad, rtol=1e-4, atol=1e-4)


def test_gradient_of_int8_is_straight_through(cpu_backend):
    packed = lk.pack_sparse(pruned(24, 50), dtype=torch.int8)
    x = torch.randn(5, 50, requires_grad=True)
    grad = torch.randn(5, 24)
    lk.sparse_linear(x, packed).backward(grad)
    torch.testing.assert_close(x.grad, grad @ packed.to_dense())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["bitmask", "block"])
def test_gradcheck(layout, activation):
    packed = lk.pack_sparse(pruned(6, 9), layout)
    x = torch.randn(2, 9, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(6, dtype=torch.float64, requires_grad=True)
    residual = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)

    def function(x, bias, residual):
        return lk.sparse_linear(x, packed, bias, residual=residual, activation=activation)

    with lk.force_backend("reference"):
        assert torch.autograd.gradcheck(function, (x, bias, residual))


@pytest.mark.parametrize("namespace", ["lepton", "lepton_reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_opcheck(namespace, dtype):
    packed = lk.pack_sparse(pruned(20, 33), dtype=dtype)
    ops = getattr(torch.ops, namespace)
    for x in (torch.randn(3, 33), torch.randn(2, 0, 33), torch.randn(33, 5).t()):
        x = x.requires_grad_()
        bias = torch.randn(20, requires_grad=True)
        residual = torch.randn(*x.shape[:-1], 20)
        torch.library.opcheck(
            ops.sparse_linear.default, (x, packed.packed, bias, residual, 20, 3, torch.float32)
        )
        torch.library.opcheck(
            ops.sparse_linear.default, (x, packed.packed, None, None, 20, 0, torch.bfloat16)
        )
        grad = torch.randn(*x.shape[:-1], 20)
        torch.library.opcheck(
            ops.sparse_linear_backward.default,
            (grad, x.detach(), packed.packed, bias.detach(), 2),
        )
    torch.library.opcheck(ops.unpack_sparse.default, (packed.packed, 20, 33, torch.float32))


@pytest.mark.parametrize("layout", [0, 2])
def test_opcheck_pack(layout):
    weight = pruned(20, 33)
    torch.library.opcheck(
        torch.ops.lepton.pack_sparse.default, (weight, weight != 0, None, layout, 0, 0)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_compile(compare, dtype):
    packed = lk.pack_sparse(pruned(20, 33), dtype=dtype)

    def function(x):
        return lk.sparse_linear(x, packed, activation="relu") * 2

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for rows in (3, 8):
        x = torch.randn(rows, 33, requires_grad=True)
        y = compiled(x)
        compare.same_bits(y.detach(), function(x.detach()))
        y.sum().backward()
        assert x.grad.shape == x.shape


def test_same_bits_every_time(cpu_backend, compare):
    packed = lk.pack_sparse(pruned(200, 300))
    x = torch.randn(50, 300)
    compare.same_bits(lk.sparse_linear(x, packed), lk.sparse_linear(x, packed))


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"x": [1.0]}, TypeError, "x must be a Tensor, got list"),
        ({"x": torch.zeros(8, dtype=torch.int8)}, TypeError, "x must be float32"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x must have shape \(..., in_features\)"),
        ({"x": torch.zeros(2, 9)}, ValueError, r"weight has shape \(4, 8\), x asks for \(4, 9\)"),
        ({"weight": torch.zeros(4, 8)}, TypeError, "weight must be a SparseWeight"),
        ({"bias": torch.zeros(5)}, ValueError, r"bias must have shape \(4,\) to match"),
        ({"bias": 1.0}, TypeError, "bias must be a Tensor, got float"),
        ({"bias": torch.zeros(4, dtype=torch.int32)}, TypeError, "bias must be float32"),
        ({"residual": torch.zeros(2, 5)}, ValueError, r"residual must have shape \(2, 4\)"),
        ({"residual": "x"}, TypeError, "residual must be a Tensor"),
        ({"activation": "tanh"}, ValueError, "activation must be None or one of"),
        ({"out_dtype": torch.int8}, TypeError, "out_dtype must be float32, bfloat16 or float16"),
        ({"out_dtype": "float"}, TypeError, "out_dtype must be float32, bfloat16 or float16"),
        ({"x": torch.zeros(2, 8, dtype=torch.float64)}, NotImplementedError, "force_backend"),
        ({"out_dtype": torch.float64}, NotImplementedError, "float64 has no CPU kernel"),
    ],
)
def test_errors(cpu_backend, arguments, error, text):
    given = {"x": torch.zeros(2, 8), "weight": lk.pack_sparse(torch.ones(4, 8)), **arguments}
    x, weight = given.pop("x"), given.pop("weight")
    with pytest.raises(error, match=f"sparse_linear: .*{text}"):
        lk.sparse_linear(x, weight, given.pop("bias", None), **given)


def test_too_many_inputs_for_int8(cpu_backend):
    weight = lk.pack_sparse(torch.zeros(1, 65540), dtype=torch.int8)
    with pytest.raises(NotImplementedError, match="65540 input features can overflow int32"):
        lk.sparse_linear(torch.zeros(1, 65540), weight)


def test_raw_op_refuses_damaged_bytes(cpu_backend):
    packed = lk.pack_sparse(pruned(40, 70)).packed
    x = torch.randn(2, 70)
    op = torch.ops.lepton.sparse_linear
    broken = packed.clone()
    broken.view(torch.int64)[17] = 10**9
    for damaged in (packed[:-8], packed[:10], packed.float(), broken):
        with pytest.raises(RuntimeError, match="sparse_linear: "):
            op(x, damaged, None, None, 40, 0, torch.float32)
