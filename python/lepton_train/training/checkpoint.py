"""Checkpoints: written whole or not at all, read without running code."""

from __future__ import annotations

import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from lepton_train.files import write_whole

FORMAT = 1
_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth"})


class CheckpointFiles:
    """Where the checkpoints of a run lie.

    Args:
        path (str or path): a folder, for `last.pt` and `best.pt`; or a file (.pt, .pth, .ckpt,
            .bin), beside which the best one is called NAME-best.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        given = Path(path)
        if given.suffix in _SUFFIXES:
            self.last, self.best = given, given.with_name(f"{given.stem}-best{given.suffix}")
        else:
            self.last, self.best = given / "last.pt", given / "best.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name, then rename it.

    Args:
        path (Path): the file; its folder is made where it is missing.
        state (dict): tensors and plain values.

    Raises:
        OSError: it could not be written (a full disk, say). A file that was there before is whole.
    """

    def write(file: Path) -> None:
        with file.open("wb") as stream:
            torch.save({"format": FORMAT, **state}, stream)
            stream.flush()
            os.fsync(stream.fileno())

    try:
        write_whole(path, write)
    # torch reports what the disk says as a RuntimeError of its archive writer.
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        kept = "; the earlier checkpoint is whole" if path.exists() else ""
        raise OSError(f"checkpoint {str(path)!r} can't be written: {cause}{kept}") from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is run.

    Args:
        path (Path): the file.

    Returns:
        dict: what was saved.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, holds objects other than tensors and plain values, or was made by
            a newer version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r} is missing")
    try:
        with warnings.catch_warnings():
            # torch warns of what it refuses below.
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's text advises to run what the file holds.
        raise ValueError(
            f"checkpoint {str(path)!r} is damaged or holds more than tensors and plain values, "
            "which is never loaded"
        ) from error
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"checkpoint {str(path)!r} is damaged or holds more than tensors and plain values: "
            f"{first}"
        ) from error
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise ValueError(f"checkpoint {str(path)!r} was not written by lepton_train.fit")
    if state["format"] > FORMAT:
        raise ValueError(
            f"checkpoint {str(path)!r} has format {state['format']}; this version reads up to "
            f"{FORMAT}: upgrade lepton-kernels"
        )
    return state
