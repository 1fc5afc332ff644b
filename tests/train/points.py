"""A small problem for tests of training: points around centres, and a network that tells them."""

import torch
from torch import nn

QUIET = {"progress": False}


def blobs(count=96, classes=3, seed=0):
    """Points around one centre a class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % classes
    centres = torch.tensor([[3.0, 0.0], [-3.0, 1.0], [0.0, -3.0]])[:classes]
    return centres[y] + torch.randn(count, 2, generator=generator), y


def network(seed=1, dropout=0.2, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, classes))


def same(a, b):
    """Whether two modules hold the same bits."""
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[key], b[key]) for key in a)
