"""Gradients of linear layers that ranks compute from each other's factors."""

import copy

import lepton_train as lt
import pytest
import torch
from lepton_train.distributed._factors import (
    FactoredBucket,
    most_rows_between_hosts,
    most_rows_on_a_host,
)
from torch import nn

from lepton_kernels import _rendezvous

WIDTH = 96


class Net(nn.Module):
    """Two layers that share factors, one too narrow for that, one that a step may leave out."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.second = nn.Linear(80, WIDTH), nn.Linear(WIDTH, 112)
        self.narrow, self.spare = nn.Linear(112, 2), nn.Linear(WIDTH, 112)
        self.to(dtype)

    def forward(self, x, spare=False):
        x = self.first(x).tanh()
        y = self.second(x)
        return self.narrow(y + self.spare(x) if spare else y)


def batch(rank, step, rows=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(rows, 80, generator=generator).to(dtype)


class Pair:
    """A wrapped model, and the same alone in float64 that sees the batches of all ranks."""

    def __init__(self, rank, world, *, dtype=torch.float32, **options):
        model = Net(dtype)
        self.rank, self.world, self.dtype = rank, world, dtype
        self.exact = copy.deepcopy(model).double()
        self.ddp = lt.distributed.BucketedDataParallel(
            model, sufficient_factors=True, timeout=60, **options
        )

    def backward(self, step, rows=6, spare=True, **options):
        """One on this rank; `rows` and `spare` may be functions of the rank."""
        x, spare = self._of(self.rank, step, rows, spare)
        self.ddp(x, spare).square().mean().backward(**options)

    def _of(self, rank, step, rows, spare):
        count = rows(rank) if callable(rows) else rows
        return batch(rank, step, count, self.dtype), spare(rank) if callable(spare) else spare

    def want(self, step, rows=6, spare=True):
        """Add the mean of all ranks' gradients to what the exact model has."""
        for rank in range(self.world):
            x, with_spare = self._of(rank, step, rows, spare)
            (self.exact(x.double(), with_spare).square().mean() / self.world).backward()

    def check(self, rtol=1e-5, names=None):
        """Every gradient (of `names`) is right, and has the same bits on all ranks."""
        names = names or [name for name, _ in self.exact.named_parameters()]
        ours = dict(self.ddp.module.named_parameters())
        for name in names:
            parameter, got = self.exact.get_parameter(name), ours[name].grad
            if parameter.grad is None:
                assert got is None, name
                continue
            scale = parameter.grad.abs().max().item()
            error = (got.double() - parameter.grad).abs().max().item()
            assert error <= rtol * scale, (name, error, scale)
        bits = [ours[name].grad for name in names if ours[name].grad is not None]
        bits = torch.cat([g.contiguous().view(torch.uint8).view(-1) for g in bits]).int()
        least, most = bits.clone(), bits.clone()
        torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
        torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX)
        assert torch.equal(least, most)

    def step(self, step, rtol=1e-5, **options):
        self.ddp.zero_grad()
        self.exact.zero_grad()
        self.backward(step, **options)
        self.want(step, **options)
        self.check(rtol)

    def factored(self):
        """Names of the weights that share factors."""
        reducer = self.ddp._reducer
        return {
            reducer.names[bucket.members[0]]
            for bucket in reducer._set.buckets
            if isinstance(bucket, FactoredBucket)
        }


def shares(rank, world, shared_memory, per_host=None):
    if per_host:
        _rendezvous.boot_id = lambda: f"host {rank // per_host}"
    pair = Pair(rank, world, shared_memory=shared_memory)
    for step in range(3):
        pair.step(step)
        want = {"first.weight", "second.weight", "spare.weight"} if step else set()
        assert not step or pair.factored() == want
    # Fewer rows, other numbers of them, too many on one rank, on all.
    pair.step(3, rows=2)
    pair.step(4, rows=lambda r: 1 + r)
    pair.step(5, rows=lambda r: 6 if r else 30)
    pair.step(6, rows=30)
    # A layer that nobody uses, or one rank alone.
    pair.step(7, spare=False)
    assert pair.ddp.module.spare.weight.grad is None
    pair.step(8, spare=lambda r: r == world - 1)
    pair.step(9)
    norm = pair.ddp.clip_grad_norm_(1e-3)
    exact = torch.nn.utils.clip_grad_norm_(pair.exact.parameters(), 1e-3)
    assert abs(norm.item() - exact.item()) < 1e-5 * exact.item()
    pair.check()
    # What was added up before is a product.
    pair.ddp.zero_grad()
    pair.exact.zero_grad()
    with pair.ddp.no_sync():
        pair.backward(10)
    pair.want(10)
    pair.backward(11)
    pair.want(11)
    pair.check()
    pair.backward(12)
    pair.want(12)
    pair.check()
    return pair.ddp.transport


@pytest.mark.parametrize("shared_memory", [None, False])
@pytest.mark.parametrize("world", [2, 3])
def test_gradients_are_those_of_all_batches(ranks, world, shared_memory):
    kinds = ranks(shares, world, shared_memory=shared_memory, timeout=120)
    assert kinds == ["shared memory" if shared_memory is None else kinds[0]] * world


def test_several_hosts_of_several_ranks(ranks):
    kinds = ranks(shares, 4, shared_memory=None, per_host=2, timeout=120)
    assert kinds == ["shared memory inside, torch.distributed between hosts"] * 4


