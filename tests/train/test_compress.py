"""Compression by a recipe: each step, the budget, the order, the report."""

import copy
import json
import math

import lepton_train as lt
import pytest
import torch
from lepton_train.compression.partial import quantize_within
from torch import nn

import lepton_kernels as lk

pytest.importorskip("pydantic", reason="needs pydantic")

from lepton_train.compression.recipe import Recipe


class Deep(nn.Module):
    """A stack of equal layers, so that it can become shallower."""

    def __init__(self, depth=4, size=32, classes=3):
        super().__init__()
        self.inlet = nn.Linear(8, size)
        self.layers = nn.ModuleList(nn.Linear(size, size) for _ in range(depth))
        self.outlet = nn.Linear(size, classes)

    def forward(self, x):
        x = self.inlet(x)
        for layer in self.layers:
            x = x + torch.relu(layer(x))
        return self.outlet(x)


@pytest.fixture(scope="module")
def task():
    """Data that a small network learns, and a trained one."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        x = torch.randn(400, 8)
        y = (x @ torch.randn(8, 3)).argmax(1)
        model = Deep()
    data = {"train": (x[:300], y[:300]), "val": (x[300:350], y[300:350])}
    data["test"] = (x[350:], y[350:])
    lt.fit(model, data["train"], lr=0.01, epochs=8, progress=False)
    return model, data


QUIET = {"rounds": 1, "progress": False}
WHOLE = """
name: whole chain
seed: 3
batch_size: 50
steps:
  - train: {epochs: 1, lr: 0.003}
  - prune: {sparsity: 0.6, rounds: 2, epochs: 2, lr: 0.003, exclude: [inlet, outlet]}
  - distill: {epochs: 3, lr: 0.003, depth: 2, labels: both}
  - quantize: {mode: dynamic, budget: 0.05}
  - pack: {rounds: 1}
