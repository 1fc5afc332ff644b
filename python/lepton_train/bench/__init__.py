"""Benchmarks with peers in the same run and ceilings of the same machine: `lepton bench`.

A family is a module with `ROLES` (implementation to "ours", "peer", ...), `problems(options)` (one
entry per case) and `bench(options)` (rows, case by case); add it to `FAMILIES`. Those of
`--device cuda` are in `lepton_train.bench.cuda`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from lepton_train.bench import options as _options
from lepton_train.bench.rows import Row, write_json

FAMILIES = ("attention", "bucket", "int8_linear", "sparse_linear")
_PACKAGES = {"cpu": "lepton_train.bench", "cuda": "lepton_train.bench.cuda"}


def run(
    family: str, json_path: str | None = None, device: str = "cpu", options: list[str] | None = None
) -> int:
    """Measure a family, print a table, and write what was asked for.

    Args:
        family: a name of `FAMILIES`.
        json_path: where to write the rows. Default: None (nowhere).
        device: where to run, "cpu" or "cuda". Default: "cpu".
        options: see `lepton bench FAMILY --help`.

    Returns:
        int: 0, 1 (the work failed) or 2 (bad arguments).
    """
    try:
        parsed = _options.parse(list(options or []))
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else 2
    if family not in FAMILIES:
        return _complain(2, f"bench: unknown family {family!r}; there are {', '.join(FAMILIES)}")
    if device not in _PACKAGES:
        return _complain(2, f"bench: unknown device {device!r}; there are {', '.join(_PACKAGES)}")
    if parsed.dry_run and device == "cpu":
        return _complain(2, "bench: --dry-run is for --device cuda")
    try:
        rows = measure_family(family, parsed, json_path, device)
    except ValueError as error:
        return _complain(2, str(error))
    except (OSError, RuntimeError) as error:
        return _complain(1, f"bench: {error}")
    return _deliver(_module(family, device).ROLES, rows, parsed)


def _module(family: str, device: str) -> Any:
    return importlib.import_module(f"{_PACKAGES[device]}.{family}")


def measure_family(
    family: str, options: _options.Options, json_path: str | None = None, device: str = "cpu"
) -> list[Row]:
    """All rows of a family, with a line of progress per case.

    `json_path` is written anew after every case: a run of an hour that is stopped leaves its rows.
    """
    import torch

    import lepton_kernels as lk
    from lepton_train.bench import report

    module = _module(family, device)
    total = len(module.problems(options))
    if total == 0:
        raise ValueError("bench: no case fits --filter")
    rows: list[Row] = []
    with ExitStack() as stack:
        if options.isa is not None:
            stack.enter_context(lk.force_isa(options.isa))
        threads = torch.get_num_threads()
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(options.threads or threads)
        for number, case_rows in enumerate(module.bench(options), 1):
            rows += case_rows
            if json_path is not None:
                write_json(rows, json_path)
            print(
                f"[{number}/{total}] {report.one_line(case_rows, module.ROLES)}",
                file=sys.stderr,
                flush=True,
            )
    return rows


def _deliver(roles: Mapping[str, str], rows: list[Row], options: _options.Options) -> int:
    from lepton_train.bench import report

    status = 0
    report.show(rows, roles)
    try:
        if options.plot is not None:
            from lepton_train.bench import plot

            for path in plot.write(rows, roles, options.plot):
                print(f"wrote {path}")
    except ImportError as error:
        status = _complain(1, f"bench: --plot needs {error.name}: pip install {error.name}")
    except OSError as error:
        status = _complain(1, f"bench: cannot write: {error}")
    ours_wrong = [r for r in rows if roles[r.impl] == "ours" and r.match is False]
    for row in ours_wrong:
        status = _complain(1, f"bench: {row.impl} {row.case} {row.dtype}: {row.note}")
    return status


def _complain(status: int, message: str) -> int:
    print(message, file=sys.stderr)
    return status
