"""Shapes are data: one JSON file per family."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any


def load(family: str, path: str | Path | None = None, device: str = "cpu") -> dict[str, Any]:
    """Read the shapes of a family.

    Args:
        family: names the packaged file.
        path: a file of the same form, in place of the packaged one.
        device: "cpu" or "cuda", which have shapes of their own. Default: "cpu".

    Returns:
        dict: the file's content.

    Raises:
        ValueError: the file is not the family's.
    """
    if path is None:
        name = f"{family}.json" if device == "cpu" else f"{family}_{device}.json"
        file = resources.files("lepton_train.bench") / "shapes" / name
        text = file.read_text(encoding="utf-8")
    else:
        text = Path(path).read_text(encoding="utf-8")
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"bench: {path or family} is no JSON: {error}") from error
    if not isinstance(data, dict) or data.get("family") != family:
        raise ValueError(f"bench: {path or family} holds no shapes of {family}")
    return data
