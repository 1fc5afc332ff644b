"""Attention on a GPU against the reference in float64; the kernels' details are in tests/simt."""

import pytest
import torch

import lepton_kernels as lk
from lepton_kernels.reference import attention as reference


def check(got, want, dtype, most):
    torch.testing.assert_close(
        got.double().cpu(), want.double().cpu(), rtol=0, atol=4 * torch.finfo(dtype).eps * most
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [40, 64, 128, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_forward_and_gradients(dtype, dim, causal):
    q, k, v = (torch.randn(2, 4, 300, dim, device="cuda").to(dtype) for _ in range(3))
    for tensor in (q, k, v):
        tensor.requires_grad_()
    grad = torch.randn_like(q)
    out = lk.scaled_dot_product_attention(q, k, v, is_causal=causal)
    assert isinstance(out, torch.Tensor)
    out.backward(grad)
    wide = [t.detach().double().requires_grad_() for t in (q, k, v)]
    want = torch.nn.functional.scaled_dot_product_attention(*wide, is_causal=causal)
    want.backward(grad.double())
    check(out.detach(), want.detach(), dtype, v.abs().max().item())
    for tensor, expected in zip((q, k, v), wide, strict=True):
        check(tensor.grad, expected.grad, dtype, expected.grad.abs().max().item() + 1)


def test_dropout_draws_the_bits_of_the_reference():
    rows, keys, p = 70, 64, 0.3
    q, k = torch.zeros(2, 1, 3, rows, 64, device="cuda", dtype=torch.float16).unbind()
    k = k[:, :, :keys]
    v = torch.eye(64, device="cuda", dtype=torch.float16).expand(1, 3, 64, 64)
    torch.manual_seed(5)
    state = torch.randint(0, 2**62, (2,), device="cuda")
    torch.manual_seed(5)
    out = lk.scaled_dot_product_attention(q, k, v, dropout_p=p)
    assert isinstance(out, torch.Tensor)
    assert torch.equal(out != 0, reference.dropout_keep(state, p, (1, 3, rows, keys)))


def test_what_no_kernel_takes_runs_on_the_reference_or_is_refused():
    q = torch.randn(1, 2, 9, 320, device="cuda")
    with pytest.raises(NotImplementedError, match="at most 256 elements a head, got float32"):
        lk.scaled_dot_product_attention(q, q, q)
    with lk.force_backend(None):
        out = lk.scaled_dot_product_attention(q, q, q)
    torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(q, q, q))


def test_gradients_have_the_same_bits_twice():
    q, k, v = torch.randn(3, 2, 8, 500, 64, device="cuda", dtype=torch.bfloat16).unbind()
    grads = []
    for _ in range(2):
        leaves = [t.clone().requires_grad_() for t in (q, k, v)]
        lk.scaled_dot_product_attention(*leaves, is_causal=True).sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
