"""int8_linear forward: oracle, reference and every ISA agree bit for bit in every mode."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lepton_kernels as lk

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [
    (0, 5, 3), (1, 0, 3), (3, 7, 0), (1, 1, 1), (3, 63, 17), (5, 64, 16), (7, 123, 33),
    (63, 65, 31), (97, 130, 50), (1, 1000, 123), (6, 1000, 63),
]  # fmt: skip
MODES = ["dynamic", "static", "static_zero", "static_rows", "int8", "int8_zero", "int8_rows"]
SMOOTH = ["gelu", "gelu_tanh", "silu"]


def random_int8(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int8)


def scales(*shape):
    return torch.rand(shape) * 0.02 + 1e-3


def zero_points(*shape):
    return torch.randint(-128, 128, shape, dtype=torch.int32)


def arguments(mode, leading, k, n, dtype=torch.float32, groups=None):
    """(x, weight, weight_scale) and the keywords of a mode."""
    x = torch.randn(*leading, k).to(dtype)
    weight = random_int8(n, k)
    weight_scale = scales(n) if groups is None else scales(n, groups)
    rows = leading if mode.endswith("rows") else ()
    keywords = {}
    if mode.startswith("int8"):
        x = random_int8(*leading, k)
    if mode != "dynamic":
        keywords["x_scale"] = scales(*rows)
    if mode.endswith(("zero", "rows")):
        keywords["x_zero_point"] = zero_points(*rows)
    return (x, weight, weight_scale), keywords


def check(oracle, compare, tensors, keywords, pack=True, group_size=None):
    x, weight, weight_scale, *bias = tensors
    stored = lk.pack_int8_weight(weight, group_size=group_size) if pack else weight
    out = lk.int8_linear(x, stored, weight_scale, *bias, **keywords)
    assert out.is_contiguous()
    compare.same_bits(out, oracle.int8_linear(x, weight, weight_scale, *bias, **keywords))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(implementation, oracle, compare, shape, mode):
    m, k, n = shape
    tensors, keywords = arguments(mode, (m,), k, n)
    check(oracle, compare, tensors, keywords)
    check(oracle, compare, tensors, keywords, pack=False)


@pytest.mark.parametrize("mode", ["dynamic", "static_zero"])
def test_every_row_count(implementation, oracle, compare, mode):
    (x, weight, scale), keywords = arguments(mode, (100,), 67, 35)
    for m in range(1, 101, 9):
        check(oracle, compare, (x[:m], weight, scale), keywords)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_dtypes(implementation, oracle, compare, dtype, mode):
    for out_dtype in (None, *FLOATS):
        for other in FLOATS:
            tensors, keywords = arguments(mode, (7,), 66, 18, dtype)
            tensors += (torch.randn(18).to(other),)
            residual = torch.randn(7, 18).to(other)
            keywords |= {"out_dtype": out_dtype, "residual": residual, "activation": "relu"}
            check(oracle, compare, tensors, keywords)


@pytest.mark.parametrize("mode", ["dynamic", "static_zero"])
@pytest.mark.parametrize("out_dtype", FLOATS[:2], ids=str)
def test_whole_lines(implementation, oracle, compare, out_dtype, mode):
    """Columns in full vectors, rows in one tile, one block and more, a row of zeros and of NaN."""
    for m in (11, 23, 70):
        (x, weight, scale), keywords = arguments(mode, (m,), 130, 96, torch.bfloat16)
        x[1], x[5] = 0.0, math.nan
        keywords["out_dtype"] = out_dtype
        check(oracle, compare, (x, weight, scale), keywords)
        for other in FLOATS:
            keywords |= {"residual": torch.randn(m, 96).to(other), "activation": "relu"}
            check(oracle, compare, (x, weight, scale, torch.randn(96)), keywords)


@pytest.mark.parametrize("out_dtype", FLOATS[:2], ids=str)
def test_outputs_that_outgrow_the_cache(implementation, oracle, compare, out_dtype):
    tensors, keywords = arguments("dynamic", (1100,), 70, 1040, out_dtype)
    tensors[0][3] = math.nan
    check(oracle, compare, (*tensors, torch.randn(1040)), keywords)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("zero", [False, True], ids=["symmetric", "zero_point"])
def test_int8_output(implementation, oracle, compare, mode, zero):
    tensors, keywords = arguments(mode, (7,), 66, 35)
    keywords |= {"out_dtype": torch.int8, "out_scale": torch.tensor(0.05)}
    if zero:
        keywords["out_zero_point"] = zero_points()
    check(oracle, compare, (*tensors, torch.randn(35)), keywords)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_weight_scale_dtypes(implementation, oracle, compare, dtype):
    (x, weight, scale), _ = arguments("dynamic", (5,), 66, 18)
    check(oracle, compare, (x, weight, scale.to(dtype)), {})
    check(oracle, compare, (x, weight, torch.tensor(0.01, dtype=dtype)), {}, pack=False)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("group", "groups"), [(1, 5), (3, 7), (5, 13), (32, 4), (64, 3), (126, 2)])
def test_groups(implementation, oracle, compare, group, groups, mode):
    tensors, keywords = arguments(mode, (9,), group * groups, 35, groups=groups)
    tensors += (torch.randn(35),)
    check(oracle, compare, tensors, keywords, group_size=group)
    check(oracle, compare, tensors, keywords, pack=False)


@pytest.mark.parametrize("leading", [(), (2, 3), (2, 0, 3), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_leading_dimensions(implementation, oracle, compare, leading, mode):
    tensors, keywords = arguments(mode, leading, 66, 18)
    keywords["residual"] = torch.randn(*leading, 18)
    check(oracle, compare, tensors, keywords)


STRIDED = {
    "every_second_column": lambda x: x[..., ::2],
    "inner_columns": lambda x: x[..., 1:-3],
    "transposed": lambda x: x.transpose(0, 1),
    "last_moved": lambda x: x.transpose(0, 2),
    "expanded_rows": lambda x: x[:, :1].expand(-1, 9, -1),
    "expanded_columns": lambda x: x[..., :1].expand(-1, -1, 40),
    "every_second_row": lambda x: x[:, ::2],
}


@pytest.mark.parametrize("kind", STRIDED)
@pytest.mark.parametrize("mode", ["dynamic", "static_zero", "int8_zero"])
def test_strides(implementation, oracle, compare, kind, mode):
    (x, _, _), keywords = arguments(mode, (6, 8), 70, 1)
    x = STRIDED[kind](x)
    weight, scale = random_int8(70, x.shape[-1]).t().contiguous().t(), scales(140)[::2]
    residual = torch.randn(70, *x.shape[:-1]).movedim(0, -1)
    keywords["residual"] = residual
    check(oracle, compare, (x, weight, scale, torch.randn(140)[::2]), keywords)


@pytest.mark.parametrize("mode", ["dynamic", "static_zero"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("to_int8", [False, True], ids=["float", "int8"])
def test_special_rows(implementation, oracle, compare, dtype, mode, to_int8):
    (x, weight, scale), keywords = arguments(mode, (12,), 66, 18, dtype)
    info = torch.finfo(dtype)
    x[0], x[1, 3], x[2, 0], x[3, -1] = 0, math.nan, math.inf, -math.inf
    x[4], x[5], x[6], x[7] = 2.0**-149, info.tiny, info.max, -info.max
    x[8] = torch.where(x[8] < 0, -info.max, info.max)
    x[9, 0] = info.max
    if to_int8:
        keywords |= {"out_dtype": torch.int8, "out_scale": torch.tensor(0.1)}
    check(oracle, compare, (x, weight, scale), keywords)
    out = lk.int8_linear(x, weight, scale, **keywords)
    assert (out[1:4] == -128).all() if to_int8 else out[1:4].isnan().all()


@pytest.mark.parametrize("left", [127, -128])
@pytest.mark.parametrize("right", [127, -128])
def test_extremes_do_not_saturate(implementation, oracle, compare, left, right):
    x = torch.full((7, 1000), left, dtype=torch.int8)
    weight = torch.full((35, 1000), right, dtype=torch.int8)
    for zero in (-128, 0, 127):
        keywords = {
            "x_scale": torch.tensor(1.0),
            "x_zero_point": torch.tensor(zero, dtype=torch.int32),
        }
        check(oracle, compare, (x, weight, torch.ones(35)), keywords)


def test_largest_group_fits_int32(implementation):
    x = torch.full((6, 65536), 127, dtype=torch.int8)
    weight = torch.full((2, 65536), -128, dtype=torch.int8)
    zero = torch.tensor(-128, dtype=torch.int32)
    out = lk.int8_linear(x, weight, torch.ones(2), x_scale=torch.tensor(1.0), x_zero_point=zero)
    assert (out.double() == torch.tensor(255 * -128 * 65536, dtype=torch.float32)).all()


@pytest.mark.parametrize("activation", SMOOTH)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_smooth_activations(isa, compare, dtype, activation):
    """Same bits as the generic kernel; the reference is float64 rounded once: within 2 ULP."""
    (x, weight, scale), keywords = arguments("dynamic", (33,), 66, 50)
    x = x * torch.logspace(-3, 1, 33)[:, None]
    bias = torch.randn(50) * 3
    keywords |= {"activation": activation, "out_dtype": dtype}
    out = lk.int8_linear(x, weight, scale, bias, **keywords)
    with lk.force_isa("generic"):
        compare.same_bits(out, lk.int8_linear(x, weight, scale, bias, **keywords))
    with lk.force_backend("reference"):
        assert compare.ulps(out, lk.int8_linear(x, weight, scale, bias, **keywords)) <= 2


@pytest.mark.parametrize("activation", SMOOTH)
def test_smooth_activations_over_all_magnitudes(isa, compare, activation):
    """The bias alone is the argument: x is zero."""
    values = torch.randn(4000).sign() * torch.logspace(-38, 38, 4000)
    special = [0.0, -0.0, math.inf, -math.inf, math.nan, 2.0**-149, -(2.0**-149)]
    bias = torch.cat([values, torch.linspace(-30, 30, 4001), torch.tensor(special)])
    n = bias.numel()
    tensors = (torch.zeros(1, 4), random_int8(n, 4), torch.ones(n), bias)
    out = lk.int8_linear(*tensors, activation=activation)
    with lk.force_isa("generic"):
        compare.same_bits(out, lk.int8_linear(*tensors, activation=activation))
    with lk.force_backend("reference"):
        assert compare.ulps(out, lk.int8_linear(*tensors, activation=activation)) <= 2


@pytest.mark.parametrize("activation", SMOOTH)
def test_smooth_activations_with_residual(isa, compare, activation):
    (x, weight, scale), keywords = arguments("static_zero", (33,), 66, 50, torch.bfloat16)
    keywords |= {"activation": activation, "residual": torch.randn(33, 50)}
    out = lk.int8_linear(x, weight, scale, **keywords)
    with lk.force_isa("generic"):
        compare.same_bits(out, lk.int8_linear(x, weight, scale, **keywords))


@given(
    m=st.integers(0, 40), group=st.integers(1, 70), groups=st.integers(1, 4),
    n=st.integers(0, 70), mode=st.sampled_from(MODES), dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 2**32),
)  # fmt: skip
@settings(max_examples=60)
def test_any_shape(m, group, groups, n, mode, dtype, seed):
    """The best ISA equals the reference."""
    torch.manual_seed(seed)
    tensors, keywords = arguments(mode, (m,), group * groups, n, dtype, groups)
    keywords |= {"residual": torch.randn(m, n), "activation": "relu"}
    bias = torch.randn(n)
    got = lk.int8_linear(*tensors, bias, **keywords)
    with lk.force_backend("reference"):
        expected = lk.int8_linear(*tensors, bias, **keywords)
    assert torch.equal(got, expected)


def test_threads_and_repetition(isa, compare):
    tensors, keywords = arguments("dynamic", (130,), 300, 170)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(lk.int8_linear(*tensors, activation="gelu", **keywords))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        compare.same_bits(results[0], other)


def op_arguments(mode, m=5, packed=False, gradients=False, out_dtype=torch.float32, **changes):
    (x, weight, scale), keywords = arguments(mode, (m,), 66, 18)
    bias, residual = torch.randn(18), torch.randn(m, 18)
    if gradients:
        for tensor in (x, scale, bias, residual):
            if tensor.dtype.is_floating_point:
                tensor.requires_grad_()
    return (
        x, lk.pack_int8_weight(weight) if packed else weight, scale, bias, residual,
        keywords.get("x_scale"), keywords.get("x_zero_point"),
        torch.tensor(0.1) if out_dtype == torch.int8 else None, None, False,
        changes.get("activation", 1), out_dtype,
    )  # fmt: skip


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("mode", ["dynamic", "static_zero", "int8_zero"])
@pytest.mark.parametrize("m", [0, 5])
def test_opcheck(mode, m, gradients):
    op = torch.ops.lepton.int8_linear.default
    torch.library.opcheck(op, op_arguments(mode, m, packed=m == 5, gradients=gradients))


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.int8], ids=str)
def test_opcheck_out_dtypes(out_dtype):
    op = torch.ops.lepton.int8_linear.default
    torch.library.opcheck(op, op_arguments("dynamic", out_dtype=out_dtype))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(compare, backend):
    (x, weight, scale), _ = arguments("dynamic", (5,), 66, 18)
    packed = lk.pack_int8_weight(weight)

    def layer(x, bias):
        return lk.int8_linear(x * 2, packed, scale, bias, activation="silu") + 1

    bias = torch.randn(18)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    compare.same_bits(compiled(x, bias), layer(x, bias))


def test_compile_backward():
    (x, weight, scale), _ = arguments("dynamic", (5,), 66, 18)
    x.requires_grad_()
    scale.requires_grad_()

    def layer(x, scale):
        return lk.int8_linear(x, weight, scale, activation="gelu").square().sum()

    expected = torch.autograd.grad(layer(x, scale), (x, scale))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for got, right in zip(
        torch.autograd.grad(compiled(x, scale), (x, scale)), expected, strict=True
    ):
        assert torch.equal(got, right)


def test_compile_once_for_every_row_count(compare):
    (x, weight, scale), _ = arguments("dynamic", (40,), 66, 18)
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()

    def layer(x):
        return lk.int8_linear(x, weight, scale)

    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for m in (2, 3, 7, 40):
        compare.same_bits(compiled(x[:m].clone()), layer(x[:m]))
    assert counter.frame_count == 1


def test_export(compare):
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("packed", lk.pack_int8_weight(random_int8(18, 66)))
            self.register_buffer("scale", scales(18))

        def forward(self, x):
            return lk.int8_linear(x, self.packed, self.scale, activation="relu")

    layer = Layer()
    rows = torch.export.Dim("rows", min=2, max=1000)
    x = torch.randn(5, 66)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: rows},))
    assert "lepton.int8_linear" in str(program.graph)
    for m in (3, 100):
        x = torch.randn(m, 66)
        compare.same_bits(program.module()(x), layer(x))


def test_meta():
    out = lk.int8_linear(
        torch.ones(2, 3, 8, device="meta"),
        torch.ones(5, 8, device="meta", dtype=torch.int8),
        torch.ones(5, device="meta"),
        out_dtype=torch.bfloat16,
    )
    assert (out.shape, out.dtype) == ((2, 3, 5), torch.bfloat16)
