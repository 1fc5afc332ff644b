"""Federated training: averaging, compressed updates, privacy, a simulation, and Flower.

import lepton_train as lt
state = lt.federated.fedavg([client.state_dict() for client in clients], weights=[600, 200])

`FlowerClient`, `Strategy` and `run_in_process` need Flower:
pip install 'lepton-kernels[federated]'.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lepton_train.federated.average import fedavg
from lepton_train.federated.local_training import (
    LocalTrainer,
    LocalTraining,
    Privacy,
    accuracy_of,
)
from lepton_train.federated.partition import dirichlet_partition
from lepton_train.federated.simulation import SimulationResult, simulate
from lepton_train.federated.updates import UpdateCodec

if TYPE_CHECKING:
    from lepton_train.federated.flower import FlowerClient, Strategy
    from lepton_train.federated.flower_in_process import run_in_process

_FLOWER = {
    "FlowerClient": "flower",
    "Strategy": "flower",
    "run_in_process": "flower_in_process",
}


def __getattr__(name: str) -> Any:
    """Import what needs Flower when it is first asked for."""
    if name in _FLOWER:
        return getattr(importlib.import_module(f"{__name__}.{_FLOWER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "FlowerClient",
    "LocalTrainer",
    "LocalTraining",
    "Privacy",
    "SimulationResult",
    "Strategy",
    "UpdateCodec",
    "accuracy_of",
    "dirichlet_partition",
    "fedavg",
    "run_in_process",
    "simulate",
]
