"""Attention under the names and rules of `flash_attn` 2.8: (batch, length, heads, head_dim)."""

from __future__ import annotations

import torch

from lepton_kernels.ops._attention_checks import Call, check_cu_seqlens
from lepton_kernels.ops._checks import check_number, check_tensor, shape_error
from lepton_kernels.ops.attention import attention, rng_state
from lepton_kernels.ops.kvcache import cached_attention

_Out = torch.Tensor | tuple[torch.Tensor, torch.Tensor, None]


def _call(op: str) -> Call:
    return Call(op, "q", "k", "v", scale="softmax_scale")


def _result(out: torch.Tensor, lse: torch.Tensor, return_attn_probs: bool) -> _Out:
    return (out, lse, None) if return_attn_probs else out


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Out:
    """Attention with the signature and the rules of `flash_attn.flash_attn_func`.

    Masks are aligned at the bottom right: query i of Lq stands at key i + Lk - Lq
    (`scaled_dot_product_attention` aligns at the top left, as torch does).

    Args:
        q (Tensor): float32, bfloat16, float16 or float64, shape (B, Lq, H, D), any stride.
        k (Tensor): shape (B, Lk, Hkv, D), with H a multiple of Hkv.
        v (Tensor): shape (B, Lk, Hkv, Dv).
        dropout_p (float): probability of dropping an attention weight, in [0, 1). Default: 0.0.
        softmax_scale (float, optional): default 1 / sqrt(D).
        causal (bool): a query sees no key behind its own place. Default: False.
        window_size (tuple[int, int]): (left, right); a query sees keys from its place - left to
            its place + right; -1: no limit. Default: (-1, -1).
        softcap (float): scores become softcap * tanh(scores / softcap); 0: off. Default: 0.0.
        alibi_slopes (Tensor, optional): float32, (H,) or (B, H); adds -slope * distance.
            Default: None.
        deterministic (bool): accepted; results always are. Default: False.
        return_attn_probs (bool): also return the log-sum-exp. Default: False.

    Returns:
        Tensor: (B, Lq, H, Dv). With return_attn_probs a tuple (out, softmax_lse, None):
        softmax_lse is float32 (B, H, Lq), natural log, and may be differentiated, as it cannot in
        flash_attn; a row that sees no key is zero and has lse -inf. The probabilities themselves,
        which flash_attn gives for tests only, are None.

    Raises:
        TypeError, ValueError: as `scaled_dot_product_attention`.

    Source: Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work
    Partitioning", 2023.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> q, kv = torch.randn(1, 3, 4, 8), torch.randn(1, 9, 2, 8)
        >>> lk.flash_attn_func(q, kv, kv, causal=True).shape
        torch.Size([1, 3, 4, 8])
    """
    call = _call("flash_attn_func")
    check_tensor(call.op, "q", q)
    tensors = (q, k, v, None, alibi_slopes, None, None, None, rng_state(dropout_p, q))
    out, lse = attention(
        call, tensors, softmax_scale, causal, window_size, True, softcap, dropout_p
    )
    return _result(out, lse, return_attn_probs)


def flash_attn_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Out:
    """`flash_attn_func` with keys and values in one tensor.

    Args:
        q (Tensor): shape (B, Lq, H, D).
        kv (Tensor): shape (B, Lk, 2, Hkv, D).
        dropout_p (float): as `flash_attn_func`. Default: 0.0.
        softmax_scale (float, optional): as `flash_attn_func`. Default: None.
        causal (bool): as `flash_attn_func`. Default: False.
        window_size (tuple[int, int]): as `flash_attn_func`. Default: (-1, -1).
        softcap (float): as `flash_attn_func`. Default: 0.0.
        alibi_slopes (Tensor, optional): as `flash_attn_func`. Default: None.
        deterministic (bool): as `flash_attn_func`. Default: False.
        return_attn_probs (bool): as `flash_attn_func`. Default: False.

    Returns:
        As `flash_attn_func`.

    Raises:
        TypeError, ValueError: as `flash_attn_func`.
    """
    k, v = _unpack("flash_attn_kvpacked_func", "kv", kv, 5, 2)
    return flash_attn_func(
        q, k, v,
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
        return_attn_probs,
    )  # fmt: skip


