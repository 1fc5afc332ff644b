"""A recipe that names its model and data, from start to end."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lepton_train.compression.chain import compress
from lepton_train.compression.recipe import Recipe
from lepton_train.compression.report import CompressionReport
from lepton_train.compression.sources import (
    DATA_KEYS,
    MODEL_KEYS,
    Task,
    load_task,
    specification,
)
from lepton_train.data.card import checksum, data_card
from lepton_train.files import write_whole
from lepton_train.metrics import weighted
from lepton_train.packages import require


@dataclass(frozen=True)
class RecipeRun:
    """What `run_recipe` made, with what it was made from.

    Args:
        model (nn.Module): compressed, in evaluation mode.
        report (CompressionReport): score, size and latency by step.
        recipe (Recipe): with the seed that was used.
        task (Task): model and data as they were loaded.
    """

    model: nn.Module
    report: CompressionReport
    recipe: Recipe
    task: Task


def run_recipe(
    recipe: Recipe | Mapping[str, Any] | str | os.PathLike[str],
    *,
    weights: str | None = None,
    seed: int | None = None,
    limit: int | None = None,
    rounds: int = 15,
    progress: bool = True,
) -> RecipeRun:
    """Load what the recipe names and compress it.

    Args:
        recipe (Recipe, mapping, str or path): as in `lt.compress`, with `model` and `data`.
        weights (str, optional): checkpoint of `fit` to begin with. Default: None.
        seed (int, optional): of model, split and training, in place of the recipe's.
        limit (int, optional): examples at most. Default: None (all).
        rounds (int): timed calls. Default: 15.
        progress (bool): lines on standard error. Default: True.

    Returns:
        RecipeRun: model, report, recipe and data.

    Raises:
        ValueError: the recipe names no model or data, or as `lt.compress`.
        FileNotFoundError: a file is missing.
    """
    plan = Recipe.of(recipe)
    if seed is not None:
        plan = plan.model_copy(update={"seed": seed})
    if plan.model is None or plan.data is None:
        lacking = [name for name in ("model", "data") if getattr(plan, name) is None]
        raise ValueError(f"recipe {plan.name!r} names no {' and no '.join(lacking)}")
    about_model = specification("model", plan.model, MODEL_KEYS)
    data = specification("data", plan.data, DATA_KEYS)
    about_model.setdefault("seed", plan.seed)
    data.setdefault("seed", plan.seed)
    if limit is not None:
        data["limit"] = limit
    task = load_task(about_model, data, weights)
    metric: Any = plan.metric or ("accuracy" if task.data.train.classes else "mean_squared_error")
    if isinstance(metric, Mapping):
        metric = weighted(metric)
    model, report = compress(
        task.model,
        plan,
        data=task.data,
        metric=metric,
        rounds=rounds,
        progress=progress,
    )
    return RecipeRun(model, report, plan, task)


def save_bundle(run: RecipeRun, path: str | os.PathLike[str]) -> str:
    """Write the compressed model as a bundle, with its scores, data, recipe and tokenizer.

    Args:
        run (RecipeRun): from `run_recipe`.
        path (str or path): the folder to make.

    Returns:
        str: digest of the bundle.

    Raises:
        BundleError: the model is of modules that a bundle can't name; save its weights instead.
    """
    from lepton_train import bundle

    part = run.task.data.parts[run.report.scored_on]
    score = {
        "name": run.report.metric,
        "value": run.report.after.score,
        "data": f"{part.name}, {run.report.scored_on}",
        "data_sha256": checksum(part),
    }
    card = data_card(run.task.data).to_dict()
    metadata: dict[str, Any] = {
        "name": run.recipe.name,
        "metrics": [score],
        "labels": list(part.classes),
        "provenance": {"recipe": run.recipe.to_dict(), "data": card, "seed": run.recipe.seed},
    }
    tokenizer = run.task.tokenizer
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        if hasattr(tokenizer, "backend_tokenizer"):
            files["tokenizer.json"] = Path(folder) / "tokenizer.json"
            tokenizer.backend_tokenizer.save(str(files["tokenizer.json"]))
            metadata["preprocessing"] = {
                "kind": "text",
                "max_length": run.task.length,
                "pad_id": tokenizer.pad_token_id or 0,
            }
        return bundle.save(
            run.model,
            path,
            metadata=metadata,
            example_inputs=part.batch(range(min(8, len(part))))[0],
            files=files,
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
