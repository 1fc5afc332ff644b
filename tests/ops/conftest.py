"""Every op is tested with memory that is NaN before it is written."""

import pytest


@pytest.fixture(autouse=True)
def _nan_poison(nan_poison: None) -> None:
    """For each test of this folder."""
