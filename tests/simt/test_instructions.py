"""The emulator's instructions against the tables of the PTX ISA 9.0, written down again here.

The tables give, for lane (groupID = lane / 4, threadID_in_group = lane % 4) and element index i
of a fragment, its row and column in the matrix. They are copied as formulas of (lane, i), element
by element; the emulator works register by register. For the metadata of m16n8k32 and m16n8k64
the ISA has only drawings; they agree with the order into which CUTLASS' `reorder_meta` brings
metadata (BSD-3 licence, include/cutlass/util/host_reorder.h), which is what is written here.
"""

import pytest
import torch

LANES = range(32)


# --- "Matrix Fragments for mma.m16n8k16 with floating point type" ---
def a_k16(lane, i):
    group, thread = lane >> 2, lane % 4
    row = group if (0 <= i < 2 or 4 <= i < 6) else group + 8
    column = thread * 2 + (i & 1) + (8 if i >= 4 else 0)
    return row, column


def b_k16(lane, i):
    return (lane % 4) * 2 + (i & 1) + (8 if i >= 2 else 0), lane >> 2


# --- "Matrix Fragments for mma.m16n8k32": 8-bit integers ---
def a_k32(lane, i):
    group, thread = lane >> 2, lane % 4
    row = group if (0 <= i < 4 or 8 <= i < 12) else group + 8
    column = thread * 4 + (i & 3) + (16 if i >= 8 else 0)
    return row, column


def b_k32(lane, i):
    return (lane % 4) * 4 + (i & 3) + (16 if i >= 4 else 0), lane >> 2


def c_fragment(lane, i):
    return (lane >> 2) + (8 if i >= 2 else 0), (lane % 4) * 2 + (i & 1)


