"""Tests on a GPU: skipped where there is none."""

import pytest

import lepton_kernels as lk
from lepton_kernels import _backend


@pytest.fixture(autouse=True)
def _gpu():
    if "cuda" not in lk.info()["backends"]:
        pytest.skip(_backend.CUDA_ABSENCE or "no CUDA GPU on this machine")
    with lk.force_backend("cuda"):
        yield
