"""int8 linear layer: contract of `int8_linear`, its packed weight and its gradients."""

from __future__ import annotations

from typing import Any

import torch

from lepton_kernels import _dispatch
from lepton_kernels.ops._checks import check_dtype, check_integer, check_tensor, shape_error
from lepton_kernels.ops._int8_checks import (
    activation_number,
    check_int8_linear,
    check_int8_values,
)
from lepton_kernels.reference import int8_linear as reference
from lepton_kernels.reference.packed_weight import PackedShape, check_unpack


def _fake_pack(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    shape = PackedShape(weight.shape[0], weight.shape[1], group_size or weight.shape[1])
    return weight.new_empty(shape.bytes, dtype=torch.uint8)


def _fake_unpack(packed: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    return packed.new_empty((out_features, in_features), dtype=torch.int8)


def _checked_reference(*arguments: Any) -> torch.Tensor:
    check_int8_linear(*arguments)
    x, weight, weight_scale, _, _, x_scale, x_zero, out_scale, out_zero = arguments[:9]
    check_int8_values(x, weight, weight_scale, x_scale, x_zero, out_scale, out_zero)
    return reference.int8_linear(*arguments)


def _fake_linear(x: torch.Tensor, *rest: Any) -> torch.Tensor:
    out_features = check_int8_linear(x, *rest)
    return x.new_empty((*x.shape[:-1], out_features), dtype=rest[-1])


def _fake_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None,
    x_scale: torch.Tensor | None,
    x_zero_point: torch.Tensor | None,
    weight_only: bool,
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    float_dtype = x.dtype if x.dtype.is_floating_point else torch.float32
    return (
        x.new_empty(x.shape, dtype=float_dtype),
        weight_scale.new_empty(weight_scale.shape),
        x.new_empty((grad.shape[-1],), dtype=float_dtype if bias is None else bias.dtype),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, weight_scale, bias, residual, x_scale, x_zero, _, _, weight_only, activation, _ = (
        inputs
    )
    ctx.save_for_backward(x, weight, weight_scale, bias, x_scale, x_zero)
    ctx.weight_only = weight_only
    ctx.activation = activation
    ctx.residual_dtype = None if residual is None else residual.dtype


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, weight, weight_scale, bias, x_scale, x_zero = ctx.saved_tensors
    grad_x, grad_scale, grad_bias = torch.ops.lepton.int8_linear_backward(
        grad, x, weight, weight_scale, bias, x_scale, x_zero, ctx.weight_only, ctx.activation
    )
    needs = ctx.needs_input_grad
    return (
        grad_x if needs[0] else None,
        None,
        grad_scale if needs[2] else None,
        grad_bias if needs[3] else None,
        grad.to(ctx.residual_dtype) if needs[4] else None,
        *[None] * 7,
    )


_QUANTIZERS = "Tensor? x_scale, Tensor? x_zero_point"
_BACKWARD_RETURNS = "(Tensor grad_x, Tensor grad_weight, Tensor grad_bias)"

_dispatch.define_op(
    "pack_int8_weight",
    "(Tensor weight, int group_size) -> Tensor",
    reference=reference.pack_int8_weight,
    fake=_fake_pack,
)
_dispatch.define_op(
    "unpack_int8_weight",
    "(Tensor packed, int out_features, int in_features) -> Tensor",
    reference=reference.unpack_int8_weight,
    fake=_fake_unpack,
)
_dispatch.define_op(
    "int8_linear",
    f"(Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, Tensor? residual, {_QUANTIZERS},"
    " Tensor? out_scale, Tensor? out_zero_point, bool weight_only, int activation,"
    " ScalarType out_dtype) -> Tensor",
    reference=_checked_reference,
    fake=_fake_linear,
    setup_context=_setup_context,
    backward=_backward,
)
_dispatch.define_op(
    "int8_linear_backward",
    f"(Tensor grad, Tensor x, Tensor weight, Tensor weight_scale, Tensor? bias, {_QUANTIZERS},"
    f" bool weight_only, int activation) -> {_BACKWARD_RETURNS}",
    reference=reference.int8_linear_backward,
    fake=_fake_backward,
)
_linear = _dispatch.OpCaller("int8_linear")
_pack = _dispatch.OpCaller("pack_int8_weight")
_unpack = _dispatch.OpCaller("unpack_int8_weight")


def pack_int8_weight(weight: torch.Tensor, *, group_size: int | None = None) -> torch.Tensor:
    """Lay an int8 weight out for the matrix kernels, once; the layout is the same on every machine.

    Args:
        weight (Tensor): int8, shape (out_features, in_features), any stride.
        group_size (int, optional): input features that share a weight scale; must divide
            in_features. Default: None, one scale per output feature.

    Returns:
        Tensor: uint8, 1-D; pass it to `int8_linear` as `weight`. Not for state dicts: save the
        canonical int8 weight and pack after loading, since the layout may change between releases.

    Raises:
        TypeError: weight is not an int8 tensor.
        ValueError: weight is not 2-D, or group_size does not divide in_features.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> weight = torch.randint(-127, 128, (8, 16), dtype=torch.int8)
        >>> torch.equal(lk.unpack_int8_weight(lk.pack_int8_weight(weight), 8, 16), weight)
        True
    """
    op = "pack_int8_weight"
    check_tensor(op, "weight", weight)
    check_dtype(op, "weight", weight, (torch.int8,))
    if weight.dim() != 2:
        shape_error(op, "weight", "(out_features, in_features)", weight.shape)
    if group_size is not None:
        check_integer(op, "group_size", group_size)
    if group_size is not None and (group_size < 1 or weight.shape[1] % group_size != 0):
        raise ValueError(
            f"{op}: group_size must divide in_features {weight.shape[1]}, got {group_size}"
        )
    return _pack((weight,), group_size or 0)


def unpack_int8_weight(packed: torch.Tensor, out_features: int, in_features: int) -> torch.Tensor:
    """Give back the canonical int8 weight of a packed one.

    Args:
        packed (Tensor): uint8, 1-D, from `pack_int8_weight`.
        out_features (int): rows of the weight.
        in_features (int): columns of the weight.

    Returns:
        Tensor: int8, shape (out_features, in_features).

    Raises:
        ValueError: `packed` is damaged, of another version, or of another shape.
    """
    check_tensor("unpack_int8_weight", "packed", packed)
    try:
        return _unpack((packed,), out_features, in_features)
    except RuntimeError:
        # The exact error is worked out only once a kernel has refused.
        check_unpack(packed, out_features, in_features)
        raise


def int8_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    x_scale: torch.Tensor | None = None,
    x_zero_point: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
    out_scale: torch.Tensor | None = None,
    out_zero_point: torch.Tensor | None = None,
    weight_only: bool = False,
) -> torch.Tensor:
    """Linear layer with an int8 weight: activation(x @ weight.T * scales + bias) + residual.

    With a float `x` and no `x_scale`, each row of `x` is quantised on the fly (dynamic). With
    `x_scale` it is quantised by that scale and zero point (static). An int8 `x` is used as it is.
    With `weight_only`, `x` stays in floating point. Products and sums are exact integers, and the
    result has the same bits on every instruction set.

    Args:
        x (Tensor): float32, bfloat16, float16 or int8, shape (..., in_features), any stride.
        weight (Tensor): int8, shape (out_features, in_features), or the output of
            `pack_int8_weight`. An unpacked weight is laid out anew at every call: pack it once.
        weight_scale (Tensor): float, shape (out_features,), or (out_features, groups) with groups
            that divide in_features, or () with an unpacked weight; finite.
        bias (Tensor, optional): float, shape (out_features,). Default: None.
        x_scale (Tensor, optional): float32, shape () or x.shape[:-1]; finite and positive; the
            size of one step of the quantised x. Default: None (dynamic, per row).
        x_zero_point (Tensor, optional): int32, shape () or x.shape[:-1], from -128 to 127; the
            quantised value that stands for 0. Default: None (0).
        residual (Tensor, optional): float, shape of the output; added after the activation.
            Default: None.
        activation (str, optional): "relu", "gelu", "gelu_tanh" or "silu". Default: None.
        out_dtype (torch.dtype, optional): float32, bfloat16, float16 or int8. Default: dtype of a
            float `x`, float32 for an int8 `x`.
        out_scale (Tensor, optional): float32, shape (); step of an int8 output. Default: None.
        out_zero_point (Tensor, optional): int32, shape (), from -128 to 127. Default: None (0).
        weight_only (bool): keep `x` in floating point. Default: False.

    Returns:
        Tensor: shape (..., out_features), dtype `out_dtype`. A row of `x` that holds NaN or an
        infinity gives a row of NaN (of -128 with an int8 output).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape does not match, a scale is not finite or not positive, a packed weight
            is damaged, of another version or of another shape.
        NotImplementedError: one group has more than 65,536 input features (int32 could overflow),
            or an argument is float64, which only the reference backend takes.

    Gradients flow straight through the quantisation to `x`, and to `weight_scale`, `bias` and
    `residual`. Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference", 2018; per-token scales as in Dettmers et al., "LLM.int8()",
    2022; straight-through gradient: Bengio et al., 2013.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> linear = torch.nn.Linear(64, 32)
        >>> weight, scale = lk.quantize_int8(linear.weight.detach())
        >>> x = torch.randn(5, 64)
        >>> y = lk.int8_linear(x, lk.pack_int8_weight(weight), scale, linear.bias.detach())
        >>> bool((y - linear(x)).abs().max() < 0.05)
        True
    """
    number = activation_number("int8_linear", activation)
    tensors = (x, weight, weight_scale, bias, residual, x_scale, x_zero_point, out_scale)
    try:
        if out_dtype is None:
            out_dtype = x.dtype if x.dtype != torch.int8 else torch.float32
        return _linear(tensors, out_zero_point, weight_only, number, out_dtype)
    except (RuntimeError, AttributeError, TypeError):
        # Kernels refuse bad arguments before they touch memory, but the stable ABI can only raise
        # RuntimeError; the exact error is worked out here, so that a good call does not pay.
        arguments = (*tensors, out_zero_point, weight_only, number, out_dtype or torch.float32)
        check_int8_linear(*arguments)
        check_int8_values(x, weight, weight_scale, x_scale, x_zero_point, out_scale, out_zero_point)
        if x.device.type == "cpu" and torch.float64 in (
            out_dtype,
            *(t.dtype for t in (x, bias, residual) if t is not None),
        ):
            raise NotImplementedError(
                "int8_linear: float64 has no CPU kernel; supported: float32, bfloat16, float16 "
                "(float64: lepton_kernels.force_backend('reference'))"
            ) from None
        raise
