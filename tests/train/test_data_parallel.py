"""BucketedDataParallel against one process that sees all the data."""

import copy
import hashlib
from collections import Counter
from pathlib import Path

import pytest
import torch
from replicas import average_gradients, batch, loss_of, mlp, wrap
from torch import nn
from torch.utils.checkpoint import checkpoint

WAYS = {
    "shm": {"shared_memory": True},
    "gloo": {"shared_memory": False},
    "bf16": {"shared_memory": False, "compression": "bf16"},
    "int8": {"shared_memory": False, "compression": "int8"},
}


def digest(module):
    sums = hashlib.sha256()
    for value in module.state_dict().values():
        sums.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return sums.hexdigest()


def own_largest(module, world, step):
    """Largest element of any rank's own gradients: what is rounded."""
    grads = [average_gradients(module, 1, step, first=r) for r in range(world)]
    return max(g.abs().max().item() for own in grads for g in own)


def train(rank, world, way, set_to_none=True):
    module = mlp()
    if rank:  # rank 0's parameters win
        nn.init.ones_(module[0].weight)
    ddp = wrap(module, **WAYS[way])
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    # Two roundings, and what two left over of the step before; bf16 rounds by 2^-9, int8 by 1/254.
    tolerance = {"bf16": 4 * 2**-9, "int8": 4 / 254}.get(way, 1e-6)
    known = {"bf16": 1e-2, "int8": 5e-2, "shm": 1e-6, "gloo": 1e-6}
    largest = 0.0
    for step in range(6):
        want = average_gradients(module, world, step)
        before, largest = largest, own_largest(module, world, step)
        optimizer.zero_grad(set_to_none=set_to_none)
        loss_of(ddp, batch(rank, step)).backward()
        for parameter, expected in zip(module.parameters(), want, strict=True):
            worst = (parameter.grad - expected).abs().max()
            assert worst <= tolerance * max(before, largest)
            assert worst <= known[way] * max(w.abs().max() for w in want)
        optimizer.step()
    ddp.check_replicas()
    # Gradients are the buckets: no second copy of them.
    if way == "shm":
        owned = {p.grad.untyped_storage().data_ptr() for p in module.parameters()}
        assert owned == {b.flat.untyped_storage().data_ptr() for b in ddp._reducer._set.buckets}
        assert ddp.transport == "shared memory"
    return digest(module)


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("way", list(WAYS))
def test_trains_as_one_process(ranks, way, world):
    first = ranks(train, world, way=way)
    assert len(set(first)) == 1
    if way == "shm":
        assert ranks(train, world, way=way) == first  # the same bits from run to run
        assert len(set(ranks(train, world, way=way, set_to_none=False))) == 1


def mixed(rank, world):
    torch.manual_seed(3)

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 16)
            self.b = nn.Linear(16, 16, dtype=torch.bfloat16)
            self.c = nn.Conv2d(1, 2, 3, padding=1).to(memory_format=torch.channels_last)
            self.d = nn.Linear(16, 4, dtype=torch.float16)
            self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

        def forward(self, x):
            y = self.b(self.a(x).bfloat16()).float()
            y = self.c(y.view(-1, 1, 4, 4)).mean(1).view(-1, 16)
            return self.d(y.half())

    ddp = wrap(Mixed(), shared_memory=True)
    for step in range(3):
        ddp.zero_grad()
        local = copy.deepcopy(ddp.module)
        loss_of(ddp, batch(rank, step)).backward()
        loss_of(local, batch(rank, step)).backward()
        for ours, theirs in zip(ddp.module.parameters(), local.parameters(), strict=True):
            if not ours.requires_grad:
                assert ours.grad is None
                continue
            assert ours.grad.dtype == ours.dtype
            assert ours.grad.stride() == ours.stride()
            gathered = [torch.empty_like(theirs.grad) for _ in range(world)]
            torch.distributed.all_gather(gathered, theirs.grad)
            want = sum(g.float() for g in gathered) / world
            torch.testing.assert_close(ours.grad.float(), want, rtol=1e-2, atol=1e-5)


def test_mixed_dtypes_and_strides(ranks):
    ranks(mixed, 2)


class Branches(nn.Module):
    """Uses a branch by name; `never` is used by no one."""

    def __init__(self):
        super().__init__()
        self.never = nn.Linear(8, 8)
        self.left, self.right = nn.Linear(8, 4), nn.Linear(8, 4)
        self.shared = nn.Linear(8, 8)
        self.tied = self.shared

    def forward(self, x, branch):
        x = self.tied(self.shared(x))
        return getattr(self, branch)(x)


def unused(rank, world, accumulate):
    torch.manual_seed(5)
    ddp = wrap(Branches(), shared_memory=True)
    plain = copy.deepcopy(ddp.module)
    for step in range(8):
        names = ["left" if (r + step) % 3 else "right" for r in range(world)]
        if step == 4:
            names = ["left"] * world
        ddp.zero_grad()
        plain.zero_grad()
        rounds = 2 if accumulate else 1
        for part in range(rounds):
            for r in range(world):
                x = batch(r, 10 * step + part)
                (plain(x, names[r]).square().mean() / world).backward()
            x = batch(rank, 10 * step + part)
            if part < rounds - 1:
                with ddp.no_sync():
                    ddp(x, names[rank]).square().mean().backward()
            else:
                ddp(x, names[rank]).square().mean().backward()
        for (name, ours), theirs in zip(
            ddp.module.named_parameters(), plain.parameters(), strict=True
        ):
            assert (ours.grad is None) == (theirs.grad is None), (step, name)
            if ours.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [False, True])
