"""Benchmark of buckets: all-reduce beside gloo, and training steps beside DDP, on two processes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

import lepton_kernels as lk
from lepton_train.bench import machine
from lepton_train.bench.options import Options
from lepton_train.bench.rows import Row

FAMILY = "bucket"
ROLES = {
    "lepton": "ours",
    "lepton_copied": "ours",
    "lepton_sums": "ours",
    "gloo": "peer",
    "ddp": "peer",
    "alone": "float",
}
_WORLD = 2
_BYTES = {"64KB": 65536, "1MB": 1 << 20, "4MB": 4 << 20, "25MB": 25 << 20, "100MB": 100 << 20}
_QUICK = ("64KB", "25MB")
_NOT_TAKEN = ("isa", "threads", "plot", "shapes", "only", "compiled", "cold_mib")
_MODELS = ("linear16", "transformer6")


def problems(options: Options) -> list[tuple[str, str, str]]:
    """(kind, what, dtype) of every case that the options ask for.

    Raises:
        ValueError: an option that would not reach the ranks, or that has no meaning for buckets.
    """
    for option in _NOT_TAKEN:
        if getattr(options, option):
            raise ValueError(f"bench: bucket takes no --{option.replace('_', '-')}")
    sizes = _QUICK if options.quick else tuple(_BYTES)
    cases = [("all_reduce", size, dtype) for dtype in options.dtypes for size in sizes]
    if "fp32" in options.dtypes:
        cases += [("step", model, "fp32") for model in _MODELS]
    return [case for case in cases if options.pattern.search(f"{case[0]}/{case[1]}")]


def bench(options: Options) -> Iterator[list[Row]]:
    """Rows case by case."""
    cases = problems(options)
    plain = [(kind, str(_BYTES.get(what, what)), dtype) for kind, what, dtype in cases]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-m", "lepton_train.bench.bucket_ranks"]
        rest = [str(_WORLD), f"{folder}/store", json.dumps(plain), str(options.budget_s)]
        ranks = [
            subprocess.Popen([*command, str(rank), *rest], stdout=subprocess.PIPE, text=True)
            for rank in range(_WORLD)
        ]
        try:
            for case in cases:
                line = ranks[0].stdout.readline() if ranks[0].stdout else ""
                if not line:
                    raise RuntimeError(f"bucket: a rank ended in case {case[0]}/{case[1]}")
                yield _rows(case, json.loads(line))
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()


def _rows(case: tuple[str, str, str], found: dict[str, Any]) -> list[Row]:
    kind, what, dtype = case
    size = _BYTES.get(what, 0)
    least = found.get("pass_seconds", found["seconds"].get("alone"))
    ceiling = {
        "name": f"{_WORLD} threads of one process, no messages"
        if size
        else "step of one process, no wrapper",
        "unit": "byte/s",
        "value": 2.0 * size / least,
    }
    return [
        Row(
            family=FAMILY,
            case=f"{kind}/{what}",
            shape={"ranks": _WORLD, **({"bytes": size} if size else {"model": what})},
            dtype=dtype,
            isa=lk.info()["isa"],
            threads=1,
            impl=name,
            median_us=round(seconds * 1e6, 3) if found["match"][name] else None,
            work={"bytes": 2.0 * size},
            percent_of_ceiling=float(f"{100 * least / seconds:.4g}"),
            ceiling=ceiling,
            match=found["match"][name],
            machine=machine.description(),
            torch=torch.__version__,
            commit=machine.commit(),
            note="" if found["match"][name] else f"wrong {'sums' if size else 'gradients'}",
        )
        for name, seconds in found["seconds"].items()
    ]
