"""A network on Fashion-MNIST, pruned to 90 % while it is trained, then packed and timed.

    python python/recipes/fashion_pruned.py --out fashion/

Data: the Debian package dataset-fashion-mnist (or LEPTON_FASHION_MNIST names a folder with it).
Writes `report.json`, and a page with its picture: accuracy over seeds, time by number of images.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import lepton_train as lt
import torch
from lepton_train.compression.chain import saved_bytes
from lepton_train.files import write_json
from lepton_train.plots import before_and_after
from lepton_train.recipe_page import lists_over_seeds, over_seeds, rows_over_seeds, write_page
from lepton_train.timing import interleaved
from torch import nn

SPARSITY = 0.9
BATCH = 256
IMAGES = (1, 16, 256)
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
    """Share of the images whose class it finds."""
    with torch.inference_mode():
        return (model(data[0]).argmax(1) == data[1]).float().mean().item()


def latencies(
    models: dict[str, nn.Module], x: torch.Tensor, rounds: int
) -> tuple[list[dict[str, Any]], list[str]]:
    """A row for each model with its milliseconds by number of images, and the forms of layers.

    `pack_` decides anew for each number of images; the size is that of the model for one image.
    """
    rows: list[dict[str, Any]] = [{"step": name} for name in (*models, "packed")]
    forms = []
    for count in IMAGES:
        batch = x[:count]
        packed = copy.deepcopy(models["pruned"])
        report = lt.pack_(packed, example_inputs=batch)
        every = {**models, "packed": packed}
        with torch.inference_mode():
            calls = {name: (lambda m=m, b=batch: m(b)) for name, m in every.items()}
            times = interleaved(calls, rounds=rounds)
        for row in rows:
            row[f"ms_{count}"] = times[row["step"]].median_ms
            row.setdefault("size_mb", saved_bytes(every[row["step"]]) / 1e6)
        forms.append(", ".join(row.decision for row in report.rows))
    return rows, forms


def run(seed: int, epochs: int, pattern: str, smoke: bool) -> dict[str, Any]:
    """Train dense and pruned; returns accuracy, size and times of dense, pruned and packed."""
    train_data, test_data = flat("train", smoke), flat("test", smoke)
    dense = train(train_data, seed, epochs, None)
    pruned = lt.make_permanent_(train(train_data, seed, epochs, pattern))
    packed = copy.deepcopy(pruned)
    lt.pack_(packed, example_inputs=test_data[0][:256])
    scores = [accuracy(model, test_data) for model in (dense, pruned, packed)]
    rounds = 5 if smoke else 101
    rows, forms = latencies({"dense": dense, "pruned": pruned}, test_data[0], rounds)
    for row, score in zip(rows, scores, strict=True):
        row["score"] = score
        times = ", ".join(f"{row[f'ms_{count}']:.3f} ms for {count}" for count in IMAGES)
        print(f"seed {seed}, {row['step']}: accuracy {score:.4f}; {times}", flush=True)
    return {"seed": seed, "rows": rows, "forms": forms}


def page(path: Path, results: list[dict[str, Any]], pattern: str, epochs: int) -> Path:
    """Write the page and its picture."""
    runs = [result["rows"] for result in results]
    heads = ("network", "accuracy", "MB", *(f"ms, {count} images" for count in IMAGES))
    forms = {"score": ".4f", "size_mb": ".2f"} | {f"ms_{count}": ".3f" for count in IMAGES}
    bars = lists_over_seeds([[{**r, "latency_ms": r["ms_1"]} for r in rows] for rows in runs])
    picture = before_and_after(bars, path.with_suffix(".png"), "accuracy")
    faster = "; ".join(
        over_seeds([rows[0][f"ms_{count}"] / rows[2][f"ms_{count}"] for rows in runs], ".2f")
        + f" for {count} images"
        for count in IMAGES
    )
    taken = "; ".join(
        f"{count} images: {' or '.join(sorted({result['forms'][place] for result in results}))}"
        for place, count in enumerate(IMAGES)
    )
    return write_page(
        path,
        Path(__file__),
        title="A network on Fashion-MNIST with a tenth of its weights",
        line="python python/recipes/fashion_pruned.py --out fashion/ "
        f"--seeds {' '.join(str(result['seed']) for result in results)} --epochs {epochs}",
        tables=[(heads, rows_over_seeds(runs, forms))],
        notes=[
            f"784 - 1024 - 1024 - 10 in float32, {epochs} epochs, 60,000 images to train and "
            f"10,000 to test. `pruned`: {SPARSITY:.0%} of the weights of the first two layers "
            f"({pattern}) set to zero while it trains, still stored dense; `packed`: the same "
            f"after `pack_`. {len(results)} seed(s): mean, in brackets least and greatest. Times "
            "are medians of calls in turn, with weights warm in the caches; the picture's "
            "are for one image.",
            f"Packed, times as fast as dense: {faster}.",
            f"Forms that `pack_` took, layer by layer, for {taken}.",
        ],
        picture=picture.name,
    )


def main(argv: list[str] | None = None) -> int:
    """Run the recipe for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("fashion"), help="(default: fashion)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    parser.add_argument("--epochs", type=int, default=8, help="(default: 8)")
    parser.add_argument(
        "--pattern", choices=("unstructured", "block"), default="block", help="(default: block)"
    )
    parser.add_argument("--page", type=Path, help="Markdown (default: page.md in --out)")
    parser.add_argument("--smoke", action="store_true", help="a little data, two epochs, one seed")
    given = parser.parse_args(argv)
    seeds, epochs = ([0], 2) if given.smoke else (given.seeds, given.epochs)
    results = [run(seed, epochs, given.pattern, given.smoke) for seed in seeds]
    info = {"pattern": given.pattern, "sparsity": SPARSITY, "epochs": epochs, "seeds": results}
    print(f"wrote {write_json(given.out / 'report.json', info)}")
    path = page(given.page or given.out / "page.md", results, given.pattern, epochs)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
