"""The comparison helpers, the poisoned memory and the seed: tested before they are trusted."""

import math

import pytest
import torch

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def test_same_bits_takes_nan_for_nan(compare):
    compare.same_bits(torch.tensor([1.0, math.nan]), torch.tensor([1.0, -math.nan]))


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23])),
        (torch.tensor([math.nan]), torch.tensor([0.0])),
        (torch.tensor([1.0]), torch.tensor([1.0], dtype=torch.float64)),
        (torch.ones(2), torch.ones(1, 2)),
        (torch.tensor([1], dtype=torch.int8), torch.tensor([2], dtype=torch.int8)),
    ],
    ids=["zero_sign", "one_ulp", "nan", "dtype", "shape", "integer"],
)
def test_same_bits_sees(compare, actual, expected):
    with pytest.raises(AssertionError, match="is not"):
        compare.same_bits(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ulps(compare, dtype):
    one = torch.ones(3, dtype=dtype)
    inf = torch.full_like(one, math.inf)
    # nextafter does not know float16 everywhere: the next number by its bits.
    above = (one.view(compare.BITS[dtype]) + 1).view(dtype)
    tiny = torch.ones(3, dtype=compare.BITS[dtype]).view(dtype)  # the smallest denormal
    assert compare.ulps(one, one) == 0
    assert compare.ulps(one, above) == 1
    assert compare.ulps(-one, -above) == 1
    assert compare.ulps(tiny, -tiny) == 2
    assert compare.ulps(tiny * 0, -(tiny * 0)) == 0
    assert compare.ulps(inf, inf) == 0
    assert compare.ulps(inf, torch.full_like(one, torch.finfo(dtype).max)) == 1
    assert compare.ulps(inf * 0, inf * 0) == 0
    assert compare.ulps(inf * 0, inf) == compare.NAN_DISTANCE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_oracle_rounds_as_torch(oracle, compare, dtype):
    values = torch.randn(1000) * torch.logspace(-44, 38, 1000)
    values[:4] = torch.tensor([math.inf, -math.inf, math.nan, -0.0])
    compare.same_bits(oracle.from_f32(values.numpy(), dtype), values.to(dtype))


def test_poisoned_memory(nan_poison):
    assert torch.empty(100).isnan().all()
    assert (torch.empty(100, dtype=torch.int8) == 127).all()


def test_seed_is_of_the_test(request):
    """Two tests do not share a stream, and one test repeats it."""
    before = torch.initial_seed()
    assert before != 0
    assert torch.equal(
        torch.randn(3, generator=torch.Generator().manual_seed(before)),
        torch.randn(3),
    )
