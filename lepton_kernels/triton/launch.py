"""What every launcher uses: wrapped kernels, devices, the form of an ahead-of-time case."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import triton
from torch.library import wrap_triton

INTERPRETED: bool = bool(triton.knobs.runtime.interpret)
# Reasons of ahead-of-time cases.
NO_PRODUCT = "no matrix product"
FEW_ROWS = "fewer than 64 rows: wgmma and tcgen05 take 64 or 128"


@dataclasses.dataclass(frozen=True)
class AotCase:
    """One kernel in one configuration, as the ahead-of-time gate compiles it.

    Args:
        name (str): unique; family, kernel and configuration.
        kernel: the `triton.jit` function.
        signature (dict): Triton type of each argument that is not constexpr, such as `"*bf16"`,
            `"i32"`, `"i64"`, `"fp32"`.
        constants (dict): value of each constexpr argument.
        num_warps (int): warps of a program.
        num_stages (int): depth of the software pipeline.
        capabilities (tuple[int, ...]): compute capabilities that use it: 80, 90, 100.
        no_matrix (str): why the kernel has no matrix instruction. Default: "", it must have the
            architecture's own and no other: mma.sync, wgmma or tcgen05.
        mma_sync (str): why sm_90 and sm_100 take mma.sync, too. Default: "", they don't.
        divisible (tuple[str, ...]): arguments that are multiples of 16, as the launcher has them.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    capabilities: tuple[int, ...] = (80, 90, 100)
    no_matrix: str = ""
    mma_sync: str = ""
    divisible: tuple[str, ...] = ()


def wrap(kernel: Any) -> Any:
    """The kernel in a form that torch.compile sees; itself in the interpreter."""
    return kernel if INTERPRETED else wrap_triton(kernel)


def check_device(op: str, tensor: torch.Tensor) -> None:
    """ValueError for a tensor that no Triton kernel of this process can read."""
    if not (tensor.is_cuda or INTERPRETED):
        raise ValueError(
            f"{op}: the triton backend takes CUDA tensors, got one on {tensor.device}; in a "
            "process with TRITON_INTERPRET=1 it also takes CPU tensors"
        )


def capability(tensor: torch.Tensor) -> int:
    """Compute capability as 80, 90, 100, ...; 80 where there is no GPU."""
    if not tensor.is_cuda or not torch.cuda.is_available():
        return 80
    major, minor = torch.cuda.get_device_capability(tensor.device)
    return 10 * major + minor
