"""Argument checks of the attention ops; run by the fakes, the reference and after a refusal."""

from __future__ import annotations

import dataclasses
import math

import torch

from lepton_kernels.ops._checks import (
    FLOATS,
    check_device,
    check_dtype,
    check_integer,
    check_number,
    check_tensor,
    names,
    shape_error,
)

CUDA_MOST_COLUMNS = 256  # of a head, in the kernels of csrc/cuda
ATTENTION_DTYPES = (*FLOATS, torch.float64)


@dataclasses.dataclass(frozen=True)
class Call:
    """How messages call the op and its arguments."""

    op: str = "attention_forward"
    query: str = "query"
    key: str = "key"
    value: str = "value"
    bias: str = "bias"
    layout: str = "(batch, length, heads, head_dim)"
    heads_dim: int = 2
    length_dim: int = 1
    scale: str = "scale"
    lengths: str = "cache_seqlens"


DEFAULT_CALL = Call()
SDPA_CALL = Call(
    "scaled_dot_product_attention",
    bias="attn_mask",
    layout="(..., heads, length, head_dim)",
    heads_dim=1,
    length_dim=2,
)


def check_window(op: str, window: object) -> None:
    """TypeError unless `window` is a pair."""
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise TypeError(f"{op}: window_size must be a pair (left, right), got {window!r}")


def check_options(
    call: Call, window: tuple[int, int], softcap: float, dropout_p: float, scale: float
) -> None:
    """Errors for options that are no numbers, or out of range."""
    op = call.op
    check_window(op, window)
    for name, size in zip(("left", "right"), window, strict=True):
        check_integer(op, f"window_size {name}", size)
        if size < -1:
            raise ValueError(
                f"{op}: window_size must be at least 0, or -1 for no limit, got {name} {size}"
            )
    for name, value in (("softcap", softcap), ("dropout_p", dropout_p), (call.scale, scale)):
        check_number(op, name, value)
    if not (softcap >= 0 and math.isfinite(softcap)):
        raise ValueError(f"{op}: softcap must be 0 (off) or positive and finite, got {softcap}")
    if not 0 <= dropout_p < 1:
        raise ValueError(f"{op}: dropout_p must be at least 0 and below 1, got {dropout_p}")
    if not math.isfinite(scale):
        raise ValueError(f"{op}: {call.scale} must be finite, got {scale}")


def check_query_key_value(
    call: Call, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, batches: bool = True
) -> None:
    """Errors for types, dtypes, devices and shapes that do not fit each other."""
    op = call.op
    named = ((call.query, query), (call.key, key), (call.value, value))
    for name, tensor in named:
        check_tensor(op, name, tensor)
    for name, tensor in named:
        check_dtype(op, name, tensor, ATTENTION_DTYPES)
        if tensor.dtype != query.dtype:
            raise TypeError(
                f"{op}: {name} must be {str(query.dtype).removeprefix('torch.')} like "
                f"{call.query}, got {str(tensor.dtype).removeprefix('torch.')}"
            )
        check_device(op, name, tensor, query)
        if tensor.dim() != 4:
            shape_error(op, name, call.layout, tensor.shape)
    heads, length = call.heads_dim, call.length_dim
    for name, tensor in named[1:]:
        if batches and tensor.shape[0] != query.shape[0]:
            raise ValueError(
                f"{op}: {name} must have the batch size {query.shape[0]} of {call.query}, "
                f"got {tensor.shape[0]}"
            )
    if key.shape[3] != query.shape[3]:
        raise ValueError(
            f"{op}: {call.key} must have the head dimension {query.shape[3]} of {call.query}, "
            f"got {key.shape[3]}"
        )
    if value.shape[length] != key.shape[length]:
        raise ValueError(
            f"{op}: {call.value} must have the length {key.shape[length]} of {call.key}, "
            f"got {value.shape[length]}"
        )
    check_heads(call, query.shape[heads], key.shape[heads], value.shape[heads])


def check_heads(call: Call, heads: int, key_heads: int, value_heads: int) -> None:
    """Errors for head counts that do not group."""
    if value_heads != key_heads:
        raise ValueError(
            f"{call.op}: {call.value} must have the {key_heads} heads of {call.key}, "
            f"got {value_heads}"
        )
    if (key_heads == 0 and heads != 0) or (key_heads != 0 and heads % key_heads != 0):
        raise ValueError(
            f"{call.op}: heads of {call.query} must be a multiple of the {key_heads} heads of "
            f"{call.key}, got {heads}"
        )


def check_bias(
    call: Call, bias: torch.Tensor | None, shape: tuple[int, ...], like: torch.Tensor
) -> None:
    """Errors for a mask that does not broadcast to (batch, heads, Lq, Lk)."""
    if bias is None:
        return
    check_tensor(call.op, call.bias, bias)
    check_dtype(call.op, call.bias, bias, (torch.bool, *ATTENTION_DTYPES))
    check_device(call.op, call.bias, bias, like)
    fits = bias.dim() == len(shape) and all(
        have in (1, want) for have, want in zip(bias.shape, shape, strict=True)
    )
    if not fits:
        shape_error(call.op, call.bias, f"that broadcasts to {tuple(shape)}", bias.shape)


