"""A module is allocated only where the weights on disk have its size.

A manifest of a few bytes can ask for a layer of terabytes. So each module is first made without
memory (on torch's meta device), and compared with the header of the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lepton_train.bundle import torch_modules
from lepton_train.bundle.errors import BundleError
from lepton_train.bundle.manifest import Node
from lepton_train.bundle.transformers_models import make_transformers_model
from lepton_train.bundle.weights import Header

_CONTAINERS = torch_modules.CONTAINERS | {"TransformerEncoder"}
_WITHOUT_WEIGHTS = ("ResidualNorm", "SentenceEncoder")


class Sizes:
    """What the weights on disk allow.

    Args:
        header (Header): dtype and shape of each tensor.
        ties (mapping): names of tensors that are stored under another name.
    """

    def __init__(self, header: Header, ties: Mapping[str, str]) -> None:
        self.header = header
        self.ties = ties

    def check(self, node: Node, place: str) -> None:
        """Compare a node with the weights.

        Raises:
            BundleError: they have another shape, or there are none.
        """
        if node.kind == "builder" or (node.kind == "torch" and node.name in _CONTAINERS):
            return
        if node.kind == "lepton" and node.name != "MultiheadAttention":
            if node.name not in _WITHOUT_WEIGHTS:
                self._check_linear(node, place)
            return
        with torch.device("meta"):
            if node.kind == "transformers":
                made = make_transformers_model(node.name, node.arguments)
            elif node.kind == "lepton":
                made = torch_modules.make("MultiheadAttention", node.arguments)
            else:
                made = torch_modules.make(node.name, node.arguments)
        replaced = tuple(f"{name}." for name in node.children)
        for name, tensor in made.state_dict().items():
            if name.startswith(replaced):
                continue
            if node.mask and name == "weight":
                name = "parametrizations.weight.original"
            self._check(_join(place, name), tuple(tensor.shape))

    def _check_linear(self, node: Node, place: str) -> None:
        rows, columns = self._number(node, "out_features"), self._number(node, "in_features")
        if node.name == "SparseLinear":
            self._check(_join(place, "mask"), (rows, (columns + 7) // 8))
        else:
            self._check(_join(place, "weight"), (rows, columns))

    @staticmethod
    def _number(node: Node, name: str) -> int:
        value: Any = node.arguments.get(name)
        if not isinstance(value, int) or value < 0:
            raise BundleError(f"bundle: {node.name}: {name} must be a whole number, got {value!r}")
        return value

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        stored = self.header.get(name) or self.header.get(self.ties.get(name, name))
        if stored is None:
            raise BundleError(f"bundle: weights do not fit the architecture: they lack {name!r}")
        if stored[1] != shape:
            raise BundleError(
                f"bundle: weights do not fit the architecture: {name!r} must have shape {shape}, "
                f"got {stored[1]}"
            )


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
