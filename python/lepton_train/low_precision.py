"""Weights in few bits of floating point: bfloat16 and float8, computed in the input's dtype."""

from __future__ import annotations

import torch
from torch import nn

from lepton_train import find
from lepton_train.find import Patterns
from lepton_train.quantize import choose, put_in
from lepton_train.report import LayerRow, QuantizationReport, tensor_bytes

FORMATS = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}


class LowPrecisionLinear(nn.Module):
    """Linear layer whose weight is stored in bfloat16 or float8 (E4M3, a scale per output).

    The weight is widened at every call: it saves memory and disk, not time.

    Args:
        in_features (int): size of the last dimension of the input.
        out_features (int): size of the last dimension of the output.
        bias (bool): whether there is a bias. Default: True.
        dtype (torch.dtype): torch.bfloat16 or torch.float8_e4m3fn. Default: torch.bfloat16.

    Shapes:
        input (..., in_features) -> output (..., out_features), of the same float dtype.

    State dict: `weight` (out_features, in_features) in `dtype`, `weight_scale` float32
    (out_features, 1) for float8, `bias`.

    Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022.

    Example:
        >>> linear = torch.nn.Linear(32, 8)
        >>> small = LowPrecisionLinear.from_linear(linear, torch.float8_e4m3fn)
        >>> small.weight.dtype, small(torch.randn(4, 32)).shape
        (torch.float8_e4m3fn, torch.Size([4, 8]))
    """

    weight: torch.Tensor
    weight_scale: torch.Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        super().__init__()
        if dtype not in FORMATS.values():
            raise TypeError(
                f"LowPrecisionLinear: dtype must be torch.bfloat16 or torch.float8_e4m3fn, "
                f"got {dtype}"
            )
        self.in_features, self.out_features = in_features, out_features
        self.register_buffer("weight", torch.zeros(out_features, in_features).to(dtype))
        scaled = dtype != torch.bfloat16
        self.register_buffer("weight_scale", torch.ones(out_features, 1) if scaled else None)
        self.bias = nn.Parameter(torch.zeros(out_features), requires_grad=False) if bias else None

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, dtype: torch.dtype = torch.bfloat16
    ) -> LowPrecisionLinear:
        """Store the weight of a float linear layer in fewer bits; `linear` stays as it is.

        Args:
            linear (nn.Linear): float32, bfloat16 or float16.
            dtype (torch.dtype): torch.bfloat16 or torch.float8_e4m3fn. Default: torch.bfloat16.

        Returns:
            LowPrecisionLinear: in the training mode of `linear`, without gradients.

        Raises:
            TypeError: dtype is not supported.
            ValueError: the weight holds NaN or infinity.
        """
        module = cls(linear.in_features, linear.out_features, linear.bias is not None, dtype=dtype)
        weight = linear.weight.detach().float()
        if not bool(weight.isfinite().all()):
            raise ValueError(
                "LowPrecisionLinear.from_linear: weight must be finite, got NaN or infinity"
            )
        if module.weight_scale is not None:
            # The largest weight of a row becomes the largest number of the format.
            largest = weight.abs().amax(1, keepdim=True).clamp(min=2.0**-100)
            module.weight_scale = largest / torch.finfo(dtype).max
            weight = weight / module.weight_scale
        module.weight = weight.to(dtype)
        if linear.bias is not None:
            module.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        return module.train(linear.training)

    def dequantized_weight(self) -> torch.Tensor:
        """The weight as float32 (out_features, in_features)."""
        weight = self.weight.float()
        return weight if self.weight_scale is None else weight * self.weight_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer.

        Args:
            x (Tensor): float, shape (..., in_features).

        Returns:
            Tensor: shape (..., out_features), dtype of `x`.
        """
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return nn.functional.linear(x, self.dequantized_weight().to(x.dtype), bias)

    def extra_repr(self) -> str:
        """Sizes and format."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, dtype={self.weight.dtype}"
        )


def lower_(
    model: nn.Module,
    format: str = "bf16",
    *,
    include: Patterns = None,
    exclude: Patterns = None,
) -> QuantizationReport:
    """Store the weights of a model's linear layers in few bits of floating point, in place.

    Args:
        model (nn.Module): any model; layers are found at any depth.
        format (str): "bf16", 2 bytes a weight, or "fp8", 1 byte a weight (E4M3) and a scale per
            output feature. Default: "bf16".
        include (str or iterable of str, optional): glob patterns of layers. Default: None (all).
        exclude (str or iterable of str, optional): glob patterns of layers to leave.
            Default: None.

    Returns:
        QuantizationReport: a row per linear layer with what was done or why it was left.

    Raises:
        ValueError: format is unknown, a pattern matches nothing, or a weight is not finite.
        TypeError: model is no nn.Module.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64))
        >>> report = lower_(model, "fp8")
        >>> report.quantized, report.linear_bytes_before > 3 * report.linear_bytes_after
        (['0'], True)
    """
    op = "lower_"
    if format not in FORMATS:
        raise ValueError(f"{op}: format must be one of {', '.join(FORMATS)}; got {format!r}")
    founds = find.find_linears(op, model)
    chosen, left = choose(op, founds, include, exclude)
    made = {id(f.module): LowPrecisionLinear.from_linear(f.module, FORMATS[format]) for f in chosen}
    report = QuantizationReport(format, model_bytes_before=tensor_bytes(model))
    for found in founds:
        linear, new = found.module, made.get(id(found.module))
        before = tensor_bytes(linear)
        if new is not None:
            put_in(model, found, new)
        report.rows.append(
            LayerRow(
                found.name,
                linear.in_features,
                linear.out_features,
                "left" if new is None else format,
                left.get(id(linear), ""),
                before,
                before if new is None else tensor_bytes(new),
            )
        )
    report.model_bytes_after = tensor_bytes(model)
    return report
