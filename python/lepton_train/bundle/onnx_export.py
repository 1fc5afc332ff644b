"""Export to ONNX: quantised layers as QuantizeLinear and DequantizeLinear nodes (QDQ)."""

from __future__ import annotations

import copy
import inspect
import logging
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

import lepton_kernels as lk
from lepton_kernels.nn.int8_linear import Int8LinearQAT
from lepton_train.bundle import golden
from lepton_train.files import write_whole
from lepton_train.packages import require

OPSET = 21
_STEPS = 127.0


@dataclass(frozen=True)
class OnnxReport:
    """What `export_onnx` wrote.

    Args:
        path (Path): the file.
        opset (int): of the standard ONNX operators.
        quantized (list of str): layers with QDQ nodes.
        difference (dict): by output, largest absolute difference between onnxruntime and torch on
            the example inputs; empty where it was not compared.
    """

    path: Path
    opset: int
    quantized: list[str] = field(default_factory=list)
    difference: dict[str, float] = field(default_factory=dict)


class QdqLinear(nn.Module):
    """An int8 linear layer in the operators of ONNX; it runs only inside an exported graph.

    Args:
        weight (Tensor): int8, shape (out_features, in_features).
        weight_scale (Tensor): float32, shape (out_features,) or (out_features, groups).
        bias (Tensor, optional): float, shape (out_features,).
        x_scale (Tensor, optional): float32, shape (); None quantises each row by its own range.
        x_zero_point (Tensor, optional): int32, shape ().
        weight_only (bool): leave the input in floating point.
        activation (str, optional): as in `int8_linear`.
    """

    weight: torch.Tensor
    weight_scale: torch.Tensor
    weight_zero: torch.Tensor
    x_scale: torch.Tensor | None
    x_zero: torch.Tensor | None
    bias: torch.Tensor | None

    def __init__(
        self,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        bias: Any,
        *,
        x_scale: torch.Tensor | None = None,
        x_zero_point: torch.Tensor | None = None,
        weight_only: bool = False,
        activation: str | None = None,
    ) -> None:
        super().__init__()
        # (in, out): onnxruntime fuses DequantizeLinear with MatMul in this order.
        self.register_buffer("weight", weight.t().contiguous())
        self.register_buffer("weight_scale", weight_scale.float().t().contiguous())
        self.register_buffer("weight_zero", torch.zeros_like(self.weight_scale, dtype=torch.int8))
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_buffer("x_scale", None if x_scale is None else x_scale.float().clone())
        zero = None
        if x_scale is not None:
            zero = torch.zeros((), dtype=torch.int8)
            if x_zero_point is not None:
                zero = x_zero_point.to(torch.int8)
        self.register_buffer("x_zero", zero)
        self.weight_only = weight_only
        self.activation = activation

    def _dequantized(self, dtype: torch.dtype) -> torch.Tensor:
        attributes: dict[str, Any] = {"axis": 1}
        if self.weight_scale.dim() == 2:
            block = self.weight.shape[0] // self.weight_scale.shape[0]
            attributes = {"axis": 0, "block_size": block}
        inputs = [self.weight, self.weight_scale, self.weight_zero]
        shape = tuple(self.weight.shape)
        return _onnx("DequantizeLinear", inputs, attributes, torch.float32, shape).to(dtype)

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        """x after a trip through int8."""
        if self.x_scale is not None:
            assert self.x_zero is not None
            return _round_trip(x, self.x_scale, self.x_zero, {})
        rows = x.reshape(-1, x.shape[-1])
        extent = rows.abs().amax(1)
        scale = torch.where(extent > 0, extent / _STEPS, torch.ones_like(extent))
        zero = torch.zeros_like(scale, dtype=torch.int8)
        return _round_trip(rows, scale, zero, {"axis": 0}).reshape(x.shape)

    def forward(self, x: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """As `Int8Linear.forward`, in float32 between the QDQ nodes."""
        wide = x.float()
        if not self.weight_only:
            wide = self._rounded(wide)
        y = wide @ self._dequantized(torch.float32)
        if self.bias is not None:
            y = y + self.bias.float()
        if self.activation is not None:
            y = _ACTIVATE[self.activation](y)
        if residual is not None:
            y = y + residual.float()
        return y.to(x.dtype)


_ACTIVATE: dict[str, Any] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda y: F.gelu(y, approximate="tanh"),
    "silu": F.silu,
}


def _onnx(
    name: str,
    inputs: list[torch.Tensor],
    attributes: dict[str, Any],
    dtype: torch.dtype,
    shape: Any,
) -> torch.Tensor:
    made: torch.Tensor = torch.onnx.ops.symbolic(
        name, inputs, attributes, dtype=dtype, shape=shape, version=OPSET
    )
    return made


