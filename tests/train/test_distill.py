"""Distillation: the loss as written down, the cache, the layers."""

import lepton_train as lt
import pytest
import torch
from torch import nn
from torch.nn import functional


def networks(hidden=8):
    teacher = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 3))
    student = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3))
    return teacher, student


def batch(count=40):
    return torch.randn(count, 4), torch.randint(0, 3, (count,))


@pytest.mark.parametrize("labels", ["soft", "hard", "both"])
def test_the_loss_is_the_one_in_the_paper(labels):
    teacher, student = networks()
    x, y = batch()
    distiller = lt.Distiller(teacher, student, labels=labels, temperature=3.0, alpha=0.3)
    t, s = teacher(x), student(x)
    p, q = (t / 3).softmax(1), (s / 3).softmax(1)
    soft = 9 * (p * (p.log() - q.log())).sum(1).mean()
    decisions = functional.cross_entropy(s, t.argmax(1))
    truth = functional.cross_entropy(s, y)
    want = {"soft": soft, "hard": decisions, "both": 0.3 * soft + 0.7 * truth}[labels]
    torch.testing.assert_close(distiller.step(distiller, (x, y)), want)
    if labels != "both":  # labels of the data are not needed
        torch.testing.assert_close(distiller.step(distiller, x), want)
    assert all(p.grad is None for p in teacher.parameters())


def test_examples_without_a_label_take_the_decision_of_the_teacher():
    teacher, student = networks()
    x, y = batch()
    distiller = lt.Distiller(teacher, student, labels="both", alpha=0.0)
    decided = teacher(x).argmax(1)
    known = torch.arange(len(y)) % 3 == 0
    wanted = functional.cross_entropy(student(x), torch.where(known, y, decided))
    got = distiller.step(distiller, (x, torch.where(known, y, -100)))
    torch.testing.assert_close(got, wanted)
    # Also where no example of the batch has one.
    wanted = functional.cross_entropy(student(x), decided)
    torch.testing.assert_close(distiller.step(distiller, (x, torch.full_like(y, -100))), wanted)


def test_hard_labels_of_the_data():
    teacher, student = networks()
    x, y = batch()
    distiller = lt.Distiller(teacher, student, labels="hard", hard_labels="data")
    torch.testing.assert_close(
        distiller.step(distiller, (x, y)), functional.cross_entropy(student(x), y)
    )


def test_the_student_comes_to_agree_with_the_teacher():
    torch.manual_seed(0)
    teacher, student = networks()
    x, _ = batch(400)
    y = teacher(x).argmax(1)
    before = lt.evaluate(student, (x, y)).scores["accuracy"]
    weights = {k: v.clone() for k, v in teacher.state_dict().items()}
    distiller = lt.Distiller(teacher, student, labels="soft")
    result = distiller.fit((x, y), (x, y), lr=0.02, epochs=15, progress=False)
    after = lt.evaluate(student, (x, y)).scores["accuracy"]
    assert after > max(before, 0.9)
    assert result.history[-1]["accuracy"] == after
    assert all(torch.equal(teacher.state_dict()[k], v) for k, v in weights.items())
    assert set(distiller.state_dict()) == {f"student.{k}" for k in student.state_dict()}


def test_cached_answers_are_the_same_training(tmp_path):
    pytest.importorskip("safetensors", reason="needs safetensors")
    teacher, first = networks()
    _, second = networks()
    second.load_state_dict(first.state_dict())
    x, y = batch(50)
    options = {"lr": 0.01, "epochs": 2, "batch_size": 16, "progress": False}
    lt.Distiller(teacher, first).fit((x, y), **options)
    calls = []
    teacher.register_forward_hook(lambda *_: calls.append(1))
    distiller = lt.Distiller(teacher, second)
    cached = distiller.cache((x, y), tmp_path / "answers.safetensors", batch_size=50)
    distiller.fit(cached, **options)
    assert len(calls) == 1
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        # The teacher saw batches of another size.
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    again = distiller.cache((x, y), tmp_path / "answers.safetensors")
    assert len(calls) == 1
    assert torch.equal(again.answers["output"], cached.answers["output"])
    with pytest.raises(ValueError, match="to 50 examples, needs those of output to 20"):
        distiller.cache((x[:20], y[:20]), tmp_path / "answers.safetensors")
    with pytest.raises(ValueError, match="augment changes inputs"):
        distiller.fit(cached, augment=lambda x: x)


def test_intermediate_layers_with_a_projection():
    torch.manual_seed(2)
    teacher, student = networks(hidden=8)
    x, y = batch(200)
    distiller = lt.Distiller(teacher, student, labels="soft", layers={"1": "1"}, layer_weight=5.0)
    distiller.prepare(x[:2])
    projection = distiller.projections["1"]
    assert (projection.in_features, projection.out_features) == (8, 32)
    soft = distiller._soft(student(x), teacher(x))
    near = functional.mse_loss(projection(student[:2](x)), teacher[:2](x))
    torch.testing.assert_close(distiller.step(distiller, x), soft + 5.0 * near)
    cached = distiller.cache((x, y))
    assert set(cached.answers) == {"output", "1"}
    result = distiller.fit(cached, lr=0.02, epochs=10, progress=False)
    assert distiller.projections["1"] is projection
    assert result.history[-1]["train_loss"] < 0.5 * result.history[0]["train_loss"]
    assert not student[1]._forward_hooks


def test_embeddings_by_cosine():
    teacher, student = networks()
    x, _ = batch()
    distiller = lt.Distiller(teacher, student, labels="soft", soft_loss="cosine")
    want = 1 - functional.cosine_similarity(student(x), teacher(x)).mean()
    torch.testing.assert_close(distiller.step(distiller, x), want)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"labels": "softly"}, "labels must be one of soft, hard, both"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"alpha": 1.5}, r"alpha must lie in \[0, 1\]"),
        ({"soft_loss": "l1"}, "soft_loss must be one of kl, mse, cosine"),
        ({"hard_labels": "me"}, "hard_labels must be one of"),
        ({"layers": {"9": "1"}}, "'9', which the teacher lacks; nearest"),
        ({"layers": {"1": "9"}}, "'9', which the student lacks; nearest"),
    ],
)
def test_messages(options, text):
    with pytest.raises(ValueError, match=text):
        lt.Distiller(*networks(), **options)


def test_messages_of_a_step():
    teacher, _ = networks()
    x, y = batch()
    with pytest.raises(TypeError, match=r"teacher must be a torch\.nn\.Module, got int"):
        lt.Distiller(3, teacher)
    with pytest.raises(TypeError, match="Distiller: temperature must be a number, got str"):
        lt.Distiller(*networks(), temperature="hot")
    with pytest.raises(TypeError, match="Distiller: alpha must be a number, got NoneType"):
        lt.Distiller(*networks(), alpha=None)
    cases = [
        (lt.Distiller(teacher, nn.Linear(4, 5)), (x, y), r"one shape, got \(40, 5\) and \(40, 3\)"),
        (lt.Distiller(*networks()), x, "unlabelled"),
        (lt.Distiller(*networks()), (x, y * 0 + 3), r"labels must lie in \[0, 3\), got 3"),
    ]
    for distiller, given, text in cases:
        with pytest.raises(ValueError, match=text):
            distiller.step(distiller, given)
