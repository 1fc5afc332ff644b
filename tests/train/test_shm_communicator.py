"""The shared-memory communicator between processes: results, errors, crashes."""

import hashlib
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

import lepton_kernels as lk
from lepton_kernels.bucket_ceiling import bucket_pass_seconds

DTYPES = ["float32", "bfloat16", "float16", "int8", "int64"]
SIZES = [0, 1, 63, 1000, 100_001]


def data(rank, numel, dtype):
    generator = torch.Generator().manual_seed(rank + 17)
    if dtype.is_floating_point:
        return torch.randn(numel, generator=generator).to(dtype)
    return torch.randint(-40, 40, (numel,), generator=generator).to(dtype)


def expected_sum(world, numel, dtype, op):
    if not dtype.is_floating_point:
        total = sum(data(r, numel, dtype).to(torch.int64) for r in range(world))
        return total.to(dtype)
    total = data(0, numel, dtype).float()
    for r in range(1, world):
        total = total + data(r, numel, dtype).float()
    return (total / world if op == "avg" else total).to(dtype)


def digest(tensor):
    return hashlib.sha256(tensor.contiguous().view(torch.int8).numpy().tobytes()).hexdigest()


def collectives(rank, world):
    comm = lk.ShmCommunicator(timeout=30, stage_bytes=65536)
    assert comm.ranks == list(range(world))
    digests = []
    for name in DTYPES:
        dtype = getattr(torch, name)
        for numel in SIZES:
            for op in ("sum", "avg") if dtype.is_floating_point else ("sum",):
                want = expected_sum(world, numel, dtype, op)
                bucket = comm.empty(numel, dtype)
                assert not bucket.any()
                for tensor in (bucket, torch.empty(numel, dtype=dtype)):
                    tensor.copy_(data(rank, numel, dtype))
                    comm.all_reduce(tensor, op)
                    torch.testing.assert_close(tensor, want, rtol=0, atol=0)
                bucket.copy_(data(rank, numel, dtype))
                comm.wait(comm.start_all_reduce(bucket, op))
                torch.testing.assert_close(bucket, want, rtol=0, atol=0)
                digests.append(digest(bucket))
            inputs = [data(r, numel * world, dtype) for r in range(world)]
            part = torch.empty(numel, dtype=dtype)
            comm.reduce_scatter(part, inputs[rank])
            want = expected_sum(world, numel * world, dtype, "sum")
            assert torch.equal(part, want[rank * numel : (rank + 1) * numel])
            whole = torch.empty(numel * world, dtype=dtype)
            comm.all_gather(whole, data(rank, numel, dtype))
            assert torch.equal(whole, torch.cat([data(r, numel, dtype) for r in range(world)]))
            tensor = data(rank, numel, dtype)
            comm.broadcast(tensor, world - 1)
            assert torch.equal(tensor, data(world - 1, numel, dtype))
    flags = torch.tensor([rank == world - 1, True])
    assert torch.equal(comm.broadcast(flags, world - 1), torch.tensor([True, True]))
    comm.close()
    return digests


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_collectives(ranks, world):
    results = ranks(collectives, world)
    assert all(result == results[0] for result in results)


def many_at_once(rank, world, seed):
    comm = lk.ShmCommunicator(timeout=30, stage_bytes=4096)
    chance = random.Random(seed)
    own = random.Random(seed + rank)
    buckets = [comm.empty(5000, torch.float32) for _ in range(5)]
    for _ in range(60):
        numbers = []
        for i in range(chance.randint(1, 5)):
            buckets[i].fill_(rank + i)
            numbers.append(comm.start_all_reduce(buckets[i], "sum", norm_of=100))
            if own.random() < 0.4:
                time.sleep(own.random() * 1e-3)
            if own.random() < 0.5:
                comm.progress()
        if chance.random() < 0.5:
            small = torch.full((3,), float(rank))
            comm.all_reduce(small)
            assert small[0] == world * (world - 1) / 2
        for i, number in enumerate(numbers):
            comm.wait(number)
            value = world * (world - 1) / 2 + world * i
            assert (buckets[i] == value).all()
            assert comm.squares(number) == 100 * value**2
    waited, worked = comm.seconds_waited, comm.seconds_worked
    assert waited >= 0
    assert worked > 0


@pytest.mark.parametrize("world", [2, 4])
def test_many_started_at_once(ranks, world):
    ranks(many_at_once, world, seed=3)


