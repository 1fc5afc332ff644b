"""Linear layer with a pruned weight: contract of `sparse_linear` and its gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from lepton_kernels import _backend, _dispatch
from lepton_kernels.ops import _sparse_cuda
from lepton_kernels.ops._checks import FLOATS, check_device, check_dtype, check_tensor, shape_error
from lepton_kernels.ops._int8_checks import MAX_GROUP, activation_number
from lepton_kernels.ops.sparse_weight import SparseWeight
from lepton_kernels.reference import sparse_linear as reference
from lepton_kernels.reference.sparse_weight import SparseHeader, read_header

_OP = "sparse_linear"
_WIDE = (*FLOATS, torch.float64)


class LinearArguments(NamedTuple):
    """Arguments of the op `sparse_linear`."""

    x: torch.Tensor
    packed: torch.Tensor
    bias: torch.Tensor | None
    residual: torch.Tensor | None
    out_features: int
    activation: int
    out_dtype: torch.dtype


def is_traced() -> bool:
    """Whether torch.compile is at work; torch.export keeps the plain op."""
    return torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def check_arguments(arguments: LinearArguments) -> None:
    """Everything that shapes and dtypes can tell."""
    x, packed, bias, residual, out_features, _, out_dtype = arguments
    check_tensor(_OP, "x", x)
    check_dtype(_OP, "x", x, _WIDE)
    if x.dim() == 0:
        shape_error(_OP, "x", "(..., in_features)", x.shape)
    if packed.dtype != torch.uint8 or packed.dim() != 1:
        raise TypeError(f"{_OP}: weight must come from pack_sparse, got {packed.dtype}")
    check_device(_OP, "weight", packed, x)
    if bias is not None:
        check_tensor(_OP, "bias", bias)
        check_dtype(_OP, "bias", bias, _WIDE)
        check_device(_OP, "bias", bias, x)
        if bias.shape != (out_features,):
            shape_error(_OP, "bias", f"({out_features},)", bias.shape, "to match out_features")
    if residual is not None:
        check_tensor(_OP, "residual", residual)
        check_dtype(_OP, "residual", residual, _WIDE)
        check_device(_OP, "residual", residual, x)
        expected = (*x.shape[:-1], out_features)
        if residual.shape != expected:
            shape_error(_OP, "residual", str(tuple(expected)), residual.shape, "like the output")
    if out_dtype not in _WIDE:
        raise TypeError(f"{_OP}: out_dtype must be float32, bfloat16 or float16, got {out_dtype!r}")


def check_header(header: SparseHeader, x: torch.Tensor, out_features: int) -> None:
    """What only the header of the weight can tell."""
    if header.in_features != x.shape[-1] or header.out_features != out_features:
        raise ValueError(
            f"{_OP}: weight has shape {(header.out_features, header.in_features)}, x asks for "
            f"({out_features}, {x.shape[-1]})"
        )
    if header.value_dtype == torch.int8 and header.in_features > MAX_GROUP:
        raise NotImplementedError(
            f"{_OP}: {header.in_features} input features can overflow int32; supported: at most "
            f"{MAX_GROUP} with int8 values, any number with float values"
        )


def _checked_reference(*values: Any) -> torch.Tensor:
    arguments = LinearArguments(*values[:7])
    check_arguments(arguments)
    check_header(read_header(_OP, arguments.packed), arguments.x, arguments.out_features)
    return reference.sparse_linear(*arguments)


def _reference_backward(*values: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return reference.sparse_linear_backward(*values[:5])


def _fake_linear(*values: Any) -> torch.Tensor:
    arguments = LinearArguments(*values[:7])
    check_arguments(arguments)
    x = arguments.x
    return x.new_empty((*x.shape[:-1], arguments.out_features), dtype=arguments.out_dtype)


def _fake_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    activation: int,
    *header: list[int],
) -> tuple[torch.Tensor, torch.Tensor]:
    bias_dtype = x.dtype if bias is None else bias.dtype
    return x.new_empty(x.shape), x.new_empty((grad.shape[-1],), dtype=bias_dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, packed, bias, residual, _, ctx.activation, _, *ctx.header = inputs
    ctx.save_for_backward(x, packed, bias)
    ctx.residual_dtype = None if residual is None else residual.dtype


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    x, packed, bias = ctx.saved_tensors
    needs = ctx.needs_input_grad
    grad_x = grad_bias = None
    if needs[0] or needs[2]:
        call = _traced_gradients if ctx.header else _gradients
        grad_x, grad_bias = call.current(grad, x, packed, bias, ctx.activation, *ctx.header)
    return (
        grad_x if needs[0] else None,
        None,
        grad_bias if needs[2] else None,
        grad.to(ctx.residual_dtype) if needs[3] else None,
        *[None] * (3 + len(ctx.header)),
    )


# The traced form takes what the header of the weight says, which a launcher can't read from the
# tensors of a trace: `sparse_linear` calls it where torch.compile can see its kernels.
for _suffix, _header in (("", ""), ("_traced", ", int[] header")):
    _dispatch.define_op(
        f"sparse_linear{_suffix}",
        "(Tensor x, Tensor packed, Tensor? bias, Tensor? residual, int out_features,"
        f" int activation, ScalarType out_dtype{_header}) -> Tensor",
        reference=_checked_reference,
        fake=_fake_linear,
        setup_context=_setup_context,
        backward=_backward,
    )
    _dispatch.define_op(
        f"sparse_linear{_suffix}_backward",
        f"(Tensor grad, Tensor x, Tensor packed, Tensor? bias, int activation{_header})"
        " -> (Tensor grad_x, Tensor grad_bias)",
        reference=_reference_backward,
        fake=_fake_backward,
    )
if _backend.CUDA_LIBRARY is not None:
    _sparse_cuda.register()
_linear = _dispatch.OpCaller("sparse_linear")
_gradients = _dispatch.OpCaller("sparse_linear_backward")
_traced_linear = _dispatch.OpCaller("sparse_linear_traced")
_traced_gradients = _dispatch.OpCaller("sparse_linear_traced_backward")
if _backend.LIBRARY is not None:
    _dispatch.forward_cpu("sparse_linear_traced", "sparse_linear")
    _dispatch.forward_cpu("sparse_linear_traced_backward", "sparse_linear_backward")


def sparse_linear(
    x: torch.Tensor,
    weight: SparseWeight,
    bias: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    activation: str | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Linear layer with a pruned weight: activation(x @ weight.T + bias) + residual.

    With int8 values each row of `x` is quantised on the fly, products and sums are exact integers,
    and the result has the bits of `int8_linear` on the dense weight, on every instruction set. With
    float values products are summed in float32, in the order of the input features.

    Args:
        x (Tensor): float32, bfloat16 or float16, shape (..., in_features), any stride.
        weight (SparseWeight): from `pack_sparse`, of shape (out_features, in_features).
        bias (Tensor, optional): float, shape (out_features,). Default: None.
        residual (Tensor, optional): float, shape of the output; added after the activation.
            Default: None.
        activation (str, optional): "relu", "gelu", "gelu_tanh" or "silu". Default: None.
        out_dtype (torch.dtype, optional): float32, bfloat16 or float16. Default: dtype of `x`.

    Returns:
        Tensor: shape (..., out_features), dtype `out_dtype`. With int8 values, a row of `x` that is
        not finite gives a row of NaN. With float values it gives NaN or infinity where a kept
        weight meets it; elsewhere in that row the result is unspecified.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape does not match, or the packed weight is damaged.
        NotImplementedError: int8 values with more than 65,536 input features, or float64, which
            only the reference backend takes.

    Gradients flow to `x`, through the kept weights only, and to `bias` and `residual`; for
    gradients of the values see `lepton_kernels.nn.SparseLinear`. Source: bitmask weights expanded
    in registers: SparAMX (AbouElhamayed et al., 2025, arXiv 2502.12444); blocks that share input
    indices: Shen et al., 2023, arXiv 2306.16601.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> weight = torch.randn(32, 64) * (torch.rand(32, 64) < 0.3)
        >>> x = torch.randn(5, 64)
        >>> y = lk.sparse_linear(x, lk.pack_sparse(weight))
        >>> bool((y - x @ weight.T).abs().max() < 1e-4)
        True
    """
    number = activation_number(_OP, activation)
    if not isinstance(weight, SparseWeight):
        raise TypeError(
            f"{_OP}: weight must be a SparseWeight (from pack_sparse), got {type(weight).__name__}"
        )
    tensors = (x, weight.packed, bias, residual)
    try:
        out_dtype = x.dtype if out_dtype is None else out_dtype
        if _traced_linear.visible and is_traced():
            return _traced_linear(tensors, weight.shape[0], number, out_dtype, list(weight.header))
        return _linear(tensors, weight.shape[0], number, out_dtype)
    except (RuntimeError, AttributeError, TypeError):
        # Kernels refuse bad arguments before they touch memory, but can only raise RuntimeError;
        # the exact error is worked out here, so that a good call does not pay.
        wanted = torch.float32 if out_dtype is None else out_dtype
        check_arguments(LinearArguments(*tensors, weight.shape[0], number, wanted))
        check_header(read_header(_OP, weight.packed), x, weight.shape[0])
        floats = (out_dtype, *(t.dtype for t in (x, bias, residual) if t is not None))
        if x.device.type == "cpu" and torch.float64 in floats:
            raise NotImplementedError(
                f"{_OP}: float64 has no CPU kernel; supported: float32, bfloat16, float16 "
                "(float64: lepton_kernels.force_backend('reference'))"
            ) from None
        raise
