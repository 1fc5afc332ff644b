"""Compressed averages, hooks for torch's DDP, several hosts, LocalSGD."""

import copy
import hashlib

import lepton_train as lt
import pytest
import torch
import torch.distributed as dist
from lepton_train.distributed._two_shot import Pipeline
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lepton_kernels import _rendezvous


def digest(tensor):
    return hashlib.sha256(tensor.detach().contiguous().numpy().tobytes()).hexdigest()


def two_shot(rank, world, kind, numel):
    torch.manual_seed(7)
    pipeline = Pipeline(kind)
    pipeline.CHUNK = 3000
    fixed = torch.randn(world, numel)
    want = fixed.mean(0)
    total = torch.zeros(numel)
    digests = []
    for _ in range(20):
        flat = fixed[rank].clone()
        for pending in pipeline.submit(flat, "key"):
            pending.wait()
        total += flat
        digests.append(digest(flat))
    if numel:
        step = fixed.abs().max() * (2 / 127 if kind == "int8" else 2**-7)
        # Error feedback: errors do not add up over 20 steps, they stay within one step's.
        assert (total / 20 - want).abs().max() <= step / 10
    return digests


@pytest.mark.parametrize("kind", ["int8", "bf16"])
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("numel", [0, 1, 700, 5000])
def test_two_shot(ranks, kind, world, numel):
    results = ranks(two_shot, world, kind=kind, numel=numel)
    assert all(result == results[0] for result in results)


def hooked(rank, world, name):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 1))
    ddp = DistributedDataParallel(model)
    if name:
        ddp.register_comm_hook(None, getattr(lt.distributed, name))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    teacher = torch.randn(20, 1, generator=torch.Generator().manual_seed(1))
    for step in range(120):
        x = torch.randn(16, 20, generator=torch.Generator().manual_seed(step * world + rank))
        loss = (ddp(x) - torch.sin(x @ teacher)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(512, 20, generator=torch.Generator().manual_seed(-1))
    final = (model(x) - torch.sin(x @ teacher)).square().mean().item()
    return final, digest(torch.cat([p.flatten() for p in model.parameters()]))


@pytest.mark.parametrize("name", ["int8_hook", "bf16_hook"])
def test_hooks_for_torch_ddp(ranks, name):
    plain = ranks(hooked, 2, name=None)[0]
    results = ranks(hooked, 2, name=name)
    assert results[0] == results[1]
    assert results[0][0] == pytest.approx(plain[0], rel=0.02)


def several_hosts(rank, world, per_host, compression):
    _rendezvous.boot_id = lambda: f"host {rank // per_host}"
    torch.manual_seed(2)
    module = nn.Sequential(nn.Linear(9, 33), nn.ReLU(), nn.Linear(33, 3))
    ddp = lt.distributed.BucketedDataParallel(
        module, bucket_cap_mb=0.001, compression=compression, timeout=20
    )
    for step in range(3):
        x = torch.randn(world, 4, 9, generator=torch.Generator().manual_seed(step))
        twin = copy.deepcopy(module)
        twin.zero_grad()
        sum(twin(x[r]).square().mean() / world for r in range(world)).backward()
        ddp.zero_grad()
        ddp(x[rank]).square().mean().backward()
        norm = ddp.clip_grad_norm_(1e9)
        want = torch.cat([p.grad.flatten() for p in twin.parameters()])
        got = torch.cat([p.grad.flatten() for p in module.parameters()])
        tolerance = 0.05 if compression else 1e-5
        assert (got - want).abs().max() <= tolerance * want.abs().max()
        torch.testing.assert_close(norm, want.norm().double(), rtol=tolerance, atol=0)
    ddp.check_replicas()
    return ddp.transport


@pytest.mark.parametrize("compression", [None, "int8"])
def test_several_hosts(ranks, compression):
    found = ranks(several_hosts, 4, per_host=2, compression=compression)
    assert all("between hosts" in way for way in found)
    # Hosts of different size, or one rank each: torch.distributed carries all of it.
    assert "gloo" in ranks(several_hosts, 3, per_host=2, compression=compression)[0]
    assert "gloo" in ranks(several_hosts, 2, per_host=1, compression=compression)[0]


def local_sgd(rank, world, momentum):
    torch.manual_seed(rank)
    model = nn.Linear(6, 1)
    outer = {"outer_momentum": 0.5, "outer_lr": 0.7} if momentum else {}
    local = lt.distributed.LocalSGD(model, every=4, timeout=20, **outer)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    teacher = torch.arange(6.0)[:, None]
    averaged = 0
    for step in range(160):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step * world + rank))
        loss = (model(x) - x @ teacher).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        averaged += local.step()
    assert averaged == 40
    saved = local.state_dict()
    local.load_state_dict(saved)
    local.close()
    return loss.item(), digest(model.weight)


@pytest.mark.parametrize("momentum", [False, True])
def test_local_sgd(ranks, momentum):
    results = ranks(local_sgd, 2, momentum=momentum)
    assert results[0][1] == results[1][1]
    assert max(loss for loss, _ in results) < 0.05


def bad_hook_state(rank, world):
    ddp = DistributedDataParallel(nn.Linear(2, 2))
    ddp.register_comm_hook("what", lt.distributed.int8_hook)
    with pytest.raises(TypeError, match="state must be a ProcessGroup or None, got str"):
        ddp(torch.ones(1, 2)).sum().backward()
    assert dist.is_initialized()


def test_bad_hook_state(ranks):
    ranks(bad_hook_state, 1)
