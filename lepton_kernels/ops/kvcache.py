"""Decoding over a key-value cache: `flash_attn_with_kvcache` and the op below it."""

from __future__ import annotations

import math
from typing import Any

import torch

from lepton_kernels import _dispatch
from lepton_kernels.ops._attention_checks import Call, beyond_cuda, check_options, check_window
from lepton_kernels.ops._checks import check_device, check_dtype, check_tensor, shape_error
from lepton_kernels.ops._kvcache_checks import check_cached
from lepton_kernels.reference import attention as reference

_CALL = Call("flash_attn_with_kvcache", "q", "k_cache", "v_cache", scale="softmax_scale")


def _outputs(query: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length, heads, _ = query.shape
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    return (
        query.new_empty((batch, length, heads, value.shape[3])),
        query.new_empty((batch, heads, length), dtype=wide),
    )


def _fake_cached(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    check_cached(*arguments, values=False)
    return _outputs(arguments[0], arguments[2])


def _checked_cached(*arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    check_cached(*arguments)
    return reference.attention_cached(*arguments)


_dispatch.define_op(
    "attention_cached",
    "(Tensor query, Tensor key, Tensor value, Tensor? cu_seqlens_q, Tensor seqlens_k,"
    " Tensor? start_k, Tensor? batch_index, Tensor? block_table, Tensor? key_scale,"
    " Tensor? value_scale, Tensor? alibi_slopes, Tensor? sinks, float scale, int window_left,"
    " int window_right, float softcap) -> (Tensor out, Tensor lse)",
    reference=_checked_cached,
    fake=_fake_cached,
    cuda_limits=beyond_cuda,
)
_cached = _dispatch.OpCaller("attention_cached")
_cached_reference = torch.ops.lepton_reference.attention_cached.default


def cached_attention(
    call: Call,
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    seqlens_k: torch.Tensor,
    start_k: torch.Tensor | None,
    batch_index: torch.Tensor | None,
    block_table: torch.Tensor | None,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int],
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call attention_cached for a public function."""
    tensors = (
        q, k_cache, v_cache, cu_seqlens_q, seqlens_k, start_k, batch_index, block_table,
        k_scale, v_scale, alibi_slopes, sinks,
    )  # fmt: skip
    try:
        left, right = window_size
        options = (
            softmax_scale if softmax_scale is not None else 1.0 / math.sqrt(max(q.shape[-1], 1)),
            left,
            0 if causal and right >= -1 else right,
            softcap,
        )
        if q.dtype == torch.float64:
            return _cached_reference(*tensors, *options)
        return _cached(tensors, *options)
    except (RuntimeError, AttributeError, TypeError, ValueError):
        # The exact error is worked out here, so that a good call does not pay for its checks.
        scale = 1.0 if softmax_scale is None else softmax_scale
        check_options(call, window_size, softcap, 0.0, scale)
        check_cached(*tensors, scale, left, right, softcap, call=call)
        raise


def _rotate(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    interleaved: bool,
) -> torch.Tensor:
    """Rotary embedding of x (B, L, H, D) at positions (B, L); dimensions behind 2 * cos stay."""
    half = cos.shape[1]
    wide = torch.promote_types(x.dtype, torch.float32)
    c, s = (t[positions].to(wide).unsqueeze(2) for t in (cos, sin))
    turned, rest = x[..., : 2 * half].to(wide), x[..., 2 * half :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack([a * c - b * s, a * s + b * c], dim=-1).flatten(-2)
    else:
        a, b = turned[..., :half], turned[..., half:]
        turned = torch.cat([a * c - b * s, a * s + b * c], dim=-1)
    return torch.cat([turned.to(x.dtype), rest], dim=-1)


def _check_rotary(
    q: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None, last: int
) -> None:
    op = _CALL.op
    if cos is None or sin is None:
        missing = "rotary_cos" if cos is None else "rotary_sin"
        raise TypeError(f"{op}: {missing} must be a Tensor like its pair, got None")
    for name, table in (("rotary_cos", cos), ("rotary_sin", sin)):
        check_tensor(op, name, table)
        check_device(op, name, table, q)
        if table.dim() != 2 or table.shape != cos.shape or 2 * table.shape[1] > q.shape[3]:
            expected = f"(positions, at most {q.shape[3] // 2})"
            shape_error(op, name, expected, table.shape)
        if table.shape[0] <= last:
            raise ValueError(
                f"{op}: {name} must have a row for position {last}, got {table.shape[0]} rows"
            )


def _append(
    cache: torch.Tensor,
    scale: torch.Tensor | None,
    index: tuple[torch.Tensor, ...],
    new: torch.Tensor,
) -> None:
    if scale is None:
        cache.index_put_(index, new.to(cache.dtype))
        return
    wide = new.float()
    step = wide.abs().amax(-1) / 127
    safe = step.masked_fill(step == 0, 1.0)
    cache.index_put_(index, (wide / safe.unsqueeze(-1)).round().clamp(-127, 127).to(torch.int8))
    scale.index_put_(index, safe)


def flash_attn_with_kvcache(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor | None = None,
    v: torch.Tensor | None = None,
    rotary_cos: torch.Tensor | None = None,
    rotary_sin: torch.Tensor | None = None,
    cache_seqlens: int | torch.Tensor | None = None,
    cache_batch_idx: torch.Tensor | None = None,
    cache_leftpad: torch.Tensor | None = None,
    block_table: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: torch.Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    *,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Append to a key-value cache in place, and attend over it, as in flash_attn 2.8.

    No gradients. Masks are aligned at the bottom right of the filled part of the cache.

    Args:
        q (Tensor): float32, bfloat16, float16 or float64, shape (B, Lq, H, D).
        k_cache (Tensor): (B_cache, L_cache, Hkv, D), or (pages, page_size, Hkv, D) with
            block_table; dtype of q, or int8 with k_scale. Written to where k is given.
        v_cache (Tensor): like k_cache, with Dv.
        k (Tensor, optional): (B, L_new, Hkv, D); stored at rows cache_seqlens and on.
            Default: None (the cache is only read).
        v (Tensor, optional): (B, L_new, Hkv, Dv). Default: None.
        rotary_cos (Tensor, optional): (positions, rotary_dim / 2); k is rotated at its rows of the
            cache, q likewise if causal or with a window, else at row cache_seqlens. Default: None.
        rotary_sin (Tensor, optional): like rotary_cos. Default: None.
        cache_seqlens (int or Tensor, optional): int32, (B,); rows filled before the call.
            Default: None, all of the cache.
        cache_batch_idx (Tensor, optional): int32, (B,); which batch of the cache to use.
            Default: None (the first B).
        cache_leftpad (Tensor, optional): int32, (B,); row at which each sequence starts.
            Default: None (0).
        block_table (Tensor, optional): int32, (B, pages per sequence); any page size.
            Default: None.
        softmax_scale (float, optional): default 1 / sqrt(D).
        causal (bool): Default: False.
        window_size (tuple[int, int]): as `flash_attn_func`. Default: (-1, -1).
        softcap (float): as `flash_attn_func`. Default: 0.0.
        rotary_interleaved (bool): rotate neighbours (GPT-J) rather than halves (GPT-NeoX).
            Default: True.
        alibi_slopes (Tensor, optional): float32, (H,) or (B, H). Default: None.
        num_splits (int): accepted; the keys are split by the number of threads. Default: 0.
        return_softmax_lse (bool): also return the log-sum-exp. Default: False.
        k_scale (Tensor, optional): float32, shape of k_cache less its last dimension: steps of an
            int8 k_cache; written along with it. Default: None.
        v_scale (Tensor, optional): likewise for v_cache. Default: None.
        sinks (Tensor, optional): float, (H,); as `scaled_dot_product_attention`. Default: None.

    Returns:
        Tensor: (B, Lq, H, Dv), dtype of q. With return_softmax_lse also (B, H, Lq), float32.

    Raises:
        TypeError: an argument has the wrong type or dtype, or lacks its pair.
        ValueError: shapes do not fit, the cache is too short, block_table or cache_batch_idx
            points outside. Nothing has been written then.
        NotImplementedError: cache_batch_idx together with block_table.

    Source: flash_attn 2.8; rotary embedding: Su et al., "RoFormer", 2021.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> cache = torch.zeros(2, 16, 1, 8)
        >>> new, filled = torch.randn(2, 1, 1, 8), torch.tensor([3, 5], dtype=torch.int32)
        >>> q = torch.randn(2, 1, 4, 8)
        >>> v = cache.clone()
        >>> lk.flash_attn_with_kvcache(q, cache, v, new, new, cache_seqlens=filled).shape
        torch.Size([2, 1, 4, 8])
    """
    op = _CALL.op
    for name, tensor in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache)):
        check_tensor(op, name, tensor)
        if tensor.dim() != 4:
            shape_error(op, name, _CALL.layout, tensor.shape)
    batch = q.shape[0]
    check_window(op, window_size)
    capacity = k_cache.shape[1]
    if block_table is not None:
        check_tensor(op, "block_table", block_table)
        if block_table.dim() != 2:
            shape_error(op, "block_table", f"({batch}, pages)", block_table.shape)
        capacity *= block_table.shape[1]
    if (k is None) != (v is None):
        raise TypeError(
            f"{op}: {'k' if k is None else 'v'} must be a Tensor like its pair, got None"
        )
    if cache_seqlens is None or isinstance(cache_seqlens, int):
        filled = capacity if cache_seqlens is None else cache_seqlens
        if k is not None and cache_seqlens is None:
            raise ValueError(f"{op}: cache_seqlens must be given when k is, got None")
        before = torch.full((batch,), filled, dtype=torch.int32, device=q.device)
    else:
        before = cache_seqlens
    after = before
    if k is not None and v is not None:
        q, after = _appended(
            q, k_cache, v_cache, k, v, rotary_cos, rotary_sin, before, cache_batch_idx,
            cache_leftpad, block_table, causal or tuple(window_size) != (-1, -1),
            rotary_interleaved, k_scale, v_scale,
            (alibi_slopes, sinks, 1.0 if softmax_scale is None else softmax_scale, *window_size,
             softcap),
        )  # fmt: skip
    out, lse = cached_attention(
        _CALL, q, k_cache, v_cache, None, after, cache_leftpad, cache_batch_idx, block_table,
        k_scale, v_scale, alibi_slopes, sinks, softmax_scale, causal, window_size, softcap,
    )  # fmt: skip
    return (out, lse) if return_softmax_lse else out


def _appended(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotary_cos: torch.Tensor | None,
    rotary_sin: torch.Tensor | None,
    before: torch.Tensor,
    batch_index: torch.Tensor | None,
    leftpad: torch.Tensor | None,
    block_table: torch.Tensor | None,
    moving: bool,
    interleaved: bool,
    k_scale: torch.Tensor | None,
    v_scale: torch.Tensor | None,
    options: tuple[Any, ...],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotate and store new rows; the rotated queries and the new lengths.

    `options` are the arguments of attention_cached behind value_scale, for its checks.
    """
    op, batch = _CALL.op, q.shape[0]
    added = k.shape[1] if k.dim() == 4 else 0
    for name, new, cache in (("k", k, k_cache), ("v", v, v_cache)):
        check_tensor(op, name, new)
        expected = (batch, added, *cache.shape[2:])
        if tuple(new.shape) != expected:
            shape_error(op, name, f"{expected} to match its cache", new.shape)
        check_dtype(op, name, new, (q.dtype,))
    compiling = torch.compiler.is_compiling()
    check_tensor(op, "cache_seqlens", before)
    # The op below would refuse these only after the cache has been written to.
    after = before + added
    arguments = (
        q, k_cache, v_cache, None, after, leftpad, batch_index, block_table, k_scale, v_scale,
        *options,
    )  # fmt: skip
    check_cached(*arguments, call=_CALL, values=not compiling)
    offsets = torch.arange(added, device=q.device)
    rows = before.long().unsqueeze(1) + offsets
    if rotary_cos is not None or rotary_sin is not None:
        count = max(added, q.shape[1])
        last = -1 if compiling or not batch else int(before.max()) + count - 1
        _check_rotary(q, rotary_cos, rotary_sin, last)
        assert rotary_cos is not None
        assert rotary_sin is not None
        k = _rotate(k, rotary_cos, rotary_sin, rows, interleaved)
        steps = torch.arange(q.shape[1], device=q.device)
        places = before.long().unsqueeze(1) + (steps if moving else torch.zeros_like(steps))
        q = _rotate(q, rotary_cos, rotary_sin, places, interleaved)
    if block_table is not None:
        page = k_cache.shape[1]
        index = (block_table.long().gather(1, rows // page), rows % page)
    elif batch_index is not None:
        index = (batch_index.long().unsqueeze(1).expand_as(rows), rows)
    else:
        index = (torch.arange(batch, device=q.device).unsqueeze(1).expand_as(rows), rows)
    _append(k_cache, k_scale, index, k)
    _append(v_cache, v_scale, index, v)
    return q, after
