"""Data from a source to batches: read, clean, split, tokenise, augment, and say what it is.

Named data sets are read from installed packages; nothing is downloaded.
"""

from lepton_train.data.augment import (
    augment_texts,
    random_crop,
    random_deletion,
    random_flip,
    random_replacement,
    random_rotation,
    random_swap,
)
from lepton_train.data.card import DataCard, data_card
from lepton_train.data.clean import clean_text, deduplicate, drop_empty, fingerprints
from lepton_train.data.digits import load_digits, load_mnist
from lepton_train.data.examples import Examples
from lepton_train.data.fashion import load_fashion_mnist
from lepton_train.data.lee import load_lee
from lepton_train.data.movies import load_movie_reviews
from lepton_train.data.normalize import Standardizer
from lepton_train.data.sources import read_csv, read_folder, read_hugging_face, read_jsonl
from lepton_train.data.split import Splits, split
from lepton_train.data.tokens import tokenize, train_tokenizer

__all__ = [
    "DataCard",
    "Examples",
    "Splits",
    "Standardizer",
    "augment_texts",
    "clean_text",
    "data_card",
    "deduplicate",
    "drop_empty",
    "fingerprints",
    "load_digits",
    "load_fashion_mnist",
    "load_lee",
    "load_mnist",
    "load_movie_reviews",
    "random_crop",
    "random_deletion",
    "random_flip",
    "random_replacement",
    "random_rotation",
    "random_swap",
    "read_csv",
    "read_folder",
    "read_hugging_face",
    "read_jsonl",
    "split",
    "tokenize",
    "train_tokenizer",
]
