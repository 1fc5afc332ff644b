"""`lepton_train.bench`: rows, matching, missing peers, pictures."""

import importlib.util
import json
import math
import subprocess
import sys

import pytest
import torch
from lepton_train import bench
from lepton_train.bench import (
    bucket,
    bucket_ranks,
    deepsparse_peer,
    deepsparse_worker,
    harness,
    int8_linear,
    machine,
    measure,
    report,
    shapes,
    sparse_linear,
)
from lepton_train.bench.options import parse
from lepton_train.bench.problem import Built, Layer, Problem
from lepton_train.bench.rows import Row, read_json, write_json

KEYS = [
    "family", "case", "shape", "dtype", "isa", "threads", "impl", "median_us", "work",
    "percent_of_ceiling", "ceiling", "match", "machine", "torch", "commit",
]  # fmt: skip


@pytest.fixture(scope="module")
def native():
    return pytest.importorskip("lepton_kernels._native", reason="built with LEPTON_NATIVE=0")


@pytest.fixture(autouse=True)
def one_thread():
    # Threads that wait for one another make tiny cases slow on a busy machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "shapes.json"
    layers = [{"name": "tiny", "k": 48, "n": 32}]
    path.write_text(json.dumps({"family": "int8_linear", "m": [1, 5], "layers": layers}))
    return str(path)


def row(impl="lepton", median=10.0, match=True, note="", case="layer/M1", **shape):
    return Row(
        family="int8_linear", case=case, shape={"M": 1, "K": 2, "N": 3} | shape, dtype="fp32",
        isa="avx2", threads=2, impl=impl, median_us=median, work={"ops": 12.0, "bytes": 6.0},
        percent_of_ceiling=None if median is None else 50.0,
        ceiling={"name": "read from memory", "value": 1, "unit": "byte/s"}, match=match,
        machine="m", torch="t", commit="c", note=note,
    )  # fmt: skip


def test_row_has_the_keys_of_the_contract():
    assert list(row().to_json()) == KEYS
    assert list(row(median=None, match=None, note="missing: x").to_json()) == [*KEYS, "note"]


def test_rows_survive_a_file(tmp_path):
    rows = [row(), row("torchao", None, None, "missing: not installed")]
    write_json(rows, tmp_path / "rows.json")
    assert read_json(tmp_path / "rows.json") == rows
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


def test_run_writes_rows_and_pictures(native, tiny, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path, plots = tmp_path / "rows.json", tmp_path / "plots"
    only = "lepton,lepton_static,torch_fp32,torch_bf16,torch_int_mm"
    options = ["--shapes", tiny, "--threads", "1", "--budget", "0.01"]
    options += ["--only", only, "--plot", str(plots)]
    assert bench.run("int8_linear", str(path), "cpu", options) == 0
    rows = json.loads(path.read_text())
    assert len(rows) == 2 * 2 * 5
    for one in rows:
        assert list(one) == KEYS, one.get("note")
        assert one["match"] is True
        assert one["median_us"] > 0
        assert one["percent_of_ceiling"] > 0
        assert one["ceiling"]["value"] > 0
    assert sorted(file.name for file in plots.iterdir()) == [
        f"int8_linear_{dtype}_{kind}.png"
        for dtype in ("bf16", "fp32")
        for kind in ("ceiling", "ratio")
    ]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in plots.iterdir())
    assert "times the best peer" in capsys.readouterr().out


def test_all_implementations_match_or_say_why(native, tiny):
    options = parse(["--shapes", tiny, "--dtype", "fp32", "--budget", "0.01"])
    for rows in int8_linear.bench(options):
        for one in rows:
            assert one.match or one.note.startswith(("missing", "wrong", "failed")), one
            assert (one.median_us is None) == (one.match is not True)
        assert all(one.match for one in rows if int8_linear.ROLES[one.impl] == "ours")


def test_sparse_linear_is_checked_and_timed(native, tmp_path):
    path = tmp_path / "shapes.json"
    kinds = [
        {"layout": layout, "values": values, "sparsity": [50]}
        for layout in ("bitmask", "n:m", "block")
        for values in ("int8", "fp32", "bf16")
    ]
    layers = [{"name": "tiny", "k": 48, "n": 32}]
    data = {"family": "sparse_linear", "m": [1, 5], "layers": layers, "weights": kinds}
    path.write_text(json.dumps(data))
    options = parse(["--shapes", str(path), "--dtype", "fp32", "--budget", "0.01"])
    cases = list(sparse_linear.bench(options))
    assert len(cases) == len(sparse_linear.problems(options)) == 2 * len(kinds)
    for rows in cases:
        for one in rows:
            assert one.match or one.note.startswith("missing"), one
        ours = next(one for one in rows if one.impl == "lepton")
        assert ours.match is True
        assert 0 < ours.work["ops"] <= 2 * ours.shape["M"] * 48 * 32 * 0.55


