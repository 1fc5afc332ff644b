"""Split into training, validation and test data, without leakage and the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lepton_train.data.clean import deduplicate, drop_empty, fingerprints
from lepton_train.data.examples import Examples


@dataclass(frozen=True)
class Splits:
    """Training, validation and test examples.

    Args:
        train, val, test (Examples): no input occurs in two of them.
        seed (int, optional): of the split; None for one that came with the data. Default: None.
        removed (dict): how many examples were left out, by reason. Default: {}.
    """

    train: Examples
    val: Examples
    test: Examples
    seed: int | None = None
    removed: dict[str, int] = field(default_factory=dict)

    @property
    def parts(self) -> dict[str, Examples]:
        """The three by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def leaks(self) -> int:
        """Number of inputs of `val` and `test` that occur in another part as well; 0 is right."""
        train, val, test = (set(fingerprints(part.inputs)) for part in self.parts.values())
        return len(train & val) + len(train & test) + len(val & test)


def split(
    data: Examples,
    fractions: Sequence[float] = (0.8, 0.1, 0.1),
    *,
    seed: int = 0,
    stratify: bool = True,
    remove_duplicates: bool = True,
) -> Splits:
    """Divide examples at random into training, validation and test data.

    Empty and repeated inputs are removed first, so that none lands on two sides.

    Args:
        data (Examples): at least one for each part that shall not be empty.
        fractions (sequence of 3 floats): of training, validation and test; they add up to 1.
            Default: (0.8, 0.1, 0.1).
        seed (int): of the shuffle. Default: 0.
        stratify (bool): the same mix of classes in each part; no effect on numbers. Default: True.
        remove_duplicates (bool): False only where equal inputs are different examples.
            Default: True.

    Returns:
        Splits: the parts, and what was removed.

    Raises:
        ValueError: data is empty, fractions are not three numbers of at least 0 that add up to 1,
            or a part with a positive fraction would be empty.

    Example:
        >>> data = Examples(torch.rand(100, 3), torch.arange(100) % 2)
        >>> parts = split(data, seed=1)
        >>> len(parts.train), parts.val.counts(), parts.leaks()
        (80, {'0': 5, '1': 5}, 0)
    """
    if len(data) == 0:
        raise ValueError("split: data must hold at least one example, got none")
    shares = [float(f) for f in fractions]
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-6:
        raise ValueError(
            f"split: fractions must be three numbers of at least 0 that add up to 1, got {shares}"
        )
    filled = drop_empty(data)
    kept = deduplicate(filled) if remove_duplicates else filled
    removed = {"empty": len(data) - len(filled), "duplicates": len(filled) - len(kept)}
    places = _places(kept, shares, seed, stratify)
    for name, share, part in zip(("train", "val", "test"), shares, places, strict=True):
        if share > 0 and len(part) == 0:
            raise ValueError(
                f"split: {name} would be empty: {share:g} of {len(kept)} examples; give more "
                "examples or other fractions"
            )
    train, val, test = (kept.subset(part) for part in places)
    return Splits(train, val, test, seed, removed)


def _places(data: Examples, shares: list[float], seed: int, stratify: bool) -> list[torch.Tensor]:
    """Places of the three parts, each in random order."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(data), generator=generator)
    classes = data.labels.ndim == 1 and not data.labels.is_floating_point()
    labels = data.labels[shuffled] if stratify and classes else torch.zeros(len(data)).long()
    below = [sum(shares[: i + 1]) for i in range(3)]
    parts: list[list[torch.Tensor]] = [[], [], []]
    before = 0
    for label in labels.unique().tolist():
        members = shuffled[labels == label]
        after = before + len(members)
        # Rounded over all classes so far: train and test get their share of a class to within one,
        # val, which ends where they begin, to within two; all get their share of the whole.
        ends = [round(share * after) - round(share * before) for share in below[:2]]
        first = min(ends[0], len(members))
        second = min(max(ends[1], first), len(members))
        pieces = (members[:first], members[first:second], members[second:])
        for part, piece in zip(parts, pieces, strict=True):
            part.append(piece)
        before = after
    whole = [torch.cat(part) if part else shuffled[:0] for part in parts]
    return [part[torch.randperm(len(part), generator=generator)] for part in whole]
