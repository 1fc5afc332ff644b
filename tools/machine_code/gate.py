"""The machine-code gate: what ptxas made of every kernel, held against budgets. No GPU needed.

    python tools/machine_code/gate.py LIBRARY_OR_CUBIN... [--table docs/machine_code.md]

For each kernel and architecture: registers, stack, local memory, shared memory, occupancy; for the
main loop of those with matrix instructions: instructions by class, instructions and stall cycles
per matrix instruction, what covers each cp.async and ldmatrix, and the pipe that bounds it.
It fails where a kernel uses stack or local memory, where a kernel with matrix instructions has no
budget, and where one is over its budget (budgets.json). Everything here is static: no time is
measured and none is claimed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import model
import sass

HERE = Path(__file__).resolve().parent


@dataclass
class Measures:
    """What the gate and the table say of one kernel."""

    kernel: sass.Kernel
    budget: dict[str, Any]
    loop: list[sass.Instruction]

    @property
    def arch(self) -> str:
        return self.kernel.arch

    @property
    def classes(self) -> Counter[str]:
        return Counter(ins.kind for ins in self.loop)

    @property
    def matrix(self) -> int:
        return self.classes["matrix"]

    @property
    def local(self) -> int:
        return sum(ins.base in ("LDL", "STL") for ins in self.kernel.code)

    @property
    def threads(self) -> int:
        return int(self.budget.get("threads", self.kernel.threads))

    @property
    def shared(self) -> int:
        return int(self.budget.get("shared_bytes", 0)) + self.kernel.shared

    @property
    def occupancy(self) -> tuple[int, int, str] | None:
        known = self.threads and self.kernel.registers and self.arch in model.PROCESSORS
        if not known:
            return None
        return model.occupancy(self.arch, self.kernel.registers, self.threads, self.shared)

    @property
    def instructions_per_matrix(self) -> float:
        return len(self.loop) / self.matrix

    @property
    def stalls_per_matrix(self) -> float:
        return sum(ins.stall for ins in self.loop) / self.matrix

    @property
    def bound(self) -> tuple[str, float]:
        """The pipe that bounds the loop, and the share of the tensor peak that it leaves."""
        cycles = model.pipe_cycles(self.loop, self.arch)
        if self.occupancy and self.occupancy[1]:
            warps = max(1.0, self.occupancy[1] / 4)
            cycles["stall"] = sum(ins.stall for ins in self.loop) / warps
        top = max(cycles, key=lambda pipe: cycles[pipe])
        return top, cycles["tensor"] / cycles[top] if cycles[top] else 0.0

    def faults(self) -> list[str]:
        """What is over budget."""
        out = []
        # Nothing is allowed unless budgets.json grants it, by architecture.
        granted = self.budget.get("granted", {}).get(self.arch, {})
        if self.kernel.stack > granted.get("stack", 0):
            out.append(f"{self.kernel.stack} bytes of stack")
        if self.local > granted.get("local", 0):
            out.append(f"{self.local} local loads and stores (spills)")
        if not self.loop:
            return out
        if "kind" not in self.budget:
            return [*out, "matrix instructions, but no budget in budgets.json"]
        if self.arch not in self.budget.get("archs", ["80"]):
            return out
        for name, value in (
            ("instructions_per_matrix", self.instructions_per_matrix),
            ("stalls_per_matrix", self.stalls_per_matrix),
        ):
            limit = self.budget.get(name)
            if limit is not None and value > limit:
                out.append(f"{name} {value:.2f} is over {limit}")
        return out


def budget_of(name: str, budgets: dict[str, Any]) -> dict[str, Any]:
    """Kind and limits of a kernel: the first pattern that matches, with its kind's defaults."""
    for entry in budgets["kernels"]:
        if re.search(entry["kernel"], name):
            return {**budgets["kinds"].get(entry.get("kind", ""), {}), **entry}
    return {}


def measure(files: list[str], tool: str, budgets: dict[str, Any]) -> list[Measures]:
    """All kernels of the files, by name and architecture."""
    found = [
        Measures(kernel, budget_of(kernel.name, budgets), sass.main_loop(kernel.code))
        for file in files
        for kernel in sass.kernels(file, tool)
    ]
    return sorted(found, key=lambda m: (m.kernel.name, int(m.arch)))


def _line(cells: list[Any]) -> str:
    return "| " + " | ".join("" if cell is None else str(cell) for cell in cells) + " |"


def _pair(value: tuple[int, int] | None) -> str:
    return "" if value is None else f"{value[0]}/{value[1]}"


RESOURCES = [
    "kernel", "registers", "stack", "local", "shared bytes", "threads", "blocks/SM", "warps/SM",
    "limited by", "instructions",
]  # fmt: skip
LOOPS = [
    "kernel", "sm", "loop", "matrix", "ldmatrix", "cp.async", "special", "fp32", "integer",
    "barrier", "ins/matrix", "stalls/matrix", "bound", "tensor/bound", "cp cover",
    "ldmatrix cover", "budget",
]  # fmt: skip


