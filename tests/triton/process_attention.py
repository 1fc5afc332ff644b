"""Triton attention against the reference in float64; test_attention.py runs this interpreted.

The interpreter runs one program after the other: values, masks and tails are tested here, races
and orders are not (docs/triton.md).
"""

import pytest
import torch

import lepton_kernels as lk
from lepton_kernels.triton import launch
from lepton_kernels.triton.attention_cached import attention_cached
from lepton_kernels.triton.attention_configs import CACHED, DEMANDING, FAST, FLOAT32, TF32

pytestmark = [
    pytest.mark.skipif(not launch.INTERPRETED, reason="wants TRITON_INTERPRET=1"),
    pytest.mark.usefixtures("nan_poison"),
]
# batch, heads, key heads, queries, keys, head dim, value dim
SMALL = (2, 2, 1, 37, 35, 16, 24)
MIDDLE = (1, 2, 1, 70, 90, 40, 33)
LONG = (1, 2, 1, 140, 190, 40, 33)
# Sums of some hundred terms: float32 loses a few bits, float16 rounds probabilities as well.
TOLERANCE = {torch.float32: 64 * 2.0**-23, torch.float16: 4 * 2.0**-10}


def features(shape):
    batch, heads, _, rows, columns, _, _ = shape
    hides_rows = torch.randn(1, heads, rows, columns) > 0
    hides_rows[..., 0, :] = False
    return {
        "plain": {},
        "causal": {"is_causal": True},
        "window": {"window_size": (5, 3)},
        "negative": {"scale": -0.3, "is_causal": True},
        "softcap": {"softcap": 2.0},
        "alibi": {"alibi_slopes": torch.rand(heads)},
        "sinks": {"sinks": torch.randn(heads), "is_causal": True},
        "bias": {"attn_mask": torch.randn(batch, heads, rows, columns)},
        "bias_rows": {"attn_mask": torch.randn(heads, rows, 1)},
        "bias_columns": {"attn_mask": torch.randn(batch, 1, 1, columns), "is_causal": True},
        "bias_one": {"attn_mask": torch.randn(1, 1)},
        "mask": {"attn_mask": hides_rows},
        "dropout": {"dropout_p": 0.3},
        "all": {
            "attn_mask": torch.randn(1, heads, 1, columns),
            "softcap": 3.0,
            "alibi_slopes": torch.rand(batch, heads),
            "window_size": (40, 20),
            "sinks": torch.randn(heads),
            "dropout_p": 0.2,
        },
    }


def tensors_of(shape, dtype):
    batch, heads, kv_heads, rows, columns, dim, value_dim = shape
    return [
        torch.randn(batch, heads, rows, dim).to(dtype),
        torch.randn(batch, kv_heads, columns, dim).to(dtype),
        torch.randn(batch, kv_heads, columns, value_dim).to(dtype),
    ]


def near(got, exact, dtype, names):
    for name, a, b in zip(names, got, exact, strict=True):
        assert a.shape == b.shape, name
        seen = torch.isfinite(b)
        assert torch.equal(torch.isfinite(a), seen), name
        if seen.any():
            size = b[seen].abs().max().item()
            error = (a.double() - b.double())[seen].abs().max().item()
            bound = TOLERANCE[dtype] * max(size, 1.0)
            assert error <= bound, f"{name}: off by {error:.1e}, allowed {bound:.1e}"


def results(backend, tensors, options, grads, state):
    """Output, lse and every gradient; the same dropout for every backend."""
    inputs = [t.detach().clone().requires_grad_() for t in tensors]
    options = dict(options)
    for name in ("attn_mask", "sinks"):
        if name in options and options[name].is_floating_point():
            options[name] = options[name].to(inputs[0].dtype).requires_grad_()
            inputs.append(options[name])
    torch.manual_seed(state)
    with lk.force_backend(backend):
        out, lse = lk.scaled_dot_product_attention(
            *inputs[:3], enable_gqa=True, return_lse=True, **options
        )
        grads = [grads[0].to(out.dtype), grads[1].to(lse.dtype)]
        return [out, lse, *torch.autograd.grad((out, lse), inputs, grads)]


CASES = [(SMALL, torch.float32, name) for name in features(SMALL)]
CASES += [(MIDDLE, torch.float16, name) for name in ("plain", "window", "mask", "all")]
# Long enough for blocks that a causal mask leaves whole.
CASES += [(LONG, torch.float16, "causal"), (MIDDLE, torch.float32, "causal")]


