"""One step of each optimiser by name: torch's ways against the one that `lt.fit` takes.

    python benchmarks/optimizers.py --page optimizers.md

Weights of the shapes of all-MiniLM-L6-v2 (22.7 million). Before it is timed, each way takes three
steps, and its weights must be as near to a float64 run as those of torch's plain loop.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from lepton_train.recipe_page import show_table
from lepton_train.timing import interleaved
from lepton_train.training.optimizers import _CLASSES, make_optimizer
from torch import nn

SHAPES = [
    (30522, 384), (512, 384), (2, 384),
    *[(384, 384)] * 25, *[(1536, 384), (384, 1536)] * 6, *[(384,)] * 49, *[(1536,)] * 6,
]  # fmt: skip
HEADS = ("optimizer", "way", "ms a step", "quartiles", "of torch's best", "match")


def weights(dtype: torch.dtype, seed: int) -> list[nn.Parameter]:
    """Random weights with gradients."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for shape in SHAPES:
        value, gradient = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        made.append(nn.Parameter(value))
        made[-1].grad = gradient
    return made


def ways(name: str) -> dict[str, dict[str, Any] | None]:
    """How torch can run the optimiser, and ours: None."""
    found: dict[str, dict[str, Any] | None] = {
        "torch, loop": {"foreach": False},
        "torch, foreach": {"foreach": True},
    }
    if name in ("adamw", "adam", "sgd"):
        return {**found, "torch, fused (lt.fit)": {"fused": True}}
    return {**found, "lt.fit": None}


def distance(ours: list[nn.Parameter], truth: list[nn.Parameter]) -> float:
    """Greatest difference of two sets of weights."""
    return max(
        float((a.detach().double() - b).abs().max()) for a, b in zip(ours, truth, strict=True)
    )


def measure(name: str, rounds: int, seed: int) -> list[list[str]]:
    """Rows of the table for one optimiser."""
    kind, lr, defaults = _CLASSES[name]
    truth = weights(torch.float64, seed)
    exact = kind(truth, lr=lr, **defaults)
    made: dict[str, Any] = {}
    sets: dict[str, list[nn.Parameter]] = {}
    for way, options in ways(name).items():
        sets[way] = weights(torch.float32, seed)
        made[way] = (
            make_optimizer("benchmark", name, sets[way], None, None)
            if options is None
            else kind(sets[way], lr=lr, **defaults, **options)
        )
    for _ in range(3):
        exact.step()
        for optimizer in made.values():
            optimizer.step()
    far = {way: distance(each, truth) for way, each in sets.items()}
    del truth, exact
    good = {way: value <= 2 * far["torch, loop"] + 1e-7 for way, value in far.items()}
    steps = {way: optimizer.step for way, optimizer in made.items() if good[way]}
    times = interleaved(steps, rounds=rounds)
    best = min(time.median_ms for way, time in times.items() if way.startswith("torch"))
    return [
        [
            name,
            way,
            *(
                (
                    f"{times[way].median_ms:.1f}",
                    f"{times[way].low_ms:.1f} to {times[way].high_ms:.1f}",
                    f"{times[way].median_ms / best:.2f}",
                )
                if good[way]
                else ("", "", "")
            ),
            str(good[way]).lower(),
        ]
        for way in made
    ]


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--optimizers", nargs="+", choices=list(_CLASSES), default=list(_CLASSES))
    parser.add_argument("--rounds", type=int, default=7, help="(default: 7)")
    parser.add_argument("--seed", type=int, default=0, help="(default: 0)")
    parser.add_argument("--page", type=Path, help="write the table to this Markdown file")
    arguments = parser.parse_args(argv)
    rows = [
        row for name in arguments.optimizers
        for row in measure(name, arguments.rounds, arguments.seed)
    ]  # fmt: skip
    count = sum(torch.Size(shape).numel() for shape in SHAPES) / 1e6
    show_table(
        arguments.page,
        __file__,
        title="Steps of the optimisers",
        heads=HEADS,
        rows=rows,
        notes=[
            f"{count:.1f} million float32 weights of the shapes of all-MiniLM-L6-v2. Medians, in "
            "turn in one process. Match: after three steps as near to a float64 run as torch's "
            "plain loop, within a factor of 2. torch's default on the CPU is the loop.",
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
