"""A toy op through the whole wiring; test_wiring.py runs this in processes of its own."""

import pytest
import torch
import triton
import triton.language as tl

import lepton_kernels as lk
from lepton_kernels import _dispatch
from lepton_kernels.triton import launch


@triton.jit
def scale_kernel(x, out, factor, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    tl.store(out + at, tl.load(x + at, mask=inside, other=0.0) * factor, mask=inside)


def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    launch.check_device("toy_scale", x)
    x = x.contiguous()
    out = torch.empty_like(x)
    launch.wrap(scale_kernel)[(triton.cdiv(x.numel(), 64),)](x, out, factor, x.numel(), BLOCK=64)
    return out


def setup_context(ctx, inputs, output):
    ctx.factor = inputs[1]


def backward(ctx, grad):
    return CALLER.current(grad, ctx.factor), None


_dispatch.define_op(
    "toy_scale",
    "(Tensor x, float factor) -> Tensor",
    reference=lambda x, factor: x * factor,
    fake=lambda x, factor: torch.empty_like(x),
    setup_context=setup_context,
    backward=backward,
)
_dispatch.register_triton("toy_scale", scale)
CALLER = _dispatch.OpCaller("toy_scale")
interpreted = pytest.mark.skipif(not launch.INTERPRETED, reason="not the interpreter's process")
compiled = pytest.mark.skipif(launch.INTERPRETED, reason="the interpreter's process")


@interpreted
def test_forced():
    assert "triton" in lk.info()["backends"]
    x = torch.randn(131, requires_grad=True)
    with lk.force_backend("triton"):
        assert lk.info()["ops"]["toy_scale"] == "triton"
        out = CALLER([x], 3.0)
        (grad,) = torch.autograd.grad(out.sum(), x)
    assert torch.equal(out, x * 3)
    assert torch.equal(grad, torch.full_like(x, 3))
    assert lk.info()["forced_backend"] is None


@interpreted
def test_an_op_without_a_kernel_raises():
    with (
        lk.force_backend("triton"),
        pytest.raises(NotImplementedError, match=r"it has .*toy_scale"),
    ):
        _dispatch._absent("banana")()


@compiled
def test_cpu_tensors_are_refused():
    with pytest.raises(ValueError, match="toy_scale: the triton backend takes CUDA tensors, got"):
        torch.ops.lepton_triton.toy_scale(torch.ones(3), 2.0)


@compiled
@pytest.mark.parametrize("namespace", ["lepton", "lepton_triton"])
def test_tracing_sees_the_kernel(namespace):
    """Fake CUDA tensors, functionalised as torch.compile does: the kernel is in the graph."""
    from torch._functorch.aot_autograd import aot_function
    from torch._subclasses.fake_tensor import FakeTensorMode

    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    op = getattr(torch.ops, namespace).toy_scale
    with FakeTensorMode():
        x = torch.empty(131, device="cuda")
        aot_function(lambda x: op(x, 2.0), fw_compiler=keep)(x)
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert any("triton_kernel_wrapper" in target for target in targets), targets


@compiled
def test_tracing_sees_the_attention_kernels():
    """Forward and backward ops, with fake CUDA tensors."""
    from torch._functorch.aot_autograd import aot_function
    from torch._subclasses.fake_tensor import FakeTensorMode

    from lepton_kernels.triton import attention  # noqa: F401  (registers the ops)

    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    options = (0.25, -1, 0, True, 0.0, 0.0)

    def attend(q, k, v, grad):
        ops = torch.ops.lepton
        out, lse = ops.attention_forward(q, k, v, *[None] * 6, *options)
        return ops.attention_backward(grad, None, q, k, v, *[None] * 6, out, lse, *options, False)

    with FakeTensorMode():
        q = torch.empty(2, 37, 4, 16, device="cuda")
        k, v = (torch.empty(2, 53, 2, 16, device="cuda") for _ in range(2))
        aot_function(attend, fw_compiler=keep)(q, k, v, torch.empty_like(q))
    targets = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    # Forward, delta, queries, keys.
    assert sum("triton_kernel_wrapper" in target for target in targets) == 4, targets
