import doctest
import importlib
import inspect
import pkgutil
import re

import lepton_train
import pytest
from lepton_train.packages import MissingPackageError

# The benchmarks and their optional peers have tests of their own.
MODULES = [
    module.name
    for module in pkgutil.walk_packages(lepton_train.__path__, "lepton_train.")
    if not module.name.startswith("lepton_train.bench") and not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    try:
        module = importlib.import_module(name)
    except MissingPackageError as error:
        pytest.skip(str(error))
    result = doctest.testmod(module)
    assert result.failed == 0


FUNCTIONS = {
    "lepton_train": [n for n in lepton_train.__all__ if n != "bundle"],
    "lepton_train.bundle": ["load", "restore", "save", "verify", "versions", "read_manifest"],
    "lepton_train.data": lepton_train.data.__all__,
    "lepton_train.federated": ["fedavg", "simulate"],
    "lepton_train.metrics": ["accuracy", "precision", "recall", "f1", "weighted", "get"],
}


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in FUNCTIONS.items() for name in names]
)
def test_docstrings_say_arguments_returns_and_errors(module, name):
    try:
        function = getattr(importlib.import_module(module), name)
    except MissingPackageError as error:
        pytest.skip(str(error))
    if not inspect.isfunction(function):
        return
    text = inspect.getdoc(function)
    for parameter in inspect.signature(function).parameters:
        assert re.search(rf"^ +(\w+, )*\*{{0,2}}{parameter}(, \w+)*( \(|: )", text, re.M), parameter
    assert "Returns:" in text or inspect.signature(function).return_annotation in (None, "None")


# With arguments that fit they raise nothing of their own.
RAISE_NOTHING = {
    "BucketedDataParallel.close",
    "BucketedDataParallel.no_sync",
    "BucketedDataParallel.state_dict",
    "BucketedDataParallel.step_seconds",
    "BucketedDataParallel.transport",
    "Int8ReduceScatter",
    "Int8ReduceScatter.allocate",
    "LocalSGD.close",
    "LocalSGD.state_dict",
    "StaleGradients.close",
}


def distributed_names():
    """Everything that lt.distributed exports, and the public methods of its classes."""
    found = {}
    for name in lepton_train.distributed.__all__:
        thing = getattr(lepton_train.distributed, name)
        found[name] = thing
        for method, value in vars(thing).items() if inspect.isclass(thing) else ():
            if method.startswith("_") and method != "__call__":
                continue
            if isinstance(value, property):
                found[f"{name}.{method}"] = value.fget
            elif inspect.isroutine(value) or isinstance(value, classmethod):
                found[f"{name}.{method}"] = getattr(thing, method)
    return found


@pytest.mark.parametrize("name", sorted(distributed_names()))
def test_docstrings_of_distributed(name):
    thing = distributed_names()[name]
    text, signature = inspect.getdoc(thing), inspect.signature(thing)
    for parameter in signature.parameters:
        told = rf"^ +(\w+, )*\*{{0,2}}{parameter}(, \w+)*( \(|: )"
        assert parameter == "self" or re.search(told, text, re.M), parameter
    nothing = inspect.isclass(thing) or signature.return_annotation in (None, "None")
    assert "Returns:" in text or nothing
    assert ("Raises:" in text) == (name not in RAISE_NOTHING)
