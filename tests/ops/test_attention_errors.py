"""Every message of the attention functions, and opcheck of the ops."""

import pytest
import torch

import lepton_kernels as lk

F32 = torch.float32


def t(*shape, dtype=F32):
    return torch.zeros(*shape, dtype=dtype)


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


Q, KV = t(2, 4, 5, 8), t(2, 2, 6, 8)
SDPA = "scaled_dot_product_attention: "
SDPA_CASES = [
    (TypeError, "query must be a Tensor, got list", {"query": [1]}),
    (TypeError, "key must be a Tensor, got None", {"key": None}),
    (TypeError, "query must be float32, bfloat16, float16, float64, got int64",
     {"query": t(2, 4, 5, 8, dtype=torch.int64)}),
    (TypeError, "value must be float32 like query, got bfloat16",
     {"value": t(2, 2, 6, 8, dtype=torch.bfloat16)}),
    (ValueError, "key must be on cpu like the first argument, got meta",
     {"key": torch.zeros(2, 2, 6, 8, device="meta")}),
    (ValueError, r"query must have shape \(..., length, head_dim\), got \(8,\)", {"query": t(8)}),
    (ValueError, "key must have the batch size 2 of query, got 3", {"key": t(3, 2, 6, 8)}),
    (ValueError, "key must have the head dimension 8 of query, got 9", {"key": t(2, 2, 6, 9)}),
    (ValueError, "value must have the length 6 of key, got 7", {"value": t(2, 2, 7, 8)}),
    (ValueError, "value must have the 2 heads of key, got 4", {"value": t(2, 4, 6, 8)}),
    (ValueError, "heads of query must be a multiple of the 3 heads of key, got 4",
     {"key": t(2, 3, 6, 8), "value": t(2, 3, 6, 8)}),
    (ValueError, "key must have the 4 heads of query unless enable_gqa is set, got 2",
     {"enable_gqa": False}),
    (ValueError, r"attn_mask must have shape that broadcasts to \(2, 4, 5, 6\), got \(3, 6\)",
     {"attn_mask": t(3, 6)}),
    (ValueError, "attn_mask must have shape that broadcasts", {"attn_mask": t(1, 2, 4, 5, 6)}),
    (TypeError, "attn_mask must be bool, float32, .* got int64",
     {"attn_mask": t(5, 6, dtype=torch.int64)}),
    (ValueError, "window_size must be at least 0, or -1 for no limit, got left -2",
     {"window_size": (-2, 0)}),
    (ValueError, "window_size must be .* got right -5", {"window_size": (0, -5)}),
    (ValueError, "softcap must be 0 .off. or positive and finite, got -1.0", {"softcap": -1.0}),
    (ValueError, "softcap must be .* got inf", {"softcap": float("inf")}),
    (ValueError, "dropout_p must be at least 0 and below 1, got 1.0", {"dropout_p": 1.0}),
    (ValueError, "dropout_p must be at least 0 and below 1, got -0.1", {"dropout_p": -0.1}),
    (ValueError, "scale must be finite, got nan", {"scale": float("nan")}),
    (ValueError, "window_size must be .* got right -3",
     {"window_size": (0, -3), "is_causal": True}),
    (TypeError, r"window_size must be a pair \(left, right\), got 3",
     {"window_size": 3, "is_causal": True}),
    (TypeError, r"window_size must be a pair \(left, right\), got \(1, 2, 3\)",
     {"window_size": (1, 2, 3)}),
    (TypeError, "window_size left must be an int, got float", {"window_size": (1.5, 2)}),
    (TypeError, "dropout_p must be a number, got str", {"dropout_p": "a"}),
    (TypeError, "softcap must be a number, got NoneType", {"softcap": None}),
    (TypeError, "scale must be a number, got str", {"scale": "a"}),
    (ValueError, r"alibi_slopes must have shape \(4,\) or \(2, 4\), got \(5,\)",
     {"alibi_slopes": t(5)}),
    (TypeError, "alibi_slopes must be float32, float64, got bfloat16",
     {"alibi_slopes": t(4, dtype=torch.bfloat16)}),
    (ValueError, r"sinks must have shape \(4,\), got \(2, 4\)", {"sinks": t(2, 4)}),
    (TypeError, "sinks must be float32, .* got int64", {"sinks": t(4, dtype=torch.int64)}),
]  # fmt: skip


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(
    ("error", "message", "changed"), SDPA_CASES, ids=[c[1] for c in SDPA_CASES]
)
def test_scaled_dot_product_attention_refuses(backend, error, message, changed):
    arguments = {"query": Q, "key": KV, "value": KV, "enable_gqa": True, **changed}
    with lk.force_backend(backend), pytest.raises(error, match=SDPA + message):
        lk.scaled_dot_product_attention(**arguments)


