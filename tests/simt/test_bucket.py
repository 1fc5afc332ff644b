"""The CUDA bucket kernels in the emulator, bit for bit against the reference."""

import math

import pytest
import torch

from lepton_kernels import reference

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
CODE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
CHUNK = 8192


def same_bits(actual, expected):
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    width = {1: torch.int8, 2: torch.int16, 4: torch.int32}[actual.element_size()]
    nan = torch.full_like(actual, 0 if not actual.is_floating_point() else math.nan)
    for tensor in (actual, expected):
        if tensor.is_floating_point():
            tensor = torch.where(tensor.isnan(), nan, tensor)
    assert torch.equal(actual.nan_to_num(7).view(width), expected.nan_to_num(7).view(width))
    assert torch.equal(actual.isnan(), expected.isnan())


def listed(simt, tensors, *, written=False):
    """What an entry point takes for a list of tensors."""
    return (
        simt.table(tensors, written=written),
        torch.tensor([t.numel() for t in tensors], dtype=torch.int64),
        torch.tensor([CODE[t.dtype] for t in tensors], dtype=torch.int64),
        len(tensors),
    )


def mixed(dtypes=FLOATS):
    """Tensors of all dtypes; some at addresses that are no multiple of 16 bytes."""
    counts = [1, 0, 63, 123, 1000, 0, CHUNK + 5, 2 * CHUNK, 8]
    tensors = [torch.randn(n).to(dtypes[i % len(dtypes)]) for i, n in enumerate(counts)]
    return [*tensors, torch.randn(301)[1:], torch.randn(77).bfloat16()[3:], torch.zeros(0)]


@pytest.mark.parametrize("flat_dtype", FLOATS)
def test_flatten_and_unflatten(simt, seed, flat_dtype):
    tensors = mixed()
    want = reference.bucket.bucket_flatten(tensors, flat_dtype, 0.3)
    flat = torch.full_like(want, math.nan)
    simt.call(
        "simt_bucket_copy", *listed(simt, tensors), simt.out(flat), CODE[flat_dtype], 0.3, True,
        seed=seed,
    )  # fmt: skip
    same_bits(flat, want)

    back = [torch.full_like(t, math.nan) for t in tensors]
    expected = [torch.empty_like(t) for t in tensors]
    reference.bucket.bucket_unflatten_(expected, flat, 2.5)
    simt.call(
        "simt_bucket_copy", *listed(simt, back, written=True), flat, CODE[flat_dtype], 2.5, False,
        seed=seed,
    )  # fmt: skip
    for one, other in zip(back, expected, strict=True):
        same_bits(one, other)


def test_more_tensors_than_the_parameters_hold(simt, seed):
    tensors = [torch.randn(n % 40) for n in range(300)]
    want = reference.bucket.bucket_flatten(tensors, torch.float32, 1.0)
    flat = torch.full_like(want, math.nan)
    report = simt.call(
        "simt_bucket_copy", *listed(simt, tensors), simt.out(flat), 0, 1.0, True, seed=seed
    )
    same_bits(flat, want)
    assert len(report.launches) == 1


def test_large_aligned_copies_move_no_byte_too_many(simt):
    tensors = [torch.randn(CHUNK), torch.randn(CHUNK).bfloat16()]
    flat = torch.full((2 * CHUNK,), math.nan)
    report = simt.call("simt_bucket_copy", *listed(simt, tensors), simt.out(flat), 0, 1.0, True)
    assert report.total("global_sectors") <= 1.01 * report.total("global_sectors_ideal")


@pytest.mark.parametrize("poison", [None, math.inf, math.nan])
def test_unscale(simt, seed, poison):
    tensors = mixed()
    if poison is not None:
        tensors[4][17] = poison
    inverse = torch.tensor([1 / 3])
    want, want_found = [t.clone() for t in tensors], torch.zeros(1)
    reference.bucket.bucket_unscale_(want, want_found, inverse)
    found = torch.zeros(1)
    simt.call(
        "simt_bucket_unscale", *listed(simt, tensors, written=True), simt.out(found), inverse,
        seed=seed,
    )  # fmt: skip
    for one, other in zip(tensors, want, strict=True):
        same_bits(one, other)
    assert torch.equal(found, want_found)


