"""The AVX-512 and AMX kernels on any machine, from a build with emulated intrinsics.

LEPTON_EMULATE=1 pip install --no-deps --target FOLDER .
LEPTON_EMULATED_PACKAGE=FOLDER pytest tests/package/test_emulated.py
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_vnni_and_amx():
    folder = os.environ.get("LEPTON_EMULATED_PACKAGE")
    if not folder:
        pytest.skip("LEPTON_EMULATED_PACKAGE names no folder with an emulated build")
    environment = {k: v for k, v in os.environ.items() if k != "LEPTON_ISA"}
    environment["PYTHONPATH"] = folder
    # Not `python -m pytest`: that puts the current folder, with the sources, first.
    start = "import sys, pytest; sys.path.remove(''); sys.exit(pytest.main(sys.argv[1:]))"
    result = subprocess.run(
        [sys.executable, "-c", start, "-q", str(TESTS / "ops"), "-k", "vnni or amx"],
        cwd=TESTS.parent, env=environment, capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert "skipped" not in result.stdout.splitlines()[-1], result.stdout[-2000:]
