"""Export to a Hugging Face folder: standard modules, safetensors, configuration, tokenizer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lepton_kernels as lk
from lepton_train.bundle import publish
from lepton_train.bundle.errors import BundleError
from lepton_train.bundle.transformers_models import (
    is_transformers_model,
    make_transformers_model,
    transformers_arguments,
)
from lepton_train.models import SentenceEncoder
from lepton_train.prune_masks import mask_of


def export_huggingface(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    files: Mapping[str, str | os.PathLike[str]] | None = None,
) -> Path:
    """Write a Hugging Face model as a folder that `from_pretrained` reads anywhere.

    Quantised and sparse layers become standard linear layers with the values that their codes
    stand for: the folder has the compressed model's weights, in float, and needs no package
    of ours. Inputs are not rounded to int8 there, so outputs differ by what that rounding makes.

    Args:
        model (nn.Module): a model of transformers, or a `SentenceEncoder` around one.
        path (str or path): the folder to make; must be absent or empty.
        files (mapping, optional): name -> file to copy, such as `tokenizer.json`.
            Default: None.

    Returns:
        Path: the folder.

    Raises:
        BundleError: another kind of model, or the folder is not empty.
    """
    core = model.encoder if isinstance(model, SentenceEncoder) else model
    if not is_transformers_model(core):
        raise BundleError(
            f"export_huggingface: model must be a model of transformers, got {type(core).__name__}"
        )
    target = Path(path).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BundleError(f"export_huggingface: {str(target)!r} exists and is not empty")
    arguments = transformers_arguments(core)
    standard: Any = make_transformers_model(type(core).__name__, arguments | {"attention": "sdpa"})
    state = standard_state(core)
    standard = standard.to(next(core.parameters()).dtype)
    missing, unexpected = standard.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise BundleError(
            f"export_huggingface: {(missing or unexpected)[0]!r} has no counterpart in "
            f"{type(core).__name__}"
        )
    with publish.staging(target) as staged:
        standard.save_pretrained(staged)
        for name, source in (files or {}).items():
            shutil.copyfile(source, staged / Path(name).name)
        publish.publish(staged, target, 0, 0)
    return target


def standard_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """State dict of a model as if its linear layers were all `torch.nn.Linear`."""
    state = dict(model.state_dict())
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        weight = None
        if isinstance(module, lk.nn.Int8Linear):
            weight = module.dequantized_weight()
        elif isinstance(module, lk.nn.SparseLinear):
            weight = module.weight.to_dense()
        elif mask_of(module) is not None:
            assert isinstance(module.weight, torch.Tensor)
            weight = module.weight.detach()
        if weight is None:
            continue
        for key in [key for key in state if key.startswith(prefix) and key != f"{prefix}bias"]:
            del state[key]
        state[f"{prefix}weight"] = weight.to(dtype)
    return state