@pytest.mark.parametrize(("shape", "dtype", "feature"), CASES, ids=str)
def test_forward_and_backward(shape, dtype, feature):
    options = features(shape)[feature]
    for name in ("attn_mask", "sinks"):
        if name in options and options[name].is_floating_point():
            options[name] = options[name].to(dtype)
    tensors = tensors_of(shape, dtype)
    grads = (
        torch.randn(*tensors[0].shape[:3], shape[6]).to(dtype),
        torch.randn(tensors[0].shape[:3]),
    )
    got = results("triton", tensors, options, grads, 3)
    exact = results("reference", [t.double() for t in tensors], options, grads, 3)
    names = ["out", "lse", "grad of q", "grad of k", "grad of v", "more", "more"][: len(got)]
    near(got, exact, dtype, names)
    assert got[0].dtype == dtype
    if feature == "mask":
        assert (got[0][:, :, 0] == 0).all()
        assert (got[1][:, :, 0] == -torch.inf).all()
        assert (got[2][:, :, 0] == 0).all()


@pytest.mark.parametrize("causal", [False, True], ids=["window", "causal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_varlen(dtype, causal):
    q, k, v = torch.randn(59, 2, 16), torch.randn(55, 1, 16), torch.randn(55, 1, 8)
    cu_q = torch.tensor([0, 35, 35, 38, 56], dtype=torch.int32)
    cu_k = torch.tensor([0, 33, 40, 40, 50], dtype=torch.int32)
    options = {"causal": True, "dropout_p": 0.2} if causal else {"window_size": (7, 30)}
    options["alibi_slopes"] = torch.rand(4, 2)
    grad = torch.randn(59, 2, 8).to(dtype)
    found = []
    for backend, wide in (("triton", dtype), ("reference", torch.float64)):
        inputs = [t.to(dtype).to(wide).requires_grad_() for t in (q, k, v)]
        torch.manual_seed(1)
        with lk.force_backend(backend):
            out, lse, _ = lk.flash_attn_varlen_func(
                *inputs, cu_q, cu_k, 35, 33, return_attn_probs=True, **options
            )
            gradients = torch.autograd.grad(out, inputs, grad.to(wide))
        found.append([out, lse, *gradients])
    near(*found, dtype, ["out", "lse", "grad of q", "grad of k", "grad of v"])


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (1, 1)], ids=str)
def test_empty_and_single(sizes):
    rows, columns = sizes
    tensors = tensors_of((1, 2, 1, rows, columns, 8, 8), torch.float32)
    grads = (torch.randn(1, 2, rows, 8), torch.randn(1, 2, rows))
    got = results("triton", tensors, {}, grads, 0)
    exact = results("reference", [t.double() for t in tensors], {}, grads, 0)
    near(got, exact, torch.float32, ["out", "lse", "q", "k", "v"])


@pytest.mark.parametrize("dim", [3, 80, 256])
def test_head_dimensions_and_strides(dim):
    """Keys at every third row of a longer tensor, queries whose last dimension is not dense."""
    dtype = torch.float16
    q = torch.randn(1, 2, dim, 20).to(dtype).transpose(-1, -2)
    k, v = (torch.randn(1, 2, 54, dim).to(dtype)[:, :, ::3] for _ in range(2))
    grads = (torch.ones(1).to(dtype).expand(1, 2, 20, dim), torch.randn(1, 2, 20))
    got = results("triton", [q, k, v], {"softcap": 5.0}, grads, 0)
    exact = results("reference", [t.double() for t in (q, k, v)], {"softcap": 5.0}, grads, 0)
    near(got, exact, dtype, ["out", "lse", "q", "k", "v"])