def more_than_the_ring(rank, world):
    comm = lk.ShmCommunicator(timeout=30)
    bucket = comm.empty(200 * 64, torch.float32)
    bucket.fill_(1.0)
    numbers = [comm.start_all_reduce(bucket[i * 64 : i * 64 + 64]) for i in range(200)]
    comm.wait(numbers[-1])
    assert (bucket == world).all()


def test_more_outstanding_than_slots(ranks):
    ranks(more_than_the_ring, 2)


def same_bits_on_every_isa(rank, world):
    comm = lk.ShmCommunicator(timeout=30)
    found = {}
    for name in lk.info()["isa_present"]:
        with lk.force_isa(name):
            bucket = comm.empty(10_007, torch.bfloat16)
            bucket.copy_(data(rank, 10_007, torch.bfloat16))
            comm.all_reduce(bucket, "avg")
            found[name] = digest(bucket)
    return found


def test_same_bits_on_every_isa(ranks):
    for found in ranks(same_bits_on_every_isa, 3):
        assert len(set(found.values())) == 1


def disagree(rank, world, what):
    comm = lk.ShmCommunicator(timeout=10)
    bucket = comm.empty(100_000, torch.float32)
    other = rank == world - 1
    if what == "size":
        comm.all_reduce(bucket[: 90_000 if other else 100_000])
    elif what == "dtype":
        comm.all_reduce(torch.zeros(10, dtype=torch.int64 if other else torch.float32))
    elif what == "op":
        comm.all_reduce(bucket, "avg" if other else "sum")
    elif what == "call":
        comm.barrier() if other else comm.all_reduce(bucket)
    elif what == "allocation":
        comm.empty(20_000 if other else 10_000, torch.float32)


@pytest.mark.parametrize("what", ["size", "dtype", "op", "call", "allocation"])
def test_ranks_that_disagree_all_fail(ranks, what):
    for outcome in ranks.outcomes(disagree, 3, what=what):
        assert "rank 2" in outcome["error"], outcome
        assert outcome["seconds"] < 30


def hang(rank, world):
    """Rank 1 runs but takes no part until the others have given up on it."""
    comm = lk.ShmCommunicator(timeout=1.0)
    bucket = comm.empty(100_000, torch.float32)
    store = torch.distributed.distributed_c10d._get_default_store()
    if rank == 1:
        store.wait(["gave up 0", "gave up 2"])
        return None
    begin = time.monotonic()
    with pytest.raises(RuntimeError) as error:
        comm.all_reduce(bucket)
    waited = time.monotonic() - begin
    store.set(f"gave up {rank}", "")
    return str(error.value), waited


def test_a_hung_rank_is_named(ranks):
    outcomes = ranks(hang, 3)
    for text, _ in (outcomes[0], outcomes[2]):
        assert "rank 1" in text
        assert "does not take part" in text or "found" in text
    assert 1.0 <= max(waited for _, waited in (outcomes[0], outcomes[2])) < 6


def leave(rank, world):
    comm = lk.ShmCommunicator(timeout=30)
    if rank == 1:
        comm.close()
        return
    comm.all_reduce(torch.zeros(4))


def test_a_rank_that_closes_is_named(ranks):
    outcomes = ranks.outcomes(leave, 2)
    assert "rank 1" in outcomes[0]["error"]
    assert "closed" in outcomes[0]["error"]
    assert outcomes[0]["seconds"] < 20


def dies_before_an_allocation(rank, world):
    comm = lk.ShmCommunicator(timeout=10)
    if rank == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.empty(1000, torch.float32)


def test_a_rank_that_dies_before_an_allocation_is_named(ranks):
    """Not the leader, which ends first because of it."""
    outcomes = ranks.outcomes(dies_before_an_allocation, 4)
    for rank in (0, 1, 3):
        assert "rank 2 has gone" in outcomes[rank]["error"], outcomes[rank]
        assert outcomes[rank]["seconds"] < 9


