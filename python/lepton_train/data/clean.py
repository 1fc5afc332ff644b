"""Cleaning: readable text, no empty examples, no example twice."""

from __future__ import annotations

import hashlib
import html
import re
import unicodedata
from typing import Any

import torch

from lepton_train.data.examples import Examples

_TAGS = re.compile(r"<[a-zA-Z/!][^<>]*>")
_SPACES = re.compile(r"\s+")
_NO_LETTERS = re.compile(r"[\W_]+")


def clean_text(text: str) -> str:
    """Text without markup, control characters and superfluous space; case and punctuation stay.

    Args:
        text (str): may hold HTML tags and entities.

    Returns:
        str: in Unicode's form NFKC, on one line.

    Example:
        >>> clean_text("It&#39;s <b>good</b>,\\u00a0 I\\tsay")
        "It's good, I say"
    """
    text = _TAGS.sub(" ", html.unescape(text))
    text = unicodedata.normalize("NFKC", text)
    text = "".join(c if c.isspace() or unicodedata.category(c)[0] != "C" else " " for c in text)
    text = _SPACES.sub(" ", text).strip()
    return re.sub(r" ([,.;:!?])", r"\1", text)


def drop_empty(data: Examples) -> Examples:
    """Leave out texts without a letter or digit, and tensors with NaN or infinity.

    Args:
        data (Examples): texts or float tensors; others stay as they are.

    Returns:
        Examples: the rest, in the same order.
    """
    if isinstance(data.inputs, list):
        return data.subset([i for i, text in enumerate(data.inputs) if _NO_LETTERS.sub("", text)])
    if isinstance(data.inputs, torch.Tensor) and data.inputs.is_floating_point() and len(data):
        finite = data.inputs.reshape(len(data), -1).isfinite().all(1)
        return data.subset(finite.nonzero()[:, 0])
    return data


def fingerprints(inputs: Any) -> list[str]:
    """A digest of each input, equal for inputs that count as the same.

    Args:
        inputs (list of str, Tensor, or dict of Tensors): texts are compared without case, space
            and punctuation; tensors bit for bit.

    Returns:
        list of str: SHA-256, one for each input.

    Example:
        >>> a, b, c = fingerprints(["Well done!", "well  done", "Well, no"])
        >>> a == b, a == c
        (True, False)
    """
    if isinstance(inputs, list):
        # A text of punctuation alone is compared as it stands.
        keys = [(_NO_LETTERS.sub(" ", text.casefold()).strip() or text).encode() for text in inputs]
    else:
        tensors = list(inputs.values()) if isinstance(inputs, dict) else [inputs]
        columns = [tensor.contiguous().cpu().numpy() for tensor in tensors]
        keys = [b"|".join(c[i].tobytes() for c in columns) for i in range(len(columns[0]))]
    return [hashlib.sha256(key).hexdigest() for key in keys]


def deduplicate(data: Examples) -> Examples:
    """Leave out repeated inputs, and all copies of an input whose labels contradict each other.

    Args:
        data (Examples): any inputs; compared by `fingerprints`. Labels that are numbers never
            contradict.

    Returns:
        Examples: the first copy of each input, in the same order.

    Example:
        >>> data = Examples(["a b", "A b.", "c", "c", "d"], torch.tensor([0, 0, 0, 1, 1]))
        >>> deduplicate(data).inputs
        ['a b', 'd']
    """
    first: dict[str, int] = {}
    contradicted: set[str] = set()
    keys = fingerprints(data.inputs)
    numbers = data.labels.is_floating_point()
    for place, key in enumerate(keys):
        known = first.setdefault(key, place)
        if not numbers and not torch.equal(data.labels[known], data.labels[place]):
            contradicted.add(key)
    return data.subset([place for key, place in first.items() if key not in contradicted])
