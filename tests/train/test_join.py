"""Inputs of different length: `join`, alone and with an optimiser in parts."""

import copy
import gc

import lepton_train as lt
import pytest
import torch
from replicas import batch, loss_of, mlp, wrap
from torch import nn

SIZES = (8, 40, 33, 4)


def uneven(rank, world, way, first_without):
    ddp = wrap(mlp(SIZES), shared_memory=way == "shm")
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    twin = copy.deepcopy(ddp.module)
    steps = [(r * 2 + (0 if first_without else 1)) for r in range(world)]
    with ddp.join():
        for step in range(steps[rank]):
            optimizer.zero_grad()
            loss_of(ddp, batch(rank, step)).backward()
            optimizer.step()
    # What ranks with data have computed: the others count as zeros.
    for step in range(steps[rank]):
        total = [torch.zeros_like(p) for p in twin.parameters()]
        for r in range(world):
            if step < steps[r]:
                grads = torch.autograd.grad(loss_of(twin, batch(r, step)), list(twin.parameters()))
                total = [a + b for a, b in zip(total, grads, strict=True)]
        with torch.no_grad():
            for parameter, gradient in zip(twin.parameters(), total, strict=True):
                parameter -= 0.1 * gradient / world
    for ours, theirs in zip(ddp.module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", ["shm", "gloo"])
@pytest.mark.parametrize("first_without", [False, True])
def test_uneven_inputs(ranks, way, first_without):
    ranks(uneven, 3, way=way, first_without=first_without)


class TwoHeads(nn.Module):
    """Of which only one head is used."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.idle = mlp(SIZES), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x))


def uneven_in_parts(rank, world, way):
    torch.manual_seed(3)
    ddp = wrap(TwoHeads(), shared_memory=way == "shm")
    twin = copy.deepcopy(ddp.module)
    options = {"lr": 0.02, "weight_decay": 0.1}
    optimizer = lt.distributed.ShardedOptimizer(ddp, torch.optim.AdamW, **options)
    alone = torch.optim.AdamW(twin.parameters(), **options)
    steps = [5, 2, 0][:world]
    with ddp.join():
        for step in range(steps[rank]):
            optimizer.param_groups[0]["lr"] = 0.02 / (1 + step)
            optimizer.zero_grad()
            loss_of(ddp, batch(rank, step)).backward()
            ddp.clip_grad_norm_(0.01)
            optimizer.step()
    for step in range(max(steps)):
        alone.param_groups[0]["lr"] = 0.02 / (1 + step)
        alone.zero_grad()
        for r in range(world):
            if step < steps[r]:
                (loss_of(twin, batch(r, step)) / world).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 0.01)
        alone.step()
    # On every rank, also on those that had finished.
    for ours, theirs in zip(ddp.module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert ddp.module.idle.weight.grad is None
    ddp.check_replicas()


@pytest.mark.parametrize("way", ["shm", "gloo"])
def test_uneven_inputs_with_an_optimizer_in_parts(ranks, way):
    ranks(uneven_in_parts, 3, way=way)


def gone(rank, world):
    ddp = wrap(mlp(SIZES), shared_memory=True)
    optimizer = lt.distributed.ShardedOptimizer(ddp, torch.optim.SGD, lr=0.1)
    with ddp.join():
        if rank:
            del optimizer
            gc.collect()
        else:
            loss_of(ddp, batch(rank, 0)).backward()
            optimizer.step()


def test_a_rank_without_the_optimizer_says_so(ranks):
    outcomes = ranks.outcomes(gone, 2)
    assert "keep it until join ends" in outcomes[1]["error"]
    assert outcomes[0]["error"]
