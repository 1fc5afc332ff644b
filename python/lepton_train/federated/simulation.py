"""Federated training of many clients in one process: no Ray, no network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from lepton_train.federated.average import State
from lepton_train.federated.local_training import LocalTrainer
from lepton_train.federated.updates import UpdateCodec, bytes_of


@dataclass
class SimulationResult:
    """What a simulation gave.

    Args:
        state (dict): the global model's state at the end.
        scores (list of float): of the global model after each round, where it was evaluated.
        losses (list of float): mean training loss of the clients in each round.
        bytes_sent (int): by all clients to the server.
        bytes_plain (int): what they would have sent without compression.
        epsilon (float, optional): the largest privacy spent by a client.
    """

    state: State
    scores: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    bytes_sent: int = 0
    bytes_plain: int = 0
    epsilon: float | None = None


def simulate(
    model: nn.Module,
    clients: Sequence[LocalTrainer],
    *,
    rounds: int,
    compression: str | None = None,
    fraction: float = 1.0,
    seed: int = 0,
    evaluate: Callable[[nn.Module], float] | None = None,
    after_round: Callable[[int, float], None] | None = None,
) -> SimulationResult:
    """Train a model by federated averaging; it has the averaged weights at the end.

    Args:
        model (nn.Module): the start; changed in place.
        clients (sequence of LocalTrainer): each with its own examples; weighted by their number.
        rounds (int): averages to take, at least 1.
        compression (str, optional): of what clients send: None, "bf16" or "int8". Default: None.
        fraction (float): of the clients that take part in a round, above 0. Default: 1.0.
        seed (int): of their choice. Default: 0.
        evaluate (callable, optional): score of the global model after each round. Default: None.
        after_round (callable, optional): gets round and score, for a progress bar.
            Default: None.

    Returns:
        SimulationResult: state, scores, bytes.

    Raises:
        ValueError: no clients, rounds below 1, or fraction out of (0, 1].

    Example:
        >>> x = torch.randn(64, 4); y = (x[:, 0] > 0).long()
        >>> clients = [LocalTrainer(x[:32], y[:32]), LocalTrainer(x[32:], y[32:])]
        >>> result = simulate(nn.Linear(4, 2), clients, rounds=2, compression="int8")
        >>> result.bytes_sent < result.bytes_plain * 2
        True
    """
    if not clients or rounds < 1 or not 0 < fraction <= 1:
        raise ValueError(
            "simulate: needs at least one client, at least one round and a fraction in (0, 1]; "
            f"got {len(clients)}, {rounds} and {fraction}"
        )
    generator = torch.Generator().manual_seed(seed)
    state = _copy(model.state_dict())
    # Each client keeps what its own compression rounded away.
    codecs = [UpdateCodec(state, compression) for _ in clients]
    worker = copy.deepcopy(model)
    result = SimulationResult(state)
    plain = bytes_of(UpdateCodec(state).encode(state, state))
    count = max(round(fraction * len(clients)), 1)
    for number in range(rounds):
        chosen = torch.randperm(len(clients), generator=generator)[:count].sort().values.tolist()
        updates, losses = [], []
        for index in chosen:
            worker.load_state_dict(state)
            losses.append(clients[index].train(worker))
            updates.append(codecs[index].encode(worker.state_dict(), state))
        weights = [float(len(clients[index].inputs)) for index in chosen]
        state = codecs[0].average(updates, weights, state)
        result.bytes_sent += sum(bytes_of(update) for update in updates)
        result.bytes_plain += plain * len(updates)
        result.losses.append(
            sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
        )
        if evaluate is not None:
            worker.load_state_dict(state)
            result.scores.append(evaluate(worker))
        if after_round is not None:
            after_round(number, result.scores[-1] if result.scores else result.losses[-1])
    model.load_state_dict(state)
    result.state = state
    spent = [client.epsilon for client in clients if client.epsilon is not None]
    result.epsilon = max(spent) if spent else None
    return result


def _copy(state: dict[str, torch.Tensor]) -> State:
    return {name: value.detach().clone() for name, value in state.items()}
