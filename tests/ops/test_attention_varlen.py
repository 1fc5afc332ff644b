"""flash_attn_varlen_func and flash_attn_with_kvcache: values, gradients, in-place append."""

import functools
import inspect

import pytest
import torch

import lepton_kernels as lk


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


CU_Q, CU_K = ints(0, 7, 7, 40, 41, 60), ints(0, 9, 12, 45, 45, 85)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": True},
        {"window_size": (4, 2)},
        {"softcap": 1.5, "causal": True},
        {"alibi_slopes": torch.rand(5, 4)},
    ],
    ids=str,
)
def test_varlen_is_its_pieces(isa, options):
    q = torch.randn(60, 4, 16, requires_grad=True)
    k = torch.randn(85, 2, 16, requires_grad=True)
    v = torch.randn(85, 2, 24, requires_grad=True)
    out, lse, _ = lk.flash_attn_varlen_func(
        q, k, v, CU_Q, CU_K, 33, 40, return_attn_probs=True, **options
    )
    grads = torch.autograd.grad(out.square().sum() + lse[lse.isfinite()].sum(), (q, k, v))
    pieces, lses = [], []
    for b in range(5):
        rows, columns = slice(CU_Q[b], CU_Q[b + 1]), slice(CU_K[b], CU_K[b + 1])
        own = dict(options)
        if "alibi_slopes" in own:
            own["alibi_slopes"] = own["alibi_slopes"][b]
        x = (q[None, rows].double(), k[None, columns].double(), v[None, columns].double())
        piece, piece_lse, _ = lk.flash_attn_func(*x, return_attn_probs=True, **own)
        pieces.append(piece[0])
        lses.append(piece_lse[0])
    expected, expected_lse = torch.cat(pieces), torch.cat(lses, 1)
    loss = expected.square().sum() + expected_lse[expected_lse.isfinite()].sum()
    assert torch.allclose(out.double(), expected, atol=1e-5)
    assert torch.allclose(lse.double(), expected_lse, atol=1e-5)
    for a, b in zip(grads, torch.autograd.grad(loss, (q, k, v)), strict=True):
        assert torch.allclose(a, b, atol=1e-4)


def test_rows_behind_the_last_sequence_are_zero(isa):
    x = torch.randn(10, 2, 8, requires_grad=True)
    cu = ints(0, 3, 7)
    out, lse, _ = lk.flash_attn_varlen_func(x, x, x, cu, cu, 4, 4, return_attn_probs=True)
    assert (out[7:] == 0).all()
    assert (lse[:, 7:] == -torch.inf).all()
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert (grad[7:] == 0).all()
    assert torch.isfinite(grad).all()


def test_varlen_packed_and_tensor_lengths(isa):
    qkv = torch.randn(12, 3, 2, 8)
    cu = ints(0, 5, 12)
    expected = lk.flash_attn_varlen_func(*qkv.unbind(1), cu, cu, 7, 7, causal=True)
    longest = torch.tensor(7)
    got = lk.flash_attn_varlen_qkvpacked_func(qkv, cu, longest, causal=True)
    assert torch.equal(got, expected)
    got = lk.flash_attn_varlen_kvpacked_func(
        qkv[:, 0], qkv[:, 1:], cu, cu, longest, longest, causal=True
    )
    assert torch.equal(got, expected)


def test_packed_forms_have_the_signatures_of_flash_attn():
    options = [
        "dropout_p", "softmax_scale", "causal", "window_size", "softcap", "alibi_slopes",
        "deterministic", "return_attn_probs",
    ]  # fmt: skip
    lengths = ["cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"]
    for function, leading in (
        (lk.flash_attn_qkvpacked_func, ["qkv"]),
        (lk.flash_attn_kvpacked_func, ["q", "kv"]),
        (lk.flash_attn_varlen_qkvpacked_func, ["qkv", "cu_seqlens", "max_seqlen"]),
        (lk.flash_attn_varlen_kvpacked_func, ["q", "kv", *lengths]),
    ):
        assert list(inspect.signature(function).parameters) == [*leading, *options]
    qkv = torch.randn(2, 9, 3, 2, 8)
    given = (0.0, 0.3, True, (4, 0), 2.0, torch.ones(2), True, True)
    expected = lk.flash_attn_func(*qkv.unbind(2), *given)
    for got in (
        lk.flash_attn_qkvpacked_func(qkv, *given),
        lk.flash_attn_kvpacked_func(qkv[:, :, 0], qkv[:, :, 1:], *given),
    ):
        assert all(torch.equal(a, b) for a, b in zip(got[:2], expected[:2], strict=True))