def check_per_head(
    call: Call,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    batch: int,
    heads: int,
    like: torch.Tensor,
) -> None:
    """Errors for ALiBi slopes and sinks."""
    if alibi_slopes is not None:
        check_tensor(call.op, "alibi_slopes", alibi_slopes)
        check_dtype(call.op, "alibi_slopes", alibi_slopes, (torch.float32, torch.float64))
        check_device(call.op, "alibi_slopes", alibi_slopes, like)
        if tuple(alibi_slopes.shape) not in ((heads,), (batch, heads)):
            expected = f"({heads},) or ({batch}, {heads})"
            shape_error(call.op, "alibi_slopes", expected, alibi_slopes.shape)
    if sinks is not None:
        check_tensor(call.op, "sinks", sinks)
        check_dtype(call.op, "sinks", sinks, ATTENTION_DTYPES)
        check_device(call.op, "sinks", sinks, like)
        if tuple(sinks.shape) != (heads,):
            shape_error(call.op, "sinks", f"({heads},)", sinks.shape)


def check_cu_seqlens(
    op: str,
    name: str,
    cu_seqlens: torch.Tensor,
    like: torch.Tensor,
    total: int | torch.SymInt | None,
) -> None:
    """Errors for type, dtype and shape of cumulative lengths; `total` None skips their values."""
    check_tensor(op, name, cu_seqlens)
    check_dtype(op, name, cu_seqlens, (torch.int32,))
    check_device(op, name, cu_seqlens, like)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 1:
        shape_error(op, name, "(batch + 1,)", cu_seqlens.shape)
    if total is None:
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0:
        raise ValueError(f"{op}: {name} must start at 0, got {bounds[0]}")
    for i in range(1, len(bounds)):
        if bounds[i] < bounds[i - 1]:
            raise ValueError(
                f"{op}: {name} must not decrease, got {bounds[i - 1]} then {bounds[i]} at {i}"
            )
    if bounds[-1] > total:
        raise ValueError(
            f"{op}: {name} must end within the {total} rows of its tensor, got {bounds[-1]}"
        )


def check_rng(op: str, rng_state: torch.Tensor | None, dropout_p: float) -> None:
    """Errors for the state of the dropout generator."""
    if rng_state is None:
        if dropout_p > 0:
            raise ValueError(f"{op}: rng_state must be given when dropout_p is above 0, got None")
        return
    check_tensor(op, "rng_state", rng_state)
    check_dtype(op, "rng_state", rng_state, (torch.int64,))
    if tuple(rng_state.shape) != (2,):
        shape_error(op, "rng_state", "(2,)", rng_state.shape)


def check_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    rng_state: torch.Tensor | None,
    scale: float,
    window_left: int,
    window_right: int,
    bottom_right: bool,
    softcap: float,
    dropout_p: float,
    *,
    call: Call = DEFAULT_CALL,
    values: bool = True,
) -> None:
    """Every error of `attention_forward`; `values` False leaves out what needs data."""
    varlen = cu_seqlens_q is not None or cu_seqlens_k is not None
    layout = dataclasses.replace(call, heads_dim=2, length_dim=1)
    check_query_key_value(layout, query, key, value)
    check_options(call, (window_left, window_right), softcap, dropout_p, scale)
    batch, rows, heads, _ = query.shape
    columns = key.shape[1]
    sequences = batch
    if varlen:
        if cu_seqlens_q is None or cu_seqlens_k is None:
            missing = "cu_seqlens_q" if cu_seqlens_q is None else "cu_seqlens_k"
            raise TypeError(f"{call.op}: {missing} must be a Tensor like its pair, got None")
        if bias is not None:
            raise NotImplementedError(
                f"{call.op}: {call.bias} with variable lengths does not exist; supported there: "
                "causal, window_size, softcap, alibi_slopes, sinks, dropout"
            )
        check_cu_seqlens(call.op, "cu_seqlens_q", cu_seqlens_q, query, rows if values else None)
        check_cu_seqlens(call.op, "cu_seqlens_k", cu_seqlens_k, query, columns if values else None)
        if cu_seqlens_q.shape != cu_seqlens_k.shape:
            shape_error(
                call.op,
                "cu_seqlens_k",
                f"{tuple(cu_seqlens_q.shape)} like cu_seqlens_q",
                cu_seqlens_k.shape,
            )
        sequences = cu_seqlens_q.shape[0] - 1
    check_bias(call, bias, (batch, heads, rows, columns), query)
    check_per_head(call, alibi_slopes, sinks, sequences, heads, query)
    check_rng(call.op, rng_state, dropout_p)


def beyond_cuda(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: object) -> str:
    """What the CUDA kernels take, if it is not this; they leave it to the reference."""
    widest = max(query.shape[-1], value.shape[-1])
    if query.dtype in (torch.bfloat16, torch.float16) and widest <= CUDA_MOST_COLUMNS:
        return ""
    return (
        f"bfloat16 and float16 with at most {CUDA_MOST_COLUMNS} elements a head, got "
        f"{names([query.dtype])} with {widest}"
    )
