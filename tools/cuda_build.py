"""The CUDA operator library as an extension: whether it is built, and with which flags.

LEPTON_CUDA=1        build it; needs nvcc and a CUDA build of torch, no GPU
LEPTON_CUDA=0        never
LEPTON_CUDA unset    where nvcc, a CUDA build of torch and a GPU are
LEPTON_CUDA_ARCHS    what to compile for; default "80 90a 100", with PTX of the last for later GPUs
"""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

DEFAULT_ARCHITECTURES = "80 90a 100"
NVCC_FLAGS = [
    "-O3",
    "-std=c++17",
    "--fmad=false",  # fused multiply-adds are written as fmaf: one order of operations everywhere
    "--expt-relaxed-constexpr",
    "--expt-extended-lambda",
    "-Werror=all-warnings",
    "-Xcompiler=-fvisibility=hidden",
]


def find_nvcc() -> str | None:
    """Path of nvcc, or None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (Path(home) / "bin" / "nvcc").exists():
        return str(Path(home) / "bin" / "nvcc")
    return shutil.which("nvcc")


def wanted() -> bool:
    """Whether to build the CUDA library; SystemExit where it is asked for and cannot be built."""
    import torch

    choice = os.environ.get("LEPTON_CUDA")
    if choice == "0":
        return False
    missing = [
        what
        for what, there in (("nvcc", find_nvcc()), ("a CUDA build of torch", torch.version.cuda))
        if not there
    ]
    if choice == "1":
        if missing:
            raise SystemExit(f"LEPTON_CUDA=1 needs {' and '.join(missing)}")
        return True
    return not missing and torch.cuda.is_available()


def discard_stale() -> None:
    """Remove a library of an earlier build, which setuptools would pack again."""
    for path in Path("build").glob("lib*/lepton_kernels/_cuda*"):
        path.unlink()


def architectures() -> list[str]:
    """Compute capabilities to compile for, without dots."""
    given = os.environ.get("LEPTON_CUDA_ARCHS") or DEFAULT_ARCHITECTURES
    return given.replace(",", " ").replace(";", " ").replace(".", "").split()


def architecture_flags(archs: list[str]) -> list[str]:
    """-gencode for each, and PTX of the last that later GPUs can run."""
    flags = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    portable = [a for a in archs if a.isdigit()]
    if portable:
        flags.append(f"-gencode=arch=compute_{portable[-1]},code=compute_{portable[-1]}")
    return flags


def wheel_folders(kind: str) -> list[str]:
    """`include` or `lib` folders of the NVIDIA wheels that torch brings."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    return [str(path) for root in roots for path in sorted(root.glob(f"*/{kind}"))]


def runtime_library() -> list[str]:
    """Linker arguments for the CUDA runtime that torch itself loads."""
    import torch

    major = str(torch.version.cuda).split(".")[0]
    for folder in wheel_folders("lib"):
        path = Path(folder) / f"libcudart.so.{major}"
        if path.exists():
            return [str(path)]
    nvcc = find_nvcc()
    home = Path(nvcc).resolve().parents[1] if nvcc else Path("/usr/local/cuda")
    return [f"-L{home / 'lib64'}", "-lcudart"]


def distinct_objects(build_extension: Any) -> Any:
    """The build command with an object file of its own for `bucket.cu` beside `bucket.cpp`."""

    class Build(build_extension):
        def build_extensions(self) -> None:
            plain = self.compiler.object_filenames

            def names(sources: list[str], *args: Any, **kwargs: Any) -> list[str]:
                return [
                    f"{target[:-2]}.cu.o" if source.endswith(".cu") else target
                    for source, target in zip(sources, plain(sources, *args, **kwargs), strict=True)
                ]

            self.compiler.object_filenames = names
            super().build_extensions()

    return Build


def extension(common: list[str], link: list[str], target: str) -> Any:
    """The extension `lepton_kernels._cuda`."""
    from torch.utils import cpp_extension

    nvcc = find_nvcc()
    assert nvcc is not None
    # torch asks for a home; what it would find by itself need not be the toolkit of this nvcc.
    cpp_extension.CUDA_HOME = str(Path(nvcc).parents[1])
    archs = architectures()
    names = ", ".join([f"sm_{a}" for a in archs] + ["PTX"])
    # Torch's headers are not ours: their warnings are not errors of this build. The wheels'
    # headers stand in for what a slim toolkit lacks, so they come last.
    system = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    wheels = [f"-idirafter{path}" for path in wheel_folders("include")]
    define = f'-DLEPTON_CUDA_ARCHITECTURES="{names}"'
    sources = sorted(str(p) for p in Path("csrc/cuda").iterdir() if p.suffix in (".cpp", ".cu"))
    return cpp_extension.CppExtension(
        "lepton_kernels._cuda",
        sources,
        include_dirs=[str(Path("csrc").resolve())],
        extra_compile_args={
            "cxx": [*common, "-DUSE_CUDA", *system, *wheels, target, define],
            "nvcc": [
                *NVCC_FLAGS, *(f"-Xcompiler={w}" for w in wheels), *architecture_flags(archs),
                define,
            ],
        },
        extra_link_args=[*link, "-ltorch_cuda", *runtime_library()],
        py_limited_api=True,
    )  # fmt: skip
