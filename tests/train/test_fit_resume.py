"""Interrupted training resumes bit for bit, or says why it can't."""

import lepton_train as lt
import numpy as np
import pytest
import torch
from points import QUIET, blobs, network, same
from torch import nn
from torch.utils.data import DataLoader, Dataset


def rows(result):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result.history]


class Noisy(Dataset):
    """Draws from all three generators as it is read."""

    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        noise = 0.1 * torch.randn(2) + 0.1 * float(np.random.rand())
        return self.x[index] + noise, self.y[index]


class Stop(Exception):
    pass


def interrupted(place, at, data, val, **options):
    """Train until step `at`, fail, resume."""
    seen = 0

    def step(model, batch):
        nonlocal seen
        seen += 1
        if seen > at:
            raise Stop
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    with pytest.raises(Stop):
        lt.fit(network(), data(), val, training_step=step, checkpoint=place, **options)
    seen = -(10**9)
    model = network(seed=99)  # its weights must all come from the checkpoint
    result = lt.fit(
        model, data(), val, training_step=step, checkpoint=place, resume=True, **options
    )
    return model, result


def whole(data, val, **options):
    model = network()

    def step(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    return model, lt.fit(model, data(), val, training_step=step, **options)


@pytest.mark.parametrize("form", ["tensors", "noisy", "loader", "loader with generator"])
@pytest.mark.parametrize("at", [7, 12, 16])  # in the first epoch, at its end, in the second
def test_resume_gives_the_same_bits(tmp_path, form, at):
    x, y = blobs()

    def data():
        if form == "tensors":
            return x, y
        noisy = Noisy(x, y)
        if form == "noisy":
            return noisy
        own = torch.Generator().manual_seed(3) if "generator" in form else None
        return DataLoader(noisy, batch_size=8, shuffle=True, generator=own)

    options = {
        "epochs": 3,
        "batch_size": 8,
        "schedule": "cosine",
        "warmup": 0.2,
        "lr": 0.01,
        "clip_norm": 1.0,
        "seed": 11,
        **QUIET,
    }
    val = blobs(30, seed=5)
    one, first = whole(data, val, **options)
    two, second = interrupted(tmp_path, at, data, val, **options, checkpoint_every=at)
    assert same(one, two)
    assert rows(first) == rows(second)
    assert first.best == second.best
    assert first.steps == second.steps == 36


@pytest.mark.parametrize("optimizer", ["rmsprop", "adadelta"])
def test_resume_gives_the_same_bits_with_our_optimizers(tmp_path, optimizer):
    data, options = blobs, {"optimizer": optimizer, "epochs": 2, **QUIET}
    expected, _ = whole(data, None, **options)
    place = tmp_path / "run"
    model, _ = interrupted(place, 4, data, None, checkpoint_every=2, **options)
    assert same(model, expected)


def test_resume_after_the_last_checkpoint_of_an_epoch(tmp_path):
    options = {"epochs": 4, "batch_size": 16, "accumulate": 2, "optimizer": "sgd", **QUIET}
    one, first = whole(blobs, None, **options, schedule="plateau")
    two, second = interrupted(tmp_path / "run.pt", 9, blobs, None, **options, schedule="plateau")
    assert same(one, two)
    assert rows(first) == rows(second)
    assert (tmp_path / "run-best.pt").exists()


def test_resume_refuses_another_run(tmp_path):
    lt.fit(network(), blobs(), checkpoint=tmp_path, **QUIET)
    with pytest.raises(ValueError, match="holds a run already; resume=True"):
        lt.fit(network(), blobs(), checkpoint=tmp_path, **QUIET)
    with pytest.raises(ValueError, match="of a run with seed 0, got 3; resume needs the same"):
        lt.fit(network(), blobs(), checkpoint=tmp_path, resume=True, seed=3, **QUIET)
    with pytest.raises(ValueError, match="of a run with examples 96, got 90"):
        lt.fit(network(), blobs(90), checkpoint=tmp_path, resume=True, **QUIET)
    with pytest.raises(ValueError, match="is of another model"):
        lt.fit(network(classes=4), blobs(), checkpoint=tmp_path, resume=True, **QUIET)
    again = lt.fit(network(), blobs(), checkpoint=tmp_path, resume=True, **QUIET)
    assert len(again.history) == 1
    longer = lt.fit(network(), blobs(), checkpoint=tmp_path, resume=True, epochs=3, **QUIET)
    assert [row["epoch"] for row in longer.history] == [1, 2, 3]