def test_unused_and_shared_parameters(ranks, accumulate):
    ranks(unused, 2, accumulate=accumulate)


def accumulates(rank, world, way):
    ddp = wrap(mlp(), **WAYS[way])
    for step in range(4):
        ddp.zero_grad(set_to_none=step % 2 == 0)
        want = None
        for part in range(3):
            grads = average_gradients(ddp.module, world, 10 * step + part)
            want = grads if want is None else [a + b for a, b in zip(want, grads, strict=True)]
        with ddp.no_sync():
            for part in range(2):
                loss_of(ddp, batch(rank, 10 * step + part)).backward()
        loss_of(ddp, batch(rank, 10 * step + 2)).backward()
        for parameter, expected in zip(ddp.parameters(), want, strict=True):
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)
    # Two backwards of one forward each, both synchronised, add up as well.
    ddp.zero_grad()
    for part in range(2):
        loss_of(ddp, batch(rank, part)).backward()
    first, second = (average_gradients(ddp.module, world, part) for part in range(2))
    for parameter, a, b in zip(ddp.parameters(), first, second, strict=True):
        torch.testing.assert_close(parameter.grad, a + b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("way", ["shm", "gloo"])
def test_no_sync(ranks, way):
    ranks(accumulates, 2, way=way)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.block, self.last = nn.Linear(8, 8), mlp()[0], nn.Linear(40, 4)
        self.twice = nn.Linear(40, 40)
        self.reentrant = reentrant

    def forward(self, x):
        x = self.first(x)
        x = checkpoint(self.block, x, use_reentrant=self.reentrant)
        for _ in range(2):
            x = checkpoint(self.twice, x, use_reentrant=self.reentrant)
        return self.last(x)


def checkpointed(rank, world, reentrant):
    torch.manual_seed(1)
    ddp = wrap(Checkpointed(reentrant), shared_memory=True)
    for step in range(4):
        ddp.zero_grad()
        want = average_gradients(ddp.module, world, step)
        loss_of(ddp, batch(rank, step)).backward()
        for parameter, expected in zip(ddp.parameters(), want, strict=True):
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(ranks, reentrant):
    ranks(checkpointed, 2, reentrant=reentrant)


def compiled(rank, world):
    module = mlp()
    ddp = wrap(torch.compile(module, backend="aot_eager"), shared_memory=True)
    for step in range(3):
        ddp.zero_grad()
        want = average_gradients(module, world, step)
        loss_of(ddp, batch(rank, step)).backward()
        for parameter, expected in zip(module.parameters(), want, strict=True):
            torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


def test_a_compiled_module(ranks):
    ranks(compiled, 2, timeout=120)


def clips(rank, world, way):
    ddp = wrap(mlp(), **WAYS[way])
    for step, limit in enumerate([1e-3, 1e3, 0.01]):
        ddp.zero_grad()
        want = average_gradients(ddp.module, world, step)
        loss_of(ddp, batch(rank, step)).backward()
        norm = ddp.clip_grad_norm_(limit)
        expected = torch.cat([w.flatten() for w in want]).norm().double()
        torch.testing.assert_close(norm, expected, rtol=1e-5, atol=0)
        got = torch.cat([p.grad.flatten() for p in ddp.parameters()]).norm().item()
        assert got == pytest.approx(min(limit, expected.item()), rel=1e-3)
    with pytest.raises(RuntimeError, match="after a synchronised backward"):
        ddp.clip_grad_norm_(1.0)
    return norm.item().hex()


@pytest.mark.parametrize("way", ["shm", "gloo"])
def test_clip(ranks, way):
    assert len(set(ranks(clips, 3, way=way))) == 1


def buffers_and_state(rank, world):
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    ddp = wrap(module)
    assert list(ddp.state_dict()) == list(module.state_dict())
    for step in range(3):
        ddp(batch(rank, step)).sum().backward()
    with torch.no_grad():
        ddp(batch(rank, 9))  # no gradient: no message
    ddp(batch(rank, 3)).sum().backward()
    saved = {k: v.clone() for k, v in ddp.state_dict().items()}
    nn.init.zeros_(module[0].weight)
    assert "All keys matched" in str(ddp.load_state_dict(saved))
    assert torch.equal(module[0].weight, saved["0.weight"])
    with pytest.raises(NotImplementedError, match="assign"):
        ddp.load_state_dict(saved, assign=True)
    ddp.close()


def test_buffers_and_state_dict(ranks):
    ranks(buffers_and_state, 2)


def shared_mappings():
    """Bytes of each mapping of shared memory in this process."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ends = [line[0].split("-") for line in lines if "memfd:lepton" in " ".join(line[5:])]
    return [int(end, 16) - int(start, 16) for start, end in ends]


def maps_buckets_once(rank, world):
    ddp = wrap(mlp(), shared_memory=True)
    # Beside the control block each bucket has one mapping, with a part for every rank.
    for step in range(3):
        ddp.zero_grad()
        loss_of(ddp, batch(rank, step)).backward()
        flats = [b.flat for b in ddp._reducer._set.buckets]
        buckets = [world * -(-flat.numel() * flat.itemsize // 4096) * 4096 for flat in flats]
        mapped = shared_mappings()
        assert len(mapped) == len(buckets) + 1, mapped
        assert not Counter(buckets) - Counter(mapped)
    return len(buckets)


def test_buckets_of_the_first_order_are_unmapped(ranks):
    counts = ranks(maps_buckets_once, 2)
    assert counts[0] == counts[1] > 1
