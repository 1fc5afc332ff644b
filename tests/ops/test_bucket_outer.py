"""Sums of products of factors: every backend and ISA against float64 and each other."""

import pytest
import torch

import lepton_kernels as lk

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
PLACES = ["reference", *(lk.info()["isa_present"] or [])]
# Rows, columns, terms of each rank: odd, empty, one, more than a tile, more than a part of the L2.
CASES = [
    (13, 33, [3, 5]),
    (1, 1, [1]),
    (12, 32, [4]),
    (37, 70, [2, 0, 7]),
    (5, 9, []),
    (5, 9, [0]),
    (0, 9, [2]),
    (5, 0, [2]),
    (250, 300, [16, 16]),
    (14, 1100, [130, 20]),
]


@pytest.fixture(params=PLACES)
def place(request):
    """The reference, then every ISA that this CPU has."""
    force = lk.force_backend if request.param == "reference" else lk.force_isa
    with force(request.param):
        yield request.param


def factors(rows, columns, terms, dtype):
    left = [torch.randn(n, rows).to(dtype) for n in terms]
    right = [torch.randn(n, columns).to(dtype) for n in terms]
    return left, right


def exact(rows, columns, left, right):
    """The sum in float64, and the sum of magnitudes."""
    total = torch.zeros(rows, columns, dtype=torch.float64)
    size = total.clone()
    for a, b in zip(left, right, strict=True):
        total += a.double().t() @ b.double()
        size += a.double().abs().t() @ b.double().abs()
    return total, size


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("rows", "columns", "terms"), CASES)
def test_outer(place, rows, columns, terms, dtype):
    left, right = factors(rows, columns, terms, dtype)
    for divisor in (1.0, 2.0, 3.0):
        out = torch.full((rows, columns), torch.nan, dtype=dtype)
        assert lk.bucket_outer_(out, left, right, divisor=divisor) is out
        total, size = exact(rows, columns, left, right)
        # Each of the additions, and the division, rounds in fp32; then once to the dtype.
        bound = (sum(terms) + 1) * torch.finfo(torch.float32).eps * size / divisor
        bound += 0.5 * torch.finfo(dtype).eps * (total / divisor).abs() + 1e-7
        assert ((out.double() - total / divisor).abs() <= bound).all()


def test_the_same_bits_on_every_isa_and_for_any_threads():
    left, right = factors(301, 333, [21, 40], torch.float32)
    bits = []
    for isa in lk.info()["isa_present"] or []:
        for threads in (1, 2):
            before = torch.get_num_threads()
            torch.set_num_threads(threads)
            with lk.force_isa(isa):
                bits.append(lk.bucket_outer_(torch.empty(301, 333), left, right, divisor=2.0))
            torch.set_num_threads(before)
    assert all(torch.equal(other, bits[0]) for other in bits)


def test_terms_are_added_in_order(place):
    left = [torch.tensor([[1e8]]), torch.tensor([[1.0], [-1e8]])]
    right = [torch.ones(1, 1), torch.ones(2, 1)]
    # 1e8 + 1 rounds to 1e8.
    assert lk.bucket_outer_(torch.empty(1, 1), left, right).item() == 0.0


def test_strided_factors_and_a_view_of_a_bucket(place):
    bucket = torch.full((100,), 7.0)
    left, right = torch.randn(8, 10)[::2, ::2], torch.randn(9, 4).t()
    lk.bucket_outer_(bucket[20:65].view(5, 9), [left], [right])
    torch.testing.assert_close(bucket[20:65].view(5, 9), left.t() @ right)
    assert (bucket[:20] == 7).all()
    assert (bucket[65:] == 7).all()


def test_poison_stays_in_its_row_and_column(place):
    left, right = factors(20, 40, [3], torch.float32)
    left[0][1, 4], right[0][2, 9] = torch.nan, torch.inf
    out = lk.bucket_outer_(torch.empty(20, 40), left, right)
    assert out[4].isnan().all()
    assert not out[:, 9].isfinite().any()
    rest = out[[i for i in range(20) if i != 4]][:, [j for j in range(40) if j != 9]]
    assert rest.isfinite().all()


@pytest.mark.parametrize("namespace", ["lepton", "lepton_reference"])
def test_opcheck(namespace):
    op = getattr(torch.ops, namespace).bucket_outer_.default
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    for dtype in FLOATS:
        left, right = factors(6, 5, [2, 3], dtype)
        out = torch.randn(6, 5).to(dtype)
        torch.library.opcheck(op, (out, left, right, 2.0), test_utils=utils)


def test_error_messages(place):
    out, one = torch.empty(3, 4), torch.ones(2, 3)
    other = torch.ones(2, 4)
    for kind, message, arguments in (
        (TypeError, "out must be float32", (out.int(), [], [])),
        (ValueError, r"out must have shape \(rows, columns\)", (out[0], [], [])),
        (ValueError, "out must be contiguous", (torch.empty(4, 3).t(), [], [])),
        (ValueError, "right must hold as many tensors as left, 1, got 0", (out, [one], [])),
        (TypeError, r"left\[0\] must be a Tensor, got int", (out, [3], [other])),
        (TypeError, r"right\[0\] must be float32.*got bfloat16", (out, [one], [other.bfloat16()])),
        (ValueError, r"left\[0\] must have shape \(2, 3\)", (out, [other], [other])),
        (ValueError, r"right\[0\] must have shape \(2, 4\)", (out, [one], [other[:1]])),
        (ValueError, r"left\[0\] must have shape \(terms, 3\)", (out, [one[0]], [other])),
    ):
        with pytest.raises(kind, match=f"^bucket_outer_: {message}"):
            lk.bucket_outer_(*arguments)
