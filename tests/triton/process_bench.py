"""`lepton bench --device cuda` has rows of the Triton kernels; test_bench.py runs this interpreted.

A dry run: tiny cases on CPU tensors, built, run once and checked, not timed.
"""

import json

import pytest
import torch
from lepton_train import bench
from lepton_train.bench.cuda import attention

from lepton_kernels.triton import launch

pytestmark = pytest.mark.skipif(not launch.INTERPRETED, reason="wants TRITON_INTERPRET=1")


@pytest.mark.parametrize("family", bench.FAMILIES)
def test_rows_of_triton(family, tmp_path, monkeypatch):
    # The interpreter has no product of bfloat16.
    monkeypatch.setattr(attention, "_DTYPE", torch.float16)
    path = tmp_path / "rows.json"
    options = ["--dry-run", "--only", "lepton_triton"]
    assert bench.run(family, str(path), "cuda", options) == 0
    rows = json.loads(path.read_text())
    assert rows
    for row in rows:
        assert row["impl"] == "lepton_triton"
        assert row["median_us"] is None
        assert row["match"] is True, row
