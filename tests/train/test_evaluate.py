"""Evaluation, its pictures, and the explanation of a prediction."""

import json
import math

import lepton_train as lt
import pytest
import torch
from torch import nn


def task(count=60):
    x = torch.randn(count, 5)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3)), x, (x[:, 0] > 0).long()


def test_scores_loss_size_and_speed():
    model, x, y = task()
    model.train()
    result = lt.evaluate(
        model, (x, y), metrics=["accuracy", "f1_macro"], batch_size=16, latency=True, rounds=2
    )
    with torch.no_grad():
        output = model(x)
    assert model.training
    assert result.examples == 60
    assert result.scores["accuracy"] == int((output.argmax(1) == y).sum()) / 60
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(output, y)), rel=1e-5)
    assert sum(map(sum, result.confusion)) == 60
    assert result.size_bytes == 4 * sum(p.numel() for p in model.parameters())
    assert result.batch_size == 16
    assert result.throughput == pytest.approx(16e3 / result.latency_ms)
    assert result.latency_ms_single > 0
    assert json.dumps(result.to_dict())
    assert "throughput" in str(result)


def test_weighted_total_has_its_weights_in_the_report():
    model, x, y = task()
    metric = lt.metrics.weighted({"accuracy": 2, "f1_macro": 1})
    result = lt.evaluate(model, (x, y), metrics=metric)
    (name,) = result.weights
    assert result.weights[name] == {"accuracy": 2 / 3, "f1_macro": 1 / 3}
    parts = 2 / 3 * result.scores["accuracy"] + 1 / 3 * result.scores["f1_macro"]
    assert result.scores[name] == pytest.approx(parts)


def test_language_model_perplexity():
    logits, targets = torch.randn(6, 9, 11), torch.randint(0, 11, (6, 9))
    result = lt.evaluate(nn.Identity(), (logits, targets), metrics="perplexity", batch_size=2)
    assert result.scores["perplexity"] == pytest.approx(math.exp(result.loss), rel=1e-5)


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    model, x, y = task()
    result = lt.evaluate(model, (x, y))
    for names in (None, ["no", "yes", "maybe"]):
        file = result.plot_confusion(tmp_path / "c.png", names)
        assert file.read_bytes().startswith(b"\x89PNG")
    numbers = lt.evaluate(nn.Linear(5, 1), (x, x[:, 0]))
    with pytest.raises(ValueError, match="labels are no classes"):
        numbers.plot_confusion(tmp_path / "d.png")


def test_messages():
    model, x, y = task()
    with pytest.raises(ValueError, match="at least one example"):
        lt.evaluate(model, (x[:0], y[:0]))
    with pytest.raises(ValueError, match=r"evaluate: labels must lie in \[0, 3\), got 5"):
        lt.evaluate(model, (x, y + 4 + (y == 0)))
    with pytest.raises(ValueError, match="unlabelled"):
        lt.evaluate(model, [x[0]])
    with pytest.raises(TypeError, match=r"a torch\.nn\.Module"):
        lt.evaluate(3, (x, y))


def test_explanation_adds_up_to_the_difference():
    pytest.importorskip("captum", reason="needs captum")
    model, x, _ = task()
    found = lt.explain(model, x[:1], steps=200)
    with torch.no_grad():
        gap = (model(x[:1]) - model(torch.zeros(1, 5)))[0, found.predicted]
    assert float(found.attributions.sum()) == pytest.approx(float(gap), abs=2e-2)
    assert found.score == pytest.approx(float(model(x[:1]).softmax(1).max().detach()))
    with pytest.raises(ValueError, match="one example in a batch of one, got 60"):
        lt.explain(model, x)
    with pytest.raises(ValueError, match=r"target must lie in \[0, 3\), got 7"):
        lt.explain(model, x[:1], target=7)
    with pytest.raises(ValueError, match="a text needs a tokenizer"):
        lt.explain(model, "text")


def test_explanation_of_tokens():
    pytest.importorskip("captum", reason="needs captum")

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, input_ids, attention_mask):
            return self.head(self.embedding(input_ids).mean(1))

    model = Words()
    with torch.no_grad():
        model.embedding.weight.zero_()
        # Token 7 raises class 1 and lowers class 0, whatever the weights.
        model.head.weight[0] = -model.head.weight[1]
        model.embedding.weight[7] = 5 * model.head.weight[1]
    ids = torch.tensor([[1, 7, 3]])
    found = lt.explain(
        model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, target=1, steps=20
    )
    assert found.attributions.shape == (3,)
    assert int(found.attributions.abs().argmax()) == 1
    assert float(found.attributions[1]) > 0
