"""pytest-benchmark on a few shapes, with the implementations of `lepton bench attention`.

Run it as `pytest benchmarks/`; each implementation's result is checked before it is timed.
"""

import pytest
import torch
from lepton_train.bench import attention, machine
from lepton_train.bench.options import Options

SHAPES = [
    attention.Shape("bert", batch=8, heads=12, length=128, head_dim=64),
    attention.Shape("causal1024", heads=8, length=1024, head_dim=64, causal=True),
]


@pytest.mark.parametrize("training", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
@pytest.mark.parametrize("name", attention.chosen(Options()))
def test_attention(benchmark, shape, training, name):
    benchmark.group = f"{shape.name}/{'training' if training else 'forward'}"
    problem = attention.Problem(shape, torch.float32, training)
    prepared = attention._prepare(name, problem)
    with torch.inference_mode():
        wrong = prepared.check(prepared.calls[0]())
        assert not wrong, f"{name}: {wrong}"
        benchmark(prepared.calls[0])
    benchmark.extra_info.update(
        machine=machine.description(), commit=machine.commit(), torch=torch.__version__
    )
