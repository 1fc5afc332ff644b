"""Forward attention kernels in the emulator, against the reference in float64."""

import dataclasses

import pytest
import torch
from attention_calls import Case, expected, forward

from lepton_kernels.reference import attention as reference

DTYPES = [torch.bfloat16, torch.float16]


def tensors(dtype, batch=1, rows=70, keys=100, heads=1, kv_heads=1, dim=64, value_dim=None):
    return (
        torch.randn(batch, rows, heads, dim).to(dtype),
        torch.randn(batch, keys, kv_heads, dim).to(dtype),
        torch.randn(batch, keys, kv_heads, value_dim or dim).to(dtype),
    )


def check(simt, case, seed, **options):
    out, lse = forward(simt, case, seed=seed, **options)
    want_out, want_lse = expected(case)
    # Weights and outputs are rounded once to 16 bits; weights sum to at most 1 (1 / (1 - p) with
    # dropout), so that both errors are at most one unit in the last place of the largest value.
    eps = torch.finfo(out.dtype).eps
    most = case.value.abs().max().item() if case.value.numel() else 1.0
    if case.dropout_p:
        most = most / (1 - case.dropout_p)
    torch.testing.assert_close(out.double(), want_out.double(), rtol=0, atol=1.5 * eps * most)
    # Products of 16-bit numbers are exact in fp32; sums of 1e2 terms and 2^x err by 2^-20 or so.
    torch.testing.assert_close(lse.double(), want_lse.double(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_plain(simt, seed, dtype, causal):
    right = 0 if causal else -1
    check(simt, Case(*tensors(dtype, rows=200, keys=330), window_right=right), seed)


@pytest.mark.parametrize("dim", [8, 40, 80, 128, 136, 256])
def test_head_dims(simt, seed, dim):
    case = Case(*tensors(torch.bfloat16, rows=70, keys=130, dim=dim), window_right=0)
    check(simt, case, seed)


@pytest.mark.parametrize(("dim", "value_dim"), [(64, 24), (32, 128), (7, 5), (65, 130)])
def test_value_dim(simt, seed, dim, value_dim):
    """Also odd dimensions, whose rows are not aligned."""
    check(simt, Case(*tensors(torch.float16, rows=33, keys=65, dim=dim, value_dim=value_dim)), seed)


@pytest.mark.parametrize(
    ("rows", "keys", "left", "right", "bottom"),
    [
        (1, 1, -1, -1, False),
        (17, 200, -1, 0, True),
        (130, 20, -1, 0, True),  # rows that see nothing
        (260, 260, 40, 0, False),
        (150, 300, 64, 70, True),
        (150, 300, 0, 0, False),
        (129, 257, 100, -1, False),
    ],
)
def test_window(simt, seed, rows, keys, left, right, bottom):
    case = Case(
        *tensors(torch.bfloat16, batch=2, rows=rows, keys=keys, dim=32),
        window_left=left,
        window_right=right,
        bottom_right=bottom,
    )
    check(simt, case, seed)


def test_grouped_heads_and_strides(simt, seed):
    q = torch.randn(2, 6, 45, 64).half().transpose(1, 2)
    k, v = torch.randn(2, 2, 2, 77, 64).half().transpose(2, 3).unbind()
    check(simt, Case(q, k, v, sinks=torch.randn(6)), seed)


def test_scale_below_zero(simt, seed):
    check(simt, Case(*tensors(torch.bfloat16, rows=40, keys=90), scale=-0.2), seed)


def bias_of(kind, batch, heads, rows, keys):
    if kind == "mask":
        return torch.rand(batch, 1, rows, keys) > 0.3
    if kind == "row_mask":
        mask = torch.rand(1, heads, rows, 1) > 0.3
        mask[0, 0, 0] = False
        return mask
    if kind == "half":
        return torch.randn(batch, heads, rows, keys).half()
    if kind == "column":
        return torch.randn(1, 1, 1, keys)
    return torch.randn(keys, rows, heads).bfloat16().permute(2, 1, 0)[None]


@pytest.mark.parametrize("kind", ["mask", "row_mask", "half", "column", "permuted"])
def test_bias(simt, seed, kind):
    q, k, v = tensors(torch.bfloat16, batch=2, rows=50, keys=70, heads=2, kv_heads=1)
    check(simt, Case(q, k, v, bias=bias_of(kind, 2, 2, 50, 70)), seed)


@pytest.mark.parametrize("per_batch", [False, True])
def test_softcap_alibi(simt, seed, per_batch):
    q, k, v = tensors(torch.float16, batch=2, rows=50, keys=70, heads=2, kv_heads=2)
    slopes = torch.rand(2, 2) if per_batch else torch.rand(2)
    case = Case(
        q, k, v, alibi_slopes=slopes, softcap=2.0, sinks=torch.randn(2), window_right=0,
        bottom_right=True,
    )  # fmt: skip
    check(simt, case, seed)


def test_dropout_mask(simt, seed):
    """With equal weights and values of 1 the output counts what dropout keeps, to the bit."""
    rows, keys, heads, p = 37, 91, 2, 0.3
    state = torch.randint(0, 2**62, (2,))
    q = torch.zeros(2, rows, heads, 64).half()
    k = torch.zeros(2, keys, heads, 64).half()
    v = torch.zeros(2, keys, heads, 64).half()
    v[:, torch.arange(64), :, torch.arange(64)] = 1.0  # column d shows the weight of key d
    out, _ = forward(simt, Case(q, k, v, rng_state=state, dropout_p=p), seed=seed)
    keep = reference.dropout_keep(state, p, (2, heads, rows, keys))[..., :64].transpose(1, 2)
    assert torch.equal(out != 0, keep)


def test_dropout(simt, seed):
    case = Case(
        *tensors(torch.bfloat16, batch=2, rows=50, keys=70, heads=2, kv_heads=2),
        rng_state=torch.randint(0, 2**62, (2,)),
        dropout_p=0.2,
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
    check(simt, case, seed)
    check(simt, dataclasses.replace(case, softcap=5.0, alibi_slopes=torch.rand(4, 2)), seed)


@pytest.mark.parametrize("rows", [1, 3])
def test_shares_of_keys(simt, seed, rows):
    """Few queries of grouped heads over many keys: packed, split, merged."""
    q, k, v = tensors(torch.float16, batch=2, rows=rows, keys=700, heads=6, kv_heads=2)
    case = Case(q, k, v, window_right=0, bottom_right=True, sinks=torch.randn(6))
    check(simt, case, seed, processors=8)
    check(simt, dataclasses.replace(case, window_left=300), seed, processors=8)


def test_no_keys(simt, seed):
    q, k, v = tensors(torch.bfloat16, batch=2, rows=5, keys=0)
    check(simt, Case(q, k, v, sinks=torch.randn(1)), seed)
    check(simt, Case(q, k, v), seed)
