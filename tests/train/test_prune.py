"""prune_: patterns, criteria, schedules, and masks that stay."""

from __future__ import annotations

import copy

import lepton_train as lt
import pytest
import torch
from torch import nn

import lepton_kernels as lk


def small_model() -> nn.Sequential:
    first, second, third = nn.Linear(64, 48), nn.Linear(48, 32), nn.Linear(32, 8)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)


def zeros(linear: nn.Module) -> float:
    return float((linear.weight == 0).float().mean())


def mse(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0]), batch[1])


def batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(16, 64), torch.randn(16, 8)) for _ in range(count)]


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_magnitude_keeps_the_largest(sparsity):
    model = small_model()
    before = model[0].weight.detach().clone()
    report = lt.prune_(model, sparsity)
    assert report.pruned == ["0", "2", "4"]
    assert report.reached == pytest.approx(sparsity, abs=0.002)
    kept = model[0].weight != 0
    assert torch.equal(model[0].weight[kept], before[kept])
    if sparsity:
        assert before[kept].abs().min() >= before[~kept].abs().max()
    assert "linear layers pruned" in str(report)
    assert report.to_dict()["reached"] == report.reached


@pytest.mark.parametrize("pattern", ["unstructured", "block"])
def test_global_scope_takes_from_the_smallest(pattern):
    model = small_model()
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    report = lt.prune_(model, 0.5, pattern=pattern, scope="global")
    assert zeros(model[0]) > 0.75
    assert zeros(model[4]) < 0.1
    assert report.reached == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("pattern", ["unstructured", "block"])
def test_global_scope_leaves_no_layer_empty(pattern):
    model = small_model()
    with torch.no_grad():
        model[4].weight.mul_(1e-3)
    schedule = lt.PruningSchedule("linear", steps=2)
    for _ in range(3):
        lt.prune_(model, 0.9, pattern=pattern, scope="global", schedule=schedule)
    assert model[4].weight.count_nonzero() > 0
    if pattern == "block":
        for layer in (model[0], model[2], model[4]):
            assert all(part.count_nonzero() > 0 for part in layer.weight.split(16))
    before = model[4].weight.clone()
    if pattern == "block":
        with pytest.raises(ValueError, match=r"every layer open; lower it, exclude .* as 4,"):
            lt.prune_(model, 0.999, pattern=pattern, scope="global")
        assert torch.equal(model[4].weight, before)


@pytest.mark.parametrize("pattern", ["unstructured", "block"])
def test_a_layer_keeps_a_weight_where_sparsity_rounds_to_all(pattern):
    model = nn.Sequential(nn.Linear(4, 2))
    lt.prune_(model, 0.95, pattern=pattern)
    assert model[0].weight.count_nonzero() > 0


def test_two_of_four_packs_as_n_m():
    model = small_model()
    lt.prune_(model, 0.5, pattern="2:4")
    lt.make_permanent_(model)
    for layer in (model[0], model[2], model[4]):
        assert int((layer.weight.view(-1, 4) != 0).sum(1).max()) == 2
        assert lk.pack_sparse(layer.weight, "n:m").sparsity == 0.5


def test_n_of_m():
    model = nn.Sequential(nn.Linear(64, 8))
    lt.prune_(model, 0.875, pattern="n:m", n=1, m=8)
    assert (model[0].weight.view(-1, 8) != 0).sum(1).tolist() == [1] * 64


def test_block_packs_as_block():
    model = small_model()
    report = lt.prune_(model, 0.75, pattern="block")
    lt.make_permanent_(model)
    assert report.reached == pytest.approx(0.75, abs=0.01)
    assert lk.pack_sparse(model[0].weight, "block").sparsity == pytest.approx(0.75, abs=0.01)


def test_wanda_weighs_by_the_input_row_by_row():
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]]))
    x = torch.tensor([[10.0, 0.1, 0.1, 10.0]])
    lt.prune_(model, 0.5, criterion="wanda", data=[x])
    assert torch.equal(model[0].weight != 0, torch.tensor([[True, False, False, True]] * 2))


@pytest.mark.parametrize("criterion", ["gradient", "movement"])
def test_gradient_criteria(criterion):
    model, data = nn.Sequential(nn.Linear(64, 8)), batches()
    weight = model[0].weight.detach().clone()
    expected = torch.zeros_like(weight)
    for batch in data:
        expected += weight * torch.autograd.grad(mse(model, batch), model[0].weight)[0]
    score = expected.abs() if criterion == "gradient" else -expected
    lt.prune_(model, 0.5, criterion=criterion, data=data, loss=mse)
    kept = model[0].weight != 0
    assert score[kept].min() >= score[~kept].max()
    lt.prune_(model, 0.75, criterion=criterion, data=data, loss=mse)
    assert zeros(model[0]) == pytest.approx(0.75, abs=0.002)
    assert bool((kept | (model[0].weight == 0)).all())


