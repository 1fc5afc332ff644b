"""What every test shares: seeds, backends and ISAs by name, comparison of bits, the oracle."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
import torch

import lepton_kernels as lk

TESTS = Path(__file__).resolve().parent
SEED = int(os.environ.get("LEPTON_TEST_SEED") or secrets.randbelow(2**31))
AVX2 = ("avx2", "fma", "f16c")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni")
ISA_FEATURES = {
    "generic": (),
    "avx2": AVX2,
    "vnni": AVX512,
    "amx": (*AVX512, "amx_tile", "amx_int8", "amx_bf16"),
}

# Times that a test measures are nobody's: no test touches the user's cache of them.
os.environ["LEPTON_PACK_CACHE"] = ""

hypothesis.settings.register_profile("lepton", deadline=None, print_blob=True)
hypothesis.settings.load_profile("lepton")


def _load(path: Path) -> ModuleType:
    # Import mode importlib keeps test folders off sys.path.
    spec = importlib.util.spec_from_file_location(f"lepton_tests_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


_ORACLE = _load(TESTS / "oracle.py")
_COMPARE = _load(TESTS / "compare.py")


def pytest_configure() -> None:
    if os.environ.get("LEPTON_TEST_SEED"):
        hypothesis.core.global_force_seed = SEED


def pytest_report_header() -> list[str]:
    info = lk.info()
    return [
        f"lepton_kernels: {Path(lk.__file__).parent}, ISAs {info['isa_present'] or 'none'}"
        f"{' (emulated)' if info['emulated'] else ''}, torch {torch.__version__}",
        f"seed: LEPTON_TEST_SEED={SEED}",
    ]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed:
        report.sections.append(("seed", f"repeat these inputs with LEPTON_TEST_SEED={SEED}"))
    return report


@pytest.fixture(autouse=True)
def _seeded(request: pytest.FixtureRequest) -> None:
    """Fresh inputs per run and test, the same ones for the same seed in any order of tests."""
    digest = hashlib.sha256(f"{SEED} {request.node.nodeid}".encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:7], "little"))


def _force_isa(name: str) -> object:
    info = lk.info()
    if "cpu" not in info["backends"]:
        pytest.skip("no compiled operators in this installation")
    if name not in info["isa_present"]:
        lacking = [f for f in ISA_FEATURES[name] if f not in info["cpu_features"]]
        pytest.skip(f"{name}: this machine lacks {', '.join(lacking)}")
    return lk.force_isa(name)


@pytest.fixture(params=list(ISA_FEATURES))
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of the CPU backend, forced."""
    with _force_isa(request.param), lk.force_backend("cpu"):
        yield request.param


@pytest.fixture(params=["reference", *ISA_FEATURES])
def implementation(request: pytest.FixtureRequest) -> Iterator[str]:
    """The reference backend, then each instruction set of the CPU backend, forced."""
    if request.param == "reference":
        with lk.force_backend("reference"):
            yield "reference"
    else:
        with _force_isa(request.param), lk.force_backend("cpu"):
            yield request.param


@pytest.fixture
def cpu_backend() -> Iterator[None]:
    """Skips where there are no compiled operators."""
    if "cpu" not in lk.info()["backends"]:
        pytest.skip("no compiled operators in this installation")
    with lk.force_backend("cpu"):
        yield


@pytest.fixture
def nan_poison() -> Iterator[None]:
    """torch.empty gives NaN (or the largest integer), so that an output left unwritten shows."""
    was_on = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(was_on, warn_only=warned)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture
def oracle() -> ModuleType:
    """The int8 family in numpy, written from the documentation: tests/oracle.py."""
    return _ORACLE


@pytest.fixture
def compare() -> ModuleType:
    """`same_bits` and `ulps`: tests/compare.py."""
    return _COMPARE


@pytest.fixture(scope="session")
def load_file() -> Callable[[str], ModuleType]:
    """Imports a program of the clone that no package holds, by its path from the root."""
    return lambda path: _load(TESTS.parent / path)