VARLEN = "flash_attn_varlen_func: "
X = t(10, 2, 8)
VARLEN_CASES = [
    (ValueError, r"q must have shape \(total, heads, head_dim\), got \(1, 10, 2, 8\)",
     {"q": t(1, 10, 2, 8)}),
    (TypeError, "cu_seqlens_q must be a Tensor, got None", {"cu_seqlens_q": None}),
    (TypeError, "cu_seqlens_k must be a Tensor, got list", {"cu_seqlens_k": [0, 10]}),
    (TypeError, "cu_seqlens_q must be int32, got int64", {"cu_seqlens_q": ints(0, 3, 10).long()}),
    (ValueError, r"cu_seqlens_q must have shape \(batch \+ 1,\), got \(1, 3\)",
     {"cu_seqlens_q": ints(0, 3, 10)[None]}),
    (ValueError, "cu_seqlens_q must start at 0, got 1", {"cu_seqlens_q": ints(1, 3, 10)}),
    (ValueError, "cu_seqlens_k must not decrease, got 7 then 3 at 2",
     {"cu_seqlens_k": ints(0, 7, 3)}),
    (ValueError, "cu_seqlens_k must not decrease, got 3 then -2147483648 at 2",
     {"cu_seqlens_k": ints(0, 3, -(2**31))}),
    (ValueError, "cu_seqlens_q must end within the 10 rows of its tensor, got 11",
     {"cu_seqlens_q": ints(0, 3, 11)}),
    (ValueError, r"cu_seqlens_k must have shape \(3,\) like cu_seqlens_q, got \(2,\)",
     {"cu_seqlens_k": ints(0, 10)}),
    (ValueError, "k must have the head dimension 8 of q, got 9", {"k": t(10, 2, 9)}),
    (ValueError, "dropout_p must be", {"dropout_p": 2.0}),
    (TypeError, "dropout_p must be a number, got NoneType", {"dropout_p": None}),
    (TypeError, "softmax_scale must be a number, got str", {"softmax_scale": "a"}),
    (TypeError, "block_table must be a Tensor, got list",
     {"k": t(2, 5, 2, 8), "v": t(2, 5, 2, 8), "block_table": [[0], [1]]}),
    (TypeError, "cu_seqlens_k must be int32, got int64",
     {"k": t(2, 5, 2, 8), "v": t(2, 5, 2, 8), "block_table": ints(0, 1)[:, None],
      "cu_seqlens_k": ints(0, 3, 8).long()}),
    (ValueError, "differences of cu_seqlens_k must be from 0 to 5, got 6 at 1",
     {"k": t(2, 5, 2, 8), "v": t(2, 5, 2, 8), "block_table": ints(0, 1)[:, None],
      "cu_seqlens_k": ints(0, 3, 9)}),
    (NotImplementedError, "block_table with dropout or gradients does not exist; it does",
     {"dropout_p": 0.5, "k": t(2, 5, 2, 8), "v": t(2, 5, 2, 8),
      "block_table": ints(0, 1)[:, None]}),
]  # fmt: skip


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(
    ("error", "message", "changed"), VARLEN_CASES, ids=[c[1] for c in VARLEN_CASES]
)
def test_varlen_refuses(backend, error, message, changed):
    arguments = {
        "q": X, "k": X, "v": X, "cu_seqlens_q": ints(0, 3, 10), "cu_seqlens_k": ints(0, 3, 10),
        "max_seqlen_q": 7, "max_seqlen_k": 7, **changed,
    }  # fmt: skip
    with lk.force_backend(backend), pytest.raises(error, match=VARLEN + message):
        lk.flash_attn_varlen_func(**arguments)


