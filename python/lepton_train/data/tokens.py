"""Tokens from texts: with a pretrained tokenizer, or one trained on the training texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lepton_train.data.examples import Examples
from lepton_train.packages import require


def tokenize(data: Examples, tokenizer: Any, *, length: int = 128) -> Examples:
    """Replace texts by tokens.

    Args:
        data (Examples): inputs are texts.
        tokenizer (any): a Hugging Face tokenizer.
        length (int): tokens at most; longer texts are cut. Default: 128.

    Returns:
        Examples: inputs are a dict of int64 tensors (examples, tokens), `input_ids`,
        `attention_mask` and what else the tokenizer makes, padded to the longest.

    Raises:
        TypeError: the inputs are no texts.
        ValueError: there are no examples, or length is below 1.
    """
    if not isinstance(data.inputs, list):
        raise TypeError(f"tokenize: inputs must be texts, got {type(data.inputs).__name__}")
    if not data.inputs or length < 1:
        raise ValueError(
            f"tokenize: needs at least one text and a length of at least 1, got "
            f"{len(data.inputs)} texts and length {length}"
        )
    encoded = tokenizer(
        data.inputs, padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    return data.with_inputs({key: torch.as_tensor(value) for key, value in encoded.items()})


def train_tokenizer(texts: Sequence[str], *, vocabulary: int = 8000) -> Any:
    """Train a WordPiece tokenizer on texts (those of the training part alone).

    Args:
        texts (sequence of str): at least one.
        vocabulary (int): tokens at most. Default: 8000.

    Returns:
        transformers.PreTrainedTokenizerFast: lower case, BERT's special tokens; `save_pretrained`
        writes it.

    Raises:
        MissingPackageError: transformers is not installed.
        ValueError: there is no text.

    Source: Schuster and Nakajima, "Japanese and Korean Voice Search", 2012 (WordPiece), by the
    library tokenizers.
    """
    if not texts:
        raise ValueError("train_tokenizer: needs at least one text, got none")
    tokenizers = require("tokenizers", "training a tokenizer")
    transformers = require("transformers", "training a tokenizer")
    special = {
        "pad_token": "[PAD]",
        "unk_token": "[UNK]",
        "cls_token": "[CLS]",
        "sep_token": "[SEP]",
        "mask_token": "[MASK]",
    }
    core = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    core.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocabulary, special_tokens=list(special.values()), show_progress=False
    )
    core.train_from_iterator(texts, trainer)
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, core.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special)