"""


def test_the_whole_chain(task, tmp_path):
    model, data = task
    before = copy.deepcopy(model.state_dict())
    file = tmp_path / "recipe.yaml"
    file.write_text(WHOLE)
    small, report = lt.compress(model, file, data=data, **QUIET)
    assert [row.step for row in report.rows] == [
        "start",
        "train",
        "prune",
        "distill",
        "quantize",
        "pack",
    ]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert len(small.layers) == 2
    assert not small.training
    assert report.before.step == "train"
    assert report.after.score > report.before.score - 0.15
    assert report.after.score == lt.evaluate(small, data["test"]).scores["accuracy"]
    assert report.after.size_mb < 0.5 * report.before.size_mb
    pruned = next(row for row in report.rows if row.step == "prune")
    assert pruned.details["reached"] == pytest.approx(0.6, abs=0.01)
    assert all(row.latency_ms > 0 and row.throughput > 0 for row in report.rows)
    values = report.to_dict()
    assert json.dumps(values)
    assert values["speedup"] == pytest.approx(report.before.latency_ms / report.after.latency_ms)
    assert "whole chain: accuracy" in str(report)
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    assert report.plot(tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_recipe_gives_the_same_weights(task):
    model, data = task
    recipe = {"steps": [{"prune": {"sparsity": 0.5, "epochs": 1}}, {"distill": {"epochs": 1}}]}
    first, second = (lt.compress(model, recipe, data=data, **QUIET)[0] for _ in range(2))
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


@pytest.mark.parametrize("mode", ["dynamic", "static", "weight_only", "qat", "bf16", "fp8"])
def test_every_kind_of_quantization(task, mode):
    model, data = task
    settings = {"mode": mode, "exclude": "inlet", **({"epochs": 1} if mode == "qat" else {})}
    small, report = lt.compress(model, {"steps": [{"quantize": settings}]}, data=data, **QUIET)
    kind = lt.LowPrecisionLinear if mode in ("bf16", "fp8") else lk.nn.Int8Linear
    assert isinstance(small.outlet, kind)
    assert type(small.inlet) is nn.Linear
    assert report.after.score > report.before.score - 0.1
    assert report.after.size_mb < (0.62 if mode == "bf16" else 0.42) * report.before.size_mb


@pytest.mark.parametrize("criterion", ["magnitude", "gradient", "movement", "wanda"])
def test_every_criterion(task, criterion):
    model, data = task
    step = {"sparsity": 0.5, "criterion": criterion, "rounds": 2, "include": ["layers"]}
    small, report = lt.compress(model, {"steps": [{"prune": step}]}, data=data, **QUIET)
    for layer in small.layers:
        assert float((layer.weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert report.after.sparsity == pytest.approx(0.5 * 4096 / 4448, abs=0.01)


def test_blocks_of_a_given_shape(task):
    model, data = task
    step = {"sparsity": 0.5, "pattern": "block", "outputs": 32, "inputs": 4, "include": ["layers"]}
    small, _ = lt.compress(model, {"steps": [{"prune": step}]}, data=data, **QUIET)
    for layer in small.layers:
        kept = (layer.weight != 0).unflatten(1, (-1, 4)).unflatten(0, (-1, 32))
        blocks = kept.float().mean((1, 3))
        assert set(blocks.flatten().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("mode", ["dynamic", "fp8"])
def test_the_budget_leaves_the_sensitive_layer_in_float(task, mode):
    model, data = task
    broken = copy.deepcopy(model)
    with torch.no_grad():
        # No 8-bit step holds these rows: a huge weight that sees nothing, small ones that count.
        broken.outlet.weight[:, 0] = 1e6
        broken.layers[-1].weight[0] = 0
        broken.layers[-1].bias[0] = -100.0

    def good(model, _):
        x, _ = data["val"]
        return float((model(x)[:, :2].argmax(1) == broken(x)[:, :2].argmax(1)).float().mean())

    recipe = {"steps": [{"quantize": {"mode": mode, "budget": 0.02}}]}
    _, report = lt.compress(broken, recipe, data=data, metric=good, **QUIET)
    details = report.after.details
    assert details["kept_budget"]
    assert details["baseline"] == 1.0
    assert details["score"] >= 0.98
    excluded = details["excluded"]
    assert len(excluded) < 6
    assert details["quantized"] == 6 - len(excluded)
    if details["tried"]["0"] < 0.98:
        assert len(excluded) >= 1


def test_the_budget_search_finds_the_fewest_layers():
    losses = {"a": 0.5, "b": 0.3, "c": 0.1, "d": 0.01, "e": 0.0}

    class Model(nn.Module):
        int8 = ()

    def apply(model, exclude):
        model.int8 = [name for name in losses if name not in exclude]

    def good(model):
        return 1.0 - sum(losses[name] for name in model.int8)

    def rank():
        return sorted(losses, key=losses.get, reverse=True)

    for budget, excluded in ((1.0, 0), (0.5, 1), (0.12, 2), (0.02, 3), (0.001, 4)):
        twin, _, about = quantize_within(Model(), apply, good, budget, rank)
        assert len(about["excluded"]) == excluded
        assert good(twin) >= 1.0 - budget
        assert about["kept_budget"]
    losses["e"] = 0.1
    twin, _, about = quantize_within(Model(), apply, good, 0.001, rank)
    assert not about["kept_budget"]
    assert twin.int8 == ()


def test_lower_is_better_metrics_keep_their_sign(task):
    model, data = task
    x, y = data["train"]
    numbers = {"train": (x, y.float()), "val": (x, y.float())}
    head = nn.Sequential(copy.deepcopy(model), nn.Linear(3, 1))
    recipe = {"steps": [{"quantize": {"budget": 1.0}}]}
    _, report = lt.compress(head, recipe, data=numbers, metric="mean_squared_error", **QUIET)
    assert report.scored_on == "val"
    assert report.before.score > 0
    assert report.after.details["baseline"] == pytest.approx(-report.before.score)


def test_packing_of_int8_layers_keeps_their_bits():
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.Linear(32, 8))
    lt.prune_(model, 0.75, include=["0", "2"])
    lt.make_permanent_(model)
    lt.quantize_(model, "dynamic")
    x = torch.randn(5, 64)
    want = model.eval()(x)
    report = lt.pack_(model, example_inputs=x, rounds=1)
    for name, reason in zip("023", (False, False, True), strict=True):
        row = next(row for row in report.rows if row.name == name)
        assert (row.reason == "has few zeros") is reason
        if not reason:
            assert set(row.measured_ms) == {"int8", "sparse bitmask", "sparse block"}
            assert (name in report.packed) is (row.decision != "int8")
    assert torch.equal(model(x), want)


@pytest.mark.parametrize("format", ["bf16", "fp8"])
def test_low_precision_weights(format):
    linear = nn.Linear(40, 24)
    with torch.no_grad():
        linear.weight[3] = 0
        linear.weight[4] *= 1e4
    model = nn.Sequential(linear, nn.ReLU())
    x = torch.randn(7, 40)
    want = linear(x)
    report = lt.lower_(model, format)
    assert report.quantized == ["0"]
    # Half a step of the mantissa: 8 bits for bf16, 4 for E4M3, whose smallest steps are absolute.
    weight = linear.weight.detach()
    steps = {"bf16": 2.0**-8, "fp8": 2.0**-4}[format] * weight.abs()
    floor = 0.0 if format == "bf16" else weight.abs().amax(1, keepdim=True) * 2.0**-10 / 448
    error = (model[0].dequantized_weight() - weight).abs()
    assert bool((error <= steps * 1.01 + floor + 1e-30).all())
    assert model(x).shape == want.shape
    twin = nn.Sequential(lt.LowPrecisionLinear(40, 24, dtype=lt.low_precision.FORMATS[format]))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin[0](x), model[0](x))
    with pytest.raises(ValueError, match="format must be one of bf16, fp8"):
        lt.lower_(model, "fp4")
    linear.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match="must be finite"):
        lt.lower_(nn.Sequential(linear), format)
    with pytest.raises(TypeError, match=r"must be torch\.bfloat16"):
        lt.LowPrecisionLinear(4, 4, dtype=torch.float16)


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ({"step": []}, "unknown key 'step'; nearest known: steps"),
        ({"steps": []}, "steps: .*at least 1 item"),
        ({"steps": ["quantise"]}, "step 1: unknown step 'quantise'; nearest known: quantize"),
        (
            {"steps": [{"train": {"epoch": 3}}]},
            r"step 1 \(train\): unknown key 'epoch'; nearest known: epochs",
        ),
        ({"steps": [{"prune": {}}]}, r"step 1 \(prune\): sparsity: Field required"),
        ({"steps": [{"prune": {"sparsity": 1.2}}]}, "sparsity: .*less than 1, got 1.2"),
        ({"steps": [{"quantize": {"mode": "int4"}}]}, "mode: .*'dynamic', .*got 'int4'"),
        ({"steps": [{"quantize": {"mode": "qat"}}]}, "give epochs of at least 1"),
        ({"steps": [{"quantize": {"epochs": 2}}]}, "epochs have no use in mode dynamic"),
        (
            {"steps": ["quantize", {"prune": {"sparsity": 0.5}}]},
            r"step 2 \(prune\) can't come after step 1 \(quantize\).*put prune before it",
        ),
        ({"steps": ["quantize", "train"]}, r"step 2 \(train\) can't come after step 1"),
        ({"steps": ["quantize", "quantize"]}, r"can't come after step 1 \(quantize\)"),
        ({"steps": ["pack", "quantize"]}, "packed layers are final; put pack last"),
        ({"steps": [{"train": {}, "pack": {}}]}, "step 1 must be one kind with its settings"),
        ("steps: [\n", "is no YAML"),
        ("- a\n- b\n", "must hold keys such as steps, got list"),
    ],
)
def test_recipes_that_are_refused(task, recipe, text):
    model, data = task
    with pytest.raises(ValueError, match=text):
        lt.compress(model, recipe, data=data, **QUIET)


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_an_empty_part_is_refused_before_any_work(part):
    x, y = torch.randn(12, 4), torch.arange(12) % 2
    data = dict.fromkeys(("train", "val", "test"), (x, y))
    data[part] = (x[:0], y[:0])
    with pytest.raises(ValueError, match=f"compress: {part}: data must hold at least one example"):
        lt.compress(nn.Linear(4, 2), {"steps": ["quantize"]}, data=data)


def test_other_bad_arguments(task):
    model, data = task
    recipe = {"steps": ["quantize"]}
    with pytest.raises(FileNotFoundError, match=r"none\.yaml is not a file"):
        lt.compress(model, "none.yaml", data=data)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        lt.compress("model", recipe, data=data)
    with pytest.raises(ValueError, match="must have train and val; val missing or empty"):
        lt.compress(model, recipe, data={"train": data["train"]})
    with pytest.raises(TypeError, match=r"recipe must be a mapping, a path, .* got int"):
        lt.compress(model, 3, data=data, **QUIET)
    with pytest.raises(TypeError, match="data must be Splits"):
        lt.compress(model, recipe, data=3)
    with pytest.raises(ValueError, match="nearest names: accuracy"):
        lt.compress(model, recipe, data=data, metric="acuracy")
    x, y = data["val"]
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 3\), got 7"):
        lt.compress(model, recipe, data={**data, "test": (x, y + 7 - int(y[0]))}, **QUIET)


def test_a_recipe_reads_itself():
    recipe = Recipe.of(WHOLE)
    assert Recipe.of(recipe) is recipe
    assert recipe.steps[3][1].budget == 0.05
    assert Recipe.of(recipe.to_dict()) == recipe
    assert json.dumps(recipe.to_dict())
