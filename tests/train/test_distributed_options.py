"""What BucketedDataParallel can be asked for, and what stands beside it."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lepton_train as lt
import pytest
import torch
import torch.distributed as dist
from replicas import batch, loss_of, mlp, wrap
from torch import nn


def many_buckets_and_checks(rank, world):
    """More buckets than the communicator has slots."""
    depth = 90
    ddp = wrap(mlp((8, *[8] * depth)), bucket_cap_mb=1e-6, timeout=60, check_every=2)
    assert len(ddp._reducer._set.buckets) == 2 * depth
    for step in range(3):
        ddp.zero_grad()
        (1e3 * loss_of(ddp, batch(rank, step))).backward()
        want = torch.cat([p.grad.flatten() for p in ddp.parameters()]).double().norm()
        if rank == 0:
            time.sleep(0.05)  # the others are a step ahead when this one reads its sums
        norm = ddp.clip_grad_norm_(0.5 * want.item())
        torch.testing.assert_close(norm, want, rtol=1e-5, atol=0)
        got = torch.cat([p.grad.flatten() for p in ddp.parameters()]).double().norm()
        torch.testing.assert_close(got, 0.5 * want, rtol=1e-4, atol=0)
    with torch.no_grad():
        if rank == 1:
            ddp.module[4].weight[1, 2] += 1e-6
    ddp(batch(rank, 9)).sum().backward()  # three backwards were checked at two: next at four
    with pytest.raises(RuntimeError, match=r"parameter 4.weight on rank \[1\]"):
        ddp(batch(rank, 9))


def test_norm_of_many_buckets_and_check_every(ranks):
    ranks(many_buckets_and_checks, 3)


def sharded(rank, world, way):
    torch.manual_seed(3)
    module = nn.Sequential(
        nn.Unflatten(1, (1, 2, 4)),
        nn.Conv2d(1, 3, 3, padding=1).to(memory_format=torch.channels_last),
        nn.Flatten(),
        nn.Linear(24, 37),
        nn.Linear(37, 5, dtype=torch.bfloat16),
    )
    module[3].register_forward_hook(lambda m, i, out: out.bfloat16())
    twin = copy.deepcopy(module)
    ddp = wrap(module, timeout=60, shared_memory=way == "shm")
    groups = [
        {"params": [p for p in ddp.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in ddp.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    plain_groups = [
        {"params": [p for p in twin.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in twin.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    ours = lt.distributed.ShardedOptimizer(ddp, torch.optim.AdamW, groups, lr=0.01)
    plain = torch.optim.AdamW(plain_groups, lr=0.01)
    schedules = [torch.optim.lr_scheduler.StepLR(o, 2, 0.5) for o in (ours, plain)]
    for step in range(6):
        ours.zero_grad()
        loss_of(ddp, batch(rank, step)).backward()
        for theirs, own in zip(twin.parameters(), module.parameters(), strict=True):
            theirs.grad = None if own.grad is None else own.grad.clone()
        ours.step()
        plain.step()
        for schedule in schedules:
            schedule.step()
        if step == 2:  # a checkpoint of the whole, which either takes
            saved = ours.state_dict()
            ours.load_state_dict(copy.deepcopy(plain.state_dict()))
            plain.load_state_dict(copy.deepcopy(saved))
    for own, theirs in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-7)
    ddp.check_replicas()
    # The state is divided: all ranks together hold one copy of it.
    held = torch.tensor([sum(s["exp_avg"].numel() for s in ours._inner.state.values())])
    dist.all_reduce(held)
    assert held.item() == sum(p.numel() for p in module.parameters())
    with pytest.raises(TypeError, match="must be a BucketedDataParallel, got Linear"):
        lt.distributed.ShardedOptimizer(nn.Linear(2, 2), torch.optim.SGD, lr=1)
    with pytest.raises(ValueError, match=r"shape \(2, 2\) is not the module's"):
        lt.distributed.ShardedOptimizer(ddp, torch.optim.SGD, nn.Linear(2, 2).parameters(), lr=1)


@pytest.mark.parametrize("way", ["shm", "gloo"])
def test_sharded_optimizer(ranks, way):
    ranks(sharded, 3, way=way)


def learns(rank, world, way):
    """Loss on fresh data after training on sin of a projection."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 1))
    options = {
        "auto": {"bucket_cap_mb": "auto"},
        "powersgd": {"bucket_cap_mb": "auto", "compression": "powersgd"},
    }
    ddp = wrap(model, timeout=60, shared_memory=False, **options.get(way, {}))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.05)
    teacher = torch.randn(20, 1, generator=torch.Generator().manual_seed(1))
    for step in range(120):
        x = torch.randn(16, 20, generator=torch.Generator().manual_seed(step * world + rank))
        optimizer.zero_grad()
        (ddp(x) - torch.sin(x @ teacher)).square().mean().backward()
        optimizer.step()
    ddp.check_replicas()
    x = torch.randn(512, 20, generator=torch.Generator().manual_seed(-1))
    return (model(x) - torch.sin(x @ teacher)).square().mean().item()


def several_ways_to_learn(rank, world):
    return {way: learns(rank, world, way) for way in ("plain", "auto", "powersgd")}