def test_varlen_dropout_replays(isa):
    x = torch.randn(12, 2, 8, requires_grad=True)
    cu = ints(0, 5, 12)
    results = []
    for _ in range(2):
        torch.manual_seed(3)
        out = lk.flash_attn_varlen_func(x, x, x, cu, cu, 7, 7, dropout_p=0.4)
        results.append((out, *torch.autograd.grad(out.sum(), x)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    with lk.force_backend("reference"):
        torch.manual_seed(3)
        out = lk.flash_attn_varlen_func(x, x, x, cu, cu, 7, 7, dropout_p=0.4)
    assert torch.allclose(out, results[0][0], atol=1e-5)


def paged(cache, page, generator):
    """The same rows in pages of a shuffled pool."""
    batch, length, heads, dim = cache.shape
    count = -(-length // page)
    table = torch.randperm(batch * count, generator=generator).view(batch, count)
    padded = torch.nn.functional.pad(cache, (0, 0, 0, 0, 0, count * page - length))
    pool = torch.full((batch * count, page, heads, dim), torch.nan, dtype=cache.dtype)
    pool[table.flatten()] = padded.view(batch * count, page, heads, dim)
    return pool, table.int()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 9])
def test_paged_and_plain_caches_agree(isa, rows, dtype):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, rows, 4, 40, generator=generator).to(dtype)
    k, v = (torch.randn(3, 70, 2, 40, generator=generator).to(dtype) for _ in range(2))
    lengths = ints(70, 1, 33)
    options = {"causal": True, "softcap": 5.0, "return_softmax_lse": True}
    out, lse = lk.flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, **options)
    for b, length in enumerate(lengths.tolist()):
        piece = (
            q[b : b + 1].double(),
            k[b : b + 1, :length].double(),
            v[b : b + 1, :length].double(),
        )
        expected = lk.flash_attn_func(*piece, causal=True, softcap=5.0)
        tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
        assert torch.allclose(out[b].double(), expected[0], atol=tolerance)
    generator.manual_seed(1)
    pool_k, table = paged(k, 16, generator)
    generator.manual_seed(1)
    pool_v, _ = paged(v, 16, generator)
    got, got_lse = lk.flash_attn_with_kvcache(
        q, pool_k, pool_v, cache_seqlens=lengths, block_table=table, **options
    )
    assert torch.equal(got, out)
    assert torch.equal(got_lse, lse)
    flat, cu_q = q.flatten(0, 1), ints(0, rows, 2 * rows, 3 * rows)
    cu_k = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    got = lk.flash_attn_varlen_func(
        flat, pool_k, pool_v, cu_q, cu_k, rows, 70, causal=True, softcap=5.0, block_table=table
    )
    assert torch.equal(got, out.flatten(0, 1))


def test_long_cache_is_split_over_threads(isa):
    q = torch.randn(1, 1, 4, 64)
    k, v = torch.randn(1, 5000, 1, 64), torch.randn(1, 5000, 1, 64)
    sinks = torch.randn(4)
    out, lse = lk.flash_attn_with_kvcache(
        q,
        k,
        v,
        cache_seqlens=4999,
        return_softmax_lse=True,
        sinks=sinks,
        alibi_slopes=torch.full((4,), 0.01),
    )
    with lk.force_backend("reference"):
        expected, expected_lse = lk.flash_attn_with_kvcache(
            q, k, v, cache_seqlens=4999, return_softmax_lse=True, sinks=sinks,
            alibi_slopes=torch.full((4,), 0.01),
        )  # fmt: skip
    assert torch.allclose(out, expected, atol=1e-5)
    assert torch.allclose(lse, expected_lse, atol=1e-5)
    windowed = lk.flash_attn_with_kvcache(q, k, v, cache_seqlens=4999, window_size=(10, 0))
    expected = lk.flash_attn_func(q, k[:, 4988:4999], v[:, 4988:4999])
    assert torch.allclose(windowed, expected, atol=1e-5)


