"""The model of the shared-memory protocol: it holds, and planted faults are found."""

import shutil

import pytest


@pytest.mark.skipif(
    shutil.which("spin") is None or shutil.which("gcc") is None, reason="needs spin and gcc"
)
def test_the_protocol_holds_and_faults_are_found(load_file):
    model = load_file("tools/shm_model/check.py")
    outcome = model.check({"RANKS": 2, "N": 2, "SLOTS": 1})
    assert not outcome.error
    assert outcome.complete
    assert outcome.states > 100_000
    for fault, defines in model.FAULTS.items():
        assert model.check({"RANKS": 2, "SLOTS": 2, **defines}, (fault,)).error, fault
