"""The GPU as a stage: description, ceilings, timing; and the stand-in of a dry run."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from lepton_train.bench.ceilings import Roofline
from lepton_train.bench.options import Options
from lepton_train.bench.stage import Calls, Cpu, Stage

_BLOCK_S = 2e-3
_LEAST_ROUNDS = 5
_SIDE = 8192  # of the products that measure a ceiling
_MEMORY = 1 << 30


class Device(Stage, Protocol):
    """A stage with a torch device; the weights of a case are rotated through `rotate_bytes`."""

    device: torch.device
    rotate_bytes: int

    def backend(self, name: str) -> str | None:
        """What stands for the backend `name` here; None for torch's choice."""


class Gpu:
    """The current CUDA device."""

    without_time = ""

    def __init__(self, cold_mib: float | None = None) -> None:
        """`cold_mib`: size of the rotated weights; by default four times the L2."""
        self.device = torch.device("cuda", torch.cuda.current_device())
        self._of = torch.cuda.get_device_properties(self.device)
        least = 4 * getattr(self._of, "L2_cache_size", 64 << 20)
        self.rotate_bytes = least if cold_mib is None else int(cold_mib * 2**20)

    def backend(self, name: str) -> str | None:
        """The backend itself."""
        return name

    def isa(self) -> str:
        """sm_90 and so on."""
        return f"sm_{self._of.major}{self._of.minor}"

    def threads(self) -> int:
        """Of the host, which only launches."""
        return torch.get_num_threads()

    def machine(self) -> str:
        """Model, SMs, memory, CUDA."""
        memory, l2 = self._of.total_memory >> 30, getattr(self._of, "L2_cache_size", 0) >> 20
        return (
            f"{self._of.name}, {self._of.multi_processor_count} SMs, L2 {l2} MiB, {memory} GiB, "
            f"CUDA {torch.version.cuda}"
        )

    def roofline(self, operations: float, read_bytes: float, kind: str) -> Roofline:
        """From products and copies of torch in this process: its best, not a nominal peak."""
        top, bandwidth = self._peak(kind), self._bandwidth()
        if operations / top >= read_bytes / bandwidth:
            name = f"torch's {kind} product of {_SIDE} x {_SIDE} x {_SIDE}"
            return Roofline(name, top, "op/s", operations / top)
        return Roofline("memory, by torch's copy", bandwidth, "byte/s", read_bytes / bandwidth)

    @functools.cached_property
    def _measured(self) -> dict[str, float]:
        return {}

    def _once(self, key: str, amount: float, call: Callable[[], object]) -> float:
        if key not in self._measured:
            seconds = self.medians({key: [call]}, 0.5)[key]
            self._measured[key] = amount / seconds
        return self._measured[key]

    def _peak(self, kind: str) -> float:
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}.get(kind)
        a = torch.randn(_SIDE, _SIDE, device=self.device)
        if dtype is None:
            a = (a * 30).to(torch.int8)
            return self._once(kind, 2.0 * _SIDE**3, lambda: torch._int_mm(a, a.T))
        a = a.to(dtype)
        return self._once(kind, 2.0 * _SIDE**3, lambda: a @ a.T)

    def _bandwidth(self) -> float:
        source = torch.ones(_MEMORY // 4, device=self.device)
        target = torch.empty_like(source)
        return self._once("memory", 2.0 * _MEMORY, lambda: target.copy_(source))

    def medians(self, calls: Mapping[str, Calls], budget_s: float) -> dict[str, float]:
        """By CUDA events around blocks of CUDA graphs; of plain calls where one can't be captured.

        A graph holds one call of each copy of the weights: what the host adds is not measured, for
        nobody.
        """
        runs = {name: _captured(each) for name, each in calls.items()}
        if None in runs.values():
            runs = {name: functools.partial(_call_all, each) for name, each in calls.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        blocks = {}
        for name, run in runs.items():
            assert run is not None
            estimate = min(_seconds(run, 1) for _ in range(3))
            blocks[name] = (run, max(1, math.ceil(_BLOCK_S / max(estimate, 1e-7))))
        deadline, rounds = time.perf_counter() + budget_s, 0
        names = list(blocks)
        while names and (rounds < _LEAST_ROUNDS or time.perf_counter() < deadline):
            for place in range(len(names)):
                name = names[(place + rounds) % len(names)]
                seconds[name].append(_seconds(*blocks[name]) / len(calls[name]))
            rounds += 1
        return {name: statistics.median(each) for name, each in seconds.items()}


def _call_all(calls: Calls) -> None:
    for call in calls:
        call()


def _captured(calls: Calls) -> Callable[[], None] | None:
    """The calls as one CUDA graph; None where they can't be captured."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        _call_all(calls)  # what is done once only: workspaces, choices of algorithms
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            _call_all(calls)
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    replay: Callable[[], None] = graph.replay
    return replay


def _seconds(run: Callable[[], None], count: int) -> float:
    """Seconds of one `run` among `count`, on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e-3 / count


class DryRun(Cpu):
    """The CPU in place of a GPU: everything is built, run once and checked, nothing is timed."""

    without_time = "dry run: checked on the CPU, not timed"
    device = torch.device("cpu")
    rotate_bytes = 1

    def backend(self, name: str) -> str | None:
        """torch's choice for the CUDA library; other backends keep their own conditions."""
        return None if name == "cuda" else name

    def roofline(self, operations: float, read_bytes: float, kind: str) -> Roofline:
        """None."""
        return Roofline("not measured", 0.0, "op/s", 0.0)

    def medians(self, calls: Mapping[str, Calls], budget_s: float) -> dict[str, float]:
        """None."""
        return {}


def stage_of(options: Options) -> Device:
    """The stage that the options ask for.

    Raises:
        RuntimeError: there is no GPU, and no dry run is asked for.
    """
    if options.dry_run:
        return DryRun()
    if not torch.cuda.is_available():
        raise RuntimeError(
            "torch finds no CUDA GPU and driver here; --dry-run checks the benchmark without one"
        )
    return Gpu(options.cold_mib)
