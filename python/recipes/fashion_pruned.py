"""A network on Fashion-MNIST, pruned to 90 % while it is trained, then packed and timed.

    python python/recipes/fashion_pruned.py --out fashion/

Data: the Debian package dataset-fashion-mnist (or LEPTON_FASHION_MNIST names a folder with it).
Pruned weight by weight, which keeps the accuracy, and in blocks, which run faster; all networks
train for the same number of epochs. Writes `report.json`, and a page with its picture: accuracy
over seeds, time by number of images.
"""

from __future__ import annotations

import argparse
import copy
import shutil
import sys
from pathlib import Path
from typing import Any

import lepton_train as lt
import torch
from lepton_train.compression.chain import saved_bytes
from lepton_train.demo import multiplies_bf16
from lepton_train.files import write_json, write_whole
from lepton_train.plots import before_and_after
from lepton_train.recipe_page import lists_over_seeds, over_seeds, rows_over_seeds, write_page
from lepton_train.timing import interleaved
from safetensors.torch import load_file, save_file
from torch import nn

SPARSITY = 0.9
BATCH = 256
IMAGES = (1, 16, 256)
PATTERNS = ["unstructured", "block"]
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
    """The network after some epochs; with a pattern, masked more and more up to 70 % of the steps.

    From then on without dropout: a tenth of the weights has nothing to spare.
    """
    torch.manual_seed(seed)
    model, (x, y) = network(), data
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    steps = epochs * (len(x) // BATCH)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    prunings = 12
    schedule = lt.PruningSchedule("cubic", steps=prunings)
    times = [int(steps * (0.1 + 0.6 * i / (prunings - 1))) for i in range(prunings)]
    done = 0
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for i in range(len(x) // BATCH):
            picked = order[i * BATCH : (i + 1) * BATCH]
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16()):
                output = model(x[picked])
            nn.functional.cross_entropy(output.float(), y[picked]).backward()
            optimizer.step()
            rate.step()
            if pattern is not None and done in times:
                lt.prune_(model, SPARSITY, pattern=pattern, schedule=schedule, exclude=EXCLUDE)
                if done == times[-1]:
                    for module in model.modules():
                        if isinstance(module, nn.Dropout):
                            module.p = 0.0
            done += 1
    return model.eval()


def accuracy(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Share of the images whose class it finds."""
    with torch.inference_mode():
        return (model(data[0]).argmax(1) == data[1]).float().mean().item()


def latencies(
    models: dict[str, nn.Module], x: torch.Tensor, rounds: int
) -> tuple[list[dict[str, Any]], dict[str, list[str]]]:
    """A row for each model with its milliseconds by number of images, and the forms of layers.

    After each pruned model come the packed ones; `pack_` decides anew for each number of images,
    and the size is that of the model for one.
    """
    rows: list[dict[str, Any]] = []
    forms: dict[str, list[str]] = {}
    for count in IMAGES:
        batch = x[:count]
        every: dict[str, nn.Module] = {}
        for name, model in models.items():
            every[name] = model
            for packed, dtype in packings(name):
                every[packed] = copy.deepcopy(model)
                report = lt.pack_(every[packed], example_inputs=batch, dtype=dtype, exclude=EXCLUDE)
                taken = " and ".join(row.decision for row in report.rows[:-1])
                forms.setdefault(packed, []).append(taken)
        with torch.inference_mode():
            calls = {name: (lambda m=m, b=batch: m(b)) for name, m in every.items()}
            times = interleaved(calls, rounds=rounds)
        rows = rows or [
            {"step": name, "size_mb": saved_bytes(model) / 1e6} for name, model in every.items()
        ]
        for row in rows:
            row[f"ms_{count}"] = times[row["step"]].median_ms
    return rows, forms


def packings(name: str) -> list[tuple[str, torch.dtype]]:
    """Names and dtypes of what is packed from a model."""
    if name == "dense":
        return []
    return [(f"{name}, packed", torch.float32), (f"{name}, packed int8", torch.int8)]


def trained(
    place: Path, data: tuple[torch.Tensor, torch.Tensor], seed: int, epochs: int, name: str
) -> nn.Module:
    """The network of a seed, from its file if it was trained before."""
    file = place / f"{name}, {epochs} epochs.safetensors"
    model = network().eval()
    if not file.is_file():
        found = lt.make_permanent_(train(data, seed, epochs, None if name == "dense" else name))
        write_whole(file, lambda path: save_file(found.state_dict(), path))
    model.load_state_dict(load_file(file))
    return model


def run(given: argparse.Namespace, seed: int, epochs: int) -> dict[str, Any]:
    """Train dense and pruned; returns accuracy, size and times of dense, pruned and packed."""
    smoke = given.smoke
    train_data, test_data = flat("train", smoke), flat("test", smoke)
    place = given.out / f"seed{seed}"
    if not given.reuse:
        shutil.rmtree(place, ignore_errors=True)
    names = ["dense", *given.pattern]
    models = {name: trained(place, train_data, seed, epochs, name) for name in names}
    scores = {}
    for name, model in models.items():
        scores[name] = accuracy(model, test_data)
        for packed, dtype in packings(name):
            changed = copy.deepcopy(model)
            example = test_data[0][:256]
            lt.pack_(changed, example_inputs=example, dtype=dtype, exclude=EXCLUDE)
            scores[packed] = accuracy(changed, test_data)
    rows, forms = latencies(models, test_data[0], 5 if smoke else 101)
    for row in rows:
        row["score"] = scores[row["step"]]
        times = ", ".join(f"{row[f'ms_{count}']:.3f} ms for {count}" for count in IMAGES)
        print(f"seed {seed}, {row['step']}: accuracy {row['score']:.4f}; {times}", flush=True)
    return {"seed": seed, "patterns": given.pattern, "rows": rows, "forms": forms}


def page(path: Path, results: list[dict[str, Any]], epochs: int) -> Path:
    """Write the page and its picture."""
    runs = [result["rows"] for result in results]
    heads = ("network", "accuracy", "MB", *(f"ms, {count} images" for count in IMAGES))
    forms = {"score": ".4f", "size_mb": ".2f"} | {f"ms_{count}": ".3f" for count in IMAGES}
    bars = lists_over_seeds([[{**r, "latency_ms": r["ms_1"]} for r in rows] for rows in runs])
    picture = before_and_after(bars, path.with_suffix(".png"), "accuracy")
    lines = []
    for place, name in enumerate(row["step"] for row in runs[0]):
        if "packed" not in name:
            continue
        pairs = [(rows[0], rows[place]) for rows in runs]
        points = [100 * (row["score"] - dense["score"]) for dense, row in pairs]
        faster = ", ".join(
            over_seeds([dense[f"ms_{n}"] / row[f"ms_{n}"] for dense, row in pairs], ".2f")
            + f" for {n} images"
            for n in IMAGES
        )
        taken = "; ".join(
            f"{n} images: {' or '.join(sorted({r['forms'][name][i] for r in results}))}"
            for i, n in enumerate(IMAGES)
        )
        lines.append(
            f"* {name}: {over_seeds(points, '+.2f')} points of accuracy beside dense; times as "
            f"fast as dense: {faster}. Forms that `pack_` took: {taken}."
        )
    return write_page(
        path,
        Path(__file__),
        title="A network on Fashion-MNIST with a tenth of its weights",
        line="python python/recipes/fashion_pruned.py --out fashion/ "
        f"--seeds {' '.join(str(result['seed']) for result in results)} --epochs {epochs} "
        f"--pattern {' '.join(results[0]['patterns'])}",
        tables=[(heads, rows_over_seeds(runs, forms))],
        notes=[
            f"784 - 1024 - 1024 - 10 in float32, {epochs} epochs (bfloat16 products where the CPU "
            "has them), 60,000 images to train and 10,000 to test. Of the first two layers "
            f"{SPARSITY:.0%} of the weights are set to zero while it trains, each by itself "
            "(`unstructured`) or in blocks of 16 x 4, in 12 steps, still stored dense; `packed`: "
            "the same after `pack_`, with float32 or int8 values; the last layer stays. "
            f"{len(results)} seed(s): mean, in brackets least and "
            "greatest. Times are medians of calls in turn, with weights warm in the caches; the "
            "picture's are for one image.",
            "\n".join(lines),
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
        "--pattern", choices=PATTERNS, nargs="+", default=PATTERNS, help="(default: both)"
    )
    parser.add_argument("--page", type=Path, help="Markdown (default: page.md in --out)")
    parser.add_argument("--reuse", action="store_true", help="networks that --out has; times anew")
    parser.add_argument("--smoke", action="store_true", help="a little data, two epochs, one seed")
    given = parser.parse_args(argv)
    seeds, epochs = ([0], 2) if given.smoke else (given.seeds, given.epochs)
    file, results = given.out / "report.json", []
    for seed in seeds:
        results.append(run(given, seed, epochs))
        info = {
            "patterns": given.pattern, "sparsity": SPARSITY, "epochs": epochs, "seeds": results,
        }  # fmt: skip
        write_json(file, info)
    print(f"wrote {file}")
    path = page(given.page or given.out / "page.md", results, epochs)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
