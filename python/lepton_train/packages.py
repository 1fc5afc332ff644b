"""Optional packages: found without importing them, and one clear line where one is missing."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType


class MissingPackageError(ImportError):
    """An optional package is not installed; the message says what to install."""


def _missing(module: str, package: str, purpose: str, extra: str = "demo") -> MissingPackageError:
    return MissingPackageError(
        f"{purpose} needs the package {package!r}, which is not installed: "
        f"pip install {package!r}, or all at once: pip install 'lepton-kernels[{extra}]'",
        name=module,
    )


def require(
    module: str, purpose: str, package: str | None = None, *, extra: str = "demo"
) -> ModuleType:
    """Import an optional module.

    Args:
        module (str): name to import.
        purpose (str): who needs it, the subject of the message.
        package (str, optional): name and version to install. Default: None (as `module`).
        extra (str): of lepton-kernels that brings it. Default: "demo".

    Raises:
        MissingPackageError: it is not installed.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise _missing(module, package or module, purpose, extra)
    return importlib.import_module(module)


def folder_of(module: str, purpose: str, package: str | None = None) -> Path:
    """Folder of an installed package, which is not imported.

    Args:
        module (str): import name of the package.
        purpose (str): who needs it, the subject of the message.
        package (str, optional): name and version to install. Default: None (as `module`).

    Raises:
        MissingPackageError: it is not installed.

    Example:
        >>> folder_of("json", "this example").name
        'json'
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(module, package or module, purpose)
    return Path(next(iter(spec.submodule_search_locations)))
