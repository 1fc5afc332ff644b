"""A toy op through the whole wiring; test_wiring.py runs this in processes of its own."""

import pytest
import torch
import triton
import triton.language as tl

import lepton_kernels as lk
from lepton_kernels import _dispatch
from lepton_kernels.triton import launch  # registers the ops of all families


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
not_interpreted = pytest.mark.skipif(launch.INTERPRETED, reason="the interpreter's process")


def compiled(test):
    """For the process without the interpreter: kernels are traced as for an sm_80."""
    return not_interpreted(pytest.mark.usefixtures("sm80_driver")(test))


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


def targets_of(function, make):
    """What a trace of `function` calls: fake CUDA tensors, functionalised as torch.compile does."""
    from torch._functorch.aot_autograd import aot_function
    from torch._subclasses.fake_tensor import FakeTensorMode

    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    with FakeTensorMode():
        aot_function(function, fw_compiler=keep)(*make())
    return [str(n.target) for g in graphs for n in g.graph.nodes if n.op == "call_function"]


def launches(targets):
    return sum("triton_kernel_wrapper" in target for target in targets)


def on_cuda(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="cuda")


@compiled
@pytest.mark.parametrize("namespace", ["lepton", "lepton_triton"])
def test_tracing_sees_the_kernel(namespace):
    op = getattr(torch.ops, namespace).toy_scale
    targets = targets_of(lambda x: op(x, 2.0), lambda: (on_cuda(131),))
    assert launches(targets) == 1, targets


@compiled
def test_tracing_sees_the_attention_kernels():
    options = (0.25, -1, 0, True, 0.0, 0.0)

    def attend(q, k, v, grad):
        ops = torch.ops.lepton
        out, lse = ops.attention_forward(q, k, v, *[None] * 6, *options)
        return ops.attention_backward(grad, None, q, k, v, *[None] * 6, out, lse, *options, False)

    def make():
        k, v = on_cuda(2, 53, 2, 16), on_cuda(2, 53, 2, 16)
        return on_cuda(2, 37, 4, 16), k, v, on_cuda(2, 37, 4, 16)

    targets = targets_of(attend, make)
    # Forward, delta, queries, keys.
    assert launches(targets) == 4, targets


@compiled
@pytest.mark.parametrize("rows", [8, 100], ids=["narrow", "expanded"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8], ids=str)
@pytest.mark.parametrize("layout", ["bitmask", "block"])
def test_tracing_sees_the_sparse_kernels(layout, dtype, rows):
    """Forward and backward: the header comes as numbers, so that nothing is read."""
    weight = lk.pack_sparse(torch.randn(48, 64) * (torch.rand(48, 64) < 0.3), layout, dtype=dtype)
    header = list(weight.header)

    def linear(x, packed, bias, grad):
        ops = torch.ops.lepton
        y = ops.sparse_linear_traced(x, packed, bias, None, 48, 2, torch.bfloat16, header)
        return y, *ops.sparse_linear_traced_backward(grad, x, packed, bias, 2, header)

    def make():
        packed = on_cuda(weight.packed.numel(), dtype=torch.uint8)
        half = {"dtype": torch.bfloat16}
        return on_cuda(rows, 64, **half), packed, on_cuda(48, **half), on_cuda(rows, 48, **half)

    targets = targets_of(linear, make)
    assert not any("sparse_linear" in target for target in targets), targets
    # Forward: quantisation of int8, expansion where there are many rows, the product. Backward:
    # expansion, the product before the activation, the gradient of x.
    assert launches(targets) == 4 + (dtype == torch.int8) + (rows == 100), targets


