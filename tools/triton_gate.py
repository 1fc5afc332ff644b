#!/usr/bin/env python3
"""Compile every Triton kernel ahead of time, for GPUs that need not be present, and inspect it.

    tools/triton_gate.py [--capability 80] [--only REGEX] [--table docs/triton.md] [--json FILE]

For each case that the files of `lepton_kernels.triton` offer by `aot_cases()` and each compute
capability: it must compile, without spills (no stack, no local loads and stores), within the shared
memory of the architecture, and take the architecture's own matrix instruction for every product,
unless the case says why not. All figures are static, read from the machine code; nothing runs and
nothing is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler as nvidia
from triton.compiler import ASTSource

import lepton_kernels.triton as kernels

# Bytes of shared memory that one block may ask for: CUDA C++ Programming Guide, table of
# compute capabilities.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
# The matrix instruction that makes full use of an architecture.
OWN = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
MATRIX = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")
MATRIX_SASS = re.compile(r"\b[HIQ]?G?MMA\b|\bUTC[A-Z]*MMA\b")
SPILL_SASS = ("LDL", "STL")
BEGIN, END = "<!-- gate: begin -->", "<!-- gate: end -->"


@dataclasses.dataclass
class Result:
    """What one case compiled to, for one architecture."""

    name: str
    capability: int
    registers: int = 0
    stack: int = 0
    shared: int = 0
    instructions: int = 0
    matrix: str = ""
    matrix_in_loop: int = 0
    per_matrix: float | None = None
    reason: str = ""
    fault: str = ""


def cases() -> Iterator[Any]:
    """Every `aot_cases()` of the package."""
    for module in sorted(m.name for m in pkgutil.iter_modules(kernels.__path__)):
        loaded = importlib.import_module(f"{kernels.__name__}.{module}")
        if hasattr(loaded, "aot_cases"):
            yield from loaded.aot_cases()


def compile_case(case: Any, capability: int) -> Any:
    """The compiled kernel of one case."""
    names = list(case.kernel.arg_names)
    signature = {n: case.signature.get(n, "constexpr") for n in names}
    # Pointers that torch allocates are aligned.
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(names)
        if signature[n].startswith("*") or (n in case.divisible and n in case.signature)
    }
    source = ASTSource(case.kernel, signature, constexprs=dict(case.constants), attrs=attributes)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _tool(name: str, *arguments: str) -> str:
    path = Path(nvidia.__file__).parent / "bin" / name
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def _instructions(sass: str) -> list[tuple[int, str, str]]:
    """(address, opcode with its suffixes, operands) of each instruction."""
    line = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
    return [(int(a, 16), op, rest) for a, op, rest in line.findall(sass)]


def _main_loop(code: list[tuple[int, str, str]]) -> tuple[int, int]:
    """Instructions and matrix instructions of the innermost loop with most of the latter.

    A loop is the span of a backward branch; blocks that the compiler moved out of it are not
    counted.
    """
    best = (0, 0)
    for address, op, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest)
        if not op.startswith("BRA") or not target or int(target[1], 16) >= address:
            continue
        span = [c for c in code if int(target[1], 16) <= c[0] <= address]
        matrix = sum(bool(MATRIX_SASS.match(c[1])) for c in span)
        if matrix and (best[1] == 0 or len(span) < best[0]):
            best = (len(span), matrix)
    return best


def wanted_matrix(case: Any, capability: int) -> tuple[str, str]:
    """The matrix instruction that a case must have, and why it is not the architecture's own."""
    if case.no_matrix:
        return "", case.no_matrix
    if case.mma_sync and OWN[capability] != "mma.sync":
        return "mma.sync", case.mma_sync
    return OWN[capability], ""


