"""int8_linear: lepton, and the peers that come with torch."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

import lepton_kernels as lk
from lepton_train.bench import harness
from lepton_train.bench.measure import Missing
from lepton_train.bench.problem import Built, Layer, Problem, bf16_built


def quantized_weight(layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 weight and its scale per output channel, the same for every implementation."""
    result: tuple[torch.Tensor, torch.Tensor] = layer.once(
        "int8", lambda: lk.quantize_int8(layer.weight)[:2]
    )
    return result


def has_vnni() -> bool:
    """Whether this CPU multiplies bytes without saturation."""
    return "avx512_vnni" in lk.info()["cpu_features"]


def rotating(layer: Layer, key: str, weight_bytes: int, make: Callable[[], Any]) -> list[Any]:
    """Copies of a weight, each by its own `make()`, that together outgrow the cache."""
    count = harness.copies(weight_bytes, layer.rotate_bytes)
    copies: list[Any] = layer.once(key, lambda: [make() for _ in range(count)])
    return copies


def _lepton_weights(layer: Layer) -> tuple[list[torch.Tensor], torch.Tensor]:
    weight, scale = quantized_weight(layer)
    packed = layer.once("packed", lambda: lk.pack_int8_weight(weight))
    return rotating(layer, "lepton", packed.numel(), packed.clone), scale


def lepton(problem: Problem) -> Built:
    """Dynamic: each row quantised in the call."""
    packed, scale = _lepton_weights(problem.layer)
    x, bias = problem.x, problem.layer.bias
    calls = [lambda w=w: lk.int8_linear(x, w, scale, bias) for w in packed]
    return Built(calls, problem.amax / 127, scale)


def lepton_static(problem: Problem) -> Built:
    """Static: one scale for the whole input, known beforehand."""
    packed, scale = _lepton_weights(problem.layer)
    x, bias = problem.x, problem.layer.bias
    x_scale = problem.amax.max() / 127
    calls = [lambda w=w: lk.int8_linear(x, w, scale, bias, x_scale=x_scale) for w in packed]
    return Built(calls, x_scale, scale)


def lepton_prequantized(problem: Problem) -> Built:
    """The input is int8 already: beside qlinear on uint8."""
    packed, scale = _lepton_weights(problem.layer)
    bias, dtype = problem.layer.bias, problem.dtype
    x_scale = problem.amax.max() / 127
    xq = (problem.x.float() / x_scale).round().clamp(-127, 127).to(torch.int8)
    calls = [
        lambda w=w: lk.int8_linear(xq, w, scale, bias, x_scale=x_scale, out_dtype=dtype)
        for w in packed
    ]
    return Built(calls, x_scale, scale)


def _float_calls(problem: Problem, dtype: torch.dtype) -> list[Callable[[], Any]]:
    layer = problem.layer
    bytes_each = layer.k * layer.n * dtype.itemsize
    copy = functools.partial(layer.weight.to, dtype, copy=True)
    weights = rotating(layer, f"torch {dtype}", bytes_each, copy)
    x, bias = problem.x.to(dtype), layer.bias.to(dtype)
    return [functools.partial(functional.linear, x, w, bias) for w in weights]


def torch_fp32(problem: Problem) -> Built:
    """`torch.nn.functional.linear` in float32, whatever the case's dtype."""
    return Built(_float_calls(problem, torch.float32))


def torch_bf16(problem: Problem) -> Built:
    """`torch.nn.functional.linear` in bfloat16, whatever the case's dtype."""
    built = bf16_built(_float_calls(problem, torch.bfloat16))
    if problem.dtype == torch.float32:
        built.x_step = problem.amax * 2.0**-8  # x is rounded, too
    return built


