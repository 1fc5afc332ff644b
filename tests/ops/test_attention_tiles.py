"""Several blocks of rows and keys in bfloat16: whole, cut, hidden and shared ones."""

import pytest
import torch

import lepton_kernels as lk

# Weights, their gradients and the result are rounded to bfloat16, in a chain of at most four.
RELATIVE = 4 * 2.0**-9
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (70, 10)},
    "window_behind_all": {"window_size": (20, -1)},
    "dropout": {"dropout_p": 0.3, "causal": True},
    "negative_scale": {"softmax_scale": -0.2, "causal": True},
    "zero_scale": {"softmax_scale": 0.0, "window_size": (100, 0)},
    "softcap_alibi": {"softcap": 3.0, "alibi_slopes": torch.rand(4), "causal": True},
}


def attend(tensors, options, grad):
    torch.manual_seed(5)  # of the dropout mask
    inputs = [t.detach().clone().requires_grad_() for t in tensors]
    out, lse, _ = lk.flash_attn_func(*inputs, return_attn_probs=True, **options)
    # A row that sees no key has lse -inf, whose gradient does not count.
    return [out.detach(), lse.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def assert_near(got, exact):
    for name, a, b in zip(("out", "lse", "q", "k", "v")[: len(got)], got, exact, strict=True):
        seen = b.isfinite()
        assert torch.equal(a.isfinite(), seen), name
        error = (a.double() - b)[seen].norm()
        assert error <= RELATIVE * b[seen].norm(), f"{name}: {error / b[seen].norm():.1e}"


@pytest.mark.parametrize("name", list(OPTIONS))
def test_blocks(isa, nan_poison, name):
    q = torch.randn(1, 150, 4, 72).bfloat16()
    k, v = torch.randn(1, 333, 2, 72).bfloat16(), torch.randn(1, 333, 2, 40).bfloat16()
    grad = torch.randn(1, 150, 4, 40).bfloat16()
    exact = attend([t.double() for t in (q, k, v)], OPTIONS[name], grad)
    assert_near(attend([q, k, v], OPTIONS[name], grad), exact)


@pytest.mark.parametrize("window", [(-1, -1), (40, 10)])
def test_scores_that_grow(isa, nan_poison, window):
    """Later keys have larger scores, some too large for powers of two beside the first ones'."""
    q = torch.randn(1, 100, 2, 72).bfloat16()
    k, v = torch.randn(1, 400, 1, 72), torch.randn(1, 400, 1, 72).bfloat16()
    for first, factor in ((0, 0.1), (70, 5.0), (110, 20.0), (200, 300.0), (330, 1.0)):
        k[:, first:] = torch.randn(1, 400 - first, 1, 72) * factor
    k = k.bfloat16()
    options = {"window_size": window, "return_attn_probs": True}
    exact = lk.flash_attn_func(q.double(), k.double(), v.double(), **options)[:2]
    assert_near(lk.flash_attn_func(q, k, v, **options)[:2], exact)


@pytest.mark.parametrize("queries", [9, 20, 40])
def test_few_rows_share_many_keys(isa, queries):
    """The keys are split over tasks, whose parts are merged."""
    q = torch.randn(1, queries, 2, 64).bfloat16()
    k, v = (torch.randn(1, 2500, 1, 64).bfloat16() for _ in range(2))
    grad = torch.randn(1, queries, 2, 64).bfloat16()
    exact = attend([t.double() for t in (q, k, v)], {"causal": True}, grad)
    assert_near(attend([q, k, v], {"causal": True}, grad), exact)


def test_hidden_blocks_are_skipped(isa):
    """A padding mask hides whole blocks and part of one."""
    q = torch.randn(2, 2, 60, 32).bfloat16()
    k, v = (torch.randn(2, 2, 500, 32).bfloat16() for _ in range(2))
    seen = torch.arange(500) < torch.tensor([100, 384])[:, None]
    mask = seen[:, None, None, :]
    out = lk.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    for b, length in enumerate((100, 384)):
        short = [t[b : b + 1, :, :length] for t in (k, v)]
        expected = lk.scaled_dot_product_attention(q[b : b + 1], *short)
        assert torch.allclose(out[b].float(), expected[0].float(), atol=2e-2)


def test_same_bits_every_time(isa):
    tensors = [torch.randn(1, 200, 3, 64).bfloat16() for _ in range(3)]
    grad = torch.randn(1, 200, 3, 64).bfloat16()
    first, second = (attend(tensors, {"causal": True}, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
