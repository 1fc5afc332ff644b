"""Flower's server and clients in one process, without Ray: for tests and small simulations."""

from __future__ import annotations

import contextlib
import copy
import importlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from lepton_train.federated.flower import FlowerClient, Strategy
from lepton_train.packages import require

require("flwr", "federated training with Flower", extra="federated")

from flwr.app import Context, Error, Message, RecordDict  # noqa: E402
from flwr.client import ClientApp  # noqa: E402
from flwr.client.mod import secaggplus_mod  # noqa: E402
from flwr.server import Grid, LegacyContext, ServerConfig  # noqa: E402
from flwr.server.workflow import DefaultWorkflow, SecAggPlusWorkflow  # noqa: E402

_RUN = 1
_SERVER_NODE = 1


@contextlib.contextmanager
def _identity() -> Iterator[None]:
    """Newer versions of Flower ask a global for the run and node that a message comes from."""
    try:
        identity = importlib.import_module("flwr.supercore.task_identity").TaskIdentity
    except (ImportError, AttributeError):
        yield
        return
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(identity, name) for name in names}
    identity.task_id, identity.run_id, identity.node_id = 1, _RUN, _SERVER_NODE
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(identity, name, value)


class InProcessGrid(Grid):
    """Hands each message to its client at once and keeps the reply until it is pulled.

    Args:
        apps (mapping): node -> its `ClientApp`.
    """

    def __init__(self, apps: dict[int, Any]) -> None:
        self._apps = apps
        self._contexts = {
            node: Context(_RUN, node, {"partition-id": index}, RecordDict(), {})
            for index, node in enumerate(apps)
        }
        self._replies: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self.bytes_received = 0
        self.errors: list[str] = []

    def set_run(self, run: Any) -> None:
        """Nothing to do: there is one run."""

    @property
    def run(self) -> Any:
        """A record with the number of the run, which is all that Flower reads of it."""
        return SimpleNamespace(run_id=_RUN)

    def create_message(
        self,
        content: Any,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Any:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, always there."""
        return list(self._apps)

    def push_messages(self, messages: Iterable[Any]) -> Iterable[str]:
        """Let the clients work; returns the numbers by which their replies are pulled."""
        numbers = []
        for message in messages:
            number = str(next(self._numbers))
            node = message.metadata.dst_node_id
            # A client gets a copy, as over a network.
            given = Message(
                copy.deepcopy(message.content),
                node,
                message.metadata.message_type,
                group_id=message.metadata.group_id,
            )
            given.metadata._run_id = _RUN
            given.metadata._message_id = number
            try:
                reply = self._apps[node](given, self._contexts[node])
                self.bytes_received += _bytes(reply)
            except Exception as error:
                self.errors.append(f"client {node}: {type(error).__name__}: {error}")
                reply = Message(Error(1, self.errors[-1]), reply_to=given)
            self._replies[number] = reply
            numbers.append(number)
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Any]:
        """Replies, each once."""
        return [self._replies.pop(each) for each in message_ids if each in self._replies]

    def send_and_receive(
        self, messages: Iterable[Any], *, timeout: float | None = None
    ) -> Iterable[Any]:
        """Push, then pull."""
        return self.pull_messages(self.push_messages(messages))


def _bytes(reply: Any) -> int:
    if reply.has_error():
        return 0
    return sum(
        len(array.data)
        for record in reply.content.array_records.values()
        for array in record.values()
    )


def run_in_process(
    clients: Sequence[FlowerClient],
    strategy: Strategy,
    *,
    rounds: int,
    secure: bool = False,
) -> Any:
    """Run Flower's own workflow over clients in this process.

    Args:
        clients (sequence of FlowerClient): at least one; two with `secure`.
        strategy (Strategy): the server's; its model has the averaged state at the end.
        rounds (int): at least 1.
        secure (bool): SecAgg+: the server sees only the sum of the clients' states, masked one by
            one. Needs clients and strategy without compression, since masks hide arrays of numbers
            that are clipped to -8..8 and put on a grid by Flower. Default: False.

    Returns:
        flwr.server.History: losses and metrics of each round.

    Raises:
        ValueError: too few clients, or compression with `secure`.
        RuntimeError: clients failed, and why.

    Source: Bell et al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", 2020,
    as implemented by Flower.
    """
    if len(clients) < 1 + secure or rounds < 1:
        raise ValueError(
            f"run_in_process: needs at least {1 + secure} clients and one round, "
            f"got {len(clients)} and {rounds}"
        )
    compressions = {strategy._codec.compression, *(c._codec.compression for c in clients)}
    if len(compressions) > 1 or (secure and compressions != {None}):
        raise ValueError(
            "run_in_process: strategy and clients must have the same compression, and none with "
            f"secure; got {', '.join(sorted(map(str, compressions)))}"
        )

    def client_of(context: Any) -> Any:
        return clients[int(context.node_config["partition-id"])].to_client()

    mods = [secaggplus_mod] if secure else []
    apps = {node: ClientApp(client_fn=client_of, mods=mods) for node in range(2, len(clients) + 2)}
    grid = InProcessGrid(apps)
    context = LegacyContext(
        Context(_RUN, 0, {}, RecordDict(), {}), ServerConfig(num_rounds=rounds), strategy
    )
    most = max(len(client.trainer.inputs) for client in clients)
    workflow = DefaultWorkflow(
        fit_workflow=SecAggPlusWorkflow(
            num_shares=1.0, reconstruction_threshold=0.5, max_weight=float(most)
        )
        if secure
        else None
    )
    with _identity():
        workflow(grid, context)
    if grid.errors:
        raise RuntimeError(f"run_in_process: {len(grid.errors)} answers failed: {grid.errors[0]}")
    return context.history
