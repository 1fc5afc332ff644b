"""Who takes part in a benchmark on a GPU."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import lepton_kernels as lk
from lepton_train.bench.cuda.device import Device
from lepton_train.bench.measure import Missing, Prepared
from lepton_train.bench.options import Options

P = TypeVar("P")


@dataclass(frozen=True)
class Implementation(Generic[P]):
    """An implementation of a family, for problems of type P.

    Attributes:
        name: as in the row; "lepton" is the one that peers are compared with.
        role: "ours", "peer", "float" (before quantisation) or "prequantized" (does less).
        build: takes the problem, gives calls and their check; raises `Missing`.
        absent: why it can't run here, or an empty string.
        backend: what `force_backend` is given while it runs; None for a peer.
        compiled: takes part only with `--compiled`.
    """

    name: str
    role: str
    build: Callable[[P], Prepared]
    absent: Callable[[], str] = lambda: ""
    backend: str | None = None
    compiled: bool = False


def package(name: str) -> Callable[[], str]:
    """An `absent` for what needs a package."""
    return lambda: "" if importlib.util.find_spec(name) else f"{name} is not installed"


def roles(implementations: Sequence[Implementation[Any]]) -> dict[str, str]:
    """Name to role, in order."""
    return {one.name: one.role for one in implementations}


def chosen(
    implementations: Sequence[Implementation[P]], options: Options
) -> list[Implementation[P]]:
    """The implementations that the options ask for.

    Raises:
        ValueError: `--only` names one that does not exist.
    """
    compiled = [one.name for one in implementations if one.compiled]
    names = options.chosen(roles(implementations), compiled)
    return [one for one in implementations if one.name in names]


def builders(
    implementations: Sequence[Implementation[P]], problem: P, device: Device
) -> dict[str, Callable[[], Prepared]]:
    """What `measure` takes: name to a function that builds the implementation for `problem`."""
    return {one.name: functools.partial(_prepare, one, problem, device) for one in implementations}


def _prepare(one: Implementation[P], problem: P, device: Device) -> Prepared:
    reason = one.absent()
    if reason:
        raise Missing(reason)
    if one.backend is None:
        return one.build(problem)
    backend = device.backend(one.backend)
    if backend is None:
        return one.build(problem)
    try:
        with lk.force_backend(backend):
            prepared = one.build(problem)
    except ValueError as error:
        if str(error).startswith("force_backend"):
            raise Missing(str(error)) from error
        raise
    return Prepared(list(_forced(backend, prepared.calls)), prepared.check)


def _forced(backend: str, calls: Sequence[Callable[[], Any]]) -> Iterator[Callable[[], Any]]:
    def run(call: Callable[[], Any]) -> Any:
        with lk.force_backend(backend):
            return call()

    for call in calls:
        yield functools.partial(run, call)
