"""Files that are whole or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: str | os.PathLike[str], write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it.

    Args:
        path (str or path): the file to make; its folder is made where it is missing.
        write (callable): gets the temporary path, of the same suffix.

    Returns:
        Path: the finished file. After an error nothing is left behind.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(suffix=target.suffix, prefix=".", dir=target.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write a value as JSON, whole or not at all; NaN and infinity are refused (ValueError)."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"

    def write(file: Path) -> None:
        file.write_text(text, encoding="utf-8")

    return write_whole(path, write)
