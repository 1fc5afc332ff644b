"""Kill a rank at a random moment, many times: the others must say which, soon, and leave nothing.

    python tools/kill_ranks.py [--times 100] [--seed 0] [--markdown FILE]

For each phase (all-reduce, backward, broadcast, gather) starts 2 to 4 processes that do nothing
else in a loop, and kills one with SIGKILL while it is inside. Checked each time: every other
process ends with an error that names the killed rank, within the time-out of the communicator; none
hangs; no process and no file in /dev/shm stays behind. Prints a table; ends with status 1 if
anything failed. Processes are forked from one that has imported torch (tests/train/rank_server.py).
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SERVER = Path(__file__).resolve().parents[1] / "tests" / "train" / "rank_server.py"
TIMEOUT = 20.0  # of the communicator, for a rank that runs but takes no part
LATEST = 0.1  # seconds into the loop
Act = Callable[[], Any]


def reduces(rank: int, world: int, chance: random.Random) -> Act:
    """Sums of a bucket in place, started and waited for, a small one, or a tensor elsewhere."""
    import torch

    import lepton_kernels as lk

    comm = lk.ShmCommunicator(timeout=TIMEOUT)
    bucket = comm.empty(400_000, torch.float32)
    elsewhere = torch.ones(500_000)
    return chance.choice(
        [
            lambda: comm.all_reduce(bucket),
            lambda: comm.wait(comm.start_all_reduce(bucket)),
            lambda: comm.all_reduce(bucket[:64]),
            lambda: comm.all_reduce(elsewhere),
        ]
    )


def runs_backward(rank: int, world: int, chance: random.Random) -> Act:
    """Backward of a network of several buckets; the loss is computed outside."""
    return _backward(sufficient_factors=False)


def shares_factors(rank: int, world: int, chance: random.Random) -> Act:
    """The same where ranks share the factors of all weights' gradients."""
    return _backward(sufficient_factors=True)


def _backward(*, sufficient_factors: bool) -> Act:
    import lepton_train as lt
    import torch
    from torch import nn

    torch.manual_seed(0)
    model = lt.distributed.BucketedDataParallel(
        nn.Sequential(*[nn.Linear(256, 256) for _ in range(8)]),
        bucket_cap_mb=0.3,
        shared_memory=True,
        sufficient_factors=sufficient_factors,
        timeout=TIMEOUT,
    )
    x = torch.randn(16, 256)
    losses: list[torch.Tensor] = []

    def act() -> None:
        losses.pop().backward()

    def prepare() -> None:
        model.zero_grad()
        losses.append(model(x).square().sum())

    act.prepare = prepare  # type: ignore[attr-defined]
    return act


def broadcasts(rank: int, world: int, chance: random.Random) -> Act:
    """One rank's tensor, a few times the size of the buffer it goes through, to all."""
    import torch

    import lepton_kernels as lk

    comm = lk.ShmCommunicator(timeout=TIMEOUT)
    tensor = torch.ones(chance.choice([100, 1_000_000]))
    root = chance.randrange(world)
    return lambda: comm.broadcast(tensor, root)


def gathers(rank: int, world: int, chance: random.Random) -> Act:
    """Parts of a bucket to all, in place or through the buffer."""
    import torch

    import lepton_kernels as lk

    comm = lk.ShmCommunicator(timeout=TIMEOUT)
    bucket = comm.empty(100_000 * world, torch.float32)
    part = torch.ones(100_000)
    return chance.choice(
        [lambda: comm.gather_slices(bucket), lambda: comm.all_gather(bucket, part)]
    )


PHASES = {
    "all-reduce": reduces,
    "backward": runs_backward,
    "backward, factors": shares_factors,
    "broadcast": broadcasts,
    "gather": gathers,
}


def lose_a_rank(
    rank: int, world: int, phase: str, victim: int, seed: int, note: str
) -> dict[str, Any]:
    """In each process: one phase again and again, until the error that the kill brings about."""
    chance = random.Random(seed)
    act = PHASES[phase](rank, world, chance)
    prepare = getattr(act, "prepare", lambda: None)
    inside = mmap.mmap(-1, 1)
    after = chance.random() * LATEST
    if rank == victim:
        pid = os.getpid()
        if os.fork() == 0:
            time.sleep(after)
            while not inside[0]:
                pass
            os.kill(pid, signal.SIGKILL)
            Path(note).write_text(repr(time.monotonic()))
            os._exit(0)
    deadline = time.monotonic() + 2 * TIMEOUT
    try:
        while time.monotonic() < deadline:
            prepare()
            inside[0] = 1
            act()
            inside[0] = 0
    except RuntimeError as error:
        return {"error": str(error), "at": time.monotonic()}
    return {"error": "none", "at": time.monotonic()}


