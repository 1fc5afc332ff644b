"""Federated averaging on Fashion-MNIST: 10 clients with unbalanced labels against central training.

    apt-get install dataset-fashion-mnist && pip install ".[demo]"
    python python/recipes/federated_averaging.py --out federated/ --seeds 0 1 2

One network from one start: trained centrally for 10 passes over the images, then by 20 averages of
whole updates, and by 20 averages of int8 updates with error feedback; a client passes over its own
images once between two averages. No Ray, no network.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from pathlib import Path
from typing import Any

import lepton_train as lt
import torch
from lepton_train.data.fashion import load_fashion_mnist
from lepton_train.files import write_json, write_whole
from lepton_train.packages import require
from lepton_train.recipe_page import over_seeds, write_page
from lepton_train.report import kilobytes, tensor_bytes, text_table
from lepton_train.timing import interleaved
from torch import nn

CLIENTS, ALPHA = 10, 0.5


def network() -> nn.Module:
    """Two linear layers of 101,770 weights in all."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))


def run(arguments: argparse.Namespace, seed: int, rounds: int, passes: int) -> dict[str, Any]:
    """Central and federated training from one start; returns scores and bytes."""
    train, test = (load_fashion_mnist(name, arguments.data) for name in ("train", "test"))
    if arguments.smoke:
        train, test = train.subset(range(2000)), test.subset(range(500))
    torch.manual_seed(seed)
    start = network()

    def score(model: nn.Module) -> float:
        return lt.federated.accuracy_of(model, test.inputs, test.labels)

    settings = lt.federated.LocalTraining(batch_size=64, learning_rate=0.05)
    parts = lt.federated.dirichlet_partition(train.labels, CLIENTS, alpha=ALPHA, seed=seed)
    shares = torch.stack([train.labels[part].bincount(minlength=10) for part in parts])
    print(f"seed {seed}: images of each class by client (Dirichlet, alpha {ALPHA})")
    print(text_table([""] + [str(i) for i in range(10)], [
        [f"client {i}", *map(str, row)] for i, row in enumerate(shares.tolist())
    ]))  # fmt: skip

    central = copy.deepcopy(start)
    curves: dict[str, list[float]] = {"central": []}
    trainer = lt.federated.LocalTrainer(train.inputs, train.labels, settings, seed=seed)
    for number in range(passes):
        trainer.train(central)
        curves["central"].append(score(central))
        print(f"central, pass {number + 1}: {curves['central'][-1]:.4f}", flush=True)

    result: dict[str, Any] = {"seed": seed, "before": score(start), "bytes": {}}
    models = {"central": central}
    for compression in (None if each == "none" else each for each in arguments.compression):
        name = "federated" if compression is None else f"federated {compression}"
        model = copy.deepcopy(start)
        clients = [
            lt.federated.LocalTrainer(
                train.inputs[part], train.labels[part], settings, seed=seed * CLIENTS + index
            )
            for index, part in enumerate(parts)
        ]
        found = lt.federated.simulate(
            model,
            clients,
            rounds=rounds,
            compression=compression,
            seed=seed,
            evaluate=score,
            after_round=lambda number, value, name=name: print(
                f"{name}, round {number + 1}: {value:.4f}", flush=True
            ),
        )
        curves[name] = found.scores
        models[name] = model
        result["bytes"][name] = found.bytes_sent
    times = interleaved(
        {name: lambda model=model: model(test.inputs[:500]) for name, model in models.items()},
        rounds=5,
    )
    rows = [["before", f"{result['before']:.4f}", kilobytes(tensor_bytes(start)), "", ""]]
    for name, model in models.items():
        sent = result["bytes"].get(name)
        rows.append([
            name,
            f"{curves[name][-1]:.4f}",
            kilobytes(tensor_bytes(model)),
            f"{times[name].median_ms:.2f} ms",
            "" if sent is None else kilobytes(sent),
        ])  # fmt: skip
    heads = ("model", "accuracy", "size", "500 images", "sent by clients")
    print(text_table(heads, rows))
    result["curves"] = curves
    return result


