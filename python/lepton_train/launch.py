"""Start a program on several processes of this machine, by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence

import torch


def inside_launch() -> bool:
    """Whether this process was started by torchrun."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(command: Sequence[str], processes: int) -> int:
    """Run a command on several processes.

    Args:
        command (sequence of str): program and arguments; the program reads the environment of
            torchrun, as `lt.fit` does.
        processes (int): at least 1. Each gets its share of torch's threads.

    Returns:
        int: exit status; 0 if all ended well.

    Raises:
        ValueError: processes is below 1.
    """
    if processes < 1:
        raise ValueError(f"launch: processes must be at least 1, got {processes}")
    threads = max(torch.get_num_threads() // processes, 1)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
    return subprocess.run(
        [*torchrun, "--nproc-per-node", str(processes), *command],
        env={"OMP_NUM_THREADS": str(threads), **os.environ},
        check=False,
    ).returncode
