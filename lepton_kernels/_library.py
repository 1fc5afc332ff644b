"""Finds and loads the compiled operator library, and says why where there is none."""

from __future__ import annotations

import ctypes
import importlib.machinery
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

PACKAGE = Path(__file__).resolve().parent


class NativeLibraryWarning(UserWarning):
    """The compiled operators are absent: every op runs on the reference backend."""


def _find(stem: str) -> Path | None:
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        candidate = PACKAGE / f"{stem}{suffix}"
        if candidate.exists():
            return candidate
    return None


class OperatorLibrary:
    """The `_ops` library: operators for torch, and a few C functions about instruction sets."""

    def __init__(self, path: Path) -> None:
        torch.ops.load_library(str(path))
        self.path = path
        self._c = ctypes.CDLL(str(path))
        for name in ("lepton_isa_present", "lepton_isa_in_use", "lepton_features_present"):
            getattr(self._c, name).restype = ctypes.c_char_p
        self._c.lepton_isa_force.argtypes = [ctypes.c_char_p]
        self._c.lepton_isa_force.restype = ctypes.c_int
        self._c.lepton_isa_emulated.restype = ctypes.c_int

    @property
    def isa_present(self) -> list[str]:
        """Instruction sets with kernels that this CPU and operating system can run, worst first."""
        return self._c.lepton_isa_present().decode().split()

    @property
    def features_present(self) -> list[str]:
        """CPU features that the library looks for and that are usable here."""
        return self._c.lepton_features_present().decode().split()

    @property
    def isa_in_use(self) -> str:
        """The instruction set that the next call of an operator uses at most."""
        return self._c.lepton_isa_in_use().decode()

    @property
    def emulated(self) -> bool:
        """Whether AVX-512 and AMX are emulated (test builds only)."""
        return bool(self._c.lepton_isa_emulated())

    def force_isa(self, name: str | None) -> bool:
        """Limit kernels to the instruction set `name` (None: the best present); False if absent."""
        return self._c.lepton_isa_force((name or "").encode()) == 0


def _explain_absence() -> str:
    if (PACKAGE.parent / "csrc").is_dir():
        return (
            f"the source folder {PACKAGE} is being imported, not the installed package: "
            "start Python in another folder, or install with `pip install .`"
        )
    return "this installation was built without native code (LEPTON_NATIVE=0)"


def load() -> OperatorLibrary | None:
    """Load the compiled operators; without them warn once and return None."""
    path = _find("_ops")
    if path is None:
        warnings.warn(
            "lepton_kernels: no compiled operators, ops run on the reference backend; "
            + _explain_absence(),
            NativeLibraryWarning,
            stacklevel=3,
        )
        return None
    return OperatorLibrary(path)


def load_cuda() -> tuple[Path | None, str]:
    """Load the CUDA operators where torch has CUDA; no driver is needed. (path, why not)."""
    path = _find("_cuda")
    if path is None:
        return None, "this installation was built without CUDA kernels (build with LEPTON_CUDA=1)"
    if torch.version.cuda is None:
        return None, f"torch {torch.__version__} is a build without CUDA"
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        reason = f"{path.name} does not load under torch {torch.__version__}: {error}"
        warnings.warn(
            f"lepton_kernels: no CUDA kernels: {reason}", NativeLibraryWarning, stacklevel=3
        )
        return None, reason
    return path, ""


def cuda_architectures(path: Path | None) -> list[str]:
    """What the CUDA library was compiled for: `sm_80` and so on, and `PTX` of the last of them."""
    if path is None:
        return []
    names = ctypes.CDLL(str(path)).lepton_cuda_architectures
    names.restype = ctypes.c_char_p
    return names().decode().split(", ")


def unsupported_gpu(architectures: Sequence[str], capability: tuple[int, int]) -> str:
    """Why a GPU can't run code of these architectures, or an empty string.

    Args:
        architectures: as `cuda_architectures` gives them.
        capability: of the GPU, (major, minor).
    """
    code = [name.removeprefix("sm_") for name in architectures if name.startswith("sm_")]
    number = capability[0] * 10 + capability[1]
    # Machine code runs within its major version from its minor version on, that of a feature set
    # such as 90a on that GPU only, PTX on everything later.
    plain = [int(name) for name in code if name.isdigit()]
    runs = any(each // 10 == capability[0] and each <= number for each in plain)
    runs = runs or f"{number}a" in code
    runs = runs or ("PTX" in architectures and bool(plain) and number >= plain[-1])
    if runs:
        return ""
    return (
        f"this build holds code for {', '.join(architectures)}, which a GPU of compute capability "
        f"{capability[0]}.{capability[1]} cannot run; build with LEPTON_CUDA_ARCHS for it"
    )
