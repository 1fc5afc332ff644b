"""Every refusal of int8_linear and int8_linear_qat: its type and its text."""

import math
import re

import pytest
import torch

import lepton_kernels as lk

K, N = 12, 7


def call(**changes):
    arguments = {
        "x": torch.randn(3, K),
        "weight": torch.ones(N, K, dtype=torch.int8),
        "weight_scale": torch.ones(N),
        **changes,
    }
    return lk.int8_linear(**arguments)


def packed(*shape, **keywords):
    return lk.pack_int8_weight(torch.ones(shape, dtype=torch.int8), **keywords)


def f(value):
    return torch.tensor(value, dtype=torch.float32)


def i(value):
    return torch.tensor(value, dtype=torch.int32)


INT8 = torch.ones(3, K, dtype=torch.int8)
CASES = {
    "x_type": (lambda: call(x=[1.0]), TypeError, "x must be a Tensor, got list"),
    "x_dtype": (
        lambda: call(x=torch.ones(3, K, dtype=torch.int32)),
        TypeError,
        "x must be float32, bfloat16, float16, float64, int8, got int32",
    ),
    "x_shape": (
        lambda: call(x=torch.tensor(1.0)),
        ValueError,
        "x must have shape (..., in_features), got ()",
    ),
    "weight_type": (lambda: call(weight=None), TypeError, "weight must be a Tensor, got NoneType"),
    "weight_dtype": (
        lambda: call(weight=torch.ones(N, K)),
        TypeError,
        "weight must be int8 (out_features, in_features) or come from pack_int8_weight, got "
        "torch.float32 of shape (7, 12)",
    ),
    "weight_shape": (
        lambda: call(weight=torch.ones(N, K + 1, dtype=torch.int8)),
        ValueError,
        "weight must have shape (out_features, 12) to match x, got (7, 13)",
    ),
    "weight_dims": (
        lambda: call(weight=torch.ones(K, dtype=torch.int8)),
        ValueError,
        "weight must have shape (out_features, 12) to match x, got (12,)",
    ),
    "packed_other_in": (
        lambda: call(weight=packed(N, K + 1)),
        ValueError,
        "packed weight has (out_features, in_features, groups) (7, 13, 1), x and weight_scale ask "
        "for (7, 12, 1)",
    ),
    "packed_other_out": (
        lambda: call(weight=packed(N + 1, K)),
        ValueError,
        "packed weight has (out_features, in_features, groups) (8, 12, 1), x and weight_scale ask "
        "for (7, 12, 1)",
    ),
    "packed_other_groups": (
        lambda: call(weight=packed(N, K, group_size=4), weight_scale=torch.ones(N, 2)),
        ValueError,
        "packed weight has (out_features, in_features, groups) (7, 12, 3), x and weight_scale ask "
        "for (7, 12, 2)",
    ),
    "packed_scalar_scale": (
        lambda: call(weight=packed(N, K), weight_scale=f(1.0)),
        ValueError,
        "weight_scale must have shape (out_features,) with a packed weight, got ()",
    ),
    "scale_type": (
        lambda: call(weight_scale=0.5),
        TypeError,
        "weight_scale must be a Tensor, got float",
    ),
    "scale_dtype": (
        lambda: call(weight_scale=torch.ones(N, dtype=torch.int32)),
        TypeError,
        "weight_scale must be float32, bfloat16, float16, float64, got int32",
    ),
    "scale_shape": (
        lambda: call(weight_scale=torch.ones(N + 1)),
        ValueError,
        "weight_scale must have shape (7,) or (7, groups) to match out_features, got (8,)",
    ),
    "scale_dims": (
        lambda: call(weight_scale=torch.ones(N, 1, 1)),
        ValueError,
        "weight_scale must have shape (7,) or (7, groups) to match out_features, got (7, 1, 1)",
    ),
    "scale_no_groups": (
        lambda: call(weight_scale=torch.ones(N, 0)),
        ValueError,
        "weight_scale must have shape (7,) or (7, groups) to match out_features, got (7, 0)",
    ),
    "scale_groups": (
        lambda: call(weight_scale=torch.ones(N, 5)),
        ValueError,
        "weight_scale has 5 groups, which do not divide in_features 12",
    ),
    "scale_nan": (
        lambda: call(weight_scale=torch.full((N,), math.nan)),
        ValueError,
        "weight_scale must be finite, got NaN or infinity in it",
    ),
    "scale_infinite": (
        lambda: call(weight_scale=torch.full((N, 3), -math.inf)),
        ValueError,
        "weight_scale must be finite, got NaN or infinity in it",
    ),
    "bias_type": (lambda: call(bias=1.0), TypeError, "bias must be a Tensor, got float"),
    "bias_dtype": (
        lambda: call(bias=torch.ones(N, dtype=torch.int8)),
        TypeError,
        "bias must be float32, bfloat16, float16, float64, got int8",
    ),
    "bias_shape": (
        lambda: call(bias=torch.ones(N, 1)),
        ValueError,
        "bias must have shape (7,) to match out_features, got (7, 1)",
    ),
    "residual_dtype": (
        lambda: call(residual=torch.ones(3, N, dtype=torch.int8)),
        TypeError,
        "residual must be float32, bfloat16, float16, float64, got int8",
    ),
    "residual_shape": (
        lambda: call(residual=torch.ones(N)),
        ValueError,
        "residual must have shape (3, 7) like the output, got (7,)",
    ),
    "activation": (
        lambda: call(activation="swish"),
        ValueError,
        "activation must be None or one of none, relu, gelu, gelu_tanh, silu, got 'swish'",
    ),
    "activation_type": (
        lambda: call(activation=["relu"]),
        ValueError,
        "activation must be None or one of none, relu, gelu, gelu_tanh, silu, got ['relu']",
    ),
    "out_dtype_type": (
        lambda: call(out_dtype="float32"),
        TypeError,
        "out_dtype must be float32, bfloat16, float16 or int8, got 'float32'",
    ),
    "out_dtype": (
        lambda: call(out_dtype=torch.int32),
        TypeError,
        "out_dtype must be float32, bfloat16, float16 or int8, got torch.int32",
    ),
    "out_scale_missing": (
        lambda: call(out_dtype=torch.int8),
        ValueError,
        "out_scale must be given exactly when out_dtype is int8, got out_dtype torch.int8 and "
        "out_scale None",
    ),
    "out_scale_needless": (
        lambda: call(out_scale=f(1.0)),
        ValueError,
        "out_scale must be given exactly when out_dtype is int8, got out_dtype torch.float32 and "
        "out_scale given",
    ),
    "out_scale_shape": (
        lambda: call(out_dtype=torch.int8, out_scale=torch.ones(3)),
        ValueError,
        "out_scale must have shape (), got (3,)",
    ),
    "out_zero_alone": (
        lambda: call(out_zero_point=i(1)),
        ValueError,
        "out_zero_point needs out_scale and out_dtype int8",
    ),
    "x_scale_missing": (
        lambda: call(x=INT8),
        ValueError,
        "x is int8, so x_scale must be given",
    ),
    "x_zero_alone": (
        lambda: call(x_zero_point=i(1)),
        ValueError,
        "x_zero_point needs x_scale",
    ),
    "x_scale_type": (lambda: call(x_scale=0.5), TypeError, "x_scale must be a Tensor, got float"),
    "x_scale_dtype": (
        lambda: call(x_scale=torch.tensor(1.0, dtype=torch.float64)),
        TypeError,
        "x_scale must be float32, got float64",
    ),
    "x_scale_shape": (
        lambda: call(x_scale=torch.ones(2)),
        ValueError,
        "x_scale must have shape () or (3,), one per row, got (2,)",
    ),
    "x_zero_dtype": (
        lambda: call(x_scale=f(1.0), x_zero_point=torch.tensor(1)),
        TypeError,
        "x_zero_point must be int32, got int64",
    ),
    "weight_only_static": (
        lambda: call(weight_only=True, x_scale=f(1.0)),
        ValueError,
        "weight_only takes a float x and no x_scale or x_zero_point",
    ),
    "weight_only_int8": (
        lambda: call(weight_only=True, x=INT8),
        ValueError,
        "weight_only takes a float x and no x_scale or x_zero_point",
    ),
    "large_group": (
        lambda: call(
            x=torch.ones(1, 65537),
            weight=torch.ones(2, 65537, dtype=torch.int8),
            weight_scale=torch.ones(2),
        ),
        NotImplementedError,
        "in_features 65537 in one group can overflow int32; supported: groups of at most 65536",
    ),
    "weight_device": (
        lambda: call(weight=torch.ones(N, K, dtype=torch.int8, device="meta")),
        ValueError,
        "weight must be on cpu like the first argument, got meta",
    ),
    "bias_device": (
        lambda: call(bias=torch.ones(N, device="meta")),
        ValueError,
        "bias must be on cpu like the first argument, got meta",
    ),
}
for bad in (0.0, -1.0, math.nan, math.inf):
    CASES[f"x_scale_{bad}"] = (
        lambda bad=bad: call(x_scale=f(bad)),
        ValueError,
        f"x_scale must be finite and positive, got {bad}",
    )
    CASES[f"out_scale_{bad}"] = (
        lambda bad=bad: call(out_dtype=torch.int8, out_scale=f(bad)),
        ValueError,
        f"out_scale must be finite and positive, got {bad}",
    )
