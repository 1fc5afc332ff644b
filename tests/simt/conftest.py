"""Builds the emulator with every kernel, and calls entry points on CPU tensors.

See csrc/simt/README.md.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # helpers of the tests, such as attention_calls
ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
FLAGS = [
    "-std=c++17", "-O2", "-g0", "-fPIC", "-DLEPTON_SIMT", "-ffp-contract=off", "-fno-math-errno",
    "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas",
]  # fmt: skip


class SimtFinding(AssertionError):
    """The emulator saw a race, an access out of bounds, a conflict, ..."""


@dataclass
class Report:
    """What the emulator saw in one call."""

    findings: list[dict[str, Any]]
    launches: list[dict[str, Any]] = field(default_factory=list)

    def total(self, name: str) -> int:
        return sum(launch[name] for launch in self.launches)

    @property
    def kinds(self) -> set[str]:
        return {finding["kind"] for finding in self.findings}

    @property
    def shared_conflicts(self) -> int:
        return self.total("shared_conflicts")

    def text(self) -> str:
        lines = [
            f"{f['kind']} at {f['place']} ({f['count']} times): {f['message']}"
            for f in self.findings
        ]
        for launch in self.launches:
            for place, count in launch["conflicts"].items():
                lines.append(f"{count} bank conflicts at {place} in {launch['kernel']}")
        return "\n".join(lines) or "nothing found"


@dataclass
class Out:
    """A tensor that a kernel may write."""

    tensor: torch.Tensor


@dataclass
class Table:
    """Tensors handed over as an array of their addresses (int64, itself an input)."""

    tensors: Sequence[torch.Tensor]
    written: bool = False


class Simulator:
    """The emulator's library: `call` runs an entry point and judges what it saw."""

    def __init__(self, path: Path) -> None:
        self.library = ctypes.CDLL(str(path))
        self.library.simt_report.restype = ctypes.c_char_p
        self.library.simt_begin.argtypes = [ctypes.c_uint64]
        self.library.simt_buffer.argtypes = [
            ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p,
        ]  # fmt: skip

    @staticmethod
    def out(tensor: torch.Tensor) -> Out:
        return Out(tensor)

    @staticmethod
    def table(tensors: Sequence[torch.Tensor], *, written: bool = False) -> Table:
        return Table(tensors, written)

    def call(
        self,
        entry: str,
        *arguments: Any,
        seed: int = 0,
        allow: Sequence[str] = (),
        conflicts_allowed: int = 0,
    ) -> Report:
        """Call `entry` with tensors (inputs), `out(...)`, `table(...)`, numbers and None.

        Raises SimtFinding for findings of kinds not in `allow`, and for more bank conflicts
        than `conflicts_allowed`.
        """
        self.library.simt_begin(seed)
        alive: list[torch.Tensor] = []
        values = [self._pass(f"argument {i}", a, alive) for i, a in enumerate(arguments)]
        getattr(self.library, entry)(*values)
        report = Report(**json.loads(self.library.simt_report().decode()))
        unexpected = [f for f in report.findings if f["kind"] not in allow]
        if unexpected or report.shared_conflicts > conflicts_allowed:
            raise SimtFinding(f"{entry}, seed {seed}:\n{report.text()}")
        return report

    def _pass(self, name: str, argument: Any, alive: list[torch.Tensor]) -> Any:
        if argument is None:
            return ctypes.c_void_p(None)
        if isinstance(argument, bool | int):
            return ctypes.c_int64(int(argument))
        if isinstance(argument, float):
            return ctypes.c_double(argument)
        if isinstance(argument, Table):
            for i, tensor in enumerate(argument.tensors):
                self._register(f"{name}[{i}]", tensor, argument.written)
            argument = torch.tensor([t.data_ptr() for t in argument.tensors], dtype=torch.int64)
        written = isinstance(argument, Out)
        tensor = argument.tensor if isinstance(argument, Out) else argument
        assert isinstance(tensor, torch.Tensor), f"{name}: {type(argument).__name__}"
        alive.append(tensor)
        self._register(name, tensor, written)
        return ctypes.c_void_p(tensor.data_ptr())

    def _register(self, name: str, tensor: torch.Tensor, written: bool) -> None:
        if tensor.numel() == 0:
            return
        reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        size = (reach + 1) * tensor.element_size()
        label = f"{name} ({tensor.dtype} {tuple(tensor.shape)})".encode()
        self.library.simt_buffer(tensor.data_ptr(), size, int(written), label)


def _compile(compiler: str, source: Path, target: Path) -> None:
    done = subprocess.run(
        [compiler, *FLAGS, f"-I{CSRC}", "-c", str(source), "-o", str(target)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{source}:\n{done.stderr}"


def build(folder: Path) -> Path:
    """Compile what is out of date, link, and return the library."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("the emulator needs a C++ compiler")
    headers = [*CSRC.glob("cuda/*.cuh"), *CSRC.glob("*/*.h")]
    newest = max(path.stat().st_mtime for path in headers)
    sources = [*CSRC.glob("simt/*.cpp"), *Path(__file__).parent.glob("*.cpp")]
    objects = {source: folder / (source.stem + ".o") for source in sorted(sources)}
    stale = [
        (source, target)
        for source, target in objects.items()
        if not target.exists() or target.stat().st_mtime < max(newest, source.stat().st_mtime)
    ]
    library = folder / "libsimt.so"
    if stale or not library.exists():
        # Largest first: the families' entry points take longest.
        stale.sort(key=lambda pair: not pair[0].name.startswith("entry_"))
        jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            list(pool.map(lambda pair: _compile(compiler, *pair), stale))
        linked = [str(target) for target in objects.values()]
        # A new name each time: a library that is loaded must not change under the process.
        fresh = folder / "libsimt.new.so"
        subprocess.run([compiler, "-shared", *linked, "-ldl", "-o", str(fresh)], check=True)
        fresh.replace(library)
    return library


@pytest.fixture(scope="session")
def simt(request: pytest.FixtureRequest) -> Simulator:
    """The emulator with all kernels."""
    return Simulator(build(Path(request.config.cache.mkdir("simt"))))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed for the order of warps, repeatable by LEPTON_TEST_SEED."""
    return int(torch.randint(2**31, ()).item())
