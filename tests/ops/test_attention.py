"""scaled_dot_product_attention and flash_attn_func: values and gradients on every ISA."""

import itertools

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as torch_attention

import lepton_kernels as lk

LOW = (torch.float32, torch.bfloat16, torch.float16)
# batch, heads, key heads, queries, keys, head dim, value dim
SHAPES = [
    (1, 1, 1, 1, 1, 8, 8),
    (2, 4, 2, 37, 53, 16, 24),
    (1, 2, 1, 130, 200, 64, 64),
    (1, 3, 1, 3, 300, 40, 33),
    (1, 6, 3, 123, 63, 13, 7),
]


def make(shape, dtype, seed=0):
    batch, heads, kv_heads, rows, columns, dim, value_dim = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes):
        return torch.randn(*sizes, generator=generator).to(dtype)

    q = draw(batch, heads, rows, dim)
    k, v = draw(batch, kv_heads, columns, dim), draw(batch, kv_heads, columns, value_dim)
    return q.requires_grad_(), k.requires_grad_(), v.requires_grad_()


def features(shape):
    batch, heads, _, rows, columns, _, _ = shape
    generator = torch.Generator().manual_seed(7)

    def draw(*sizes):
        return torch.randn(*sizes, generator=generator)

    hides_rows = draw(1, heads, rows, columns) > 0
    hides_rows[..., 0, :] = False
    return {
        "plain": {},
        "causal": {"is_causal": True},
        "window": {"window_size": (5, 3)},
        "softcap": {"softcap": 2.0},
        "alibi": {"alibi_slopes": draw(heads).abs()},
        "sinks": {"sinks": draw(heads)},
        "bias": {"attn_mask": draw(batch, heads, rows, columns)},
        "bias_heads": {"attn_mask": draw(1, heads, rows, columns)},
        "bias_rows": {"attn_mask": draw(rows, 1)},
        "bias_columns": {"attn_mask": draw(batch, 1, 1, columns)},
        "bias_one": {"attn_mask": draw(1, 1)},
        "padding": {"attn_mask": draw(batch, 1, 1, columns) > -0.5},
        "mask": {"attn_mask": hides_rows},
        "all": {
            "attn_mask": draw(1, heads, 1, columns),
            "softcap": 3.0,
            "alibi_slopes": draw(batch, heads).abs(),
            "window_size": (40, 20),
            "sinks": draw(heads),
        },
    }


FEATURES = list(features(SHAPES[0]))
DIFFERENTIABLE = ("attn_mask", "sinks")


def run(call, tensors, options, grads):
    """Output, lse, and gradients of everything that has one."""
    options = dict(options)
    inputs = [t.detach().clone().requires_grad_() for t in tensors]
    for name in DIFFERENTIABLE:
        if name in options and options[name].is_floating_point():
            options[name] = options[name].detach().to(grads[0].dtype).requires_grad_()
            inputs.append(options[name])
    out, lse = call(*inputs[:3], **options)
    return [out, lse, *torch.autograd.grad((out, lse), inputs, grads)]


def lepton(q, k, v, **options):
    return lk.scaled_dot_product_attention(q, k, v, enable_gqa=True, return_lse=True, **options)


