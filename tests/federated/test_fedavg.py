import lepton_train as lt
import numpy as np
import pytest
import torch
from lepton_train.federated import UpdateCodec, dirichlet_partition, fedavg
from lepton_train.federated.average import _BUCKET_BYTES
from lepton_train.federated.updates import bytes_of, state_from_arrays
from torch import nn


def states(count, dtype=torch.float32):
    return [
        {
            "a.weight": torch.randn(13, 7).to(dtype),
            "a.bias": torch.randn(()).to(dtype),
            "b": torch.randn(0, 3).to(dtype),
            "c": torch.randn(63, 33).to(dtype).t(),
        }
        for _ in range(count)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_against_float64(dtype, count):
    given = states(count, dtype)
    weights = (torch.rand(count) + 0.1).tolist()
    found = fedavg(given, weights)
    assert list(found) == list(given[0])
    for name, value in found.items():
        wide = sum(s[name].double() * w for s, w in zip(given, weights, strict=True)) / sum(weights)
        assert value.dtype == dtype
        assert value.shape == wide.shape
        # One rounding of each product and sum in fp32, and one at the end.
        largest = max((float(s[name].double().abs().max()) for s in given if s[name].numel()),
                      default=0.0)  # fmt: skip
        work = torch.finfo(torch.float32 if dtype != torch.float64 else dtype).eps
        bound = largest * ((count + 2) * work + torch.finfo(dtype).eps)
        assert bool(((value.double() - wide).abs() <= bound).all())


def test_several_buckets_and_one_huge_tensor():
    size = _BUCKET_BYTES // 4
    given = [{"x": torch.randn(size + 5), "y": torch.randn(size // 2), "z": torch.randn(size)}
             for _ in range(2)]  # fmt: skip
    found = fedavg(given)
    for name, value in found.items():
        torch.testing.assert_close(value, (given[0][name] + given[1][name]) / 2)


def test_mixed_dtypes_counters_and_masks():
    given = [
        {"w": torch.full((3,), 1.0), "h": torch.full((2,), 4.0).bfloat16(),
         "n": torch.tensor(10), "mask": torch.tensor([True, False])},
        {"w": torch.full((3,), 5.0), "h": torch.full((2,), 8.0).bfloat16(),
         "n": torch.tensor(21), "mask": torch.tensor([True, False])},
    ]  # fmt: skip
    found = fedavg(given, [3, 1])
    assert found["w"].tolist() == [2.0] * 3
    assert found["h"].tolist() == [5.0] * 2
    assert found["n"] == 13
    assert found["mask"].tolist() == [True, False]
    given[1]["mask"] = ~given[1]["mask"]
    with pytest.raises(ValueError, match=r"'mask' is torch\.bool and differs between states"):
        fedavg(given)


def test_result_is_new_and_a_weight_of_zero_takes_no_part():
    given = states(2)
    found = fedavg(given, [1, 0])
    for name, value in found.items():
        assert torch.equal(value, given[0][name])
        assert value.numel() == 0 or value.data_ptr() != given[0][name].data_ptr()


def test_parameters_and_modules():
    models = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)) for _ in range(3)]
    found = fedavg([model.state_dict() for model in models], [600, 100, 300])
    models[0].load_state_dict(found)
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda s: s[1].pop("b"), ValueError, r"states\[1\] lacks 'b'"),
        (lambda s: s[1].update(d=torch.ones(1)), ValueError, r"has, but states\[0\] lacks, 'd'"),
        (lambda s: s[1].update(b=torch.ones(2)), ValueError, r"must have shape \(0, 3\)"),
        (lambda s: s[1].update(b=torch.ones(0, 3).double()), TypeError, "must be torch.float32"),
        (lambda s: s[1].update(b=[1]), TypeError, "must be a Tensor, got list"),
        (
            lambda s: s[1]["a.weight"].view(-1)[3].fill_(float("nan")),
            ValueError,
            r"states\[1\]\['a.weight'\] must be finite",
        ),
    ],
)
def test_states_that_do_not_fit(change, error, match):
    given = states(2)
    change(given)
    with pytest.raises(error, match=match):
        fedavg(given)


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ([1], r"weights must have 2 values, one for each state, got 1"),
        ([1, -1], r"weights\[1\] must be finite and not negative, got -1"),
        ([float("nan"), 1], r"weights\[0\] must be finite"),
        ([0, 0], "weights must not all be 0"),
    ],
)
def test_bad_weights(weights, match):
    with pytest.raises(ValueError, match=match):
        fedavg(states(2), weights)
    with pytest.raises(ValueError, match="at least one state"):
        fedavg([])
    with pytest.raises(TypeError, match=r"fedavg: weights\[1\] must be a number, got str"):
        fedavg(states(2), [1, "2"])
    with pytest.raises(TypeError, match=r"fedavg: states\[0\] must be a state dict, got int"):
        fedavg([3])


