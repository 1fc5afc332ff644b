"""The bucket ops: every backend and ISA against the reference and float64."""

import pytest
import torch

import lepton_kernels as lk

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [0, 1, 63, 123, 1000, 70_001]
PLACES = ["reference", *(lk.info()["isa_present"] or [])]


@pytest.fixture(params=PLACES)
def place(request):
    """The reference, then every ISA that this CPU has."""
    force = lk.force_backend if request.param == "reference" else lk.force_isa
    with force(request.param):
        yield request.param


def shapes(dtype):
    generator = torch.Generator().manual_seed(5)
    sizes = [(1,), (0,), (63,), (3, 41), (), (1000,), (7, 3, 5), (40_000,)]
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("to", FLOATS)
@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_flatten_and_back(place, dtype, to, factor):
    tensors = shapes(dtype)
    flat = lk.bucket_flatten(tensors, dtype=to, factor=factor)
    with lk.force_backend("reference"):
        want = lk.bucket_flatten(tensors, dtype=to, factor=factor)
    assert torch.equal(flat, want)
    back = [torch.full_like(t, torch.nan) for t in tensors]
    lk.bucket_unflatten_(back, flat, factor=2.0)
    for tensor, other in zip(tensors, back, strict=True):
        middle = (tensor.float() * factor).to(to)
        assert torch.equal(other, (middle.float() * 2.0).to(dtype))


