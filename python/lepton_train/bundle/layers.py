"""What a manifest says about each linear layer: its form, quantisation and sparsity."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

import lepton_kernels as lk
from lepton_kernels.nn.int8_linear import Int8LinearQAT
from lepton_train.bundle.manifest import Layer
from lepton_train.report import tensor_bytes


def layers_of(model: nn.Module) -> list[Layer]:
    """One row for each linear layer of a model, in the order of the model."""
    rows = []
    for name, module in model.named_modules():
        if isinstance(module, lk.nn.SparseLinear):
            kind = "dynamic int8" if str(module.dtype) == "torch.int8" else "none"
            rows.append(
                Layer(
                    name=name,
                    form="SparseLinear",
                    shape=(module.out_features, module.in_features),
                    quantization=kind,
                    sparsity=module.sparsity,
                    layout=module.layout,
                    bytes=tensor_bytes(module),
                )
            )
        elif isinstance(module, (nn.Linear, lk.nn.Int8Linear)):
            weight = module.weight
            share = float((weight == 0).double().mean()) if weight.numel() else 0.0
            rows.append(
                Layer(
                    name=name,
                    form=parametrize.type_before_parametrizations(module).__name__,
                    shape=(module.out_features, module.in_features),
                    quantization=_quantization(module),
                    group_size=getattr(module, "group_size", None),
                    sparsity=share,
                    bytes=tensor_bytes(module),
                )
            )
    return rows


def _quantization(module: nn.Module) -> str:
    if isinstance(module, Int8LinearQAT):
        return "qat int8"
    if not isinstance(module, lk.nn.Int8Linear):
        return "none"
    if module.weight_only:
        return "weight-only int8"
    return "dynamic int8" if module.x_scale is None else "static int8"
