"""Every form of model comes back as it was: dense, pruned, int8, sparse, tied, Hugging Face."""

import copy

import lepton_train as lt
import pytest
import torch
from lepton_train.bundle import torch_modules
from torch import nn

import lepton_kernels as lk


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.GELU(approximate="tanh"),
        nn.Dropout(0.2),
        nn.Linear(32, 10),
    )


def test_dense_cnn(round_trip):
    model = cnn()
    model(torch.randn(8, 1, 8, 8))  # moves the running statistics
    loaded = round_trip(model, torch.randn(3, 1, 8, 8))
    assert loaded[6].approximate == "tanh"
    assert loaded[7].p == 0.2


def test_pruning_masks_stay_masks(round_trip):
    model = cnn()
    lt.prune_(model, 0.5)
    loaded = round_trip(model, torch.randn(3, 1, 8, 8))
    nn.utils.parametrize.remove_parametrizations(loaded[5], "weight")
    assert (loaded[5].weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("mode", ["dynamic", "static", "weight_only", "qat"])
def test_quantized(round_trip, mode):
    model = cnn().eval()
    batches = [(torch.randn(4, 1, 8, 8),) for _ in range(3)]
    calibration = batches if mode in ("static", "qat") else None
    lt.quantize_(model, mode, calibration=calibration, group_size=16)
    loaded = round_trip(model, torch.randn(3, 1, 8, 8))
    assert type(loaded[5]) is type(model[5])
    if mode == "static":
        assert loaded[5].x_scale == model[5].x_scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("layout", ["bitmask", "block"])
def test_sparse(round_trip, dtype, layout):
    model = cnn()
    lt.prune_(model, 0.6, pattern="block" if layout == "block" else "unstructured")
    lt.make_permanent_(model)
    model[5] = lk.nn.SparseLinear.from_linear(model[5], layout, dtype)
    loaded = round_trip(model, torch.randn(3, 1, 8, 8))
    assert loaded[5].layout == layout
    assert loaded[5].sparsity == model[5].sparsity


def test_fine_tuned_sparse_layer_must_be_packed(tmp_path):
    model = nn.Sequential(lk.nn.SparseLinear.from_linear(nn.Linear(8, 4)).fine_tune())
    with pytest.raises(lt.bundle.BundleError, match=r"'0' is being fine-tuned: call its pack\(\)"):
        lt.bundle.save(model, tmp_path / "b")


def test_bfloat16(round_trip):
    model = nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8)).bfloat16()
    loaded = round_trip(model, torch.randn(2, 16).bfloat16())
    assert loaded[0].weight.dtype == torch.bfloat16


def test_tied_weights_are_one_again_and_stored_once(round_trip, tmp_path):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(16), enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(50, 16), encoder, nn.Linear(16, 50, bias=False))
    model[2].weight = model[0].weight
    loaded = round_trip(model, torch.randint(0, 50, (2, 7)))
    assert loaded[2].weight is loaded[0].weight
    from safetensors import safe_open

    with safe_open(tmp_path / "round_trip" / "weights.safetensors", "pt") as file:
        assert "0.weight" in file.keys()  # noqa: SIM118 - no mapping
        assert "2.weight" not in file.keys()  # noqa: SIM118


def test_quantized_encoder_layers(round_trip):
    model = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True))
    lt.quantize_(model, include="*linear*")
    loaded = round_trip(model, torch.randn(2, 5, 16))
    assert isinstance(loaded[0].linear1, lk.nn.Int8Linear)


def test_one_module_in_two_places(round_trip):
    layer = nn.Linear(8, 8)
    loaded = round_trip(nn.Sequential(layer, nn.ReLU(), layer), torch.randn(2, 8))
    assert loaded[0] is loaded[2]


def test_recurrent_and_attention(round_trip):
    gru = nn.Sequential(nn.Embedding(20, 8), nn.GRU(8, 6, 2, batch_first=True, bidirectional=True))
    round_trip(gru, torch.randint(0, 20, (3, 4)))
    assert torch_modules.arguments_of(nn.LSTM(4, 8, proj_size=3), nn.LSTM)["proj_size"] == 3


@pytest.fixture
def bert():
    transformers = pytest.importorskip("transformers", reason="needs the package transformers")
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32, num_labels=3,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def ids():
    tokens = torch.randint(0, 60, (3, 9))
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def test_transformers_dense_and_quantized(round_trip, bert):
    loaded = round_trip(bert, ids())
    assert type(loaded) is type(bert)
    assert loaded.config.num_labels == 3
    lt.quantize_(bert, exclude="classifier")
    lt.fuse_(bert)
    loaded = round_trip(bert, ids())
    assert isinstance(loaded.bert.encoder.layer[1].attention.self.query, lk.nn.Int8Linear)
    assert loaded.bert.encoder.layer[0].intermediate.dense.activation == "gelu"


def test_transformers_with_our_attention(round_trip, bert):
    lk.integrations.transformers.register()
    bert.set_attn_implementation("lepton")
    assert round_trip(bert, ids()).config._attn_implementation == "lepton"


