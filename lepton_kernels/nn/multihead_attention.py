"""`MultiheadAttention`: torch's module with the attention itself fused."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from lepton_kernels.ops._checks import shape_error
from lepton_kernels.ops.attention import scaled_dot_product_attention

_OP = "MultiheadAttention"


class MultiheadAttention(torch.nn.MultiheadAttention):
    """As `torch.nn.MultiheadAttention`: same arguments, defaults, parameters and state-dict keys.

    With `need_weights=False` the attention is one fused call, in training and evaluation, with
    every mask that torch takes, and memory that grows linearly with the length. Only a caller that
    asks for the weights (torch's default) gets torch's own path, since a fused kernel never has
    them.

    A query whose keys are all masked gives the bias of `out_proj` where torch gives NaN.

    Args:
        *args: as `torch.nn.MultiheadAttention`.
        **kwargs: likewise.

    Example:
        >>> import torch, lepton_kernels as lk
        >>> attention = lk.nn.MultiheadAttention(32, 4, batch_first=True)
        >>> x = torch.randn(2, 10, 32)
        >>> out, weights = attention(x, x, x, need_weights=False, is_causal=True)
        >>> out.shape, weights
        (torch.Size([2, 10, 32]), None)
    """

    @classmethod
    def from_torch(cls, module: torch.nn.MultiheadAttention) -> MultiheadAttention:
        """A fused module with the parameters of `module`, which both then share.

        Args:
            module (torch.nn.MultiheadAttention): left as it is.

        Returns:
            MultiheadAttention: with the same parameters, mode and hooks.

        Raises:
            TypeError: `module` is no torch.nn.MultiheadAttention.
        """
        if not isinstance(module, torch.nn.MultiheadAttention):
            raise TypeError(
                f"{_OP}.from_torch: module must be a torch.nn.MultiheadAttention, "
                f"got {type(module).__name__}"
            )
        fused = cls.__new__(cls)
        fused.__dict__.update(module.__dict__)
        return fused

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend; see `torch.nn.MultiheadAttention.forward` for arguments and shapes.

        Args:
            query (Tensor): (L, N, E), (N, L, E) with batch_first, or (L, E).
            key (Tensor): likewise, with length S and kdim.
            value (Tensor): likewise, with length S and vdim.
            key_padding_mask (Tensor, optional): (N, S) or (S,); True, or what is added, hides.
                Default: None.
            need_weights (bool): return the weights, by torch's own path. Default: True.
            attn_mask (Tensor, optional): (L, S) or (N * heads, L, S); True, or a bias, hides.
                Default: None.
            average_attn_weights (bool): as torch, with need_weights. Default: True.
            is_causal (bool): with need_weights=False a mask of its own, and attn_mask is not
                needed for it; else torch's hint. Default: False.

        Returns:
            tuple: the output, in the layout of query, and the weights or None.

        Raises:
            ValueError: a shape does not match.
            TypeError: a dtype does not.
        """
        if need_weights:
            return super().forward(
                query,
                key,
                value,
                key_padding_mask,
                need_weights,
                attn_mask,
                average_attn_weights,
                is_causal,
            )
        batched = query.dim() == 3
        if query.dim() not in (2, 3) or key.dim() != query.dim() or value.dim() != query.dim():
            shape_error(_OP, "query", "(L, N, E) or (L, E) like key and value", query.shape)
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            if key_padding_mask is not None:
                key_padding_mask = key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            same_key, same_value = key is query, value is key
            query = query.transpose(0, 1)
            key = query if same_key else key.transpose(0, 1)
            value = key if same_value else value.transpose(0, 1)
        if is_causal and attn_mask is None and (self.bias_k is not None or self.add_zero_attn):
            # Extra keys lie behind the others, where a causal mask would hide them.
            square = torch.ones(query.shape[1], key.shape[1], dtype=torch.bool, device=query.device)
            attn_mask = square.triu(1)
        q, k, v = self._projected(query, key, value)
        mask = self._mask(query, key, key_padding_mask, attn_mask)
        k, v, mask = self._with_extra_keys(k, v, mask)
        out = scaled_dot_product_attention(
            self._heads(q),
            self._heads(k),
            self._heads(v),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal and (attn_mask is None),
        )
        assert isinstance(out, torch.Tensor)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            return out.squeeze(0), None
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _projected(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        bias = self.in_proj_bias
        if self._qkv_same_embed_dim and query is key and key is value:
            return F.linear(query, self.in_proj_weight, bias).chunk(3, dim=2)
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        inputs = (query, key, value)
        return tuple(F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))

    def _mask(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        key_padding_mask: torch.Tensor | None,
        attn_mask: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Both masks as one that broadcasts to (N, heads, L, S); boolean ones turned to "sees"."""
        batch, rows, columns = query.shape[0], query.shape[1], key.shape[1]
        if key_padding_mask is not None:
            if key_padding_mask.shape != (batch, columns):
                shape_error(
                    _OP, "key_padding_mask", f"({batch}, {columns})", key_padding_mask.shape
                )
            key_padding_mask = key_padding_mask[:, None, None, :]
        if attn_mask is not None:
            if attn_mask.shape == (batch * self.num_heads, rows, columns):
                attn_mask = attn_mask.unflatten(0, (batch, self.num_heads))
            elif attn_mask.shape != (rows, columns):
                expected = f"({rows}, {columns}) or ({batch * self.num_heads}, {rows}, {columns})"
                shape_error(_OP, "attn_mask", expected, attn_mask.shape)
        given = [m for m in (key_padding_mask, attn_mask) if m is not None]
        if not given:
            return None
        if all(m.dtype == torch.bool for m in given):
            hidden = given[0] if len(given) == 1 else given[0] | given[1]
            return ~hidden
        total = None
        for m in given:
            if m.dtype == torch.bool:
                m = torch.zeros_like(m, dtype=query.dtype).masked_fill(m, -torch.inf)
            total = m if total is None else total + m
        return total

    def _with_extra_keys(
        self, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """`add_bias_kv` and `add_zero_attn`: keys behind the others, which every query sees."""
        batch, extra = k.shape[0], 0
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(batch, -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(batch, -1, -1)], dim=1)
            extra += 1
        if self.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
            extra += 1
        if mask is not None and extra:
            mask = F.pad(mask, (0, extra), value=True if mask.dtype == torch.bool else 0.0)
        return k, v, mask
