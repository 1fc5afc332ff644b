"""The commands `lepton train`, `lepton eval` and `lepton compress`."""

from __future__ import annotations

import argparse
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lepton_train.command_types import above_zero, count, whole
from lepton_train.metrics import get
from lepton_train.training.learning_rate import SCHEDULES
from lepton_train.training.optimizers import NAMES as OPTIMIZERS
from lepton_train.training.settings import PRECISIONS

_MODEL = "image_cnn, text_classifier, or package.module:function"
_DATA = "mnist, digits, fashion_mnist, movie_reviews, or a path: .csv, .jsonl, folder of classes"


def add(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands to the parser of `lepton`.

    Args:
        commands (any): what `add_subparsers` gave.
        command (callable): `command(commands, name, text, example)` makes a parser.
    """
    _add_train(commands, command)
    _add_eval(commands, command)
    _add_compress(commands, command)


def _add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, type=_model, metavar="NAME", help=_MODEL)
    parser.add_argument("--data", required=True, type=_data, metavar="NAME", help=_DATA)
    parser.add_argument("--limit", type=count, metavar="N", help="examples at most")
    parser.add_argument("--batch-size", type=count, default=32, metavar="N", help="(default: 32)")


def _add_metric(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric", action="append", type=_metric, default=[], metavar="NAME",
        help="may be given several times",
    )  # fmt: skip


def _add_train(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    parser = command(
        commands,
        "train",
        "Train a model on data and keep its checkpoints.",
        "lepton train --model image_cnn --data mnist --epochs 3 --out run/ --processes 2",
    )
    _add_task(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="checkpoints, card, curves")
    parser.add_argument("--epochs", type=count, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--lr", type=above_zero, metavar="RATE", help="highest learning rate")
    for flag, known, default in (
        ("--optimizer", OPTIMIZERS, "adamw"),
        ("--schedule", SCHEDULES, "cosine"),
        ("--precision", tuple(PRECISIONS), "fp32"),
    ):
        parser.add_argument(flag, choices=known, default=default, help=f"(default: {default})")
    parser.add_argument(
        "--clip-norm", type=above_zero, metavar="NORM", help="largest gradient norm"
    )
    parser.add_argument("--early-stopping", type=whole, metavar="EPOCHS", help="patience")
    _add_metric(parser)
    parser.add_argument("--seed", type=whole, default=0, metavar="N", help="(default: 0)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in DIR")
    parser.add_argument(
        "--processes", type=count, default=1, metavar="N", help="on this machine (default: 1)"
    )
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON to FILE")
    parser.set_defaults(run=_train)


def _add_eval(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    parser = command(
        commands,
        "eval",
        "Evaluate a trained model: scores, latency, size, confusion matrix.",
        "lepton eval --model image_cnn --data mnist --weights run/best.pt --metric f1_macro",
    )
    _add_task(parser)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of a training")
    parser.add_argument("--part", choices=("train", "val", "test"), default="test")
    _add_metric(parser)
    parser.add_argument("--out", metavar="DIR", help="write eval.json and confusion.png into DIR")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON to FILE")
    parser.set_defaults(run=_eval)


def _add_compress(commands: Any, command: Callable[..., argparse.ArgumentParser]) -> None:
    parser = command(
        commands,
        "compress",
        "Run a whole chain of training and compression from one recipe.",
        "lepton compress --recipe python/recipes/digits.yaml --out small/",
    )
    parser.add_argument(
        "--recipe", required=True, metavar="FILE", help="YAML: see docs/training.md"
    )
    parser.add_argument("--weights", metavar="FILE", help="checkpoint to begin with")
    parser.add_argument(
        "--seed", type=whole, nargs="+", metavar="N",
        help="in place of the recipe's; several: one run for each, and their spread",
    )  # fmt: skip
    parser.add_argument("--limit", type=count, metavar="N", help="examples at most")
    parser.add_argument("--rounds", type=count, default=15, metavar="N", help="timed calls (15)")
    parser.add_argument("--out", metavar="DIR", help="report, plot, weights and bundle")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON to FILE")
    parser.set_defaults(run=_compress)


def _metric(text: str) -> str:
    try:
        get(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _model(text: str) -> str:
    from lepton_train.compression.sources import check_model

    try:
        check_model(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _data(text: str) -> str:
    from lepton_train.compression.sources import DATA_KEYS, check_data, specification

    try:
        check_data(specification("data", text, DATA_KEYS))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _task(arguments: argparse.Namespace, weights: str | None = None) -> Any:
    from lepton_train.compression.sources import DATA_KEYS, load_task, specification

    data = specification("data", arguments.data, DATA_KEYS)
    if arguments.limit:
        data["limit"] = arguments.limit
    model = {"name": arguments.model, "seed": getattr(arguments, "seed", 0)}
    return load_task(model, data, weights)


def _train(arguments: argparse.Namespace) -> int:
    from lepton_train.launch import inside_launch, launch

    if arguments.processes > 1 and not inside_launch():
        script = Path(sysconfig.get_path("scripts")) / "lepton"
        return 1 if launch([str(script), *arguments.argv], arguments.processes) else 0
    from lepton_train.data import data_card
    from lepton_train.files import write_json
    from lepton_train.packages import require
    from lepton_train.training import fit
    from lepton_train.training.processes import Processes

    require("matplotlib", "lepton train")
    here = Processes.here(None)
    task = _task(arguments)
    out = Path(arguments.out)
    card = data_card(task.data)
    if here.rank == 0:
        print(card)
        write_json(out / "data_card.json", card.to_dict())
    result = fit(
        task.model,
        task.data.train,
        task.data.val,
        epochs=arguments.epochs,
        batch_size=arguments.batch_size,
        lr=arguments.lr,
        optimizer=arguments.optimizer,
        schedule=arguments.schedule,
        warmup=0.1,
        precision=arguments.precision,
        clip_norm=arguments.clip_norm,
        early_stopping=arguments.early_stopping,
        metrics=arguments.metric,
        checkpoint=out,
        resume=arguments.resume,
        seed=arguments.seed,
    )
    if here.rank == 0:
        print(result)
        print(f"wrote {result.checkpoint}")
        print(f"wrote {result.plot(out / 'curves.png')}")
        report = {"data": card.to_dict(), "processes": here.world, **result.to_dict()}
        print(f"wrote {write_json(arguments.json or out / 'train.json', report)}")
    return 0


def _eval(arguments: argparse.Namespace) -> int:
    from lepton_train.files import write_json
    from lepton_train.packages import require
    from lepton_train.training import evaluate

    if arguments.out:
        require("matplotlib", "lepton eval --out")
    task = _task(arguments, arguments.weights)
    part = task.data.parts[arguments.part]
    result = evaluate(
        task.model.eval(),
        part,
        metrics=arguments.metric,
        batch_size=arguments.batch_size,
        latency=True,
    )
    print(result)
    report = {"data": part.name, "part": arguments.part, **result.to_dict()}
    if arguments.json:
        print(f"wrote {write_json(arguments.json, report)}")
    if arguments.out:
        out = Path(arguments.out)
        print(f"wrote {write_json(out / 'eval.json', report)}")
        if result.confusion:
            print(f"wrote {result.plot_confusion(out / 'confusion.png', part.classes)}")
    return 0


def _compress(arguments: argparse.Namespace) -> int:
    from lepton_train.packages import require

    require("pydantic", "lepton compress")
    require("yaml", "lepton compress", "pyyaml")
    if arguments.out:
        require("matplotlib", "lepton compress --out")
    from lepton_train.files import write_json

    seeds = arguments.seed or [None]
    reports = []
    for seed in seeds:
        out = Path(arguments.out) if arguments.out else None
        if out is not None and len(seeds) > 1:
            out = out / f"seed{seed}"
        reports.append(_compress_once(arguments, seed, out))
    values: Any = [report.to_dict() for report in reports]
    if arguments.json:
        print(f"wrote {write_json(arguments.json, values if len(seeds) > 1 else values[0])}")
    if arguments.out:
        print(f"wrote {_write_page(arguments, reports)}")
    return 0


def _compress_once(arguments: argparse.Namespace, seed: int | None, out: Path | None) -> Any:
    """Run the recipe with one seed; returns its report."""
    from lepton_train.compression.run_recipe import run_recipe, save_bundle, save_weights
    from lepton_train.files import write_json

    run = run_recipe(
        arguments.recipe,
        weights=arguments.weights,
        seed=seed,
        limit=arguments.limit,
        rounds=arguments.rounds,
    )
    report = run.report
    print(report)
    if out is not None:
        from lepton_train.bundle import BundleError

        print(f"wrote {write_json(out / 'report.json', report.to_dict())}")
        print(f"wrote {report.plot(out / 'report.png')}")
        print(f"wrote {save_weights(run.model, out / 'model.safetensors')}")
        try:
            digest = save_bundle(run, out / "bundle")
            print(f"wrote {out / 'bundle'}, digest {digest}")
        except BundleError as error:
            print(f"no bundle: {error}")
    return report


def _write_page(arguments: argparse.Namespace, reports: list[Any]) -> Path:
    """The table over seeds, with the picture, into the folder of the run."""
    from dataclasses import asdict

    from lepton_train.plots import before_and_after
    from lepton_train.recipe_page import lists_over_seeds, rows_over_seeds, write_page
    from lepton_train.report import text_table

    first = reports[0]
    runs = [[asdict(row) for row in report.rows] for report in reports]
    batch = f"ms for a batch of {first.batch_size}"
    heads = ("after step", first.metric, "MB", batch, "zeros", "seconds")
    forms = {
        "score": ".4f", "size_mb": ".3f", "latency_ms": ".2f", "sparsity": ".1%", "seconds": ".0f",
    }  # fmt: skip
    table = rows_over_seeds(runs, forms)
    if len(reports) > 1:
        print(f"{len(reports)} seeds: mean (least to greatest)\n{text_table(heads, table)}")
    page = Path(arguments.out) / "page.md"
    picture = before_and_after(lists_over_seeds(runs), page.with_suffix(".png"), first.metric)
    seeds = f" --seed {' '.join(map(str, arguments.seed))}" if arguments.seed else ""
    recipe = Path(arguments.recipe)
    shown = recipe.name if recipe.is_absolute() else recipe  # a page names no machine's folders
    return write_page(
        page,
        arguments.recipe,
        title=f"The whole chain: {first.name}",
        line=f"lepton compress --recipe {shown} --out DIR{seeds}",
        tables=[(heads, table)],
        notes=[
            f"Scored on the {first.scored_on} data; latencies are medians of the models of all "
            f"steps, timed in turn in one process. {len(reports)} seed(s): mean, in brackets least "
            "and greatest."
        ],
        picture=picture.name,
    )
