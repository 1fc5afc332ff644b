"""Triton tests run in processes of their own: TRITON_INTERPRET is read when a kernel is defined."""

import os
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest

import lepton_kernels as lk

SHARED_MEMORY = 163 << 10
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


@pytest.fixture
def sm80_driver():
    """Triton believes that an sm_80 is there: it can analyse and trace kernels, not launch them."""
    import torch
    from triton import runtime
    from triton.backends.compiler import GPUTarget

    properties = {"max_shared_mem": SHARED_MEMORY, "multiprocessor_count": 108}
    runtime.driver.set_active(
        types.SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", 80, 32),
            get_current_device=lambda: 0,
            get_current_stream=lambda device=0: 0,
            get_active_torch_device=lambda: torch.device("cuda", 0),
            utils=types.SimpleNamespace(get_device_properties=lambda device: properties),
        )
    )
    yield
    runtime.driver._active = None