def test_deepsparse_says_why_it_cannot_run(monkeypatch):
    layer = Layer("tiny", 8, 4, 1 << 10, 1)
    monkeypatch.delenv(deepsparse_peer.VARIABLE, raising=False)
    with pytest.raises(measure.Missing, match=deepsparse_peer.VARIABLE):
        deepsparse_peer.deepsparse(Problem(layer, 2, torch.float32))
    monkeypatch.setenv(deepsparse_peer.VARIABLE, "/no/python")
    with pytest.raises(measure.Missing, match="/no/python"):
        deepsparse_peer.deepsparse(Problem(layer, 2, torch.float32))


@pytest.fixture
def workers(monkeypatch):
    if importlib.util.find_spec("deepsparse") is not None:
        pytest.skip("needs an interpreter without deepsparse")
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, command, *arguments, **options):
            super().__init__(command, *arguments, **options)
            if deepsparse_worker.__file__ in command:
                started.append(self)

    monkeypatch.setattr(deepsparse_peer.subprocess, "Popen", Recorded)
    monkeypatch.setenv(deepsparse_peer.VARIABLE, sys.executable)
    yield started
    deepsparse_peer.close()


def test_the_process_of_deepsparse_answers_with_its_error_and_lives_until_it_is_closed(workers):
    problem = Problem(Layer("tiny", 8, 4, 1 << 10, 1), 2, torch.float32)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="deepsparse: ModuleNotFoundError"):
            deepsparse_peer.deepsparse(problem)
    (worker,) = workers
    assert worker.poll() is None
    deepsparse_peer.close()
    assert worker.returncode is not None


def test_no_process_of_deepsparse_outlives_a_run(native, workers, tmp_path):
    path = tmp_path / "shapes.json"
    data = {
        "family": "sparse_linear",
        "m": [1, 2],
        "layers": [{"name": "tiny", "k": 48, "n": 32}],
        "weights": [{"layout": "bitmask", "values": "fp32", "sparsity": [50]}],
    }
    path.write_text(json.dumps(data))
    options = parse(["--shapes", str(path), "--dtype", "fp32", "--only", "deepsparse"])
    for (row,) in sparse_linear.bench(options):
        assert "ModuleNotFoundError" in row.note
    stopped = sparse_linear.bench(options)
    next(stopped)
    stopped.close()
    assert len(workers) == 2
    assert all(worker.returncode is not None for worker in workers)


def _case():
    return measure.Case("int8_linear", "c/M1", {"M": 1}, "fp32", 2e3, 1e3, "int8")


def test_wrong_implementation_has_no_time(native):
    problem = Problem(Layer("layer", 64, 32, 1, 1), 4, torch.float32)
    exact = problem.x @ problem.layer.weight.T + problem.layer.bias
    swapped = exact.roll(1, 1)
    nans = torch.full_like(exact, math.nan)

    def prepared(out):
        check = lambda result: problem.problem_with(result, Built([]))  # noqa: E731
        return lambda: measure.Prepared([lambda: out], check)

    def broken():
        raise RuntimeError("boom")

    def absent():
        raise measure.Missing("not on this machine")

    builders = {
        "lepton": prepared(exact), "swapped": prepared(swapped), "nans": prepared(nans),
        "short": prepared(exact[1:]), "broken": broken, "absent": absent,
    }  # fmt: skip
    rows = {one.impl: one for one in measure.measure(_case(), builders, 0.01)}
    assert rows["lepton"].match is True
    assert rows["lepton"].median_us > 0
    for name in ("swapped", "nans", "short", "broken"):
        assert rows[name].match is False
        assert rows[name].median_us is None
        assert rows[name].percent_of_ceiling is None
    assert "boom" in rows["broken"].note
    assert rows["absent"].match is None
    assert rows["absent"].note == "missing: not on this machine"


def test_tolerance_knows_a_quantised_result_from_a_wrong_one():
    problem = Problem(Layer("layer", 256, 64, 1, 1), 8, torch.float32)
    built = int8_linear.IMPLEMENTATIONS["lepton"].build(problem)
    out = built.calls[0]()
    assert problem.problem_with(out, built) == ""
    assert problem.problem_with(out + 0.2, built) != ""
    assert problem.problem_with(out, Built([])) != ""  # no fp32 result


def test_missing_peer_is_named_in_the_report(capsys):
    rows = [row(), row("torchao", None, None, "missing: torchao is not installed"),
            row("onnxruntime", 20.0)]  # fmt: skip
    report.show(rows, int8_linear.ROLES)
    text = capsys.readouterr().out
    assert "no time for torchao: missing: torchao is not installed" in text
    assert "2.00 times the best peer" in text


def test_comparison_counts_peers_only():
    rows = [row(), row("torch_fp32", 1.0), row("onednn_qlinear_uint8_input", 1.0),
            row("torchao", 30.0), row("onnxruntime", 20.0)]  # fmt: skip
    (one,) = report.compare(rows, int8_linear.ROLES)
    assert one.best == "onnxruntime"
    assert one.ratio == 2.0
    assert report.geometric_mean([1.0, 4.0]) == pytest.approx(2.0)


