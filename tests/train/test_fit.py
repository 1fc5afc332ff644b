"""The training loop: it learns, with every option, and says what is wrong."""

import copy
import json

import lepton_train as lt
import pytest
import torch
from points import QUIET, blobs, network, same
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "adadelta", "rmsprop", "sgd"])
def test_every_optimizer_learns(optimizer):
    train, val = blobs(), blobs(seed=1)
    lr = {"adadelta": 1.0, "sgd": 0.1}.get(optimizer, 0.02)
    model = network()
    result = lt.fit(model, train, val, optimizer=optimizer, lr=lr, epochs=12, **QUIET)
    assert result.best["monitor"] == "accuracy"
    assert result.history[-1]["accuracy"] > 0.9
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]
    assert len(result.history) == 12
    assert result.steps == 36
    assert not model.training
    assert json.dumps(result.to_dict())


def test_adamw_steps_as_a_loop_by_hand():
    x, y = blobs(40)
    model, twin = network(dropout=0.0), network(dropout=0.0)
    lt.fit(model, (x, y), lr=0.01, batch_size=40, epochs=3, **QUIET)
    optimizer = torch.optim.AdamW(twin.parameters(), lr=0.01, fused=True)
    order = [torch.randperm(40, generator=torch.Generator().manual_seed(e)) for e in range(3)]
    for places in order:
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(x[places]), y[places]).backward()
        optimizer.step()
    assert same(model, twin)


def test_forms_of_data_are_the_same_run():
    x, y = blobs(50)
    results = []
    for data in ((x, y), lt.data.Examples(x, y), TensorDataset(x, y)):
        model = network()
        lt.fit(model, data, epochs=2, batch_size=16, seed=4, **QUIET)
        results.append(model)
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_arrays_are_tensors():
    x, y = blobs(40)
    models = [network(), network()]
    lt.fit(models[0], (x, y), **QUIET)
    lt.fit(models[1], (x.numpy(), y.numpy()), **QUIET)
    assert same(*models)


def test_the_seed_decides_and_the_global_generator_does_not_notice():
    data = blobs()
    models = []
    for seed in (5, 5, 6):
        torch.manual_seed(0)
        model = network()
        before = torch.get_rng_state()
        lt.fit(model, data, epochs=1, seed=seed, **QUIET)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(3)
        models.append(model)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def texts(count=50):
    """Random tokens of 1 to 20, padded to 20."""
    lengths = torch.randint(1, 21, (count,))
    mask = (torch.arange(20) < lengths[:, None]).long()
    tokens = torch.randint(1, 9, (count, 20)) * mask
    return lt.data.Examples({"input_ids": tokens, "attention_mask": mask}, tokens[:, 0] % 2)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.drop = nn.EmbeddingBag(9, 2, mode="sum"), nn.Dropout(0.3)

    def forward(self, input_ids, attention_mask):
        return self.drop(self.table(input_ids))


def test_batches_of_like_length(tmp_path):
    data = texts()
    seen = []

    def step(model, batch):
        seen.append(batch[0]["attention_mask"].sum(1))
        return nn.functional.cross_entropy(model(**batch[0]), batch[1])

    model, options = Words(), {"batch_size": 8, "group_by_length": True, "seed": 2}
    lt.fit(model, data, training_step=step, epochs=2, **options, **QUIET)
    epochs = [torch.cat(seen[:7]), torch.cat(seen[7:])]
    every = data.inputs["attention_mask"].sum(1).sort()[0]
    for lengths in epochs:
        assert torch.equal(lengths.sort()[0], every)  # each text once
    assert not torch.equal(*epochs)
    # All 50 are one pool: the 6 whole batches are slices of the sorted lengths.
    slices = sorted(map(tuple, (b.sort()[0].tolist() for b in seen[:6])))
    assert slices == sorted(tuple(every[i : i + 8].tolist()) for i in range(0, 48, 8))
    whole_run, first, second = (copy.deepcopy(model) for _ in range(3))
    place = tmp_path / "run"
    lt.fit(whole_run, data, epochs=2, **options, **QUIET)
    lt.fit(first, data, epochs=1, checkpoint=place, **options, **QUIET)
    del options["group_by_length"]
    resume = {"epochs": 2, "checkpoint": place, "resume": True, **options, **QUIET}
    with pytest.raises(ValueError, match="group_by_length True, got False"):
        lt.fit(second, data, **resume)
    lt.fit(second, data, group_by_length=True, **resume)
    assert same(second, whole_run)
    with pytest.raises(ValueError, match="needs Examples of tokens with attention_mask"):
        lt.fit(network(), blobs(), group_by_length=True, **QUIET)


