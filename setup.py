"""Native extensions; everything else is declared in pyproject.toml.

LEPTON_NATIVE=0   no compiler needed: reference and Triton backends only.
LEPTON_SANITIZE=1 AddressSanitizer and UndefinedBehaviorSanitizer (see CONTRIBUTING.md).
LEPTON_CUDA=0|1   without or with the CUDA library (see tools/cuda_build.py).
LEPTON_EMULATE=1  the AVX-512 and AMX kernels run on emulated intrinsics, on any CPU; for tests.
"""

import os
import sys
from pathlib import Path

from setuptools import setup

WARNINGS = ["-Wall", "-Wextra", "-Werror"]
# No -ffast-math and no contraction: int8 results have the same bits on every ISA.
NUMERICS = ["-ffp-contract=off", "-fno-math-errno"]
COMMON = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", *WARNINGS, *NUMERICS]
TARGET_TORCH_2_10 = "-DTORCH_TARGET_VERSION=0x020a000000000000"


def sources(*folders: str) -> list[str]:
    return sorted(str(path) for folder in folders for path in Path("csrc", folder).glob("*.cpp"))


def native_extensions() -> tuple[list, dict]:
    import pybind11
    from torch.utils.cpp_extension import BuildExtension, CppExtension, include_paths

    os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
    flags, link = list(COMMON), ["-Wl,-O1"]
    if os.environ.get("LEPTON_SANITIZE") == "1":
        # Sanitizers hide from gcc what would settle its "may be uninitialized": warnings only.
        flags += ["-Wno-error"]
        flags += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
        link += ["-fsanitize=address,undefined"]
    if os.environ.get("LEPTON_EMULATE") == "1":
        flags += ["-DLEPTON_EMULATE_ISA", "-Wno-psabi"]
    # Torch's headers are not ours: their warnings are not errors of this build.
    system = [f"-isystem{path}" for path in include_paths()]
    ops = CppExtension(
        "lepton_kernels._ops",
        sources("ops", "cpu"),
        include_dirs=[str(Path("csrc").resolve())],
        extra_compile_args=[*flags, *system, TARGET_TORCH_2_10],
        extra_link_args=link,
        py_limited_api=True,
    )
    native = CppExtension(
        "lepton_kernels._native",
        [*sources("native"), "csrc/cpu/isa.cpp"],
        include_dirs=[str(Path("csrc").resolve()), pybind11.get_include()],
        extra_compile_args=flags,
        extra_link_args=link,
    )
    native.libraries = []  # free of torch: it keeps state for Python and links to nothing
    extensions = [ops, native]
    sys.path.insert(0, "tools")
    import cuda_build

    if cuda_build.wanted():
        extensions.append(cuda_build.extension(flags, link, TARGET_TORCH_2_10))
    else:
        cuda_build.discard_stale()
    build = cuda_build.distinct_objects(BuildExtension)
    return extensions, {"build_ext": build.with_options(no_python_abi_suffix=False)}


if os.environ.get("LEPTON_NATIVE") == "0":
    setup()
else:
    extensions, commands = native_extensions()
    setup(ext_modules=extensions, cmdclass=commands)
