"""What a compression step did to each layer: `QuantizationReport` and its rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class LayerRow:
    """One linear layer in a `QuantizationReport`.

    Args:
        name (str): the module's name in the model.
        in_features (int): size of the layer's input.
        out_features (int): size of the layer's output.
        action (str): `"int8"`, `"int8 qat"` or `"left"`.
        reason (str): why it was left, or what is special about the change; may be empty.
        bytes_before (int): weight and bias before, in bytes.
        bytes_after (int): weight, scales and bias after, as they lie in memory, in bytes.
        x_scale (float, optional): step of the quantised input in static quantisation.
        x_zero_point (int, optional): its zero point.
    """

    name: str
    in_features: int
    out_features: int
    action: str
    reason: str = ""
    bytes_before: int = 0
    bytes_after: int = 0
    x_scale: float | None = None
    x_zero_point: int | None = None


@dataclass
class QuantizationReport:
    """What `quantize_` and `convert_` changed, what they left, and why; `str()` gives a table.

    Args:
        mode (str): the mode that was asked for.
        rows (list of LayerRow): one for each linear layer, in the order of the model.
        model_bytes_before (int): all parameters and buffers of the model, shared ones once.
        model_bytes_after (int): the same after the change.

    Example:
        >>> import torch, lepton_train as lt
        >>> report = lt.quantize_(torch.nn.Sequential(torch.nn.Linear(256, 64)))
        >>> [(row.name, row.action) for row in report.rows]
        [('0', 'int8')]
    """

    mode: str
    rows: list[LayerRow] = field(default_factory=list)
    model_bytes_before: int = 0
    model_bytes_after: int = 0

    @property
    def quantized(self) -> list[str]:
        """Names of the layers that were changed."""
        return [row.name for row in self.rows if row.action != "left"]

    @property
    def left(self) -> dict[str, str]:
        """Name and reason of each layer that was left as it was."""
        return {row.name: row.reason for row in self.rows if row.action == "left"}

    @property
    def linear_bytes_before(self) -> int:
        """Bytes of all linear layers before."""
        return sum(row.bytes_before for row in self.rows)

    @property
    def linear_bytes_after(self) -> int:
        """Bytes of all linear layers after."""
        return sum(row.bytes_after for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return {
            "mode": self.mode,
            "quantized": len(self.quantized),
            "left": len(self.left),
            "linear_bytes_before": self.linear_bytes_before,
            "linear_bytes_after": self.linear_bytes_after,
            "model_bytes_before": self.model_bytes_before,
            "model_bytes_after": self.model_bytes_after,
            "rows": [asdict(row) for row in self.rows],
        }

    def __str__(self) -> str:
        cells = [
            (
                row.name,
                f"{row.out_features} x {row.in_features}",
                row.action,
                kilobytes(row.bytes_before),
                kilobytes(row.bytes_after),
                "" if row.x_scale is None else f"{row.x_scale:.4g}",
                "" if row.x_zero_point is None else str(row.x_zero_point),
                row.reason,
            )
            for row in self.rows
        ]
        heads = ("layer", "out x in", "action", "before", "after", "x_scale", "x_zero", "note")
        totals = (
            f"{self.mode}: {len(self.quantized)} of {len(self.rows)} linear layers changed; "
            f"linear layers {kilobytes(self.linear_bytes_before)} -> "
            f"{kilobytes(self.linear_bytes_after)}, model {kilobytes(self.model_bytes_before)} -> "
            f"{kilobytes(self.model_bytes_after)} in memory"
        )
        return text_table(heads, cells) + "\n" + totals


def kilobytes(size: int) -> str:
    """A number of bytes in kB (1000 bytes) or MB, for people.

    Example:
        >>> kilobytes(2_500_000)
        '2.50 MB'
    """
    return f"{size / 1e6:.2f} MB" if size >= 1_000_000 else f"{size / 1e3:.1f} kB"


def text_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Plain text table with columns as wide as needed; columns without any content are dropped.

    Example:
        >>> print(text_table(("a", "b"), [("1", "22"), ("333", "4")]))
        a    b
        1    22
        333  4
    """
    cells = [tuple(row) for row in rows]
    kept = [i for i in range(len(heads)) if not cells or any(row[i] for row in cells)]
    widths = {i: max(len(row[i]) for row in [tuple(heads), *cells]) for i in kept}
    lines = ["  ".join(row[i].ljust(widths[i]) for i in kept) for row in [tuple(heads), *cells]]
    return "\n".join(line.rstrip() for line in lines)


def tensor_bytes(*modules: nn.Module) -> int:
    """Bytes of the parameters and buffers of modules; tensors that share memory count once."""
    sizes = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            # Tensors on the meta device all have address 0.
            key = (tensor.data_ptr() or id(tensor), tensor.numel())
            sizes[key] = tensor.numel() * tensor.element_size()
    return sum(sizes.values())
