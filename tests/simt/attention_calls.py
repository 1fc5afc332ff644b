"""Attention in the emulator: the arguments of its entry points, from tensors."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from lepton_kernels.reference import attention as reference

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.int8: 3, torch.bool: 3}


@dataclasses.dataclass
class Case:
    """One call of attention_forward and attention_backward."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    bias: torch.Tensor | None = None
    alibi_slopes: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    cu_seqlens_q: torch.Tensor | None = None
    cu_seqlens_k: torch.Tensor | None = None
    rng_state: torch.Tensor | None = None
    scale: float = 0.0
    window_left: int = -1
    window_right: int = -1
    bottom_right: bool = False
    softcap: float = 0.0
    dropout_p: float = 0.0

    def __post_init__(self) -> None:
        if self.scale == 0.0:
            self.scale = self.query.shape[-1] ** -0.5

    def tensors(self) -> tuple[torch.Tensor | None, ...]:
        return (
            self.query, self.key, self.value, self.bias, self.alibi_slopes, self.sinks,
            self.cu_seqlens_q, self.cu_seqlens_k, self.rng_state,
        )  # fmt: skip

    def options(self) -> tuple[Any, ...]:
        return (
            self.scale, self.window_left, self.window_right, self.bottom_right, self.softcap,
            self.dropout_p,
        )  # fmt: skip

    def wide(self) -> Case:
        """The same numbers in float64."""
        names = ("query", "key", "value", "bias", "alibi_slopes", "sinks")
        changes = {}
        for name in names:
            tensor = getattr(self, name)
            if tensor is not None and tensor.dtype != torch.bool:
                changes[name] = tensor.double()
        return dataclasses.replace(self, **changes)


def _strides(tensor: torch.Tensor) -> list[int]:
    return list(tensor.stride()[:3])


def _broadcast_strides(tensor: torch.Tensor) -> list[int]:
    return [
        0 if size == 1 else stride
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    ]


def _meta(
    case: Case, out: torch.Tensor, batch: int, extra: list[int], value_like: torch.Tensor
) -> torch.Tensor:
    q, k, v = case.query, case.key, case.value
    bias = case.bias
    slopes = case.alibi_slopes
    return torch.tensor(
        [
            _DTYPES[q.dtype], _DTYPES[k.dtype], batch, q.shape[1], k.shape[1],
            q.shape[2], k.shape[2], q.shape[3], value_like.shape[3],
            case.window_left, case.window_right, int(case.bottom_right),
            *_strides(q), *_strides(k), *_strides(v), *_strides(out),
            int(bias is not None and bias.dtype == torch.bool),
            0 if bias is None else _DTYPES[bias.dtype],
            *([0] * 4 if bias is None else bias.shape),
            *([0] * 4 if bias is None else _broadcast_strides(bias)),
            q.shape[2] if slopes is not None and slopes.dim() == 2 else 0,
            *extra,
        ],
        dtype=torch.int64,
    )  # fmt: skip


