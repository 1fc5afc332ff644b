import copy
import pickle

import lepton_train as lt
import pytest
import torch
from torch import nn

from lepton_kernels.nn import Int8Linear


class Tied(nn.Module):
    """Embedding and head share one weight; two inner layers share another."""

    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(50, 32)
        self.first = nn.Linear(32, 32)
        self.block = nn.ModuleDict({"inner": nn.Sequential(nn.Linear(32, 64), nn.ReLU())})
        self.down = nn.Linear(64, 32)
        self.second = nn.Linear(32, 32)
        self.second.weight = self.first.weight
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, tokens):
        x = self.second(self.first(self.emb(tokens)))
        return self.head(self.down(self.block["inner"](x)) + x)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tied().eval()


@pytest.fixture
def tokens():
    return torch.randint(0, 50, (4, 9), generator=torch.Generator().manual_seed(1))


def relative_error(out, expected):
    return ((out - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("mode", ["dynamic", "static", "weight_only", "qat"])
@pytest.mark.parametrize("group_size", [None, 16])
def test_output_stays_close_in_every_mode(model, tokens, mode, group_size):
    expected = model(tokens).detach()
    calibration = [(tokens,)] if mode == "static" else None
    report = lt.quantize_(model, mode, calibration=calibration, group_size=group_size)
    assert len(report.quantized) == 5
    assert relative_error(model(tokens).detach(), expected) < 0.05


@pytest.mark.parametrize(
    "calibration",
    [
        lambda tokens: [tokens],
        lambda tokens: [(tokens,)],
        lambda tokens: [{"tokens": tokens}],
        lambda tokens: (batch for batch in [tokens, tokens]),
        lambda tokens: lambda model: model(tokens),
        lambda tokens: [(tokens, torch.zeros(len(tokens)))],
        lambda tokens: [{"tokens": tokens, "labels": torch.zeros(len(tokens))}],
    ],
    ids=["tensor", "tuple", "dict", "generator", "callable", "labelled", "labelled_dict"],
)
def test_kinds_of_calibration(model, tokens, calibration):
    report = lt.quantize_(model, "static", calibration=calibration(tokens))
    assert all(row.x_scale > 0 and -128 <= row.x_zero_point <= 127 for row in report.rows)
    assert model.first.x_scale.item() == pytest.approx(report.rows[0].x_scale)


def test_asymmetric_by_default_and_symmetric_on_demand(model, tokens):
    other = copy.deepcopy(model)
    report = lt.quantize_(model, "static", calibration=[tokens])
    rows = {row.name: row for row in report.rows}
    assert rows["down"].x_zero_point == -128  # the output of a ReLU
    report = lt.quantize_(other, "static", calibration=[tokens], symmetric=True)
    assert {row.x_zero_point for row in report.rows} == {0}


def test_report(model, tokens):
    report = lt.quantize_(model, exclude=["head", "block.*"])
    assert report.quantized == ["first", "down", "second"]
    assert report.left == {
        "block.inner.0": "excluded by 'block.*'",
        "head": "excluded by 'head'",
    }
    row = report.rows[0]
    assert (row.name, row.in_features, row.out_features, row.action) == ("first", 32, 32, "int8")
    assert row.bytes_before == 4 * (32 * 32 + 32)
    # Header, sums, weight with its 32 input features padded to 64, scales, bias.
    assert row.bytes_after == 64 + 4 * 32 + 32 * 64 + 4 * 32 + 4 * 32
    plain = report.to_dict()
    assert plain["quantized"] == 3
    assert plain["left"] == 2
    assert plain["rows"][0]["name"] == "first"
    text = str(report)
    assert "excluded by 'head'" in text
    assert "3 of 5 linear layers" in text
    assert report.model_bytes_after < report.model_bytes_before


def test_include_names_a_layer_or_what_is_around_it(model):
    report = lt.quantize_(model, include=["block", "d*n"], exclude="down")
    assert report.quantized == ["block.inner.0"]
    assert report.left["first"] == "not named by include"


def test_pattern_that_matches_nothing(model):
    with pytest.raises(ValueError, match=r"exclude pattern 'haed' matches no .* names: head"):
        lt.quantize_(model, exclude="haed")
    assert type(model.first) is nn.Linear


def test_tied_weights(model, tokens):
    embedding = model.emb.weight.detach().clone()
    report = lt.quantize_(model)
    notes = {row.name: row.reason for row in report.rows}
    assert notes["head"] == "weight shared with emb.weight, which stays float"
    assert notes["second"] == "shares the int8 weight of first"
    assert model.second.packed_weight is model.first.packed_weight
    assert torch.equal(model.emb.weight, embedding)
    assert copy.deepcopy(model).first.packed_weight is not model.first.packed_weight


def test_tie_survives_training(model):
    lt.quantize_(model, "qat")
    assert model.head.weight is model.emb.weight
    lt.convert_(model)
    assert model.second.packed_weight is model.first.packed_weight


def test_one_module_in_two_places():
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    report = lt.quantize_(model)
    assert [row.reason for row in report.rows] == ["also known as 2"]
    assert model[0] is model[2]


def test_multihead_attention_and_encoder_layer():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2, enable_nested_tensor=False
    ).eval()
    x = torch.randn(3, 5, 32)
    with torch.no_grad():
        expected = model(x)
        report = lt.quantize_(model)
        out = model(x)
    assert "MultiheadAttention reads its weight" in report.left["layers.0.self_attn.out_proj"]
    assert report.quantized == [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
    assert relative_error(out, expected) < 0.02


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_subclass_is_left_with_a_reason_or_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4), Scaled(4, 4))
    with pytest.raises(TypeError, match="'1' can't be replaced: Scaled is a subclass"):
        lt.quantize_(model, include=["0", "1"])
    assert type(model[0]) is nn.Linear
    report = lt.quantize_(model)
    assert report.left == {"1": "Scaled is a subclass of nn.Linear and may compute something else"}


