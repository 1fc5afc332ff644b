"""How a Triton kernel becomes a backend: force_backend, info, refusals, torch.compile."""

from pathlib import Path

import pytest

import lepton_kernels as lk

HERE = Path(__file__).parent


def test_absent_triton_raises():
    if "triton" in lk.info()["backends"]:
        pytest.skip("Triton kernels can run here")
    with pytest.raises(ValueError, match=r"absent backend 'triton'.*; triton needs a CUDA GPU, or"):
        lk.force_backend("triton")
    assert lk.info()["forced_backend"] is None


@pytest.mark.parametrize("interpret", [False, True], ids=["compiler", "interpreter"])
def test_in_a_process(in_process, interpret):
    in_process(HERE / "process_wiring.py", interpret=interpret)


def test_inductor(in_process):
    in_process(HERE / "process_inductor.py", interpret=False)
