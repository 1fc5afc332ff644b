import math

import pytest
import torch
from lepton_train.serve.drift import Drift, population_stability_index, statistics


def test_index_against_its_formula():
    expected, found = [0.2, 0.3, 0.5], [0.5, 0.3, 0.2]
    by_hand = sum((f - e) * math.log(f / e) for e, f in zip(expected, found, strict=True))
    assert population_stability_index(expected, found) == pytest.approx(by_hand)
    assert population_stability_index(expected, expected) == 0.0
    assert math.isfinite(population_stability_index([1.0, 0.0], [0.0, 1.0]))


def test_bins_hold_equal_shares_and_ties_are_merged():
    features = {f.name: f for f in statistics(torch.randn(5000, 3))}
    assert set(features) == {
        "input_0.mean", "input_0.std", "input_0[0]", "input_0[1]", "input_0[2]",
    }  # fmt: skip
    assert features["input_0[1]"].shares == pytest.approx([0, *[0.1] * 10, 0], abs=0.005)
    constant = {f.name: f for f in statistics(torch.ones(50, 2))}["input_0[0]"]
    assert constant.edges == pytest.approx([1.0, 1.0])
    assert constant.shares == pytest.approx([1 / 52, 50 / 52, 1 / 52])


def test_a_number_that_was_constant_may_not_change():
    drift = Drift(statistics(torch.ones(50, 2)))
    drift.add({"input_0": torch.ones(500, 2)})
    assert max(drift.indices().values()) < 0.1
    drift.add({"input_0": torch.full((500, 2), 1.001)})
    assert drift.indices()["input_0[0]"] > 1


def test_same_population_is_quiet_and_another_is_loud():
    drift = Drift(statistics(torch.randn(5000, 2)), window=2000)
    drift.add({"input_0": torch.randn(50, 2)})
    assert drift.indices() == {}
    drift.add({"input_0": torch.randn(2000, 2)})
    # In expectation (bins - 1) * (1 / 2000 + 1 / 5000) = 0.0077, a scaled chi-square.
    assert max(drift.indices().values()) < 0.05
    drift.add({"input_0": torch.randn(2000, 2) + torch.tensor([0.0, 1.0])})
    found = drift.indices()
    assert found["input_0[0]"] < 0.05
    assert found["input_0[1]"] > 0.25


def test_statistics_refuse():
    with pytest.raises(ValueError, match="there are no inputs"):
        statistics([])
    with pytest.raises(ValueError, match=r"input_0\.mean must be finite"):
        statistics(torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match="bins must be at least 2, got 1"):
        statistics(torch.ones(3, 1), bins=1)
