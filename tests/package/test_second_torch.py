"""One build of the operators loads under another torch, with the same bits."""

import os
import subprocess
from pathlib import Path

import pytest
import torch

import lepton_kernels as lk

SCRIPT = """
import sys
import torch
folder, saved = sys.argv[1:]
sys.path.insert(0, folder)
import lepton_kernels as lk
assert "cpu" in lk.info()["backends"], lk.info()
data = torch.load(saved, weights_only=True)
assert data["torch"] != torch.__version__, "the same torch proves nothing"
weight, scale = lk.quantize_int8(data["w"])
assert torch.equal(weight, data["weight"]) and torch.equal(scale, data["scale"])
packed = lk.pack_int8_weight(weight)
assert torch.equal(packed, data["packed"])
for isa in lk.info()["isa_present"]:
    with lk.force_isa(isa):
        assert torch.equal(lk.int8_mm(weight, weight.t()), data["product"]), isa
        for activation in (None, "gelu"):
            out = lk.int8_linear(data["x"], packed, scale, activation=activation)
            assert torch.equal(out, data[str(activation)]), (isa, activation)
x = data["x"].clone().requires_grad_()
lk.int8_linear(x, packed, scale, activation="relu").sum().backward()
assert x.grad.isfinite().all()
try:
    lk.int8_linear(data["x"], packed, scale[:3])
except ValueError as error:
    print(torch.__version__, "ok:", error)
"""


def test_loads_under_another_torch(cpu_backend, tmp_path):
    python = os.environ.get("LEPTON_SECOND_PYTHON")
    if not python:
        pytest.skip("LEPTON_SECOND_PYTHON names no interpreter with another torch")
    x, w = torch.randn(9, 123), torch.randn(33, 123)
    weight, scale = lk.quantize_int8(w)
    packed = lk.pack_int8_weight(weight)
    data = {
        "torch": str(torch.__version__), "x": x, "w": w, "weight": weight, "scale": scale,
        "packed": packed, "product": lk.int8_mm(weight, weight.t()),
    }  # fmt: skip
    for activation in (None, "gelu"):
        data[str(activation)] = lk.int8_linear(x, packed, scale, activation=activation)
    torch.save(data, tmp_path / "results.pt")
    # The package alone: nothing else of this environment, torch least of all, may be seen.
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "lepton_kernels").symlink_to(Path(lk.__file__).resolve().parent)
    script = tmp_path / "second.py"
    script.write_text(SCRIPT, encoding="utf-8")
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "LEPTON_ISA")}
    result = subprocess.run(
        [python, str(script), str(tmp_path / "path"), str(tmp_path / "results.pt")],
        cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "ok: int8_linear" in result.stdout
