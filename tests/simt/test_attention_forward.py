"""Forward attention kernels in the emulator, against the reference in float64."""

import pytest
import torch
from attention_calls import Case, expected, forward

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
