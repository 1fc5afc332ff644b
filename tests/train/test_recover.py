"""`recover_`: the least-squares solution for the weights that a mask keeps."""

import copy

import lepton_train as lt
import pytest
import torch
from lepton_train.prune_masks import mask_of
from torch import nn


def correlated(rows, columns):
    return torch.randn(rows, columns) @ torch.randn(columns, columns) / columns**0.5


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "block"])
def test_finds_the_least_squares_solution(pattern):
    layer = nn.Linear(48, 32, bias=False)
    dense = layer.weight.detach().clone()
    model, x = nn.Sequential(layer), correlated(500, 48)
    lt.prune_(model, 0.5, pattern=pattern)
    mask = mask_of(layer).mask.clone()
    row = lt.recover_(model, [x[:200], x[200:]], damping=1e-9).rows[0]
    assert torch.equal(mask_of(layer).mask, mask)
    x64 = x.double()
    for n in (0, 7, 31):
        kept = mask[n]
        expected = torch.linalg.lstsq(x64[:, kept], x64 @ dense[n].double()).solution
        torch.testing.assert_close(layer.weight[n, kept].double(), expected, rtol=1e-3, atol=1e-4)
        assert (layer.weight[n, ~kept] == 0).all()
    error = (x64 @ (layer.weight - dense).double().T).square().sum() / (
        x64 @ dense.double().T
    ).square().sum()
    assert row.error_after == pytest.approx(error.item(), rel=1e-3)
    assert row.error_after < row.error_before


def test_descends_to_nearly_the_least_error_where_rows_have_masks_of_their_own():
    model, x = nn.Sequential(nn.Linear(256, 128, bias=False)), correlated(2000, 256)
    dense = model[0].weight.detach().double()
    scale = torch.logspace(-1, 1, 256)  # inputs of different size, as activations have
    lt.prune_(model, 0.5, criterion="wanda", data=[x * scale])
    mask = mask_of(model[0]).mask
    row = lt.recover_(model, [x * scale]).rows[0]
    original = model[0].parametrizations.weight.original.detach().double()
    assert torch.equal(original[~mask], dense[~mask])
    moment = (x * scale).double()
    moment = moment.T @ moment
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(256)

    def error(weight, of):
        lost = dense - weight * mask
        return (lost @ of * lost).sum()

    exact = torch.zeros_like(dense)
    for n, kept in enumerate(mask):
        exact[n, kept] = torch.linalg.solve(damped[kept][:, kept], damped[kept] @ dense[n])
    assert error(original, damped) < 1.01 * error(exact, damped)
    total = (dense @ moment * dense).sum()
    assert row.error_after == pytest.approx((error(original, moment) / total).item(), rel=1e-3)


@pytest.mark.parametrize("passes", [2, 9])
def test_later_passes_see_recovered_layers(passes):
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
    x = correlated(400, 32)
    lt.prune_(model, 0.7)
    twin = copy.deepcopy(model)
    both = lt.recover_(model, [x], passes=passes)
    lt.recover_(twin, [x], include="0")
    lt.recover_(twin, [x], include="2")
    assert [row.name for row in both.rows] == ["0", "2"]
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_moments_keep_float32_under_autocast():
    layers = [nn.Sequential(nn.Linear(64, 32)) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    x = correlated(300, 64).bfloat16().float()
    for model in layers:
        lt.prune_(model, 0.5)
    lt.recover_(layers[0], [x])
    with torch.autocast("cpu", torch.bfloat16):
        lt.recover_(layers[1], [x])
    assert torch.equal(layers[0][0].weight, layers[1][0].weight)


def test_inputs_are_those_of_the_pruned_model_and_layers_can_be_left():
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))
    x = correlated(400, 32)
    expected = model(x).detach()
    lt.prune_(model, 0.6)
    pruned = (model(x) - expected).square().mean().item()
    first = model[0].weight.detach().clone()
    report = lt.recover_(model, lambda m: m(x), exclude="0")
    assert [row.name for row in report.rows] == ["2"]
    assert torch.equal(model[0].weight, first)
    assert "recovered" in str(report)
    assert list(report.to_dict()["rows"][0]) == ["name", "error_before", "error_after"]
    lt.recover_(model, [x], include="0")
    assert (model(x) - expected).square().mean().item() < pruned


def test_layers_without_zeros_or_without_weights_stay():
    model = nn.Sequential(nn.Linear(8, 4))
    lt.prune_(model, 0.0)
    before = model[0].weight.detach().clone()
    assert lt.recover_(model, [torch.randn(20, 8)]).rows[0].error_after == 0.0
    assert torch.equal(model[0].weight, before)


def test_refusals():
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4))
    x = torch.randn(20, 8)
    with pytest.raises(ValueError, match="no layer of the model has a mask; call prune_ first"):
        lt.recover_(model, [x])
    lt.prune_(model, 0.5)
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got int"):
        lt.recover_(3, [x])
    with pytest.raises(ValueError, match="damping must be above 0, got 0"):
        lt.recover_(model, [x], damping=0)
    with pytest.raises(ValueError, match="passes must be at least 1, got 0"):
        lt.recover_(model, [x], passes=0)
    with pytest.raises(ValueError, match="exclude"):
        lt.recover_(model, [x], exclude="nothing")
    with pytest.raises(ValueError, match="0: its input holds NaN"):
        lt.recover_(model, [x * torch.nan])
    with pytest.raises(ValueError, match="1: the data never reached this layer"):
        lt.recover_(model, lambda m: m[0](x))
