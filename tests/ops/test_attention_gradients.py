"""Gradients in bfloat16 against float64, by norms, beside torch's own."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as torch_attention

import lepton_kernels as lk

# batch, heads, key heads, length, head dim, causal
SHAPES = [
    (1, 2, 2, 130, 64, False),
    (1, 2, 2, 300, 128, True),
    (1, 4, 1, 200, 64, True),
    (1, 1, 1, 520, 64, False),
]


def draw(seed, *shapes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=generator).bfloat16() for shape in shapes]


def gradients(attend, tensors, grad, causal=False):
    tensors = [t.clone().requires_grad_() for t in tensors]
    q, k, v, *bias = tensors
    out = attend(q, k, v, attn_mask=bias[0] if bias else None, is_causal=causal, enable_gqa=True)
    return torch.autograd.grad(out, tensors, grad)


def errors(got, exact):
    return torch.stack([(a.double() - b).norm() for a, b in zip(got, exact, strict=True)])


def query_rounding(tensors, grad, causal):
    """What rounding to bfloat16 adds to the gradient of the queries at most, as a norm.

    Rounded are the result, each gradient of a score, and the output, which stands in
    rowsum(grad * out). Such an error lies anywhere within half a step, which is at most `unit` of
    the value: a mean square of at most unit^2 / 3. Errors do not depend on each other, so the mean
    squares of a sum's terms add up; over the 16,000 elements and more of a gradient their sum
    is near its mean. float32 sums and the exponential err a thousand times less.
    """
    q, k, v = tensors
    k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        scores += torch.full(scores.shape[-2:], -torch.inf, dtype=scores.dtype).triu(1)
    p = torch.softmax(scores, -1)
    products = grad * (p @ v)
    score_grad = p * (grad @ v.transpose(-1, -2) - products.sum(-1, keepdim=True))
    result = (score_grad @ k).square()
    scored = score_grad.square() @ k.square()
    out = products.square().sum(-1, keepdim=True) * (p @ k).square()
    unit = torch.finfo(torch.bfloat16).eps / 2
    return unit * ((result + scored + out).sum() / (3 * q.shape[-1])).sqrt()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nearer_to_float64_than_torchs(isa, shape):
    batch, heads, kv_heads, length, dim, causal = shape
    rows, keys = (batch, heads, length, dim), (batch, kv_heads, length, dim)
    *tensors, grad = draw(0, rows, keys, keys, rows)
    wide = [t.double() for t in tensors]
    exact = gradients(torch_attention, wide, grad.double(), causal)
    torchs = errors(gradients(torch_attention, tensors, grad, causal), exact)
    ours = errors(gradients(lk.scaled_dot_product_attention, tensors, grad, causal), exact)
    assert ours.norm() < torchs.norm()
    # Sums over queries stay in float32 here; a query's own gradient takes the same roundings in
    # both.
    assert (ours[1:] < torchs[1:]).all()
    assert ours[0] <= query_rounding(wide, grad.double(), causal)
    assert ours[0] < 1.05 * torchs[0]  # nearer than the bound asks: a margin seen, not derived


@pytest.mark.parametrize("length", [96, 257])
def test_bias_gradient_is_off_by_its_roundings(isa, length):
    rows = (2, 2, length, 64)
    q, k, v, bias, grad = draw(0, rows, rows, rows, (1, 2, length, length), rows)
    wide = [t.double() for t in (q, k, v, bias)]
    exact = gradients(torch_attention, wide, grad.double())
    ours = gradients(lk.scaled_dot_product_attention, [q, k, v, bias], grad)
    # A probability times an error of rowsum(grad * out), where weights and output were rounded,
    # then the rounding of the sum.
    unit = torch.finfo(torch.bfloat16).eps / 2
    p = torch.softmax(wide[0] @ wide[1].transpose(-1, -2) / 64**0.5 + wide[3], -1)
    off = unit * (grad.double().abs() * (p @ wide[2].abs() + (p @ wide[2]).abs())).sum(-1)
    summed = (p * off.unsqueeze(-1)).sum(0).norm()
    assert errors(ours[3:], exact[3:])[0] <= unit * exact[3].norm() + 1.01 * summed
    # torch takes another path here, which rounds nothing but the result.
    torchs = gradients(torch_attention, [q, k, v, bias], grad)
    assert (errors(ours, exact) <= 2 * errors(torchs, exact)).all()
