import copy

import lepton_train as lt
import pytest
import torch
from torch import nn


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4))
    # One huge weight takes the resolution away from its whole row.
    with torch.no_grad():
        model[2].weight[:, 0] = 50.0
    return model.eval()


@pytest.fixture
def data(model):
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    return x, model(x).detach()


def closeness(model, data):
    return -float((model(data[0]) - data[1]).square().mean())


@pytest.mark.parametrize("mode", ["dynamic", "static", "weight_only"])
def test_finds_the_worst_layer_and_restores(model, data, mode):
    modules = dict(model.named_modules())
    state = copy.deepcopy(model.state_dict())
    calibration = [data[0]] if mode == "static" else None
    seen = []
    table = lt.sensitivity(
        model, data, closeness, mode=mode, calibration=calibration, progress=seen.append
    )
    assert table.worst(1) == ["2"]
    assert [row.loss for row in table.rows] == sorted((r.loss for r in table.rows), reverse=True)
    assert seen == ["0", "2", "3"]
    assert table.baseline == 0.0
    assert all(module is modules[name] for name, module in model.named_modules())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert table.to_dict()["rows"][0]["name"] == "2"
    assert "one layer at a time" in str(table)


def test_include_exclude(model, data):
    table = lt.sensitivity(model, data, closeness, include=["0", "2"], exclude="2")
    assert [row.name for row in table.rows] == ["0"]
    with pytest.raises(ValueError, match="matches no linear layer"):
        lt.sensitivity(model, data, closeness, include="nothing")


def test_restores_after_an_error(model, data):
    calls = []

    def metric(model, data):
        calls.append(0)
        if len(calls) == 3:
            raise RuntimeError("metric broke")
        return 1.0

    with pytest.raises(RuntimeError, match="metric broke"):
        lt.sensitivity(model, data, metric)
    assert all(type(model[i]) is nn.Linear for i in (0, 2, 3))


def test_refusals(model, data):
    with pytest.raises(ValueError, match="mode must be dynamic, static or weight_only"):
        lt.sensitivity(model, data, closeness, mode="qat")
    with pytest.raises(TypeError, match="metric must give a number, got str"):
        lt.sensitivity(model, data, lambda *_: "good")


def test_transformer_encoder_layer_gets_its_fast_path_back():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    before = model.activation_relu_or_gelu
    x = torch.randn(2, 3, 16)
    lt.sensitivity(model, x, lambda m, x: float(m(x).mean()))
    assert model.activation_relu_or_gelu == before == 1


def test_a_metric_by_its_name():
    x, y = torch.randn(60, 6), torch.randn(60, 1)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).eval()

    def negative(model, data):
        return -float((model(data[0]) - data[1]).square().mean())

    named = lt.sensitivity(model, (x, y), "mean_squared_error")
    own = lt.sensitivity(model, (x, y), negative)
    assert named.baseline == pytest.approx(own.baseline, rel=1e-5)
    assert [row.name for row in named.rows] == [row.name for row in own.rows]
    labels = torch.randint(0, 2, (60,))
    model = nn.Linear(6, 2)
    right = (model(x).argmax(1) == labels).float().mean().item()
    for metric in ("accuracy", lt.metrics.accuracy, lt.metrics.weighted({"accuracy": 1})):
        table = lt.sensitivity(nn.Sequential(model), (x, labels), metric)
        assert table.baseline == pytest.approx(right)
    with pytest.raises(ValueError, match="'acuracy' is unknown; nearest names: accuracy"):
        lt.sensitivity(model, (x, labels), "acuracy")
    with pytest.raises(TypeError, match="metric must be a name or a callable, got int"):
        lt.sensitivity(model, (x, labels), 3)