def _round_trip(
    x: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, attributes: dict[str, Any]
) -> torch.Tensor:
    q = _onnx("QuantizeLinear", [x, scale, zero], attributes, torch.int8, x.shape)
    return _onnx("DequantizeLinear", [q, scale, zero], attributes, torch.float32, x.shape)


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    example_inputs: Any,
    check: bool = True,
    tolerance: float = 0.02,
) -> OnnxReport:
    """Write a model as ONNX; int8 layers become QDQ nodes, sparse ones dense.

    The batch (dimension 0) is free; in integer inputs of two dimensions, token numbers and their
    masks, the length is free too.

    Args:
        model (nn.Module): any that `torch.onnx.export` takes, quantised, pruned or packed.
        path (str or path): the file.
        example_inputs: at least two samples of real inputs, as in `save`.
        check (bool): run the file in onnxruntime and compare. Default: True.
        tolerance (float): largest difference allowed, as a share of the largest output; another
            order of sums moves a value to the next int8 step here and there. Default: 0.02.

    Returns:
        OnnxReport: the file, the layers, the differences.

    Raises:
        MissingPackageError: onnx, onnxscript or (with `check`) onnxruntime is not installed.
        ValueError: onnxruntime gives something else; no file is left.

    Source: ONNX operators QuantizeLinear and DequantizeLinear, opset 21.
    """
    require("onnx", "export to ONNX", extra="onnx")
    require("onnxscript", "export to ONNX", extra="onnx")
    if check:
        require("onnxruntime", "a check of the ONNX file", extra="onnx")
    call, inputs = golden.named_inputs(example_inputs)
    expected = golden.run(model, call, inputs)
    plain, quantized = as_qdq(model)
    shapes = {name: _free_dimensions(name, value) for name, value in inputs.items()}
    names = _argument_names(plain, inputs) if call == "args" else list(inputs)
    difference: dict[str, float] = {}

    def write(temporary: Path) -> None:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                plain,
                tuple(inputs.values()) if call == "args" else (),
                kwargs=None if call == "args" else dict(inputs),
                dynamo=True,
                dynamic_shapes=tuple(shapes.values()) if call == "args" else shapes,
                input_names=names,
                output_names=list(expected),
                opset_version=OPSET,
                verbose=False,
            )
            assert program is not None
            program.save(str(temporary), external_data=False)
        if check:
            difference.update(
                _compare(temporary, dict(zip(names, inputs.values(), strict=True)), expected)
            )
            for name, gap in difference.items():
                limit = tolerance * float(expected[name].abs().max())
                if not gap <= limit:
                    raise ValueError(
                        f"export_onnx: {name} differs by {gap:.3g} in onnxruntime, "
                        f"allowed {limit:.3g}"
                    )

    written = write_whole(path, write)
    return OnnxReport(written, OPSET, quantized, difference)


def as_qdq(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A copy of a model for export, and the names of its layers that became `QdqLinear`."""
    plain = copy.deepcopy(model).cpu().eval()
    quantized = []
    for name, module in list(plain.named_modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
        new: nn.Module | None = None
        if isinstance(module, Int8LinearQAT):
            new = _qdq(module.to_int8())
        elif isinstance(module, lk.nn.Int8Linear):
            new = _qdq(module)
        elif isinstance(module, lk.nn.SparseLinear):
            new = _dense(module)
        if new is None:
            continue
        if isinstance(new, QdqLinear):
            quantized.append(name)
        parent, _, leaf = name.rpartition(".")
        if not name:
            return new, [""]
        setattr(plain.get_submodule(parent), leaf, new)
    return plain, quantized


def _qdq(layer: lk.nn.Int8Linear) -> QdqLinear:
    return QdqLinear(
        layer.weight,
        layer.weight_scale,
        layer.bias,
        x_scale=layer.x_scale,
        x_zero_point=layer.x_zero_point,
        weight_only=layer.weight_only,
        activation=layer.activation,
    )


def _dense(sparse: lk.nn.SparseLinear) -> nn.Module:
    weight = sparse.weight
    scale = weight.scale()
    if scale is not None:
        kept = weight.mask()
        codes = weight.values().new_zeros(kept.shape).masked_scatter(kept, weight.values())
        return QdqLinear(codes, scale, sparse.bias, activation=sparse.activation)
    linear = nn.Linear(sparse.in_features, sparse.out_features, sparse.bias is not None)
    linear.weight = nn.Parameter(weight.to_dense().float(), requires_grad=False)
    if sparse.bias is not None:
        linear.bias = nn.Parameter(sparse.bias.detach().float(), requires_grad=False)
    activation = {"relu": nn.ReLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh")}
    if sparse.activation is None:
        return linear
    return nn.Sequential(linear, activation.get(sparse.activation, nn.SiLU()))


def _free_dimensions(name: str, value: torch.Tensor) -> dict[int, Any]:
    free: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}
    if value.dim() == 2 and not value.is_floating_point():
        free[1] = torch.export.Dim.DYNAMIC
    return free


def _argument_names(model: nn.Module, inputs: dict[str, torch.Tensor]) -> list[str]:
    """Names of the model's parameters where it has as many, else those of the inputs."""
    names = [
        parameter.name
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return names[: len(inputs)] if len(names) >= len(inputs) else list(inputs)


class _quiet(warnings.catch_warnings):
    """Silences notes of the exporter that say nothing to its user."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        self._level = logging.getLogger("torch.onnx").level
        for name in ("torch.onnx", "onnxscript", "onnx_ir"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return entered

    def __exit__(self, *error: Any) -> None:
        for name in ("torch.onnx", "onnxscript", "onnx_ir"):
            logging.getLogger(name).setLevel(self._level)
        super().__exit__(*error)


def _compare(
    path: Path, inputs: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]
) -> dict[str, float]:
    runtime = require("onnxruntime", "a check of the ONNX file", extra="onnx")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    taken = {each.name for each in session.get_inputs()}
    feed = {name: value.numpy() for name, value in inputs.items() if name in taken}
    given = session.run(list(expected), feed)
    return {
        name: float((torch.from_numpy(value).double() - expected[name].double()).abs().max())
        for name, value in zip(expected, given, strict=True)
    }