def flash_attn_qkvpacked_func(
    qkv: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Out:
    """`flash_attn_func` with queries, keys and values in one tensor.

    Args:
        qkv (Tensor): shape (B, L, 3, H, D).
        dropout_p (float): as `flash_attn_func`. Default: 0.0.
        softmax_scale (float, optional): as `flash_attn_func`. Default: None.
        causal (bool): as `flash_attn_func`. Default: False.
        window_size (tuple[int, int]): as `flash_attn_func`. Default: (-1, -1).
        softcap (float): as `flash_attn_func`. Default: 0.0.
        alibi_slopes (Tensor, optional): as `flash_attn_func`. Default: None.
        deterministic (bool): as `flash_attn_func`. Default: False.
        return_attn_probs (bool): as `flash_attn_func`. Default: False.

    Returns:
        As `flash_attn_func`.

    Raises:
        TypeError, ValueError: as `flash_attn_func`.
    """
    q, k, v = _unpack("flash_attn_qkvpacked_func", "qkv", qkv, 5, 3)
    return flash_attn_func(
        q, k, v,
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
        return_attn_probs,
    )  # fmt: skip


def _unpack(
    op: str, name: str, packed: torch.Tensor, dims: int, count: int
) -> tuple[torch.Tensor, ...]:
    check_tensor(op, name, packed)
    if packed.dim() != dims or packed.shape[dims - 3] != count:
        lead = "(batch, length, " if dims == 5 else "(total, "
        shape_error(op, name, f"{lead}{count}, heads, head_dim)", packed.shape)
    return packed.unbind(dims - 3)


def flash_attn_varlen_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int | torch.Tensor,
    max_seqlen_k: int | torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: torch.Tensor | None = None,
) -> _Out:
    """Attention of sequences laid end to end, as `flash_attn.flash_attn_varlen_func`.

    Args:
        q (Tensor): float32, bfloat16, float16 or float64, shape (total_q, H, D).
        k (Tensor): shape (total_k, Hkv, D); with block_table (pages, page_size, Hkv, D).
        v (Tensor): shape (total_k, Hkv, Dv); with block_table (pages, page_size, Hkv, Dv).
        cu_seqlens_q (Tensor): int32, (batch + 1,); sequence b has rows cu[b] to cu[b + 1].
        cu_seqlens_k (Tensor): int32, (batch + 1,); likewise for keys. With block_table only the
            differences count.
        max_seqlen_q (int or Tensor): accepted; the kernel needs no bound, and does not read it.
        max_seqlen_k (int or Tensor): likewise.
        dropout_p (float): as `flash_attn_func`. Default: 0.0.
        softmax_scale (float, optional): as `flash_attn_func`. Default: None.
        causal (bool): bottom right within each sequence. Default: False.
        window_size (tuple[int, int]): as `flash_attn_func`. Default: (-1, -1).
        softcap (float): as `flash_attn_func`. Default: 0.0.
        alibi_slopes (Tensor, optional): float32, (H,) or (batch, H). Default: None.
        deterministic (bool): accepted; results always are. Default: False.
        return_attn_probs (bool): also return the log-sum-exp. Default: False.
        block_table (Tensor, optional): int32, (batch, pages); no gradient and no dropout then.
            Default: None.

    Returns:
        Tensor: (total_q, H, Dv). With return_attn_probs a tuple (out, softmax_lse, None),
        softmax_lse float32 (H, total_q). Rows behind cu_seqlens_q[-1] are zero.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes do not fit; cu_seqlens decrease, or go beyond the tensor.
        NotImplementedError: block_table with dropout or with gradients.

    Source: Dao, "FlashAttention-2", 2023.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> x = torch.randn(7, 2, 8)
        >>> cu = torch.tensor([0, 3, 7], dtype=torch.int32)
        >>> lk.flash_attn_varlen_func(x, x, x, cu, cu, 4, 4, causal=True).shape
        torch.Size([7, 2, 8])
    """
    call = Call(
        "flash_attn_varlen_func", "q", "k", "v",
        layout="(total, heads, head_dim)", scale="softmax_scale",
        lengths="differences of cu_seqlens_k",
    )  # fmt: skip
    tensors = (("q", q), ("k", k), ("v", v))
    for name, tensor in tensors:
        check_tensor(call.op, name, tensor)
        dims = 3 if name == "q" or block_table is None else 4
        if tensor.dim() != dims:
            layout = call.layout if dims == 3 else "(pages, page_size, heads, head_dim)"
            shape_error(call.op, name, layout, tensor.shape)
    for name, value in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        check_tensor(call.op, name, value)
    if block_table is not None:
        check_tensor(call.op, "block_table", block_table)
        check_number(call.op, "dropout_p", dropout_p)
        check_cu_seqlens(call.op, "cu_seqlens_k", cu_seqlens_k, q, None)
        if dropout_p > 0 or (torch.is_grad_enabled() and any(t.requires_grad for _, t in tensors)):
            raise NotImplementedError(
                f"{call.op}: block_table with dropout or gradients does not exist; it does "
                "without block_table, or under torch.no_grad() with dropout_p=0"
            )
        seqlens_k = cu_seqlens_k.diff()
        out, lse = cached_attention(
            call, q.unsqueeze(0), k, v, cu_seqlens_q, seqlens_k, None, None, block_table,
            None, None, alibi_slopes, None, softmax_scale, causal, window_size, softcap,
        )  # fmt: skip
        return _result(out[0], lse[0], return_attn_probs)
    inputs = (
        q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0),
        None, alibi_slopes, None, cu_seqlens_q, cu_seqlens_k, rng_state(dropout_p, q),
    )  # fmt: skip
    out, lse = attention(call, inputs, softmax_scale, causal, window_size, True, softcap, dropout_p)
    return _result(out[0], lse[0], return_attn_probs)