def test_power_sgd_and_measured_bucket_size(ranks):
    losses = ranks(several_ways_to_learn, 2)[0]
    assert losses["auto"] == pytest.approx(losses["plain"], rel=1e-4)
    assert losses["powersgd"] == pytest.approx(losses["plain"], rel=0.1)


def stale(rank, world, staleness):
    torch.manual_seed(rank)
    model = nn.Linear(6, 1)
    late = lt.distributed.StaleGradients(model, staleness=staleness, timeout=60)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 / (1 + staleness))
    teacher = torch.arange(6.0)[:, None]
    sent, applied = [], 0

    def step():
        nonlocal applied
        # What is applied is the average of what was sent `staleness` steps ago.
        torch.testing.assert_close(model.weight.grad, sent[applied], rtol=1e-5, atol=1e-6)
        applied += 1
        optimizer.step()

    for i in range(400):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(i * world + rank))
        optimizer.zero_grad()
        loss = (model(x) - x @ teacher).square().mean()
        loss.backward()
        average = model.weight.grad.clone()
        dist.all_reduce(average)
        sent.append(average / world)
        if late.exchange():
            assert len(sent) - applied == staleness + 1
            step()
    while late.drain():
        step()
    assert applied == 400
    late.close()
    return loss.item(), model.weight.detach().numpy().tobytes().hex()


def ahead(rank, world):
    """A fast rank runs as far ahead as it may, and no farther."""
    model = nn.Linear(4, 1)
    late = lt.distributed.StaleGradients(model, staleness=3, timeout=60)
    before = []
    store = dist.distributed_c10d._get_default_store()
    for i in range(8):
        if rank == 1 and i == 0:
            store.wait(["ahead"])  # set once rank 0 has sent three steps
        model(torch.ones(1, 4)).sum().backward()
        late.exchange()
        before.append(store.check(["ahead"]))
        if rank == 0 and i == 2:
            store.set("ahead", "1")
    return before


def test_bounded_staleness(ranks):
    for staleness in (0, 2):
        results = ranks(stale, 2, staleness=staleness)
        assert results[0][1] == results[1][1]
        assert max(loss for loss, _ in results) < 0.05
    assert ranks(ahead, 2)[0][:3] == [False, False, False]


def fully_sharded(rank, world):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not hasattr(FSDPModule, "set_custom_reduce_scatter"):
        return None
    mesh = init_device_mesh("cpu", (world,))
    found = {}
    for way in ("plain", "int8"):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(20, 64), nn.Tanh(), nn.Linear(64, 1))
        fully_shard(model[0], mesh=mesh)
        fully_shard(model, mesh=mesh)
        if way == "int8":
            assert lt.distributed.Int8ReduceScatter.install(model) == 2
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        teacher = torch.randn(20, 1, generator=torch.Generator().manual_seed(1))
        for step in range(60):
            x = torch.randn(16, 20, generator=torch.Generator().manual_seed(step * world + rank))
            optimizer.zero_grad()
            (model(x) - torch.sin(x @ teacher)).square().mean().backward()
            optimizer.step()
        x = torch.randn(512, 20, generator=torch.Generator().manual_seed(-1))
        found[way] = (model(x) - torch.sin(x @ teacher)).square().mean().item()
    with pytest.raises(TypeError, match="fully_shard has not been applied"):
        lt.distributed.Int8ReduceScatter.install(nn.Linear(2, 2))
    return found


def test_int8_gradients_of_fsdp2(ranks):
    found = ranks(fully_sharded, 2)[0]
    if found is None:
        pytest.skip("FSDP2 of this torch has no set_custom_reduce_scatter")
    assert found["int8"] == pytest.approx(found["plain"], rel=0.02)
    assert found["int8"] != found["plain"]


class KillOnce:
    """Kills rank 1 in the middle of its first life."""

    def __init__(self, at):
        self.left = at if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" else -1

    def __call__(self, model, data):
        if self.left == 0 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1
        return nn.functional.cross_entropy(model(data[0]), data[1])


def fit(place, step):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(0.2), nn.Linear(16, 3))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(48, 4, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    result = lt.fit(
        model,
        (x, y),
        training_step=step,
        batch_size=6,
        epochs=3,
        progress=False,
        checkpoint=place,
        checkpoint_every=2,
        resume=True,
        distributed={"timeout": 120},
    )
    return [row["train_loss"] for row in result.history]


def undisturbed(rank, world, place):
    return fit(place, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]))


def test_a_restarted_job_has_the_same_losses(ranks, tmp_path):
    want = ranks(undisturbed, 2, place=str(tmp_path / "one"), timeout=300)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, "--max-restarts=1", __file__, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        found = json.loads(Path(tmp_path, f"{rank}.json").read_text())
        assert found["restart"] == "1"
        assert found["losses"] == want[rank]


if __name__ == "__main__":  # a process of the torchrun above
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    losses = fit(folder / "two", KillOnce(9))
    Path(folder, f"{os.environ['RANK']}.json").write_text(
        json.dumps({"losses": losses, "restart": os.environ["TORCHELASTIC_RESTART_COUNT"]})
    )
