"""The compiled `_native` module: ceilings of this machine."""

import pytest

import lepton_kernels as lk

native = pytest.importorskip("lepton_kernels._native", reason="built with LEPTON_NATIVE=0")
KINDS = ("fp32", "bf16", "int8")


@pytest.mark.parametrize("kind", KINDS)
def test_peak_is_positive_on_every_isa(kind):
    for isa in native.peak_isas(kind):
        assert native.peak(kind, isa, 1, 0.01) > 1e6


def test_measurable_isas_are_those_present():
    if lk.info()["emulated"]:
        pytest.skip("emulated instructions say nothing about the machine")
    assert native.peak_isas("int8") == lk.info()["isa_present"]
    assert ("amx" in native.peak_isas("bf16")) == ("amx" in lk.info()["isa_present"])


def test_read_bandwidth_is_positive_on_every_isa():
    assert native.read_isas()[0] == "generic"
    for isa in native.read_isas():
        assert native.read_bandwidth(1 << 20, 2, isa, 0.01) > 1e6


@pytest.mark.parametrize("isa", ["banana", "", "AVX2"])
def test_absent_isa_names_those_present(isa):
    with pytest.raises(ValueError, match=r"unknown or absent ISA '.*'; measurable .* generic"):
        native.peak("int8", isa, 1, 0.01)
    with pytest.raises(ValueError, match=r"read_bandwidth: unknown or absent ISA"):
        native.read_bandwidth(1 << 20, 1, isa, 0.01)


def test_known_isa_that_is_absent():
    absent = {"avx2", "vnni", "amx"} - set(native.peak_isas("int8"))
    if not absent:
        pytest.skip("this machine has every instruction set")
    for isa in absent:
        with pytest.raises(ValueError, match="absent"):
            native.peak("int8", isa, 1, 0.01)


def test_bad_arguments():
    with pytest.raises(ValueError, match="kind must be fp32, bf16 or int8, got 'fp8'"):
        native.peak("fp8", "generic", 1, 0.01)
    with pytest.raises(ValueError, match="threads must be from 1"):
        native.peak("int8", "generic", 0, 0.01)
    with pytest.raises(ValueError, match="bytes_per_thread must be at least"):
        native.read_bandwidth(100, 1, "generic", 0.01)
