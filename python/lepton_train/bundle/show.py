"""A bundle in words, for people."""

from __future__ import annotations

from lepton_train.bundle.folder import WEIGHTS, Contents
from lepton_train.report import kilobytes, text_table


def as_text(contents: Contents) -> str:
    """What a bundle is, was measured at, needs, and holds by layer."""
    manifest = contents.manifest
    metadata, requirements = manifest.metadata, manifest.requirements
    size = (contents.root / WEIGHTS).stat().st_size
    root = manifest.architecture.root
    lines = [
        ("name", metadata.name),
        ("description", metadata.description),
        ("version", f"{manifest.version}, saved {manifest.created}"),
        ("licence", metadata.licence),
        ("architecture", f"{root.kind} {root.name}, {manifest.architecture.parameters} parameters"),
        ("weights", kilobytes(size)),
        ("preprocessing", str(metadata.preprocessing.get("kind", "described"))),
        ("labels", ", ".join(metadata.labels)),
        ("needs", f"torch >= {requirements.torch}, {kilobytes(requirements.memory_bytes)} memory"),
        ("saved with", ", ".join(f"{k} {v}" for k, v in requirements.saved_with.items())),
        ("digest", contents.digest),
    ]
    lines += [("provenance", f"{key}: {value}") for key, value in metadata.provenance.items()]
    for metric in metadata.metrics:
        data = f" on {metric.data}" if metric.data else ""
        checksum = f" (SHA-256 {metric.data_sha256[:16]}...)" if metric.data_sha256 else ""
        lines.append(("metric", f"{metric.name} {metric.value:.6g}{data}{checksum}"))
    text = "\n".join(f"{name:14} {value}" for name, value in lines if value)
    rows = [
        (
            layer.name,
            layer.form,
            f"{layer.shape[0]} x {layer.shape[1]}",
            layer.quantization,
            f"{layer.sparsity:.1%}",
            layer.layout or "",
            kilobytes(layer.bytes),
        )
        for layer in manifest.layers
    ]
    heads = ("layer", "form", "out x in", "quantisation", "zeros", "layout", "size")
    return f"{text}\n\n{text_table(heads, rows)}" if rows else text
