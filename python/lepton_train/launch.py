"""Start a program on several processes of this machine, by torchrun."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

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


def add_stage_options(parser: argparse.ArgumentParser) -> None:
    """Options of a program that starts itself by `run_stage`: `--processes`, `--stage`, `--seed`.

    `stage` (Path, default None) is where a started process leaves what it made; `seed` (int,
    default 0) is that of its run.
    """
    parser.add_argument("--processes", type=int, default=2, help="(default: 2)")
    parser.add_argument("--stage", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)


@contextmanager
def run_stage(
    program: Path, processes: int, *, seed: int, options: Sequence[str] = ()
) -> Iterator[Path]:
    """Run a Python program on several processes; a context manager.

    Args:
        program (Path): it has the options of `add_stage_options`.
        processes (int): at least 1.
        seed (int): for its `--seed`.
        options (sequence of str): further options. Default: none.

    Yields:
        Path: the folder given as `--stage`, which lasts as long as the context.

    Raises:
        RuntimeError: a process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(program), "--stage", folder, "--seed", str(seed), *options]
        if launch(command, processes):
            raise RuntimeError(f"{program.name}: training with {processes} process(es) failed")
        yield Path(folder)
