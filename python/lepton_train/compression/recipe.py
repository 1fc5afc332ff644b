"""The recipe of a compression: steps in order, each with its settings, checked before any work."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Patterns = str | list[str] | None


def nearest(what: str, name: str, known: Iterable[str]) -> str:
    """Message for an unknown name, with the nearest known ones."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=2, cutoff=0.5) or names
    return f"unknown {what} {name!r}; nearest known: {', '.join(near)}"


class Strict(BaseModel):
    """Settings in which a key that is not known is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            for key in values:
                if key not in cls.model_fields:
                    raise ValueError(nearest("key", str(key), cls.model_fields))
        return values


class Training(Strict):
    """Settings of `lt.fit` that a step may carry; described there."""

    epochs: int = Field(0, ge=0)
    lr: float | None = Field(None, gt=0)
    optimizer: Literal["adamw", "adam", "adadelta", "rmsprop", "sgd"] = "adamw"
    schedule: Literal["constant", "linear", "cosine", "plateau"] = "cosine"
    warmup: float = Field(0.1, ge=0)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    accumulate: int = Field(1, ge=1)
    clip_norm: float | None = Field(None, gt=0)
    group_by_length: bool = False
    early_stopping: int | None = Field(None, ge=0)
    restore_best: bool = False

    def options(self) -> dict[str, Any]:
        """Keyword arguments for `fit`."""
        return {name: getattr(self, name) for name in Training.model_fields}


class Train(Training):
    """Step `train`: plain training."""

    epochs: int = Field(1, ge=1)


class Prune(Training):
    """Step `prune`: `lt.prune_`, in `rounds` parts, each followed by `epochs` of training."""

    sparsity: float = Field(ge=0, lt=1)
    criterion: Literal["magnitude", "gradient", "movement", "wanda"] = "magnitude"
    pattern: Literal["unstructured", "2:4", "n:m", "block"] = "unstructured"
    scope: Literal["layer", "global"] = "layer"
    include: Patterns = None
    exclude: Patterns = None
    n: int = Field(2, ge=1)
    m: int = Field(4, ge=1)
    outputs: int = Field(16, ge=1)
    inputs: int = Field(4, ge=1)
    ramp: Literal["one-shot", "linear", "cubic"] = "cubic"
    rounds: int = Field(1, ge=1)
    batches: int = Field(8, ge=1)


class Distill(Training):
    """Step `distill`: `lt.Distiller`; with `depth` the student is a shallower copy."""

    epochs: int = Field(1, ge=1)
    labels: Literal["soft", "hard", "both"] = "both"
    temperature: float = Field(2.0, gt=0)
    alpha: float = Field(0.5, ge=0, le=1)
    soft_loss: Literal["kl", "mse", "cosine"] = "kl"
    depth: int | None = Field(None, ge=1)
    layers: dict[str, str] | None = None
    layer_weight: float = Field(1.0, ge=0)
    cache: bool = True


class Quantize(Training):
    """Step `quantize`: int8 or low-precision float, of as many layers as the budget allows."""

    mode: Literal["dynamic", "static", "weight_only", "qat", "bf16", "fp8"] = "dynamic"
    include: Patterns = None
    exclude: Patterns = None
    observer: Literal["minmax", "percentile", "mse"] = "minmax"
    group_size: int | None = Field(None, ge=1)
    batches: int = Field(8, ge=1)
    budget: float | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> Quantize:
        if self.mode == "qat" and self.epochs == 0:
            raise ValueError("mode qat trains through int8: give epochs of at least 1")
        if self.mode != "qat" and self.epochs:
            raise ValueError(f"epochs have no use in mode {self.mode}; only in qat")
        if self.mode == "qat" and self.budget is not None:
            raise ValueError("budget has no use in mode qat; choose layers by exclude")
        if self.group_size is not None and self.mode in ("bf16", "fp8"):
            raise ValueError(f"group_size has no use in mode {self.mode}")
        return self


class Pack(Strict):
    """Step `pack`: `lt.pack_`, the forms that measure fastest here."""

    dtype: Literal["float32", "bfloat16", "int8"] | None = None
    include: Patterns = None
    exclude: Patterns = None
    rounds: int = Field(15, ge=1)


KINDS: dict[str, type[Strict]] = {
    "train": Train,
    "prune": Prune,
    "distill": Distill,
    "quantize": Quantize,
    "pack": Pack,
}


class Recipe(Strict):
    """What `lt.compress` does, in order.

    Args:
        steps (list): each one `{kind: settings}` or just the kind: train, prune, distill, quantize,
            pack.
        name (str): for the report. Default: "recipe".
        seed (int): Default: 0.
        batch_size (int): of training and of the timed batch. Default: 32.
        model, data (mapping or str, optional): for the command line, which has no objects to pass;
            see `lepton_train.compression.sources`.
        metric (str or mapping of names to weights, optional): for the command line. Default: None
            (accuracy, or mean squared error for numbers).

    Raises:
        ValueError: a key or kind is unknown (with the nearest known), a value is out of range, or
            the order is impossible.

    Example:
        >>> recipe = Recipe.of({"steps": [{"prune": {"sparsity": 0.5}}, "quantize", "pack"]})
        >>> [kind for kind, _ in recipe.steps]
        ['prune', 'quantize', 'pack']
    """

    steps: list[tuple[str, Any]] = Field(min_length=1)
    name: str = "recipe"
    seed: int = Field(0, ge=0)
    batch_size: int = Field(32, ge=1)
    model: dict[str, Any] | str | None = None
    data: dict[str, Any] | str | None = None
    metric: str | dict[str, float] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_steps(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(values.get("steps"), list):
            return values
        return {**values, "steps": [_step(p, s) for p, s in enumerate(values["steps"], 1)]}

    @model_validator(mode="after")
    def _order(self) -> Recipe:
        kinds = [kind for kind, _ in self.steps]
        for place, kind in enumerate(kinds, 1):
            for before, earlier in enumerate(kinds[: place - 1], 1):
                if earlier == "pack":
                    raise ValueError(
                        f"step {place} ({kind}) can't come after step {before} (pack): packed "
                        "layers are final; put pack last"
                    )
                if earlier == "quantize" and kind != "pack":
                    raise ValueError(
                        f"step {place} ({kind}) can't come after step {before} (quantize): "
                        f"quantised weights are final; put {kind} before it"
                    )
        return self

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain values; `of` reads them again."""
        values = self.model_dump(exclude={"steps"}, exclude_none=True)
        values["steps"] = [
            {kind: settings.model_dump(exclude_unset=True)} for kind, settings in self.steps
        ]
        return values

    @classmethod
    def of(cls, source: Recipe | Mapping[str, Any] | str | os.PathLike[str]) -> Recipe:
        """Read a recipe.

        Args:
            source (Recipe, mapping, str or path): an object; a YAML file; or YAML text, which has
                more than one line.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is no YAML, or as the class.
            TypeError: source is none of these.
        """
        if isinstance(source, Recipe):
            return source
        where = "recipe"
        if not isinstance(source, Mapping | str | os.PathLike):
            raise TypeError(
                "recipe must be a mapping, a path, YAML text or a Recipe, "
                f"got {type(source).__name__}"
            )
        if not isinstance(source, Mapping):
            text = os.fspath(source)
            if "\n" not in text:
                where = f"recipe {text}"
                file = Path(text)
                if not file.is_file():
                    raise FileNotFoundError(f"{where} is not a file")
                text = file.read_text(encoding="utf-8")
            source = _yaml(where, text)
        try:
            return cls.model_validate(dict(source))
        except ValidationError as error:
            raise ValueError(f"{where}: {_first(error)}") from None


def _step(place: int, step: Any) -> tuple[str, Strict]:
    if isinstance(step, tuple) and len(step) == 2 and isinstance(step[1], Strict):
        return step[0], step[1]
    if isinstance(step, str):
        step = {step: {}}
    if not isinstance(step, Mapping) or len(step) != 1:
        raise ValueError(f"step {place} must be one kind with its settings, got {step!r}")
    kind, settings = next(iter(step.items()))
    if kind not in KINDS:
        raise ValueError(f"step {place}: {nearest('step', str(kind), KINDS)}")
    try:
        return kind, KINDS[kind].model_validate(settings or {})
    except ValidationError as error:
        raise ValueError(f"step {place} ({kind}): {_first(error)}") from None


def _first(error: ValidationError) -> str:
    """The first problem, on one line."""
    problem = error.errors()[0]
    text = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return text
    place = ".".join(str(part) for part in problem["loc"])
    got = "" if problem["type"] == "missing" else f", got {problem['input']!r}"
    return f"{place}: {text}{got}"


def _yaml(where: str, text: str) -> Mapping[str, Any]:
    import yaml

    try:
        source = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(source, Mapping):
        raise ValueError(f"{where} must hold keys such as steps, got {type(source).__name__}")
    return source
