"""The cache of pack_'s times, and predict_sparsity."""

from __future__ import annotations

import json

import lepton_train as lt
import pytest
import torch
from lepton_train import cli, pack_cache, pack_forms
from lepton_train.timing import Timing
from torch import nn


@pytest.fixture
def measured(monkeypatch):
    """Counts measurements, and makes the sparse block form the fastest."""
    calls = []

    def interleaved(functions, *, rounds):
        calls.append(sorted(functions))
        return {
            name: Timing(1.0 if name == "sparse block" else 2.0, 0, 0, rounds) for name in functions
        }

    monkeypatch.setattr(pack_forms, "interleaved", interleaved)
    return calls


def pack(path, rows=2, sparsity=0.75):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 48), nn.Linear(48, 48)).eval()
    model[2].load_state_dict(model[1].state_dict())
    lt.prune_(model, sparsity, pattern="block")
    return lt.pack_(model, example_inputs=torch.randn(rows, 64), cache=path)


def test_equal_layers_and_later_calls_are_measured_once(measured, tmp_path):
    path = tmp_path / "folder" / "pack.json"
    first = pack(path)
    assert len(measured) == 2  # two of the three layers are alike
    assert pack(path).to_dict() == first.to_dict()
    assert len(measured) == 2
    pack(path, rows=3)
    pack(path, sparsity=0.5)
    assert len(measured) == 6
    pack(False)
    assert len(measured) == 8


def test_another_machine_finds_nothing(measured, tmp_path, monkeypatch):
    path = tmp_path / "pack.json"
    pack(path)
    monkeypatch.setattr(pack_cache, "machine", lambda: "elsewhere")
    pack(path)
    assert len(measured) == 4
    machines = json.loads(path.read_text())["machines"]
    assert len(machines) == 2
    assert len(machines["elsewhere"]) == 2


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '{"format": 2}', '{"format": 1, "machines": [1]}', "\udcff", "values"],
)
def test_a_damaged_file_is_measured_anew_and_replaced(measured, tmp_path, damage):
    path = tmp_path / "pack.json"
    pack(path)
    good = path.read_text()
    if damage == "values":
        damage = good.replace(": 1.0", ": -1.0").replace(": 2.0", ": NaN")
    path.write_bytes(damage.encode(errors="surrogateescape"))
    pack(path)
    assert len(measured) == 4
    assert json.loads(path.read_text()) == json.loads(good)


def test_a_file_that_cannot_be_written_is_said(measured, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="pack_: times are not kept"):
        report = pack(tmp_path / "file" / "pack.json")
    assert len(report.packed) == 3


def test_default_path(monkeypatch, tmp_path):
    monkeypatch.setenv("LEPTON_PACK_CACHE", "")
    assert pack_cache.default_path() is None
    monkeypatch.setenv("LEPTON_PACK_CACHE", str(tmp_path / "mine.json"))
    assert pack_cache.default_path() == tmp_path / "mine.json"
    monkeypatch.delenv("LEPTON_PACK_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert pack_cache.default_path() == tmp_path / "lepton" / "pack.json"


def test_prediction_finds_where_sparse_begins_to_win(monkeypatch):
    # Ascending sparsities of the first shape, then of the second.
    times = iter([3.0, 1.0, 3.0, 1.5, 1.0, 3.0, 3.0, 3.0])

    def interleaved(functions, *, rounds):
        sparse = next(times)
        return {n: Timing(sparse if "sparse" in n else 2.0, 0, 0, rounds) for n in functions}

    monkeypatch.setattr(pack_forms, "interleaved", interleaved)
    prediction = lt.predict_sparsity(
        nn.Sequential(nn.Linear(32, 16), nn.Linear(16, 32), nn.Linear(32, 16)),
        sparsities=[0.9, 0.5, 0.7, 0.8],
        patterns=["unstructured"],
        cache=False,
    )
    first, second = prediction.rows
    # 0.7 wins too, but 0.8 does not: sparse wins for good from 0.9 on.
    assert (first.out_features, first.in_features) == (16, 32)
    assert first.sparse_ms == {0.5: 3.0, 0.7: 1.0, 0.8: 3.0, 0.9: 1.5}
    assert first.wins_from == 0.9
    assert second.wins_from is None
    assert "never" in str(prediction)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"sparsities": [1.0]}, ValueError, r"sparsities must lie in \[0, 1\), got 1.0"),
        ({"patterns": ["2:4"]}, ValueError, "pattern must be one of unstructured, block"),
        ({"rows": 0}, ValueError, "rows and rounds must be at least 1, got 0"),
        ({"dtype": torch.int32}, TypeError, "dtype must be float32"),
        ({"shapes": [(0, 4)]}, ValueError, r"a shape must be at least \(1, 1\)"),
        ({"shapes": nn.ReLU()}, ValueError, r"ReLU holds no torch\.nn\.Linear"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=f"predict_sparsity: .*{message}"):
        lt.predict_sparsity(**{"shapes": [(8, 8)], "cache": False, **arguments})


def test_command_line(tmp_path, capsys):
    path = tmp_path / "prediction.json"
    command = ["predict", "32x64", "--rows", "2", "--dtype", "int8", "--rounds", "1"]
    assert cli.main([*command, "--json", str(path)]) == 0
    assert "wins from" in capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    assert [row["pattern"] for row in rows] == ["unstructured", "block"]
    with pytest.raises(SystemExit, match="2"):
        cli.main(["predict", "32"])
    assert "must be OUTxIN" in capsys.readouterr().err
