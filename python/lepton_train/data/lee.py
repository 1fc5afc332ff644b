"""Lee et al.'s news texts with human ratings of similarity, from the installed gensim wheel.

Source: Lee, Pincombe and Welsh, "An empirical evaluation of models of text document similarity",
2005. gensim carries the files for its tests and is not imported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lepton_train.packages import folder_of

GENSIM = "gensim==4.4.0"


@dataclass(frozen=True)
class LeeData:
    """News texts and how alike people find them.

    Args:
        texts (list of str): 50 short news texts.
        similarity (ndarray): float64, shape (50, 50); mean human rating of each pair, 0 to 1.
        background (list of str): 300 other texts of the kind without ratings, for calibration.
    """

    texts: list[str]
    similarity: np.ndarray
    background: list[str]

    @cached_property
    def sentences(self) -> list[str]:
        """The sentences of `texts`, of four words or more."""
        return [
            sentence
            for text in self.texts
            for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z\"'])", text.strip())
            if len(sentence.split()) >= 4
        ]

    def pearson(self, embeddings: torch.Tensor) -> float:
        """Correlation of cosine similarities with the human ratings, over all 1,225 pairs.

        Args:
            embeddings (Tensor): float, shape (50, features), one row per text.

        Returns:
            float: Pearson's r, -1 to 1.

        Raises:
            ValueError: the number of rows is not the number of texts.
        """
        if embeddings.shape[0] != len(self.texts):
            raise ValueError(
                f"pearson: embeddings must have {len(self.texts)} rows, got {embeddings.shape[0]}"
            )
        unit = torch.nn.functional.normalize(embeddings.detach().to(torch.float64), dim=1)
        cosine = (unit @ unit.T).cpu().numpy()
        pairs = np.triu_indices(len(self.texts), 1)
        return float(np.corrcoef(cosine[pairs], self.similarity[pairs])[0, 1])


def load_lee() -> LeeData:
    """Read texts and ratings from the installed gensim package.

    Returns:
        LeeData: 50 texts, the ratings of their 1,225 pairs, 300 background texts.

    Raises:
        MissingPackageError: gensim is not installed.
        FileNotFoundError: this gensim has no such files.
    """
    folder = folder_of("gensim", "the Lee similarity data", GENSIM) / "test" / "test_data"
    similarity = folder / "similarities0-1.txt"
    for file in (folder / "lee.cor", folder / "lee_background.cor", similarity):
        if not file.is_file():
            raise FileNotFoundError(
                f"the installed gensim lacks {file.name}: pip install '{GENSIM}'"
            )
    return LeeData(
        _lines(folder / "lee.cor"),
        np.loadtxt(similarity),
        _lines(folder / "lee_background.cor"),
    )


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="latin-1").splitlines()
