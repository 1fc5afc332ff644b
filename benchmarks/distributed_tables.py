"""The tables of docs/distributed.md from what was measured.

    lepton bench bucket --json rows.json           (or python -m lepton_train.bench bucket ...)
    sudo python benchmarks/two_hosts.py --json hosts.json
    python tools/kill_ranks.py --markdown kills.md
    python benchmarks/distributed_tables.py rows.json hosts.json kills.md docs/distributed.md

Replaces what stands between `<!-- measured -->` and `<!-- end -->` in the document.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from two_hosts import tables

BEGIN, END = "<!-- measured -->\n", "<!-- end -->\n"


def bench_tables(rows: list[dict[str, Any]]) -> list[str]:
    """All-reduces and training steps, each beside its peer of the same run."""
    by_case: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_case.setdefault((row["case"], row["dtype"]), {})[row["impl"]] = row
    lines = [
        "| all-reduce, two processes | lepton, µs | times gloo | of the bound | match |",
        "|---|---|---|---|---|",
    ]
    head = "| forward and backward | lepton, ms | times alone | without factors | DDP | match |"
    steps = ["", head, "|---|---|---|---|---|---|"]
    for (case, dtype), found in by_case.items():
        ours = found["lepton"]
        match = "yes" if all(row["match"] for row in found.values()) else "**no**"
        if case.startswith("all_reduce"):
            ratio = found["gloo"]["median_us"] / ours["median_us"]
            lines.append(
                f"| {case.split('/')[1]} {dtype} | {ours['median_us']:.1f} | {ratio:.1f} "
                f"| {ours['percent_of_ceiling']:.0f} % | {match} |"
            )
        else:
            alone = found["alone"]["median_us"]
            steps.append(
                f"| {case.split('/')[1]} | {ours['median_us'] / 1e3:.1f} "
                f"| {ours['median_us'] / alone:.2f} "
                f"| {found['lepton_sums']['median_us'] / alone:.2f} "
                f"| {found['ddp']['median_us'] / alone:.2f} | {match} |"
            )
    machine = rows[0]
    head = f"torch {machine['torch']}, commit {machine['commit']}, one thread a process."
    return [head, "", *lines, *steps]


def main(arguments: list[str]) -> None:
    """See the file's docstring."""
    rows, hosts, kills, document = (Path(argument) for argument in arguments)
    bench = json.loads(rows.read_text())
    parts = [
        "### One host",
        "",
        *bench_tables(bench["rows"] if isinstance(bench, dict) else bench),
        "",
        "### Two hosts",
        "",
        *tables(json.loads(hosts.read_text())),
    ]
    parts += ["", "### Killed ranks", "", kills.read_text().strip()]
    text = document.read_text()
    before, rest = text.split(BEGIN)
    document.write_text(
        before + BEGIN + "\n" + "\n".join(parts) + "\n\n" + END + rest.split(END)[1]
    )


if __name__ == "__main__":
    main(sys.argv[1:])
