"""Inductor writes code that holds our kernels, for a CUDA device that need not be present.

The GPU is described, never touched: code is written and read, nothing is compiled or run.
"""

import contextlib
import re
import types
from unittest import mock

import pytest
import torch

import lepton_kernels as lk
from lepton_kernels.triton import launch

TORCH = ("2.14",)
pytestmark = [
    pytest.mark.usefixtures("sm80_driver"),
    pytest.mark.skipif(launch.INTERPRETED, reason="the interpreter's process"),
    pytest.mark.skipif(
        not torch.__version__.startswith(TORCH) or torch.version.cuda is None,
        reason=f"reaches into Inductor as torch {' and '.join(TORCH)} for CUDA has it",
    ),
]
A100 = types.SimpleNamespace(
    name="A100", major=8, minor=0, multi_processor_count=108, warp_size=32, gcnArchName="",
    max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    regs_per_multiprocessor=65536, total_memory=80 << 30, L2_cache_size=40 << 20,
    shared_memory_per_block=48 << 10, shared_memory_per_block_optin=163 << 10,
)  # fmt: skip


@contextlib.contextmanager
def described_gpu():
    from torch._dynamo.device_interface import CudaInterface
    from torch.utils._triton import has_triton

    answers = {
        "get_device_properties": A100, "get_device_capability": (8, 0), "is_available": True,
        "current_device": 0, "device_count": 1,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(
                mock.patch.object(torch.cuda, name, lambda *a, answer=answer: answer)
            )
        for place in (CudaInterface, CudaInterface.Worker):
            stack.enter_context(
                mock.patch.object(place, "get_device_properties", staticmethod(lambda *a: A100))
            )
        # Its answer is kept.
        has_triton.cache_clear()
        stack.callback(has_triton.cache_clear)
        yield


def written(function, make):
    """The Python code that Inductor writes for `function` on fake CUDA tensors."""
    from torch._functorch.aot_autograd import aot_function
    from torch._inductor.debug import DebugContext
    from torch._inductor.decomposition import select_decomp_table
    from torch._inductor.fx_passes.post_grad import post_grad_passes, view_to_reshape
    from torch._inductor.graph import GraphLowering
    from torch._inductor.virtualized import V
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept, fake = [], FakeTensorMode()

    def keep(graph, inputs):
        kept.append((graph, inputs))
        return graph

    with fake:
        aot_function(function, fw_compiler=keep, decompositions=select_decomp_table())(*make())
    ((graph, inputs),) = kept
    with fake, described_gpu(), V.set_fake_mode(fake):
        view_to_reshape(graph)
        post_grad_passes(graph, True)
        lowering = GraphLowering(graph, example_inputs=inputs)
        with V.set_graph_handler(lowering), V.set_debug_handler(DebugContext()):
            lowering.run(*inputs)
            return lowering.codegen()[0].value


def test_inductor_writes_our_kernels():
    """One function with an op of each family, between operations of torch that Inductor fuses."""
    weight = lk.pack_sparse(torch.randn(64, 64) * (torch.rand(64, 64) < 0.3))
    header = list(weight.header)

    def layer(q, matrix, scale, packed):
        ops = torch.ops.lepton
        mixed, _ = ops.attention_forward(q * 2, q, q, *[None] * 6, 0.25, -1, 0, True, 0.0, 0.0)
        x = mixed.flatten(2).relu()
        x = ops.int8_linear(x, matrix, scale, *[None] * 6, False, 2, torch.float32) + 1
        x = ops.sparse_linear_traced(x, packed, None, None, 64, 0, torch.float32, header)
        return ops.bucket_quantize(x.flatten(), None, 256, False)

    def make():
        def on_cuda(*shape, dtype=torch.float32):
            return torch.empty(shape, dtype=dtype, device="cuda")

        packed = on_cuda(weight.packed.numel(), dtype=torch.uint8)
        return on_cuda(2, 37, 4, 16), on_cuda(64, 64, dtype=torch.int8), on_cuda(64), packed

    code = written(layer, make)
    for kernel in (
        "attention_forward_kernel",
        "quantize_rows_kernel",
        "int8_gemm_kernel",
        "expand_bitmask_kernel",
        "float_gemm_kernel",
        "quantize_blocks_kernel",
    ):
        assert f"def {kernel}(" in code, f"{kernel} is not in the code:\n{code[-4000:]}"
        assert len(re.findall(rf"\b{kernel}_\d+\.run\(", code)) == 1, code[-4000:]
    assert "torch.ops.lepton" not in code
    # torch's own operations are kernels beside ours.
    assert "triton_poi_fused" in code
