"""BucketedDataParallel: refusals, and ranks that die in backward."""

import os
import signal
import time

import lepton_train as lt
import torch
from torch import nn


def wrap(module, **options):
    return lt.distributed.BucketedDataParallel(module, bucket_cap_mb=0.002, timeout=20, **options)


def bad_arguments(rank, world):
    messages = {}
    cases = {
        "dtype": lambda: wrap(nn.Linear(2, 2).double()),
        "none": lambda: wrap(nn.Linear(2, 2).requires_grad_(False)),
        "compression": lambda: wrap(nn.Linear(2, 2), compression="zip"),
        "cap": lambda: lt.distributed.BucketedDataParallel(nn.Linear(2, 2), bucket_cap_mb=0),
        "sparse": lambda: wrap(nn.Embedding(9, 3, sparse=True))(torch.tensor([1])).sum().backward(),
        "lazy": lambda: wrap(nn.LazyLinear(3)),
        "auto": lambda: lt.distributed.BucketedDataParallel(nn.Linear(2, 2), bucket_cap_mb="big"),
        "check": lambda: wrap(nn.Linear(2, 2), check_every=-1),
        "late": lambda: lt.distributed.StaleGradients(nn.Linear(2, 2), staleness=-1),
        "late zip": lambda: lt.distributed.StaleGradients(nn.Linear(2, 2), compression="powersgd"),
        "every": lambda: lt.distributed.LocalSGD(nn.Linear(2, 2), every=0),
    }
    for name, call in cases.items():
        try:
            call()
        except Exception as error:
            messages[name] = f"{type(error).__name__}: {error}"
    return messages


def test_error_messages(ranks):
    (messages,) = ranks(bad_arguments, 1)
    assert "parameter weight is torch.float64" in messages["dtype"]
    assert "requires a gradient" in messages["none"]
    assert "got 'zip'" in messages["compression"]
    assert "bucket_cap_mb must be positive or 'auto', got 0" in messages["cap"]
    assert "bucket_cap_mb must be positive or 'auto', got 'big'" in messages["auto"]
    assert "check_every must be at least 0, got -1" in messages["check"]
    assert "staleness must be at least 0, got -1" in messages["late"]
    assert "must be None, 'bf16' or 'int8', got 'powersgd'" in messages["late zip"]
    assert "gradient of weight is torch.sparse_coo" in messages["sparse"]
    assert "no shape yet" in messages["lazy"]
    assert "every must be at least 1, got 0" in messages["every"]


def die_in_backward(rank, world, after):
    torch.manual_seed(0)
    ddp = wrap(nn.Sequential(*[nn.Linear(128, 128) for _ in range(8)]), shared_memory=True)
    victim, pid = world - 1, os.getpid()
    if rank == victim and os.fork() == 0:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
        os._exit(0)
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        ddp.zero_grad()
        ddp(torch.randn(16, 128)).square().sum().backward()


def test_kill_in_backward(ranks, pytestconfig):
    for i in range(max(pytestconfig.getoption("--kills") // 2, 1)):
        outcomes = ranks.outcomes(die_in_backward, 2, after=0.02 + 0.05 * (i % 7))
        assert outcomes[1]["code"] == -signal.SIGKILL
        assert "rank 1" in outcomes[0]["error"], outcomes[0]
        assert "has died" in outcomes[0]["error"], outcomes[0]
