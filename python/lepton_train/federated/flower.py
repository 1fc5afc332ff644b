"""Flower: a client and a strategy for standard torch models.

Source: Beutel et al., "Flower: A Friendly Federated Learning Framework", 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from lepton_train.federated.local_training import LocalTrainer, accuracy_of
from lepton_train.federated.updates import UpdateCodec, state_from_arrays
from lepton_train.packages import require

require("flwr", "federated training with Flower", extra="federated")

from flwr.client import NumPyClient  # noqa: E402
from flwr.common import ndarrays_to_parameters, parameters_to_ndarrays  # noqa: E402
from flwr.server.strategy import FedAvg  # noqa: E402

Arrays = list[np.ndarray]


class FlowerClient(NumPyClient):
    """A Flower client for any torch model.

    Args:
        model (nn.Module): of the same architecture on every client.
        trainer (LocalTrainer): the client's examples and how it trains on them.
        test_inputs (Tensor, optional): for `evaluate`. Default: None (the training examples).
        test_labels (Tensor, optional): likewise.
        compression (str, optional): of what is sent: None, "bf16" or "int8"; `Strategy` must get
            the same. Keep the client object from round to round: it holds what compression rounded
            away. Default: None, plain arrays for any strategy of Flower.

    Example:
        >>> x, y = torch.randn(20, 4), torch.randint(0, 2, (20,))
        >>> client = FlowerClient(nn.Linear(4, 2), LocalTrainer(x, y))
        >>> arrays, examples, metrics = client.fit(client.get_parameters({}), {})
        >>> len(arrays), examples
        (2, 20)
    """

    def __init__(
        self,
        model: nn.Module,
        trainer: LocalTrainer,
        *,
        test_inputs: torch.Tensor | None = None,
        test_labels: torch.Tensor | None = None,
        compression: str | None = None,
    ) -> None:
        self.model = model
        self.trainer = trainer
        self.test_inputs = trainer.inputs if test_inputs is None else test_inputs
        self.test_labels = trainer.labels if test_labels is None else test_labels
        template = {name: value.clone() for name, value in model.state_dict().items()}
        self._codec = UpdateCodec(template, compression)
        self._plain = UpdateCodec(template)

    def get_parameters(self, config: Mapping[str, Any]) -> Arrays:
        """Arrays of the model's state, in the order of its state dict."""
        state = self.model.state_dict()
        return self._plain.encode(state, state)

    def fit(self, parameters: Arrays, config: Mapping[str, Any]) -> tuple[Arrays, int, dict]:
        """Train on the client's examples, from the server's state.

        Returns:
            (list of ndarray, int, dict): what is sent, number of examples, loss and epsilon.
        """
        reference = state_from_arrays(parameters, self._plain.template)
        self.model.load_state_dict(reference)
        loss = self.trainer.train(self.model)
        arrays = self._codec.encode(self.model.state_dict(), reference)
        metrics: dict[str, Any] = {"loss": loss}
        if self.trainer.epsilon is not None:
            metrics["epsilon"] = self.trainer.epsilon
        return arrays, len(self.trainer.inputs), metrics

    def evaluate(self, parameters: Arrays, config: Mapping[str, Any]) -> tuple[float, int, dict]:
        """Loss and accuracy of the server's state on the client's test examples."""
        self.model.load_state_dict(state_from_arrays(parameters, self._plain.template))
        self.model.eval()
        with torch.inference_mode():
            loss = float(self.trainer.loss(self.model(self.test_inputs), self.test_labels))
        accuracy = accuracy_of(self.model, self.test_inputs, self.test_labels)
        return loss, len(self.test_inputs), {"accuracy": accuracy}


class Strategy(FedAvg):
    """Flower's FedAvg with our averaging: fused buckets, and compressed updates of `FlowerClient`.

    Args:
        model (nn.Module): the start; its state is the first set of parameters.
        compression (str, optional): as the clients'. Default: None.
        evaluate (callable, optional): gets the model with the averaged state, returns a score.
            Default: None.
        **options: as `flwr.server.strategy.FedAvg`, such as `fraction_fit`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        compression: str | None = None,
        evaluate: Callable[[nn.Module], float] | None = None,
        **options: Any,
    ) -> None:
        self.model = model
        template = {name: value.clone() for name, value in model.state_dict().items()}
        self._codec = UpdateCodec(template, compression)
        self._plain = UpdateCodec(template)
        self._score = evaluate
        start = ndarrays_to_parameters(self._plain.encode(template, template))
        options.setdefault("initial_parameters", start)
        options.setdefault("fit_metrics_aggregation_fn", mean_metrics)
        options.setdefault("evaluate_metrics_aggregation_fn", mean_metrics)
        super().__init__(**options)

    @property
    def state(self) -> dict[str, torch.Tensor]:
        """The averaged state."""
        return self.model.state_dict()

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        """As FedAvg; notes the state against which the clients will send their changes."""
        self._take(parameters)
        return super().configure_fit(server_round, parameters, client_manager)

    def _take(self, parameters: Any) -> None:
        arrays = parameters_to_ndarrays(parameters)
        self.model.load_state_dict(state_from_arrays(arrays, self._plain.template))

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        """Weighted mean of what the clients sent, by their numbers of examples.

        Raises:
            ValueError: arrays of another form, or not finite.
        """
        if not results or (failures and not self.accept_failures):
            return None, {}
        updates = [parameters_to_ndarrays(result.parameters) for _, result in results]
        weights = [float(result.num_examples) for _, result in results]
        if self._codec.compression is None:
            # SecAgg+ hands back float64, whatever the clients had.
            states = [state_from_arrays(update, self._plain.template) for update in updates]
            updates = [self._plain.encode(state, state) for state in states]
        state = self._codec.average(updates, weights, self.model.state_dict())
        self.model.load_state_dict(state)
        metrics = self.fit_metrics_aggregation_fn(
            [(result.num_examples, result.metrics) for _, result in results]
        )
        return ndarrays_to_parameters(self._plain.encode(state, state)), metrics

    def evaluate(self, server_round: int, parameters: Any) -> Any:
        """Score of the averaged state where a function was given."""
        if self._score is None:
            return super().evaluate(server_round, parameters)
        self._take(parameters)
        score = self._score(self.model)
        return 1.0 - score, {"score": score}


def mean_metrics(metrics: list[tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """Mean of each metric, weighted by examples.

    Example:
        >>> mean_metrics([(1, {"loss": 1.0}), (3, {"loss": 5.0})])
        {'loss': 4.0}
    """
    names = dict.fromkeys(name for _, values in metrics for name in values)
    result = {}
    for name in names:
        known = [(count, values[name]) for count, values in metrics if name in values]
        total = sum(count for count, _ in known)
        if total:
            result[name] = sum(count * value for count, value in known) / total
    return result