def straightforward(q, k, v, **options):
    """The same in the dtype of the inputs, by torch's own operations."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    rows, columns = scores.shape[-2:]
    if cap := options.get("softcap"):
        scores = cap * torch.tanh(scores / cap)
    distance = torch.arange(columns) - torch.arange(rows)[:, None]
    if (slopes := options.get("alibi_slopes")) is not None:
        scores = scores - slopes.to(q.dtype).reshape(-1, q.shape[1], 1, 1) * distance.abs()
    if (mask := options.get("attn_mask")) is not None:
        if mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -torch.inf)
        else:
            scores = scores + mask.to(q.dtype)
    left, right = options.get("window_size", (-1, -1))
    if options.get("is_causal"):
        right = 0
    if left >= 0:
        scores = scores.masked_fill(distance < -left, -torch.inf)
    if right >= 0:
        scores = scores.masked_fill(distance > right, -torch.inf)
    if (sinks := options.get("sinks")) is not None:
        sink = sinks.to(q.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        full = torch.cat([scores, sink], -1)
    else:
        full = scores
    lse = torch.logsumexp(full, -1)
    p = torch.softmax(full, -1)[..., :columns]
    return p @ v, lse


def assert_near(got, low, exact, names):
    q_times_k = exact[1].numel() * exact[3].shape[-2]
    for name, a, b, c in zip(names, got, low, exact, strict=True):
        seen = torch.isfinite(c)
        assert torch.equal(torch.isfinite(a), seen), name
        if not seen.any():
            continue
        budget = 2 * torch.nan_to_num((b.double() - c)[seen]).abs().max()
        size = c[seen].abs().max()
        tiny = (2e-6 if a.dtype == torch.float32 else torch.finfo(a.dtype).eps) * size + 1e-7
        if name == "attn_mask":
            # Where the mask is broadcast, its gradient is a long sum whose terms nearly cancel.
            tiny += 3e-7 * (max(q_times_k, a.numel()) / a.numel()) ** 0.5
        error = (a.double() - c)[seen].abs().max()
        assert error <= budget + tiny, f"{name}: {error:.2e} > {budget:.2e} + {tiny:.2e}"


CASES = [
    (shape, dtype, feature)
    for shape, dtype, feature in itertools.product(SHAPES, LOW, FEATURES)
    if dtype != torch.float16 or feature in ("plain", "bias", "all")
]


@pytest.mark.parametrize(("shape", "dtype", "feature"), CASES, ids=str)
def test_as_near_to_float64_as_torch(isa, shape, dtype, feature):
    q, k, v = make(shape, dtype)
    options = {
        name: x.to(dtype) if name in DIFFERENTIABLE and x.is_floating_point() else x
        for name, x in features(shape)[feature].items()
    }
    generator = torch.Generator().manual_seed(3)
    grad = torch.randn(*q.shape[:3], v.shape[3], generator=generator).to(dtype)
    grad_lse = torch.randn(q.shape[:3], generator=generator)
    names = ["out", "lse", "q", "k", "v", *[n for n in DIFFERENTIABLE if n in options]]
    if "mask" in feature or feature == "padding":
        names = names[:5]
    got = run(lepton, (q, k, v), options, (grad, grad_lse))
    # A row that sees nothing has lse -inf, whose gradient must not matter.
    double = run(
        lepton, [t.double() for t in (q, k, v)], options, (grad.double(), grad_lse.double())
    )
    low = run(straightforward, (q, k, v), options, (grad, grad_lse.to(dtype)))
    assert_near(got, low, double, names)
    assert got[0].dtype == dtype
    assert got[1].dtype == torch.float32


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_against_torch(isa, dtype, causal):
    q, k, v = make((2, 3, 3, 65, 65, 32, 32), dtype)
    grad = torch.randn(2, 3, 65, 32).to(dtype)
    exact = [t.detach().double().requires_grad_() for t in (q, k, v)]
    expected = torch_attention(*exact, is_causal=causal)
    low = torch_attention(q, k, v, is_causal=causal)
    got = lk.scaled_dot_product_attention(q, k, v, is_causal=causal)
    grads = [
        [out, *torch.autograd.grad(out, inputs, grad.to(out.dtype))]
        for out, inputs in ((got, (q, k, v)), (low, (q, k, v)), (expected, exact))
    ]
    assert_near(*grads, ["out", "q", "k", "v"])


def test_reference_matches_straightforward():
    shape = (2, 4, 2, 37, 53, 16, 24)
    tensors = [t.double() for t in make(shape, torch.float64)]
    for name, options in features(shape).items():
        a = lepton(*tensors, **options)
        b = straightforward(*tensors, **options)
        seen = torch.isfinite(b[1])
        assert torch.allclose(a[0][seen], b[0][seen], atol=1e-12), name
        assert torch.allclose(a[1][seen], b[1][seen], atol=1e-12), name
        assert (a[0][~seen] == 0).all(), name


@pytest.mark.parametrize("feature", FEATURES)
def test_gradcheck_of_the_reference(feature):
    shape = (1, 2, 1, 3, 4, 3, 2)
    q, k, v = (t.detach().requires_grad_() for t in make(shape, torch.float64))
    options = features(shape)[feature]
    extra = {
        n: options[n].double().requires_grad_()
        for n in DIFFERENTIABLE
        if n in options and options[n].is_floating_point()
    }
    rest = {n: x for n, x in options.items() if n not in extra}

    def call(q, k, v, *more):
        out, lse = lepton(q, k, v, **rest, **dict(zip(extra, more, strict=True)))
        return out, lse.masked_fill(lse == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(call, (q, k, v, *extra.values()))


def test_gradcheck_with_dropout():
    q, k, v = make((1, 2, 1, 3, 5, 3, 2), torch.float64)
    state = torch.tensor([5, 6])

    def call(q, k, v):
        x = (t.transpose(1, 2) for t in (q, k, v))
        return torch.ops.lepton_reference.attention_forward(
            *x, None, None, None, None, None, state, 0.5, -1, -1, False, 0.0, 0.4
        )

    assert torch.autograd.gradcheck(call, (q, k, v))


def test_fully_masked_rows_give_zeros(isa):
    q, k, v = make((1, 2, 1, 40, 40, 16, 16), torch.float32)
    mask = torch.ones(40, 40, dtype=torch.bool)
    mask[7] = False
    for attn_mask in (mask, torch.zeros(40, 40).masked_fill(~mask, -torch.inf)):
        out, lse = lepton(q, k, v, attn_mask=attn_mask)
        assert (out[:, :, 7] == 0).all()
        assert (lse[:, :, 7] == -torch.inf).all()
        grads = torch.autograd.grad(
            (out, lse), (q, k, v), (torch.ones_like(out), torch.ones_like(lse))
        )
        assert all(torch.isfinite(g).all() for g in grads)
        assert (grads[0][:, :, 7] == 0).all()


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (5, 0), (0, 0), (1, 1), (1000, 3)])
def test_empty_and_lopsided(isa, rows, columns):
    q, k, v = make((2, 2, 1, rows, columns, 8, 8), torch.float32)
    out, lse = lepton(q, k, v)
    assert out.shape == (2, 2, rows, 8)
    if columns == 0:
        assert (out == 0).all()
        assert (lse == -torch.inf).all()
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert all(torch.isfinite(g).all() for g in grads)
    assert torch.isfinite(out).all()


def test_no_batch_or_no_heads(isa):
    for batch, heads in ((0, 2), (2, 0)):
        q = torch.zeros(batch, heads, 3, 8)
        assert lk.scaled_dot_product_attention(q, q, q).shape == q.shape


def test_strided_inputs_are_not_written_and_match(isa):
    base = torch.randn(2, 50, 3, 4, 40)
    q, k, v = (base[:, :, i, :, 3:35].transpose(1, 2) for i in range(3))
    before = base.clone()
    dense = lepton(*(t.contiguous() for t in (q, k, v)), is_causal=True)
    strided = lepton(q, k, v, is_causal=True)
    assert all(torch.equal(a, b) for a, b in zip(dense, strided, strict=True))
    assert torch.equal(base, before)
    across = torch.randn(2, 32, 4, 50).permute(0, 2, 3, 1)  # last dimension not dense
    a = lepton(across, across, across)[0]
    b = lepton(*(across.contiguous(),) * 3)[0]
    assert torch.equal(a, b)


@pytest.mark.parametrize("dims", [2, 3, 5])
def test_other_numbers_of_dimensions(isa, dims):
    lead = (2, 3, 2)[: dims - 2]
    q, k, v = (torch.randn(*lead, 6, 8) for _ in range(3))
    mask = torch.rand(*lead[:1], *[1] * max(dims - 3, 0), 6, 6) > 0.3
    expected = torch_attention(q, k, v, attn_mask=mask if dims > 2 else None)
    got = lk.scaled_dot_product_attention(q, k, v, attn_mask=mask if dims > 2 else None)
    seen = torch.isfinite(expected)
    assert got.shape == expected.shape
    assert torch.allclose(got[seen], expected[seen], atol=1e-5)


def test_flash_attn_aligns_bottom_right(isa):
    q, k, v = make((2, 4, 2, 5, 12, 16, 16), torch.float32)
    rows = torch.arange(5)[:, None] + 7
    seen = torch.arange(12) <= rows
    flash = [t.transpose(1, 2) for t in (q, k, v)]
    out, lse, none = lk.flash_attn_func(*flash, causal=True, return_attn_probs=True)
    expected, expected_lse = lepton(q, k, v, attn_mask=seen)
    assert none is None
    assert torch.allclose(out.transpose(1, 2), expected, atol=1e-6)
    assert torch.allclose(lse, expected_lse, atol=1e-6)
    seen = (torch.arange(12) <= rows + 1) & (torch.arange(12) >= rows - 2)
    out = lk.flash_attn_func(*flash, window_size=(2, 1))
    assert torch.allclose(out.transpose(1, 2), lepton(q, k, v, attn_mask=seen)[0], atol=1e-6)
    # More queries than keys: the first rows see nothing.
    out = lk.flash_attn_func(
        flash[1], flash[0].mean(2, keepdim=True), flash[0][:, :, :1], causal=True
    )
    assert (out[:, :7] == 0).all()


def test_packed_forms(isa):
    qkv = torch.randn(2, 9, 3, 4, 16)
    expected = lk.flash_attn_func(*qkv.unbind(2), causal=True)
    assert torch.equal(lk.flash_attn_qkvpacked_func(qkv, causal=True), expected)
    assert torch.equal(
        lk.flash_attn_kvpacked_func(qkv[:, :, 0], qkv[:, :, 1:], 0.0, None, True), expected
    )


def test_same_bits_every_time(isa):
    for shape, dtype in itertools.product(
        [(1, 1, 1, 700, 700, 64, 64), (2, 3, 3, 90, 90, 32, 32)], LOW[:2]
    ):
        q, k, v = make(shape, dtype)
        grad = torch.randn(q.shape).to(dtype)
        first = None
        for _ in range(3):
            out, lse = lepton(q, k, v, is_causal=True)
            results = [out, lse, *torch.autograd.grad(out, (q, k, v), grad)]
            first = first or results
            assert all(torch.equal(a, b) for a, b in zip(first, results, strict=True))


def test_any_number_of_threads(isa):
    q, k, v = make((1, 2, 1, 300, 1500, 32, 32), torch.float32)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            out, _ = lepton(q, k, v)
            results.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.allclose(a, b, atol=1e-5 * float(a.detach().abs().max()))


def test_nan_stays_and_large_scores_do_not_overflow(isa):
    q, k, v = (t.detach().clone() for t in make((1, 1, 1, 40, 40, 16, 16), torch.float32))
    out = lk.scaled_dot_product_attention(q * 1e4, k * 1e4, v)
    assert torch.isfinite(out).all()
    q[0, 0, 3, 5] = torch.nan
    out = lk.scaled_dot_product_attention(q, k, v)
    assert torch.isnan(out[0, 0, 3]).all()
    assert torch.isfinite(out[0, 0, :3]).all()
    assert torch.isfinite(out[0, 0, 4:]).all()


@pytest.mark.skipif(not lk.info()["isa_present"], reason="no compiled operators")
def test_second_derivatives_are_right_or_refused(cpu_backend):
    def penalty(attention, tensors):
        q, k, v = (x.detach().requires_grad_() for x in tensors)
        grad = torch.autograd.grad(attention(q, k, v).square().sum(), q, create_graph=True)[0]
        # k has another path to the result: what is missing on this one must not go unseen.
        return torch.autograd.grad(grad.square().sum() + k.square().sum(), (q, k))

    tensors = torch.randn(3, 1, 2, 5, 8).unbind()
    with pytest.raises(NotImplementedError, match="no second derivative; supported: float64, or"):
        penalty(lk.scaled_dot_product_attention, tensors)
    doubles = [x.double() for x in tensors]
    expected = penalty(
        lambda q, k, v: (q @ k.mT / 8**0.5).softmax(-1) @ v,
        doubles,
    )
    found = penalty(lk.scaled_dot_product_attention, doubles)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_as_torch_does(dtype):
    """Rotary embeddings in float32 beside bfloat16 values, as Llama has under autocast."""
    q, k = torch.randn(2, 1, 2, 6, 8).requires_grad_()
    v = torch.randn(1, 2, 6, 8, dtype=dtype).requires_grad_()
    bias = torch.randn(6, 6).requires_grad_()
    with torch.autocast("cpu", dtype):
        found = lk.scaled_dot_product_attention(q, k, v, bias)
        compiled = torch.compile(
            lk.scaled_dot_product_attention, fullgraph=True, backend="aot_eager"
        )(q, k, v, bias)
    expected = lk.scaled_dot_product_attention(q.to(dtype), k.to(dtype), v, bias)
    assert found.dtype == dtype
    assert torch.equal(found, expected)
    assert torch.equal(compiled, expected)
    grads = torch.autograd.grad(found.sum(), (q, v, bias))
    assert [g.dtype for g in grads] == [torch.float32, dtype, torch.float32]
    doubles = torch.randn(3, 1, 2, 6, 8).double().unbind()
    with torch.autocast("cpu", dtype):
        assert lk.scaled_dot_product_attention(*doubles).dtype == torch.float64


def test_serves_from_the_cpu_library():
    for op in ("attention_forward", "attention_backward", "attention_cached"):
        assert lk.info()["ops"][op] == "cpu"
