"""Golden inputs and outputs: what a model was given and gave, and how exactly it must again."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

import lepton_kernels as lk
from lepton_train.architectures import TextClassifier
from lepton_train.bundle.errors import BundleError
from lepton_train.bundle.manifest import Golden, Tensor
from lepton_train.layer_errors import layers_named
from lepton_train.models import SentenceEncoder

# Draws of rounding errors, and how much more than the largest of them counts as rounding.
_DRAWS = 3
_SLACK = 8.0
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float32, torch.float64, torch.bfloat16, torch.float16,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
    )
}  # fmt: skip


def dtype_of(name: str) -> torch.dtype:
    """A dtype by its name; BundleError for one that inputs and outputs never have."""
    if name not in _DTYPES:
        raise BundleError(f"bundle: dtype {name!r} must be one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def named_inputs(example: Any) -> tuple[Literal["args", "kwargs"], dict[str, torch.Tensor]]:
    """Example inputs as named tensors.

    Args:
        example: the argument, a tuple or list of arguments, or a mapping of keyword arguments.

    Returns:
        (str, dict): "args" or "kwargs", and the tensors on the CPU.

    Raises:
        TypeError: something that is no tensor.
    """
    if isinstance(example, torch.Tensor):
        example = (example,)
    if isinstance(example, Mapping):
        call: Literal["args", "kwargs"] = "kwargs"
        named = {str(key): value for key, value in example.items()}
    elif isinstance(example, (tuple, list)):
        call, named = "args", {f"input_{index}": value for index, value in enumerate(example)}
    else:
        named = {"example_inputs": example}
    for key, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"bundle.save: {key} must be a Tensor, got {type(value).__name__}")
        if str(value.dtype).removeprefix("torch.") not in _DTYPES:
            raise TypeError(
                f"bundle.save: {key} must be of {', '.join(_DTYPES)}, got {value.dtype}"
            )
    if not named or any(value.dim() == 0 or value.shape[0] == 0 for value in named.values()):
        raise ValueError("bundle.save: example_inputs must be tensors of at least one sample")
    return call, {key: value.detach().cpu().contiguous() for key, value in named.items()}


def named_outputs(output: Any) -> dict[str, torch.Tensor]:
    """The tensors that a model gave, by name; what is no tensor is left out.

    Raises:
        TypeError: there is none.
    """
    if isinstance(output, torch.Tensor):
        found = {"output": output}
    elif isinstance(output, Mapping):
        found = {str(k): v for k, v in output.items() if isinstance(v, torch.Tensor)}
    elif isinstance(output, (tuple, list)):
        found = {
            f"output_{index}": value
            for index, value in enumerate(output)
            if isinstance(value, torch.Tensor)
        }
    else:
        found = {}
    if not found:
        raise TypeError(f"bundle: the model must give tensors, got {type(output).__name__}")
    return {name: value.detach().cpu().contiguous() for name, value in found.items()}


def run(model: nn.Module, call: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Call a model in evaluation mode, without gradients, with named inputs."""
    device = next((each.device for each in (*model.parameters(), *model.buffers())), None)
    moved = {name: value.to(device) for name, value in inputs.items()}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode(), layers_named(model):
            output = model(*moved.values()) if call == "args" else model(**moved)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return named_outputs(output)


def make_golden(
    model: nn.Module, loaded: nn.Module, example: Any
) -> tuple[Golden, dict[str, torch.Tensor]]:
    """Golden part of the manifest and its tensors, from a model and what its bundle loads to.

    The tolerance of an output is what rounding makes of it: 8 times the largest change that is seen
    when all float weights and inputs move by a random part of one unit in the last place, and 16
    units of its largest value.

    Raises:
        BundleError: the loaded model gives something else, or an output is not finite.
    """
    call, inputs = named_inputs(example)
    outputs = run(model, call, inputs)
    for name, value in outputs.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise BundleError(f"bundle.save: {name} of the example inputs is not finite")
    begin = time.perf_counter()
    again = run(loaded, call, inputs)
    seconds = time.perf_counter() - begin
    tolerance = _tolerance(loaded, call, inputs, again)
    golden = Golden(
        call=call,
        inputs=[_describe(name, value) for name, value in inputs.items()],
        outputs=[_describe(name, value) for name, value in outputs.items()],
        tolerance=tolerance,
        seconds=seconds,
    )
    wrong = [text for text, ok in compare(golden, outputs, again).values() if not ok]
    if wrong:
        raise BundleError(
            f"bundle.save: the model that the bundle loads to differs from the one given "
            f"({wrong[0]}): it holds state or code that a bundle does not carry, or is not "
            "deterministic"
        )
    tensors = {f"input.{name}": value for name, value in inputs.items()}
    tensors |= {f"output.{name}": value for name, value in outputs.items()}
    # Equal tensors may share memory, which safetensors refuses.
    return golden, {name: value.clone() for name, value in tensors.items()}


