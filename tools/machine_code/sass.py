"""Reads machine code: instructions, resources, the main loop, what covers copies and ldmatrix.

The main loop: basic blocks, control-flow graph, dominators, natural loops (Aho, Sethi, Ullman).
Of the loops with matrix instructions that hold no smaller such loop, the one with most. The span
of the last backward branch is not enough: ptxas moves blocks out of line.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import model


@dataclass
class Instruction:
    """One line of disassembly; `stall` is the count that ptxas wrote (bits 105 to 108)."""

    address: int
    predicate: str
    op: str
    args: str
    stall: int = 0

    @property
    def base(self) -> str:
        return self.op.split(".")[0]

    @property
    def kind(self) -> str:
        return model.class_of(self.op, self.predicate)

    @property
    def target(self) -> int | None:
        found = re.findall(r"0x([0-9a-f]+)", self.args)
        return int(found[-1], 16) if found else None


@dataclass
class Kernel:
    """A kernel of one architecture."""

    arch: str
    mangled: str
    name: str
    code: list[Instruction]
    registers: int = 0
    stack: int = 0
    shared: int = 0  # static
    threads: int = 0  # of its launch bounds


def find_cuobjdump() -> str | None:
    """cuobjdump from PATH, else the one that Triton's wheel carries."""
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        inside = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        return str(inside) if inside.exists() else None
    return found


def run(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True)
    return done.stdout.splitlines()


_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*/\*\s*0x([0-9a-f]{16})\s*\*/")
_SECOND_WORD = re.compile(r"^\s*/\*\s*0x([0-9a-f]{16})\s*\*/\s*$")


def parse(lines: list[str]) -> Iterator[tuple[str, str, list[Instruction]]]:
    """(arch, mangled name, instructions) of what `cuobjdump -sass` prints."""
    arch, name, code = "", "", list[Instruction]()
    for line in lines:
        found = _INSTRUCTION.match(line)
        if found and name:
            text, predicate = found[2].strip("{} ;"), ""
            if text.startswith("@"):
                predicate, text = text.split(None, 1)
            op, _, args = text.partition(" ")
            code.append(Instruction(int(found[1], 16), predicate, op or "NOP", args.strip()))
            continue
        found = _SECOND_WORD.match(line)
        if found and code:
            code[-1].stall = int(found[1], 16) >> 41 & 15
            continue
        sm = re.search(r"code for sm_(\d+)", line)
        function = re.match(r"\s*Function\s*:\s*(\S+)", line)
        if sm or function:
            if name:
                yield arch, name, code
            code, name = [], function[1] if function else ""
            arch = sm[1] if sm else arch
    if name:
        yield arch, name, code


def _resources(tool: str, file: str) -> dict[tuple[str, str], dict[str, int]]:
    out: dict[tuple[str, str], dict[str, int]] = {}
    arch, key = "", ("", "")
    for line in run(tool, "-res-usage", file):
        if found := re.search(r"arch = sm_(\d+)", line):
            arch = found[1]
        if found := re.match(r"\s*Function (\S+):", line):
            key = (arch, found[1])
        if found := re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            out[key] = dict(
                zip(("registers", "stack", "shared"), map(int, found.groups()), strict=True)
            )
    attribute = ""
    for line in run(tool, "-elf", file):
        if found := re.search(r"arch = sm_(\d+)", line):
            arch = found[1]
        if line.startswith("."):
            found = re.match(r"\.nv\.info\.(\S+)", line)
            key = (arch, found[1]) if found else ("", "")
        if found := re.search(r"Attribute:\s*(\S+)", line):
            attribute = found[1]
        if (
            key in out
            and "Value:" in line
            and attribute in ("EIATTR_MAX_THREADS", "EIATTR_REQNTID")
        ):
            x, y, z = (int(v, 16) for v in re.findall(r"0x[0-9a-f]+", line)[:3])
            out[key]["threads"] = x * y * z
    return out


