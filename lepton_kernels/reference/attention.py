"""Attention in plain PyTorch: what every backend must compute, forward and backward.

Tensors lie as (batch, length, heads, head_dim). Scores are float32, or float64 for float64 inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

_WORD = 0xFFFFFFFF


@dataclasses.dataclass(frozen=True)
class Options:
    """The numbers of one attention call."""

    scale: float
    window_left: int = -1
    window_right: int = -1
    bottom_right: bool = False
    softcap: float = 0.0
    dropout_p: float = 0.0


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The tensors of one attention call without variable lengths."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    bias: torch.Tensor | None = None
    alibi_slopes: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    rng_state: torch.Tensor | None = None
    first_row: int = 0  # number of the first query row and batch, for the dropout mask
    first_batch: int = 0


def _multiply_words(a: int, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    product = b * a  # int64 wraps, which leaves the 64 bits of the unsigned product
    return (product >> 32) & _WORD, product & _WORD


def philox_words(
    seed: int, counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """Philox-4x32-10 (Salmon et al., 2011): four 32-bit words, as int64, for each counter."""
    key0, key1 = seed & _WORD, (seed >> 32) & _WORD
    c0, c1, c2, c3 = counter
    for _ in range(10):
        high0, low0 = _multiply_words(0xD2511F53, c0)
        high1, low1 = _multiply_words(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ key0, low1, high0 ^ c3 ^ key1, low0
        key0, key1 = (key0 + 0x9E3779B9) & _WORD, (key1 + 0xBB67AE85) & _WORD
    return c0, c1, c2, c3


def dropout_keep(
    rng_state: torch.Tensor,
    dropout_p: float,
    shape: tuple[int, int, int, int],
    first_batch: int = 0,
    first_row: int = 0,
) -> torch.Tensor:
    """Boolean (B, H, Lq, Lk): which probabilities dropout keeps; the same on every backend.

    Word j % 4 of counter (j // 4, i, b * H + h, offset) under key `seed` belongs to (b, h, i, j).
    """
    batch, heads, rows, columns = shape
    seed, offset = (int(value) for value in rng_state.tolist())
    device = rng_state.device
    quads = torch.arange((columns + 3) // 4, device=device).view(1, 1, -1)
    row = torch.arange(first_row, first_row + rows, device=device).view(1, -1, 1)
    planes = torch.arange(first_batch * heads, (first_batch + batch) * heads, device=device)
    full = torch.broadcast_tensors(
        quads, row, planes.view(-1, 1, 1), torch.tensor(offset & _WORD, device=device)
    )
    words = torch.stack(philox_words(seed, full), dim=-1)
    words = words.reshape(batch, heads, rows, 4 * quads.shape[2])[..., :columns]
    return words >= dropout_threshold(dropout_p)


def dropout_threshold(dropout_p: float) -> int:
    """Words below this are dropped."""
    return min(int(dropout_p * 2**32 + 0.5), _WORD)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _heads_first(x: torch.Tensor, repeat: int = 1) -> torch.Tensor:
    wide = x.to(_compute_dtype(x.dtype)).transpose(1, 2)
    return wide.repeat_interleave(repeat, dim=1) if repeat != 1 else wide


def visible(rows: int, columns: int, options: Options, device: torch.device) -> torch.Tensor | None:
    """Boolean (Lq, Lk) of the keys in the window of each query; None if all are."""
    if options.window_left < 0 and options.window_right < 0:
        return None
    distance = _distance(rows, columns, options, device)
    seen = torch.ones_like(distance, dtype=torch.bool)
    if options.window_left >= 0:
        seen &= distance >= -options.window_left
    if options.window_right >= 0:
        seen &= distance <= options.window_right
    return seen


def _distance(rows: int, columns: int, options: Options, device: torch.device) -> torch.Tensor:
    shift = columns - rows if options.bottom_right else 0
    row = torch.arange(rows, device=device).view(-1, 1) + shift
    return torch.arange(columns, device=device).view(1, -1) - row


def _scores(x: Inputs, options: Options) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores (B, H, Lq, Lk) with -inf where masked, and d score / d (scale * q @ k)."""
    group = x.query.shape[2] // max(x.key.shape[2], 1)
    q, k = _heads_first(x.query), _heads_first(x.key, group)
    scores = q @ k.transpose(-1, -2) * options.scale
    slope = None
    if options.softcap > 0:
        capped = torch.tanh(scores / options.softcap)
        scores, slope = options.softcap * capped, 1 - capped * capped
    rows, columns = scores.shape[-2:]
    if x.alibi_slopes is not None:
        slopes = x.alibi_slopes.to(scores.dtype)
        slopes = slopes.view(1, -1, 1, 1) if slopes.dim() == 1 else slopes[:, :, None, None]
        scores = scores - slopes * _distance(rows, columns, options, scores.device).abs()
    if x.bias is not None:
        if x.bias.dtype == torch.bool:
            scores = scores.masked_fill(~x.bias, -torch.inf)
        else:
            scores = scores + x.bias.to(scores.dtype)
    seen = visible(rows, columns, options, scores.device)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores, slope


def _probabilities(scores: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    # A row without a visible key has lse -inf and probabilities of zero.
    safe = lse.masked_fill(lse == -torch.inf, 0.0)
    return torch.exp(scores - safe.unsqueeze(-1))


def _dropped(x: Inputs, p: torch.Tensor, options: Options) -> torch.Tensor:
    if options.dropout_p == 0 or x.rng_state is None:
        return p
    batch, heads, rows, columns = p.shape
    keep = dropout_keep(
        x.rng_state, options.dropout_p, (batch, heads, rows, columns), x.first_batch, x.first_row
    )
    return p * keep / (1 - options.dropout_p)


def dense_forward(x: Inputs, options: Options) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B, Lq, H, Dv) and natural-log lse (B, H, Lq), in the dtype of the scores."""
    scores, _ = _scores(x, options)
    if x.sinks is not None:
        sink = x.sinks.to(scores.dtype).view(1, -1, 1).expand(scores.shape[:-1])
        lse = torch.logsumexp(torch.cat([scores, sink.unsqueeze(-1)], dim=-1), dim=-1)
    elif scores.shape[-1] == 0:
        lse = scores.new_full(scores.shape[:-1], -torch.inf)
    else:
        lse = torch.logsumexp(scores, dim=-1)
    p = _dropped(x, _probabilities(scores, lse), options)
    group = x.query.shape[2] // max(x.value.shape[2], 1)
    return (p @ _heads_first(x.value, group)).transpose(1, 2), lse


def _sum_group(grad: torch.Tensor, heads: int) -> torch.Tensor:
    batch, all_heads, length, dim = grad.shape
    return grad.view(batch, heads, all_heads // max(heads, 1), length, dim).sum(2).transpose(1, 2)


def _sum_to(grad: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    missing = grad.dim() - len(shape)
    dims = [d for d in range(grad.dim()) if d < missing or shape[d - missing] == 1]
    return (grad.sum(dims, keepdim=True) if dims else grad).reshape(shape)


def dense_backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    x: Inputs,
    out: torch.Tensor,
    lse: torch.Tensor,
    options: Options,
    bias_grad: bool,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of query, key, value, bias and sinks, in the dtype of the scores."""
    heads_kv = x.key.shape[2]
    group = x.query.shape[2] // max(heads_kv, 1)
    scores, slope = _scores(x, options)
    p = _probabilities(scores, lse)
    grad = _heads_first(grad_out)
    delta = (grad * _heads_first(out)).sum(-1)
    if grad_lse is not None:
        delta = delta - grad_lse.to(delta.dtype)
    grad_v = _dropped(x, p, options).transpose(-1, -2) @ grad
    grad_p = _dropped(x, grad @ _heads_first(x.value, group).transpose(-1, -2), options)
    grad_scores = p * (grad_p - delta.unsqueeze(-1))
    wants_bias = bias_grad and x.bias is not None
    grad_bias = _sum_to(grad_scores, x.bias.shape) if wants_bias and x.bias is not None else None
    grad_sinks = None
    if x.sinks is not None:
        sink_p = torch.exp(x.sinks.to(lse.dtype).view(1, -1, 1) - lse)
        grad_sinks = -(sink_p * delta).sum((0, 2))
    if slope is not None:
        grad_scores = grad_scores * slope
    grad_scores = grad_scores * options.scale
    grad_q = (grad_scores @ _heads_first(x.key, group)).transpose(1, 2)
    grad_k = _sum_group(grad_scores.transpose(-1, -2) @ _heads_first(x.query), heads_kv)
    return grad_q, grad_k, _sum_group(grad_v, heads_kv), grad_bias, grad_sinks


def _pieces(
    x: Inputs, cu_q: torch.Tensor, cu_k: torch.Tensor
) -> Iterator[tuple[slice, slice, Inputs]]:
    bounds_q, bounds_k = cu_q.tolist(), cu_k.tolist()
    for b in range(len(bounds_q) - 1):
        q, k = slice(bounds_q[b], bounds_q[b + 1]), slice(bounds_k[b], bounds_k[b + 1])
        slopes = x.alibi_slopes
        if slopes is not None and slopes.dim() == 2:
            slopes = slopes[b]
        piece = Inputs(
            x.query[:, q], x.key[:, k], x.value[:, k], None, slopes, x.sinks, x.rng_state, 0, b
        )
        yield q, k, piece


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output (B, Lq, H, Dv) in the dtype of the query, and lse (B, H, Lq)."""
    options = Options(scale, window_left, window_right, bottom_right, softcap, dropout_p)
    x = Inputs(query, key, value, bias, alibi_slopes, sinks, rng_state)
    if cu_seqlens_q is None or cu_seqlens_k is None:
        out, lse = dense_forward(x, options)
        return out.to(query.dtype).contiguous(), lse.contiguous()
    batch, length, heads, _ = query.shape
    dtype = _compute_dtype(query.dtype)
    out = query.new_zeros((batch, length, heads, value.shape[3]))
    lse = query.new_full((batch, heads, length), -torch.inf, dtype=dtype)
    for q, _, piece in _pieces(x, cu_seqlens_q, cu_seqlens_k):
        piece_out, piece_lse = dense_forward(piece, options)
        out[:, q], lse[:, :, q] = piece_out.to(out.dtype), piece_lse
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
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key, value, bias and sinks; empty tensors for those not asked for."""
    options = Options(scale, window_left, window_right, bottom_right, softcap, dropout_p)
    x = Inputs(query, key, value, bias, alibi_slopes, sinks, rng_state)
    none = query.new_empty((0,))
    if cu_seqlens_q is None or cu_seqlens_k is None:
        q_, k_, v_, bias_, sinks_ = dense_backward(
            grad_out, grad_lse, x, out, lse, options, bias_grad
        )
        assert q_ is not None
        assert k_ is not None
        assert v_ is not None
        return (
            q_.to(query.dtype).contiguous(),
            k_.to(key.dtype).contiguous(),
            v_.to(value.dtype).contiguous(),
            none if bias_ is None or bias is None else bias_.to(bias.dtype).contiguous(),
            none if sinks_ is None or sinks is None else sinks_.to(sinks.dtype),
        )
    grads = [
        torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (query, key, value)
    ]
    total = None if sinks is None else torch.zeros_like(sinks, dtype=lse.dtype)
    for q, k, piece in _pieces(x, cu_seqlens_q, cu_seqlens_k):
        piece_lse = None if grad_lse is None else grad_lse[:, :, q]
        parts = dense_backward(
            grad_out[:, q], piece_lse, piece, out[:, q], lse[:, :, q], options, False
        )
        for grad, part, where in zip(grads, parts[:3], (q, k, k), strict=True):
            assert part is not None
            grad[:, where] = part.to(grad.dtype)
        if total is not None and parts[4] is not None:
            total += parts[4]
    sinks_out = none if total is None or sinks is None else total.to(sinks.dtype)
    return grads[0], grads[1], grads[2], none, sinks_out


def attention_cached(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor | None,
    seqlens_k: torch.Tensor,
    start_k: torch.Tensor | None,
    batch_index: torch.Tensor | None,
    block_table: torch.Tensor | None,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
    alibi_slopes: torch.Tensor | None,
    sinks: torch.Tensor | None,
    scale: float,
    window_left: int,
    window_right: int,
    softcap: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of new queries over a cache; see `lepton_kernels.ops.kvcache`."""
    options = Options(scale, window_left, window_right, True, softcap)
    batch = seqlens_k.shape[0]
    heads, dim = query.shape[2], value.shape[3]
    bounds = None if cu_seqlens_q is None else cu_seqlens_q.tolist()
    out = query.new_zeros((*query.shape[:2], heads, dim))
    dtype = _compute_dtype(query.dtype)
    lse = query.new_full((query.shape[0], heads, query.shape[1]), -torch.inf, dtype=dtype)
    for b in range(batch):
        where = (b, slice(None)) if bounds is None else (0, slice(bounds[b], bounds[b + 1]))
        q = query[where].unsqueeze(0)
        k = _gather(key, key_scale, b, seqlens_k, start_k, batch_index, block_table, q.dtype)
        v = _gather(value, value_scale, b, seqlens_k, start_k, batch_index, block_table, q.dtype)
        slopes = alibi_slopes
        if slopes is not None and slopes.dim() == 2:
            slopes = slopes[b]
        piece_out, piece_lse = dense_forward(Inputs(q, k, v, None, slopes, sinks), options)
        out[where] = piece_out[0].to(out.dtype)
        lse[where[0], :, where[1]] = piece_lse[0]
    return out, lse


def _gather(
    cache: torch.Tensor,
    scale: torch.Tensor | None,
    b: int,
    seqlens_k: torch.Tensor,
    start_k: torch.Tensor | None,
    batch_index: torch.Tensor | None,
    block_table: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The keys or values of sequence b, (1, length, heads, head_dim)."""
    end = int(seqlens_k[b])
    start = 0 if start_k is None else int(start_k[b])
    rows = torch.arange(start, max(end, start), device=cache.device)
    if block_table is not None:
        page = cache.shape[1]
        index = (block_table[b].long()[rows // page], rows % page)
    else:
        index = (torch.full_like(rows, b if batch_index is None else int(batch_index[b])), rows)
    values = cache[index]
    if scale is not None:
        values = values.to(_compute_dtype(dtype)) * scale[index].unsqueeze(-1)
    return values.unsqueeze(0)
