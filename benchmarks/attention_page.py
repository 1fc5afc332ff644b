"""Write docs/attention.md and its picture from the rows of `lepton bench attention --json`.

Example:
    lepton bench attention --dtype bf16 --budget 0.5 --compiled --json bf16.json
    lepton bench attention --dtype fp32 --budget 0.5 --compiled --json fp32.json
    python benchmarks/attention_page.py bf16.json fp32.json

Several runs of the same cases may be given: every implementation keeps its least median, so that a
slow minute of the machine counts against nobody.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lepton_train.bench.report import geometric_mean

_DOC = (__doc__ or "").splitlines()
OURS, TORCH, FLEX = "lepton", "torch_sdpa", "torch_flex_compiled"
Rows = dict[tuple[str, str], dict[str, dict[str, Any]]]


def read(paths: list[str]) -> tuple[Rows, dict[str, Any], int]:
    """Rows by (case, dtype) and implementation, any one row for what they share, number of runs.

    Raises:
        ValueError: the runs differ in machine, threads, torch or commit.
    """
    rows: Rows = {}
    runs: dict[tuple[str, str, str], int] = {}
    content = [row for path in paths for row in json.loads(Path(path).read_text(encoding="utf-8"))]
    for row in content:
        for key in ("machine", "threads", "torch", "commit"):
            if row[key] != content[0][key]:
                raise ValueError(f"runs differ in {key}: {content[0][key]}, {row[key]}")
        group = rows.setdefault((row["case"], row["dtype"]), {})
        name = row["impl"]
        runs[row["case"], row["dtype"], name] = runs.get((row["case"], row["dtype"], name), 0) + 1
        if name not in group or _rank(row) < _rank(group[name]):
            group[name] = row
    return rows, content[0], max(runs.values())


def _rank(row: dict[str, Any]) -> float:
    """Order of the runs of a row: a wrong result, which must show, then the least median."""
    if row["match"] is False:
        return -1.0
    return math.inf if row["median_us"] is None else float(row["median_us"])


def ratio(group: dict[str, dict[str, Any]], peer: str) -> float | None:
    """Times faster than a peer, None where one of the two has no time."""
    times = [group.get(name, {}).get("median_us") for name in (peer, OURS)]
    return None if None in times else times[0] / times[1]


def number(value: float | None, digits: int = 2) -> str:
    """A number of a table; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def shape_text(shape: dict[str, Any]) -> str:
    """The shape in a few letters."""
    heads = f"{shape['H']}/{shape['Hkv']}" if shape["H"] != shape["Hkv"] else str(shape["H"])
    rows, keys = shape["Lq"], shape["Lk"]
    length = str(keys) if rows == keys else f"{rows} x {keys}"
    mask = f", window {shape['window']}" if shape["window"] >= 0 else ""
    causal = ", causal" if shape["causal"] and not mask else ""
    cache = f", {shape['cache']} cache" if shape.get("cache") else ""
    return f"B {shape['B']}, H {heads}, L {length}, D {shape['D']}{causal}{mask}{cache}"


def table(rows: Rows, dtype: str, chosen: Callable[[str], bool]) -> Iterable[str]:
    """Lines of one table, and the geometric mean of the ratios to torch."""
    yield "| case | shape | lepton, ms | torch SDPA, ms | times faster | than Flex | % of |"
    yield "|---|---|---|---|---|---|---|"
    ratios = []
    without_flex: dict[str, list[str]] = {}
    for (case, kind), group in rows.items():
        if kind != dtype or not chosen(case) or OURS not in group:
            continue
        if note := group.get(FLEX, {}).get("note"):
            without_flex.setdefault(note, []).append(case.split("/")[0])
        ours = group[OURS]
        if ours["median_us"] is None:
            yield f"| {case} | {shape_text(ours['shape'])} | {ours['note']} | | | | |"
            continue
        faster = ratio(group, TORCH)
        if faster is not None:
            ratios.append(faster)
        torch_us = group.get(TORCH, {}).get("median_us")
        ceiling = f"{ours['percent_of_ceiling']:.0f} ({ours['ceiling']['name']})"
        yield (
            f"| {case.split('/')[0]} | {shape_text(ours['shape'])} | "
            f"{ours['median_us'] / 1000:.3f} | "
            f"{number(None if torch_us is None else torch_us / 1000, 3)} | {number(faster)} | "
            f"{number(ratio(group, FLEX))} | {ceiling} |"
        )
    if ratios:
        yield ""
        yield (
            f"Geometric mean against torch SDPA {geometric_mean(ratios):.2f}, "
            f"lowest {min(ratios):.2f}."
        )
    for note, cases in without_flex.items():
        yield ""
        yield f"FlexAttention, {', '.join(cases)}: {note}."