def flash_attn_varlen_kvpacked_func(
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int | torch.Tensor,
    max_seqlen_k: int | torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Out:
    """`flash_attn_varlen_func` with keys and values in one tensor.

    Args:
        q (Tensor): shape (total_q, H, D).
        kv (Tensor): shape (total_k, 2, Hkv, D).
        cu_seqlens_q (Tensor): int32, (batch + 1,).
        cu_seqlens_k (Tensor): int32, (batch + 1,).
        max_seqlen_q (int or Tensor): accepted.
        max_seqlen_k (int or Tensor): accepted.
        dropout_p (float): as `flash_attn_varlen_func`. Default: 0.0.
        softmax_scale (float, optional): as `flash_attn_varlen_func`. Default: None.
        causal (bool): as `flash_attn_varlen_func`. Default: False.
        window_size (tuple[int, int]): as `flash_attn_varlen_func`. Default: (-1, -1).
        softcap (float): as `flash_attn_varlen_func`. Default: 0.0.
        alibi_slopes (Tensor, optional): as `flash_attn_varlen_func`. Default: None.
        deterministic (bool): as `flash_attn_varlen_func`. Default: False.
        return_attn_probs (bool): as `flash_attn_varlen_func`. Default: False.

    Returns:
        As `flash_attn_varlen_func`.

    Raises:
        TypeError, ValueError: as `flash_attn_varlen_func`.
    """
    k, v = _unpack("flash_attn_varlen_kvpacked_func", "kv", kv, 4, 2)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k,
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
        return_attn_probs,
    )  # fmt: skip


def flash_attn_varlen_qkvpacked_func(
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int | torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: torch.Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> _Out:
    """`flash_attn_varlen_func` with queries, keys and values in one tensor.

    Args:
        qkv (Tensor): shape (total, 3, H, D).
        cu_seqlens (Tensor): int32, (batch + 1,).
        max_seqlen (int or Tensor): accepted.
        dropout_p (float): as `flash_attn_varlen_func`. Default: 0.0.
        softmax_scale (float, optional): as `flash_attn_varlen_func`. Default: None.
        causal (bool): as `flash_attn_varlen_func`. Default: False.
        window_size (tuple[int, int]): as `flash_attn_varlen_func`. Default: (-1, -1).
        softcap (float): as `flash_attn_varlen_func`. Default: 0.0.
        alibi_slopes (Tensor, optional): as `flash_attn_varlen_func`. Default: None.
        deterministic (bool): as `flash_attn_varlen_func`. Default: False.
        return_attn_probs (bool): as `flash_attn_varlen_func`. Default: False.

    Returns:
        As `flash_attn_varlen_func`.

    Raises:
        TypeError, ValueError: as `flash_attn_varlen_func`.
    """
    q, k, v = _unpack("flash_attn_varlen_qkvpacked_func", "qkv", qkv, 4, 3)
    return flash_attn_varlen_func(
        q, k, v, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen,
        dropout_p, softmax_scale, causal, window_size, softcap, alibi_slopes, deterministic,
        return_attn_probs,
    )  # fmt: skip
