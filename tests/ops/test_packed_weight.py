"""The packed weight: one layout everywhere, read with suspicion."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lepton_kernels as lk

MAGIC = int.from_bytes(b"LPTNINT8", "little")
SHAPES = [(0, 0), (0, 5), (5, 0), (1, 1), (3, 63), (16, 64), (17, 65), (33, 123), (40, 1000)]


def random_weight(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def layout(weight, group):
    """The bytes as the format's description has them, one weight at a time."""
    rows, columns = weight.shape
    group = group or columns
    groups = columns // group if columns else 1
    padded = -(-group // 4) * 4
    width = -(-(groups * padded) // 64) * 64
    height = -(-rows // 16) * 16
    sums_bytes = -(-4 * groups * height // 64) * 64
    header = torch.tensor([MAGIC, 1, rows, columns, group, padded, width, height])
    sums = torch.zeros(sums_bytes // 4, dtype=torch.int32)
    tiles = torch.zeros(height * width, dtype=torch.int8)
    n, k = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    if weight.numel():
        at = k // group * padded + k % group
        place = (n // 16) * 16 * width + at // 64 * 1024 + at % 64 // 4 * 64 + n % 16 * 4 + at % 4
        tiles[place] = weight
        totals = weight.long().reshape(rows, groups, group).sum(-1)
        for g in range(groups):
            sums[g * height : g * height + rows] = totals[:, g]
    return torch.cat([header.view(torch.uint8), sums.view(torch.uint8), tiles.view(torch.uint8)])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layout_and_round_trip(implementation, shape):
    weight = random_weight(*shape)
    packed = lk.pack_int8_weight(weight)
    assert torch.equal(packed, layout(weight, None))
    assert torch.equal(lk.unpack_int8_weight(packed, *shape), weight)


@pytest.mark.parametrize("group", [1, 3, 4, 5, 20, 60, 64, 128])
def test_groups(implementation, group):
    weight = random_weight(21, group * 3)
    packed = lk.pack_int8_weight(weight, group_size=group)
    assert torch.equal(packed, layout(weight, group))
    assert torch.equal(lk.unpack_int8_weight(packed, *weight.shape), weight)


STRIDED = {
    "transposed": lambda w: w.t(),
    "every_second_column": lambda w: w[:, ::2],
    "inner": lambda w: w[3:, 5:-2],
    "expanded": lambda w: w[:1].expand(20, -1),
}


@pytest.mark.parametrize("kind", STRIDED)
def test_strides(implementation, kind):
    weight = STRIDED[kind](random_weight(18, 70))
    assert torch.equal(lk.pack_int8_weight(weight), layout(weight.contiguous(), None))


@pytest.mark.parametrize("group", [0, 5])
@pytest.mark.parametrize("shape", [(0, 5), (17, 65)], ids=str)
def test_opcheck(shape, group):
    weight = random_weight(*shape)
    torch.library.opcheck(torch.ops.lepton.pack_int8_weight.default, (weight, group))
    packed = lk.pack_int8_weight(weight, group_size=group or None)
    torch.library.opcheck(torch.ops.lepton.unpack_int8_weight.default, (packed, *shape))


def test_meta():
    packed = lk.pack_int8_weight(random_weight(17, 65).to("meta"))
    assert packed.shape == lk.pack_int8_weight(random_weight(17, 65)).shape
    assert lk.unpack_int8_weight(packed, 17, 65).shape == (17, 65)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: lk.pack_int8_weight("w"), TypeError, "weight must be a Tensor, got str"),
        (
            lambda: lk.pack_int8_weight(torch.ones(2, 2)),
            TypeError,
            "weight must be int8, got float32",
        ),
        (
            lambda: lk.pack_int8_weight(random_weight(4)),
            ValueError,
            "weight must have shape (out_features, in_features), got (4,)",
        ),
        (
            lambda: lk.pack_int8_weight(random_weight(2, 10), group_size=4),
            ValueError,
            "group_size must divide in_features 10, got 4",
        ),
        (
            lambda: lk.pack_int8_weight(random_weight(2, 10), group_size=0),
            ValueError,
            "group_size must divide in_features 10, got 0",
        ),
        (
            lambda: lk.pack_int8_weight(random_weight(2, 10), group_size=-5),
            ValueError,
            "group_size must divide in_features 10, got -5",
        ),
    ],
    ids=["type", "dtype", "shape", "group", "group_0", "group_negative"],
)
def test_pack_errors(implementation, call, error, message):
    with pytest.raises(error, match=re.escape(f"pack_int8_weight: {message}")):
        call()


def with_header(packed, **fields):
    names = (
        "magic",
        "version",
        "out_features",
        "in_features",
        "group_size",
        "group_padded",
        "in_padded",
        "out_padded",
    )
    damaged = packed.clone()
    header = damaged[:64].view(torch.int64)
    for name, value in fields.items():
        header[names.index(name)] = value
    return damaged


DAMAGED = {
    "version": (lambda p: with_header(p, version=2), "packed as version 2, this release reads"),
    "magic": (lambda p: with_header(p, magic=7), "was not made by pack_int8_weight"),
    "truncated": (lambda p: p[:-1].clone(), "truncated or damaged"),
    "longer": (lambda p: torch.cat([p, p[:64]]), "truncated or damaged"),
    "out_features": (lambda p: with_header(p, out_features=1000), "truncated or damaged"),
    "huge": (
        lambda p: with_header(p, out_features=2**39, in_features=2**39),
        "truncated or damaged",
    ),
    "negative": (lambda p: with_header(p, in_features=-3), "truncated or damaged"),
    "group_0": (lambda p: with_header(p, group_size=0), "truncated or damaged"),
    "group": (lambda p: with_header(p, group_size=7), "truncated or damaged"),
    "group_padded": (lambda p: with_header(p, group_padded=0), "truncated or damaged"),
    "in_padded": (lambda p: with_header(p, in_padded=2**62), "truncated or damaged"),
    "out_padded": (lambda p: with_header(p, out_padded=16), "truncated or damaged"),
    "empty": (lambda p: p[:0].clone(), "must be int8"),
    "short": (lambda p: p[:63].clone(), "must be int8"),
    "two_dimensional": (lambda p: p[None], "must be int8"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged(implementation, kind):
    damage, message = DAMAGED[kind]
    packed = damage(lk.pack_int8_weight(random_weight(33, 65)))
    with pytest.raises(ValueError, match=message):
        lk.unpack_int8_weight(packed, 33, 65)
    error = TypeError if packed.dim() != 1 else ValueError
    with pytest.raises(error, match=message):
        lk.int8_linear(torch.randn(2, 65), packed, torch.ones(33))


@pytest.mark.parametrize("shape", [(33, 64), (32, 65), (65, 33), (-1, 65)], ids=str)
def test_unpack_to_another_shape(implementation, shape):
    packed = lk.pack_int8_weight(random_weight(33, 65))
    message = f"packed weight has shape (33, 65), expected {shape}"
    with pytest.raises(ValueError, match=re.escape(message)):
        lk.unpack_int8_weight(packed, *shape)


def test_unpack_dtype(implementation):
    with pytest.raises(TypeError, match="unpack_int8_weight: packed must be a Tensor, got list"):
        lk.unpack_int8_weight([1], 1, 1)
    with pytest.raises(ValueError, match="unpack_int8_weight: weight must be int8"):
        lk.unpack_int8_weight(torch.zeros(100, dtype=torch.int32), 1, 1)


def refuses(packed):
    """Both readers refuse, on both backends; a crash ends the test run, an answer fails it."""
    for namespace in (torch.ops.lepton, torch.ops.lepton_reference):
        with pytest.raises((RuntimeError, ValueError)):
            namespace.unpack_int8_weight(packed, 5, 66)
        with pytest.raises((RuntimeError, ValueError)):
            namespace.int8_linear(
                torch.ones(2, 66), packed, torch.ones(5), *[None] * 6, False, 0, torch.float32
            )


@given(header=st.binary(min_size=64, max_size=64), length=st.integers(0, 2000))
@settings(max_examples=150)
def test_random_header(header, length):
    content = torch.zeros(max(length, 64), dtype=torch.uint8)
    content[:64] = torch.frombuffer(bytearray(header), dtype=torch.uint8)
    refuses(content[:length].clone())


NUMBERS = st.one_of(
    st.sampled_from([0, 1, 4, 5, 16, 64, 66, 68, 128, 2**31, 2**40 - 1, 2**62, -1, -(2**63)]),
    st.integers(-(2**63), 2**63 - 1),
)


@given(field=st.integers(2, 7), value=NUMBERS, second=st.integers(2, 7), other=NUMBERS)
@settings(max_examples=150)
def test_patched_header(field, value, second, other):
    """Plausible headers with one or two wrong numbers."""
    packed = lk.pack_int8_weight(torch.ones(5, 66, dtype=torch.int8))
    good = packed.clone()
    header = packed[:64].view(torch.int64)
    header[field], header[second] = value, other
    if not torch.equal(packed, good):
        refuses(packed)
