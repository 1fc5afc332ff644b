"""RMSProp and Adadelta of ours against torch's."""

import copy

import lepton_train as lt
import pytest
import torch
from lepton_train.training import blocked_optimizers
from lepton_train.training.blocked_optimizers import Adadelta, RMSprop
from torch import nn

EXACT = [
    (RMSprop, torch.optim.RMSprop, {"momentum": 0.9}),
    (RMSprop, torch.optim.RMSprop, {"centered": True, "weight_decay": 0.1}),
    (RMSprop, torch.optim.RMSprop, {"maximize": True}),
    (Adadelta, torch.optim.Adadelta, {}),
    (Adadelta, torch.optim.Adadelta, {"weight_decay": 0.1, "rho": 0.8}),
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blocked_optimizers, "_BLOCK", 64)


def weights():
    shapes = ((123, 63), (1,), (0, 3), (5, 7, 1), (1000,))
    made = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    made.append(nn.Parameter(torch.randn(40, 30).t()))  # its gradient is not contiguous
    made.append(nn.Parameter(torch.randn(9)))  # never gets a gradient
    return made


def give_gradients(*lists):
    for same in zip(*(parameters[:-1] for parameters in lists), strict=True):
        gradient = torch.randn_like(same[0])
        for parameter in same:
            parameter.grad = gradient.to(parameter.dtype).clone()


def step_together(ours, theirs, mine, yours, steps=4):
    for _ in range(steps):
        give_gradients(mine, yours)
        kept = [p.grad.clone() for p in mine[:-1]]
        ours.step()
        theirs.step()
        assert all(torch.equal(p.grad, k) for p, k in zip(mine, kept, strict=False))


@pytest.mark.parametrize(("kind", "reference", "options"), EXACT)
def test_the_bits_of_torch(kind, reference, options):
    mine = weights()
    yours = copy.deepcopy(mine)
    ours, theirs = kind(mine, lr=0.1, **options), reference(yours, lr=0.1, foreach=False, **options)
    step_together(ours, theirs, mine, yours)
    assert all(map(torch.equal, mine, yours))
    # Either one goes on from the state of the other.
    state = copy.deepcopy(ours.state_dict())
    assert state["state"].keys() == theirs.state_dict()["state"].keys()
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    theirs.load_state_dict(state)
    step_together(ours, theirs, mine, yours)
    assert all(map(torch.equal, mine, yours))
    assert ours.state[mine[0]]["step"] == theirs.state[yours[0]]["step"] == 8


def test_plain_rmsprop_is_as_near_to_float64_as_torch():
    mine = weights()
    yours = copy.deepcopy(mine)
    exact = [nn.Parameter(p.detach().double()) for p in mine]
    ours = RMSprop(mine, lr=0.01, alpha=0.9)
    theirs, truth = (torch.optim.RMSprop(p, lr=0.01, alpha=0.9) for p in (yours, exact))
    for _ in range(6):
        give_gradients(mine, yours, exact)
        kept = [p.grad.clone() for p in mine[:-1]]
        for optimizer in (ours, theirs, truth):
            optimizer.step()
        assert all(torch.equal(p.grad, k) for p, k in zip(mine, kept, strict=False))
    for a, b, c in zip(mine[:-1], yours, exact, strict=False):
        if a.numel():
            # One rounding of each step's update, of up to lr / sqrt(1 - alpha), and of the weight.
            rounding = 6 * 2**-24 * (c.abs().max() + 0.01 / 0.1**0.5)
            assert (a - c).abs().max() <= 2 * (b - c).abs().max() + rounding
    assert ours.state[mine[0]]["step"] == 6
    assert set(ours.state[mine[0]]) == set(theirs.state[yours[0]])


def test_sparse_gradients_and_closures():
    table = nn.Embedding(5, 3, sparse=True)
    optimizer = RMSprop(table.parameters())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    weight = nn.Parameter(torch.ones(2))
    optimizer = Adadelta([weight])

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 2.0
    assert (weight < 1).all()


def test_fit_takes_them_by_name_and_torch_where_they_do_not_fit():
    from lepton_train.training.optimizers import make_optimizer

    def made(name, dtype=torch.float32, **options):
        parameters = [nn.Parameter(torch.zeros(2, dtype=dtype))]
        return type(make_optimizer("fit", name, parameters, None, options))

    assert made("rmsprop", momentum=0.5) is RMSprop
    assert made("adadelta") is Adadelta
    assert made("rmsprop", foreach=True) is torch.optim.RMSprop
    assert made("adadelta", torch.float64) is torch.optim.Adadelta
    assert "rmsprop" in lt.fit.__doc__


def test_a_class_of_torch_takes_lr_and_options():
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    kinds = (torch.optim.SGD, lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.8))
    given = ({"lr": 0.5, "optimizer_options": {"momentum": 0.8}}, {})
    for model, kind, options in zip(models, kinds, given, strict=True):
        lt.fit(model, (x, y), optimizer=kind, progress=False, **options)
    assert torch.equal(models[0].weight, models[1].weight)
    with pytest.raises(TypeError, match="optimizer_options"):
        lt.fit(models[0], (x, y), optimizer=torch.optim.SGD, optimizer_options={"mom": 1})
    lt.fit(models[0], (x, y), optimizer="AdamW", progress=False)
