"""What the machine is: classes of opcodes, pipes of an SM quarter, occupancy.

Rates are those of NVIDIA's throughput table (CUDA C++ Programming Guide), pipe membership that of
the Nsight Compute guide, occupancy follows the rules of cuda_occupancy.h.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Processor:
    """One streaming multiprocessor; shared memory in bytes."""

    warps: int
    blocks: int
    shared: int
    shared_of_block: int
    fma: int  # lanes of the pipes of one quarter
    f16: int  # multiply-adds per clock of a quarter's tensor core
    registers: int = 65536
    kept: int = 1024  # shared memory that the driver keeps of each block
    alu: int = 16
    special: int = 4


# mma.sync on sm_90 and sm_100 runs below the rate of wgmma and tcgen05; f16 is the nominal rate.
PROCESSORS = {
    "80": Processor(warps=64, blocks=32, shared=167936, shared_of_block=166912, fma=16, f16=256),
    "90": Processor(warps=64, blocks=32, shared=233472, shared_of_block=232448, fma=32, f16=512),
    "100": Processor(warps=64, blocks=32, shared=233472, shared_of_block=232448, fma=32, f16=1024),
}


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def occupancy(arch: str, registers: int, threads: int, shared: int) -> tuple[int, int, str]:
    """(blocks per SM, warps per SM, what limits them)."""
    sm, warps = PROCESSORS[arch], ceil_div(threads, 32)
    of_warp = ceil_div(registers * 32, 256) * 256  # a warp's registers come 256 at a time
    limits = {"warps": sm.warps // warps, "blocks": sm.blocks}
    limits["registers"] = sm.registers // 4 // of_warp * 4 // warps  # from one of four quarters
    if of_warp * ceil_div(warps, 4) * 4 > sm.registers:
        limits["registers"] = 0
    limits["shared"] = (
        sm.shared // (ceil_div(shared + sm.kept, 128) * 128) if shared <= sm.shared_of_block else 0
    )
    blocks = min(limits.values())
    return blocks, blocks * warps, "+".join(k for k, v in limits.items() if v == blocks)


MATRIX = frozenset(["HMMA", "IMMA", "DMMA", "BMMA", "QMMA", "OMMA", "HGMMA", "IGMMA", "QGMMA"])
_OPCODES = {
    "ldmatrix": "LDSM",
    "shared load": "LDS",
    "shared store": "STS STSM ATOMS",
    "cp.async": "LDGSTS UBLKCP UTMALDG UTMASTG",
    "global load": "LDG LD LDC",
    "global store": "STG ST RED REDG ATOM ATOMG",
    "local": "LDL STL",
    "special": "MUFU",
    "fp32": "FFMA FMUL FADD FFMA32I FMUL32I FADD32I FFMA2 FMUL2 FADD2",
    "fp16": "HFMA2 HADD2 HMUL2 HMNMX2 HSET2 HSETP2 HADD2_32I VHMNMX",
    "fp64": "DADD DFMA DMUL DSETP",
    "compare": "FMNMX FSETP FSEL FSET FCHK FMNMX3",
    "integer": "IADD3 IADD IADD32I LOP3 LOP LOP32I SHF SHL SHR LEA IABS IMNMX IMAD IMUL SGXT BMSK "
    "POPC FLO BREV IDP IDP4A VIADD VIMNMX VIADDMNMX VABSDIFF IMAD32I VIMNMX3 MOVM",
    "select": "ISETP SEL PRMT PLOP3 P2R R2P PSETP ICMP VOTE",
    "move": "MOV MOV32I CS2R S2R S2UR R2UR",
    "convert": "F2F F2FP F2I I2F I2FP FRND I2I I2IP F2IP",
    "uniform": "UMOV ULDC LDCU UIADD3 UIMAD ULOP3 USHF ULEA UISETP USEL UPRMT UP2UR UPLOP3 UFLO "
    "UPOPC USGXT UBMSK UBREV VOTEU UVIADD",
    "shuffle": "SHFL REDUX CREDUX",
    "barrier": "BAR",
    "sync": "DEPBAR LDGDEPBAR WARPSYNC ARRIVES SYNCS MEMBAR ERRBAR CCTL WARPGROUP FENCE YIELD "
    "NANOSLEEP NOP ELECT LEPC ACQBULK WARPGROUPSET",
    "control": "BRA BRX JMP JMX CALL RET EXIT BSSY BSYNC BREAK BMOV BPT KILL RTT BRXU",
}
CLASSES = ["matrix", *_OPCODES, "never", "other"]
_CLASS_OF = {op: name for name, ops in _OPCODES.items() for op in ops.split()}
_PIPES = {
    "alu": "IADD3 IADD IADD32I LOP3 LOP LOP32I SHF SHL SHR LEA IABS IMNMX SGXT BMSK ISETP SEL PRMT "
    "PLOP3 P2R R2P PSETP FMNMX FSETP FSEL FSET FCHK MOV MOV32I F2FP VIADD VIMNMX VIADDMNMX HMNMX2 "
    "HSET2 HSETP2 VABSDIFF",
    "fma": "FFMA FMUL FADD FFMA32I FMUL32I FADD32I IMAD IMUL IDP IDP4A HFMA2 HADD2 HMUL2 I2FP",
    "special": "MUFU F2F F2I I2F FRND POPC FLO BREV",
}
_PIPE_OF = {op: pipe for pipe, ops in _PIPES.items() for op in ops.split()}
# Multiply-adds of a warp's instruction by its shape.
_SHAPES = {
    "16816": 2048, "1688": 1024, "16832": 4096, "16864": 8192, "8816": 1024, "8832": 2048,
    "168128": 16384, "884": 256,
}  # fmt: skip


def class_of(op: str, predicate: str) -> str:
    """Class of an opcode. `@!PT` marks what never runs: ptxas pads groups of copies so."""
    base = op.split(".")[0]
    if predicate == "@!PT":
        return "never"
    if base in MATRIX:
        return "matrix"
    return "move" if op.startswith("IMAD.MOV") else _CLASS_OF.get(base, "other")


def shared_cycles(op: str) -> int:
    """128-byte cycles of shared memory that a warp's instruction takes without conflicts."""
    base = op.split(".")[0]
    if base in ("LDSM", "STSM"):
        found = re.search(r"\.([24])$", op)
        return int(found[1]) if found else 1
    if base in ("LDGSTS", "LDS", "STS", "ATOMS"):
        return 4 if ".128" in op else 2 if ".64" in op else 1
    return 1 if base == "SHFL" else 0


def pipe_cycles(loop: list[Any], arch: str) -> dict[str, float]:
    """Least cycles that one warp's iteration keeps each pipe of an SM quarter busy."""
    sm = PROCESSORS[arch]
    cycles = dict.fromkeys(("tensor", "shared", "fma", "alu", "special"), 0.0)
    cycles["issue"] = float(len(loop))
    for ins in loop:
        base = ins.op.split(".")[0]
        if ins.kind == "never":
            continue
        if base in MATRIX:
            shape = re.search(r"\.(\d{3,6})(?=\.|$)", ins.op)
            rate = sm.f16 * (2 if base[0] == "I" else 1) * (2 if ".SP" in ins.op else 1)
            cycles["tensor"] += _SHAPES.get(shape[1], 0) / rate if shape else 0
        elif base in _PIPE_OF:
            pipe = _PIPE_OF[base]
            if pipe == "fma" and base[0] == "H" and arch == "80":
                continue  # has a pipe of its own there
            lanes = {"fma": sm.fma, "alu": sm.alu, "special": sm.special}[pipe]
            cycles[pipe] += 32 / lanes
        cycles["shared"] += 4 * shared_cycles(ins.op)  # one pipe for the four quarters
    return cycles