def plot(results: list[dict[str, Any]], path: Path) -> Path:
    """Accuracy over rounds, one line for each seed."""
    figure = require("matplotlib.figure", "a picture", "matplotlib").Figure(layout="constrained")
    axis = figure.add_subplot()
    colours = {
        "central": "tab:grey",
        "federated": "tab:blue",
        "federated bf16": "tab:green",
        "federated int8": "tab:orange",
    }
    for index, result in enumerate(results):
        for name, curve in result["curves"].items():
            rounds = range(1, len(curve) + 1)
            label = name if index == 0 else None
            axis.plot(rounds, curve, color=colours[name], label=label, alpha=0.7)
    axis.set_xlabel("passes over the data (federated: rounds)")
    axis.set_ylabel("accuracy on test images")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    return write_whole(path, lambda file: figure.savefig(file, dpi=120))


def main(argv: list[str] | None = None) -> int:
    """Run the recipe for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("federated"), help="(default: federated)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: 0)")
    parser.add_argument("--rounds", type=int, default=20, help="averages (default: 20)")
    parser.add_argument("--passes", type=int, default=10, help="central ones (default: 10)")
    parser.add_argument(
        "--compression", nargs="+", choices=("none", "bf16", "int8"), default=["none", "int8"],
        help="of the updates, one run for each (default: none int8)",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, help="folder with the files of Fashion-MNIST")
    parser.add_argument("--page", type=Path, help="Markdown (default: page.md in --out)")
    parser.add_argument("--smoke", action="store_true", help="2,000 images, two rounds")
    arguments = parser.parse_args(argv)
    begin = time.perf_counter()
    rounds, passes = (2, 2) if arguments.smoke else (arguments.rounds, arguments.passes)
    results = [run(arguments, seed, rounds, passes) for seed in arguments.seeds]
    names = list(results[0]["curves"])
    finals = {name: [result["curves"][name][-1] for result in results] for name in names}
    for name, scores in finals.items():
        print(f"{name}: accuracy {over_seeds(scores)}, {len(scores)} seed(s)")
    gaps = {
        name: max(c - f for c, f in zip(finals["central"], finals[name], strict=True))
        for name in names[1:]
    }
    for name, gap in gaps.items():
        print(f"{name}: at most {100 * gap:.2f} points below central training")
    page = arguments.page or arguments.out / "page.md"
    picture = plot(results, page.with_suffix(".png"))
    heads = ("", "accuracy", "largest gap to central, points", "MB sent by clients")
    sent = {name: [r["bytes"].get(name, 0) / 1e6 for r in results] for name in names}
    table = [
        [
            name,
            over_seeds(finals[name]),
            f"{100 * gaps[name]:.2f}" if name in gaps else "",
            over_seeds(sent[name], ".1f") if name in gaps else "",
        ]
        for name in names
    ]
    write_page(
        page,
        Path(__file__),
        title="Federated averaging on Fashion-MNIST",
        line="python python/recipes/federated_averaging.py --out federated/ "
        f"--seeds {' '.join(map(str, arguments.seeds))}",
        tables=[(heads, table)],
        notes=[
            f"{CLIENTS} clients with unbalanced labels (Dirichlet, alpha {ALPHA}), {rounds} rounds "
            f"of one local pass each, against {passes} central passes; 784-128-10 network, batch "
            f"64; accuracy on the test images. {len(results)} seed(s): mean, in brackets least "
            "and greatest."
        ],
        picture=picture.name,
    )
    write_json(
        arguments.out / "report.json",
        {
            "clients": CLIENTS,
            "alpha": ALPHA,
            "rounds": rounds,
            "passes": passes,
            "largest_gap": gaps,
            "seconds": time.perf_counter() - begin,
            "results": results,
        },
    )
    print(f"wrote {arguments.out} and {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