@compiled
def test_compiled_sparse_linear_takes_the_traced_op():
    """The public function, by torch.compile; on CPU tensors, whose kernels serve both forms."""
    weight = lk.pack_sparse(torch.randn(48, 64) * (torch.rand(48, 64) < 0.3))
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    compiled_linear = torch.compile(
        lambda x: lk.sparse_linear(x, weight, activation="silu"), backend=keep, fullgraph=True
    )
    x = torch.randn(5, 64, requires_grad=True)
    y = compiled_linear(x)
    expected = lk.sparse_linear(x, weight, activation="silu")
    assert torch.equal(y, expected)
    (got,), (wanted,) = (torch.autograd.grad(out.square().sum(), x) for out in (y, expected))
    assert torch.equal(got, wanted)
    assert "lepton.sparse_linear_traced.default" in [str(n.target) for n in graphs[0].graph.nodes]
    exported = torch.export.export(_Linear(weight), (torch.randn(5, 64),))
    assert "lepton.sparse_linear.default" in [str(n.target) for n in exported.graph.nodes]


class _Linear(torch.nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = weight

    def forward(self, x):
        return lk.sparse_linear(x, self.weight)


@compiled
@pytest.mark.parametrize("fp8", [False, True], ids=["int8", "fp8"])
def test_tracing_sees_bucket_compression(fp8):
    def compress(x, residual, out):
        q, scale = torch.ops.lepton.bucket_quantize(x, residual, 256, fp8)
        torch.ops.lepton.bucket_dequantize_(out, q, scale, 256, fp8, 0.5, True)
        return q, scale

    targets = targets_of(compress, lambda: (on_cuda(1000), on_cuda(1000), on_cuda(1000)))
    assert launches(targets) == 2, targets
    assert not any("bucket" in target for target in targets), targets


@compiled
def test_ops_on_many_tensors_stay_whole():
    """Their tables hold addresses, which a trace lacks: one call, as it is (docs/triton.md)."""

    def reduce(a, b):
        flat = torch.ops.lepton.bucket_flatten([a, b], torch.bfloat16, 0.5)
        total, _ = torch.ops.lepton.bucket_reduce([flat, flat], True, torch.float32)
        return total, torch.ops.lepton.bucket_squares([a, b])

    targets = targets_of(reduce, lambda: (on_cuda(100), on_cuda(3, 5)))
    assert launches(targets) == 0
    for op in ("bucket_flatten", "bucket_reduce", "bucket_squares"):
        assert sum(f"lepton.{op}" in target for target in targets) == 1, targets


@compiled
def test_every_family_refuses_tensors_of_the_cpu():
    """A forced backend never falls back: the ops that it calls are those of `lepton_triton`."""
    ops = torch.ops.lepton_triton
    x, byte = torch.randn(4, 64), torch.ones(4, 64, dtype=torch.int8)
    q = torch.randn(1, 5, 2, 16)
    weight = lk.pack_sparse(torch.randn(4, 64))
    attention = (q, q, q, *[None] * 6, 0.25, -1, 0, True, 0.0, 0.0)
    linear = (None, None, None, None, None, None, False, 0, torch.float32)
    for call in (
        lambda: ops.attention_forward(*attention),
        lambda: ops.int8_mm(byte, byte.t()),
        lambda: ops.int8_linear(x, byte, torch.ones(4), *linear),
        lambda: ops.quantize_int8(x, True),
        lambda: ops.sparse_linear(x, weight.packed, None, None, 4, 0, torch.float32),
        lambda: ops.bucket_flatten([x], torch.float32, 1.0),
        lambda: ops.bucket_quantize(x[0], None, 256, False),
    ):
        with pytest.raises(ValueError, match=r"the triton backend takes CUDA tensors, got one on"):
            call()


@compiled
def test_a_forced_backend_takes_cuda_tensors_only():
    """Fake CUDA tensors reach Triton's op; others are refused before it."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    _dispatch.select_backend("triton")
    try:
        with pytest.raises(ValueError, match=r"force_backend is 'triton', which takes tensors on"):
            lk.quantize_int8(torch.randn(4, 8))
        with pytest.raises(ValueError, match=r"takes tensors on cuda, got tensors on cpu"):
            lk.bucket_flatten([torch.ones(3)])
        with FakeTensorMode():
            q, scale = lk.quantize_int8(on_cuda(4, 8))
        assert (q.device.type, q.dtype, scale.shape) == ("cuda", torch.int8, (4,))
    finally:
        _dispatch.select_backend(None)
