"""BucketedDataParallel: refusals, replicas that differ, and a backward that raises."""

import lepton_train as lt
import pytest
import torch
from replicas import average_gradients, batch, loss_of, mlp, wrap
from torch import nn


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


def desync(rank, world):
    ddp = wrap(mlp())
    ddp.check_replicas()
    with torch.no_grad():
        if rank == 1:
            ddp.module[2].bias[3] += 1e-7
    ddp.check_replicas()


def test_replicas_that_differ_are_found(ranks):
    for outcome in ranks.outcomes(desync, 3):
        assert "parameter 2.bias on rank [1]" in outcome["error"]


def different_modules(rank, world):
    wrap(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 5 if rank else 4)))


def test_different_modules(ranks):
    for outcome in ranks.outcomes(different_modules, 2):
        assert (
            "1.weight (float32, (4, 4)), rank 1 has 1.weight (float32, (5, 4))"
            in (outcome["error"])
        )


class Bomb(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise ArithmeticError("boom")


def failed_backward(rank, world):
    ddp = wrap(mlp(), shared_memory=True)
    with pytest.raises(ArithmeticError):
        ddp(Bomb.apply(batch(rank, 0).requires_grad_())).sum().backward()
    ddp.zero_grad()
    want = average_gradients(ddp.module, world, 1)
    loss_of(ddp, batch(rank, 1)).backward()
    for parameter, expected in zip(ddp.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


def test_a_backward_that_raises_is_not_silent_later(ranks):
    ranks(failed_backward, 2)


def failed_backward_then_another(rank, world, way, hold):
    """No forward between the backward that raises and the next one."""
    ddp = wrap(mlp(), broadcast_buffers=False, shared_memory=way == "shm")

    def two_losses():
        bad = ddp(Bomb.apply(batch(rank, 0).requires_grad_())).sum()
        return bad, loss_of(ddp, batch(rank, 1))

    bad, good = two_losses()
    held = None
    try:
        bad.backward()
    except ArithmeticError as error:
        held = error if hold else None  # the traceback may keep things alive
    ddp.zero_grad()
    want = average_gradients(ddp.module, world, 1)
    good.backward()
    for parameter, expected in zip(ddp.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)
    # Buckets start during backward from now on: what was announced cannot be taken back.
    bad, good = two_losses()
    with pytest.raises(ArithmeticError):
        bad.backward()
    for loss in (good, good):
        with pytest.raises(RuntimeError, match="last backward failed on this rank after"):
            loss.backward(retain_graph=True)
    del held
    ddp.close()


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize("way", ["shm", "gloo"])
def test_no_gradient_stays_unreduced_after_a_backward_that_raises(ranks, way, hold):
    ranks(failed_backward_then_another, 2, way=way, hold=hold)


def test_what_is_no_module_or_has_no_process_group_is_said(ranks):
    assert all(ranks(wraps_a_number, 1))
    with pytest.raises(RuntimeError, match=r"no process group yet; start with torchrun"):
        lt.distributed.BucketedDataParallel(nn.Linear(2, 2))


def wraps_a_number(rank, world):
    with pytest.raises(TypeError, match=r"module must be an nn\.Module, got int"):
        lt.distributed.BucketedDataParallel(3)
    return True