def test_interleave_takes_turns_and_rotates_weights():
    order = []
    candidates = [
        harness.Candidate(name, [lambda n=name, c=copy: order.append((n, c)) for copy in range(3)])
        for name in "ab"
    ]
    medians = harness.interleave(candidates, 0.0)
    assert set(medians) == {"a", "b"}
    assert all(value > 0 for value in medians.values())
    of_a = [copy for name, copy in order if name == "a"]
    assert of_a == [i % 3 for i in range(len(of_a))]
    turns = [name for i, (name, _) in enumerate(order) if i == 0 or order[i - 1][0] != name]
    assert len(turns) >= 6


def test_a_call_that_runs_elsewhere_takes_the_time_itself():
    class Elsewhere:
        def __call__(self):
            raise AssertionError("is called to check the result only")

        def timed(self):
            return 2.5

    assert harness.interleave([harness.Candidate("far", [Elsewhere()])], 0.0) == {"far": 2.5}


def test_copies_outgrow_the_cache():
    assert harness.copies(100, 1000) == 10
    assert harness.copies(1 << 30, 1000) == 2


def test_packaged_shapes():
    data = shapes.load("int8_linear")
    assert data["m"] == [2**i for i in range(11)]
    sizes = {(layer["k"], layer["n"]) for layer in data["layers"]}
    assert {(384, 1536), (576, 192), (768, 3072), (4096, 4096), (4096, 11008)} <= sizes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("banana", None, "cpu", []), "unknown family 'banana'"),
        (("int8_linear", None, "tpu", []), "unknown device 'tpu'"),
        (("int8_linear", None, "cpu", ["--isa", "banana"]), "unknown or absent ISA"),
        (("int8_linear", None, "cpu", ["--only", "banana"]), "--only banana: unknown"),
        (("int8_linear", None, "cpu", ["--filter", "banana"]), "no case fits"),
        (("int8_linear", None, "cpu", ["--filter", "("]), "no regular expression"),
        (("int8_linear", None, "cpu", ["--budget", "0"]), "must be positive"),
        (("int8_linear", None, "cpu", ["--banana"]), "unrecognized arguments"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    assert bench.run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_unreadable_shapes(tmp_path, capsys):
    assert bench.run("int8_linear", None, "cpu", ["--shapes", str(tmp_path / "no.json")]) == 1
    (tmp_path / "broken.json").write_text("{")
    assert bench.run("int8_linear", None, "cpu", ["--shapes", str(tmp_path / "broken.json")]) == 2
    assert "is no JSON" in capsys.readouterr().err


def test_bucket_family_compares_every_row(native, tmp_path):
    path = tmp_path / "rows.json"
    options = ["--quick", "--dtype", "fp32", "--filter", "64KB|step", "--budget", "0.01"]
    assert bench.run("bucket", str(path), "cpu", options) == 0
    rows = json.loads(path.read_text())
    assert {(r["case"], r["impl"]): r["match"] for r in rows} == {
        (case, impl): True
        for case, impls in {
            "all_reduce/64KB": ["lepton", "lepton_copied", "gloo"],
            "step/linear16": ["lepton", "lepton_sums", "ddp", "alone"],
            "step/transformer6": ["lepton", "lepton_sums", "ddp", "alone"],
        }.items()
        for impl in impls
    }
    for one in rows:
        assert list(one) == KEYS, one.get("note")
        assert one["median_us"] > 0


def test_bucket_gradients_that_differ_do_not_match():
    want = [torch.randn(4, 4, dtype=torch.float64), torch.randn(3, dtype=torch.float64)]
    got = [w.float() for w in want]
    assert bucket_ranks.close_gradients(got, want)
    assert not bucket_ranks.close_gradients([got[0], None], want)
    assert not bucket_ranks.close_gradients([got[0], got[1] * 1.01], want)
    assert not bucket_ranks.close_gradients([got[0] * torch.nan, got[1]], want)


def test_a_bucket_row_without_a_match_has_no_time(native):
    times = {"lepton": 1.0, "ddp": 2.0, "alone": 0.5}
    found = {"seconds": times, "match": {"lepton": True, "ddp": False, "alone": True}}
    rows = bucket._rows(("step", "linear16", "fp32"), found)
    assert {one.impl: (one.match, one.median_us, one.note) for one in rows} == {
        "lepton": (True, 1e6, ""),
        "ddp": (False, None, "wrong gradients"),
        "alone": (True, 5e5, ""),
    }


def test_bucket_refuses_options_that_do_not_reach_the_ranks(native, capsys):
    assert bench.run("bucket", None, "cpu", ["--isa", "generic"]) == 2
    assert "bucket takes no --isa" in capsys.readouterr().err


def test_commit_that_the_caller_states(monkeypatch):
    """An installed package does not know its own; a value that is no commit is refused."""
    machine.commit.cache_clear()
    monkeypatch.setenv("LEPTON_COMMIT", "22850cf0123f")
    assert machine.commit() == "22850cf0123f"
    machine.commit.cache_clear()
    monkeypatch.setenv("LEPTON_COMMIT", "main")
    with pytest.raises(ValueError, match="LEPTON_COMMIT must be a commit's hexadecimal name"):
        machine.commit()
    machine.commit.cache_clear()
