"""Triton kernels, one file or more per family; imported where they can run.

`lepton_kernels._backend.register_triton` imports this package on machines with a CUDA GPU, and in
processes with TRITON_INTERPRET=1, where the kernels also take CPU tensors. Importing it registers
the ops; it also works without a GPU, to compile the kernels ahead of time.
"""

from lepton_kernels.triton import (
    attention,
    attention_cached,
    int8_linear,
    quantize_int8,
    sparse_linear,
)

__all__ = ["attention", "attention_cached", "int8_linear", "quantize_int8", "sparse_linear"]
