"""Flower's own server and client code around our client and strategy; no Ray, no network."""

import lepton_train as lt
import pytest
import torch
from torch import nn

pytest.importorskip("flwr", reason="needs the package flwr: pip install flwr")


def problem(count=900, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(4, 12, generator=generator)
    labels = torch.randint(0, 4, (count,), generator=generator)
    return centres[labels] + torch.randn(count, 12, generator=generator), labels


def clients(compression=None, privacy=None):
    x, y = problem()
    settings = lt.federated.LocalTraining(privacy=privacy)
    return [
        lt.federated.FlowerClient(
            nn.Linear(12, 4),
            lt.federated.LocalTrainer(x[i:800:4], y[i:800:4], settings, seed=i),
            test_inputs=x[800:],
            test_labels=y[800:],
            compression=compression,
        )
        for i in range(4)
    ]


@pytest.mark.parametrize("compression", [None, "bf16", "int8"])
def test_federated_rounds(compression):
    torch.manual_seed(1)
    model = nn.Linear(12, 4)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    strategy = lt.federated.Strategy(model, compression=compression)
    history = lt.federated.run_in_process(clients(compression), strategy, rounds=3)
    accuracies = [value for _, value in history.metrics_distributed["accuracy"]]
    assert len(accuracies) == 3
    assert accuracies[-1] > 0.9
    assert history.losses_distributed[-1][1] < history.losses_distributed[0][1] + 0.05
    # The same as our own simulation, bit for bit: same start, same clients, same averages.
    other = nn.Linear(12, 4)
    other.load_state_dict(start)
    trainers = [client.trainer for client in clients(compression)]
    lt.federated.simulate(other, trainers, rounds=3, compression=compression)
    torch.testing.assert_close(model.weight, other.weight, rtol=1e-4, atol=1e-5)


def test_secure_summation():
    torch.manual_seed(1)
    model = nn.Linear(12, 4)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    strategy = lt.federated.Strategy(model)
    history = lt.federated.run_in_process(clients(), strategy, rounds=2, secure=True)
    assert history.metrics_distributed["accuracy"][-1][1] > 0.9
    other = nn.Linear(12, 4)
    other.load_state_dict(start)
    lt.federated.simulate(other, [c.trainer for c in clients()], rounds=2)
    # Flower's grid has 2^22 steps over 16, and rounds weights too.
    torch.testing.assert_close(model.weight, other.weight, rtol=0, atol=1e-3)


def test_strategy_evaluates_on_the_server():
    x, y = problem()
    strategy = lt.federated.Strategy(
        nn.Linear(12, 4),
        evaluate=lambda model: lt.federated.accuracy_of(model, x, y),
        fraction_evaluate=0.0,
    )
    history = lt.federated.run_in_process(clients(), strategy, rounds=2)
    assert history.metrics_centralized["score"][-1][1] > 0.9


def test_privacy_is_reported():
    pytest.importorskip("opacus", reason="needs the package opacus: pip install opacus")
    model = nn.Linear(12, 4)
    history = lt.federated.run_in_process(
        clients(privacy=lt.federated.Privacy()), lt.federated.Strategy(model), rounds=2
    )
    first, second = (value for _, value in history.metrics_distributed_fit["epsilon"])
    assert 0 < first < second


def test_a_client_of_another_architecture_is_refused():
    client = clients()[0]
    other = lt.federated.Strategy(nn.Linear(12, 3))
    from flwr.common import parameters_to_ndarrays

    arrays = parameters_to_ndarrays(other.initial_parameters)
    with pytest.raises(ValueError, match=r"'weight' must have shape \(4, 12\), got \(3, 12\)"):
        client.fit(arrays, {})


def test_bad_arguments():
    strategy = lt.federated.Strategy(nn.Linear(12, 4), compression="int8")
    with pytest.raises(ValueError, match="must have the same compression, and none with secure"):
        lt.federated.run_in_process(clients(), strategy, rounds=1)
    with pytest.raises(ValueError, match="same compression, and none with secure; got int8"):
        lt.federated.run_in_process(clients("int8"), strategy, rounds=1, secure=True)
    with pytest.raises(ValueError, match="at least 2 clients"):
        lt.federated.run_in_process(clients()[:1], strategy, rounds=1, secure=True)
