"""A recipe that names its model and data, from start to end."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lepton_train.compression.chain import compress
from lepton_train.compression.recipe import Recipe
from lepton_train.compression.report import CompressionReport
from lepton_train.compression.sources import DATA_KEYS, MODEL_KEYS, load_task, specification
from lepton_train.files import write_whole
from lepton_train.metrics import weighted
from lepton_train.packages import require


def run_recipe(
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str],
    *,
    weights: str | None = None,
    seed: int | None = None,
    limit: int | None = None,
    rounds: int = 15,
    progress: bool = True,
) -> tuple[nn.Module, CompressionReport]:
    """Load what the recipe names and compress it.

    Args:
        recipe (Recipe, mapping, str or path): as in `lt.compress`, with `model` and `data`.
        weights (str, optional): checkpoint of `fit` to begin with. Default: None.
        seed (int, optional): of model, split and training, in place of the recipe's.
        limit (int, optional): examples at most. Default: None (all).
        rounds (int): timed calls. Default: 15.
        progress (bool): lines on standard error. Default: True.

    Returns:
        (nn.Module, CompressionReport): as `lt.compress`.

    Raises:
        ValueError: the recipe names no model or data, or as `lt.compress`.
        FileNotFoundError: a file is missing.
    """
    plan = Recipe.of(recipe)
    if seed is not None:
        plan = plan.model_copy(update={"seed": seed})
    if plan.model is None or plan.data is None:
        lacking = [name for name in ("model", "data") if getattr(plan, name) is None]
        raise ValueError(f"recipe {plan.name}: names no {' and no '.join(lacking)}")
    model = specification("model", plan.model, MODEL_KEYS)
    data = specification("data", plan.data, DATA_KEYS)
    model.setdefault("seed", plan.seed)
    data.setdefault("seed", plan.seed)
    if limit is not None:
        data["limit"] = limit
    task = load_task(model, data, weights)
    metric: Any = plan.metric or ("accuracy" if task.data.train.classes else "mean_squared_error")
    if isinstance(metric, Mapping):
        metric = weighted(metric)
    return compress(
        task.model,
        plan,
        data=task.data,
        metric=metric,
        rounds=rounds,
        progress=progress,
    )


def save_weights(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a model's state dict as safetensors, whole or not at all.

    Args:
        model (nn.Module): the model.
        path (str or path): the file.

    Raises:
        MissingPackageError: safetensors is not installed.
    """
    save = require("safetensors.torch", "saving weights", "safetensors").save_file
    state = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
    return write_whole(path, lambda file: save(state, file))
