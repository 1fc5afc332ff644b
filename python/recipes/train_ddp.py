"""A network on Fashion-MNIST with two processes: the accuracy of one, and where the time goes.

    apt-get install dataset-fashion-mnist
    pip install ".[train]" && python python/recipes/train_ddp.py --out ddp/ --seeds 0 1 2

Trains the same network with one process and with several, on the same global batches, by torchrun.
Writes `report.json`, a page, and its picture: loss over steps, and the time of a step as
computation, communication (sums of gradients) and waiting for the other process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import lepton_train as lt
import torch
import torch.distributed as dist
from lepton_train.files import write_json
from lepton_train.launch import add_stage_options, run_stage
from lepton_train.plots import training_time
from lepton_train.recipe_page import over_seeds, write_page
from lepton_train.report import text_table
from torch import nn

HERE = Path(__file__).resolve()
GLOBAL_BATCH = 128


def network() -> nn.Module:
    """784-256-10."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


def train(seed: int, smoke: bool, compression: str | None) -> dict[str, Any]:
    """What each of the processes does; returns losses, times and the score of the whole."""
    lt.distributed.join_torchrun()
    rank, world = dist.get_rank(), dist.get_world_size()
    data, test = lt.data.load_fashion_mnist("train"), lt.data.load_fashion_mnist("test")
    if smoke:
        data, test = data.subset(range(2000)), test.subset(range(500))
    torch.manual_seed(seed)
    model: Any = network()
    if world > 1:
        shared = None if compression is None else False
        model = lt.distributed.BucketedDataParallel(
            model, compression=compression, shared_memory=shared, check_every=200
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    share = GLOBAL_BATCH // world
    generator = torch.Generator().manual_seed(seed)
    losses, times = [], []
    for _ in range(1 if smoke else 3):
        order = torch.randperm(len(data), generator=generator)
        for i in range(0, len(order) - GLOBAL_BATCH + 1, GLOBAL_BATCH):
            rows = order[i + rank * share : i + (rank + 1) * share]
            before = model.step_seconds if world > 1 else {"waiting": 0.0, "communication": 0.0}
            begin = time.perf_counter()
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(data.inputs[rows]), data.labels[rows])
            loss.backward()
            optimizer.step()
            seconds = time.perf_counter() - begin
            after = model.step_seconds if world > 1 else before
            waiting = after["waiting"] - before["waiting"]
            whole = after["communication"] - before["communication"]
            times.append((seconds - whole, whole - waiting, waiting))
            losses.append(loss.item())
    total = torch.tensor(losses)
    dist.all_reduce(total)
    plain = model.module if world > 1 else model
    score = lt.evaluate(plain, test, metrics=["accuracy"])
    names = ("computation", "communication", "waiting")
    medians = [1e3 * statistics.median(column) for column in zip(*times, strict=True)]
    return {
        "processes": world,
        "seed": seed,
        "threads": torch.get_num_threads(),
        "losses": (total / world).tolist(),
        "milliseconds": dict(zip(names, medians, strict=True)),
        "accuracy": score.scores["accuracy"],
        "transport": model.transport if world > 1 else "none",
    }


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Train with one process and with several, for each seed."""
    results = []
    for seed in arguments.seeds:
        for processes in (1, arguments.processes):
            options = ["--smoke"] if arguments.smoke else []
            options += ["--compression", arguments.compression] if arguments.compression else []
            with run_stage(HERE, processes, seed=seed, options=options) as folder:
                result = json.loads((folder / "result.json").read_text())
            results.append(result)
            parts = ", ".join(f"{k} {v:.2f} ms" for k, v in result["milliseconds"].items())
            print(
                f"seed {seed}, {processes} process(es): accuracy {result['accuracy']:.4f}, final "
                f"loss {statistics.mean(result['losses'][-50:]):.4f}; a step: {parts}"
            )
    return results


def table_of(results: list[dict[str, Any]]) -> list[list[str]]:
    """For one process and for several: accuracy, last loss, and the parts of a step, over seeds."""
    rows = []
    for processes in dict.fromkeys(r["processes"] for r in results):
        mine = [r for r in results if r["processes"] == processes]
        parts = mine[0]["milliseconds"]
        rows.append(
            [
                str(processes),
                str(mine[0]["threads"]),
                over_seeds([r["accuracy"] for r in mine]),
                over_seeds([statistics.mean(r["losses"][-50:]) for r in mine]),
                *(over_seeds([r["milliseconds"][part] for r in mine], ".2f") for part in parts),
            ]
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("ddp"), help="(default: ddp)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: 0)")
    parser.add_argument("--compression", choices=("bf16", "int8", "powersgd"), help="over gloo")
    parser.add_argument("--page", type=Path, help="Markdown (default: page.md in --out)")
    parser.add_argument("--smoke", action="store_true", help="little data, one epoch")
    add_stage_options(parser)
    arguments = parser.parse_args(argv)
    if arguments.stage is not None:
        result = train(arguments.seed, arguments.smoke, arguments.compression)
        if dist.get_rank() == 0:
            write_json(arguments.stage / "result.json", result)
        dist.destroy_process_group()
        return 0
    results = run(arguments)
    transport = results[-1]["transport"]
    heads = ("processes", "threads each", "accuracy", "loss of the last 50 steps")
    heads += tuple(f"{part}, ms" for part in results[0]["milliseconds"])
    table = table_of(results)
    print(text_table(heads, table))
    page = arguments.page or arguments.out / "page.md"
    picture = training_time(results, page.with_suffix(".png"))
    write_json(arguments.out / "report.json", {"runs": results, "transport": transport})
    seeds = " ".join(map(str, arguments.seeds))
    options = f" --compression {arguments.compression}" if arguments.compression else ""
    write_page(
        page,
        HERE,
        title="Data-parallel training on Fashion-MNIST",
        line=f"python python/recipes/train_ddp.py --out ddp/ --seeds {seeds}{options}",
        tables=[(heads, table)],
        notes=[
            f"A network 784-256-10, SGD, {len(results[0]['losses'])} steps of {GLOBAL_BATCH} "
            f"images together, the same batches in both rows; gradients by {transport}. "
            f"{len(arguments.seeds)} seed(s): mean, in brackets least and greatest. Times are "
            "medians of a step: computation, the sums of gradients (communication), and waiting "
            "for the other process."
        ],
        picture=picture.name,
    )
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