def cached_case(kind, dtype):
    """Arguments of attention_cached: a contiguous, a paged and an int8 cache."""

    def ints(*values):
        return torch.tensor(values, dtype=torch.int32)

    q = torch.randn(3, 2, 4, 16).to(dtype)
    k, v = torch.randn(3, 72, 2, 16).to(dtype), torch.randn(3, 72, 2, 24).to(dtype)
    start = index = table = k_scale = v_scale = cu_q = None
    filled, slopes, sinks = ints(0, 33, 72), torch.rand(3, 4), torch.randn(4)
    options = [0.25, -1, 0, 0.0]
    if kind == "contiguous":
        start, index, options = ints(0, 2, 5), ints(2, 0, 1), [0.25, 20, 0, 2.0]
    else:
        table = torch.randperm(27, dtype=torch.int32).view(3, 9)
        k, v = k.reshape(27, 8, 2, 16), v.reshape(27, 8, 2, 24)
    if kind == "int8":
        k, v = (torch.randint(-127, 128, t.shape, dtype=torch.int8) for t in (k, v))
        k_scale, v_scale = torch.rand(27, 8, 2) / 60, torch.rand(27, 8, 2) / 60
        slopes = None
    if kind == "varlen":
        q, cu_q = torch.randn(1, 45, 4, 16).to(dtype), ints(0, 3, 3, 40)
    return [q, k, v, cu_q, filled, start, index, table, k_scale, v_scale, slopes, sinks, *options]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["contiguous", "paged", "int8", "varlen"])
def test_cached(kind, dtype):
    arguments = cached_case(kind, dtype)
    wide = [
        x.double() if isinstance(x, torch.Tensor) and x.dtype == dtype and x.dim() > 3 else x
        for x in arguments
    ]
    exact = torch.ops.lepton_reference.attention_cached(*wide)
    for splits in (None, 3):
        got = attention_cached(*arguments, splits=splits)
        near(got, exact, dtype, ["out", "lse"])


def test_cached_through_the_public_function():
    q, k, v = torch.randn(2, 1, 4, 16), torch.randn(2, 40, 2, 16), torch.randn(2, 40, 2, 16)
    new = torch.randn(2, 1, 2, 16)
    filled = torch.tensor([3, 30], dtype=torch.int32)
    found = []
    for backend in ("triton", "reference"):
        with lk.force_backend(backend):
            found.append(
                lk.flash_attn_with_kvcache(q, k.clone(), v.clone(), new, new, cache_seqlens=filled)
            )
    near([found[0]], [found[1]], torch.float32, ["out"])


def test_invalid_pages_are_not_read():
    """A GPU's block_table is not looked at before the launch; the kernel hides such keys."""
    from lepton_kernels.triton import attention_cached as module

    arguments = cached_case("paged", torch.float32)
    arguments[7] = arguments[7].clone()
    arguments[7][1, 0] = 1 << 30
    with pytest.raises(ValueError, match="block_table must point to pages"):
        attention_cached(*arguments)
    unchecked, module.check_cached = module.check_cached, lambda *a, **k: None
    try:
        out, lse = attention_cached(*arguments)
    finally:
        module.check_cached = unchecked
    assert torch.isfinite(out).all()
    assert torch.isfinite(lse).all()


def test_refusals():
    x = torch.zeros(1, 2, 1, 257)
    with lk.force_backend("triton"):
        with pytest.raises(NotImplementedError, match=r"head dimensions 0 to 256, got 257"):
            lk.flash_attn_func(x, x, x)
        with pytest.raises(ValueError, match="k must have the head dimension 257 of q, got 8"):
            lk.flash_attn_func(x, x[..., :8], x[..., :8])
        wide = x[..., :8].double()
        assert lk.flash_attn_func(wide, wide, wide).dtype == torch.float64


@pytest.mark.parametrize("op", ["attention_forward", "attention_cached"])
def test_opcheck(op):
    if op == "attention_cached":
        arguments = cached_case("paged", torch.float32)
    else:
        q, k, v = (t.transpose(1, 2) for t in tensors_of((1, 2, 1, 5, 7, 8, 8), torch.float32))
        arguments = [q.requires_grad_(), k, v, *[None] * 6, 0.3, -1, 0, True, 0.0, 0.0]
    # What traces is tested without the interpreter, in process_wiring.py.
    torch.library.opcheck(
        getattr(torch.ops.lepton_triton, op),
        tuple(arguments),
        test_utils=("test_schema", "test_autograd_registration"),
    )


def test_every_configuration_has_whole_warps():
    tables = [*FAST.values(), *DEMANDING.values(), *CACHED.values(), *FLOAT32.values()]
    tables += TF32.values()
    for tile in (tile for table in tables for tile in table.values()):
        assert tile.block_n % 16 == 0
        assert tile.block_m % 16 == 0
