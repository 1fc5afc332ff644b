"""A rank that is killed: the others name it, and nothing stays behind."""

import signal

import pytest

PHASES = ("all-reduce", "backward", "backward, factors", "broadcast", "gather")


@pytest.fixture(scope="module")
def kill_ranks(load_file):
    return load_file("tools/kill_ranks.py")


def test_every_phase_is_tried(kill_ranks):
    assert tuple(kill_ranks.PHASES) == PHASES


@pytest.mark.parametrize("phase", PHASES)
def test_kills(kill_ranks, ranks, phase, pytestconfig, tmp_path):
    tally = kill_ranks.Tally()
    killer = kill_ranks.Killer(ranks.server, tmp_path)
    times = pytestconfig.getoption("--kills")
    for seed in range(times):
        killer.kill_one(phase, seed, tally)
    assert not tally.wrong
    assert tally.kills == times
    assert tally.named == tally.survivors > 0


def test_what_counts_as_a_violation(kill_ranks):
    died = {"code": -signal.SIGKILL}
    named = {"code": 0, "result": {"error": "rank 1 (process 5) has died", "at": 10.5}}
    other = {"code": 0, "result": {"error": "rank 10 (process 5) has died", "at": 10.5}}
    late = {"code": 0, "result": {"error": "rank 1 (process 5) has died", "at": 90.0}}
    for outcomes, killed, words in [
        ([named, died], 10.0, []),
        ([other, died], 10.0, ["does not name rank 1"]),
        ([late, died], 10.0, ["took 80.0 s"]),
        ([died, died], 10.0, ["rank 0 gave no answer"]),
        ([named, named], None, ["was not killed"]),
    ]:
        found = kill_ranks.judge(outcomes, 1, killed, kill_ranks.Tally())
        assert len(found) == len(words)
        assert all(word in text for word, text in zip(words, found, strict=True))
