"""pack_sparse, unpack_sparse and SparseWeight: round trips and every error message."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import lepton_kernels as lk

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def pruned(out_features: int, in_features: int, density: float = 0.3) -> torch.Tensor:
    keep = torch.rand(out_features, in_features) < density
    return torch.randn(out_features, in_features) * keep


@pytest.mark.parametrize("layout", ["bitmask", "block"])
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (1, 1), (16, 64), (17, 65), (50, 300)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_round_trip(layout, shape, dtype):
    weight = pruned(*shape).to(dtype)
    packed = lk.pack_sparse(weight, layout)
    assert torch.equal(packed.to_dense(), weight)
    assert packed.shape == weight.shape
    assert packed.dtype == dtype
    assert bool((packed.mask() | (weight == 0)).all())
    assert torch.equal(packed.values(), weight[packed.mask()])
    if layout == "bitmask":
        assert torch.equal(packed.mask(), weight != 0)


@pytest.mark.parametrize("layout", ["bitmask", "block"])
def test_int8_round_trip(layout):
    weight = pruned(37, 90)
    packed = lk.pack_sparse(weight, layout, dtype=torch.int8)
    q, scale = lk.quantize_int8(weight)[:2]
    assert torch.equal(packed.to_dense(torch.int8), q)
    assert torch.equal(packed.scale(), scale.reshape(-1))
    assert torch.equal(packed.to_dense(), q * scale.reshape(-1, 1))
    again = lk.pack_sparse(q, layout, mask=packed.mask(), scale=scale.reshape(-1))
    assert torch.equal(again.packed, packed.packed)


def test_strided_weight_and_mask():
    weight = pruned(40, 30).t()
    mask = torch.rand(30, 40) < 0.5
    packed = lk.pack_sparse(weight, mask=mask)
    assert torch.equal(packed.mask(), mask)
    assert torch.equal(packed.to_dense(), weight * mask)
    assert torch.equal(lk.pack_sparse(weight, mask=mask.to(torch.uint8)).packed, packed.packed)


def test_n_m_has_the_bytes_of_a_bitmask():
    weight = torch.randn(32, 64) * torch.tensor([1.0, 0.0, 0.0, 1.0]).repeat(16)
    packed = lk.pack_sparse(weight, "n:m")
    assert packed.pattern == (2, 4)
    assert packed.nbytes == lk.pack_sparse(weight).nbytes
    assert packed.sparsity == 0.5


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)], ids=str)
def test_n_m_of_nothing(shape):
    packed = lk.pack_sparse(torch.zeros(shape), "n:m")
    assert packed.shape == shape
    assert torch.equal(packed.to_dense(), torch.zeros(shape))


def test_pickle_deepcopy_and_repr():
    packed = lk.pack_sparse(pruned(20, 70), dtype=torch.int8)
    for other in (pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed)):
        assert torch.equal(other.packed, packed.packed)
        assert other.packed.data_ptr() != packed.packed.data_ptr()
    assert "bitmask" in repr(packed)
    assert packed.to("cpu") is packed


def test_sparse_is_smaller():
    weight = pruned(512, 512, 0.3)
    assert lk.pack_sparse(weight).nbytes < 0.36 * 4 * weight.numel()
    assert lk.pack_sparse(weight, dtype=torch.int8).nbytes < 0.47 * weight.numel()


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"weight": [1]}, TypeError, "weight must be a Tensor, got list"),
        ({"weight": torch.zeros(2, 2, dtype=torch.float64)}, TypeError, "weight must be float32"),
        ({"weight": torch.zeros(2)}, ValueError, r"weight must have shape \(out_features"),
        ({"layout": "csr"}, ValueError, "layout must be one of bitmask, n:m, block, got 'csr'"),
        ({"dtype": torch.int32}, TypeError, "dtype must be float32, bfloat16, float16 or int8"),
        ({"mask": torch.full((4, 8), 2)}, ValueError, "mask must hold only 0 and 1"),
        ({"mask": torch.full((4, 8), 0.5)}, ValueError, "mask must hold only 0 and 1"),
        ({"mask": torch.ones(4, 4)}, ValueError, r"mask must have shape \(4, 8\) to match weight"),
        ({"mask": 1}, TypeError, "mask must be a Tensor"),
        ({"layout": "n:m"}, ValueError, "does not have the pattern 2:4: row 0, columns 0 to 3"),
        ({"layout": "n:m", "n": 5}, ValueError, "0 < n <= m, got 5:4"),
        ({"layout": "n:m", "n": "2"}, TypeError, "n must be an int, got str"),
        ({"layout": "n:m", "m": 3}, ValueError, "in_features 8 is not a multiple of m = 3"),
        ({"weight": torch.full((2, 2), torch.nan)}, ValueError, "weight must be finite"),
        ({"weight": torch.full((2, 2), 1e30), "dtype": torch.float16}, ValueError, "does not fit"),
        ({"scale": torch.ones(4)}, ValueError, "scale is for an int8 weight"),
        ({"weight": torch.ones(2, 2, dtype=torch.int8)}, ValueError, "needs scale"),
        (
            {"weight": torch.full((2, 2), -128, dtype=torch.int8), "scale": torch.ones(2)},
            ValueError,
            "within -127 and 127, got -128",
        ),
        (
            {"weight": torch.ones(2, 2, dtype=torch.int8), "scale": torch.ones(3)},
            ValueError,
            r"scale must have shape \(2,\)",
        ),
        (
            {
                "weight": torch.ones(2, 2, dtype=torch.int8),
                "scale": torch.ones(2),
                "dtype": torch.float32,
            },
            TypeError,
            "an int8 weight is stored as int8",
        ),
        (
            {"weight": torch.zeros(1, 262148), "layout": "block"},
            NotImplementedError,
            "at most 262144 input features",
        ),
    ],
)
def test_errors_of_pack(arguments, error, text):
    arguments = {"weight": torch.ones(4, 8), **arguments}
    with pytest.raises(error, match=text):
        lk.pack_sparse(arguments.pop("weight"), arguments.pop("layout", "bitmask"), **arguments)


def test_errors_of_unpack():
    packed = lk.pack_sparse(pruned(8, 8))
    with pytest.raises(TypeError, match="must be a SparseWeight, got Tensor"):
        lk.unpack_sparse(packed.packed)
    with pytest.raises(TypeError, match=r"can't be given as torch\.int8"):
        packed.to_dense(torch.int8)


@pytest.mark.parametrize("layout", ["bitmask", "block"])
def test_damaged_weights_are_refused(layout):
    packed = lk.pack_sparse(pruned(40, 100), layout, dtype=torch.int8).packed

    def changed(at: int, value: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        copy_ = packed.clone()
        copy_.view(dtype)[at] = value
        return copy_

    for damaged, text in (
        (packed[:100], "must come from pack_sparse"),
        (packed[:-64], "truncated or damaged"),
        (torch.cat([packed, packed[:64]]), "truncated or damaged"),
        (changed(0, 7), "not made by pack_sparse"),
        (changed(1, 2), "packed as version 2, this release reads version 1"),
        (changed(2, 9), "nonsense"),
        (changed(4, -1), "nonsense"),
        (changed(8, 1), "truncated or damaged"),
        (packed.float(), "must come from pack_sparse, got torch.float32"),
    ):
        with pytest.raises(ValueError, match=text):
            lk.SparseWeight(damaged)
    header = packed[:128].view(torch.int64).tolist()
    offsets_at = 128 + 2 * 4 * (-(-header[4] // 16) * 16)
    pattern_at = offsets_at + 64
    with pytest.raises(ValueError, match="pattern does not match"):
        lk.SparseWeight(changed(offsets_at // 8 + 1, 10**6))
    wrong = -1 if layout == "block" else ~int(packed.view(torch.int16)[pattern_at // 2])
    with pytest.raises(ValueError, match="pattern does not match"):
        lk.SparseWeight(changed(pattern_at // 2, wrong, torch.int16))
    if layout == "block":
        # The second block of a strip before the first.
        second = int(packed.view(torch.int16)[pattern_at // 2 + 1])
        with pytest.raises(ValueError, match="pattern does not match"):
            lk.SparseWeight(changed(pattern_at // 2, second, torch.int16))
