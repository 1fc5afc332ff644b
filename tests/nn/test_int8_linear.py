"""Int8Linear and Int8LinearQAT as modules: making, saving, loading, copying, compiling."""

import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn

import lepton_kernels as lk

KINDS = {
    "dynamic": {},
    "groups": {"group_size": 22},
    "weight_only": {"weight_only": True},
    "static": {"x_scale": 0.02},
    "static_zero": {"x_scale": torch.tensor(0.02), "x_zero_point": 7},
    "gelu": {"activation": "gelu"},
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def make(kind="dynamic", bias=True, dtype=torch.float32):
    linear = nn.Linear(66, 18, bias=bias).to(dtype)
    return lk.nn.Int8Linear.from_linear(linear, **KINDS[kind]), linear


@EVERY_KIND
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_forward_is_one_call(implementation, compare, dtype, bias, kind):
    layer, linear = make(kind, bias, dtype)
    keywords = dict(KINDS[kind])
    weight, scale = lk.quantize_int8(linear.weight.detach(), group_size=keywords.get("group_size"))
    keywords.pop("group_size", None)
    for name, number in (("x_scale", torch.float32), ("x_zero_point", torch.int32)):
        if "x_scale" in keywords:
            keywords[name] = torch.as_tensor(keywords.get(name, 0), dtype=number)
    x, residual = torch.randn(2, 5, 66).to(dtype), torch.randn(2, 5, 18).to(dtype)
    expected = lk.int8_linear(x, weight, scale, linear.bias, residual=residual, **keywords)
    compare.same_bits(layer(x, residual), expected.detach())
    compare.same_bits(layer.weight, weight)


@EVERY_KIND
def test_near_the_float_layer(kind):
    layer, linear = make(kind)
    x = torch.randn(20, 66)
    expected = linear(x)
    if kind == "gelu":
        expected = nn.functional.gelu(expected)
    # A weight is off by half a step of at most max|w| / 127, |w| <= 66^-0.5; an input by half a
    # step of max|x| / 127 (dynamic), or of 0.02 and by what is clipped (static).
    largest = 66**-0.5
    lost = (x.abs() - 0.02 * 120).clamp(min=0).sum(1) if "static" in kind else torch.zeros(20)
    step = x.abs().amax(1) / 127 if "static" not in kind else torch.full((20,), 0.02)
    error = x.abs().sum(1) * largest / 254 + 66 * largest * step / 2 + lost * largest
    # gelu's slope is below 1.13; products of two errors and rounding: 5 % more.
    assert ((layer(x) - expected).abs() <= 1.13 * 1.05 * error[:, None]).all()


@EVERY_KIND
@pytest.mark.parametrize("isa_load", ["generic", "avx2", "vnni", "amx"])
def test_state_dict_travels_between_isas(isa, compare, kind, isa_load):
    if isa_load not in lk.info()["isa_present"]:
        pytest.skip(f"{isa_load} is absent on this machine")
    layer, _ = make(kind)
    x = torch.randn(9, 66)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    expected = layer(x)
    file.seek(0)
    with lk.force_isa(isa_load):
        fresh, _ = make("groups" if kind == "groups" else "dynamic")
        fresh.weight_only, fresh.activation = layer.weight_only, layer.activation
        assert not any(fresh.load_state_dict(torch.load(file, weights_only=True)))
        compare_to = fresh(x)
    if layer.activation is None:
        compare.same_bits(compare_to, expected)
    else:
        assert compare.ulps(compare_to, expected) == 0


@EVERY_KIND
def test_state_dict_is_canonical(kind):
    layer, _ = make(kind)
    state = layer.state_dict()
    expected = {"weight", "weight_scale", "bias"}
    if "static" in kind:
        expected |= {"x_scale", "x_zero_point"}
    assert set(state) == expected
    assert (state["weight"].dtype, state["weight"].shape) == (torch.int8, (18, 66))
    assert state["weight_scale"].dtype == torch.float32


def test_load_without_bias_and_in_a_model(compare):
    model = nn.Sequential(make(bias=False)[0], nn.ReLU(), nn.Linear(18, 3))
    other = nn.Sequential(make(bias=False)[0], nn.ReLU(), nn.Linear(18, 3))
    other.load_state_dict(model.state_dict())
    x = torch.randn(4, 66)
    compare.same_bits(other(x), model(x))


def changed(state, **changes):
    state = dict(state) | changes
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": None}, 'Missing key(s) in state_dict: "weight"'),
        ({"weight_scale": None}, 'Missing key(s) in state_dict: "weight_scale"'),
        ({"bias": None}, 'Missing key(s) in state_dict: "bias"'),
        ({"extra": torch.ones(1)}, 'Unexpected key(s) in state_dict: "extra"'),
        (
            {"weight": torch.ones(18, 66)},
            "Int8Linear: weight must be int8 (the canonical weight), got torch.float32",
        ),
        (
            {"weight": torch.ones(18, 60, dtype=torch.int8)},
            "Int8Linear: weight must have shape (18, 66), got (18, 60)",
        ),
        ({"weight_scale": torch.ones(17)}, "size mismatch for weight_scale"),
        (
            {"weight_scale": torch.full((18,), torch.nan)},
            "Int8Linear: weight_scale must be finite, got NaN or infinity",
        ),
        ({"bias": torch.ones(3)}, "size mismatch for bias"),
    ],
    ids=["no_weight", "no_scale", "no_bias", "extra", "float", "shape", "scale", "nan", "bias"],
)
def test_bad_state_dicts(change, message):
    layer, _ = make()
    state = changed(layer.state_dict(), **change)
    with pytest.raises(RuntimeError, match=re.escape(message)):
        make()[0].load_state_dict(state)