def test_weights_may_be_tensors():
    given = states(2)
    expected = fedavg(given, [1, 3])
    found = fedavg(given, torch.tensor([1.0, 3.0]))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def template():
    return {"w": torch.randn(40, 30), "b": torch.randn(30), "n": torch.tensor(7)}


@pytest.mark.parametrize("compression", [None, "bf16", "int8"])
def test_codec_bytes_and_error(compression):
    reference = template()
    codec = UpdateCodec(reference, compression)
    after = [
        {k: v + torch.randn_like(v) * 0.01 if v.is_floating_point() else v for k, v in s.items()}
        for s in [reference] * 3
    ]
    codecs = [UpdateCodec(reference, compression) for _ in after]
    updates = [c.encode(s, reference) for c, s in zip(codecs, after, strict=True)]
    share = {None: 1.0, "bf16": 0.52, "int8": 0.29}[compression]
    assert bytes_of(updates[0]) <= share * 1230 * 4 + 16
    found = codec.average(updates, [1, 2, 3], reference)
    expected = fedavg(after, [1, 2, 3])
    assert found["n"] == 7
    # Half a step: of int8 amax / 254, of bf16 2^-9 of the change; and fp32's own rounding.
    step = {None: 0.0, "bf16": 2.0**-9, "int8": 1 / 254}[compression] * 0.06
    for name in ("w", "b"):
        assert (found[name] - expected[name]).abs().max() <= step + 1e-6


@pytest.mark.parametrize("compression", ["bf16", "int8"])
def test_error_feedback_loses_nothing_in_the_long_run(compression):
    reference = {"w": torch.zeros(600)}
    # One large change sets the step of its block; the small ones are far below it.
    change = torch.full((600,), 1e-3)
    change[::256] = 1.0
    codec = UpdateCodec(reference, compression)
    total = torch.zeros(600)
    for _ in range(64):
        total += codec.average([codec.encode({"w": change}, reference)], None, reference)["w"]
    # What is missing is what the last residual holds: at most half a step.
    assert (total - 64 * change).abs().max() <= 0.51 / 127 + 64 * 2e-7


def test_codec_refuses_arrays_of_another_form():
    reference = template()
    codec = UpdateCodec(reference, "int8")
    good = codec.encode(reference, reference)
    for bad, match in (
        (good[:-1], "must hold 3 arrays, got 2"),
        ([good[0][:-1], *good[1:]], "must be int8 of shape"),
        ([good[0].astype(np.int16), *good[1:]], r"got int16"),
    ):
        with pytest.raises(ValueError, match=match):
            codec.average([good, bad], None, reference)
    broken = [good[0], np.full_like(good[1], np.nan), good[2]]
    with pytest.raises(ValueError, match="of an update must be finite"):
        codec.average([broken], None, reference)
    with pytest.raises(ValueError, match="compression must be None, 'bf16' or 'int8'"):
        UpdateCodec(reference, "zip")


def test_arrays_and_states():
    reference = template()
    arrays = UpdateCodec(reference).encode(reference, reference)
    found = state_from_arrays(arrays, reference)
    assert all(torch.equal(found[name], value) for name, value in reference.items())
    with pytest.raises(ValueError, match="must get 3 arrays, got 2"):
        state_from_arrays(arrays[:2], reference)
    with pytest.raises(ValueError, match=r"'w' must have shape \(40, 30\)"):
        state_from_arrays([arrays[0].T, *arrays[1:]], reference)


def test_dirichlet_partition():
    labels = torch.arange(5000) % 10
    parts = dirichlet_partition(labels, 10, alpha=0.3, seed=4)
    assert sorted(torch.cat(parts).tolist()) == list(range(5000))
    assert min(map(len, parts)) >= 10
    again = dirichlet_partition(labels, 10, alpha=0.3, seed=4)
    assert all(torch.equal(a, b) for a, b in zip(parts, again, strict=True))

    def imbalance(alpha):
        counts = [labels[p].bincount(minlength=10).double()
                  for p in dirichlet_partition(labels, 10, alpha=alpha, seed=1)]  # fmt: skip
        return sum(float((c / c.sum()).max()) for c in counts) / 10

    assert imbalance(0.1) > imbalance(1.0) > imbalance(100.0)
    with pytest.raises(ValueError, match="can't give 10 clients 10 each"):
        dirichlet_partition(labels[:50], 10)
    with pytest.raises(ValueError, match="alpha above 0"):
        dirichlet_partition(labels, 10, alpha=0.0)


