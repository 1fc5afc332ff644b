"""Hugging Face models in a bundle: a class of the installed transformers and a configuration."""

from __future__ import annotations

import json
import sys
from typing import Any

from torch import nn

from lepton_train.bundle.errors import BundleError
from lepton_train.packages import require

# Keys that would bring code, or read weights or quantisers from elsewhere.
_REFUSED = frozenset(("auto_map", "custom_pipelines", "quantization_config", "_name_or_path"))
_ATTENTION = ("eager", "sdpa", "lepton")


def is_transformers_model(module: nn.Module) -> bool:
    """Whether a module is a model of the transformers library, which is not imported for this."""
    library = sys.modules.get("transformers")
    return library is not None and isinstance(module, library.PreTrainedModel)


def transformers_arguments(model: Any) -> dict[str, Any]:
    """Configuration of a model as plain JSON values, and its kind of attention.

    Raises:
        BundleError: its class is not part of transformers (code of its own).
    """
    _model_class(type(model).__name__, type(model))
    config = {
        key: value for key, value in model.config.to_diff_dict().items() if key not in _REFUSED
    }
    attention = getattr(model.config, "_attn_implementation", None)
    return {
        "config": json.loads(json.dumps(config, default=str)),
        "attention": attention if attention in _ATTENTION else "sdpa",
    }


def make_transformers_model(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Build a model from its class name and configuration; nothing is read or downloaded.

    Raises:
        MissingPackageError: transformers is not installed.
        BundleError: an unknown class, or a configuration that it refuses.
    """
    kind = _model_class(name)
    config_values = arguments.get("config")
    attention = arguments.get("attention", "sdpa")
    if not isinstance(config_values, dict) or attention not in _ATTENTION:
        raise BundleError(f"bundle: {name} needs a configuration and a known kind of attention")
    refused = sorted(_REFUSED & set(config_values))
    if refused:
        raise BundleError(f"bundle: configuration key {refused[0]!r} of {name} is refused")
    if attention == "lepton":
        import lepton_kernels as lk

        lk.integrations.transformers.register()
    try:
        config = kind.config_class.from_dict(dict(config_values))
        model: nn.Module = kind._from_config(config, attn_implementation=attention)
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise BundleError(f"bundle: {name} refuses its configuration: {first}") from error
    return model


def _model_class(name: str, expected: type | None = None) -> Any:
    library = require("transformers", f"the model class {name}", extra="bundle")
    kind = getattr(library, name, None) if name.isidentifier() else None
    if (
        not isinstance(kind, type)
        or not issubclass(kind, library.PreTrainedModel)
        or not kind.__module__.startswith("transformers.models.")
        or (expected is not None and kind is not expected)
    ):
        raise BundleError(f"bundle: {name!r} is no model class of the installed transformers")
    return kind