CACHE = "flash_attn_with_kvcache: "
C8 = t(3, 10, 2, 8, dtype=torch.int8)
CACHE_CASES = [
    (ValueError, r"k_cache must have shape \(batch, length, heads, head_dim\), got \(10, 2, 8\)",
     {"k_cache": t(10, 2, 8)}),
    (TypeError, "k_cache must be float32, int8, got bfloat16",
     {"k_cache": t(3, 10, 2, 8, dtype=torch.bfloat16)}),
    (TypeError, "v_cache must be .* like k_cache, got", {"v_cache": C8}),
    (TypeError, "k_scale must be given exactly with an int8 cache, got None",
     {"k_cache": C8, "v_cache": C8}),
    (TypeError, "v_scale must be given exactly with an int8 cache, got a Tensor",
     {"v_scale": t(3, 10, 2)}),
    (ValueError, r"k_scale must have shape \(3, 10, 2\) to match its cache, got \(3, 10\)",
     {"k_cache": C8, "v_cache": C8, "k_scale": t(3, 10), "v_scale": t(3, 10, 2)}),
    (ValueError, "k_cache must have the batch size 3 of q, got 4",
     {"k_cache": t(4, 10, 2, 8), "v_cache": t(4, 10, 2, 8)}),
    (ValueError, "k_cache must have the head dimension 8 of q, got 7",
     {"k_cache": t(3, 10, 2, 7)}),
    (ValueError, "heads of q must be a multiple of the 3 heads of k_cache, got 4",
     {"k_cache": t(3, 10, 3, 8), "v_cache": t(3, 10, 3, 8)}),
    (TypeError, "cache_seqlens must be int32, got int64",
     {"cache_seqlens": ints(1, 2, 3).long()}),
    (ValueError, "cache_seqlens must be from 0 to 10, got 11 at 1",
     {"cache_seqlens": ints(1, 11, 3)}),
    (ValueError, "cache_leftpad must be from 0 to 10, got -1 at 2",
     {"cache_leftpad": ints(0, 0, -1)}),
    (ValueError, "cache_batch_idx must be from 0 to 2, got 3 at 0",
     {"cache_batch_idx": ints(3, 0, 0)}),
    (ValueError, r"block_table must have shape \(3, pages\), got \(2, 1\)",
     {"block_table": ints(0, 1)[:, None]}),
    (ValueError, r"block_table must point to pages 0 to 2, got -1 at \(1, 0\)",
     {"block_table": ints(0, -1, 1)[:, None]}),
    (NotImplementedError, "cache_batch_idx with block_table does not exist",
     {"block_table": ints(0, 1, 2)[:, None], "cache_batch_idx": ints(0, 1, 2)}),
    (TypeError, "v must be a Tensor like its pair, got None", {"k": t(3, 1, 2, 8)}),
    (ValueError, "cache_seqlens must be given when k is, got None",
     {"k": t(3, 1, 2, 8), "v": t(3, 1, 2, 8)}),
    (ValueError, r"k must have shape \(3, 1, 2, 8\) to match its cache, got \(3, 1, 1, 8\)",
     {"k": t(3, 1, 1, 8), "v": t(3, 1, 2, 8), "cache_seqlens": 3}),
    (ValueError, "cache_seqlens must be from 0 to 10, got 11 at 0",
     {"k": t(3, 1, 2, 8), "v": t(3, 1, 2, 8), "cache_seqlens": 10}),
    (TypeError, "rotary_sin must be a Tensor like its pair, got None",
     {"k": t(3, 1, 2, 8), "v": t(3, 1, 2, 8), "cache_seqlens": 3, "rotary_cos": t(9, 4)}),
    (ValueError, "rotary_cos must have a row for position 9, got 9 rows",
     {"k": t(3, 1, 2, 8), "v": t(3, 1, 2, 8), "cache_seqlens": 9, "rotary_cos": t(9, 4),
      "rotary_sin": t(9, 4)}),
    (ValueError, r"rotary_cos must have shape \(positions, at most 4\), got \(20, 5\)",
     {"k": t(3, 1, 2, 8), "v": t(3, 1, 2, 8), "cache_seqlens": 3, "rotary_cos": t(20, 5),
      "rotary_sin": t(20, 5)}),
    (ValueError, "window_size must be", {"window_size": (-3, 0)}),
    (ValueError, "softcap must be", {"softcap": -3.0}),
    (TypeError, "softcap must be a number, got str", {"softcap": "a"}),
    (TypeError, r"window_size must be a pair \(left, right\), got None", {"window_size": None}),
    (ValueError, "softmax_scale must be finite", {"softmax_scale": float("inf")}),
    (TypeError, "cache_seqlens must be a Tensor, got list", {"cache_seqlens": [1, 2, 3]}),
    (TypeError, "block_table must be a Tensor, got list", {"block_table": [[0], [1], [2]]}),
    (ValueError, r"block_table must have shape \(3, pages\), got \(\)",
     {"block_table": torch.tensor(0, dtype=torch.int32)}),
]  # fmt: skip


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize(
    ("error", "message", "changed"), CACHE_CASES, ids=[c[1] for c in CACHE_CASES]
)
def test_kvcache_refuses(backend, error, message, changed):
    arguments = {
        "q": t(3, 1, 4, 8),
        "k_cache": t(3, 10, 2, 8),
        "v_cache": t(3, 10, 2, 8),
        **changed,
    }
    with lk.force_backend(backend), pytest.raises(error, match=CACHE + message):
        lk.flash_attn_with_kvcache(**arguments)


def test_packed_forms_refuse():
    with pytest.raises(
        ValueError,
        match=r"qkvpacked_func: qkv must have shape \(batch, length, 3, heads, head_dim\)",
    ):
        lk.flash_attn_qkvpacked_func(t(2, 9, 2, 4, 8))
    with pytest.raises(ValueError, match="flash_attn_varlen_kvpacked_func: kv must have shape"):
        lk.flash_attn_varlen_kvpacked_func(X, X, ints(0, 10), ints(0, 10), 10, 10)