def test_a_model_that_its_configuration_does_not_make(tmp_path, bert):
    del bert.bert.encoder.layer[1]
    with pytest.raises(lt.bundle.BundleError, match="let the configuration say so"):
        lt.bundle.save(bert, tmp_path / "b", example_inputs=ids())


class Own(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.inner = nn.Linear(4, width)
        self.factor = 2.0

    def forward(self, x):
        return self.inner(x) * self.factor


def test_own_class_needs_a_builder(tmp_path, x):
    with pytest.raises(lt.bundle.BundleError, match="whose code a bundle does not carry: register"):
        lt.bundle.save(Own(), tmp_path / "b")


def test_own_class_with_a_builder(tmp_path):
    model, inputs = Own(16), torch.randn(2, 4)
    lt.quantize_(model)
    lt.bundle.register_builder("tests.own", Own)
    lt.bundle.save(
        model, tmp_path / "b", example_inputs=inputs, builder="tests.own", config={"width": 16}
    )
    assert lt.bundle.verify(tmp_path / "b")
    assert torch.equal(lt.bundle.load(tmp_path / "b")(inputs), model(inputs))
    with pytest.raises(ValueError, match=r"'tests\.own' is taken by Own"):
        lt.bundle.register_builder("tests.own", cnn)
    from lepton_train.bundle import architecture

    del architecture._BUILDERS["tests.own"]
    with pytest.raises(
        lt.bundle.BundleError, match=r"built by 'tests\.own', which is not registered"
    ):
        lt.bundle.load(tmp_path / "b")
    loaded = lt.bundle.load(tmp_path / "b", builders={"tests.own": Own})
    assert isinstance(loaded.inner, lk.nn.Int8Linear)


def test_state_that_no_bundle_carries_is_noticed(tmp_path):
    model = Own()
    model.factor = 3.0
    lt.bundle.register_builder("tests.other", Own)
    options = {"builder": "tests.other", "config": {"width": 8}}
    with pytest.raises(lt.bundle.BundleError, match="differs from the one given"):
        lt.bundle.save(model, tmp_path / "b", example_inputs=torch.randn(2, 4), **options)
    assert list(tmp_path.iterdir()) == []


def test_inputs_must_be_given_where_nothing_tells_their_shape(tmp_path):
    with pytest.raises(lt.bundle.BundleError, match="pass example_inputs"):
        lt.bundle.save(cnn(), tmp_path / "b")


def test_training_mode_and_weights_are_left_alone(tmp_path, mlp, x):
    mlp.train()
    before = copy.deepcopy(mlp.state_dict())
    lt.bundle.save(mlp, tmp_path / "b", example_inputs=x)
    assert mlp.training
    assert all(torch.equal(before[k], v) for k, v in mlp.state_dict().items())


def test_manifest(tmp_path, mlp, x):
    lt.prune_(mlp, 0.5, include="2")
    lt.make_permanent_(mlp)
    lt.quantize_(mlp, include="0")
    metadata = {
        "name": "mlp",
        "license": "MIT",
        "provenance": {"seed": 3},
        "metrics": {"accuracy": 0.9},
        "labels": ["a", "b"],
        "team": "own key",
    }
    lt.bundle.save(mlp, tmp_path / "b", metadata=metadata, example_inputs=x)
    manifest = lt.bundle.read_manifest(tmp_path / "b")
    assert manifest.metadata.licence == "MIT"
    assert manifest.metadata.metrics == [lt.bundle.Metric(name="accuracy", value=0.9)]
    assert manifest.metadata.extra == {"team": "own key"}
    assert [(r.name, r.quantization) for r in manifest.layers] == [
        ("0", "dynamic int8"),
        ("2", "none"),
    ]
    assert manifest.layers[1].sparsity == 0.5
    assert manifest.requirements.operators == ["int8_linear"]
    assert manifest.golden.inputs[0].shape == [6, 32]


@pytest.mark.parametrize(
    ("metadata", "match"),
    [
        ({"metrics": [{"name": "a", "value": float("nan")}]}, "metadata: metrics.0.value"),
        ({"licence": 3}, "metadata: licence"),
        ({"provenance": {"when": object()}}, "metadata must be plain JSON"),
        ({"preprocessing": {"kind": "magic"}}, "preprocessing kind must be one of"),
        ({"preprocessing": {"kind": "text"}}, "needs 'assets/tokenizer.json'"),
    ],
)
def test_bad_metadata(tmp_path, mlp, metadata, match):
    with pytest.raises(lt.bundle.BundleError, match=match):
        lt.bundle.save(mlp, tmp_path / "b", metadata=metadata)
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments(tmp_path, mlp):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got str"):
        lt.bundle.save("mlp", tmp_path / "b")
    with pytest.raises(TypeError, match="metadata must be a mapping"):
        lt.bundle.save(mlp, tmp_path / "b", metadata=3)
    with pytest.raises(TypeError, match="input_0 must be a Tensor, got int"):
        lt.bundle.save(mlp, tmp_path / "b", example_inputs=[3])
    mlp[0].weight.data[0, 0] = torch.nan
    with pytest.raises(lt.bundle.BundleError, match=r"'0\.weight' must be finite"):
        lt.bundle.save(mlp, tmp_path / "b")