@pytest.mark.parametrize("kind", ["one-shot", "linear", "cubic"])
def test_schedule(kind):
    model = small_model()
    schedule = lt.PruningSchedule(kind, steps=4, begin=1)
    reached, before = [], None
    for _ in range(6):
        reached.append(lt.prune_(model, 0.8, schedule=schedule).reached)
        mask = model[0].weight != 0
        assert before is None or bool((before | ~mask).all())
        before = mask
    assert reached[0] == 0.0
    assert reached == sorted(reached)
    assert reached[-1] == pytest.approx(0.8, abs=0.002)
    wanted = {"one-shot": 0.8, "linear": 0.2, "cubic": 0.8 * (1 - 0.75**3)}[kind]
    assert reached[1] == pytest.approx(wanted, abs=0.002)


@pytest.mark.parametrize("kind", ["linear", "cubic"])
def test_schedule_ends_in_the_pattern(kind):
    """No group loses more than its share on the way: n of each m are left, exactly."""
    model = small_model()
    schedule = lt.PruningSchedule(kind, steps=3)
    for _ in range(3):
        lt.prune_(model, 0.5, pattern="2:4", schedule=schedule, include="0")
        kept = (model[0].weight != 0).view(model[0].out_features, -1, 4).sum(-1)
        assert kept.min() >= 2
    assert (kept == 2).all()


@pytest.mark.parametrize("outputs", [16, 64])
def test_blocks_of_outputs(outputs):
    model = nn.Sequential(nn.Linear(400, 130))
    lt.prune_(model, 0.5, pattern="block", outputs=outputs)
    kept = model[0].weight != 0
    for first in range(0, 130, outputs):
        assert (kept[first : first + outputs] == kept[first]).all()
    assert not torch.equal(kept[0], kept[128])
    with pytest.raises(ValueError, match="prune_: outputs must be 16, 32 or 64, got 8"):
        lt.prune_(model, 0.5, pattern="block", outputs=8)
    with pytest.raises(ValueError, match="prune_: inputs must be 4 or 64, got 16"):
        lt.prune_(model, 0.5, pattern="block", inputs=16)


def test_blocks_of_tiles():
    model = nn.Linear(150, 40)
    lt.prune_(model, 0.5, pattern="block", inputs=64)
    kept = model.weight != 0
    for row in range(0, 40, 16):
        for column in range(0, 150, 64):
            block = kept[row : row + 16, column : column + 64]
            assert (block == block[0, 0]).all()
    assert 0 < kept.float().mean() < 1


def test_masks_survive_training_copies_and_state_dicts():
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)
    for batch in batches():
        optimizer.zero_grad()
        mse(model, batch).backward()
        optimizer.step()
    lt.prune_(model, 0.7)
    mask = model[0].weight != 0
    before = model[0].weight.detach().clone()
    for batch in batches():
        optimizer.zero_grad()
        mse(model, batch).backward()
        optimizer.step()
    assert torch.equal(model[0].weight != 0, mask)
    assert not torch.equal(model[0].weight, before)
    for other in (copy.deepcopy(model), small_model()):
        if not hasattr(other[0], "parametrizations"):
            lt.prune_(other, 0.1)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other[0].weight, model[0].weight)
    x = torch.randn(3, 64)
    y = model(x)
    lt.make_permanent_(model)
    assert type(model[0]) is nn.Linear
    assert set(model.state_dict()) == set(small_model().state_dict())
    assert torch.equal(model(x), y)


def test_wanda_takes_the_batches_of_training():
    labelled, plain = small_model(), small_model()
    plain.load_state_dict(labelled.state_dict())
    data = [(torch.randn(8, labelled[0].in_features), torch.zeros(8).long()) for _ in range(2)]
    lt.prune_(labelled, 0.5, criterion="wanda", data=data)
    lt.prune_(plain, 0.5, criterion="wanda", data=[x for x, _ in data])
    assert torch.equal(labelled[0].weight, plain[0].weight)


