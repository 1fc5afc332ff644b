"""Decoding: a few query rows against a long cache, in every dtype, layout and instruction set."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as torch_attention

import lepton_kernels as lk

# query dtype, cache dtype
CACHES = [
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.int8),
    (torch.bfloat16, torch.int8),
    (torch.float16, torch.int8),
]
# queries, heads, key heads, longest, head dim, value dim: tiles serve multiples of 32 or 64
SHAPES = [
    (1, 4, 1, 131, 64, 64),
    (1, 10, 5, 64, 128, 64),
    (2, 8, 2, 95, 96, 32),
    (1, 2, 2, 7, 9, 5),
]


class Cache:
    """Keys and values, their scales if they are int8, and both as float64; NaN behind the ends."""

    def __init__(self, dtype, cache_dtype, shape, ends):
        rows, heads, kv_heads, longest, dim, value_dim = shape
        g = torch.Generator().manual_seed(0)
        batch = len(ends)
        self.ends = torch.tensor(ends, dtype=torch.int32)
        self.q = torch.randn(batch, rows, heads, dim, generator=g).to(dtype)
        self.scales = {}
        self.values, self.exact = [], []
        for name, size in (("k_scale", dim), ("v_scale", value_dim)):
            x = torch.randn(batch, longest, kv_heads, size, generator=g)
            unused = torch.arange(longest) >= self.ends[:, None]
            if cache_dtype == torch.int8:
                x, scale = lk.quantize_int8(x)
                scale = scale.reshape(x.shape[:3])
                scale[unused] = torch.nan
                self.scales[name] = scale
                exact = x.double() * scale.double().nan_to_num().unsqueeze(-1)
            else:
                x = x.to(cache_dtype)
                x[unused] = torch.nan
                exact = x.double().nan_to_num()
            self.values.append(x)
            self.exact.append(exact)

    def attend(self, **options):
        return lk.flash_attn_with_kvcache(
            self.q, *self.values, cache_seqlens=self.ends, **self.scales, **options
        )

    def expected(self, **options):
        """In float64, and the same of the values' magnitudes."""
        k, v = self.exact
        q = self.q.double()
        options = {n: x.double() if torch.is_tensor(x) else x for n, x in options.items()}
        return [
            lk.flash_attn_with_kvcache(q, k, x, cache_seqlens=self.ends, **options)
            for x in (v, v.abs())
        ]

    def bound(self, out, magnitude):
        """Of the error: each step's rounding, times what it is applied to.

        A weight and the result are rounded to the query's dtype. With an int8 cache the kernel may
        see queries and weights in 16 bits of the largest one, 1 / 65024 off at most: of a score,
        that times the sum of a key's magnitudes, and a weight changes by twice a score's error.
        """
        unit = torch.finfo(self.q.dtype).eps / 2
        bound = unit * (magnitude + out.abs()) * 1.01 + 3e-6
        if "k_scale" in self.scales:
            k, v = self.exact
            step = 1 / 65024
            score = step * self.q.double().abs().max() * k.abs().sum(-1).max() / k.shape[-1] ** 0.5
            bound = bound + 2 * score * magnitude + step * k.shape[1] * v.abs().max()
        return bound


FEATURES = {
    "plain": {},
    "window": {"causal": True, "window_size": (20, 0)},
    "all": {"softcap": 3.0, "causal": True, "alibi_slopes": 0.1 * torch.arange(1.0, 11.0)},
}


@pytest.mark.parametrize(
    ("shape", "feature"),
    [*((shape, "all") for shape in SHAPES), (SHAPES[0], "plain"), (SHAPES[2], "window")],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "cache_dtype"), CACHES, ids=str)
def test_within_its_roundings(isa, dtype, cache_dtype, shape, feature):
    cache = Cache(dtype, cache_dtype, shape, [shape[3], 1, shape[3] - 3])
    options = dict(FEATURES[feature])
    if "alibi_slopes" in options:
        options["alibi_slopes"] = options["alibi_slopes"][: shape[1]]
    got = cache.attend(**options).double()
    expected, magnitude = cache.expected(**options)
    error = (got - expected).abs() - cache.bound(expected, magnitude)
    assert error.max() <= 0


@pytest.mark.parametrize(("dtype", "cache_dtype"), CACHES, ids=str)
def test_as_near_to_float64_as_torch(isa, dtype, cache_dtype):
    cache = Cache(dtype, cache_dtype, (1, 8, 2, 1500, 128, 128), [1500, 1500])
    expected = cache.expected()[0]
    low = [x.to(dtype).transpose(1, 2) for x in cache.exact]
    torchs = torch_attention(cache.q.transpose(1, 2), *low, enable_gqa=True).transpose(1, 2)
    error = (cache.attend().double() - expected).abs().max()
    tiny = 2e-6 * expected.abs().max()
    assert error <= 2 * (torchs.double() - expected).abs().max() + tiny


@pytest.mark.parametrize("page", [3, 16])
@pytest.mark.parametrize(("dtype", "cache_dtype"), CACHES, ids=str)
def test_pages_change_no_bit(isa, dtype, cache_dtype, page):
    ends = [130, 77]
    cache = Cache(dtype, cache_dtype, (1, 8, 2, 130, 64, 64), ends)
    expected = cache.attend()
    count = -(-130 // page)
    table = torch.randperm(2 * count, generator=torch.Generator().manual_seed(1)).view(2, count)

    def pool(x):
        padding = (0, 0) * (x.dim() - 2) + (0, count * page - 130)
        pages = torch.nn.functional.pad(x, padding).reshape(2 * count, page, *x.shape[2:])
        return torch.empty_like(pages).index_copy_(0, table.flatten(), pages)

    cache.values = [pool(x) for x in cache.values]
    cache.scales = {name: pool(x) for name, x in cache.scales.items()}
    assert torch.equal(cache.attend(block_table=table.int()), expected)


@pytest.mark.parametrize(("dtype", "cache_dtype"), CACHES, ids=str)
def test_heads_first_in_memory(isa, dtype, cache_dtype):
    cache = Cache(dtype, cache_dtype, (1, 12, 3, 1100, 64, 64), [1100])
    cache.values = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in cache.values]
    expected, magnitude = cache.expected()
    assert ((cache.attend().double() - expected).abs() <= cache.bound(expected, magnitude)).all()
