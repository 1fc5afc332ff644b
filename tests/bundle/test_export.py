"""ONNX files that onnxruntime runs, and folders that transformers reads."""

import copy

import lepton_train as lt
import pytest
import torch
from torch import nn

import lepton_kernels as lk


@pytest.fixture
def onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"needs the package {package}: pip install {package}")
    import onnx

    return onnx


def ort_outputs(path, **inputs):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    named = dict(zip([each.name for each in session.get_inputs()], inputs.values(), strict=True))
    return session.run(None, {name: value.numpy() for name, value in named.items()})


def nodes(onnx, path):
    graph = onnx.load(path).graph
    return [node.op_type for node in graph.node], {each.name: each for each in graph.initializer}


def calibrated(mode, x):
    model = nn.Sequential(nn.Linear(32, 24), nn.GELU(), nn.Linear(24, 5)).eval()
    calibration = [(x,)] if mode == "static" else None
    group_size = 8 if mode == "weight_only" else None
    lt.quantize_(model, mode, calibration=calibration, group_size=group_size)
    lt.fuse_(model)
    return model


@pytest.mark.parametrize("mode", ["dynamic", "static", "weight_only"])
def test_quantized_layers_are_qdq_nodes(onnx, tmp_path, mode):
    x = torch.randn(9, 32)
    model = calibrated(mode, x)
    report = lt.bundle.export_onnx(model, tmp_path / "m.onnx", example_inputs=x)
    assert report.quantized == ["0", "2"]
    kinds, weights = nodes(onnx, tmp_path / "m.onnx")
    quantizers = 0 if mode == "weight_only" else 2
    assert kinds.count("QuantizeLinear") == quantizers
    assert kinds.count("DequantizeLinear") == 2 + quantizers
    stored = [w for w in weights.values() if w.data_type == onnx.TensorProto.INT8 and w.dims]
    assert sum(len(w.raw_data) for w in stored) >= 32 * 24 + 24 * 5
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"))
    # Another batch than the one exported; codes one step off are a small part of the range.
    other = torch.randn(4, 32)
    expected = model(other)
    got = torch.from_numpy(ort_outputs(tmp_path / "m.onnx", x=other)[0])
    assert (got - expected).abs().max() <= 0.02 * expected.abs().max()


def test_pruned_and_sparse_layers_are_dense(onnx, tmp_path):
    x = torch.randn(5, 32)
    model = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 16), nn.Linear(16, 4)).eval()
    lt.prune_(model, 0.5)
    for index, dtype in ((2, torch.int8), (3, torch.float32)):
        nn.utils.parametrize.remove_parametrizations(model[index], "weight")
        model[index] = lk.nn.SparseLinear.from_linear(model[index], dtype=dtype)
    report = lt.bundle.export_onnx(model, tmp_path / "m.onnx", example_inputs=x)
    assert report.quantized == ["2"]
    kinds, _ = nodes(onnx, tmp_path / "m.onnx")
    assert kinds.count("QuantizeLinear") == 1


def test_a_file_that_computes_something_else_is_not_written(onnx, tmp_path):
    x = torch.randn(5, 32)
    with pytest.raises(ValueError, match=r"output differs by .* in onnxruntime, allowed"):
        lt.bundle.export_onnx(
            calibrated("dynamic", x), tmp_path / "m.onnx", example_inputs=x, tolerance=1e-12
        )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def bert():
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def ids(rows, length):
    tokens = torch.randint(0, 60, (rows, length))
    mask = torch.ones_like(tokens)
    mask[0, length // 2 :] = 0
    return {"input_ids": tokens, "attention_mask": mask}


def test_quantized_transformer(onnx, tmp_path, bert):
    lt.quantize_(bert, exclude="classifier")
    lt.fuse_(bert)
    report = lt.bundle.export_onnx(bert, tmp_path / "m.onnx", example_inputs=ids(3, 10))
    assert len(report.quantized) == 13
    other = ids(2, 7)
    expected = bert(**other).logits
    got = torch.from_numpy(ort_outputs(tmp_path / "m.onnx", **other)[0])
    assert (got - expected).abs().max() <= 0.02 * expected.abs().max()


@pytest.mark.parametrize("form", ["dense", "masked", "int8", "sparse"])
def test_hugging_face_folder(tmp_path, bert, form):
    transformers = pytest.importorskip("transformers")
    before = copy.deepcopy(bert)
    if form == "masked":
        lt.prune_(bert, 0.5, exclude="classifier")
    elif form == "int8":
        lt.quantize_(bert, "weight_only", exclude="classifier")
        lt.fuse_(bert)
    elif form == "sparse":
        layer = bert.bert.encoder.layer[0].output
        layer.dense = lk.nn.SparseLinear.from_linear(layer.dense)
    (tmp_path / "tokenizer.json").write_text("{}")
    files = {"tokenizer.json": tmp_path / "tokenizer.json"}
    folder = lt.bundle.export_huggingface(bert, tmp_path / "hf", files=files)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        each.name for each in folder.iterdir()
    }
    loaded = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    assert type(loaded.bert.encoder.layer[0].output.dense) is nn.Linear
    inputs = ids(3, 10)
    torch.testing.assert_close(loaded(**inputs).logits, bert(**inputs).logits)
    if form != "dense":
        assert set(loaded.state_dict()) == set(before.state_dict())
    with pytest.raises(lt.bundle.BundleError, match="exists and is not empty"):
        lt.bundle.export_huggingface(bert, tmp_path / "hf")


def test_hugging_face_needs_a_hugging_face_model(tmp_path):
    with pytest.raises(lt.bundle.BundleError, match="must be a model of transformers, got Linear"):
        lt.bundle.export_huggingface(nn.Linear(2, 2), tmp_path / "hf")