def _by_arch(values: list[Any]) -> str:
    """One value where all architectures agree."""
    texts = ["-" if value is None else str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def resource_table(all_measures: list[Measures]) -> str:
    """A row a kernel; values that differ between the architectures stand side by side."""
    rows = [_line(RESOURCES), _line(["---"] * len(RESOURCES))]
    for name in dict.fromkeys(m.kernel.name for m in all_measures):
        same = [m for m in all_measures if m.kernel.name == name]
        occupied = [m.occupancy or (None, None, None) for m in same]
        columns: list[list[Any]] = [
            [m.kernel.registers for m in same], [m.kernel.stack for m in same],
            [m.local for m in same], [m.shared for m in same], [m.threads for m in same],
            [o[0] for o in occupied], [o[1] for o in occupied], [o[2] for o in occupied],
            [len(m.kernel.code) for m in same],
        ]  # fmt: skip
        rows.append(_line([f"`{name}`", *map(_by_arch, columns)]))
    return "\n".join(rows)


def loop_table(all_measures: list[Measures]) -> str:
    """A row a kernel and architecture with matrix instructions."""
    rows = [_line(LOOPS), _line(["---"] * len(LOOPS))]
    for m in all_measures:
        if not m.loop:
            continue
        bound, share = m.bound
        count = m.classes
        limits = [m.budget.get(n) for n in ("instructions_per_matrix", "stalls_per_matrix")]
        held = m.arch in m.budget.get("archs", ["80"]) and None not in limits
        rows.append(
            _line([f"`{m.kernel.name}`", m.arch, len(m.loop), m.matrix, count["ldmatrix"],
                   count["cp.async"], count["special"], count["fp32"], count["integer"],
                   count["barrier"], f"{m.instructions_per_matrix:.2f}",
                   f"{m.stalls_per_matrix:.1f}", bound, f"{share:.2f}", sass.copy_cover(m.loop),
                   _pair(sass.ldmatrix_cover(m.loop)), f"{limits[0]}, {limits[1]}" if held else ""])
        )  # fmt: skip
    return "\n".join(rows)


def over_budget(all_measures: list[Measures]) -> list[str]:
    """A line for each kernel with faults."""
    return [
        f"{m.kernel.name} (sm_{m.arch}): {'; '.join(faults)}"
        for m in all_measures
        if (faults := m.faults())
    ]


def granted(all_measures: list[Measures]) -> list[str]:
    """Kernels whose spills budgets.json grants."""
    return [
        f"{m.kernel.name} (sm_{m.arch}): {m.kernel.stack} bytes of stack, {m.local} local accesses"
        for m in all_measures
        if m.kernel.stack or m.local
    ]


def tables(all_measures: list[Measures]) -> str:
    """Everything as Markdown."""
    allowed = "\n".join(f"* {line}" for line in granted(all_measures)) or "None."
    archs = " / ".join(sorted({f"sm_{m.arch}" for m in all_measures}, key=lambda a: int(a[3:])))
    faults = "\n".join(f"* {line}" for line in over_budget(all_measures)) or "None."
    return (
        f"## Main loops of our kernels\n\n{loop_table(all_measures)}\n\n"
        f"## Over budget\n\n{faults}\n\n"
        f"## Spills that are known and not cured yet\n\n{allowed}\n\n"
        f"## Resources of our kernels\n\nArchitectures: {archs}; one value where all agree.\n\n"
        f"{resource_table(all_measures)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", help="cubins or libraries that hold them")
    parser.add_argument("--budgets", default=str(HERE / "budgets.json"))
    parser.add_argument("--table", help="write the tables, headed by preface.md, to this file")
    parser.add_argument("--filter", default="", help="regular expression on kernel names")
    parser.add_argument("--dump", action="store_true", help="print the main loops")
    options = parser.parse_args()
    tool = sass.find_cuobjdump()
    if tool is None:
        sys.exit("no cuobjdump: it comes with the CUDA toolkit and with Triton's wheel")
    budgets = json.loads(Path(options.budgets).read_text())
    found = measure(options.files, tool, budgets)
    found = [m for m in found if re.search(options.filter, m.kernel.name)]
    if not found:
        sys.exit(f"no kernels in {', '.join(options.files)}")
    text = tables(found)
    if options.table:
        target = Path(options.table)
        scratch = target.with_suffix(".new")
        scratch.write_text((HERE / "preface.md").read_text() + "\n" + text)
        scratch.replace(target)
    else:
        print(text)
    if options.dump:
        for m in found:
            for ins in m.loop:
                print(f"{ins.address:05x} {ins.stall:2d} {ins.kind:12s} {ins.predicate:6s}"
                      f"{ins.op} {ins.args}")  # fmt: skip
    faults = over_budget(found)
    unclassified = sorted(
        {ins.base for m in found for ins in m.loop if ins.kind == "other" and ins.base}
    )
    if unclassified:
        print("not classified:", *unclassified, file=sys.stderr)
    print(f"{len(found)} kernels read, {len(faults)} over budget", file=sys.stderr)
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    main()
