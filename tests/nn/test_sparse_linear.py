"""lk.nn.SparseLinear: forward, state dict, fine-tuning."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import lepton_kernels as lk

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


LAYOUTS = ("bitmask", "n:m", "block")


def pruned_linear(
    in_features: int = 40, out_features: int = 24, bias: bool = True, layout: str = "bitmask"
) -> nn.Linear:
    linear = nn.Linear(in_features, out_features, bias)
    with torch.no_grad():
        if layout == "n:m":
            groups = linear.weight.view(out_features, -1, 4)
            groups.scatter_(2, groups.abs().topk(2, largest=False).indices, 0.0)
        else:
            linear.weight.mul_(torch.rand_like(linear.weight) < 0.4)
    return linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_from_linear(layout, dtype, bias):
    linear = pruned_linear(bias=bias, layout=layout).eval()
    layer = lk.nn.SparseLinear.from_linear(linear, layout, dtype)
    x = torch.randn(3, 5, 40)
    tolerance = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.int8: 6e-2}
    torch.testing.assert_close(layer(x), linear(x), rtol=0.0, atol=tolerance[dtype])
    assert not layer.training
    assert not any(p.requires_grad for p in layer.parameters())
    assert "layout=" + layout in repr(layer)


def test_residual_and_activation():
    linear = pruned_linear()
    layer = lk.nn.SparseLinear.from_linear(linear, activation="relu")
    x, residual = torch.randn(5, 40), torch.randn(5, 24)
    torch.testing.assert_close(layer(x, residual), torch.relu(linear(x)) + residual)
    torch.testing.assert_close(layer.fine_tune()(x, residual), torch.relu(linear(x)) + residual)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_state_dict_is_canonical_and_loads(compare, layout, dtype):
    layer = lk.nn.SparseLinear.from_linear(pruned_linear(layout=layout), layout, dtype)
    state = layer.state_dict()
    wanted = {"values", "mask", "shape", "bias"}
    wanted |= {"weight_scale"} if dtype == torch.int8 else set()
    assert set(state) == wanted
    assert state["shape"].tolist() == [24, 40]
    assert state["values"].dtype == dtype
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = lk.nn.SparseLinear(40, 24, layout=layout, dtype=dtype)
    other.load_state_dict(torch.load(file))
    assert torch.equal(other.packed_weight, layer.packed_weight)
    x = torch.randn(3, 40)
    compare.same_bits(other(x), layer(x))


def test_state_dict_inside_a_model(compare):
    model = nn.Sequential(lk.nn.SparseLinear.from_linear(pruned_linear()), nn.ReLU())
    other = nn.Sequential(lk.nn.SparseLinear(40, 24), nn.ReLU())
    other.load_state_dict(model.state_dict())
    x = torch.randn(3, 40)
    compare.same_bits(other(x), model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
def test_export(compare, dtype):
    """A trace has no bytes to read the header from."""
    layer = lk.nn.SparseLinear.from_linear(pruned_linear(), dtype=dtype)
    x = torch.randn(3, 40)
    rows = torch.export.Dim("rows", min=2, max=1000)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: rows},))
    compare.same_bits(program.module()(x), layer(x))
    compare.same_bits(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_made_on_the_meta_device_and_loaded(compare, layout):
    layer = lk.nn.SparseLinear.from_linear(pruned_linear(layout=layout), layout)
    with torch.device("meta"):
        other = lk.nn.SparseLinear(40, 24, layout=layout)
    other.to_empty(device="cpu").load_state_dict(layer.state_dict())
    x = torch.randn(3, 40)
    compare.same_bits(other(x), layer(x))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(compare, clone):
    layer = lk.nn.SparseLinear.from_linear(pruned_linear())
    other = clone(layer)
    x = torch.randn(3, 40)
    compare.same_bits(other(x), layer(x))
    assert other.packed_weight.data_ptr() != layer.packed_weight.data_ptr()


def test_to_bfloat16():
    layer = lk.nn.SparseLinear.from_linear(pruned_linear(), dtype=torch.int8).bfloat16()
    assert layer.packed_weight.dtype == torch.uint8
    assert layer(torch.randn(2, 40).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fine_tuning_changes_values_and_never_zeros(layout, dtype):
    layer = lk.nn.SparseLinear.from_linear(pruned_linear(layout=layout), layout, dtype)
    mask = layer.weight.mask()
    before = layer.weight.to_dense()
    layer.fine_tune()
    assert layer.values.shape == (int(mask.sum()),)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    x, target = torch.randn(16, 40), torch.randn(16, 24)
    losses = []
    for _ in range(20):
        loss = nn.functional.mse_loss(layer(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    trained = layer(x)
    layer.pack()
    assert layer.values is None
    assert torch.equal(layer.weight.mask(), mask)
    assert not torch.equal(layer.weight.to_dense(), before)
    tolerance = 1e-5 if dtype.is_floating_point else 0.1
    torch.testing.assert_close(layer(x), trained, rtol=0.0, atol=tolerance)


def test_gradient_of_values_is_the_masked_dense_gradient():
    linear = pruned_linear()
    layer = lk.nn.SparseLinear.from_linear(linear).fine_tune()
    x = torch.randn(6, 40)
    grad = torch.randn(6, 24)
    layer(x).backward(grad)
    linear(x).backward(grad)
    mask = linear.weight != 0
    torch.testing.assert_close(layer.values.grad, linear.weight.grad[mask])
    torch.testing.assert_close(layer.bias.grad, linear.bias.grad)


def test_state_while_fine_tuning():
    layer = lk.nn.SparseLinear.from_linear(pruned_linear()).fine_tune()
    with torch.no_grad():
        layer.values.add_(1.0)
    other = lk.nn.SparseLinear(40, 24)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight.to_dense(), layer.weight.to_dense())
    resumed = lk.nn.SparseLinear.from_linear(pruned_linear()).fine_tune()
    resumed.load_state_dict(layer.state_dict())
    assert torch.equal(resumed.values, layer.values)
    assert torch.equal(resumed.kept, layer.kept)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"shape": torch.tensor([1, 2])}, r"shape must be \(24, 40\), got \(1, 2\)"),
        ({"mask": torch.zeros(24, 4, dtype=torch.uint8)}, r"mask must be uint8 of shape \(24, 5\)"),
        ({"values": torch.zeros(3)}, "values must have shape"),
        ({"values": None}, "values"),
    ],
)
def test_errors_of_loading(change, text):
    layer = lk.nn.SparseLinear.from_linear(pruned_linear())
    state = {k: v for k, v in {**layer.state_dict(), **change}.items() if v is not None}
    with pytest.raises(RuntimeError, match=text):
        lk.nn.SparseLinear(40, 24).load_state_dict(state)


def test_errors():
    with pytest.raises(TypeError, match=r"linear must be a torch.nn.Linear, got ReLU"):
        lk.nn.SparseLinear.from_linear(nn.ReLU())
    with pytest.raises(ValueError, match="activation must be None or one of"):
        lk.nn.SparseLinear(4, 4, activation="elu")
    with pytest.raises(ValueError, match="does not have the pattern 2:4"):
        lk.nn.SparseLinear.from_linear(nn.Linear(8, 8), "n:m")
