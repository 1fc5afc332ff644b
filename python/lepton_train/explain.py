"""Why a model answered what it answered: attributions of single predictions, by Captum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lepton_train.packages import require
from lepton_train.training.batches import to_device
from lepton_train.training.evaluation import device_of
from lepton_train.training.outputs import call


@dataclass(frozen=True)
class Explanation:
    """What one prediction rests on.

    Args:
        predicted (int): the class that was explained.
        score (float): its probability.
        attributions (Tensor): float, of the shape of one input; for tokens (tokens,). Positive
            values speak for the class.
        tokens (tuple of str): the words of a text; empty for other inputs.
    """

    predicted: int
    score: float
    attributions: torch.Tensor
    tokens: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.tokens:
            return f"class {self.predicted}, probability {self.score:.4f}"
        words = zip(self.tokens, self.attributions.tolist(), strict=True)
        ranked = sorted(words, key=lambda pair: -abs(pair[1]))
        text = ", ".join(f"{token} {value:+.3f}" for token, value in ranked)
        return f"class {self.predicted}, probability {self.score:.4f}: {text}"


def explain(
    model: nn.Module,
    inputs: Any,
    *,
    target: int | None = None,
    tokenizer: Any = None,
    embedding: nn.Module | None = None,
    steps: int = 50,
) -> Explanation:
    """Attribute one prediction to its inputs by integrated gradients.

    Gradients must pass: explain the float model that an int8 one was made from.

    Args:
        model (nn.Module): gives logits of classes.
        inputs (Tensor, mapping, or str): one example in a batch of one: float, or tokens as keyword
            arguments, or a text for `tokenizer`.
        target (int, optional): class to explain. Default: None (the predicted one).
        tokenizer (any, optional): a Hugging Face tokenizer, for a text and for the words of tokens.
            Default: None.
        embedding (nn.Module, optional): the layer that embeds tokens. Default: None (the first
            nn.Embedding of the model).
        steps (int): of the integral. Default: 50.

    Returns:
        Explanation: class, probability, attributions.

    Raises:
        MissingPackageError: captum is not installed.
        ValueError: inputs are not one example, target is no class, or a text comes without a
            tokenizer, or the model has no embedding for tokens.

    Source: Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks", 2017.
    """
    op = "explain"
    attr = require("captum.attr", "lt.explain", "captum")
    if isinstance(inputs, str):
        if tokenizer is None:
            raise ValueError(f"{op}: a text needs a tokenizer")
        inputs = dict(tokenizer([inputs], return_tensors="pt"))
    device = device_of(model)
    tokens = isinstance(inputs, Mapping)
    values = to_device(inputs, device)
    first = next(iter(values.values())) if tokens else values
    if first.shape[0] != 1:
        raise ValueError(
            f"{op}: inputs must be one example in a batch of one, got {first.shape[0]}"
        )
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = call(model, values)[0]
        chosen = int(logits.argmax()) if target is None else target
        if not 0 <= chosen < logits.shape[-1]:
            raise ValueError(f"{op}: target must lie in [0, {logits.shape[-1]}), got {chosen}")
        score = float(logits.softmax(-1)[chosen])
        if not tokens:
            method = attr.IntegratedGradients(lambda x: call(model, x))
            found = method.attribute(values, target=chosen, n_steps=steps)
            return Explanation(chosen, score, found[0].detach().cpu())
        layer = embedding or next((m for m in model.modules() if isinstance(m, nn.Embedding)), None)
        if layer is None:
            raise ValueError(f"{op}: model holds no nn.Embedding; pass embedding")
        ids = values["input_ids"]
        rest = {key: value for key, value in values.items() if key != "input_ids"}

        def forward(x: torch.Tensor) -> torch.Tensor:
            # Captum runs several points of the path as one batch.
            wide = {k: v.expand(x.shape[0], *v.shape[1:]) for k, v in rest.items()}
            return call(model, {"input_ids": x, **wide})

        method = attr.LayerIntegratedGradients(forward, layer)
        blank = torch.full_like(ids, getattr(tokenizer, "pad_token_id", None) or 0)
        found = method.attribute(
            ids, baselines=blank, target=chosen, n_steps=steps, internal_batch_size=8
        )
        words = tuple(tokenizer.convert_ids_to_tokens(ids[0].tolist())) if tokenizer else ()
        return Explanation(chosen, score, found[0].sum(-1).detach().cpu(), words)
    finally:
        model.train(mode)
