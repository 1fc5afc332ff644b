"""The CUDA operator library on a machine with or without a GPU."""

import re
import subprocess
import sys

import pytest
import torch

import lepton_kernels as lk
from lepton_kernels import _backend

OPS = ("bucket_flatten", "bucket_unflatten_", "bucket_reduce", "bucket_unscale_", "bucket_squares",
       "bucket_quantize", "bucket_dequantize_", "int8_linear", "int8_mm", "quantize_int8",
       "pack_int8_weight", "sparse_linear", "attention_forward", "attention_cached",
       "attention_backward")  # fmt: skip


def test_a_missing_cuda_backend_says_why():
    if "cuda" in lk.info()["backends"]:
        pytest.skip("the CUDA backend is present")
    reason = "torch finds no CUDA GPU and driver here" if _backend.CUDA_LIBRARY else "(built|torch)"
    with pytest.raises(ValueError, match=f"absent backend 'cuda'.*; cuda: .*{reason}"):
        lk.force_backend("cuda")


def test_library_loads_without_a_driver_and_serves_cuda_tensors():
    if _backend.CUDA_LIBRARY is None:
        pytest.skip(_backend.CUDA_ABSENCE)
    info = lk.info()
    assert info["cuda_library"] == str(_backend.CUDA_LIBRARY)
    assert all(name == "PTX" or name.startswith("sm_") for name in info["cuda_architectures"])
    assert info["cuda_architectures"]
    for op in OPS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lepton::{op}", "CUDA"), op
    assert lk.bucket_flatten([torch.ones(3)])[:3].tolist() == [1, 1, 1]


def test_import_does_not_touch_the_driver():
    code = "import lepton_kernels, torch; print(torch.cuda.is_initialized())"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code] if sys.version_info >= (3, 11) else
        [sys.executable, "-c", code],
        capture_output=True, text=True, check=True, cwd="/",
    )  # fmt: skip
    assert done.stdout.strip() == "False"


def test_a_library_that_does_not_load_is_told(monkeypatch, tmp_path):
    from lepton_kernels import _library

    broken = tmp_path / "_cuda.abi3.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(_library, "_find", lambda stem: broken)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.warns(lk.NativeLibraryWarning, match=re.escape("no CUDA kernels: _cuda.abi3.so")):
        path, reason = _library.load_cuda()
    assert path is None
    assert "does not load under torch" in reason
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _library.load_cuda() == (None, f"torch {torch.__version__} is a build without CUDA")
