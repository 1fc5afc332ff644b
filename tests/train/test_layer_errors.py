"""A layer that can't take its input is named, wherever a model runs."""

import lepton_train as lt
import pytest
import torch
from lepton_train.layer_errors import layers_named
from torch import nn


@pytest.mark.parametrize(
    ("layer", "x", "said"),
    [
        (nn.Linear(4, 2), torch.zeros(3, 5), r"\(Linear\) takes 4 features, got .* \(3, 5\)"),
        (nn.Linear(4, 2), torch.zeros(3, 4).double(), "weights of torch.float32, got .*float64"),
        (nn.Conv2d(3, 2, 1), torch.zeros(1, 4, 8, 8), "takes 3 channels and 2 more dimensions"),
        (nn.Conv2d(3, 2, 1), torch.zeros(8, 8), r"got an input of shape \(8, 8\)"),
        (nn.Embedding(10, 2), torch.tensor([3, 10]), r"takes indices in \[0, 10\), got 10"),
        (nn.Embedding(10, 2), torch.tensor([-1, 3]), r"takes indices in \[0, 10\), got -1"),
    ],
)
def test_names_the_layer_and_what_did_not_fit(layer, x, said):
    model = nn.Sequential(nn.Sequential(nn.Identity(), layer))
    with pytest.raises(ValueError, match=r"layer '0\.1' .*" + said) as caught, layers_named(model):
        model(x)
    assert isinstance(caught.value.__cause__, (RuntimeError, IndexError))


def test_other_errors_pass():
    def fails():
        raise RuntimeError("of another kind")

    with pytest.raises(RuntimeError, match="of another kind"), layers_named(nn.Linear(2, 2)):
        fails()
    # An index that would come as torch's own message is no mismatch of the layer.
    with pytest.raises(RuntimeError, match="Expected"), layers_named(None):
        nn.Embedding(4, 2)(torch.zeros(2))


def test_every_way_to_run_a_model_says_it(tmp_path):
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(6, 7)
    data = (x, torch.arange(6) % 2)
    ways = [
        lambda: lt.evaluate(model, data),
        lambda: lt.quantize_(model, "static", calibration=[x]),
        lambda: lt.pack_(model, example_inputs=x),
        lambda: lt.sensitivity(model, data, "accuracy"),
        lambda: lt.Distiller(model, nn.Linear(7, 2)).fit(data, progress=False),
    ]
    for way in ways:
        with pytest.raises(ValueError, match=r"layer '0' \(Linear\) takes 8 features"):
            way()
    lt.prune_(model, 0.5)
    with pytest.raises(ValueError, match=r"'0' \(ParametrizedLinear\) takes 8 features"):
        lt.recover_(model, [x])