# --- sparse: B of m16n8k32 (16 bit) and of m16n8k64 (8 bit) ---
def b_sparse_k32(lane, i):
    return (lane % 4) * 2 + (i & 1) + 8 * (i // 2), lane >> 2


def b_sparse_k64(lane, i):
    return (lane % 4) * 4 + (i & 3) + 16 * (i // 4), lane >> 2


def fragment(matrix, table, per_register):
    """Registers (4, 32) of int32 that hold `matrix` in a fragment layout."""
    width = 32 // per_register
    raw = matrix.view({16: torch.int16, 8: torch.int8}[width])
    registers = torch.zeros(4, 32, dtype=torch.int64)
    elements = raw.numel() // 32
    for lane in LANES:
        for i in range(elements):
            bits = int(raw[table(lane, i)]) & ((1 << width) - 1)
            registers[i // per_register, lane] |= bits << (width * (i % per_register))
    return as_int32(registers)


def as_int32(registers):
    return torch.where(registers >= 2**31, registers - 2**32, registers).to(torch.int32)


def accumulators(matrix):
    return torch.stack(
        [torch.stack([matrix[c_fragment(lane, i)] for lane in LANES]) for i in range(4)]
    )


def multiply(simt, name, a, b, c, metadata=None):
    d = accumulators(c)
    simt.call(f"simt_{name}", a, b, torch.zeros(32, dtype=torch.int32)
              if metadata is None else metadata, simt.out(d))  # fmt: skip
    result = torch.empty(16, 8, dtype=c.dtype)
    for lane in LANES:
        for i in range(4):
            result[c_fragment(lane, i)] = d[i, lane]
    return result


def random_half(dtype, *shape):
    return torch.randn(*shape).to(dtype)


def assert_truncated_sum(got, exact):
    """Tensor cores cut: at most one unit in the last place below, in magnitude, never above."""
    assert (got.double().abs() <= exact.abs()).all()
    assert torch.allclose(got.double(), exact, rtol=2**-23, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mma_m16n8k16(simt, dtype):
    a, b, c = random_half(dtype, 16, 16), random_half(dtype, 16, 8), torch.randn(16, 8)
    name = {torch.float16: "mma_f16", torch.bfloat16: "mma_bf16"}[dtype]
    got = multiply(simt, name, fragment(a, a_k16, 2), fragment(b, b_k16, 2), c)
    assert_truncated_sum(got, c.double() + a.double() @ b.double())


def test_mma_m16n8k32_s8(simt):
    a = torch.randint(-128, 128, (16, 32), dtype=torch.int8)
    b = torch.randint(-128, 128, (32, 8), dtype=torch.int8)
    c = torch.randint(-(2**31), 2**31, (16, 8), dtype=torch.int64).to(torch.int32)
    got = multiply(simt, "mma_s8", fragment(a, a_k32, 4), fragment(b, b_k32, 4), c)
    exact = c.long() + a.long() @ b.long()
    assert torch.equal(got, as_int32(exact % 2**32))  # sums wrap


def two_of_four(rows, columns):
    """Kept columns in rising order, (rows, columns / 2)."""
    kept = torch.rand(rows, columns // 4, 4).argsort(-1)[..., :2].sort(-1).values
    return (kept + 4 * torch.arange(columns // 4)[:, None]).view(rows, columns // 2)


def reordered_metadata(kept, bits_per_word):
    """Metadata as CUTLASS hands it to ldmatrix-like loads: lane -> 32 bits."""
    rows, half = kept.shape
    words = torch.zeros(rows, half // 2 * 4 // bits_per_word, dtype=torch.int64)
    for row in range(rows):
        for j in range(half):
            group, place = j // 2, j % 2
            index = int(kept[row, j]) % 4
            bit = 4 * group + 2 * place
            words[row, bit // bits_per_word] |= index << (bit % bits_per_word)
    group, interleave = (32, 4) if bits_per_word == 16 else (16, 2)
    out = torch.zeros_like(words)
    for row in range(rows):
        for column in range(words.shape[1]):
            to_row = row // group * group + row % 8 * interleave + row % group // 8
            to_column = column
            if to_row % 2 == 0 and to_column % 2 == 1:
                to_row, to_column = to_row + 1, to_column - 1
            elif to_row % 2 == 1 and to_column % 2 == 0:
                to_row, to_column = to_row - 1, to_column + 1
            out[to_row, to_column] = words[row, column]
    flat = out.view(-1)
    if bits_per_word == 16:
        flat = flat[0::2] | flat[1::2] << 16
    return as_int32(flat)


@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mma_sp_m16n8k32(simt, dtype, selector):
    # CUTLASS orders 32 rows together: the selector picks the upper or the lower sixteen.
    kept = two_of_four(32, 32)
    metadata = reordered_metadata(kept, 16)
    kept = kept[16 * selector : 16 * selector + 16]
    a, b, c = random_half(dtype, 16, 16), random_half(dtype, 32, 8), torch.randn(16, 8)
    dense = torch.zeros(16, 32, dtype=torch.float64).scatter(1, kept, a.double())
    name = {torch.float16: "mma_sp_f16", torch.bfloat16: "mma_sp_bf16"}[dtype]
    got = multiply(
        simt, f"{name}_{selector}", fragment(a, a_k16, 2), fragment(b, b_sparse_k32, 2), c, metadata
    )
    assert_truncated_sum(got, c.double() + dense @ b.double())


def test_mma_sp_m16n8k64_s8(simt):
    kept = two_of_four(16, 64)
    a = torch.randint(-128, 128, (16, 32), dtype=torch.int8)
    b = torch.randint(-128, 128, (64, 8), dtype=torch.int8)
    c = torch.randint(-(2**20), 2**20, (16, 8), dtype=torch.int32)
    dense = torch.zeros(16, 64, dtype=torch.int64).scatter(1, kept, a.long())
    got = multiply(
        simt, "mma_sp_s8", fragment(a, a_k32, 4), fragment(b, b_sparse_k64, 4), c,
        reordered_metadata(kept, 32),
    )  # fmt: skip
    assert torch.equal(got.long(), c.long() + dense @ b.long())


def test_unordered_metadata_is_refused(simt):
    a = torch.zeros(4, 32, dtype=torch.int32)
    report = simt.call(
        "simt_mma_sp_s8", a, a, torch.zeros(32, dtype=torch.int32), simt.out(a.clone()),
        allow=("invalid_metadata",),
    )  # fmt: skip
    assert report.kinds == {"invalid_metadata"}


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transpose", [False, True])
def test_ldmatrix(simt, count, transpose):
    rows = torch.randint(-(2**15), 2**15, (4, 8, 8), dtype=torch.int16)
    d = torch.zeros(4, 32, dtype=torch.int32)
    zero = torch.zeros(128, dtype=torch.int32)
    simt.call(
        f"simt_ldmatrix_{count}{'_trans' * transpose}",
        rows.view(torch.int32), zero, zero, simt.out(d),
    )  # fmt: skip
    for matrix in range(4):
        source = rows[matrix].t() if transpose else rows[matrix]
        # "each thread receives a pair of consecutive elements of a row": row l / 4, pair l % 4.
        want = source.contiguous().view(torch.int32).reshape(32)
        assert torch.equal(d[matrix], want if matrix < count else torch.zeros_like(want))


def test_movmatrix(simt):
    matrices = torch.randint(-(2**15), 2**15, (4, 8, 8), dtype=torch.int16)
    d, zero = torch.zeros(4, 32, dtype=torch.int32), torch.zeros(128, dtype=torch.int32)
    simt.call("simt_movmatrix", matrices.view(torch.int32), zero, zero, simt.out(d))
    want = matrices.transpose(1, 2).contiguous().view(torch.int32).reshape(4, 32)
    assert torch.equal(d, want)


def test_conversions_are_torchs(simt):
    special = [0.0, -0.0, 65504.0, 65519.9, 65520.0, 1e-7, 2.0**-24, 2.0**-25, 3.0 * 2**-26,
               float("inf"), 1.0 + 2**-11, 1.0 + 3 * 2**-12, 3.4e38, 1e-40]  # fmt: skip
    values = torch.tensor(
        [*special, *torch.randn(200).tolist(), *(torch.randn(74) * 1e-5).tolist()]
    )
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(-1, 2)
    zero = torch.zeros(128, dtype=torch.int32)
    for start in range(0, 288, 32):
        a = torch.zeros(4, 32, dtype=torch.int32)
        a[0] = values[start : start + 32].view(torch.int32)
        packed = halves[start * 97 % 32000 :][:32].contiguous()
        a[1] = packed.view(torch.int32).reshape(32)
        d = torch.zeros(4, 32, dtype=torch.int32)
        simt.call("simt_convert", a, zero, zero, simt.out(d))
        x = values[start : start + 32]
        both = torch.stack([x, -x], 1)
        assert torch.equal(d[0], both.half().view(torch.int32).reshape(32))
        assert torch.equal(d[1], both.bfloat16().view(torch.int32).reshape(32))
        low, high = packed[:, 0].view(torch.float16), packed[:, 1].view(torch.bfloat16)
        assert torch.equal(d[2].view(torch.float32).nan_to_num(1), low.float().nan_to_num(1))
        assert torch.equal(d[3].view(torch.float32).nan_to_num(1), high.float().nan_to_num(1))


def test_warp_functions(simt):
    a = torch.randint(0, 2**20, (4, 32), dtype=torch.int32)
    d, zero = torch.zeros(4, 32, dtype=torch.int32), torch.zeros(128, dtype=torch.int32)
    simt.call("simt_warp_functions", a, zero, zero, simt.out(d))
    lane = torch.arange(32)
    assert torch.equal(d[0], a[0, lane ^ 5])
    assert torch.equal(d[1], a[0, torch.where(lane % 8 + 3 < 8, lane + 3, lane)])
    ballot = sum(1 << i for i in range(32) if a[0, i] & 1)
    assert (d[2].long() % 2**32 == ballot).all()
    assert torch.equal(d[3], a[0, lane // 4 * 4 + (lane + 1) % 4] + a[1].sum().to(torch.int32))
