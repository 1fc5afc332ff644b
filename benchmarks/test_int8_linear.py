"""pytest-benchmark on a few shapes, with the implementations of `lepton bench int8_linear`.

Run it as `pytest benchmarks/`; each implementation's result is checked before it is timed.
"""

import itertools

import pytest
import torch
from lepton_train.bench import ceilings, int8_linear, machine
from lepton_train.bench.measure import Missing
from lepton_train.bench.options import Options
from lepton_train.bench.problem import Layer, Problem

LAYERS = {"minilm.ffn_in": (384, 1536), "bert.ffn_out": (3072, 768), "square4096": (4096, 4096)}
IMPLEMENTATIONS = int8_linear.chosen(Options())


@pytest.fixture(scope="module", params=LAYERS)
def layer(request):
    k, n = LAYERS[request.param]
    rotate = int8_linear.rotate_bytes(Options())
    return Layer(request.param, k, n, rotate, torch.get_num_threads())


@pytest.mark.parametrize("m", [1, 16, 128])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_int8_linear(benchmark, layer, m, name):
    benchmark.group = f"{layer.name}/M{m}"
    problem = Problem(layer, m, torch.float32)
    with torch.inference_mode():
        try:
            built = IMPLEMENTATIONS[name].build(problem)
        except Missing as reason:
            pytest.skip(f"{name} is missing: {reason}")
        wrong = problem.problem_with(built.calls[0](), built)
        assert not wrong, f"{name}: {wrong}"
        calls = itertools.cycle(built.calls)  # cold weights: another copy every time
        benchmark(lambda: next(calls)())
    case = int8_linear.case_of(problem, "fp32")
    isa = int8_linear.isa_in_use()
    bound = ceilings.roofline(
        case.operations, case.read_bytes, "int8", isa, torch.get_num_threads()
    )
    benchmark.extra_info.update(
        shape=case.shape,
        isa=isa,
        threads=torch.get_num_threads(),
        machine=machine.description(),
        commit=machine.commit(),
        torch=torch.__version__,
        ceiling=bound.to_json(),
    )
    if benchmark.stats is not None:  # None with --benchmark-disable
        seconds = benchmark.stats.stats.median
        benchmark.extra_info["percent_of_ceiling"] = 100 * bound.seconds / seconds
        benchmark.extra_info["gops"] = case.operations / seconds / 1e9
