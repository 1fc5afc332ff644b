"""A bundle's model behind the server: raw JSON inputs in, plain values out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from lepton_train.bundle import golden, store
from lepton_train.bundle.architecture import Builder
from lepton_train.bundle.errors import BundleError
from lepton_train.bundle.folder import open_folder
from lepton_train.bundle.manifest import Tensor
from lepton_train.bundle.preprocess import Preprocessing
from lepton_train.layer_errors import LayerInputError


class InputError(ValueError):
    """A request that the model can't take; the message goes to the client."""


class Predictor:
    """The model of a bundle, checked once at the start.

    Args:
        path (str or path): the bundle.
        builders (mapping, optional): as in `bundle.load`.
        digest (str, optional): as in `bundle.load`.
        max_batch (int): samples in a request at most. Default: 64.

    Raises:
        BundleError: it can't be opened, does not fit this machine, or does not reproduce its
            golden outputs.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        builders: Mapping[str, Builder] | None = None,
        digest: str | None = None,
        max_batch: int = 64,
    ) -> None:
        found = store.verify(path, builders=builders, digest=digest)
        if not found.ok:
            failed = next(check for check in found.checks if not check.ok)
            raise BundleError(
                f"serve: the bundle fails its check of {failed.name}: needs {failed.required}, "
                f"found {failed.found}"
            )
        contents = open_folder(path, found.digest)
        self.manifest = contents.manifest
        self.digest = contents.digest
        self.max_batch = max_batch
        self.model = store.load_contents(contents, builders)
        preprocessing = Preprocessing(self.manifest.metadata.preprocessing)
        self.preprocessing = preprocessing.open(contents.root, contents.checksums)

    def inputs(self, raw: Any) -> dict[str, torch.Tensor]:
        """The model's inputs from what a client sent.

        Args:
            raw: a list of texts, nested lists of numbers, or a mapping of names to nested lists.

        Returns:
            dict: name to Tensor, one sample along dimension 0 each.

        Raises:
            InputError: anything else, ragged, too many, of a wrong shape or not finite.
        """
        if self.preprocessing.takes_text:
            return self._texts(raw)
        expected = self.manifest.golden.inputs
        if len(expected) == 1 and not isinstance(raw, dict):
            raw = {expected[0].name: raw}
        names = [each.name for each in expected]
        if not isinstance(raw, dict) or set(raw) != set(names):
            got = ", ".join(map(str, raw)) if isinstance(raw, dict) else type(raw).__name__
            raise InputError(f"inputs must be an object with {', '.join(names)}; got {got}")
        tensors = {each.name: self._tensor(each, raw[each.name]) for each in expected}
        sizes = {len(value) for value in tensors.values()}
        if len(sizes) > 1:
            raise InputError(f"inputs must all have as many samples, got {sorted(sizes)}")
        return tensors

    def _texts(self, raw: Any) -> dict[str, torch.Tensor]:
        if not isinstance(raw, list) or not all(isinstance(each, str) for each in raw):
            raise InputError("inputs must be a list of texts")
        self._check_batch(len(raw))
        tokens = self.preprocessing.texts(raw)
        wanted = {each.name for each in self.manifest.golden.inputs}
        return {name: value for name, value in tokens.items() if name in wanted}

    def _check_batch(self, samples: int) -> None:
        if not 1 <= samples <= self.max_batch:
            raise InputError(f"inputs must hold 1 to {self.max_batch} samples, got {samples}")

    def _tensor(self, expected: Tensor, raw: Any) -> torch.Tensor:
        name, dtype = expected.name, golden.dtype_of(expected.dtype)
        if not isinstance(raw, list):
            raise InputError(f"{name} must be a list of samples, got {type(raw).__name__}")
        self._check_batch(len(raw))
        try:
            value = torch.tensor(raw)
        except (ValueError, TypeError, RuntimeError, OverflowError):
            raise InputError(f"{name} must be nested lists of numbers, all of one length") from None
        if value.is_floating_point() and not dtype.is_floating_point:
            raise InputError(f"{name} must be whole numbers")
        if not torch.isfinite(value).all():
            raise InputError(f"{name} must be finite")
        shape = expected.shape
        # The length of token sequences is free, that of feature vectors is not.
        free = not dtype.is_floating_point
        same = value.dim() == len(shape) and (free or list(value.shape[1:]) == shape[1:])
        if not same or value.numel() == 0:
            form = ", ".join("any" if free else str(size) for size in shape[1:])
            raise InputError(
                f"{name} must have shape (samples{', ' if form else ''}{form}), "
                f"got {tuple(value.shape)}"
            )
        try:
            value = self.preprocessing.tensor(value)
        except ValueError as error:
            raise InputError(str(error)) from None
        return value.to(dtype)

    def predict(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Run the model; outputs as nested lists, and the label of each sample where there are any.

        Args:
            inputs (mapping): from `inputs`.

        Returns:
            dict: `outputs` and `predictions`, plain values.

        Raises:
            InputError: an index beyond an embedding, or inputs that the model refuses.
        """
        try:
            outputs = golden.run(self.model, self.manifest.golden.call, inputs)
        except (IndexError, LayerInputError) as error:
            raise InputError(f"the model refuses the inputs: {error}") from None
        result: dict[str, Any] = {
            "outputs": {name: _plain(value) for name, value in outputs.items()}
        }
        labels = self.manifest.metadata.labels
        scores = next(iter(outputs.values()))
        if labels and scores.dim() == 2 and scores.shape[1] == len(labels):
            shares = torch.softmax(scores.float(), 1)
            best = shares.argmax(1).tolist()
            result["predictions"] = [
                {"label": labels[index], "index": index, "probability": float(row[index])}
                for index, row in zip(best, shares, strict=True)
            ]
        return result


def _plain(value: torch.Tensor) -> Any:
    """Nested lists; JSON has no NaN or infinity: they become null."""
    if value.is_floating_point() and not torch.isfinite(value).all():
        finite = torch.isfinite(value)
        flat = [v if ok else None for v, ok in zip(value.flatten().tolist(), finite.flatten())]  # noqa: B905
        for size in reversed(value.shape[1:]):
            flat = [flat[i : i + size] for i in range(0, len(flat), size)]
        return flat
    return value.tolist()
