"""DeepSparse as a peer, in a process of its own: its pins fit no environment with a current torch.

LEPTON_DEEPSPARSE_PYTHON names the interpreter of an environment with deepsparse 1.8.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lepton_train.bench import deepsparse_worker, harness
from lepton_train.bench.measure import Missing
from lepton_train.bench.problem import Built, Problem

VARIABLE = "LEPTON_DEEPSPARSE_PYTHON"


class _Worker:
    """The process; one for all cases of a run."""

    def __init__(self, python: str) -> None:
        try:
            self._process = subprocess.Popen(
                [python, deepsparse_worker.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        except OSError as error:
            raise Missing(f"{VARIABLE}: {error}") from error

    def close(self) -> None:
        """End the process and wait until it has."""
        self._process.kill()
        # A request that it no longer read is still in the pipe's buffer.
        with contextlib.suppress(BrokenPipeError), self._process:
            pass

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request; RuntimeError for an answer that is an error, or none."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError as error:
            raise RuntimeError(f"deepsparse: {error}") from error
        if not line:
            raise RuntimeError("deepsparse: its process ended")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"deepsparse: {answer['error']}")
        return answer


_workers: dict[str, _Worker] = {}  # by interpreter


def _worker(python: str) -> _Worker:
    if python not in _workers:
        _workers[python] = _Worker(python)
    return _workers[python]


def close() -> None:
    """End the process at the end of a run; the next call of `deepsparse` starts another."""
    while _workers:
        _workers.popitem()[1].close()


atexit.register(close)


class _Call:
    """One copy of the layer in the other process; `timed` leaves the way there and back out."""

    def __init__(self, worker: _Worker, copy: int) -> None:
        self._worker, self._copy = worker, copy

    def __call__(self) -> torch.Tensor:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "y.npy"
            self._worker.ask(save=str(path))
            return torch.from_numpy(np.load(path))

    def timed(self) -> float:
        """Seconds of one run."""
        seconds: float = self._worker.ask(time=self._copy)["seconds"]
        return seconds


def deepsparse(problem: Problem) -> Built:
    """DeepSparse's engine on x @ weight.T + bias, float32, weights cold as for the others."""
    python = os.environ.get(VARIABLE)
    if not python:
        raise Missing(f"{VARIABLE} names no interpreter with deepsparse 1.8")
    if problem.dtype != torch.float32:
        raise Missing("a peer of float32 inputs")
    layer = problem.layer
    worker = _worker(python)
    count = harness.copies(4 * int(layer.weight.count_nonzero()), layer.rotate_bytes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(path, weight=layer.weight.numpy(), bias=layer.bias.numpy(), x=problem.x.numpy())
        worker.ask(arrays=str(path), copies=count, threads=layer.threads)
    return Built([_Call(worker, copy) for copy in range(count)])
