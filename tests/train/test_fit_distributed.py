"""The training loop on several processes."""

import contextlib
import hashlib

import lepton_train as lt
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def digest(model):
    values = [v.detach().numpy().tobytes() for v in model.state_dict().values()]
    return hashlib.sha256(b"".join(values)).hexdigest()


def data(count=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 4, generator=generator)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def network(dropout=0.0):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3))


def train(rank, world, batch_size, accumulate=1):
    model = network()
    result = lt.fit(
        model,
        data(48),
        data(31, seed=1),
        batch_size=batch_size,
        accumulate=accumulate,
        shuffle=False,
        optimizer="sgd",
        clip_norm=1.0,
        epochs=2,
        progress=False,
    )
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]
    return {"digest": digest(model), "rows": rows}


def test_two_processes_are_one_with_a_batch_twice_as_large(ranks):
    one = train(0, 1, batch_size=16)
    for accumulate in (1, 2):
        two = ranks(train, 2, batch_size=8 // accumulate, accumulate=accumulate)
        assert two[0] == two[1]
        for ours, theirs in zip(two[0]["rows"], one["rows"], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-4)


def resumed(rank, world, place):
    def run(model, at=None, **options):
        seen = 0

        def step(model, batch):
            nonlocal seen
            seen += 1
            if at is not None and seen > at:
                raise KeyError("stop")
            return nn.functional.cross_entropy(model(batch[0]), batch[1])

        return lt.fit(
            model, data(), training_step=step, batch_size=5, epochs=3, progress=False, **options
        )

    whole, again = network(dropout=0.3), network(dropout=0.3)
    run(whole)
    with contextlib.suppress(KeyError):
        run(network(dropout=0.3), at=8, checkpoint=place, checkpoint_every=8)
    run(again, checkpoint=place, checkpoint_every=8, resume=True)
    return [digest(whole), digest(again)]


def test_resume_on_two_processes_gives_the_same_bits(ranks, tmp_path):
    digests = ranks(resumed, 2, place=str(tmp_path))
    assert len({d for pair in digests for d in pair}) == 1


def shared_loader(rank, world):
    try:
        lt.fit(network(), DataLoader(TensorDataset(*data())), progress=False)
    except ValueError as error:
        return str(error)
    return ""


def full_disk(rank, world, place):
    def fail(path, state):
        raise OSError("no space left")

    from lepton_train.training import checkpoint

    checkpoint.save = fail
    try:
        lt.fit(network(), data(), checkpoint=place, progress=False)
    except OSError as error:
        return str(error)
    return ""


def test_errors_reach_every_process(ranks, tmp_path):
    for text in ranks(shared_loader, 2):
        assert "DataLoader with a DistributedSampler; got a SequentialSampler" in text
    for text in ranks(full_disk, 2, place=str(tmp_path)):
        assert text == "fit: no space left"


def test_resume_refuses_another_number_of_processes(tmp_path, ranks):
    lt.fit(network(), data(), checkpoint=tmp_path, progress=False)

    outcomes = ranks.outcomes(resume_alone, 2, place=str(tmp_path))
    for outcome in outcomes:
        assert "of a run with processes 1, got 2" in outcome["error"]


def resume_alone(rank, world, place):
    lt.fit(network(), data(), checkpoint=place, resume=True, progress=False)