def problem(count=1200, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(classes, 12, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return centres[labels] + torch.randn(count, 12, generator=generator), labels


@pytest.mark.parametrize("compression", [None, "bf16", "int8"])
def test_simulation_learns(compression):
    x, y = problem()
    parts = dirichlet_partition(y[:1000], 5, alpha=0.3, seed=1)
    clients = [lt.federated.LocalTrainer(x[p], y[p], seed=i) for i, p in enumerate(parts)]
    model = nn.Linear(12, 4)

    def score(m):
        return lt.federated.accuracy_of(m, x[1000:], y[1000:])

    before = score(model)
    result = lt.federated.simulate(
        model, clients, rounds=6, compression=compression, evaluate=score, fraction=0.8
    )
    assert len(result.scores) == 6
    assert result.scores[-1] > max(before, 0.9)
    assert result.losses[-1] < result.losses[0]
    # An int8 code each, some scales; the alignment of 52 weights is most of what is left.
    limit = {None: 1.0, "bf16": 0.75, "int8": 0.5}[compression]
    assert result.bytes_sent <= limit * result.bytes_plain
    assert torch.equal(model.weight, result.state["weight"])


def test_simulation_repeats_with_its_seed():
    x, y = problem()

    def run():
        torch.manual_seed(5)
        clients = [lt.federated.LocalTrainer(x[i::3], y[i::3], seed=i) for i in range(3)]
        return lt.federated.simulate(nn.Linear(12, 4), clients, rounds=2, fraction=0.5, seed=9)

    one, other = run(), run()
    assert all(torch.equal(value, other.state[name]) for name, value in one.state.items())


def test_proximal_term_keeps_clients_near():
    x, y = problem()

    def moved(proximal):
        torch.manual_seed(0)
        model = nn.Linear(12, 4)
        before = model.weight.detach().clone()
        settings = lt.federated.LocalTraining(proximal=proximal)
        lt.federated.LocalTrainer(x, y, settings).train(model)
        return float((model.weight.detach() - before).norm())

    assert moved(1.0) < moved(0.0)


def test_bad_settings():
    x, y = problem(10)
    for options, match in (
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
    ):
        with pytest.raises(ValueError, match=match):
            lt.federated.LocalTraining(**options)
    with pytest.raises(ValueError, match="as many labels, got 10 and 9"):
        lt.federated.LocalTrainer(x, y[:9])
    with pytest.raises(ValueError, match="at least one client"):
        lt.federated.simulate(nn.Linear(2, 2), [], rounds=1)
    with pytest.raises(ValueError, match="Privacy: noise_multiplier"):
        lt.federated.Privacy(noise_multiplier=0)


def test_differential_privacy():
    pytest.importorskip("opacus", reason="needs the package opacus: pip install opacus")
    x, y = problem()
    privacy = lt.federated.Privacy(noise_multiplier=0.8, max_grad_norm=1.0)
    settings = lt.federated.LocalTraining(batch_size=50, learning_rate=0.2, privacy=privacy)
    clients = [lt.federated.LocalTrainer(x[i:1000:4], y[i:1000:4], settings) for i in range(4)]
    assert clients[0].epsilon == 0.0
    model = nn.Linear(12, 4)
    first = lt.federated.simulate(model, clients, rounds=1)
    result = lt.federated.simulate(model, clients, rounds=5)
    assert 0 < first.epsilon < result.epsilon < 20
    assert lt.federated.accuracy_of(model, x[1000:], y[1000:]) > 0.6
    assert list(model.state_dict()) == ["weight", "bias"]
    assert not model.weight._backward_hooks


def test_noise_comes_also_where_sampling_draws_nobody():
    pytest.importorskip("opacus", reason="needs the package opacus: pip install opacus")
    x, y = problem(40)
    settings = lt.federated.LocalTraining(
        batch_size=1, epochs=2, privacy=lt.federated.Privacy(noise_multiplier=2.0)
    )
    trainer = lt.federated.LocalTrainer(x, y, settings)
    # 80 draws of 40 examples at 1 in 40 each: all have somebody with probability 1e-16.
    trainer.train(nn.Linear(12, 4))
    (noise, rate, steps), *_ = trainer._engine.accountant.history
    assert (noise, round(1 / rate), steps) == (2.0, 40, 80)


def test_privacy_without_opacus_says_what_to_install(monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "opacus" else find(name, *a)
    )
    x, y = problem(20)
    settings = lt.federated.LocalTraining(privacy=lt.federated.Privacy())
    with pytest.raises(ImportError, match=r"lepton-kernels\[federated\]"):
        lt.federated.LocalTrainer(x, y, settings)
