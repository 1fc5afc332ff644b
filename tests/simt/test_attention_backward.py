"""Backward attention kernels in the emulator, against the reference in float64."""

import dataclasses

import pytest
import torch
from attention_calls import Case, backward, expected, expected_backward, forward


def tensors(dtype, batch=1, rows=70, keys=100, heads=1, kv_heads=1, dim=64, value_dim=None):
    return (
        torch.randn(batch, rows, heads, dim).to(dtype),
        torch.randn(batch, keys, kv_heads, dim).to(dtype),
        torch.randn(batch, keys, kv_heads, value_dim or dim).to(dtype),
    )


def check(simt, case, seed, *, with_lse=False, bias_grad=False):
    """Gradients err by what rounding weights, gradients of scores and results to 16 bits costs."""
    want_out, want_lse = expected(case)
    out, lse = want_out.to(case.query.dtype), want_lse.float()
    grad_out = torch.randn(out.shape).to(out.dtype)
    grad_lse = torch.randn(lse.shape) if with_lse else None
    want = expected_backward(case, want_out, want_lse, grad_out, grad_lse, bias_grad)
    got = backward(simt, case, out, lse, grad_out, grad_lse, bias_grad=bias_grad, seed=seed)
    assert got.keys() == want.keys()
    eps = torch.finfo(case.query.dtype).eps
    for name, grad in got.items():
        # The rounding errors of the terms of a sum are independent: their norm is a few eps of
        # that of the gradient, and `out`, rounded, moves delta by as much.
        norm = want[name].norm() + 1e-3 * want["value"].norm()
        error = (grad.double() - want[name]).norm()
        assert error <= 4 * eps * norm, f"{name}: {error / norm / eps:.2f} eps"
        worst = (grad.double() - want[name]).abs().max()
        assert worst <= 8 * eps * max(want[name].abs().max(), want["value"].abs().max()), name
    return got


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [False, True])
def test_plain(simt, seed, dtype, causal):
    case = Case(*tensors(dtype, rows=200, keys=330), window_right=0 if causal else -1)
    check(simt, case, seed)


@pytest.mark.parametrize("dim", [24, 128, 256])
def test_head_dims(simt, seed, dim):
    check(simt, Case(*tensors(torch.bfloat16, rows=100, keys=140, dim=dim), window_right=0), seed)


@pytest.mark.parametrize(("dim", "value_dim"), [(64, 24), (7, 5), (65, 130)])
def test_value_dim(simt, seed, dim, value_dim):
    case = Case(*tensors(torch.float16, rows=33, keys=65, dim=dim, value_dim=value_dim))
    check(simt, case, seed, with_lse=True)


@pytest.mark.parametrize(
    ("rows", "keys", "left", "right", "bottom"),
    [
        (1, 1, -1, -1, False),
        (130, 20, -1, 0, True),
        (260, 260, 40, 0, False),
        (150, 300, 64, 70, True),
    ],
)  # fmt: skip
def test_window(simt, seed, rows, keys, left, right, bottom):
    case = Case(
        *tensors(torch.bfloat16, rows=rows, keys=keys, dim=32),
        window_left=left,
        window_right=right,
        bottom_right=bottom,
    )
    check(simt, case, seed, with_lse=True)


def test_grouped_heads_and_strides(simt, seed):
    q = torch.randn(1, 6, 260, 64).half().transpose(1, 2)
    k, v = torch.randn(2, 1, 2, 150, 64).half().transpose(2, 3).unbind()
    check(simt, Case(q, k, v, sinks=torch.randn(6)), seed, with_lse=True)


BIASES = [
    (2, 2, 50, 70),
    (1, 2, 50, 70),
    (2, 1, 1, 70),
    (1, 1, 50, 1),
    (1, 2, 1, 1),
]


@pytest.mark.parametrize("shape", BIASES)
def test_bias(simt, seed, shape):
    q, k, v = tensors(torch.bfloat16, batch=2, rows=50, keys=70, heads=2, kv_heads=1)
    dtype = torch.float32 if shape[2] == 1 else torch.bfloat16
    # Over all keys of a row gradients of scores sum to that of its lse, and else to zero.
    case = Case(q, k, v, bias=torch.randn(shape).to(dtype))
    check(simt, case, seed, with_lse=True, bias_grad=True)


def test_options(simt, seed):
    """Soft cap, ALiBi, a mask, sinks, dropout and a gradient of the lse, together."""
    q, k, v = tensors(torch.float16, batch=2, rows=50, keys=70, heads=2, kv_heads=1)
    case = Case(
        q, k, v, bias=torch.rand(2, 1, 50, 70) > 0.2, alibi_slopes=torch.rand(2, 2),
        sinks=torch.randn(2), softcap=2.0, window_right=0, bottom_right=True,
        rng_state=torch.randint(0, 2**62, (2,)), dropout_p=0.2,
    )  # fmt: skip
    check(simt, case, seed, with_lse=True)


@pytest.mark.parametrize("dim", [128, 256])
def test_dropout_wide(simt, seed, dim):
    case = Case(
        *tensors(torch.bfloat16, rows=40, keys=150, heads=2, dim=dim),
        rng_state=torch.randint(0, 2**62, (2,)),
        dropout_p=0.3,
    )
    check(simt, case, seed)


def test_variable_lengths(simt, seed):
    q, k, v = tensors(torch.bfloat16, rows=300, keys=310, heads=2)
    cu_q = torch.tensor([0, 0, 131, 140, 290], dtype=torch.int32)
    cu_k = torch.tensor([0, 17, 17, 180, 300], dtype=torch.int32)
    case = Case(
        q, k, v, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, window_right=0, bottom_right=True,
        sinks=torch.randn(2),
    )  # fmt: skip
    check(simt, case, seed, with_lse=True)
    check(simt, dataclasses.replace(case, softcap=5.0, alibi_slopes=torch.rand(4, 2)), seed)


def test_same_bits(simt, seed):
    """No order of warps or blocks changes a bit."""
    case = Case(*tensors(torch.bfloat16, rows=90, keys=140, heads=2), window_right=0)
    out, lse = forward(simt, case, seed=seed)
    grad_out = torch.randn(out.shape).bfloat16()
    first, second = (backward(simt, case, out, lse, grad_out, None, seed=seed + i) for i in (0, 1))
    for name, grad in first.items():
        assert torch.equal(grad, second[name]), name