def test_accumulated_batches_are_one_large_batch():
    x, y = blobs(44)
    one, two = network(dropout=0.0), network(dropout=0.0)
    lt.fit(one, (x, y), batch_size=44, optimizer="sgd", epochs=2, **QUIET)
    lt.fit(two, (x, y), batch_size=8, accumulate=6, optimizer="sgd", epochs=2, **QUIET)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_clip_norm():
    x, y = blobs()
    model = network(dropout=0.0)
    before = [p.detach().clone() for p in model.parameters()]
    options = {"momentum": 0.0}
    lt.fit(
        model,
        (x, y),
        batch_size=96,
        optimizer="sgd",
        lr=1.0,
        optimizer_options=options,
        clip_norm=1e-3,
        **QUIET,
    )
    pairs = zip(model.parameters(), before, strict=True)
    moved = torch.cat([(p.detach() - b).flatten() for p, b in pairs])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.853553, 0.5, 0.146447]),
    ],
)
def test_schedules(schedule, rates):
    from lepton_train.training.learning_rate import LearningRate

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    rate = LearningRate(optimizer, schedule, 2, 6)
    got = []
    for step in range(6):
        assert rate.apply(step) == optimizer.param_groups[0]["lr"]
        got.append(optimizer.param_groups[0]["lr"] / 2)
    assert got == pytest.approx(rates, abs=1e-6)


def test_plateau_lowers_the_rate_and_stopping_stops():
    x, y = blobs()
    model = network()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)

    def nothing(model, batch):
        return 0.0 * model(batch[0]).sum() + 1.0

    result = lt.fit(
        model,
        (x, y),
        (x, y),
        training_step=nothing,
        optimizer="sgd",
        lr=1.0,
        schedule="plateau",
        plateau_patience=1,
        epochs=9,
        early_stopping=4,
        **QUIET,
    )
    assert [row["lr"] for row in result.history] == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01])
    assert result.stopped_early
    assert result.best["epoch"] == 1


def test_restore_best_gives_the_best_weights():
    train, val = blobs(), blobs(seed=1)
    calls = iter([1.0, 3.0, 2.0])
    seen = []
    model = network()

    def metric(predictions, targets):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return next(calls)

    result = lt.fit(model, train, val, metrics=[metric], epochs=3, restore_best=True, **QUIET)
    assert result.best == {"monitor": "metric", "epoch": 2, "value": 3.0}
    assert all(torch.equal(model.state_dict()[k], v) for k, v in seen[1].items())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_learns(precision):
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append(x.dtype)
            return x

    model = nn.Sequential(network(), Watch())
    train = blobs()
    result = lt.fit(
        model, train, train, precision=precision, lr=0.02, epochs=10, clip_norm=5.0, **QUIET
    )
    assert seen[0] == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert result.history[-1]["accuracy"] > 0.9
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_mappings_logits_numbers_and_binary_labels():
    class Hugging(nn.Module):
        def __init__(self, outputs):
            super().__init__()
            self.inner = network(classes=outputs)

        def forward(self, points):
            return {"logits": self.inner(points)}

    x, y = blobs()
    data = [{"points": p, "labels": t} for p, t in zip(x, y, strict=True)]
    result = lt.fit(Hugging(3), data, data, lr=0.02, epochs=8, **QUIET)
    assert result.history[-1]["accuracy"] > 0.9
    binary = ({"points": x}, (y > 0).long())
    result = lt.fit(Hugging(1), binary, binary, metrics="f1", lr=0.02, epochs=8, **QUIET)
    assert result.history[-1]["f1"] > 0.9
    result = lt.fit(Hugging(1), ({"points": x}, x[:, 0]), (({"points": x}), x[:, 0]), **QUIET)
    assert "mean_squared_error" in result.history[0]