for name in ("x_scale", "out_scale"):
    CASES[f"{name}_tiny"] = (
        lambda name=name: call(
            **{name: f(1e-40)}, out_dtype=torch.int8 if name == "out_scale" else None
        ),
        ValueError,
        f"{name} must be above 2^-128, got ",
    )
for bad in (-129, 128):
    CASES[f"x_zero_{bad}"] = (
        lambda bad=bad: call(x_scale=f(1.0), x_zero_point=i(bad)),
        ValueError,
        f"x_zero_point must be within -128 and 127, got {bad}",
    )
    CASES[f"out_zero_{bad}"] = (
        lambda bad=bad: call(out_dtype=torch.int8, out_scale=f(1.0), out_zero_point=i(bad)),
        ValueError,
        f"out_zero_point must be within -128 and 127, got {bad}",
    )


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_refuses(backend, case):
    if backend not in lk.info()["backends"]:
        pytest.skip("no compiled operators in this installation")
    run, error, message = CASES[case]
    # The cpu backend, when in force, refuses other devices before the op sees them.
    free = backend == "cpu" and case.endswith("device")
    with (
        lk.force_backend(None if free else backend),
        pytest.raises(error, match=re.escape(f"int8_linear: {message}")),
    ):
        run()


@pytest.mark.parametrize("argument", ["x", "bias", "residual", "out_dtype"])
def test_float64_is_for_the_reference(cpu_backend, argument):
    value = {
        "x": torch.randn(3, K, dtype=torch.float64),
        "bias": torch.ones(N, dtype=torch.float64),
        "residual": torch.ones(3, N, dtype=torch.float64),
        "out_dtype": torch.float64,
    }[argument]
    with pytest.raises(NotImplementedError, match="float64 has no CPU kernel; supported: float32"):
        call(**{argument: value})
    with lk.force_backend("reference"):
        call(**{argument: value})


