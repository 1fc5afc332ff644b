import copy

import pytest
import torch
from torch import nn

for package in ("pydantic", "safetensors"):
    pytest.importorskip(package, reason=f"needs the package {package}: pip install {package}")

import lepton_train as lt  # noqa: E402


@pytest.fixture
def x():
    return torch.randn(6, 32)


@pytest.fixture
def mlp():
    return nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 5)).eval()


@pytest.fixture
def saved(tmp_path, mlp, x):
    """A bundle of `mlp` at tmp_path / "model"."""
    lt.bundle.save(mlp, tmp_path / "model", metadata={"name": "mlp"}, example_inputs=x)
    return tmp_path / "model"


@pytest.fixture
def reseal():
    """Writes a bundle's checksums anew, as an attacker who changes files would."""
    from lepton_train.bundle.folder import write_checksums

    return write_checksums


@pytest.fixture
def round_trip(tmp_path):
    """Save, verify, load; the outputs must be the same bits."""

    def run(model, inputs, **options):
        model = copy.deepcopy(model).eval()
        path = tmp_path / "round_trip"
        digest = lt.bundle.save(model, path, example_inputs=inputs, **options)
        found = lt.bundle.verify(path, digest=digest)
        assert found, str(found)
        loaded = lt.bundle.load(path)
        assert not loaded.training
        call = inputs if isinstance(inputs, dict) else None
        with torch.inference_mode():
            one = model(**call) if call else model(inputs)
            other = loaded(**call) if call else loaded(inputs)
        if not isinstance(one, torch.Tensor):
            one, other = one[0], other[0]
        assert torch.equal(one, other)
        return loaded

    return run
