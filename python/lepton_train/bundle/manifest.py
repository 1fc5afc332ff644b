"""The manifest of a bundle: what it holds, what it needs, how it was made; checked by pydantic."""

from __future__ import annotations

import json
from typing import Any, Literal

from lepton_train.bundle.errors import BundleError
from lepton_train.packages import require

require("pydantic", "a bundle's manifest", extra="bundle")

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator  # noqa: E402

SCHEMA_VERSION = 1
_MOST_BYTES = 64 << 20
_DEEPEST = 100


class Part(BaseModel):
    """What every part of a manifest has in common: unknown keys and NaN are refused."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Node(Part):
    """One module: how to build it, and which of its children differ from what that builds.

    Args:
        kind (str): "torch", "lepton", "transformers" or "builder".
        name (str): class, or name of the registered builder.
        arguments (dict): of the constructor or the builder, plain JSON values.
        children (dict): modules put in the place of children of that name.
        mask (bool): the weight carries a pruning mask.
        same_as (str): full name of an earlier place that holds this very module; then nothing
            else counts.
    """

    kind: Literal["torch", "lepton", "transformers", "builder", "same"]
    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    children: dict[str, Node] = Field(default_factory=dict)
    mask: bool = False


class Architecture(Part):
    """The model as a tree of modules.

    Args:
        root (Node): the model.
        ties (dict): full name of a parameter -> full name of the one it shares memory with.
        dtypes (dict): number of elements by dtype.
        parameters (int): elements of all parameters, shared ones once.
    """

    root: Node
    ties: dict[str, str] = Field(default_factory=dict)
    dtypes: dict[str, int] = Field(default_factory=dict)
    parameters: int = 0


class Layer(Part):
    """One linear layer: its form, quantisation and sparsity.

    Args:
        name (str): in the model.
        form (str): class of the module.
        shape (tuple): (out_features, in_features).
        quantization (str): "none", "dynamic int8", "static int8", "weight-only int8" or "qat int8".
        group_size (int, optional): input features that share a weight scale.
        sparsity (float): share of zeros, 0 to 1.
        layout (str, optional): of a sparse layer.
        bytes (int): as stored.
    """

    name: str
    form: str
    shape: tuple[int, int]
    quantization: str = "none"
    group_size: int | None = None
    sparsity: float = 0.0
    layout: str | None = None
    bytes: int = 0


class Metric(Part):
    """A score, and on what it was measured.

    Args:
        name (str): such as "accuracy".
        value (float): finite.
        data (str): name of the data set and split. Default: "".
        data_sha256 (str, optional): checksum of that data, 64 hexadecimal digits.
    """

    name: str
    value: float
    data: str = ""
    data_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


class Tensor(Part):
    """Name, dtype and shape of a golden tensor; dimension 0 is the batch."""

    name: str
    dtype: str
    shape: list[int]


class Golden(Part):
    """Inputs and outputs that `verify` reproduces.

    Args:
        call (str): "args" or "kwargs".
        inputs (list of Tensor): in the order of the call.
        outputs (list of Tensor): in the order in which the model gives them.
        tolerance (dict): by output, largest absolute difference that rounding explains.
        seconds (float): of one run where it was saved.
    """

    call: Literal["args", "kwargs"]
    inputs: list[Tensor]
    outputs: list[Tensor]
    tolerance: dict[str, float]
    seconds: float = 0.0


class Feature(Part):
    """Distribution of one number of the training inputs: edges of bins, and share in each.

    Args:
        name (str): which number, such as "x.mean" or "x[3]".
        edges (list of float): inner edges, ascending.
        shares (list of float): one more than edges, adding up to 1.
        count (int): samples seen.
    """

    name: str
    edges: list[float]
    shares: list[float]
    count: int = Field(ge=1)


class Requirements(Part):
    """What a machine must have.

    Args:
        torch (str): lowest version.
        lepton_kernels (str): lowest version.
        packages (dict): further packages and their lowest version.
        memory_bytes (int): to hold and load the weights.
        device (str): type of the device. Default: "cpu".
        operators (list of str): of `lepton_kernels` that the model calls.
        saved_with (dict): CPU, ISA, threads, versions where it was saved; for information.
    """

    torch: str
    lepton_kernels: str
    packages: dict[str, str] = Field(default_factory=dict)
    memory_bytes: int = Field(ge=0)
    device: str = "cpu"
    operators: list[str] = Field(default_factory=list)
    saved_with: dict[str, Any] = Field(default_factory=dict)


class Metadata(Part):
    """What the author of a bundle states; the argument `metadata` of `save`.

    Args:
        name (str): of the model. Default: "model".
        description (str): for people. Default: "".
        licence (str): SPDX name where there is one. Default: "unspecified".
        provenance (dict): data, recipe, commit, seed, author: plain JSON values.
        metrics (list of Metric): or a mapping name -> value.
        preprocessing (dict): how raw inputs become the model's; see docs/bundle.md.
        labels (list of str): names of the classes, in the order of the outputs.
        extra (dict): anything else, plain JSON values; unknown keys of a mapping land here.
    """

    name: str = "model"
    description: str = ""
    licence: str = "unspecified"
    provenance: dict[str, Any] = Field(default_factory=dict)
    metrics: list[Metric] = Field(default_factory=list)
    preprocessing: dict[str, Any] = Field(default_factory=lambda: {"kind": "none"})
    labels: list[str] = Field(default_factory=list)
    extra: dict[str, Any] = Field(default_factory=dict)

    @field_validator("metrics", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return [{"name": name, "value": number} for name, number in value.items()]
        return value

    @classmethod
    def of(cls, value: Any) -> Metadata:
        """Metadata from None, a mapping or itself.

        Args:
            value (Metadata, mapping or None): what `save` was given.

        Returns:
            Metadata: checked; empty for None.

        Raises:
            BundleError: a key has a wrong value; the message names it.
            TypeError: neither.
        """
        if value is None:
            return cls()
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise TypeError(
                f"bundle.save: metadata must be a mapping or Metadata, got {type(value).__name__}"
            )
        known = {key: item for key, item in value.items() if key in cls.model_fields}
        extra = {key: item for key, item in value.items() if key not in cls.model_fields}
        if "license" in extra:
            known.setdefault("licence", extra.pop("license"))
        known["extra"] = {**known.get("extra", {}), **extra}
        try:
            made = cls.model_validate(known)
            json.dumps(made.model_dump(), allow_nan=False)
        except ValidationError as error:
            raise BundleError(f"bundle.save: metadata: {first_problem(error)}") from None
        except (TypeError, ValueError) as error:
            raise BundleError(f"bundle.save: metadata must be plain JSON: {error}") from None
        return made


class Manifest(Part):
    """All that `manifest.json` holds; see the parts.

    Args:
        schema_version (int): of this file's form.
        version (int): of this bundle: 1, and 1 more at each save over an older one.
        created (str): time of saving, ISO 8601, UTC.
    """

    schema_version: int = SCHEMA_VERSION
    version: int = Field(default=1, ge=1)
    created: str
    metadata: Metadata
    architecture: Architecture
    layers: list[Layer]
    requirements: Requirements
    golden: Golden
    input_statistics: list[Feature] = Field(default_factory=list)
    files: list[str] = Field(default_factory=list)


def first_problem(error: ValidationError) -> str:
    """The first problem that pydantic found, in one line."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"]) or "manifest"
    more = len(error.errors()) - 1
    return f"{place}: {problem['msg']}" + (f" (and {more} more)" if more else "")


def parse(data: bytes) -> Manifest:
    """Manifest from the bytes of `manifest.json`.

    Raises:
        BundleError: no JSON, of a newer schema, or not of this schema.
    """
    if len(data) > _MOST_BYTES:
        raise BundleError(f"bundle: manifest.json must be below {_MOST_BYTES} bytes")
    try:
        value = json.loads(data, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"bundle: manifest.json is not valid JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("schema_version"), int):
        raise BundleError("bundle: manifest.json has no schema_version")
    found = value["schema_version"]
    if found > SCHEMA_VERSION:
        raise BundleError(
            f"bundle: schema_version is {found}, this installation reads up to {SCHEMA_VERSION}: "
            "install a newer lepton-kernels"
        )
    if _depth(value) > _DEEPEST:
        raise BundleError(f"bundle: manifest.json must be nested at most {_DEEPEST} deep")
    try:
        return Manifest.model_validate(value)
    except (ValidationError, RecursionError) as error:
        text = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise BundleError(f"bundle: manifest.json: {text}") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        deepest += 1
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
    return deepest