@pytest.mark.parametrize("requires_grad", [False, True])
def test_refuses_in_training_too(requires_grad):
    x = torch.randn(3, K, requires_grad=requires_grad)
    with pytest.raises(ValueError, match="bias must have shape"):
        call(x=x, bias=torch.ones(N + 1))


def test_meta_tensors_are_checked():
    with pytest.raises(ValueError, match=r"weight must have shape \(out_features, 12\)"):
        lk.int8_linear(
            torch.ones(3, K, device="meta"),
            torch.ones(N, K + 1, dtype=torch.int8, device="meta"),
            torch.ones(N, device="meta"),
        )


QAT = {
    "x_type": (([1.0], torch.ones(N, K)), {}, TypeError, "x must be a Tensor, got list"),
    "weight_dtype": (
        (torch.ones(3, K), torch.ones(N, K, dtype=torch.int8)),
        {},
        TypeError,
        "weight must be float32, bfloat16, float16, got int8",
    ),
    "x_dtype": (
        (torch.ones(3, K, dtype=torch.float64), torch.ones(N, K)),
        {},
        TypeError,
        "x must be float32, bfloat16, float16, got float64",
    ),
    "shape": (
        (torch.ones(3, K), torch.ones(N, K + 1)),
        {},
        ValueError,
        "weight must have shape (out_features, 12) to match x, got (7, 13)",
    ),
    "group": (
        (torch.ones(3, K), torch.ones(N, K)),
        {"group_size": 5},
        ValueError,
        "group_size must divide in_features 12, got 5",
    ),
    "activation": (
        (torch.ones(3, K), torch.ones(N, K)),
        {"activation": "swish"},
        ValueError,
        "activation must be None or one of none, relu, gelu, gelu_tanh, silu, got 'swish'",
    ),
}


@pytest.mark.parametrize("case", QAT)
def test_qat_refuses(case):
    arguments, keywords, error, message = QAT[case]
    with pytest.raises(error, match=re.escape(f"int8_linear_qat: {message}")):
        lk.int8_linear_qat(*arguments, **keywords)


def test_qat_refuses_bad_bias_and_scale():
    """Those are found by int8_linear; they still come as ValueError."""
    x, weight = torch.randn(3, K), torch.randn(N, K)
    with pytest.raises(ValueError, match="bias must have shape"):
        lk.int8_linear_qat(x, weight, torch.ones(N + 1))
    with pytest.raises(ValueError, match="x_scale must be finite and positive"):
        lk.int8_linear_qat(x, weight, x_scale=f(-1.0))
