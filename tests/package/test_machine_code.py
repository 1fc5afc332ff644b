"""The machine-code gate: what it reads from disassembly, and what it refuses."""

import importlib
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "tools" / "machine_code"


@pytest.fixture(scope="module")
def gate():
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("gate")
    sys.path.remove(str(FOLDER))


def assembled(lines):
    """Text like cuobjdump's: (predicated instruction, stall) -> two lines, 16 bytes each."""
    text = ["\tcode for sm_80", "\t\tFunction : kernel"]
    for i, (instruction, stall) in enumerate(lines):
        text.append(f"        /*{16 * i:04x}*/  {instruction} ;  /* 0x{0:016x} */")
        text.append(f"                                 /* 0x{stall << 41:016x} */")
    return text


# A prologue, a loop whose first block lies behind its last one, and an end.
LOOP = [
    ("MOV R1, RZ", 1),  # 00
    ("LDGSTS.E.BYPASS.128 [R2], [R4.64]", 2),  # 10: header
    ("LDGDEPBAR", 1),  # 20
    ("@!PT LDS RZ, [RZ]", 1),  # 30
    ("LDSM.16.M88.4 R8, [R2]", 3),  # 40
    ("HMMA.16816.F32 R20, R30, R32, R20", 8),  # 50
    ("HMMA.16816.F32 R24, R30, R32, R24", 8),  # 60
    ("HMMA.16816.F32 R28, R8, R34, R28", 8),  # 70
    ("BRA 0xb0", 5),  # 80: out of line
    ("STG.E [R4.64], R20", 1),  # 90
    ("EXIT", 5),  # a0
    ("DEPBAR.LE SB0, 0x0", 4),  # b0
    ("BAR.SYNC.DEFER_BLOCKING 0x0", 2),  # c0
    ("@P0 BRA 0x10", 5),  # d0
    ("BRA 0x90", 5),  # e0
]


def test_the_loop_holds_blocks_out_of_line(gate):
    sass = sys.modules["sass"]
    [(arch, name, code)] = sass.parse(assembled(LOOP))
    assert (arch, name, len(code)) == ("80", "kernel", len(LOOP))
    loop = sass.main_loop(code)
    assert [ins.address for ins in loop] == [*range(0x10, 0x90, 0x10), 0xB0, 0xC0, 0xD0]
    assert sass.copy_cover(loop) == 3
    assert sass.ldmatrix_cover(loop) == (2, 2)
    measures = gate.Measures(sass.Kernel("80", name, name, code, registers=64), {}, loop)
    assert measures.matrix == 3
    assert measures.classes["never"] == 1
    assert measures.instructions_per_matrix == 11 / 3
    assert measures.stalls_per_matrix == 47 / 3


def test_what_the_gate_refuses(gate):
    sass = sys.modules["sass"]
    [(arch, name, code)] = sass.parse(assembled([*LOOP[:9], ("STL [R1], R20", 1), *LOOP[10:]]))
    kernel = sass.Kernel(arch, name, name, code, registers=255, stack=24)
    loop = sass.main_loop(code)
    faults = gate.Measures(kernel, {}, loop).faults()
    assert faults[:2] == ["24 bytes of stack", "1 local loads and stores (spills)"]
    assert "no budget" in faults[2]
    budget = {"kind": "dense", "instructions_per_matrix": 2.6, "stalls_per_matrix": 16.0}
    faults = gate.Measures(kernel, budget, loop).faults()
    assert faults[2:] == ["instructions_per_matrix 3.67 is over 2.6"]
    assert gate.budget_of("b_kernel", {
        "kinds": {"dense": {"stalls_per_matrix": 8.3}},
        "kernels": [{"kernel": "^a"}, {"kernel": "^b", "kind": "dense", "threads": 128}],
    }) == {"stalls_per_matrix": 8.3, "kernel": "^b", "kind": "dense", "threads": 128}  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "registers", "threads", "shared", "expected"),
    [  # by the rules of cuda_occupancy.h
        ("80", 255, 128, 48 * 1024, (2, 8, "registers")),
        ("80", 32, 256, 0, (8, 64, "warps+registers")),
        ("80", 64, 128, 100 * 1024, (1, 4, "shared")),
        ("90", 128, 256, 0, (2, 16, "registers")),
    ],
)
def test_occupancy(gate, arch, registers, threads, shared, expected):
    assert sys.modules["model"].occupancy(arch, registers, threads, shared) == expected
