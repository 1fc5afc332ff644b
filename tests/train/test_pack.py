"""pack_: swaps in what measured faster, keeps the rest, says why."""

from __future__ import annotations

import lepton_train as lt
import pytest
import torch
from lepton_train import pack_forms
from lepton_train.timing import Timing
from torch import nn

import lepton_kernels as lk


@pytest.fixture
def fastest(monkeypatch):
    """Makes one candidate look fastest; timing itself is not what these tests are about."""

    def choose(name: str) -> None:
        def interleaved(functions, *, rounds):
            for function in functions.values():
                function()
            return {key: Timing(1.0 if key == name else 2.0, 0, 0, rounds) for key in functions}

        monkeypatch.setattr(pack_forms, "interleaved", interleaved)

    return choose


def pruned_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8)).eval()
    lt.prune_(model, 0.75, pattern="block", include="0")
    return model


@pytest.mark.parametrize("winner", ["sparse bitmask", "sparse block"])
def test_swaps_the_fastest(fastest, winner):
    fastest(winner)
    model, x = pruned_model(), torch.randn(5, 64)
    expected = model(x)
    report = lt.pack_(model, example_inputs=x)
    assert report.packed == ["0"]
    assert isinstance(model[0], lk.nn.SparseLinear)
    assert model[0].layout == winner.split()[1]
    assert type(model[2]) is nn.Linear
    torch.testing.assert_close(model(x), expected)
    row = report.rows[0]
    assert (row.rows, row.decision, row.reason) == (5, winner, "2.00 times as fast")
    assert row.bytes_after < row.bytes_before
    assert row.sparsity == pytest.approx(0.75, abs=0.02)
    assert report.rows[1].reason == "has no zeros"
    assert "1 of 2 layers packed" in str(report)
    assert report.to_dict()["packed"] == 1


def test_keeps_dense_where_it_is_faster(fastest):
    fastest("dense")
    model, x = pruned_model(), torch.randn(5, 64)
    report = lt.pack_(model, example_inputs=(x,))
    assert type(model[0]) is nn.Linear
    assert report.packed == []
    assert report.rows[0].reason == "no other form measured faster"


def test_int8_competes(fastest):
    fastest("int8")
    model = pruned_model()
    lt.pack_(model, example_inputs={"input": torch.randn(2, 64)}, dtype=torch.int8)
    assert isinstance(model[0], lk.nn.Int8Linear)


def test_measures_for_real():
    model = pruned_model()
    report = lt.pack_(model, example_inputs=torch.randn(2, 64), rounds=1)
    assert set(report.rows[0].measured_ms) == {"dense", "sparse bitmask", "sparse block"}


def test_exclude_and_errors():
    model = pruned_model()
    x = torch.randn(2, 64)
    report = lt.pack_(model, example_inputs=x, exclude="0")
    assert report.rows[0].reason == "excluded by '0'"
    with pytest.raises(ValueError, match="pack_: exclude pattern 'head' matches no linear layer"):
        lt.pack_(model, example_inputs=x, exclude="head")
    with pytest.raises(TypeError, match="pack_: dtype must be float32"):
        lt.pack_(model, example_inputs=x, dtype=torch.int32)
    with pytest.raises(ValueError, match="pack_: rounds must be at least 1, got 0"):
        lt.pack_(model, example_inputs=x, rounds=0)
    with pytest.raises(TypeError, match=r"pack_: model must be a torch\.nn\.Module"):
        lt.pack_([], example_inputs=x)