def test_augment_callbacks_and_lines(capsys):
    images = lt.data.Examples(torch.rand(20, 1, 8, 8), torch.arange(20) % 2)
    seen = []
    result = lt.fit(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 2)),
        images,
        epochs=5,
        augment=lt.data.random_crop,
        callbacks=[lambda row: seen.append(row["epoch"]), lambda row: row["epoch"] == 2],
    )
    assert seen == [1, 2]
    assert result.stopped_early
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["epoch 1/5", "epoch 2/5"]


def test_learning_curves(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    result = lt.fit(network(), blobs(), blobs(), epochs=2, **QUIET)
    assert result.plot(tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "best accuracy" in str(result)


X, Y = blobs(12)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"train_data": (X[:0], Y[:0])}, ValueError, "at least one example, got none"),
        ({"train_data": DataLoader(TensorDataset(X))}, ValueError, "the data are unlabelled"),
        ({"train_data": [{"x": X[0]}]}, ValueError, "a mapping with x; the data are unlabelled"),
        ({"train_data": (X, Y + 1)}, ValueError, r"labels must lie in \[0, 3\), got 3 at"),
        ({"train_data": (X, Y), "val_data": (X, Y - 1)}, ValueError, "val_data: labels must lie"),
        ({"train_data": (X[:, :1], Y)}, ValueError, r"'0' \(Linear\) takes 2 features, got .* 1\)"),
        ({"train_data": (X.double(), Y)}, ValueError, "float32, got an input of torch.float64"),
        ({"train_data": (X, Y[:5])}, ValueError, "one entry per example, got 12 and 5"),
        ({"train_data": "folder"}, TypeError, "must be a Dataset, a DataLoader or a pair"),
        ({"train_data": (X, [1, 2])}, TypeError, "got labels of type list"),
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
        ({"optimizer": "lion"}, ValueError, "one of adamw, adam, adadelta, rmsprop, sgd"),
        ({"optimizer": 3}, TypeError, "a name, a torch optimizer or a function"),
        ({"optimizer_options": {"beta": 3}}, TypeError, "optimizer_options"),
        ({"lr": 0.0}, ValueError, "lr must be positive"),
        ({"schedule": "cos"}, ValueError, "one of constant, linear, cosine, plateau"),
        ({"warmup": 99}, ValueError, "the 1 steps of the run, got 99"),
        ({"epochs": 0}, ValueError, "epochs must be a whole number of at least 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
        ({"precision": "int8"}, ValueError, "precision must be one of fp32, bf16, fp16"),
        ({"clip_norm": -1.0}, ValueError, "clip_norm must be positive"),
        ({"resume": True}, ValueError, "resume=True needs checkpoint"),
        ({"loss": "hinge"}, ValueError, "loss must be one of cross_entropy"),
        ({"loss": lambda o, t: o}, TypeError, "a Tensor with one number"),
        ({"metrics": ["acc"]}, ValueError, "nearest names: accuracy"),
        ({"monitor": "f1"}, ValueError, "monitor must be one of train_loss"),
        ({"model": nn.Flatten()}, ValueError, "no parameter of the model requires a gradient"),
        ({"train_data": (X * float("nan"), Y)}, FloatingPointError, "in epoch 1, step 1"),
        ({"early_stopping": -1}, ValueError, "at least 0"),
    ],
)
def test_messages(arguments, error, text):
    values = {"model": network(), "train_data": (X, Y), **QUIET, **arguments}
    with pytest.raises(error, match=text):
        lt.fit(**values)
