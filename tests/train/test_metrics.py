"""Metrics against scikit-learn on fresh random inputs."""

import math

import lepton_train as lt
import pytest
import torch

sklearn = pytest.importorskip("sklearn.metrics", reason="needs scikit-learn")


@pytest.mark.parametrize("classes", [2, 3, 11])
@pytest.mark.parametrize("items", [1, 7, 500])
@pytest.mark.filterwarnings("ignore")
def test_classification_as_scikit_learn(classes, items):
    predictions, targets = torch.randint(0, classes, (2, items))
    p, t = predictions.numpy(), targets.numpy()
    assert lt.metrics.accuracy(predictions, targets) == sklearn.accuracy_score(t, p)
    for average in ("macro", "micro", "weighted") + (("binary",) if classes == 2 else ()):
        for ours, theirs in (
            (lt.metrics.precision, sklearn.precision_score),
            (lt.metrics.recall, sklearn.recall_score),
            (lt.metrics.f1, sklearn.f1_score),
        ):
            if average == "binary" and not (p.any() or t.any()):
                continue
            want = theirs(t, p, average=average, zero_division=0)
            assert ours(predictions, targets, average=average) == pytest.approx(want, abs=1e-12)
    matrix = lt.metrics.confusion_matrix(predictions, targets, classes)
    want = sklearn.confusion_matrix(t, p, labels=range(classes))
    assert (matrix.numpy() == want).all()


def test_scores_and_probabilities_count_as_classes():
    scores, targets = torch.randn(50, 4), torch.randint(0, 4, (50,))
    assert lt.metrics.accuracy(scores, targets) == lt.metrics.accuracy(scores.argmax(1), targets)
    assert lt.metrics.confusion_matrix(scores, targets).shape == (4, 4)
    chance, binary = torch.rand(50), torch.randint(0, 2, (50,))
    assert lt.metrics.f1(chance, binary) == lt.metrics.f1((chance > 0.5).long(), binary)


def test_numbers_as_scikit_learn():
    x, y = torch.randn(2, 100, dtype=torch.float64)
    mse = sklearn.mean_squared_error(y.numpy(), x.numpy())
    assert lt.metrics.mean_squared_error(x, y) == pytest.approx(mse)
    assert lt.metrics.mean_squared_error(x[:, None], y) == pytest.approx(mse)
    r = float(torch.corrcoef(torch.stack([x, y]))[0, 1])
    assert lt.metrics.pearson(x, y) == pytest.approx(r)
    assert lt.metrics.pearson(x, torch.ones(100)) == 0.0
    logits, targets = torch.randn(4, 9, 17), torch.randint(0, 17, (4, 9))
    targets[0, :3] = -100
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    assert lt.metrics.perplexity(logits, targets) == pytest.approx(math.exp(loss), rel=1e-5)


def test_weighted_total_shows_its_weights():
    predictions, targets = torch.randint(0, 3, (2, 60))
    metric = lt.metrics.weighted({"accuracy": 1, "f1_macro": 3})
    report = metric.report(predictions, targets)
    assert report["weights"] == {"accuracy": 0.25, "f1_macro": 0.75}
    accuracy = sklearn.accuracy_score(targets.numpy(), predictions.numpy())
    f1 = sklearn.f1_score(targets.numpy(), predictions.numpy(), average="macro")
    assert report["total"] == pytest.approx(0.25 * accuracy + 0.75 * f1)
    assert metric(predictions, targets) == report["total"] == metric.total(report["scores"])
    assert lt.metrics.name_of(metric) == "0.25*accuracy+0.75*f1_macro"


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda m: m.accuracy([], torch.empty(0).long()), ValueError, "at least one item"),
        (lambda m: m.accuracy([], []), ValueError, "accuracy: .* at least one item"),
        (lambda m: m.accuracy("ab", [0, 1]), TypeError, "predictions must be a Tensor .* got str"),
        (lambda m: m.f1([0, 1], None), TypeError, "targets must be a Tensor .* got NoneType"),
        (lambda m: m.pearson([1.0], {}), TypeError, "targets must be a Tensor .* got dict"),
        (lambda m: m.accuracy([0, 1], [0.0, 1.0]), TypeError, "must be integer classes"),
        (lambda m: m.accuracy([0, 1], [0, 1, 1]), ValueError, r"shape \(3,\)"),
        (lambda m: m.accuracy([0, 1], [0, -1]), ValueError, "0 or larger, got -1"),
        (lambda m: m.f1([0, 2], [0, 1]), ValueError, "got class 2; use macro"),
        (lambda m: m.f1([0, 1], [0, 1], average="mean"), ValueError, "one of binary, macro"),
        (lambda m: m.confusion_matrix([0, 3], [0, 1], 3), ValueError, r"class 3 is outside"),
        (lambda m: m.mean_squared_error([1.0], [1.0, 2.0]), ValueError, r"shape \(2,\)"),
        (lambda m: m.pearson([1.0], [1.0]), ValueError, "at least two"),
        (lambda m: m.perplexity(torch.zeros(2, 3), torch.tensor([0, 3])), ValueError, "target 3"),
        (lambda m: m.get("acuracy"), ValueError, "nearest names: accuracy"),
        (lambda m: m.get(3), TypeError, "name or a callable"),
        (lambda m: m.weighted({}), ValueError, "at least one metric"),
        (lambda m: m.weighted({"accuracy": 0.0}), ValueError, "must be positive"),
        (lambda m: m.weighted(["accuracy"]), TypeError, "map metrics to numbers, got list"),
        (lambda m: m.weighted({"f1": "1"}), TypeError, "weight of f1 must be a number, got str"),
        (lambda m: m.weighted({"perplexity": 1.0}), ValueError, "lower is better"),
    ],
)
def test_messages(call, error, text):
    with pytest.raises(error, match=text):
        call(lt.metrics)