@dataclass
class Tally:
    """What the kills of one phase have brought."""

    kills: int = 0
    survivors: int = 0
    named: int = 0
    seconds: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def row(self, phase: str) -> str:
        """A row of the table."""
        times = [1e3 * value for value in self.seconds] or [float("nan")]
        return (
            f"| {phase} | {self.kills} | {self.named} of {self.survivors} "
            f"| {statistics.median(times):.1f} | {max(times):.1f} | {len(self.wrong)} |"
        )


HEAD = (
    "| killed in | kills | errors that name the rank | median ms to it | longest | violations |"
    "\n|---|---|---|---|---|---|"
)


class Killer:
    """Has groups of processes started, each to lose one, and judges what is left.

    Args:
        server (Popen): runs rank_server.py, leads a session that holds every process it starts.
        folder (Path): for a note of when the kill happened.
    """

    def __init__(self, server: subprocess.Popen[str], folder: Path) -> None:
        self._server = server
        self._note = folder / "killed"

    def kill_one(self, phase: str, seed: int, tally: Tally) -> None:
        """Lose one of 2 to 4 ranks in `phase` and add the outcome to `tally`."""
        chance = random.Random(seed)
        world = chance.randint(2, 4)
        victim = chance.randrange(world)
        note = self._note
        note.unlink(missing_ok=True)
        request = {
            "file": str(Path(__file__).resolve()),
            "function": "lose_a_rank",
            "world": world,
            "timeout": 3 * TIMEOUT,
            "arguments": {"phase": phase, "victim": victim, "seed": seed, "note": str(note)},
        }
        before = set(Path("/dev/shm").iterdir())
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        outcomes = json.loads(self._server.stdout.readline())
        wrong = judge(outcomes, victim, float(note.read_text()) if note.exists() else None, tally)
        wrong += [f"process {pid} stayed" for pid in self._stragglers()]
        wrong += [f"{file} stayed" for file in unused(set(Path("/dev/shm").iterdir()) - before)]
        tally.wrong += [f"{phase}, seed {seed}, {world} ranks: {text}" for text in wrong]

    def _stragglers(self) -> list[int]:
        """Processes of the server's session that do not end within a second."""
        for _ in range(100):
            found = [pid for pid in session_of(self._server.pid) if pid != self._server.pid]
            if not found:
                break
            time.sleep(0.01)
        return found


def judge(
    outcomes: list[dict[str, Any]], victim: int, killed: float | None, tally: Tally
) -> list[str]:
    """Count what the ranks of one kill have answered; what should not be, in words."""
    tally.kills += 1
    wrong = []
    if killed is None or outcomes[victim]["code"] != -signal.SIGKILL:
        return [f"rank {victim} was not killed: {outcomes[victim].get('error')}"]
    for rank, outcome in enumerate(outcomes):
        if rank == victim:
            continue
        tally.survivors += 1
        result = outcome.get("result")
        if outcome["code"] != 0 or result is None:
            wrong.append(
                f"rank {rank} gave no answer, ended with {outcome['code']}: {outcome.get('error')}"
            )
            continue
        tally.seconds.append(result["at"] - killed)
        if f"rank {victim} " in result["error"]:
            tally.named += 1
        else:
            wrong.append(f"rank {rank} does not name rank {victim}: {result['error']}")
        if tally.seconds[-1] > TIMEOUT:
            wrong.append(f"rank {rank} took {tally.seconds[-1]:.1f} s")
    return wrong


def session_of(leader: int) -> list[int]:
    """Processes, other than zombies, of the session that `leader` has begun."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if fields[0] not in "ZX" and int(fields[3]) == leader:
            found.append(int(folder.name))
    return found


def unused(files: set[Path]) -> list[Path]:
    """Those that no living process maps: what other programs are using is not ours."""
    maps = []
    for folder in Path("/proc").glob("[0-9]*") if files else ():
        try:
            maps.append((folder / "maps").read_text())
        except OSError:
            continue
    return [file for file in files if file.exists() and not any(str(file) in m for m in maps)]


def start_server(folder: str) -> subprocess.Popen[str]:
    """The process that forks the ranks; ends when its input is closed."""
    return subprocess.Popen(
        [sys.executable, "-P", str(SERVER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        start_new_session=True,
    )


def main(argv: list[str] | None = None) -> int:
    """Kill, print the table, say what went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=100, help="a phase (default: 100)")
    parser.add_argument("--seed", type=int, default=0, help="of the first kill (default: 0)")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    arguments = parser.parse_args(argv)
    tallies = {phase: Tally() for phase in PHASES}
    with tempfile.TemporaryDirectory() as folder, start_server(folder) as server:
        killer = Killer(server, Path(folder))
        for phase, tally in tallies.items():
            for seed in range(arguments.seed, arguments.seed + arguments.times):
                killer.kill_one(phase, seed, tally)
    table = "\n".join([HEAD, *(tally.row(phase) for phase, tally in tallies.items())])
    print(table)
    if arguments.markdown is not None:
        arguments.markdown.write_text(table + "\n")
    wrong = [text for tally in tallies.values() for text in tally.wrong]
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
