"""Fashion-MNIST from the Debian package dataset-fashion-mnist, or any folder with its files.

Source: Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms", 2017. File format: IDX, as described on LeCun's MNIST page.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path

import numpy as np
import torch

from lepton_train.data.examples import Examples

FOLDER = "/usr/share/datasets/fashion-mnist"
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
_FILES = {"train": "train", "test": "t10k"}


def load_fashion_mnist(
    split: str = "train", folder: str | os.PathLike[str] | None = None
) -> Examples:
    """Grey images of clothes, 10 classes.

    Args:
        split (str): "train" (60,000) or "test" (10,000), as published. Default: "train".
        folder (str or path, optional): folder with the four `.gz` files. Default: None
            (`LEPTON_FASHION_MNIST`, or the one of the Debian package dataset-fashion-mnist).

    Returns:
        Examples: inputs float32 (images, 1, 28, 28) in [0, 1], labels int64.

    Raises:
        FileNotFoundError: the files are not there; the message says how to get them.
        ValueError: split is unknown, or a file is damaged.
    """
    if split not in _FILES:
        raise ValueError(f"load_fashion_mnist: split must be train or test, got {split!r}")
    place = Path(folder or os.environ.get("LEPTON_FASHION_MNIST") or FOLDER)
    images = read_idx(place / f"{_FILES[split]}-images-idx3-ubyte.gz")
    labels = read_idx(place / f"{_FILES[split]}-labels-idx1-ubyte.gz")
    return Examples(
        torch.from_numpy(images).float().div_(255.0).unsqueeze(1),
        torch.from_numpy(labels).long(),
        CLASSES,
        f"Fashion-MNIST {split}",
        "Debian package dataset-fashion-mnist",
        "MIT",
    )


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """An array of bytes from a compressed IDX file.

    Args:
        path (str or path): a `.gz` file.

    Returns:
        ndarray: uint8, of the shape that the file states; writable.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no IDX file of bytes, or is cut off.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: apt-get install dataset-fashion-mnist, or set "
            "LEPTON_FASHION_MNIST to the folder that holds the files"
        )
    try:
        data = gzip.decompress(file.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise ValueError(f"{file} is no IDX file of bytes")
    dimensions = data[3]
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
    if len(data) != start + math.prod(shape):
        raise ValueError(
            f"{file} must hold {math.prod(shape)} values of shape {tuple(shape)}, "
            f"got {len(data) - start}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape).copy()