def test_squares(simt, seed):
    tensors = mixed()
    chunks = sum(-(-t.numel() // CHUNK) for t in tensors)
    partial = torch.full((chunks,), math.nan, dtype=torch.float64)
    out = torch.full((len(tensors),), math.nan, dtype=torch.float64)
    arguments = (*listed(simt, tensors), simt.out(partial), simt.out(out))
    simt.call("simt_bucket_squares", *arguments, seed=seed)
    # Products are exact in float64; sums of n differ by n units at most in any order.
    assert torch.allclose(out, reference.bucket.bucket_squares(tensors), rtol=2**-53 * CHUNK)
    first = out.clone()
    simt.call("simt_bucket_squares", *arguments, seed=seed + 1)
    assert torch.equal(out, first)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("out_dtype", FLOATS)
def test_reduce(simt, seed, dtype, out_dtype):
    for count, inputs in [(0, 2), (1, 3), (1000, 1), (CHUNK + 123, 4)]:
        tensors = [torch.randn(count).to(dtype) for _ in range(inputs)]
        want, want_squares = reference.bucket.bucket_reduce(tensors, True, out_dtype)
        out = torch.full((count,), math.nan, dtype=out_dtype)
        partial = torch.zeros(-(-count // CHUNK) or 1, dtype=torch.float64)
        squares = torch.full((1,), math.nan, dtype=torch.float64)
        simt.call(
            "simt_bucket_sum", *listed(simt, tensors), simt.out(out), CODE[out_dtype],
            float(inputs), simt.out(partial), simt.out(squares), True, seed=seed,
        )  # fmt: skip
        same_bits(out, want)
        assert torch.allclose(squares[0], want_squares, rtol=2**-53 * CHUNK)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("block", [1, 7, 64, 256, 1025, 5000])
def test_quantize_with_error_feedback(simt, seed, fp8, block):
    for dtype, count in [(torch.float32, 1300), (torch.bfloat16, 123), (torch.float16, 1)]:
        x = (torch.randn(count) * torch.rand(count).mul(9).exp()).to(dtype)
        if count > 1000:
            x[400] = math.inf
            x[700] = math.nan
            x[1100:1200] = 0.0
            x[1030:1090] *= 1e-36
        for residual in (None, torch.randn(count)):
            blocks = -(-count // block)
            kept = None if residual is None else residual.clone()
            want_q, want_scale = reference.bucket.bucket_quantize(x, kept, block, fp8)
            q = torch.full((count,), 99, dtype=torch.int8)
            scale = torch.full((blocks,), 5.0)
            simt.call(
                "simt_bucket_quantize", x, CODE[dtype],
                None if residual is None else simt.out(residual), simt.out(q), simt.out(scale),
                count, block, fp8, seed=seed,
            )  # fmt: skip
            assert torch.equal(q, want_q)
            same_bits(scale, want_scale)
            if residual is not None:
                same_bits(residual, kept)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("accumulate", [False, True])
def test_dequantize(simt, seed, fp8, accumulate):
    for dtype, count, block in [(torch.float32, 5000, 256), (torch.bfloat16, 123, 7)]:
        q = torch.randint(-128, 128, (count,), dtype=torch.int8)
        scale = torch.rand(-(-count // block))
        out = torch.randn(count).to(dtype)
        want = out.clone()
        reference.bucket.bucket_dequantize_(want, q, scale, block, fp8, 0.7, accumulate)
        simt.call(
            "simt_bucket_dequantize", q, scale, simt.out(out), CODE[dtype], 0.7, accumulate, count,
            block, fp8, seed=seed,
        )  # fmt: skip
        same_bits(out, want)
