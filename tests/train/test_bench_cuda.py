"""`lepton bench --device cuda` without a GPU: the dry run, who takes part, and the timing."""

import json

import pytest
import torch
from lepton_train import bench
from lepton_train.bench.cuda import attention, bucket, device, implementation, int8_linear
from lepton_train.bench.cuda import sparse_linear as sparse
from lepton_train.bench.cuda.implementation import Implementation
from lepton_train.bench.measure import Case, Missing, Prepared, measure
from lepton_train.bench.options import parse

FAMILIES = {
    "attention": attention, "bucket": bucket, "int8_linear": int8_linear, "sparse_linear": sparse,
}  # fmt: skip
# torch's own that need a GPU or a compiler, and a package whose name begins as torch's does
NEEDS_MORE = (
    "torch_sdpa_cudnn", "torch_2:4", "torch_bsr", "torch_int_mm_compiled", "torch_compiled",
    "torch_flex_compiled", "torchao",
)  # fmt: skip
NOT_HERE = ("missing", "failed: RuntimeError: ['No viable backend")  # cuDNN, on the CPU


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("family", FAMILIES)
def test_dry_run_builds_and_checks_everybody(family, tmp_path, capsys):
    path = tmp_path / "rows.json"
    assert bench.run(family, str(path), "cuda", ["--dry-run"]) == 0, capsys.readouterr().err
    rows = json.loads(path.read_text())
    assert {row["impl"] for row in rows} == {
        one.name for one in FAMILIES[family].IMPLEMENTATIONS if not one.compiled
    }
    for row in rows:
        assert row["median_us"] is None
        assert row["match"] or row["note"].startswith(NOT_HERE), row
    for name in ("lepton", *(n for n in FAMILIES[family].ROLES if n.startswith("torch"))):
        if name not in NEEDS_MORE:
            assert any(row["match"] for row in rows if row["impl"] == name), name


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        ([], 1, "no CUDA GPU and driver here; --dry-run"),
        (["--dry-run", "--only", "banana"], 2, "--only banana: unknown"),
        (["--dry-run", "--filter", "banana"], 2, "no case fits"),
        (["--dry-run", "--dtype", "fp32"], 2, "measured in bf16"),
    ],
)
def test_bad_arguments(options, status, message, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bench.run("attention", None, "cuda", options) == status
    assert message in capsys.readouterr().err


def test_dry_run_and_devices_on_the_command_line(capsys):
    assert bench.run("attention", None, "cpu", ["--dry-run"]) == 2
    assert "--dry-run is for --device cuda" in capsys.readouterr().err
    assert bench.run("attention", None, "tpu", []) == 2
    assert "unknown device 'tpu'; there are cpu, cuda" in capsys.readouterr().err


def test_an_implementation_takes_part_by_a_line_in_a_list():
    def build(problem):
        return Prepared([lambda: problem], lambda out: "" if out == 3 else "not three")

    def refuses(problem):
        raise Missing("takes no threes")

    everyone = [
        Implementation("lepton", "ours", build, backend="cuda"),
        Implementation("other", "peer", build, absent=implementation.package("no_such_package")),
        Implementation("refuses", "peer", refuses),
        Implementation("compiled", "peer", build, compiled=True),
    ]
    options = parse(["--dry-run"])
    stage = device.stage_of(options)
    ready = implementation.builders(implementation.chosen(everyone, options), 3, stage)
    rows = measure(Case("f", "c", {}, "fp32", 1.0, 1.0, "fp32"), ready, 0.0, stage)
    assert [(row.impl, row.match, row.note) for row in rows] == [
        ("lepton", True, stage.without_time),
        ("other", None, "missing: no_such_package is not installed"),
        ("refuses", None, "missing: takes no threes"),
    ]


class _Clock:
    """What `Gpu.medians` asks of torch.cuda, with seconds that every call adds to."""

    now = 0.0
    fails = False

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = _Clock.now

        def synchronize(self):
            pass

        def elapsed_time(self, end):
            return (end.at - self.at) * 1e3

    class CUDAGraph:
        calls = ()

        def replay(self):
            for call in self.calls:
                call()

    class Stream:
        def wait_stream(self, other):
            pass


@pytest.mark.parametrize("captured", [True, False])
def test_medians_are_seconds_of_one_call(monkeypatch, captured):
    import contextlib

    def takes(seconds):
        def call():
            _Clock.now += seconds

        return call

    @contextlib.contextmanager
    def graph(target, stream):
        if not captured:
            raise RuntimeError("operation not permitted when stream is capturing")
        target.calls = everyone.pop(0)
        before = _Clock.now
        yield
        _Clock.now = before

    calls = {"slow": [takes(4e-3)] * 2, "fast": [takes(1e-3)] * 3}
    everyone = list(calls.values())
    for name in ("Event", "CUDAGraph", "Stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(_Clock, name))
    monkeypatch.setattr(torch.cuda, "graph", graph)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", _Clock.Stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    medians = device.Gpu.medians(object.__new__(device.Gpu), calls, 0.0)
    assert medians == {"slow": pytest.approx(4e-3), "fast": pytest.approx(1e-3)}
