"""Writes docs/sparse_linear.md from the rows of `lepton bench sparse_linear --json FILE`.

python benchmarks/sparse_linear_page.py rows.json --command "lepton bench sparse_linear ..."
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable
from pathlib import Path

from lepton_train.bench.rows import Row, read_json

PAGE = Path(__file__).resolve().parents[1] / "docs" / "sparse_linear.md"
Key = tuple[str, int, int, int]  # layout, sparsity in percent, K, N
_PEERS = {
    "int8": ("lepton_dense_int8", "torch_dynamic_x86"),
    "fp32": ("torch_fp32", "torch_csr", "deepsparse"),
}
_NAMES = {
    "lepton_dense_int8": "our dense int8",
    "torch_dynamic_x86": "torch dynamic int8",
    "torch_fp32": "torch fp32",
    "torch_csr": "torch CSR",
    "deepsparse": "DeepSparse",
}


NOTES = """\
## On your machine

`lepton predict OUTxIN ... --rows M --dtype int8` (or `lt.predict_sparsity`) measures random layers
before any training and says from how many zeros on a layer is faster sparse. `lt.pack_` measures
every pruned layer of a model, dense and sparse, with cold weights and your number of rows, and
swaps only what was faster. Both keep their times in `lepton/pack.json` in the user's cache folder
(`LEPTON_PACK_CACHE`: another file, or empty for none), by CPU, instruction set, threads and
versions; a damaged file is measured anew.

## What limits what

* int8 bitmask, few rows: moving a mask into a mask register and spreading 64 bytes by it occupy
  one port for three cycles in 64 weights. From about 80 % of zeros on that is slower than the
  memory, so that further zeros gain little.
* int8 blocks on AMX: a block of 16 outputs x 64 inputs (`prune_` with `inputs=64`) is one tile as
  it is stored, so that a product takes the time of the tiles that are kept, quantisation and the
  writing of outputs. Of smaller blocks the lines of activations that a strip of 16 outputs keeps
  are copied together for each product. Strips that keep the same inputs share the copies: `prune_`
  with `outputs=64`.
* fp32 bitmask, many rows: weights are listed row by row, and each is multiplied by its input in 64
  rows that the L1 holds; zeros cost nothing. Where lists would take longer than all products, the
  kernel expands the weights and multiplies all.
"""


def times(rows: Iterable[Row], values: str, impl: str) -> dict[Key, dict[int, float]]:
    """Microseconds by case and M of one implementation, where its result matched."""
    found: dict[Key, dict[int, float]] = {}
    for row in rows:
        shape = row.shape
        if row.impl != impl or shape["values"] != values or row.median_us is None:
            continue
        outputs, inputs = shape["block_outputs"], shape.get("block_inputs", 4)
        wide = f" {outputs} x {inputs}" if shape["layout"] == "block" else ""
        key = (shape["layout"] + wide, round(100 * shape["sparsity"]), shape["K"], shape["N"])
        found.setdefault(key, {})[shape["M"]] = row.median_us
    return found


def ratio_table(rows: list[Row], values: str, peer: str) -> list[str]:
    """How many times as fast as the peer, by layout, sparsity, shape and M."""
    ours, theirs = times(rows, values, "lepton"), times(rows, values, peer)
    columns = sorted({m for by_m in theirs.values() for m in by_m})
    if not columns:
        return []
    lines = [
        f"### {values} values: times as fast as {_NAMES[peer]}",
        "",
        "| layout | zeros | K x N | " + " | ".join(f"M={m}" for m in columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    ratios = []
    for key in sorted(ours.keys() & theirs.keys()):
        layout, sparsity, k, n = key
        cells = []
        for m in columns:
            both = ours[key].get(m), theirs[key].get(m)
            if both[0] is None or both[1] is None:
                cells.append("")
                continue
            ratios.append(both[1] / both[0])
            cells.append(f"{ratios[-1]:.2f}")
        lines.append(f"| {layout} | {sparsity} % | {k} x {n} | " + " | ".join(cells) + " |")
    mean, least = statistics.geometric_mean(ratios), min(ratios)
    return [*lines, "", f"Geometric mean {mean:.2f}, least {least:.2f}.", ""]


def time_table(rows: list[Row], values: str) -> list[str]:
    """Microseconds of everybody."""
    peers = [p for p in _PEERS[values] if times(rows, values, p)]
    ours = times(rows, values, "lepton")
    lines = [
        f"### {values} values, microseconds",
        "",
        "| layout | zeros | M, K, N | lepton | " + " | ".join(_NAMES[p] for p in peers) + " |",
        "|---|---|---|---|" + "---|" * len(peers),
    ]
    for key in sorted(ours):
        for m, us in sorted(ours[key].items()):
            others = (times(rows, values, p).get(key, {}).get(m) for p in peers)
            cells = " | ".join("" if other is None else f"{other:.0f}" for other in others)
            layout, sparsity, k, n = key
            lines.append(f"| {layout} | {sparsity} % | {m}, {k}, {n} | {us:.0f} | {cells} |")
    return [*lines, ""]


def checks(rows: list[Row]) -> str:
    """How many results were checked, and which failed or were missing, with the reason."""
    tried = [row for row in rows if row.match is not None]
    wrong = [row for row in tried if not row.match]
    missing = sorted({(row.impl, row.note) for row in rows if row.match is None})
    text = f"{len(tried) - len(wrong)} of {len(tried)} results matched the float64 reference."
    for row in wrong:
        text += f"\n{row.impl}, {row.case}: {row.note}."
    reasons = "; ".join(f"{impl}: {note.removeprefix('missing: ')}" for impl, note in missing)
    return text + (f"\nNot run in some cases: {reasons}." if reasons else "")


def page(rows: list[Row], commands: list[str], machine: str, note: str) -> str:
    """The whole document."""
    first = rows[0]
    lines = [
        "# sparse_linear, measured",
        "",
        f"{machine}; {first.threads} thread(s), torch {first.torch}, commit {first.commit},",
        "one run of" if len(commands) == 1 else "one run of each of",
        "",
        *(f"    {command}" for command in commands),
        "",
        *([note, ""] if note else []),
        "fp32 in and out; with int8 values the input is quantised in the call. Weights are colder",
        "than the L2 but fit the L3. Medians of interleaved calls on a shared machine: a ratio",
        "may be off by a tenth, and by more when others compute on it. Below 1 sparse is slower.",
        "`bitmask` has its zeros anywhere, `n:m` is 2:4, a `block` is so many outputs x inputs.",
        "Written by `benchmarks/sparse_linear_page.py`.",
        "",
        checks(rows),
        "",
        "## Ratios",
        "",
    ]
    for values, peers in _PEERS.items():
        for peer in peers:
            lines += ratio_table(rows, values, peer)
    lines += ["## Times", ""]
    for values in _PEERS:
        if times(rows, values, "lepton"):
            lines += time_table(rows, values)
    return "\n".join([*lines, NOTES]).rstrip() + "\n"


def main() -> None:
    """Read the rows, write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", help="JSON files of lepton bench")
    parser.add_argument("--command", action="append", required=True, help="what made them")
    parser.add_argument("--note", default="", help="a sentence on how busy the machine was")
    parser.add_argument("--machine", help="how to call the machine (default: as in the rows)")
    parser.add_argument("--out", default=str(PAGE), help="(default: docs/sparse_linear.md)")
    given = parser.parse_args()
    rows = [row for path in given.rows for row in read_json(path)]
    machine = given.machine or rows[0].machine
    Path(given.out).write_text(page(rows, given.command, machine, given.note), encoding="utf-8")
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
