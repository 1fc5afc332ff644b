"""Models of the recipes: a CNN for grey images, a text classifier, and half-depth students."""

from __future__ import annotations

import copy
import os
from typing import Any

import torch
from torch import nn

from lepton_train.models import TextModel, load_encoder


class ImageCNN(nn.Module):
    """Two convolutions, pooling, two linear layers, which hold nearly all weights.

    Args:
        classes (int): Default: 10.
        size (int): height and width of the images, a multiple of 4. Default: 28.
        channels (int): of the images. Default: 1.
        hidden (int): between the linear layers. Default: 128.

    Shapes:
        images (images, channels, size, size) -> logits (images, classes).

    Example:
        >>> ImageCNN(size=8)(torch.rand(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, classes: int = 10, size: int = 28, channels: int = 1, hidden: int = 128
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.dropout = nn.Dropout(0.25)
        self.fc1 = nn.Linear(64 * (size // 4) ** 2, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits of images."""
        x = nn.functional.max_pool2d(torch.relu(self.conv1(images)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = torch.relu(self.fc1(self.dropout(x.flatten(1))))
        return self.fc2(self.dropout(x))


class TextClassifier(nn.Module):
    """A transformer encoder, the mean of its hidden states, one linear layer.

    Args:
        encoder (nn.Module): a Hugging Face encoder; its output has `last_hidden_state`.
        hidden (int): size of the hidden states.
        classes (int): Default: 2.
        dropout (float): before the linear layer. Default: 0.1.

    Shapes:
        input_ids, attention_mask (texts, tokens) int64 -> logits (texts, classes).
    """

    def __init__(
        self, encoder: nn.Module, hidden: int, classes: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden, classes)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Logits of texts."""
        hidden = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        return self.head(self.dropout(mean))


def load_text_classifier(
    classes: int = 2, path: str | os.PathLike[str] | None = None, *, seed: int = 0
) -> tuple[TextClassifier, Any]:
    """A classifier on a pretrained encoder; its last layer is new and untrained.

    Args:
        classes (int): Default: 2.
        path (str or path, optional): Hugging Face folder. Default: None (all-MiniLM-L6-v2 from its
            package).
        seed (int): of the new layer. Default: 0.

    Returns:
        (TextClassifier, tokenizer).

    Raises:
        As `lepton_train.models.load_encoder`.
    """
    text: TextModel = load_encoder(path)
    encoder: Any = text.model.encoder
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TextClassifier(encoder, encoder.config.hidden_size, classes)
    return model, text.tokenizer


def shallower(model: nn.Module, depth: int) -> nn.Module:
    """A copy with fewer layers: of its longest stack of equal layers, some evenly spaced ones stay.

    Args:
        model (nn.Module): holds an `nn.ModuleList` of layers of one type; left as it is.
        depth (int): layers to keep, the last one always.

    Returns:
        nn.Module: the copy. A Hugging Face `config.num_hidden_layers` follows.

    Raises:
        ValueError: there is no such stack, or depth is not between 1 and its length.

    Source: Sanh et al., "DistilBERT", 2019: the student starts from the teacher's layers.

    Example:
        >>> layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(6))
        >>> student = shallower(layers, 3)
        >>> len(student), torch.equal(student[0].weight, layers[1].weight)
        (3, True)
    """
    student = copy.deepcopy(model)
    stacks = [
        m
        for m in student.modules()
        if isinstance(m, nn.ModuleList) and len(m) > 1 and len({type(x).__name__ for x in m}) == 1
    ]
    if not stacks:
        raise ValueError("shallower: model holds no nn.ModuleList of layers of one type")
    stack = max(stacks, key=len)
    if not 1 <= depth <= len(stack):
        raise ValueError(f"shallower: depth must lie between 1 and {len(stack)}, got {depth}")
    count = len(stack)
    kept = [stack[(place + 1) * count // depth - 1] for place in range(depth)]
    stack._modules.clear()
    stack.extend(kept)
    for module in student.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "num_hidden_layers", None) == count:
            config.num_hidden_layers = depth
    return student