def rules(rows: Rows) -> Iterable[str]:
    """What masks save, from pairs of cases."""
    pairs = (
        ("causal2048", "square2048", "Causal against the full square, L 2048"),
        ("window8192", "causal8192", "A window of 512 against causal, L 8192"),
        ("varlen", "varlen_pieces", "Variable lengths in one call against one call each"),
    )
    for part, whole, text in pairs:
        for kind in ("forward", "training"):
            found = [
                rows.get((f"{name}/{kind}", "bf16"), {}).get(OURS, {}).get("median_us")
                for name in (part, whole)
            ]
            if None not in found:
                yield f"* {text}, {kind}, bf16: {found[0] / found[1]:.2f} of the time."


def picture(rows: Rows, path: Path) -> None:
    """Time by length, forward and training, bfloat16."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, kind in zip(figure.subplots(1, 2), ("forward", "training"), strict=True):
        for name in (OURS, TORCH, FLEX):
            points = []
            for (case, dtype), group in rows.items():
                length = re.fullmatch(rf"length(\d+)/{kind}", case)
                time = group.get(name, {}).get("median_us")
                if length and dtype == "bf16" and time is not None:
                    points.append((int(length[1]), time / 1000))
            if points:
                axes.plot(*zip(*sorted(points), strict=True), marker="o", label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("length of queries and keys")
        axes.set_ylabel("ms")
        axes.set_title(f"{kind}, bf16")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=110)


def page(rows: Rows, shared: dict[str, Any], runs: int) -> str:
    """The document."""
    medians = (
        "Medians of interleaved calls."
        if runs == 1
        else f"Up to {runs} runs; of each implementation the least median of interleaved calls."
    )
    lines = [
        "# Attention, measured",
        "",
        f"{shared['machine']}, {shared['threads']} thread(s), torch {shared['torch']}, commit "
        f"{shared['commit']}:",
        "",
        *_DOC[3:6],
        "",
        f"{medians} Every time belongs to a result that passed its check",
        "against float64 (long cases: finite values). Percent is of multiply-adds in registers,",
        "or of the read bandwidth, that the same process measured; training counts seven products.",
        "",
        "![time by length](attention.png)",
    ]
    for dtype in ("bf16", "fp32"):
        for title, kind in (("forward", "forward"), ("forward and backward", "training")):
            lines += ["", f"## {dtype}, {title}", ""]
            lines += table(
                rows, dtype, lambda c, kind=kind: c.endswith(kind) and not c.startswith("decode")
            )
    lines += ["", "## Decoding", "", "One query token; the ceiling is reading the cache once.", ""]
    for dtype in ("bf16", "fp32"):
        lines += [f"{dtype}:", "", *table(rows, dtype, lambda c: c.startswith("decode")), ""]
    lines += ["## Masks", "", *rules(rows), ""]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=_DOC[0])
    parser.add_argument("rows", nargs="+", help="what `lepton bench attention --json` wrote")
    parser.add_argument("--folder", default="docs", help="where attention.md and attention.png go")
    parser.add_argument("--machine", help="its name, where the rows have none that says much")
    given = parser.parse_args()
    rows, shared, runs = read(given.rows)
    if given.machine:
        shared = {**shared, "machine": given.machine}
    folder = Path(given.folder)
    picture(rows, folder / "attention.png")
    (folder / "attention.md").write_text(page(rows, shared, runs), encoding="utf-8")


if __name__ == "__main__":
    main()
