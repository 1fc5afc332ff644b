"""sparse_linear in plain PyTorch: dense arithmetic on the unpacked weight."""

from __future__ import annotations

import torch

from lepton_kernels.reference import int8_linear as int8
from lepton_kernels.reference.sparse_weight import read_header, read_scale, unpack_sparse


def sparse_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    out_features: int,
    activation: int,
    out_dtype: torch.dtype,
) -> torch.Tensor:
    """Linear layer with a packed sparse weight; see `lepton_kernels.sparse_linear`."""
    in_features = x.shape[-1]
    if read_header("sparse_linear", packed).value_dtype == torch.int8:
        weight = unpack_sparse(packed, out_features, in_features, torch.int8)
        scale = read_scale(packed)
        rest = (bias, residual, None, None, None, None, False, activation, out_dtype)
        return int8.int8_linear(x, weight, scale, *rest)
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight = unpack_sparse(packed, out_features, in_features, work)
    rows = x.reshape(x.shape[:-1].numel(), in_features).to(work)
    y = rows @ weight.t()
    if bias is not None:
        y = y + bias.to(work)
    y = int8.apply_activation(y, activation)
    if residual is not None:
        y = y + residual.reshape(y.shape).to(work)
    return y.to(out_dtype).reshape(*x.shape[:-1], out_features)


def sparse_linear_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    packed: torch.Tensor,
    bias: torch.Tensor | None,
    activation: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the input and the bias; quantisation to int8 is passed straight through."""
    in_features, out_features = x.shape[-1], grad.shape[-1]
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight = unpack_sparse(packed, out_features, in_features, work)
    rows = x.reshape(x.shape[:-1].numel(), in_features).to(work)
    grad = grad.reshape(rows.shape[0], out_features).to(work)
    if int8.ACTIVATIONS[activation] != "none":
        pre = rows @ weight.t()
        if bias is not None:
            pre = pre + bias.to(work)
        grad = int8._activation_gradient(pre, grad, activation)
    bias_dtype = x.dtype if bias is None else bias.dtype
    return (grad @ weight).reshape(x.shape).to(x.dtype), grad.sum(0).to(bias_dtype)
