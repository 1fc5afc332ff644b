"""A network on Fashion-MNIST, pruned to 90 % while it is trained, then packed and timed.

    python python/recipes/fashion_pruned.py --out fashion/

Data: the Debian package dataset-fashion-mnist (or LEPTON_FASHION_MNIST names a folder with it).
"""

from __future__ import annotations

import argparse
import copy
import statistics
from pathlib import Path
from typing import Any

import lepton_train as lt
import torch
from lepton_train.files import write_json
from lepton_train.timing import interleaved
from torch import nn

SPARSITY = 0.9
BATCH = 256
# No part of the last layer: its few outputs are a hundredth of the weights.
EXCLUDE = "6"


def network() -> nn.Sequential:
    """784 - 1024 - 1024 - 10, with dropout."""
    hidden = 1024
    return nn.Sequential(
        nn.Linear(784, hidden), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(hidden, 10),
    )  # fmt: skip


def flat(split: str, smoke: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Images as rows, normalised, and labels."""
    examples = lt.data.load_fashion_mnist(split)
    count = 2000 if smoke else len(examples)
    return examples.inputs[:count].flatten(1).sub(0.286).div(0.353), examples.labels[:count]


def train(
    data: tuple[torch.Tensor, torch.Tensor], seed: int, epochs: int, pattern: str | None
) -> nn.Sequential:
    """The network after some epochs; with a pattern, masked more and more for 60 % of the steps."""
    torch.manual_seed(seed)
    model, (x, y) = network(), data
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    steps = epochs * (len(x) // BATCH)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    prunings = 12
    schedule = lt.PruningSchedule("cubic", steps=prunings)
    times = {int(steps * (0.1 + 0.6 * i / (prunings - 1))) for i in range(prunings)}
    done = 0
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for i in range(len(x) // BATCH):
            picked = order[i * BATCH : (i + 1) * BATCH]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[picked]), y[picked]).backward()
            optimizer.step()
            rate.step()
            if pattern is not None and done in times:
                lt.prune_(model, SPARSITY, pattern=pattern, schedule=schedule, exclude=EXCLUDE)
            done += 1
    return model.eval()


def accuracy(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Percent of the test images."""
    with torch.inference_mode():
        return 100 * (model(data[0]).argmax(1) == data[1]).float().mean().item()


def latencies(
    dense: nn.Module, masked: nn.Module, x: torch.Tensor, rounds: int
) -> dict[str, dict[str, Any]]:
    """Milliseconds by batch size: dense, masked in torch, packed; and the forms that pack_ took."""
    found: dict[str, dict[str, Any]] = {}
    for rows in (1, 16, 256):
        batch = x[:rows]
        packed = copy.deepcopy(masked)
        report = lt.pack_(packed, example_inputs=batch)
        models = {"dense": dense, "masked": masked, "packed": packed}
        with torch.inference_mode():
            calls = {name: (lambda m=m, b=batch: m(b)) for name, m in models.items()}
            times = {n: t.median_ms for n, t in interleaved(calls, rounds=rounds).items()}
        forms = [row.decision for row in report.rows]
        found[str(rows)] = {**times, "forms": forms}
    return found


def run(seeds: int, epochs: int, pattern: str, smoke: bool) -> dict[str, Any]:
    """Train dense and pruned for each seed; returns the report."""
    train_data, test_data = flat("train", smoke), flat("test", smoke)
    rows = []
    for seed in range(seeds):
        dense = train(train_data, seed, epochs, None)
        masked = train(train_data, seed, epochs, pattern)
        row = {
            "seed": seed,
            "dense": accuracy(dense, test_data),
            "pruned": accuracy(masked, test_data),
            "ms": latencies(dense, masked, test_data[0], 5 if smoke else 101),
        }
        rows.append(row)
        print(f"seed {seed}: dense {row['dense']:.2f} %, 90 % pruned {row['pruned']:.2f} %")
        for batch, times in row["ms"].items():
            print(
                f"  batch {batch}: dense {times['dense']:.3f} ms, masked {times['masked']:.3f}, "
                f"packed {times['packed']:.3f} ({times['dense'] / times['packed']:.2f} times "
                f"dense), {', '.join(times['forms'])}"
            )
    means = {name: statistics.mean(row[name] for row in rows) for name in ("dense", "pruned")}
    print(f"mean of {seeds}: dense {means['dense']:.2f} %, pruned {means['pruned']:.2f} %")
    info = {"pattern": pattern, "sparsity": SPARSITY, "epochs": epochs, "torch": torch.__version__}
    return {**info, "threads": torch.get_num_threads(), "mean": means, "seeds": rows}


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="fashion", help="folder for report.json")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--pattern", choices=("unstructured", "block"), default="block")
    parser.add_argument("--smoke", action="store_true", help="a little data, one epoch, one seed")
    given = parser.parse_args()
    seeds, epochs = (1, 2) if given.smoke else (given.seeds, given.epochs)
    report = run(seeds, epochs, given.pattern, given.smoke)
    print(f"wrote {write_json(Path(given.out) / 'report.json', report)}")


if __name__ == "__main__":
    main()