def compare(
    golden: Golden, expected: Mapping[str, torch.Tensor], got: Mapping[str, torch.Tensor]
) -> dict[str, tuple[str, bool]]:
    """For each output what differs, and whether that is within its tolerance."""
    result: dict[str, tuple[str, bool]] = {}
    for each in golden.outputs:
        one, other = expected[each.name], got.get(each.name)
        if other is None or other.shape != one.shape or other.dtype != one.dtype:
            found = "nothing" if other is None else f"{other.dtype} of shape {tuple(other.shape)}"
            wanted = f"{one.dtype} of shape {tuple(one.shape)}"
            result[each.name] = (f"{each.name} must be {wanted}, got {found}", False)
            continue
        error = _distance(one, other)
        limit = golden.tolerance.get(each.name, 0.0)
        text = f"{each.name} differs by at most {error:.3g}, allowed {limit:.3g}"
        result[each.name] = (text, error <= limit)
    return result


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.numel() == 0 or torch.equal(one, other):
        return 0.0
    gap = float((one.double() - other.double()).abs().max())
    return gap if gap == gap else float("inf")


def _describe(name: str, value: torch.Tensor) -> Tensor:
    dtype = str(value.dtype).removeprefix("torch.")
    return Tensor(name=name, dtype=dtype, shape=list(value.shape))


def _tolerance(
    model: nn.Module,
    call: str,
    inputs: Mapping[str, torch.Tensor],
    outputs: Mapping[str, torch.Tensor],
) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    largest = dict.fromkeys(outputs, 0.0)
    for _ in range(_DRAWS):
        shaken = copy.deepcopy(model)
        seen: set[int] = set()
        with torch.no_grad():
            for tensor in (*shaken.parameters(), *shaken.buffers()):
                if tensor.is_floating_point() and id(tensor) not in seen:
                    seen.add(id(tensor))
                    tensor.copy_(_shake(tensor, generator))
        moved = {
            name: _shake(value, generator) if value.is_floating_point() else value
            for name, value in inputs.items()
        }
        for name, value in run(shaken, call, moved).items():
            largest[name] = max(largest.get(name, 0.0), _distance(outputs[name], value))
    result = {}
    for name, value in outputs.items():
        if value.is_floating_point():
            unit = torch.finfo(value.dtype).eps * float(value.abs().max()) if value.numel() else 0.0
            result[name] = _SLACK * largest[name] + 2 * _SLACK * unit
        else:
            result[name] = 0.0
    return result


def _shake(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each element off by a random part of one unit in its last place, up or down."""
    draw = torch.rand(tensor.shape, generator=generator, dtype=torch.float32) * 2 - 1
    step = torch.finfo(tensor.dtype).eps * draw.double()
    return (tensor.double() * (1 + step)).to(tensor.dtype)


def guess_inputs(model: nn.Module) -> Any:
    """Two samples that a model takes, where its first layer or its configuration says so.

    Raises:
        BundleError: nothing says so.
    """
    generator = torch.Generator().manual_seed(0)
    core = model.encoder if isinstance(model, (SentenceEncoder, TextClassifier)) else model
    config: Any = getattr(core, "config", None)
    if getattr(core, "main_input_name", None) == "input_ids" and hasattr(config, "vocab_size"):
        ids = torch.randint(0, config.vocab_size, (2, 16), generator=generator)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for module in model.modules():
        features = None
        if isinstance(module, (nn.Linear, lk.nn.Int8Linear, lk.nn.SparseLinear)):
            features = module.in_features
        elif isinstance(module, nn.BatchNorm1d):
            features = module.num_features
        elif isinstance(module, nn.TransformerEncoderLayer):
            return torch.randn(2, 16, module.self_attn.embed_dim, generator=generator)
        elif isinstance(module, nn.Embedding):
            return torch.randint(0, module.num_embeddings, (2, 16), generator=generator)
        elif next(module.children(), None) is None and isinstance(module, _SHAPERS):
            break
        if features is not None:
            return torch.randn(2, features, generator=generator)
    raise BundleError(
        "bundle.save: what the model takes can't be told from its layers: pass example_inputs"
    )


# Layers before which the shape of the input is anybody's guess.
_SHAPERS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Flatten, nn.Unflatten, nn.LSTM, nn.GRU, nn.RNN,
    nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d,
)  # fmt: skip