def _poisoned(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


def _outputs(case: Case, varlen: bool) -> tuple[torch.Tensor, torch.Tensor]:
    batch, length, heads, _ = case.query.shape
    out = _poisoned(batch, length, heads, case.value.shape[3], dtype=case.query.dtype)
    lse = _poisoned(batch, heads, length, dtype=torch.float32)
    if varlen:  # rows that no sequence covers: the torch side clears them
        out.zero_()
        lse.fill_(-torch.inf)
    return out, lse


def _batch(case: Case) -> int:
    cu = case.cu_seqlens_q
    return case.query.shape[0] if cu is None else cu.numel() - 1


def _numbers(case: Case) -> tuple[float, float, float]:
    return float(case.scale), float(case.softcap), float(case.dropout_p)


def forward(
    simt: Any, case: Case, *, seed: int = 0, processors: int = 0, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and lse; with `processors` shares of the keys may be merged."""
    out, lse = _outputs(case, case.cu_seqlens_q is not None)
    partial = None
    if processors:
        partial = simt.out(torch.full((128 * lse.numel() * (out.shape[3] + 1),), float("nan")))
    simt.call(
        "simt_attention_forward", _meta(case, out, _batch(case), [], case.value),
        *case.tensors(), *_numbers(case), simt.out(out), simt.out(lse), partial, processors,
        seed=seed, **options,
    )  # fmt: skip
    return out, lse


def backward(
    simt: Any,
    case: Case,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    *,
    bias_grad: bool = False,
    seed: int = 0,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """Gradients by name."""
    grads = {
        name: torch.full(tuple(tensor.shape), float("nan"), dtype=tensor.dtype)
        for name, tensor in (("query", case.query), ("key", case.key), ("value", case.value))
    }
    if case.cu_seqlens_q is not None:
        for grad in grads.values():
            grad.zero_()
    bias_strides = [0] * 4
    if bias_grad and case.bias is not None:
        grads["bias"] = torch.full(tuple(case.bias.shape), float("nan"), dtype=case.bias.dtype)
        bias_strides = _broadcast_strides(grads["bias"])
    if case.sinks is not None:
        grads["sinks"] = torch.full((case.query.shape[2],), float("nan"))
    lse_strides = [0] * 3
    if grad_lse is not None:
        lse_strides = [grad_lse.stride(0), grad_lse.stride(2), grad_lse.stride(1)]
    extra = [
        *_strides(grad_out), *lse_strides, *_strides(grads["query"]), *_strides(grads["key"]),
        *_strides(grads["value"]), *bias_strides,
    ]  # fmt: skip
    stats = torch.full((2 * lse.numel(),), float("nan"))
    written = [simt.out(grads[name]) if name in grads else None for name in ("bias", "sinks")]
    simt.call(
        "simt_attention_backward", _meta(case, out, _batch(case), extra, case.value),
        *case.tensors(), *_numbers(case), out, lse, grad_out, grad_lse, simt.out(stats),
        simt.out(grads["query"]), simt.out(grads["key"]), simt.out(grads["value"]), *written,
        seed=seed, **options,
    )  # fmt: skip
    return grads


def expected(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """Output and lse of the reference in float64."""
    wide = case.wide()
    return reference.attention_forward(*wide.tensors(), *wide.options())


def expected_backward(
    case: Case,
    out: torch.Tensor,
    lse: torch.Tensor,
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor | None,
    bias_grad: bool = False,
) -> dict[str, torch.Tensor]:
    """Gradients of the reference in float64, from its own output."""
    wide = case.wide()
    grads = reference.attention_backward(
        grad_out.double(), None if grad_lse is None else grad_lse.double(),
        *wide.tensors(), out, lse, *wide.options(), bias_grad,
    )  # fmt: skip
    names = ("query", "key", "value", "bias", "sinks")
    return {name: grad for name, grad in zip(names, grads, strict=True) if grad.numel()}


@dataclasses.dataclass
class Cached:
    """One call of attention_cached."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    seqlens_k: torch.Tensor
    cu_seqlens_q: torch.Tensor | None = None
    start_k: torch.Tensor | None = None
    batch_index: torch.Tensor | None = None
    block_table: torch.Tensor | None = None
    key_scale: torch.Tensor | None = None
    value_scale: torch.Tensor | None = None
    alibi_slopes: torch.Tensor | None = None
    sinks: torch.Tensor | None = None
    window_left: int = -1
    window_right: int = 0
    softcap: float = 0.0

    def expected(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and lse of the reference, in float64 but for an int8 cache."""
        q = self.query.double()
        k, v = (t if t.dtype == torch.int8 else t.double() for t in (self.key, self.value))
        return reference.attention_cached(
            q, k, v, self.cu_seqlens_q, self.seqlens_k, self.start_k, self.batch_index,
            self.block_table, self.key_scale, self.value_scale, self.alibi_slopes, self.sinks,
            q.shape[-1] ** -0.5, self.window_left, self.window_right, self.softcap,
        )  # fmt: skip

    def run(
        self, simt: Any, *, seed: int = 0, processors: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and lse of the kernels."""
        case = Case(
            self.query, self.key, self.value, None, self.alibi_slopes, self.sinks,
            window_left=self.window_left, window_right=self.window_right, bottom_right=True,
            softcap=self.softcap,
        )  # fmt: skip
        out, lse = _outputs(case, self.cu_seqlens_q is not None)
        table, page = self.block_table, self.key.shape[1]
        scales = [
            [0] * 3 if scale is None else list(scale.stride())
            for scale in (self.key_scale, self.value_scale)
        ]
        extra = [
            0 if table is None else table.shape[1], page,
            page if table is None else page * table.shape[1], self.key.shape[0],
            *scales[0], *scales[1],
        ]  # fmt: skip
        partial = None
        if processors:
            partial = simt.out(torch.full((128 * lse.numel() * (out.shape[3] + 1),), float("nan")))
        simt.call(
            "simt_attention_cached", _meta(case, out, self.seqlens_k.numel(), extra, self.value),
            self.query, self.key, self.value, self.cu_seqlens_q, self.seqlens_k, self.start_k,
            self.batch_index, table, self.key_scale, self.value_scale, self.alibi_slopes,
            self.sinks, float(case.scale), float(self.softcap), simt.out(out), simt.out(lse),
            partial, processors, seed=seed,
        )  # fmt: skip
        return out, lse