def surprises(rank, world, shared_memory):
    pair = Pair(rank, world, shared_memory=shared_memory)
    model = pair.ddp.module
    for step in range(2):
        pair.step(step)
    assert pair.factored()
    # A hook on a parameter sees its gradient, and may change it.
    seen = []
    handle = model.first.weight.register_hook(lambda g: seen.append(g.clone()) or 2 * g)
    pair.ddp.zero_grad()
    pair.backward(2)
    handle.remove()
    pair.exact.zero_grad()
    pair.want(2)
    pair.exact.first.weight.grad *= 2
    pair.check()
    assert seen[0].isfinite().all()
    # A layer used twice, on one rank.
    pair.ddp.zero_grad()
    pair.exact.zero_grad()
    loss = pair.ddp(batch(rank, 3), True).square().mean()
    if rank == 0:
        loss = loss + model.first(batch(9, 9)).square().mean()
    loss.backward()
    pair.want(3)
    (pair.exact.first(batch(9, 9).double()).square().mean() / world).backward()
    pair.check()

    # A backward that fails before anything was announced leaves the next one right.
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise ValueError("on purpose")

    pair.ddp.zero_grad()
    out = model.narrow(Fails.apply(pair.ddp(batch(rank, 4)).repeat(1, 56)))
    with pytest.raises(ValueError, match="on purpose"):
        out.sum().backward()
    pair.step(5)
    with torch.autograd.set_detect_anomaly(True):
        pair.step(6)
    # Another use of the weight that no layer tells of.
    pair.ddp.zero_grad()
    with pytest.raises(RuntimeError, match=r"first.weight is used outside its nn.Linear"):
        (pair.ddp(batch(rank, 7)).sum() + model.first.weight.square().sum()).backward()
    return True


@pytest.mark.parametrize("shared_memory", [None, False])
def test_what_looks_at_a_gradient_gets_one(ranks, shared_memory):
    assert all(ranks(surprises, 2, shared_memory=shared_memory))


def low_precision(rank, world, dtype):
    dtype = getattr(torch, dtype)
    pair = Pair(rank, world, dtype=dtype)
    # Outputs, their gradients on the way back and the average are rounded once each: some six
    # times half an eps before they reach the first layer, and what cancels is relative to the
    # largest element.
    for step in range(3):
        pair.step(step, rtol=8 * torch.finfo(dtype).eps)
    return sorted(pair.factored())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(ranks, dtype):
    for names in ranks(low_precision, 2, dtype=dtype):
        assert names == ["first.weight", "second.weight", "spare.weight"]


def compressed(rank, world, kind):
    pair = Pair(rank, world, shared_memory=False, compression=kind)
    for step in range(3):
        pair.ddp.zero_grad()
        pair.exact.zero_grad()
        pair.backward(step)
        pair.want(step)
        if step:
            pair.check(names=sorted(pair.factored()))
    return sorted(pair.factored())


@pytest.mark.parametrize("kind", ["int8", "bf16"])
def test_factors_are_exact_beside_compressed_gradients(ranks, kind):
    for names in ranks(compressed, 2, kind=kind):
        assert names == ["first.weight", "second.weight", "spare.weight"]


def joins(rank, world):
    pair = Pair(rank, world)
    steps = 3 if rank else 5
    with pair.ddp.join():
        for step in range(steps):
            pair.ddp.zero_grad()
            pair.backward(step)
            if step >= 3:  # rank 1 has finished and adds nothing
                pair.exact.zero_grad()
                x = batch(0, step)
                (pair.exact(x.double(), True).square().mean() / world).backward()
                for p, q in zip(pair.ddp.module.parameters(), pair.exact.parameters(), strict=True):
                    torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-4, atol=1e-6)
    return sorted(pair.factored())


def test_a_rank_that_has_finished_adds_nothing(ranks):
    assert ranks(joins, 2) == [["first.weight", "second.weight", "spare.weight"]] * 2


def switched_off(rank, world):
    found = []
    for options in ({"sufficient_factors": False}, {"overlap": False, "sufficient_factors": True}):
        ddp = lt.distributed.BucketedDataParallel(Net(), **options)
        for step in range(2):
            ddp(batch(rank, step), True).sum().backward()
        found += [isinstance(bucket, FactoredBucket) for bucket in ddp._reducer._set.buckets]
    return any(found)


def test_false_and_late_reduction_share_none(ranks):
    assert ranks(switched_off, 2) == [False, False]


def test_rows_up_to_which_factors_pay():
    large, small = torch.empty(1024, 1024), torch.empty(64, 64)
    assert most_rows_on_a_host(large, 2, None) == 128
    assert most_rows_on_a_host(large, 2, True) == 256
    assert most_rows_on_a_host(large, 2, False) == 0
    assert most_rows_on_a_host(small, 2, None) == 0
    assert most_rows_on_a_host(small, 2, True) == 16
    assert most_rows_between_hosts(large, 2, 4, True) == 512
    assert most_rows_between_hosts(large, 2, 4, None) == 64
    assert most_rows_between_hosts(large, 2, 1, None) == 64
    assert most_rows_between_hosts(large, 8, 1, None) == 16
    assert most_rows_between_hosts(large, 8, 1, False) == 0
    assert most_rows_between_hosts(small, 2, 4, None) == 0
