"""A network and batches for tests of data-parallel training, and the gradients to be expected."""

import copy
import itertools

import lepton_train as lt
import torch
from torch import nn


def mlp(sizes=(8, 40, 33, 17, 4)):
    torch.manual_seed(11)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.Tanh())][:-1])


def batch(rank, step, shape=(5, 8)):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(shape, generator=generator)


def loss_of(module, x):
    return module(x).float().square().mean()


def wrap(module, **options):
    """The module on every rank, in many small buckets."""
    return lt.distributed.BucketedDataParallel(
        module, **{"bucket_cap_mb": 0.002, "timeout": 20, **options}
    )


def average_gradients(module, world, step, first=0):
    """Gradients of one process that sees the batch of every rank, from `first` on."""
    total = None
    for r in range(first, first + world):
        twin = copy.deepcopy(module)
        twin.zero_grad()
        loss_of(twin, batch(r, step)).backward()
        grads = [p.grad.float() for p in twin.parameters()]
        total = grads if total is None else [a + b for a, b in zip(total, grads, strict=True)]
    return [g / world for g in total]
