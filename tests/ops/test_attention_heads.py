"""Heads of several blocks of rows in float32: one task each, or shared by threads; keys packed."""

from collections.abc import Iterator

import pytest
import torch

import lepton_kernels as lk

KEYS = 310
# Sums of up to 2 * 300 products in float32, in a chain of at most four; roundings are random.
RELATIVE = 4 * 600**0.5 * 2.0**-24
OPTIONS = {
    "plain": {},
    "causal": {"causal": True},
    "window_dropout": {"window_size": (150, 20), "dropout_p": 0.3},
    "softcap_alibi": {"softcap": 3.0, "alibi_slopes": torch.rand(6), "causal": True},
}


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """Threads of torch. Of six key heads, two threads take four whole and share the last two."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def attend(tensors, options, grad):
    torch.manual_seed(5)  # of the dropout mask
    inputs = [t.detach().clone().requires_grad_() for t in tensors]
    out, lse, _ = lk.flash_attn_func(*inputs, return_attn_probs=True, **options)
    return [out.detach(), lse.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]


def draw(batch):
    q, grad = torch.randn(batch, 300, 6, 72), torch.randn(batch, 300, 6, 40)
    return [q, torch.randn(batch, KEYS, 3, 72), torch.randn(batch, KEYS, 3, 40)], grad


@pytest.mark.parametrize("name", list(OPTIONS))
def test_values_and_gradients(isa, nan_poison, threads, name):
    tensors, grad = draw(2)
    exact = attend([t.double() for t in tensors], OPTIONS[name], grad)
    got = attend(tensors, OPTIONS[name], grad)
    for part, a, b in zip(("out", "lse", "q", "k", "v"), got, exact, strict=True):
        error = float((a.double() - b).norm() / b.norm())
        assert error <= RELATIVE, f"{part}: {error:.1e}"


def test_rows_of_a_view(isa, threads):
    """Heads that lie behind each other, or beside each other in the rows of a larger tensor."""
    (q, k, v), grad = draw(1)
    wide = [torch.randn(1, t.shape[1], 2 * t.shape[2], t.shape[3] + 3) for t in (q, k, v)]
    for t, w in zip((q, k, v), wide, strict=True):
        w[:, :, 1::2, 2:-1] = t
    views = [w[:, :, 1::2, 2:-1] for w in wide]
    behind = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v)]
    dense = attend((q, k, v), {"causal": True}, grad)
    for same in (views, behind):
        # Not `attend`, whose copies would be dense.
        inputs = [t.requires_grad_() for t in same]
        out, lse, _ = lk.flash_attn_func(*inputs, return_attn_probs=True, causal=True)
        got = [out, lse, *torch.autograd.grad(out, inputs, grad)]
        assert all(torch.equal(a, b) for a, b in zip(got, dense, strict=True))


def test_same_bits_with_any_number_of_threads(isa):
    tensors, grad = draw(2)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(attend(tensors, {"causal": True}, grad)[:2])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
