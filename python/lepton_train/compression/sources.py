"""Models and data by name, for recipes and the command line, which have no objects to pass."""

from __future__ import annotations

import difflib
import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lepton_train import architectures
from lepton_train import data as data_
from lepton_train.data import Examples, Splits
from lepton_train.training import checkpoint

DATA_KEYS = ("name", "path", "inputs", "label", "fractions", "seed", "limit", "length", "size")
MODEL_KEYS = ("name", "path", "weights", "options", "seed")
_NAMED: dict[str, Callable[[], Examples]] = {
    "digits": data_.load_digits,
    "fashion_mnist": data_.load_fashion_mnist,
    "mnist": data_.load_mnist,
    "movie_reviews": data_.load_movie_reviews,
}
MODELS = ("image_cnn", "text_classifier")
DATA = tuple(_NAMED)


@dataclass(frozen=True)
class Task:
    """A model with the data that it is for.

    Args:
        model (nn.Module): on the CPU.
        data (Splits): tokenised if the model reads texts.
        tokenizer (any): None for other models.
        length (int): tokens of a text at most.
    """

    model: nn.Module
    data: Splits
    tokenizer: Any = None
    length: int = 128


def load_task(
    model: str | Mapping[str, Any], data: str | Mapping[str, Any], weights: str | None = None
) -> Task:
    """Make a model and read its data.

    Args:
        model (str or mapping): `name`: "image_cnn", "text_classifier" or "package.module:function",
            which gets `classes` and `options` and returns a module; `path`: Hugging Face folder of
            the encoder of a text classifier; `weights`: checkpoint of `fit`; `options`; `seed`.
        data (str or mapping): `name`: "mnist", "digits", "fashion_mnist" or "movie_reviews"; or
            `path`: a .csv, .tsv or .jsonl file, a folder of classes, a folder of the library
            datasets; `inputs`, `label`: columns; `fractions`, `seed`: of the split; `limit`:
            examples at most; `length`: tokens at most (128); `size`: of images. A string is a
            name or a path.
        weights (str, optional): checkpoint, in place of that of `model`. Default: None.

    Returns:
        Task: model and split data.

    Raises:
        ValueError: a key or name is unknown (with the nearest known), or weights do not fit.
        FileNotFoundError: a path does not exist.
    """
    about_model = specification("model", model, MODEL_KEYS)
    about_data = specification("data", data, DATA_KEYS)
    splits = _load_data(about_data)
    length = int(about_data.get("length", Task.length))
    seed = int(about_model.get("seed", 0))
    classes = len(splits.train.classes) or 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made, tokenizer = _make_model(about_model, splits.train, classes, seed)
    if tokenizer is not None:
        parts = {
            name: data_.tokenize(part, tokenizer, length=length) if len(part) else part
            for name, part in splits.parts.items()
        }
        splits = Splits(**parts, seed=splits.seed, removed=splits.removed)
    file = weights or about_model.get("weights")
    if file is not None:
        state = checkpoint.load(Path(file))
        try:
            made.load_state_dict(state["model"])
        except (KeyError, RuntimeError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ValueError(f"weights {str(file)!r} do not fit the model: {first}") from error
    return Task(made, splits, tokenizer, length)


def specification(
    what: str, given: str | Mapping[str, Any], known: tuple[str, ...]
) -> dict[str, Any]:
    """Name, path or mapping as a mapping; raises ValueError for an unknown key."""
    if isinstance(given, Mapping):
        for key in given:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=2, cutoff=0.5) or known
                raise ValueError(f"{what}: unknown key {key!r}; nearest known: {', '.join(near)}")
        return dict(given)
    if what == "data" and given not in _NAMED and (os.sep in given or Path(given).exists()):
        return {"path": given}
    return {"name": given}


def check_model(name: object) -> None:
    """ValueError for a name that stands for no model, with the nearest that does."""
    if name not in MODELS and not str(name).partition(":")[2]:
        near = difflib.get_close_matches(str(name), MODELS, n=1, cutoff=0.0)
        raise ValueError(
            f"model: unknown name {name!r}; nearest known: {', '.join(near)}; or give "
            "package.module:function"
        )


def check_data(spec: Mapping[str, Any]) -> None:
    """ValueError for a name that stands for no data, with the nearest that do."""
    name = spec.get("name")
    if "path" not in spec and name not in _NAMED:
        near = difflib.get_close_matches(str(name), DATA, n=2, cutoff=0.0)
        raise ValueError(f"data: unknown name {name!r}; nearest known: {', '.join(near)}")


def _make_model(
    spec: dict[str, Any], train: Examples, classes: int, seed: int
) -> tuple[nn.Module, Any]:
    name, options = spec.get("name", "text_classifier"), dict(spec.get("options") or {})
    if name == "image_cnn":
        if not isinstance(train.inputs, torch.Tensor) or train.inputs.ndim != 4:
            raise ValueError("model image_cnn needs images; the data are of another kind")
        _, channels, height, width = train.inputs.shape
        if height != width or height % 4:
            raise ValueError(
                f"model image_cnn needs square images of a side that 4 divides, got {height} x "
                f"{width}; give data a size"
            )
        options = {"classes": classes, "size": height, "channels": channels, **options}
        return architectures.ImageCNN(**options), None
    if name == "text_classifier":
        return architectures.load_text_classifier(classes, spec.get("path"), seed=seed, **options)
    check_model(name)
    module, _, function = str(name).partition(":")
    try:
        make = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model: {name!r} can't be imported: {error}") from error
    made = make(classes=classes, **options)
    model, tokenizer = made if isinstance(made, tuple) else (made, None)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: {name!r} must return a torch.nn.Module")
    return model, tokenizer


def _load_data(spec: dict[str, Any]) -> Splits:
    seed = int(spec.get("seed", 0))
    fractions = spec.get("fractions", (0.8, 0.1, 0.1))
    if "path" in spec:
        whole = _read(spec)
    else:
        check_data(spec)
        whole = _NAMED[spec["name"]]()
    if "limit" in spec:
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
        whole = whole.subset(order[: int(spec["limit"])])
    if spec.get("name") == "fashion_mnist" and "limit" not in spec:
        # Published with a test part of its own.
        parts = data_.split(whole, (0.9, 0.1, 0.0), seed=seed)
        test = data_.load_fashion_mnist("test")
        return Splits(parts.train, parts.val, test, seed, parts.removed)
    return data_.split(whole, fractions, seed=seed)


def _read(spec: dict[str, Any]) -> Examples:
    path = Path(spec["path"])
    columns = {key: spec[key] for key in ("inputs", "label") if key in spec}
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return data_.read_csv(path, **columns)
    if suffix in (".jsonl", ".ndjson"):
        return data_.read_jsonl(path, **columns)
    if (path / "dataset_info.json").is_file():
        return data_.read_hugging_face(path, **columns)
    size = spec.get("size")
    return data_.read_folder(path, size=None if size is None else tuple(size))