@pytest.mark.parametrize("mode", ["dynamic", "static", "weight_only", "fp8"])
def test_masked_layers_are_quantised_with_their_zeros(mode):
    def pruned():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
        lt.prune_(net, 0.5, exclude="2")
        return net

    x = torch.randn(8, 32)

    def quantise(net):
        if mode == "fp8":
            return lt.lower_(net, "fp8")
        return lt.quantize_(net, mode, calibration=[x] if mode == "static" else None)

    masked, plain = pruned(), lt.make_permanent_(pruned())
    zeros = masked[0].weight == 0
    assert quantise(masked).quantized == ["0", "2"]
    quantise(plain)
    assert (masked[0].weight[zeros] == 0).all()
    assert torch.equal(masked(x), plain(x))


def test_masked_layers_are_left_by_qat_and_seen_by_sensitivity():
    net = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    lt.prune_(net, 0.5, include="0")
    layer = net[0]
    table = lt.sensitivity(net, torch.randn(8, 32), lambda m, x: float(m(x).mean()))
    assert {row.name for row in table.rows} == {"0", "2"}
    assert net[0] is layer
    report = lt.quantize_(net, "qat")
    assert report.quantized == ["2"]
    assert "call make_permanent_ first" in report.left["0"]


def test_hooks_float64_and_meta_are_left():
    hooked = nn.Linear(4, 4)
    hooked.register_forward_hook(lambda *_: None)
    model = nn.Sequential(hooked, nn.Linear(4, 4).double(), nn.Linear(4, 4, device="meta"))
    left = lt.quantize_(model).left
    assert "hooks" in left["0"]
    assert "float64" in left["1"]
    assert "meta" in left["2"]


def test_layer_that_calibration_never_reached_is_left(model, tokens):
    model.unused = nn.Linear(4, 4)
    report = lt.quantize_(model, "static", calibration=[tokens])
    assert report.left == {"unused": "calibration never reached it"}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "int8"}, ValueError, "mode must be one of dynamic, static, weight_only, qat"),
        ({"mode": "static"}, ValueError, "needs calibration data"),
        ({"calibration": [1]}, ValueError, "calibration has no use in mode 'dynamic'"),
        ({"observer": "median"}, ValueError, "observer must be one of minmax, percentile, mse"),
        ({"group_size": 0}, ValueError, "group_size must be a positive int"),
        ({"group_size": 24}, ValueError, "must divide in_features of 'first', got 32"),
        ({"include": [3]}, TypeError, "include must hold strings, got int"),
        ({"mode": "static", "calibration": []}, ValueError, "at least one batch"),
        ({"mode": "static", "calibration": 3}, TypeError, "iterable of batches or a callable"),
        ({"mode": "static", "calibration": lambda m: None}, ValueError, "reached none"),
    ],
)
def test_refusals(model, arguments, error, message):
    with pytest.raises(error, match=message):
        lt.quantize_(model, **arguments)
    assert all(type(layer) is nn.Linear for layer in (model.first, model.head))


def test_refused_models():
    with pytest.raises(ValueError, match="model is itself a Linear"):
        lt.quantize_(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"holds no torch\.nn\.Linear"):
        lt.quantize_(nn.ReLU())
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, got int"):
        lt.quantize_(3)
    with pytest.raises(ValueError, match="no layer in quantisation-aware training"):
        lt.convert_(nn.Sequential(nn.Linear(2, 2)))


def test_not_finite_weight_or_data_names_the_layer(model, tokens):
    with torch.no_grad():
        model.down.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="at the input of 'head'"):
        lt.quantize_(model, "static", calibration=[tokens])
    with pytest.raises(ValueError, match="weight of 'down' must be finite"):
        lt.quantize_(model)
    assert type(model.first) is nn.Linear
    assert not model.first._forward_pre_hooks


@pytest.mark.parametrize("mode", ["dynamic", "static"])
def test_state_dict_deepcopy_and_pickle(model, tokens, mode):
    float_model = copy.deepcopy(model)
    calibration = [tokens] if mode == "static" else None
    lt.quantize_(model, mode, calibration=calibration)
    expected = model(tokens)
    fresh = copy.deepcopy(float_model)
    lt.quantize_(fresh)
    with torch.no_grad():
        for parameter in fresh.parameters():
            parameter.zero_()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(tokens), expected)
    assert torch.equal(copy.deepcopy(model)(tokens), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(tokens), expected)
    assert model.state_dict()["first.weight"].dtype == torch.int8


@pytest.mark.parametrize("static", [False, True])
def test_quantisation_aware_training(static):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    x, target = torch.randn(64, 16), torch.randn(64, 4)
    report = lt.quantize_(model, "qat", calibration=[x] if static else None)
    assert {row.action for row in report.rows} == {"int8 qat"}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    trained = model(x).detach()
    report = lt.convert_(model)
    assert report.quantized == ["0", "2"]
    assert isinstance(model[0], Int8Linear)
    assert torch.equal(model(x), trained)


def test_fuse_keeps_outputs_and_state_dict():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8), nn.Tanh()).eval()
    lt.quantize_(model)
    x = torch.randn(5, 32)
    expected, keys = model(x), set(model.state_dict())
    assert lt.fuse_(model).activations == ["0"]
    assert set(model.state_dict()) == keys
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=2e-3)
