"""Decoding kernels in the emulator: caches, pages, int8, shares of the keys."""

import pytest
import torch
from attention_calls import Cached


def check(simt, case, seed, processors=0):
    out, lse = case.run(simt, seed=seed, processors=processors)
    want_out, want_lse = case.expected()
    most = case.value.float().abs().max().item()
    if case.value_scale is not None:
        most *= case.value_scale.abs().max().item()
    eps = torch.finfo(out.dtype).eps
    torch.testing.assert_close(out.double(), want_out.double(), rtol=0, atol=1.5 * eps * most)
    torch.testing.assert_close(lse.double(), want_lse.double(), rtol=2e-5, atol=2e-5)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("processors", [0, 6])
@pytest.mark.parametrize("rows", [1, 5])
def test_cache(simt, seed, rows, processors):
    case = Cached(
        torch.randn(3, rows, 4, 64).half(), torch.randn(5, 600, 2, 64).half(),
        torch.randn(5, 600, 2, 64).half(), ints(600, 0, 133), start_k=ints(3, 0, 130),
        batch_index=ints(4, 0, 1), sinks=torch.randn(4),
    )  # fmt: skip
    check(simt, case, seed, processors)


@pytest.mark.parametrize("processors", [0, 6])
def test_pages(simt, seed, processors):
    page, pages = 16, 80
    table = torch.stack([torch.randperm(pages)[:40] for _ in range(2)]).int()
    case = Cached(
        torch.randn(2, 2, 8, 128).bfloat16(), torch.randn(pages, page, 2, 128).bfloat16(),
        torch.randn(pages, page, 2, 128).bfloat16(), ints(637, 250), block_table=table,
        alibi_slopes=torch.rand(8), softcap=3.0, window_left=400,
    )  # fmt: skip
    check(simt, case, seed, processors)


def test_int8_pages_and_variable_queries(simt, seed):
    page, pages, heads, dim = 8, 40, 2, 64

    def cache():
        return torch.randint(-127, 128, (pages, page, heads, dim), dtype=torch.int8)

    table = torch.stack([torch.randperm(pages)[:20] for _ in range(3)]).int()
    case = Cached(
        torch.randn(1, 12, 4, dim).bfloat16(), cache(), cache(), ints(160, 31, 77),
        cu_seqlens_q=ints(0, 7, 7, 11), block_table=table,
        key_scale=torch.rand(pages, page, heads) / 64,
        value_scale=torch.rand(pages, page, heads) / 64,
    )  # fmt: skip
    check(simt, case, seed)


def test_wrong_lengths_stay_inside(simt, seed):
    """Nobody checks lengths that only the GPU knows: they must not lead out of the tensors."""
    q = torch.randn(2, 1, 1, 64).half()
    k, v = torch.randn(2, 2, 40, 1, 64).half().unbind()
    Cached(q, k, v.clone(), ints(1000, -5), batch_index=ints(7, -1)).run(simt, seed=seed)
    table = ints(99, -3, 1, 0).view(2, 2)
    Cached(q, k, v.clone(), ints(1000, 60), block_table=table).run(simt, seed=seed)
