"""How raw inputs become a model's inputs, as plain values in the manifest."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from lepton_train.bundle.errors import BundleError
from lepton_train.bundle.manifest import Part, first_problem
from lepton_train.packages import require

require("pydantic", "a bundle's preprocessing", extra="bundle")

from pydantic import Field, ValidationError  # noqa: E402


class Standardize(Part):
    """(x * factor - mean) / std, along one dimension.

    Args:
        factor (float): such as 1 / 255 for bytes. Default: 1.
        mean (float or list): one number, or one for each index of `dim`. Default: 0.
        std (float or list): likewise, none of them 0. Default: 1.
        dim (int): dimension of the lists. Default: -1.
    """

    kind: Literal["standardize"]
    factor: float = 1.0
    mean: float | list[float] = 0.0
    std: float | list[float] = 1.0
    dim: int = -1


class Text(Part):
    """Texts to token numbers by a `tokenizer.json` of the tokenizers library, which holds no code.

    Args:
        tokenizer (str): file in the bundle. Default: "assets/tokenizer.json".
        max_length (int): tokens at most; longer texts are cut. Default: 128.
        pad_id (int): number of the padding token. Default: 0.
    """

    kind: Literal["text"]
    tokenizer: str = "assets/tokenizer.json"
    max_length: int = Field(default=128, ge=1, le=1 << 20)
    pad_id: int = Field(default=0, ge=0)


class Preprocessing:
    """Preprocessing that a manifest names.

    Args:
        stated (dict): `{"kind": "none"}`, "standardize" or "text" with the fields above; one
            without `kind` is a note for people, and inputs are the model's own.

    Raises:
        BundleError: an unknown kind, or wrong fields.

    Example:
        >>> step = Preprocessing({"kind": "standardize", "mean": 2.0, "std": 4.0})
        >>> step.tensor(torch.tensor([[2.0, 6.0]]))
        tensor([[0., 1.]])
    """

    def __init__(self, stated: dict[str, Any]) -> None:
        self.step: Standardize | Text | None = None
        kind = stated.get("kind", "none")
        kinds: dict[Any, type[Standardize] | type[Text]] = {
            "standardize": Standardize,
            "text": Text,
        }
        if kind == "none":
            return
        if kind not in kinds:
            raise BundleError(
                f"bundle: preprocessing kind must be one of none, {', '.join(kinds)}; got {kind!r}"
            )
        try:
            self.step = kinds[kind].model_validate(stated)
        except ValidationError as error:
            raise BundleError(f"bundle: preprocessing: {first_problem(error)}") from None
        self._tokenizer: Any = None

    @property
    def takes_text(self) -> bool:
        """Whether raw inputs are texts."""
        return isinstance(self.step, Text)

    def check(self, assets: Container[str]) -> None:
        """BundleError where a file that it needs is not among the assets."""
        if isinstance(self.step, Text) and self.step.tokenizer not in assets:
            raise BundleError(
                f"bundle: preprocessing needs {self.step.tokenizer!r}: pass it in files="
            )

    def open(self, root: Path, listed: Container[str]) -> Preprocessing:
        """Read the files that it needs from a bundle that has been checked."""
        self.check(listed)
        if isinstance(self.step, Text):
            library = require("tokenizers", "preprocessing of text", extra="bundle")
            try:
                self._tokenizer = library.Tokenizer.from_file(str(root / self.step.tokenizer))
            except Exception as error:
                raise BundleError(f"bundle: {self.step.tokenizer}: {error}") from None
            self._tokenizer.enable_truncation(self.step.max_length)
            self._tokenizer.enable_padding(pad_id=self.step.pad_id)
        return self

    def tensor(self, x: torch.Tensor) -> torch.Tensor:
        """Standardised tensor; as it is where nothing is stated.

        Raises:
            ValueError: as many means or deviations as the dimension has not.
        """
        step = self.step
        if not isinstance(step, Standardize):
            return x
        x = x.to(torch.float32) * step.factor
        return (x - self._along(x, step.mean)) / self._along(x, step.std)

    def _along(self, x: torch.Tensor, value: float | list[float]) -> torch.Tensor:
        assert isinstance(self.step, Standardize)
        if not isinstance(value, list):
            return torch.tensor(value)
        dim = self.step.dim
        if not -x.dim() <= dim < x.dim() or x.shape[dim] != len(value):
            raise ValueError(
                f"inputs must have {len(value)} values along dimension {dim}, "
                f"got shape {tuple(x.shape)}"
            )
        shape = [1] * x.dim()
        shape[dim] = len(value)
        return torch.tensor(value).reshape(shape)

    def texts(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Texts as `input_ids` and `attention_mask`, int64, shape (texts, tokens)."""
        encoded = self._tokenizer.encode_batch(list(texts))
        return {
            "input_ids": torch.tensor([each.ids for each in encoded], dtype=torch.int64),
            "attention_mask": torch.tensor(
                [each.attention_mask for each in encoded], dtype=torch.int64
            ),
        }