def fork_after(rank, world):
    comm = lk.ShmCommunicator(timeout=30)
    bucket = comm.empty(1000, torch.float32)
    child = os.fork()
    if child == 0:
        try:
            comm.all_reduce(bucket)
        except RuntimeError as error:
            os._exit(7 if "forked" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    comm.all_reduce(bucket.fill_(1.0))
    assert (bucket == world).all()


def test_a_forked_child_is_refused(ranks):
    ranks(fork_after, 2)


def leaves_nothing(rank, world):
    before = len(list(Path("/proc/self/fd").iterdir()))
    comm = lk.ShmCommunicator(timeout=30)
    bucket = comm.empty(1 << 20, torch.float32)
    comm.all_reduce(bucket)
    comm.close()
    assert (bucket == 0).all()  # the memory lives as long as the tensor
    del bucket
    maps = Path("/proc/self/maps").read_text()
    del comm
    assert "memfd:lepton" not in Path("/proc/self/maps").read_text(), maps
    return len(list(Path("/proc/self/fd").iterdir())) - before


def test_nothing_is_left(ranks):
    before = set(Path("/dev/shm").iterdir())
    assert ranks(leaves_nothing, 2) == [0, 0]
    assert set(Path("/dev/shm").iterdir()) <= before


def bad_arguments(rank, world):
    comm = lk.ShmCommunicator(timeout=30)
    messages = {}
    cases = {
        "dtype": lambda: comm.all_reduce(torch.zeros(3, dtype=torch.float64)),
        "stride": lambda: comm.all_reduce(torch.zeros(4, 4).t()),
        "op": lambda: comm.all_reduce(torch.zeros(3), "max"),
        "avg": lambda: comm.all_reduce(torch.zeros(3, dtype=torch.int64), "avg"),
        "tensor": lambda: comm.broadcast(3),
        "foreign": lambda: comm.start_all_reduce(torch.zeros(3)),
        "numel": lambda: comm.empty(-1, torch.float32),
        "parts": lambda: comm.all_gather(torch.zeros(5), torch.zeros(2)),
        "pair": lambda: comm.all_gather(torch.zeros(4), torch.zeros(2, dtype=torch.int8)),
        "root": lambda: comm.broadcast(torch.zeros(2), 9),
        "timeout": lambda: lk.ShmCommunicator(timeout=0),
    }
    for name, call in cases.items():
        try:
            call()
        except Exception as error:
            messages[name] = f"{type(error).__name__}: {error}"
    comm.all_reduce(torch.zeros(3))  # none of them has hurt the communicator
    return messages


def test_error_messages(ranks):
    (messages,) = ranks(bad_arguments, 1)
    assert "TypeError" in messages["dtype"]
    assert "float64" in messages["dtype"]
    assert "must be contiguous, got shape (4, 4)" in messages["stride"]
    assert "op must be 'sum' or 'avg', got 'max'" in messages["op"]
    assert "NotImplementedError" in messages["avg"]
    assert "TypeError" in messages["tensor"]
    assert "does not lie" in messages["foreign"]
    assert "must not be negative" in messages["numel"]
    assert "1 times the elements" in messages["parts"]
    assert "one dtype" in messages["pair"]
    assert "below 1, got 9" in messages["root"]
    assert "timeout must be positive" in messages["timeout"]


def frees(rank, world):
    comm = lk.ShmCommunicator(timeout=20)

    def mapped():
        return Path("/proc/self/maps").read_text().count("memfd:lepton")

    before = mapped()
    kept, empty = comm.empty(5000, torch.float32), comm.empty(0, torch.int8)
    gone = comm.empty(9000, torch.float32)
    assert mapped() == before + 3
    gone.fill_(rank + 1)
    number = comm.start_all_reduce(gone)
    comm.free(gone[10:20])  # done on all ranks before it is given up
    comm.wait(number)
    assert gone.eq(sum(range(1, world + 1))).all()
    assert mapped() == before + 3  # a tensor uses it
    comm.all_reduce(gone)  # one like any other
    assert gone.eq(world * sum(range(1, world + 1))).all()
    with pytest.raises(ValueError, match="not be given up yet"):
        comm.free(gone)
    del gone
    comm.free(empty)
    del empty
    assert mapped() == before + 1
    kept.fill_(1)
    comm.all_reduce(kept)
    assert kept.eq(world).all()
    again = comm.empty(9000, torch.float32)
    again.fill_(rank)
    comm.all_reduce(again)
    assert again.eq(sum(range(world))).all()
    comm.close()
    return True


@pytest.mark.parametrize("world", [1, 3])
def test_free(ranks, world):
    assert all(ranks(frees, world))


def test_the_bound_of_a_benchmark():
    assert bucket_pass_seconds(1001, torch.bfloat16, threads=3, rounds=2) > 0
    with pytest.raises(TypeError, match=r"must be one of float32, .* got torch\.float64"):
        bucket_pass_seconds(8, torch.float64)
    with pytest.raises(ValueError, match="must be positive"):
        bucket_pass_seconds(0, torch.float32)
