"""Markdown tables of `lepton bench int8_linear --json FILE`, as docs/int8_linear.md shows them.

python benchmarks/int8_linear_tables.py rows.json
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from lepton_train.bench.int8_linear import ROLES
from lepton_train.bench.report import Comparison, compare, geometric_mean
from lepton_train.bench.rows import read_json


def table(
    title: str,
    comparisons: list[Comparison],
    value: Callable[[Comparison], float | None],
    digits: int = 2,
    mean: bool = True,
) -> list[str]:
    """Lines of one table: layers down, rows of x across; no table where there is no value.

    Args:
        title: what the figures are.
        comparisons: of one dtype.
        value: the figure of a case.
        digits: behind the point.
        mean: give the geometric mean and how many are below 1, too.
    """
    values = {
        (str(one.ours.case).partition("/M")[0], int(one.ours.shape["M"])): (one, figure)
        for one in comparisons
        if (figure := value(one)) is not None
    }
    if not values:
        return []
    figures = [figure for _, figure in values.values()]
    heading = f"**{title}**"
    if mean:
        slower = sum(figure < 1 for figure in figures)
        heading += (
            f": {geometric_mean(figures):.2f} in the geometric mean of {len(figures)} cases, "
            f"slower in {slower}, least {min(figures):.2f}."
        )
    rows = sorted({m for _, m in values})
    lines = [heading, "", "| K x N | " + " | ".join(f"M={m}" for m in rows) + " |"]
    lines.append("|---" * (len(rows) + 1) + "|")
    for layer in dict.fromkeys(name for name, _ in values):
        cells = [f"{values[layer, m][1]:.{digits}f}" if (layer, m) in values else "-" for m in rows]
        shape = next(one.ours.shape for (name, _), (one, _) in values.items() if name == layer)
        lines.append(f"| {layer}, {shape['K']} x {shape['N']} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def main(path: str) -> None:
    """Print the tables of every dtype in the file, with the machine that it was measured on."""
    rows = read_json(path)
    first = rows[0]
    ceilings = {
        str(row.ceiling["name"]): f"{row.ceiling['name']} {row.ceiling['value'] / 1e9:.4g} "
        f"G{row.ceiling['unit']}"
        for row in rows
    }
    print(
        f"{first.machine}; {first.threads} threads, isa {first.isa}, torch {first.torch}; "
        f"ceilings: {', '.join(ceilings.values())}\n"
    )
    failed = sorted({f"{row.impl} {row.case} {row.dtype}" for row in rows if row.match is False})
    print(f"Failed checks: {', '.join(failed) or 'none'}\n")
    for dtype in dict.fromkeys(row.dtype for row in rows):
        chosen = [one for one in compare(rows, ROLES) if one.ours.dtype == dtype]
        lines = [f"### {dtype} in and out", ""]
        lines += table("Times faster than the best int8 peer", chosen, lambda one: one.ratio)
        for name, role in ROLES.items():
            ratios = [ratio for one in chosen if (ratio := one.ratio_to(name)) is not None]
            if role in ("peer", "float") and ratios:
                lines.append(
                    f"* {geometric_mean(ratios):.2f} times {name}, least {min(ratios):.2f}"
                )
        lines.append("")
        lines += table(
            "Percent of the ceiling",
            chosen,
            lambda one: one.ours.percent_of_ceiling,
            digits=0,
            mean=False,
        )
        print("\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
