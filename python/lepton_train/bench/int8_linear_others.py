"""int8_linear: peers from other packages, torchao and ONNX Runtime."""

from __future__ import annotations

import functools
import logging
import tempfile
from pathlib import Path
from typing import Any

import torch

from lepton_train.bench.int8_linear_torch import has_vnni, quantized_weight, rotating
from lepton_train.bench.measure import Missing
from lepton_train.bench.problem import Built, Layer, Problem


def _torchao_modules(layer: Layer) -> list[torch.nn.Linear]:
    try:
        from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
    except Exception as error:  # torchao fails in many ways beside a torch it does not know
        raise Missing(f"torchao does not import: {error or type(error).__name__}") from error

    def make() -> torch.nn.Linear:
        linear = torch.nn.Linear(layer.k, layer.n, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            linear.weight.copy_(layer.weight)
            linear.bias.copy_(layer.bias)
        quantize_(linear, Int8DynamicActivationInt8WeightConfig())
        return linear

    return rotating(layer, "torchao", layer.k * layer.n, make)


def _torchao_steps(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    # torchao may divide by 127 or by 127.5; one part in 100 covers both.
    return problem.amax / 126, quantized_weight(problem.layer)[1] * 1.01


def torchao(problem: Problem) -> Built:
    """torchao's int8 dynamic activation, int8 weight; eager; bfloat16 by casts around it."""
    x = problem.x
    modules = _torchao_modules(problem.layer)
    if problem.dtype == torch.float32:
        calls = [lambda f=f: f(x) for f in modules]
    else:
        calls = [lambda f=f: f(x.float()).to(x.dtype) for f in modules]
    return Built(calls, *_torchao_steps(problem))


def torchao_compiled(problem: Problem) -> Built:
    """The same through `torch.compile`, one graph for all copies of the weights."""
    x, dtype = problem.x, problem.dtype
    modules = _torchao_modules(problem.layer)

    def linear(w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x.float(), w, b).to(dtype)

    torch._dynamo.reset()
    compiled = torch.compile(linear, fullgraph=True, dynamic=False)
    calls = [lambda f=f: compiled(f.weight, f.bias) for f in modules]
    try:
        calls[0]()
    except Exception as error:
        raise Missing(f"torch.compile failed: {str(error).splitlines()[0]}") from error
    return Built(calls, *_torchao_steps(problem))


@functools.cache
def _onnxruntime(threads: int) -> Any:
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise Missing(f"{error.name} is not installed") from error
    # One pool for all sessions: the copies of a weight are sessions of their own.
    onnxruntime.set_global_thread_pool_sizes(threads, 1)
    return onnxruntime


def _onnx_model(layer: Layer, reduce_range: bool) -> bytes:
    from onnx import TensorProto, helper, numpy_helper
    from onnxruntime.quantization import QuantType, quantize_dynamic

    weight = numpy_helper.from_array(layer.weight.t().contiguous().numpy(), "w")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="product"),
            helper.make_node("Add", ["product", "b"], ["y"], name="sum"),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", layer.k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", layer.n])],
        [weight, numpy_helper.from_array(layer.bias.numpy(), "b")],
    )
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    logging.disable(logging.WARNING)  # it advises, per model, to run a pre-processing step
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "int8.onnx")
            kind = QuantType.QInt8
            quantize_dynamic(
                model, path, per_channel=True, reduce_range=reduce_range, weight_type=kind
            )
            return path.read_bytes()
    finally:
        logging.disable(logging.NOTSET)


def onnxruntime(problem: Problem) -> Built:
    """ONNX Runtime on `quantize_dynamic`, per channel; bfloat16 by casts around it.

    Without VNNI its byte products saturate, so it is given seven-bit weights (`reduce_range`), as
    its documentation recommends.
    """
    layer = problem.layer
    ort = _onnxruntime(layer.threads)
    reduce_range = not has_vnni()
    model = layer.once("onnx", lambda: _onnx_model(layer, reduce_range))

    def make() -> Any:
        options = ort.SessionOptions()
        options.use_per_session_threads = False
        options.log_severity_level = 3
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    sessions = rotating(layer, "onnxruntime", layer.k * layer.n, make)
    x = problem.x
    if problem.dtype == torch.float32:
        feed = {"x": x.numpy()}
        calls = [lambda s=s: s.run(None, feed)[0] for s in sessions]
    else:
        calls = [
            lambda s=s: torch.from_numpy(s.run(None, {"x": x.float().numpy()})[0]).to(x.dtype)
            for s in sessions
        ]
    scale = quantized_weight(layer)[1] * (127 / 63 if reduce_range else 1)
    return Built(calls, (x.max() - x.min()).double() / 255, scale * 1.01)
