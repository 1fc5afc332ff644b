"""What runs where: `info`, `force_isa`, `force_backend`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from lepton_kernels import _dispatch, _library
from lepton_kernels._version import __version__

LIBRARY = _library.load()
CUDA_LIBRARY, CUDA_ABSENCE = _library.load_cuda()
CUDA_ARCHITECTURES = _library.cuda_architectures(CUDA_LIBRARY)
BACKENDS = ("reference", "cpu", "cuda", "triton")
_forced_backend: str | None = None


class _Restore:
    """Returned by the `force_` functions: as a context manager it restores the earlier choice."""

    def __init__(self, restore: Callable[[], None]) -> None:
        self._restore = restore

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()


def _set_isa(name: str | None, source: str) -> None:
    if LIBRARY is None:
        raise ValueError(
            f"{source}: no compiled operators are installed, so there is no ISA to choose; "
            "the reference backend is in use"
        )
    if not (name is None or isinstance(name, str)) or not LIBRARY.force_isa(name):
        raise ValueError(
            f"{source}: unknown or absent ISA {name!r}; present on this machine: "
            f"{', '.join(LIBRARY.isa_present)}"
        )


_forced_isa: str | None = None


def force_isa(name: str | None) -> _Restore:
    """Limit the CPU kernels to one instruction set, at once or for a `with` block.

    Args:
        name (str, optional): `"generic"`, `"avx2"`, `"vnni"` or `"amx"`; None for the best present.

    Returns:
        A context manager that restores the earlier choice at its end; ignore it to keep the choice.

    Raises:
        ValueError: the ISA is unknown, or this CPU, operating system or installation lacks it.

    Example:
        >>> import lepton_kernels as lk
        >>> with lk.force_isa("generic"):
        ...     lk.info()["isa"]
        'generic'
    """
    global _forced_isa
    before = _forced_isa
    _set_isa(name, "force_isa")
    _forced_isa = name

    def restore() -> None:
        global _forced_isa
        _set_isa(before, "force_isa")
        _forced_isa = before

    return _Restore(restore)


def _available_backends() -> list[str]:
    return [
        "reference",
        *(["cpu"] if LIBRARY is not None else []),
        *([] if _cuda_absence() else ["cuda"]),
        *(["triton"] if _triton_present() else []),
    ]


def _triton_present() -> bool:
    """Whether Triton kernels can run: on a GPU, or in Triton's interpreter."""
    if importlib.util.find_spec("triton") is None:
        return False
    gpu = torch.version.cuda is not None and torch.cuda.is_available()
    return _dispatch._interpreted() or gpu


def register_gpu_backends() -> None:
    """Register the Triton kernels where they can run; say so where CUDA tensors have no kernel."""
    if _triton_present():
        importlib.import_module("lepton_kernels.triton")
    if CUDA_LIBRARY is None and torch.version.cuda is not None:
        _dispatch.serve_cuda_by_reference(f"{CUDA_ABSENCE}, and Triton is not installed")


def _cuda_absence() -> str:
    """Why the CUDA library can't run here, or an empty string."""
    if CUDA_LIBRARY is None:
        return CUDA_ABSENCE
    if not torch.cuda.is_available():
        return "torch finds no CUDA GPU and driver here"
    return _library.unsupported_gpu(CUDA_ARCHITECTURES, torch.cuda.get_device_capability())


def _why_absent(name: str) -> str:
    if name == "cuda":
        return f"; cuda: {_cuda_absence()}"
    if name == "triton":
        return "; triton needs a CUDA GPU, or TRITON_INTERPRET=1"
    return ""


def force_backend(name: str | None) -> _Restore:
    """Send every op to one backend, at once or for a `with` block; never falls back.

    Args:
        name (str, optional): `"reference"`, `"cpu"`, `"cuda"` or `"triton"`; None lets torch's
            dispatcher choose from the tensors.

    Returns:
        A context manager that restores the earlier choice at its end; ignore it to keep the choice.

    Raises:
        ValueError: the name is unknown, or the backend is not present; the message lists those
            that are. An op then raises it for tensors on a device that the backend has no
            kernels for.

    Example:
        >>> import lepton_kernels as lk
        >>> with lk.force_backend("reference"):
        ...     lk.info()["forced_backend"]
        'reference'
    """
    global _forced_backend
    available = _available_backends()
    if name is not None and name not in available:
        kind = "absent" if name in BACKENDS else "unknown"
        raise ValueError(
            f"force_backend: {kind} backend {name!r}; present in this installation: "
            f"{', '.join(available)}" + _why_absent(name)
        )
    before = _forced_backend

    def apply(choice: str | None) -> None:
        global _forced_backend
        _dispatch.select_backend(choice)
        _forced_backend = choice

    apply(name)
    return _Restore(lambda: apply(before))


def forced_backend() -> str | None:
    """Name of the backend that `force_backend` has set, or None."""
    return _forced_backend


def info() -> dict[str, Any]:
    """Describe this installation: backends, instruction sets, threads, versions, op by op.

    Returns:
        dict: `backends` (list of str), `forced_backend` (str or None), `isa` in use (str),
        `isa_present` (list of str, worst first), `cpu_features` (list of str), `threads` (int,
        torch's), `ops` (op name to the library that serves CPU tensors), `versions` (dict),
        `native_library` and `cuda_library` (path or None), `cuda_architectures` (list of str: what
        the CUDA library was compiled for), `emulated` (bool: a test build that
        emulates AVX-512 and AMX), `cpu` (model name).

    Example:
        >>> import lepton_kernels as lk
        >>> "reference" in lk.info()["backends"]
        True
    """
    return {
        "version": __version__,
        "backends": _available_backends(),
        "forced_backend": _forced_backend,
        "isa": LIBRARY.isa_in_use if LIBRARY else "reference",
        "isa_present": LIBRARY.isa_present if LIBRARY else [],
        "cpu_features": LIBRARY.features_present if LIBRARY else [],
        "threads": torch.get_num_threads(),
        "ops": {name: _serving_library(name) for name in _op_names()},
        "versions": {
            "lepton_kernels": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "triton": _installed_version("triton"),
        },
        "native_library": str(LIBRARY.path) if LIBRARY else None,
        "cuda_library": str(CUDA_LIBRARY) if CUDA_LIBRARY else None,
        "cuda_architectures": CUDA_ARCHITECTURES,
        "emulated": LIBRARY.emulated if LIBRARY else False,
        "cpu": cpu_model(),
    }


def _op_names() -> list[str]:
    prefix = _dispatch.NAMESPACE + "::"
    names = torch._C._dispatch_get_all_op_names()
    return sorted(name[len(prefix) :] for name in names if name.startswith(prefix))


def _serving_library(op: str) -> str:
    if _forced_backend == "reference":
        return "reference"
    if _forced_backend == "triton":
        return "triton" if _dispatch.has_triton(op) else "absent"
    has_cpu = torch._C._dispatch_has_kernel_for_dispatch_key(f"{_dispatch.NAMESPACE}::{op}", "CPU")
    return "cpu" if has_cpu else "reference"


def _installed_version(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Model name of the CPU as the operating system gives it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def apply_environment() -> None:
    """Obey LEPTON_ISA, once at import."""
    name = os.environ.get("LEPTON_ISA")
    if name:
        global _forced_isa
        _set_isa(name, "LEPTON_ISA")
        _forced_isa = name
