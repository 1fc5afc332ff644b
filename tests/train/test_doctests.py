import doctest
import importlib
import pkgutil

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
