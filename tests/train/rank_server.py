"""Runs functions on several processes, forked from one that has imported torch already.

Reads one JSON request a line and answers with one. A script, started by conftest.py.
"""

import importlib.util
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import lepton_train.distributed  # noqa: F401  (imported once, before the forks)
import torch
import torch._dynamo  # what an optimiser's first step would import in every child
import torch.distributed as dist


def run_rank(request: dict, rank: int, folder: str) -> None:
    """In the child: run the function and leave its outcome in a file."""
    outcome: dict = {}
    code = 0
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=request["world"],
        )
        spec = importlib.util.spec_from_file_location("rank_functions", request["file"])
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look for it there
        spec.loader.exec_module(module)
        function = getattr(module, request["function"])
        outcome["result"] = function(rank, request["world"], **request["arguments"])
    except BaseException as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
        outcome["trace"] = traceback.format_exc()
        code = 1
    Path(folder, f"{rank}.json.part").write_text(json.dumps(outcome))
    Path(folder, f"{rank}.json.part").rename(Path(folder, f"{rank}.json"))
    sys.stdout.flush()
    os._exit(code)  # what a crashed peer left in gloo must not hold the test up


def serve(request: dict) -> list[dict]:
    """Run one request; an outcome a rank, with `code` (negative: the signal) and `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.monotonic()
        pids = []
        for rank in range(request["world"]):
            pid = os.fork()
            if pid == 0:
                run_rank(request, rank, folder)
            pids.append(pid)
        outcomes: dict[int, dict] = {}
        while len(outcomes) < len(pids):
            for rank, pid in enumerate(pids):
                if rank in outcomes:
                    continue
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended == 0:
                    if time.monotonic() - begin > request["timeout"]:
                        os.kill(pid, signal.SIGKILL)
                    continue
                file = Path(folder, f"{rank}.json")
                outcome = json.loads(file.read_text()) if file.exists() else {}
                outcome["code"] = os.waitstatus_to_exitcode(status)
                outcome["seconds"] = time.monotonic() - begin
                outcomes[rank] = outcome
            time.sleep(0.005)
        return [outcomes[rank] for rank in range(len(pids))]


def main() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what ranks print is not an answer
    for line in sys.stdin:
        answers.write(json.dumps(serve(json.loads(line))) + "\n")
        answers.flush()


main()
