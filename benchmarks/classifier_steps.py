"""Latency of a text classifier after each step of compression, on real movie reviews.

    python benchmarks/classifier_steps.py --page docs/classifier_steps.md

Nothing is trained: the time of a call does not depend on the values of the weights but for zeros,
and those are where pruning puts them. Scores belong to the recipes.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import lepton_train as lt
import torch
from lepton_train.architectures import load_text_classifier, shallower
from lepton_train.compression.chain import saved_bytes
from lepton_train.recipe_page import show_table
from lepton_train.timing import interleaved
from torch import nn

HEADS = ("classifier", "step", "MB", "ms", "quartiles", "times as fast")


def steps(model: nn.Module, inputs: dict[str, torch.Tensor]) -> dict[str, nn.Module]:
    """The classifier after each step, and torch's bf16 as the peer."""
    made = {"float32": model, "torch bf16 (peer)": copy.deepcopy(model).to(torch.bfloat16)}
    made["int8, dynamic"] = copy.deepcopy(model)
    lt.quantize_(made["int8, dynamic"], exclude="head")
    made["int8, fused"] = copy.deepcopy(made["int8, dynamic"])
    lt.fuse_(made["int8, fused"])
    pruned = copy.deepcopy(model)
    lt.prune_(pruned, 0.5, include="*layer*")
    made["half pruned, int8, packed"] = lt.make_permanent_(pruned)
    lt.quantize_(pruned, exclude="head")
    lt.pack_(pruned, example_inputs=inputs)
    lt.fuse_(pruned)
    return {name: each.eval() for name, each in made.items()}


def measure(
    name: str, model: nn.Module, batch: dict[str, torch.Tensor], rounds: int
) -> list[list[str]]:
    """Rows of the table for one classifier."""
    made = steps(model, batch)
    with torch.inference_mode():
        calls: dict[str, Any] = {
            step: lambda each=each: each(**batch) for step, each in made.items()
        }
        times = interleaved(calls, rounds=rounds)
    base = times["float32"].median_ms
    return [
        [
            name,
            step,
            f"{saved_bytes(made[step]) / 1e6:.1f}",
            f"{time.median_ms:.1f}",
            f"{time.low_ms:.1f} to {time.high_ms:.1f}",
            f"{base / time.median_ms:.2f}",
        ]
        for step, time in times.items()
    ]


def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write the page if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=32, help="in a batch (default: 32)")
    parser.add_argument("--length", type=int, default=48, help="tokens at most (default: 48)")
    parser.add_argument("--rounds", type=int, default=9, help="(default: 9)")
    parser.add_argument("--page", type=Path, help="write the table to this Markdown file")
    arguments = parser.parse_args(argv)
    model, tokenizer = load_text_classifier()
    reviews = lt.data.load_movie_reviews().subset(range(arguments.texts))
    batch = lt.data.tokenize(reviews, tokenizer, length=arguments.length).inputs
    assert isinstance(batch, dict)
    rows = []
    for depth in (6, 3):
        rows += measure(f"MiniLM, {depth} layers", shallower(model, depth).eval(), batch,
                        arguments.rounds)  # fmt: skip
    show_table(
        arguments.page,
        __file__,
        title="A text classifier, step by step",
        heads=HEADS,
        rows=rows,
        notes=[
            f"One batch of {arguments.texts} movie reviews of at most {arguments.length} tokens "
            f"(padded to {batch['input_ids'].shape[1]}). Medians, in turn in one process; MB are "
            "weights as they are saved, the word embeddings (46.9 MB in float32) included."
        ],
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
