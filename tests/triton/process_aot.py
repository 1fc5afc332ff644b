"""The ahead-of-time gate finds what is planted; test_aot.py runs this process."""

import dataclasses

import pytest

from lepton_kernels.triton import launch

pytestmark = pytest.mark.skipif(launch.INTERPRETED, reason="the interpreter's process")


@pytest.fixture(scope="module")
def gate(load_file):
    return load_file("tools/triton_gate.py")


def case_named(gate, name):
    return next(case for case in gate.cases() if case.name == name)


def test_another_matrix_instruction_is_a_fault(gate, tmp_path):
    case = case_named(gate, "int8_gemm/rows16/mm")
    assert gate.inspect(case, 90, tmp_path).fault == ""
    without_reason = dataclasses.replace(case, mma_sync="")
    fault = gate.inspect(without_reason, 90, tmp_path).fault
    assert fault == "matrix instruction mma.sync, must be wgmma.mma_async"
    assert gate.inspect(without_reason, 80, tmp_path).fault == ""


def test_a_reason_that_does_not_hold_is_a_fault(gate, tmp_path):
    case = dataclasses.replace(case_named(gate, "int8_gemm/rows64/mm"), mma_sync="none")
    fault = gate.inspect(case, 90, tmp_path).fault
    assert fault == "matrix instruction wgmma.mma_async, must be mma.sync"
    fault = gate.inspect(dataclasses.replace(case, no_matrix="none"), 90, tmp_path).fault
    assert fault == "matrix instruction wgmma.mma_async, must be none"


def test_spills_and_what_does_not_compile_are_faults(gate, tmp_path):
    case = case_named(gate, "int8_gemm/square_sm80/mm")
    fault = gate.inspect(dataclasses.replace(case, num_warps=2), 80, tmp_path).fault
    assert fault.startswith("spills: "), fault
    broken = dataclasses.replace(case, constants={**case.constants, "INPUTS": 63})
    assert gate.inspect(broken, 80, tmp_path).fault.startswith("does not compile: ")


def test_every_case_has_a_name_of_its_own(gate):
    names = [case.name for case in gate.cases()]
    assert len(names) == len(set(names))
