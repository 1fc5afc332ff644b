"""Compiles and runs the stand-alone checks of this folder."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
# The numerics of setup.py; -Wno-psabi for 64-byte structs passed by value.
FLAGS = ["-std=c++17", "-O3", "-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-ffp-contract=off",
         "-fno-math-errno", "-pthread"]  # fmt: skip
EMULATED = ["-DLEPTON_EMULATE_ISA", "-O1"]  # -O3 compiles for minutes
EXTRA = {
    "emulate_amx_check": EMULATED,
    "emulate_floats_check": EMULATED,
    "emulate_integers_check": EMULATED,
    "emulate_moves_check": EMULATED,
    "activation_check": ["-DLEPTON_EMULATE_ISA", "-DLEPTON_CHECK_AVX512"],
}


@pytest.mark.parametrize("source", sorted(FOLDER.glob("*.cpp")), ids=lambda path: path.stem)
def test_program(tmp_path, source):
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler (g++, or the one that CXX names)")
    if platform.machine() != "x86_64":
        pytest.skip("these programs check x86-64 kernels")
    program = tmp_path / source.stem
    command = [compiler, *FLAGS, *EXTRA.get(source.stem, []), f"-I{ROOT / 'csrc'}", str(source)]
    built = subprocess.run([*command, "-o", str(program)], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-4000:]
    ran = subprocess.run([str(program)], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
