"""Dropout of attention: the mask is the reference's, replays, and is random."""

import pytest
import torch

import lepton_kernels as lk
from lepton_kernels.reference import attention as reference


def make(shape, dtype, seed=0):
    batch, heads, kv_heads, rows, columns, dim, value_dim = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes):
        return torch.randn(*sizes, generator=generator).to(dtype)

    q = draw(batch, heads, rows, dim)
    k, v = draw(batch, kv_heads, columns, dim), draw(batch, kv_heads, columns, value_dim)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def attend_dropped(shape, state, p, dtype, grad):
    q, k, v = make(shape, dtype)
    x = [t.transpose(1, 2) for t in (q, k, v)]
    out, _ = torch.ops.lepton.attention_forward(
        *x, None, None, None, None, None, state, 0.25, -1, -1, False, 0.0, p
    )
    return [out, *torch.autograd.grad(out, (q, k, v), grad)]


@pytest.mark.parametrize("rows", [3, 130])
def test_dropout_is_the_reference_mask(isa, rows):
    shape, state = (2, 4, 2, rows, 75, 16, 16), torch.tensor([2**61 + 12345, 2**40 + 9])
    grad = torch.randn(2, rows, 4, 16)
    got = attend_dropped(shape, state, 0.3, torch.float32, grad)
    with_reference = [t.double() for t in make(shape, torch.float32)]
    inputs = [t.detach().requires_grad_() for t in with_reference]
    out, _ = torch.ops.lepton_reference.attention_forward(
        *(t.transpose(1, 2) for t in inputs), None, None, None, None, None, state,
        0.25, -1, -1, False, 0.0, 0.3,
    )  # fmt: skip
    expected = [out, *torch.autograd.grad(out, inputs, grad.double())]
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a.double(), b, atol=1e-5)


def test_dropout_statistics_and_replay(isa):
    keep = reference.dropout_keep(torch.tensor([1, 2]), 0.25, (2, 3, 100, 500))
    assert abs(keep.double().mean() - 0.75) < 0.003
    for dim in range(4):
        other = [d for d in range(4) if d != dim]
        assert (keep.double().mean(other) - 0.75).abs().max() < 0.09
    again = reference.dropout_keep(torch.tensor([1, 3]), 0.25, (2, 3, 100, 500))
    assert abs((keep == again).double().mean() - (0.75**2 + 0.25**2)) < 0.005
    q = torch.randn(1, 2, 64, 16)
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(lk.scaled_dot_product_attention(q, q, q, dropout_p=0.5))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    ones = torch.ones(1, 2, 64, 64)
    kept = lk.scaled_dot_product_attention(torch.zeros_like(ones), ones, ones, dropout_p=0.5)
    assert abs(kept.mean() - 1) < 0.1


def test_philox_known_answers():
    # From the Random123 distribution: counter and key of zeros, and of ones.
    zero, ones = torch.tensor(0), torch.tensor(0xFFFFFFFF)
    words = reference.philox_words(0, (zero, zero, zero, zero))
    assert [int(w) for w in words] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    words = reference.philox_words(-1, (ones, ones, ones, ones))
    assert [int(w) for w in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
