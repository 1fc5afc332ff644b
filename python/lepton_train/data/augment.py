"""Augmentation: changed copies of training inputs, of images by the batch and of texts one by one.

Images: pass a function as `fit(augment=...)`. Randomness is torch's global generator, or the one
given; so a training run that is resumed goes on with the same draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from lepton_train.data.examples import Examples

Generator = torch.Generator | None


def _images(op: str, images: torch.Tensor) -> None:
    if not isinstance(images, torch.Tensor) or images.ndim != 4 or not images.is_floating_point():
        got = tuple(images.shape) if isinstance(images, torch.Tensor) else type(images).__name__
        raise ValueError(f"{op}: images must be float of shape (images, channels, h, w), got {got}")


def random_flip(
    images: torch.Tensor, *, probability: float = 0.5, generator: Generator = None
) -> torch.Tensor:
    """Mirror images left to right, each by chance.

    Args:
        images (Tensor): float, (images, channels, height, width).
        probability (float): of each image to be mirrored, 0 to 1. Default: 0.5.
        generator (torch.Generator, optional): Default: None (torch's global one).

    Returns:
        Tensor: as `images`.

    Raises:
        ValueError: the shape is wrong.

    Example:
        >>> random_flip(torch.tensor([[[[1.0, 2.0]]]]), probability=1.0).tolist()
        [[[[2.0, 1.0]]]]
    """
    _images("random_flip", images)
    chosen = torch.rand(len(images), generator=generator) < probability
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(-1), images)


def random_crop(
    images: torch.Tensor, *, padding: int = 2, generator: Generator = None
) -> torch.Tensor:
    """Pad images with zeros and cut a piece of the old size out of each at random.

    Args:
        images (Tensor): float, (images, channels, height, width).
        padding (int): pixels on each side, at least 0. Default: 2.
        generator (torch.Generator, optional): Default: None (torch's global one).

    Returns:
        Tensor: as `images`.

    Raises:
        ValueError: the shape is wrong, or padding is negative.
    """
    _images("random_crop", images)
    if padding < 0:
        raise ValueError(f"random_crop: padding must be at least 0, got {padding}")
    count, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (padding,) * 4)
    top, left = torch.randint(0, 2 * padding + 1, (2, count), generator=generator).to(images.device)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    every = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[every, rows[:, :, None], columns[:, None, :]].permute(
        0, 3, 1, 2
    )


def random_rotation(
    images: torch.Tensor, *, degrees: float = 10.0, generator: Generator = None
) -> torch.Tensor:
    """Turn each image about its centre by a random angle; corners that come in are 0.

    Args:
        images (Tensor): float, (images, channels, height, width).
        degrees (float): largest angle to either side. Default: 10.
        generator (torch.Generator, optional): Default: None (torch's global one).

    Returns:
        Tensor: as `images`; between pixels bilinear.

    Raises:
        ValueError: the shape is wrong.
    """
    _images("random_rotation", images)
    angle = (torch.rand(len(images), generator=generator) * 2 - 1) * math.radians(degrees)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # Coordinates of grid_sample run from -1 to 1 along both sides, also of an image that is no
    # square.
    shape = images.shape[2] / images.shape[3]
    top = torch.stack([cos, -sin * shape, zero], 1)
    bottom = torch.stack([sin / shape, cos, zero], 1)
    turn = torch.stack([top, bottom], 1).to(images.device, images.dtype)
    grid = torch.nn.functional.affine_grid(turn, list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, align_corners=False)


def random_deletion(text: str, *, probability: float = 0.1, generator: Generator = None) -> str:
    """Delete words by chance; one word at least is left.

    Args:
        text (str): words between spaces.
        probability (float): of each word to be deleted. Default: 0.1.
        generator (torch.Generator, optional): Default: None (torch's global one).

    Returns:
        str: the words that are left.

    Source: Wei and Zou, "EDA: Easy Data Augmentation Techniques", 2019; also of the next two.

    Example:
        >>> random_deletion("one two", probability=0.0)
        'one two'
    """
    words = text.split()
    if not words:
        return text
    kept = (torch.rand(len(words), generator=generator) >= probability).tolist()
    if not any(kept):
        kept[_below(len(words), generator)] = True
    return " ".join(word for word, keep in zip(words, kept, strict=True) if keep)


def random_swap(text: str, *, swaps: int = 1, generator: Generator = None) -> str:
    """Exchange two words of a text, several times.

    Args:
        text (str): words between spaces.
        swaps (int): how often. Default: 1.
        generator (torch.Generator, optional): Default: None (torch's global one).

    Returns:
        str: the changed text.

    Example:
        >>> random_swap("one two")
        'two one'
    """
    words = text.split()
    if len(words) < 2:
        return text
    for _ in range(swaps):
        first, other = _below(len(words), generator), _below(len(words) - 1, generator)
        other += other >= first
        words[first], words[other] = words[other], words[first]
    return " ".join(words)


def random_replacement(
    text: str,
    replacements: Mapping[str, Sequence[str]],
    *,
    probability: float = 0.1,
    generator: Generator = None,
) -> str:
    """Replace words by others that stand for them, by chance.

    Args:
        text (str): words between spaces.
        replacements (mapping): word, in lower case, to the words that may take its place (synonyms,
            say). Other words stay.
        probability (float): of each word that can be replaced. Default: 0.1.
        generator (torch.Generator, optional): Default: None (torch's global one).

    Returns:
        str: the changed text.

    Example:
        >>> random_replacement("a film", {"film": ["movie"]}, probability=1.0)
        'a movie'
    """
    words = text.split()
    for place, word in enumerate(words):
        others = replacements.get(word.lower())
        if others and float(torch.rand((), generator=generator)) < probability:
            words[place] = others[_below(len(others), generator)]
    return " ".join(words)


def augment_texts(
    data: Examples, change: Callable[..., str], *, copies: int = 1, seed: int = 0
) -> Examples:
    """Add changed copies of each text. Of training texts only, after the split.

    Args:
        data (Examples): inputs are texts.
        change (callable): `change(text, generator=...)` gives the changed text, as the functions
            above do (with functools.partial for their options).
        copies (int): of each text. Default: 1.
        seed (int): Default: 0.

    Returns:
        Examples: the texts as they were, then the copies with the same labels.

    Raises:
        TypeError: the inputs are no texts.
    """
    if not isinstance(data.inputs, list):
        raise TypeError(f"augment_texts: inputs must be texts, got {type(data.inputs).__name__}")
    generator = torch.Generator().manual_seed(seed)
    texts = list(data.inputs)
    for _ in range(copies):
        texts += [change(text, generator=generator) for text in data.inputs]
    labels = data.labels.repeat((1 + copies, *[1] * (data.labels.ndim - 1)))
    return replace(data, inputs=texts, labels=labels)


def _below(count: int, generator: Generator) -> int:
    return int(torch.randint(0, count, (), generator=generator))
