"""The data card: what the data are, in figures that another machine can check."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from lepton_train.data.clean import fingerprints
from lepton_train.data.examples import Examples
from lepton_train.data.split import Splits
from lepton_train.report import text_table


@dataclass(frozen=True)
class DataCard:
    """Figures of a data set; `str()` gives a table.

    Args:
        name, source, licence (str): of the data set.
        seed (int, optional): of the split.
        removed (dict): examples left out before the split, by reason.
        leaks (int): inputs that occur in more than one part.
        parts (dict): by part: `examples`, `sha256` of inputs and labels in their order, `labels`
            (number by class), `smallest_class` (share of the rarest class; None for numbers).
    """

    name: str
    source: str
    licence: str
    seed: int | None
    removed: dict[str, int]
    leaks: int
    parts: dict[str, dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """The card as plain values, ready for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        cells = [
            (
                name,
                str(part["examples"]),
                ", ".join(f"{label} {count}" for label, count in part["labels"].items()),
                part["sha256"][:16],
            )
            for name, part in self.parts.items()
        ]
        table = text_table(("part", "examples", "labels", "sha256"), cells)
        removed = ", ".join(f"{count} {reason}" for reason, count in self.removed.items())
        about = (
            f"{self.name or 'data'}: {self.source or 'no source'}; {self.licence or 'licence ?'}"
        )
        return (
            f"{about}\n{table}\nseed {self.seed}; removed: {removed or 'nothing'}; "
            f"inputs in more than one part: {self.leaks}"
        )


def checksum(data: Examples) -> str:
    """SHA-256 of inputs and labels in their order."""
    total = hashlib.sha256()
    for digest in fingerprints(data.inputs):
        total.update(bytes.fromhex(digest))
    total.update(data.labels.contiguous().cpu().numpy().tobytes())
    return total.hexdigest()


def data_card(data: Examples | Splits) -> DataCard:
    """Describe examples or their split.

    Args:
        data (Examples or Splits): what to describe; a split gets a row for each part.

    Returns:
        DataCard: with checksums, counts and label balance.

    Example:
        >>> import torch
        >>> card = data_card(Examples(["a", "b"], torch.tensor([0, 1]), ("no", "yes"), "tiny"))
        >>> card.parts["all"]["labels"], card.leaks
        ({'no': 1, 'yes': 1}, 0)
    """
    if isinstance(data, Splits):
        parts, seed, removed, leaks = data.parts, data.seed, data.removed, data.leaks()
    else:
        parts, seed, removed, leaks = {"all": data}, None, {}, 0
    first = next(iter(parts.values()))
    return DataCard(
        first.name,
        first.source,
        first.licence,
        seed,
        dict(removed),
        leaks,
        {name: _describe(part) for name, part in parts.items()},
    )


def _describe(data: Examples) -> dict[str, Any]:
    counts = data.counts()
    smallest = min(counts.values()) / len(data) if counts and len(data) else None
    return {
        "examples": len(data),
        "sha256": checksum(data),
        "labels": counts,
        "smallest_class": smallest,
    }
