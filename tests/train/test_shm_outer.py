"""The shared-memory communicator's averages of products of factors."""

import pytest
import torch

import lepton_kernels as lk


def shared(comm, *shape, dtype=torch.float32):
    numel = 1
    for size in shape:
        numel *= size
    return comm.empty(numel, dtype).view(shape)


def gathered(comm, tensor):
    everyone = torch.empty(comm.size, *tensor.shape, dtype=tensor.dtype)
    return comm.all_gather(everyone, tensor.contiguous())


def averages(rank, world, dtype):
    dtype = getattr(torch, dtype)
    comm = lk.ShmCommunicator(timeout=30)
    torch.manual_seed(rank)
    rows, columns, capacity = 37, 70, 5
    product = shared(comm, rows, columns, dtype=dtype)
    left = shared(comm, capacity, rows, dtype=dtype)
    right = shared(comm, capacity, columns, dtype=dtype)
    contributed = torch.full((1,), 9.0)
    start = comm.prepare_outer(product, left, right, contributed)
    everyone = torch.zeros(world * rows, columns, dtype=torch.float64)
    # Rows of each rank's factors: all, some, none, and a rank that has the product itself.
    for turn, terms in enumerate(([5, 5, 5], [1, 0, 3], [0, 0, 0], [None, 2, None], [4, None, 0])):
        mine = terms[rank]
        left.copy_(torch.randn(capacity, rows))
        right.copy_(torch.randn(capacity, columns))
        product.copy_(torch.randn(rows, columns))
        own = product.double() if mine is None else left[:mine].double().t() @ right[:mine].double()
        comm.all_gather(everyone, own)
        want = everyone.view(world, rows, columns).mean(0)
        number = start(mine)
        comm.progress()
        comm.wait(number)
        scale = max(want.abs().max().item(), 1e-30)
        assert (product.double() - want).abs().max().item() <= 4 * torch.finfo(dtype).eps * scale
        everyones = gathered(comm, product)
        assert all(torch.equal(other, everyones[0]) for other in everyones)
        assert contributed.item() == float(any(t != 0 for t in terms[:world])), turn
        squares = (want**2).sum().item()
        assert abs(comm.squares(number) - squares) <= 0.02 * squares
    comm.barrier()
    comm.close()
    return True


@pytest.mark.parametrize(("world", "dtype"), [(1, "float32"), (2, "bfloat16"), (3, "float32")])
def test_averages(ranks, world, dtype):
    assert all(ranks(averages, world, dtype=dtype))


def many(rank, world):
    comm = lk.ShmCommunicator(timeout=30)
    buckets = [
        (shared(comm, 8, 16), shared(comm, 2, 8), shared(comm, 2, 16), torch.zeros(1))
        for _ in range(5)
    ]
    starts = [comm.prepare_outer(*bucket) for bucket in buckets]
    for turn in range(40):  # more than the ring of slots holds, mixed with other collectives
        numbers = []
        for (_, left, right, _), start in zip(buckets, starts, strict=True):
            left.fill_(rank + 1.0)
            right.fill_(turn + 1.0)
            numbers.append(start(1 + rank % 2))
        total = torch.tensor([rank], dtype=torch.int64)
        comm.all_reduce(total)
        assert total.item() == sum(range(world))
        for number in numbers:
            comm.wait(number)
        want = sum((r + 1.0) * (turn + 1.0) * (1 + r % 2) for r in range(world)) / world
        for product, *_ in buckets:
            torch.testing.assert_close(product, torch.full_like(product, want))
        comm.barrier()
    comm.close()
    return True


def test_many_at_once(ranks):
    assert all(ranks(many, 3))


def disagree(rank, world):
    comm = lk.ShmCommunicator(timeout=30)
    product, left = shared(comm, 6, 8), shared(comm, 2, 6)
    right, other = shared(comm, 2, 8), shared(comm, 2, 8)
    start = comm.prepare_outer(product, left, other if rank else right, torch.zeros(1))
    with pytest.raises(RuntimeError, match="ranks disagree at collective"):
        comm.wait(start(2))
    return True


def test_ranks_that_disagree_all_fail(ranks):
    assert all(ranks(disagree, 2))


def bad_arguments(rank, world):
    comm = lk.ShmCommunicator(timeout=30)
    product, left, right = shared(comm, 6, 8), shared(comm, 2, 6), shared(comm, 2, 8)
    flag = torch.zeros(1)
    for kind, message, arguments in (
        (ValueError, r"product must have shape \(rows, columns\)", (product[0], left, right)),
        (ValueError, r"left must have shape \(2, 6\), got \(2, 8\)", (product, right, right)),
        (ValueError, r"right must have shape \(2, 8\), got \(1, 8\)", (product, left, right[:1])),
        (TypeError, "right must be torch.float32 like product", (product, left, right.half())),
        (TypeError, "product must be of floats", (product.long(), left, right)),
        (ValueError, "left must be contiguous", (product, torch.ones(6, 2).t(), right)),
    ):
        with pytest.raises(kind, match=message):
            comm.prepare_outer(*arguments, flag)
    for terms in (-1, 3):
        with pytest.raises(ValueError, match=f"terms must be from 0 to 2, or None, got {terms}"):
            comm.prepare_outer(product, left, right, flag)(terms)
    with pytest.raises(RuntimeError, match="does not lie in this rank's shared memory"):
        comm.prepare_outer(product, left, right.clone(), flag)(2)
    return True


def test_error_messages(ranks):
    assert all(ranks(bad_arguments, 1))
