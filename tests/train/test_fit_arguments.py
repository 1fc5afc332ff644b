"""What `fit` refuses before it looks at the data."""

import lepton_train as lt
import pytest
import torch
from torch import nn


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"clip_norm": "1"}, "clip_norm must be a number, got str"),
        ({"seed": "a"}, "seed must be an int, got str"),
        ({"early_stopping": "2"}, "early_stopping must be an int or an EarlyStopping, got str"),
        ({"callbacks": [3]}, "callbacks must hold callables, got int"),
        ({"callbacks": print}, "callbacks must be an iterable, got builtin"),
    ],
)
def test_types(arguments, text):
    x = torch.randn(8, 4)
    with pytest.raises(TypeError, match=f"fit: {text}"):
        lt.fit(nn.Linear(4, 2), (x, torch.zeros(8).long()), progress=False, **arguments)
