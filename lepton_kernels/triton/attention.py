"""Launchers of the attention kernels: forward and backward of `lepton::attention_*`."""

from __future__ import annotations

from typing import Any

import torch
import triton

from lepton_kernels import _dispatch
from lepton_kernels.ops._attention_checks import check_attention
from lepton_kernels.triton import launch
from lepton_kernels.triton.attention_backward import (
    attention_backward_bias_kernel,
    attention_backward_key_kernel,
    attention_backward_query_kernel,
    attention_delta_kernel,
)
from lepton_kernels.triton.attention_call import Call, check_dims, check_dtype, dense_rows
from lepton_kernels.triton.attention_configs import Tile, padded
from lepton_kernels.triton.attention_forward import attention_forward_kernel


def attention_forward(
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
    tile: Tile | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward: the arguments of `lepton::attention_forward`.

    Args:
        query (Tensor): (B, Lq, H, D) and so on, as `lepton_kernels.ops.attention` says.
        tile (Tile, optional): configuration. Default: None, `attention_configs.choose`.

    Returns:
        tuple: out (B, Lq, H, Dv) in the dtype of query, and lse (B, H, Lq) float32.

    Raises:
        NotImplementedError: float64, or a head dimension above 256.
        TypeError, ValueError: as the public functions. Values of cu_seqlens on a GPU are not
            looked at, as that would wait for it; the kernel stays inside its tensors.
    """
    op = "attention_forward"
    check_attention(
        query, key, value, bias, alibi_slopes, sinks, cu_seqlens_q, cu_seqlens_k, rng_state,
        scale, window_left, window_right, bottom_right, softcap, dropout_p,
        values=query.device.type == "cpu",
    )  # fmt: skip
    launch.check_device(op, query)
    check_dtype(op, query)
    check_dims(op, query.shape[3], value.shape[3])
    call = Call(
        query, key, value, bias, alibi_slopes, cu_seqlens_q, cu_seqlens_k, rng_state,
        scale, window_left, window_right, bottom_right, softcap, dropout_p,
    )  # fmt: skip
    batch, length, heads, _ = query.shape
    shape, rows = (batch, length, heads, value.shape[3]), (batch, heads, length)
    if call.varlen:  # rows behind the last sequence
        out = query.new_zeros(shape)
        lse = query.new_full(rows, -torch.inf, dtype=torch.float32)
    else:
        out = query.new_empty(shape)
        lse = query.new_empty(rows, dtype=torch.float32)
    if batch * heads * length == 0 or call.no_sequences():
        return out, lse
    tile = tile or call.tile("forward")
    tiles, row_tiles = call.tile_tensors(False, tile.block_m)
    launch.wrap(attention_forward_kernel)[(row_tiles * heads * batch,)](
        **call.tensors(),
        sinks=query if sinks is None else sinks.float().contiguous(),
        out=out,
        lse=lse,
        **tiles,
        **call.numbers(),
        row_tiles=row_tiles,
        **call.strides(),
        stride_out_batch=out.stride(0),
        stride_out_row=out.stride(1),
        **call.options(tile),
        VARLEN=call.varlen,
        BIAS=call.bias_kind,
        SINKS=sinks is not None,
    )
    return out, lse


def attention_backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    cu_seqlens_q: torch.Tensor | None,
    cu_seqlens_k: torch.Tensor | None,
    rng_state: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    scale: float,
    window_left: int,
    window_right: int,
    bottom_right: bool,
    softcap: float,
    dropout_p: float,
    bias_grad: bool,
    query_tile: Tile | None = None,
    key_tile: Tile | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the backward: the arguments of `lepton::attention_backward`.

    Args:
        grad_out (Tensor): (B, Lq, H, Dv) and so on, as `lepton_kernels.ops.attention` says.
        query_tile (Tile, optional): configuration of the kernel of the queries' gradient.
        key_tile (Tile, optional): of the kernel of the gradients of keys and values.

    Returns:
        tuple: gradients of query, key, value, bias and sinks; empty where there is none.

    Raises:
        NotImplementedError: float64, or a head dimension above 256.
    """
    op = "attention_backward"
    launch.check_device(op, query)
    check_dtype(op, query)
    check_dims(op, query.shape[3], value.shape[3])
    call = Call(
        query, key, value, bias, alibi_slopes, cu_seqlens_q, cu_seqlens_k, rng_state,
        scale, window_left, window_right, bottom_right, softcap, dropout_p,
    )  # fmt: skip
    allocate = torch.Tensor.new_zeros if call.varlen else torch.Tensor.new_empty
    grad_query, grad_key, grad_value = (allocate(t, t.shape) for t in (query, key, value))
    batch, length, heads, _ = query.shape
    value_dim, key_heads = value.shape[3], key.shape[2]
    out, grad_out, lse = out.contiguous(), dense_rows(grad_out), lse.contiguous()
    delta = torch.empty_like(lse)
    grad_strides = {
        f"stride_g_{name}": grad_out.stride(dim)
        for dim, name in enumerate(("batch", "row", "head"))
    }
    query_tile = query_tile or call.tile("query")
    key_tile = key_tile or call.tile("key")
    if batch * heads * length > 0:
        row_tiles = triton.cdiv(length, 32)
        launch.wrap(attention_delta_kernel)[(row_tiles * heads * batch,)](
            grad_out, out, lse if grad_lse is None else grad_lse.float().contiguous(), delta,
            heads, length, row_tiles, **grad_strides,
            stride_out_batch=out.stride(0), stride_out_row=out.stride(1),
            VALUE_DIM=value_dim, BLOCK_M=32, BLOCK_DV=padded(value_dim),
            GRAD_LSE=grad_lse is not None, num_warps=4,
        )  # fmt: skip
    inputs = {**call.tensors(), "grad_out": grad_out, "lse": lse, "delta": delta}
    if batch * heads * length > 0 and not call.no_sequences():
        tiles, row_tiles = call.tile_tensors(False, query_tile.block_m)
        launch.wrap(attention_backward_query_kernel)[(row_tiles * heads * batch,)](
            **inputs,
            grad_query=grad_query,
            **tiles,
            scale=scale,
            **call.numbers(),
            row_tiles=row_tiles,
            **call.strides(),
            **grad_strides,
            stride_gq_batch=grad_query.stride(0),
            stride_gq_row=grad_query.stride(1),
            **call.options(query_tile),
            VARLEN=call.varlen,
            BIAS=call.bias_kind,
        )
    if batch * key_heads * key.shape[1] > 0 and not call.no_sequences():
        tiles, key_tiles = call.tile_tensors(True, key_tile.block_n)
        launch.wrap(attention_backward_key_kernel)[(key_tiles * key_heads * batch,)](
            **inputs,
            grad_key=grad_key,
            grad_value=grad_value,
            **tiles,
            scale=scale,
            **call.numbers(),
            key_tiles=key_tiles,
            **call.strides(),
            **grad_strides,
            stride_gk_batch=grad_key.stride(0),
            stride_gk_row=grad_key.stride(1),
            stride_gv_batch=grad_value.stride(0),
            stride_gv_row=grad_value.stride(1),
            **call.options(key_tile),
            VARLEN=call.varlen,
            BIAS=call.bias_kind,
        )
    wants_bias = bias_grad and bias is not None
    none = query.new_empty  # outputs of an op are tensors of their own
    grad_bias = _bias_gradient(call, inputs, grad_strides) if wants_bias else none((0,))
    grad_sinks = none((0,)) if sinks is None else _sinks_gradient(sinks, lse, delta)
    return grad_query, grad_key, grad_value, grad_bias, grad_sinks


def _sinks_gradient(sinks: torch.Tensor, lse: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    share = torch.exp(sinks.float().view(1, -1, 1) - lse)
    # Rows behind the last sequence have lse -inf.
    share = torch.where(lse == -torch.inf, 0.0, share * delta)
    return -share.sum((0, 2)).to(sinks.dtype)


def _bias_gradient(
    call: Call, inputs: dict[str, Any], grad_strides: dict[str, int]
) -> torch.Tensor:
    bias = call.bias
    assert bias is not None
    batch, length, heads, _ = call.query.shape
    columns = call.key.shape[1]
    tile = call.tile("bias")
    whole = (batch, heads, length, columns)
    # A size of 1 may be the whole of a dimension; summing over it is then the same.
    every = [size == 1 for size in bias.shape]
    if 0 in whole:
        return torch.zeros_like(bias, memory_format=torch.contiguous_format)
    row_tiles, key_tiles = triton.cdiv(length, tile.block_m), triton.cdiv(columns, tile.block_n)
    partial = call.query.new_empty(
        (
            bias.shape[0],
            bias.shape[1],
            row_tiles if every[2] else length,
            key_tiles if every[3] else columns,
        ),
        dtype=torch.float32,
    )
    options = call.options(tile)
    del options["ONE_LOOP"]
    launch.wrap(attention_backward_bias_kernel)[
        (key_tiles * row_tiles * bias.shape[1] * bias.shape[0],)
    ](
        **inputs,
        partial=partial,
        batch_count=batch,
        **call.numbers(),
        row_tiles=row_tiles,
        key_tiles=key_tiles,
        bias_heads=bias.shape[1],
        **call.strides(),
        **grad_strides,
        stride_p_plane=partial.stride(1),
        stride_p_row=partial.stride(2),
        **options,
        ALL_BATCHES=every[0],
        ALL_HEADS=every[1],
        ALL_ROWS=every[2],
        ALL_COLS=every[3],
    )
    for dim in (2, 3):
        if every[dim]:
            partial = partial.sum(dim, keepdim=True)
    return partial.to(bias.dtype)


_dispatch.register_triton("attention_forward", attention_forward)
_dispatch.register_triton("attention_backward", attention_backward)