def _torch_dynamic(problem: Problem, engine: str) -> Built:
    if engine not in torch.backends.quantized.supported_engines:
        raise Missing(f"this torch has no {engine} engine")
    layer = problem.layer
    weight, scale = quantized_weight(layer)

    def pack() -> Any:
        zero = torch.zeros(layer.n, dtype=torch.int64)
        with warnings.catch_warnings():  # deprecated, and still the peer to beat
            warnings.simplefilter("ignore")
            quantized = torch._make_per_channel_quantized_tensor(weight, scale.double(), zero, 0)
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = engine
        try:
            return torch.ops.quantized.linear_prepack(quantized, layer.bias)
        finally:
            torch.backends.quantized.engine = before

    packed = rotating(layer, f"torch {engine}", weight.numel(), pack)
    x, op = problem.x, torch.ops.quantized.linear_dynamic
    # reduce_range as torch.ao.nn.quantized.dynamic.Linear: seven bits, against saturation.
    if problem.dtype == torch.float32:
        calls = [lambda w=w: op(x, w, reduce_range=True) for w in packed]
    else:
        calls = [lambda w=w: op(x.float(), w, reduce_range=True).to(x.dtype) for w in packed]
    return Built(calls, (x.max() - x.min()).double() / 127, scale)


def torch_x86(problem: Problem) -> Built:
    """torch's dynamic int8 linear, x86 engine (FBGEMM or oneDNN, as it chooses)."""
    return _torch_dynamic(problem, "x86")


def torch_onednn(problem: Problem) -> Built:
    """torch's dynamic int8 linear, oneDNN engine."""
    return _torch_dynamic(problem, "onednn")


def _qlinear(problem: Problem, prequantized: bool) -> Built:
    ops = torch.ops.onednn
    if not hasattr(ops, "qlinear_pointwise"):
        raise Missing("this torch was built without oneDNN")
    layer, x, dtype = problem.layer, problem.x, problem.dtype
    weight, scale = quantized_weight(layer)
    packed = rotating(
        layer, "qlinear", weight.numel(), lambda: ops.qlinear_prepack(weight, [problem.m, layer.k])
    )
    # Byte products saturate without VNNI: there seven bits, as torch's own quantisers choose.
    steps, zero = (127, 128) if has_vnni() else (63, 64)
    x_scale = float(problem.amax.max()) / steps
    w_zero, bias = torch.zeros(layer.n, dtype=torch.int32), layer.bias
    quantize, op = torch.quantize_per_tensor, ops.qlinear_pointwise
    fixed: tuple[Any, ...] = (scale, w_zero, bias, 1.0, 0, dtype, "none", [], "")

    def quantized() -> torch.Tensor:
        return quantize(x.float(), x_scale, zero, torch.quint8).int_repr()

    if prequantized:
        xq = quantized()
        calls = [lambda w=w: op(xq, x_scale, zero, w, *fixed) for w in packed]
    else:
        calls = [lambda w=w: op(quantized(), x_scale, zero, w, *fixed) for w in packed]
    return Built(calls, x_scale, scale)


def onednn_qlinear(problem: Problem) -> Built:
    """Static, uint8 activations; quantising the input is part of the time."""
    return _qlinear(problem, prequantized=False)


def onednn_qlinear_prequantized(problem: Problem) -> Built:
    """The same on activations that are uint8 already: less work than the others do."""
    return _qlinear(problem, prequantized=True)


def torch_int_mm(problem: Problem) -> Built:
    """`torch._int_mm` between eager quantisation per row and eager scaling."""
    layer, x = problem.layer, problem.x
    weight, scale = quantized_weight(layer)
    weights = rotating(layer, "int_mm", weight.numel(), lambda: weight.clone().t())
    bias, dtype = layer.bias, problem.dtype

    def call(w: torch.Tensor) -> torch.Tensor:
        x_scale = x.abs().amax(1, keepdim=True).float() / 127
        xq = torch.round(x / x_scale).clamp_(-127, 127).to(torch.int8)
        return torch.addcmul(bias, torch._int_mm(xq, w) * x_scale, scale).to(dtype)

    return Built([functools.partial(call, w) for w in weights], problem.amax / 127, scale)