def rotate(x, cos, sin, position, interleaved):
    """One row at a time, as complex numbers."""
    half = cos.shape[1]
    turned = x.clone()
    pairs = [(2 * i, 2 * i + 1) if interleaved else (i, i + half) for i in range(half)]
    for i, (a, b) in enumerate(pairs):
        c, s = cos[position, i], sin[position, i]
        turned[..., a] = x[..., a] * c - x[..., b] * s
        turned[..., b] = x[..., a] * s + x[..., b] * c
    return turned


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("use_pages", [False, True])
def test_append_with_rotary(isa, interleaved, use_pages):
    batch, added, heads, dim = 2, 3, 2, 16
    q = torch.randn(batch, added, 4, dim)
    k_cache, v_cache = torch.randn(batch, 20, heads, dim), torch.randn(batch, 20, heads, dim)
    k, v = torch.randn(batch, added, heads, dim), torch.randn(batch, added, heads, dim)
    angles = torch.rand(40, 6) * 6
    cos, sin = angles.cos(), angles.sin()
    filled = ints(4, 11)
    expected_k, expected_v, expected_q = k_cache.clone(), v_cache.clone(), q.clone()
    for b in range(batch):
        for i in range(added):
            at = int(filled[b]) + i
            expected_k[b, at] = rotate(k[b, i], cos, sin, at, interleaved)
            expected_v[b, at] = v[b, i]
            expected_q[b, i] = rotate(q[b, i], cos, sin, at, interleaved)
    expected = lk.flash_attn_with_kvcache(
        expected_q, expected_k, expected_v, cache_seqlens=filled + added, causal=True
    )
    table = None
    if use_pages:
        generator = torch.Generator().manual_seed(1)
        k_cache, table = paged(k_cache, 8, generator)
        generator.manual_seed(1)
        v_cache, _ = paged(v_cache, 8, generator)
    got = lk.flash_attn_with_kvcache(
        q, k_cache, v_cache, k, v, cos, sin, filled, block_table=table, causal=True,
        rotary_interleaved=interleaved,
    )  # fmt: skip
    assert torch.allclose(got, expected, atol=1e-5)
    if not use_pages:
        assert torch.allclose(k_cache, expected_k, atol=1e-6)
        assert torch.equal(v_cache, expected_v)


def test_rotary_keeps_float64():
    q, cache = torch.randn(1, 1, 1, 8).double(), torch.zeros(1, 8, 1, 8).double()
    angles = torch.rand(8, 4).double() * 6
    k = torch.randn(1, 1, 1, 8).double()
    lk.flash_attn_with_kvcache(q, cache, cache.clone(), k, k, angles.cos(), angles.sin(), ints(5))
    expected = rotate(k[0, 0], angles.cos(), angles.sin(), 5, True)
    torch.testing.assert_close(cache[0, 5], expected, rtol=1e-14, atol=1e-14)


def test_rotary_of_queries_without_causal_uses_one_place(isa):
    q, cache = torch.randn(1, 2, 1, 8), torch.zeros(1, 8, 1, 8)
    angles = torch.rand(8, 4)
    k = torch.randn(1, 1, 1, 8)
    v_cache = torch.randn(1, 8, 1, 8)
    got = lk.flash_attn_with_kvcache(q, cache, v_cache, k, k, angles.cos(), angles.sin(), ints(5))
    turned = rotate(q, angles.cos(), angles.sin(), 5, True)
    expected = lk.flash_attn_func(turned, cache[:, :6], v_cache[:, :6])
    assert torch.allclose(got, expected, atol=1e-6)


def test_left_padding_and_batch_index(isa):
    q = torch.randn(2, 1, 4, 16)
    k, v = torch.randn(5, 12, 2, 16), torch.randn(5, 12, 2, 16)
    where, pad, filled = ints(3, 0), ints(2, 0), ints(9, 12)
    got = lk.flash_attn_with_kvcache(
        q, k, v, cache_seqlens=filled, cache_batch_idx=where, cache_leftpad=pad, causal=True
    )
    for b in range(2):
        rows = slice(pad[b], filled[b])
        index = int(where[b])
        expected = lk.flash_attn_func(q[b : b + 1], k[None, index, rows], v[None, index, rows])
        assert torch.allclose(got[b : b + 1], expected, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 5])
