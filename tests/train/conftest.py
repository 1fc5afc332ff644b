import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # helpers of the tests, such as replicas


class Ranks:
    """Runs a function of a test file on several processes joined by gloo."""

    def __init__(self, server):
        self.server = server

    def outcomes(self, function, world, *, timeout=60, **arguments):
        """Outcome of each rank: `result` or `error` (with `trace`), `code`, `seconds`."""
        request = {
            "file": function.__code__.co_filename,
            "function": function.__name__,
            "world": world,
            "timeout": timeout,
            "arguments": arguments,
        }
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return json.loads(self.server.stdout.readline())

    def __call__(self, function, world, **options):
        """Results of all ranks; fails where one raised."""
        outcomes = self.outcomes(function, world, **options)
        for rank, outcome in enumerate(outcomes):
            assert outcome["code"] == 0, f"rank {rank}: {outcome.get('trace', outcome)}"
        return [outcome.get("result") for outcome in outcomes]


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).parent / "rank_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path_factory.mktemp("ranks"),  # not in the clone, which shadows the installation
        start_new_session=True,  # by which test_kill_ranks.py finds what stays behind
    )
    yield Ranks(server)
    server.stdin.close()
    server.wait(30)


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=2, help="ranks to kill in each phase")
