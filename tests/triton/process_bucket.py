"""Bucket family on Triton's interpreter against the reference; test_bucket.py runs this process."""

import pytest
import torch

import lepton_kernels as lk

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def both(function):
    """Results on Triton and on the reference."""
    with lk.force_backend("triton"):
        ours = function()
    with lk.force_backend("reference"):
        return ours, function()


def same(ours, reference):
    assert ours.dtype == reference.dtype
    # The interpreter cuts bfloat16 off instead of rounding to the nearest.
    rtol = 2.0**-7 if ours.dtype == torch.bfloat16 else 0
    torch.testing.assert_close(ours, reference, rtol=rtol, atol=0, equal_nan=True)


def tensors():
    shapes = [(3, 5), (0,), (1,), (4097,), (63, 2), (8200,)]
    return [(100 * torch.randn(s)).to(DTYPES[i % 3]) for i, s in enumerate(shapes)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_flatten_and_unflatten(dtype):
    parts = [*tensors(), torch.randn(6, 4).t()]
    ours, reference = both(lambda: lk.bucket_flatten(parts, dtype=dtype, factor=0.3))
    same(ours, reference)
    targets = [*parts[:-1], parts[-1].contiguous()]

    def unflatten():
        written = [torch.empty_like(t) for t in targets]
        lk.bucket_unflatten_(written, ours, factor=1.7)
        return written

    for one, other in zip(*both(unflatten), strict=True):
        same(one, other)


@pytest.mark.parametrize("average", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_reduce(dtype, average):
    inputs = [torch.randn(3, 1500).to(dtype) for _ in range(3)]
    ours, reference = both(lambda: lk.bucket_reduce(inputs, average=average))
    same(ours[0], reference[0])
    torch.testing.assert_close(ours[1], reference[1], rtol=1e-14, atol=0)
    mixed = both(lambda: lk.bucket_reduce(inputs[:1], dtype=torch.float32)[0])
    same(*mixed)


@pytest.mark.parametrize("broken", [None, torch.nan, torch.inf])
def test_unscale(broken):
    parts = tensors()
    if broken is not None:
        parts[3][4000] = broken

    def run():
        copies = [t.clone() for t in parts]
        found = torch.zeros(1)
        lk.bucket_unscale_(copies, found, torch.tensor(0.37))
        return [*copies, found]

    for one, other in zip(*both(run), strict=True):
        same(one, other)


def test_squares():
    parts = [*tensors(), torch.randn(6, 4).t()]
    ours, reference = both(lambda: lk.bucket_squares(parts))
    torch.testing.assert_close(ours, reference, rtol=1e-14, atol=0)


@pytest.mark.parametrize("coded", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("block", [1, 100, 256, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_quantize_with_error_feedback(dtype, block, coded):
    elements = 23 if block == 1 else 2 * block + 77
    x = (torch.randn(elements) * 10 ** (6 * torch.rand(elements) - 3)).to(dtype)
    start = torch.randn(elements) / 100
    if block == 100:
        x[5], x[105], x[200:] = torch.nan, torch.inf, 0
        start[200:] = 0

    def run(feedback):
        residual = start.clone() if feedback else None
        q, scale = lk.bucket_quantize(x, residual=residual, block=block, dtype=coded)
        out = torch.full((elements,), 0.5, dtype=dtype)
        lk.bucket_dequantize_(out, q, scale, block=block, factor=0.7, accumulate=feedback)
        return [q.view(torch.int8), scale, out, *([residual] if feedback else [])]

    for feedback in (True, False):
        for one, other in zip(*both(lambda f=feedback: run(f)), strict=True):
            same(one, other)


def test_every_float8_code():
    codes = torch.arange(-128, 128).to(torch.int8)
    values = codes.view(torch.float8_e4m3fn).float()
    edges = torch.cat([values[:-1], (values[1:] + values[:-1]) / 2]).nan_to_num(448.0)
    x = torch.cat([torch.full((edges.numel(), 1), 448.0), edges[:, None]], 1).flatten()
    for one, other in zip(
        *both(lambda: lk.bucket_quantize(x, block=2, dtype=torch.float8_e4m3fn)), strict=True
    ):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))

    def decode():
        out = torch.empty(256)
        return lk.bucket_dequantize_(out, codes.view(torch.float8_e4m3fn), torch.ones(1))

    same(*both(decode))


def test_nothing_to_do():
    with lk.force_backend("triton"):
        assert lk.bucket_flatten([], dtype=torch.float32).shape == (0,)
        assert lk.bucket_squares([torch.empty(0)]).tolist() == [0.0]
        assert lk.bucket_quantize(torch.empty(0))[1].shape == (0,)
        lk.bucket_unflatten_([], torch.empty(0))