def test_the_op_itself_refuses_before_it_reads():
    """Calls past the public functions, which is where memory would be read."""
    x = t(1, 6, 2, 8)
    options = (0.5, -1, -1, False, 0.0, 0.0)
    none = [None] * 4
    forward = torch.ops.lepton.attention_forward
    with pytest.raises(RuntimeError, match="variable lengths want a batch of 1 and no bias"):
        forward(x, x, x, t(1, 2, 6, 6), None, None, ints(0, 6), ints(0, 6), None, *options)
    with pytest.raises(RuntimeError, match="bias must broadcast"):
        forward(x, x, x, t(1, 3, 6, 6), None, None, None, None, None, *options)
    with pytest.raises(RuntimeError, match="rng_state must be int64"):
        forward(x, x, x, None, None, None, None, None, None, 0.5, -1, -1, False, 0.0, 0.5)
    with pytest.raises(RuntimeError, match="grad_out and out must have the shape"):
        torch.ops.lepton.attention_backward(
            t(1, 5, 2, 8), None, x, x, x, None, None, *none, x, t(1, 2, 6), *options, False
        )
    double = x.double()
    with pytest.raises(RuntimeError, match="float64 has no CPU kernel"):
        forward(double, double, double, None, None, None, None, None, None, *options)


def sample(dtype=F32, **changed):
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 4, 8), torch.randn(2, 7, 2, 8), torch.randn(2, 7, 2, 6)
    given = {
        "bias": None, "alibi": None, "sinks": None, "cu_q": None, "cu_k": None, "rng": None,
        "dropout": 0.0, **changed,
    }  # fmt: skip
    tensors = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    return (
        *tensors, given["bias"], given["alibi"], given["sinks"], given["cu_q"], given["cu_k"],
        given["rng"], 0.3, 3, 2, True, 0.0, given["dropout"],
    )  # fmt: skip


@pytest.mark.parametrize("namespace", ["lepton", "lepton_reference"])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"bias": torch.randn(1, 4, 5, 1, requires_grad=True)},
        {"bias": torch.rand(2, 1, 1, 7) > 0.3},
        {"sinks": torch.randn(4, requires_grad=True), "alibi": torch.rand(2, 4)},
        {"rng": torch.tensor([1, 2]), "dropout": 0.3},
    ],
    ids=["plain", "bias", "mask", "sinks", "dropout"],
)
def test_opcheck(namespace, changed):
    op = getattr(torch.ops, namespace).attention_forward.default
    torch.library.opcheck(op, sample(**changed))


def test_opcheck_varlen_and_cached():
    x = torch.randn(1, 10, 2, 8, requires_grad=True)
    cu = ints(0, 3, 10)
    torch.library.opcheck(
        torch.ops.lepton.attention_forward.default,
        (x, x, x, None, None, None, cu, cu, None, 0.3, -1, 0, True, 0.0, 0.0),
    )
    q, cache = torch.randn(3, 1, 4, 8), torch.randn(3, 10, 2, 8)
    torch.library.opcheck(
        torch.ops.lepton.attention_cached.default,
        (q, cache, cache, None, ints(3, 0, 10), *[None] * 7, 0.3, -1, 0, 0.0),
    )


def test_meta_tensors_give_shapes():
    q = torch.empty(2, 4, 5, 8, device="meta")
    kv = torch.empty(2, 2, 6, 8, device="meta")
    out, lse = lk.scaled_dot_product_attention(q, kv, kv, enable_gqa=True, return_lse=True)
    assert out.shape == (2, 4, 5, 8)
    assert lse.shape == (2, 4, 5)


PEAK = """
import resource, sys, torch, lepton_kernels as lk
torch.set_num_threads(2)
dtype = getattr(torch, sys.argv[1])
q, k, v = (torch.randn(1, 1, 16384, 16, dtype=dtype, requires_grad=True) for _ in range(3))
def attend(**options):
    out = lk.scaled_dot_product_attention(q, k, v, **options)
    torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
lk.scaled_dot_product_attention(*(t[:, :, :64] for t in (q, k, v))).sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
attend(window_size=(256, 256))
attend(attn_mask=(torch.arange(16384) < 12000).view(1, 1, 1, -1))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_is_linear_at_length_16k(tmp_path, dtype):
    """The square matrix would be 1 GiB; inputs and gradients are 1 MiB each."""
    import subprocess
    import sys

    run = subprocess.run(
        [sys.executable, "-c", PEAK, dtype],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert int(run.stdout) < 64, run.stdout
