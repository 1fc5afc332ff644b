"""The installed package: which files are loaded, what it imports, how it obeys its environment."""

import ast
import doctest
import importlib.metadata
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lepton_kernels as lk

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(lk.__file__).resolve().parent


def run(code, cwd, **environment):
    """Python in a fresh process, with the package that this process has; `cwd` comes first."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("LEPTON_", "PYTHONPATH"))}
    path = {"PYTHONPATH": str(PACKAGE.parent)} if "path" not in environment else {}
    environment.pop("path", None)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd, env=inherited | path | environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def editable():
    text = importlib.metadata.distribution("lepton-kernels").read_text("direct_url.json")
    return bool(text and json.loads(text).get("dir_info", {}).get("editable"))


def test_the_installed_package_is_tested():
    assert editable() or ROOT / "lepton_kernels" != PACKAGE, (
        f"{PACKAGE} is the source folder: run `pytest`, not `python -m pytest`"
    )


def test_never_imports_lepton_train(tmp_path):
    code = "import lepton_kernels, sys; print([m for m in sys.modules if 'lepton_train' in m])"
    result = run(code, tmp_path)
    assert result.stdout.strip() == "[]", result.stderr


def test_names_lepton_train_nowhere():
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.split(".")[0] == "lepton_train" for name in names), file


def test_public_names_exist():
    assert all(hasattr(lk, name) for name in lk.__all__)
    assert lk.__version__ == importlib.metadata.version("lepton-kernels")


@pytest.mark.parametrize("name", ["banana", "AVX2", "absent"])
def test_environment_with_an_unknown_or_absent_isa(cpu_backend, tmp_path, name):
    present = lk.info()["isa_present"]
    if name == "absent":
        absent = [isa for isa in ("amx", "vnni", "avx2") if isa not in present]
        if not absent:
            pytest.skip("this machine has every ISA")
        name = absent[0]
    result = run("import lepton_kernels", tmp_path, LEPTON_ISA=name)
    assert result.returncode != 0
    assert (
        f"ValueError: LEPTON_ISA: unknown or absent ISA {name!r}; present on this machine: "
        f"{', '.join(present)}" in result.stderr
    )


def test_environment_with_a_present_isa(cpu_backend, tmp_path):
    code = "import lepton_kernels as lk; print(lk.info()['isa'])"
    for name in lk.info()["isa_present"]:
        result = run(code, tmp_path, LEPTON_ISA=name)
        assert result.stdout.strip() == name, result.stderr


def test_force_isa_restores(cpu_backend):
    best = lk.info()["isa"]
    with lk.force_isa("generic"):
        assert lk.info()["isa"] == "generic"
        with lk.force_isa(None):
            assert lk.info()["isa"] == lk.info()["isa_present"][-1]
        assert lk.info()["isa"] == "generic"
    assert lk.info()["isa"] == best
    with pytest.raises(KeyError), lk.force_isa("generic"):
        raise KeyError
    assert lk.info()["isa"] == best


def test_force_isa_refuses(cpu_backend):
    before = lk.info()["isa"]
    with pytest.raises(ValueError, match="force_isa: unknown or absent ISA 'banana'; present on"):
        lk.force_isa("banana")
    with pytest.raises(ValueError, match="force_isa: unknown or absent ISA 512; present on"):
        lk.force_isa(512)
    assert lk.info()["isa"] == before


def test_force_backend_restores_and_refuses():
    with lk.force_backend("reference"):
        assert lk.info()["forced_backend"] == "reference"
        assert set(lk.info()["ops"].values()) == {"reference"}
    assert lk.info()["forced_backend"] is None
    listed = ", ".join(lk.info()["backends"])
    with pytest.raises(ValueError, match=f"unknown backend 'banana'; .*: {listed}"):
        lk.force_backend("banana")
    for name in {"cuda", "triton"} - set(lk.info()["backends"]):
        with pytest.raises(ValueError, match=f"absent backend '{name}'; .*: {listed}"):
            lk.force_backend(name)
    assert lk.info()["forced_backend"] is None


WITHOUT_COMPILED = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import lepton_kernels as lk
    import torch
    q, scale = lk.quantize_int8(torch.randn(4, 8))
    lk.int8_linear(torch.randn(3, 8), lk.pack_int8_weight(q), scale)
mine = [str(w.message) for w in caught if w.category is lk.NativeLibraryWarning]
assert lk.info()["backends"] == ["reference"], lk.info()
try:
    lk.force_isa("generic")
except ValueError as error:
    assert "no compiled operators are installed" in str(error)
print(len(mine), mine[0])
"""


@pytest.mark.parametrize("clone", [True, False], ids=["source_folder", "installed"])
def test_without_compiled_operators(tmp_path, clone):
    shutil.copytree(
        ROOT / "lepton_kernels",
        tmp_path / "lepton_kernels",
        ignore=shutil.ignore_patterns("*.so", "__pycache__"),
    )
    if clone:
        (tmp_path / "csrc").mkdir()
    result = run(WITHOUT_COMPILED, tmp_path, path=None)
    assert result.returncode == 0, result.stderr
    count, _, text = result.stdout.strip().partition(" ")
    assert count == "1"
    assert "ops run on the reference backend" in text
    expected = "the source folder" if clone else "LEPTON_NATIVE=0"
    assert expected in text


def documented():
    finder = doctest.DocTestFinder(recurse=True)
    seen = {}
    for name in lk.__all__:
        thing = getattr(lk, name)
        if callable(thing):
            for test in finder.find(thing, name, globs={}):
                seen[test.name] = test
    for thing in (lk.nn.Int8Linear, lk.nn.Int8LinearQAT):
        for test in finder.find(thing, thing.__name__, globs={}):
            seen[test.name] = test
    return {name: test for name, test in seen.items() if test.examples}


@pytest.mark.parametrize("name", sorted(documented()))
def test_examples_of_the_documentation(name):
    assert doctest.DocTestRunner().run(documented()[name]).failed == 0


def test_every_public_function_has_an_example():
    without_need = {"info"} & set(documented())
    functions = {"force_backend", "force_isa", "int8_linear", "int8_mm", "pack_int8_weight",
                 "quantize_int8"}  # fmt: skip
    assert functions | without_need <= set(documented())


def public_functions():
    found = {name: getattr(lk, name) for name in lk.__all__}
    found = {name: thing for name, thing in found.items() if inspect.isfunction(thing)}
    for kind in (lk.nn.Int8Linear, lk.nn.Int8LinearQAT, lk.nn.SparseLinear):
        found[f"{kind.__name__}.from_linear"] = kind.from_linear
    return found


@pytest.mark.parametrize("name", sorted(public_functions()))
def test_docstrings_say_arguments_returns_and_errors(name):
    function = public_functions()[name]
    text = inspect.getdoc(function)
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^ +{parameter} \(", text, re.M), parameter
    nothing = inspect.signature(function).return_annotation in (None, "None")
    assert "Returns:" in text or nothing
    assert "Raises:" in text or name == "info"


def test_info_is_plain_data():
    json.dumps(lk.info())
    assert lk.info()["threads"] == torch.get_num_threads()
