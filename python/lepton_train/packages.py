"""Optional packages: found without importing them, and one clear line where one is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
from pathlib import Path
from types import ModuleType


class MissingPackageError(ImportError):
    """An optional package is not installed; the message says what to install."""


def extra_with(package: str) -> str | None:
    """The first extra of lepton-kernels that brings a package, or None.

    Example:
        >>> extra_with("captum>=0.7")
        'train'
    """
    try:
        requirements = importlib.metadata.requires("lepton-kernels") or []
    except importlib.metadata.PackageNotFoundError:  # a source folder that is not installed
        return None
    wanted = _name(package)
    for requirement in requirements:
        found = re.search(r"extra == ['\"](\w+)['\"]", requirement)
        if found and _name(requirement) == wanted:
            return found[1]
    return None


def _name(requirement: str) -> str:
    """Name of a package in the form in which names are compared."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


def _missing(
    module: str, package: str, purpose: str, extra: str | None = None, option: str = ""
) -> MissingPackageError:
    extra = extra or extra_with(package)
    together = "" if extra is None else f", or all at once: pip install 'lepton-kernels[{extra}]'"
    return MissingPackageError(
        f"{purpose} needs the package {package!r}, which is not installed: "
        f"pip install {option}{package!r}{together}",
        name=module,
    )


def require(
    module: str, purpose: str, package: str | None = None, *, extra: str | None = None
) -> ModuleType:
    """Import an optional module.

    Args:
        module (str): name to import.
        purpose (str): who needs it, the subject of the message.
        package (str, optional): name and version to install. Default: None (as `module`).
        extra (str, optional): of lepton-kernels that brings it. Default: None (the first that
            does).

    Raises:
        MissingPackageError: it is not installed.
    """
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise _missing(module, package or module, purpose, extra)
    return importlib.import_module(module)


def folder_of(module: str, purpose: str, package: str | None = None, *, option: str = "") -> Path:
    """Folder of an installed package, which is not imported.

    Args:
        module (str): import name of the package.
        purpose (str): who needs it, the subject of the message.
        package (str, optional): name and version to install. Default: None (as `module`).
        option (str): for pip, with a space behind it. Default: "".

    Raises:
        MissingPackageError: it is not installed.

    Example:
        >>> folder_of("json", "this example").name
        'json'
    """
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(module, package or module, purpose, option=option)
    return Path(next(iter(spec.submodule_search_locations)))