def test_flatten_mixed_dtypes_strides_and_views(place):
    base = torch.randn(20, 30)
    tensors = [base.t(), base[:, 3:7].to(torch.bfloat16), base[2], base[::2, ::3]]
    flat = lk.bucket_flatten(tensors, dtype=torch.float32)
    at = 0
    for tensor in tensors:
        assert torch.equal(flat[at : at + tensor.numel()], tensor.reshape(-1).float())
        at += -(-tensor.numel() // 16) * 16
    assert flat.numel() == at
    bucket = torch.full((100,), 5.0)
    lk.bucket_unflatten_([bucket[10:13]], lk.bucket_flatten([torch.ones(3)]))
    assert bucket[10:13].tolist() == [1, 1, 1]
    assert (bucket[:10] == 5).all()
    assert (bucket[13:] == 5).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("numel", SIZES)
def test_reduce(place, dtype, numel):
    inputs = [torch.randn(numel).to(dtype) for _ in range(3)]
    for average in (False, True):
        for to in FLOATS:
            got, squares = lk.bucket_reduce(inputs, average=average, dtype=to)
            total = inputs[0].float() + inputs[1].float() + inputs[2].float()
            total = total / 3 if average else total
            assert torch.equal(got, total.to(to))
            torch.testing.assert_close(
                squares, (total.double() ** 2).sum(), rtol=1e-5, atol=0, check_dtype=True
            )


def test_reduce_order_is_fixed(place):
    inputs = [torch.tensor([1e8]), torch.tensor([1.0]), torch.tensor([-1e8])]
    expected = (inputs[0] + inputs[1]) + inputs[2]
    assert torch.equal(lk.bucket_reduce(inputs)[0], expected)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("poison", [None, torch.inf, -torch.inf, torch.nan])
def test_unscale(place, dtype, poison):
    for numel in (1, 63, 1000, 70_001):
        tensors = [torch.randn(5).to(dtype), torch.randn(numel).to(dtype)]
        if poison is not None:
            tensors[1][numel // 2] = poison
        want = [(t.float() * 0.125).to(dtype) for t in tensors]
        found = torch.zeros(1)
        lk.bucket_unscale_(tensors, found, torch.tensor([0.125]))
        assert found.item() == (0.0 if poison is None else 1.0)
        for tensor, expected in zip(tensors, want, strict=True):
            assert torch.equal(tensor.nan_to_num(3.0), expected.nan_to_num(3.0))
    found = torch.ones(1)
    lk.bucket_unscale_([], found, torch.tensor([0.5]))
    assert found.item() == 1.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_squares(place, dtype):
    tensors = shapes(dtype)
    got = lk.bucket_squares(tensors)
    want = torch.stack([(t.double() ** 2).sum() for t in tensors])
    torch.testing.assert_close(got, want, rtol=1e-5, atol=0)
    assert lk.bucket_squares([]).shape == (0,)


@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("numel", SIZES)
def test_quantize(place, dtype, numel, fp8):
    to = torch.float8_e4m3fn if fp8 else torch.int8
    generator = torch.Generator().manual_seed(numel)
    x = (
        torch.randn(numel, generator=generator)
        * 10 ** (4 * torch.randn(1, generator=generator).item())
    ).to(dtype)
    x[x.isinf()] = 0
    x[: numel // 3] *= 1e-3
    start = torch.randn(numel, generator=generator) * x.float().abs()
    residual = start.clone()
    q, scale = lk.bucket_quantize(x, residual=residual, block=100, dtype=to)
    with lk.force_backend("reference"):
        expected = start.clone()
        want, want_scale = lk.bucket_quantize(x, residual=expected, block=100, dtype=to)
    assert q.dtype == to
    assert torch.equal(q.view(torch.int8), want.view(torch.int8))
    assert torch.equal(scale, want_scale)
    assert torch.equal(residual, expected)
    out = torch.full((numel,), torch.nan)
    lk.bucket_dequantize_(out, q, scale, block=100)
    # Nothing is lost: what was sent and what is left add up to what came in.
    torch.testing.assert_close(out + residual, x.float() + start, rtol=1e-6, atol=1e-30)
    step = scale.repeat_interleave(100)[:numel]
    bound = step * (16.0 if fp8 else 0.5) * 1.001
    assert (residual.abs() <= bound).all()


@pytest.mark.parametrize("fp8", [False, True])
def test_dequantize_accumulates(place, fp8):
    for dtype in FLOATS:
        x = torch.randn(1000)
        to = torch.float8_e4m3fn if fp8 else torch.int8
        q, scale = lk.bucket_quantize(x, block=64, dtype=to)
        start = torch.randn(1000).to(dtype)
        out = start.clone()
        assert lk.bucket_dequantize_(out, q, scale, block=64, factor=0.5, accumulate=True) is out
        levels = q.float() if fp8 else q.to(torch.float32)
        values = levels * scale.repeat_interleave(64)[:1000] * 0.5
        assert torch.equal(out, (start.float() + values).to(dtype))


def test_every_fp8_value(place):
    codes = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn)
    values = codes.float()
    keep = values.isfinite()
    x = torch.where(keep, values, 0.0)
    q, scale = lk.bucket_quantize(x, block=256, dtype=torch.float8_e4m3fn)
    assert scale.item() == 1.0
    assert torch.equal(q.float(), x)
    between = torch.linspace(-448, 448, 100_001)
    q, scale = lk.bucket_quantize(between, block=100_001, dtype=torch.float8_e4m3fn)
    assert torch.equal(q.view(torch.int8), between.to(torch.float8_e4m3fn).view(torch.int8))


@pytest.mark.parametrize("poison", [torch.inf, torch.nan])
def test_a_poisoned_block_stays_poisoned_and_alone(place, poison):
    x = torch.ones(300)
    x[150] = poison
    residual = torch.full((300,), 0.25)
    q, scale = lk.bucket_quantize(x, residual=residual, block=100)
    assert scale.isnan().tolist() == [False, True, False]
    assert not q[100:200].any()
    assert not residual[100:200].any()
    assert residual.isfinite().all()
    zeros, scale = lk.bucket_quantize(torch.full((5,), 1e-38))
    assert scale.tolist() == [1.0]
    assert not zeros.any()


def test_threads_do_not_change_a_bit(place):
    x = torch.randn(500_000)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            reduced, squares = lk.bucket_reduce([x, x * 0.3])
            found.append((reduced, squares, lk.bucket_squares([x]), *lk.bucket_quantize(x)))
    finally:
        torch.set_num_threads(before)
    if place != "reference":
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("namespace", ["lepton", "lepton_reference"])
def test_opcheck(namespace):
    ops = getattr(torch.ops, namespace)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    for dtype in FLOATS:
        tensors = [torch.randn(3, 5).to(dtype), torch.randn(63).to(dtype)]
        flat = torch.randn(96).to(dtype)

        def check(op, *arguments):
            torch.library.opcheck(op.default, arguments, test_utils=utils)

        check(ops.bucket_flatten, tensors, torch.float32, 0.5)
        check(ops.bucket_unflatten_, tensors, lk.bucket_flatten(tensors), 1.0)
        check(ops.bucket_reduce, [flat, flat * 2], True, torch.bfloat16)
        check(ops.bucket_unscale_, tensors, torch.zeros(1), torch.ones(1))
        check(ops.bucket_squares, tensors)
        check(ops.bucket_quantize, flat, torch.zeros(96), 32, False)
        check(ops.bucket_quantize, flat, None, 32, True)
        q, scale = lk.bucket_quantize(flat, block=32)
        check(ops.bucket_dequantize_, flat.clone(), q, scale, 32, False, 1.0, True)


def raises(kind, message, call):
    with pytest.raises(kind, match=message):
        call()


def test_error_messages(place):
    x, ints = torch.ones(10), torch.ones(10, dtype=torch.int64)
    q, scale = lk.bucket_quantize(x, block=4)
    raises(
        TypeError, r"tensors\[1\] must be float32.*got int64", lambda: lk.bucket_flatten([x, ints])
    )
    raises(TypeError, r"tensors\[0\] must be a Tensor, got int", lambda: lk.bucket_flatten([3]))
    raises(ValueError, "dtype must be given", lambda: lk.bucket_flatten([]))
    raises(TypeError, "dtype must be", lambda: lk.bucket_flatten([x], dtype=torch.int8))
    raises(ValueError, r"flat must have shape \(16,\)", lambda: lk.bucket_unflatten_([x], x))
    strided = torch.ones(4, 4).t()
    raises(
        ValueError,
        r"tensors\[0\] must be contiguous",
        lambda: lk.bucket_unflatten_([strided], torch.ones(16)),
    )
    raises(ValueError, "at least one tensor, got none", lambda: lk.bucket_reduce([]))
    raises(ValueError, r"inputs\[1\] must have shape \(10,\)", lambda: lk.bucket_reduce([x, x[:3]]))
    raises(TypeError, r"inputs\[1\] must be float32", lambda: lk.bucket_reduce([x, x.half()]))
    raises(ValueError, "one element, got 10", lambda: lk.bucket_unscale_([x], x, x[:1]))
    raises(TypeError, "found_inf must be float32", lambda: lk.bucket_unscale_([x], ints[:1], x[:1]))
    raises(ValueError, "block must be at least 1, got 0", lambda: lk.bucket_quantize(x, block=0))
    raises(
        TypeError, "dtype must be int8 or float8", lambda: lk.bucket_quantize(x, dtype=torch.uint8)
    )
    raises(ValueError, r"x must have shape \(elements,\)", lambda: lk.bucket_quantize(x.view(2, 5)))
    raises(TypeError, "residual must be float32", lambda: lk.bucket_quantize(x, residual=x.half()))
    raises(ValueError, "residual must have shape", lambda: lk.bucket_quantize(x, residual=x[:5]))
    raises(ValueError, r"x must be contiguous", lambda: lk.bucket_quantize(torch.ones(20)[::2]))
    raises(ValueError, r"q must have shape \(5,\)", lambda: lk.bucket_dequantize_(x[:5], q, scale))
    raises(ValueError, r"scale must have shape \(1,\)", lambda: lk.bucket_dequantize_(x, q, scale))
