"""The row that every benchmark writes: its keys are a contract, see `lepton bench`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One implementation on one case.

    `match` is True where the result was within its tolerance, False where it was not (then no time
    is given) and None where the implementation is missing; `note` then says why, and is left out of
    the JSON otherwise. `percent_of_ceiling` relates `median_us` to the least time that the ceiling
    allows for the case, whatever the implementation.
    """

    family: str
    case: str
    shape: dict[str, Any]
    dtype: str
    isa: str
    threads: int
    impl: str
    median_us: float | None
    work: dict[str, float]
    percent_of_ceiling: float | None
    ceiling: dict[str, Any]
    match: bool | None
    machine: str
    torch: str
    commit: str
    note: str = field(default="")

    def to_json(self) -> dict[str, Any]:
        """The row as plain data, ready for `json`."""
        data = asdict(self)
        if not self.note:
            del data["note"]
        return data


def write_json(rows: Iterable[Row], path: str | Path) -> None:
    """Write rows as a list; a reader never sees half a file."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        text = json.dumps([row.to_json() for row in rows], indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: str | Path) -> list[Row]:
    """Read what `write_json` wrote."""
    return [Row(**data) for data in json.loads(Path(path).read_text(encoding="utf-8"))]