def inspect(case: Any, capability: int, folder: Path) -> Result:
    """Compile and measure; `fault` says what is wrong."""
    result = Result(case.name, capability)
    try:
        compiled = compile_case(case, capability)
    except Exception as error:
        result.fault = f"does not compile: {str(error).strip().splitlines()[-1][:200]}"
        return result
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = _tool("cuobjdump", "-res-usage", str(cubin))
    found = max(re.finditer(r"REG:(\d+) STACK:(\d+)", usage), key=lambda m: int(m[1]))
    assert found, usage
    result.registers, result.stack = int(found[1]), int(found[2])
    result.shared = compiled.metadata.shared
    code = _instructions(_tool("cuobjdump", "-sass", str(cubin)))
    result.instructions = len(code)
    result.matrix = "+".join(sorted(set(MATRIX.findall(compiled.asm["ptx"]))))
    wanted, result.reason = wanted_matrix(case, capability)
    loop, result.matrix_in_loop = _main_loop(code)
    if result.matrix_in_loop:
        result.per_matrix = loop / result.matrix_in_loop
    spills = sum(op.split(".")[0] in SPILL_SASS for _, op, _ in code)
    if result.stack or spills:
        result.fault = f"spills: {result.stack} bytes of stack, {spills} local loads and stores"
    elif result.shared > SHARED_LIMIT[capability]:
        result.fault = f"{result.shared} bytes of shared memory, limit {SHARED_LIMIT[capability]}"
    elif result.matrix != wanted:
        result.fault = f"matrix instruction {result.matrix or 'none'}, must be {wanted or 'none'}"
    return result


def run(capabilities: list[int], only: str = "", jobs: int = 0) -> Iterator[Result]:
    """Results of every case whose name matches `only`."""
    names = [
        (case.name, capability)
        for case in cases()
        if re.search(only, case.name)
        for capability in capabilities
        if capability in case.capabilities
    ]
    # Kernels do not travel between processes, names do.
    with multiprocessing.get_context("spawn").Pool(jobs or os.cpu_count()) as pool:
        yield from pool.imap(_inspect_named, names)


def _inspect_named(wanted: tuple[str, int]) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        case = next(case for case in cases() if case.name == wanted[0])
        return inspect(case, wanted[1], Path(folder))


def table(results: list[Result]) -> str:
    """Markdown table of the results, and why some have not the architecture's own instruction."""
    lines = [
        "| kernel | sm | registers | stack | shared memory, B | instructions | matrix instruction"
        " | in the loop | instructions per matrix instruction |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results:
        ratio = "" if r.per_matrix is None else f"{r.per_matrix:.2f}"
        lines.append(
            f"| {r.name} | {r.capability} | {r.registers} | {r.stack} | {r.shared} | "
            f"{r.instructions} | {r.matrix} | {r.matrix_in_loop or ''} | {ratio} |"
        )
    reasons: dict[str, dict[str, None]] = {}
    for r in results:
        if r.reason:
            reasons.setdefault(r.reason, {})[r.name] = None
    lines += ["", "Not the architecture's own matrix instruction, and why:", ""]
    for reason, names in sorted(reasons.items()):
        lines.append(f"* {reason}: {', '.join(names)}")
    return "\n".join(lines)


def write_table(path: Path, results: list[Result]) -> None:
    """Replace what stands between the two marks of the document."""
    text = path.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    temporary = path.with_suffix(".tmp")
    temporary.write_text(
        f"{before}{BEGIN}\nTriton {triton.__version__}, its ptxas; static figures.\n\n"
        f"{table(results)}\n{END}{after}",
        encoding="utf-8",
    )
    temporary.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, action="append", choices=list(SHARED_LIMIT))
    parser.add_argument("--only", default="", help="regular expression on the name of the case")
    parser.add_argument("--table", type=Path, help="document to write the table into")
    parser.add_argument("--json", type=Path, help="file to write the results to")
    parser.add_argument("--jobs", type=int, default=0, help="processes; default: one per CPU")
    options = parser.parse_args()
    results = []
    for result in run(options.capability or list(SHARED_LIMIT), options.only, options.jobs):
        results.append(result)
        state = result.fault or "ok"
        ratio = f", {result.per_matrix:.2f} per matrix instruction" if result.per_matrix else ""
        print(
            f"{result.name} sm_{result.capability}: {result.registers} registers, "
            f"{result.shared} B shared{ratio}: {state}",
            flush=True,
        )
    if options.table:
        write_table(options.table, results)
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(r) for r in results], indent=1))
    faults = [r for r in results if r.fault]
    print(f"{len(results)} compiled, {len(faults)} with faults")
    return 1 if faults or not results else 0


if __name__ == "__main__":
    sys.exit(main())
