"""From a case and its implementations to rows: build, check, time, relate to the ceiling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lepton_train.bench import machine
from lepton_train.bench.rows import Row
from lepton_train.bench.stage import Cpu, Stage


class Missing(Exception):
    """An implementation cannot run here; the message is the reason."""


@dataclass
class Prepared:
    """An implementation, built for a case.

    Attributes:
        calls: one per copy of the weights, see `harness.Candidate`.
        check: takes a call's result; says what is wrong with it, or nothing.
    """

    calls: Sequence[Callable[[], Any]]
    check: Callable[[Any], str]


@dataclass(frozen=True)
class Case:
    """What is measured; `read_bytes` must come from memory at least once, whatever the code."""

    family: str
    name: str
    shape: dict[str, Any]
    dtype: str
    operations: float
    read_bytes: float
    ceiling_kind: str


def measure(
    case: Case,
    implementations: Mapping[str, Callable[[], Prepared]],
    budget_s: float,
    stage: Stage | None = None,
) -> list[Row]:
    """Rows of one case, in the order of `implementations`, measured on `stage` (default: CPU).

    An implementation whose result is wrong, that fails or that is missing has a row without a time.
    """
    stage = stage or Cpu()
    bound = stage.roofline(case.operations, case.read_bytes, case.ceiling_kind)
    calls: dict[str, Sequence[Callable[[], Any]]] = {}
    matches: dict[str, bool | None] = {}
    notes: dict[str, str] = {}
    with torch.inference_mode():
        for name, build in implementations.items():
            try:
                prepared = build()
                notes[name] = prepared.check(prepared.calls[0]())
                matches[name] = not notes[name]
            except Missing as reason:
                matches[name], notes[name] = None, f"missing: {reason}"
                continue
            except Exception as error:  # a peer that fails is a result, not the end of the run
                matches[name] = False
                notes[name] = f"failed: {type(error).__name__}: {str(error).splitlines()[:1]}"
                continue
            if matches[name]:
                calls[name], notes[name] = prepared.calls, stage.without_time
            else:
                notes[name] = f"wrong: {notes[name]}"
        medians = stage.medians(calls, budget_s)
    rows = []
    for name in implementations:
        seconds = medians.get(name)
        rows.append(
            Row(
                family=case.family,
                case=case.name,
                shape=case.shape,
                dtype=case.dtype,
                isa=stage.isa(),
                threads=stage.threads(),
                impl=name,
                median_us=None if seconds is None else round(seconds * 1e6, 3),
                work={"ops": case.operations, "bytes": case.read_bytes},
                percent_of_ceiling=None
                if seconds is None
                else float(f"{100 * bound.seconds / seconds:.4g}"),
                ceiling=bound.to_json(),
                match=matches[name],
                machine=stage.machine(),
                torch=torch.__version__,
                commit=machine.commit(),
                note=notes[name],
            )
        )
    return rows
