"""What `lepton demo` shows: a table on the terminal and a picture of the comparison."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lepton_train.files import write_whole
from lepton_train.packages import require

LABELS = {
    "torch_fp32": "torch fp32 (before)",
    "torch_bf16": "torch bf16",
    "torch_dynamic_int8": "torch dynamic int8",
    "lepton_dynamic": "lepton int8, dynamic",
    "lepton_dynamic_attention": "lepton int8, dynamic + attention",
    "lepton_dynamic_bf16": "lepton int8, dynamic, in bf16",
    "lepton_dynamic_bf16_attention": "lepton int8, dynamic, in bf16 + attention",
    "lepton_static": "lepton int8, static",
    "lepton_weight_only": "lepton int8, weights only",
}


def all_rows(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every variant's figures by name: before, peers, ours."""
    return {"torch_fp32": result["before"], **result["peers"], **result["variants"]}


def print_table(result: dict[str, Any]) -> None:
    """Print the comparison on standard output.

    Args:
        result (dict): from `run_demo`.
    """
    table_module = require("rich.table", "lepton demo", "rich")
    console = require("rich.console", "lepton demo", "rich").Console()
    if not console.is_terminal:
        # Piped output would be folded at 80 columns.
        console.width = 150
    batch, tokens = result["batch"], result["tokens"]
    title = f"{result['model']}, {result['isa']}, {result['threads']} threads, {result['cpu']}"
    table = table_module.Table(title=title)
    table.add_column("")
    for head in (
        f"ms, {batch} x {tokens}",
        "texts/s",
        f"ms, 1 x {tokens}",
        "speedup",
        "MB on disk",
        "Pearson",
        "worst cosine",
        "mean cosine",
    ):
        table.add_column(head, justify="right")
    base = result["before"]["latency_ms"]
    for name, row in all_rows(result).items():
        chosen = name == result["after"]["variant"]
        table.add_row(
            LABELS.get(name, name) + (" (after)" if chosen else ""),
            f"{row['latency_ms']:.1f}",
            f"{row['throughput']:.1f}",
            f"{row['batch1']['latency_ms']:.2f}",
            f"{base / row['latency_ms']:.2f}x",
            f"{row['size_mb']:.1f}",
            f"{row['score']:.4f}",
            f"{row['cosine']['worst']:.4f}",
            f"{row['cosine']['mean']:.4f}",
            style="bold" if chosen else None,
        )
    console.print(table)
    for line in summary_lines(result):
        console.print(line, highlight=False)


def summary_lines(result: dict[str, Any]) -> list[str]:
    """The outcome in a few plain lines."""
    linear = result["linear_weights_mb"]
    quantization = result["quantization"]
    count = quantization["quantized"] + quantization["left"]
    lines = [
        f"{quantization['quantized']} of {count} linear layers in int8: "
        f"{linear['before']:.1f} MB -> {linear['after']:.1f} MB "
        f"({linear['before'] / linear['after']:.2f}x smaller); "
        f"{result['speedup']:.2f}x faster at {result['batch']} x {result['tokens']}, "
        f"{result['speedup_batch1']:.2f}x at batch 1"
    ]
    lines += [
        f"lepton's attention in place of torch's ({LABELS.get(name, name)}): "
        f"{gain['speedup']:.2f}x at {result['batch']} x {result['tokens']}, "
        f"{gain['speedup_batch1']:.2f}x at batch 1"
        for name, gain in result["attention"].items()
    ]
    if not result["keeps_score"]:
        lines.append("No int8 variant kept score and embeddings within the limits.")
    lines += [f"note: {note}" for note in result["notes"]]
    lines += [f"{name} not measured: {why}" for name, why in result["missing_peers"].items()]
    return lines


def write_chart(result: dict[str, Any], path: str | os.PathLike[str]) -> Path:
    """Draw latency, size, score and worst cosine of all variants as bars.

    Args:
        result (dict): from `run_demo`.
        path (str or path): the PNG file.

    Returns:
        Path: the file.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    figure_class = require("matplotlib.figure", "lepton demo --out", "matplotlib").Figure
    rows = all_rows(result)
    names = list(rows)
    labels = [LABELS.get(name, name) for name in names]
    colours = [
        "#1f6f8b" if name == result["after"]["variant"]
        else "#8fb8c6" if name.startswith("lepton")
        else "#b0b0b0"
        for name in names
    ]  # fmt: skip
    batch, tokens = result["batch"], result["tokens"]
    panels = [
        (f"latency, {batch} x {tokens} (ms)", [rows[n]["latency_ms"] for n in names], "{:.0f}"),
        ("latency, batch 1 (ms)", [rows[n]["batch1"]["latency_ms"] for n in names], "{:.1f}"),
        ("weights on disk (MB)", [rows[n]["size_mb"] for n in names], "{:.1f}"),
        ("Pearson with human ratings", [rows[n]["score"] for n in names], "{:.4f}"),
    ]
    figure = figure_class(figsize=(13, 0.55 * len(names) + 4.5), layout="constrained")
    for axis, (title, values, form) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        bars = axis.barh(labels, values, color=colours)
        axis.bar_label(bars, labels=[form.format(value) for value in values], padding=3)
        axis.set_title(title)
        axis.invert_yaxis()
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{result['model']}: {result['cpu']}, {result['isa']}, {result['threads']} threads, "
        f"torch {result['torch']}"
    )
    return write_whole(path, lambda file: figure.savefig(file, dpi=120))
