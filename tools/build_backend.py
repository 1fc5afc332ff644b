"""PEP 517 backend: setuptools, plus torch as a requirement where native code is built."""

import os
from collections.abc import Mapping
from typing import Any

from setuptools.build_meta import *  # noqa: F403  (the hooks that need no change)

NATIVE_REQUIREMENTS = ["torch>=2.10", "numpy", "ninja", "pybind11>=2.13"]


def _native_requirements() -> list[str]:
    return [] if os.environ.get("LEPTON_NATIVE") == "0" else NATIVE_REQUIREMENTS


# setuptools answers this question by running setup.py, which already needs what is asked for.
def get_requires_for_build_wheel(config_settings: Mapping[str, Any] | None = None) -> list[str]:
    return _native_requirements()


def get_requires_for_build_editable(config_settings: Mapping[str, Any] | None = None) -> list[str]:
    return _native_requirements()


def get_requires_for_build_sdist(config_settings: Mapping[str, Any] | None = None) -> list[str]:
    return _native_requirements()