def test_include_and_exclude():
    model = small_model()
    report = lt.prune_(model, 0.5, exclude="4")
    assert report.pruned == ["0", "2"]
    assert report.rows[2].reason == "excluded by '4'"
    assert zeros(model[4]) == 0.0
    model = small_model()
    assert lt.prune_(model, 0.5, include=["2"]).pruned == ["2"]


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"sparsity": 1.0}, ValueError, r"sparsity must lie in \[0, 1\), got 1.0"),
        ({"sparsity": -0.1}, ValueError, "sparsity must lie in"),
        ({"sparsity": float("nan")}, ValueError, "sparsity must lie in"),
        ({"sparsity": "half"}, TypeError, "sparsity must be a number, got str"),
        ({"pattern": "n:m", "n": "2"}, TypeError, "n must be an int, got str"),
        ({"include": 3}, TypeError, "include must be a string or strings, got int"),
        ({"criterion": "wanda", "data": []}, ValueError, "data must hold at least one batch"),
        ({"criterion": "wanda", "data": 3}, TypeError, "data must be an iterable .* got int"),
        ({"criterion": "random"}, ValueError, "criterion must be one of magnitude"),
        ({"pattern": "4:2"}, ValueError, "pattern must be one of unstructured"),
        ({"scope": "row"}, ValueError, "scope must be one of layer, global"),
        ({"pattern": "2:4", "sparsity": 0.7}, ValueError, "2:4 has a sparsity of 0.5, got 0.7"),
        ({"pattern": "2:4", "scope": "global"}, ValueError, "use scope 'layer'"),
        ({"pattern": "n:m", "n": 5}, ValueError, "0 < n <= m, got 5:4"),
        ({"pattern": "n:m", "n": 1, "m": 2, "include": "odd"}, ValueError, "matches no linear"),
        ({"exclude": "decoder"}, ValueError, "exclude pattern 'decoder' matches no linear layer"),
        ({"exclude": "*"}, ValueError, "no linear layer can be pruned"),
        ({"criterion": "wanda"}, ValueError, "criterion 'wanda' needs data"),
        ({"criterion": "gradient", "data": []}, ValueError, "at least one batch"),
        ({"criterion": "movement", "data": [torch.ones(2, 8)]}, ValueError, "data are unlabelled"),
        ({"criterion": "movement", "data": [], "loss": mse}, ValueError, "at least one batch"),
        ({"schedule": "cubic"}, TypeError, "schedule must be a PruningSchedule, got str"),
    ],
)
def test_errors(arguments, error, text):
    model = small_model()
    with pytest.raises(error, match=f"prune_: .*{text}"):
        lt.prune_(model, arguments.pop("sparsity", 0.5), **arguments)
    assert zeros(model[0]) == 0.0


def test_without_a_loss_it_is_that_of_fit():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3))
    twin = copy.deepcopy(model)
    data = [(torch.randn(20, 8), torch.arange(20) % 3)]

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    lt.prune_(model, 0.5, criterion="movement", data=data)
    lt.prune_(twin, 0.5, criterion="movement", data=data, loss=loss)
    assert torch.equal(model[0].weight == 0, twin[0].weight == 0)
    assert zeros(model[0]) == 0.5


def test_more_errors():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        lt.prune_([], 0.5)
    with pytest.raises(ValueError, match=r"holds no torch\.nn\.Linear"):
        lt.prune_(nn.ReLU(), 0.5)
    with pytest.raises(ValueError, match="30 input features, no multiple of 4; exclude it"):
        lt.prune_(nn.Sequential(nn.Linear(30, 4)), 0.5, pattern="2:4")
    broken = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        broken[0].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="0: weights, data or gradients hold NaN"):
        lt.prune_(broken, 0.5)
    for wrong in ({"kind": "exponential"}, {"steps": 0}, {"begin": -1}):
        with pytest.raises(ValueError, match="PruningSchedule: "):
            lt.PruningSchedule(**wrong)


def test_a_network_trains_while_it_is_pruned():
    """Pruned to 90 % on a cubic schedule, a network fits a task that its 10 % can hold."""
    # One of some 60 starts ends below 0.9.
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 64, generator=generator)
    target = (x[:, :2].prod(1) > 0).long()
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = lt.PruningSchedule("cubic", steps=8, begin=1)
    for step in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
        if step % 8 == 7:
            lt.prune_(model, 0.9, schedule=schedule)
    assert zeros(model[0]) == pytest.approx(0.9, abs=0.005)
    assert float((model(x).argmax(1) == target).float().mean()) > 0.9


def test_a_copy_made_permanent_leaves_the_original():
    model = nn.Sequential(nn.Linear(8, 4))
    lt.prune_(model, 0.5)
    twin = copy.deepcopy(model)
    lt.make_permanent_(twin)
    x = torch.randn(3, 8)
    assert type(twin[0]) is nn.Linear
    assert torch.equal(model(x), twin(x))
    lt.prune_(model, 0.75)
    lt.make_permanent_(model)
    assert type(model[0]) is nn.Linear
    assert float((model[0].weight == 0).float().mean()) == 0.75
