"""A text model behind the server: texts in, labels out, tokens by the bundle's tokenizer."""

import lepton_train as lt
import pytest
import torch
from lepton_train.serve import Predictor, statistics

for package in ("tokenizers", "transformers"):
    pytest.importorskip(package, reason=f"needs the package {package}: pip install {package}")

TEXTS = ["a good film", "bad bad bad", "good"]


@pytest.fixture
def saved(tmp_path):
    import tokenizers
    import transformers

    words = ["[PAD]", "[UNK]", "a", "good", "bad", "film"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = transformers.BertConfig(
        vocab_size=6, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.tensor([[2, 3, 5], [4, 4, 4]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    lt.bundle.save(
        model,
        tmp_path / "text",
        metadata={
            "labels": ["negative", "positive"],
            "preprocessing": {"kind": "text", "max_length": 8},
        },
        example_inputs=inputs,
        files={"tokenizer.json": tmp_path / "tokenizer.json"},
        input_statistics=statistics([inputs] * 50),
    )
    return tmp_path / "text"


def test_texts_with_padding_and_truncation(saved, run_server):
    predictor = Predictor(saved)
    assert predictor.inputs(["GOOD what", "a"])["input_ids"].tolist() == [[3, 1], [2, 0]]
    assert predictor.inputs(["a " * 100])["input_ids"].shape == (1, 8)
    with run_server(predictor) as client:
        status, answer = client.predict(TEXTS)
        assert status == 200
        alone = [client.predict([text])[1]["predictions"][0] for text in TEXTS]
    for one, other in zip(answer["predictions"], alone, strict=True):
        assert one["label"] in ("negative", "positive")
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)


@pytest.mark.parametrize("inputs", ["one text", [1], {"text": "a"}, []])
def test_bad_texts(saved, run_server, inputs):
    with run_server(Predictor(saved)) as client:
        status, answer = client.predict(inputs)
    assert status == 422
    assert "inputs must" in answer["error"]["message"]


def test_drift_of_texts(saved):
    from lepton_train.serve import Drift

    predictor = Predictor(saved)
    drift = Drift(predictor.manifest.input_statistics, least=10)
    assert drift.indices() == {}
    for _ in range(20):
        drift.add(predictor.inputs(["a " * 8]))
    assert drift.indices()["input_ids.count"] > 1


def test_token_numbers_beyond_the_vocabulary(tmp_path, run_server):
    model = torch.nn.Sequential(torch.nn.Embedding(10, 4)).eval()
    lt.bundle.save(model, tmp_path / "e")
    with run_server(Predictor(tmp_path / "e")) as client:
        assert client.predict([[1, 2, 3]])[0] == 200
        for bad in (10, -1):
            status, answer = client.predict([[bad]])
            assert status == 422
            assert "the model refuses the inputs" in answer["error"]["message"]
        assert "whole numbers" in client.predict([[0.5]])[1]["error"]["message"]