def kernels(file: str, tool: str) -> list[Kernel]:
    """Every kernel of a cubin or library."""
    found = list(parse(run(tool, "-sass", file)))
    resources = _resources(tool, file)
    names = subprocess.run(
        ["c++filt"], input="\n".join(name for _, name, _ in found), capture_output=True, text=True,
        check=True,
    ).stdout.splitlines()  # fmt: skip
    out = []
    for (arch, mangled, code), name in zip(found, names, strict=True):
        while code and (code[-1].base == "NOP" or code[-1].target == code[-1].address):
            code.pop()  # padding, and the loop on itself that ends a kernel
        plain = re.sub(r"^void |lepton::|\(anonymous namespace\)::", "", name)
        plain = re.sub(r"\(.*\)$", "", plain)
        # A cubin is of one architecture and does not say which.
        known = resources.get((arch, mangled)) or resources[("", mangled)]
        if int(arch) >= 90:  # the driver's own kilobyte is counted from there on
            known["shared"] = max(0, known["shared"] - 1024)
        out.append(Kernel(arch, mangled, plain, code, **known))
    return out


# ---- control flow ----


def _jumps(code: list[Instruction]) -> dict[int, list[int]]:
    """Index of each instruction that ends a block -> indices where control goes."""
    at = {ins.address: k for k, ins in enumerate(code)}
    regions = defaultdict(list)
    for k, ins in enumerate(code):
        if ins.base == "BSSY" and ins.target in at:
            regions[ins.args.split(",")[0].strip()].append((k, at[ins.target]))
    jumps = {}
    for k, ins in enumerate(code):
        conditional = ins.predicate not in ("", "@PT")
        here = [at[ins.target]] if ins.target in at else []
        if ins.predicate == "@!PT":
            continue
        if ins.base in ("BRA", "JMP"):
            conditional = conditional or bool(re.match(r"!?U?P[0-6]", ins.args))
            if ".DIV" in ins.op or ".CONV" in ins.op:
                jumps[k] = [k + 1]  # the slow path of a divergence check is left out
            else:
                jumps[k] = here + ([k + 1] if conditional else [])
        elif ins.base in ("EXIT", "RET", "KILL", "RTT", "BRX", "JMX", "BRXU"):
            jumps[k] = [k + 1] if conditional else []
        elif ins.base == "CALL":  # ptxas also leaves far loops by `@P0 CALL.REL.NOINC`
            jumps[k] = [*here, k + 1]
        elif ins.base == "BSYNC":  # goes to where its BSSY says
            known = regions.get(ins.args.strip(), [])
            before = [t for j, t in known if j < k][-1:] or [t for _, t in known]
            jumps[k] = (before or [k + 1]) + ([k + 1] if conditional else [])
    return {k: [t for t in to if t < len(code)] for k, to in jumps.items()}


def _reverse_postorder(successors: list[list[int]]) -> list[int]:
    order, seen, stack = [], {0}, [(0, iter(successors[0]))]
    while stack:
        block, rest = stack[-1]
        following = next((x for x in rest if x not in seen), None)
        if following is None:
            order.append(block)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(successors[following])))
    return order[::-1]


def _dominators(order: list[int], predecessors: dict[int, list[int]]) -> dict[int, int]:
    """Immediate dominators (Cooper, Harvey and Kennedy)."""
    place = {block: k for k, block in enumerate(order)}
    dominator, changed = {0: 0}, True
    while changed:
        changed = False
        for block in order[1:]:
            new = None
            for other in predecessors[block]:
                if other not in dominator:
                    continue
                a, b = other, other if new is None else new
                while a != b:
                    while place[a] > place[b]:
                        a = dominator[a]
                    while place[b] > place[a]:
                        b = dominator[b]
                new = a
            if new is not None and dominator.get(block) != new:
                dominator[block], changed = new, True
    return dominator


