"""int8_mm: exact for every shape, stride and ISA."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lepton_kernels as lk

SIZES = [0, 1, 3, 63, 123]


def random_int8(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def product(a, b):
    """In int64 by numpy, wrapped to int32 as documented."""
    exact = a.numpy().astype(np.int64) @ b.numpy().astype(np.int64)
    return torch.from_numpy(exact.astype(np.int32))


def check(compare, a, b):
    out = lk.int8_mm(a, b)
    assert out.is_contiguous()
    compare.same_bits(out, product(a, b))


@pytest.mark.parametrize("k", [*SIZES, 1000])
@pytest.mark.parametrize("m", SIZES)
def test_shapes(implementation, compare, m, k):
    for n in SIZES:
        check(compare, random_int8(m, k), random_int8(k, n))


def test_every_row_count(implementation, compare):
    b = random_int8(67, 35)
    for m in range(1, 101, 3):
        check(compare, random_int8(m, 67), b)


def test_every_column_count(implementation, compare):
    a = random_int8(7, 70)
    for n in range(1, 81):
        check(compare, a, random_int8(70, n))


@pytest.mark.parametrize("shape", [(6, 2100, 33), (97, 1025, 17), (1, 1000, 1000), (200, 64, 130)])
def test_larger_than_a_block(implementation, compare, shape):
    m, k, n = shape
    check(compare, random_int8(m, k), random_int8(k, n))


@pytest.mark.parametrize("left", [127, -128])
@pytest.mark.parametrize("right", [127, -128])
@pytest.mark.parametrize("k", [2, 64, 1000])
def test_extremes_do_not_saturate(implementation, compare, k, left, right):
    a = torch.full((7, k), left, dtype=torch.int8)
    b = torch.full((k, 33), right, dtype=torch.int8)
    out = lk.int8_mm(a, b)
    assert (out == left * right * k).all()


def test_large_k_is_exact(implementation):
    k = 131071  # the largest for which 128 * 128 * k fits int32
    a = torch.full((5, k), -128, dtype=torch.int8)
    assert (lk.int8_mm(a, a.t()) == 16384 * k).all()


def test_beyond_int32_wraps(implementation):
    k = 131072 + 8
    a = torch.full((5, k), -128, dtype=torch.int8)
    expected = (16384 * k + 2**31) % 2**32 - 2**31
    assert (lk.int8_mm(a, a.t()) == expected).all()


STRIDED = {
    "transposed": lambda t: t.t().contiguous().t(),
    "every_second_column": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "every_second_row": lambda t: t.repeat_interleave(2, 0)[::2],
    "inside_a_larger_one": lambda t: torch.nn.functional.pad(t, (3, 5, 2, 1))[2:-1, 3:-5],
    "expanded_rows": lambda t: t[:1].expand_as(t),
    "expanded_columns": lambda t: t[:, :1].expand_as(t),
}


@pytest.mark.parametrize("right", STRIDED)
@pytest.mark.parametrize("left", STRIDED)
def test_strides(implementation, compare, left, right):
    a, b = STRIDED[left](random_int8(9, 75)), STRIDED[right](random_int8(75, 21))
    check(compare, a, b)


@given(
    m=st.integers(0, 40), k=st.integers(0, 200), n=st.integers(0, 70), seed=st.integers(0, 2**32)
)
@settings(max_examples=60)
def test_any_shape(m, k, n, seed):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=generator)
    b = torch.randint(-128, 128, (k, n), dtype=torch.int8, generator=generator)
    assert torch.equal(lk.int8_mm(a, b), product(a, b))


def test_threads_and_repetition(isa, compare):
    a, b = random_int8(130, 300), random_int8(300, 170)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            check(compare, a, b)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (5, 66, 17)], ids=str)
def test_opcheck(shape):
    m, k, n = shape
    torch.library.opcheck(torch.ops.lepton.int8_mm.default, (random_int8(m, k), random_int8(k, n)))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(compare, backend):
    a, b = random_int8(5, 66), random_int8(66, 17)
    compiled = torch.compile(lambda a, b: lk.int8_mm(a, b) + 1, fullgraph=True, backend=backend)
    compare.same_bits(compiled(a, b), product(a, b) + 1)


@pytest.mark.parametrize(
    ("a", "b", "error", "message"),
    [
        (None, random_int8(2, 2), TypeError, "a must be a Tensor, got NoneType"),
        (random_int8(2, 2), 3, TypeError, "b must be a Tensor, got int"),
        (torch.ones(2, 2), random_int8(2, 2), TypeError, "a must be int8, got float32"),
        (random_int8(2, 2), random_int8(2, 2).long(), TypeError, "b must be int8, got int64"),
        (random_int8(2), random_int8(2, 2), ValueError, "a must have shape (M, K), got (2,)"),
        (random_int8(2, 2), random_int8(2), ValueError, "b must have shape (K, N), got (2,)"),
        (
            random_int8(2, 3),
            random_int8(2, 4),
            ValueError,
            "b must have shape (3, N) to match a, got (2, 4)",
        ),
    ],
    ids=["a_type", "b_type", "a_dtype", "b_dtype", "a_shape", "b_shape", "inner"],
)
def test_errors(implementation, a, b, error, message):
    with pytest.raises(error, match=re.escape(f"int8_mm: {message}")):
        lk.int8_mm(a, b)


def test_two_devices():
    # With no backend in force: one that is refuses other devices before the op sees them.
    message = "int8_mm: b must be on cpu like the first argument, got meta"
    with pytest.raises(ValueError, match=message):
        lk.int8_mm(random_int8(2, 3), random_int8(3, 4).to("meta"))


def test_meta():
    out = lk.int8_mm(random_int8(2, 3).to("meta"), random_int8(3, 4).to("meta"))
    assert (out.shape, out.dtype) == ((2, 4), torch.int32)
