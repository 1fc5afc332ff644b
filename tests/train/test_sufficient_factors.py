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

    # A backward that fails before anything was announced leaves gradients, and the next one right.
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise ValueError("on purpose")

    pair.ddp.zero_grad()
    first = model.first.forward
    model.first.forward = lambda x: Fails.apply(first(x))
    out = pair.ddp(batch(rank, 4), False)  # the second layer waits for the spare one
    del model.first.forward
    with pytest.raises(ValueError, match="on purpose"):
        out.square().mean().backward()
    assert pair.ddp._reducer._next == 0
    twin = copy.deepcopy(pair.exact)
    twin.zero_grad()
    twin(batch(rank, 4).double()).square().mean().backward()
    got = model.second.weight.grad.double()
    torch.testing.assert_close(got, twin.second.weight.grad, rtol=1e-4, atol=1e-6)
    pair.step(5)
    with torch.autograd.set_detect_anomaly(True):
        pair.step(6)
    # Another use of the weight that no layer tells of.
    pair.ddp.zero_grad()
    with pytest.raises(RuntimeError, match=r"first.weight is used outside its nn.Linear"):
        (pair.ddp(batch(rank, 7)).sum() + model.first.weight.square().sum()).backward()
    return True


def mixtures(rank, world, kind):
    """Graphs that use a weight once while they are learnt, and more often later."""
    torch.manual_seed(1)
    first, last = nn.Linear(80, 80), nn.Linear(80, 80)
    model = nn.Sequential(first, last)
    exact = copy.deepcopy(model).double()
    later = False

    def loss_of(net, x):
        one, two = net[0], net[1]
        if not later:
            return two(one(x)).square().mean()
        if kind == "checkpoint":
            y = torch.utils.checkpoint.checkpoint(one, two(x), use_reentrant=True)
            return one(y).square().mean()
        y = one(two(x)).square().mean() + (one.weight.square().sum() if kind == "other" else 0.0)
        return y + one(x).square().mean()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model

        def forward(self, x):
            return loss_of(self.net, x)

    ddp = lt.distributed.BucketedDataParallel(Net(), sufficient_factors=True, timeout=60)
    for step in range(4):
        later = step >= 2
        inputs = [batch(r, step).requires_grad_() for r in range(world)]
        ddp.zero_grad()
        ddp(inputs[rank]).backward()
        exact.zero_grad()
        for x in inputs:
            (loss_of(exact, x.detach().double().requires_grad_()) / world).backward()
        for p, q in zip(model.parameters(), exact.parameters(), strict=True):
            torch.testing.assert_close(p.grad.double(), q.grad, rtol=1e-4, atol=1e-6)
    return True


@pytest.mark.parametrize("kind", ["checkpoint", "other", "twice"])
def test_more_uses_later_are_right_or_an_error(ranks, kind):
    for outcome in ranks.outcomes(mixtures, 2, kind=kind):
        if outcome["code"] != 0:
            assert "BucketedDataParallel: net.0.weight" in outcome["error"], outcome
            assert kind != "twice", outcome


def whole_products(rank, world, shared_memory, per_host=None):
    if per_host:
        _rendezvous.boot_id = lambda: f"host {rank // per_host}"
    pair = Pair(rank, world, shared_memory=shared_memory)
    found = []
    for step in range(12):
        # Room for one row is learnt first; then four come, then gradients are kept at zero.
        rows = 1 if step < 2 else 4
        if step < 7:
            pair.step(step, rows=rows)
        else:
            pair.ddp.zero_grad(set_to_none=False)
            pair.exact.zero_grad()
            pair.backward(step, rows=rows)
            pair.want(step, rows=rows)
            pair.check()
        found.append(len(pair.factored() - {"narrow.weight"}))
    return found


@pytest.mark.parametrize(
    ("world", "shared_memory", "per_host"), [(2, None, None), (2, False, None), (4, None, 2)]
)
def test_gradients_that_keep_coming_whole_change_the_choice(ranks, world, shared_memory, per_host):
    # Learnt after the first step, with more room after three with more rows, given up after three
    # that add to zeros.
    want = [3] * 9 + [0] * 3
    options = {"shared_memory": shared_memory, "per_host": per_host}
    assert ranks(whole_products, world, timeout=120, **options) == [want] * world


def watched_for_ever(rank, world):
    pair = Pair(rank, world)
    pair.step(0)
    handle = pair.ddp.module.first.weight.register_hook(lambda g: g + 0.0)
    sets = set()
    for step in range(1, 10):
        pair.step(step, rows=6 - step % 3)
        sets.add(id(pair.ddp._reducer._set))
    handle.remove()
    return [len(sets), sorted(pair.factored())]


def test_a_weight_with_a_hook_is_given_up_once(ranks):
    assert ranks(watched_for_ever, 2) == [[2, ["second.weight", "spare.weight"]]] * 2


def large_half(rank, world, per_host):
    _rendezvous.boot_id = lambda: f"host {rank // per_host}"
    torch.manual_seed(0)
    layer = nn.Linear(64, 64, bias=False).half()
    ddp = lt.distributed.BucketedDataParallel(layer, sufficient_factors=True, timeout=60)
    for step in range(3):
        ddp.zero_grad(set_to_none=step < 2)
        (ddp(torch.full((1, 64), 100.0).half()).sum() * 400).backward()
        assert (layer.weight.grad == 40000).all(), layer.weight.grad
    return ddp.transport


def test_a_product_in_half_precision_does_not_overflow(ranks):
    assert "gloo" in ranks(large_half, 2, per_host=1)[0]
    assert "between hosts" in ranks(large_half, 4, per_host=2)[0]


def options_differ(rank, world, shared_memory, name):
    values = {"sufficient_factors": (True, False), "overlap": (True, False)}[name]
    options = {"sufficient_factors": True, name: values[rank % 2]}
    ddp = lt.distributed.BucketedDataParallel(
        Net(), shared_memory=shared_memory, timeout=20, **options
    )
    for step in range(3):
        ddp.zero_grad()
        ddp(batch(rank, step), True).square().mean().backward()
    ddp.check_replicas()
    return [isinstance(bucket, FactoredBucket) for bucket in ddp._reducer._set.buckets]


@pytest.mark.parametrize("shared_memory", [None, False])
@pytest.mark.parametrize("name", ["sufficient_factors", "overlap"])
def test_factors_need_the_consent_of_all_ranks(ranks, name, shared_memory):
    for found in ranks(options_differ, 2, shared_memory=shared_memory, name=name):
        assert not any(found)


def wrong_option(rank, world):
    for wrong in (0, 1, "yes"):
        with pytest.raises(ValueError, match="sufficient_factors must be True, False or None, got"):
            lt.distributed.BucketedDataParallel(Net(), sufficient_factors=wrong)
    return True


def test_another_option_is_refused(ranks):
    assert ranks(wrong_option, 1) == [True]


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
