"""Fused attention: contract of the ops, and `scaled_dot_product_attention`."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import torch

from lepton_kernels import _dispatch
from lepton_kernels.ops._attention_checks import (
    SDPA_CALL,
    Call,
    beyond_cuda,
    check_attention,
    check_options,
    check_query_key_value,
)
from lepton_kernels.ops._checks import FLOATS, check_tensor, shape_error
from lepton_kernels.reference import attention as reference

_TENSORS = 9  # leading tensor arguments of attention_forward


def _outputs(query: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length, heads, _ = query.shape
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    return (
        query.new_empty((batch, length, heads, value.shape[3])),
        query.new_empty((batch, heads, length), dtype=wide),
    )


def _checked_reference(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    check_attention(*arguments)
    return reference.attention_forward(*arguments)


def _fake_forward(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    check_attention(*arguments, values=False)
    return _outputs(arguments[0], arguments[2])


def _fake_backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    *rest: Any,
) -> tuple[torch.Tensor, ...]:
    none = query.new_empty((0,))
    return (
        query.new_empty(query.shape),
        key.new_empty(key.shape),
        value.new_empty(value.shape),
        bias.new_empty(bias.shape) if rest[-1] and bias is not None else none,
        none if sinks is None else sinks.new_empty(sinks.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:_TENSORS], *output)
    ctx.options = inputs[_TENSORS:]


def _backward(
    ctx: Any, grad_out: torch.Tensor | None, grad_lse: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    *inputs, out, lse = ctx.saved_tensors
    needs = ctx.needs_input_grad
    unused: list[None] = [None] * (_TENSORS - 6 + len(ctx.options))
    if grad_out is None:
        if grad_lse is None:
            return (*[None] * 6, *unused)
        grad_out = torch.zeros_like(out)
    op = _backward_reference if out.dtype == torch.float64 else _backward_caller.current
    arguments = (grad_out, grad_lse, *inputs, out, lse, *ctx.options, needs[3])
    if torch.is_grad_enabled() and op.namespace != _dispatch.REFERENCE_NAMESPACE:
        with torch.no_grad():
            grads = op(*arguments)
        grads = _DifferentiableOnce.apply(len(grads), *grads, grad_out, grad_lse, *inputs)
    else:
        grads = op(*arguments)
    return (
        grads[0] if needs[0] else None,
        grads[1] if needs[1] else None,
        grads[2] if needs[2] else None,
        grads[3] if needs[3] else None,
        None,
        grads[4] if needs[5] else None,
        *unused,
    )


class _DifferentiableOnce(torch.autograd.Function):
    """Gradients of which the gradient is an error, where it would silently be missing."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: torch.Tensor | None) -> tuple[Any, ...]:
        """The first `count` tensors; what they depend on follows."""
        return tuple(x.view_as(x) for x in tensors[:count] if x is not None)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> NoReturn:
        """Refuse."""
        raise NotImplementedError(
            "attention: the compiled kernels have no second derivative; supported: float64, or "
            "lepton_kernels.force_backend('reference')"
        )


_INPUTS = (
    "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? alibi_slopes, Tensor? sinks,"
    " Tensor? cu_seqlens_q, Tensor? cu_seqlens_k, Tensor? rng_state"
)
_OPTIONS = (
    "float scale, int window_left, int window_right, bool bottom_right, float softcap,"
    " float dropout_p"
)

_dispatch.define_op(
    "attention_backward",
    f"(Tensor grad_out, Tensor? grad_lse, {_INPUTS}, Tensor out, Tensor lse, {_OPTIONS},"
    " bool bias_grad) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value,"
    " Tensor grad_bias, Tensor grad_sinks)",
    reference=reference.attention_backward,
    fake=_fake_backward,
)
_dispatch.define_op(
    "attention_forward",
    f"({_INPUTS}, {_OPTIONS}) -> (Tensor out, Tensor lse)",
    reference=_checked_reference,
    fake=_fake_forward,
    cuda_limits=beyond_cuda,
    setup_context=_setup_context,
    backward=_backward,
)
_forward = _dispatch.OpCaller("attention_forward")
_backward_caller = _dispatch.OpCaller("attention_backward")
_forward_reference = torch.ops.lepton_reference.attention_forward.default
_backward_reference = torch.ops.lepton_reference.attention_backward.default


