"""Triton tests run in processes of their own: TRITON_INTERPRET is read when a kernel is defined."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import lepton_kernels as lk

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def in_process(tmp_path):
    """Runs one test file in a fresh process of pytest; `interpret` sets TRITON_INTERPRET."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")

    def run(file, *, interpret):
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        if interpret:
            environment["TRITON_INTERPRET"] = "1"
        environment["PYTHONPATH"] = str(Path(lk.__file__).resolve().parents[1])
        result = subprocess.run(
            [
                sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=5",
                "-c", str(ROOT / "pyproject.toml"), str(file),
            ],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        print(result.stdout[-20000:], result.stderr[-5000:])
        assert result.returncode == 0, f"{file.name} failed in its own process; output above"

    return run
