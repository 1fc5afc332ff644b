"""The model of the shared-memory protocol: it holds, and planted faults are found."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).resolve().parents[2] / "tools" / "shm_model" / "check.py"


def checker():
    spec = importlib.util.spec_from_file_location("shm_model_check", CHECK)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(
    shutil.which("spin") is None or shutil.which("gcc") is None, reason="needs spin and gcc"
)
def test_the_protocol_holds_and_faults_are_found():
    model = checker()
    outcome = model.check({"RANKS": 2, "N": 2, "SLOTS": 1})
    assert not outcome.error
    assert outcome.complete
    assert outcome.states > 100_000
    for fault, defines in model.FAULTS.items():
        assert model.check({"RANKS": 2, "SLOTS": 2, **defines}, (fault,)).error, fault
