"""quantize_int8: the numpy oracle, the reference and every ISA agree bit for bit."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lepton_kernels as lk

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SIZES = [0, 1, 3, 7, 16, 63, 123, 1000]
BOTH = pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
EVERY_FLOAT = pytest.mark.parametrize("dtype", FLOATS, ids=str)


def check(oracle, compare, x, symmetric):
    q, scale, *zero = lk.quantize_int8(x, symmetric=symmetric)
    matrix = x.reshape(-1, x.shape[-1]) if x.numel() else x.reshape(x.shape[:-1].numel(), -1)
    q_expected, scale_expected, zero_expected = oracle.quantize_rows(
        oracle.to_f32(matrix), symmetric
    )
    leading = x.shape[:-1]
    compare.same_bits(q, torch.from_numpy(q_expected).to(torch.int8).reshape(x.shape))
    compare.same_bits(scale, torch.from_numpy(scale_expected).reshape(leading))
    assert len(zero) == (0 if symmetric else 1)
    if zero:
        compare.same_bits(zero[0], torch.from_numpy(zero_expected).to(torch.int32).reshape(leading))


@BOTH
@EVERY_FLOAT
@pytest.mark.parametrize("columns", SIZES)
def test_rows(implementation, oracle, compare, columns, dtype, symmetric):
    x = (torch.randn(5, columns) * torch.logspace(-3, 3, 5)[:, None]).to(dtype)
    check(oracle, compare, x, symmetric)


@BOTH
@EVERY_FLOAT
def test_every_rounding(implementation, oracle, compare, dtype, symmetric):
    """Ties go to even: halves of a step lie exactly on the line between two levels."""
    halves = torch.arange(-254, 255) / 2
    check(oracle, compare, halves.to(dtype)[None], symmetric)


def special_rows(dtype, columns):
    info = torch.finfo(dtype)
    x = torch.randn(16, columns)
    x[0] = 0
    x[1] = -0.0
    x[2, columns // 2] = math.nan
    x[3, -1] = math.inf
    x[4, 0] = -math.inf
    x[5] = 2.0**-149  # denormal in float32, 0 in float16
    x[6] *= 2.0**-121
    x[7] = 2.0**-120
    x[8] = torch.where(x[8] < 0, -info.max, info.max)  # max - min overflows
    x[9] = info.max
    x[10] = 5.0
    x[11] = -5.0
    x[12] = info.tiny
    x[13, 1:] = info.max / 2
    x[14] = x[14].abs() + 1
    x[15] = -x[15].abs() - 1
    return x.clamp(-info.max, info.max).where(x.isfinite(), x).to(dtype)


@BOTH
@EVERY_FLOAT
@pytest.mark.parametrize("columns", [2, 17, 64])
def test_special_rows(implementation, oracle, compare, columns, dtype, symmetric):
    check(oracle, compare, special_rows(dtype, columns), symmetric)


@BOTH
def test_documented_rules(implementation, symmetric):
    x = torch.zeros(3, 8)
    x[1, 4] = math.nan
    x[2] = 2.0**-121
    q, scale, *zero = lk.quantize_int8(x, symmetric=symmetric)
    assert not q.any()
    assert not any(z.any() for z in zero)
    assert scale[0] == 1
    assert scale[1].isnan()
    assert scale[2] == 1


@BOTH
def test_reconstruction_is_half_a_step(implementation, symmetric):
    x = torch.randn(40, 100, dtype=torch.float32) * 10
    q, scale, *zero = lk.quantize_int8(x, symmetric=symmetric)
    zero = zero[0][:, None] if zero else 0
    back = (q.double() - zero) * scale.double()[:, None]
    # Half a step of rounding, and three roundings to float32 of levels of at most 255: the inverse,
    # the product, the scale. The zero point is rounded too: another half a step at the clipped end.
    steps = 0.5 + 255 * 3 * 2.0**-24 + (0 if symmetric else 0.5)
    assert ((x - back).abs() <= steps * scale.double()[:, None]).all()


@BOTH
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_dims(implementation, compare, dim, symmetric):
    x = torch.randn(4, 6, 10)
    q, scale, *zero = lk.quantize_int8(x, dim=dim, symmetric=symmetric)
    last = lk.quantize_int8(x.movedim(dim, -1).contiguous(), symmetric=symmetric)
    compare.same_bits(q.movedim(dim, -1), last[0])
    for got, expected in zip((scale, *zero), last[1:], strict=True):
        compare.same_bits(got, expected)


@BOTH
def test_whole_tensor(implementation, compare, symmetric):
    x = torch.randn(4, 6, 10)
    q, scale, *zero = lk.quantize_int8(x, dim=None, symmetric=symmetric)
    flat = lk.quantize_int8(x.reshape(1, -1), symmetric=symmetric)
    compare.same_bits(q, flat[0].reshape(x.shape))
    for got, expected in zip((scale, *zero), flat[1:], strict=True):
        compare.same_bits(got, expected.reshape(()))


def test_zero_dimensional(implementation):
    q, scale = lk.quantize_int8(torch.tensor(-2.0))
    assert (q.shape, scale.shape, q.item()) == ((), (), -127)


@BOTH
@pytest.mark.parametrize("group_size", [1, 3, 4, 30, 60])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_groups(implementation, compare, dim, group_size, symmetric):
    x = torch.randn(60, 60)
    groups = 60 // group_size
    q, scale, *zero = lk.quantize_int8(x, dim=dim, group_size=group_size, symmetric=symmetric)
    moved = x.movedim(dim, -1).reshape(60, groups, group_size).contiguous()
    plain = lk.quantize_int8(moved, symmetric=symmetric)
    compare.same_bits(q.movedim(dim, -1), plain[0].reshape(60, 60))
    for got, expected in zip((scale, *zero), plain[1:], strict=True):
        compare.same_bits(got.movedim(dim, -1), expected)


STRIDED = {
    "every_second_row": lambda x: x[::2],
    "every_second_column": lambda x: x[:, ::2],
    "inner_columns": lambda x: x[:, 3:-2],
    "transposed": lambda x: x.t(),
    "expanded_rows": lambda x: x[:1].expand(9, -1),
    "expanded_columns": lambda x: x[:, :1].expand(-1, 9),
    "three_dims": lambda x: x.reshape(8, 5, 8).transpose(0, 1),
}


@pytest.mark.parametrize("kind", STRIDED)
@EVERY_FLOAT
def test_strides(implementation, oracle, compare, dtype, kind):
    x = STRIDED[kind](torch.randn(8, 40).to(dtype))
    check(oracle, compare, x, True)


@given(
    rows=st.integers(0, 9),
    columns=st.integers(0, 150),
    dtype=st.sampled_from(FLOATS),
    symmetric=st.booleans(),
    exponent=st.integers(-140, 127),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_any_matrix(rows, columns, dtype, symmetric, exponent, seed):
    """The best ISA equals the reference, whatever the shape and the magnitude."""
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    x = (values.double() * 2.0**exponent).to(dtype)
    got = torch.ops.lepton.quantize_int8(x, symmetric)
    expected = torch.ops.lepton_reference.quantize_int8(x, symmetric)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (7, 33)], ids=str)
@EVERY_FLOAT
@BOTH
def test_opcheck(shape, dtype, symmetric):
    x = torch.randn(shape).to(dtype)
    torch.library.opcheck(torch.ops.lepton.quantize_int8.default, (x, symmetric))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(compare, backend):
    def both(x):
        return lk.quantize_int8(x, symmetric=False, group_size=8)

    x = torch.randn(6, 32)
    compiled = torch.compile(both, fullgraph=True, backend=backend)
    for got, expected in zip(compiled(x), both(x), strict=True):
        compare.same_bits(got, expected)


def test_threads_and_repetition(isa, compare):
    x = torch.randn(300, 700)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(lk.quantize_int8(x, symmetric=False))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            compare.same_bits(a, b)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lk.quantize_int8([1.0]), TypeError, "x must be a Tensor, got list"),
        (
            lambda: lk.quantize_int8(torch.ones(2, 2, dtype=torch.float64)),
            TypeError,
            "x must be float32, bfloat16, float16, got float64",
        ),
        (
            lambda: lk.quantize_int8(torch.ones(2, 2, dtype=torch.int8)),
            TypeError,
            "x must be float32, bfloat16, float16, got int8",
        ),
        (
            lambda: lk.quantize_int8(torch.ones(2, 2), dim=2),
            IndexError,
            "dim must be within -2 and 1, got 2",
        ),
        (
            lambda: lk.quantize_int8(torch.ones(2, 2), dim=-3),
            IndexError,
            "dim must be within -2 and 1, got -3",
        ),
        (
            lambda: lk.quantize_int8(torch.ones(2, 6), group_size=4),
            ValueError,
            "group_size must divide the length 6 of dim -1, got 4",
        ),
        (
            lambda: lk.quantize_int8(torch.ones(2, 6), group_size=0),
            ValueError,
            "group_size must divide the length 6 of dim -1, got 0",
        ),
        (
            lambda: lk.quantize_int8(torch.ones(2, 6), dim=None, group_size=2),
            ValueError,
            "group_size needs a dim, got dim=None",
        ),
        (
            lambda: lk.quantize_int8(torch.ones(2, 6), dim="a"),
            TypeError,
            "dim must be an int, got str",
        ),
        (
            lambda: lk.quantize_int8(torch.ones(2, 6), group_size=2.0),
            TypeError,
            "group_size must be an int, got float",
        ),
    ],
    ids=[
        "type",
        "float64",
        "int8",
        "dim",
        "dim_below",
        "group",
        "group_0",
        "group_no_dim",
        "dim_type",
        "group_type",
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=re.escape(f"quantize_int8: {message}")):
        call()


def test_errors_of_the_raw_op():
    op = torch.ops.lepton.quantize_int8
    with pytest.raises((RuntimeError, ValueError), match=r"x must have shape \(rows, columns\)"):
        op(torch.ones(2), True)
    with pytest.raises((RuntimeError, TypeError), match="x must be float32, bfloat16, float16"):
        op(torch.ones(2, 2, dtype=torch.float64), True)


def test_meta():
    q, scale, zero = lk.quantize_int8(torch.ones(3, 8, device="meta"), symmetric=False)
    assert (q.shape, scale.shape, zero.shape) == ((3, 8), (3,), (3,))
    assert (q.dtype, scale.dtype, zero.dtype) == (torch.int8, torch.float32, torch.int32)
