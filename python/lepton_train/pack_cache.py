"""What `pack_` and `predict_sparsity` measured before, in a file: a model of equal layers is timed
once, and not again in the next process.

Times hold for one machine, number of threads and build; others find nothing here. A file that
cannot be read counts as empty: the worst that a damaged one costs is a new measurement.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch

import lepton_kernels as lk
from lepton_train.files import write_json

VARIABLE = "LEPTON_PACK_CACHE"
_FORMAT = 1
# Machines and cases that a file keeps at most, the latest.
_MOST_MACHINES, _MOST_CASES = 16, 4096

Times = dict[str, float]


def default_path() -> Path | None:
    """The file that LEPTON_PACK_CACHE names (none if it is empty), else one in the user's cache."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        return Path(named) if named else None
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(base) if base else Path("~/.cache").expanduser()
    return folder / "lepton" / "pack.json"


def machine() -> str:
    """What times depend on beside the layer: CPU, instruction set, threads, versions."""
    info = lk.info()
    parts = (info["cpu"], os.cpu_count(), info["isa"], torch.get_num_threads())
    return " | ".join(map(str, (*parts, lk.__version__, torch.__version__)))


def _times(value: Any) -> Times | None:
    """`value` if it maps names to positive times."""
    if not isinstance(value, dict) or not value:
        return None
    for name, ms in value.items():
        good = isinstance(ms, (int, float)) and not isinstance(ms, bool)
        if not isinstance(name, str) or not good or not math.isfinite(ms) or ms <= 0:
            return None
    return {name: float(ms) for name, ms in value.items()}


def _read(path: Path) -> dict[str, dict[str, Times]]:
    """Machine to case to times; whatever is no such thing is left out."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(data, dict) or data.get("format") != _FORMAT:
        return {}
    machines = data.get("machines")
    found: dict[str, dict[str, Times]] = {}
    for name, cases in machines.items() if isinstance(machines, dict) else ():
        if isinstance(cases, dict):
            known = {key: _times(value) for key, value in cases.items()}
            found[name] = {key: times for key, times in known.items() if times is not None}
    return found


class PackCache:
    """Times by case, for this machine.

    Args:
        path (path, optional): the file; None keeps nothing beyond this object.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self._machine = machine()
        self._cases = {} if self.path is None else _read(self.path).get(self._machine, {})
        self._new: dict[str, Times] = {}

    def get(self, case: str, names: set[str]) -> Times | None:
        """Milliseconds of each of `names` in this case, or None if one is not known."""
        times = self._cases.get(case)
        return times if times is not None and set(times) == names else None

    def put(self, case: str, times: Times) -> None:
        """Remember times; `save` writes them."""
        if _times(times) is not None:
            self._cases[case] = self._new[case] = dict(times)

    def save(self) -> None:
        """Add what is new to the file as it is now; a warning if it can't be written."""
        if self.path is None or not self._new:
            return
        machines = _read(self.path)
        # Last in the file: the oldest go first when there are too many.
        cases = {**machines.pop(self._machine, {}), **self._new}
        machines[self._machine] = dict(list(cases.items())[-_MOST_CASES:])
        kept = dict(list(machines.items())[-_MOST_MACHINES:])
        try:
            write_json(self.path, {"format": _FORMAT, "machines": kept})
        except OSError as error:
            warnings.warn(f"pack_: times are not kept: {self.path}: {error}", stacklevel=3)
            return
        self._new = {}
