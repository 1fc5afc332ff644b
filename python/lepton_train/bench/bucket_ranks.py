"""Times all-reduces and training steps on one rank; `bucket` starts several.

    python -m lepton_train.bench.bucket_ranks RANK WORLD STORE CASES SECONDS

Rank 0 prints one JSON object: for every case the medians of implementations that took turns.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

import lepton_kernels as lk
from lepton_kernels.shm_communicator import bucket_pass_seconds
from lepton_train.distributed import BucketedDataParallel

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_LEAST_ROUNDS = 5


def take_turns(
    comm: lk.ShmCommunicator, calls: dict[str, Callable[[], Any]], seconds: float
) -> dict[str, float]:
    """Median seconds of each call; ranks begin each together and make the same number."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    begin, more = time.perf_counter(), torch.ones(1, dtype=torch.int64)
    rounds = 0
    while more.item():
        for name, call in calls.items():
            comm.barrier()
            start = time.perf_counter()
            call()
            samples[name].append(time.perf_counter() - start)
        rounds += 1
        more[0] = rounds < _LEAST_ROUNDS or time.perf_counter() - begin < seconds
        comm.broadcast(more)
    return {name: statistics.median(times) for name, times in samples.items()}


def reduce_case(comm: lk.ShmCommunicator, size: int, dtype: str, seconds: float) -> dict[str, Any]:
    """All-reduce of `size` bytes: in a shared bucket, from other memory, and by gloo."""
    kind = _DTYPES[dtype]
    bucket = comm.empty(size // kind.itemsize, kind)
    plain, peer = torch.empty_like(bucket), torch.empty_like(bucket)
    start = torch.linspace(-1, 1, bucket.numel()).to(kind)
    want = (start.float() * comm.size * (comm.size + 1) / 2).to(kind)
    match = {}
    for name, tensor in (("lepton", bucket), ("lepton_copied", plain), ("gloo", peer)):
        tensor.copy_(start * (comm.rank + 1))
        dist.all_reduce(tensor) if name == "gloo" else comm.all_reduce(tensor)
        error = (tensor.float() - want.float()).abs().max().item()
        match[name] = error <= (1e-6 if dtype == "fp32" else 0.05)
        tensor.zero_()
    calls = {
        "lepton": lambda: comm.all_reduce(bucket),
        "lepton_copied": lambda: comm.all_reduce(plain),
        "gloo": lambda: dist.all_reduce(peer),
    }
    medians = take_turns(comm, calls, seconds)
    comm.barrier()
    bound = bucket_pass_seconds(bucket.numel(), kind, threads=comm.size) if comm.rank == 0 else 0.0
    comm.barrier()  # the others sleep meanwhile
    return {"seconds": medians, "match": match, "pass_seconds": bound}


def _linears() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(*[nn.Linear(1024, 1024) for _ in range(16)]), torch.randn(32, 1024)


def _transformer() -> tuple[nn.Module, torch.Tensor]:
    # gelu: under relu, the sign of a sum near zero decides whether a whole gradient is there.
    layer = nn.TransformerEncoderLayer(256, 4, 1024, 0.0, "gelu", batch_first=True)
    return nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), torch.randn(8, 64, 256)


MODELS = {"linear16": _linears, "transformer6": _transformer}


def _loss(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    # Squares would tell nothing behind a layer norm, which fixes their sum.
    return module(x).sin().mean()


def _gradients(module: nn.Module) -> list[torch.Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


def close_gradients(got: list[torch.Tensor | None], want: list[torch.Tensor]) -> bool:
    """Whether every gradient is there and within a 1000th of the largest element wanted."""
    for a, b in zip(got, want, strict=True):
        if a is None or not (a.double() - b).abs().max() <= 1e-3 * b.abs().max():
            return False
    return True


def _wanted(module: nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Mean of the gradients of all inputs, in float64, from one process without a wrapper."""
    exact = copy.deepcopy(module).double()
    losses = [_loss(exact, x.double()) for x in inputs]
    return list(torch.autograd.grad(sum(losses) / len(losses), list(exact.parameters())))  # type: ignore[arg-type]


def step_case(comm: lk.ShmCommunicator, model: str, seconds: float) -> dict[str, Any]:
    """Forward and backward: alone, wrapped by lepton with factors shared where they pay (the
    default) and with sums only, wrapped by DDP; each rank its own input."""
    torch.manual_seed(0)
    alone, like = MODELS[model]()
    inputs = [torch.randn_like(like) for _ in range(comm.size)]
    x = inputs[comm.rank]
    ours = BucketedDataParallel(copy.deepcopy(alone))
    sums = BucketedDataParallel(copy.deepcopy(alone), sufficient_factors=False)
    ddp = nn.parallel.DistributedDataParallel(copy.deepcopy(alone), gradient_as_bucket_view=True)

    def step(module: nn.Module) -> Callable[[], None]:
        def run() -> None:
            module.zero_grad()
            _loss(module, x).backward()

        return run

    modules = {"lepton": ours, "lepton_sums": sums, "ddp": ddp, "alone": alone}
    calls = {name: step(module) for name, module in modules.items()}
    for call in calls.values():
        call()  # the first backward orders the buckets
    medians = take_turns(comm, calls, seconds)
    average, own = _wanted(alone, inputs), _wanted(alone, [x])
    match = {
        name: close_gradients(_gradients(module), own if name == "alone" else average)
        for name, module in modules.items()
    }
    ours.close()
    sums.close()
    return {"seconds": medians, "match": match}


def main(arguments: list[str]) -> None:
    """Run the cases given as JSON: [kind, what, dtype] each."""
    rank, world, store, cases, seconds = arguments
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=int(rank), world_size=int(world)
    )
    comm = lk.ShmCommunicator(timeout=60)
    for kind, what, dtype in json.loads(cases):
        if kind == "all_reduce":
            found = reduce_case(comm, int(what), dtype, float(seconds))
        else:
            found = step_case(comm, what, float(seconds))
        if comm.rank == 0:
            print(json.dumps(found), flush=True)
    comm.barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may complain about who leaves first


if __name__ == "__main__":
    main(sys.argv[1:])