def test_int8_cache(isa, rows):
    q = torch.randn(2, rows, 8, 64)
    k_cache, v_cache = (torch.zeros(2, 600, 2, 64, dtype=torch.int8) for _ in range(2))
    k_scale, v_scale = torch.zeros(2, 600, 2), torch.zeros(2, 600, 2)
    k, v = torch.randn(2, 590, 2, 64), torch.randn(2, 590, 2, 64)
    got = lk.flash_attn_with_kvcache(
        q, k_cache, v_cache, k, v, cache_seqlens=ints(0, 0), k_scale=k_scale, v_scale=v_scale
    )
    exact = lk.flash_attn_func(q, k, v)
    assert (got - exact).abs().max() < 0.02
    dequantized = [
        c.double() * s.double().unsqueeze(-1) for c, s in ((k_cache, k_scale), (v_cache, v_scale))
    ]
    # Half a step, and the roundings of the scale, of its inverse and of the product.
    bound = 0.5 * k_scale[:, :590].double().unsqueeze(-1) + 2 * torch.finfo().eps * k.abs()
    assert ((dequantized[0][:, :590] - k).abs() <= bound).all()
    expected = lk.flash_attn_func(q.double(), *(t[:, :590] for t in dequantized))
    assert torch.allclose(got.double(), expected, atol=1e-5)


def test_nothing_is_written_before_an_error():
    q, new = torch.randn(1, 1, 1, 8), torch.randn(1, 3, 1, 8)
    cache = torch.zeros(1, 8, 1, 8)
    with pytest.raises(ValueError, match="cache_seqlens must be from 0 to 8, got 9 at 0"):
        lk.flash_attn_with_kvcache(q, cache, cache, new, new, cache_seqlens=ints(6))
    table = ints(0, 7).view(1, 2)
    with pytest.raises(
        ValueError, match=r"block_table must point to pages 0 to 0, got 7 at \(0, 1\)"
    ):
        lk.flash_attn_with_kvcache(
            q, cache, cache, new, new, cache_seqlens=ints(7), block_table=table
        )
    appended = functools.partial(
        lk.flash_attn_with_kvcache, q, cache, cache, new, new, cache_seqlens=ints(2)
    )
    for message, options in (
        ("window_size must be at least 0", {"window_size": (-2, 0)}),
        ("softcap must be 0", {"softcap": -1.0}),
        ("scale must be finite", {"softmax_scale": float("nan")}),
        ("alibi_slopes must have shape", {"alibi_slopes": torch.ones(3)}),
        ("sinks must have shape", {"sinks": torch.ones(3)}),
    ):
        with pytest.raises(ValueError, match=message):
            appended(**options)
    assert (cache == 0).all()


def test_varlen_compiles_without_a_graph_break():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def attend(x, cu, longest):
        return lk.flash_attn_varlen_func(x, x, x, cu, cu, longest, longest, causal=True)

    for total, cu in ((12, ints(0, 5, 12)), (20, ints(0, 5, 12, 20))):
        x = torch.randn(total, 2, 8, requires_grad=True)
        for longest in (8, torch.tensor(8)):
            out = attend(x, cu, longest)
            expected = lk.flash_attn_varlen_func(x, x, x, cu, cu, 8, 8, causal=True)
            assert torch.equal(out, expected)
            grads = [torch.autograd.grad(o.square().sum(), x)[0] for o in (out, expected)]
            assert torch.allclose(*grads, atol=1e-6)


def test_decoding_compiles_without_a_graph_break():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(q, k_cache, v_cache, k, v, filled):
        return lk.flash_attn_with_kvcache(
            q, k_cache, v_cache, k, v, cache_seqlens=filled, causal=True
        )

    q, new = torch.randn(2, 1, 4, 8), torch.randn(2, 1, 2, 8)
    caches = [torch.zeros(2, 16, 2, 8) for _ in range(4)]
    filled = ints(3, 5)
    got = step(q, *caches[:2], new, new, filled)
    expected = lk.flash_attn_with_kvcache(
        q, *caches[2:], new, new, cache_seqlens=filled, causal=True
    )
    assert torch.equal(got, expected)
    assert torch.equal(caches[0], caches[2])
