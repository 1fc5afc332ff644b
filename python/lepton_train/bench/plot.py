"""Pictures: percent of the ceiling by shape, and the ratio to the best peer by M and layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lepton_train.bench.report import Comparison, compare
from lepton_train.bench.rows import Row


def write(rows: Sequence[Row], roles: Mapping[str, str], folder: str | Path) -> list[Path]:
    """Draw both pictures for each dtype.

    Args:
        rows: of one family.
        roles: of its implementations.
        folder: made where it is missing.

    Returns:
        list of Path: the PNG files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    comparisons = [one for one in compare(rows, roles) if one.ours.median_us is not None]
    for dtype in dict.fromkeys(one.ours.dtype for one in comparisons):
        chosen = [one for one in comparisons if one.ours.dtype == dtype]
        for name, draw in (("ceiling", _draw_ceiling), ("ratio", _draw_ratio)):
            path = folder / f"{chosen[0].ours.family}_{dtype}_{name}.png"
            _save(draw, chosen, path)
            written.append(path)
    return written


def _save(draw: Any, chosen: list[Comparison], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw(figure, axes, chosen)
    first = chosen[0].ours
    figure.supxlabel(f"{first.machine}, {first.threads} threads, commit {first.commit}", fontsize=7)
    figure.savefig(path, dpi=150)


def _by_layer(chosen: list[Comparison]) -> dict[str, dict[int, Comparison]]:
    layers: dict[str, dict[int, Comparison]] = {}
    for one in chosen:
        layers.setdefault(one.ours.case.rsplit("/", 1)[0], {})[one.ours.shape["M"]] = one
    return layers


def _draw_ceiling(figure: Any, axes: Any, chosen: list[Comparison]) -> None:
    del figure
    for number, (layer, by_m) in enumerate(_by_layer(chosen).items()):
        rows = [(m, by_m[m].ours.percent_of_ceiling) for m in sorted(by_m)]
        style = "-" if number < 10 else "--"  # matplotlib has ten colours
        axes.plot(*zip(*rows, strict=True), style, marker="o", markersize=3, label=layer)
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("M (rows of x)")
    axes.set_ylabel("% of the roofline measured in the same process")
    axes.set_title(f"{chosen[0].ours.family}, {chosen[0].ours.dtype}, isa {chosen[0].ours.isa}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)


def _draw_ratio(figure: Any, axes: Any, chosen: list[Comparison]) -> None:
    import numpy as np
    from matplotlib.colors import TwoSlopeNorm

    layers = _by_layer(chosen)
    ms = sorted({one.ours.shape["M"] for one in chosen})
    ratios = np.full((len(layers), len(ms)), np.nan)
    for i, by_m in enumerate(layers.values()):
        for j, m in enumerate(ms):
            ratio = by_m[m].ratio if m in by_m else None
            if ratio is not None:
                ratios[i, j] = ratio
                axes.text(j, i, f"{ratio:.2f}", ha="center", va="center", fontsize=7)
    # Level is white whatever the extremes.
    image = axes.imshow(np.log2(ratios), cmap="RdYlGn", norm=TwoSlopeNorm(0, -2, 2), aspect="auto")
    figure.colorbar(image, ax=axes, label="log2 of the ratio")
    axes.set_xticks(range(len(ms)), [str(m) for m in ms])
    axes.set_yticks(range(len(layers)), list(layers))
    axes.set_xlabel("M (rows of x)")
    axes.set_title(f"times faster than the best peer, {chosen[0].ours.dtype}")
