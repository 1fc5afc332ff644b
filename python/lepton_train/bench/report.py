"""Tables: the case by case comparison, and what the ratios come to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lepton_train.bench.rows import Row

OURS = "lepton"


@dataclass
class Comparison:
    """Our row of a case beside the others.

    Attributes:
        ours: the row of `lepton`.
        times: microseconds of every implementation that has a time.
        best: the fastest peer, None where there is none.
    """

    ours: Row
    times: dict[str, float]
    best: str | None

    @property
    def ratio(self) -> float | None:
        """How many times faster than the best peer."""
        return None if self.best is None else self.ratio_to(self.best)

    def ratio_to(self, name: str) -> float | None:
        """How many times faster than `name`."""
        if self.ours.median_us is None or name not in self.times:
            return None
        return self.times[name] / self.ours.median_us


def geometric_mean(values: Iterable[float]) -> float:
    """exp of the mean logarithm; NaN of nothing."""
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def compare(rows: Sequence[Row], roles: Mapping[str, str]) -> list[Comparison]:
    """One comparison per case and dtype, in order of appearance."""
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row.case, row.dtype), []).append(row)
    found = []
    for group in grouped.values():
        times = {row.impl: row.median_us for row in group if row.median_us is not None}
        peers = [name for name in times if roles[name] == "peer"]
        ours = [row for row in group if row.impl == OURS]
        if ours:
            best = min(peers, key=times.__getitem__, default=None)
            found.append(Comparison(ours[0], times, best))
    return found


def one_line(case_rows: Sequence[Row], roles: Mapping[str, str]) -> str:
    """Progress: a case in a line."""
    first = case_rows[0]
    head = f"{first.case} {first.dtype} {first.isa}:"
    for one in compare(case_rows, roles):
        if one.ours.median_us is None:
            return f"{head} {OURS} {one.ours.note}"
        best = f", best peer {one.best} {one.times[one.best]:.1f} us" if one.best else ""
        ratio = f", {one.ratio:.2f}x" if one.ratio else ""
        return (
            f"{head} {OURS} {one.ours.median_us:.1f} us, "
            f"{one.ours.percent_of_ceiling:.0f}% of ceiling{best}{ratio}"
        )
    return f"{head} {len(case_rows)} rows"


def _table(title: str, header: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
        print(f"\n{title}")
        for line in [header, *lines]:
            print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        return
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i == 0 else "right", no_wrap=i == 0)
    for line in lines:
        table.add_row(*line)
    console = Console()
    # A file or a pipe has no width of its own; rich would take 80 and cut the columns.
    (console if console.is_terminal else Console(width=140)).print(table)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _case_table(comparisons: Sequence[Comparison], roles: Mapping[str, str], title: str) -> None:
    beside = [
        name
        for name, role in roles.items()
        if role in ("ours", "float") and any(name in one.times for one in comparisons)
    ]
    header = ["case", *beside, "best peer", "", "ratio", "% of ceiling", "bound"]
    lines = [
        [
            one.ours.case,
            *(_number(one.times.get(name), 1) for name in beside),
            one.best or "-",
            _number(one.times[one.best], 1) if one.best else "-",
            _number(one.ratio, 2),
            _number(one.ours.percent_of_ceiling, 0),
            "read" if one.ours.ceiling["unit"] == "byte/s" else "products",
        ]
        for one in comparisons
    ]
    _table(title, header, lines)


def summary(rows: Sequence[Row], roles: Mapping[str, str]) -> list[str]:
    """The ratios in lines of text, dtype by dtype, and who is missing or wrong and why."""
    lines = []
    for dtype in dict.fromkeys(row.dtype for row in rows):
        comparisons = [c for c in compare(rows, roles) if c.ours.dtype == dtype]
        with_ratio = [(one.ratio, one) for one in comparisons if one.ratio is not None]
        if with_ratio:
            mean = geometric_mean(ratio for ratio, _ in with_ratio)
            slower = sum(ratio < 1 for ratio, _ in with_ratio)
            lines.append(
                f"{dtype}: {mean:.2f} times the best peer (geometric mean of {len(with_ratio)} "
                f"cases; slower in {slower})"
            )
            worst = sorted(with_ratio, key=lambda pair: pair[0])[:5]
            named = ", ".join(f"{one.ours.case} {ratio:.2f} ({one.best})" for ratio, one in worst)
            lines.append(f"  worst: {named}")
        for name in dict.fromkeys(row.impl for row in rows if row.impl != OURS):
            ratios = [ratio for c in comparisons if (ratio := c.ratio_to(name)) is not None]
            if ratios:
                lines.append(
                    f"  {geometric_mean(ratios):6.2f} x {name} ({roles[name]}), "
                    f"least {min(ratios):.2f}"
                )
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            reasons.setdefault(f"{row.impl}: {row.note}", []).append(f"{row.case} {row.dtype}")
    for reason, cases in reasons.items():
        more = f" and {len(cases) - 1} more" if len(cases) > 1 else ""
        lines.append(f"no time for {reason} [{cases[0]}{more}]")
    return lines


def show(rows: Sequence[Row], roles: Mapping[str, str]) -> None:
    """Print all tables."""
    if not rows:
        return
    first = rows[0]
    for dtype in dict.fromkeys(row.dtype for row in rows):
        chosen = [one for one in compare(rows, roles) if one.ours.dtype == dtype]
        title = f"{first.family}, {dtype} in and out, isa {first.isa}, microseconds"
        _case_table(chosen, roles, title)
    print(
        f"\n{first.machine}; {first.threads} threads; torch {first.torch}; commit {first.commit}; "
        f"isa {first.isa}"
    )
    for ceiling in {str(r.ceiling["name"]): r.ceiling for r in rows}.values():
        print(f"ceiling: {ceiling['name']} {ceiling['value'] / 1e9:.1f} G{ceiling['unit']}")
    print("\n".join(summary(rows, roles)))