def test_missing_keys_when_not_strict():
    layer, _ = make()
    before = layer.weight
    result = layer.load_state_dict({"extra": torch.ones(1)}, strict=False)
    assert set(result.missing_keys) == {"weight", "weight_scale", "bias"}
    assert result.unexpected_keys == ["extra"]
    assert torch.equal(layer.weight, before)


def test_truncated_file():
    file = io.BytesIO()
    torch.save(make()[0].state_dict(), file)
    with pytest.raises((RuntimeError, EOFError, pickle.UnpicklingError)):
        torch.load(io.BytesIO(file.getvalue()[:-300]), weights_only=True)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
}


@EVERY_KIND
@pytest.mark.parametrize("how", COPIES)
def test_copies(compare, how, kind):
    layer, _ = make(kind)
    again = COPIES[how](layer)
    x = torch.randn(4, 66)
    compare.same_bits(again(x), layer(x))
    assert again.packed_weight.data_ptr() != layer.packed_weight.data_ptr()
    assert repr(again) == repr(layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtype_moves_leave_the_quantisation(compare, dtype):
    layer, _ = make("static_zero")
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer.to(dtype)
    assert layer.bias.dtype == dtype
    for name in ("weight", "weight_scale", "x_scale", "x_zero_point"):
        compare.same_bits(layer.state_dict()[name], before[name])
    assert layer(torch.randn(3, 66, dtype=dtype)).dtype == dtype


def test_meta_device():
    layer, _ = make()
    layer.to("meta")
    assert layer(torch.ones(3, 66, device="meta")).shape == (3, 18)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("dynamic", "in_features=66, out_features=18, bias=True, dynamic"),
        ("groups", "in_features=66, out_features=18, bias=True, dynamic, group_size=22"),
        ("weight_only", "in_features=66, out_features=18, bias=True, weight_only"),
        ("static", "in_features=66, out_features=18, bias=True, static, x_scale=0.02"),
        ("gelu", "in_features=66, out_features=18, bias=True, dynamic, activation=gelu"),
    ],
)
def test_extra_repr(kind, text):
    assert make(kind)[0].extra_repr() == text


def test_modes():
    linear = nn.Linear(8, 4).eval()
    layer = lk.nn.Int8Linear.from_linear(linear)
    assert not layer.training
    assert layer.train().training
    assert lk.nn.Int8Linear.from_linear(linear.train()).training
    assert not any(p.requires_grad for p in layer.parameters())


