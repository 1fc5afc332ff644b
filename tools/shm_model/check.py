"""Check the shared-memory protocol with the model checker spin: it holds, and planted faults show.

    python tools/shm_model/check.py

Needs `spin` and `gcc` (Debian: apt-get install spin gcc). Prints one line a run; ends with status 1
if the protocol fails or a fault stays hidden.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).resolve().parent / "protocol.pml"
DEPTH = 200_000


@dataclass(frozen=True)
class Outcome:
    """Of one run: what spin found, and how many states it visited."""

    error: str
    states: int
    complete: bool


CLEAN = {
    "2 ranks, 3 collectives": {"RANKS": 2, "N": 3, "SLOTS": 2},
    "2 ranks, 3 collectives, ring of 1": {"RANKS": 2, "N": 3, "SLOTS": 1},
    "2 ranks, 2 collectives, rank 1 killed": {"RANKS": 2, "N": 2, "SLOTS": 2, "VICTIM": 1},
    "3 ranks, 1 collective": {"RANKS": 3, "N": 1, "SLOTS": 1},
}
FAULTS = {
    "FAULT_LOOK_BEFORE_STORE": {"N": 2},
    "FAULT_SLEEP_UNCHECKED": {"N": 2},
    "FAULT_LAST_LOOK": {"N": 2},
    "FAULT_BLAME_WITNESS": {"RANKS": 3, "N": 1, "VICTIM": 2},
    "FAULT_DONE_BEFORE_WORK": {"N": 4},
    "FAULT_ONE_STAGE": {"N": 3, "SLOTS": 3},
    "FAULT_SLOT_REUSE": {"N": 3, "SLOTS": 1},
    "FAULT_NORM_CLEARED_EARLY": {"N": 3, "SLOTS": 1},
}


def check(defines: dict[str, int], faults: tuple[str, ...] = ()) -> Outcome:
    """Explore all states of the model with these constants."""
    flags = [f"-D{name}={value}" for name, value in defines.items()] + [f"-D{f}" for f in faults]
    with tempfile.TemporaryDirectory() as folder:

        def run(*command: str) -> str:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
            return done.stdout

        run("spin", *flags, "-a", str(MODEL))
        run("gcc", "-O1", "-w", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=2048", "-o", "pan", "pan.c")
        text = run("./pan", f"-m{DEPTH}", "-n")
    found = re.search(r"pan:\d+: (.*?) \(at depth", text)
    states = re.search(r"(\d+(?:\.\d+)?(?:e\+\d+)?) states, stored", text)
    return Outcome(
        found.group(1) if found else "",
        int(float(states.group(1))) if states else 0,
        "Search not completed" not in text and "max search depth too small" not in text,
    )


def main() -> int:
    """Run everything; see the file's docstring."""
    for tool in ("spin", "gcc"):
        if shutil.which(tool) is None:
            print(f"skipped: {tool} is not installed (Debian: apt-get install {tool})")
            return 0
    bad = 0
    for name, defines in CLEAN.items():
        outcome = check(defines)
        right = not outcome.error and outcome.complete
        bad += not right
        print(f"{'holds' if right else 'FAILS'}: {name}; {outcome.states} states; {outcome.error}")
    for fault, defines in FAULTS.items():
        outcome = check({"RANKS": 2, "SLOTS": 2, **defines}, (fault,))
        bad += not outcome.error
        print(f"{'found' if outcome.error else 'HIDDEN'}: {fault}; {outcome.error}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
