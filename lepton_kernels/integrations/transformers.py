"""Hugging Face transformers: `attn_implementation="lepton"`."""

from __future__ import annotations

from typing import Any

import torch

from lepton_kernels.ops.attention import scaled_dot_product_attention

NAME = "lepton"


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: torch.Tensor | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function that transformers calls.

    Args:
        module (nn.Module): the layer; its `is_causal` counts where the argument is None.
        query (Tensor): (batch, heads, length, head_dim).
        key (Tensor): (batch, key heads, key length, head_dim).
        value (Tensor): like key.
        attention_mask (Tensor, optional): boolean or additive; causal and padding masks included.
        dropout (float): probability of dropping an attention weight. Default: 0.0.
        scaling (float, optional): default 1 / sqrt(head_dim).
        is_causal (bool, optional): used where no mask is given. Default: None.
        position_bias (Tensor, optional): added to the scores; gets a gradient. Default: None.
        softcap (float, optional): as in Gemma 2. Default: None (off).
        s_aux (Tensor, optional): sink logits, one per head, as in GPT-OSS. Default: None.
        **rest: what other attention functions take; a window is in the mask already.

    Returns:
        tuple: (batch, length, heads, head_dim), and None for the weights.

    Raises:
        TypeError, ValueError: as `lepton_kernels.scaled_dot_product_attention`.
    """
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    causal = is_causal and attention_mask is None and query.shape[2] > 1
    mask = attention_mask
    if position_bias is not None:
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
        mask = position_bias if mask is None else position_bias + mask
    if mask is not None and mask.dim() == 4 and mask.shape[-1] > key.shape[2]:
        mask = mask[..., : key.shape[2]]
    out = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scaling,
        enable_gqa=True,
        softcap=softcap or 0.0,
        sinks=s_aux,
    )
    assert isinstance(out, torch.Tensor)
    return out.transpose(1, 2).contiguous(), None


def register() -> str:
    """Make `attn_implementation="lepton"` known to transformers; call it once, before loading.

    Returns:
        str: "lepton", the name to pass to `from_pretrained` or `set_attn_implementation`.

    Raises:
        ModuleNotFoundError: transformers is not installed.
        NotImplementedError: transformers is older than 4.53 and has no registry of attentions.

    Example:
        >>> import lepton_kernels as lk
        >>> lk.integrations.transformers.register()  # doctest: +SKIP
        'lepton'
        >>> AutoModel.from_pretrained(path, attn_implementation="lepton")  # doctest: +SKIP
    """
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise NotImplementedError(
                "register: transformers must be version 4.53 or later, which has a registry of "
                f"attention functions; {error}"
            ) from error
        raise
    except ImportError as error:
        raise NotImplementedError(
            "register: transformers must be version 4.53 or later, which has a registry of "
            f"attention functions; {error}"
        ) from error
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    return NAME