def test_dequantized_weight():
    layer, linear = make("groups")
    step = layer.weight_scale.repeat_interleave(22, 1)
    # Half a step, and the roundings of a level of at most 127.
    assert ((layer.dequantized_weight() - linear.weight).abs() <= step * (0.5 + 2.0**-15)).all()


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(compare, backend):
    layer, _ = make("gelu")
    x = torch.randn(5, 66)
    compare.same_bits(torch.compile(layer, fullgraph=True, backend=backend)(x), layer(x))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda c: c(nn.Conv1d(1, 1, 1)),
            TypeError,
            "linear must be a torch.nn.Linear, got Conv1d",
        ),
        (
            lambda c: c(nn.Linear(8, 4), weight_dtype=torch.int4),
            NotImplementedError,
            "weight_dtype must be torch.int8, got torch.int4",
        ),
        (
            lambda c: c(nn.Linear(8, 4), x_zero_point=1),
            ValueError,
            "x_zero_point needs x_scale",
        ),
        (
            lambda c: c(nn.Linear(8, 4), x_scale=-1.0),
            ValueError,
            "x_scale must be finite, positive and above 2^-128, got -1.0",
        ),
        (
            lambda c: c(nn.Linear(8, 4), x_scale=torch.ones(3)),
            ValueError,
            "x_scale must have shape (), got (3,)",
        ),
        (
            lambda c: c(nn.Linear(8, 4), x_scale=0.1, x_zero_point=128),
            ValueError,
            "x_zero_point must be within -128 and 127, got 128",
        ),
    ],
    ids=["type", "weight_dtype", "zero_point", "scale", "scale_shape", "zero_range"],
)
def test_from_linear_refuses(build, error, message):
    with pytest.raises(error, match=re.escape(f"Int8Linear.from_linear: {message}")):
        build(lk.nn.Int8Linear.from_linear)


def test_refuses_group_activation_and_nan():
    linear = nn.Linear(8, 4)
    with pytest.raises(ValueError, match="group_size must divide in_features 8, got 3"):
        lk.nn.Int8Linear.from_linear(linear, group_size=3)
    with pytest.raises(ValueError, match="activation must be None or one of"):
        lk.nn.Int8Linear.from_linear(linear, activation="swish")
    with torch.no_grad():
        linear.weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match="weight must be finite, got NaN or infinity"):
        lk.nn.Int8Linear.from_linear(linear)


@pytest.mark.parametrize("group_size", [None, 22])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_qat_trains_and_ships(compare, static, group_size):
    linear = nn.Linear(66, 18)
    x_scale = torch.tensor(0.03) if static else None
    layer = lk.nn.Int8LinearQAT.from_linear(linear, group_size=group_size, x_scale=x_scale)
    assert layer.weight is linear.weight
    assert set(layer.state_dict()) == {"weight", "bias", *(["x_scale"] if static else [])}
    x, target = torch.randn(64, 66), torch.randn(64, 18)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(20):
        loss = (layer(x) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    compare.same_bits(layer.to_int8()(x), layer(x).detach())
    compare.same_bits(copy.deepcopy(layer)(x).detach(), layer(x).detach())


def test_qat_state_dict_holds_static_scales():
    linear = nn.Linear(16, 4)
    scale, zero_point = torch.tensor(0.02), torch.tensor(3, dtype=torch.int32)
    layer = lk.nn.Int8LinearQAT.from_linear(linear, x_scale=scale, x_zero_point=zero_point)
    other = lk.nn.Int8LinearQAT(16, 4)
    assert str(other.load_state_dict(layer.state_dict())) == "<All keys matched successfully>"
    x = torch.randn(5, 16)
    assert torch.equal(other(x), layer(x))
    assert layer.bfloat16().x_scale.dtype == torch.float32
    layer.load_state_dict(nn.Linear(16, 4).state_dict())  # of a float layer: scales are kept
    assert layer.x_scale == scale
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        layer.load_state_dict({"bias": linear.bias})


def test_qat_compile_and_refusal():
    layer = lk.nn.Int8LinearQAT(16, 4)
    x = torch.randn(3, 16)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
    with pytest.raises(TypeError, match=r"linear must be a torch[.]nn[.]Linear, got ReLU"):
        lk.nn.Int8LinearQAT.from_linear(nn.ReLU())
