"""Joining the processes that torchrun has started, also after it has restarted them."""

from __future__ import annotations

import os

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous


def join_torchrun(backend: str = "gloo") -> None:
    """Make the default process group of the processes that torchrun has started; collective.

    As `torch.distributed.init_process_group`, with a place of its own in torchrun's store for
    each restart: the store outlives the processes, and with it the addresses of those that died.
    Does nothing if there is a default group.

    Args:
        backend (str): of torch.distributed. Default: "gloo".

    Raises:
        RuntimeError: not started by torchrun, or torch.distributed cannot reach the others.
        ValueError: MASTER_ADDR or MASTER_PORT is not set.

    Example:
        >>> lt.distributed.join_torchrun()    # doctest: +SKIP
    """
    if dist.is_initialized():
        return
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        raise RuntimeError(
            "join_torchrun: RANK and WORLD_SIZE are not set; start the program by torchrun "
            "--nproc-per-node N PROGRAM"
        )
    restart = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store, rank, world = next(rendezvous("env://"))
    own = dist.PrefixStore(f"lepton/restart_{restart}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world)