def natural_loops(code: list[Instruction]) -> list[list[int]]:
    """Instruction indices of each loop, in flow order."""
    jumps = _jumps(code)
    leaders = {0}
    for k, to in jumps.items():
        leaders.update(to)
        leaders.update([k + 1] if k + 1 < len(code) else [])
    first = sorted(leaders)
    number = {k: j for j, k in enumerate(first)}
    blocks = [range(a, b) for a, b in zip(first, [*first[1:], len(code)], strict=True)]
    successors = [
        [number[t] for t in jumps.get(block[-1], [block[-1] + 1]) if t in number]
        for block in blocks
    ]
    order = _reverse_postorder(successors)
    predecessors = defaultdict(list)
    for block in order:
        for following in successors[block]:
            predecessors[following].append(block)
    dominator = _dominators(order, predecessors)

    def dominates(a: int, b: int) -> bool:
        while b != a and b:
            b = dominator[b]
        return a == b

    latches = defaultdict(list)
    for block in order:
        for following in successors[block]:
            if dominates(following, block):
                latches[following].append(block)
    place = {block: k for k, block in enumerate(order)}
    loops = []
    for header, ends in latches.items():
        body, work = {header}, list(ends)
        while work:
            block = work.pop()
            if block not in body:
                body.add(block)
                work += predecessors[block]
        loops.append([k for block in sorted(body, key=place.__getitem__) for k in blocks[block]])
    return loops


def main_loop(code: list[Instruction]) -> list[Instruction]:
    """The innermost loop with most matrix instructions; empty where there is none.

    Of two with as many the shorter: the other is its masked copy, for tiles at an edge.
    """
    loops = [loop for loop in natural_loops(code) if _matrix_count(code, loop)]
    inner = [a for a in loops if not any(set(b) < set(a) for b in loops)]
    main = max(inner, key=lambda loop: (_matrix_count(code, loop), -len(loop)), default=[])
    return [code[k] for k in main]


def _matrix_count(code: list[Instruction], loop: list[int]) -> int:
    return sum(code[k].base in model.MATRIX for k in loop)


# ---- covers ----


def copy_cover(loop: list[Instruction]) -> int | None:
    """Fewest matrix instructions between a group's last cp.async and the wait for the group."""
    now, last, done, best = 0, None, 0, None
    groups: list[int | None] = []
    for turn in range(12):
        for ins in loop:
            if ins.base in model.MATRIX:
                now += 1
            elif ins.base == "LDGSTS":
                last = now
            elif ins.base == "LDGDEPBAR":
                groups.append(last)
                last = None
            elif ins.base == "DEPBAR" and "SB0" in ins.args:
                found = re.search(r",\s*(0x[0-9a-f]+|\d+)", ins.args)
                upto = len(groups) - (int(found[1], 0) if found else 0)
                waited = [g for g in groups[done : max(upto, done)] if g is not None]
                done = max(done, upto)
                if waited and turn > 8:  # the pipeline is full by then
                    cover = now - waited[-1]
                    best = cover if best is None else min(best, cover)
    return best


def ldmatrix_cover(loop: list[Instruction]) -> tuple[int, int] | None:
    """(fewest, median) matrix instructions between an ldmatrix and the first reader."""
    covers, twice = [], loop + loop
    for k, ins in enumerate(loop):
        found = re.match(r"R(\d+)", ins.args) if ins.base == "LDSM" else None
        if not found:
            continue
        first, count, passed = int(found[1]), model.shared_cycles(ins.op), 0
        for other in twice[k + 1 : k + 1 + len(loop)]:
            stores = other.base in ("STS", "STG", "STL", "STSM")
            sources = other.args if stores else other.args.partition(",")[2]
            if any(first <= int(r) < first + count for r in re.findall(r"\bR(\d+)", sources)):
                covers.append(passed)
                break
            passed += other.base in model.MATRIX
    covers.sort()
    return (covers[0], covers[len(covers) // 2]) if covers else None