def rng_state(dropout_p: float, like: torch.Tensor) -> torch.Tensor | None:
    """Seed and offset of the dropout mask, drawn from torch's generator; None without dropout."""
    if dropout_p == 0:
        return None
    return torch.randint(0, 2**62, (2,), device=like.device, dtype=torch.int64)


def attention(
    call: Call,
    tensors: tuple[torch.Tensor | None, ...],
    scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    bottom_right: bool,
    softcap: float,
    dropout_p: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call attention_forward for a public function: (B, L, H, D) in, output and lse out."""
    query = tensors[0]
    try:
        assert query is not None
        left, right = window_size
        dim = query.shape[-1]
        options = (
            scale if scale is not None else 1.0 / math.sqrt(max(dim, 1)),
            left,
            0 if causal and right >= -1 else right,
            bottom_right,
            softcap,
            dropout_p,
        )
        arguments: tuple[Any, ...] = (*tensors, *options)
        if query.dtype == torch.float64:
            out: tuple[torch.Tensor, torch.Tensor] = _forward_reference(*arguments)
            return out
        return _forward(tensors, *options)
    except (RuntimeError, AttributeError, TypeError, ValueError, AssertionError):
        # The exact error is worked out here, so that a good call does not pay for its checks.
        for name, tensor in zip((call.query, call.key, call.value), tensors[:3], strict=True):
            check_tensor(call.op, name, tensor)
        check_options(call, window_size, softcap, dropout_p, 1.0 if scale is None else scale)
        check_attention(*arguments, call=call)
        raise


def _four_dims(op: str, name: str, tensor: torch.Tensor) -> torch.Tensor:
    """(..., L, D) as (B, H, L, D), without a copy where the strides allow."""
    if tensor.dim() < 2:
        shape_error(op, name, "(..., length, head_dim)", tensor.shape)
    if tensor.dim() > 4:
        return tensor.flatten(0, tensor.dim() - 4)
    return tensor[(None,) * (4 - tensor.dim())]


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention, softmax(query @ key.T * scale + attn_mask) @ value, without the square matrix.

    As `torch.nn.functional.scaled_dot_product_attention`, with more keywords. Memory grows
    linearly with the lengths, forward and backward, except for the gradient of `attn_mask`. Under
    `torch.autocast` query, key and value are cast to its dtype, as torch's function casts them.

    Args:
        query (Tensor): float32, bfloat16, float16 or float64, shape (..., H, L, D), any stride.
        key (Tensor): like query, shape (..., H, S, D); with enable_gqa its H may be smaller.
        value (Tensor): like key, shape (..., H, S, Dv).
        attn_mask (Tensor, optional): broadcasts to (..., H, L, S). Boolean: True takes part.
            Float: added to the scores, and differentiable. Default: None.
        dropout_p (float): probability of dropping an attention weight, in [0, 1). Default: 0.0.
        is_causal (bool): query i sees keys 0 to i, aligned at the top left also where L and S
            differ, as in torch (flash_attn aligns at the bottom right). May be combined with
            attn_mask, which torch forbids. Default: False.
        scale (float, optional): default 1 / sqrt(D).
        enable_gqa (bool): heads of query may be a multiple of the heads of key and value.
            Default: False.
        window_size (tuple[int, int]): query i sees keys i - left to i + right; -1: no limit.
            Default: (-1, -1).
        softcap (float): scores become softcap * tanh(scores / softcap) before masks; 0: off.
            Default: 0.0.
        alibi_slopes (Tensor, optional): float32, (H,) or (B, H); -slope * |i - j| is added.
            Default: None.
        sinks (Tensor, optional): float, (H,); a logit that takes part in the softmax of each row
            and has no value. Differentiable, and part of the lse. Default: None.
        return_lse (bool): also return the log-sum-exp. Default: False.

    Returns:
        Tensor: (..., H, L, Dv) in the dtype of query. With return_lse also a float32 tensor
        (..., H, L) with the natural log of the sums of exp(score), which may be differentiated.
        A row that sees no key is zero, has lse -inf (without sinks), and gives zero gradients.

    On a GPU the compiled kernels take bfloat16 and float16 with D and Dv up to 256; anything else
    runs as plain PyTorch there, with all scores in memory, or is refused with
    `force_backend("cuda")`.

    Raises:
        NotImplementedError: `force_backend("cuda")`, and the CUDA library has no kernel for it; or
            a second derivative is asked for, which only float64 and `force_backend("reference")`
            have.
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes, devices or head counts do not fit; a number is out of range.

    Sources: Dao, "FlashAttention-2", 2023; Rabe and Staats, "Self-attention does not need O(n^2)
    memory", 2021; dropout: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> q, k, v = torch.randn(3, 2, 4, 16, 8).unbind()
        >>> out, lse = lk.scaled_dot_product_attention(q, k, v, is_causal=True, return_lse=True)
        >>> out.shape, lse.shape
        (torch.Size([2, 4, 16, 8]), torch.Size([2, 4, 16]))
    """
    op = SDPA_CALL.op
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_tensor(op, name, tensor)
    device = query.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        lower = torch.get_autocast_dtype(device)
        query, key, value = (
            tensor.to(lower) if tensor.dtype in FLOATS else tensor for tensor in (query, key, value)
        )
    lead = query.shape[:-2]
    q, k, v = (
        _four_dims(op, name, tensor)
        for name, tensor in (("query", query), ("key", key), ("value", value))
    )
    if not enable_gqa and q.shape[1] != k.shape[1]:
        check_query_key_value(SDPA_CALL, q, k, v)
        raise ValueError(
            f"{op}: key must have the {q.shape[1]} heads of query unless enable_gqa is set, "
            f"got {k.shape[1]}"
        )
    mask = attn_mask
    if mask is not None:
        check_tensor(op, "attn_mask", mask)
        mask = _mask_four_dims(mask, lead, q, k)
    tensors = (
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
        mask, alibi_slopes, sinks, None, None, rng_state(dropout_p, q),
    )  # fmt: skip
    out, lse = attention(
        SDPA_CALL, tensors, scale, is_causal, window_size, False, softcap, dropout_p
    )
    out = out.transpose(1, 2)
    if len(lead) != 2:
        out, lse = out.reshape(*lead, *out.shape[2:]), lse.reshape(*lead, lse.shape[2])
    return (out, lse) if return_lse else out


def _mask_four_dims(
    mask: torch.Tensor, lead: torch.Size, q: torch.Tensor, k: torch.Tensor
) -> torch.Tensor:
    """The mask with four dimensions, each of size 1 or full."""
    op, full = SDPA_CALL.op, (*lead, q.shape[2], k.shape[2])
    fits = mask.dim() <= len(full) and all(
        have in (1, want) for have, want in zip(mask.shape[::-1], full[::-1], strict=False)
    )
    if not fits:
        shape_error(op, "attn_mask", f"that broadcasts to {tuple(full)}", mask.shape)
    if len(lead) <= 2:
        return mask[(None,) * (4 - mask.dim())]
    mask = mask[(None,) * (len(full) - mask.dim())]
    folded = len(lead) - 1  # leading dimensions that became the batch
    if all(size == 1 for size in mask.shape[:folded]):
        return mask.flatten(0, folded - 1)
    return mask.expand(*lead[:folded], *mask.shape[folded:]).flatten(0, folded - 1)
