"""Weight gradients of linear layers that are computed in their bucket."""

import copy
import io

import torch
from replicas import batch, wrap
from torch import nn

SHAPE = (2, 5, 8)  # of a batch


class Net(nn.Module):
    """A layer used twice, one without bias, one whose weight another layer shares, 3-D inputs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.twice = nn.Linear(8, 12), nn.Linear(12, 12)
        self.bare, self.tied = nn.Linear(12, 12, bias=False), nn.Linear(12, 12)
        self.tied.weight = self.bare.weight
        self.last = nn.Linear(12, 3)

    def forward(self, x):
        x = self.twice(self.twice(self.first(x)).tanh())
        return self.last(self.tied(self.bare(x)))


def direct(rank, world):
    model, twin = Net(), Net()
    ddp = wrap(model, bucket_cap_mb=0.0005, timeout=60)
    assert str(model) == str(twin)
    names = [name for name, _ in model.named_parameters()]

    def want(steps, **options):
        twin.zero_grad()
        for step in steps:
            for r in range(world):
                (twin(batch(r, step, SHAPE)).square().mean() / world).backward(**options)
        return [p.grad for p in twin.parameters()]

    def check(expected):
        for name, parameter, wanted in zip(names, model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6, msg=name)

    def backward(step, **options):
        ddp(batch(rank, step, SHAPE)).square().mean().backward(**options)

    for step in range(3):
        ddp.zero_grad()
        backward(step)
        check(want([step]))
        written = dict(zip(names, [rows is not None for rows in ddp._reducer._rows], strict=True))
        assert {n for n, w in written.items() if w} == {
            "first.weight",
            "twice.weight",
            "bare.weight",
            "last.weight",
        }
    with ddp.no_sync():  # what was there stays
        backward(3)
    backward(4)
    check(want([2, 3, 4]))
    ddp.zero_grad()
    backward(5, create_graph=True)
    check(want([5], create_graph=True))
    ddp.zero_grad()

    # Gradients that are asked for belong to who asks.
    held = torch.autograd.grad(ddp(batch(rank, 6, SHAPE)).sum(), list(model.parameters()))
    kept = [g.clone() for g in held]
    torch.autograd.grad(ddp(batch(rank, 7, SHAPE)).sum(), list(model.parameters()))
    own = torch.autograd.grad(twin(batch(rank, 6, SHAPE)).sum(), list(twin.parameters()))
    for a, b, c in zip(held, kept, own, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-5, atol=1e-6)
    ddp.zero_grad()
    backward(8)
    check(want([8]))

    # Copies and pickles are plain modules of their own.
    file = io.BytesIO()
    torch.save(nn.Sequential(*model.children()), file)
    file.seek(0)
    before = [p.grad.clone() for p in model.parameters()]
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        assert len(list(other.children())) > 1
        assert all(type(m) is nn.Linear for m in other.children())
        other.zero_grad()
        layer = next(iter(other.children()))
        layer(batch(rank, 9, SHAPE)).sum().backward()
        assert layer.weight.grad is not None
    assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))

    with torch.autocast("cpu", torch.bfloat16):
        ddp.zero_grad()
        backward(10)
    for parameter in model.parameters():
        assert parameter.grad.dtype == torch.float32
    ddp.check_replicas()
    ddp.close()
    assert all(type(m) is nn.Linear for m in model.children())
    model(batch(rank, 0, SHAPE)).sum().backward()


def test_linear_layers_write_to_their_bucket(ranks):
    ranks(direct, 2)
